//! Whether a store is still the one that was followed (DESIGN section 4, "History check").
//!
//! A restored etcd keeps its cluster id, its member ids and its raft term, answers a watch from a
//! revision that it has not reached with silence, and carries on as if nothing had happened once
//! it has passed it (measured: RELIABILITY 0.1). What it cannot repeat is what happened: a
//! [`ResumePoint`] holds a digest of everything that the newest commit did, and the watch is
//! resumed *at* that commit, not after it, so that the store has to say it again.

use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::timeout;

use crate::store::{Event, Range, Revision, Store, StoreError, Watch, WatchEvent};

/// A store that was asked for a commit that it has, and does not send it for so long, is not
/// there.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// Up to where a store was followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResumePoint {
    /// All commits up to this one were seen.
    pub revision: Revision,
    /// The newest of them that did anything under the followed prefix.
    pub witness: Witness,
}

impl ResumePoint {
    /// For the disk: two revisions and the digest.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let revisions = [self.revision, self.witness.revision].map(u64::to_be_bytes).concat();
        [&revisions[..], &self.witness.digest].concat()
    }

    /// Reads what [`Self::to_bytes`] wrote; `None` for anything else.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (revision, rest) = bytes.split_first_chunk::<8>()?;
        let (seen, digest) = rest.split_first_chunk::<8>()?;
        let witness =
            Witness { revision: u64::from_be_bytes(*seen), digest: digest.try_into().ok()? };
        Some(Self { revision: u64::from_be_bytes(*revision), witness })
    }
}

/// What a commit did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    /// Which commit.
    pub revision: Revision,
    /// SHA-256 over its events: keys, values, and which were deletes.
    pub digest: [u8; 32],
}

impl Witness {
    /// Of one commit's events, which are in key order.
    #[must_use]
    pub fn of(revision: Revision, events: &[Event]) -> Self {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        for event in events {
            match event {
                Event::Put(entry) => {
                    part(b"put");
                    part(entry.key.as_bytes());
                    part(&entry.value);
                }
                Event::Delete { key, .. } => {
                    part(b"delete");
                    part(key.as_bytes());
                }
            }
        }
        Self { revision, digest: hash.finalize().into() }
    }
}

/// What became of an attempt to go on from a resume point.
#[derive(Debug)]
pub enum Resumed {
    /// The same history: the watch goes on after the witness. It was at this revision when asked.
    Same(Watch, Revision),
    /// Another one, or one that cannot be told from another: everything has to be listed and
    /// compared. Why.
    Other(String),
}

/// Watches `prefix` from where it was left, if the store is still the same.
///
/// # Errors
/// Those of the store: nothing is known then.
pub async fn resume(
    store: &dyn Store,
    prefix: &str,
    point: &ResumePoint,
) -> Result<Resumed, StoreError> {
    // Linearizable, so that a member that merely lags is not taken for a store that went back.
    let newest = Range { prefix: prefix.to_owned(), after: None, limit: 1, revision: None };
    let current = store.range(newest).await?.revision;
    if current < point.revision {
        return Ok(Resumed::Other(format!(
            "it is at revision {current}, and was at {} before",
            point.revision
        )));
    }
    let Witness { revision, digest } = &point.witness;
    let mut watch = store.watch(prefix, *revision).await?;
    let silent = || StoreError::Unavailable("a watch has not begun within 10 s".to_owned());
    loop {
        let first = timeout(ANSWERS_WITHIN, watch.events.recv()).await.map_err(|_| silent())?;
        return match first {
            Some(WatchEvent::Commit { revision: at, events }) => {
                let seen = Witness::of(at, &events);
                Ok(if at == *revision && seen.digest == *digest {
                    Resumed::Same(watch, current)
                } else if at == *revision {
                    Resumed::Other(format!("its revision {revision} is another commit than it was"))
                } else {
                    Resumed::Other(format!("it has no commit at revision {revision} any more"))
                })
            }
            // Said while the watch was being set up. At or above the witness without it, it is a
            // verdict.
            Some(WatchEvent::Progress { revision: at }) if at < *revision => continue,
            Some(WatchEvent::Progress { .. }) => {
                Ok(Resumed::Other(format!("it has no commit at revision {revision} any more")))
            }
            Some(WatchEvent::Compacted { oldest }) => Ok(Resumed::Other(format!(
                "its revision {revision} is compacted, the oldest is {oldest}"
            ))),
            Some(WatchEvent::Ended(error)) => Err(error),
            None => Err(StoreError::Unavailable("the watch ended at once".to_owned())),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::embedded::Embedded;
    use crate::store::{Op, Txn};

    async fn store_with(values: &[&str]) -> Arc<Embedded> {
        let store = Arc::new(Embedded::in_memory().await.unwrap());
        for value in values {
            let ops = match *value {
                "-" => vec![Op::delete("/t/x")],
                value => vec![Op::put("/t/x", value.to_owned())],
            };
            store.commit(Txn { guards: vec![], ops }).await.unwrap();
        }
        store
    }

    /// Follows to the end and says from where to go on.
    async fn point(store: &dyn Store, commits: usize) -> ResumePoint {
        let mut watch = store.watch("/t/", 1).await.unwrap();
        let mut witness = None;
        let mut seen = 0;
        while seen < commits {
            if let Some(WatchEvent::Commit { revision, events }) = watch.events.recv().await {
                witness = Some(Witness::of(revision, &events));
                seen += 1;
            }
        }
        let witness = witness.unwrap();
        ResumePoint { revision: witness.revision, witness }
    }

    async fn other(store: &dyn Store, point: &ResumePoint) -> String {
        match resume(store, "/t/", point).await.unwrap() {
            Resumed::Other(why) => why,
            Resumed::Same(..) => panic!("taken for the same"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_store_goes_on_after_the_witness() {
        let store = store_with(&["a", "b", "-"]).await;
        let point = point(&*store, 3).await;
        assert_eq!(ResumePoint::from_bytes(&point.to_bytes()), Some(point.clone()));
        assert_eq!(ResumePoint::from_bytes(&point.to_bytes()[1..]), None);
        store.commit(Txn { guards: vec![], ops: vec![Op::put("/t/x", "c")] }).await.unwrap();
        let Resumed::Same(mut watch, current) = resume(&*store, "/t/", &point).await.unwrap()
        else {
            panic!("taken for another")
        };
        assert_eq!(current, 4);
        let next = watch.events.recv().await.unwrap();
        assert!(matches!(next, WatchEvent::Commit { revision: 4, .. }), "{next:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_went_back_is_another() {
        let before = store_with(&["a", "b", "c"]).await;
        let point = point(&*before, 3).await;
        let restored = store_with(&["a"]).await;
        assert!(other(&*restored, &point).await.contains("at revision 1, and was at 3"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_went_back_and_on_is_another_whatever_it_wrote() {
        let before = store_with(&["a", "b", "c"]).await;
        let point_of_put = point(&*before, 3).await;
        for after in [["a", "x", "y", "z"], ["a", "b", "-", "z"], ["b", "a", "d", "c"]] {
            let restored = store_with(&after).await;
            assert!(other(&*restored, &point_of_put).await.contains("another commit"));
        }
        let before = store_with(&["a", "b", "-"]).await;
        let point_of_delete = point(&*before, 3).await;
        let restored = store_with(&["a", "b", "c", "-"]).await;
        assert!(other(&*restored, &point_of_delete).await.contains("another commit"));
        // Something else happened at that revision, elsewhere.
        let restored = store_with(&["a", "b"]).await;
        for key in ["/other", "/t/x"] {
            let ops = vec![Op::put(key, "v")];
            restored.commit(Txn { guards: vec![], ops }).await.unwrap();
        }
        assert!(other(&*restored, &point_of_delete).await.contains("no commit at revision 3"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_checked_is_another() {
        let store = store_with(&["a", "b", "c", "d"]).await;
        let point = point(&*store, 2).await;
        store.compact(4).await.unwrap();
        assert!(other(&*store, &point).await.contains("is compacted"));
    }
}
