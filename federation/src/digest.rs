//! Order-independent digests of sets of entries.
//!
//! A [`Digest`] is the sum, in four lanes of 64 bits that each wrap, of the SHA-256 of each entry:
//! adding and removing one entry costs one hash, whatever the size of the set, and the order of
//! events leaves no trace. It finds accidents (a missed delete, a lost update), it is no proof
//! against an owner who picks its own entries to collide: that owner could as well lie outright.

use std::fmt;

use sha2::{Digest as _, Sha256};

/// The digest of a set of (key, value) entries. Zero for the empty set.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Digest([u64; 4]);

impl Digest {
    /// The digest of the set of one entry.
    #[must_use]
    pub fn of(key: &[u8], value: &[u8]) -> Self {
        Self(lanes(key, value))
    }

    /// Takes an entry into the set.
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        *self += Self::of(key, value);
    }

    /// Takes an entry out of the set.
    pub fn remove(&mut self, key: &[u8], value: &[u8]) {
        *self -= Self::of(key, value);
    }

    /// As it goes over the wire: 32 bytes.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        self.0.iter().flat_map(|lane| lane.to_be_bytes()).collect()
    }
}

impl std::ops::AddAssign for Digest {
    /// The digest of both sets, if they are disjoint.
    fn add_assign(&mut self, other: Self) {
        for (lane, part) in self.0.iter_mut().zip(other.0) {
            *lane = lane.wrapping_add(part);
        }
    }
}

impl std::ops::SubAssign for Digest {
    /// The digest of the set without the other, if that is in it.
    fn sub_assign(&mut self, other: Self) {
        for (lane, part) in self.0.iter_mut().zip(other.0) {
            *lane = lane.wrapping_sub(part);
        }
    }
}

/// The length of the key goes in first, so that ("ab", "c") and ("a", "bc") differ.
fn lanes(key: &[u8], value: &[u8]) -> [u64; 4] {
    let mut hash = Sha256::new();
    hash.update((key.len() as u64).to_be_bytes());
    hash.update(key);
    hash.update(value);
    let hash: [u8; 32] = hash.finalize().into();
    std::array::from_fn(|lane| {
        hash[lane * 8..][..8].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    })
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|lane| write!(f, "{lane:016x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_leaves_no_trace_and_content_does() {
        let mut forth = Digest::default();
        forth.add(b"a", b"1");
        forth.add(b"b", b"2");
        let mut back = Digest::default();
        back.add(b"b", b"2");
        back.add(b"c", b"3");
        back.add(b"a", b"1");
        assert_ne!(forth, back);
        back.remove(b"c", b"3");
        assert_eq!(forth, back);

        let mut split = Digest::default();
        split.add(b"ab", b"c");
        let mut other = Digest::default();
        other.add(b"a", b"bc");
        assert_ne!(split, other);
        assert_eq!(split.to_bytes().len(), 32);
    }
}
