//! What members complain of.

use std::time::Duration;

use etcd_client::{AlarmAction, AlarmOptions, AlarmType, Client};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tombolo_federation::store::election::campaign;
use tombolo_federation::store::{Alarm, Complaint, Op, StoreError};
use tombolo_testbed::etcd::Options;

use crate::{LONG, commit, connect, on_each, start};

/// What a candidate meets first: on damage its process would end, and with it what it serves.
#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_etcd_is_waited_for_until_it_is_mended() {
    on_each("corrupt", async |release, dir| {
        let etcd = start(release, dir, Options::default());
        let store = connect(&etcd).await;
        let mut client = Client::connect(etcd.endpoints(), None).await.expect("connects");
        let raised = client.alarm(AlarmAction::Activate, AlarmType::Corrupt, None).await;
        raised.expect("raises the alarm");
        let refused = commit(&*store, vec![Op::put("/a", "1")]).await;
        let Err(StoreError::Unavailable(why)) = refused else { unreachable!("{refused:?}") };
        assert!(why.contains("CORRUPT") && why.contains("disarm"), "{why}");

        let mut tasks = JoinSet::new();
        let ttl = Duration::from_secs(2);
        tasks.spawn(async move { campaign(store, "/leader", "me", ttl).await });
        let early = timeout(ttl, tasks.join_next()).await;
        assert!(early.is_err(), "it waits: {early:?}");
        etcd.ctl(&["alarm", "disarm"]).expect("disarms");
        let won = timeout(LONG, tasks.join_next()).await.expect("in time").expect("it runs");
        won.expect("does not panic").expect("leads").resign().await;
    })
    .await;
}

/// Those that answer tell of it, and are not taken for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_unwell_and_does_not_answer_is_named_by_the_others() {
    on_each("unwell", async |release, dir| {
        let mut etcd = start(release, dir, Options::members(3));
        let unwell = etcd.status(2).expect("answers").member;
        let mut client = Client::connect(etcd.endpoints(), None).await.expect("connects");
        let mut options = AlarmOptions::new();
        options.with_member(unwell);
        let raised = client.alarm(AlarmAction::Activate, AlarmType::Nospace, Some(options)).await;
        raised.expect("raises the alarm");
        etcd.kill(2).expect("kills");
        let told = connect(&etcd).await.members().await;
        assert!(told[2].state.is_err(), "{told:?}");
        for member in &told[..2] {
            let state = member.state.as_ref().expect("answers");
            let complaint = Complaint { of: unwell, alarm: Alarm::NoSpace };
            assert!(state.alarms.contains(&complaint) && state.id != unwell, "{state:?}");
            let others = state.alarms.iter().filter(|complaint| complaint.of == state.id);
            let others: Vec<_> =
                others.filter(|complaint| !matches!(complaint.alarm, Alarm::Other(_))).collect();
            assert!(others.is_empty(), "{others:?}");
        }
    })
    .await;
}
