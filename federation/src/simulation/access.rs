//! How one process reaches its region's store: slowly, sometimes not at all, sometimes without
//! learning what became of what it asked for.
//!
//! The checks of what may be committed are made here, on what the process asked for and what the
//! store then did. The planted bugs of the store's side are below them, so that a check does not
//! ask the bug.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

use super::store::SimStore;
use super::{Planted, Property, Shared};
use crate::key::LOCAL_PREFIX;
use crate::store::conformance::random::Random;
use crate::store::{
    Commit, Guard, LeaseId, Page, Range, Revision, Store, StoreError, Txn, Watch, WatchEvent,
};
use crate::sync::facts;

/// One process's way to the store.
#[derive(Debug)]
pub(super) struct Access {
    process: String,
    store: Arc<SimStore>,
    shared: Arc<Shared>,
    faults: Arc<Mutex<Faults>>,
    random: Mutex<Random>,
    /// The process is no more: what it had begun is not heard of again.
    dead: AtomicBool,
}

/// What goes wrong just now.
#[derive(Debug)]
pub(super) struct Faults {
    /// Nothing gets through until then.
    pub(super) away_until: Instant,
    /// The watch is held up until then.
    pub(super) lags_until: Instant,
    /// So many commits happen without an answer.
    pub(super) lose_answers: u32,
    /// So many commits arrive that much later, whether or not anybody waits.
    pub(super) late: (u32, Duration),
}

impl Access {
    pub(super) fn new(process: &str, store: Arc<SimStore>, shared: Arc<Shared>) -> Arc<Self> {
        let now = Instant::now();
        let faults =
            Faults { away_until: now, lags_until: now, lose_answers: 0, late: (0, Duration::ZERO) };
        Arc::new(Self {
            process: process.to_owned(),
            store,
            faults: Arc::new(Mutex::new(faults)),
            random: Mutex::new(shared.fork()),
            shared,
            dead: AtomicBool::new(false),
        })
    }

    pub(super) fn faults(&self) -> MutexGuard<'_, Faults> {
        lock(&self.faults)
    }

    pub(super) fn kill(&self) {
        self.dead.store(true, Ordering::SeqCst);
    }

    fn below(&self, end: u64) -> u64 {
        lock(&self.random).below(end)
    }

    /// On the way to the store or back.
    async fn travel(&self) -> Result<(), StoreError> {
        sleep(Duration::from_micros(200 + self.below(3000))).await;
        if self.dead.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("the process is gone".to_owned()));
        }
        if self.faults().away_until > Instant::now() {
            sleep(Duration::from_millis(50 + self.below(450))).await;
            return Err(StoreError::Unavailable("no member answers".to_owned()));
        }
        Ok(())
    }

    /// Executes it, or sends it on a way so long that the process is taken for dead meanwhile; then
    /// nobody's giving up can stop it any more.
    async fn execute(&self, txn: Txn) -> Result<Commit, StoreError> {
        let executing = Executing {
            process: self.process.clone(),
            store: Arc::clone(&self.store),
            shared: Arc::clone(&self.shared),
            txn,
        };
        let Some(late) = self.takes_long() else { return executing.commit().await };
        let (answer, answered) = oneshot::channel();
        self.store.tasks().spawn(async move {
            sleep(late).await;
            let _ = answer.send(executing.commit().await);
        });
        answered.await.map_err(|_| StoreError::Unavailable("no answer".to_owned()))?
    }

    /// What is sent after it gets through before it does, but not for a while.
    fn takes_long(&self) -> Option<Duration> {
        let sooner = Duration::from_millis(self.below(3000));
        let mut faults = self.faults();
        let (left, late) = faults.late;
        if left == 0 {
            return None;
        }
        faults.late.0 -= 1;
        faults.away_until = faults.away_until.max(Instant::now() + late.saturating_sub(sooner));
        Some(late)
    }

    /// The planted bug: the resume point first, by itself.
    async fn commit_apart(&self, txn: Txn) -> Result<Commit, StoreError> {
        let resume = format!("{LOCAL_PREFIX}resume/");
        let guards = txn.guards;
        let (first, rest): (Vec<_>, Vec<_>) =
            txn.ops.into_iter().partition(|op| op.key().starts_with(&resume));
        if first.is_empty() || rest.is_empty() {
            let ops = first.into_iter().chain(rest).collect();
            return self.execute(Txn { guards, ops }).await;
        }
        let first = self.execute(Txn { guards: guards.clone(), ops: first }).await?;
        if !first.is_done() {
            return Ok(Commit::GuardFailed);
        }
        sleep(Duration::from_millis(200 + self.below(2000))).await;
        self.travel().await?;
        let own = |guard: &Guard| match guard {
            Guard::ModRevision(key, _) | Guard::CreateRevision(key, _) => key.starts_with(&resume),
        };
        let guards = guards.into_iter().filter(|guard| !own(guard)).collect();
        let rest = self.execute(Txn { guards, ops: rest }).await?;
        Ok(if rest.is_done() { first } else { rest })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A transaction on its way.
struct Executing {
    process: String,
    store: Arc<SimStore>,
    shared: Arc<Shared>,
    txn: Txn,
}

impl Executing {
    async fn commit(self) -> Result<Commit, StoreError> {
        let asked = self.txn.guards.clone();
        let held = asked.iter().find(|guard| self.broken(guard)).cloned();
        let empty = self.txn.ops.is_empty();
        let txn = self.planted(self.txn.clone());
        let outcome = self.store.commit(txn).await;
        if let (Ok(Commit::Done(_)), Some(broken), false) = (&outcome, held, empty) {
            let (property, key) = match broken {
                Guard::ModRevision(key, _) => (Property::OneSessionCommits, key),
                Guard::CreateRevision(key, _) => (Property::OneLeaderCommits, key),
            };
            self.shared.journal.violated(
                property,
                &format!("{} committed although {key} was taken by another", self.process),
            );
        }
        outcome
    }

    /// Whether another one has taken the session, or the leadership, that it names.
    fn broken(&self, guard: &Guard) -> bool {
        let (key, at) = match guard {
            Guard::ModRevision(key, at) | Guard::CreateRevision(key, at) => (key, *at),
        };
        let concerned = key.starts_with(&facts::sessions_prefix()) || *key == facts::election_key();
        let entry = self.store.entry(key);
        let found = entry.map_or(0, |entry| match guard {
            Guard::ModRevision(..) => entry.mod_revision,
            Guard::CreateRevision(..) => entry.create_revision,
        });
        // Whoever takes it is known by the put of the key itself.
        let takes = self.txn.ops.iter().any(|op| op.key() == key);
        concerned && !takes && found != at
    }

    fn planted(&self, mut txn: Txn) -> Txn {
        let sessions = facts::sessions_prefix();
        let takes = |key: &str| txn.ops.iter().any(|op| op.key() == key);
        let keeps = |guard: &Guard| match (self.shared.planted, guard) {
            (Some(Planted::TwoSessions), Guard::ModRevision(key, _)) => {
                // What a stream compares of its own commits would stop it as well.
                let session = key.starts_with(&sessions) && !takes(key);
                !session && facts::owner_of_said(key).is_none()
            }
            (Some(Planted::UnfencedLeader), Guard::CreateRevision(key, _)) => {
                *key != facts::election_key() || takes(key)
            }
            _ => true,
        };
        let guards = txn.guards.iter().filter(|guard| keeps(guard)).cloned().collect();
        txn.guards = guards;
        txn
    }
}

#[async_trait]
impl Store for Access {
    async fn range(&self, range: Range) -> Result<Page, StoreError> {
        self.travel().await?;
        let page = self.store.range(range).await;
        self.travel().await?;
        page
    }

    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError> {
        self.travel().await?;
        let outcome = match self.shared.planted {
            Some(Planted::ResumeApart) => self.commit_apart(txn).await,
            _ => self.execute(txn).await,
        };
        let lost = {
            let mut faults = self.faults();
            let lost = faults.lose_answers > 0;
            faults.lose_answers -= u32::from(lost);
            lost
        };
        if lost {
            return Err(StoreError::Unavailable("the answer was lost".to_owned()));
        }
        self.travel().await?;
        outcome
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        self.travel().await?;
        let mut source = self.store.watch(prefix, from).await?;
        let (tx, events) = mpsc::channel(16);
        let faults = Arc::clone(&self.faults);
        let delay = Duration::from_micros(200 + self.below(3000));
        self.store.tasks().spawn(async move {
            while let Some(event) = source.events.recv().await {
                sleep(delay).await;
                let held = {
                    let faults = lock(&faults);
                    faults.lags_until.max(faults.away_until)
                };
                if held > Instant::now() {
                    sleep_until(held).await;
                }
                let over = matches!(event, WatchEvent::Ended(_) | WatchEvent::Compacted { .. });
                if tx.send(event).await.is_err() || over {
                    return;
                }
            }
        });
        Ok(Watch { events })
    }

    async fn compact(&self, oldest: Revision) -> Result<(), StoreError> {
        self.travel().await?;
        self.store.compact(oldest).await
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.travel().await?;
        self.store.grant_lease(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.travel().await?;
        self.store.keep_alive(lease).await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.travel().await?;
        self.store.revoke_lease(lease).await
    }
}
