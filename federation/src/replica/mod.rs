//! What one process holds of everybody's records, in memory.
//!
//! Owns: the immutable [`Replica`], its writer and its readers. A control plane fills one from its
//! store's watch, an agent from its region's feed and, for its own cluster, from its own source.
//! Feeds to subscribers and the catalog are both read from it. Promises: a record that cannot be
//! opened keeps its last good version in use while its bytes are held and passed on as received;
//! no key goes back to an older version of its owner; [`Replica::changes_since`] lets every reader
//! work in proportion to what changed, without a queue per reader. Leaves to others: what may be
//! written (`sync`), what it means together (`catalog`).
//!
//! Turned down: a channel of changes per reader. A slow reader's queue grows with the rate of
//! change; a cursor into the newest state coalesces by itself.

mod log;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use rpds::RedBlackTreeMapSync;
use tokio::sync::watch;
use tokio::time::Instant;

use self::log::Log;
use crate::digest::Digest;
use crate::key::{Key, Kind};
use crate::names::Owner;
use crate::record::{Epoch, Record, RecordError};

/// One consistent view of all records that a process holds.
#[derive(Debug, Clone)]
pub struct Replica {
    /// Counts the batches applied by this process.
    pub version: u64,
    /// The revision of the store, where there is one: all commits up to it are in here.
    pub position: u64,
    owners: RedBlackTreeMapSync<Owner, Arc<Holding>>,
    log: Log,
}

/// What is held of one owner.
#[derive(Debug, Clone)]
pub struct Holding {
    records: RedBlackTreeMapSync<Key, Entry>,
    digest: Digest,
    complete: BTreeMap<Kind, Epoch>,
    beacon_changed: Option<Instant>,
    quarantined: usize,
}

/// One record as it was received.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The bytes, verbatim.
    pub value: Bytes,
    /// The newest version that could be opened: of these bytes, or of earlier ones.
    pub record: Option<Arc<Record>>,
    /// Why the bytes are quarantined, if they are.
    pub problem: Option<Arc<RecordError>>,
    /// The bytes of `record`, where they are not `value`: the last good ones, for the disk.
    pub good: Option<Bytes>,
    /// Of this entry alone; zero for a beacon.
    digest: Digest,
}

/// What happens together.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// See [`Replica::position`]; `None` leaves it as it is.
    pub position: Option<u64>,
    /// New bytes, or `None` for removed.
    pub items: Vec<(Key, Option<Bytes>)>,
    /// Owners that said that a kind is complete.
    pub complete: Vec<(Owner, Kind, Epoch)>,
}

impl Batch {
    /// Whether it would change nothing but the position.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && self.complete.is_empty()
    }
}

/// Something that a reader has to look at again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// The record under this key.
    Record(Key),
    /// An owner completed a kind anew.
    Complete(Owner, Kind),
}

impl Replica {
    fn new() -> Self {
        Self { version: 0, position: 0, owners: RedBlackTreeMapSync::new_sync(), log: Log::new() }
    }

    /// All owners with what is held of them.
    pub fn owners(&self) -> impl Iterator<Item = (&Owner, &Holding)> {
        self.owners.iter().map(|(owner, holding)| (owner, &**holding))
    }

    /// What is held of one owner.
    #[must_use]
    pub fn holding(&self, owner: &Owner) -> Option<&Holding> {
        self.owners.get(owner).map(|holding| &**holding)
    }

    /// The record under `key`.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&Entry> {
        self.holding(&key.owner)?.records.get(key)
    }

    /// What may differ from how it was at `version`, each thing once. `None` when that is too long
    /// ago: compare with [`Replica::differences`] then.
    #[must_use]
    pub fn changes_since(&self, version: u64) -> Option<std::collections::BTreeSet<Change>> {
        self.log.since(version)
    }

    /// What differs from `old`, by comparing everything.
    #[must_use]
    pub fn differences(&self, old: &Self) -> std::collections::BTreeSet<Change> {
        let mut changes = std::collections::BTreeSet::new();
        for (new, old) in [(self, old), (old, self)] {
            for (owner, holding) in new.owners() {
                let other = old.holding(owner);
                if other.is_some_and(|other| std::ptr::eq(other, holding)) {
                    continue;
                }
                changes.extend(holding.differences(owner, other));
            }
        }
        changes
    }
}

impl Holding {
    fn new() -> Self {
        Self {
            records: RedBlackTreeMapSync::new_sync(),
            digest: Digest::default(),
            complete: BTreeMap::new(),
            beacon_changed: None,
            quarantined: 0,
        }
    }

    /// All its records, ascending by key: kinds in their order, then names.
    pub fn records(&self) -> impl Iterator<Item = (&Key, &Entry)> {
        self.records.iter()
    }

    /// How many records it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.size()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Over keys and bytes of all records but beacons, which differ every 5 s and would make
    /// every reconnect a full transfer.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The kinds that the owner said are complete, and in which epoch.
    #[must_use]
    pub fn complete(&self) -> &BTreeMap<Kind, Epoch> {
        &self.complete
    }

    /// When a new beacon was last seen to arrive. One that was there from the start may be of any
    /// age, so it does not count.
    #[must_use]
    pub fn beacon_changed(&self) -> Option<Instant> {
        self.beacon_changed
    }

    /// Records whose newest bytes could not be opened.
    #[must_use]
    pub fn quarantined(&self) -> usize {
        self.quarantined
    }

    fn differences(&self, owner: &Owner, other: Option<&Self>) -> Vec<Change> {
        let differs = |(key, entry): &(&Key, &Entry)| {
            other
                .and_then(|other| other.records.get(key))
                .is_none_or(|held| held.value != entry.value)
        };
        let records = self.records().filter(differs).map(|(key, _)| Change::Record(key.clone()));
        let kinds = self.complete.iter().filter(|(kind, epoch)| {
            other.and_then(|other| other.complete.get(kind)) != Some(epoch)
        });
        let kinds = kinds.map(|(kind, _)| Change::Complete(owner.clone(), *kind));
        records.chain(kinds).collect()
    }

    /// Returns whether anything is different now.
    fn set(&mut self, key: &Key, value: Option<Entry>, now: Instant) -> bool {
        let held = self.records.get(key).cloned();
        let Some(mut entry) = value else {
            let Some(held) = held else { return false };
            self.forget(&held);
            self.records.remove_mut(key);
            return true;
        };
        if held.as_ref().is_some_and(|held| held.value == entry.value) {
            return false;
        }
        if let Some(held) = &held {
            if entry.goes_back_before(held) {
                return false;
            }
            if entry.problem.is_some() {
                entry.record.clone_from(&held.record);
                entry.good = held.good_bytes();
            }
            self.forget(held);
            if key.kind == Kind::Beacon {
                self.beacon_changed = Some(now);
            }
        }
        self.digest += entry.digest;
        self.quarantined += usize::from(entry.problem.is_some());
        self.records.insert_mut(key.clone(), entry);
        true
    }

    fn forget(&mut self, held: &Entry) {
        self.digest -= held.digest;
        self.quarantined -= usize::from(held.problem.is_some());
    }
}

impl Entry {
    /// All that costs: decoding and hashing.
    fn open(key: &Key, value: Bytes) -> Self {
        let digest = match key.kind {
            Kind::Beacon => Digest::default(),
            _ => Digest::of(key.to_string().as_bytes(), &value),
        };
        match Record::open(key, &value) {
            Ok(record) => {
                Self { value, record: Some(Arc::new(record)), problem: None, good: None, digest }
            }
            // Kinds that are only passed on are not in quarantine for it.
            Err(RecordError::NotRead(_)) => {
                Self { value, record: None, problem: None, good: None, digest }
            }
            Err(error) => {
                tracing::warn!(%key, %error, "record quarantined, its last good version stays in use");
                Self { value, record: None, problem: Some(Arc::new(error)), good: None, digest }
            }
        }
    }

    /// The bytes that `record` was opened from.
    fn good_bytes(&self) -> Option<Bytes> {
        self.record.as_ref()?;
        Some(self.good.clone().unwrap_or_else(|| self.value.clone()))
    }

    /// No observer may see a key go back to an older version of its owner (RELIABILITY promise
    /// 14). Versions of different epoch ids have no order.
    fn goes_back_before(&self, held: &Self) -> bool {
        let (Some(new), Some(held)) = (&self.record, &held.record) else { return false };
        is_rewind(new, held)
    }
}

/// Whether `new` is an older version of what `held` holds.
#[must_use]
pub fn is_rewind(new: &Record, held: &Record) -> bool {
    let (new, held) = (&new.origin, &held.origin);
    new.epoch.id == held.epoch.id
        && (new.epoch.count, new.sequence) < (held.epoch.count, held.sequence)
}

/// The writing end. Several tasks may write, each the owners that are its own business.
#[derive(Debug)]
pub struct ReplicaWriter {
    tx: watch::Sender<Arc<Replica>>,
}

/// The reading end: always the newest view.
#[derive(Debug, Clone)]
pub struct Replicas {
    rx: watch::Receiver<Arc<Replica>>,
}

/// A connected pair that holds nothing yet.
#[must_use]
pub fn channel() -> (ReplicaWriter, Replicas) {
    let (tx, rx) = watch::channel(Arc::new(Replica::new()));
    (ReplicaWriter { tx }, Replicas { rx })
}

impl ReplicaWriter {
    /// Applies all of `batch` at once. Readers are woken only if something is different.
    pub fn apply(&self, batch: Batch, now: Instant) {
        // Before the lock, which keeps readers waiting. What is held as it is need not be opened
        // again: a listing brings everything.
        let held = self.current();
        let open = |(key, value): (Key, Option<Bytes>)| {
            let entry = value.map(|value| match held.get(&key) {
                Some(held) if held.value == value => held.clone(),
                _ => Entry::open(&key, value),
            });
            (key, entry)
        };
        let items: Vec<(Key, Option<Entry>)> = batch.items.into_iter().map(open).collect();
        self.tx.send_if_modified(|current| {
            let mut next = (**current).clone();
            next.position = batch.position.unwrap_or(next.position);
            let changes = next.apply(items, batch.complete, now);
            let moved = next.position != current.position || !changes.is_empty();
            if !changes.is_empty() {
                next.version += 1;
                next.log.push(next.version, changes);
            }
            if moved {
                *current = Arc::new(next);
            }
            moved
        });
    }

    /// The newest view.
    #[must_use]
    pub fn current(&self) -> Arc<Replica> {
        Arc::clone(&self.tx.borrow())
    }

    /// Another reading end.
    #[must_use]
    pub fn subscribe(&self) -> Replicas {
        Replicas { rx: self.tx.subscribe() }
    }
}

impl Replica {
    fn apply(
        &mut self,
        items: Vec<(Key, Option<Entry>)>,
        complete: Vec<(Owner, Kind, Epoch)>,
        now: Instant,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut working: BTreeMap<Owner, Holding> = BTreeMap::new();
        for (key, entry) in items {
            let holding = working
                .entry(key.owner.clone())
                .or_insert_with(|| self.holding(&key.owner).cloned().unwrap_or_else(Holding::new));
            if holding.set(&key, entry, now) {
                changes.push(Change::Record(key));
            }
        }
        for (owner, kind, epoch) in complete {
            let holding = working
                .entry(owner.clone())
                .or_insert_with(|| self.holding(&owner).cloned().unwrap_or_else(Holding::new));
            if holding.complete.get(&kind) != Some(&epoch) {
                holding.complete.insert(kind, epoch);
                changes.push(Change::Complete(owner, kind));
            }
        }
        for (owner, holding) in working {
            self.owners.insert_mut(owner, Arc::new(holding));
        }
        changes
    }
}

impl Replicas {
    /// The newest view, which this reader has then seen.
    pub fn current(&mut self) -> Arc<Replica> {
        Arc::clone(&self.rx.borrow_and_update())
    }

    /// The newest view, without having seen it: `next` still gives it.
    #[must_use]
    pub fn peek(&self) -> Arc<Replica> {
        Arc::clone(&self.rx.borrow())
    }

    /// Waits until there is a view that this reader has not seen, and gives it. `None` once nobody
    /// writes any more. Cancel safe.
    pub async fn next(&mut self) -> Option<Arc<Replica>> {
        self.rx.changed().await.ok()?;
        Some(self.current())
    }

    /// Waits until there is a view that this reader has not seen, and leaves it to be seen.
    /// `false` once nobody writes any more. Cancel safe.
    pub async fn changed(&mut self) -> bool {
        let changed = self.rx.changed().await.is_ok();
        if changed {
            self.rx.mark_changed();
        }
        changed
    }

    /// Waits for a view that satisfies `wanted`. `None` once nobody writes any more.
    pub async fn wait_for(&mut self, wanted: impl Fn(&Replica) -> bool) -> Option<Arc<Replica>> {
        let seen = self.rx.wait_for(|replica| wanted(replica)).await.ok()?;
        Some(Arc::clone(&seen))
    }
}

#[cfg(test)]
mod tests;
