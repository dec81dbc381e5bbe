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
    /// What the servers call it among themselves.
    pub id: u64,
    /// As it says, like `3.6.16`.
    pub version: String,
    /// It leads the store's own quorum (nothing to do with [`super::election`]).
    pub leader: bool,
    /// Bytes of the database file. This is what counts against the quota; compaction frees pages
    /// in it, only defragmenting makes it smaller.
    pub db_size: u64,
    /// Of these, bytes in use.
    pub db_in_use: u64,
    /// Bytes at which it refuses to write, if that is known.
    pub quota: Option<u64>,
    /// What it complains about. Each knows of the complaints of all, whether those answer or not.
    pub alarms: Vec<Complaint>,
}

/// A server's complaint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// Which server is unwell, by [`MemberState::id`]; 0 if they do not know.
    pub of: u64,
    /// What it is.
    pub alarm: Alarm,
}

impl MemberState {
    /// How much of the quota is used up, if that is known. 100 and more: nothing can be written.
    #[must_use]
    pub fn full_percent(&self) -> Option<u64> {
        self.db_size.saturating_mul(100).checked_div(self.quota?)
    }

    /// How much of the quota would be used up after defragmenting, if that is known.
    #[must_use]
    pub fn in_use_percent(&self) -> Option<u64> {
        self.db_in_use.saturating_mul(100).checked_div(self.quota?)
    }
}

/// What servers complain about.
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
            id: 1,
            version: String::new(),
            leader: true,
            db_size,
            db_in_use: 0,
            quota,
            alarms: Vec::new(),
        };
        assert_eq!(state(60, Some(100)).full_percent(), Some(60));
        assert_eq!(state(101, Some(100)).full_percent(), Some(101));
        assert_eq!(state(1, Some(0)).full_percent(), None);
        assert_eq!(state(1, None).full_percent(), None, "not known");
        assert_eq!(state(u64::MAX, Some(u64::MAX)).full_percent(), Some(1), "saturates");
    }
}
