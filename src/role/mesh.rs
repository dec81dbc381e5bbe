//! What the regions of the mesh say of themselves and decide, as status shows it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tombolo_federation::names::{ClusterId, RegionName};
use tombolo_federation::record::{Decided, Entitlement, Member, Region};
use tombolo_federation::replica::Replica;
use tombolo_federation::sync::decisions::{self, State, Told};
use tombolo_federation::sync::departures::View;
use tombolo_federation::sync::peers::{self, Disagreement};
use tombolo_federation::sync::settings;

/// What a region says of itself.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SettingsStatus {
    pub(crate) region: String,
    /// That of its store; absent in what older versions say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) incarnation: String,
    pub(crate) version: String,
    pub(crate) reads_level: u32,
    pub(crate) addresses: Vec<String>,
    pub(crate) distances: BTreeMap<String, u32>,
    pub(crate) peers: Vec<String>,
    /// SHA-256 of each root certificate that it pins.
    pub(crate) roots: Vec<String>,
    /// Namespaces by cluster, `*` for all; a cluster that is not named is entitled to all.
    pub(crate) entitlements: BTreeMap<String, BTreeSet<String>>,
    pub(crate) stand_ins: Vec<String>,
    pub(crate) rollout_order: Vec<String>,
    pub(crate) members: BTreeMap<String, MemberStatus>,
}

/// A cluster that joined a region.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MemberStatus {
    pub(crate) uid: String,
    pub(crate) joined: Timestamp,
}

/// A decision that stands.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DecisionStatus {
    /// The region where it was made.
    pub(crate) region: String,
    /// `approve` or `leave`.
    pub(crate) verb: String,
    /// The cluster, or `<region>/<cluster or _>`.
    pub(crate) about: String,
    /// The hold, or the incarnation.
    pub(crate) id: String,
    pub(crate) by: String,
    pub(crate) at: Timestamp,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) note: String,
    /// `applied`, `waiting` or `over`, as this process sees it.
    pub(crate) state: String,
    /// What it waits for, or why it is over.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) reason: String,
}

/// All of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct MeshStatus {
    pub(crate) settings: Option<SettingsStatus>,
    pub(crate) peers: Vec<SettingsStatus>,
    pub(crate) disagreements: Vec<Disagreement>,
}

impl MeshStatus {
    /// As seen in `region`, which reaches its peers at `dialled`.
    pub(crate) fn of(
        replica: &Replica,
        region: &RegionName,
        dialled: &BTreeMap<RegionName, Vec<String>>,
    ) -> Self {
        let records: BTreeMap<RegionName, Region> = settings::regions(replica)
            .map(|(name, record)| (name.clone(), record.clone()))
            .collect();
        let others = records.iter().filter(|(name, _)| *name != region);
        Self {
            settings: records.get(region).map(|record| SettingsStatus::of(region, record)),
            peers: others.map(|(name, record)| SettingsStatus::of(name, record)).collect(),
            disagreements: peers::disagreements(region, &records, dialled),
        }
    }
}

impl SettingsStatus {
    fn of(name: &RegionName, region: &Region) -> Self {
        fn texts<'a, T: ToString + 'a>(names: impl IntoIterator<Item = &'a T>) -> Vec<String> {
            names.into_iter().map(ToString::to_string).collect()
        }
        let hex = |root: &[u8; 32]| {
            root.iter().fold(String::new(), |mut text, byte| {
                let _ = write!(text, "{byte:02x}");
                text
            })
        };
        let member = |(cluster, member): (&ClusterId, &Member)| {
            let status = MemberStatus { uid: member.uid.clone(), joined: member.joined };
            (cluster.to_string(), status)
        };
        Self {
            region: name.to_string(),
            incarnation: region.incarnation.clone(),
            version: region.software_version.clone(),
            reads_level: region.reads_level,
            addresses: region.addresses.clone(),
            distances: region.distances.iter().map(|(to, d)| (to.to_string(), *d)).collect(),
            peers: texts(&region.peers),
            roots: region.pinned_roots.iter().map(hex).collect(),
            entitlements: region
                .entitlements
                .iter()
                .map(|(cluster, to)| (cluster.to_string(), namespaces(to)))
                .collect(),
            stand_ins: texts(&region.stand_ins),
            rollout_order: texts(&region.rollout_order),
            members: region.members.iter().map(member).collect(),
        }
    }
}

fn namespaces(entitlement: &Entitlement) -> BTreeSet<String> {
    match entitlement {
        Entitlement::All => ["*".to_owned()].into(),
        Entitlement::Namespaces(names) => names.iter().map(ToString::to_string).collect(),
    }
}

impl DecisionStatus {
    /// All that stand.
    pub(crate) fn all(view: &View<'_>) -> Vec<Self> {
        decisions::held(view.replica).map(|told| Self::of(view, told)).collect()
    }

    /// As `view` shows it.
    pub(crate) fn of(view: &View<'_>, told: Told<'_>) -> Self {
        let decision = told.decision;
        let (verb, about, id) = match &decision.what {
            Decided::Approve { cluster, hold } => ("approve", cluster.to_string(), hold),
            Decided::Leave { owner, incarnation } => ("leave", owner.to_string(), incarnation),
        };
        let (state, reason) = match decisions::state(view, told) {
            State::Applied => ("applied", String::new()),
            State::Waiting(why) => ("waiting", why),
            State::Over(why) => ("over", why),
        };
        Self {
            region: told.said_by().to_string(),
            verb: verb.to_owned(),
            about,
            id: id.clone(),
            by: decision.by.clone(),
            at: decision.at,
            note: decision.note.clone(),
            state: state.to_owned(),
            reason,
        }
    }
}
