//! What every implementation of [`Store`] has to do, as tests that any can be run through.
//!
//! A factory makes stores that nobody else uses, empty or not; every case gets a fresh one and
//! counts from the revision it finds. [`all`] runs the cases of [`cases`] one by one and
//! [`random::history`] over some seeds. A case panics where the store is wrong. Deadlines are ten
//! times what a slow store may take, so that only a hang reaches them.
//!
//! Turned down: a macro that makes a `#[test]` per case. A remote store has to be started first,
//! and its tests then differ from ours in how they start, not in what they ask.

#![expect(clippy::missing_panics_doc, reason = "tests: each panics where the store is wrong")]

pub mod cases;
pub mod model;
pub mod random;

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
    cases::all(&factory).await;
    for seed in SEEDS {
        random::history(&*factory().await, seed).await;
    }
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
