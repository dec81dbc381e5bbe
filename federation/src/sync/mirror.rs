//! The leader's copies of what its peers own, and its own region's records.
//!
//! For each peer: subscribe to what the peer's region owns, commit it to the own store, the bytes
//! as they came, the peer's position in the same transaction as the data, every transaction fenced
//! by the leadership. Pull only: a peer cannot write here, it can only be believed about itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::Instant;
use tonic::transport::Channel;
use tracing::{info, warn};

use super::client::{self, Link};
use super::facts;
use super::intake::{Accept, Intake, IntakeError};
use super::own::OwnRecords;
use super::{BEACON_INTERVAL, chain};
use crate::key::{Key, Kind};
use crate::names::RegionName;
use crate::record::{Beacon, Body, Region};
use crate::replica::{Batch, Replicas};
use crate::store::{self, Commit, Guard, Op, Revision, Store, StoreError, Txn};

/// Why mirroring ends.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// Another process leads now: whatever this one still does commits nothing.
    #[error("this process is not the leader any more")]
    NotLeader,
    /// The own store did not do as told.
    #[error("the region's own store failed")]
    Store(#[from] StoreError),
    /// The peer, or the way to it.
    #[error("the peer cannot be followed: {}", .0.message())]
    Peer(Box<tonic::Status>),
    /// What the peer sent.
    #[error(transparent)]
    Intake(#[from] IntakeError),
    /// The peer went away.
    #[error("the peer closed the stream")]
    Closed,
    /// Nobody fills the replica any more.
    #[error("this process is stopping")]
    Stopping,
}

impl From<tonic::Status> for MirrorError {
    fn from(status: tonic::Status) -> Self {
        Self::Peer(Box::new(status))
    }
}

/// The own store, as a leader writes to it.
#[derive(Debug, Clone)]
pub struct Leader {
    /// Where to.
    pub store: Arc<dyn Store>,
    /// What every transaction compares.
    pub fence: Guard,
    /// Follows the store.
    pub replicas: Replicas,
}

impl Leader {
    /// Commits `ops`, in as many parts as it takes, and `last` with the last of them.
    async fn commit(&self, ops: Vec<Op>, last: Option<Op>) -> Result<Revision, MirrorError> {
        let mut parts = store::split(ops)?;
        if let Some(last) = last {
            match parts.last_mut() {
                Some(part) if has_room(part, &last) => part.ops.push(last),
                _ => parts.push(Txn { guards: Vec::new(), ops: vec![last] }),
            }
        }
        let mut revision = 0;
        for mut part in parts {
            part.guards.push(self.fence.clone());
            match self.store.commit(part).await? {
                Commit::Done(done) => revision = done,
                Commit::GuardFailed => return Err(MirrorError::NotLeader),
            }
        }
        Ok(revision)
    }

    /// Waits until the replica holds what was committed: the next comparison counts on it.
    async fn caught_up(&mut self, revision: Revision) -> Result<(), MirrorError> {
        let caught_up = self.replicas.wait_for(|replica| replica.position >= revision).await;
        caught_up.map(drop).ok_or(MirrorError::Stopping)
    }
}

fn has_room(part: &Txn, op: &Op) -> bool {
    let bytes: usize = part.ops.iter().map(Op::bytes).sum();
    part.ops.len() < store::MAX_OPS && bytes + op.bytes() <= store::MAX_TXN_BYTES
}

/// Mirrors `peer` for as long as the leadership holds.
///
/// # Errors
/// Only [`MirrorError::NotLeader`] and [`MirrorError::Stopping`]; all else is tried again.
pub async fn mirror(
    leader: Leader,
    peer: RegionName,
    channel: Channel,
    link: watch::Sender<Link>,
) -> MirrorError {
    let mut backoff = client::backoff();
    loop {
        let started = Instant::now();
        let ended = mirror_once(leader.clone(), &peer, channel.clone(), &link).await;
        let error = match ended {
            Err(error @ (MirrorError::NotLeader | MirrorError::Stopping)) => return error,
            Err(error) => error,
            Ok(never) => match never {},
        };
        report(&link, &peer, &error);
        if started.elapsed() > client::MAX_BACKOFF * 2 {
            backoff = client::backoff();
        }
        tokio::time::sleep(backoff.next().unwrap_or(client::MAX_BACKOFF)).await;
    }
}

async fn mirror_once(
    mut leader: Leader,
    peer: &RegionName,
    channel: Channel,
    link: &watch::Sender<Link>,
) -> Result<std::convert::Infallible, MirrorError> {
    // A commit of an earlier attempt may have happened without an answer: compare with the store
    // as it is now.
    let prefix = facts::election_key();
    let now = store::Range { prefix, after: None, limit: 1, revision: None };
    let current = leader.store.range(now).await?.revision;
    leader.caught_up(current).await?;
    let mut intake = Intake::new(Accept::Region(peer.clone()));
    let request = intake.request(&leader.replicas.current());
    let mut responses = client::client(channel).subscribe(request).await?.into_inner();
    loop {
        let response = responses.message().await?.ok_or(MirrorError::Closed)?;
        let step = intake.receive(response, &leader.replicas.current())?;
        let ops = operations(step.batch);
        let resume = step.position.filter(|_| step.synced || !ops.is_empty());
        let resume = resume.map(|position| facts::resume_op(peer, position));
        if !ops.is_empty() || resume.is_some() {
            let revision = leader.commit(ops, resume).await?;
            leader.caught_up(revision).await?;
        }
        if step.synced {
            info!(%peer, "mirror in step: this region holds all that the peer owns");
            link.send_replace(Link { synced: true, ..Link::default() });
        }
    }
}

/// What a batch means to the store. Markers may be read before the deletes that they vouch for:
/// to a reader that is following, a marker by itself removes nothing.
fn operations(batch: Batch) -> Vec<Op> {
    let (puts, deletes): (Vec<_>, Vec<_>) =
        batch.items.into_iter().partition(|(_, value)| value.is_some());
    let op = |(key, value): (Key, Option<bytes::Bytes>)| match value {
        Some(value) => Op::put(key.to_string(), value),
        None => Op::delete(key.to_string()),
    };
    let complete = batch.complete.iter();
    let complete = complete.map(|(owner, kind, epoch)| facts::complete_op(owner, *kind, epoch));
    puts.into_iter().map(op).chain(deletes.into_iter().map(op)).chain(complete).collect()
}

fn report(link: &watch::Sender<Link>, peer: &RegionName, error: &MirrorError) {
    let problem = chain(error);
    link.send_if_modified(|link| {
        let news = link.problem.as_ref() != Some(&problem);
        if news {
            warn!(%peer, error = problem, "mirror interrupted, what was mirrored stays in use");
        }
        link.synced = false;
        link.problem = Some(problem);
        news
    });
}

/// Writes the region's own records, and its beacon every 5 s, for as long as the leadership holds.
///
/// # Errors
/// Only when the leadership is lost, or the store is damaged.
pub async fn speak_for_region(
    leader: Leader,
    own: Arc<Mutex<OwnRecords>>,
    region: Region,
) -> MirrorError {
    // Held for the term: the next one goes on with its sequence, so that nothing that it says is
    // older than what this one said.
    let mut own = own.lock().await;
    own.forget();
    let key = Key::of_owner(own.owner().clone(), Kind::Region);
    let region = Arc::new(Body::Region(region));
    let beacon_key = Key::of_owner(own.owner().clone(), Kind::Beacon);
    let mut first = true;
    let mut nonce = 0;
    let mut backoff = client::backoff();
    loop {
        let mut batch = Batch::default();
        if first {
            batch = own
                .reconcile(&BTreeMap::from([(key.clone(), Arc::clone(&region))]), &BTreeMap::new());
            batch.complete = own.complete(&super::REGION_KINDS);
        }
        nonce += 1;
        batch.items.push(own.say(&beacon_key, &Arc::new(Body::Beacon(Beacon { nonce }))));
        let wait = match leader.commit(operations(batch), None).await {
            Ok(_) => {
                first = false;
                backoff = client::backoff();
                BEACON_INTERVAL
            }
            Err(MirrorError::Store(StoreError::Damaged(why))) => {
                return MirrorError::Store(StoreError::Damaged(why));
            }
            Err(error @ MirrorError::NotLeader) => return error,
            Err(error) => {
                warn!(error = chain(&error), "the region's own records could not be written");
                // Say everything again: what of the batch was committed is not known.
                own.forget();
                first = true;
                backoff.next().unwrap_or(Duration::from_secs(5))
            }
        };
        tokio::time::sleep(wait).await;
    }
}
