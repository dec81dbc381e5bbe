//! Asking the peers what this region once said.
//!
//! A region whose store is new may be a new region, or one that has lost its store. Its peers still
//! hold what it said: each is asked once ([`Recover`](wire::RecoverRequest)), and what an owner has
//! not said anew is written as it was, stale until its owner speaks (RELIABILITY promise 16). The
//! answers come through the same intake as a subscription: a peer can give nothing but this
//! region's own records.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::intake::{Accept, Intake, IntakeError};
use super::leader::{Leader, LeaderError, persist};
use super::reseed::{Seed, seed_owner};
use super::transactions::{Changes, by_owner};
use super::transport::{Dial, Transport};
use super::{chain, client, facts};
use crate::key::Kind;
use crate::names::{Owner, RegionName};
use crate::proto::federation as wire;
use crate::record::READS_LEVEL;
use crate::replica::{self, Batch};
use crate::store::{self, Guard, Op, Txn};

/// A peer that does not answer for so long is asked again later.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// Why a peer could not be asked.
#[derive(Debug, thiserror::Error)]
enum RecoverError {
    #[error("the peer cannot be asked: {}", .0.message())]
    Peer(Box<tonic::Status>),
    #[error("the peer does not answer within 10 s")]
    Silent,
    #[error("the peer ended before it had said all")]
    Cut,
    #[error(transparent)]
    Intake(#[from] IntakeError),
}

impl From<tonic::Status> for RecoverError {
    fn from(status: tonic::Status) -> Self {
        Self::Peer(Box::new(status))
    }
}

/// Asks one peer until it has answered, and writes what this store lacks. Returns how many records
/// that was.
///
/// # Errors
/// Those of writing as the leader that do not pass: a peer that cannot be reached is asked again,
/// and a store that cannot be written is tried again with what the peer has said.
pub async fn recover(
    leader: &Leader,
    region: &RegionName,
    peer: &RegionName,
    way: impl Dial,
) -> Result<usize, LeaderError> {
    let mut backoff = client::backoff();
    loop {
        let asked = timeout(ANSWERS_WITHIN, ask(region, way.dial())).await;
        match asked.unwrap_or(Err(RecoverError::Silent)) {
            Ok(batch) => return write(leader, peer, batch).await,
            Err(error) => {
                debug!(%peer, error = chain(&error), "a peer could not be asked what this region had said");
            }
        }
        tokio::time::sleep(backoff.next().unwrap_or(client::MAX_BACKOFF)).await;
    }
}

/// All that the peer holds of this region.
async fn ask(region: &RegionName, channel: impl Transport) -> Result<Batch, RecoverError> {
    let request = wire::RecoverRequest { reads_level: READS_LEVEL };
    let mut responses = client::client(channel).recover(request).await?.into_inner();
    let mut intake = Intake::new(Accept::Region(region.clone()));
    // Compared with nothing: what is there already is found out when it is written.
    let (nothing, _) = replica::channel();
    let nothing = nothing.current();
    let mut all = Batch::default();
    while let Some(response) = responses.message().await? {
        let step = intake.receive(response, &nothing)?;
        all.items.extend(step.batch.items);
        all.complete.extend(step.batch.complete);
        all.newest.extend(step.batch.newest);
        if step.synced {
            return Ok(all);
        }
    }
    Err(RecoverError::Cut)
}

/// An owner whose records were all written before the store failed has spoken then, and is left
/// alone; of one that was cut short all is written again.
async fn write(leader: &Leader, peer: &RegionName, batch: Batch) -> Result<usize, LeaderError> {
    let doing = "writing what a peer gave back";
    persist(doing, || seed(leader, peer, batch.clone())).await
}

/// Owners that have said nothing to this store get what the peer has of them.
async fn seed(leader: &Leader, peer: &RegionName, batch: Batch) -> Result<usize, LeaderError> {
    let mut written = 0;
    for (owner, changes) in by_owner(batch, |_| None) {
        if has_spoken(leader, &owner).await? {
            if owner.cluster.is_none() {
                written += decisions(leader, changes).await?;
            }
            continue;
        }
        let records = changes.items.into_iter().filter(|(_, value)| value.is_some());
        let seed = Seed {
            records: records.collect(),
            complete: changes.complete,
            newest: changes.newest,
            said_revision: 0,
        };
        written += seed_owner(leader, &owner, seed).await?;
    }
    if written > 0 {
        warn!(%peer, records = written, "this region's store was lost: a peer gave back what it had of it");
    } else {
        info!(%peer, "the peer had nothing of this region that its store lacks");
    }
    Ok(written)
}

/// The region has spoken before this peer could be asked: what had been decided stands all the same.
async fn decisions(leader: &Leader, changes: Changes) -> Result<usize, LeaderError> {
    let mut written = 0;
    let decisions = changes.items.into_iter().filter(|(key, _)| key.kind == Kind::Decision);
    for (key, value) in decisions {
        let Some(value) = value else { continue };
        let guards = vec![Guard::ModRevision(key.to_string(), 0)];
        let ops = vec![Op::put(key.to_string(), value)];
        written += usize::from(leader.commit_guarded(Txn { guards, ops }).await?.is_done());
    }
    Ok(written)
}

/// Whether the owner published to this store, or is about to.
async fn has_spoken(leader: &Leader, owner: &Owner) -> Result<bool, LeaderError> {
    let store = Arc::clone(&leader.store);
    for key in [facts::said_key(owner), facts::session_key(owner)] {
        if store::read(&*store, &key).await?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests;
