use std::sync::Arc;

use super::*;
use crate::store::embedded::Embedded;
use crate::store::{Op, Txn};

const ALL: &str = "/tombolo/";
const X: &str = "/tombolo/local/v1/x";
const FOREIGN: &str = "/other";

/// A commit per word: `!n` is mark n, `-` deletes, `~` is somebody else's, all else is put.
async fn store_with(words: &str) -> Arc<Embedded> {
    let store = Arc::new(Embedded::in_memory().await.unwrap());
    write(&*store, words).await;
    store
}

async fn write(store: &dyn Store, words: &str) {
    for word in words.split_whitespace() {
        let op = match word {
            "-" => Op::delete(X),
            "~" => Op::put(FOREIGN, "v"),
            mark if mark.starts_with('!') => facts::mark_op(format!("{mark:0>16}")),
            value => Op::put(X, value.to_owned()),
        };
        store.commit(Txn { guards: vec![], ops: vec![op] }).await.unwrap();
    }
}

/// Follows all that there is and says from where to go on.
async fn point(store: &dyn Store) -> ResumePoint {
    try_point(store).await.expect("there is a mark")
}

async fn try_point(store: &dyn Store) -> Option<ResumePoint> {
    let newest = crate::store::list(store, "/").await.unwrap().1;
    let mut watch = store.watch(ALL, 1).await.unwrap();
    let (mut trail, mut seen) = (Trail::default(), 0);
    while seen < newest {
        seen = match watch.events.recv().await.unwrap() {
            WatchEvent::Commit { revision, events } => {
                trail.note(revision, &events);
                revision
            }
            WatchEvent::Progress { revision } => revision,
            other => panic!("{other:?}"),
        };
    }
    Some(ResumePoint { revision: newest, witness: trail.witness(newest)? })
}

async fn same(store: &dyn Store, point: &ResumePoint) -> Going {
    match resume(store, ALL, point).await.unwrap() {
        Resumed::Same(going) => going,
        Resumed::Other(why) => panic!("taken for another: {why}"),
    }
}

async fn other(store: &dyn Store, point: &ResumePoint) -> String {
    match resume(store, ALL, point).await.unwrap() {
        Resumed::Other(why) => why,
        Resumed::Same(_) => panic!("taken for the same"),
    }
}

/// A point of the one store, at which the other one is another.
async fn differ(before: &str, restored: &str) {
    let point = point(&*store_with(before).await).await;
    let why = other(&*store_with(restored).await, &point).await;
    assert!(why.contains("not what it did"), "{before} | {restored}: {why}");
}

#[tokio::test(start_paused = true)]
async fn the_same_store_goes_on_after_the_point() {
    let store = store_with("a !1 b -").await;
    let point = point(&*store).await;
    assert_eq!(point.witness.since, 2);
    assert_eq!(ResumePoint::from_bytes(&point.to_bytes()), Some(point.clone()));
    assert_eq!(ResumePoint::from_bytes(&point.to_bytes()[1..]), None);
    write(&*store, "c").await;
    let mut going = same(&*store, &point).await;
    assert_eq!(going.trail.witness(point.revision), Some(point.witness));
    let next = going.watch.events.recv().await.unwrap();
    assert!(matches!(next, WatchEvent::Commit { revision: 5, .. }), "{next:?}");
}

#[tokio::test(start_paused = true)]
async fn what_others_wrote_last_is_passed_over_and_what_comes_next_is_not_lost() {
    let store = store_with("!1 ~ ~ ~ ~ ~").await;
    let point = point(&*store).await;
    assert_eq!(point.revision, 6);
    let next = same(&*store, &point).await.next;
    assert!(matches!(next, Some(WatchEvent::Progress { revision: 6 })), "{next:?}");
    write(&*store, "a").await;
    let next = same(&*store, &point).await.next;
    assert!(matches!(next, Some(WatchEvent::Commit { revision: 7, .. })), "{next:?}");
}

#[tokio::test(start_paused = true)]
async fn only_what_came_since_the_last_mark_is_said_again() {
    let store = store_with("!1 a b !2 c").await;
    let point = point(&*store).await;
    assert_eq!(point.witness.since, 4);
    store.compact(4).await.unwrap();
    same(&*store, &point).await;
    store.compact(5).await.unwrap();
    assert!(other(&*store, &point).await.contains("is compacted"));
}

#[tokio::test(start_paused = true)]
async fn without_a_mark_nothing_is_proven() {
    assert_eq!(try_point(&*store_with("a b c").await).await, None);
    let store = Embedded::in_memory().await.unwrap();
    let ops = vec![Op::put(facts::mark_key(), "by hand")];
    store.commit(Txn { guards: vec![], ops }).await.unwrap();
    assert_eq!(try_point(&store).await, None);
    let mut trail = Trail::default();
    let Op::Put { key, value, .. } = facts::mark_op("0123456789abcdef".to_owned()) else {
        unreachable!("it is a put")
    };
    let kv = crate::store::KeyValue { key, value, create_revision: 1, mod_revision: 1 };
    trail.note(1, &[Event::Put(kv)]);
    assert!(trail.witness(LONGEST).is_some() && trail.witness(2 + LONGEST).is_none());
}

/// As of a member that has not come to the mark yet: it may, and what it will say is not known.
#[tokio::test(start_paused = true)]
async fn a_watch_that_is_silent_proves_nothing() {
    let point = point(&*store_with("a !1 b").await).await;
    let (said, events) = tokio::sync::mpsc::channel(8);
    let early = WatchEvent::Progress { revision: point.revision - 1 };
    said.send(early).await.unwrap();
    let since = tokio::time::Instant::now();
    let silent = replay(Watch { events }, &point, point.revision).await;
    assert!(matches!(silent, Err(StoreError::Unavailable(_))), "{silent:?}");
    assert_eq!(since.elapsed(), ANSWERS_WITHIN);

    let (said, events) = tokio::sync::mpsc::channel(8);
    drop(said);
    let ended = replay(Watch { events }, &point, point.revision).await;
    assert!(matches!(ended, Err(StoreError::Unavailable(_))), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_went_back_is_another() {
    let point = point(&*store_with("a !1 b").await).await;
    let why = other(&*store_with("a").await, &point).await;
    assert!(why.contains("at revision 1, and was at 3"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_went_back_and_on_is_another_whatever_it_wrote() {
    // Restored to before the mark.
    for restored in ["a !2 b", "a b !1", "a ~ ~ ~ ~", "a b c d", "!2 a b c"] {
        differ("a !1 b", restored).await;
    }
    // Restored to the mark, or to after it.
    for restored in ["!1 a c b", "!1 a - b", "!1 b a", "!1 b b b", "!1 a ~ ~", "!1 a ~ b"] {
        differ("!1 a b", restored).await;
    }
}

/// The newest commit of ours is in the backup, and the point was past it.
#[tokio::test(start_paused = true)]
async fn a_store_that_did_something_where_nothing_was_is_another() {
    for restored in ["!1 a ~ ~ b ~ ~ ~ ~", "!1 a b b b b b b", "!1 a ~ ~ ~ ~ ~ b"] {
        differ("!1 a ~ ~ ~ ~ ~ ~", restored).await;
    }
}

/// What is written again as it was, at the revisions at which it was: a key that is deleted when a
/// lease ends, what a peer sends once more. Before it, something else happened.
#[tokio::test(start_paused = true)]
async fn commits_that_repeat_do_not_hide_what_went_before() {
    differ("!1 a ~ - b - b -", "!1 a b - b - b -").await;
    let repeated = " c -".repeat(100);
    differ(&format!("!1 a ~ !2{repeated}"), &format!("!1 a b !3{repeated}")).await;
    differ(&format!("!1 a ~ {repeated}"), &format!("!1 a b {repeated}")).await;
}

/// Of the foreign keys, some are in the backup and the rest is written again.
#[tokio::test(start_paused = true)]
async fn foreign_keys_of_before_and_after_the_backup_hide_nothing() {
    differ("!1 ~ ~ a ~ !2 ~ ~", "!1 ~ ~ ~ ~ ~ ~ ~ ~").await;
    differ("!1 ~ ~ a ~ !2 ~ ~", "!1 ~ ~ a ~ ~ ~ ~ ~").await;
    differ("~ ~ !1 a ~ ~", "~ ~ !1 ~ a ~ ~").await;
    differ("~ ~ !1 a ~ ~", "~ ~ !2 a ~ ~").await;
}
