//! What the server counts.

use std::fmt;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// From well under the cost of an answer to a second: what lies above is an outage.
const BUCKETS: [f64; 10] = [5e-6, 2e-5, 5e-5, 1e-4, 2.5e-4, 1e-3, 5e-3, 2.5e-2, 0.1, 1.0];

/// Counters of one server, or of several that are to be counted together. Clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    queries: Family<QueryLabels, Counter>,
    seconds: Family<TransportLabels, Histogram, Buckets>,
    dropped: Family<DroppedLabels, Counter>,
    refused: Counter,
}

/// How a query came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// In one datagram.
    Udp,
    /// On a connection.
    Tcp,
}

/// What was asked for, in few enough words for a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum TypeClass {
    A,
    Aaaa,
    Srv,
    Txt,
    Other,
    /// The question could not be read.
    None,
}

/// Why a message got no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Dropped {
    /// Shorter than a header.
    Runt,
    /// It is a response itself.
    Response,
    /// Answering it panicked.
    Panic,
    /// The reply could not be sent.
    Unsent,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueryLabels {
    transport: Transport,
    r#type: TypeClass,
    rcode: Rcode,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TransportLabels {
    transport: Transport,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DroppedLabels {
    transport: Transport,
    reason: Dropped,
}

/// A response code that this server gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Rcode(ResponseCode);

#[derive(Debug, Clone, Copy)]
struct Buckets;

impl Metrics {
    /// Registers the server's metrics, named `dns_...` below the registry's own prefix.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            queries: Family::default(),
            seconds: Family::new_with_constructor(Buckets),
            dropped: Family::default(),
            refused: Counter::default(),
        };
        let dns = registry.sub_registry_with_prefix("dns");
        dns.register("queries", "Queries that were answered", metrics.queries.clone());
        dns.register(
            "answer_seconds",
            "From a query's last byte to the answer's bytes",
            metrics.seconds.clone(),
        );
        dns.register("dropped", "Messages that got no reply", metrics.dropped.clone());
        dns.register(
            "refused_connections",
            "Connections above a client's share of them",
            metrics.refused.clone(),
        );
        metrics
    }

    pub(super) fn answered(
        &self,
        transport: Transport,
        r#type: TypeClass,
        rcode: ResponseCode,
        took: Duration,
    ) {
        let labels = QueryLabels { transport, r#type, rcode: Rcode(rcode) };
        self.queries.get_or_create(&labels).inc();
        self.seconds.get_or_create(&TransportLabels { transport }).observe(took.as_secs_f64());
    }

    pub(super) fn dropped(&self, transport: Transport, reason: Dropped) {
        self.dropped.get_or_create(&DroppedLabels { transport, reason }).inc();
    }

    pub(super) fn refused(&self) {
        self.refused.inc();
    }
}

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(BUCKETS)
    }
}

impl Transport {
    fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "UDP",
            Self::Tcp => "TCP",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl From<RecordType> for TypeClass {
    fn from(qtype: RecordType) -> Self {
        match qtype {
            RecordType::A => Self::A,
            RecordType::AAAA => Self::Aaaa,
            RecordType::SRV => Self::Srv,
            RecordType::TXT => Self::Txt,
            _ => Self::Other,
        }
    }
}

impl EncodeLabelValue for Transport {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        let text = match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        };
        EncodeLabelValue::encode(&text, encoder)
    }
}

impl EncodeLabelValue for TypeClass {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        let text = match self {
            Self::A => "A",
            Self::Aaaa => "AAAA",
            Self::Srv => "SRV",
            Self::Txt => "TXT",
            Self::Other => "other",
            Self::None => "none",
        };
        EncodeLabelValue::encode(&text, encoder)
    }
}

impl EncodeLabelValue for Dropped {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        let text = match self {
            Self::Runt => "runt",
            Self::Response => "response",
            Self::Panic => "panic",
            Self::Unsent => "unsent",
        };
        EncodeLabelValue::encode(&text, encoder)
    }
}

impl EncodeLabelValue for Rcode {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        let text = match self.0 {
            ResponseCode::NoError => "NOERROR",
            ResponseCode::NXDomain => "NXDOMAIN",
            ResponseCode::ServFail => "SERVFAIL",
            ResponseCode::Refused => "REFUSED",
            ResponseCode::FormErr => "FORMERR",
            ResponseCode::NotImp => "NOTIMP",
            ResponseCode::BADVERS => "BADVERS",
            _ => "other",
        };
        EncodeLabelValue::encode(&text, encoder)
    }
}
