//! Who leads a region, as the leader says it in the store and every replica shows it.

use std::fmt;
use std::net::SocketAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tombolo_federation::sync::facts;
use tombolo_federation::sync::local::Facts;

use super::wall_clock;

/// The replica that leads.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LeaderStatus {
    /// Of its host.
    pub(crate) host: String,
    /// Its `listen.admin`, there. Absent in what older versions say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) admin: Option<SocketAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) since: Option<Timestamp>,
    /// The store does not answer: it led when it last did.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) last_known: bool,
}

impl LeaderStatus {
    /// This process, if it leads from now on.
    pub(crate) fn ourselves(admin: SocketAddr) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let now = wall_clock()();
        let since = Timestamp::from_second(now.as_second()).unwrap_or(now);
        Self { host, admin: Some(admin), since: Some(since), last_known: false }
    }

    /// From the local facts under the election's key, which stay as they were while the store is `away`;
    /// `None` while nobody leads, or that was not read yet.
    pub(crate) fn of(election: &Facts, away: bool) -> Option<Self> {
        let value = election.as_ref()?.get(&facts::election_key())?;
        Some(Self { last_known: away, ..Self::read(&String::from_utf8_lossy(value)) })
    }

    /// What does not have the form names the leader as a whole.
    fn read(text: &str) -> Self {
        Self::parse(text).unwrap_or_else(|| Self {
            host: text.to_owned(),
            admin: None,
            since: None,
            last_known: false,
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let (host, rest) = text.split_once(", admin ")?;
        let (admin, since) = rest.split_once(", since ")?;
        let (admin, since) = (admin.parse().ok()?, since.parse().ok()?);
        let (admin, since) = (Some(admin), Some(since));
        Some(Self { host: host.to_owned(), admin, since, last_known: false })
    }
}

impl fmt::Display for LeaderStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        if let Some(admin) = &self.admin {
            write!(f, ", admin {admin}")?;
        }
        self.since.map_or(Ok(()), |since| write!(f, ", since {since}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_says_where_it_is_and_since_when() {
        let ourselves = LeaderStatus::ourselves("10.0.0.1:7080".parse().unwrap());
        assert!(!ourselves.host.is_empty());
        let text = ourselves.to_string();
        assert!(text.contains(", admin 10.0.0.1:7080, since 20"), "{text}");
        assert_eq!(LeaderStatus::read(&text), ourselves);
    }

    #[test]
    fn who_led_when_the_store_last_answered_is_told_apart() {
        let key = facts::election_key();
        let facts = std::collections::BTreeMap::from([(key, "cp-1".into())]);
        let election = Some(std::sync::Arc::new(facts));
        let last_known = |away| LeaderStatus::of(&election, away).map(|leader| leader.last_known);
        assert_eq!((last_known(false), last_known(true)), (Some(false), Some(true)));
        assert_eq!(LeaderStatus::of(&None, true), None);
    }

    #[test]
    fn what_another_version_says_names_the_leader() {
        for text in ["us-west1@0a1b/3", "", "host, admin x, since y", "host, admin 10.0.0.1:1"] {
            let read = LeaderStatus::read(text);
            assert_eq!((read.host.as_str(), read.admin, read.since), (text, None, None));
        }
    }
}
