//! What the rest needs of a revisioned key-value store, and nothing more.
//!
//! Owns: the trait [`Store`], after etcd's model: one revision for the whole store that grows by
//! one with each commit, multi-version reads, guarded transactions, watches from a revision, and
//! leases. Two implementations have to pass one conformance suite: [`embedded`] (redb; one process,
//! durable or in memory) and [`etcd`]. Promises to callers: a committed transaction survives kill -9;
//! a watch delivers every commit from its revision on, once, in order and whole, or says
//! [`WatchEvent::Compacted`]. Leaves to others: what keys and values mean.
//!
//! Around it, for any store: [`list`] and [`read`], [`split`] for batches beyond a transaction's
//! limits, [`election`], and the `conformance` suite.
//!
//! Turned down: a trait per ability. Every caller needs ranges, transactions and watches of one
//! history, and a store that could do one without the others would be of no use here.

mod bulk;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod election;
pub mod embedded;
mod ending;
pub mod etcd;
mod health;

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

pub use self::bulk::{Room, list, read, split, split_in_groups};
pub use self::ending::ending_by;
pub use self::health::{Alarm, Complaint, Member, MemberState};

/// Operations per transaction; etcd's own default limit.
pub const MAX_OPS: usize = 128;
/// Bytes of keys and values per transaction, below etcd's request limit of 1.5 MiB.
pub const MAX_TXN_BYTES: usize = 1 << 20;

/// Counts the commits of a store. 0 is before the first.
pub type Revision = u64;

/// A key, its value, and when it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// UTF-8 in all that we write; foreign keys may be anything.
    pub key: String,
    /// Opaque.
    pub value: Bytes,
    /// The commit that created the key (anew, if it was deleted before).
    pub create_revision: Revision,
    /// The commit that last wrote it.
    pub mod_revision: Revision,
}

/// Which keys to read, and as of when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// All keys that begin with this.
    pub prefix: String,
    /// Only keys after this one: the last key of the page before. One that is not under the
    /// prefix bounds all the same.
    pub after: Option<String>,
    /// At most so many; 0 is read as 1.
    pub limit: usize,
    /// `None` reads the newest state, linearizably; pass the first page's revision for the next
    /// pages. Revision 0 is the empty store.
    pub revision: Option<Revision>,
}

/// Part of a range's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Ascending by key.
    pub entries: Vec<KeyValue>,
    /// More keys follow the last one.
    pub more: bool,
    /// The revision that was read.
    pub revision: Revision,
}

/// A condition of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guard {
    /// The key was last written by this commit; 0: it does not exist.
    ModRevision(String, Revision),
    /// The key was created by this commit; 0: it does not exist. Fences leaders.
    CreateRevision(String, Revision),
}

/// One change of a transaction. A transaction has at most one per key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Writes the value, under a lease if one is named.
    Put {
        /// Where.
        key: String,
        /// What.
        value: Bytes,
        /// Deletes the key when it ends. No record ever hangs on one, only elections do.
        lease: Option<LeaseId>,
    },
    /// Deletes the key, if it is there.
    Delete {
        /// Which.
        key: String,
    },
}

impl Op {
    /// A put without a lease.
    pub fn put(key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self::Put { key: key.into(), value: value.into(), lease: None }
    }

    /// A delete.
    pub fn delete(key: impl Into<String>) -> Self {
        Self::Delete { key: key.into() }
    }

    /// The key that it changes.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }

    /// What it counts for against [`MAX_TXN_BYTES`].
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Put { key, value, .. } => key.len() + value.len(),
            Self::Delete { key } => key.len(),
        }
    }
}

/// Changes that happen together, if all guards hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Txn {
    /// All must hold. At most [`MAX_OPS`].
    pub guards: Vec<Guard>,
    /// At most [`MAX_OPS`], at most [`MAX_TXN_BYTES`].
    pub ops: Vec<Op>,
}

impl Txn {
    /// Whether it keeps the limits and names each key once. Every store asks this before it
    /// does anything else.
    ///
    /// # Errors
    /// [`StoreError::Refused`], naming the key or the limit.
    pub fn check(&self) -> Result<(), StoreError> {
        let refused = |why: String| Err(StoreError::Refused(why));
        if self.guards.len() > MAX_OPS {
            return refused(format!("{} guards, at most {MAX_OPS}", self.guards.len()));
        }
        if self.ops.len() > MAX_OPS {
            return refused(format!("{} operations, at most {MAX_OPS}", self.ops.len()));
        }
        let bytes: usize = self.ops.iter().map(Op::bytes).sum();
        if bytes > MAX_TXN_BYTES {
            return refused(format!("{bytes} bytes, at most {MAX_TXN_BYTES}"));
        }
        let mut seen = BTreeSet::new();
        for op in &self.ops {
            if op.key().is_empty() {
                return refused("an empty key".to_owned());
            }
            if !seen.insert(op.key()) {
                return refused(format!("key {:?} is changed twice", op.key()));
            }
        }
        Ok(())
    }
}

/// What became of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    /// It happened, at this revision. A transaction that changes nothing (no ops, or only deletes
    /// of absent keys) makes no revision: then the current one.
    Done(Revision),
    /// A guard did not hold: nothing happened.
    GuardFailed,
}

impl Commit {
    /// Whether all guards held.
    #[must_use]
    pub fn is_done(self) -> bool {
        matches!(self, Self::Done(_))
    }
}

/// What one commit did to one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Written.
    Put(KeyValue),
    /// Deleted, by this commit.
    Delete {
        /// Which key.
        key: String,
        /// The deleting commit.
        revision: Revision,
    },
}

impl Event {
    /// The key that changed.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Delete { key, .. } => key,
        }
    }
}

/// What a watch delivers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    /// All events of one commit under the watched prefix, in key order.
    Commit {
        /// The commit.
        revision: Revision,
        /// At least one.
        events: Vec<Event>,
    },
    /// Nothing else under the prefix happened up to here. Comes when the watch has caught up with
    /// the store and what it said last is older than this; never below the watched revision.
    Progress {
        /// All before and at this were delivered.
        revision: Revision,
    },
    /// The wanted history is gone: list anew. The watch has ended.
    Compacted {
        /// The oldest revision that can still be watched.
        oldest: Revision,
    },
    /// The store cannot be reached, is closed or damaged, or gave up on a slow reader; the watch
    /// has ended. Resume after the last revision that was delivered.
    Ended(StoreError),
}

/// A running watch. Ends when dropped. A queue that ends without a last word ended like
/// [`WatchEvent::Ended`].
#[derive(Debug)]
pub struct Watch {
    /// Bounded. A reader that does not keep up holds up nobody but itself: what it has not read
    /// waits in the store, and once compaction overtakes it, it gets [`WatchEvent::Compacted`].
    /// A store that cannot wait sends [`WatchEvent::Ended`].
    pub events: mpsc::Receiver<WatchEvent>,
}

/// Names a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(pub u64);

/// Why a store did not do as told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The read wants a revision that was compacted away.
    #[error("revision {wanted} is compacted, the oldest is {oldest}")]
    Compacted {
        /// What was asked for.
        wanted: Revision,
        /// What there is.
        oldest: Revision,
    },
    /// The read wants a revision that has not happened (here).
    #[error("revision {wanted} is ahead of the store, which is at {current}")]
    Future {
        /// What was asked for.
        wanted: Revision,
        /// What there is.
        current: Revision,
    },
    /// The lease ended or never was.
    #[error("lease {0:?} does not exist")]
    NoLease(LeaseId),
    /// The transaction breaks the store's limits, or names a key twice: a bug of the caller. Or
    /// what the store was told to connect to makes no sense. Trying again does not help.
    #[error("refused: {0}")]
    Refused(String),
    /// Nothing is known about whether it happened; try again, guarded.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// What this process stores does not make sense. Never said of an etcd, which is mended without
    /// us.
    #[error("the store is damaged: {0}")]
    Damaged(String),
}

/// A revisioned key-value store.
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug + 'static {
    /// Reads one page of keys.
    async fn range(&self, range: Range) -> Result<Page, StoreError>;

    /// Commits all of `txn` or nothing. Returns after it is durable.
    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError>;

    /// Delivers every commit under `prefix` from revision `from` (inclusive; 0 is as 1) on. A
    /// revision that has not happened yet is waited for. History that is gone is said in the
    /// watch, as [`WatchEvent::Compacted`], not as an error here.
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError>;

    /// Forgets history before `oldest`: that revision and later ones can still be read and
    /// watched. Less than what is forgotten already is no error.
    async fn compact(&self, oldest: Revision) -> Result<(), StoreError>;

    /// Starts a lease that ends `ttl` after the last sign of life. Stores may round up to whole
    /// seconds. Zero is refused.
    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError>;

    /// A sign of life.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Ends a lease and deletes its keys.
    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// How its servers are, those that do not answer included. A store within this process has
    /// none.
    async fn members(&self) -> Vec<Member> {
        Vec::new()
    }
}
