//! An operator's word, from whichever replica took it to the region's records.
//!
//! The replica that was told leaves an `ask` in the store, which is created once; the leader says
//! it for the region and deletes the ask in the same transaction, if it is still there; the replica
//! answers when it sees the decision among the region's records. So an operator may turn to any
//! replica, and a word that was answered survives every crash. One that was not is taken back, and
//! whoever asked is told whether that is known to have worked. Leaves to others: who may ask,
//! and that a call goes on when nobody waits for it any more (the wiring), what may be decided
//! ([`super::decisions`]).

mod pending;

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use self::pending::{Fate, Pending};
use super::decisions::{self, Leaver, Preview, Refusal};
use super::departures::View;
use super::facts::{self, Ask};
use super::local::Facts;
use crate::key::Key;
use crate::names::{ClusterId, RegionName};
use crate::record::{Decided, Decision};
use crate::replica::Replicas;
use crate::store::{Store, StoreError, election};

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
    #[error("the region's store did not take it within 10 s; {outlook}")]
    Store {
        /// Whether it may still happen.
        outlook: &'static str,
        /// What it said last.
        #[source]
        source: StoreError,
    },
    /// The process ends before there was an answer.
    #[error("this control plane is stopping; {outlook}")]
    Stopping {
        /// Whether it may still happen.
        outlook: &'static str,
    },
    /// It is there and nobody says it.
    #[error("nobody has said it within 10 s: {waiting}; {outlook}")]
    Unanswered {
        /// What is missing.
        waiting: String,
        /// Whether it may still happen.
        outlook: &'static str,
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

    /// What [`Asking::leave`] would do, which this does not.
    ///
    /// # Errors
    /// See [`AskError`].
    pub fn preview(&self, leaver: &Leaver, live: bool) -> Result<Preview, AskError> {
        self.decide(|view| decisions::preview(view, leaver, live))
    }

    /// What [`Asking::withdraw`] would take back, which this does not.
    ///
    /// # Errors
    /// See [`AskError`].
    pub fn withdrawable(&self, leaver: &Leaver) -> Result<Vec<Answer>, AskError> {
        let said = self.decide(|view| decisions::withdraw(view, leaver))?;
        let answer = |decision: Decision| {
            let key = decisions::key(&self.region, &decision.what);
            Answer { key, decision, already: false }
        };
        Ok(said.into_iter().map(answer).collect())
    }

    /// Takes a leave back.
    ///
    /// # Errors
    /// See [`AskError`].
    pub async fn withdraw(&self, leaver: &Leaver, word: Word) -> Result<Vec<Answer>, AskError> {
        let answers = self.withdrawable(leaver)?;
        let mut asks = Vec::new();
        for (index, Answer { key, decision, .. }) in answers.iter().enumerate() {
            let Word { by, at, note, .. } = word.clone();
            // Whoever takes it back says so in their own name, and its age counts from now on.
            let ask = Ask {
                decision: Decision { by, at, note, what: decision.what.clone() },
                withdraw: true,
            };
            asks.push(Pending::new(format!("{}-{index}", word.id), ask, key.clone()));
        }
        self.settle(asks).await?;
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
        self.settle(vec![Pending::new(id, ask, key.clone())]).await?;
        Ok(Answer { key, decision, already: false })
    }

    fn said(&self, key: &Key) -> Option<Decision> {
        let replica = self.replicas.peek();
        decisions::held(&replica).find(|told| told.key == key).map(|told| told.decision.clone())
    }

    /// Leaves the asks and waits until the records are as they want them. Not to be dropped: what
    /// is left then stays, and is answered after all.
    async fn settle(&self, mut asks: Vec<Pending>) -> Result<(), AskError> {
        // May be dropped: an ask knows what of it may have happened.
        let settled = async {
            for ask in &mut asks {
                ask.leave(&*self.store).await?;
            }
            let mut replicas = self.replicas.clone();
            let done = replicas.wait_for(|held| asks.iter().all(|ask| ask.is_settled(held))).await;
            Ok::<bool, StoreError>(done.is_some())
        };
        let ended = tokio::select! {
            ended = timeout(ANSWER_WITHIN, settled) => ended.unwrap_or(Ok(false)),
            () = self.stop.cancelled() => Ok(false),
        };
        if let Ok(true) = ended {
            return Ok(());
        }
        // Before anything else, since a process that stops has little time.
        let Some(outlook) = self.take_back(&asks).await.outlook() else { return Ok(()) };
        let unanswered = || StoreError::Unavailable("it does not answer".to_owned());
        let never_left = asks.iter().find(|ask| !ask.is_left());
        let never_left = never_left.map(|ask| ask.problem().unwrap_or_else(unanswered));
        match (ended.err().or(never_left), self.stop.is_cancelled()) {
            (_, true) => Err(AskError::Stopping { outlook }),
            (Some(source), false) => Err(AskError::Store { outlook, source }),
            (None, false) => {
                Err(AskError::Unanswered { waiting: self.waiting_for().await, outlook })
            }
        }
    }

    /// What was answered with an error is not to happen later.
    async fn take_back(&self, asks: &[Pending]) -> Fate {
        let taken_back = async {
            let mut fates = Vec::new();
            for ask in asks {
                fates.push(ask.take_back(&*self.store).await);
            }
            Fate::of_all(&fates)
        };
        timeout(LAST_WORD, taken_back).await.unwrap_or(Fate::Unknown)
    }

    async fn waiting_for(&self) -> String {
        let election = facts::election_key();
        match timeout(LAST_WORD, election::leader(&*self.store, &election)).await {
            Ok(Ok(None)) => "the region has no leader".to_owned(),
            Ok(Ok(Some(leader))) => format!("the leader is {leader}, see its log"),
            Ok(Err(error)) => format!("the region's store is away ({error})"),
            Err(_) => "the region's store does not answer".to_owned(),
        }
    }
}
