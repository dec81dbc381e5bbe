//! What every implementation of [`Store`] has to do, as tests that any can be run through.
//!
//! A factory makes stores without keys that nobody else uses; every case gets a fresh one and
//! counts from the revision it finds. [`all`] runs the cases of [`cases`], [`watches`] and
//! [`leases`] one by one, and [`random::history`] over some seeds; those of [`elections`] want to be
//! told how long to wait, and are run apart. A case panics where the store is wrong. Deadlines are
//! ten times what a slow store may take, so that only a hang reaches them.
//!
//! Turned down: a macro that makes a `#[test]` per case. A remote store has to be started first,
//! and its tests then differ from ours in how they start, not in what they ask.

#![expect(clippy::missing_panics_doc, reason = "tests: each panics where the store is wrong")]

pub mod cases;
pub mod elections;
pub mod leases;
pub mod model;
pub mod random;
pub mod watches;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::{Commit, Event, Op, Page, Range, Revision, Store, StoreError, Txn, Watch, WatchEvent};

/// Ten times what anything here may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// Histories that [`all`] tries.
const SEEDS: std::ops::Range<u64> = 0..20;

/// Runs everything.
pub async fn all<F, Made>(factory: F)
where
    F: Fn() -> Made,
    Made: Future<Output = Arc<dyn Store>>,
{
    each(&factory).await;
    for seed in SEEDS {
        random::history(&*factory().await, seed).await;
    }
}

/// Runs every case on a store of its own.
pub async fn each<F, Made>(factory: &F)
where
    F: Fn() -> Made,
    Made: Future<Output = Arc<dyn Store>>,
{
    cases::revisions_count_commits(&*factory().await).await;
    cases::a_key_knows_its_commits(&*factory().await).await;
    cases::a_transaction_that_changes_nothing_makes_no_revision(&*factory().await).await;
    cases::guards_hold_or_nothing_happens(&*factory().await).await;
    cases::limits_are_kept(&*factory().await).await;
    cases::of_racing_guarded_commits_one_wins(&*factory().await).await;
    cases::concurrent_commits_each_have_a_revision(&*factory().await).await;
    cases::pages_are_of_one_revision(&*factory().await).await;
    cases::a_prefix_is_of_the_key_not_of_a_part(&*factory().await).await;
    cases::keys_of_any_text(&*factory().await).await;
    cases::the_past_can_be_read(&*factory().await).await;
    cases::the_future_cannot_be_read(&*factory().await).await;
    watches::a_watch_replays_and_goes_on(&*factory().await).await;
    watches::a_watch_delivers_commits_whole_and_by_key(&*factory().await).await;
    watches::a_watch_waits_for_a_future_revision(&*factory().await).await;
    watches::a_watch_tells_progress(&*factory().await).await;
    watches::a_slow_reader_misses_nothing(&*factory().await).await;
    watches::watches_started_amid_commits_have_no_gap(factory().await).await;
    watches::compaction_forgets_only_what_is_older(&*factory().await).await;
    watches::compacted_history_is_said(&*factory().await).await;
    watches::compaction_keeps_watches_going(&*factory().await).await;
    leases::a_revoked_lease_takes_its_keys(&*factory().await).await;
    leases::a_lease_runs_out(&*factory().await).await;
    leases::a_lease_lives_while_it_is_kept_alive(&*factory().await).await;
    leases::an_overwritten_key_leaves_its_lease(&*factory().await).await;
    leases::unknown_leases_are_refused(&*factory().await).await;
}

/// Commits without guards. The revision.
pub(super) async fn put(store: &dyn Store, ops: impl IntoIterator<Item = Op>) -> Revision {
    let txn = Txn { guards: Vec::new(), ops: ops.into_iter().collect() };
    match store.commit(txn).await.expect("commits") {
        Commit::Done(revision) => revision,
        Commit::GuardFailed => unreachable!("there is no guard"),
    }
}

/// The newest revision.
pub(super) async fn current(store: &dyn Store) -> Revision {
    page(store, "/", None, 1, None).await.expect("reads").revision
}

pub(super) async fn page(
    store: &dyn Store,
    prefix: &str,
    after: Option<&str>,
    limit: usize,
    revision: Option<Revision>,
) -> Result<Page, StoreError> {
    let (prefix, after) = (prefix.to_owned(), after.map(ToOwned::to_owned));
    store.range(Range { prefix, after, limit, revision }).await
}

/// What is under `prefix`, as `key=value`.
pub(super) async fn shown(
    store: &dyn Store,
    prefix: &str,
    revision: Option<Revision>,
) -> Result<Vec<String>, StoreError> {
    let page = page(store, prefix, None, 1000, revision).await?;
    let shown = |entry: &super::KeyValue| {
        format!("{}={}", entry.key, String::from_utf8_lossy(&entry.value))
    };
    Ok(page.entries.iter().map(shown).collect())
}

/// What a watch said until it knew about revision `upto`, or ended.
#[derive(Debug, Default)]
pub(super) struct Watched {
    pub(super) commits: Vec<(Revision, Vec<Event>)>,
    /// All before and at this were delivered.
    pub(super) told: Revision,
    pub(super) compacted: Option<Revision>,
}

/// Reads a watch until it says that everything up to `upto` was delivered.
pub(super) async fn watched(watch: &mut Watch, upto: Revision) -> Watched {
    let mut watched = Watched::default();
    while watched.told < upto && watched.compacted.is_none() {
        match next(watch).await {
            WatchEvent::Commit { revision, events } => {
                assert!(revision > watched.told, "{revision} after {}", watched.told);
                assert!(!events.is_empty(), "commit {revision} has events");
                watched.told = revision;
                watched.commits.push((revision, events));
            }
            WatchEvent::Progress { revision } => {
                assert!(revision > watched.told, "progress goes on");
                watched.told = revision;
            }
            WatchEvent::Compacted { oldest } => watched.compacted = Some(oldest),
            WatchEvent::Ended(error) => unreachable!("the watch ended: {error}"),
        }
    }
    watched
}

/// The next event of a watch.
pub(super) async fn next(watch: &mut Watch) -> WatchEvent {
    let event = timeout(DEADLINE, watch.events.recv()).await.expect("the watch says something");
    event.expect("the watch goes on")
}
