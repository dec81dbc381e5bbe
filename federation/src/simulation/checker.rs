//! Holds what processes see against what owners held.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::time::Instant;

use super::network::Reached;
use super::truth::Truth;
use super::{Property, Shared};
use crate::key::{Key, Kind};
use crate::names::Owner;
use crate::record::{Epoch, Newest, Origin};
use crate::replica::{Change, Entry, Holding, Replica, Replicas};

/// One run's.
#[derive(Debug, Default)]
pub(super) struct Checker {
    inner: Mutex<Inner>,
    /// All is well and nothing changes any more.
    pub(super) settled: AtomicBool,
}

#[derive(Debug, Default)]
struct Inner {
    truths: BTreeMap<Owner, Arc<Truth>>,
    /// When an owner first said these bytes.
    said: HashMap<(Key, Bytes), Instant>,
    /// When each of an owner's epochs began.
    epochs: HashMap<(Owner, Epoch), Instant>,
}

/// What one process has seen in its life.
#[derive(Default)]
struct Observer {
    /// The newest change of each key, by incarnation of its owner.
    newest: BTreeMap<(Key, String), Newest>,
    /// Keys that went, with the change that was held.
    gone: BTreeMap<Key, Newest>,
}

/// What a view brought, for people.
#[derive(Default)]
struct Looked {
    seen: BTreeMap<Owner, (usize, String)>,
    gone: BTreeMap<Owner, (usize, String)>,
}

impl Looked {
    fn at(&mut self, key: &Key, before: &Replica, after: &Replica) {
        if key.kind == Kind::Beacon {
            return;
        }
        let entry = after.get(key);
        let counts = if entry.is_some() { &mut self.seen } else { &mut self.gone };
        let newest = entry.or(before.get(key)).and_then(Entry::origin).map(Origin::newest);
        let change = newest.map(|newest| format!("{}/{}", newest.epoch, newest.sequence));
        let count = counts.entry(key.owner.clone()).or_default();
        *count = (count.0 + 1, format!("{key} {}", change.unwrap_or_default()));
    }

    fn note(&self, shared: &Shared, who: &str, position: u64) {
        for (what, counts) in [("sees", &self.seen), ("loses", &self.gone)] {
            for (owner, (count, last)) in counts {
                let line = format!("{who} at {position} {what} {count} of {owner}, last {last}");
                shared.journal.note(&line);
            }
        }
    }
}

impl Checker {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, truth: &Arc<Truth>) {
        self.inner().truths.insert(truth.owner.clone(), Arc::clone(truth));
    }

    /// An owner starts anew.
    pub(super) fn began(&self, owner: &Owner, epoch: &Epoch) {
        self.inner().epochs.insert((owner.clone(), epoch.clone()), Instant::now());
    }

    /// An owner says this now.
    pub(super) fn said(&self, key: &Key, value: &Bytes) {
        let said = (key.clone(), value.clone());
        self.inner().said.entry(said).or_insert_with(Instant::now);
    }

    /// Looks at every view of a process; what it holds of its own cluster is its own affair.
    pub(super) async fn observe(
        &self,
        shared: &Shared,
        who: &str,
        own: Option<Owner>,
        mut replicas: Replicas,
    ) {
        let mut observer = Observer::default();
        let mut seen = replicas.current();
        while let Some(next) = replicas.next().await {
            let changes = next.changes_since(seen.version);
            let mut looked = Looked::default();
            for change in changes.unwrap_or_else(|| next.differences(&seen)) {
                if let Change::Record(key) = change
                    && own.as_ref() != Some(&key.owner)
                {
                    self.change(shared, who, &mut observer, &key, (&seen, &next));
                    looked.at(&key, &seen, &next);
                }
            }
            looked.note(shared, who, next.position);
            seen = next;
        }
    }

    fn change(
        &self,
        shared: &Shared,
        who: &str,
        observer: &mut Observer,
        key: &Key,
        (seen, next): (&Replica, &Replica),
    ) {
        let was = seen.get(key);
        let violated = |property, what: String| {
            shared.journal.violated(property, &format!("{who}: {key} {what}"));
        };
        let Some(now) = next.get(key) else {
            let Some(was) = was else { return };
            shared.journal.trace(&format!("{who} loses {key}"));
            observer.gone.extend(was.origin().map(|origin| (key.clone(), origin.newest())));
            if !self.explained(key, &was.value) {
                violated(
                    Property::NoUnexplainedDelete,
                    "went, and its owner has not removed it".into(),
                );
            }
            return self.settled(shared, who, key);
        };
        if was.is_some_and(|was| was.value == now.value) {
            return;
        }
        let Some(newest) = now.origin().map(Origin::newest) else {
            return violated(Property::OnlyWhatWasSaid, "does not say what change it is".into());
        };
        if key.kind != Kind::Beacon {
            let change = format!("{}/{}", newest.epoch, newest.sequence);
            shared.journal.trace(&format!("{who} sees {key} {change}"));
        }
        if key.owner.cluster.is_some()
            && !self.inner().said.contains_key(&(key.clone(), now.value.clone()))
        {
            violated(Property::OnlyWhatWasSaid, "was never said by its owner".into());
        }
        if observer.gone.remove(key).is_some_and(|gone| !gone.is_older_than(&newest)) {
            violated(Property::NoRewind, "went and is there again as it was".into());
        }
        let held = observer.newest.entry((key.clone(), newest.epoch.id.clone()));
        let held = held.or_insert_with(|| newest.clone());
        let vouched = next.holding(&key.owner).and_then(|of| of.complete().get(&key.kind));
        if newest.is_older_than(held)
            && !vouched.is_some_and(|epoch| held.epoch.is_older_than(epoch))
        {
            let (from, to) = (format!("{held:?}"), format!("{newest:?}"));
            violated(Property::NoRewind, format!("goes back from {from} to {to}"));
        }
        let before = vouched.filter(|_| key.kind != Kind::Beacon);
        let before = before.filter(|epoch| newest.epoch.is_older_than(epoch));
        if before.is_some_and(|epoch| !self.confirmed(key, now, epoch)) {
            let what = format!("is {newest:?}, which its owner has not held since {vouched:?}");
            violated(Property::NoRewind, what);
        }
        *held = newest;
        if key.kind != Kind::Beacon && key.owner.cluster.is_some() {
            self.settled(shared, who, key);
        }
    }

    /// Whether an owner that vouches in `epoch` for all of a kind may mean this by it, which it had
    /// said before.
    fn confirmed(&self, key: &Key, entry: &Entry, epoch: &Epoch) -> bool {
        let inner = self.inner();
        let Some(truth) = inner.truths.get(&key.owner) else { return true };
        let began = inner.epochs.get(&(key.owner.clone(), epoch.clone()));
        let record = entry.record.as_ref();
        began.zip(record).is_some_and(|(began, of)| truth.held_since(key, &of.body, *began))
    }

    fn settled(&self, shared: &Shared, who: &str, key: &Key) {
        if self.settled.load(Ordering::SeqCst) {
            shared.journal.violated(
                Property::StaysConverged,
                &format!("{who}: {key} changes although nothing changes any more"),
            );
        }
    }

    /// Whether the owner removed this after it had said what was held.
    fn explained(&self, key: &Key, value: &Bytes) -> bool {
        let inner = self.inner();
        let Some(truth) = inner.truths.get(&key.owner) else { return false };
        let said = inner.said.get(&(key.clone(), value.clone()));
        said.is_some_and(|said| truth.removed_since(key, *said))
    }

    /// Why a process does not hold what the owners hold; nothing if it does.
    pub(super) fn differs(&self, who: &str, held: &Replica) -> Option<String> {
        let inner = self.inner();
        for (owner, truth) in &inner.truths {
            let wanted: BTreeSet<Key> = truth.bodies().into_keys().collect();
            let holding = held.holding(owner);
            let keys = holding.into_iter().flat_map(Holding::records).map(|(key, _)| key);
            let keys: BTreeSet<Key> =
                keys.filter(|key| key.kind != Kind::Beacon).cloned().collect();
            if let Some(key) = wanted.difference(&keys).next() {
                return Some(format!("{who} lacks {key}"));
            }
            if let Some(key) = keys.difference(&wanted).next() {
                return Some(format!("{who} holds {key}, which is gone"));
            }
        }
        None
    }
}

/// A subscriber says that it holds all: what its server has held unchanged since it was asked must be
/// there, unless the subscriber knows more of the owner than its server.
pub(super) fn first_answer(
    shared: &Shared,
    (who, own): (&str, &Owner),
    reached: &Reached,
    held: &Replica,
) {
    let server = reached.server.replicas.peek();
    for (owner, then) in reached.held.owners() {
        let Some(now) = server.holding(owner).filter(|_| owner != own) else { continue };
        let ours = held.holding(owner);
        let knows_more = ours
            .and_then(Holding::newest)
            .is_some_and(|ours| now.newest().is_none_or(|theirs| theirs.is_older_than(ours)));
        if knows_more {
            continue;
        }
        let lacks = then.records().find(|(key, entry)| {
            let unchanged = now.get(key).is_some_and(|now| now.value == entry.value);
            unchanged && ours.and_then(|ours| ours.get(key)).is_none()
        });
        if let Some((key, _)) = lacks {
            let what = format!("{who} says that it holds everything, and lacks {key}");
            shared.journal.violated(Property::NoPartialFirstAnswer, &what);
        }
    }
}
