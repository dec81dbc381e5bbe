//! Where calls are taken and carried out.
//!
//! A call is a task of its role, not of the connection that it came by: a client that goes away, as
//! by Ctrl-C or at its own deadline, leaves it running. Promises: each call is audited when it is
//! received, before anything is done, and once more at its end, whatever that is, with whether
//! anybody was there to hear of it; the end is counted. Bounded: so many calls run at once, and the
//! next ones wait with their connections.

use std::future::Future;
use std::sync::Arc;

use futures::future::BoxFuture;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};
use tracing::{Instrument as _, Span, error, info};

use super::{Answer, CallError, Operated};

/// Calls that run at once: of people, and scripts that they start.
const AT_ONCE: usize = 16;

/// What becomes of a call.
pub(super) type Outcome = Result<Answer, CallError>;

/// How often what was called, with what outcome.
#[derive(Debug, Clone, Default)]
pub(crate) struct Calls(Family<CallLabels, Counter>);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    verb: &'static str,
    outcome: &'static str,
}

impl Calls {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let calls = Self::default();
        let registry = registry.sub_registry_with_prefix("tombolo");
        registry.register(
            "operator_calls",
            "Calls of operators over the process's socket",
            calls.0.clone(),
        );
        calls
    }
}

/// What an audit line says besides the outcome.
#[derive(Debug)]
pub(super) struct Audit {
    pub(super) verb: &'static str,
    pub(super) what: String,
    pub(super) by: String,
    pub(super) note: String,
}

/// Takes calls.
#[derive(Clone)]
pub(super) struct Desk {
    operated: Arc<dyn Operated>,
    calls: Calls,
    jobs: mpsc::Sender<BoxFuture<'static, ()>>,
}

/// Calls that were taken, for [`carry_out`].
pub(super) type Jobs = mpsc::Receiver<BoxFuture<'static, ()>>;

impl Desk {
    pub(super) fn new(operated: Arc<dyn Operated>, calls: Calls) -> (Self, Jobs) {
        let (jobs, taken) = mpsc::channel(1);
        (Self { operated, calls, jobs }, taken)
    }

    /// What `call` comes to, for whoever is still there to hear it.
    pub(super) async fn take<F>(
        &self,
        audit: Audit,
        call: impl FnOnce(Arc<dyn Operated>) -> F,
    ) -> Outcome
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let mut received = Received::new(audit, self.calls.clone());
        let call = call(Arc::clone(&self.operated));
        let (answer, answered) = oneshot::channel();
        let job = async move {
            received.begun = true;
            let outcome = call.await;
            received.end(&outcome, !answer.is_closed());
            // Whoever asked may be gone.
            let _ = answer.send(outcome);
        };
        // Whoever goes away before it was taken never called.
        let _ = self.jobs.send(Box::pin(job)).await;
        let gone = |_| Err(CallError::Failed("the process ended before the call did".to_owned()));
        answered.await.unwrap_or_else(gone)
    }
}

/// Carries out what desks have taken, until there are no desks and no calls any more.
pub(super) async fn carry_out(mut jobs: Jobs) {
    let mut running = JoinSet::new();
    loop {
        // Both may be dropped: they take one out or none.
        tokio::select! {
            job = jobs.recv(), if running.len() < AT_ONCE => match job {
                Some(job) => drop(running.spawn(job.instrument(Span::current()))),
                None => break,
            },
            Some(ended) = running.join_next() => report(ended),
        }
    }
    while let Some(ended) = running.join_next().await {
        report(ended);
    }
}

fn report(ended: Result<(), JoinError>) {
    if let Err(join) = ended {
        error!(%join, "an operator's call panicked");
    }
}

/// A call that was audited as received, and will be with its outcome.
struct Received {
    audit: Audit,
    calls: Calls,
    begun: bool,
    ended: bool,
}

impl Received {
    fn new(audit: Audit, calls: Calls) -> Self {
        let received = Self { audit, calls, begun: false, ended: false };
        received.say("received", "", true);
        received
    }

    fn end(mut self, outcome: &Outcome, answered: bool) {
        let (label, detail) = match outcome {
            Ok(answer) => ("done", &answer.message),
            Err(CallError::Refused(why)) => ("refused", why),
            Err(CallError::Failed(why)) => ("failed", why),
        };
        self.ended = true;
        self.count(label);
        self.say(label, detail, answered);
    }

    fn count(&self, outcome: &'static str) {
        self.calls.0.get_or_create(&CallLabels { verb: self.audit.verb, outcome }).inc();
    }

    fn say(&self, outcome: &'static str, detail: &str, answered: bool) {
        let Audit { verb, what, by, note } = &self.audit;
        info!(
            target: "audit",
            by,
            verb,
            what,
            note,
            from = "operator socket",
            outcome,
            detail,
            answered,
            "operator call"
        );
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        if !self.ended {
            let why = if self.begun {
                "the process ended before the call did, or it panicked"
            } else {
                "it was never begun: the caller left, or the process ended, while it waited its turn"
            };
            self.count("abandoned");
            self.say("abandoned", why, false);
        }
    }
}

#[cfg(test)]
mod tests;
