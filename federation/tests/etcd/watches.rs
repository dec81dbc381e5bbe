//! Watches of much, of what is forgotten, and for readers that do not read.

use std::time::{Duration, Instant};

use tombolo_federation::store::{Event, Op, Store, StoreError, WatchEvent};
use tombolo_testbed::etcd::Options;

use crate::{LONG, commit, config, connect, connected, last_word, next, on_each, put, start};

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_8_mib_arrives_whole() {
    on_each("burst", async |release, dir| {
        let etcd = start(release, dir, Options::default());
        let store = connect(&etcd).await;
        let first = put(&*store, "/w/start", "").await;
        let mut live = store.watch("/w/", first).await.expect("watches");
        // 8 commits of nearly 1 MiB, each of 100 keys.
        for n in 0..8 {
            let ops = (0..100).map(|key| Op::put(format!("/w/{key:03}"), "v".repeat(10_000 + n)));
            commit(&*store, ops.collect()).await.expect("commits");
        }
        let mut replayed = store.watch("/w/", first).await.expect("watches");
        for watch in [&mut live, &mut replayed] {
            let mut bytes = 0;
            for revision in first + 1..=first + 8 {
                let events = commit_at(watch, revision).await;
                assert_eq!(events.len(), 100, "whole");
                assert!(events.is_sorted_by(|a, b| a.key() < b.key()));
                bytes += events.iter().map(size).sum::<usize>();
            }
            assert!(bytes > 7 << 20, "{bytes}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_commit_of_many_fragments_arrives_whole() {
    on_each("fragments", async |release, dir| {
        // A lease that many large keys hang on ends in one commit; its deletes are small. So it is
        // somebody's large transaction, with etcd's limit raised.
        let flags = vec!["--max-request-bytes=10485760".to_owned()];
        let etcd = start(release, dir, Options { flags, ..Options::default() });
        let store = connect(&etcd).await;
        let first = put(&*store, "/w/start", "").await;
        let mut client =
            etcd_client::Client::connect(etcd.endpoints(), None).await.expect("connects");
        let ops: Vec<_> = (0..100)
            .map(|n| etcd_client::TxnOp::put(format!("/w/{n:03}"), "v".repeat(80_000), None))
            .collect();
        let mut live = store.watch("/w/", first).await.expect("watches");
        client.txn(etcd_client::Txn::new().and_then(ops)).await.expect("commits");
        let mut replayed = store.watch("/w/", first).await.expect("watches");
        for watch in [&mut live, &mut replayed] {
            let events = commit_at(watch, first + 1).await;
            assert_eq!(events.len(), 100);
            assert!(events.iter().map(size).sum::<usize>() > 7 << 20);
        }
    })
    .await;
}

fn size(event: &Event) -> usize {
    match event {
        Event::Put(entry) => entry.value.len(),
        Event::Delete { .. } => 0,
    }
}

/// Skips what is before.
async fn commit_at(watch: &mut tombolo_federation::store::Watch, wanted: u64) -> Vec<Event> {
    loop {
        match next(watch).await {
            Some(WatchEvent::Commit { revision, events }) if revision == wanted => return events,
            Some(WatchEvent::Commit { revision, .. } | WatchEvent::Progress { revision }) => {
                assert!(revision < wanted, "{wanted} was left out, here is {revision}");
            }
            other => unreachable!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_behind_a_compaction_is_told() {
    on_each("compacted", async |release, dir| {
        let etcd = start(release, dir, Options::default());
        let store = connect(&etcd).await;
        let first = put(&*store, "/w", "1").await;
        let second = put(&*store, "/w", "2").await;
        let third = put(&*store, "/w", "3").await;
        store.compact(third).await.expect("compacts");
        for from in [0, 1, first, second] {
            let mut watch = store.watch("/w", from).await.expect("watches");
            let told = next(&mut watch).await;
            assert_eq!(told, Some(WatchEvent::Compacted { oldest: third }), "from {from}");
            assert_eq!(next(&mut watch).await, None);
        }
        let mut watch = store.watch("/w", third).await.expect("watches");
        assert_eq!(commit_at(&mut watch, third).await.len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn quiet_watches_tell_progress_and_never_before_the_events() {
    on_each("progress", async |release, dir| {
        let etcd = start(release, dir, Options::default());
        let store = connect(&etcd).await;
        let start = put(&*store, "/w/0", "").await;
        // Started far back again and again while commits are made: where progress overtook events,
        // a commit would be missing before the progress that covers it.
        let mut last = start;
        for round in 0..10_u64 {
            for n in 0..60 {
                let key = if n % 3 == 0 { "/w/x" } else { "/elsewhere" };
                last = put(&*store, key, &n.to_string()).await;
            }
            let mut watch = store.watch("/w/", start).await.expect("watches");
            let (mut seen, mut told) = (0, 0);
            while told < last {
                match next(&mut watch).await {
                    Some(WatchEvent::Commit { revision, .. }) => {
                        assert!(revision > told, "{revision} after {told}");
                        (seen, told) = (seen + 1, revision);
                    }
                    Some(WatchEvent::Progress { revision }) => {
                        assert!(revision > told, "{revision} after {told}");
                        told = revision;
                    }
                    other => unreachable!("{other:?}"),
                }
            }
            assert_eq!(seen, 1 + (round + 1) * 20, "all before the progress");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_watch_of_the_future_outlives_the_stall_limit() {
    on_each("quiet", async |release, dir| {
        let etcd = start(release, dir, Options::default());
        let mut settings = config(&etcd);
        settings.watch_stall = Duration::from_millis(300);
        let store = connected(settings).await;
        let now = put(&*store, "/w", "0").await;
        let mut next_one = store.watch("/w", now + 1).await.expect("watches");
        let mut later = store.watch("/w", now + 3).await.expect("watches");
        tokio::time::sleep(Duration::from_secs(2)).await;
        for n in 1..=3 {
            put(&*store, "/w", &n.to_string()).await;
        }
        assert_eq!(commit_at(&mut next_one, now + 1).await.len(), 1);
        assert_eq!(commit_at(&mut later, now + 3).await.len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_does_not_read_loses_its_watch_and_can_resume() {
    on_each("slow-reader", async |release, dir| {
        let etcd = start(release, dir, Options::default());
        let mut settings = config(&etcd);
        settings.slow_reader = Duration::from_secs(1);
        let store = connected(settings).await;
        let first = put(&*store, "/w", "").await;
        let mut slow = store.watch("/w", first).await.expect("watches");
        let mut last = first;
        for n in 0..300 {
            last = put(&*store, "/w", &n.to_string()).await;
        }
        let since = Instant::now();
        while !slow.events.is_closed() {
            assert!(since.elapsed() < LONG, "it is given up");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut told = first - 1;
        let mut watches = 1;
        while told < last {
            match next(&mut slow).await {
                Some(WatchEvent::Commit { revision, .. }) => {
                    assert_eq!(revision, told + 1, "every commit, once");
                    told = revision;
                }
                Some(WatchEvent::Progress { revision }) => assert!(revision <= told),
                Some(WatchEvent::Ended(StoreError::Unavailable(_))) | None => {
                    watches += 1;
                    slow = store.watch("/w", told + 1).await.expect("watches");
                }
                other => unreachable!("{other:?}"),
            }
            if watches == 1 {
                assert!(told - first <= 100, "no more than the queue is kept");
            }
        }
        assert!(watches > 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_is_not_given_half_of_what_was_compacted() {
    on_each("slow-compacted", async |release, dir| {
        let etcd = start(release, dir, Options::default());
        let store = connect(&etcd).await;
        let first = put(&*store, "/w/start", "").await;
        let mut slow = store.watch("/w/", first).await.expect("watches");
        // Far more than queue, connection and etcd's channel hold.
        let value = "v".repeat(100_000);
        let mut last = first;
        for n in 0..600 {
            let key = format!("/w/{}", n % 5);
            last = match n % 2 {
                0 => put(&*store, &key, &value).await,
                _ => commit(
                    &*store,
                    vec![
                        Op::put(&*key, value.clone()),
                        Op::delete("/w/none"),
                        Op::put("/w/both", ""),
                    ],
                )
                .await
                .expect("commits"),
            };
        }
        store.compact(last - 100).await.expect("compacts");
        let mut told = first - 1;
        let oldest = loop {
            match next(&mut slow).await {
                Some(WatchEvent::Commit { revision, events }) => {
                    assert_eq!(revision, told + 1, "every commit, once");
                    let keys = if revision == first || (revision - first) % 2 == 1 { 1 } else { 2 };
                    assert_eq!(events.len(), keys, "whole: {revision} from {first}");
                    told = revision;
                    if told == last {
                        break None;
                    }
                }
                Some(WatchEvent::Progress { revision }) => assert!(revision <= told),
                Some(WatchEvent::Compacted { oldest }) => break Some(oldest),
                other => unreachable!("{other:?}"),
            }
        };
        if let Some(oldest) = oldest {
            assert!(told + 1 < oldest && oldest == last - 100, "{told} {oldest}");
            assert_eq!(last_word(&mut slow).await, None);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_store_ends_its_watches() {
    on_each("drop", async |release, dir| {
        let etcd = start(release, dir, Options::default());
        let store = connect(&etcd).await;
        let now = put(&*store, "/w", "").await;
        let mut watch = store.watch("/w", now + 1).await.expect("watches");
        drop::<std::sync::Arc<dyn Store>>(store);
        assert_eq!(last_word(&mut watch).await, None);
    })
    .await;
}
