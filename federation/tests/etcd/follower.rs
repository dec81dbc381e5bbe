//! A replica that follows a real etcd.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tombolo_federation::replica;
use tombolo_federation::store::Op;
use tombolo_federation::sync::follower::{Following, follow};
use tombolo_testbed::etcd::Options;

use crate::{commit, connect, on_each, put, start};

/// Operators compact at the revision that `endpoint status` shows, which nobody can watch then.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_compacted_up_to_its_newest_revision_is_read_once() {
    on_each("follower-compacted", async |release, dir| {
        let etcd = start(release, dir, Options::default());
        let store = connect(&etcd).await;
        let newest = put(&*store, "/tombolo/local/v1/x", "1").await;
        etcd.ctl(&["compact", &newest.to_string()]).expect("compacts");
        let (writer, mut replicas) = replica::channel();
        let following = watch::Sender::<Following>::default();
        let (seen, store_followed) = (following.subscribe(), Arc::clone(&store));
        let mut tasks = JoinSet::new();
        tasks.spawn(follow(store_followed, Arc::new(writer), None, following));
        tokio::time::sleep(Duration::from_secs(3)).await;
        let op = Op::put("/tombolo/local/v1/x", "2");
        let next = commit(&*store, vec![op]).await.expect("commits");
        let caught_up = replicas.wait_for(|replica| replica.position >= next);
        tokio::time::timeout(Duration::from_secs(30), caught_up)
            .await
            .expect("it is seen")
            .expect("it runs");
        assert_eq!(seen.borrow().listings, 1);
    })
    .await;
}
