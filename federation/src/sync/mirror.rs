//! The leader's copies of what its peers own, and its own region's records.
//!
//! For each peer: subscribe to what the peer's region owns, commit it to the own store, the bytes
//! as they came, the peer's position in the same transaction as the data, every transaction fenced
//! by the leadership. Pull only: a peer cannot write here, it can only be believed about itself.

use tokio::sync::watch;
use tokio::time::Instant;
use tonic::transport::Channel;
use tracing::{info, warn};

use super::client::{self, Link};
use super::intake::{Accept, Intake, IntakeError};
use super::leader::{Leader, LeaderError};
use super::{chain, facts};
use crate::names::RegionName;
use crate::store;

/// Why mirroring ends.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// The own store does not take it.
    #[error(transparent)]
    Leader(#[from] LeaderError),
    /// The peer, or the way to it.
    #[error("the peer cannot be followed: {}", .0.message())]
    Peer(Box<tonic::Status>),
    /// What the peer sent.
    #[error(transparent)]
    Intake(#[from] IntakeError),
    /// The peer went away.
    #[error("the peer closed the stream")]
    Closed,
}

impl From<tonic::Status> for MirrorError {
    fn from(status: tonic::Status) -> Self {
        Self::Peer(Box::new(status))
    }
}

/// Mirrors `peer` for as long as the leadership holds.
///
/// # Errors
/// Only [`LeaderError::NotLeader`] and [`LeaderError::Stopping`]; all else is tried again.
pub async fn mirror(
    leader: Leader,
    peer: RegionName,
    channel: Channel,
    link: watch::Sender<Link>,
) -> LeaderError {
    let mut backoff = client::backoff();
    loop {
        let started = Instant::now();
        let ended = mirror_once(leader.clone(), &peer, channel.clone(), &link).await;
        let error = match ended {
            Err(MirrorError::Leader(error @ (LeaderError::NotLeader | LeaderError::Stopping))) => {
                return error;
            }
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
    let current = leader.store.range(now).await.map_err(LeaderError::Store)?.revision;
    leader.caught_up(current).await?;
    let mut intake = Intake::new(Accept::Region(peer.clone()));
    let request = intake.request(&leader.replicas.current());
    let mut responses = client::client(channel).subscribe(request).await?.into_inner();
    loop {
        let response = responses.message().await?.ok_or(MirrorError::Closed)?;
        let step = intake.receive(response, &leader.replicas.current())?;
        let resume = step.position.filter(|_| step.synced || !step.batch.is_empty());
        let resume = resume.map(|position| facts::resume_op(peer, position));
        if let Some(revision) = leader.commit(step.batch, resume).await? {
            leader.caught_up(revision).await?;
        }
        if step.synced {
            info!(%peer, "mirror in step: this region holds all that the peer owns");
            link.send_replace(Link { synced: true, ..Link::default() });
        }
    }
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
