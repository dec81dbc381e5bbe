//! Who may open one more stream, and whose turn it is for a full transfer.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::{debug, warn};

use super::limits::{Bucket, Limits};
use super::metrics::{Call, Metrics, Refused};
use crate::sync::Caller;

/// Callers that are at rest are forgotten when there are more than this.
const AT_REST: usize = 1024;

/// Why a caller has to come again later.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Busy {
    #[error(
        "{caller} opens streams too fast: try again in {:.1} s",
        .wait.as_secs_f64().max(0.1)
    )]
    Rate { caller: Caller, wait: Duration },
    #[error("{caller} has {most} streams open, the most that it may have: close one first")]
    CallerStreams { caller: Caller, most: usize },
    #[error("this control plane has {most} streams open, the most that it takes: try another")]
    Streams { most: usize },
    #[error(
        "{most} full transfers are under way and none ended within {} s: try again later",
        .waited.as_secs()
    )]
    Transfers { most: usize, waited: Duration },
}

impl Busy {
    pub(super) fn reason(&self) -> Refused {
        match self {
            Self::Rate { .. } => Refused::Rate,
            Self::CallerStreams { .. } => Refused::CallerStreams,
            Self::Streams { .. } => Refused::Streams,
            Self::Transfers { .. } => Refused::Transfers,
        }
    }
}

impl From<Busy> for Status {
    fn from(busy: Busy) -> Self {
        Self::resource_exhausted(busy.to_string())
    }
}

/// Counts the streams of one server.
#[derive(Debug)]
pub(super) struct Admission {
    pub(super) limits: Limits,
    pub(super) metrics: Metrics,
    callers: Mutex<Callers>,
    transfers: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Callers {
    by_caller: HashMap<Caller, Streams>,
    open: usize,
    next_id: u64,
}

/// What one caller has open.
#[derive(Debug)]
struct Streams {
    new: Bucket,
    /// Of the bytes that it changes.
    changes: SharedBucket,
    reading: usize,
    publishing: BTreeMap<u64, Publishing>,
}

/// One for all streams of a caller.
pub(super) type SharedBucket = Arc<Mutex<Bucket>>;

#[derive(Debug)]
struct Publishing {
    accepted: bool,
    ended: CancellationToken,
}

/// The right to one stream, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    admission: Arc<Admission>,
    pub(super) caller: Caller,
    pub(super) call: Call,
    id: u64,
    /// Shared with the caller's other streams.
    pub(super) changes: SharedBucket,
    /// Cancelled when another stream takes this one's place.
    pub(super) ended: CancellationToken,
}

/// The right to a full transfer, until it is released or its last clone is dropped.
#[derive(Debug, Clone)]
pub(super) struct Turn(Arc<Mutex<Option<OwnedSemaphorePermit>>>);

impl Admission {
    pub(super) fn new(limits: Limits, metrics: Metrics) -> Self {
        let turns = limits.full_transfers.clamp(1, Semaphore::MAX_PERMITS);
        let transfers = Arc::new(Semaphore::new(turns));
        Self { limits, metrics, callers: Mutex::default(), transfers }
    }

    /// One more stream for `caller`, if that is within the limits.
    pub(super) fn admit(self: &Arc<Self>, caller: &Caller, call: Call) -> Result<Slot, Busy> {
        let ended = CancellationToken::new();
        let admitted = self.callers().admit(&self.limits, caller, call, &ended, Instant::now());
        let (id, changes) = admitted.inspect_err(|busy| {
            self.metrics.refused(call, busy.reason());
            // An agent that is broken would fill the log: its own says each.
            debug!(%caller, %busy, "stream refused");
        })?;
        self.metrics.opened(call);
        let admission = Arc::clone(self);
        Ok(Slot { admission, caller: caller.clone(), call, id, changes, ended })
    }

    /// Waits until one of the turns for full transfers is free.
    pub(super) async fn turn(&self) -> Result<Turn, Busy> {
        let wait = self.limits.full_transfer_wait;
        let free = timeout(wait, Arc::clone(&self.transfers).acquire_owned()).await;
        let Ok(Ok(permit)) = free else {
            let most = self.limits.full_transfers;
            return Err(Busy::Transfers { most, waited: wait });
        };
        self.metrics.transfer();
        Ok(Turn(Arc::new(Mutex::new(Some(permit)))))
    }

    /// Counts go on being right where a thread panicked over them.
    fn callers(&self) -> MutexGuard<'_, Callers> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Callers {
    fn admit(
        &mut self,
        limits: &Limits,
        caller: &Caller,
        call: Call,
        ended: &CancellationToken,
        now: Instant,
    ) -> Result<(u64, SharedBucket), Busy> {
        self.forget_resting(now);
        let new = || Streams {
            new: Bucket::full(limits.new_streams, now),
            changes: Arc::new(Mutex::new(Bucket::full(limits.publish_changes, now))),
            reading: 0,
            publishing: BTreeMap::new(),
        };
        let streams = self.by_caller.entry(caller.clone()).or_insert_with(new);
        let caller = || caller.clone();
        streams.new.take(now).map_err(|wait| Busy::Rate { caller: caller(), wait })?;
        if self.open >= limits.streams {
            return Err(Busy::Streams { most: limits.streams });
        }
        self.next_id += 1;
        let id = self.next_id;
        match call {
            Call::Publish => {
                if streams.publishing.len() >= limits.publish_streams_per_caller.max(2) {
                    self.open -= usize::from(streams.replace_oldest());
                }
                let publishing = Publishing { accepted: false, ended: ended.clone() };
                streams.publishing.insert(id, publishing);
            }
            Call::Subscribe | Call::Recover => {
                let most = limits.read_streams_per_caller;
                if streams.reading >= most {
                    return Err(Busy::CallerStreams { caller: caller(), most });
                }
                streams.reading += 1;
            }
        }
        self.open += 1;
        Ok((id, Arc::clone(&streams.changes)))
    }

    fn release(&mut self, slot: &Slot) {
        let Some(streams) = self.by_caller.get_mut(&slot.caller) else { return };
        let held = match slot.call {
            // Not if another has taken its place.
            Call::Publish => streams.publishing.remove(&slot.id).is_some(),
            Call::Subscribe | Call::Recover => {
                streams.reading -= 1;
                true
            }
        };
        self.open -= usize::from(held);
    }

    /// Identities are few, but nobody bounds them.
    fn forget_resting(&mut self, now: Instant) {
        if self.by_caller.len() > AT_REST {
            self.by_caller.retain(|_, streams| !streams.is_resting(now));
        }
    }
}

impl Streams {
    /// One that was not accepted, if there is one: a second cluster that claims the same identity
    /// does not push out the first. Returns whether it ended one.
    fn replace_oldest(&mut self) -> bool {
        let waiting = self.publishing.iter().find(|(_, publishing)| !publishing.accepted);
        let oldest = waiting.or_else(|| self.publishing.iter().next()).map(|(id, _)| *id);
        let ended = oldest.and_then(|id| self.publishing.remove(&id));
        ended.inspect(|publishing| publishing.ended.cancel()).is_some()
    }

    fn is_resting(&mut self, now: Instant) -> bool {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let at_rest = self.reading == 0 && self.publishing.is_empty();
        at_rest && self.new.is_full(now) && changes.is_full(now)
    }
}

impl Slot {
    /// The session was taken: the one before it commits nothing any more, and ends.
    pub(super) fn accepted(&self) {
        let mut callers = self.admission.callers();
        let Some(streams) = callers.by_caller.get_mut(&self.caller) else { return };
        for (id, publishing) in &mut streams.publishing {
            if *id == self.id {
                publishing.accepted = true;
            } else if publishing.accepted {
                publishing.ended.cancel();
            }
        }
    }

    pub(super) fn refused(&self, reason: Refused) {
        self.admission.metrics.refused(self.call, reason);
    }

    /// Says that nothing was taken of the stream for too long.
    pub(super) fn silent(&self, silence: Duration) -> Status {
        warn!(caller = %self.caller, call = ?self.call, "nothing was taken of a stream for too long: it is ended");
        self.refused(Refused::Silent);
        Status::resource_exhausted(format!(
            "nothing was taken of this stream for {} s: it was ended",
            silence.as_secs()
        ))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.admission.callers().release(self);
        self.admission.metrics.closed(self.call);
    }
}

impl Turn {
    /// Lets the next one begin.
    pub(super) fn release(&self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::service::limits::Rate;

    fn caller(cluster: &str) -> Caller {
        Caller::Agent { region: "r".parse().unwrap(), cluster: cluster.parse().unwrap() }
    }

    fn admission(limits: Limits) -> Arc<Admission> {
        Arc::new(Admission::new(limits, Metrics::default()))
    }

    #[tokio::test(start_paused = true)]
    async fn one_callers_streams_are_counted_apart_from_anothers() {
        let limits = Limits { read_streams_per_caller: 2, streams: 3, ..Limits::default() };
        let admission = admission(limits);
        let slots = [Call::Subscribe, Call::Recover]
            .map(|call| admission.admit(&caller("r-a"), call).unwrap());
        let refused = admission.admit(&caller("r-a"), Call::Subscribe).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "agent r-a has 2 streams open, the most that it may have: close one first"
        );
        let other = admission.admit(&caller("r-b"), Call::Subscribe).unwrap();
        let full = admission.admit(&caller("r-c"), Call::Subscribe).unwrap_err();
        assert_eq!(full, Busy::Streams { most: 3 });
        drop((slots, other));
        drop(admission.admit(&caller("r-a"), Call::Subscribe).unwrap());
        assert_eq!(admission.callers().open, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_in_a_hurry_is_told_how_long_to_wait_and_then_served() {
        let new_streams = Rate { per_second: 1, burst: 5 };
        let admission = admission(Limits { new_streams, ..Limits::default() });
        for _ in 0..5 {
            drop(admission.admit(&caller("r-a"), Call::Publish).unwrap());
        }
        let refused = Status::from(admission.admit(&caller("r-a"), Call::Publish).unwrap_err());
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert!(refused.message().ends_with("try again in 1.0 s"), "{}", refused.message());
        drop(admission.admit(&caller("r-b"), Call::Publish).unwrap());
        tokio::time::advance(Duration::from_secs(1)).await;
        drop(admission.admit(&caller("r-a"), Call::Publish).unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_publish_stream_is_let_in_at_the_cost_of_one_that_waits() {
        let admission = admission(Limits { publish_streams_per_caller: 2, ..Limits::default() });
        let publish = || admission.admit(&caller("r-a"), Call::Publish).unwrap();
        let first = publish();
        first.accepted();
        let claimants = [publish(), publish(), publish()];
        let ended = claimants.each_ref().map(|slot| slot.ended.is_cancelled());
        assert_eq!((first.ended.is_cancelled(), ended), (false, [true, true, false]));
        claimants[2].accepted();
        assert!(first.ended.is_cancelled(), "the one before it commits nothing any more");
        drop((first, claimants));
        assert_eq!(admission.callers().open, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn callers_at_rest_are_forgotten() {
        let admission = admission(Limits::default());
        for n in 0..=2 * AT_REST {
            drop(admission.admit(&caller(&format!("r-{n}")), Call::Subscribe).unwrap());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!(admission.callers().by_caller.len() <= AT_REST + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn full_transfers_wait_for_their_turn_and_not_for_ever() {
        let admission = admission(Limits { full_transfers: 1, ..Limits::default() });
        let first = admission.turn().await.unwrap();
        let refused = admission.turn().await.unwrap_err();
        assert_eq!(
            refused.to_string(),
            "1 full transfers are under way and none ended within 30 s: try again later"
        );
        first.release();
        drop(admission.turn().await.unwrap());
    }
}
