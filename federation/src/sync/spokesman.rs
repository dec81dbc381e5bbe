//! What the region says of itself, by its leader.
//!
//! Owns: the region's own records, that is, its description, its beacon, and the decisions of its
//! operators. Promises: the description follows settings and members; a decision is said, and the
//! ask for it deleted, in one transaction; nothing is written that a region of the mesh cannot
//! read. One task, since the changes of an owner are counted.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};

use super::facts::{self, Ask};
use super::founding::Term;
use super::leader::{Leader, LeaderError};
use super::local::Facts;
use super::own::OwnRecords;
use super::recover::{self, Asked};
use super::service::WallClock;
use super::{BEACON_INTERVAL, ask, chain, client, decisions, settings};
use crate::key::{Key, Kind};
use crate::names::{Owner, RegionName};
use crate::record::{Beacon, Body, Decision, Region, Removal};
use crate::replica::{Batch, Replica};
use crate::store::{self, Op, Revision, StoreError};

/// Changes that come together are said once.
const TOGETHER: Duration = Duration::from_millis(50);

/// What configuration says of the region; asked anew each time.
pub type Settings = Arc<dyn Fn() -> Region + Send + Sync>;

/// Draws what has never been drawn before, anywhere: at least 16 random bytes.
pub type Draw = Arc<dyn Fn() -> String + Send + Sync>;

/// What a region speaks from.
pub struct Sources {
    /// What configuration says of it.
    pub settings: Settings,
    /// The local facts of its clusters' sessions.
    pub sessions: watch::Receiver<Facts>,
    /// The local facts of what operators asked for.
    pub asks: watch::Receiver<Facts>,
    /// Whether all that the region had decided before is known, or peers are still asked.
    pub asked: watch::Receiver<Asked>,
    /// Wall time.
    pub clock: WallClock,
    /// What marks the store with each beacon.
    pub draw: Draw,
}

/// A leader with what it speaks from.
pub struct Spokesman {
    leader: Leader,
    own: OwnRecords,
    incarnation: String,
    from: Sources,
    /// What was vouched for in this term.
    vouched: BTreeSet<Kind>,
    /// The commit that said what the region is.
    described: Revision,
    nonce: u64,
    /// Asks that were answered and may still be seen.
    answered: BTreeSet<String>,
}

/// Speaks for the region in `term`, once what it said before is known, or was waited for.
///
/// # Errors
/// Only when the leadership is lost, or the store is damaged.
pub async fn speak(
    mut leader: Leader,
    region: RegionName,
    term: Term,
    from: Sources,
) -> LeaderError {
    if let Err(error) = recover::may_speak(&mut leader, from.asked.clone()).await {
        return error;
    }
    Spokesman::new(leader, region, &term, from).speak().await
}

impl Spokesman {
    /// Has said nothing in this term. The leader's replica has all that was said before it.
    #[must_use]
    pub fn new(leader: Leader, region: RegionName, term: &Term, from: Sources) -> Self {
        let owner = Owner::region(region);
        let epoch = {
            let replica = leader.replicas.peek();
            let known = replica.holding(&owner).and_then(crate::replica::Holding::newest);
            term.epoch(&owner.region, known)
        };
        Self {
            leader,
            own: OwnRecords::new(owner, epoch),
            incarnation: term.incarnation().to_owned(),
            from,
            vouched: BTreeSet::new(),
            described: 0,
            nonce: 0,
            answered: BTreeSet::new(),
        }
    }

    /// Speaks for the region, for as long as the leadership holds.
    ///
    /// # Errors
    /// Only when the leadership is lost, or the store is damaged.
    pub async fn speak(mut self) -> LeaderError {
        // Without them, members that no record names would seem to have left.
        if self.from.sessions.wait_for(Option::is_some).await.is_err() {
            return LeaderError::Stopping;
        }
        let mut beacon = Instant::now();
        let mut backoff = client::backoff();
        loop {
            let due = Instant::now() >= beacon;
            match self.say_what_is_new(due).await {
                Ok(()) => {
                    backoff = client::backoff();
                    if due {
                        beacon = Instant::now() + BEACON_INTERVAL;
                    }
                    if !self.wait(beacon).await {
                        return LeaderError::Stopping;
                    }
                }
                Err(LeaderError::Store(error)) if !matches!(error, StoreError::Damaged(_)) => {
                    warn!(error = chain(&error), "the region's own records could not be written");
                    // What of it was committed is not known: all is said again.
                    self.own.forget();
                    self.vouched.clear();
                    beacon = Instant::now();
                    sleep(backoff.next().unwrap_or(client::MAX_BACKOFF)).await;
                }
                Err(error) => return error,
            }
        }
    }

    async fn wait(&mut self, beacon: Instant) -> bool {
        let up = tokio::select! {
            biased;
            () = sleep_until(beacon) => return true,
            view = self.leader.replicas.next() => view.is_some(),
            changed = self.from.sessions.changed() => changed.is_ok(),
            changed = self.from.asks.changed() => changed.is_ok(),
            Ok(()) = self.from.asked.changed() => true,
        };
        sleep(TOGETHER).await;
        up
    }

    async fn say_what_is_new(&mut self, beacon: bool) -> Result<(), LeaderError> {
        let replica = self.leader.replicas.current();
        self.own.set_level(settings::mesh_level(&replica));
        let mut batch = Batch::default();
        let owner = self.own.owner().clone();
        let key = Key::of_owner(owner.clone(), Kind::Region);
        let region = Arc::new(Body::Region(self.region(&replica)));
        let describes = !self.own.has_said(&key, &region) || self.is_spoilt(&key, &replica);
        if describes {
            batch.items.push(self.own.say(&key, &region));
        }
        let vouched = self.kinds_known();
        if vouched != self.vouched {
            let kinds: Vec<Kind> = vouched.iter().copied().collect();
            batch.complete = self.own.complete(&kinds);
        }
        if beacon {
            self.nonce += 1;
            let body = Arc::new(Body::Beacon(Beacon { nonce: self.nonce }));
            batch.items.push(self.own.say(&Key::of_owner(owner, Kind::Beacon), &body));
        }
        let now = (self.from.clock)();
        for told in decisions::held(&replica) {
            if told.key.owner == *self.own.owner() && decisions::is_over(told.decision, now) {
                self.unsay(&mut batch, told.key);
            }
        }
        // Drawn for this attempt: one whose outcome is unknown is not told again.
        let mark = beacon.then(|| facts::mark_op((self.from.draw)()));
        let committed = self.commit(batch, mark).await?;
        if describes {
            self.described = committed.unwrap_or(self.described);
        }
        self.vouched = vouched;
        self.answer_asks(now).await
    }

    /// Whether somebody removed what was said, or wrote over it: nobody is known to be entitled to
    /// anything then. A replica that has not seen it yet says nothing about that.
    fn is_spoilt(&self, key: &Key, replica: &Replica) -> bool {
        replica.position >= self.described
            && replica.get(key).is_none_or(|held| held.problem.is_some())
    }

    /// Until the peers have said what they know of the region, a decision that is not here may have
    /// been made: vouching for all that there is would take it from them.
    fn kinds_known(&self) -> BTreeSet<Kind> {
        let all = self.from.asked.borrow().all;
        let known = |kind: &Kind| all || *kind != Kind::Decision;
        super::REGION_KINDS.into_iter().filter(known).collect()
    }

    /// What the region says of itself now.
    fn region(&self, replica: &Replica) -> Region {
        let region = &self.own.owner().region;
        Region {
            incarnation: self.incarnation.clone(),
            members: settings::members(replica, region, &self.from.sessions.borrow()),
            ..(self.from.settings)()
        }
    }

    async fn answer_asks(&mut self, now: Timestamp) -> Result<(), LeaderError> {
        let asks = self.from.asks.borrow_and_update().clone().unwrap_or_default();
        self.answered.retain(|key| asks.contains_key(key));
        let waiting = asks.iter().filter(|(key, _)| !self.answered.contains(*key));
        let read = |(key, value): (&String, &bytes::Bytes)| (key.clone(), facts::ask(value));
        let mut waiting: Vec<(String, Option<Ask>)> = waiting.map(read).collect();
        waiting.sort_by_key(|(_, ask)| ask.as_ref().map(|ask| ask.decision.at));
        for (key, _) in waiting {
            self.answer(&key, now).await?;
            self.answered.insert(key);
        }
        Ok(())
    }

    /// Says what is asked for and deletes the ask, if it is still there: whoever took it back has
    /// told the operator so.
    async fn answer(&mut self, key: &str, now: Timestamp) -> Result<(), LeaderError> {
        let Some(found) = store::read(&*self.leader.store, key).await? else { return Ok(()) };
        let mut batch = Batch::default();
        let ask = facts::ask(&found.value);
        let stands = |ask: &Ask| now.duration_since(ask.decision.at) <= ask::ASK_STANDS;
        if let Some(ask) = ask.as_ref().filter(|ask| stands(ask)) {
            self.take(&mut batch, ask);
        }
        let batch = self.numbered(batch);
        let done = self.leader.commit_if_there(&found, batch, Op::delete(key)).await?;
        match &ask {
            _ if !done => info!(key, "an ask was taken back before it was said"),
            None => warn!(key, "an ask cannot be read, it is dropped"),
            Some(ask) if !stands(ask) => {
                warn!(key, by = ask.decision.by, "an ask that nobody waits for is dropped");
            }
            Some(Ask { decision: Decision { by, note, what, .. }, withdraw }) => {
                let decision = decisions::key(&self.own.owner().region, what);
                info!(%decision, by, note, withdraw, "an operator's decision is said for the region");
            }
        }
        Ok(())
    }

    fn take(&mut self, batch: &mut Batch, ask: &Ask) {
        let Ask { decision, withdraw } = ask;
        let key = decisions::key(&self.own.owner().region, &decision.what);
        if *withdraw {
            self.unsay(batch, &key);
        } else {
            let body = Arc::new(Body::Decision(decision.clone()));
            batch.items.push(self.own.say(&key, &body));
        }
    }

    fn unsay(&mut self, batch: &mut Batch, key: &Key) {
        let removed = self.own.remove(Removal::Explained);
        batch.removed.insert(key.clone(), removed);
        batch.items.push((key.clone(), None));
    }

    async fn commit(
        &self,
        batch: Batch,
        last: Option<Op>,
    ) -> Result<Option<Revision>, LeaderError> {
        if batch.is_empty() && last.is_none() {
            return Ok(None);
        }
        self.leader.commit(self.numbered(batch), last).await
    }

    /// With the newest change named: the replica may know only what the last leader said.
    fn numbered(&self, mut batch: Batch) -> Batch {
        if !batch.is_empty() {
            batch.newest = vec![(self.own.owner().clone(), self.own.newest())];
        }
        batch
    }
}
