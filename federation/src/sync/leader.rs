//! Writing as the region's leader.
//!
//! Every transaction compares the election key's create revision: a leader that was paused and
//! succeeded commits nothing (RELIABILITY promise 19). What it says of an owner follows on what was
//! last said of it here: each transaction compares that too. A store that was restored from a backup
//! has an older last word, or none, and takes no newer one on top of what it has lost: its readers
//! would take the gap for the owner's own doing. The leader then begins anew, by making good the
//! loss.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::facts;
use super::transactions::{Changes, by_owner, transactions};
use crate::names::Owner;
use crate::replica::{Batch, Replicas};
use crate::store::{self, Commit, Guard, Op, Revision, Store, StoreError, Txn};

/// Why a leader stops writing.
#[derive(Debug, thiserror::Error)]
pub enum LeaderError {
    /// Another process leads now: whatever this one still does commits nothing.
    #[error("this process is not the leader any more")]
    NotLeader,
    /// The own store did not do as told.
    #[error("the region's own store failed")]
    Store(#[from] StoreError),
    /// Nobody fills the replica any more.
    #[error("this process is stopping")]
    Stopping,
}

/// The own store, as a leader writes to it.
#[derive(Debug, Clone)]
pub struct Leader {
    /// Where to.
    pub store: Arc<dyn Store>,
    /// What every transaction compares.
    pub fence: Guard,
    /// Follows the store.
    pub replicas: Replicas,
    /// When each owner's last word was written, of those that this leader speaks for.
    said: Arc<Mutex<BTreeMap<Owner, Revision>>>,
}

impl Leader {
    /// One that has written nothing yet. Clones are the same leader.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, fence: Guard, replicas: Replicas) -> Self {
        Self { store, fence, replicas, said: Arc::default() }
    }

    /// Commits what a batch says, in as many parts as it takes, and `last` with the last of them.
    /// Returns the revision that has it all, `None` if there was nothing to commit.
    ///
    /// # Errors
    /// See [`LeaderError`]; some of the parts may have been committed.
    pub async fn commit(
        &self,
        batch: Batch,
        last: Option<Op>,
    ) -> Result<Option<Revision>, LeaderError> {
        let replica = self.replicas.peek();
        let epoch = |owner: &Owner| Some(&replica.holding(owner)?.newest()?.epoch);
        self.commit_changes(by_owner(batch, epoch), last).await
    }

    /// The same for changes that are sorted already.
    ///
    /// # Errors
    /// See [`LeaderError`].
    pub async fn commit_changes(
        &self,
        changes: BTreeMap<Owner, Changes>,
        last: Option<Op>,
    ) -> Result<Option<Revision>, LeaderError> {
        let mut revision = None;
        for mut txn in transactions(changes, last)? {
            let owners: Vec<Owner> =
                txn.ops.iter().filter_map(|op| facts::owner_of_said(op.key())).collect();
            for owner in owners {
                let written = self.last_said(&owner).await?;
                txn.guards.push(Guard::ModRevision(facts::said_key(&owner), written));
            }
            match self.commit_guarded(txn).await? {
                Commit::Done(done) => revision = Some(done),
                Commit::GuardFailed => return Err(LeaderError::NotLeader),
            }
        }
        Ok(revision)
    }

    /// Commits one transaction with guards of its own, beside the leader's.
    ///
    /// # Errors
    /// [`LeaderError::Store`]. A guard that fails is not an error: whose it was is not known here.
    pub async fn commit_guarded(&self, mut txn: Txn) -> Result<Commit, LeaderError> {
        txn.guards.push(self.fence.clone());
        let said = txn
            .ops
            .iter()
            .filter_map(|op| Some((facts::owner_of_said(op.key())?, matches!(op, Op::Put { .. }))));
        let said: Vec<(Owner, bool)> = said.collect();
        let committed = self.store.commit(txn).await?;
        if let Commit::Done(revision) = committed {
            let written =
                said.into_iter().map(|(owner, put)| (owner, if put { revision } else { 0 }));
            self.said().extend(written);
        }
        Ok(committed)
    }

    /// When the owner's last word was written: as this leader did, or as it found it.
    async fn last_said(&self, owner: &Owner) -> Result<Revision, StoreError> {
        if let Some(revision) = self.said().get(owner) {
            return Ok(*revision);
        }
        let held = store::read(&*self.store, &facts::said_key(owner)).await?;
        let revision = held.map_or(0, |held| held.mod_revision);
        Ok(*self.said().entry(owner.clone()).or_insert(revision))
    }

    fn said(&self) -> MutexGuard<'_, BTreeMap<Owner, Revision>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the replica holds what was committed: the next comparison counts on it.
    ///
    /// # Errors
    /// [`LeaderError::Stopping`].
    pub async fn caught_up(&mut self, revision: Revision) -> Result<(), LeaderError> {
        let caught_up = self.replicas.wait_for(|replica| replica.position >= revision).await;
        caught_up.map(drop).ok_or(LeaderError::Stopping)
    }
}
