//! Transactions and ranges, one behaviour per function.

use bytes::Bytes;

use super::{current, page, put, shown};
use crate::store::{
    Commit, Guard, MAX_OPS, MAX_TXN_BYTES, Op, Revision, Store, StoreError, Txn, read,
};

/// One revision for the whole store, one more for each commit.
pub async fn revisions_count_commits(store: &dyn Store) {
    let start = current(store).await;
    assert_eq!(put(store, [Op::put("/a", "1"), Op::put("/b", "1")]).await, start + 1);
    assert_eq!(put(store, [Op::put("/a", "1")]).await, start + 2, "the same value is a commit");
    assert_eq!(put(store, [Op::delete("/a")]).await, start + 3);
    assert_eq!(current(store).await, start + 3);
    assert_eq!(shown(store, "/", None).await, Ok(vec!["/b=1".to_owned()]));
}

/// Create and mod revisions, also of a key that was deleted in between.
pub async fn a_key_knows_its_commits(store: &dyn Store) {
    let created = put(store, [Op::put("/k", "1")]).await;
    let changed = put(store, [Op::put("/k", "2")]).await;
    assert_eq!(commits(store, "/k").await, (created, changed));
    put(store, [Op::delete("/k")]).await;
    let again = put(store, [Op::put("/k", "3")]).await;
    assert_eq!(commits(store, "/k").await, (again, again));
}

pub(super) async fn commits(store: &dyn Store, key: &str) -> (Revision, Revision) {
    let entry = read(store, key).await.expect("reads").expect("is there");
    (entry.create_revision, entry.mod_revision)
}

/// No ops, or only deletes of absent keys.
pub async fn a_transaction_that_changes_nothing_makes_no_revision(store: &dyn Store) {
    let revision = put(store, [Op::put("/k", "1")]).await;
    assert_eq!(put(store, []).await, revision);
    assert_eq!(put(store, [Op::delete("/absent"), Op::delete("/also")]).await, revision);
    let guards = vec![Guard::ModRevision("/k".to_owned(), revision)];
    let asked = store.commit(Txn { guards, ops: vec![] }).await;
    assert_eq!(asked, Ok(Commit::Done(revision)), "guards alone are a question");
    assert_eq!(put(store, [Op::delete("/absent"), Op::put("/k", "2")]).await, revision + 1);
}

/// Each kind of guard, on keys that are there, are not, were deleted.
pub async fn guards_hold_or_nothing_happens(store: &dyn Store) {
    let created = put(store, [Op::put("/k", "1")]).await;
    let changed = put(store, [Op::put("/k", "2")]).await;
    let (k, absent) = (|| "/k".to_owned(), || "/absent".to_owned());
    for (guard, holds) in [
        (Guard::ModRevision(k(), changed), true),
        (Guard::ModRevision(k(), created), false),
        (Guard::ModRevision(k(), 0), false),
        (Guard::CreateRevision(k(), created), true),
        (Guard::CreateRevision(k(), changed), false),
        (Guard::CreateRevision(k(), 0), false),
        (Guard::ModRevision(absent(), 0), true),
        (Guard::CreateRevision(absent(), 0), true),
        (Guard::ModRevision(absent(), created), false),
    ] {
        let before = current(store).await;
        let ops = vec![Op::put("/written", "x")];
        let done = store.commit(Txn { guards: vec![guard.clone()], ops: ops.clone() }).await;
        let expected = if holds { Commit::Done(before + 1) } else { Commit::GuardFailed };
        assert_eq!(done, Ok(expected), "{guard:?}");
        assert_eq!(current(store).await, before + u64::from(holds), "{guard:?}");
        let guards = vec![guard, Guard::CreateRevision(k(), changed)];
        let both = store.commit(Txn { guards, ops }).await;
        assert_eq!(both, Ok(Commit::GuardFailed), "all guards must hold");
    }
    put(store, [Op::delete("/k")]).await;
    let guards = vec![Guard::CreateRevision(k(), 0), Guard::ModRevision(k(), 0)];
    let gone = store.commit(Txn { guards, ops: vec![Op::put("/k", "3")] }).await;
    assert!(matches!(gone, Ok(Commit::Done(_))), "a deleted key does not exist: {gone:?}");
}

/// At the limit is done, above it is refused.
pub async fn limits_are_kept(store: &dyn Store) {
    let start = current(store).await;
    let many = |count: usize| (0..count).map(|n| Op::put(format!("/{n}"), "v")).collect::<Vec<_>>();
    let large = |bytes: usize| vec![Op::put("/k", Bytes::from(vec![b'v'; bytes - 2]))];
    for (what, ops) in [
        ("operations", many(MAX_OPS + 1)),
        ("bytes", large(MAX_TXN_BYTES + 1)),
        ("two puts of a key", vec![Op::put("/k", "1"), Op::put("/k", "2")]),
        ("put and delete of a key", vec![Op::put("/k", "1"), Op::delete("/k")]),
        ("two deletes of a key", vec![Op::delete("/k"), Op::delete("/k")]),
        ("an empty key", vec![Op::put("", "1")]),
    ] {
        let refused = store.commit(Txn { guards: vec![], ops }).await;
        assert!(matches!(refused, Err(StoreError::Refused(_))), "{what}: {refused:?}");
    }
    assert_eq!(current(store).await, start, "refused is not done");
    assert_eq!(put(store, many(MAX_OPS)).await, start + 1);
    assert_eq!(put(store, large(MAX_TXN_BYTES)).await, start + 2);
}

/// Guards are checked and the change made in one step.
pub async fn of_racing_guarded_commits_one_wins(store: &dyn Store) {
    let attempts = (0..20).map(|n| {
        let guards = vec![Guard::CreateRevision("/one".to_owned(), 0)];
        store.commit(Txn { guards, ops: vec![Op::put("/one", format!("{n}"))] })
    });
    let outcomes = futures::future::join_all(attempts).await;
    let won = outcomes.iter().filter(|outcome| matches!(outcome, Ok(Commit::Done(_)))).count();
    let lost = outcomes.iter().filter(|outcome| **outcome == Ok(Commit::GuardFailed)).count();
    assert_eq!((won, lost), (1, 19), "{outcomes:?}");
}

/// However they are bundled on their way to the disk.
pub async fn concurrent_commits_each_have_a_revision(store: &dyn Store) {
    let start = current(store).await;
    let commits = (0..100).map(|n| put(store, [Op::put(format!("/{n}"), "v")]));
    let mut revisions = futures::future::join_all(commits).await;
    revisions.sort_unstable();
    assert_eq!(revisions, (start + 1..=start + 100).collect::<Vec<_>>());
}

/// Commits between two pages do not show.
pub async fn pages_are_of_one_revision(store: &dyn Store) {
    let ops = |value: &'static str| (0..7).map(move |n| Op::put(format!("/p/{n}"), value));
    let revision = put(store, ops("old")).await;
    let first = page(store, "/p/", None, 3, None).await.expect("reads");
    assert_eq!((first.entries.len(), first.more, first.revision), (3, true, revision));
    put(store, ops("new").chain([Op::put("/p/8", "new")])).await;
    put(store, [Op::delete("/p/5")]).await;
    let second = page(store, "/p/", Some("/p/2"), 3, Some(revision)).await.expect("reads");
    assert_eq!((second.entries.len(), second.more, second.revision), (3, true, revision));
    let last = page(store, "/p/", Some("/p/5"), 3, Some(revision)).await.expect("reads");
    assert_eq!((last.entries.len(), last.more), (1, false));
    let all = [first.entries, second.entries, last.entries].concat();
    assert!(all.iter().all(|entry| entry.value == "old" && entry.mod_revision == revision));
    assert!(all.is_sorted_by(|a, b| a.key < b.key));
    let full = page(store, "/p/", None, 7, Some(revision)).await.expect("reads");
    assert_eq!((full.entries.len(), full.more), (7, false), "just enough is not more");
}

/// And `after` is any text, there or not.
pub async fn a_prefix_is_of_the_key_not_of_a_part(store: &dyn Store) {
    put(store, ["/a", "/a/b", "/a/b/c", "/a0", "/ab", "/b"].map(|key| Op::put(key, ""))).await;
    assert_eq!(shown(store, "/a/b", None).await, Ok(vec!["/a/b=".into(), "/a/b/c=".into()]));
    assert_eq!(shown(store, "/a/", None).await, Ok(vec!["/a/b=".into(), "/a/b/c=".into()]));
    assert_eq!(shown(store, "/a", None).await.map(|keys| keys.len()), Ok(5));
    assert_eq!(shown(store, "", None).await.map(|keys| keys.len()), Ok(6));
    assert_eq!(shown(store, "/c", None).await, Ok(vec![]));
    for (after, count) in [("/", 6), ("/a/b", 4), ("/a/zzz", 3), ("/b", 0), ("/z", 0)] {
        let page = page(store, "/", Some(after), 10, None).await.expect("reads");
        assert_eq!(page.entries.len(), count, "after {after}");
        assert!(page.entries.iter().all(|entry| entry.key.as_str() > after));
    }
}

/// Up to the greatest characters, where a prefix has no successor of its length.
pub async fn keys_of_any_text(store: &dyn Store) {
    let keys = ["/\u{0}", "/\u{7f}", "/ß", "/\u{ffff}", "/\u{10ffff}", "/\u{10ffff}/x"];
    put(store, keys.map(|key| Op::put(key, key))).await;
    for key in keys {
        assert_eq!(read(store, key).await.expect("reads").expect("is there").value, key);
    }
    let page = page(store, "/\u{10ffff}", None, 10, None).await.expect("reads");
    assert_eq!(page.entries.len(), 2, "a prefix of the greatest characters has an end");
}

/// Deleted and overwritten keys as they were.
pub async fn the_past_can_be_read(store: &dyn Store) {
    let one = put(store, [Op::put("/k", "1")]).await;
    let two = put(store, [Op::put("/k", "2"), Op::put("/l", "2")]).await;
    let three = put(store, [Op::delete("/k")]).await;
    put(store, [Op::put("/k", "4")]).await;
    let at = async |revision| shown(store, "/", Some(revision)).await.expect("reads");
    assert_eq!(at(one).await, ["/k=1"]);
    assert_eq!(at(two).await, ["/k=2", "/l=2"]);
    assert_eq!(at(three).await, ["/l=2"]);
}

/// Nor compacted.
pub async fn the_future_cannot_be_read(store: &dyn Store) {
    let now = put(store, [Op::put("/k", "1")]).await;
    let read = page(store, "/", None, 1, Some(now + 1)).await;
    assert_eq!(read, Err(StoreError::Future { wanted: now + 1, current: now }));
    let compacted = store.compact(now + 1).await;
    assert_eq!(compacted, Err(StoreError::Future { wanted: now + 1, current: now }));
}
