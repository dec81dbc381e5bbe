//! What a cluster's source wants to say, said into the agent's replica: the overlay that its own
//! proxies and DNS clients see at once, and that the publisher then carries to the region.
//!
//! Everything goes through the guard: what the source shows no longer is withdrawn only if that is
//! explained or plausible, and what is held back instead is told in the cluster's own record.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tombolo_federation::guard::{Ending, Verdict};
use tombolo_federation::key::{Key, Kind};
use tombolo_federation::manifests::{Desired, Guarded};
use tombolo_federation::names::{ClusterId, Owner};
use tombolo_federation::record::{
    Beacon, Body, Cluster, Decided, Hold, Newest, Record, Removal, Suspect,
};
use tombolo_federation::replica::{Batch, Holding, Removed, Replica, ReplicaWriter, Replicas};
use tombolo_federation::sync::client::Surplus;
use tombolo_federation::sync::own::{OwnRecords, with_join};
use tombolo_federation::sync::publisher::Lacking;
use tombolo_federation::sync::settings::mesh_level;
use tombolo_federation::sync::{BEACON_INTERVAL, CLUSTER_KINDS};
use tracing::{debug, info, warn};

/// So many holds that were approved are told of: far more than a day has.
const APPROVED_KEPT: usize = 64;

/// Everything that the task works on.
pub(crate) struct Own {
    pub(crate) records: OwnRecords,
    pub(crate) cluster: Cluster,
    pub(crate) guard: Guarded,
    /// When the guard wants to be asked again; `None` at the start.
    pub(crate) ask_again: Option<Instant>,
    pub(crate) desired: watch::Receiver<Arc<Desired>>,
    /// The region's word on when the cluster joined.
    pub(crate) joined: watch::Receiver<Option<Timestamp>>,
    /// The join that what was said respects.
    pub(crate) respected: watch::Sender<Option<Timestamp>>,
    /// Ids of holds and suspicions that an operator approved.
    pub(crate) approvals: watch::Receiver<BTreeSet<String>>,
    /// Up to which change of an earlier process what was restored from disk goes.
    pub(crate) restored: Option<Newest>,
    /// Asks what became of records that only the region has, or lacks.
    pub(crate) surplus: mpsc::Receiver<Surplus>,
    pub(crate) writer: Arc<ReplicaWriter>,
}

impl Own {
    /// Keeps saying what the source wants said, and every 5 s that it is alive.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let mut beat = interval(BEACON_INTERVAL);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let beacon_key = Key::of_owner(self.records.owner().clone(), Kind::Beacon);
        let mut nonce = 0;
        self.reconcile();
        loop {
            let ask_again = self.ask_again;
            // Every future here may be dropped: channels and clocks keep what they have.
            let changed = tokio::select! {
                changed = self.desired.changed() => changed.is_ok(),
                changed = self.joined.changed() => changed.is_ok(),
                changed = self.approvals.changed() => changed.is_ok(),
                () = sleep_until(ask_again.unwrap_or_else(Instant::now)), if ask_again.is_some() => {
                    true
                }
                surplus = self.surplus.recv() => {
                    let Some(surplus) = surplus else { return Ok(()) };
                    self.judge(surplus);
                    continue;
                }
                _ = beat.tick() => {
                    self.records.set_level(mesh_level(&self.writer.current()));
                    // A listing that finds the same wakes nobody, and may end a hold.
                    if !self.cluster.holds.is_empty() {
                        self.reconcile();
                    }
                    nonce += 1;
                    let body = Arc::new(Body::Beacon(Beacon { nonce }));
                    let items = vec![self.records.say(&beacon_key, &body)];
                    self.writer.apply(Batch { items, ..Batch::default() }, Instant::now());
                    continue;
                }
            };
            if !changed {
                return Ok(());
            }
            self.reconcile();
        }
    }

    /// What was published before this process started, and neither its source nor its disk knows
    /// of, goes through the guard like anything else that the source does not show. What is restored
    /// from disk and the region, which has heard more since, lacks went by the word of a process that
    /// ended before it was saved: to say it again would bring back what is dead, approved or not.
    fn judge(&mut self, surplus: Surplus) {
        let mut asked: BTreeSet<Key> = surplus.records.iter().map(|(key, _)| key.clone()).collect();
        let mut forgot = false;
        if let Some(Lacking { keys, heard }) = &surplus.lacking
            && self.restored.as_ref().is_some_and(|restored| restored.is_older_than(heard))
        {
            asked.extend(keys.iter().cloned());
            self.guard.forget(keys.iter());
            forgot = true;
        }
        let open = |(key, value): &(Key, Bytes)| {
            Some((key.clone(), Arc::new(Record::open(key, value).ok()?.body)))
        };
        self.guard.adopt(surplus.records.iter().filter_map(open));
        // Also if that was all that there was, and the source shows nothing yet.
        let mut gone = self.reconcile_if(forgot);
        gone.retain(|key, _| asked.remove(key));
        // Whoever asked is gone with its stream.
        let _ = surplus.gone.send(gone);
    }

    /// Says what the source wants said, if it is known. Returns what went.
    pub(crate) fn reconcile(&mut self) -> BTreeMap<Key, Removed> {
        self.reconcile_if(false)
    }

    fn reconcile_if(&mut self, forgot: bool) -> BTreeMap<Key, Removed> {
        let mut removed = BTreeMap::new();
        let desired = Arc::clone(&self.desired.borrow_and_update());
        let joined = *self.joined.borrow_and_update();
        let approved = self.approvals.borrow_and_update().clone();
        if desired.complete || self.guard.has_published() || forgot {
            let (now, wall) = (Instant::now(), Timestamp::now());
            let verdict = self.guard.decide(&desired, &approved, now, wall);
            self.ask_again = verdict.ask_again;
            self.report(&verdict);
            self.cluster.holds.clone_from(&verdict.holds);
            self.cluster.suspect.clone_from(&verdict.suspect);
            self.note_approved(&verdict);
            let mut bodies = with_join(&verdict.publish, joined);
            let key = Key::of_owner(self.records.owner().clone(), Kind::Cluster);
            bodies.insert(key, Arc::new(Body::Cluster(self.cluster.clone())));
            let mut batch = self.records.reconcile(&bodies, &verdict.removals);
            batch.complete = self.records.complete(known_kinds(&desired));
            removed.clone_from(&batch.removed);
            self.writer.apply(batch, now);
        }
        self.respected.send_if_modified(|respected| {
            let news = *respected != joined;
            *respected = joined;
            news
        });
        removed
    }

    /// By which operators see that it was their word that counted.
    fn note_approved(&mut self, verdict: &Verdict) {
        let holds = verdict.ended.iter().map(|(hold, ending)| (&hold.id, ending));
        let suspicion = verdict.cleared.iter().map(|(suspect, ending)| (&suspect.id, ending));
        let approved = holds.chain(suspicion).filter(|(_, ending)| **ending == Ending::Approved);
        let known = &mut self.cluster.approved;
        known.extend(approved.map(|(id, _)| id.clone()));
        known.drain(..known.len().saturating_sub(APPROVED_KEPT));
    }

    /// Once at the start and once at the end of each, for whoever reads back what happened.
    fn report(&self, verdict: &Verdict) {
        for hold in &verdict.began {
            let Hold { id, records, endpoints, why, .. } = hold;
            let services = named(hold);
            warn!(hold = id, records, endpoints, why, services, "removals are held back");
        }
        for (hold, ending) in &verdict.ended {
            let Hold { id, records, endpoints, .. } = hold;
            let (services, ending) = (named(hold), ending.as_str());
            warn!(hold = id, ending, records, endpoints, services, "removals are no longer held");
        }
        let before = self.cluster.suspect.as_ref().map(|suspect| &suspect.id);
        if let Some(Suspect { id, ready, of, .. }) = &verdict.suspect
            && before != Some(id)
        {
            warn!(suspicion = id, ready, of, "the cluster's readiness is suspect");
        }
        if let Some((Suspect { id, .. }, ending)) = &verdict.cleared {
            let ending = ending.as_str();
            warn!(suspicion = id, ending, "the cluster's readiness is believed again");
        }
        let mut withdrawn: BTreeMap<Removal, usize> = BTreeMap::new();
        for (key, removal) in &verdict.removals {
            debug!(%key, %removal, "record withdrawn");
            *withdrawn.entry(*removal).or_default() += 1;
        }
        for (removal, records) in withdrawn {
            info!(%removal, records, "withdrawn");
        }
    }
}

fn named(hold: &Hold) -> String {
    hold.services.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// With a gap, or before the directory is at rest, what an earlier run published may still be wanted:
/// then these kinds are not vouched for, and nothing of them goes for being absent.
fn known_kinds(desired: &Desired) -> &'static [Kind] {
    if desired.gaps || !desired.listing.settled {
        &[Kind::Cluster, Kind::Beacon]
    } else {
        &CLUSTER_KINDS
    }
}

/// Follows what operators approved for `cluster`, `here` at its agent or in the decisions of its own
/// region: a peer's word does not count.
pub(crate) async fn follow_approvals(
    owner: Owner,
    mut replicas: Replicas,
    mut here: watch::Receiver<BTreeSet<String>>,
    approvals: watch::Sender<BTreeSet<String>>,
) {
    let Some(cluster) = &owner.cluster else { return };
    let region = Owner::region(owner.region.clone());
    loop {
        let mut approved = approved(&replicas.current(), &region, cluster);
        approved.extend(here.borrow_and_update().iter().cloned());
        approvals.send_if_modified(|held| {
            let news = *held != approved;
            *held = approved;
            news
        });
        // Both may be dropped: each is looked at anew.
        let more = tokio::select! {
            more = replicas.changed() => more,
            more = here.changed() => more.is_ok(),
        };
        if !more {
            return;
        }
    }
}

fn approved(replica: &Replica, region: &Owner, cluster: &ClusterId) -> BTreeSet<String> {
    let records = replica.holding(region).into_iter().flat_map(Holding::records);
    let decisions = records.filter(|(key, _)| key.kind == Kind::Decision);
    decisions
        .filter_map(|(_, entry)| match &entry.record.as_ref()?.body {
            Body::Decision(decision) => match &decision.what {
                Decided::Approve { cluster: of, hold } if of == cluster => Some(hold.clone()),
                _ => None,
            },
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests;
