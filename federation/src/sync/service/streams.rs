//! Streams that were let in, driven by the reads of the transport.

use std::collections::VecDeque;
use std::sync::PoisonError;

use prost::Message as _;
use tokio::time::{Instant, Interval};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use tracing::{debug, warn};

use super::admission::{SharedBucket, Turn};
use super::limits::Bucket;
use super::metrics::Metrics;
use super::{WallClock, entitlement_of, status, stopping};
use crate::proto::federation as wire;
use crate::proto::federation::publish_request::Message as PublishMessage;
use crate::proto::federation::publish_response::Message as PublishAnswer;
use crate::record::Entitlement;
use crate::replica::{Replica, Replicas};
use crate::sync::feed::Feed;
use crate::sync::session::{Session, SessionError};
use crate::sync::{Caller, chain};

/// A publish stream that was accepted.
pub(super) struct Publishing {
    pub(super) session: Session,
    pub(super) requests: Streaming<wire::PublishRequest>,
    pub(super) answers: VecDeque<wire::PublishResponse>,
    pub(super) clock: WallClock,
    pub(super) replicas: Replicas,
    pub(super) stop: CancellationToken,
    /// A later stream took this one's place.
    pub(super) ended: CancellationToken,
    pub(super) metrics: Metrics,
    pub(super) messages: Bucket,
    pub(super) bytes: Bucket,
    pub(super) changes: SharedBucket,
}

impl Publishing {
    pub(super) async fn next(&mut self) -> Result<Option<wire::PublishResponse>, Status> {
        loop {
            if let Some(answer) = self.answers.pop_front() {
                return Ok(Some(answer));
            }
            let request = tokio::select! {
               biased;
                () = self.stop.cancelled() => return Err(stopping()),
                () = self.ended.cancelled() => return Err(self.superseded()),
                replica = self.replicas.next() => {
                    let replica = replica.ok_or_else(stopping)?;
                    still_entitled(&self.session, &replica)?;
                    continue;
                }
                request = self.requests.message() => request?,
            };
            let Some(request) = request else { return Ok(None) };
            self.pace(&request).await?;
            let answers = self.session.receive(request, (self.clock)()).await;
            self.metrics.records(&self.session.take_tally());
            let answers = answers.map_err(|error| {
                let owner = self.session.owner();
                warn!(%owner, error = %chain(&error), "publish stream ends");
                status(&error)
            })?;
            for answer in &answers {
                self.say(answer);
            }
            self.answers.extend(answers);
        }
    }

    /// A publisher that is too fast is read more slowly, and feels it by the transport.
    async fn pace(&mut self, request: &wire::PublishRequest) -> Result<(), Status> {
        let (now, size) = (Instant::now(), request.encoded_len());
        let changed =
            if matches!(request.message, Some(PublishMessage::Changes(_))) { size } else { 0 };
        let owed = self.changes.lock().unwrap_or_else(PoisonError::into_inner).charge(changed, now);
        let wait = self.messages.charge(1, now).max(self.bytes.charge(size, now)).max(owed);
        if wait.is_zero() {
            return Ok(());
        }
        debug!(owner = %self.session.owner(), ?wait, "a publisher is too fast");
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(stopping()),
            () = self.ended.cancelled() => Err(self.superseded()),
            () = tokio::time::sleep(wait) => Ok(()),
        }
    }

    fn superseded(&self) -> Status {
        status(&SessionError::Superseded(self.session.owner().clone()))
    }

    /// The first of a batch stands for the others: the owner logs each.
    fn say(&self, answer: &wire::PublishResponse) {
        let Some(PublishAnswer::Ack(ack)) = &answer.message else { return };
        let Some(first) = ack.refused.first() else { return };
        let (owner, records) = (self.session.owner(), ack.refused.len());
        let (key, reason) = (&first.key, &first.reason);
        warn!(%owner, records, key, reason, "records of an agent were refused, the first is named");
    }
}

/// What the cluster may say may be more now, or less: on a new stream it declares all of it.
pub(super) fn still_entitled(session: &Session, replica: &Replica) -> Result<(), Status> {
    if session.is_entitled_by(replica) {
        return Ok(());
    }
    Err(Status::aborted("what this publisher is entitled to has changed: publish anew"))
}

/// A subscription that was let in.
pub(super) struct Subscription {
    pub(super) feed: Feed,
    pub(super) turn: Option<Turn>,
    pub(super) replicas: Replicas,
    pub(super) digests: Interval,
    pub(super) stop: CancellationToken,
    pub(super) caller: Caller,
    pub(super) entitlement: Entitlement,
}

impl Subscription {
    pub(super) async fn next(&mut self) -> Result<wire::SubscribeResponse, Status> {
        loop {
            if let Some(message) = self.feed.next_message() {
                return Ok(message);
            }
            drop(self.turn.take().inspect(Turn::release));
            tokio::select! {
               biased;
                () = self.stop.cancelled() => return Err(stopping()),
                // Before the changes, which could keep it from its turn.
                _ = self.digests.tick() => return Ok(self.feed.digests()),
                replica = self.replicas.next() => {
                    let replica = replica.ok_or_else(stopping)?;
                    // While the region's record is away, what it said last stands.
                    let said = entitlement_of(&self.caller, &replica);
                    if said.is_some_and(|said| said != self.entitlement) {
                        return Err(Status::aborted(
                            "what this subscriber is entitled to has changed: subscribe anew",
                        ));
                    }
                    self.feed.advance(replica);
                }
            }
        }
    }
}
