//! Configuration: one typed file per role, and the only place that reads the environment.
//!
//! Unknown keys are refused with the path to them; what can have a default has one; the effective
//! configuration is logged at start. Durations and addresses are parsed here, so that a role gets
//! values that make sense or does not start.

mod limits;
mod store;
#[cfg(test)]
mod tests;
mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use tombolo_federation::guard;
use tombolo_federation::names::{
    ClusterId, ClusterName, InvalidName, MeshDomain, NamespaceName, RegionName,
};

pub(crate) use self::limits::LimitsConfig;
pub(crate) use self::store::{EtcdStore, StoreConfig};
pub(crate) use self::values::{Dials, Namespaces, Span};

/// The zone of multi-cluster names, fixed by KEP-1645.
pub(crate) const CLUSTERSET_ZONE: &str = "clusterset.local";

/// Another one leads within 5 s: this, and what it takes to notice and to be elected.
pub(crate) const LEADER_TTL: Duration = Duration::from_secs(3);

/// Why a configuration file was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("{} cannot be read", .path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{}: {problem}", .path.display())]
    Invalid { path: PathBuf, problem: String },
}

/// Where a role listens.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Listen {
    /// gRPC over mTLS: federation API, CA, xDS.
    pub(crate) grpc: SocketAddr,
    /// DNS over UDP and TCP.
    pub(crate) dns: SocketAddr,
    /// Plain HTTP for `/livez`, `/readyz` and `/metrics`; on a loopback address also the API.
    pub(crate) admin: SocketAddr,
}

/// `host:port` of something to dial. The host is looked up when it is dialled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct Dial(String);

impl From<SocketAddr> for Dial {
    fn from(address: SocketAddr) -> Self {
        Self(address.to_string())
    }
}

impl FromStr for Dial {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("{text:?} is not HOST:PORT");
        let authority: http::uri::Authority = text.parse().map_err(|_| invalid())?;
        match authority.port_u16() {
            Some(1..) if !authority.host().is_empty() && !text.contains('@') => {
                Ok(Self(text.to_owned()))
            }
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl<'de> Deserialize<'de> for Dial {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// `tombolo control-plane`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ControlPlaneConfig {
    pub(crate) mesh: MeshDomain,
    pub(crate) region: RegionName,
    /// Holds the store; survives restarts.
    pub(crate) state_dir: PathBuf,
    /// Key, certificate, trust bundles and pinned roots, as `tombolo ca` writes them; with the
    /// region's CA in `ca/`, this process issues.
    pub(crate) identity: PathBuf,
    pub(crate) listen: Listen,
    /// What peers and agents dial, `host:port`; the listening address if empty.
    #[serde(default)]
    pub(crate) addresses: Vec<Dial>,
    /// The network whose addresses the region's own DNS gives out.
    #[serde(default)]
    pub(crate) network: String,
    #[serde(default)]
    pub(crate) peers: Vec<Peer>,
    /// To other regions; smaller is nearer.
    #[serde(default)]
    pub(crate) distances: BTreeMap<RegionName, u32>,
    /// A leader that gives no sign of life for so long is succeeded.
    #[serde(default = "leader_ttl")]
    pub(crate) leader_ttl: Span,
    /// What callers of the federation API may use.
    #[serde(default)]
    pub(crate) limits: LimitsConfig,
    /// The namespaces that a cluster may speak of and is told of; all, if it is not named.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) entitlements: BTreeMap<ClusterId, Namespaces>,
    /// Regions that are to issue for this one's clusters while it is stale, the first that is up.
    /// Published and compared; nothing acts upon it yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) stand_ins: Vec<RegionName>,
    /// Regions in the order in which policy is to be activated. Published and compared; nothing acts
    /// upon it yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) rollout_order: Vec<RegionName>,
    /// Where operators' calls are taken; `operator.sock` in the state directory by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) operator_socket: Option<PathBuf>,
    /// Where the region keeps what it knows; the state directory by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) store: Option<StoreConfig>,
}

fn leader_ttl() -> Span {
    Span(LEADER_TTL)
}

/// Another region.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Peer {
    pub(crate) region: RegionName,
    /// `host:port` of its federation API, or those of its replicas.
    pub(crate) address: Dials,
}

/// `tombolo agent`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AgentConfig {
    pub(crate) mesh: MeshDomain,
    pub(crate) region: RegionName,
    /// Its name within the region; the cluster id is `<region>-<cluster>`.
    pub(crate) cluster: ClusterName,
    /// By which its region knows the cluster again; the id of the state directory by default, and
    /// then lost with that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cluster_uid: Option<ClusterUid>,
    /// Holds the agent's epoch; survives restarts.
    pub(crate) state_dir: PathBuf,
    /// Key, certificate, trust bundles and pinned roots, as `tombolo ca` writes them.
    pub(crate) identity: PathBuf,
    pub(crate) listen: Listen,
    /// `host:port` of the region's federation API, or those of its replicas.
    pub(crate) control_plane: Dials,
    /// Clusters with an equal network reach each other's pods directly.
    #[serde(default)]
    pub(crate) network: String,
    /// The zone that the agent's own DNS clients are taken to be in; none by default.
    #[serde(default)]
    pub(crate) zone: Option<String>,
    /// The namespaces that the cluster wants to be told of; empty for all it is entitled to.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) uses: BTreeSet<NamespaceName>,
    /// Where operators' calls are taken; `operator.sock` in the state directory by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) operator_socket: Option<PathBuf>,
    /// Where the cluster's objects come from.
    pub(crate) source: Source,
    /// What may go of the cluster's records without explanation.
    #[serde(default)]
    pub(crate) guard: GuardConfig,
}

/// What tells a cluster from any other that may have its name: 1 to 256 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct ClusterUid(String);

impl ClusterUid {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ClusterUid {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.is_empty() || text.len() > 256 || text.chars().any(char::is_control) {
            return Err("a UID has 1 to 256 bytes and no control characters");
        }
        Ok(Self(text))
    }
}

impl From<ClusterUid> for String {
    fn from(uid: ClusterUid) -> Self {
        uid.0
    }
}

/// Limits and times of the guard.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct GuardConfig {
    /// Over how long unexplained losses are counted.
    window_seconds: u32,
    /// That many endpoints may always go without explanation in one window.
    floor: u32,
    /// And that share of those published at its start.
    #[serde(deserialize_with = "percent")]
    percent: u32,
    /// How far apart two complete listings that agree have to be.
    confirm_after_seconds: u32,
    /// A ready share that falls below this is suspect.
    #[serde(deserialize_with = "percent")]
    suspect_below_percent: u32,
    /// If it falls within this time.
    suspect_within_seconds: u32,
}

impl Default for GuardConfig {
    fn default() -> Self {
        let settings = guard::Settings::default();
        let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        Self {
            window_seconds: seconds(settings.window),
            floor: settings.floor,
            percent: settings.percent,
            confirm_after_seconds: seconds(settings.confirm_after),
            suspect_below_percent: settings.suspect_below_percent,
            suspect_within_seconds: seconds(settings.suspect_within),
        }
    }
}

impl From<GuardConfig> for guard::Settings {
    fn from(config: GuardConfig) -> Self {
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        Self {
            window: seconds(config.window_seconds),
            floor: config.floor,
            percent: config.percent,
            confirm_after: seconds(config.confirm_after_seconds),
            suspect_below_percent: config.suspect_below_percent,
            suspect_within: seconds(config.suspect_within_seconds),
        }
    }
}

fn percent<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        percent @ 0..=100 => Ok(percent),
        more => Err(serde::de::Error::custom(format!("{more} is no share: expected 0 to 100"))),
    }
}

/// Where a cluster's objects come from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Source {
    /// A directory of Kubernetes manifests.
    pub(crate) directory: PathBuf,
    /// Export every Service, for manifests that hold no `ServiceExports`.
    #[serde(default)]
    pub(crate) export_all: bool,
    /// Ranges that endpoint addresses come from; empty accepts all but unspecified and link-local.
    #[serde(default)]
    pub(crate) pod_cidrs: Vec<IpNet>,
}

impl ControlPlaneConfig {
    /// What no single field can show to be wrong.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let mut seen = BTreeSet::from([&self.region]);
        for (index, peer) in self.peers.iter().enumerate() {
            let region = &peer.region;
            anyhow::ensure!(
                region != &self.region,
                "peers[{index}]: {region} is this region itself"
            );
            anyhow::ensure!(seen.insert(region), "peers[{index}]: {region} is a peer already");
        }
        for cluster in self.entitlements.keys() {
            anyhow::ensure!(
                cluster.fits(&self.region),
                "entitlements.{cluster}: not a cluster of this region, whose ids begin with {}-",
                self.region
            );
        }
        anyhow::ensure!(
            !self.distances.contains_key(&self.region),
            "distances.{}: this region itself",
            self.region
        );
        self.check_addresses()?;
        self.check_order("standIns", &self.stand_ins, false)?;
        self.check_order("rolloutOrder", &self.rollout_order, true)?;
        self.limits.check()?;
        let ttl = self.leader_ttl.0;
        anyhow::ensure!(
            (Duration::from_secs(1)..=Duration::from_hours(1)).contains(&ttl),
            "leaderTtl: {ttl:?} is not from 1s to 1h"
        );
        self.store.as_ref().map_or(Ok(()), StoreConfig::check)
    }

    /// The region's replicas but this one, as far as it can be told from them.
    pub(crate) fn other_replicas(&self) -> Option<Dials> {
        let own = Dial::from(self.listen.grpc);
        Dials::of(self.addresses.iter().filter(|address| **address != own).cloned().collect())
    }

    /// Without `addresses` the region gives out where this replica listens.
    fn check_addresses(&self) -> anyhow::Result<()> {
        let listens = self.listen.grpc;
        let dialled = !listens.ip().is_unspecified() && listens.port() != 0;
        anyhow::ensure!(
            dialled || !self.addresses.is_empty(),
            "addresses: name what peers and agents dial, listen.grpc {listens} is nothing to dial"
        );
        Ok(())
    }

    fn check_order(&self, field: &str, list: &[RegionName], ourselves: bool) -> anyhow::Result<()> {
        let mut seen = BTreeSet::new();
        for (index, region) in list.iter().enumerate() {
            anyhow::ensure!(
                ourselves || *region != self.region,
                "{field}[{index}]: {region} is this region itself"
            );
            anyhow::ensure!(seen.insert(region), "{field}[{index}]: {region} stands twice");
        }
        Ok(())
    }

    /// Where operators' calls are taken.
    pub(crate) fn operator_socket(&self) -> PathBuf {
        operator_socket(self.operator_socket.as_ref(), &self.state_dir)
    }
}

fn operator_socket(named: Option<&PathBuf>, state_dir: &Path) -> PathBuf {
    named.cloned().unwrap_or_else(|| state_dir.join("operator.sock"))
}

/// The part of either role's file that says where its operators' calls are taken.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Operated {
    state_dir: PathBuf,
    operator_socket: Option<PathBuf>,
}

/// Where the process of this file, of either role, takes operators' calls.
pub(crate) fn operator_socket_of(path: &Path) -> Result<PathBuf, ConfigError> {
    let operated: Operated = load(path)?;
    Ok(operator_socket(operated.operator_socket.as_ref(), &operated.state_dir))
}

impl AgentConfig {
    /// `<region>-<cluster>`.
    pub(crate) fn cluster_id(&self) -> Result<ClusterId, InvalidName> {
        ClusterId::of(&self.region, &self.cluster)
    }

    /// Where operators' calls are taken.
    pub(crate) fn operator_socket(&self) -> PathBuf {
        operator_socket(self.operator_socket.as_ref(), &self.state_dir)
    }
}

/// Reads a role's file.
pub(crate) fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    parse(&text).map_err(|problem| ConfigError::Invalid { path: path.to_owned(), problem })
}

/// Two steps, so that an error has the path of the field and not only its line.
fn parse<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let value: serde_json::Value =
        serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    serde_path_to_error::deserialize(&value).map_err(|error| {
        let path = error.path().to_string();
        let problem = error.into_inner();
        if path == "." { problem.to_string() } else { format!("{path}: {problem}") }
    })
}

/// The admin address that CLI verbs ask when they are not told: `TOMBOLO_ADMIN`.
#[expect(clippy::disallowed_methods, reason = "this module is the one that may")]
pub(crate) fn admin_from_environment() -> Option<String> {
    std::env::var("TOMBOLO_ADMIN").ok().filter(|address| !address.is_empty())
}

/// The operator socket that CLI verbs use when they are not told: `TOMBOLO_SOCKET`.
#[expect(clippy::disallowed_methods, reason = "this module is the one that may")]
pub(crate) fn socket_from_environment() -> Option<PathBuf> {
    std::env::var("TOMBOLO_SOCKET").ok().filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// The directories that programs are looked for in.
#[expect(clippy::disallowed_methods, reason = "this module is the one that may")]
pub(crate) fn search_path() -> Vec<PathBuf> {
    std::env::var("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
}

/// What to log, from `TOMBOLO_LOG` (`info`, `tombolo_federation=debug`, ...).
#[expect(clippy::disallowed_methods, reason = "this module is the one that may")]
pub(crate) fn log_filter(default: &str) -> String {
    std::env::var("TOMBOLO_LOG").unwrap_or_else(|_| default.to_owned())
}
