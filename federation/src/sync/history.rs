//! Whether a store is still the one that was followed.
//!
//! A restored etcd keeps its cluster id, its member ids and its raft term, answers a watch from a
//! revision that it has not reached with silence, and carries on as if nothing had happened once
//! it has passed it. What it cannot repeat is a number that was drawn
//! for this one commit: the leader writes such a [mark](facts::mark_op) with each of its beacons. A
//! [`ResumePoint`] holds a digest of everything that happened from the last mark up to the point,
//! and of nothing else having happened there; the watch is resumed *at* the mark, and the store has
//! to say all of it again before anything is believed.
//!
//! Turned down: the last commits, however many, without a mark. All of them may come again, at the
//! same revisions, after something else: an election key that is deleted, a session's next number,
//! what a mirror is sent once more by a peer. And the newest commit alone: those of others may have
//! carried the point past it, and a store that was restored to between them would pass.

use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::timeout;

use super::facts;
use crate::store::{Event, Range, Revision, Store, StoreError, Watch, WatchEvent};

/// A store that was asked for a commit that it has, and does not send it for so long, is not
/// there.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// A mark that is so many revisions back (no leader has written for long) is not gone back to:
/// listing is cheaper.
pub(super) const LONGEST: Revision = 20_000;

/// Up to where a store was followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResumePoint {
    /// All commits up to this one were seen.
    pub revision: Revision,
    /// What shows that another store is not this one.
    pub witness: Witness,
}

impl ResumePoint {
    /// For the disk: two revisions and the digest.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let revisions = [self.revision, self.witness.since].map(u64::to_be_bytes).concat();
        [&revisions[..], &self.witness.digest].concat()
    }

    /// Reads what [`Self::to_bytes`] wrote; `None` for anything else.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (revision, rest) = bytes.split_first_chunk::<8>()?;
        let (since, digest) = rest.split_first_chunk::<8>()?;
        let witness =
            Witness { since: u64::from_be_bytes(*since), digest: digest.try_into().ok()? };
        Some(Self { revision: u64::from_be_bytes(*revision), witness })
    }
}

/// What a store did since its last mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    /// The commit that has the mark, the first that it covers.
    pub since: Revision,
    /// SHA-256 over all that happened from there on: revisions, keys, values, when keys
    /// were created, and which were deletes.
    pub digest: [u8; 32],
}

/// What a store has done since its last mark, as it was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trail(Option<Witness>);

impl Trail {
    /// Adds the next commit's events, which are in key order.
    pub fn note(&mut self, revision: Revision, events: &[Event]) {
        let marked = events.iter().any(is_mark);
        let before = self.0.take().filter(|_| !marked);
        if !marked && before.is_none() {
            return;
        }
        let mut hash = Sha256::new();
        hash.update(before.as_ref().map_or([0; 32], |witness| witness.digest));
        hash.update(revision.to_be_bytes());
        hash.update(digest(events));
        let since = before.map_or(revision, |witness| witness.since);
        self.0 = Some(Witness { since, digest: hash.finalize().into() });
    }

    /// `None` before any mark was seen, and if the last one is too far from `upto`: nothing could
    /// prove that a store is still the same.
    #[must_use]
    pub fn witness(&self, upto: Revision) -> Option<Witness> {
        self.0.clone().filter(|witness| upto.saturating_sub(witness.since) <= LONGEST)
    }
}

fn is_mark(event: &Event) -> bool {
    matches!(event, Event::Put(entry) if facts::is_mark(&entry.key, &entry.value))
}

fn digest(events: &[Event]) -> [u8; 32] {
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
                part(&entry.create_revision.to_be_bytes());
            }
            Event::Delete { key, .. } => {
                part(b"delete");
                part(key.as_bytes());
            }
        }
    }
    hash.finalize().into()
}

/// What became of an attempt to go on from a resume point.
#[derive(Debug)]
pub enum Resumed {
    /// The same history.
    Same(Going),
    /// Another one, or one that cannot be told from another: everything has to be listed and
    /// compared. Why.
    Other(String),
}

/// A watch that goes on after a resume point.
#[derive(Debug)]
pub struct Going {
    /// The rest of it.
    pub watch: Watch,
    /// What it has said of after the point already, if anything.
    pub next: Option<WatchEvent>,
    /// What it did from the mark up to the point.
    pub trail: Trail,
    /// The revision that the store had come to when it was asked.
    pub current: Revision,
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
    let watch = store.watch(prefix, point.witness.since).await?;
    replay(watch, point, current).await
}

/// Until the watch has said all up to the point. What it is asked for has happened, so it comes;
/// with a member that lags, once that is there.
async fn replay(
    mut watch: Watch,
    point: &ResumePoint,
    current: Revision,
) -> Result<Resumed, StoreError> {
    let since = point.witness.since;
    let (mut trail, mut newest) = (Trail::default(), 0);
    let silent = || StoreError::Unavailable("a watch has not caught up within 10 s".to_owned());
    // If the newest commit is at the point, there is nothing between them to be waited for.
    let mut next = None;
    while newest < point.revision {
        let event = timeout(ANSWERS_WITHIN, watch.events.recv()).await.map_err(|_| silent())?;
        match event {
            Some(WatchEvent::Commit { revision, events }) if revision <= point.revision => {
                trail.note(revision, &events);
                newest = revision;
            }
            // Said while the watch was being set up.
            Some(WatchEvent::Progress { revision }) if revision < point.revision => {}
            Some(event @ (WatchEvent::Commit { .. } | WatchEvent::Progress { .. })) => {
                next = Some(event);
                break;
            }
            Some(WatchEvent::Compacted { oldest }) => {
                let why = format!("its revision {since} is compacted, the oldest is {oldest}");
                return Ok(Resumed::Other(why));
            }
            Some(WatchEvent::Ended(error)) => return Err(error),
            None => return Err(StoreError::Unavailable("the watch ended at once".to_owned())),
        }
    }
    if trail.0.as_ref() == Some(&point.witness) {
        return Ok(Resumed::Same(Going { watch, next, trail, current }));
    }
    Ok(Resumed::Other(format!(
        "what it did from revision {since} to {} is not what it did before",
        point.revision
    )))
}

#[cfg(test)]
mod tests;
