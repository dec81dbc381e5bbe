//! The agent's connections to its region: one publish stream, one subscription, for ever.
//!
//! Both reconnect with jittered backoff, and give up on nothing: what was received stays in use.
//! A stream that lives long enough to have been useful resets the backoff.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use tonic::{Code, Status, Streaming};
use tracing::{debug, info, warn};

use super::intake::{Accept, Intake, IntakeError, Strays};
use super::publisher::{Lacking, PublishError, Publisher, Said};
use super::transport::{Dial, Transport};
use super::{BEACON_INTERVAL, MAX_MESSAGE};
use crate::key::{Key, Kind};
use crate::names::{NamespaceName, Owner};
use crate::proto::federation as wire;
use crate::proto::federation::federation_client::FederationClient;
use crate::record::Epoch;
use crate::replica::{Removed, Replica, ReplicaWriter, Replicas};

/// Longest wait between two attempts.
pub const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// A stream that lasted so long was a success.
const LASTED: Duration = Duration::from_secs(10);

/// A region whose store lives says so every [`BEACON_INTERVAL`]. A server keeps a subscriber waiting
/// for its first message no longer than 15 s.
const QUIET: Duration = BEACON_INTERVAL.saturating_mul(4);

/// Waits between attempts: 100 ms growing to [`MAX_BACKOFF`], with jitter.
pub type Backoff = ExponentialBackoff;

/// The first of a row of attempts.
#[must_use]
pub fn backoff() -> Backoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(MAX_BACKOFF)
        .with_factor(2.0)
        .without_max_times()
        .with_jitter()
        .build()
}

/// Who a publisher is, and how it learns of its own join.
#[derive(Debug, Clone)]
pub struct Publication {
    /// The cluster.
    pub owner: Owner,
    /// Its UID.
    pub uid: String,
    /// This incarnation.
    pub epoch: Epoch,
    /// Where the region's word on the cluster's join goes.
    pub joined: watch::Sender<Option<Timestamp>>,
    /// The join that the records in the replica already respect.
    pub respected: watch::Receiver<Option<Timestamp>>,
    /// Who says what became of records that only the region has.
    pub judge: mpsc::Sender<Surplus>,
}

/// Where what the region holds of an owner is not what the owner declared, for the owner to judge.
#[derive(Debug)]
pub struct Surplus {
    /// As they are stored.
    pub records: Vec<(Key, Bytes)>,
    /// What the owner declared and the region lacks.
    pub lacking: Option<Lacking>,
    /// Which of all these are gone, and why. The others stay, or are said.
    pub gone: oneshot::Sender<BTreeMap<Key, Removed>>,
}

/// How a connection to the region stands, for status and readiness.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    /// All that there was at connect has been transferred, and the stream is up.
    pub synced: bool,
    /// Why the last attempt ended, if it did.
    pub problem: Option<String>,
    /// Records that the region did not take: key and reason.
    pub refused: BTreeMap<String, String>,
    /// What the other side sent that it should not have, since this process started.
    pub strays: Strays,
    /// How often what is held was not what the other side said that it should be.
    pub mismatches: u64,
}

impl Link {
    /// Nobody keeps this connection any more: how it stands is not known, what was counted is.
    #[must_use]
    pub fn given_up(&self) -> Self {
        let Self { strays, mismatches, .. } = self.clone();
        Self { strays, mismatches, ..Self::default() }
    }
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("{}", words(.0))]
    Call(Box<Status>),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error(transparent)]
    Intake(#[from] IntakeError),
    #[error("the region closed the stream")]
    Closed,
    #[error(transparent)]
    Quiet(#[from] Quiet),
    #[error("this process is stopping")]
    Stopping,
}

impl From<Status> for StreamError {
    fn from(status: Status) -> Self {
        Self::Call(Box::new(status))
    }
}

/// A status says what it is about in its message; the chain below it has the cause.
fn words(status: &Status) -> String {
    let code = match status.code() {
        Code::Unavailable => "the region cannot be reached",
        Code::Unauthenticated | Code::PermissionDenied => {
            "the region does not accept this identity"
        }
        _ => "the region ended the call",
    };
    // The status itself repeats its code and metadata; its cause, if any, is news.
    let cause = std::error::Error::source(status).map(|cause| format!(": {}", super::chain(cause)));
    format!("{code}: {}{}", status.message(), cause.unwrap_or_default())
}

/// Publishes the owner's records in the replica, for ever.
pub async fn publish(
    way: impl Dial,
    publication: Publication,
    mut replicas: Replicas,
    link: watch::Sender<Link>,
) {
    let own = publication.owner.clone();
    // The cluster's own record comes with the first complete reading of its source.
    let complete = |replica: &Replica| {
        let held = replica.holding(&own).map(crate::replica::Holding::complete);
        held.is_some_and(|held| held.contains_key(&Kind::Cluster))
    };
    if replicas.wait_for(complete).await.is_none() {
        return;
    }
    let mut backoff = backoff();
    let said = Said::default();
    loop {
        let started = Instant::now();
        let ended = publish_once(way.dial(), &publication, &said, &mut replicas, &link).await;
        if matches!(ended, StreamError::Stopping) {
            return;
        }
        report(&link, &ended, "publish stream ended");
        if started.elapsed() > LASTED {
            backoff = self::backoff();
        }
        tokio::time::sleep(backoff.next().unwrap_or(MAX_BACKOFF)).await;
    }
}

async fn publish_once(
    channel: impl Transport,
    publication: &Publication,
    said: &Said,
    replicas: &mut Replicas,
    link: &watch::Sender<Link>,
) -> StreamError {
    match publish_stream(channel, publication, said, replicas, link).await {
        Ok(()) => StreamError::Closed,
        Err(error) => error,
    }
}

async fn publish_stream(
    channel: impl Transport,
    publication: &Publication,
    said: &Said,
    replicas: &mut Replicas,
    link: &watch::Sender<Link>,
) -> Result<(), StreamError> {
    let Publication { owner, uid, epoch, .. } = publication;
    let publisher = Publisher::new(owner.clone(), uid.clone(), epoch.clone());
    let mut publisher = publisher.after(said.clone());
    // One message in flight beside the one being made: the region's acknowledgements are the
    // measure of how fast it takes them.
    let (requests, outbound) = mpsc::channel(1);
    let mut client = client(channel);
    requests.send(publisher.greet()).await.map_err(|_| StreamError::Closed)?;
    let outbound = tokio_stream::wrappers::ReceiverStream::new(outbound);
    let mut responses = client.publish(outbound).await?.into_inner();
    let mut queue = VecDeque::new();
    loop {
        // All three are cancel safe. Changes wait while messages do: what is sent next is then
        // the newest of each key. Reading never waits for sending, or both sides could; it comes
        // first, and cannot starve it: there is no more to read than was sent.
        tokio::select! {
            biased;
            response = responses.message() => {
                let response = response?.ok_or(StreamError::Closed)?;
                queue.extend(answer(&mut publisher, response, publication, replicas, link).await?);
            }
            permit = requests.reserve(), if !queue.is_empty() => {
                let permit = permit.map_err(|_| StreamError::Closed)?;
                if let Some(request) = queue.pop_front() {
                    permit.send(request);
                }
            }
            replica = replicas.next(), if queue.is_empty() => {
                queue.extend(publisher.changed(&replica.ok_or(StreamError::Stopping)?));
            }
        }
    }
}

async fn answer(
    publisher: &mut Publisher,
    response: wire::PublishResponse,
    publication: &Publication,
    replicas: &Replicas,
    link: &watch::Sender<Link>,
) -> Result<Vec<wire::PublishRequest>, StreamError> {
    let mut step = publisher.receive(response, &replicas.peek())?;
    if let Some(joined) = step.joined {
        publication.joined.send_replace(Some(joined));
        let mut respected = publication.respected.clone();
        let heard = respected.wait_for(|respected| *respected == Some(joined)).await;
        heard.map_err(|_| StreamError::Stopping)?;
        step.send.extend(publisher.declare(&replicas.peek()));
    }
    if let Some(records) = step.surplus.take() {
        let gone = judged(records, step.lacking.take(), publication, replicas).await?;
        step.send.extend(publisher.judged(&gone));
    }
    if step.complete {
        info!(owner = %publication.owner, "published: the region holds all of this cluster");
    }
    for refused in &step.refused {
        warn!(key = refused.key, reason = refused.reason, "the region refused a record");
    }
    let refused = step.refused.into_iter().map(|refused| (refused.key, refused.reason));
    note(link, step.complete, &step.settled, refused.collect());
    Ok(step.send)
}

/// What became of records that only the region has: what was removed lately is known, of the rest
/// the owner is asked.
async fn judged(
    records: Vec<(Key, Bytes)>,
    lacking: Option<Lacking>,
    publication: &Publication,
    replicas: &Replicas,
) -> Result<BTreeMap<Key, Removed>, StreamError> {
    let replica = replicas.peek();
    let mut known = BTreeMap::new();
    let mut records = records;
    records.retain(|(key, _)| match replica.removed(key) {
        Some(removed) if replica.get(key).is_none() => {
            known.insert(key.clone(), removed);
            false
        }
        _ => true,
    });
    if !records.is_empty() || lacking.is_some() {
        let (gone, judged) = oneshot::channel();
        let surplus = Surplus { records, lacking, gone };
        publication.judge.send(surplus).await.map_err(|_| StreamError::Stopping)?;
        known.extend(judged.await.map_err(|_| StreamError::Stopping)?);
    }
    Ok(known)
}

/// Takes the region's word on records into the link's state.
fn note(
    link: &watch::Sender<Link>,
    complete: bool,
    settled: &[String],
    refused: BTreeMap<String, String>,
) {
    link.send_if_modified(|link| {
        let before = link.clone();
        if complete {
            link.synced = true;
            link.problem = None;
        }
        link.refused.retain(|key, _| !settled.contains(key));
        link.refused.extend(refused);
        *link != before
    });
}

/// Keeps the replica equal to what the region holds and is about the namespaces that are used (all,
/// if none is named), for ever, but for the owner's own records.
pub async fn subscribe(
    way: impl Dial,
    own: Owner,
    uses: BTreeSet<NamespaceName>,
    writer: Arc<ReplicaWriter>,
    link: watch::Sender<Link>,
) {
    let mut backoff = backoff();
    // Of the region's store, whichever of its replicas answers.
    let mut position = 0;
    loop {
        let started = Instant::now();
        let mut intake = Intake::new(Accept::MeshBut(own.clone())).using(uses.iter().cloned());
        let ended = subscribe_stream(way.dial(), &mut intake, &mut position, &writer, &link).await;
        let Err(error) = ended;
        if let StreamError::Intake(error) = &error
            && error.distrusts_positions()
        {
            position = 0;
            let mismatch = matches!(error, IntakeError::DigestMismatch { .. });
            link.send_modify(|link| link.mismatches += u64::from(mismatch));
        }
        // What it may see has changed: positions say nothing about what was left out before.
        if matches!(&error, StreamError::Call(status) if status.code() == Code::Aborted) {
            position = 0;
        }
        report(&link, &error, "subscription ended");
        if started.elapsed() > LASTED {
            backoff = self::backoff();
        }
        tokio::time::sleep(backoff.next().unwrap_or(MAX_BACKOFF)).await;
    }
}

async fn subscribe_stream(
    channel: impl Transport,
    intake: &mut Intake,
    position: &mut u64,
    writer: &ReplicaWriter,
    link: &watch::Sender<Link>,
) -> Result<std::convert::Infallible, StreamError> {
    let request = intake.request(&writer.current(), *position);
    let mut responses = client(channel).subscribe(request).await?.into_inner();
    loop {
        let response = next(&mut responses).await??.ok_or(StreamError::Closed)?;
        let step = intake.receive(response, &writer.current());
        note_strays(link, intake);
        let step = step?;
        if !step.batch.is_empty() {
            writer.apply(step.batch, Instant::now());
        }
        *position = step.position.unwrap_or(*position);
        if step.synced {
            info!("subscribed: this process holds all that its region holds");
            in_step(link);
        }
    }
}

/// A subscription whose connection is well, and that says nothing.
#[derive(Debug, thiserror::Error)]
#[error("not even a beacon came for {} s: its replica hears nothing of its store, the next is tried", QUIET.as_secs())]
pub struct Quiet;

/// The next message of a subscription.
pub(super) async fn next<M>(
    messages: &mut Streaming<M>,
) -> Result<Result<Option<M>, Status>, Quiet> {
    timeout(QUIET, messages.message()).await.map_err(|_| Quiet)
}

pub(super) fn client<T: Transport>(channel: T) -> FederationClient<T> {
    FederationClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

/// All has been transferred, and the stream is up.
pub(super) fn in_step(link: &watch::Sender<Link>) {
    link.send_modify(|link| {
        link.synced = true;
        link.problem = None;
    });
}

/// Adds what came that should not have.
pub(super) fn note_strays(link: &watch::Sender<Link>, intake: &mut Intake) {
    if let Some(strays) = intake.take_strays() {
        link.send_modify(|link| link.strays.extend(strays));
    }
}

/// Says once why a link is down, not at every attempt.
fn report(link: &watch::Sender<Link>, error: &StreamError, what: &'static str) {
    let problem = super::chain(error);
    link.send_if_modified(|link| {
        let news = link.problem.as_ref() != Some(&problem);
        if news {
            warn!(error = problem, "{what}");
        } else {
            debug!(error = problem, "{what}");
        }
        link.synced = false;
        link.problem = Some(problem);
        news
    });
}
