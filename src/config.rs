//! Configuration: one typed file per role, and the only place that reads the environment.
//!
//! Unknown keys are refused with the path to them; what can have a default has one; the effective
//! configuration is logged at start. Durations and addresses are parsed here, so that a role gets
//! values that make sense or does not start.

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
use tombolo_federation::names::{ClusterId, ClusterName, InvalidName, MeshDomain, RegionName};

/// The zone of multi-cluster names, fixed by KEP-1645.
pub(crate) const CLUSTERSET_ZONE: &str = "clusterset.local";

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
}

/// Another region.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Peer {
    pub(crate) region: RegionName,
    /// `host:port` of its federation API.
    pub(crate) address: Dial,
}

/// `tombolo agent`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AgentConfig {
    pub(crate) mesh: MeshDomain,
    pub(crate) region: RegionName,
    /// Its name within the region; the cluster id is `<region>-<cluster>`.
    pub(crate) cluster: ClusterName,
    /// Holds the agent's epoch; survives restarts.
    pub(crate) state_dir: PathBuf,
    /// Key, certificate, trust bundles and pinned roots, as `tombolo ca` writes them.
    pub(crate) identity: PathBuf,
    pub(crate) listen: Listen,
    /// `host:port` of the region's federation API.
    pub(crate) control_plane: Dial,
    /// Clusters with an equal network reach each other's pods directly.
    #[serde(default)]
    pub(crate) network: String,
    /// The zone that the agent's own DNS clients are taken to be in; none by default.
    #[serde(default)]
    pub(crate) zone: Option<String>,
    /// Where the cluster's objects come from.
    pub(crate) source: Source,
    /// What may go of the cluster's records without explanation.
    #[serde(default)]
    pub(crate) guard: GuardConfig,
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
        Ok(())
    }
}

impl AgentConfig {
    /// `<region>-<cluster>`.
    pub(crate) fn cluster_id(&self) -> Result<ClusterId, InvalidName> {
        ClusterId::of(&self.region, &self.cluster)
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

#[cfg(test)]
mod tests {
    use super::*;

    const AGENT: &str = "
mesh: demo.example
region: us-west1
cluster: alpha
stateDir: /var/lib/tombolo
identity: /etc/tombolo
listen: {grpc: '127.0.0.1:1', dns: '127.0.0.1:2', admin: '127.0.0.1:3'}
controlPlane: 127.0.0.1:7443
source: {directory: /manifests}
";

    #[test]
    fn an_agent_needs_no_more_than_this() {
        let config: AgentConfig = parse(AGENT).unwrap();
        assert_eq!(config.cluster_id().unwrap().as_str(), "us-west1-alpha");
        assert!(!config.source.export_all && config.network.is_empty());
        assert_eq!(guard::Settings::from(config.guard), guard::Settings::default());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |from: &str, to: &str, why: &str| {
            let text = AGENT.replace(from, to);
            assert_ne!(text, AGENT, "{from}");
            let error = parse::<AgentConfig>(&text).unwrap_err();
            assert!(error.contains(why), "{error}");
        };
        check("mesh:", "mash:", "unknown field `mash`");
        check("{directory:", "{exportall: true, directory:", "source");
        check("127.0.0.1:2", "127.0.0.1", "listen.dns");
        check("us-west1", "US", "region: \"US\" is not a region name");
        check("cluster: alpha", "", "missing field `cluster`");
        let guard = "cluster: alpha\nguard: {percent: 101}";
        check("cluster: alpha", guard, "guard.percent: 101 is no share: expected 0 to 100");
        let guard = "cluster: alpha\nguard: {windowSeconds: -1}";
        check("cluster: alpha", guard, "guard.windowSeconds");
        check(
            "controlPlane: 127.0.0.1:7443",
            "controlPlane: nowhere",
            "\"nowhere\" is not HOST:PORT",
        );
        check("127.0.0.1:7443", "host:0", "controlPlane: \"host:0\" is not HOST:PORT");
    }

    #[test]
    fn a_region_has_each_other_region_for_a_peer_once() {
        let check = |peers: &str, why: &str| {
            let text = AGENT
                .replace("cluster: alpha", &format!("peers: {peers}"))
                .lines()
                .filter(|line| !line.starts_with("controlPlane") && !line.starts_with("source"))
                .collect::<Vec<_>>()
                .join("\n");
            let error =
                parse::<ControlPlaneConfig>(&text).unwrap().check().unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        };
        check("[{region: us-west1, address: 'h:1'}]", "peers[0]: us-west1 is this region itself");
        check(
            "[{region: eu, address: 'h:1'}, {region: eu, address: 'h:2'}]",
            "peers[1]: eu is a peer",
        );
    }
}
