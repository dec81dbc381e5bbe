//! Records that are held and were not sent, of kinds for which nobody vouched.
//!
//! Their absence means nothing yet, so they stay: a removal may have been missed, or their owner may
//! not know all of the kind itself. Digests differ by them, for as long as that lasts; to send
//! everything again would change nothing. They go when their owner vouches for the kind.

use std::collections::{BTreeMap, BTreeSet};

use crate::digest::Digest;
use crate::key::{Key, Kind};
use crate::names::Owner;
use crate::replica::Holding;

/// By owner; of whole transfers on this stream.
#[derive(Debug, Default)]
pub(super) struct Kept(BTreeMap<Owner, BTreeSet<Key>>);

impl Kept {
    pub(super) fn insert(&mut self, owner: &Owner, keys: BTreeSet<Key>) {
        if !keys.is_empty() {
            tracing::debug!(%owner, records = keys.len(), "kept, though they were not sent: nobody vouches for their kinds");
            self.0.insert(owner.clone(), keys);
        }
    }

    /// The other side has spoken of it after all.
    pub(super) fn told_of(&mut self, key: &Key) {
        if let Some(keys) = self.0.get_mut(&key.owner) {
            keys.remove(key);
        }
    }

    /// What goes now that the owner vouches for `kind`.
    pub(super) fn absent(&mut self, owner: &Owner, kind: Kind) -> Vec<Key> {
        let keys = self.0.get_mut(owner).into_iter();
        keys.flat_map(|keys| keys.extract_if(.., |key| key.kind == kind)).collect()
    }

    /// The digest of what is held beside these.
    pub(super) fn digest_beside(&self, holding: &Holding, owner: &Owner, level: u32) -> Digest {
        let keys = self.0.get(owner).into_iter().flatten();
        holding.digest_without(level, keys)
    }
}
