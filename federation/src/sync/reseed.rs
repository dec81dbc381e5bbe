//! Writing back what a store has lost.
//!
//! A store that was restored from a backup has forgotten what was said since; a new one has
//! forgotten everything. What this region's processes still hold, and what its peers hold of it,
//! is written back by the leader, as it was received, so that every process and every peer goes on
//! seeing it until its owner speaks again. Promises: an owner that has
//! spoken to the new store wins: each transaction compares when the owner last said anything here;
//! each but the last says that more follows, so that a part is never taken for all.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::follower::{Following, LostOwner};
use super::founding::Term;
use super::leader::{Leader, LeaderError, while_it_moves};
use super::transactions::{Changes, transactions};
use super::{chain, client, facts};
use crate::key::{Key, Kind};
use crate::names::{Owner, RegionName};
use crate::record::{Epoch, Newest};
use crate::replica::{Holding, Replica};
use crate::store::{Commit, Guard, Revision};

/// One owner's records as somebody else still has them.
#[derive(Debug, Clone, Default)]
pub struct Seed {
    /// Verbatim; `None` for what is removed.
    pub records: Vec<(Key, Option<Bytes>)>,
    /// What was complete.
    pub complete: Vec<(Kind, Epoch)>,
    /// The owner's newest change in it.
    pub newest: Option<Newest>,
    /// When the owner's last word was written in this store; 0: never.
    pub said_revision: Revision,
}

/// Waits until the follower has read the leader's own `term` in the store: what it knew before may
/// be of another history, whose positions say nothing of this one. What is lost is known then.
///
/// # Errors
/// [`LeaderError::Stopping`], and [`LeaderError::Deaf`] if nothing is listed or heard for
/// [`HEARS_WITHIN`](super::leader::HEARS_WITHIN).
pub async fn follows(
    following: &watch::Receiver<Following>,
    term: &Term,
) -> Result<(), LeaderError> {
    let ours = |following: &Following| following.founding.as_ref() == Some(&term.founding);
    let wait = || {
        let mut following = following.clone();
        async move {
            let seen = following.wait_for(ours).await.map(drop);
            seen.map_err(|_| LeaderError::Stopping)
        }
    };
    // Not that it tries.
    let progress = || {
        let following = following.borrow();
        let heard = following.resume.as_ref().map(|point| point.revision);
        (following.listings, following.without_gap_since, heard)
    };
    while_it_moves(wait, progress).await
}

/// Writes back what the follower found lost, once it [`follows`]. Returns how many records it was.
///
/// # Errors
/// See [`LeaderError`].
pub async fn reseed(
    leader: &mut Leader,
    following: &watch::Receiver<Following>,
) -> Result<usize, LeaderError> {
    write_back(leader, following, |_| true).await
}

async fn write_back(
    leader: &mut Leader,
    following: &watch::Receiver<Following>,
    whose: impl Fn(&Owner) -> bool,
) -> Result<usize, LeaderError> {
    leader.catch_up().await?;
    let lost = Arc::clone(&following.borrow().lost);
    let replica = leader.replicas.peek();
    let mut records = 0;
    for (owner, lost) in lost.owners.iter().filter(|(owner, _)| whose(owner)) {
        let seed = replica.holding(owner).map(|holding| held(&replica, holding, lost));
        records += seed_owner(leader, owner, seed.unwrap_or_default()).await?;
    }
    Ok(records)
}

fn held(replica: &Replica, holding: &Holding, lost: &LostOwner) -> Seed {
    // What is held no more is what its owner has removed.
    let value = |key: &Key| (key.clone(), replica.get(key).map(|entry| entry.value.clone()));
    Seed {
        records: lost.keys.keys().map(value).collect(),
        complete: holding.complete().iter().map(|(kind, epoch)| (*kind, epoch.clone())).collect(),
        newest: holding.newest().cloned(),
        said_revision: lost.said_revision,
    }
}

/// Writes back what is found lost of this region while the leadership holds: a store may be restored
/// at any time, and its followers notice later. What was mirrored is the mirrors' to make good, which
/// must know all that is written of their peers.
///
/// # Errors
/// Only [`LeaderError::NotLeader`], [`LeaderError::Deaf`] and [`LeaderError::Stopping`]; all else is
/// tried again.
pub async fn keep_seeded(
    mut leader: Leader,
    region: RegionName,
    mut following: watch::Receiver<Following>,
) -> LeaderError {
    let mut backoff = client::backoff();
    loop {
        let own = |owner: &Owner| owner.region == region;
        let lost = following.wait_for(|following| following.lost.owners.keys().any(own)).await;
        if lost.map(drop).is_err() {
            return LeaderError::Stopping;
        }
        match write_back(&mut leader, &following, own).await {
            // Its owners have spoken since: their word resolves the rest.
            Ok(0) => debug!("nothing of what the store had lost is to be written back"),
            Ok(records) => info!(records, "what the store had lost was written back"),
            Err(
                error @ (LeaderError::NotLeader | LeaderError::Deaf(_) | LeaderError::Stopping),
            ) => return error,
            Err(error) => {
                warn!(error = chain(&error), "what the store lost is not written back yet");
            }
        }
        tokio::time::sleep(backoff.next().unwrap_or(client::MAX_BACKOFF)).await;
    }
}

/// Writes one owner's records, unless it has said something since. Returns how many.
///
/// # Errors
/// See [`LeaderError`].
pub async fn seed_owner(leader: &Leader, owner: &Owner, seed: Seed) -> Result<usize, LeaderError> {
    let Seed { records: items, complete, newest, said_revision } = seed;
    let count = items.len();
    let changes = Changes { items, newest, complete, ..Changes::default() };
    if !say_again(leader, owner, changes, said_revision).await? {
        return Ok(0);
    }
    warn!(%owner, records = count, "records that the store had lost were written back");
    Ok(count)
}

/// Commits what an owner had said, in as many parts as it takes, unless it has said something since
/// `said`, when its last word was written. Returns whether all was committed. Each part says that it
/// is one: whoever lists the store in between would take a part with the newest record for all.
pub(super) async fn say_again(
    leader: &Leader,
    owner: &Owner,
    changes: Changes,
    mut said: Revision,
) -> Result<bool, LeaderError> {
    for mut txn in transactions(BTreeMap::from([(owner.clone(), changes)]), None)? {
        txn.guards.push(Guard::ModRevision(facts::said_key(owner), said));
        match leader.commit_guarded(txn).await? {
            Commit::Done(revision) => said = revision,
            // Of the guards only the leader's is not about the owner.
            Commit::GuardFailed if leader.leads().await? => {
                info!(%owner, "the owner spoke for itself while its records were written back");
                return Ok(false);
            }
            Commit::GuardFailed => return Err(LeaderError::NotLeader),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;
    use crate::proto::local::Founding;
    use crate::sync::leader::HEARS_WITHIN;

    #[tokio::test(start_paused = true)]
    async fn a_leader_whose_process_cannot_read_the_store_gives_way() {
        let following = watch::Sender::new(Following::default());
        let founding = Founding { id: "id".into(), term: 7, ..Founding::default() };
        let term = Term { founding: founding.clone(), began: 3 };
        let following_rx = following.subscribe();
        let tries = async {
            loop {
                sleep(HEARS_WITHIN / 20).await;
                following.send_modify(|following| following.problem = Some("damaged".into()));
            }
        };
        tokio::select! {
            ended = follows(&following_rx, &term) => {
                assert!(matches!(ended, Err(LeaderError::Deaf(_))), "{ended:?}");
            }
            () = tries => {}
        }
        let reads = async {
            for listings in 1..5 {
                sleep(HEARS_WITHIN * 3 / 4).await;
                following.send_modify(|following| following.listings = listings);
            }
            following.send_modify(|following| following.founding = Some(founding.clone()));
        };
        let (followed, ()) = tokio::join!(follows(&following_rx, &term), reads);
        followed.unwrap();
    }
}
