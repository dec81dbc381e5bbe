//! For what of a peer there is room: what is held of all its owners counts, what replaces something
//! counts for the difference, and what goes gives back its room.
//!
//! A change that comes live is judged item by item. An owner that is collected is judged once all
//! of it is there and it is known what goes; until then its share of memory is bounded.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::left_out::Reason;
use super::{Intake, Item, rewinds};
use crate::key::{Key, Kind};
use crate::names::Owner;
use crate::record::Epoch;
use crate::replica::Replica;
use crate::sync::quota::{OverQuota, Usage, is_beside};

impl Intake {
    /// What is held of the other side's owners, without the one that is collected.
    pub(super) fn held_but_of(&self, collected: Option<&Owner>, held: &Replica) -> Usage {
        if self.quota.is_none() {
            return Usage::default();
        }
        let owners = held.owners().filter(|(owner, _)| self.accepts(owner));
        owners.filter(|(owner, _)| Some(*owner) != collected).map(|(_, of)| Usage::of(of)).sum()
    }

    /// What goes makes room for what comes with it, in whichever order they are named. What is
    /// collected is judged when all of it is there.
    pub(super) fn make_room(&self, items: &[Item], held: &Replica, usage: &mut Usage) {
        if self.quota.is_none() || self.collecting.is_some() {
            return;
        }
        let gone = items.iter().filter(|(_, value, _)| value.is_none()).map(|(key, ..)| key);
        let gone: BTreeSet<&Key> = gone.filter(|key| !self.goes(key)).collect();
        for entry in gone.into_iter().filter_map(|key| held.get(key)) {
            usage.removed(entry.value.len());
        }
    }

    /// Whether it goes by the change that is under way.
    fn goes(&self, key: &Key) -> bool {
        self.pending.removed.contains_key(key)
    }

    pub(super) fn take(&mut self, (key, value, removed): Item, held: &Replica, usage: &mut Usage) {
        if let Some(value) = &value
            && let Err(error) = self.fits(&key, value.len(), held, usage)
        {
            self.no_room(&key, value.len(), &error);
            if let Some(collecting) = &mut self.collecting {
                collecting.leave_out(key);
            }
            return;
        }
        self.left_out.settled(&key);
        if let Some(collecting) = &mut self.collecting {
            collecting.take(key, value, removed);
        } else {
            self.kept.told_of(&key);
            let epoch = removed.as_ref().and_then(|removed| removed.epoch.as_ref());
            let epoch = epoch.map_or(0, |epoch| epoch.id.len());
            self.waiting += key.to_string().len() + value.as_ref().map_or(0, Bytes::len) + epoch;
            self.pending.removed.extend(removed.map(|removed| (key.clone(), removed)));
            self.pending.items.push((key, value));
        }
    }

    /// Of what is collected this bounds the memory that it takes: the quota, and what only replaces
    /// what is held.
    fn fits(
        &self,
        key: &Key,
        size: usize,
        held: &Replica,
        usage: &mut Usage,
    ) -> Result<(), OverQuota> {
        let Some(quota) = &self.quota else { return Ok(()) };
        let there = held.get(key).map(|entry| entry.value.len());
        let live = self.collecting.is_none();
        let replaced = there.filter(|_| live && !self.goes(key));
        if is_beside(key) {
            usage.add(replaced, size);
            return Ok(());
        }
        if live {
            return usage.put(quota, replaced, size);
        }
        match usage.put(quota, None, size) {
            Err(_) if there.is_some_and(|there| size <= there) => Ok(()),
            put => put,
        }
    }

    fn no_room(&mut self, key: &Key, size: usize, error: &OverQuota) {
        self.left_out.count(Reason::Quota, &key.to_string(), &error.to_string());
        self.left_out.lacks(key, Some(size));
    }

    /// What of an owner's items is not held as it is, and has room beside all that stays.
    pub(super) fn news(
        &mut self,
        mut items: BTreeMap<Key, Option<Bytes>>,
        gone: &[Key],
        ends: &BTreeMap<Kind, &Epoch>,
        held: &Replica,
    ) -> Vec<(Key, Option<Bytes>)> {
        items.retain(|key, value| {
            let Some(value) = value else { return true };
            let older = rewinds(key, value, held, ends.get(&key.kind).copied());
            if older {
                self.left_out.went_back(key);
            }
            !older && held.get(key).is_none_or(|entry| entry.value != *value)
        });
        if self.quota.is_none() {
            return items.into_iter().collect();
        }
        let mut usage = self.held_but_of(None, held);
        let removed = items.iter().filter(|(_, value)| value.is_none()).map(|(key, _)| key);
        for entry in removed.chain(gone).filter_map(|key| held.get(key)) {
            usage.removed(entry.value.len());
        }
        // What is there is said anew before anything else comes.
        let (again, new): (Vec<_>, Vec<_>) =
            items.into_iter().partition(|(key, _)| held.get(key).is_some());
        let mut items = again;
        items.extend(new);
        items.retain(|(key, value)| {
            let Some(value) = value else { return true };
            let fits = self.fits(key, value.len(), held, &mut usage);
            fits.inspect_err(|error| self.no_room(key, value.len(), error)).is_ok()
        });
        items
    }
}
