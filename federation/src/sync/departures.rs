//! Owners that leave for good: when this region forgets one, and forgetting it.
//!
//! A leave names an incarnation and is the only way out for a whole cluster or region, also for a
//! dead one. A region's word about its own clusters, and its own word about another region, is
//! carried out at once; another region's word about a third only when that one is silent here too,
//! so that nobody loses a region that it still hears. Silence counts only from
//! when it could have been broken: an outage here silences everybody, so it is measured against the
//! beacons of this region and of the one whose word it is. Nothing that a region says removes a
//! cluster of this one.
//!
//! Owns: [`View::verdict`], which is pure, and [`forget_those_who_left`], the leader's task.
//! Promises: forgetting may end at any point and goes on at the next look; the session of a cluster
//! goes first, so that nothing is written behind it; the `said` fact of an owner goes last, by
//! which readers know that it is forgotten. That a region was forgotten is recorded beside, since
//! its silence here cannot be seen any more. Leaves to others: to let nothing of one who left back
//! in, by [`super::decisions::has_left`] for a cluster, and by [`is_forgotten`] for a region.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use prost::Message as _;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use super::decisions::{self, Told};
use super::leader::{Leader, LeaderError};
use super::local::Facts;
use super::{BEACON_INTERVAL, STALE_AFTER, chain, client, facts, settings};
use crate::key::{Key, Kind};
use crate::names::{Owner, RegionName};
use crate::proto::local as wire;
use crate::record::Decided;
use crate::replica::Replica;
use crate::store::{self, Commit, Guard, MAX_OPS, Op, Revision, StoreError, Txn};

/// Changes that come together are looked at once.
const TOGETHER: Duration = Duration::from_millis(200);

/// What one process knows.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Records.
    pub replica: &'a Replica,
    /// Its region.
    pub region: &'a RegionName,
    /// The region's sessions, as recorded.
    pub sessions: &'a Facts,
    /// Regions that were forgotten, as recorded.
    pub left: &'a Facts,
    /// Now.
    pub now: Instant,
}

/// The last sign of life, and what its absence is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// For how long there was none, if there ever was one.
    pub silence: Option<Duration>,
    /// For how long one would have been heard, without a break: a silence before that says nothing.
    pub listening: Duration,
    /// By whose beacons that is known.
    pub by: Vec<RegionName>,
}

impl Heard {
    /// Silence is known only after listening for long enough.
    #[must_use]
    pub fn may_be_live(&self) -> bool {
        self.silence.map_or(self.listening, |silence| silence.min(self.listening)) <= STALE_AFTER
    }
}

impl fmt::Display for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.silence {
            Some(silence) => write!(f, "heard {} s ago", silence.as_secs())?,
            None => write!(f, "not heard")?,
        }
        if !self.may_be_live() || self.silence.is_some_and(|silence| silence <= STALE_AFTER) {
            return Ok(());
        }
        let by = self.by.iter().map(RegionName::as_str).collect::<Vec<_>>().join(" and ");
        write!(f, ", but this process hears {by} for {} s only", self.listening.as_secs())
    }
}

/// What is there of an owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct There {
    /// Anything at all.
    pub held: bool,
    /// Its cluster's UID or its region's incarnation, if it said it.
    pub incarnation: Option<String>,
    /// Its last sign of life; for a region also those of its clusters, which come the same way.
    pub heard: Heard,
    /// For a region, the incarnation that was forgotten here.
    pub forgotten: Option<String>,
}

/// What to do about a leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Forget what is there.
    Apply,
    /// Nothing is there any more.
    Done,
    /// What is there is another incarnation.
    Superseded,
    /// Not now, and why.
    Wait(String),
}

impl View<'_> {
    /// What is there of `owner`.
    #[must_use]
    pub fn there(&self, owner: &Owner) -> There {
        self.there_by(owner, &[self.region])
    }

    /// What to do about it that `said_by` says that this incarnation of `owner` left.
    #[must_use]
    pub fn verdict(&self, said_by: &RegionName, owner: &Owner, incarnation: &str) -> Verdict {
        let there = self.there_by(owner, &[self.region, said_by]);
        verdict(self.region, said_by, owner, incarnation, &there)
    }

    /// The regions in `by` have to be heard for silence to count.
    fn there_by(&self, owner: &Owner, by: &[&RegionName]) -> There {
        match owner.cluster {
            Some(_) => self.cluster(owner, by),
            None => self.other_region(owner, by),
        }
    }

    fn cluster(&self, owner: &Owner, by: &[&RegionName]) -> There {
        let session = self.sessions.as_ref().and_then(|facts| {
            let key = facts::session_key(owner);
            Some(facts::member(&key, facts.get(&key)?)?.1.uid)
        });
        let holding = self.replica.holding(owner);
        let said = || settings::incarnation(self.replica, owner).map(str::to_owned);
        There {
            held: session.is_some() || holding.is_some_and(|holding| !holding.is_empty()),
            incarnation: session.or_else(said),
            heard: self.heard(holding.and_then(crate::replica::Holding::beacon_changed), by),
            forgotten: None,
        }
    }

    fn other_region(&self, owner: &Owner, by: &[&RegionName]) -> There {
        let of_it = || self.replica.owners().filter(|(of, _)| of.region == owner.region);
        let heard = of_it().filter_map(|(_, holding)| holding.beacon_changed()).max();
        let said = settings::incarnation(self.replica, owner);
        There {
            held: of_it().any(|(_, holding)| !holding.is_empty()),
            incarnation: said.map(str::to_owned),
            heard: self.heard(heard, by),
            forgotten: forgotten(self.left, &owner.region),
        }
    }

    fn heard(&self, at: Option<Instant>, by: &[&RegionName]) -> Heard {
        let without_gap = |region: &&RegionName| {
            let holding = self.replica.holding(&Owner::region((*region).clone()));
            holding.map_or(Duration::ZERO, |holding| holding.heard_without_gap(self.now))
        };
        let mut by = by.to_vec();
        by.dedup();
        Heard {
            silence: at.map(|at| self.now.saturating_duration_since(at)),
            listening: by.iter().map(without_gap).min().unwrap_or_default(),
            by: by.into_iter().cloned().collect(),
        }
    }
}

/// [`View::verdict`] over what is there, in `region`.
fn verdict(
    region: &RegionName,
    said_by: &RegionName,
    owner: &Owner,
    incarnation: &str,
    there: &There,
) -> Verdict {
    let wait = |why: String| Verdict::Wait(why);
    if there.incarnation.as_ref().is_some_and(|there| there != incarnation) {
        return Verdict::Superseded;
    }
    if owner.cluster.is_some() && *said_by != owner.region {
        return wait(format!("only {} says that of a cluster of its own", owner.region));
    }
    if owner.cluster.is_none() && (owner.region == *region || owner.region == *said_by) {
        return wait(format!("{} does not forget itself", owner.region));
    }
    let ours = said_by == region || there.forgotten.as_deref() == Some(incarnation);
    if !ours && there.heard.may_be_live() {
        return wait(format!("{owner} may be alive: {}", there.heard));
    }
    if there.held { Verdict::Apply } else { Verdict::Done }
}

/// Whether this region has forgotten `region` as this incarnation: nothing of it is to be mirrored
/// until it comes back as another one, or the decision is withdrawn. `left` is what stands under
/// [`facts::left_prefix`].
#[must_use]
pub fn is_forgotten(left: &Facts, region: &RegionName, incarnation: &str) -> bool {
    forgotten(left, region).is_some_and(|forgotten| forgotten == incarnation)
}

/// The incarnation of `region` that this region has forgotten, if it has.
#[must_use]
pub fn forgotten(left: &Facts, region: &RegionName) -> Option<String> {
    let key = facts::left_key(region);
    let (_, incarnation) = facts::left(&key, left.as_ref()?.get(&key)?)?;
    Some(incarnation)
}

/// The leader's work on departures.
#[derive(Debug)]
pub struct Departures {
    /// Writes. Its replica has all that was said before this term.
    pub leader: Leader,
    /// The region.
    pub region: RegionName,
    /// What stands under [`facts::sessions_prefix`].
    pub sessions: watch::Receiver<Facts>,
    /// What stands under [`facts::left_prefix`].
    pub left: watch::Receiver<Facts>,
}

/// Forgets owners that left, for as long as the leadership holds.
///
/// # Errors
/// Only when the leadership is lost, or the store is damaged.
pub async fn forget_those_who_left(mut departures: Departures) -> LeaderError {
    let known = departures.sessions.wait_for(Option::is_some).await.is_ok()
        && departures.left.wait_for(Option::is_some).await.is_ok();
    if !known {
        return LeaderError::Stopping;
    }
    let mut backoff = client::backoff();
    loop {
        match departures.look().await {
            Ok(()) => backoff = client::backoff(),
            Err(LeaderError::Store(error)) if !matches!(error, StoreError::Damaged(_)) => {
                warn!(error = chain(&error), "what left could not be removed, trying again");
                tokio::time::sleep(backoff.next().unwrap_or(client::MAX_BACKOFF)).await;
                continue;
            }
            Err(error) => return error,
        }
        if !departures.changed().await {
            return LeaderError::Stopping;
        }
    }
}

impl Departures {
    /// Waits for news; silence is news too.
    async fn changed(&mut self) -> bool {
        let up = tokio::select! {
            biased;
            view = self.leader.replicas.next() => view.is_some(),
            changed = self.sessions.changed() => changed.is_ok(),
            changed = self.left.changed() => changed.is_ok(),
            () = tokio::time::sleep(BEACON_INTERVAL) => true,
        };
        tokio::time::sleep(TOGETHER).await;
        up
    }

    async fn look(&mut self) -> Result<(), LeaderError> {
        let replica = self.leader.replicas.current();
        let sessions = self.sessions.borrow_and_update().clone();
        let left = self.left.borrow_and_update().clone();
        let view = View {
            replica: &replica,
            region: &self.region,
            sessions: &sessions,
            left: &left,
            now: Instant::now(),
        };
        let mut done = None;
        let mut standing = BTreeSet::new();
        for Told { key, decision } in decisions::held(&replica) {
            let Decided::Leave { owner, incarnation } = &decision.what else { continue };
            if owner.cluster.is_none() && owner.region != key.owner.region {
                standing.insert((owner.region.clone(), incarnation.clone()));
            }
            let verdict = view.verdict(&key.owner.region, owner, incarnation);
            let forgotten = self.forget(&view, verdict, owner, incarnation).await?;
            done = done.max(forgotten);
        }
        done = done.max(self.take_back(&left, &standing).await?);
        if let Some(done) = done {
            self.leader.caught_up(done).await?;
        }
        Ok(())
    }

    async fn forget(
        &self,
        view: &View<'_>,
        verdict: Verdict,
        owner: &Owner,
        incarnation: &str,
    ) -> Result<Option<Revision>, LeaderError> {
        let recorded = || view.there(owner).forgotten.as_deref() == Some(incarnation);
        match (verdict, &owner.cluster) {
            (Verdict::Apply, Some(_)) => forget_cluster(&self.leader, owner, incarnation).await,
            (Verdict::Apply, None) => {
                forget_region(&self.leader, view.replica, &owner.region, incarnation).await
            }
            (Verdict::Done, None) if !recorded() => {
                let ops = vec![facts::left_op(&owner.region, incarnation)];
                commit(&self.leader, Vec::new(), ops).await
            }
            (Verdict::Done | Verdict::Superseded | Verdict::Wait(_), _) => Ok(None),
        }
    }

    /// Whoever left by a decision that stands no more is welcome again.
    async fn take_back(
        &self,
        left: &Facts,
        standing: &BTreeSet<(RegionName, String)>,
    ) -> Result<Option<Revision>, LeaderError> {
        let recorded = left.iter().flat_map(|facts| facts.iter());
        let over = recorded.filter(|(key, value)| {
            facts::left(key, value).is_none_or(|forgotten| !standing.contains(&forgotten))
        });
        let ops: Vec<Op> = over.map(|(key, _)| Op::delete(key)).collect();
        commit(&self.leader, Vec::new(), ops).await
    }
}

/// `None` also if a guard failed: then the next look finds out.
async fn commit(
    leader: &Leader,
    guards: Vec<Guard>,
    ops: Vec<Op>,
) -> Result<Option<Revision>, LeaderError> {
    let mut revision = None;
    for part in ops.chunks(MAX_OPS) {
        let txn = Txn { guards: guards.clone(), ops: part.to_vec() };
        match leader.commit_guarded(txn).await? {
            Commit::Done(done) => revision = Some(done),
            Commit::GuardFailed => return Ok(None),
        }
    }
    Ok(revision)
}

async fn forget_cluster(
    leader: &Leader,
    owner: &Owner,
    incarnation: &str,
) -> Result<Option<Revision>, LeaderError> {
    let key = facts::session_key(owner);
    if let Some(session) = store::read(&*leader.store, &key).await? {
        let of = wire::Session::decode(session.value.clone()).map(|session| session.uid);
        if of.is_ok_and(|uid| uid != incarnation) {
            return Ok(None);
        }
        let guards = vec![Guard::ModRevision(key.clone(), session.mod_revision)];
        if commit(leader, guards, vec![Op::delete(&key)]).await?.is_none() {
            return Ok(None);
        }
    }
    let (held, _) = store::list(&*leader.store, &Key::owner_prefix(owner)).await?;
    let mut ops: Vec<Op> = held.iter().map(|entry| Op::delete(&entry.key)).collect();
    let records = ops.len();
    ops.extend(facts_of(owner));
    // A session that is there again is another incarnation's, or is to be deleted first.
    let done = commit(leader, vec![Guard::CreateRevision(key, 0)], ops).await?;
    info!(%owner, incarnation, records, done = done.is_some(), "a cluster that left is forgotten");
    Ok(done)
}

async fn forget_region(
    leader: &Leader,
    replica: &Replica,
    region: &RegionName,
    incarnation: &str,
) -> Result<Option<Revision>, LeaderError> {
    // First what keeps the mirror from bringing it back, or from going on as if it were all here.
    let ops = vec![facts::left_op(region, incarnation), Op::delete(facts::resume_key(region))];
    if commit(leader, Vec::new(), ops).await?.is_none() {
        return Ok(None);
    }
    let (held, _) = store::list(&*leader.store, &Key::region_prefix(region)).await?;
    let mut ops: Vec<Op> = held.iter().map(|entry| Op::delete(&entry.key)).collect();
    let records = ops.len();
    let stored = held.iter().filter_map(|entry| Some(entry.key.parse::<Key>().ok()?.owner));
    let known = replica.owners().map(|(owner, _)| owner.clone());
    let owners: BTreeSet<Owner> =
        stored.chain(known).filter(|owner| owner.region == *region).collect();
    ops.extend(owners.iter().flat_map(facts_of));
    let done = commit(leader, Vec::new(), ops).await?;
    info!(%region, incarnation, records, done = done.is_some(), "a region that left is forgotten");
    Ok(done)
}

/// What the store knows of an owner besides its records.
fn facts_of(owner: &Owner) -> Vec<Op> {
    let complete = Kind::ALL.iter().map(|kind| Op::delete(facts::complete_key(owner, *kind)));
    complete.chain([Op::delete(facts::said_key(owner))]).collect()
}

#[cfg(test)]
mod tests;
