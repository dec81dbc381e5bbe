//! What a process says of itself and of the mesh: the admin API's answers, as types.
//!
//! One set of types for server and CLI, so that `-o json` is the API's own document.

use std::collections::BTreeMap;
use std::time::Duration;

use super::store_health::StoreStatus;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tombolo_federation::cache::keeper::Standings;
use tombolo_federation::catalog::{Catalog, Service};
use tombolo_federation::key::{Key, Kind};
use tombolo_federation::names::Owner;
use tombolo_federation::record::{Body, Cluster, Hold, ServiceType, Suspect};
use tombolo_federation::replica::{Holding, Replica};
use tombolo_federation::sync::client::Link;
use tombolo_federation::sync::follower::Following;
use tombolo_federation::sync::intake::Strays;
use tombolo_federation::sync::peers::Disagreement;
use tombolo_federation::sync::{STALE_AFTER, chain};

use super::leader::LeaderStatus;
use super::mesh::{DecisionStatus, SettingsStatus};

/// `/api/v1/status`.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[cfg_attr(test, derive(Default))]
#[serde(rename_all = "camelCase")]
pub(crate) struct Status {
    /// `control-plane` or `agent`.
    pub(crate) role: String,
    pub(crate) mesh: String,
    pub(crate) region: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cluster: Option<String>,
    pub(crate) version: String,
    pub(crate) ready: bool,
    /// What readiness waits for.
    pub(crate) pending: Vec<String>,
    /// Whether this process leads its region; absent for agents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) leader: Option<bool>,
    /// Which replica does; absent for agents, and while none is known to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) led_by: Option<LeaderStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) catalog: Option<CatalogStatus>,
    /// The region's store; absent for agents, which have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) store: Option<StoreStatus>,
    pub(crate) sources: Vec<SourceStatus>,
    pub(crate) links: Vec<LinkStatus>,
    /// Objects of the own cluster's source that cannot be used, with file, object and field; of a
    /// control plane, keys of its store that are no records, and claims to ids that others hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) problems: Vec<String>,
    /// What the own cluster's source holds, for directory clusters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) source: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) certificate_expires: Option<Timestamp>,
    /// Why somebody has to do something before then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) certificate_problem: Option<String>,
    /// Proxies connected to this process, as `/api/v1/proxies` has them in full.
    #[serde(default)]
    pub(crate) proxies: usize,
    /// What this region says of itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) settings: Option<SettingsStatus>,
    /// What the other regions say of themselves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) peers: Vec<SettingsStatus>,
    /// Where regions do not say the same of each other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) disagreements: Vec<Disagreement>,
    /// Operators' decisions that stand; absent while this process does not know them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) decisions: Option<Vec<DecisionStatus>>,
    /// What this process keeps on disk for its next start.
    #[serde(default)]
    pub(crate) cache: CacheStatus,
}

/// The disk cache of a process.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CacheStatus {
    /// Of the newest good image; absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) generation: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) saved_at: Option<Timestamp>,
    /// The image that this process started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) restored: Option<RestoredStatus>,
    /// Files that were not used at the start, and why the last save failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) problems: Vec<String>,
    /// The last save failed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) failing: bool,
    /// What is held differs from the newest image.
    #[serde(default)]
    pub(crate) unsaved: bool,
    /// Saves since the start.
    #[serde(default)]
    pub(crate) saved: u64,
    #[serde(default)]
    pub(crate) failed: u64,
}

/// An image that a process started from.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RestoredStatus {
    pub(crate) generation: u64,
    pub(crate) saved_at: Timestamp,
}

/// The catalog that a process serves from.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CatalogStatus {
    pub(crate) generation: u64,
    pub(crate) complete: bool,
    /// Equal in every process that holds the same.
    pub(crate) digest: String,
    pub(crate) services: usize,
    pub(crate) endpoints: usize,
}

/// One owner's records, as this process holds them.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SourceStatus {
    pub(crate) owner: String,
    pub(crate) records: usize,
    /// Kinds of records that the owner vouches for: what is not here of them is not there.
    pub(crate) complete_kinds: Vec<String>,
    /// All that the owner is there to say was said.
    pub(crate) complete: bool,
    /// Nothing new was heard for 30 s; what it said is still served.
    pub(crate) stale: bool,
    /// From disk: this process has not heard of it since it started.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) restored: bool,
    /// Seconds since its last beacon; absent if none has come since this process started, nor is
    /// known from before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) age_seconds: Option<f64>,
    pub(crate) quarantined: usize,
    /// Keys of those and why they cannot be read, up to 20.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) quarantine: BTreeMap<String, String>,
    /// Removals that the owner holds back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) holds: Vec<HoldStatus>,
    /// The owner's readiness is not believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) suspect: Option<SuspectStatus>,
}

/// Removals held back.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HoldStatus {
    /// What an approval names.
    pub(crate) id: String,
    pub(crate) since: Timestamp,
    pub(crate) records: u32,
    pub(crate) endpoints: u32,
    pub(crate) why: String,
    /// Some of the services concerned.
    pub(crate) services: Vec<String>,
}

/// Readiness that is not believed.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SuspectStatus {
    /// What an approval names.
    pub(crate) id: String,
    pub(crate) since: Timestamp,
    pub(crate) ready: u32,
    pub(crate) of: u32,
}

/// So many quarantined records of a source are named.
const NAMED: usize = 20;

/// A connection to a region.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LinkStatus {
    pub(crate) name: String,
    pub(crate) synced: bool,
    /// Another replica leads and keeps this connection: how it stands is for that one to say. What
    /// is counted here is from when this one led.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) left_to_leader: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) problem: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) refused: BTreeMap<String, String>,
    /// Records that the other side sent and may not send, or that are not known here.
    #[serde(default)]
    pub(crate) left_out: u64,
    /// The same by reason: `key`, `owner`, `kind`, `size`, `quota`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) left_out_for: BTreeMap<String, u64>,
    /// The last of them, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_left_out: Option<String>,
    /// Records that the other side sent in an older version than the one that is held here.
    #[serde(default)]
    pub(crate) went_back: u64,
    /// The key of the last of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_went_back: Option<String>,
    /// How often what is held was not what the other side said that it should be.
    #[serde(default)]
    pub(crate) mismatches: u64,
}

/// `/api/v1/services`.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Services {
    pub(crate) catalog: CatalogStatus,
    pub(crate) services: Vec<ServiceStatus>,
}

/// A merged service.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServiceStatus {
    pub(crate) namespace: String,
    pub(crate) name: String,
    #[serde(rename = "type")]
    pub(crate) service_type: String,
    /// `http 8080/TCP`
    pub(crate) ports: Vec<String>,
    /// Exporters, oldest first.
    pub(crate) clusters: Vec<ClusterEndpoints>,
    /// What exporters disagree on.
    pub(crate) conflicts: Vec<String>,
}

/// One exporter's endpoints.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClusterEndpoints {
    pub(crate) cluster: String,
    pub(crate) region: String,
    pub(crate) ready: usize,
    pub(crate) endpoints: Vec<EndpointStatus>,
}

/// One endpoint.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndpointStatus {
    pub(crate) address: String,
    pub(crate) ports: Vec<u16>,
    pub(crate) ready: bool,
    pub(crate) terminating: bool,
    /// Not ready, says a cluster whose word on that is suspect; see [`SuspectStatus`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) degraded: bool,
    pub(crate) zone: String,
    pub(crate) target: String,
}

impl CatalogStatus {
    pub(crate) fn of(catalog: &Catalog) -> Self {
        Self {
            generation: catalog.generation,
            complete: catalog.complete,
            digest: catalog.digest(),
            services: catalog.services.size(),
            endpoints: catalog.services.values().map(|service| service.endpoints.len()).sum(),
        }
    }
}

impl Services {
    pub(crate) fn of(catalog: &Catalog) -> Self {
        let services = catalog.services.values().map(|service| ServiceStatus::of(service));
        Self { catalog: CatalogStatus::of(catalog), services: services.collect() }
    }
}

impl ServiceStatus {
    fn of(service: &Service) -> Self {
        let port = |port: &tombolo_federation::record::ServicePort| {
            let name = if port.name.is_empty() { "-" } else { &port.name };
            format!("{name} {}/{}", port.port, port.protocol)
        };
        let exports = service.exports.iter();
        Self {
            namespace: service.key.namespace.to_string(),
            name: service.key.name.to_string(),
            service_type: match service.service_type {
                ServiceType::ClusterSetIP => "ClusterSetIP",
                ServiceType::Headless => "Headless",
            }
            .to_owned(),
            ports: service.ports.iter().map(port).collect(),
            clusters: exports.map(|export| ClusterEndpoints::of(service, export)).collect(),
            conflicts: service
                .conflicts
                .iter()
                .map(|c| format!("{}: {}", c.reason, c.message))
                .collect(),
        }
    }
}

impl ClusterEndpoints {
    fn of(service: &Service, export: &tombolo_federation::catalog::ServiceExport) -> Self {
        let own = service.endpoints.iter().filter(|endpoint| endpoint.cluster == export.cluster);
        let endpoints: Vec<EndpointStatus> = own
            .map(|endpoint| EndpointStatus {
                address: endpoint.address().to_string(),
                ports: endpoint.ports.iter().map(|port| port.port).collect(),
                ready: endpoint.endpoint.ready,
                terminating: endpoint.endpoint.terminating,
                degraded: endpoint.degraded,
                zone: endpoint.endpoint.zone.clone(),
                target: endpoint.endpoint.target.clone(),
            })
            .collect();
        Self {
            cluster: export.cluster.to_string(),
            region: export.region.to_string(),
            ready: endpoints
                .iter()
                .filter(|endpoint| endpoint.ready && !endpoint.terminating)
                .count(),
            endpoints,
        }
    }
}

impl LinkStatus {
    pub(crate) fn of(name: String, link: &Link) -> Self {
        let Link { synced, problem, refused, strays, mismatches } = link.clone();
        let Strays { left_out, last_left_out, went_back, last_went_back } = strays;
        Self {
            name,
            synced,
            left_to_leader: false,
            problem,
            refused,
            left_out: left_out.values().sum(),
            left_out_for: left_out.iter().map(|(why, n)| (why.as_str().to_owned(), *n)).collect(),
            last_left_out,
            went_back,
            last_went_back,
            mismatches,
        }
    }

    /// Of a replica that does not lead.
    pub(crate) fn left_to_leader(name: String, link: &Link) -> Self {
        Self { left_to_leader: true, ..Self::of(name, &link.given_up()) }
    }
}

impl CacheStatus {
    pub(crate) fn of(standings: &Standings) -> Self {
        let restored = standings.restored;
        Self {
            generation: standings.newest.map(|newest| newest.generation),
            saved_at: standings.newest.map(|newest| newest.saved_at),
            restored: restored.map(|image| RestoredStatus {
                generation: image.generation,
                saved_at: image.saved_at,
            }),
            problems: standings.found.iter().chain(&standings.failing).cloned().collect(),
            failing: standings.failing.is_some(),
            unsaved: standings.unsaved,
            saved: standings.saved,
            failed: standings.failed,
        }
    }
}

/// How the sources of a process are.
pub(crate) struct Sources<'a> {
    pub(crate) replica: &'a Replica,
    /// This process's own source, which needs no beacon to be known to be there.
    pub(crate) own: Option<&'a Owner>,
    pub(crate) started: Instant,
    /// When owners were heard before that.
    pub(crate) heard: &'a BTreeMap<Owner, Option<Timestamp>>,
    pub(crate) now: Timestamp,
}

impl Sources<'_> {
    pub(crate) fn status(&self) -> Vec<SourceStatus> {
        self.replica.owners().map(|(owner, holding)| self.of(owner, holding)).collect()
    }

    fn of(&self, owner: &Owner, holding: &Holding) -> SourceStatus {
        let own = self.own == Some(owner);
        let heard = holding.beacon_changed().map(|heard| heard.elapsed());
        let before = self.heard.get(owner);
        // Whatever the clock says since: not in the life of this process.
        let unheard_for = || Some(self.since((*before?)?).max(self.started.elapsed()));
        let age = heard.or_else(unheard_for);
        let silence = age.unwrap_or_else(|| self.started.elapsed());
        let unheard = if own { !has_spoken(holding) } else { heard.is_none() };
        let cluster = own_record(self.replica, owner);
        SourceStatus {
            holds: cluster.iter().flat_map(|cluster| &cluster.holds).map(HoldStatus::of).collect(),
            suspect: cluster.and_then(|c| c.suspect.as_ref()).map(SuspectStatus::of),
            owner: owner.to_string(),
            records: holding.len(),
            complete_kinds: holding.complete().keys().map(ToString::to_string).collect(),
            complete: is_complete(holding),
            stale: !own && silence > STALE_AFTER,
            restored: before.is_some() && unheard,
            age_seconds: age.map(|age| (age.as_secs_f64() * 10.0).round() / 10.0),
            quarantined: holding.quarantined(),
            quarantine: quarantine(holding),
        }
    }

    /// Never negative: the clock may have gone back.
    fn since(&self, heard: Timestamp) -> Duration {
        Duration::try_from(self.now.duration_since(heard)).unwrap_or_default()
    }
}

impl HoldStatus {
    fn of(hold: &Hold) -> Self {
        Self {
            id: hold.id.clone(),
            since: hold.since,
            records: hold.records,
            endpoints: hold.endpoints,
            why: hold.why.clone(),
            services: hold.services.iter().map(ToString::to_string).collect(),
        }
    }
}

impl SuspectStatus {
    fn of(suspect: &Suspect) -> Self {
        let Suspect { id, since, ready, of } = suspect.clone();
        Self { id, since, ready, of }
    }
}

/// What a cluster says of itself.
fn own_record<'a>(replica: &'a Replica, owner: &Owner) -> Option<&'a Cluster> {
    owner.cluster.as_ref()?;
    let key = Key::of_owner(owner.clone(), Kind::Cluster);
    match &replica.get(&key)?.record.as_ref()?.body {
        Body::Cluster(cluster) => Some(cluster),
        _ => None,
    }
}

fn quarantine(holding: &Holding) -> BTreeMap<String, String> {
    let kept = holding.quarantine().take(NAMED);
    kept.map(|(key, why)| (key.to_string(), chain(why))).collect()
}

/// What stands in the store under a key that should be a record's and is not one.
pub(crate) fn strays(following: &Following) -> Vec<String> {
    let strays = following.strays.iter();
    strays.map(|(key, why)| format!("store: {key} is left alone: {why}")).collect()
}

/// Whether an owner said all that it can: the marker of its own record comes last. One whose
/// source has a gap does not vouch for all kinds, and waiting would not change that.
pub(crate) fn has_spoken(holding: &Holding) -> bool {
    holding.complete().contains_key(&Kind::Cluster)
        || holding.complete().contains_key(&Kind::Region)
}

/// Whether an owner said that what it is there to say was said.
pub(crate) fn is_complete(holding: &Holding) -> bool {
    holding.complete().contains_key(&Kind::Endpoints)
        || holding.complete().contains_key(&Kind::Region)
}

#[cfg(test)]
mod tests {
    use tombolo_federation::replica::{self, Batch};

    use super::*;

    #[test]
    fn a_status_names_what_is_quarantined_and_why_but_not_without_end() {
        let (writer, _readers) = replica::channel();
        let items = (0..30).map(|n| {
            let key: Key = format!("/tombolo/v1/r/r-a/namespace/_/n{n}").parse().unwrap();
            (key, Some("rubbish".into()))
        });
        let batch = Batch { items: items.collect(), ..Batch::default() };
        writer.apply(batch, Instant::now());
        let sources = Sources {
            replica: &writer.current(),
            own: None,
            started: Instant::now(),
            heard: &BTreeMap::new(),
            now: Timestamp::UNIX_EPOCH,
        }
        .status();
        assert_eq!((sources[0].quarantined, sources[0].quarantine.len()), (30, NAMED));
        let why = &sources[0].quarantine["/tombolo/v1/r/r-a/namespace/_/n0"];
        assert!(why.starts_with("the value is not a valid Envelope message: "), "{why}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_was_set_back_makes_nobody_younger_than_this_process() {
        let (writer, _readers) = replica::channel();
        let key: Key = "/tombolo/v1/r/r-a/namespace/_/n".parse().unwrap();
        let batch = Batch { items: vec![(key, Some("rubbish".into()))], ..Batch::default() };
        writer.apply(batch, Instant::now());
        let started = Instant::now();
        let (now, hour) = (Timestamp::UNIX_EPOCH, Duration::from_hours(1));
        let owner: Owner = Owner::cluster("r".parse().unwrap(), "r-a".parse().unwrap());
        let heard = BTreeMap::from([(owner, Some(now + hour))]);
        let replica = writer.current();
        let sources = Sources { replica: &replica, own: None, started, heard: &heard, now };
        let source = || sources.status().remove(0);
        assert!(!source().stale);
        tokio::time::advance(STALE_AFTER + Duration::from_secs(1)).await;
        assert_eq!((source().stale, source().age_seconds), (true, Some(31.0)));
    }
}
