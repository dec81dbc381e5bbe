//! How the region's store is, asked of it every half minute.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tombolo_federation::names::RegionName;
use tombolo_federation::store::{Alarm, Member, Store};
use tombolo_federation::sync::follower::Following;
use tracing::{info, warn};

/// How often.
const EVERY: Duration = Duration::from_secs(30);
/// From here on somebody has to do something (DESIGN section 4).
const ALARM_PERCENT: u64 = 60;

/// The store as a control plane sees it.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StoreStatus {
    /// The newest revision that this process holds all of; 0 before it was read.
    pub(crate) position: u64,
    /// Why it is not followed just now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) problem: Option<String>,
    /// How often it turned out to be another than it was: restored, or lost.
    pub(crate) other_histories: u64,
    /// What was found the last time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) other_history: Option<String>,
    /// Records that this process holds and the store has lost, and that are not written back yet.
    pub(crate) lost: usize,
    /// Peers that have not said yet what it may have lost, and why; only where this process leads.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) asked: BTreeMap<RegionName, String>,
    /// Its servers; none for the embedded store.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) members: Vec<MemberStatus>,
    /// What an operator has to do something about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) alarms: Vec<String>,
}

/// One server of the store.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MemberStatus {
    pub(crate) endpoint: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<String>,
    /// It leads the store's own quorum.
    pub(crate) leader: bool,
    /// Of its quota.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) full_percent: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) problem: Option<String>,
}

impl StoreStatus {
    pub(crate) fn of(position: u64, following: &Following, members: &[Member]) -> Self {
        let lost = following.lost.owners.values().map(|lost| lost.keys.len()).sum();
        Self {
            position,
            problem: following.problem.clone(),
            other_histories: following.other_histories,
            other_history: following.other_history.clone(),
            lost,
            asked: BTreeMap::new(),
            members: members.iter().map(MemberStatus::of).collect(),
            alarms: members.iter().flat_map(alarms).collect(),
        }
    }
}

impl MemberStatus {
    fn of(member: &Member) -> Self {
        let state = member.state.as_ref().ok();
        Self {
            endpoint: member.endpoint.clone(),
            version: state.map(|state| state.version.clone()),
            leader: state.is_some_and(|state| state.leader),
            full_percent: state.map(tombolo_federation::store::MemberState::full_percent),
            problem: member.state.as_ref().err().map(ToString::to_string),
        }
    }
}

/// What is wrong with a server, and what to do.
fn alarms(member: &Member) -> Vec<String> {
    let endpoint = &member.endpoint;
    let Ok(state) = &member.state else {
        return vec![format!("{endpoint} does not answer: look after that etcd member")];
    };
    let told = state.alarms.iter().map(|alarm| match alarm {
        Alarm::NoSpace => format!(
            "{endpoint} takes no more writes, its quota is used up: compact and defragment it, or raise its quota, \
             then disarm the alarm"
        ),
        Alarm::Corrupt => format!("{endpoint} holds other data than its peers: replace that member"),
        Alarm::Other(words) => format!("{endpoint}: {words}"),
    });
    let percent = state.full_percent();
    let filling = (percent >= ALARM_PERCENT).then(|| {
        format!("{endpoint} has used {percent} % of its quota: defragment it, or raise its quota")
    });
    told.chain(filling).collect()
}

/// Asks for as long as it is run, and says what is new.
pub(crate) async fn watch(store: Arc<dyn Store>, members: watch::Sender<Vec<Member>>) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told: Vec<String> = Vec::new();
    loop {
        ticks.tick().await;
        let now = store.members().await;
        let alarms: Vec<String> = now.iter().flat_map(alarms).collect();
        for alarm in alarms.iter().filter(|alarm| !told.contains(alarm)) {
            warn!(alarm, "the region's store needs attention");
        }
        if alarms.is_empty() && !told.is_empty() {
            info!("the region's store is well again");
        }
        told = alarms;
        members.send_replace(now);
    }
}

#[cfg(test)]
mod tests {
    use tombolo_federation::store::{MemberState, StoreError};

    use super::*;

    fn check(size: u64, told: Vec<Alarm>, words: &[&str]) {
        let state = MemberState {
            version: "3.6.16".to_owned(),
            leader: true,
            db_size: size,
            db_in_use: 0,
            quota: 100,
            alarms: told,
        };
        let member = Member { endpoint: "https://e:2379".to_owned(), state: Ok(state) };
        let alarms = alarms(&member);
        assert_eq!(alarms.len(), words.len(), "{alarms:?}");
        for (alarm, words) in alarms.iter().zip(words) {
            assert!(alarm.contains("https://e:2379") && alarm.contains(words), "{alarm}");
        }
    }

    #[test]
    fn what_needs_attention_names_the_member_and_what_to_do() {
        check(59, vec![], &[]);
        check(60, vec![], &["60 % of its quota: defragment"]);
        check(100, vec![Alarm::NoSpace], &["takes no more writes", "100 %"]);
        check(1, vec![Alarm::Corrupt, Alarm::Other("x".into())], &["replace that member", "x"]);
        let gone = Err(StoreError::Unavailable("no answer".to_owned()));
        let member = Member { endpoint: "https://e:2379".to_owned(), state: gone };
        assert!(alarms(&member)[0].contains("does not answer"));
    }
}
