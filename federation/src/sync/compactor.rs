//! The leader's other duty: to let history go.
//!
//! Compacts every 5 minutes, and keeps at least an hour: a process that was away for less resumes
//! its watch, one that was away longer lists anew.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, interval};
use tracing::{debug, warn};

use crate::replica::Replicas;
use crate::store::{Revision, Store, StoreError};

/// How often history is compacted.
const EVERY: Duration = Duration::from_mins(5);
/// How much of it is kept at least.
const KEEP: Duration = Duration::from_hours(1);

/// Compacts for as long as it is run; `replicas` follow the store and say at which revision it is.
pub async fn compact(store: Arc<dyn Store>, mut replicas: Replicas) {
    let mut ticks = interval(EVERY);
    let mut seen: VecDeque<(Instant, Revision)> = VecDeque::new();
    loop {
        ticks.tick().await;
        seen.push_back((Instant::now(), replicas.current().position));
        let Some(oldest) = outdated(&mut seen) else { continue };
        match store.compact(oldest).await {
            Ok(()) | Err(StoreError::Compacted { .. }) => debug!(oldest, "compacted"),
            Err(error) => warn!(%error, oldest, "history could not be compacted, it grows"),
        }
    }
}

/// The newest revision that was current an hour ago; what came before it in `seen` is dropped.
fn outdated(seen: &mut VecDeque<(Instant, Revision)>) -> Option<Revision> {
    let mut oldest = None;
    while seen.front().is_some_and(|(at, _)| at.elapsed() >= KEEP) {
        oldest = seen.pop_front().map(|(_, revision)| revision);
    }
    oldest.filter(|revision| *revision > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::{self, Batch};
    use crate::store::embedded::Embedded;
    use crate::store::{Op, Range, Txn};

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
        let first = put("a").await;
        let mut compacting = tokio::task::JoinSet::new();
        compacting.spawn(compact(Arc::clone(&store), replicas));
        tokio::time::sleep(Duration::from_mins(1)).await;
        let second = put("b").await;
        put("c").await;

        tokio::time::sleep(Duration::from_mins(50)).await;
        assert!(store.range(range(Some(first))).await.is_ok(), "younger than an hour");
        tokio::time::sleep(Duration::from_mins(30)).await;
        let gone = store.range(range(Some(second))).await;
        assert!(matches!(gone, Err(StoreError::Compacted { .. })), "{gone:?}");
        assert!(store.range(range(None)).await.is_ok());
    }

    fn range(revision: Option<Revision>) -> Range {
        Range { prefix: "/tombolo/".into(), after: None, limit: 1, revision }
    }
}
