//! The leader's copies of what its peers own, and its own region's records.
//!
//! For each peer: subscribe to what the peer's region owns, commit it to the own store, the bytes
//! as they came, the peer's position in the same transaction as the data, every transaction fenced
//! by the leadership. Pull only: a peer cannot write here, it can only be believed about itself.

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use super::client::{self, Link};
use super::intake::{Accept, Intake, IntakeError, Step};
use super::leader::{Leader, LeaderError};
use super::transport::Transport;
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
    channel: impl Transport,
    link: watch::Sender<Link>,
) -> LeaderError {
    let mut backoff = client::backoff();
    // What differs is sent whole after this.
    let mut distrusted = false;
    loop {
        let started = Instant::now();
        let mut intake = Intake::new(Accept::Region(peer.clone()));
        let mirroring = Mirroring { leader: leader.clone(), peer: &peer, link: &link };
        let ended = mirroring.run(channel.clone(), &mut intake, distrusted).await;
        let error = match ended {
            Err(MirrorError::Leader(error @ (LeaderError::NotLeader | LeaderError::Stopping))) => {
                return error;
            }
            Err(error) => error,
            Ok(never) => match never {},
        };
        distrusted = matches!(error, MirrorError::Intake(IntakeError::DigestMismatch { .. }));
        link.send_modify(|link| link.mismatches += u64::from(distrusted));
        client::note_left_out(&link, &intake);
        report(&link, &peer, &error);
        if started.elapsed() > client::MAX_BACKOFF * 2 {
            backoff = client::backoff();
        }
        tokio::time::sleep(backoff.next().unwrap_or(client::MAX_BACKOFF)).await;
    }
}

struct Mirroring<'a> {
    leader: Leader,
    peer: &'a RegionName,
    link: &'a watch::Sender<Link>,
}

impl Mirroring<'_> {
    async fn run(
        mut self,
        channel: impl Transport,
        intake: &mut Intake,
        distrusted: bool,
    ) -> Result<std::convert::Infallible, MirrorError> {
        let resume = self.caught_up().await?;
        let position = if distrusted { 0 } else { resume };
        let request = intake.request(&self.leader.replicas.current(), position);
        let mut responses = client::client(channel).subscribe(request).await?.into_inner();
        loop {
            let response = responses.message().await?.ok_or(MirrorError::Closed)?;
            let step = intake.receive(response, &self.leader.replicas.current())?;
            self.apply(&step).await?;
            if step.synced {
                info!(peer = %self.peer, "mirror in step: this region holds all that the peer owns");
                client::in_step(self.link);
            }
        }
    }

    /// A commit of an earlier attempt, or leader, may have happened without an answer: what follows
    /// compares with the store as it is now. Returns up to where the peer was mirrored.
    async fn caught_up(&mut self) -> Result<u64, LeaderError> {
        let prefix = facts::resume_key(self.peer);
        let now = store::Range { prefix: prefix.clone(), after: None, limit: 1, revision: None };
        let page = self.leader.store.range(now).await?;
        self.leader.caught_up(page.revision).await?;
        let resume = page.entries.iter().find(|entry| entry.key == prefix);
        Ok(resume.map_or(0, |entry| facts::resume_position(&entry.value)))
    }

    /// Commits a step, the peer's position with it: apart from the data it could say that something
    /// is here that is not.
    async fn apply(&mut self, step: &Step) -> Result<(), LeaderError> {
        let resume = step.position.filter(|_| step.synced || !step.batch.is_empty());
        let resume = resume.map(|position| facts::resume_op(self.peer, position));
        if let Some(revision) = self.leader.commit(step.batch.clone(), resume).await? {
            self.leader.caught_up(revision).await?;
        }
        Ok(())
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
