//! Watches and compaction, one behaviour per function.

use std::sync::Arc;

use super::{cases::commits, current, next, put, shown, watched};
use crate::store::{Event, Op, Revision, Store, StoreError, Watch, WatchEvent};

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
