//! How the servers of a store are: what an operator has to know before the store stops.

use super::StoreError;

/// A server of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Where it is asked.
    pub endpoint: String,
    /// What it answered, or why it did not.
    pub state: Result<MemberState, StoreError>,
}

/// What a server says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberState {
    /// As it says, like `3.6.16`.
    pub version: String,
    /// It leads the store's own quorum (nothing to do with [`super::election`]).
    pub leader: bool,
    /// Bytes of the database file. This is what counts against the quota; compaction frees pages
    /// in it, only defragmenting makes it smaller.
    pub db_size: u64,
    /// Of these, bytes in use.
    pub db_in_use: u64,
    /// Bytes at which it refuses to write.
    pub quota: u64,
    /// What it complains about, for itself or another member.
    pub alarms: Vec<Alarm>,
}

impl MemberState {
    /// How much of the quota is used up. 100 and more: nothing can be written.
    #[must_use]
    pub fn full_percent(&self) -> u64 {
        match self.quota {
            0 => 0,
            quota => self.db_size.saturating_mul(100) / quota,
        }
    }

    /// How much of the quota would be used up after defragmenting.
    #[must_use]
    pub fn in_use_percent(&self) -> u64 {
        match self.quota {
            0 => 0,
            quota => self.db_in_use.saturating_mul(100) / quota,
        }
    }
}

/// A complaint of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Alarm {
    /// The quota is used up: nothing is written until it was raised, or the store was compacted
    /// and defragmented, and then the alarm was disarmed.
    NoSpace,
    /// Members hold different data.
    Corrupt,
    /// In the server's words.
    Other(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fullness_is_of_the_file_and_survives_odd_numbers() {
        let state = |db_size, quota| MemberState {
            version: String::new(),
            leader: true,
            db_size,
            db_in_use: 0,
            quota,
            alarms: Vec::new(),
        };
        assert_eq!(state(60, 100).full_percent(), 60);
        assert_eq!(state(101, 100).full_percent(), 101);
        assert_eq!(state(1, 0).full_percent(), 0, "no quota");
        assert_eq!(state(u64::MAX, u64::MAX).full_percent(), 1, "saturates");
    }
}
