//! What the demo writes: a configuration file per role.
//!
//! The same files run the same mesh as separate processes.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::bail;
use serde::Serialize;
use tombolo_federation::names::{ClusterId, MeshDomain, RegionName};

use super::layout::{Layout, Ports};
use super::pki::Authorities;
use crate::config::{AgentConfig, ControlPlaneConfig, Source};
use crate::state_dir::write_whole;

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
        reading: Reading,
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
                let source = reading.source(manifests)?;
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

/// How a cluster's directory is read. The examples declare where their addresses come from;
/// anybody's manifests name anybody's addresses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    pub(crate) export_all: bool,
    pub(crate) examples: bool,
}

impl Reading {
    fn source(self, manifests: &Path) -> anyhow::Result<Source> {
        let directory = std::path::absolute(manifests)?;
        let pod_cidrs = if self.examples { vec![LOOPBACK.parse()?] } else { Vec::new() };
        Ok(Source { directory, export_all: self.export_all, pod_cidrs })
    }
}

fn write_config(dir: &Path, name: &str, config: &impl Serialize) -> anyhow::Result<()> {
    let configs = dir.join("config");
    std::fs::create_dir_all(&configs)?;
    // JSON is YAML, so a role reads it as its configuration file.
    write_whole(&configs.join(format!("{name}.yaml")), &serde_json::to_vec_pretty(config)?)?;
    Ok(())
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
