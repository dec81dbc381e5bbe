//! Writing back what a store has lost.
//!
//! A store that was restored from a backup has forgotten what was said since; a new one has
//! forgotten everything. What this region's processes still hold, and what its peers hold of it,
//! is written back by the leader, as it was received, so that every process and every peer goes on
//! seeing it until its owner speaks again (RELIABILITY promise 16). Promises: an owner that has
//! spoken to the new store wins: each transaction compares when the owner last said anything here,
//! and what it said since is looked at before another attempt;
//! the fact up to which change an owner is known comes last, so that a part is never taken for all.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;
use tracing::{info, warn};

use super::facts;
use super::follower::{Following, LostOwner};
use super::leader::{Leader, LeaderError};
use super::transactions::{Changes, transactions};
use crate::key::{Key, Kind};
use crate::names::Owner;
use crate::record::{Epoch, Newest};
use crate::replica::{Holding, Replica};
use crate::store::{Commit, Guard, Range, Revision, Txn};

/// How often an owner that goes on speaking may come in between: each time takes a moment.
const ATTEMPTS: usize = 20;

/// One owner's records as somebody else still has them.
#[derive(Debug, Clone, Default)]
pub struct Seed {
    /// Verbatim; `None` for what its owner had removed.
    pub records: Vec<(Key, Option<Bytes>)>,
    /// What was complete.
    pub complete: Vec<(Kind, Epoch)>,
    /// The owner's newest change in it.
    pub newest: Option<Newest>,
    /// When the owner's last word was written in this store; 0: never.
    pub said_revision: Revision,
}

/// Writes back what the follower found lost, once it follows the store that `leader` writes to.
/// Returns how many records it was.
///
/// # Errors
/// See [`LeaderError`].
pub async fn reseed(
    leader: &mut Leader,
    following: &watch::Receiver<Following>,
) -> Result<usize, LeaderError> {
    let mut records = 0;
    for _ in 0..ATTEMPTS {
        let key = facts::election_key();
        let now = Range { prefix: key, after: None, limit: 1, revision: None };
        let current = leader.store.range(now).await?.revision;
        leader.caught_up(current).await?;
        let lost = Arc::clone(&following.borrow().lost);
        if lost.owners.is_empty() {
            return Ok(records);
        }
        let replica = leader.replicas.peek();
        let mut spoke = false;
        for (owner, lost) in &lost.owners {
            let Some(holding) = replica.holding(owner) else { continue };
            match write_back(leader, owner, held(&replica, holding, lost)).await? {
                Some(written) => records += written,
                None => spoke = true,
            }
        }
        if !spoke {
            return Ok(records);
        }
    }
    warn!(
        "owners go on speaking while what the store lost of them is written back: it is left to them"
    );
    Ok(records)
}

fn held(replica: &Replica, holding: &Holding, lost: &LostOwner) -> Seed {
    let value = |key: &Key| (key.clone(), replica.get(key).map(|entry| entry.value.clone()));
    Seed {
        records: lost.keys.keys().map(value).collect(),
        complete: holding.complete().iter().map(|(kind, epoch)| (*kind, epoch.clone())).collect(),
        newest: holding.newest().cloned(),
        said_revision: lost.said_revision,
    }
}

/// Writes one owner's records, unless it has said something since. Returns how many.
///
/// # Errors
/// See [`LeaderError`].
pub async fn seed_owner(leader: &Leader, owner: &Owner, seed: Seed) -> Result<usize, LeaderError> {
    Ok(write_back(leader, owner, seed).await?.unwrap_or_default())
}

/// `None` if the owner has said something since.
async fn write_back(
    leader: &Leader,
    owner: &Owner,
    seed: Seed,
) -> Result<Option<usize>, LeaderError> {
    let count = seed.records.len();
    let said = Guard::ModRevision(facts::said_key(owner), seed.said_revision);
    let changes = Changes { items: seed.records, complete: seed.complete, ..Changes::default() };
    let newest = seed.newest.map(|newest| {
        facts::said_op(owner, &facts::Said { newest, removed: Vec::new(), more: false })
    });
    for mut txn in transactions(BTreeMap::from([(owner.clone(), changes)]), newest)? {
        txn.guards.push(said.clone());
        if !commit(leader, txn).await? {
            info!(%owner, "the owner spoke for itself while its records were written back");
            return Ok(None);
        }
    }
    warn!(%owner, records = count, "records that the store had lost were written back");
    Ok(Some(count))
}

/// Whether it was committed. Of the guards only the leader's is not about the owner.
async fn commit(leader: &Leader, txn: Txn) -> Result<bool, LeaderError> {
    if leader.commit_guarded(txn).await? != Commit::GuardFailed {
        return Ok(true);
    }
    let fence = Txn { guards: Vec::new(), ops: Vec::new() };
    match leader.commit_guarded(fence).await? {
        Commit::Done(_) => Ok(false),
        Commit::GuardFailed => Err(LeaderError::NotLeader),
    }
}
