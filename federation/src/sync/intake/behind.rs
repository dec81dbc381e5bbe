//! A server that knows less of an owner than the subscriber does.
//!
//! What it sends of that owner while it catches up is from before what is held: a record that was
//! removed since would come back, one that was said again since would go. Records name their change,
//! so theirs is compared; removals, too. Those from an older version have a number only, which counts
//! in the owner's epoch of the time: not before the last one that the server showed.

use std::collections::BTreeMap;

use crate::names::Owner;
use crate::record::{Epoch, Newest};
use crate::replica::Removed;

/// The owners on which the other side is behind.
#[derive(Debug, Default)]
pub(super) struct Behind(BTreeMap<Owner, CatchingUp>);

#[derive(Debug)]
struct CatchingUp {
    /// What the other side had come to with the last whole batch.
    theirs: Option<Newest>,
    /// What this batch shows that it has come to.
    shown: Option<Newest>,
    /// The highest number of a removal that did not count.
    dropped: Option<u64>,
}

impl Behind {
    pub(super) fn begin(&mut self, owner: Owner, theirs: Option<Newest>) {
        let shown = theirs.clone();
        self.0.insert(owner, CatchingUp { theirs, shown, dropped: None });
    }

    pub(super) fn contains(&self, owner: &Owner) -> bool {
        self.0.contains_key(owner)
    }

    pub(super) fn end(&mut self, owner: &Owner) {
        self.0.remove(owner);
    }

    /// A record of the owner came.
    pub(super) fn shows(&mut self, owner: &Owner, newest: &Newest) {
        let Some(of) = self.0.get_mut(owner) else { return };
        if of.shown.as_ref().is_none_or(|shown| !newest.is_older_than(shown)) {
            of.shown = Some(newest.clone());
        }
    }

    /// Whether a removal counts against what is held.
    pub(super) fn removes(
        &mut self,
        owner: &Owner,
        removed: &Removed,
        held: Option<&Newest>,
    ) -> bool {
        if let Some(change) = removed.change() {
            self.shows(owner, &change);
            return !self.contains(owner) || held.is_none_or(|held| held.is_older_than(&change));
        }
        let sequence = removed.sequence;
        let Some(of) = self.0.get_mut(owner) else { return true };
        let Some(held) = held else { return true };
        // In the oldest epoch that it may be of.
        let newer =
            of.theirs.as_ref().is_some_and(|theirs| is_newer(&theirs.epoch, sequence, held));
        if !newer {
            of.dropped = of.dropped.max(Some(sequence));
        }
        newer
    }

    /// Closes a whole batch: who has caught up with what is held is no longer behind.
    ///
    /// # Errors
    /// With an owner of which a removal did not count that, by the epoch that is shown now, may have
    /// been news.
    pub(super) fn settle<'a>(
        &mut self,
        held: impl Fn(&Owner) -> Option<&'a Newest>,
    ) -> Result<(), Owner> {
        let mut doubtful = None;
        self.0.retain(|owner, of| {
            let (Some(shown), Some(held)) = (&of.shown, held(owner)) else { return true };
            let another = of.theirs.as_ref().is_none_or(|theirs| theirs.epoch != shown.epoch);
            if another && of.dropped.is_some_and(|dropped| is_newer(&shown.epoch, dropped, held)) {
                doubtful = Some(owner.clone());
            }
            of.theirs.clone_from(&of.shown);
            shown.is_older_than(held)
        });
        doubtful.map_or(Ok(()), Err)
    }
}

fn is_newer(epoch: &Epoch, sequence: u64, held: &Newest) -> bool {
    held.is_older_than(&Newest { epoch: epoch.clone(), sequence })
}
