//! What a store says in a listing, held against nothing; which records it has not lost but its owners
//! have removed.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::state::LostKey;
use crate::key::{InvalidKey, Key, Kind, LOCAL_PREFIX, PREFIX};
use crate::names::Owner;
use crate::record::{Body, Decided, Newest, Origin, Record};
use crate::replica::{Batch, Holding, Replica};
use crate::store::{KeyValue, Revision};
use crate::sync::facts::{self, Fact};
use crate::sync::settings;
use crate::sync::transactions::MAX_RECORD_BYTES;

/// A listing, sorted.
#[derive(Default)]
pub(super) struct Listing {
    pub(super) batch: Batch,
    pub(super) listed: BTreeMap<Key, (Option<Newest>, Bytes)>,
    pub(super) newest: BTreeMap<Owner, Newest>,
    pub(super) said_revisions: BTreeMap<Owner, Revision>,
    /// Owners of whom only a part of a change is there: what it goes up to says nothing yet.
    pub(super) partial: BTreeSet<Owner>,
    /// Who left, as which incarnation; a region with all its clusters.
    pub(super) left: Vec<(Owner, String)>,
    pub(super) founding: Option<Bytes>,
}

/// All that a listing says, held against nothing.
pub(in crate::sync) fn read(entries: Vec<KeyValue>) -> Batch {
    Listing::of(entries).batch
}

impl Listing {
    pub(super) fn of(entries: Vec<KeyValue>) -> Self {
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
        if let Some(Ok(key)) = record_key(&entry.key) {
            let newest = Origin::of_value(&entry.value).map(|origin| origin.newest());
            if let Some(newest) = newest.clone() {
                self.saw(&key.owner, newest);
            }
            self.left.extend(left(&key, &entry.value));
            self.listed.insert(key.clone(), (newest, entry.value.clone()));
            if fits(&entry) {
                self.batch.items.push((key, Some(entry.value)));
            }
            return;
        }
        match facts::read(&entry.key, &entry.value) {
            Some(Fact::Complete(owner, kind, epoch)) => {
                self.batch.complete.push((owner, kind, epoch));
            }
            Some(Fact::Said(owner, said)) => {
                self.said_revisions.insert(owner.clone(), entry.mod_revision);
                if said.more {
                    self.partial.insert(owner.clone());
                }
                self.saw(&owner, said.newest);
            }
            None if entry.key == facts::founding_key() => self.founding = Some(entry.value),
            None => {
                let region = facts::left(&entry.key, &entry.value);
                self.left.extend(
                    region.map(|(region, incarnation)| (Owner::region(region), incarnation)),
                );
            }
        }
    }

    /// Whether `owner`, as `held` knows it, is one that left, so that nothing of it being there is
    /// no loss.
    pub(super) fn says_left(&self, owner: &Owner, held: &Replica) -> bool {
        self.left.iter().any(|(left, incarnation)| {
            let with_region = left.cluster.is_none() && left.region == owner.region;
            let same = || settings::incarnation(held, left).is_none_or(|held| held == incarnation);
            (left == owner || with_region) && same()
        })
    }

    /// Up to where a part of a change goes, if that is all there is of what is newer than `held`.
    pub(super) fn part_beyond(&self, owner: &Owner, held: Option<&Newest>) -> Option<Newest> {
        let known = self.newest.get(owner).filter(|_| self.partial.contains(owner))?;
        held.is_some_and(|held| held.is_older_than(known)).then(|| known.clone())
    }

    fn saw(&mut self, owner: &Owner, newest: Newest) {
        match self.newest.get_mut(owner) {
            Some(known) if !known.is_older_than(&newest) => {}
            Some(known) => *known = newest,
            None => drop(self.newest.insert(owner.clone(), newest)),
        }
    }
}

/// What an owner is known to have removed after the store's last word of it does not come back; the
/// leader removes it from the store.
pub(super) fn withhold(
    listing: &Listing,
    owner: &Owner,
    holding: &Holding,
) -> BTreeMap<Key, LostKey> {
    let mut withheld = BTreeMap::new();
    let Some(held) = holding.newest() else { return withheld };
    for (key, (listed, value)) in &listing.listed {
        let known = |listed: &Newest| listed == held || listed.is_older_than(held);
        if key.owner == *owner && holding.get(key).is_none() && listed.as_ref().is_some_and(known) {
            withheld.insert(key.clone(), LostKey { held: None, there: Some(value.clone()) });
        }
    }
    withheld
}

/// The cluster that a listed record says has left, and as which incarnation: its own region alone
/// says so. That a region was forgotten here is a fact of its own, whoever said that it left.
fn left(key: &Key, value: &Bytes) -> Option<(Owner, String)> {
    if key.kind != Kind::Decision {
        return None;
    }
    let Body::Decision(decision) = Record::open(key, value).ok()?.body else { return None };
    match decision.what {
        Decided::Leave { owner, incarnation } => {
            let its_own =
                owner.cluster.is_some() && key.owner == Owner::region(owner.region.clone());
            its_own.then_some((owner, incarnation))
        }
        Decided::Approve { .. } => None,
    }
}

pub(super) fn fits(entry: &KeyValue) -> bool {
    entry.key.len() + entry.value.len() <= MAX_RECORD_BYTES
}

/// The key of a record, where it should be one.
pub(super) fn record_key(key: &str) -> Option<Result<Key, InvalidKey>> {
    if key.starts_with(LOCAL_PREFIX) || !key.starts_with(PREFIX) {
        return None;
    }
    Some(key.parse())
}
