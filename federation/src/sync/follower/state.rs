//! What a follower makes of listings and commits; no store, no clock.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tracing::warn;

use crate::key::{Key, Kind, LOCAL_PREFIX, PREFIX};
use crate::names::Owner;
use crate::record::{Body, Decided, Newest, Origin, Record};
use crate::replica::{Batch, Holding, Replica};
use crate::store::{Event, KeyValue, Revision};
use crate::sync::facts::{self, Fact};
use crate::sync::history::{ResumePoint, Witness};

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
    /// Records that are held and not there, or are there as they were before: in an older version,
    /// or at all, although their owner has removed them since. With what is there.
    pub keys: BTreeMap<Key, Option<Bytes>>,
}

/// A follower's state.
#[derive(Debug, Default)]
pub(super) struct State {
    revision: Revision,
    witness: Option<Witness>,
    /// Parts of changes of which more is to come.
    unfinished: BTreeMap<Owner, Batch>,
    lost: Lost,
    founding: Option<Bytes>,
}

/// A listing, sorted.
#[derive(Default)]
struct Listing {
    batch: Batch,
    listed: BTreeMap<Key, (Option<Newest>, Bytes)>,
    founding: Option<Bytes>,
    newest: BTreeMap<Owner, Newest>,
    said_revisions: BTreeMap<Owner, Revision>,
    left: BTreeSet<Owner>,
    /// Owners of which more is held than the listing knows, and when their last word in it was
    /// written.
    older: BTreeMap<Owner, Revision>,
}

impl State {
    pub(super) fn new(resume: Option<ResumePoint>) -> Self {
        match resume {
            Some(ResumePoint { revision, witness }) => {
                Self { revision, witness: Some(witness), ..Self::default() }
            }
            None => Self::default(),
        }
    }

    /// From where to go on. `None` if no commit was seen that could prove that the store is still
    /// the same.
    pub(super) fn resume(&self) -> Option<ResumePoint> {
        let witness = self.witness.clone()?;
        Some(ResumePoint { revision: self.revision, witness })
    }

    /// Up to here all was seen.
    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn lost(&self) -> &Lost {
        &self.lost
    }

    /// What the store says of itself, up to here.
    pub(super) fn founding(&self) -> Option<&Bytes> {
        self.founding.as_ref()
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
        self.witness = None;
        self.unfinished.clear();
        self.lost = Lost::default();
        let mut listing = Listing::of(entries);
        for (owner, holding) in held.owners() {
            self.compare(&mut listing, owner, holding);
        }
        self.withhold(&mut listing, held);
        self.founding = listing.founding.take();
        let mut batch = listing.batch;
        batch.position = Some(revision);
        batch
    }

    fn compare(&mut self, listing: &mut Listing, owner: &Owner, holding: &Holding) {
        let known = listing.newest.get(owner);
        let older = match (known, holding.newest()) {
            (Some(known), Some(held)) => known.is_older_than(held),
            (None, Some(_)) => true,
            (_, None) => false,
        };
        // A store that knows all that was heard of an owner has no more than it holds of it.
        let trusted = !older || listing.left.contains(owner);
        let said_revision = listing.said_revisions.get(owner).copied().unwrap_or_default();
        if !trusted {
            listing.older.insert(owner.clone(), said_revision);
        }
        let mut lost = BTreeMap::new();
        for (key, entry) in holding.records() {
            match listing.listed.get(key) {
                None if trusted => listing.batch.items.push((key.clone(), None)),
                None => drop(lost.insert(key.clone(), None)),
                Some((Some(listed), value)) if older => {
                    let held = entry.origin().map(Origin::newest);
                    if held.is_some_and(|held| listed.is_older_than(&held)) {
                        lost.insert(key.clone(), Some(value.clone()));
                    }
                }
                Some(_) => {}
            }
        }
        if !lost.is_empty() {
            self.lost.owners.insert(owner.clone(), LostOwner { said_revision, keys: lost });
        }
    }

    /// What an owner is known to have removed after the store's last word of it does not come back.
    fn withhold(&mut self, listing: &mut Listing, held: &Replica) {
        let mut withheld = BTreeSet::new();
        for (key, (listed, value)) in &listing.listed {
            let Some(said_revision) = listing.older.get(&key.owner) else { continue };
            let Some(holding) = held.holding(&key.owner) else { continue };
            let (Some(listed), Some(newest)) = (listed, holding.newest()) else { continue };
            let known = listed.is_older_than(newest) || listed == newest;
            if known && holding.get(key).is_none() {
                withheld.insert(key.clone());
                let lost = self.lost.owners.entry(key.owner.clone()).or_default();
                lost.said_revision = *said_revision;
                lost.keys.insert(key.clone(), Some(value.clone()));
            }
        }
        listing.batch.items.retain(|(key, _)| !withheld.contains(key));
    }

    /// Takes a commit; what is only a part of a change waits for the rest.
    pub(super) fn committed(&mut self, revision: Revision, events: &[Event]) -> Batch {
        self.witness = Some(Witness::of(revision, events));
        if revision <= self.revision {
            // Listed already: it is only seen to know what it was.
            return Batch::default();
        }
        self.revision = revision;
        let mut whole = Batch { position: Some(revision), ..Batch::default() };
        let mut parts: BTreeMap<Owner, Batch> = BTreeMap::new();
        let mut more = BTreeMap::new();
        for event in events {
            match event {
                Event::Put(entry) => self.put(entry, &mut parts, &mut more),
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
        whole
    }

    fn put(
        &mut self,
        entry: &KeyValue,
        parts: &mut BTreeMap<Owner, Batch>,
        more: &mut BTreeMap<Owner, bool>,
    ) {
        if let Some(key) = record_key(&entry.key) {
            if let Some(lost) = self.lost.owners.get_mut(&key.owner) {
                lost.keys.remove(&key);
            }
            let part = parts.entry(key.owner.clone()).or_default();
            part.items.push((key, Some(entry.value.clone())));
            return;
        }
        match facts::read(&entry.key, &entry.value) {
            Some(Fact::Complete(owner, kind, epoch)) => {
                let part = parts.entry(owner.clone()).or_default();
                // The owner has said all of this kind anew: what the store lost and it did not
                // say again is gone, or is what it was in the store, which it had not to say.
                part.items.extend(self.resolve(&owner, |key| key.kind == kind));
                part.complete.push((owner, kind, epoch));
            }
            Some(Fact::Said(owner, said)) => {
                let part = parts.entry(owner.clone()).or_default();
                part.removed.extend(said.removals());
                // What the store had lost is not there to be deleted.
                let is_removed = |key: &Key| said.removed.iter().any(|(removed, _)| removed == key);
                part.items.extend(self.resolve(&owner, is_removed));
                if let Some(lost) = self.lost.owners.get_mut(&owner) {
                    lost.said_revision = entry.mod_revision;
                }
                more.insert(owner.clone(), said.more);
                part.newest.push((owner, said.newest));
            }
            None if entry.key == facts::founding_key() => self.founding = Some(entry.value.clone()),
            None => {}
        }
    }

    /// The store's word on what was lost of `which` counts again. What is there in an older version
    /// is taken anew: on top of what is held it would count as going back.
    fn resolve(
        &mut self,
        owner: &Owner,
        which: impl Fn(&Key) -> bool,
    ) -> Vec<(Key, Option<Bytes>)> {
        let Some(lost) = self.lost.owners.get_mut(owner) else { return Vec::new() };
        let resolved = lost.keys.extract_if(.., |key, _| which(key)).flat_map(|(key, there)| {
            let there = there.map(|value| (key.clone(), Some(value)));
            std::iter::once((key, None)).chain(there)
        });
        resolved.collect()
    }

    fn delete(&mut self, key: &str, parts: &mut BTreeMap<Owner, Batch>, whole: &mut Batch) {
        if let Some(key) = record_key(key) {
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
        self.revision = revision;
        Batch { position: Some(revision), ..Batch::default() }
    }

    /// Gives up waiting for the rest of changes.
    pub(super) fn flush(&mut self) -> Batch {
        let unfinished = std::mem::take(&mut self.unfinished);
        unfinished.into_values().fold(Batch::default(), joined)
    }
}

impl Listing {
    fn of(entries: Vec<KeyValue>) -> Self {
        let mut listing = Self::default();
        for entry in entries {
            listing.take(entry);
        }
        let newest = listing.newest.iter();
        listing.batch.newest =
            newest.map(|(owner, newest)| (owner.clone(), newest.clone())).collect();
        listing
    }

    fn take(&mut self, entry: KeyValue) {
        if let Some(key) = record_key(&entry.key) {
            let newest = Origin::of_value(&entry.value).map(|origin| origin.newest());
            if let Some(newest) = newest.clone() {
                self.saw(&key.owner, newest);
            }
            self.left.extend(left(&key, &entry.value));
            self.listed.insert(key.clone(), (newest, entry.value.clone()));
            self.batch.items.push((key, Some(entry.value)));
            return;
        }
        match facts::read(&entry.key, &entry.value) {
            Some(Fact::Complete(owner, kind, epoch)) => {
                self.batch.complete.push((owner, kind, epoch));
            }
            Some(Fact::Said(owner, said)) => {
                self.said_revisions.insert(owner.clone(), entry.mod_revision);
                self.saw(&owner, said.newest);
            }
            None if entry.key == facts::founding_key() => self.founding = Some(entry.value),
            None => {}
        }
    }

    fn saw(&mut self, owner: &Owner, newest: Newest) {
        match self.newest.get_mut(owner) {
            Some(known) if !known.is_older_than(&newest) => {}
            Some(known) => *known = newest,
            None => drop(self.newest.insert(owner.clone(), newest)),
        }
    }
}

/// The owner that a listed record says has left.
fn left(key: &Key, value: &Bytes) -> Option<Owner> {
    if key.kind != Kind::Decision {
        return None;
    }
    match Record::open(key, value).ok()?.body {
        Body::Decision(decision) => match decision.what {
            Decided::Leave { owner, .. } => Some(owner),
            Decided::Approve { .. } => None,
        },
        _ => None,
    }
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

/// The key of a record; other keys are left alone.
fn record_key(key: &str) -> Option<Key> {
    if key.starts_with(LOCAL_PREFIX) || !key.starts_with(PREFIX) {
        return None;
    }
    key.parse()
        .inspect_err(
            |error| warn!(%error, "the store has a key that is not a record's, it is left alone"),
        )
        .ok()
}
