//! What operators decide: which decisions stand, what may be decided, and what became of it.
//!
//! Pure, over the records that a process holds. A decision is a record of the region where it was
//! made; its key is made of what it says, so that saying it twice is saying it once. Approvals are
//! forgotten after a day, since the hold that one names never comes back; a leave stays until it is
//! withdrawn. Leaves to others: saying ([`super::spokesman`]), asking for it ([`super::ask`]),
//! carrying out a leave ([`super::departures`]).

mod preview;

use std::fmt::Write as _;

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};

pub use self::preview::{Held, Preview, preview};
use super::departures::{Heard, Verdict, View};
use crate::key::{Key, Kind};
use crate::names::{ClusterId, ObjectName, Owner, RegionName};
use crate::record::{Body, Cluster, Decided, Decision};
use crate::replica::Replica;

/// A hold may be named by so many characters of its id, if they begin no other's: fewer are too
/// easily a slip, and none at all a variable that was not set.
const SHORTEST_NAME: usize = 4;
/// How long an approval stands.
const APPROVAL: SignedDuration = SignedDuration::from_hours(24);

/// A decision that stands.
#[derive(Debug, Clone, Copy)]
pub struct Told<'a> {
    /// Its record.
    pub key: &'a Key,
    /// What it says.
    pub decision: &'a Decision,
}

impl<'a> Told<'a> {
    /// The region whose word it is.
    #[must_use]
    pub fn said_by(&self) -> &'a RegionName {
        &self.key.owner.region
    }
}

/// What became of a decision, as one process sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// There is nothing left to do.
    Applied,
    /// Not yet, and why.
    Waiting(String),
    /// There is nothing left to do, and nobody says that this was the reason.
    Over(String),
}

/// Why something cannot be decided. Each says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such hold.
    #[error("{cluster} has no hold {hold:?}: {}", listed("it holds", .present))]
    UnknownHold {
        /// The cluster.
        cluster: ClusterId,
        /// What was asked for.
        hold: String,
        /// What there is.
        present: Vec<String>,
    },
    /// Several holds.
    #[error("{cluster} has more than one hold {hold:?}: {}", listed("it holds", .present))]
    AmbiguousHold {
        /// The cluster.
        cluster: ClusterId,
        /// What was asked for.
        hold: String,
        /// Those that begin so.
        present: Vec<String>,
    },
    /// Nothing is known of it.
    #[error("no {what} {name} is known here: {}", listed("known are", .known))]
    Unknown {
        /// `cluster` or `region`.
        what: &'static str,
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// The region of a cluster speaks for it.
    #[error("{cluster} is a cluster of region {region}: ask a control plane of {region}")]
    OtherRegion {
        /// The cluster.
        cluster: ClusterId,
        /// Where to go.
        region: RegionName,
    },
    /// A region's word about itself goes with its records.
    #[error("{0} is this region itself: ask a control plane of one that remains")]
    OwnRegion(RegionName),
    /// It is not known to be gone.
    #[error(
        "{owner} may be alive ({heard}): stop it and wait for 30 s of silence, or say --live to \
         remove it as it runs"
    )]
    Live {
        /// Who.
        owner: Owner,
        /// What was heard.
        heard: String,
    },
    /// Nothing to take back.
    #[error("this region has not said that {owner} left{}", elsewhere(.said_by))]
    NotSaid {
        /// Who.
        owner: Owner,
        /// Regions that did say so.
        said_by: Vec<String>,
    },
}

fn listed(what: &str, names: &[String]) -> String {
    let names = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
    format!("{what} {names}")
}

fn elsewhere(regions: &[String]) -> String {
    if regions.is_empty() {
        return String::new();
    }
    format!(": it was said in {}, withdraw it there", regions.join(", "))
}

/// Where a decision of `region` is recorded.
#[must_use]
#[expect(
    clippy::missing_panics_doc,
    reason = "every name made here is one, whatever it is made of"
)]
pub fn key(region: &RegionName, what: &Decided) -> Key {
    let (verb, about, rest) = match what {
        Decided::Approve { cluster, hold } => ("approve", cluster.as_str(), hold),
        Decided::Leave { owner, incarnation } => ("leave", about(owner), incarnation),
    };
    let digest = Sha256::digest(format!("{about}\0{rest}"));
    let name = digest.iter().take(8).fold(format!("{verb}-{about}."), |mut name, byte| {
        let _ = write!(name, "{byte:02x}");
        name
    });
    let name: ObjectName = name.parse().expect("a label of known length, and hexadecimal digits");
    let owner = Owner::region(region.clone());
    Key { owner, kind: Kind::Decision, namespace: None, name, part: None }
}

fn about(owner: &Owner) -> &str {
    owner.cluster.as_ref().map_or(owner.region.as_str(), ClusterId::as_str)
}

/// The decisions of all regions.
pub fn held(replica: &Replica) -> impl Iterator<Item = Told<'_>> {
    let regions = replica.owners().filter(|(owner, _)| owner.cluster.is_none());
    let records = regions.flat_map(|(_, holding)| holding.records());
    records.filter(|(key, _)| key.kind == Kind::Decision).filter_map(|(key, entry)| {
        match &entry.record.as_ref()?.body {
            Body::Decision(decision) => Some(Told { key, decision }),
            _ => None,
        }
    })
}

/// The leave that a cluster's own region, or for a region another one, has said of this incarnation
/// of `owner`. A cluster of which it was said is not to publish any more.
#[must_use]
pub fn has_left<'a>(
    replica: &'a Replica,
    owner: &Owner,
    incarnation: &str,
) -> Option<&'a Decision> {
    let says = |told: &Told<'_>| match &told.decision.what {
        Decided::Leave { owner: left, incarnation: of } => {
            left == owner
                && of == incarnation
                && (*told.said_by() == owner.region) == owner.cluster.is_some()
        }
        Decided::Approve { .. } => false,
    };
    held(replica).find(says).map(|told| told.decision)
}

/// Whether what is held of `owner` is of an incarnation that has left, or of a cluster of a region
/// that has.
#[must_use]
pub fn is_gone(replica: &Replica, owner: &Owner) -> bool {
    let left = |owner: &Owner, incarnation: &str| has_left(replica, owner, incarnation).is_some();
    let region = Owner::region(owner.region.clone());
    let region_left = match record(replica, &region, Kind::Region) {
        Some(Body::Region(said)) => left(&region, &said.incarnation),
        // Nothing is held of it any more, or it was never heard.
        _ => left(&region, ""),
    };
    region_left
        || match record(replica, owner, Kind::Cluster) {
            Some(Body::Cluster(cluster)) => left(owner, &cluster.uid),
            _ => false,
        }
}

fn record<'a>(replica: &'a Replica, owner: &Owner, kind: Kind) -> Option<&'a Body> {
    let entry = replica.get(&Key::of_owner(owner.clone(), kind))?;
    entry.record.as_deref().map(|record| &record.body)
}

/// The holds of `cluster` that its region approved: what its agent may let go.
pub fn approved<'a>(replica: &'a Replica, owner: &'a Owner) -> impl Iterator<Item = &'a str> {
    held(replica).filter(|told| *told.said_by() == owner.region).filter_map(|told| {
        match &told.decision.what {
            Decided::Approve { cluster, hold } if Some(cluster) == owner.cluster.as_ref() => {
                Some(hold.as_str())
            }
            _ => None,
        }
    })
}

/// Whether a decision is to be forgotten.
#[must_use]
pub fn is_over(decision: &Decision, now: Timestamp) -> bool {
    match decision.what {
        Decided::Approve { .. } => now.duration_since(decision.at) > APPROVAL,
        Decided::Leave { .. } => false,
    }
}

/// What the agent of `owner` holds back, as its cluster's record says it.
#[must_use]
pub fn holds(replica: &Replica, owner: &Owner) -> Vec<String> {
    cluster_record(replica, owner).map(held_back).unwrap_or_default()
}

/// What a cluster asks to be approved, by id.
fn held_back(cluster: &Cluster) -> Vec<String> {
    let suspicion = cluster.suspect.iter().map(|suspect| suspect.id.clone());
    cluster.holds.iter().map(|hold| hold.id.clone()).chain(suspicion).collect()
}

fn cluster_record<'a>(replica: &'a Replica, owner: &Owner) -> Option<&'a Cluster> {
    let key = Key::of_owner(owner.clone(), Kind::Cluster);
    match &replica.get(&key)?.record.as_ref()?.body {
        Body::Cluster(cluster) => Some(cluster),
        _ => None,
    }
}

/// The hold of `cluster` that `named` means: its id, or the beginning of one alone.
///
/// # Errors
/// Says what there is instead.
pub fn hold_named(
    cluster: &ClusterId,
    present: Vec<String>,
    named: &str,
) -> Result<String, Refusal> {
    let (cluster, hold) = (cluster.clone(), named.to_owned());
    if present.contains(&hold) {
        return Ok(hold);
    }
    let short = named.len() < SHORTEST_NAME;
    let begin_so = present.iter().filter(|id| !short && id.starts_with(named));
    match begin_so.collect::<Vec<_>>()[..] {
        [] => Err(Refusal::UnknownHold { cluster, hold, present }),
        [one] => Ok(one.clone()),
        ref several => {
            let present = several.iter().map(ToString::to_string).collect();
            Err(Refusal::AmbiguousHold { cluster, hold, present })
        }
    }
}

/// Whether `hold` of `cluster` can be approved in `view.region`; see [`hold_named`].
///
/// # Errors
/// Says what there is instead, or where to go.
pub fn approve(view: &View<'_>, cluster: &ClusterId, hold: &str) -> Result<Decided, Refusal> {
    let owner = own_cluster(view, cluster)?;
    let hold = hold_named(cluster, holds(view.replica, &owner), hold)?;
    Ok(Decided::Approve { cluster: cluster.clone(), hold })
}

/// Who is to leave, or to come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leaver {
    /// One of this region's clusters.
    Cluster(ClusterId),
    /// Another region, with its clusters.
    Region(RegionName),
}

/// Whether `leaver` can leave; `live` also one that is alive.
///
/// # Errors
/// Says what there is instead, or where to go.
pub fn leave(view: &View<'_>, leaver: &Leaver, live: bool) -> Result<Decided, Refusal> {
    let (owner, incarnation, _) = departing(view, leaver, live)?;
    Ok(Decided::Leave { owner, incarnation })
}

/// Who leaves, as which incarnation, and when it was heard.
fn departing(
    view: &View<'_>,
    leaver: &Leaver,
    live: bool,
) -> Result<(Owner, String, Heard), Refusal> {
    let owner = match leaver {
        Leaver::Cluster(cluster) => own_cluster(view, cluster)?,
        Leaver::Region(region) => known_region(view, region)?,
    };
    let there = view.there(&owner);
    if there.heard.may_be_live() && !live {
        return Err(Refusal::Live { owner, heard: there.heard.to_string() });
    }
    Ok((owner, there.incarnation.unwrap_or_default(), there.heard))
}

/// The leaves of this region that are to be taken back for `leaver`.
///
/// # Errors
/// [`Refusal::NotSaid`].
pub fn withdraw(view: &View<'_>, leaver: &Leaver) -> Result<Vec<Decision>, Refusal> {
    let owner = match leaver {
        Leaver::Cluster(cluster) => Owner::cluster(view.region.clone(), cluster.clone()),
        Leaver::Region(region) => Owner::region(region.clone()),
    };
    let about = |told: &Told<'_>| match &told.decision.what {
        Decided::Leave { owner: left, .. } => *left == owner,
        Decided::Approve { .. } => false,
    };
    let (ours, others): (Vec<_>, Vec<_>) =
        held(view.replica).filter(about).partition(|told| told.said_by() == view.region);
    if ours.is_empty() {
        let said_by = others.iter().map(|told| told.said_by().to_string()).collect();
        return Err(Refusal::NotSaid { owner, said_by });
    }
    Ok(ours.iter().map(|told| told.decision.clone()).collect())
}

/// What became of a decision.
#[must_use]
pub fn state(view: &View<'_>, told: Told<'_>) -> State {
    match &told.decision.what {
        Decided::Approve { cluster, hold } => {
            let owner = Owner::cluster(told.said_by().clone(), cluster.clone());
            approval_state(cluster_record(view.replica, &owner), cluster, hold)
        }
        Decided::Leave { owner, incarnation } => {
            match view.verdict(told.said_by(), owner, incarnation) {
                Verdict::Apply => State::Waiting("the leader removes it".to_owned()),
                Verdict::Done | Verdict::Superseded => State::Applied,
                Verdict::Wait(why) => State::Waiting(why),
            }
        }
    }
}

/// By what the cluster says of itself: a hold also ends when what it held comes back, is explained,
/// or was seen to be gone twice.
fn approval_state(says: Option<&Cluster>, cluster: &ClusterId, hold: &String) -> State {
    match says {
        None => State::Over(format!("nothing is known of {cluster} any more")),
        Some(says) if held_back(says).contains(hold) => {
            State::Waiting(format!("{cluster} still holds it back"))
        }
        Some(says) if says.approved.contains(hold) => State::Applied,
        Some(says) => State::Over(match &held_back(says)[..] {
            [] => format!("{cluster} holds it back no more, and does not say that this was why"),
            // What is missing when an agent starts is held under a new id.
            others => format!(
                "{cluster} has no such hold any more; its agent now holds {} under other ids, maybe \
                 the same: look again",
                others.join(", ")
            ),
        }),
    }
}

fn own_cluster(view: &View<'_>, cluster: &ClusterId) -> Result<Owner, Refusal> {
    let owner = Owner::cluster(view.region.clone(), cluster.clone());
    if cluster.fits(view.region) && view.there(&owner).held {
        return Ok(owner);
    }
    let owners = || view.replica.owners().filter(|(_, holding)| !holding.is_empty());
    let claims = |owner: &&Owner| owner.cluster.as_ref() == Some(cluster);
    if let Some(owner) = owners().map(|(owner, _)| owner).find(claims) {
        let region = owner.region.clone();
        return Err(Refusal::OtherRegion { cluster: cluster.clone(), region });
    }
    let ours = owners().filter(|(owner, _)| owner.region == *view.region);
    let known = ours.filter_map(|(owner, _)| Some(owner.cluster.as_ref()?.to_string()));
    let known = known.collect();
    Err(Refusal::Unknown { what: "cluster", name: cluster.to_string(), known })
}

fn known_region(view: &View<'_>, region: &RegionName) -> Result<Owner, Refusal> {
    if region == view.region {
        return Err(Refusal::OwnRegion(region.clone()));
    }
    let owner = Owner::region(region.clone());
    if view.there(&owner).held {
        return Ok(owner);
    }
    let owners = view.replica.owners().filter(|(_, holding)| !holding.is_empty());
    let others = owners.map(|(owner, _)| &owner.region).filter(|region| *region != view.region);
    let known: std::collections::BTreeSet<_> = others.map(ToString::to_string).collect();
    let known = known.into_iter().collect();
    Err(Refusal::Unknown { what: "region", name: region.to_string(), known })
}

#[cfg(test)]
mod tests;
