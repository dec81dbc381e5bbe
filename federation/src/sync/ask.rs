//! An operator's word, from whichever replica took it to the region's records.
//!
//! The replica that was told leaves an `ask` in the store, which is created once; the leader says
//! it for the region and deletes the ask in the same transaction; the replica answers when it sees
//! the decision among the region's records. So an operator may turn to any replica, a word that was
//! answered survives every crash, and one that was not is taken back. Leaves to others: who may ask,
//! and that a call goes on when nobody waits for it any more (the wiring), what may be decided
//! ([`super::decisions`]).

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::client;
use super::decisions::{self, Leaver, Refusal};
use super::departures::View;
use super::facts::{self, Ask};
use super::local::Facts;
use crate::key::Key;
use crate::names::{ClusterId, RegionName};
use crate::record::{Decided, Decision};
use crate::replica::Replicas;
use crate::store::{Commit, Guard, MAX_OPS, Op, Store, StoreError, Txn, election};

/// How long an operator waits, however many decisions it takes.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// For what is done on top, once that is over.
const LAST_WORD: Duration = Duration::from_secs(2);
/// An ask that nobody took back in this time was left by a replica that died. Clocks of replicas
/// may be ten minutes apart.
pub const ASK_STANDS: SignedDuration = SignedDuration::from_mins(15);

/// Why there is no decision.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It cannot be decided.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Nothing is known yet.
    #[error("this control plane has not read its store yet: ask again when it is ready")]
    NotReady,
    /// The ask could not be left.
    #[error(
        "the region's store did not confirm it within 10 s, as far as is known nothing was decided"
    )]
    Store(#[source] StoreError),
    /// The process ends before there was an answer.
    #[error("this control plane is stopping; {taken_back}")]
    Stopping {
        /// Whether it may still happen.
        taken_back: &'static str,
    },
    /// It is there and nobody says it.
    #[error("nobody has said it within 10 s: {waiting}; {taken_back}")]
    Unanswered {
        /// What is missing.
        waiting: String,
        /// Whether it may still happen.
        taken_back: &'static str,
    },
}

/// Who asks, as the process could prove it, and when.
#[derive(Debug, Clone)]
pub struct Word {
    /// Unlike any other.
    pub id: String,
    /// Who.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// In the operator's words.
    pub note: String,
}

/// A decision that stands, or one that does not any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its record.
    pub key: Key,
    /// What it says.
    pub decision: Decision,
    /// It was so before.
    pub already: bool,
}

/// One replica's way to ask.
#[derive(Debug, Clone)]
pub struct Asking {
    /// The region's store.
    pub store: Arc<dyn Store>,
    /// What this replica holds of it.
    pub replicas: Replicas,
    /// The region.
    pub region: RegionName,
    /// What stands under [`facts::sessions_prefix`].
    pub sessions: watch::Receiver<Facts>,
    /// What stands under [`facts::left_prefix`].
    pub left: watch::Receiver<Facts>,
    /// The process stops: what is waited for is taken back.
    pub stop: CancellationToken,
}

impl Asking {
    /// Decides by what this replica holds now.
    ///
    /// # Errors
    /// What `decide` says, or that nothing is held yet.
    pub fn decide<T>(
        &self,
        decide: impl FnOnce(&View<'_>) -> Result<T, Refusal>,
    ) -> Result<T, AskError> {
        let replica = self.replicas.peek();
        let (sessions, left) = (self.sessions.borrow().clone(), self.left.borrow().clone());
        if replica.position == 0 || sessions.is_none() || left.is_none() {
            return Err(AskError::NotReady);
        }
        let view = View {
            replica: &replica,
            region: &self.region,
            sessions: &sessions,
            left: &left,
            now: Instant::now(),
        };
        Ok(decide(&view)?)
    }

    /// Approves what `hold` holds back.
    ///
    /// # Errors
    /// See [`AskError`].
    pub async fn approve(
        &self,
        cluster: &ClusterId,
        hold: &str,
        word: Word,
    ) -> Result<Answer, AskError> {
        let what = self.decide(|view| decisions::approve(view, cluster, hold))?;
        self.ask(what, word).await
    }

    /// Lets a cluster or a region leave.
    ///
    /// # Errors
    /// See [`AskError`].
    pub async fn leave(&self, leaver: &Leaver, live: bool, word: Word) -> Result<Answer, AskError> {
        let what = self.decide(|view| decisions::leave(view, leaver, live))?;
        self.ask(what, word).await
    }

    /// Takes a leave back.
    ///
    /// # Errors
    /// See [`AskError`].
    pub async fn withdraw(&self, leaver: &Leaver, word: Word) -> Result<Vec<Answer>, AskError> {
        let said = self.decide(|view| decisions::withdraw(view, leaver))?;
        let mut asks = Vec::new();
        let mut answers = Vec::new();
        for (index, decision) in said.into_iter().enumerate() {
            let key = decisions::key(&self.region, &decision.what);
            let Word { by, at, note, .. } = word.clone();
            // Whoever takes it back says so in their own name, and its age counts from now on.
            let ask = Ask {
                decision: Decision { by, at, note, what: decision.what.clone() },
                withdraw: true,
            };
            asks.push(Left { id: format!("{}-{index}", word.id), ask, key: key.clone() });
            answers.push(Answer { key, decision, already: false });
        }
        self.settle(&asks).await?;
        Ok(answers)
    }

    async fn ask(&self, what: Decided, word: Word) -> Result<Answer, AskError> {
        let key = decisions::key(&self.region, &what);
        if let Some(decision) = self.said(&key) {
            return Ok(Answer { key, decision, already: true });
        }
        let Word { id, by, at, note } = word;
        let decision = Decision { by, at, note, what };
        let ask = Ask { decision: decision.clone(), withdraw: false };
        self.settle(&[Left { id, ask, key: key.clone() }]).await?;
        Ok(Answer { key, decision, already: false })
    }

    fn said(&self, key: &Key) -> Option<Decision> {
        let replica = self.replicas.peek();
        decisions::held(&replica).find(|told| told.key == key).map(|told| told.decision.clone())
    }

    /// Leaves the asks and waits until the records are as they want them. Not to be dropped: what
    /// is left then stays, and is answered after all.
    async fn settle(&self, asks: &[Left]) -> Result<(), AskError> {
        let deadline = Instant::now() + ANSWER_WITHIN;
        for (index, Left { id, ask, .. }) in asks.iter().enumerate() {
            if let Err(error) = self.leave_ask(id, ask, deadline).await {
                // An attempt without an answer may have happened.
                self.delete(&asks[..=index]).await;
                return Err(AskError::Store(error));
            }
        }
        let mut replicas = self.replicas.clone();
        let settled = replicas.wait_for(|replica| {
            asks.iter().all(|Left { ask, key, .. }| replica.get(key).is_some() != ask.withdraw)
        });
        tokio::select! {
            settled = timeout_at(deadline, settled) => {
                if let Ok(Some(_)) = settled {
                    return Ok(());
                }
            }
            () = self.stop.cancelled() => {}
        }
        Err(self.take_back(asks).await)
    }

    async fn leave_ask(&self, id: &str, ask: &Ask, deadline: Instant) -> Result<(), StoreError> {
        let mut backoff = client::backoff();
        let guards = vec![Guard::CreateRevision(facts::ask_key(id), 0)];
        let txn = Txn { guards, ops: vec![facts::ask_op(id, ask)] };
        let mut why = StoreError::Unavailable("it does not answer".to_owned());
        loop {
            match timeout_at(deadline, self.store.commit(txn.clone())).await {
                // There already: an attempt before this one happened without an answer.
                Ok(Ok(Commit::Done(_) | Commit::GuardFailed)) => return Ok(()),
                Ok(Err(error @ StoreError::Unavailable(_))) => why = error,
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(why),
            }
            let pause = backoff.next().unwrap_or(client::MAX_BACKOFF);
            if timeout_at(deadline, tokio::time::sleep(pause)).await.is_err() {
                return Err(why);
            }
        }
    }

    /// Says what was waited for. What was answered with an error is not to happen later.
    async fn take_back(&self, asks: &[Left]) -> AskError {
        // First, since a process that stops has little time.
        let taken_back = if self.delete(asks).await {
            "it is taken back, ask again later"
        } else {
            "it could not be taken back and may happen yet"
        };
        if self.stop.is_cancelled() {
            return AskError::Stopping { taken_back };
        }
        let election = facts::election_key();
        let waiting = match timeout(LAST_WORD, election::leader(&*self.store, &election)).await {
            Ok(Ok(None)) => "the region has no leader".to_owned(),
            Ok(Ok(Some(leader))) => format!("the leader is {leader}, see its log"),
            Ok(Err(error)) => format!("the region's store is away ({error})"),
            Err(_) => "the region's store does not answer".to_owned(),
        };
        AskError::Unanswered { waiting, taken_back }
    }

    /// Whether nothing of them is left.
    async fn delete(&self, asks: &[Left]) -> bool {
        let deleted = async {
            for part in asks.chunks(MAX_OPS) {
                let ops = part.iter().map(|left| Op::delete(facts::ask_key(&left.id))).collect();
                self.store.commit(Txn { guards: Vec::new(), ops }).await?;
            }
            Ok::<(), StoreError>(())
        };
        matches!(timeout(LAST_WORD, deleted).await, Ok(Ok(())))
    }
}

/// An ask, and the decision that it wants there or gone.
struct Left {
    id: String,
    ask: Ask,
    key: Key,
}
