//! Writing as the region's leader.
//!
//! Every transaction compares the election key's create revision: a leader that was paused and
//! succeeded commits nothing. What it says of an owner follows on what was
//! last said of it here: each of those transactions compares that too. A store that was restored
//! from a backup has an older last word, or none, and takes no newer one on top of what it has lost:
//! its readers would take the gap for the owner's own doing. The leader then begins anew, by making
//! good the loss.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::timeout;
use tracing::warn;

use super::transactions::{Changes, by_owner, epoch_of_removal, transactions};
use super::{chain, client, facts};
use crate::key::{Key, Kind};
use crate::names::Owner;
use crate::replica::{Batch, Replicas};
use crate::store::{self, Commit, Guard, KeyValue, Op, Revision, Store, StoreError, Txn};

/// A leader that hears nothing of its own store for so long gives way to a replica that may. A dozen
/// leases, and longer than it takes to list a store.
pub const HEARS_WITHIN: Duration = Duration::from_mins(1);

/// Why a leader stops writing.
#[derive(Debug, thiserror::Error)]
pub enum LeaderError {
    /// Another process leads now: whatever this one still does commits nothing.
    #[error("this process is not the leader any more")]
    NotLeader,
    /// The own store did not do as told.
    #[error("the region's own store failed")]
    Store(#[from] StoreError),
    /// Its lease is renewed, and what it would decide by does not come.
    #[error("this process leads and has heard nothing of its own store for {} s", .0.as_secs())]
    Deaf(Duration),
    /// Peers know words of the region that count for newer than all that this term says.
    #[error("the region has said more before than this term goes on from")]
    Outdated,
    /// Nobody fills the replica any more.
    #[error("this process is stopping")]
    Stopping,
}

impl LeaderError {
    /// Whether the same may succeed later, also for this leader: the store is away, or does not
    /// take it now. What is damaged stays so.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Store(error) if !matches!(error, StoreError::Damaged(_)))
    }

    /// Whether this process may lead again after a pause, in which others may.
    #[must_use]
    pub fn ends_the_term_only(&self) -> bool {
        self.may_pass() || matches!(self, Self::Deaf(_) | Self::Outdated)
    }
}

/// Tries until the store has done it, or cannot. What it may have done without saying so must be
/// harmless to do again.
///
/// # Errors
/// Those that do not [pass](LeaderError::may_pass).
pub async fn persist<T, F>(doing: &str, mut attempt: impl FnMut() -> F) -> Result<T, LeaderError>
where
    F: Future<Output = Result<T, LeaderError>>,
{
    let mut backoff = client::backoff();
    loop {
        match attempt().await {
            Err(error) if error.may_pass() => {
                warn!(doing, error = chain(&error), "the store does not take it yet, trying again");
            }
            done => return done,
        }
        tokio::time::sleep(backoff.next().unwrap_or(client::MAX_BACKOFF)).await;
    }
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
    /// When each owner's last word was written, of those that this leader has spoken for.
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
        self.commit_changes(self.sorted(batch), last).await
    }

    /// The same if `found` is still there as it was read, which `last` ends. Returns whether it was.
    ///
    /// # Errors
    /// See [`LeaderError`], and [`commit_changes`](Self::commit_changes); some of the parts may have
    /// been committed.
    pub async fn commit_if_there(
        &self,
        found: &KeyValue,
        batch: Batch,
        last: Op,
    ) -> Result<bool, LeaderError> {
        for mut txn in transactions(self.sorted(batch), Some(last))? {
            self.guard_words(&mut txn).await?;
            txn.guards.push(Guard::ModRevision(found.key.clone(), found.mod_revision));
            if self.commit_guarded(txn).await? != Commit::GuardFailed {
                continue;
            }
            let now = store::read(&*self.store, &found.key).await?;
            let same = now.is_some_and(|now| now.mod_revision == found.mod_revision);
            return if same { Err(LeaderError::NotLeader) } else { Ok(false) };
        }
        Ok(true)
    }

    fn sorted(&self, batch: Batch) -> BTreeMap<Owner, Changes> {
        let replica = self.replicas.peek();
        by_owner(batch, |key| epoch_of_removal(&replica, key))
    }

    /// The same for changes that are sorted already.
    ///
    /// # Errors
    /// See [`LeaderError`]; [`LeaderError::NotLeader`] also where the store is not what it was.
    pub async fn commit_changes(
        &self,
        changes: BTreeMap<Owner, Changes>,
        last: Option<Op>,
    ) -> Result<Option<Revision>, LeaderError> {
        let mut revision = None;
        for mut txn in transactions(changes, last)? {
            self.guard_words(&mut txn).await?;
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
        let words = words(&txn);
        let committed = self.store.commit(txn).await?;
        if let Commit::Done(revision) = committed {
            let written = |(owner, put)| (owner, if put { revision } else { 0 });
            self.said().extend(words.into_iter().map(written));
        }
        Ok(committed)
    }

    /// That each owner's last word is still the one that this leader knows.
    async fn guard_words(&self, txn: &mut Txn) -> Result<(), StoreError> {
        for (owner, _) in words(txn) {
            let written = self.last_said(&owner).await?;
            txn.guards.push(Guard::ModRevision(facts::said_key(&owner), written));
        }
        Ok(())
    }

    /// When the owner's last word was written: as this leader did, or as it finds it the first time.
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

    /// Deletes all that the store has of an owner that is not this region's, the fact by which
    /// readers know that it is forgotten last.
    ///
    /// # Errors
    /// See [`LeaderError`]; some of it may be gone then.
    pub async fn forget(&self, owner: &Owner) -> Result<(), LeaderError> {
        let (held, _) = store::list(&*self.store, &Key::owner_prefix(owner)).await?;
        let records = held.into_iter().map(|entry| Op::delete(entry.key));
        let marks = Kind::ALL.map(|kind| Op::delete(facts::complete_key(owner, kind)));
        let last = Op::delete(facts::said_key(owner));
        for txn in store::split(records.chain(marks).chain([last]))? {
            if self.commit_guarded(txn).await? == Commit::GuardFailed {
                return Err(LeaderError::NotLeader);
            }
        }
        Ok(())
    }

    /// Whether this process still leads: what it is asked when guards of its own failed too.
    ///
    /// # Errors
    /// [`LeaderError::Store`].
    pub async fn leads(&self) -> Result<bool, LeaderError> {
        let fence = Txn { guards: Vec::new(), ops: Vec::new() };
        Ok(self.commit_guarded(fence).await?.is_done())
    }

    /// Waits until the replica holds all that the store has now.
    ///
    /// # Errors
    /// Those of [`Self::caught_up`], and of reading the store.
    pub async fn catch_up(&mut self) -> Result<(), LeaderError> {
        let prefix = facts::election_key();
        let now = store::Range { prefix, after: None, limit: 1, revision: None };
        let current = self.store.range(now).await?.revision;
        self.caught_up(current).await
    }

    /// Waits until the replica holds what was committed: the next comparison counts on it.
    ///
    /// # Errors
    /// [`LeaderError::Stopping`], and [`LeaderError::Deaf`] once nothing comes for [`HEARS_WITHIN`].
    pub async fn caught_up(&mut self, revision: Revision) -> Result<(), LeaderError> {
        let replicas = self.replicas.clone();
        let position = || replicas.peek().position;
        let wait = || {
            let mut replicas = replicas.clone();
            async move {
                let caught_up = replicas.wait_for(|replica| replica.position >= revision).await;
                caught_up.map(drop).ok_or(LeaderError::Stopping)
            }
        };
        while_it_moves(wait, position).await
    }
}

/// Waits for as long as `progress` is another one each time that it is looked at.
pub(super) async fn while_it_moves<T: PartialEq, F>(
    wait: impl Fn() -> F,
    progress: impl Fn() -> T,
) -> Result<(), LeaderError>
where
    F: Future<Output = Result<(), LeaderError>>,
{
    let mut before = progress();
    loop {
        if let Ok(done) = timeout(HEARS_WITHIN, wait()).await {
            return done;
        }
        let now = progress();
        if now == before {
            return Err(LeaderError::Deaf(HEARS_WITHIN));
        }
        before = now;
    }
}

/// Of whom the transaction says something, and whether that is more than that all is forgotten.
fn words(txn: &Txn) -> Vec<(Owner, bool)> {
    let word = |op: &Op| Some((facts::owner_of_said(op.key())?, matches!(op, Op::Put { .. })));
    txn.ops.iter().filter_map(word).collect()
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::replica;
    use crate::store::embedded::Embedded;

    #[tokio::test(start_paused = true)]
    async fn a_leader_waits_for_its_store_as_long_as_that_comes_nearer() {
        let store = Arc::new(Embedded::in_memory().await.unwrap());
        let (writer, replicas) = replica::channel();
        let fence = Guard::CreateRevision(facts::election_key(), 1);
        let mut leader = Leader::new(store, fence, replicas);
        let moves = async {
            for position in 1..=9 {
                sleep(HEARS_WITHIN * 3 / 4).await;
                let position = Some(position);
                writer.apply(Batch { position, ..Batch::default() }, Instant::now());
            }
        };
        let (caught_up, ()) = tokio::join!(leader.caught_up(9), moves);
        caught_up.unwrap();
        let began = Instant::now();
        let ended = leader.caught_up(10).await;
        assert!(matches!(ended, Err(LeaderError::Deaf(_))), "{ended:?}");
        assert_eq!(began.elapsed(), HEARS_WITHIN);
        drop(writer);
        let ended = leader.caught_up(10).await;
        assert!(matches!(ended, Err(LeaderError::Stopping)), "{ended:?}");
    }
}
