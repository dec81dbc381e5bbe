//! The leader's other duty: to let history go.
//!
//! Compacts every 5 minutes, and keeps at least an hour: a process that was away for less resumes
//! its watch, one that was away longer lists anew. Every replica remembers where the store was, so
//! that the next leader goes on where the last one ended, however often they change. In the first
//! hour of a process its leader asks for a compaction that lets nothing go, so that a store which
//! does not let it compact is told of at once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, interval};
use tracing::{debug, warn};

use crate::replica::Replicas;
use crate::store::{Revision, Store, StoreError};

/// Often enough that history is a little over [`KEEP`].
const EVERY: Duration = Duration::from_mins(5);
/// After an attempt that failed.
const AGAIN: Duration = Duration::from_secs(30);
/// How much of it is kept at least.
const KEEP: Duration = Duration::from_hours(1);
/// Before the second revision there is no more than etcd's empty store. One less would not ask etcd.
const NOTHING: Revision = 2;

/// How compacting goes; nothing of it where another one leads.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Compaction {
    /// When history was let go last; `None` while this leader has let none go.
    pub last: Option<Instant>,
    /// Why it did not take the newest one.
    pub problem: Option<String>,
}

impl Compaction {
    /// What the store said, asked to let go what is older than an hour; `asked_only` if nothing is
    /// known to be.
    fn note(&mut self, outcome: &Result<(), StoreError>, asked_only: bool) {
        self.problem = match outcome {
            Ok(()) | Err(StoreError::Compacted { .. }) => {
                self.last = if asked_only { self.last } else { Some(Instant::now()) };
                None
            }
            // It is new, or went back: where it is now is what will have been an hour ago.
            Err(StoreError::Future { .. }) => None,
            Err(error) => Some(error.to_string()),
        };
    }
}

/// Compacts while this process is `leading`, and remembers for as long as it is run; `replicas` follow
/// the store and say at which revision it is. Says how it goes in `compaction`.
pub async fn compact(
    store: Arc<dyn Store>,
    mut replicas: Replicas,
    mut leading: watch::Receiver<bool>,
    compaction: watch::Sender<Compaction>,
) {
    let mut ticks = interval(EVERY);
    let mut seen = Seen::default();
    loop {
        tokio::select! {
            _ = ticks.tick() => seen.push(replicas.current().position),
            Ok(()) = leading.changed() => {}
        }
        if !*leading.borrow_and_update() {
            compaction.send_replace(Compaction::default());
            continue;
        }
        let outdated = seen.outdated();
        let oldest = outdated.unwrap_or(NOTHING);
        let outcome = store.compact(oldest).await;
        compaction.send_modify(|known| known.note(&outcome, outdated.is_none()));
        match outcome {
            Ok(()) | Err(StoreError::Compacted { .. }) => debug!(oldest, "compacted"),
            Err(error @ StoreError::Future { .. }) => debug!(%error, "nothing to compact"),
            Err(error) => {
                warn!(%error, oldest, "history could not be compacted, it grows");
                ticks.reset_after(AGAIN);
            }
        }
    }
}

/// Where the store was, and when.
#[derive(Debug, Default)]
struct Seen(VecDeque<(Instant, Revision)>);

impl Seen {
    fn push(&mut self, position: Revision) {
        // Another history counts anew: what its revisions were an hour ago is not known.
        if self.0.back().is_some_and(|(_, last)| *last > position) {
            self.0.clear();
        }
        // Not read yet.
        if position > 0 {
            self.0.push_back((Instant::now(), position));
        }
    }

    /// The newest revision that was current an hour ago; what came before it is dropped.
    fn outdated(&mut self) -> Option<Revision> {
        let is_old = |(at, _): &(Instant, Revision)| at.elapsed() >= KEEP;
        while self.0.get(1).is_some_and(is_old) {
            self.0.pop_front();
        }
        self.0.front().filter(|first| is_old(first)).map(|(_, revision)| *revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::{self, Batch};
    use crate::store::embedded::Embedded;
    use crate::store::{Commit, Op, Range, Txn};

    #[tokio::test(start_paused = true)]
    async fn an_hour_is_kept_and_no_more_than_a_little_over() {
        let store: Arc<dyn Store> = Arc::new(Embedded::in_memory().await.unwrap());
        let (writer, replicas) = replica::channel();
        let put = async |value: &'static str| {
            let txn = Txn { guards: Vec::new(), ops: vec![Op::put("/tombolo/x", value)] };
            store.commit(txn).await.unwrap();
            let position = store.range(range(None)).await.unwrap().revision;
            writer.apply(Batch { position: Some(position), ..Batch::default() }, Instant::now());
            position
        };
        put("the store's first").await;
        let first = put("a").await;
        let mut compacting = tokio::task::JoinSet::new();
        let leading = watch::Sender::new(true);
        let told = watch::Sender::<Compaction>::default();
        let mut seen = told.subscribe();
        compacting.spawn(compact(Arc::clone(&store), replicas, leading.subscribe(), told));
        tokio::time::sleep(Duration::from_mins(1)).await;
        let second = put("b").await;
        put("c").await;

        tokio::time::sleep(Duration::from_mins(50)).await;
        assert!(store.range(range(Some(first))).await.is_ok(), "younger than an hour");
        assert!(seen.has_changed().unwrap(), "the store was asked");
        assert_eq!(*seen.borrow_and_update(), Compaction::default(), "none was let go");
        tokio::time::sleep(Duration::from_mins(30)).await;
        assert!(seen.borrow().last.is_some_and(|last| last.elapsed() <= EVERY));
        let gone = store.range(range(Some(second))).await;
        assert!(matches!(gone, Err(StoreError::Compacted { .. })), "{gone:?}");
        assert!(store.range(range(None)).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_refuses_is_told_of_at_once_and_a_new_one_does_not() {
        let store = Arc::new(Embedded::in_memory().await.unwrap());
        let (_writer, replicas) = replica::channel();
        let (told, mut seen) = watch::channel(Compaction::default());
        let leading = watch::Sender::new(true);
        let mut compacting = tokio::task::JoinSet::new();
        let of = Arc::<Embedded>::clone(&store);
        compacting.spawn(compact(of, replicas, leading.subscribe(), told));
        // There is no second revision yet.
        tokio::time::sleep(Duration::from_mins(1)).await;
        assert_eq!(*seen.borrow(), Compaction::default());

        store.close().await;
        leading.send_replace(true);
        let refused = seen.wait_for(|known| known.problem.is_some() && known.last.is_none());
        tokio::time::timeout(Duration::from_mins(1), refused).await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn leaders_that_change_within_the_hour_compact_all_the_same() {
        let store: Arc<dyn Store> = Arc::new(Embedded::in_memory().await.unwrap());
        let (writer, replicas) = replica::channel();
        let mut first = None;
        for value in ["the store's first", "a", "b", "c"] {
            let txn = Txn { guards: Vec::new(), ops: vec![Op::put("/tombolo/x", value)] };
            let Commit::Done(position) = store.commit(txn).await.unwrap() else { panic!() };
            writer.apply(Batch { position: Some(position), ..Batch::default() }, Instant::now());
            first.get_or_insert(position);
        }
        let first = first.unwrap();
        let (leading, told) = (watch::Sender::new(false), watch::Sender::default());
        let mut seen = told.subscribe();
        let mut compacting = tokio::task::JoinSet::new();
        compacting.spawn(compact(Arc::clone(&store), replicas, leading.subscribe(), told));
        // Others lead, for half an hour each.
        tokio::time::sleep(KEEP + EVERY).await;
        assert!(store.range(range(Some(first))).await.is_ok(), "who does not lead lets nothing go");
        assert_eq!(*seen.borrow(), Compaction::default());

        leading.send_replace(true);
        let done = seen.wait_for(|known| known.last.is_some());
        tokio::time::timeout(Duration::from_secs(1), done).await.unwrap().unwrap();
        let gone = store.range(range(Some(first))).await;
        assert!(matches!(gone, Err(StoreError::Compacted { .. })), "{gone:?}");

        leading.send_replace(false);
        let nothing = seen.wait_for(|known| *known == Compaction::default());
        tokio::time::timeout(Duration::from_secs(1), nothing).await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn history_is_let_go_only_by_what_lets_some_go() {
        let mut known = Compaction::default();
        let refused = || Err(StoreError::Unavailable("permission denied".to_owned()));
        known.note(&refused(), true);
        assert!(known.problem.is_some() && known.last.is_none());
        known.note(&Ok(()), true);
        assert_eq!(known, Compaction::default(), "it may, and there was nothing");
        known.note(&Err(StoreError::Compacted { wanted: 8, oldest: 9 }), false);
        let last = known.last;
        assert_eq!(last, Some(Instant::now()));

        tokio::time::advance(KEEP).await;
        known.note(&refused(), false);
        known.note(&Err(StoreError::Future { wanted: 2, current: 1 }), true);
        assert_eq!(known, Compaction { last, problem: None }, "a store that went back may, too");
    }

    #[tokio::test(start_paused = true)]
    async fn what_another_history_was_an_hour_ago_does_not_count() {
        let mut seen = Seen::default();
        seen.push(0);
        seen.push(90);
        tokio::time::advance(KEEP).await;
        assert_eq!(seen.outdated(), Some(90));
        assert_eq!(seen.outdated(), Some(90), "asked again, the same");
        seen.push(7);
        assert_eq!(seen.outdated(), None);
    }

    fn range(revision: Option<Revision>) -> Range {
        Range { prefix: "/tombolo/".into(), after: None, limit: 1, revision }
    }
}
