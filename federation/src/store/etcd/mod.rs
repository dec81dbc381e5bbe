//! The store of a region: etcd, over the crate `etcd-client`.
//!
//! Owns: the connections to the members, which of them is asked, deadlines, authentication, and how
//! etcd's model is made to keep what [`super`] promises. Leaves to others: whether the history is
//! still the one they know (a restored etcd looks like itself; a read of a key at a known revision
//! tells), when to compact, what to do about [`Store::members`].
//!
//! **Members.** Each has a client of its own, so that it is known who answered. The one that
//! answered last is asked again; when it does not answer in its share of the request's time, the
//! next one is. Reads, leases and the opening of watches are repeated like that. A transaction is
//! not, once it may have been sent: its outcome is then unknown, [`StoreError::Unavailable`]. So
//! that this stays rare, a member that was not heard from for a second is asked something harmless
//! before a transaction is entrusted to it; one that was silent for two requests' time is connected
//! to anew. A client asks with `hasleader`: a member that is cut off from the others says so at once
//! and ends its watches. [`Etcd::connect`] talks to nobody.
//!
//! **Authentication.** A token that expired is renewed by `etcd-client`. One that is older than the
//! last change of any user or role is refused in another way (`revision of auth store is old`),
//! which that crate does not know; then the client is made anew. Either way the request is known
//! not to have happened, and is sent once more.
//!
//! **Secrets** are read anew with each client ([`Reload`]), and a client whose certificate or password
//! was replaced is made anew when a request fails: rotating them takes no restart. Connections that
//! are there go on meanwhile.
//!
//! **Reads** are linearizable, at a revision too: what is then said to be compacted or in the future
//! is so for the cluster, not for a member that lags. So are the guards of a transaction that
//! changes nothing, which etcd alone would answer from the member's own state.
//!
//! **Compaction.** Forgetting what is before `oldest` compacts etcd at `oldest - 1`: etcd drops the
//! deletes *at* the revision it compacts to, so a watch from there would miss them. For the same
//! reason the revision before is read along with a read at a revision, and a watch starts one
//! revision earlier: that is how both find out.
//!
//! **Keys.** Those that are not UTF-8 are none of ours and are left out; pages and commits are
//! whole without them.
//!
//! Turned down: `etcd-client`'s balancing over all endpoints in one client (it picks at random and
//! keeps picking a frozen member); retrying a transaction guarded by its own keys (the caller knows
//! what it compares, we do not); a copy of etcd's protos in our tree, to be compiled like our own
//! (then TLS, tokens and their refreshing were ours to keep).

mod config;
mod failure;
mod health;
mod lease;
mod member;
mod members;
mod range;
mod secrets;
mod txn;
mod watch;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::JoinSet;

pub use self::config::{EtcdConfig, EtcdCredentials, EtcdSecrets, EtcdTls, Reload};

use self::members::Members;
use super::{Commit, LeaseId, Member, Page, Range, Revision, Store, StoreError, Txn, Watch};

/// What one message may hold. Pages that do not fit are cut; a watch's messages are fragments.
const MAX_MESSAGE: usize = 16 << 20;
/// Under what all our keys are: who may read anything may read this one, which does not exist.
const OURS: &str = "/tombolo/";

/// A store in etcd. Cheap to share behind an `Arc`; dropping it ends its watches.
pub struct Etcd {
    members: Arc<Members>,
    config: EtcdConfig,
    watches: Mutex<JoinSet<()>>,
}

impl Etcd {
    /// Checks `config` and connects lazily: etcd need not be there. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`StoreError::Refused`], if an endpoint or the TLS material makes no sense.
    pub async fn connect(config: EtcdConfig) -> Result<Self, StoreError> {
        let members = Arc::new(Members::new(&config).await?);
        Ok(Self { members, config, watches: Mutex::new(JoinSet::new()) })
    }
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd").field("endpoints", &self.config.endpoints).finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for Etcd {
    async fn range(&self, range: Range) -> Result<Page, StoreError> {
        range::range(&self.members, range).await
    }

    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError> {
        txn::commit(&self.members, txn).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        let (watch, task) = watch::start(&self.members, &self.config, prefix, from).await?;
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        while watches.try_join_next().is_some() {}
        watches.spawn(task);
        Ok(watch)
    }

    async fn compact(&self, oldest: Revision) -> Result<(), StoreError> {
        range::compact(&self.members, oldest).await
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        lease::grant(&self.members, ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        lease::keep_alive(&self.members, lease).await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        lease::revoke(&self.members, lease).await
    }

    async fn members(&self) -> Vec<Member> {
        health::members(&self.members, self.config.quota).await
    }
}

/// etcd counts in signed numbers. No revision or lease of its is beyond them, so what is finds
/// nothing, as it should.
fn signed(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

/// The other way; etcd has no negative revisions or sizes.
fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// The first key behind all that begin with `prefix`, as etcd wants the end of a range: `\0` is
/// the end of everything.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    match end.last_mut() {
        // UTF-8 has no byte 0xff, so this never overflows.
        Some(last) => *last = last.saturating_add(1),
        None => end.push(0),
    }
    end
}

/// The first key of a range: etcd knows no empty one.
fn start_of(prefix: &str) -> Vec<u8> {
    if prefix.is_empty() { vec![0] } else { prefix.as_bytes().to_vec() }
}
