//! Streams that are ended when nobody takes what they have.
//!
//! The transport asks a stream for its next message only when there is room for it on the way. One
//! whose reader has stopped is never asked again and cannot notice that by itself: what it holds is
//! taken from it by a look at all streams every few seconds. Its slot stays taken until the
//! transport lets go of it, since the transport still holds the message that was not taken; a
//! connection that is dead is noticed by its keep-alive.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Status;

use super::Answers;
use super::admission::{Slot, Turn};
use super::limits::Limits;

/// A stream of answers, and what is counted for it.
pub(super) struct Watched<T>(Arc<Cell<T>>);

struct Cell<T> {
    slot: Slot,
    state: Mutex<State<T>>,
}

struct State<T> {
    stream: Option<Answers<T>>,
    /// Said in its place when it was ended.
    verdict: Option<Status>,
    asked: Instant,
    began: Instant,
    turn: Option<Turn>,
}

/// Looks at all streams of one server.
#[derive(Default)]
pub(super) struct Lookout {
    streams: Mutex<Vec<Weak<dyn Look>>>,
    task: Mutex<JoinSet<()>>,
}

trait Look: Send + Sync {
    fn look(&self, limits: &Limits, now: Instant);
}

impl Lookout {
    /// Watches `stream` from now on.
    pub(super) fn watch<T: 'static>(
        self: &Arc<Self>,
        limits: &Limits,
        slot: Slot,
        turn: Option<Turn>,
        stream: Answers<T>,
    ) -> Answers<T> {
        let now = Instant::now();
        let state = State { stream: Some(stream), verdict: None, asked: now, began: now, turn };
        let cell = Arc::new(Cell { slot, state: Mutex::new(state) });
        let look: Arc<dyn Look> = Arc::<Cell<T>>::clone(&cell);
        lock(&self.streams).push(Arc::downgrade(&look));
        self.start(limits);
        Box::pin(Watched(cell))
    }

    fn start(self: &Arc<Self>, limits: &Limits) {
        let mut task = lock(&self.task);
        if !task.is_empty() {
            return;
        }
        let (lookout, limits) = (Arc::downgrade(self), limits.clone());
        let shortest = limits.silence.min(limits.full_transfer_pause);
        let every = (shortest / 4).clamp(Duration::from_millis(50), Duration::from_secs(5));
        task.spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                let Some(lookout) = lookout.upgrade() else { return };
                lookout.look(&limits, Instant::now());
            }
        });
    }

    fn look(&self, limits: &Limits, now: Instant) {
        let mut streams = lock(&self.streams);
        streams.retain(|stream| stream.upgrade().inspect(|s| s.look(limits, now)).is_some());
    }
}

impl<T> Look for Cell<T> {
    fn look(&self, limits: &Limits, now: Instant) {
        let mut state = lock(&self.state);
        let silence = now.saturating_duration_since(state.asked);
        let paused = silence >= limits.full_transfer_pause;
        if paused || now.saturating_duration_since(state.began) >= limits.full_transfer_within {
            drop(state.turn.take().inspect(Turn::release));
        }
        if silence >= limits.silence && state.stream.take().is_some() {
            state.verdict = Some(self.slot.silent(limits.silence));
        }
    }
}

impl<T> Stream for Watched<T> {
    type Item = Result<T, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut state = lock(&self.0.state);
        state.asked = Instant::now();
        if let Some(verdict) = state.verdict.take() {
            return Poll::Ready(Some(Err(verdict)));
        }
        match &mut state.stream {
            Some(stream) => stream.as_mut().poll_next(context),
            None => Poll::Ready(None),
        }
    }
}

/// What is behind these locks is whole between two statements.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::sync::Caller;
    use crate::sync::service::admission::Admission;
    use crate::sync::service::metrics::{Call, Metrics};

    fn slot(limits: &Limits) -> Slot {
        let admission = Arc::new(Admission::new(limits.clone(), Metrics::default()));
        let caller = Caller::ControlPlane { region: "s".parse().unwrap() };
        admission.admit(&caller, Call::Subscribe).unwrap()
    }

    /// Says so when it is dropped.
    fn endless(token: CancellationToken) -> Answers<u8> {
        let guard = token.drop_guard();
        Box::pin(futures::stream::unfold(guard, async |guard| Some((Ok(1), guard))))
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_of_which_nothing_is_taken_is_let_go_and_says_so_when_asked() {
        let (limits, lookout) = (Limits::default(), Arc::new(Lookout::default()));
        let dropped = CancellationToken::new();
        let mut stream = lookout.watch(&limits, slot(&limits), None, endless(dropped.clone()));
        for _ in 0..10 {
            assert_eq!(stream.next().await.unwrap().unwrap(), 1);
            tokio::time::sleep(limits.silence.mul_f64(0.95)).await;
        }
        assert!(!dropped.is_cancelled(), "a slow reader is not one that has stopped");
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert!(dropped.is_cancelled());
        let verdict = stream.next().await.unwrap().unwrap_err();
        assert!(verdict.message().contains("for 300 s"), "{verdict}");
        assert!(stream.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_transfer_that_stands_still_gives_up_its_turn() {
        let limits = Limits { full_transfers: 1, ..Limits::default() };
        let admission = Admission::new(limits.clone(), Metrics::default());
        let lookout = Arc::new(Lookout::default());
        let turn = admission.turn().await.unwrap();
        let token = CancellationToken::new();
        let stream = lookout.watch(&limits, slot(&limits), Some(turn), endless(token.clone()));
        let since = Instant::now();
        drop(admission.turn().await.expect("within the time that one waits"));
        assert!(since.elapsed() < limits.full_transfer_pause + Duration::from_secs(6));
        assert!(!token.is_cancelled(), "the stream itself goes on");
        drop(stream);
    }
}
