//! What comes of one owner before `synced`, kept aside until all of it is there.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::{counts_absence, is_older};
use crate::key::{Key, Kind};
use crate::names::Owner;
use crate::record::{Epoch, Newest};
use crate::replica::{Holding, Removed, Replica};

/// What was left out is remembered by name up to so many.
const NAMED: usize = 1 << 16;

#[derive(Debug)]
pub(super) struct Collecting {
    pub(super) owner: Owner,
    /// The other side's word counts.
    pub(super) current: bool,
    /// Everything of the owner follows, so that absence means something.
    whole: bool,
    pub(super) newest: Option<Newest>,
    pub(super) items: BTreeMap<Key, Option<Bytes>>,
    /// There, but not taken: not absent.
    left_out: BTreeSet<Key>,
    pub(super) removed: BTreeMap<Key, Removed>,
    pub(super) ends: BTreeMap<Kind, Epoch>,
}

impl Collecting {
    pub(super) fn new(owner: Owner, current: bool, whole: bool, newest: Option<Newest>) -> Self {
        Self {
            owner,
            current,
            whole,
            newest,
            items: BTreeMap::new(),
            left_out: BTreeSet::new(),
            removed: BTreeMap::new(),
            ends: BTreeMap::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn take(&mut self, key: Key, value: Option<Bytes>, removed: Option<Removed>) {
        self.removed.extend(removed.map(|removed| (key.clone(), removed)));
        self.items.insert(key, value);
    }

    pub(super) fn leave_out(&mut self, key: Key) {
        if self.left_out.len() >= NAMED {
            // Nobody knows what is absent then.
            self.whole = false;
            return;
        }
        self.left_out.insert(key);
    }

    /// The kinds that the owner vouches for, not by an older word than the one that is held.
    fn current_ends(&self, held: &Replica) -> impl Iterator<Item = (Kind, &Epoch)> {
        let current = |(kind, epoch): &(&Kind, &Epoch)| !is_older(held, &self.owner, **kind, epoch);
        self.ends.iter().filter(current).map(|(kind, epoch)| (*kind, epoch))
    }

    pub(super) fn complete(&self, held: &Replica) -> Vec<(Owner, Kind, Epoch)> {
        let ends = self.current_ends(held);
        ends.map(|(kind, epoch)| (self.owner.clone(), kind, epoch.clone())).collect()
    }

    /// What is held and was not sent: what goes for that, and what stays because nobody vouches for
    /// its kind.
    pub(super) fn absent(&self, held: &Replica) -> (Vec<Key>, BTreeSet<Key>) {
        let counts = |epoch| counts_absence(&self.owner, epoch, self.newest.as_ref());
        let vouched = self.current_ends(held).filter(|(_, epoch)| counts(epoch));
        let vouched: BTreeSet<Kind> = vouched.map(|(kind, _)| kind).collect();
        let holding = held.holding(&self.owner).filter(|_| self.whole);
        let absent = holding.into_iter().flat_map(Holding::records).map(|(key, _)| key);
        let absent = absent.filter(|key| !self.items.contains_key(*key));
        let absent = absent.filter(|key| !self.left_out.contains(*key));
        let (gone, kept): (Vec<&Key>, Vec<&Key>) =
            absent.partition(|key| vouched.contains(&key.kind));
        (gone.into_iter().cloned().collect(), kept.into_iter().cloned().collect())
    }
}
