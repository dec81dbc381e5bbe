//! Reads of much, of the past, and among keys that are not ours.

use tombolo_federation::store::{
    Commit, Event, Guard, Op, Range, Store, StoreError, Txn, WatchEvent, list, read, split,
};
use tombolo_testbed::etcd::Options;

use crate::{commit, connect, next, on_each, put, range, start};

#[tokio::test(flavor = "multi_thread")]
async fn twenty_thousand_keys_are_listed_at_one_revision_while_being_written() {
    on_each("pages", async |release, dir| {
        let etcd = start(release, dir, Options::default());
        let store = connect(&etcd).await;
        let ops = (0..20_000).map(|n| Op::put(format!("/k/{n:05}"), "old"));
        for txn in split(ops).expect("fits") {
            store.commit(txn).await.expect("commits");
        }
        let writer = std::sync::Arc::clone(&store);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move {
            for n in 0.. {
                let (change, delete) = (n * 7 % 20_000, (n * 13 + 1) % 20_000);
                let ops = vec![
                    Op::put(format!("/k/{change:05}"), "new"),
                    Op::put(format!("/k/{change:05}+"), "new"),
                ];
                commit(&*writer, ops).await.expect("commits");
                commit(&*writer, vec![Op::delete(format!("/k/{delete:05}"))]).await.expect("does");
            }
        });
        let before = store.range(range("/k/", 1, None)).await.expect("reads").revision;
        let (entries, revision) = list(&*store, "/k/").await.expect("lists");
        let after = store.range(range("/k/", 1, None)).await.expect("reads").revision;
        assert!(before <= revision && revision < after, "{before} {revision} {after}");
        tasks.shutdown().await;
        let keys = entries.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>();
        assert!(keys.is_sorted_by(|a, b| a < b), "each once, in order");
        assert!(entries.iter().all(|entry| entry.mod_revision <= revision));
        // The very state of that revision: one large page agrees.
        let page = store.range(range("/k/", 50_000, Some(revision))).await.expect("reads");
        assert_eq!(page.entries, entries);
        assert!(entries.len() > 15_000, "{}", entries.len());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_beyond_a_message_is_cut() {
    on_each("large-pages", async |release, dir| {
        let etcd = start(release, dir, Options::default());
        let store = connect(&etcd).await;
        let value = "v".repeat(1_000_000);
        for n in 0..40 {
            put(&*store, &format!("/large/{n:02}"), &value).await;
        }
        let (entries, _) = list(&*store, "/large/").await.expect("lists");
        assert_eq!(entries.len(), 40);
        assert!(entries.iter().all(|entry| entry.value.len() == value.len()));
        let first = store.range(range("/large/", 1000, None)).await.expect("reads");
        assert!(first.more && !first.entries.is_empty() && first.entries.len() < 40);
    })
    .await;
}

/// Under `/f/`: one key of ours, one that is no text, and so on.
fn foreign(etcd: &tombolo_testbed::etcd::Etcd) {
    for n in 0..30_u8 {
        let key = [b"/f/".as_slice(), &[0xff, n + 1]].concat();
        let key = std::os::unix::ffi::OsStringExt::from_vec(key);
        raw_put(etcd, key);
    }
}

/// etcdctl takes its arguments as bytes; the testbed's own door wants text.
fn raw_put(etcd: &tombolo_testbed::etcd::Etcd, key: std::ffi::OsString) {
    let ctl = tombolo_testbed::Tool::EtcdCtl.path().expect("etcdctl");
    let mut command = std::process::Command::new(ctl);
    command.arg(format!("--endpoints={}", etcd.endpoints().join(","))).arg("put").arg(key).arg("x");
    let output = command.output().expect("runs");
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_binary_keys_hide_nothing() {
    on_each("foreign", async |release, dir| {
        if let Err(missing) = tombolo_testbed::Tool::EtcdCtl.path() {
            return tombolo_testbed::skip("etcd::foreign", missing);
        }
        let etcd = start(release, dir, Options::default());
        let store = connect(&etcd).await;
        let first = put(&*store, "/f/a", "1").await;
        foreign(&etcd);
        put(&*store, "/f/\u{10ffff}", "2").await;
        let last = put(&*store, "/g", "3").await;
        for limit in [1, 2, 3, 1000] {
            let mut seen = Vec::new();
            let mut wanted = range("/", limit, None);
            loop {
                let page = store.range(wanted.clone()).await.expect("reads");
                assert!(!page.entries.is_empty() || !page.more, "a page goes on");
                seen.extend(page.entries.iter().map(|entry| entry.key.clone()));
                if !page.more {
                    break;
                }
                wanted =
                    Range { after: seen.last().cloned(), revision: Some(page.revision), ..wanted };
            }
            assert_eq!(seen, ["/f/a", "/f/\u{10ffff}", "/g"], "limit {limit}");
        }
        let mut watch = store.watch("/f/", first).await.expect("watches");
        let mut seen = Vec::new();
        loop {
            match next(&mut watch).await {
                Some(WatchEvent::Commit { events, .. }) => {
                    seen.extend(events.iter().map(|event: &Event| event.key().to_owned()));
                }
                Some(WatchEvent::Progress { revision }) if revision >= last => break,
                Some(WatchEvent::Progress { .. }) => {}
                other => unreachable!("{other:?}"),
            }
        }
        assert_eq!(seen, ["/f/a", "/f/\u{10ffff}"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_past_and_the_future_are_told_precisely() {
    on_each("history", async |release, dir| {
        let etcd = start(release, dir, Options::default());
        let store = connect(&etcd).await;
        for revision in [0, 1] {
            let page = store.range(range("/", 10, Some(revision))).await.expect("the empty store");
            assert_eq!((page.entries.len(), page.more, page.revision), (0, false, revision));
        }
        let first = put(&*store, "/a", "1").await;
        let second = put(&*store, "/a", "2").await;
        let third = put(&*store, "/a", "3").await;
        for wanted in [third + 1, u64::MAX] {
            let ahead = store.range(range("/a", 1, Some(wanted))).await;
            assert_eq!(ahead, Err(StoreError::Future { wanted, current: third }));
        }
        // Somebody else's compaction, after etcd's own reading.
        etcd.ctl(&["compaction", &second.to_string()]).expect("compacts");
        for wanted in [0, 1, first, second] {
            let gone = store.range(range("/a", 1, Some(wanted))).await;
            assert_eq!(gone, Err(StoreError::Compacted { wanted, oldest: third }));
        }
        let page = store.range(range("/a", 1, Some(third))).await.expect("reads");
        assert_eq!(page.entries[0].value, "3");
        let none = Range { after: Some("/b".to_owned()), ..range("/a", 1, None) };
        let page = store.range(none).await.expect("reads");
        assert_eq!((page.entries.len(), page.more, page.revision), (0, false, third));
        let absent = store.commit(Txn {
            guards: vec![Guard::ModRevision("/a".to_owned(), u64::MAX)],
            ops: vec![Op::put("/a", "4")],
        });
        assert_eq!(absent.await, Ok(Commit::GuardFailed));
        assert_eq!(read(&*store, "/a").await.expect("reads").expect("is there").value, "3");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_lags_does_not_answer_guards_from_its_own_state() {
    on_each("lagging-guards", async |release, dir| {
        let etcd = start(release, dir, Options::members(3));
        let stores: Vec<std::sync::Arc<dyn Store>> = {
            let mut stores = Vec::new();
            for endpoint in etcd.endpoints() {
                let mut config = crate::config(&etcd);
                config.endpoints = vec![endpoint];
                stores.push(crate::connected(config).await);
            }
            stores
        };
        for round in 0..100_usize {
            let written = put(&*stores[round % 3], "/a", &round.to_string()).await;
            for store in &stores {
                let guards = vec![Guard::ModRevision("/a".to_owned(), written)];
                let asked = store.commit(Txn { guards, ops: Vec::new() }).await;
                assert_eq!(asked, Ok(Commit::Done(written)), "round {round}");
                let page = store.range(range("/a", 1, Some(written))).await.expect("not ahead");
                assert_eq!(page.entries[0].mod_revision, written);
            }
        }
    })
    .await;
}
