//! `demo.json`: where everything is, for scripts, and only while it is ready.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tombolo_federation::names::ClusterId;

use super::files::PreparedCluster;
use super::parts::Parts;
use crate::state_dir::write_whole;

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

impl Announcement {
    /// As one JSON document on stdout.
    pub(crate) fn print(&self) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        Ok(writeln!(std::io::stdout(), "{text}")?)
    }

    /// What scripts are told.
    pub(crate) fn of(parts: &Parts, control: SocketAddr) -> Self {
        let regions = parts.prepared().regions.iter().map(|(name, region)| AnnouncedRegion {
            name: name.to_string(),
            dns: region.control_plane.listen.dns.to_string(),
            grpc: region.control_plane.listen.grpc.to_string(),
            admin: region.control_plane.listen.admin.to_string(),
            clusters: region
                .clusters
                .iter()
                .map(|(id, cluster)| announced(parts, id, cluster))
                .collect(),
        });
        Self { control: control.to_string(), regions: regions.collect() }
    }
}

fn announced(parts: &Parts, id: &ClusterId, cluster: &PreparedCluster) -> AnnouncedCluster {
    let envoy = |address: SocketAddr| parts.has_envoy().then(|| address.to_string());
    AnnouncedCluster {
        name: cluster.agent.cluster.to_string(),
        id: id.to_string(),
        dns: cluster.agent.listen.dns.to_string(),
        grpc: cluster.agent.listen.grpc.to_string(),
        admin: cluster.agent.listen.admin.to_string(),
        envoy: envoy(cluster.envoy.listener),
        envoy_admin: envoy(cluster.envoy.admin),
    }
}

/// Says that everything is ready: whoever sees the file sees all of it.
pub(crate) fn write(dir: &Path, announcement: &Announcement) -> anyhow::Result<()> {
    write_whole(&file(dir), &serde_json::to_vec_pretty(announcement)?)?;
    Ok(())
}

/// Says that it is not, or not any more.
pub(crate) fn remove(dir: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(file(dir)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

fn file(dir: &Path) -> PathBuf {
    dir.join("demo.json")
}
