//! Sync: how what one owner says reaches everybody.
//!
//! Owns the protocol's four parts, each a state machine that is fed messages and returns messages,
//! with store, clock and network passed in: [`publisher`] (an agent says what its cluster holds),
//! [`session`] (a control plane takes it), [`feed`] (a control plane sends on what it holds) and
//! [`intake`] (an agent or a peer takes that). Around them, what moves bytes: [`follower`] (store
//! to replica), [`service`] (the gRPC server), [`client`] (streams with reconnects), [`mirror`]
//! (peer to store) and [`compactor`].
//!
//! Promises: absence is not deletion (a record goes by its owner's tombstone, or by absence under
//! an end marker that is not older than the one held); silence deletes nothing; nothing is
//! acknowledged before it is committed; of two publishers for one cluster at most one commits.
//! Leaves to others: who a caller is (the wiring puts a [`Caller`] into the request), what records
//! mean together (`catalog`).

pub mod ask;
pub mod client;
pub mod compactor;
pub mod decisions;
pub mod departures;
pub mod facts;
pub mod feed;
pub mod follower;
pub mod founding;
pub mod history;
pub mod intake;
pub mod leader;
pub mod local;
pub mod mirror;
pub mod own;
pub mod peers;
pub mod publisher;
pub mod quota;
pub mod recover;
pub mod reseed;
pub mod service;
pub mod session;
pub mod settings;
pub mod spokesman;
pub mod transactions;
pub mod transport;

#[cfg(test)]
mod region_tests;
#[cfg(test)]
mod service_tests;
#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::key::Kind;
use crate::names::{ClusterId, RegionName};

/// How often each owner writes a new beacon.
pub const BEACON_INTERVAL: Duration = Duration::from_secs(5);
/// An owner whose beacon has not changed for so long is stale: six beacons missed.
pub const STALE_AFTER: Duration = Duration::from_secs(30);
/// How often a feed sends digests to compare.
pub const DIGEST_INTERVAL: Duration = Duration::from_mins(1);
/// A publisher with an epoch of another id takes over only after so much silence.
pub const TAKEOVER_SILENCE: Duration = Duration::from_mins(1);
/// Largest message of the federation API, in bytes, before and after decompression.
pub const MAX_MESSAGE: usize = 4 << 20;
/// Messages are filled up to about here, in bytes.
const TARGET_MESSAGE: usize = 256 << 10;

/// What a cluster's agent publishes.
pub const CLUSTER_KINDS: [Kind; 5] =
    [Kind::Cluster, Kind::Namespace, Kind::Export, Kind::Endpoints, Kind::Beacon];
/// What a region's leader writes.
pub const REGION_KINDS: [Kind; 3] = [Kind::Region, Kind::Beacon, Kind::Decision];

/// Who makes a call, as its certificate proves it. The wiring puts one into each request's
/// extensions; a request without one is refused.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Caller {
    /// A cluster's agent: publishes its own cluster, sees the mesh.
    Agent {
        /// The region that issued its identity.
        region: RegionName,
        /// Its cluster.
        cluster: ClusterId,
    },
    /// A region's control plane: sees what this region owns.
    ControlPlane {
        /// Which region.
        region: RegionName,
    },
}

impl std::fmt::Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Agent { cluster, .. } => write!(f, "agent {cluster}"),
            Self::ControlPlane { region } => write!(f, "control plane {region}"),
        }
    }
}

/// An error with what caused it, in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
