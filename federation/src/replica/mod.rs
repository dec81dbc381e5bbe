//! What one process holds of everybody's records, in memory.
//!
//! Owns: the immutable [`Replica`], its writer and its readers. A control plane fills one from its
//! store's watch, an agent from its region's feed and, for its own cluster, from its own source.
//! Feeds to subscribers and the catalog are both read from it. Promises: a record that cannot be
//! opened keeps its last good version in use while its bytes are held and passed on as received;
//! no key goes back to an older version of its owner, unless the owner confirms that one in a later
//! epoch; [`Replica::changes_since`] lets every reader work in proportion to what changed, without a
//! queue per reader; of each owner it knows the newest change that was seen, so that an older
//! server's word can be told from a newer one's. Leaves to others: what may be written (`sync`), what
//! it means together (`catalog`).
//!
//! Turned down: a channel of changes per reader. A slow reader's queue grows with the rate of
//! change; a cursor into the newest state coalesces by itself.

mod holding;
mod log;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use rpds::RedBlackTreeMapSync;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

pub use self::holding::{BEACON_GAP, Entry, Holding, gives_way, is_rewind};
use self::log::Log;
use crate::key::{Key, Kind};
use crate::names::Owner;
use crate::record::{Epoch, Newest, READS_LEVEL, Removal};

/// One consistent view of all records that a process holds.
#[derive(Debug, Clone)]
pub struct Replica {
    /// Counts the batches applied by this process.
    pub version: u64,
    /// The revision of the store, where there is one: all commits up to it are in here.
    pub position: u64,
    owners: RedBlackTreeMapSync<Owner, Arc<Holding>>,
    /// Of keys that the log has as changed and that are not there any more.
    removed: RedBlackTreeMapSync<Key, Gone>,
    log: Log,
    reads_level: u32,
}

/// How a record went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// Why.
    pub removal: Removal,
    /// Which change of its owner it was, 0 if that is not known.
    pub sequence: u64,
    /// In which of its epochs, if that is known.
    pub epoch: Option<Epoch>,
}

impl Removed {
    /// The change that it was, if that is known.
    #[must_use]
    pub fn change(&self) -> Option<Newest> {
        let epoch = self.epoch.clone().filter(|_| self.sequence > 0)?;
        Some(Newest { epoch, sequence: self.sequence })
    }
}

/// A removal, and the epoch of its owner that it belongs to: what it says itself, or what can be told
/// from what was held then.
#[derive(Debug, Clone)]
struct Gone {
    removed: Removed,
    epoch: Option<Epoch>,
}

/// What happens together.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// See [`Replica::position`]; `None` leaves it as it is.
    pub position: Option<u64>,
    /// New bytes, or `None` for removed.
    pub items: Vec<(Key, Option<Bytes>)>,
    /// What is known of the removals among the items.
    pub removed: BTreeMap<Key, Removed>,
    /// Owners that said that a kind is complete.
    pub complete: Vec<(Owner, Kind, Epoch)>,
    /// Changes that owners are known to have come to, beyond what the items show.
    pub newest: Vec<(Owner, Newest)>,
    /// Owners that are gone with all that they said. Applied before the rest.
    pub forgotten: Vec<Owner>,
}

impl Batch {
    /// Whether it would change nothing but the position.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
            && self.complete.is_empty()
            && self.newest.is_empty()
            && self.forgotten.is_empty()
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
        Self {
            version: 0,
            position: 0,
            owners: RedBlackTreeMapSync::new_sync(),
            removed: RedBlackTreeMapSync::new_sync(),
            log: Log::new(),
            reads_level: READS_LEVEL,
        }
    }

    /// The schema level up to which this replica's records are read; kinds that came later are
    /// not in it.
    #[must_use]
    pub fn reads_level(&self) -> u32 {
        self.reads_level
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
        self.holding(&key.owner)?.get(key)
    }

    /// What may differ from how it was at `version`, each thing once. `None` when that is too long
    /// ago: compare with [`Replica::differences`] then.
    #[must_use]
    pub fn changes_since(&self, version: u64) -> Option<std::collections::BTreeSet<Change>> {
        self.log.since(version)
    }

    /// What may differ from how it was when all commits up to `position` were in here and none
    /// later. `None` when that is too long ago, or of another history.
    #[must_use]
    pub fn changes_since_position(
        &self,
        position: u64,
    ) -> Option<std::collections::BTreeSet<Change>> {
        self.log.since_position(position)
    }

    /// How the record under `key` went, if that was recent and is known.
    #[must_use]
    pub fn removed(&self, key: &Key) -> Option<Removed> {
        self.removed.get(key).map(|gone| gone.removed.clone())
    }

    /// Whether the record under `key` is known to have gone after this change of its owner. Numbers
    /// begin anew in each epoch: what was removed in one may be said again in the next. And what its
    /// owner vouches for in a later one than that of the removal is there again, if it is there: its
    /// region was restored to before the removal, and it has it still.
    #[must_use]
    pub fn was_removed_since(&self, key: &Key, change: &Newest) -> bool {
        let vouched = self.holding(&key.owner).and_then(|of| of.complete().get(&key.kind));
        self.was_removed_under(vouched, key, change)
    }

    /// The same where the owner's word on the kind is `vouched`, which may be newer than the one that
    /// is held.
    #[must_use]
    pub fn was_removed_under(&self, vouched: Option<&Epoch>, key: &Key, change: &Newest) -> bool {
        let Some(Gone { removed, epoch: Some(epoch) }) = self.removed.get(key) else {
            return false;
        };
        let removal = Newest { epoch: epoch.clone(), sequence: removed.sequence };
        let cluster = key.owner.cluster.is_some();
        let confirmed = cluster && vouched.is_some_and(|vouched| epoch.is_older_than(vouched));
        self.get(key).is_none() && change.is_older_than(&removal) && !confirmed
    }

    /// How it would be with `batch` applied.
    #[must_use]
    pub fn with(&self, batch: Batch, now: Instant) -> Self {
        let tx = watch::Sender::new(Arc::new(self.clone()));
        let writer = ReplicaWriter { tx, changed: Arc::new(Notify::new()) };
        writer.apply(batch, now);
        (*writer.current()).clone()
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

/// The writing end. Several tasks may write, each the owners that are its own business.
#[derive(Debug)]
pub struct ReplicaWriter {
    tx: watch::Sender<Arc<Replica>>,
    changed: Arc<Notify>,
}

impl Drop for ReplicaWriter {
    fn drop(&mut self) {
        // A sender that nobody holds any more: readers look, and see that.
        self.tx = watch::Sender::new(self.current());
        self.changed.notify_waiters();
    }
}

/// The reading end: always the newest view.
#[derive(Debug, Clone)]
pub struct Replicas {
    rx: watch::Receiver<Arc<Replica>>,
    /// Wakes readers in the order in which they began to wait; `watch` itself picks at random, and no
    /// run of a simulated mesh could be repeated.
    changed: Arc<Notify>,
}

/// A connected pair that holds nothing yet.
#[must_use]
pub fn channel() -> (ReplicaWriter, Replicas) {
    channel_at(READS_LEVEL)
}

/// The same for a reader of another schema level, as tests of mixed versions need it.
#[must_use]
pub fn channel_at(reads_level: u32) -> (ReplicaWriter, Replicas) {
    let (tx, rx) = watch::channel(Arc::new(Replica { reads_level, ..Replica::new() }));
    let changed = Arc::new(Notify::new());
    (ReplicaWriter { tx, changed: Arc::clone(&changed) }, Replicas { rx, changed })
}

impl ReplicaWriter {
    /// Applies all of `batch` at once. Readers are woken only if something is different.
    pub fn apply(&self, mut batch: Batch, now: Instant) {
        // Before the lock, which keeps readers waiting. What is held as it is need not be opened
        // again: a listing brings everything.
        let held = self.current();
        let open = |(key, value): (Key, Option<Bytes>)| {
            let entry = value.map(|value| match held.get(&key) {
                Some(held) if held.value == value => held.clone(),
                _ => Entry::open(&key, value, held.reads_level),
            });
            (key, entry)
        };
        let known = |(key, _): &(Key, _)| key.kind.since_level() <= held.reads_level;
        let items = std::mem::take(&mut batch.items).into_iter().filter(known);
        let items: Vec<(Key, Option<Entry>)> = items.map(open).collect();
        let modified = self.tx.send_if_modified(|current| {
            let mut next = (**current).clone();
            next.move_to(batch.position);
            let (changes, saw) = next.apply(items, &batch, now);
            let moved = next.position != current.position || !changes.is_empty() || saw;
            next.record(current, changes, &batch.removed);
            if moved {
                *current = Arc::new(next);
            }
            moved
        });
        if modified {
            self.changed.notify_waiters();
        }
    }

    /// The newest view.
    #[must_use]
    pub fn current(&self) -> Arc<Replica> {
        Arc::clone(&self.tx.borrow())
    }

    /// Another reading end.
    #[must_use]
    pub fn subscribe(&self) -> Replicas {
        Replicas { rx: self.tx.subscribe(), changed: Arc::clone(&self.changed) }
    }
}

impl Replica {
    /// A store that was restored goes back: what positions meant before means nothing then. Nor is
    /// anything known of what happened before the first position: what was removed until then is not
    /// in the log.
    fn move_to(&mut self, position: Option<u64>) {
        let Some(position) = position else { return };
        if position < self.position || self.position == 0 {
            self.log.forget_positions(self.position.max(position));
        }
        self.position = position;
    }

    /// Returns what changed, and whether a newer change of an owner was heard of besides.
    fn apply(
        &mut self,
        items: Vec<(Key, Option<Entry>)>,
        batch: &Batch,
        now: Instant,
    ) -> (Vec<Change>, bool) {
        let mut changes = Vec::new();
        for owner in &batch.forgotten {
            changes.extend(self.forget(owner));
        }
        let vouched: BTreeMap<(&Owner, Kind), &Epoch> =
            batch.complete.iter().map(|(owner, kind, epoch)| ((owner, *kind), epoch)).collect();
        let mut working = Working { replica: self, holdings: BTreeMap::new() };
        for (key, entry) in items {
            // Nobody is held for what is not there.
            if entry.is_none() && !working.holds(&key.owner) {
                continue;
            }
            let vouched = vouched.get(&(&key.owner, key.kind)).copied();
            if working.holding(&key.owner).set(&key, entry, vouched, now) {
                changes.push(Change::Record(key));
            }
        }
        for (owner, kind, epoch) in &batch.complete {
            let holding = working.holding(owner);
            let held = holding.complete.get(kind);
            if held != Some(epoch) && held.is_none_or(|held| !epoch.is_older_than(held)) {
                holding.complete.insert(*kind, epoch.clone());
                changes.push(Change::Complete(owner.clone(), *kind));
            }
        }
        let mut saw = false;
        let removals = batch.removed.iter().filter_map(|(key, how)| Some((key, how.change()?)));
        for (key, change) in removals {
            // Of an incarnation before the one that is known it says nothing new.
            let of = working.holds(&key.owner).then(|| working.holding(&key.owner));
            let newer = |held: &Newest| held.is_older_than(&change);
            if let Some(holding) = of.filter(|of| of.newest().is_none_or(newer)) {
                saw |= holding.saw(change.clone());
            }
        }
        for (owner, newest) in &batch.newest {
            saw |= working.holding(owner).saw(newest.clone());
        }
        let Working { holdings, .. } = working;
        for (owner, holding) in holdings {
            self.owners.insert_mut(owner, Arc::new(holding));
        }
        (changes, saw)
    }

    fn forget(&mut self, owner: &Owner) -> Vec<Change> {
        let Some(holding) = self.owners.get(owner).cloned() else { return Vec::new() };
        self.owners.remove_mut(owner);
        holding.records().map(|(key, _)| Change::Record(key.clone())).collect()
    }

    /// Takes a new version into the log.
    fn record(&mut self, before: &Self, changes: Vec<Change>, removed: &BTreeMap<Key, Removed>) {
        if changes.is_empty() {
            return;
        }
        for change in &changes {
            let Change::Record(key) = change else { continue };
            match removed.get(key) {
                Some(removed) => {
                    // With a greater number than the newest change it may be of an earlier epoch, but
                    // not of one before what it removes.
                    let newest = self.holding(&key.owner).and_then(Holding::newest);
                    let newest = newest.filter(|newest| removed.sequence <= newest.sequence);
                    let newest = || newest.map(|newest| newest.epoch.clone());
                    let was = || Some(before.get(key)?.origin()?.epoch.clone());
                    let epoch = removed.epoch.clone().or_else(newest).or_else(was);
                    self.removed.insert_mut(key.clone(), Gone { removed: removed.clone(), epoch });
                }
                // Its owner has left: nobody goes without a word to that effect.
                None if self.holding(&key.owner).is_none() => {
                    let left = Removed { removal: Removal::Explained, sequence: 0, epoch: None };
                    self.removed.insert_mut(key.clone(), Gone { removed: left, epoch: None });
                }
                None => drop(self.removed.remove_mut(key)),
            }
        }
        self.version += 1;
        for forgotten in self.log.push(self.version, self.position, changes) {
            for change in forgotten.iter() {
                if let Change::Record(key) = change {
                    self.removed.remove_mut(key);
                }
            }
        }
    }
}

/// The holdings that a batch changes, each copied once.
struct Working<'a> {
    replica: &'a Replica,
    holdings: BTreeMap<Owner, Holding>,
}

impl Working<'_> {
    fn holds(&self, owner: &Owner) -> bool {
        self.holdings.contains_key(owner) || self.replica.holding(owner).is_some()
    }

    fn holding(&mut self, owner: &Owner) -> &mut Holding {
        let held = || self.replica.holding(owner).cloned().unwrap_or_else(Holding::new);
        self.holdings.entry(owner.clone()).or_insert_with(held)
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
        self.changed().await.then(|| self.current())
    }

    /// Waits until there is a view that this reader has not seen, and leaves it to be seen.
    /// `false` once nobody writes any more. Cancel safe.
    pub async fn changed(&mut self) -> bool {
        loop {
            // Before looking: what changes after that wakes this one.
            let woken = self.changed.notified();
            match self.rx.has_changed() {
                Ok(false) => woken.await,
                Ok(true) => return true,
                Err(_) => return false,
            }
        }
    }

    /// Waits for a view that satisfies `wanted`. `None` once nobody writes any more.
    pub async fn wait_for(&mut self, wanted: impl Fn(&Replica) -> bool) -> Option<Arc<Replica>> {
        loop {
            let current = self.current();
            if wanted(&current) {
                return Some(current);
            }
            if !self.changed().await {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests;
