//! The demo's authorities, and what each process gets from them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use jiff::Timestamp;
use tombolo_ca::bundle::Bundle;
use tombolo_ca::identity::{Identity, Origin};
use tombolo_ca::material::directory::issue_files;
use tombolo_ca::region::{Grant, RegionCa};
use tombolo_ca::root::MeshRoot;
use tombolo_federation::names::{ClusterId, ClusterName, MeshDomain, RegionName};
use tombolo_proxy::ClientLocality;
use tombolo_proxy::bootstrap::{Bootstrap, Server, Tls, TrustDomain};

use super::files::PreparedEnvoy;
use super::layout::{ClusterPorts, Layout, Ports, RegionPorts};
use crate::config::{
    AgentConfig, ControlPlaneConfig, GuardConfig, LEADER_TTL, LimitsConfig, Listen, Peer, Source,
    Span,
};
use crate::state_dir::write_whole;

/// All of the demo's clusters reach each other: they are on one loopback.
const NETWORK: &str = "demo";

/// The mesh root and every region's CA, for trials: all keys are files here.
pub(super) struct Authorities<'a> {
    dir: &'a Path,
    mesh: &'a MeshDomain,
    root: MeshRoot,
    regions: BTreeMap<RegionName, RegionCa>,
}

impl<'a> Authorities<'a> {
    pub(super) fn open(
        dir: &'a Path,
        mesh: &'a MeshDomain,
        layout: &Layout,
    ) -> anyhow::Result<Self> {
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

    pub(super) fn control_plane(
        &self,
        region: &RegionName,
        listen: &Listen,
        ports: &Ports,
    ) -> anyhow::Result<ControlPlaneConfig> {
        let name = format!("control-plane-{region}");
        let grant = Grant::new(Identity::ControlPlane { region: region.clone() });
        let others = || ports.regions.iter().filter(|(other, _)| *other != region);
        let peer = |(other, ports): (&RegionName, &RegionPorts)| Peer {
            region: other.clone(),
            address: ports.control_plane.grpc.into(),
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
            leader_ttl: Span(LEADER_TTL),
            limits: LimitsConfig::default(),
            entitlements: BTreeMap::new(),
            stand_ins: Vec::new(),
            rollout_order: Vec::new(),
            operator_socket: None,
            store: None,
        })
    }

    pub(super) fn agent(
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
            cluster_uid: None,
            state_dir: std::path::absolute(self.dir.join("state").join(&name))?,
            identity: self.issue(region, &name, &grant)?,
            listen: listen.clone(),
            control_plane: control_plane.listen.grpc.into(),
            network: NETWORK.to_owned(),
            zone: None,
            uses: BTreeSet::new(),
            operator_socket: None,
            source,
            guard: GuardConfig::default(),
        })
    }

    /// The client of a cluster: a workload `demo/client` whose Envoy asks its agent first and its
    /// region's control plane second.
    pub(super) fn envoy(
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
