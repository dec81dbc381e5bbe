//! A store in memory that does as it is told at virtual time, and fails as it is told.
//!
//! Every state since the last compaction is kept whole, in maps that share what is equal. What a
//! process sees of it, and what it cannot see, is [`Access`](super::access::Access)'s.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rpds::RedBlackTreeMapSync;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::store::{
    Commit, Event, Guard, KeyValue, LeaseId, Op, Page, Range, Revision, Store, StoreError, Txn,
    Watch, WatchEvent,
};

/// A reader further behind is cut off.
const QUEUE: usize = 4096;
/// How often leases are looked at.
const LEASES_EVERY: Duration = Duration::from_millis(100);

/// A region's store.
#[derive(Debug)]
pub(super) struct SimStore {
    inner: Arc<Mutex<Inner>>,
    /// Ends leases, and what was on its way when its sender stopped waiting.
    pub(super) tasks: Mutex<JoinSet<()>>,
}

/// A copy to go back to.
#[derive(Debug, Clone)]
pub(super) struct Backup {
    states: Vec<State>,
    first: Revision,
    oldest: Revision,
    leases: BTreeMap<LeaseId, Lease>,
}

#[derive(Debug)]
struct Inner {
    states: Vec<State>,
    /// Of the first state.
    first: Revision,
    oldest: Revision,
    leases: BTreeMap<LeaseId, Lease>,
    last_lease: u64,
    watchers: Vec<Watcher>,
    /// All puts that ever happened, also those that a restore took back.
    committed: HashSet<(String, Bytes)>,
}

#[derive(Debug, Clone)]
struct State {
    entries: RedBlackTreeMapSync<String, KeyValue>,
    /// What led here.
    events: Arc<[Event]>,
}

#[derive(Debug, Clone)]
struct Lease {
    ttl: Duration,
    ends: Instant,
    keys: BTreeSet<String>,
}

#[derive(Debug)]
struct Watcher {
    prefix: String,
    from: Revision,
    told: Revision,
    events: mpsc::Sender<WatchEvent>,
}

impl SimStore {
    /// An empty one. Needs a runtime.
    pub(super) fn start() -> Arc<Self> {
        let inner = Arc::new(Mutex::new(Inner::new()));
        let store = Arc::new(Self { inner: Arc::clone(&inner), tasks: Mutex::default() });
        let inner = Arc::downgrade(&inner);
        store.tasks().spawn(async move {
            loop {
                sleep(LEASES_EVERY).await;
                let Some(inner) = inner.upgrade() else { return };
                lock(&inner).expire(Instant::now());
            }
        });
        store
    }

    pub(super) fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        lock(&self.tasks)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// What is there now.
    pub(super) fn entry(&self, key: &str) -> Option<KeyValue> {
        self.inner().newest().entries.get(key).cloned()
    }

    /// Everything that is there now.
    pub(super) fn entries(&self) -> Vec<KeyValue> {
        self.inner().newest().entries.values().cloned().collect()
    }

    /// Whether this was ever written.
    pub(super) fn had(&self, key: &str, value: &Bytes) -> bool {
        self.inner().committed.contains(&(key.to_owned(), value.clone()))
    }

    pub(super) fn revision(&self) -> Revision {
        self.inner().revision()
    }

    pub(super) fn backup(&self) -> Backup {
        let inner = self.inner();
        Backup {
            states: inner.states.clone(),
            first: inner.first,
            oldest: inner.oldest,
            leases: inner.leases.clone(),
        }
    }

    /// Goes back; whoever watched is cut off.
    pub(super) fn restore(&self, backup: &Backup) {
        let mut inner = self.inner();
        inner.end_watches("restored");
        inner.states.clone_from(&backup.states);
        (inner.first, inner.oldest) = (backup.first, backup.oldest);
        inner.leases.clone_from(&backup.leases);
        for lease in inner.leases.values_mut() {
            lease.ends = Instant::now() + lease.ttl;
        }
    }

    /// Begins anew, with nothing.
    pub(super) fn lose(&self) {
        let mut inner = self.inner();
        inner.end_watches("lost");
        let committed = std::mem::take(&mut inner.committed);
        let last_lease = inner.last_lease;
        *inner = Inner { last_lease, committed, ..Inner::new() };
    }

    /// Cuts everybody off who watches.
    pub(super) fn end_watches(&self) {
        self.inner().end_watches("the member that was watched went away");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    fn new() -> Self {
        let empty = State { entries: RedBlackTreeMapSync::new_sync(), events: Arc::new([]) };
        Self {
            states: vec![empty],
            first: 1,
            oldest: 1,
            leases: BTreeMap::new(),
            last_lease: 0,
            watchers: Vec::new(),
            committed: HashSet::new(),
        }
    }

    fn revision(&self) -> Revision {
        self.first + self.states.len() as Revision - 1
    }

    fn state(&self, revision: Revision) -> Option<&State> {
        let index = revision.checked_sub(self.first)?;
        self.states.get(usize::try_from(index).ok()?)
    }

    fn newest(&self) -> &State {
        self.states.last().expect("begins with one, and keeps the newest")
    }

    fn range(&self, range: &Range) -> Result<Page, StoreError> {
        let current = self.revision();
        let revision = range.revision.unwrap_or(current);
        if revision < self.oldest {
            return Err(StoreError::Compacted { wanted: revision, oldest: self.oldest });
        }
        let state = self.state(revision);
        let state = state.ok_or(StoreError::Future { wanted: revision, current })?;
        let limit = range.limit.max(1);
        let after = |entry: &&KeyValue| range.after.as_ref().is_none_or(|at| entry.key > *at);
        let found = state
            .entries
            .range(range.prefix.clone()..)
            .map(|(_, entry)| entry)
            .take_while(|entry| entry.key.starts_with(&range.prefix))
            .filter(after);
        let mut entries: Vec<KeyValue> = found.take(limit + 1).cloned().collect();
        let more = entries.len() > limit;
        entries.truncate(limit);
        Ok(Page { entries, more, revision })
    }

    fn commit(&mut self, txn: &Txn) -> Result<Commit, StoreError> {
        txn.check()?;
        if !txn.guards.iter().all(|guard| self.holds(guard)) {
            return Ok(Commit::GuardFailed);
        }
        for op in &txn.ops {
            if let Op::Put { lease: Some(lease), .. } = op
                && !self.leases.contains_key(lease)
            {
                return Err(StoreError::NoLease(*lease));
            }
        }
        self.apply(&txn.ops);
        Ok(Commit::Done(self.revision()))
    }

    fn holds(&self, guard: &Guard) -> bool {
        let live = |key: &String| self.newest().entries.get(key);
        match guard {
            Guard::ModRevision(key, at) => live(key).map_or(0, |entry| entry.mod_revision) == *at,
            Guard::CreateRevision(key, at) => {
                live(key).map_or(0, |entry| entry.create_revision) == *at
            }
        }
    }

    fn apply(&mut self, ops: &[Op]) {
        let revision = self.revision() + 1;
        let mut entries = self.newest().entries.clone();
        let mut events = BTreeMap::new();
        for op in ops {
            let key = op.key().to_owned();
            let before = entries.get(&key).cloned();
            for lease in self.leases.values_mut() {
                lease.keys.remove(&key);
            }
            match op {
                Op::Put { value, lease, .. } => {
                    let create_revision = before.map_or(revision, |entry| entry.create_revision);
                    let (value, mod_revision) = (value.clone(), revision);
                    self.committed.insert((key.clone(), value.clone()));
                    let entry = KeyValue { key: key.clone(), value, create_revision, mod_revision };
                    if let Some(lease) = lease.and_then(|lease| self.leases.get_mut(&lease)) {
                        lease.keys.insert(key.clone());
                    }
                    entries.insert_mut(key.clone(), entry.clone());
                    events.insert(key, Event::Put(entry));
                }
                Op::Delete { .. } if before.is_some() => {
                    entries.remove_mut(&key);
                    events.insert(key.clone(), Event::Delete { key, revision });
                }
                Op::Delete { .. } => {}
            }
        }
        if !events.is_empty() {
            self.states.push(State { entries, events: events.into_values().collect() });
            self.tell();
        }
    }

    fn tell(&mut self) {
        let revision = self.revision();
        let events = Arc::clone(&self.newest().events);
        self.watchers.retain_mut(|watcher| watcher.commit(revision, &events));
    }

    fn watch(&mut self, prefix: &str, from: Revision) -> Watch {
        let (tx, events) = mpsc::channel(QUEUE + 1);
        let from = from.max(1);
        let mut watcher = Watcher { prefix: prefix.to_owned(), from, told: from - 1, events: tx };
        if from < self.oldest {
            let _ = watcher.events.try_send(WatchEvent::Compacted { oldest: self.oldest });
            return Watch { events };
        }
        let current = self.revision();
        let replayed = (from..=current).all(|revision| {
            let events = self.state(revision).map(|state| Arc::clone(&state.events));
            events.is_none_or(|events| watcher.events(revision, &events))
        });
        if replayed && watcher.progress(current) {
            self.watchers.push(watcher);
        }
        Watch { events }
    }

    fn end_watches(&mut self, why: &str) {
        for watcher in self.watchers.drain(..) {
            watcher.end(why);
        }
    }

    fn compact(&mut self, oldest: Revision) -> Result<(), StoreError> {
        let current = self.revision();
        if oldest > current {
            return Err(StoreError::Future { wanted: oldest, current });
        }
        self.oldest = self.oldest.max(oldest);
        let gone = usize::try_from(self.oldest - self.first).unwrap_or(0);
        self.states.drain(..gone);
        self.first = self.oldest;
        Ok(())
    }

    fn grant(&mut self, ttl: Duration) -> Result<LeaseId, StoreError> {
        if ttl.is_zero() {
            return Err(StoreError::Refused("a lease of no time".to_owned()));
        }
        self.last_lease += 1;
        let id = LeaseId(self.last_lease);
        let lease = Lease { ttl, ends: Instant::now() + ttl, keys: BTreeSet::new() };
        self.leases.insert(id, lease);
        Ok(id)
    }

    fn keep_alive(&mut self, id: LeaseId) -> Result<(), StoreError> {
        let lease = self.leases.get_mut(&id).ok_or(StoreError::NoLease(id))?;
        lease.ends = Instant::now() + lease.ttl;
        Ok(())
    }

    fn revoke(&mut self, id: LeaseId) -> Result<(), StoreError> {
        let lease = self.leases.remove(&id).ok_or(StoreError::NoLease(id))?;
        self.apply(&lease.keys.into_iter().map(Op::delete).collect::<Vec<_>>());
        Ok(())
    }

    fn expire(&mut self, now: Instant) {
        let ended = self.leases.iter().filter(|(_, lease)| lease.ends <= now);
        let ended: Vec<LeaseId> = ended.map(|(id, _)| *id).collect();
        for id in ended {
            let _ = self.revoke(id);
        }
    }
}

impl Watcher {
    /// Whether it goes on.
    fn commit(&mut self, revision: Revision, events: &[Event]) -> bool {
        self.events(revision, events) && self.progress(revision)
    }

    fn events(&mut self, revision: Revision, events: &[Event]) -> bool {
        let ours = events.iter().filter(|event| event.key().starts_with(&self.prefix));
        let events: Vec<Event> = ours.cloned().collect();
        if revision < self.from || events.is_empty() {
            return true;
        }
        self.told = revision;
        self.send(WatchEvent::Commit { revision, events })
    }

    fn progress(&mut self, revision: Revision) -> bool {
        if revision < self.from || revision <= self.told {
            return !self.events.is_closed();
        }
        self.told = revision;
        self.send(WatchEvent::Progress { revision })
    }

    /// One place is kept for the last word.
    fn send(&self, event: WatchEvent) -> bool {
        if self.events.capacity() <= 1 {
            let slow = StoreError::Unavailable("the reader is slow".to_owned());
            let _ = self.events.try_send(WatchEvent::Ended(slow));
            return false;
        }
        self.events.try_send(event).is_ok()
    }

    fn end(self, why: &str) {
        let why = StoreError::Unavailable(why.to_owned());
        let _ = self.events.try_send(WatchEvent::Ended(why));
    }
}

#[async_trait]
impl Store for SimStore {
    async fn range(&self, range: Range) -> Result<Page, StoreError> {
        self.inner().range(&range)
    }

    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError> {
        self.inner().commit(&txn)
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        Ok(self.inner().watch(prefix, from))
    }

    async fn compact(&self, oldest: Revision) -> Result<(), StoreError> {
        self.inner().compact(oldest)
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.inner().grant(ttl)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner().keep_alive(lease)
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner().revoke(lease)
    }
}
