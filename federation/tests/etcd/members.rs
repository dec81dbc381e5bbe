//! Members that are not there, die, or freeze.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, tcp};
use tokio::task::JoinSet;
use tombolo_federation::store::etcd::EtcdConfig;
use tombolo_federation::store::{Op, StoreError, WatchEvent};
use tombolo_testbed::etcd::Options;

use crate::{
    LONG, commit, config, connect, connected, eventually, last_word, next, on_each, put, range,
    start,
};

#[tokio::test(flavor = "multi_thread")]
async fn without_etcd_requests_fail_and_name_the_endpoints() {
    // Bound and never listened on: nobody else gets the port.
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let silent = format!("http://{}", taken.local_addr().expect("an address"));
    let refused = "http://127.0.0.1:1".to_owned();
    let mut config = EtcdConfig::new([silent.clone(), refused.clone()]);
    config.request_timeout = Duration::from_secs(1);
    let store = connected(config).await;
    let since = Instant::now();
    let read = store.range(range("/", 1, None)).await.expect_err("nobody is there");
    let written = commit(&*store, vec![Op::put("/a", "1")]).await.expect_err("nobody is there");
    let watched = store.watch("/", 1).await.expect_err("nobody is there");
    for error in [read, written, watched] {
        let StoreError::Unavailable(why) = &error else { unreachable!("{error}") };
        assert!(why.contains(&silent) && why.contains(&refused), "{why}");
    }
    assert!(since.elapsed() < Duration::from_secs(10), "deadlines hold: {:?}", since.elapsed());
    let members = store.members().await;
    assert_eq!(members.len(), 2);
    assert!(members.iter().all(|member| member.state.is_err()), "{members:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused_when_connecting() {
    use tombolo_federation::store::etcd::Etcd;
    for endpoints in [vec![], vec!["etcd:2379"], vec!["https://etcd:2379"], vec!["http://"]] {
        let refused = Etcd::connect(EtcdConfig::new(endpoints.clone())).await;
        let error = refused.map(drop).expect_err("makes no sense");
        assert!(matches!(error, StoreError::Refused(_)), "{endpoints:?}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_go_on_when_a_member_is_killed() {
    on_each("kill-9", async |release, dir| {
        let mut etcd = start(release, dir, Options::members(3));
        let store = connect(&etcd).await;
        put(&*store, "/a", "0").await;
        for victim in 0..3 {
            let mut watch = store.watch("/", 1).await.expect("watches");
            etcd.kill(victim).expect("kills");
            // One transaction may have been under way; the election takes its time.
            eventually("a commit", async || {
                commit(&*store, vec![Op::put("/a", format!("{victim}"))]).await
            })
            .await;
            let page = store.range(range("/a", 1, None)).await.expect("reads");
            assert_eq!(page.entries[0].value, format!("{victim}"));
            let lease = store.grant_lease(Duration::from_secs(30)).await.expect("grants");
            store.keep_alive(lease).await.expect("keeps");
            store.revoke_lease(lease).await.expect("revokes");
            // The watch was on this member, and has ended; or it was not, and goes on.
            loop {
                match next(&mut watch).await {
                    Some(WatchEvent::Commit { events, .. })
                        if matches!(&events[0], tombolo_federation::store::Event::Put(entry)
                            if entry.value == format!("{victim}")) =>
                    {
                        break;
                    }
                    Some(WatchEvent::Commit { .. } | WatchEvent::Progress { .. }) => {}
                    Some(WatchEvent::Ended(StoreError::Unavailable(_))) => break,
                    other => unreachable!("{other:?}"),
                }
            }
            etcd.restart(victim).expect("comes back");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_go_on_in_time_and_watches_end_when_a_member_freezes() {
    on_each("sigstop", async |release, dir| {
        let mut etcd = start(release, dir, Options::members(3));
        let (leader, mut settings) = (etcd.leader().expect("leads"), config(&etcd));
        // The one that will freeze is asked first; its being the leader is another test.
        let victim = (leader + 1) % 3;
        settings.endpoints.rotate_left(victim);
        let (limit, stall) = (settings.request_timeout, settings.watch_stall);
        let store = connected(settings).await;
        put(&*store, "/a", "0").await;
        let mut watch = store.watch("/", 1).await.expect("watches");
        while !matches!(next(&mut watch).await, Some(WatchEvent::Commit { .. })) {}

        etcd.pause(victim).expect("stops");
        let frozen = Instant::now();
        store.range(range("/a", 1, None)).await.expect("another member answers");
        assert!(frozen.elapsed() < limit, "in time: {:?}", frozen.elapsed());
        let since = Instant::now();
        put(&*store, "/a", "1").await;
        store.watch("/", 1).await.expect("watches elsewhere");
        assert!(since.elapsed() < limit / 2, "nobody is stuck to it: {:?}", since.elapsed());
        let ended = last_word(&mut watch).await;
        assert!(matches!(ended, Some(WatchEvent::Ended(StoreError::Unavailable(_)))), "{ended:?}");
        let most = stall + limit + LONG / 10;
        assert!(frozen.elapsed() < most, "{:?}", frozen.elapsed());
        etcd.resume(victim).expect("goes on");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_after_a_pause_avoids_a_frozen_member() {
    on_each("sigstop-commit", async |release, dir| {
        let mut etcd = start(release, dir, Options::members(3));
        let (leader, mut settings) = (etcd.leader().expect("leads"), config(&etcd));
        let victim = (leader + 1) % 3;
        settings.endpoints.rotate_left(victim);
        let store = connected(settings).await;
        put(&*store, "/a", "0").await;
        etcd.pause(victim).expect("stops");
        // Long enough that the member's word is old.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        put(&*store, "/a", "1").await;
        etcd.resume(victim).expect("goes on");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_leader_is_followed() {
    on_each("sigstop-leader", async |release, dir| {
        let mut etcd = start(release, dir, Options::members(3));
        let leader = etcd.leader().expect("leads");
        let store = connect(&etcd).await;
        put(&*store, "/a", "0").await;
        etcd.pause(leader).expect("stops");
        eventually("a commit", async || commit(&*store, vec![Op::put("/a", "1")]).await).await;
        etcd.resume(leader).expect("goes on");
        let page = store.range(range("/a", 1, None)).await.expect("reads");
        assert_eq!(page.entries[0].value, "1");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_without_the_others_ends_its_watches_and_answers_nothing() {
    on_each("no-quorum", async |release, dir| {
        let mut etcd = start(release, dir, Options::members(3));
        let store = connect(&etcd).await;
        put(&*store, "/a", "0").await;
        let mut watch = store.watch("/", 1).await.expect("watches");
        etcd.kill(1).expect("kills");
        etcd.kill(2).expect("kills");
        let ended = last_word(&mut watch).await;
        assert!(matches!(ended, Some(WatchEvent::Ended(StoreError::Unavailable(_)))), "{ended:?}");
        let read = store.range(range("/a", 1, None)).await;
        assert!(matches!(read, Err(StoreError::Unavailable(_))), "no stale reads: {read:?}");
        etcd.start_all().expect("come back");
        eventually("a commit", async || commit(&*store, vec![Op::put("/a", "1")]).await).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_member_that_was_away_is_found_again() {
    on_each("restart", async |release, dir| {
        let mut etcd = start(release, dir, Options::default());
        let store = connect(&etcd).await;
        let before = put(&*store, "/a", "0").await;
        let mut watch = store.watch("/", before).await.expect("watches");
        etcd.kill(0).expect("kills");
        let ended = last_word(&mut watch).await;
        assert!(matches!(ended, Some(WatchEvent::Ended(StoreError::Unavailable(_)))), "{ended:?}");
        let gone = store.range(range("/a", 1, None)).await;
        assert!(matches!(gone, Err(StoreError::Unavailable(_))), "{gone:?}");
        etcd.restart(0).expect("comes back");
        let page = eventually("a read", async || store.range(range("/a", 1, None)).await).await;
        assert_eq!((page.revision, page.entries.len()), (before, 1));
        let mut watch = store.watch("/", before).await.expect("watches");
        let again = next(&mut watch).await;
        assert!(matches!(again, Some(WatchEvent::Commit { revision, .. }) if revision == before));
    })
    .await;
}

/// Passes connections on until `age` is raised: those that are older are then held and silent, as if
/// a firewall had forgotten them.
async fn forgetful(to: SocketAddr, age: Arc<AtomicUsize>, tasks: &mut JoinSet<()>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tasks.spawn(async move {
        let mut pipes = JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(to).await.expect("etcd is there");
            let ((up, client), (down, server)) = (client.into_split(), server.into_split());
            pipes.spawn(pipe(up, server, Arc::clone(&age)));
            pipes.spawn(pipe(down, client, Arc::clone(&age)));
        }
    });
    format!("http://{address}")
}

async fn pipe(mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf, age: Arc<AtomicUsize>) {
    let (born, mut buffer) = (age.load(Ordering::SeqCst), vec![0; 1 << 16]);
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if age.load(Ordering::SeqCst) > born {
            std::future::pending::<()>().await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_died_silently_is_replaced() {
    on_each("silent", async |release, dir| {
        let etcd = start(release, dir, Options::default());
        let (age, mut tasks) = (Arc::new(AtomicUsize::new(0)), JoinSet::new());
        let through = forgetful(etcd.addresses()[0], Arc::clone(&age), &mut tasks).await;
        let mut settings = config(&etcd);
        settings.endpoints = vec![through];
        settings.request_timeout = Duration::from_millis(500);
        let limit = settings.request_timeout;
        let store = connected(settings).await;
        put(&*store, "/a", "0").await;
        let mut watch = store.watch("/", 1).await.expect("watches");
        age.fetch_add(1, Ordering::SeqCst);
        let since = Instant::now();
        eventually("a read", async || store.range(range("/a", 1, None)).await).await;
        assert!(since.elapsed() < limit * 8, "{:?}", since.elapsed());
        put(&*store, "/a", "1").await;
        let ended = last_word(&mut watch).await;
        assert!(matches!(ended, Some(WatchEvent::Ended(StoreError::Unavailable(_)))), "{ended:?}");
    })
    .await;
}
