//! What the federation API counts.

use std::fmt;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::sync::session::{Reason, Tally};

/// Counters of one server. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Metrics {
    streams: Family<OfStreams, Gauge>,
    refused_streams: Family<OfRefusals, Counter>,
    transfers: Counter,
    refused_records: Family<OfRecords, Counter>,
    tombstones: Family<OfTombstones, Counter>,
}

/// Which call a stream belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Call {
    Publish,
    Subscribe,
    Recover,
}

/// Why a stream was refused, or ended by this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Refused {
    /// No certificate of this mesh.
    Identity,
    /// The caller may not make this call, or not so.
    Permission,
    /// What it said makes no sense.
    Request,
    /// The session was not taken.
    Session,
    /// Another cluster holds the id.
    Uid,
    /// A cluster that left the mesh for good.
    Left,
    /// New streams too fast.
    Rate,
    /// Too many streams of this caller.
    CallerStreams,
    /// Too many streams.
    Streams,
    /// No turn for a full transfer came in time.
    Transfers,
    /// A later publish stream took its place.
    Replaced,
    /// It took nothing for too long.
    Silent,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfStreams {
    call: Call,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRefusals {
    call: Call,
    reason: Refused,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRecords {
    reason: Reason,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfTombstones {
    reason: &'static str,
}

impl Metrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("federation");
        registry.register("streams", "Open streams of the federation API", self.streams.clone());
        registry.register(
            "refused_streams",
            "Streams that were refused, or ended by this side",
            self.refused_streams.clone(),
        );
        registry.register("transfers", "Full transfers that were begun", self.transfers.clone());
        registry.register(
            "refused_records",
            "Records and tombstones of agents that were not taken",
            self.refused_records.clone(),
        );
        registry.register(
            "tombstones",
            "Removals that agents told of and that were taken",
            self.tombstones.clone(),
        );
    }

    pub(super) fn opened(&self, call: Call) {
        self.streams.get_or_create(&OfStreams { call }).inc();
    }

    pub(super) fn closed(&self, call: Call) {
        self.streams.get_or_create(&OfStreams { call }).dec();
    }

    pub(super) fn refused(&self, call: Call, reason: Refused) {
        self.refused_streams.get_or_create(&OfRefusals { call, reason }).inc();
    }

    pub(super) fn transfer(&self) {
        self.transfers.inc();
    }

    /// Adds what a session has taken and refused.
    pub(super) fn records(&self, tally: &Tally) {
        for (reason, count) in &tally.refused {
            self.refused_records.get_or_create(&OfRecords { reason: *reason }).inc_by(*count);
        }
        for (removal, count) in &tally.removed {
            let reason = removal.as_str();
            self.tombstones.get_or_create(&OfTombstones { reason }).inc_by(*count);
        }
    }
}

impl EncodeLabelValue for Call {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        let text = match self {
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
            Self::Recover => "recover",
        };
        EncodeLabelValue::encode(&text, encoder)
    }
}

impl EncodeLabelValue for Refused {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        let text = match self {
            Self::Identity => "identity",
            Self::Permission => "permission",
            Self::Request => "request",
            Self::Session => "session",
            Self::Uid => "uid",
            Self::Left => "left",
            Self::Rate => "rate",
            Self::CallerStreams => "caller_streams",
            Self::Streams => "streams",
            Self::Transfers => "transfers",
            Self::Replaced => "replaced",
            Self::Silent => "silent",
        };
        EncodeLabelValue::encode(&text, encoder)
    }
}

impl EncodeLabelValue for Reason {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        EncodeLabelValue::encode(&self.as_str(), encoder)
    }
}
