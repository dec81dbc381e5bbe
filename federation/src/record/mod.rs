//! Records: what owners say, as domain types, and their wire form.
//!
//! Owns: the envelope and the one translation between messages and types. [`Record::open`] is the
//! only way from bytes to a [`Record`], so everything behind it may rely on the types. Promises:
//! sealing is deterministic (equal records give equal bytes, in every process); nothing here
//! panics on any bytes. A record that cannot be opened is reported by the caller and its last
//! good version stays in use; the bytes themselves are stored and passed on as received.

mod body;
mod open;
mod seal;

use std::fmt;

use bytes::Bytes;
use jiff::Timestamp;

pub use self::body::{
    Beacon, Body, Cluster, Decided, Decision, Endpoint, EndpointPort, Endpoints, Entitlement,
    Export, Hold, IpFamily, Member, Namespace, Protocol, Region, Removal, ServicePort, ServiceType,
    Suspect,
};
pub use self::open::RecordError;
pub(crate) use self::open::epoch;
pub use self::seal::{Sealed, body_hash, body_hash_of_value};
use crate::key::Key;

/// The highest schema level that this version writes at. What each level added:
///
/// 1. everything of the first version;
/// 2. decisions; holds and suspicion of a cluster; incarnation, peers, roots, entitlements,
///    stand-ins, rollout order and members of a region.
pub const WRITES_LEVEL: u32 = 2;
/// The highest schema level that this version reads.
pub const READS_LEVEL: u32 = 2;
/// Values beyond this are refused wherever they come from, in bytes (etcd's own request limit is
/// 1.5 MiB).
pub const MAX_VALUE: usize = 1 << 20;

/// One incarnation of an owner. Two epochs are ordered only if their ids are equal.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Epoch {
    /// The agent's Lease UID, or the id kept in a directory cluster's state directory.
    pub id: String,
    /// Lease transitions, or the number of starts.
    pub count: u64,
}

impl Epoch {
    /// Whether this epoch is known to come before `other`: only then may its word on absence not
    /// be taken any more.
    #[must_use]
    pub fn is_older_than(&self, other: &Self) -> bool {
        self.id == other.id && self.count < other.count
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.id, self.count)
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The newest change of an owner that somebody knows of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Newest {
    /// The owner's incarnation.
    pub epoch: Epoch,
    /// Its change, counted from 1 within the epoch.
    pub sequence: u64,
}

impl Newest {
    /// Whether this is known to come before `other`: whoever knows only this much of an owner has
    /// no say against who knows that.
    #[must_use]
    pub fn is_older_than(&self, other: &Self) -> bool {
        self.epoch.id == other.epoch.id
            && (self.epoch.count, self.sequence) < (other.epoch.count, other.sequence)
    }
}

/// The change that wrote a record.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Origin {
    /// The owner's incarnation.
    pub epoch: Epoch,
    /// Counts the owner's changes within the epoch, from 1.
    pub sequence: u64,
    /// Of the Kubernetes object behind the record; empty where there is none.
    pub resource_version: String,
    /// How old the fact was when it was written, in milliseconds.
    pub observed_age_ms: u64,
}

impl Origin {
    /// Which change of its owner this was.
    #[must_use]
    pub fn newest(&self) -> Newest {
        Newest { epoch: self.epoch.clone(), sequence: self.sequence }
    }

    /// Which change wrote `value`, also where the rest of it is for newer readers only. `None` if
    /// it is no envelope, or has no origin.
    #[must_use]
    pub fn of_value(value: &Bytes) -> Option<Self> {
        open::origin_of(value)
    }
}

/// One thing that an owner says, opened and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Where it is stored; names owner, kind and object.
    pub key: Key,
    /// Which change wrote it.
    pub origin: Origin,
    /// What it says.
    pub body: Body,
}

impl Record {
    /// Encodes the record for the store and the wire, at this version's own level.
    #[must_use]
    pub fn seal(&self) -> Sealed {
        self.seal_at(WRITES_LEVEL)
    }

    /// Encodes the record as written at `level`: writers never exceed the lowest level that the mesh
    /// advertises. The body is the same at each: readers ignore fields that they do not know. Levels
    /// beyond 1 to [`WRITES_LEVEL`] are taken for the nearest.
    #[must_use]
    pub fn seal_at(&self, level: u32) -> Sealed {
        seal::seal(self, level.clamp(1, WRITES_LEVEL))
    }

    /// Reads the value stored under `key`.
    ///
    /// # Errors
    /// See [`RecordError`]; the value is then to be kept as it is, not to be used.
    pub fn open(key: &Key, value: &Bytes) -> Result<Self, RecordError> {
        Self::open_at(key, value, READS_LEVEL)
    }

    /// Reads it as a reader of `level` does, for tests of mixed versions.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn open_at(key: &Key, value: &Bytes, level: u32) -> Result<Self, RecordError> {
        open::open(key, value, level)
    }
}

impl Decision {
    /// As messages and local facts have it.
    #[must_use]
    pub fn to_wire(&self) -> crate::proto::records::Decision {
        seal::decision(self)
    }

    /// Reads a decision of any message.
    ///
    /// # Errors
    /// [`RecordError::Field`].
    pub fn from_wire(decision: crate::proto::records::Decision) -> Result<Self, RecordError> {
        open::decision(decision)
    }
}

/// Milliseconds of Unix time, as the wire has them.
#[must_use]
pub fn to_unix_ms(at: Timestamp) -> i64 {
    at.as_millisecond()
}

#[cfg(test)]
mod tests;
