//! A mesh of separate processes, from configuration files and `tombolo ca` alone.
//!
//! Everything listens on addresses of the 127.x network that the test's manifests own, on the
//! documented port numbers, so that nothing can be taken by another test.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::json;
use tombolo_ca::bundle::Bundle;
use tombolo_ca::identity::Identity;
use tombolo_proxy::ClientLocality;
use tombolo_proxy::bootstrap::{Bootstrap, Server, Tls, TrustDomain};
use tombolo_testbed::Process;

use super::manifests::Manifests;
use super::{EU, US, run, tombolo};

pub(crate) const MESH: &str = "apart.example";

/// Where files of the mesh are and what its processes listen on.
#[derive(Debug)]
pub(crate) struct Apart<'a> {
    dir: PathBuf,
    manifests: &'a Manifests,
}

/// Addresses of one process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Listens {
    pub(crate) grpc: SocketAddr,
    pub(crate) dns: SocketAddr,
    pub(crate) admin: SocketAddr,
}

impl<'a> Apart<'a> {
    /// Makes the certificates and configuration files of the example mesh below `dir`.
    pub(crate) fn write(dir: &Path, manifests: &'a Manifests) -> anyhow::Result<Self> {
        let apart = Self { dir: dir.to_owned(), manifests };
        apart.ca(&["init", "--mesh", MESH, "--root", &apart.path("root")])?;
        for region in [US, EU] {
            let ca = apart.path(&format!("{region}/ca"));
            let root = apart.path("root");
            apart.ca(&[
                "region", "--mesh", MESH, "--root", &root, "--region", region, "--out", &ca,
            ])?;
        }
        for region in [US, EU] {
            apart.issue(region, &["control-plane"], region)?;
            apart.write_config(region, &apart.control_plane_config(region))?;
            for cluster in ["alpha", "beta"] {
                let id = format!("{region}-{cluster}");
                apart.issue(region, &["agent", cluster], &id)?;
                apart.write_config(&id, &apart.agent_config(region, cluster))?;
            }
        }
        Ok(apart)
    }

    /// `tombolo ca issue` into the identity directory `out`.
    pub(crate) fn issue(&self, region: &str, who: &[&str], out: &str) -> anyhow::Result<()> {
        let other = if region == US { EU } else { US };
        let (root, out) = (self.path("root"), self.path(out));
        let (ca, trust) = (self.path(&format!("{region}/ca")), self.path(&format!("{other}/ca")));
        let options = [
            "issue", "--mesh", MESH, "--root", &root, "--region", region, "--ca", &ca, "--trust",
            &trust, "--out", &out,
        ];
        self.ca(&[&options, who].concat())
    }

    fn ca(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let ended = run(&[&["ca"], arguments].concat())?;
        ensure!(ended.code == 0, "ca {arguments:?} in {}: {ended:?}", self.dir.display());
        Ok(())
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// Where the process of a region (`us-west1`) or cluster (`us-west1-alpha`) listens.
    pub(crate) fn listens(&self, name: &str) -> Listens {
        let host = match name.rsplit('-').next() {
            Some("alpha") => 11,
            Some("beta") => 12,
            _ => 10,
        };
        let ip = if name.starts_with(US) {
            self.manifests.us(0, host)
        } else {
            self.manifests.eu(0, host)
        };
        let at = |port| format!("{ip}:{port}").parse().expect("an address and a port");
        Listens { grpc: at(7443), dns: at(5353), admin: at(7080) }
    }

    pub(crate) fn control_plane_config(&self, region: &str) -> serde_json::Value {
        let other = if region == US { EU } else { US };
        json!({
            "mesh": MESH,
            "region": region,
            "stateDir": self.path(&format!("state-{region}")),
            "identity": self.path(region),
            "listen": self.listen(region),
            "network": "demo",
            "peers": [{"region": other, "address": self.listens(other).grpc}],
            "distances": {other: 100},
        })
    }

    pub(crate) fn agent_config(&self, region: &str, cluster: &str) -> serde_json::Value {
        let id = format!("{region}-{cluster}");
        json!({
            "mesh": MESH,
            "region": region,
            "cluster": cluster,
            "stateDir": self.path(&format!("state-{id}")),
            "identity": self.path(&id),
            "listen": self.listen(&id),
            "controlPlane": self.listens(region).grpc,
            "network": "demo",
            "source": {
                "directory": self.manifests.path(&format!("{region}/{cluster}")),
                "podCidrs": ["127.0.0.0/8"],
            },
        })
    }

    fn listen(&self, name: &str) -> serde_json::Value {
        let Listens { grpc, dns, admin } = self.listens(name);
        json!({"grpc": grpc, "dns": dns, "admin": admin})
    }

    /// Writes `NAME.yaml` and gives its path.
    pub(crate) fn write_config(
        &self,
        name: &str,
        config: &serde_json::Value,
    ) -> anyhow::Result<String> {
        let path = self.path(&format!("{name}.yaml"));
        std::fs::write(&path, serde_json::to_string_pretty(config)?).context(path.clone())?;
        Ok(path)
    }

    /// Starts the process of a region or a cluster.
    pub(crate) fn start(&self, name: &str) -> anyhow::Result<Process> {
        let role = if [US, EU].contains(&name) { "control-plane" } else { "agent" };
        let mut command = Command::new(tombolo());
        command.arg(role).arg("--config").arg(self.path(&format!("{name}.yaml")));
        Process::start(name, &mut command, &self.dir)
    }

    /// Writes the bootstrap of an Envoy that asks the agent of a cluster of the US, and it alone.
    /// Gives its path and where Envoy's own admin will listen.
    pub(crate) fn envoy_of(&self, name: &str) -> anyhow::Result<(String, SocketAddr)> {
        let cluster = name.strip_prefix(&format!("{US}-")).context("a cluster of the US")?;
        self.issue(US, &["workload", cluster, "demo", "client"], "envoy")?;
        let bundle = std::fs::read(self.path(&format!("{US}/ca/region.pem")))?;
        let bundle = Bundle::from_pem(&bundle)?;
        let anchor = self.path("envoy/anchor.pem");
        std::fs::write(&anchor, bundle.anchor_pem())?;
        let (region, id) = (US.parse()?, name.parse()?);
        let server = Identity::Agent { region, cluster: id };
        let grpc = self.listens(name).grpc;
        let (listener, admin) =
            (SocketAddr::new(grpc.ip(), 7480), SocketAddr::new(grpc.ip(), 7481));
        let bootstrap = Bootstrap {
            node_id: format!("{name}/demo/client"),
            locality: ClientLocality {
                region: US.parse()?,
                zone: None,
                cluster: Some(name.parse()?),
                network: "demo".into(),
            },
            listener,
            admin,
            servers: vec![Server::Address(grpc)],
            tls: Some(Tls {
                certificate: self.path("envoy/cert.pem"),
                key: self.path("envoy/key.pem"),
                bundles: vec![TrustDomain {
                    name: bundle.trust_domain().to_string(),
                    bundle: anchor,
                }],
                servers: vec![server.spiffe_id(&MESH.parse()?)?.to_string()],
            }),
        };
        let path = self.path("envoy.json");
        std::fs::write(&path, bootstrap.to_json())?;
        Ok((path, admin))
    }

    /// All names, control planes first.
    pub(crate) fn names() -> Vec<String> {
        let regions = [US, EU].map(str::to_owned);
        let clusters = [US, EU]
            .into_iter()
            .flat_map(|region| ["alpha", "beta"].map(|cluster| format!("{region}-{cluster}")));
        regions.into_iter().chain(clusters).collect()
    }

    /// All admin addresses.
    pub(crate) fn admins(&self) -> Vec<SocketAddr> {
        Self::names().iter().map(|name| self.listens(name).admin).collect()
    }
}
