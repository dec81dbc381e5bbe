//! A replica that follows a real etcd.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tombolo_federation::replica;
use tombolo_federation::store::{Op, Revision, Store, StoreError};
use tombolo_federation::sync::facts;
use tombolo_federation::sync::follower::{Following, follow};
use tombolo_federation::sync::history::ResumePoint;

use tombolo_testbed::etcd::Options;
use tombolo_testbed::proxy::Proxy;

use crate::{LONG, commit, config, connect, connected, eventually, on_each, put, range, start};

/// Operators compact at the revision that `endpoint status` shows, which nobody can watch then.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_compacted_up_to_its_newest_revision_is_read_once() {
    on_each("follower-compacted", async |release, dir| {
        let etcd = start(release, dir, Options::default());
        let store = connect(&etcd).await;
        put(&*store, &facts::mark_key(), "drawn before it is compacted").await;
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

/// Follows until the store's newest commit is in the replica and can be gone on from; what was seen.
async fn followed(
    store: &Arc<dyn Store>,
    writer: &Arc<replica::ReplicaWriter>,
    resume: Option<ResumePoint>,
) -> Following {
    let newest = store.range(range("/", 1, None)).await.expect("reads").revision;
    followed_to(newest, store, writer, resume).await
}

/// The same up to `newest`, without a question of its own to the store.
async fn followed_to(
    newest: Revision,
    store: &Arc<dyn Store>,
    writer: &Arc<replica::ReplicaWriter>,
    resume: Option<ResumePoint>,
) -> Following {
    let following = watch::Sender::<Following>::default();
    let mut seen = following.subscribe();
    let mut tasks = JoinSet::new();
    tasks.spawn(follow(Arc::clone(store), Arc::clone(writer), resume, following));
    let mut replicas = writer.subscribe();
    let caught_up = async {
        replicas.wait_for(|replica| replica.position >= newest).await.expect("it runs");
        loop {
            // Positions are not announced there.
            let now = seen.borrow_and_update().clone();
            if now.resume.as_ref().is_some_and(|point| point.revision >= newest) {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let now = tokio::time::timeout(LONG, caught_up).await.expect("it catches up");
    tasks.shutdown().await;
    now
}

/// The snapshot has the newest of our keys; what was written past it is written again as it was,
/// behind one commit that is another.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_etcd_that_is_written_the_same_again_is_another() {
    on_each("follower-restored", async |release, dir| {
        let mut etcd = start(release, dir, Options::default());
        let store = connect(&etcd).await;
        let (writer, _replicas) = replica::channel();
        let writer = Arc::new(writer);
        let mark = async |drawn: &str| put(&*store, &facts::mark_key(), drawn).await;
        let (ours, foreign) = ("/tombolo/local/v1/x", "/somebody/else");
        put(&*store, foreign, "before").await;
        mark("drawn before the snapshot").await;
        put(&*store, foreign, "before").await;
        let snapshot = dir.join("saved.db");
        etcd.snapshot(0, &snapshot).expect("saves");
        let again = async |first: &str| {
            put(&*store, first, "1").await;
            for n in 0..20 {
                put(&*store, ours, &n.to_string()).await;
            }
            put(&*store, foreign, "after").await;
        };
        again(foreign).await;
        let before = followed(&store, &writer, None).await;
        assert_eq!((before.listings, before.other_histories), (1, 0));
        let same = followed(&store, &writer, before.resume.clone()).await;
        assert_eq!((same.listings, same.other_histories), (0, 0), "it goes on");

        etcd.restore(&snapshot, &[]).expect("restores");
        eventually("a read", async || store.range(range("/", 1, None)).await).await;
        again(ours).await;
        let after = followed(&store, &writer, before.resume).await;
        assert_eq!((after.listings, after.other_histories), (1, 1), "{:?}", after.other_history);
    })
    .await;
}

/// The member's own newest revision is before the point, and the question is the first that it
/// hears of when it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_lags_is_not_taken_for_another_history() {
    on_each("follower-lags", async |release, dir| {
        let mut etcd = start(release, dir, Options::members(3));
        let victim = (etcd.leader().expect("leads") + 1) % 3;
        let to_victim = Proxy::start(etcd.addresses()[victim]).expect("a proxy");
        let (mut others, mut through) = (config(&etcd), config(&etcd));
        others.endpoints.remove(victim);
        through.endpoints = vec![format!("http://{}", to_victim.address())];
        through.request_timeout = LONG;
        let (store, lagging) = (connected(others).await, connected(through).await);
        put(&*store, &facts::mark_key(), "drawn before it stops").await;
        // So that it is connected.
        lagging.range(range("/", 1, None)).await.expect("reads");

        etcd.pause(victim).expect("stops");
        for n in 0..50 {
            put(&*store, "/tombolo/local/v1/x", &n.to_string()).await;
        }
        let writer = Arc::new(replica::channel().0);
        let before = followed(&store, &writer, None).await;
        let (point, asked) = (before.resume.expect("there is a mark"), to_victim.counts().sent);
        let resumed =
            async { followed_to(point.revision, &lagging, &writer, Some(point.clone())).await };
        let goes_on = async {
            eventually("the question is there", async || {
                let there = to_victim.counts().sent > asked;
                there.then_some(()).ok_or(StoreError::Unavailable("it is under way".to_owned()))
            })
            .await;
            etcd.resume(victim).expect("goes on");
            put(&*store, "/tombolo/local/v1/x", "afterwards").await;
        };
        let (after, ()) = tokio::join!(resumed, goes_on);
        assert_eq!((after.listings, after.other_histories), (0, 0), "{:?}", after.other_history);
        assert_eq!(after.problem, None);
    })
    .await;
}
