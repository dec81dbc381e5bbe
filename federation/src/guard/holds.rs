//! The losses that are held back, and what may end that.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::loss::{Loss, Losses};
use super::{Ending, Listing, services, short_id};
use crate::key::Key;
use crate::names::NamespaceName;
use crate::record::{Epoch, Hold, Removal};

/// Holds that stand at once. Beyond, what comes joins the youngest, which gets another id: an
/// operator who approved the old one had not seen it.
const MAX_HOLDS: usize = 32;
/// Services that a hold names; the rest is in its numbers.
const MAX_SERVICES: usize = 10;

/// All holds of one owner.
#[derive(Debug)]
pub(super) struct Holds {
    epoch: Epoch,
    counter: u64,
    open: BTreeMap<u64, Open>,
    held: BTreeMap<Loss, Held>,
}

/// One hold.
#[derive(Debug)]
struct Open {
    id: String,
    since: Timestamp,
    why: String,
    /// The first complete listing that lacked all of it.
    lacking: Option<Listing>,
}

#[derive(Debug)]
struct Held {
    hold: u64,
    weight: u32,
    at: Instant,
}

impl Holds {
    pub(super) fn new(epoch: Epoch) -> Self {
        Self { epoch, counter: 0, open: BTreeMap::new(), held: BTreeMap::new() }
    }

    /// Holds `losses` back, under an id of their own. Gives the id of a hold that they joined.
    pub(super) fn begin(
        &mut self,
        losses: &Losses,
        why: &str,
        listing: Option<Listing>,
        now: Instant,
        since: Timestamp,
    ) -> Option<String> {
        self.counter += 1;
        let joined = match self.open.len() {
            MAX_HOLDS.. => self.open.pop_last(),
            _ => None,
        };
        if let Some((youngest, _)) = &joined {
            let theirs = self.held.values_mut().filter(|held| held.hold == *youngest);
            theirs.for_each(|held| held.hold = self.counter);
        }
        let hold = self.counter;
        for (loss, weight) in losses.weights() {
            self.held.insert(loss.clone(), Held { hold, weight, at: now });
        }
        let covered = self.covered(hold).map(ToString::to_string);
        let id = short_id(&self.epoch, hold, covered);
        let (since, why, old) = match joined {
            Some((_, open)) => (open.since, open.why, Some(open.id)),
            None => (since, why.to_owned(), None),
        };
        self.open.insert(hold, Open { id, since, why, lacking: listing });
        old
    }

    /// The holds whose end has come. A `fresh` listing, one that was not looked at before, lacks
    /// all that is held.
    pub(super) fn due(
        &mut self,
        approved: &BTreeSet<String>,
        fresh: Option<Listing>,
        confirm_after: Duration,
    ) -> Vec<(String, Ending, Removal)> {
        let mut due = Vec::new();
        for open in self.open.values_mut() {
            if approved.contains(&open.id) {
                due.push((open.id.clone(), Ending::Approved, Removal::Approved));
            } else if let Some(fresh) = fresh {
                let first = *open.lacking.get_or_insert(fresh);
                if fresh.connection != first.connection
                    && fresh.at.saturating_duration_since(first.at) >= confirm_after
                {
                    due.push((open.id.clone(), Ending::Released, Removal::Released));
                }
            }
        }
        due
    }

    /// Ends a hold and gives what it held.
    pub(super) fn end(&mut self, id: &str) -> Vec<Loss> {
        let ends = self.open.iter().find(|(_, open)| open.id == id).map(|(hold, _)| *hold);
        let Some(ends) = ends else { return Vec::new() };
        self.open.remove(&ends);
        let losses: Vec<Loss> = self.covered(ends).cloned().collect();
        self.held.retain(|_, held| held.hold != ends);
        losses
    }

    /// No listing from before counts any more.
    pub(super) fn look_anew(&mut self) {
        self.open.values_mut().for_each(|open| open.lacking = None);
    }

    /// Lets go of what is not `still` lost.
    pub(super) fn retain(&mut self, still: impl Fn(&Loss) -> bool) {
        self.held.retain(|loss, _| still(loss));
        self.close_empty();
    }

    pub(super) fn remove(&mut self, loss: &Loss) {
        if self.held.remove(loss).is_some() {
            self.close_empty();
        }
    }

    fn close_empty(&mut self) {
        let used: BTreeSet<u64> = self.held.values().map(|held| held.hold).collect();
        self.open.retain(|hold, _| used.contains(hold));
    }

    pub(super) fn covers(&self, loss: &Loss) -> bool {
        self.held.contains_key(loss)
    }

    pub(super) fn losses(&self) -> impl Iterator<Item = &Loss> {
        self.held.keys()
    }

    /// Whether anything in this namespace is held.
    pub(super) fn speaks_of(&self, namespace: &NamespaceName) -> bool {
        self.held.keys().any(|loss| loss.key().namespace.as_ref() == Some(namespace))
    }

    /// How many endpoints came to be held after `start`.
    pub(super) fn counted(&self, start: Option<Instant>) -> u64 {
        let recent = self.held.values().filter(|held| start.is_none_or(|start| held.at > start));
        recent.map(|held| u64::from(held.weight)).sum()
    }

    /// When the first listing could be confirmed by another.
    pub(super) fn ask_again(&self, confirm_after: Duration, now: Instant) -> Option<Instant> {
        let due = self.open.values().filter_map(|open| Some(open.lacking?.at + confirm_after));
        due.filter(|due| *due > now).min()
    }

    /// As the cluster's record tells them, the oldest first.
    pub(super) fn list(&self) -> Vec<Hold> {
        self.open.iter().map(|(hold, open)| self.describe(*hold, open)).collect()
    }

    fn describe(&self, hold: u64, open: &Open) -> Hold {
        let keys: BTreeSet<&Key> = self.covered(hold).map(Loss::key).collect();
        let mut endpoints = BTreeSet::new();
        for loss in self.covered(hold) {
            if let Loss::Endpoint(key, address) = loss {
                endpoints.insert((key.service(), *address));
            }
        }
        Hold {
            id: open.id.clone(),
            since: open.since,
            records: u32::try_from(keys.len()).unwrap_or(u32::MAX),
            endpoints: u32::try_from(endpoints.len()).unwrap_or(u32::MAX),
            why: open.why.clone(),
            services: services(keys.into_iter()).into_iter().take(MAX_SERVICES).collect(),
        }
    }

    fn covered(&self, hold: u64) -> impl Iterator<Item = &Loss> {
        self.held.iter().filter(move |(_, held)| held.hold == hold).map(|(loss, _)| loss)
    }
}
