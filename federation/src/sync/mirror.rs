//! The leader's copies of what its peers own, and its own region's records.
//!
//! For each peer: subscribe to what the peer's region owns, commit it to the own store, the bytes
//! as they came, the peer's position in the same transaction as the data, every transaction fenced
//! by the leadership. Pull only: a peer cannot write here, it can only be believed about itself.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use super::client::{self, Link};
use super::intake::{Accept, Intake, IntakeError, Step};
use super::leader::{Leader, LeaderError};
use super::service::{Bucket, Rate};
use super::transactions::{by_owner, epoch_of_removal, transactions};
use super::transport::{Dial, Transport};
use super::{chain, facts, follower};
use crate::key::{Key, Kind};
use crate::names::{Owner, RegionName};
use crate::record::{Body, Record};
use crate::replica::{self, Batch, Holding, ReplicaWriter};
use crate::store::{self, Commit, Guard, Revision};

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
    /// The own store is not as this mirror left it.
    #[error("the own store went back: what it has of the peer is read anew")]
    Moved,
    /// The peer went away.
    #[error("the peer closed the stream")]
    Closed,
    /// The replica of the peer hears nothing of its store.
    #[error(transparent)]
    Quiet(#[from] client::Quiet),
    /// This region was told that the peer has left the mesh.
    #[error(
        "the peer has left as {0}: it is mirrored again as another incarnation, or once its leave is withdrawn"
    )]
    Left(String),
}

impl MirrorError {
    /// Whether the store may have something else of the peer than what was committed and answered.
    fn doubts_the_store(&self) -> bool {
        match self {
            Self::Peer(_) | Self::Closed | Self::Quiet(_) => false,
            Self::Intake(error) => error.distrusts_positions(),
            // What has left is deleted by others.
            Self::Leader(_) | Self::Moved | Self::Left(_) => true,
        }
    }
}

impl From<tonic::Status> for MirrorError {
    fn from(status: tonic::Status) -> Self {
        Self::Peer(Box::new(status))
    }
}

/// What is written of one peer: all that it may have at once, and then a hundred slices of 25
/// endpoints a second of two clusters. The store keeps each version for an hour, and a peer that
/// rewrites its records without end would fill it within its quota.
const CHANGES: Rate = Rate { per_second: 512 << 10, burst: 1 << 30 };

/// Mirrors `peer` for as long as the leadership holds; nothing of it while it is the incarnation
/// that this region has `forgotten`.
///
/// # Errors
/// Only [`LeaderError::NotLeader`] and [`LeaderError::Stopping`]; all else is tried again.
pub async fn mirror(
    leader: Leader,
    peer: RegionName,
    way: impl Dial,
    link: watch::Sender<Link>,
    forgotten: Option<String>,
) -> LeaderError {
    mirror_at(CHANGES, leader, peer, way, link, forgotten).await
}

/// The same for a peer that is read more slowly when it changes faster than this.
pub(super) async fn mirror_at(
    changes: Rate,
    leader: Leader,
    peer: RegionName,
    way: impl Dial,
    link: watch::Sender<Link>,
    forgotten: Option<String>,
) -> LeaderError {
    // Over all streams: else a new one would be a new burst.
    let mut pace = Pace { bucket: Bucket::full(changes, Instant::now()), slowed: false };
    let mut backoff = client::backoff();
    // What differs is sent whole after this.
    let mut distrusted = false;
    // What the store has of the peer, while nothing casts doubt on that: a peer that is down is
    // dialled at every attempt, and the store is not read for it.
    let mut known: Option<Mirroring<'_>> = None;
    loop {
        let started = Instant::now();
        let mut intake = Intake::new(Accept::Region(peer.clone()));
        let mirroring = match known.take() {
            Some(mirroring) => Ok(mirroring),
            None => Mirroring::read(leader.clone(), &peer, &link).await,
        };
        let ended = match mirroring {
            Ok(mirroring) => {
                let mirroring = Mirroring { forgotten: forgotten.as_deref(), ..mirroring };
                known.insert(mirroring).run(way.dial(), &mut intake, distrusted, &mut pace).await
            }
            Err(error) => Err(error),
        };
        let error = match ended {
            Err(MirrorError::Leader(error @ (LeaderError::NotLeader | LeaderError::Stopping))) => {
                return error;
            }
            Err(error) => error,
            Ok(never) => match never {},
        };
        distrusted = matches!(&error, MirrorError::Intake(error) if error.distrusts_positions());
        if error.doubts_the_store() {
            known = None;
        }
        let mismatch = matches!(error, MirrorError::Intake(IntakeError::DigestMismatch { .. }));
        link.send_modify(|link| link.mismatches += u64::from(mismatch));
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
    forgotten: Option<&'a str>,
    /// What the store has of the peer: read from it, and what was committed since. Not this
    /// process's replica: when a store was restored, that one is of another history until its
    /// follower has noticed.
    held: ReplicaWriter,
    /// Up to where the peer was mirrored.
    position: u64,
    /// When that was written; 0: never. Every commit writes it anew and compares it, so that a store
    /// that went back is noticed before anything is built on what it has lost.
    resume_revision: Revision,
}

impl<'a> Mirroring<'a> {
    /// A commit of an earlier leader, or one of this one that had no answer, may have happened: what
    /// follows compares with the store as it is now.
    async fn read(
        leader: Leader,
        peer: &'a RegionName,
        link: &'a watch::Sender<Link>,
    ) -> Result<Self, MirrorError> {
        let store = Arc::clone(&leader.store);
        let key = facts::resume_key(peer);
        // Before the listings: what is written in between is found at the first commit.
        let resume = store::read(&*store, &key).await.map_err(LeaderError::from)?;
        let (held, _) = replica::channel();
        for prefix in facts::prefixes_of(peer) {
            let listed = store::list(&*store, &prefix).await.map_err(LeaderError::from)?.0;
            held.apply(follower::read(listed), Instant::now());
        }
        Ok(Self {
            leader,
            peer,
            link,
            forgotten: None,
            held,
            position: resume.as_ref().map_or(0, |entry| facts::resume_position(&entry.value)),
            resume_revision: resume.map_or(0, |entry| entry.mod_revision),
        })
    }

    async fn run(
        &mut self,
        channel: impl Transport,
        intake: &mut Intake,
        distrusted: bool,
        pace: &mut Pace,
    ) -> Result<std::convert::Infallible, MirrorError> {
        let position = if distrusted { 0 } else { self.position };
        let request = intake.request(&self.held.current(), position);
        let mut responses = client::client(channel).subscribe(request).await?.into_inner();
        loop {
            let response = client::next(&mut responses).await??.ok_or(MirrorError::Closed)?;
            let step = intake.receive(response, &self.held.current());
            client::note_strays(self.link, intake);
            let step = step?;
            // What the region says of itself is the first that comes of it.
            if let Some(incarnation) = self.forgotten.filter(|left| says(&step, self.peer, left)) {
                return Err(MirrorError::Left(incarnation.to_owned()));
            }
            let written = self.apply(&step).await?;
            if step.synced {
                info!(peer = %self.peer, "mirror in step: this region holds all that the peer owns");
                client::in_step(self.link);
            }
            pace.keep(self.peer, written).await;
        }
    }

    /// Commits a step, the peer's position with it: apart from the data it could say that something
    /// is here that is not. Returns how many bytes that took.
    async fn apply(&mut self, step: &Step) -> Result<usize, MirrorError> {
        if step.batch.is_empty() && !step.synced {
            return Ok(0);
        }
        let mut bytes = 0;
        for owner in &step.batch.forgotten {
            self.leader.forget(owner).await?;
        }
        let position = step.position.unwrap_or(self.position);
        let held = self.held.current();
        let mut changes = by_owner(step.batch.clone(), |key| epoch_of_removal(&held, key));
        for (owner, changes) in &mut changes {
            changes.follow_on(held.holding(owner).and_then(Holding::newest));
        }
        // As the store has it then: removals count, too.
        let newest =
            changes.iter().filter_map(|(owner, of)| Some((owner.clone(), of.newest.clone()?)));
        let batch = Batch { newest: newest.collect(), ..step.batch.clone() };
        let resume = facts::resume_op(self.peer, position);
        let written = Guard::ModRevision(facts::resume_key(self.peer), self.resume_revision);
        for mut txn in transactions(changes, Some(resume)).map_err(LeaderError::from)? {
            txn.guards.push(written.clone());
            bytes += txn.ops.iter().map(store::Op::bytes).sum::<usize>();
            match self.leader.commit_guarded(txn).await? {
                Commit::Done(revision) => self.resume_revision = revision,
                Commit::GuardFailed if self.leader.leads().await? => {
                    return Err(MirrorError::Moved);
                }
                Commit::GuardFailed => return Err(LeaderError::NotLeader.into()),
            }
        }
        self.position = position;
        self.held.apply(batch, Instant::now());
        Ok(bytes)
    }
}

/// How fast a peer's changes are written. What is not read meanwhile is merged at the peer: what
/// comes next is the newest of each key.
struct Pace {
    bucket: Bucket,
    /// It has been said that the peer is too fast.
    slowed: bool,
}

impl Pace {
    async fn keep(&mut self, peer: &RegionName, written: usize) {
        let wait = self.bucket.charge(written, Instant::now());
        if wait.is_zero() {
            return;
        }
        if !std::mem::replace(&mut self.slowed, true) {
            warn!(%peer, ?wait, "the peer changes more than is written of one: it is read more slowly");
        }
        tokio::time::sleep(wait).await;
    }
}

/// Whether the peer says in it that it is this incarnation.
fn says(step: &Step, peer: &RegionName, incarnation: &str) -> bool {
    let key = Key::of_owner(Owner::region(peer.clone()), Kind::Region);
    let value = step.batch.items.iter().find(|(of, _)| *of == key).map(|(_, value)| value);
    let record = value.and_then(|value| Record::open(&key, value.as_ref()?).ok());
    match record.map(|record| record.body) {
        Some(Body::Region(region)) => region.incarnation == incarnation,
        _ => false,
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
