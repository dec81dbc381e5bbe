//! Absence is not deletion: what may go of a cluster's records because its source no longer shows
//! it, and whether the cluster's readiness is to be believed.
//!
//! Owns: telling losses apart ([`Loss`]) and deciding on each ([`Guard::decide`]). A loss that the
//! source explains ([`Explanation`]) goes and never counts. What nothing explains is counted in
//! endpoints over a sliding window, and held above a limit, when it takes a service's last
//! endpoint, or when the source shows nothing at all. A hold covers what was lost, never the rest.
//! It ends by approval of its id, by an explanation, by what comes back, or by two complete
//! listings on separate connections that are [`Settings::confirm_after`] apart and both lack it. Of
//! two such listings neither is from before the source went blank or came back: what is refilled may
//! take as long.
//!
//! Promises: what is wanted is always published; what is held stays as it was; nothing else is
//! added; what was lost after an operator looked is under another id than what was seen; the
//! same question gets the same answer; memory is bounded by what is published.
//!
//! What counts: each address of a service once, however many slices name it, and one that moves
//! between slices is no loss. An export takes its service's endpoints away, so it counts as those;
//! an export of a service without endpoints, or any other record, counts as one endpoint, since
//! nothing may go uncounted. A slice without endpoints takes nothing away and counts nothing.
//!
//! Leaves to others: reading sources, clocks and timers, publishing, who may approve.
//! Turned down: letting the first losses of a mass deletion go up to the limit (which ones would
//! be an accident of order); a limit on ready endpoints (a slow start would look like a loss);
//! hysteresis on suspicion (it only begins by a fast fall, so that it cannot flap by itself).

mod decide;
mod holds;
mod loss;
mod readiness;
#[cfg(test)]
mod tests;
mod window;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

pub use self::decide::Guard;
pub use self::loss::Loss;
use crate::key::{Key, Kind};
use crate::names::{NamespaceName, ServiceKey};
use crate::record::{Body, Epoch, Hold, Removal, Suspect};

/// A cluster's records.
pub type Records = BTreeMap<Key, Arc<Body>>;

/// Limits and times; the defaults are those of the design.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Over how long unexplained losses are counted.
    pub window: Duration,
    /// That many endpoints may always go without explanation in one window.
    pub floor: u32,
    /// And this share of the endpoints that were published at its start.
    pub percent: u32,
    /// How far apart two complete listings have to be.
    pub confirm_after: Duration,
    /// A ready share below this is worth a suspicion,
    pub suspect_below_percent: u32,
    /// if it fell there within this time.
    pub suspect_within: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            window: Duration::from_mins(10),
            floor: 20,
            percent: 15,
            confirm_after: Duration::from_mins(5),
            suspect_below_percent: 45,
            suspect_within: Duration::from_mins(2),
        }
    }
}

/// How a source knows that something is gone, rather than not seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Explanation {
    /// A watch said DELETE of the object behind it.
    Deleted,
    /// Its document or file was removed while others stayed readable.
    DocumentRemoved,
    /// The end of the very pod (by UID, not by name or address) was seen.
    Pod {
        /// Of the pod.
        uid: String,
        /// How it ended.
        end: PodEnd,
    },
    /// Its workload wants no replicas.
    ScaledToZero,
    /// Its namespace terminates.
    NamespaceTerminating,
    /// An operator had the cluster leave.
    Left,
}

/// How a pod ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodEnd {
    /// It has a deletion timestamp: rollouts, drains, evictions, scaling down.
    Terminating,
    /// It was deleted.
    Deleted,
    /// It failed for good.
    Failed,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deleted => f.write_str("deleted"),
            Self::DocumentRemoved => f.write_str("document removed"),
            Self::Pod { uid, end: PodEnd::Terminating } => write!(f, "pod {uid} terminates"),
            Self::Pod { uid, end: PodEnd::Deleted } => write!(f, "pod {uid} was deleted"),
            Self::Pod { uid, end: PodEnd::Failed } => write!(f, "pod {uid} failed"),
            Self::ScaledToZero => f.write_str("scaled to zero"),
            Self::NamespaceTerminating => f.write_str("its namespace terminates"),
            Self::Left => f.write_str("the cluster has left"),
        }
    }
}

/// A complete quorum listing of the source, read at one time over one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listing {
    /// Another one for each listing.
    pub id: u64,
    /// Listings over one connection may share what is wrong with it, so they do not confirm each
    /// other.
    pub connection: u64,
    /// When it was read.
    pub at: Instant,
}

/// What a source shows.
pub struct Sight<'a> {
    /// Everything that it wants published.
    pub wanted: &'a Records,
    /// The newest complete listing, which what is wanted is no older than; none while the source
    /// cannot be listed.
    pub listing: Option<Listing>,
    /// Why the source shows nothing at all, as in "the directory is missing".
    pub blank: Option<&'a str>,
    /// Whether what it lacks is to be judged. Otherwise it may be in the middle of a change: what is
    /// new is published, and nothing goes or begins to be held.
    pub settled: bool,
    /// What it knows of a loss.
    pub explains: &'a dyn Fn(&Loss) -> Option<Explanation>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// All that is wanted, and all that is held.
    pub publish: Records,
    /// Why each record goes that was published and is not to be any more.
    pub removals: BTreeMap<Key, Removal>,
    /// Everything that goes, single endpoints included.
    pub gone: BTreeMap<Loss, Removal>,
    /// What is held back, the oldest hold first.
    pub holds: Vec<Hold>,
    /// Set while the cluster's readiness is not to be believed.
    pub suspect: Option<Suspect>,
    /// Holds that began with this decision,
    pub began: Vec<Hold>,
    /// and that ended, as they last were.
    pub ended: Vec<(Hold, Ending)>,
    /// A suspicion that ended with this decision.
    pub cleared: Option<(Suspect, Ending)>,
    /// When a listing can end a hold; sooner if anything changes.
    pub ask_again: Option<Instant>,
}

/// How a hold or a suspicion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Ending {
    /// An operator approved it.
    Approved,
    /// Two listings agreed.
    Released,
    /// All that it covered came back or was explained.
    Resolved,
    /// There are too many holds: what it covered is held under another id, with more.
    Joined,
}

impl Ending {
    /// In a word, for logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Approved => "approved",
            Self::Released => "released",
            Self::Resolved => "resolved",
            Self::Joined => "joined",
        }
    }
}

/// The namespace that a record is about, be it by standing in it or by being it.
fn namespace_of(key: &Key) -> Option<NamespaceName> {
    match key.kind {
        Kind::Namespace => key.name.as_str().parse().ok(),
        _ => key.namespace.clone(),
    }
}

/// In hexadecimal, short enough to be typed, and made from all that sets it apart.
fn short_id(epoch: &Epoch, counter: u64, parts: impl Iterator<Item = String>) -> String {
    use sha2::{Digest as _, Sha256};
    let mut hash = Sha256::new();
    let head = [epoch.id.clone(), epoch.count.to_string(), counter.to_string()];
    for part in head.into_iter().chain(parts) {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let bytes = hash.finalize();
    bytes.iter().take(6).fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

/// The services of some keys, each once.
fn services<'a>(keys: impl Iterator<Item = &'a Key>) -> BTreeSet<ServiceKey> {
    keys.filter_map(Key::service).collect()
}
