//! What a follower makes of listings and commits; no store, no clock.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tracing::warn;

use super::listing::{Listing, fits, record_key, withhold};
use crate::key::{Key, Kind};
use crate::names::Owner;
use crate::record::{Epoch, Newest, Origin};
use crate::replica::{Batch, Holding, Replica};
use crate::store::{Event, KeyValue, Revision};
use crate::sync::facts::{self, Fact};
use crate::sync::history::{ResumePoint, Trail, Witness};
use crate::sync::transactions::MAX_RECORD_BYTES;

/// So many keys under which there is no record are named.
const MAX_STRAYS: usize = 20;

/// What a store that went back has lost and this process still holds: for the leader to write
/// back (see [`reseed`](crate::sync::reseed)).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lost {
    /// By owner.
    pub owners: BTreeMap<Owner, LostOwner>,
}

/// What is lost of one owner.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LostOwner {
    /// When the owner's last word was written, as listed; 0: there is none. While this holds,
    /// nobody has said anything newer.
    pub said_revision: Revision,
    /// The owner's newest change that is known here. What is said of it to the store and is older
    /// (what a peer still had, for one) resolves nothing.
    pub newest: Option<Newest>,
    /// The store was read between two parts of a change that is newer than that, up to here: what is
    /// not there may be what it removes. Once all of it is there, the store's word counts. Parts of
    /// what is written back are no newer than what who lists them holds.
    pub part: Option<Newest>,
    /// Records that are held and not there, or are there as they were before: in an older version,
    /// or at all, although their owner has removed them since.
    pub keys: BTreeMap<Key, LostKey>,
}

/// A record that a store has lost.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LostKey {
    /// Which version is held, if any is.
    pub held: Option<Newest>,
    /// What the store has instead, if anything.
    pub there: Option<Bytes>,
}

/// A follower's state.
#[derive(Debug, Default)]
pub(super) struct State {
    revision: Revision,
    /// What a watch has said. Behind the revision while it goes over what was listed.
    trail: Trail,
    trailed: Revision,
    /// From a disk, before there is a trail.
    restored: Option<Witness>,
    /// Parts of changes of which more is to come.
    unfinished: BTreeMap<Owner, Batch>,
    /// Before the first of those.
    finished: Revision,
    lost: Lost,
    strays: BTreeMap<String, String>,
    founding: Option<Bytes>,
}

impl State {
    pub(super) fn new(resume: Option<ResumePoint>) -> Self {
        match resume {
            Some(ResumePoint { revision, witness }) => {
                Self { revision, restored: Some(witness), ..Self::default() }
            }
            None => Self::default(),
        }
    }

    /// From where to go on. `None` if nothing was seen that could prove that the store is still
    /// the same.
    pub(super) fn resume(&self) -> Option<ResumePoint> {
        let seen = (self.trailed >= self.revision).then(|| self.trail.witness(self.revision));
        let witness = seen.flatten().or_else(|| self.restored.clone())?;
        Some(ResumePoint { revision: self.revision, witness })
    }

    /// What the store did up to the revision; nothing, if that is not known.
    pub(super) fn goes_on_after(&mut self, trail: Trail) {
        self.trail = trail;
        self.trailed = self.revision;
        self.restored = None;
    }

    /// The store is another one: what was followed is nothing to go on from.
    pub(super) fn forget_point(&mut self) {
        self.revision = 0;
        self.goes_on_after(Trail::default());
    }

    /// All commits up to this one were seen.
    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    /// What the store says of itself, up to here.
    pub(super) fn founding(&self) -> Option<&Bytes> {
        self.founding.as_ref()
    }

    pub(super) fn lost(&self) -> &Lost {
        &self.lost
    }

    /// Keys that should be records' and are not, and why; not all, where they are many.
    pub(super) fn strays(&self) -> &BTreeMap<String, String> {
        &self.strays
    }

    /// The key of a record; other keys are left alone.
    fn record_key(&mut self, key: &str) -> Option<Key> {
        match record_key(key)? {
            Ok(key) => Some(key),
            Err(error) => {
                self.stray(key, error.to_string());
                None
            }
        }
    }

    /// Whether nothing could be done with the value here but to hold it: no mirror's store takes
    /// it, no subscriber either, and their digests would differ for ever. What was read last of
    /// the record stays.
    fn check_size(&mut self, entry: &KeyValue) -> bool {
        let fits = fits(entry);
        if !fits {
            let size = entry.key.len() + entry.value.len();
            let why = format!("has {size} bytes with its key, more than {MAX_RECORD_BYTES}");
            self.stray(&entry.key, why);
        }
        fits
    }

    fn stray(&mut self, key: &str, why: String) {
        if self.strays.len() < MAX_STRAYS && self.strays.get(key) != Some(&why) {
            warn!(key, why, "the store has what is not a record, it is left alone");
            self.strays.insert(key.to_owned(), why);
        }
    }

    pub(super) fn has_unfinished(&self) -> bool {
        !self.unfinished.is_empty()
    }

    /// Takes all that the store holds. What it does not say is gone only where its word is not
    /// older than what is held: in a store that was restored, an owner's absence may come from
    /// before what it said since.
    pub(super) fn listed(
        &mut self,
        held: &Replica,
        entries: Vec<KeyValue>,
        revision: Revision,
    ) -> Batch {
        self.revision = revision;
        self.trail = Trail::default();
        self.trailed = 0;
        self.restored = None;
        self.unfinished.clear();
        self.lost = Lost::default();
        self.strays.clear();
        for entry in &entries {
            if self.record_key(&entry.key).is_some() {
                self.check_size(entry);
            }
        }
        let mut listing = Listing::of(entries);
        for (owner, holding) in held.owners() {
            let left = listing.says_left(owner, held);
            self.compare(&mut listing, owner, holding, left);
        }
        self.founding = listing.founding;
        let mut batch = listing.batch;
        batch.position = Some(revision);
        batch
    }

    fn compare(&mut self, listing: &mut Listing, owner: &Owner, holding: &Holding, left: bool) {
        let known = listing.newest.get(owner);
        let older = match (known, holding.newest()) {
            (_, Some(_)) if listing.partial.contains(owner) => true,
            (Some(known), Some(held)) => known.is_older_than(held),
            (None, Some(_)) => true,
            (_, None) => false,
        };
        // A store that knows all that was heard of an owner has no more than it holds of it.
        let trusted = !older || left;
        let mut lost = BTreeMap::new();
        for (key, entry) in holding.records() {
            let held = || entry.origin().map(Origin::newest);
            match listing.listed.get(key) {
                None if trusted => listing.batch.items.push((key.clone(), None)),
                None => drop(lost.insert(key.clone(), LostKey { held: held(), there: None })),
                Some((Some(listed), value)) if older => {
                    let held = held().filter(|held| listed.is_older_than(held));
                    lost.extend(held.map(|held| {
                        let there = Some(value.clone());
                        (key.clone(), LostKey { held: Some(held), there })
                    }));
                }
                Some(_) => {}
            }
        }
        if older && !left {
            lost.extend(withhold(listing, owner, holding));
            // Nor does what an owner vouched for before, and here is again, confirm them.
            if !lost.is_empty() {
                listing.batch.items.retain(|(key, _)| !lost.contains_key(key));
            }
        }
        if !lost.is_empty() {
            let said_revision = listing.said_revisions.get(owner).copied().unwrap_or_default();
            let newest = holding.newest().cloned();
            let part = listing.part_beyond(owner, newest.as_ref());
            let lost = LostOwner { said_revision, newest, part, keys: lost };
            self.lost.owners.insert(owner.clone(), lost);
        }
    }

    /// Takes a commit; what is only a part of a change waits for the rest.
    pub(super) fn committed(
        &mut self,
        held: &Replica,
        revision: Revision,
        events: &[Event],
    ) -> Batch {
        self.trail.note(revision, events);
        self.trailed = revision;
        if revision <= self.revision {
            // Listed already: it is only seen to know what it was.
            return Batch::default();
        }
        if self.unfinished.is_empty() {
            self.finished = self.revision;
        }
        self.revision = revision;
        let mut whole = Batch::default();
        let mut parts: BTreeMap<Owner, Batch> = BTreeMap::new();
        let mut more = BTreeMap::new();
        let speaking = self.speaking(revision, events);
        let vouched = vouched(events);
        for event in events {
            match event {
                Event::Put(entry) if self.withheld(held, &vouched, entry) => {}
                Event::Put(entry) => self.put(entry, &speaking, &mut parts, &mut more),
                Event::Delete { key, .. } => self.delete(key, &mut parts, &mut whole),
            }
        }
        self.lost.owners.retain(|_, lost| !lost.keys.is_empty());
        for (owner, part) in parts {
            let unfinished = self.unfinished.remove(&owner);
            let part = joined(unfinished.unwrap_or_default(), part);
            if more.get(&owner) == Some(&true) {
                self.unfinished.insert(owner, part);
            } else {
                whole = joined(whole, part);
            }
        }
        whole.position = Some(self.position());
        whole
    }

    /// All commits up to this one are in what was given out. A subscriber that goes on from a later
    /// one elsewhere would not be told what is still held back here.
    pub(super) fn position(&self) -> Revision {
        if self.unfinished.is_empty() { self.revision } else { self.finished }
    }

    /// Owners, of those of whom something is lost, who say in this commit at least what is known of
    /// them here. Of the others it is noted when they were spoken for.
    fn speaking(&mut self, revision: Revision, events: &[Event]) -> BTreeSet<Owner> {
        let mut speaking = BTreeSet::new();
        if self.lost.owners.is_empty() {
            return speaking;
        }
        for event in events {
            let Event::Put(entry) = event else { continue };
            let Some(Fact::Said(owner, said)) = facts::read(&entry.key, &entry.value) else {
                continue;
            };
            let Some(lost) = self.lost.owners.get_mut(&owner) else { continue };
            if lost.newest.as_ref().is_some_and(|held| said.newest.is_older_than(held)) {
                lost.said_revision = revision;
            } else {
                speaking.insert(owner);
            }
        }
        speaking
    }

    /// Whether it is a record that its owner is known to have removed since: the leader had it from a
    /// peer that knew less. As [`withhold`] in a listing.
    fn withheld(
        &mut self,
        held: &Replica,
        vouched: &BTreeMap<(Owner, Kind), Epoch>,
        entry: &KeyValue,
    ) -> bool {
        let Some(Ok(key)) = record_key(&entry.key) else { return false };
        let origin = Origin::of_value(&entry.value).map(|origin| origin.newest());
        let now = vouched.get(&(key.owner.clone(), key.kind));
        let gone = |change: &Newest| {
            held.was_removed_since(&key, change) && held.was_removed_under(now, &key, change)
        };
        if !origin.is_some_and(|change| gone(&change)) {
            return false;
        }
        let newest = held.holding(&key.owner).and_then(Holding::newest).cloned();
        let lost = self.lost.owners.entry(key.owner.clone()).or_default();
        lost.newest = newest;
        lost.said_revision = lost.said_revision.max(entry.mod_revision);
        lost.keys.insert(key, LostKey { held: None, there: Some(entry.value.clone()) });
        true
    }

    fn put(
        &mut self,
        entry: &KeyValue,
        speaking: &BTreeSet<Owner>,
        parts: &mut BTreeMap<Owner, Batch>,
        more: &mut BTreeMap<Owner, bool>,
    ) {
        if let Some(key) = self.record_key(&entry.key) {
            if let Some(lost) = self.lost.owners.get_mut(&key.owner) {
                let newest = Origin::of_value(&entry.value).map(|origin| origin.newest());
                let older = |lost: &LostKey| {
                    newest
                        .as_ref()
                        .zip(lost.held.as_ref())
                        .is_some_and(|(new, held)| new.is_older_than(held))
                };
                if !lost.keys.get(&key).is_some_and(older) {
                    lost.keys.remove(&key);
                }
            }
            if !self.check_size(entry) {
                return;
            }
            self.strays.remove(&entry.key);
            let part = parts.entry(key.owner.clone()).or_default();
            part.items.push((key, Some(entry.value.clone())));
            return;
        }
        match facts::read(&entry.key, &entry.value) {
            Some(Fact::Complete(owner, kind, epoch)) => {
                let part = parts.entry(owner.clone()).or_default();
                // The owner has said all of this kind anew: what the store lost and it did not
                // say again is gone.
                if speaking.contains(&owner) {
                    part.items.extend(self.resolve(&owner, kind));
                }
                part.complete.push((owner, kind, epoch));
            }
            Some(Fact::Said(owner, said)) => {
                let part = parts.entry(owner.clone()).or_default();
                if !said.more {
                    part.items.extend(self.all_is_there(&owner, &said.newest));
                }
                // What the store had lost is not there to be deleted.
                if let Some(lost) = self.lost.owners.get_mut(&owner) {
                    let named = said.removed.iter().map(|(key, _)| key);
                    let gone = named.filter(|key| lost.keys.remove(*key).is_some());
                    part.items.extend(gone.map(|key| (key.clone(), None)));
                    lost.said_revision = entry.mod_revision;
                }
                part.removed.extend(said.removals());
                more.insert(owner.clone(), said.more);
                part.newest.push((owner, said.newest));
            }
            None if entry.key == facts::founding_key() => self.founding = Some(entry.value.clone()),
            None => {}
        }
    }

    /// The store's word on what was lost counts again. What is there in an older version is taken
    /// anew: its owner, who confirmed it, had not to say it again.
    fn resolve(&mut self, owner: &Owner, kind: Kind) -> Vec<(Key, Option<Bytes>)> {
        // Nobody declares a beacon: the next one resolves it.
        let lost = self.lost.owners.get_mut(owner).filter(|_| kind != Kind::Beacon);
        let Some(lost) = lost else { return Vec::new() };
        let resolved = lost.keys.extract_if(.., |key, _| key.kind == kind);
        let items = resolved.flat_map(|(key, lost)| {
            let there = lost.there.map(|value| (key.clone(), Some(value)));
            std::iter::once((key, None)).chain(there)
        });
        items.collect()
    }

    /// The change of which a part was listed is there as a whole, as for who lists the store now.
    fn all_is_there(&mut self, owner: &Owner, said: &Newest) -> Vec<(Key, Option<Bytes>)> {
        let Some(lost) = self.lost.owners.get_mut(owner) else { return Vec::new() };
        if lost.part.as_ref().is_none_or(|part| said.is_older_than(part)) {
            return Vec::new();
        }
        let keys = std::mem::take(&mut lost.keys);
        keys.into_iter().map(|(key, lost)| (key, lost.there)).collect()
    }

    fn delete(&mut self, key: &str, parts: &mut BTreeMap<Owner, Batch>, whole: &mut Batch) {
        self.strays.remove(key);
        if let Some(Ok(key)) = record_key(key) {
            if let Some(lost) = self.lost.owners.get_mut(&key.owner) {
                lost.keys.remove(&key);
            }
            parts.entry(key.owner.clone()).or_default().items.push((key, None));
        } else if let Some(owner) = facts::owner_of_said(key) {
            self.lost.owners.remove(&owner);
            self.unfinished.remove(&owner);
            whole.forgotten.push(owner);
        }
    }

    /// Nothing happened up to `revision`.
    pub(super) fn progressed(&mut self, revision: Revision) -> Batch {
        self.trailed = revision;
        if revision < self.revision {
            return Batch::default();
        }
        self.revision = revision;
        Batch { position: Some(self.position()), ..Batch::default() }
    }

    /// Gives up waiting for the rest of changes.
    pub(super) fn flush(&mut self) -> Batch {
        let unfinished = std::mem::take(&mut self.unfinished);
        let position = Some(self.revision);
        unfinished.into_values().fold(Batch { position, ..Batch::default() }, joined)
    }
}

/// What owners vouch for in a commit.
fn vouched(events: &[Event]) -> BTreeMap<(Owner, Kind), Epoch> {
    let facts = events.iter().filter_map(|event| match event {
        Event::Put(entry) => facts::read(&entry.key, &entry.value),
        Event::Delete { .. } => None,
    });
    let complete = facts.filter_map(|fact| match fact {
        Fact::Complete(owner, kind, epoch) => Some(((owner, kind), epoch)),
        Fact::Said(..) => None,
    });
    complete.collect()
}

fn joined(mut first: Batch, next: Batch) -> Batch {
    first.position = next.position.or(first.position);
    first.items.extend(next.items);
    first.removed.extend(next.removed);
    first.complete.extend(next.complete);
    first.newest.extend(next.newest);
    first.forgotten.extend(next.forgotten);
    first
}
