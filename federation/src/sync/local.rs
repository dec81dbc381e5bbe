//! Local facts in memory: one prefix of the own store, followed.
//!
//! Owns: [`follow`]. Promises: what is shown is all that the store had under the prefix at one
//! revision; while the store is away it stays as it was; a store that was put back to an earlier
//! state is read anew within a minute, since everything is listed again that often. For prefixes
//! with few keys. Leaves to others: what the facts mean.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::warn;

use super::{DIGEST_INTERVAL, client};
use crate::store::{self, Event, Store, StoreError, WatchEvent};

/// What stands under a prefix, by whole key; `None` until it was read.
pub type Facts = Option<Arc<BTreeMap<String, Bytes>>>;

/// Follows `prefix` for ever; ends only when dropped.
///
/// # Errors
/// [`StoreError::Damaged`]: waiting does not mend that.
pub async fn follow(
    store: Arc<dyn Store>,
    prefix: String,
    facts: watch::Sender<Facts>,
) -> StoreError {
    let mut backoff = client::backoff();
    loop {
        match follow_once(&*store, &prefix, &facts).await {
            Ok(()) => backoff = client::backoff(),
            Err(error @ StoreError::Damaged(_)) => return error,
            Err(error) => {
                warn!(prefix, %error, "local facts cannot be followed, what was read last stays in use");
                sleep(backoff.next().unwrap_or(client::MAX_BACKOFF)).await;
            }
        }
    }
}

/// Until it is time to list again.
async fn follow_once(
    store: &dyn Store,
    prefix: &str,
    facts: &watch::Sender<Facts>,
) -> Result<(), StoreError> {
    let (entries, revision) = store::list(store, prefix).await?;
    let mut held: BTreeMap<String, Bytes> =
        entries.into_iter().map(|entry| (entry.key, entry.value)).collect();
    show(facts, &held);
    let again = Instant::now() + DIGEST_INTERVAL;
    let mut watch = store.watch(prefix, revision + 1).await?;
    while let Ok(Some(event)) = timeout_at(again, watch.events.recv()).await {
        match event {
            WatchEvent::Commit { events, .. } => {
                for event in events {
                    match event {
                        Event::Put(entry) => drop(held.insert(entry.key, entry.value)),
                        Event::Delete { key, .. } => drop(held.remove(&key)),
                    }
                }
                show(facts, &held);
            }
            WatchEvent::Progress { .. } => {}
            WatchEvent::Compacted { .. } => return Ok(()),
            WatchEvent::Ended(error) => return Err(error),
        }
    }
    Ok(())
}

fn show(facts: &watch::Sender<Facts>, held: &BTreeMap<String, Bytes>) {
    facts.send_if_modified(|shown| {
        let news = shown.as_deref() != Some(held);
        if news {
            *shown = Some(Arc::new(held.clone()));
        }
        news
    });
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::embedded::Embedded;
    use crate::store::{Op, Txn};

    #[tokio::test]
    async fn what_stands_under_the_prefix_is_shown_as_it_changes() {
        let store: Arc<dyn Store> = Arc::new(Embedded::in_memory().await.unwrap());
        let commit = async |ops| store.commit(Txn { guards: Vec::new(), ops }).await.unwrap();
        commit(vec![Op::put("/a/1", "x"), Op::put("/b/1", "y")]).await;
        let (tx, mut rx) = watch::channel(None);
        let following = follow(Arc::clone(&store), "/a/".into(), tx);
        let checks = async {
            let mut has = async |keys: &[&str]| {
                let same = |facts: &Facts| {
                    facts.as_ref().is_some_and(|facts| facts.keys().eq(keys.iter()))
                };
                let waited = tokio::time::timeout(Duration::from_secs(10), rx.wait_for(same)).await;
                assert!(waited.is_ok_and(|seen| seen.is_ok()), "{keys:?}");
            };
            has(&["/a/1"]).await;
            commit(vec![Op::put("/a/2", "x"), Op::put("/b/2", "y")]).await;
            has(&["/a/1", "/a/2"]).await;
            commit(vec![Op::delete("/a/1")]).await;
            has(&["/a/2"]).await;
        };
        tokio::select! {
            error = following => panic!("{error}"),
            () = checks => {}
        }
    }
}
