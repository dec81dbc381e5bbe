//! What the demo writes: certificates, a configuration file per role, and `demo.json`.
//!
//! The same files run the same mesh as separate processes.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use serde::Serialize;
use tombolo_ca::bundle::Bundle;
use tombolo_ca::identity::{Identity, Origin};
use tombolo_ca::material::directory::issue_files;
use tombolo_ca::region::{Grant, RegionCa};
use tombolo_ca::root::MeshRoot;
use tombolo_federation::names::{ClusterId, ClusterName, MeshDomain, RegionName};
use tombolo_proxy::ClientLocality;
use tombolo_proxy::bootstrap::{Bootstrap, Server, Tls, TrustDomain};

use super::layout::{ClusterPorts, Layout, Ports};
use crate::config::{AgentConfig, ControlPlaneConfig, Listen, Peer, Source};
use crate::state_dir::write_whole;

/// All of the demo's clusters reach each other: they are on one loopback.
const NETWORK: &str = "demo";
/// Declared by directory clusters of the demo, so that nothing else is dialled by mistake.
const LOOPBACK: &str = "127.0.0.0/8";

/// Everything that was written, by what it is for.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    pub(crate) regions: BTreeMap<RegionName, PreparedRegion>,
}

/// Of one region.
#[derive(Debug, Clone)]
pub(crate) struct PreparedRegion {
    pub(crate) control_plane: ControlPlaneConfig,
    pub(crate) clusters: BTreeMap<ClusterId, PreparedCluster>,
}

/// Of one cluster.
#[derive(Debug, Clone)]
pub(crate) struct PreparedCluster {
    pub(crate) agent: AgentConfig,
    pub(crate) envoy: PreparedEnvoy,
}

/// Of one Envoy.
#[derive(Debug, Clone)]
pub(crate) struct PreparedEnvoy {
    pub(crate) listener: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) bootstrap: PathBuf,
    pub(crate) log: PathBuf,
}

impl Prepared {
    /// Writes everything that is not there yet, and configuration anew.
    pub(crate) fn write(
        dir: &Path,
        mesh: &MeshDomain,
        layout: &Layout,
        ports: &Ports,
        export_all: bool,
    ) -> anyhow::Result<Self> {
        let authorities = Authorities::open(dir, mesh, layout)?;
        let mut regions = BTreeMap::new();
        for (region, clusters) in &layout.regions {
            let region_ports = &ports.regions[region];
            let control_plane =
                authorities.control_plane(region, &region_ports.control_plane, ports)?;
            write_config(dir, &format!("control-plane-{region}"), &control_plane)?;
            let mut prepared = BTreeMap::new();
            for (cluster, manifests) in clusters {
                let id = ClusterId::of(region, cluster)?;
                let ports = &region_ports.clusters[cluster];
                let source = source(manifests, export_all)?;
                let agent =
                    authorities.agent(region, cluster, &ports.agent, &control_plane, source)?;
                write_config(dir, &format!("agent-{id}"), &agent)?;
                let envoy = authorities.envoy(region, &id, ports, &control_plane)?;
                prepared.insert(id, PreparedCluster { agent, envoy });
            }
            regions.insert(region.clone(), PreparedRegion { control_plane, clusters: prepared });
        }
        Ok(Self { regions })
    }
}

/// The demo exports loopback addresses only when they are its own examples'.
fn source(manifests: &Path, export_all: bool) -> anyhow::Result<Source> {
    let directory = std::path::absolute(manifests)?;
    // Anybody's manifests name anybody's addresses: a directory of the examples declares its own.
    let pod_cidrs = if export_all { Vec::new() } else { vec![LOOPBACK.parse()?] };
    Ok(Source { directory, export_all, pod_cidrs })
}

/// The mesh root and every region's CA, for trials: all keys are files here.
struct Authorities<'a> {
    dir: &'a Path,
    mesh: &'a MeshDomain,
    root: MeshRoot,
    regions: BTreeMap<RegionName, RegionCa>,
}

impl<'a> Authorities<'a> {
    fn open(dir: &'a Path, mesh: &'a MeshDomain, layout: &Layout) -> anyhow::Result<Self> {
        let root_dir = dir.join("pki/root");
        let root = MeshRoot::load_or_create(&root_dir, mesh, Timestamp::now())
            .with_context(|| format!("the mesh root in {}", root_dir.display()))?;
        let mut regions = BTreeMap::new();
        for region in layout.regions.keys() {
            let ca_dir = identity_dir(dir, &format!("control-plane-{region}")).join("ca");
            let ca = RegionCa::load_or_create(&ca_dir, &root, region, Timestamp::now())
                .with_context(|| format!("the CA of region {region} in {}", ca_dir.display()))?;
            regions.insert(region.clone(), ca);
        }
        Ok(Self { dir, mesh, root, regions })
    }

    fn bundles(&self) -> impl Iterator<Item = &Bundle> {
        self.regions.values().map(RegionCa::bundle)
    }

    /// Writes an identity directory and returns it.
    fn issue(&self, region: &RegionName, name: &str, grant: &Grant) -> anyhow::Result<PathBuf> {
        let dir = identity_dir(self.dir, name);
        let roots = [self.root.certificate().clone()];
        issue_files(&dir, &self.regions[region], grant, self.bundles(), &roots, Timestamp::now())
            .with_context(|| format!("identity of {name}"))?;
        Ok(std::path::absolute(dir)?)
    }

    fn control_plane(
        &self,
        region: &RegionName,
        listen: &Listen,
        ports: &Ports,
    ) -> anyhow::Result<ControlPlaneConfig> {
        let name = format!("control-plane-{region}");
        let grant = Grant::new(Identity::ControlPlane { region: region.clone() });
        let others = || ports.regions.iter().filter(|(other, _)| *other != region);
        let peer = |(other, ports): (&RegionName, &super::layout::RegionPorts)| Peer {
            region: other.clone(),
            address: ports.control_plane.grpc.to_string(),
        };
        Ok(ControlPlaneConfig {
            mesh: self.mesh.clone(),
            region: region.clone(),
            state_dir: std::path::absolute(self.dir.join("state").join(&name))?,
            identity: self.issue(region, &name, &grant)?,
            listen: listen.clone(),
            addresses: Vec::new(),
            network: NETWORK.to_owned(),
            peers: others().map(peer).collect(),
            distances: others().map(|(other, _)| (other.clone(), 100)).collect(),
        })
    }

    fn agent(
        &self,
        region: &RegionName,
        cluster: &ClusterName,
        listen: &Listen,
        control_plane: &ControlPlaneConfig,
        source: Source,
    ) -> anyhow::Result<AgentConfig> {
        let id = ClusterId::of(region, cluster)?;
        let name = format!("agent-{id}");
        let grant = Grant::new(Identity::Agent { region: region.clone(), cluster: id });
        Ok(AgentConfig {
            mesh: self.mesh.clone(),
            region: region.clone(),
            cluster: cluster.clone(),
            state_dir: std::path::absolute(self.dir.join("state").join(&name))?,
            identity: self.issue(region, &name, &grant)?,
            listen: listen.clone(),
            control_plane: control_plane.listen.grpc.to_string(),
            network: NETWORK.to_owned(),
            zone: None,
            source,
        })
    }

    /// The client of a cluster: a workload `demo/client` whose Envoy asks its agent first and its
    /// region's control plane second.
    fn envoy(
        &self,
        region: &RegionName,
        cluster: &ClusterId,
        ports: &ClusterPorts,
        control_plane: &ControlPlaneConfig,
    ) -> anyhow::Result<PreparedEnvoy> {
        let name = format!("envoy-{cluster}");
        let mut grant = Grant::new(Identity::Workload {
            region: region.clone(),
            namespace: "demo".parse()?,
            service_account: "client".parse()?,
        });
        grant.origin = Some(Origin { cluster: cluster.clone(), pod: None });
        let identity = self.issue(region, &name, &grant)?;
        let bootstrap = Bootstrap {
            node_id: format!("{cluster}/demo/client"),
            locality: ClientLocality {
                region: region.clone(),
                zone: None,
                cluster: Some(cluster.clone()),
                network: NETWORK.into(),
            },
            listener: ports.envoy,
            admin: ports.envoy_admin,
            servers: vec![
                Server::Address(ports.agent.grpc),
                Server::Address(control_plane.listen.grpc),
            ],
            tls: Some(self.envoy_tls(region, cluster, &identity)?),
        };
        let path = std::path::absolute(self.dir.join(format!("{name}.json")))?;
        write_whole(&path, bootstrap.to_json().as_bytes())?;
        Ok(PreparedEnvoy {
            listener: ports.envoy,
            admin: ports.envoy_admin,
            bootstrap: path,
            log: std::path::absolute(self.dir.join(format!("{name}.log")))?,
        })
    }
}

impl Authorities<'_> {
    /// Both servers are of the region, so its bundle alone is what they are verified against: as a
    /// file with the self-signed certificate only, since an anchor has to stand by itself.
    fn envoy_tls(
        &self,
        region: &RegionName,
        cluster: &ClusterId,
        dir: &Path,
    ) -> anyhow::Result<Tls> {
        let bundle = self.regions[region].bundle();
        let anchor = dir.join("anchor.pem");
        write_whole(&anchor, bundle.anchor_pem().as_bytes())?;
        let file = |name: &str| dir.join(name).display().to_string();
        let servers = [
            Identity::Agent { region: region.clone(), cluster: cluster.clone() },
            Identity::ControlPlane { region: region.clone() },
        ];
        let ids: Result<Vec<String>, _> =
            servers.iter().map(|id| id.spiffe_id(self.mesh).map(|id| id.to_string())).collect();
        Ok(Tls {
            certificate: file("cert.pem"),
            key: file("key.pem"),
            bundles: vec![TrustDomain {
                name: bundle.trust_domain().to_string(),
                bundle: anchor.display().to_string(),
            }],
            servers: ids?,
        })
    }
}

fn identity_dir(dir: &Path, name: &str) -> PathBuf {
    dir.join("pki").join(name)
}

fn write_config(dir: &Path, name: &str, config: &impl Serialize) -> anyhow::Result<()> {
    let configs = dir.join("config");
    std::fs::create_dir_all(&configs)?;
    // JSON is YAML, so a role reads it as its configuration file.
    write_whole(&configs.join(format!("{name}.yaml")), &serde_json::to_vec_pretty(config)?)?;
    Ok(())
}

/// A state directory that goes with the demo.
pub(crate) struct Temporary(PathBuf);

impl Temporary {
    pub(crate) fn make() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("tombolo-demo-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "temporary files stay behind");
        }
    }
}

/// One demo per state directory.
pub(crate) fn lock(dir: &Path) -> anyhow::Result<File> {
    let file = File::create(dir.join("demo.lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
            "{} is in use by another demo: stop that one, or name another --state-dir",
            dir.display()
        ),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

/// `demo.json`, for scripts.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Announcement {
    pub(crate) control: String,
    pub(crate) regions: Vec<AnnouncedRegion>,
}

/// A region of it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct AnnouncedRegion {
    pub(crate) name: String,
    pub(crate) dns: String,
    pub(crate) grpc: String,
    pub(crate) admin: String,
    pub(crate) clusters: Vec<AnnouncedCluster>,
}

/// A cluster of a region.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct AnnouncedCluster {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) dns: String,
    pub(crate) grpc: String,
    pub(crate) admin: String,
    pub(crate) envoy: Option<String>,
    #[serde(rename = "envoyAdmin")]
    pub(crate) envoy_admin: Option<String>,
}

/// Says that everything is ready: whoever sees the file sees all of it.
pub(crate) fn announce(dir: &Path, announcement: &Announcement) -> anyhow::Result<()> {
    write_whole(&announcement_file(dir), &serde_json::to_vec_pretty(announcement)?)?;
    Ok(())
}

/// Says that it is not, or not any more.
pub(crate) fn remove_announcement(dir: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(announcement_file(dir)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

fn announcement_file(dir: &Path) -> PathBuf {
    dir.join("demo.json")
}
