//! Members that hold different data.

use std::time::Duration;

use etcd_client::{AlarmAction, AlarmType, Client};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tombolo_federation::store::election::campaign;
use tombolo_federation::store::{Op, StoreError};
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
