//! One behaviour per function.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{current, next, page, put, shown, watched};
use crate::store::{
    Commit, Event, Guard, MAX_OPS, MAX_TXN_BYTES, Op, Revision, Store, StoreError, Txn, Watch,
    WatchEvent, read,
};

/// The shortest that every store can do.
const TTL: Duration = Duration::from_secs(2);

/// Runs every case on a store of its own.
pub async fn all<F, Made>(factory: &F)
where
    F: Fn() -> Made,
    Made: Future<Output = Arc<dyn Store>>,
{
    revisions_count_commits(&*factory().await).await;
    a_key_knows_its_commits(&*factory().await).await;
    a_transaction_that_changes_nothing_makes_no_revision(&*factory().await).await;
    guards_hold_or_nothing_happens(&*factory().await).await;
    limits_are_kept(&*factory().await).await;
    of_racing_guarded_commits_one_wins(&*factory().await).await;
    concurrent_commits_each_have_a_revision(&*factory().await).await;
    pages_are_of_one_revision(&*factory().await).await;
    a_prefix_is_of_the_key_not_of_a_part(&*factory().await).await;
    keys_of_any_text(&*factory().await).await;
    the_past_can_be_read(&*factory().await).await;
    the_future_cannot_be_read(&*factory().await).await;
    a_watch_replays_and_goes_on(&*factory().await).await;
    a_watch_delivers_commits_whole_and_by_key(&*factory().await).await;
    a_watch_waits_for_a_future_revision(&*factory().await).await;
    a_watch_tells_progress(&*factory().await).await;
    a_slow_reader_misses_nothing(&*factory().await).await;
    watches_started_amid_commits_have_no_gap(factory().await).await;
    compaction_forgets_only_what_is_older(&*factory().await).await;
    compacted_history_is_said(&*factory().await).await;
    compaction_keeps_watches_going(&*factory().await).await;
    a_revoked_lease_takes_its_keys(&*factory().await).await;
    a_lease_runs_out(&*factory().await).await;
    a_lease_lives_while_it_is_kept_alive(&*factory().await).await;
    an_overwritten_key_leaves_its_lease(&*factory().await).await;
    unknown_leases_are_refused(&*factory().await).await;
}

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

async fn commits(store: &dyn Store, key: &str) -> (Revision, Revision) {
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

async fn watch(store: &dyn Store, prefix: &str, from: Revision) -> Watch {
    store.watch(prefix, from).await.expect("watches")
}

fn revisions(commits: &[(Revision, Vec<Event>)]) -> Vec<Revision> {
    commits.iter().map(|(revision, _)| *revision).collect()
}

/// History first, then what is committed from now on.
pub async fn a_watch_replays_and_goes_on(store: &dyn Store) {
    let one = put(store, [Op::put("/w/a", "1")]).await;
    let two = put(store, [Op::delete("/w/a")]).await;
    let mut all = watch(store, "/w/", one).await;
    let mut later = watch(store, "/w/", two).await;
    let three = put(store, [Op::put("/w/a", "3")]).await;
    let all = watched(&mut all, three).await.commits;
    assert_eq!(revisions(&all), [one, two, three]);
    assert_eq!(all[1].1, [Event::Delete { key: "/w/a".to_owned(), revision: two }]);
    let Event::Put(entry) = &all[2].1[0] else { unreachable!("a put: {:?}", all[2]) };
    assert_eq!((entry.create_revision, entry.mod_revision), (three, three));
    assert_eq!(revisions(&watched(&mut later, three).await.commits), [two, three]);
}

/// Without the keys beside the prefix and the deletes of nothing.
pub async fn a_watch_delivers_commits_whole_and_by_key(store: &dyn Store) {
    put(store, [Op::put("/w/b", "0")]).await;
    let ops = [
        Op::put("/w/c", "1"),
        Op::delete("/w/b"),
        Op::put("/v", "1"),
        Op::delete("/w/absent"),
        Op::put("/w/a", "1"),
    ];
    let revision = put(store, ops.clone()).await;
    let mut replayed = watch(store, "/w/", revision).await;
    let mut live = watch(store, "/w/", revision + 1).await;
    let again = put(store, [Op::put("/w/b", "0")]).await;
    let last = put(store, ops).await;
    let replayed = watched(&mut replayed, last).await.commits;
    let live = watched(&mut live, last).await.commits;
    assert_eq!(revisions(&replayed), [revision, again, last]);
    assert_eq!(revisions(&live), [again, last]);
    for (_, events) in [&replayed[0], &replayed[2], &live[1]] {
        let keys: Vec<_> = events.iter().map(Event::key).collect();
        assert_eq!(keys, ["/w/a", "/w/b", "/w/c"]);
    }
}

/// And says nothing before it.
pub async fn a_watch_waits_for_a_future_revision(store: &dyn Store) {
    let now = put(store, [Op::put("/w", "0")]).await;
    let mut ahead = watch(store, "/w", now + 3).await;
    for n in 1..=3 {
        put(store, [Op::put("/w", format!("{n}"))]).await;
    }
    match next(&mut ahead).await {
        WatchEvent::Commit { revision, .. } => assert_eq!(revision, now + 3),
        other => unreachable!("nothing is said before the wanted revision: {other:?}"),
    }
}

/// Of commits beside its prefix.
pub async fn a_watch_tells_progress(store: &dyn Store) {
    let first = put(store, [Op::put("/w/a", "0")]).await;
    let elsewhere = put(store, [Op::put("/v", "1")]).await;
    let mut replayed = watch(store, "/w/", first).await;
    let seen = watched(&mut replayed, elsewhere).await;
    assert_eq!(revisions(&seen.commits), [first]);
    assert!(seen.told >= elsewhere, "{seen:?}");
    let later = put(store, [Op::put("/v", "2")]).await;
    let seen = watched(&mut replayed, later).await;
    assert_eq!(revisions(&seen.commits), Vec::<Revision>::new());
    assert!(seen.told >= later, "{seen:?}");
}

/// The reader resumes where it was told that the watch ended; no store may skip a commit.
pub async fn a_slow_reader_misses_nothing(store: &dyn Store) {
    let start = current(store).await;
    let mut slow = watch(store, "/w/", start + 1).await;
    let commits = (0..1500).map(|n| put(store, [Op::put(format!("/w/{}", n % 7), "v")]));
    futures::future::join_all(commits).await;
    let last = current(store).await;
    let mut told = start;
    while told < last {
        match next(&mut slow).await {
            WatchEvent::Commit { revision, .. } => {
                assert_eq!(revision, told + 1, "every commit, once");
                told = revision;
            }
            WatchEvent::Progress { revision } => assert!(revision <= told, "nothing else was"),
            WatchEvent::Ended(_) => slow = watch(store, "/w/", told + 1).await,
            WatchEvent::Compacted { oldest } => unreachable!("nobody compacted to {oldest}"),
        }
    }
}

/// Where history ends and news begins.
pub async fn watches_started_amid_commits_have_no_gap(store: Arc<dyn Store>) {
    let start = current(&*store).await;
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            for _ in 0..50 {
                put(&*store, [Op::put(format!("/w/{writer}"), "v")]).await;
            }
        });
    }
    let mut watches = Vec::new();
    while !tasks.is_empty() {
        let from = current(&*store).await.max(start + 1);
        watches.push((from, watch(&*store, "/w/", from).await));
        if watches.len() > 50 {
            tasks.join_next().await.expect("not empty").expect("writes");
        }
        while tasks.try_join_next().is_some() {}
    }
    let last = current(&*store).await;
    assert_eq!(last, start + 200);
    for (from, mut started) in watches {
        let seen = watched(&mut started, last).await;
        assert_eq!(revisions(&seen.commits), (from..=last).collect::<Vec<_>>());
    }
}

/// The oldest revision and all later ones read as before.
pub async fn compaction_forgets_only_what_is_older(store: &dyn Store) {
    let first = put(store, [Op::put("/k", "1"), Op::put("/still", "1")]).await;
    let second = put(store, [Op::put("/k", "2"), Op::put("/gone", "2")]).await;
    let third = put(store, [Op::delete("/gone")]).await;
    let fourth = put(store, [Op::put("/k", "4")]).await;
    store.compact(third).await.expect("compacts");
    let wanted = |wanted| Err(StoreError::Compacted { wanted, oldest: third });
    assert_eq!(shown(store, "/", Some(first)).await, wanted(first));
    assert_eq!(shown(store, "/", Some(second)).await, wanted(second));
    let at = async |revision| shown(store, "/", Some(revision)).await.expect("reads");
    assert_eq!(at(third).await, ["/k=2", "/still=1"]);
    assert_eq!(at(fourth).await, ["/k=4", "/still=1"]);
    assert_eq!(commits(store, "/k").await, (first, fourth), "it knows who created it");
    assert_eq!(current(store).await, fourth, "compaction is no commit");
    store.compact(second).await.expect("is compacted already");
    assert_eq!(at(third).await, ["/k=2", "/still=1"]);
    store.compact(fourth).await.expect("compacts again");
    assert_eq!(at(fourth).await, ["/k=4", "/still=1"]);
}

/// And the oldest revision is delivered whole, deletions too.
pub async fn compacted_history_is_said(store: &dyn Store) {
    let first = put(store, [Op::put("/k", "1")]).await;
    let second = put(store, [Op::delete("/k")]).await;
    store.compact(second).await.expect("compacts");
    let mut gone = watch(store, "/", first).await;
    assert_eq!(next(&mut gone).await, WatchEvent::Compacted { oldest: second });
    assert_eq!(gone.events.recv().await, None, "the watch has ended");
    let mut from_zero = watch(store, "/", 0).await;
    assert_eq!(next(&mut from_zero).await, WatchEvent::Compacted { oldest: second });
    let mut kept = watch(store, "/", second).await;
    let events = vec![Event::Delete { key: "/k".to_owned(), revision: second }];
    let oldest = WatchEvent::Commit { revision: second, events };
    assert_eq!(next(&mut kept).await, oldest, "the oldest revision is whole");
}

/// Those that have read what is forgotten.
pub async fn compaction_keeps_watches_going(store: &dyn Store) {
    let first = put(store, [Op::put("/k", "1")]).await;
    let mut running = watch(store, "/", first).await;
    watched(&mut running, first).await;
    put(store, [Op::put("/k", "2")]).await;
    let third = put(store, [Op::put("/k", "3")]).await;
    watched(&mut running, third).await;
    store.compact(third).await.expect("compacts");
    let fourth = put(store, [Op::put("/k", "4")]).await;
    assert_eq!(revisions(&watched(&mut running, fourth).await.commits), [fourth]);
}

fn leased(key: &str, lease: crate::store::LeaseId) -> Op {
    Op::Put { key: key.to_owned(), value: Bytes::from_static(b"leased"), lease: Some(lease) }
}

/// The commit that deletes keys, from a watch of all.
async fn deletion(watch: &mut Watch) -> (Revision, Vec<String>) {
    loop {
        if let WatchEvent::Commit { revision, events } = next(watch).await {
            let deleted = |event: &Event| matches!(event, Event::Delete { .. });
            if events.iter().any(deleted) {
                return (revision, events.iter().map(|event| event.key().to_owned()).collect());
            }
        }
    }
}

/// In one commit, and nothing else.
pub async fn a_revoked_lease_takes_its_keys(store: &dyn Store) {
    let lease = store.grant_lease(TTL * 100).await.expect("grants");
    let other = store.grant_lease(TTL * 100).await.expect("grants");
    assert_ne!(lease, other);
    put(store, [leased("/b", lease), leased("/a", lease), leased("/other", other)]).await;
    let before = put(store, [Op::put("/none", "")]).await;
    store.revoke_lease(lease).await.expect("revokes");
    assert_eq!(shown(store, "/", None).await, Ok(vec!["/none=".into(), "/other=leased".into()]));
    assert_eq!(current(store).await, before + 1, "the keys go in one commit");
    let unknown = store.revoke_lease(lease).await;
    assert_eq!(unknown, Err(StoreError::NoLease(lease)));
    store.revoke_lease(other).await.expect("revokes");
}

/// Its keys go in one commit, and it is of no use any more.
pub async fn a_lease_runs_out(store: &dyn Store) {
    let start = current(store).await;
    let lease = store.grant_lease(TTL).await.expect("grants");
    let mut watch = watch(store, "/", start + 1).await;
    let written = put(store, [leased("/a", lease), leased("/b", lease)]).await;
    let (revision, keys) = deletion(&mut watch).await;
    assert_eq!((revision, keys), (written + 1, vec!["/a".to_owned(), "/b".to_owned()]));
    let late = store.keep_alive(lease).await;
    assert_eq!(late, Err(StoreError::NoLease(lease)));
    let late = store.commit(Txn { guards: vec![], ops: vec![leased("/c", lease)] }).await;
    assert_eq!(late, Err(StoreError::NoLease(lease)));
}

/// Beyond its time.
pub async fn a_lease_lives_while_it_is_kept_alive(store: &dyn Store) {
    let lease = store.grant_lease(TTL).await.expect("grants");
    put(store, [leased("/kept", lease)]).await;
    for _ in 0..6 {
        tokio::time::sleep(TTL / 3).await;
        store.keep_alive(lease).await.expect("lives");
    }
    assert!(read(store, "/kept").await.expect("reads").is_some(), "after twice its time");
    store.revoke_lease(lease).await.expect("revokes");
}

/// For none, or for that of the last put; a deleted one too.
pub async fn an_overwritten_key_leaves_its_lease(store: &dyn Store) {
    let lease = store.grant_lease(TTL * 100).await.expect("grants");
    let heir = store.grant_lease(TTL * 100).await.expect("grants");
    put(store, ["/freed", "/deleted", "/inherited", "/held"].map(|key| leased(key, lease))).await;
    put(store, [Op::put("/freed", "plain"), Op::delete("/deleted"), leased("/inherited", heir)])
        .await;
    let before = put(store, [Op::put("/deleted", "plain")]).await;
    store.revoke_lease(lease).await.expect("revokes");
    let left = vec!["/deleted=plain".into(), "/freed=plain".into(), "/inherited=leased".into()];
    assert_eq!(shown(store, "/", None).await, Ok(left));
    assert_eq!(current(store).await, before + 1);
    store.revoke_lease(heir).await.expect("revokes");
    assert_eq!(read(store, "/inherited").await, Ok(None));
}

/// With the whole transaction.
pub async fn unknown_leases_are_refused(store: &dyn Store) {
    let lease = store.grant_lease(TTL).await.expect("grants");
    store.revoke_lease(lease).await.expect("revokes");
    let start = current(store).await;
    assert_eq!(store.keep_alive(lease).await, Err(StoreError::NoLease(lease)));
    let ops = vec![Op::put("/a", "1"), leased("/b", lease)];
    let refused = store.commit(Txn { guards: vec![], ops }).await;
    assert_eq!(refused, Err(StoreError::NoLease(lease)));
    assert_eq!(current(store).await, start, "nothing of it happened");
    let none = store.grant_lease(Duration::ZERO).await;
    assert!(matches!(none, Err(StoreError::Refused(_))), "{none:?}");
}
