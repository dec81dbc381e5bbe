//! One ask, from when it is left in the store until it was said or taken back.

use crate::key::Key;
use crate::replica::Replica;
use crate::store::{self, Commit, Guard, Op, Store, StoreError, Txn};
use crate::sync::client;
use crate::sync::facts::{self, Ask};

/// An ask, the decision that it wants there or gone, and what is known of it.
#[derive(Debug)]
pub(super) struct Pending {
    id: String,
    ask: Ask,
    key: Key,
    /// It is known to have been there.
    left: bool,
    /// Attempts to leave it of which nothing is known: each may still happen.
    unanswered: u32,
    problem: Option<StoreError>,
}

/// What became of an ask that was not answered in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It never was there and never will be.
    NotLeft,
    /// It is not there any more, and was not said.
    TakenBack,
    /// The leader said it, which this replica has not seen yet.
    Said,
    /// The leader deleted it and did not say it.
    Dropped,
    /// Some of several were said, the others were not and will not be.
    SaidInPart,
    /// It may be said yet.
    Unknown,
}

impl Fate {
    /// That of several which belong together.
    pub(super) fn of_all(fates: &[Self]) -> Self {
        match fates {
            [] => Self::NotLeft,
            [first, rest @ ..] if rest.iter().all(|fate| fate == first) => *first,
            _ if fates.contains(&Self::Unknown) => Self::Unknown,
            _ if fates.iter().any(|fate| matches!(fate, Self::Said | Self::SaidInPart)) => {
                Self::SaidInPart
            }
            _ if fates.contains(&Self::Dropped) => Self::Dropped,
            _ => Self::TakenBack,
        }
    }

    /// What an operator is told; `None` if it happened.
    pub(super) fn outlook(self) -> Option<&'static str> {
        match self {
            Self::Said => None,
            Self::NotLeft => Some("nothing was decided"),
            Self::TakenBack => Some("it is taken back, ask again later"),
            Self::Dropped => Some("the leader dropped it, see its log"),
            Self::SaidInPart => {
                Some("a part of it was said and the rest taken back, see `tombolo decisions`")
            }
            Self::Unknown => Some(
                "it could not be taken back for certain and may happen yet, see `tombolo decisions`",
            ),
        }
    }
}

impl Pending {
    pub(super) fn new(id: String, ask: Ask, key: Key) -> Self {
        Self { id, ask, key, left: false, unanswered: 0, problem: None }
    }

    pub(super) fn is_left(&self) -> bool {
        self.left
    }

    /// Why it could not be left, as far as the store said.
    pub(super) fn problem(&self) -> Option<StoreError> {
        self.problem.clone()
    }

    /// Whether the records are as it wants them.
    pub(super) fn is_settled(&self, replica: &Replica) -> bool {
        replica.get(&self.key).is_some() != self.ask.withdraw
    }

    /// Leaves it, however long that takes. May be dropped.
    ///
    /// # Errors
    /// Those that do not pass: it was not left then.
    pub(super) async fn leave(&mut self, store: &dyn Store) -> Result<(), StoreError> {
        let mut backoff = client::backoff();
        let guards = vec![Guard::CreateRevision(facts::ask_key(&self.id), 0)];
        let txn = Txn { guards, ops: vec![facts::ask_op(&self.id, &self.ask)] };
        while !self.left {
            // Counted before: nothing is known of one that is dropped.
            self.unanswered += 1;
            match store.commit(txn.clone()).await {
                Ok(Commit::Done(_)) => {
                    self.unanswered -= 1;
                    self.left = true;
                }
                // It is there: one of the attempts before happened, and this one did not.
                Ok(Commit::GuardFailed) => {
                    self.unanswered = self.unanswered.saturating_sub(2);
                    self.left = true;
                }
                Err(error @ StoreError::Unavailable(_)) => {
                    self.problem = Some(error);
                    let pause = backoff.next().unwrap_or(client::MAX_BACKOFF);
                    tokio::time::sleep(pause).await;
                }
                Err(error) => {
                    self.unanswered -= 1;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Deletes it if it is there, and finds out what became of it if it is not.
    pub(super) async fn take_back(&self, store: &dyn Store) -> Fate {
        if !self.left && self.unanswered == 0 {
            return Fate::NotLeft;
        }
        let key = facts::ask_key(&self.id);
        let Ok(found) = store::read(store, &key).await else { return Fate::Unknown };
        if let Some(found) = found {
            // It is one of the attempts of which nothing was known, if there was no other.
            let more_may_come = self.unanswered > u32::from(!self.left);
            let guards = vec![Guard::ModRevision(key.clone(), found.mod_revision)];
            match store.commit(Txn { guards, ops: vec![Op::delete(key)] }).await {
                Ok(Commit::Done(_)) if more_may_come => return Fate::Unknown,
                Ok(Commit::Done(_)) => return Fate::TakenBack,
                // The leader was faster.
                Ok(Commit::GuardFailed) => return self.without_it(store, true).await,
                Err(_) => return Fate::Unknown,
            }
        }
        self.without_it(store, self.left).await
    }

    /// By the record, since the ask is not there; `left`: any more.
    async fn without_it(&self, store: &dyn Store, left: bool) -> Fate {
        match store::read(store, &self.key.to_string()).await {
            Ok(record) if record.is_some() != self.ask.withdraw => Fate::Said,
            Ok(_) if left => Fate::Dropped,
            Ok(_) | Err(_) => Fate::Unknown,
        }
    }
}
