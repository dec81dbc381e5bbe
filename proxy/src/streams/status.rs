//! Who is connected, and how far each has come: for people, receipts and metrics.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use serde::Serialize;
use tokio::time::Instant;
use tombolo_federation::names::{ClusterId, RegionName};

use super::session::{Answer, Response, Variant};
use crate::class::ClientKind;
use crate::resources::{Type, Version};
use crate::streams::session::Kind;

/// A connected client.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyStatus {
    /// As its node message says; not authenticated.
    pub node: String,
    /// The cluster that it is in, if it is in one.
    pub cluster: Option<ClusterId>,
    /// Its region.
    pub region: RegionName,
    /// Its zone, if known.
    pub zone: Option<Arc<str>>,
    /// Which implementation it is.
    pub kind: ClientKind,
    /// Its version, as its node message says.
    pub version: String,
    /// Which protocol it speaks.
    pub protocol: Variant,
    /// How long it has been connected.
    pub connected_seconds: u64,
    /// By type of resource; what it never asked for is not here.
    pub types: BTreeMap<&'static str, TypeStatus>,
}

/// One type of resource of a connected client.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TypeStatus {
    /// How many resources it subscribes to or holds.
    pub resources: usize,
    /// What it was sent last, as a version of all it then held; empty for nothing yet.
    pub sent: String,
    /// How long ago.
    pub sent_seconds_ago: Option<u64>,
    /// What it accepted last.
    pub acked: String,
    /// How long ago.
    pub acked_seconds_ago: Option<u64>,
    /// Responses that it has not answered.
    pub pending: usize,
    /// What it refused last, if it has accepted nothing since.
    pub nack: Option<Nack>,
}

/// A refused response.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Nack {
    /// What was refused; empty if the client answered no response in particular.
    pub version: String,
    /// In the client's words.
    pub text: String,
    /// How long ago.
    pub seconds_ago: u64,
}

/// All connected clients.
#[derive(Debug, Default)]
pub(super) struct Roll {
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    by_id: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    since: Instant,
    /// Ages are filled in when it is asked for.
    status: ProxyStatus,
    times: BTreeMap<Type, Times>,
}

#[derive(Debug, Default)]
struct Times {
    sent: Option<Instant>,
    acked: Option<Instant>,
    nacked: Option<Instant>,
}

/// A client's place on the roll; leaves with it.
#[derive(Debug)]
pub(super) struct Enrolled {
    id: u64,
    roll: Arc<Roll>,
    metrics: Metrics,
    labels: StreamLabels,
}

impl Roll {
    pub(super) fn enrol(self: &Arc<Self>, status: ProxyStatus, metrics: &Metrics) -> Enrolled {
        let labels = StreamLabels { kind: Label(status.kind), protocol: Label(status.protocol) };
        let mut entries = self.lock();
        let id = entries.next;
        entries.next += 1;
        let entry = Entry { since: Instant::now(), status, times: BTreeMap::new() };
        entries.by_id.insert(id, entry);
        metrics.streams.get_or_create(&labels).inc();
        Enrolled { id, roll: Arc::clone(self), metrics: metrics.clone(), labels }
    }

    pub(super) fn list(&self) -> Vec<ProxyStatus> {
        let now = Instant::now();
        self.lock().by_id.values().map(|entry| entry.at(now)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn at(&self, now: Instant) -> ProxyStatus {
        let age = |at: Instant| now.saturating_duration_since(at).as_secs();
        let mut status = self.status.clone();
        status.connected_seconds = age(self.since);
        for (of, times) in &self.times {
            let entry = status.types.entry(of.name()).or_default();
            entry.sent_seconds_ago = times.sent.map(age);
            entry.acked_seconds_ago = times.acked.map(age);
            if let Some(nack) = &mut entry.nack {
                nack.seconds_ago = times.nacked.map_or(0, age);
            }
        }
        status
    }
}

impl Enrolled {
    /// The client turned out to be in another zone, or in none that is known.
    pub(super) fn moved(&self, zone: Option<Arc<str>>) {
        if let Some(entry) = self.roll.lock().by_id.get_mut(&self.id) {
            entry.status.zone = zone;
        }
    }

    /// `response` is about to be written.
    pub(super) fn sent(&self, response: &Response, now: Instant) {
        let Kind::Served(of) = response.kind else { return };
        let labels = TypeLabels { r#type: of.name() };
        self.metrics.pushes.get_or_create(&labels).inc();
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        self.metrics.resources.get_or_create(&labels).inc_by(count(response.resources.len()));
        self.metrics.removed.get_or_create(&labels).inc_by(count(response.removed.len()));
        self.update(of, |status, times| {
            status.sent = response.version.to_string();
            times.sent = Some(now);
        });
    }

    /// The client answered.
    pub(super) fn answered(&self, answer: &Answer, now: Instant) {
        match answer {
            Answer::Acknowledged { of, version, after } => {
                self.metrics.ack_latency.observe(after.as_secs_f64());
                self.update(*of, |status, times| {
                    status.acked = version.to_string();
                    status.nack = None;
                    times.acked = Some(now);
                });
            }
            Answer::Refused { of, version, text } => self.refused(*of, *version, text, now),
            Answer::UnknownType => {
                self.metrics.unknown_types.inc();
            }
            Answer::Other => {}
        }
    }

    fn refused(&self, of: Type, version: Version, text: &str, now: Instant) {
        self.metrics.nacks.get_or_create(&TypeLabels { r#type: of.name() }).inc();
        let text = text.to_owned();
        let known = version != Version::default();
        let version = if known { version.to_string() } else { String::new() };
        self.update(of, |status, times| {
            status.nack = Some(Nack { version, text, seconds_ago: 0 });
            times.nacked = Some(now);
        });
    }

    /// How many resources of a type are subscribed, and how many responses unanswered.
    pub(super) fn counted(&self, of: Type, (resources, pending): (usize, usize)) {
        self.update(of, |status, _| {
            status.resources = resources;
            status.pending = pending;
        });
    }

    fn update(&self, of: Type, change: impl FnOnce(&mut TypeStatus, &mut Times)) {
        if let Some(entry) = self.roll.lock().by_id.get_mut(&self.id) {
            let status = entry.status.types.entry(of.name()).or_default();
            change(status, entry.times.entry(of).or_default());
        }
    }
}

impl Drop for Enrolled {
    fn drop(&mut self) {
        self.metrics.streams.get_or_create(&self.labels).dec();
        self.roll.lock().by_id.remove(&self.id);
    }
}

/// What the server counts.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    streams: Family<StreamLabels, Gauge>,
    pushes: Family<TypeLabels, Counter>,
    nacks: Family<TypeLabels, Counter>,
    resources: Family<TypeLabels, Counter>,
    removed: Family<TypeLabels, Counter>,
    unknown_types: Counter,
    ack_latency: Histogram,
    pub(super) refused: Counter,
    pub(super) encoded: Counter,
    pub(super) differing_nodes: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TypeLabels {
    r#type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StreamLabels {
    kind: Label<ClientKind>,
    protocol: Label<Variant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Label<T>(T);

impl EncodeLabelValue for Label<ClientKind> {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        let text = match self.0 {
            ClientKind::Envoy => "envoy",
            ClientKind::Grpc => "grpc",
        };
        EncodeLabelValue::encode(&text, encoder)
    }
}

impl EncodeLabelValue for Label<Variant> {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        let text = match self.0 {
            Variant::Delta => "delta",
            Variant::StateOfTheWorld => "state-of-the-world",
        };
        EncodeLabelValue::encode(&text, encoder)
    }
}

impl Metrics {
    pub(super) fn new() -> Self {
        Self {
            streams: Family::default(),
            pushes: Family::default(),
            nacks: Family::default(),
            resources: Family::default(),
            removed: Family::default(),
            unknown_types: Counter::default(),
            // Beyond a second an ACK waits for something: a cluster that warms.
            ack_latency: Histogram::new([0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 5.0, 15.0]),
            refused: Counter::default(),
            encoded: Counter::default(),
            differing_nodes: Counter::default(),
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let xds = registry.sub_registry_with_prefix("tombolo_xds");
        xds.register("streams", "Connected clients", self.streams.clone());
        xds.register("pushes", "Responses sent", self.pushes.clone());
        xds.register("nacks", "Responses refused by clients", self.nacks.clone());
        xds.register("resources_sent", "Resources in responses", self.resources.clone());
        xds.register("resources_removed", "Removals in responses", self.removed.clone());
        let unknown = self.unknown_types.clone();
        xds.register("unknown_type_requests", "Requests for types not served", unknown);
        xds.register("ack_seconds", "From a response to its ACK", self.ack_latency.clone());
        xds.register("streams_refused", "Streams ended over their requests", self.refused.clone());
        xds.register("encodings", "Services encoded for a variant", self.encoded.clone());
        let differing = self.differing_nodes.clone();
        xds.register("differing_nodes", "Streams whose node changed on the way", differing);
    }
}
