//! What the other side sent and is not taken: it may not send it, nobody here knows what it is, or
//! there is no room for it.
//!
//! As long as something of an owner is left out its digests differ: to send all of it again would
//! find the same. That ends when the digests agree, and when there is room for what had none: then
//! it is worth to be sent again.

use std::collections::BTreeMap;

use super::super::quota::{Quota, Usage};
use crate::key::{Key, Kind};
use crate::names::Owner;

/// What is remembered by name, of all owners together.
const NAMED: usize = 1 << 16;

/// Why an item is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Its key is no record key.
    Key,
    /// It belongs to one of whom the other side may not tell, or does not tell now.
    Owner,
    /// Of a kind that is not known here.
    Kind,
    /// More bytes than a store takes.
    Size,
    /// More than is taken of a region.
    Quota,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Key, Self::Owner, Self::Kind, Self::Size, Self::Quota];

    /// A word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Owner => "owner",
            Self::Kind => "kind",
            Self::Size => "size",
            Self::Quota => "quota",
        }
    }

    /// Why a key that cannot be read is left out.
    pub(super) fn of_unreadable(key: &str) -> Self {
        // `/tombolo/v1/<region>/<cluster>/<kind>/…`, of which a newer version may know more kinds.
        match key.strip_prefix(crate::key::PREFIX).and_then(|rest| rest.split('/').nth(2)) {
            Some(kind) if kind.parse::<Kind>().is_err() => Self::Kind,
            _ => Self::Key,
        }
    }
}

/// What came that should not have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Strays {
    /// How many items were left out, and why.
    pub left_out: BTreeMap<Reason, u64>,
    /// The last of them.
    pub last_left_out: Option<String>,
    /// How many records were older versions of what is held, or of what has gone since.
    pub went_back: u64,
    /// The key of the last of them.
    pub last_went_back: Option<String>,
}

impl Strays {
    /// Adds what came after these.
    pub(in crate::sync) fn extend(&mut self, later: Self) {
        for (reason, count) in later.left_out {
            *self.left_out.entry(reason).or_default() += count;
        }
        self.went_back += later.went_back;
        self.last_left_out = later.last_left_out.or_else(|| self.last_left_out.take());
        self.last_went_back = later.last_went_back.or_else(|| self.last_went_back.take());
    }
}

/// Of one stream.
#[derive(Debug, Default)]
pub(super) struct LeftOut {
    /// Since somebody asked.
    news: Strays,
    counts: BTreeMap<Reason, u64>,
    last: Option<String>,
    owners: BTreeMap<Owner, Lacking>,
    named: usize,
}

/// What is left out of one owner.
#[derive(Debug, Default)]
struct Lacking {
    /// With the size of what had no room; without one, it can never be taken.
    keys: BTreeMap<Key, Option<usize>>,
    /// Whether there is more than is remembered, or something that has no name.
    more: bool,
}

impl LeftOut {
    pub(super) fn counts(&self) -> &BTreeMap<Reason, u64> {
        &self.counts
    }

    pub(super) fn last(&self) -> Option<&str> {
        self.last.as_deref()
    }

    /// What came since this was last asked.
    pub(super) fn take_news(&mut self) -> Option<Strays> {
        (self.news != Strays::default()).then(|| std::mem::take(&mut self.news))
    }

    /// An older version of a record came.
    pub(super) fn went_back(&mut self, key: &Key) {
        tracing::debug!(%key, "an older version of what is held, or of what has gone, is not taken");
        self.news.went_back += 1;
        self.news.last_went_back = Some(key.to_string());
    }

    /// Says the first of a stream: one that sends many would fill the log.
    pub(super) fn count(&mut self, reason: Reason, name: &str, why: &str) {
        let name: String = name.chars().take(300).collect();
        let why = format!("{name}: {why}");
        if self.counts.is_empty() {
            tracing::warn!(reason = reason.as_str(), why, "left out something of the other side's");
        }
        *self.counts.entry(reason).or_default() += 1;
        *self.news.left_out.entry(reason).or_default() += 1;
        self.news.last_left_out = Some(why.clone());
        self.last = Some(why);
    }

    /// Remembers that the owner has a record which is not held as it is; with its size, if it would
    /// be with more room.
    pub(super) fn lacks(&mut self, key: &Key, size: Option<usize>) {
        let of = self.owners.entry(key.owner.clone()).or_default();
        if !of.keys.contains_key(key) {
            if self.named >= NAMED {
                of.more = true;
                return;
            }
            self.named += 1;
        }
        of.keys.insert(key.clone(), size);
    }

    /// Whether the owner may have more of the kind than is held.
    pub(super) fn has(&self, owner: &Owner, kind: Kind) -> bool {
        let of = self.owners.get(owner);
        of.is_some_and(|of| of.more || of.keys.keys().any(|key| key.kind == kind))
    }

    /// The owner has something that cannot even be named.
    pub(super) fn lacks_unnamed(&mut self, owner: &Owner) {
        self.owners.entry(owner.clone()).or_default().more = true;
    }

    /// Its record was taken after all, or has gone.
    pub(super) fn settled(&mut self, key: &Key) {
        let Some(of) = self.owners.get_mut(&key.owner) else { return };
        self.named -= usize::from(of.keys.remove(key).is_some());
        if of.keys.is_empty() && !of.more {
            self.owners.remove(&key.owner);
        }
    }

    /// What is held of the owner is all that it has.
    pub(super) fn complete(&mut self, owner: &Owner) {
        if let Some(of) = self.owners.remove(owner) {
            self.named -= of.keys.len();
        }
    }

    /// Whether the owner's digests differ for what is left out, and nothing has changed about that
    /// now that so much is held.
    pub(super) fn explains(&self, owner: &Owner, quota: Option<&Quota>, held: Usage) -> bool {
        let Some(of) = self.owners.get(owner) else { return false };
        let sizes = of.keys.values().flatten();
        let wanted = sizes.map(|bytes| Usage { records: 1, bytes: *bytes }).sum::<Usage>();
        let all = held + wanted;
        let fits = quota.is_none_or(|of| all.records <= of.records && all.bytes <= of.bytes);
        of.more || wanted == Usage::default() || !fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        format!("/tombolo/v1/r/r-a/namespace/_/{name}").parse().unwrap()
    }

    #[test]
    fn a_difference_is_explained_until_there_is_room_for_all_that_is_left_out() {
        let quota = Quota { of: "region", records: 10, bytes: 100 };
        let held = |records, bytes| Usage { records, bytes };
        let mut left_out = LeftOut::default();
        let owner = key("a").owner;
        let explains = |of: &LeftOut, usage| of.explains(&key("a").owner, Some(&quota), usage);
        assert!(!explains(&left_out, held(10, 50)));
        for name in ["a", "b"] {
            left_out.lacks(&key(name), Some(20));
        }
        assert!(explains(&left_out, held(10, 50)));
        assert!(explains(&left_out, held(9, 50)) && explains(&left_out, held(8, 61)));
        assert!(!explains(&left_out, held(8, 60)));
        left_out.settled(&key("b"));
        assert!(!explains(&left_out, held(9, 80)), "it is room for the other one");
        left_out.settled(&key("a"));
        assert!(!explains(&left_out, held(10, 50)), "nothing is left out any more");

        // What can never be taken needs no room, and nothing is waited for but that it goes.
        left_out.lacks(&key("large"), None);
        assert!(explains(&left_out, held(0, 0)));
        left_out.complete(&owner);
        assert!(!explains(&left_out, held(0, 0)));
        assert_eq!((left_out.owners.len(), left_out.named), (0, 0));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut left_out = LeftOut::default();
        for n in 0..NAMED + 10 {
            left_out.lacks(&key(&format!("n{n}")), Some(1));
        }
        assert_eq!(left_out.named, NAMED);
        for n in 0..NAMED + 10 {
            left_out.settled(&key(&format!("n{n}")));
        }
        assert_eq!(left_out.named, 0);
        assert!(left_out.explains(&key("a").owner, None, Usage::default()), "there was more");
    }

    #[test]
    fn a_kind_of_a_newer_version_is_told_from_what_is_no_key() {
        for (key, reason) in [
            ("/tombolo/v1/r/r-a/gadget/_/x", Reason::Kind),
            ("/tombolo/v1/r/r-a/namespace/_/..", Reason::Key),
            ("/tombolo/local/v1/session/r/r-b", Reason::Key),
            ("", Reason::Key),
        ] {
            assert_eq!(Reason::of_unreadable(key), reason, "{key}");
        }
    }
}
