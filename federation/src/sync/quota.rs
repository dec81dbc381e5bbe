//! How much is taken of one cluster, and of one other region.
//!
//! All of it is held in memory by every process of the mesh and stored by every region, so that one
//! who writes without end would take the others down with it. What is beyond is refused record by
//! record; what is there stays, and may shrink or be said anew.
//!
//! Turned down: a share of what the store has room for. What one cluster may have would depend on
//! what the others have.

use crate::key::{Key, Kind};
use crate::replica::Holding;

/// The most that is taken of somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Of whom.
    pub of: &'static str,
    /// So many records.
    pub records: usize,
    /// So many bytes of keys and values together.
    pub bytes: usize,
}

/// Several times what ten thousand exported services with a hundred thousand endpoints take.
pub const CLUSTER: Quota = Quota { of: "cluster", records: 200_000, bytes: 256 << 20 };
/// Half of the room that an etcd has by default.
pub const REGION: Quota = Quota { of: "region", records: 1_000_000, bytes: 1 << 30 };
/// Owners of one region: itself and its clusters.
pub const OWNERS: usize = 1024;

/// Whether it is taken beside the quota: an owner has one of each kind that tells of itself. Without
/// them it would be taken for dead, or for another, because it has too much of something else.
#[must_use]
pub fn is_beside(key: &Key) -> bool {
    matches!(key.kind, Kind::Region | Kind::Cluster | Kind::Beacon)
        && *key == Key::of_owner(key.owner.clone(), key.kind)
}

/// What somebody has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Records.
    pub records: usize,
    /// Bytes.
    pub bytes: usize,
}

/// Why a record is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OverQuota {
    /// One more than may be.
    #[error("is one more than the {} records that are taken of a {}", .0.records, .0.of)]
    Records(Quota),
    /// It has no room.
    #[error("would take more than the {} bytes that are taken of a {}", .0.bytes, .0.of)]
    Bytes(Quota),
}

impl Usage {
    /// Of what is held; keys are not counted there.
    #[must_use]
    pub fn of(holding: &Holding) -> Self {
        Self { records: holding.len(), bytes: holding.bytes() }
    }

    /// Counts a record of `size` bytes that comes in the place of one of `before`, if there is room.
    ///
    /// # Errors
    /// [`OverQuota`]; nothing is counted then.
    pub fn put(
        &mut self,
        quota: &Quota,
        before: Option<usize>,
        size: usize,
    ) -> Result<(), OverQuota> {
        let bytes = self.bytes.saturating_sub(before.unwrap_or(0)).saturating_add(size);
        if before.is_none() && self.records >= quota.records {
            return Err(OverQuota::Records(*quota));
        }
        if bytes > quota.bytes && before.is_none_or(|before| size > before) {
            return Err(OverQuota::Bytes(*quota));
        }
        self.add(before, size);
        Ok(())
    }

    /// The same whether or not there is room.
    pub fn add(&mut self, before: Option<usize>, size: usize) {
        self.records += usize::from(before.is_none());
        self.bytes = self.bytes.saturating_sub(before.unwrap_or(0)).saturating_add(size);
    }

    /// Counts that a record of `size` bytes is gone.
    pub fn removed(&mut self, size: usize) {
        self.records = self.records.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(size);
    }
}

impl std::ops::Add for Usage {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { records: self.records + other.records, bytes: self.bytes + other.bytes }
    }
}

impl std::ops::Sub for Usage {
    type Output = Self;

    /// Nothing is less than none.
    fn sub(self, other: Self) -> Self {
        Self {
            records: self.records.saturating_sub(other.records),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }
}

impl std::iter::Sum for Usage {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, next| sum + next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_may_shrink_and_be_said_anew_and_nothing_comes_beyond_the_limit() {
        let quota = Quota { of: "cluster", records: 3, bytes: 100 };
        let mut usage = Usage::default();
        for size in [40, 40, 20] {
            usage.put(&quota, None, size).unwrap();
        }
        let more = usage.put(&quota, None, 1).unwrap_err();
        assert_eq!(more.to_string(), "is one more than the 3 records that are taken of a cluster");
        let grown = usage.put(&quota, Some(20), 21).unwrap_err();
        assert_eq!(
            grown.to_string(),
            "would take more than the 100 bytes that are taken of a cluster"
        );
        usage.put(&quota, Some(40), 40).unwrap();
        usage.put(&quota, Some(40), 39).unwrap();
        usage.put(&quota, Some(20), 21).unwrap();
        usage.removed(39);
        usage.put(&quota, None, 39).unwrap();
        assert_eq!(usage, Usage { records: 3, bytes: 100 });
        // A store may have more from before there was a limit.
        let mut usage = Usage { records: 9, bytes: 500 };
        usage.put(&quota, Some(50), 50).unwrap();
        assert!(usage.put(&quota, Some(50), 51).is_err());
    }
}
