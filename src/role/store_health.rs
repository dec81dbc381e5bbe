//! How the region's store is, asked of it every half minute.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tombolo_federation::names::RegionName;
use tombolo_federation::store::{Alarm, Complaint, Member, MemberState, Store};
use tombolo_federation::sync::compactor::Compaction;
use tombolo_federation::sync::follower::Following;
use tracing::{info, warn};

/// How often.
const EVERY: Duration = Duration::from_secs(30);
/// From here on somebody has to do something.
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
    /// Keys of it that are no records and left alone, up to 20; `problems` names them.
    #[serde(default)]
    pub(crate) strays: usize,
    /// Peers that have not said yet what it may have lost, and why; only where this process leads.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) asked: BTreeMap<RegionName, String>,
    /// Its servers; none for the embedded store.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) members: Vec<MemberStatus>,
    /// Since history was let go the last time; absent where another replica leads, which does it, and
    /// before the first time, which no process comes to in its first hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) compacted_age_seconds: Option<f64>,
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
    /// Bytes at which it refuses to write; nothing if that is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) quota: Option<u64>,
    /// Of its quota.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) full_percent: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) problem: Option<String>,
}

impl StoreStatus {
    pub(crate) fn of(
        position: u64,
        following: &Following,
        members: &[Member],
        compaction: &Compaction,
    ) -> Self {
        let lost = following.lost.owners.values().map(|lost| lost.keys.len()).sum();
        Self {
            position,
            problem: following.problem.clone(),
            other_histories: following.other_histories,
            other_history: following.other_history.clone(),
            lost,
            strays: following.strays.len(),
            asked: BTreeMap::new(),
            members: members.iter().map(MemberStatus::of).collect(),
            compacted_age_seconds: compaction.last.map(|last| last.elapsed().as_secs_f64().floor()),
            alarms: alarms(members).into_iter().chain(growing(compaction)).collect(),
        }
    }
}

/// What is to be done where history does not go.
fn growing(compaction: &Compaction) -> Option<String> {
    let why = compaction.problem.as_ref()?;
    Some(format!(
        "history cannot be compacted and grows: {why}; where etcd asks for a role, compacting needs root"
    ))
}

impl MemberStatus {
    fn of(member: &Member) -> Self {
        let state = member.state.as_ref().ok();
        Self {
            endpoint: member.endpoint.clone(),
            version: state.map(|state| state.version.clone()),
            leader: state.is_some_and(|state| state.leader),
            quota: state.and_then(|state| state.quota),
            full_percent: state.and_then(MemberState::full_percent),
            problem: member.state.as_ref().err().map(ToString::to_string),
        }
    }

    /// What nobody can say of it, and who could.
    pub(crate) fn unknown(&self) -> Option<String> {
        let version = self.version.as_ref().filter(|_| self.quota.is_none())?;
        let endpoint = &self.endpoint;
        Some(format!(
            "{endpoint}: quota unknown, etcd {version} does not say it: set store.etcd.quota"
        ))
    }
}

/// What is wrong with the servers, and what to do; the same thing once, however many tell of it.
fn alarms(members: &[Member]) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for Member { endpoint, state } in members {
        let told = match state {
            Err(_) => vec![format!("{endpoint} does not answer: look after that etcd member")],
            Ok(state) => {
                let told = state.alarms.iter().map(|complaint| alarm(members, endpoint, complaint));
                told.chain(filling(endpoint, state)).collect()
            }
        };
        for told in told {
            if !words.contains(&told) {
                words.push(told);
            }
        }
    }
    words
}

/// A complaint is of the server that it names, not of the one that tells of it.
fn alarm(members: &[Member], told_by: &str, Complaint { of, alarm }: &Complaint) -> String {
    let who = name(members, *of);
    match alarm {
        Alarm::NoSpace => format!(
            "{who} takes no more writes, its quota is used up: {}, then disarm the alarm",
            remedy(state_of(members, *of).map(|(_, state)| state))
        ),
        Alarm::Corrupt if *of == 0 => {
            "the etcd members hold different data: find the one that differs, and replace it"
                .to_owned()
        }
        Alarm::Corrupt => format!("{who} holds other data than its peers: replace that member"),
        Alarm::Other(words) => format!("{told_by}: {words}"),
    }
}

fn name(members: &[Member], id: u64) -> String {
    match state_of(members, id) {
        Some((endpoint, _)) => endpoint.to_owned(),
        None => format!("the etcd member {id:x}, which does not answer here,"),
    }
}

fn state_of(members: &[Member], id: u64) -> Option<(&str, &MemberState)> {
    let mut answering = members.iter().filter_map(|member| {
        let state = member.state.as_ref().ok()?;
        Some((member.endpoint.as_str(), state))
    });
    answering.find(|(_, state)| state.id == id)
}

fn filling(endpoint: &str, state: &MemberState) -> Option<String> {
    let percent = state.full_percent().filter(|percent| *percent >= ALARM_PERCENT)?;
    Some(format!("{endpoint} has used {percent} % of its quota: {}", remedy(Some(state))))
}

/// Defragmenting makes the file as small as what is in use.
fn remedy(state: Option<&MemberState>) -> String {
    match state.and_then(MemberState::in_use_percent) {
        None => "defragment it, or raise its quota".to_owned(),
        Some(in_use) if in_use < ALARM_PERCENT => {
            format!("defragment it, {in_use} % are in use")
        }
        Some(in_use) => {
            format!("raise it, {in_use} % are in use, and defragmenting does not change that")
        }
    }
}

/// Asks for as long as it is run, and says what is new.
pub(crate) async fn watch(store: Arc<dyn Store>, members: watch::Sender<Vec<Member>>) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told: Vec<String> = Vec::new();
    loop {
        ticks.tick().await;
        let now = store.members().await;
        let alarms = alarms(&now);
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
    use tombolo_federation::store::StoreError;

    use super::*;

    /// Number `id` of the members, which says of members what `told` has.
    fn member(id: u64, (size, in_use): (u64, u64), told: Vec<(u64, Alarm)>) -> Member {
        let complaint = |(of, alarm)| Complaint { of, alarm };
        let state = MemberState {
            id,
            version: "3.6.16".to_owned(),
            leader: id == 1,
            db_size: size,
            db_in_use: in_use,
            quota: Some(100),
            alarms: told.into_iter().map(complaint).collect(),
        };
        Member { endpoint: format!("https://e{id}:2379"), state: Ok(state) }
    }

    fn silent(id: u64) -> Member {
        let state = Err(StoreError::Unavailable("no answer".to_owned()));
        Member { state, ..member(id, (0, 0), vec![]) }
    }

    fn check(members: &[Member], words: &[&[&str]]) {
        let alarms = alarms(members);
        assert_eq!(alarms.len(), words.len(), "{alarms:?}");
        for (alarm, words) in alarms.iter().zip(words) {
            assert!(words.iter().all(|word| alarm.contains(word)), "{alarm}");
        }
    }

    #[test]
    fn what_needs_attention_names_the_member_and_what_to_do() {
        check(&[member(1, (59, 59), vec![])], &[]);
        let spare = ["https://e1:2379", "60 % of its quota: defragment it, 59 % are in use"];
        check(&[member(1, (60, 59), vec![])], &[&spare]);
        let used = ["90 % of its quota: raise it, 60 % are in use"];
        check(&[member(1, (90, 60), vec![])], &[&used]);
        let full = |in_use| member(1, (100, in_use), vec![(1, Alarm::NoSpace)]);
        let spare =
            ["https://e1:2379", "its quota is used up: defragment it, 9 % are in use, then"];
        check(&[full(9)], &[&spare, &["100 %"]]);
        let used =
            ["raise it, 99 % are in use, and defragmenting does not change that, then disarm"];
        check(&[full(99)], &[&used, &["100 %"]]);
        let corrupt = vec![(1, Alarm::Corrupt), (1, Alarm::Other("x".into()))];
        let other = member(1, (1, 1), corrupt);
        check(&[other], &[&["replace that member"], &["https://e1:2379", "x"]]);
        check(&[silent(1)], &[&["https://e1:2379", "does not answer"]]);
    }

    /// Each member tells of the alarms of all.
    #[test]
    fn an_alarm_is_said_once_and_of_the_member_that_raised_it() {
        let told = |id| member(id, (1, 1), vec![(0xbad, Alarm::Corrupt), (2, Alarm::NoSpace)]);
        let corrupt = ["etcd member bad, which does not answer", "replace"];
        let full = ["https://e2:2379 takes no more writes"];
        let gone = ["https://e3:2379 does not answer"];
        check(&[told(1), told(2), silent(3)], &[&corrupt, &full, &gone]);
        let unclear = |id| member(id, (1, 1), vec![(0, Alarm::Corrupt)]);
        check(&[unclear(1), unclear(2)], &[&["find the one that differs"]]);
    }

    #[test]
    fn a_quota_that_nobody_says_is_unknown_and_not_guessed() {
        let mut old = member(1, (60, 60), vec![]);
        let told = MemberStatus::of(&old);
        assert_eq!((told.quota, told.full_percent, told.unknown()), (Some(100), Some(60), None));
        if let Ok(state) = &mut old.state {
            (state.quota, state.version) = (None, "3.4.23".to_owned());
        }
        check(&[old.clone()], &[]);
        let unknown = MemberStatus::of(&old).unknown().expect("it is told");
        assert!(unknown.contains("quota unknown") && unknown.contains("store.etcd.quota"));
        assert_eq!(MemberStatus::of(&silent(1)).unknown(), None);
    }

    #[test]
    fn history_that_cannot_be_let_go_is_an_alarm() {
        let of = |compaction| StoreStatus::of(7, &Following::default(), &[], &compaction);
        let well = of(Compaction { last: Some(tokio::time::Instant::now()), problem: None });
        assert_eq!((well.alarms.len(), well.compacted_age_seconds), (0, Some(0.0)));
        let refused = of(Compaction { last: None, problem: Some("permission denied".to_owned()) });
        assert!(refused.alarms[0].contains("grows: permission denied"), "{:?}", refused.alarms);
        assert_eq!(refused.compacted_age_seconds, None);
    }
}
