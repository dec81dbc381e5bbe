//! Certificates and configuration files, by `tombolo ca` and as documented.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::{Regions, agents, other, replicas};
use crate::common::processes::MESH;
use crate::common::{EU, US, run};

impl Regions {
    pub(super) fn write_files(&self) -> anyhow::Result<()> {
        let root = self.text("root");
        ca(&["init", "--mesh", MESH, "--root", &root])?;
        for region in [US, EU] {
            let out = self.text(&format!("{region}/ca"));
            ca(&["region", "--mesh", MESH, "--root", &root, "--region", region, "--out", &out])?;
        }
        for region in [US, EU] {
            for name in replicas(region) {
                self.issue(region, &["control-plane"], &name)?;
                self.copy_ca(region, &name)?;
                self.write_config(&name, &self.control_plane_config(region, &name)?)?;
            }
            for name in agents(region) {
                let cluster = name.rsplit('-').next().context("a cluster")?;
                self.issue(region, &["agent", cluster], &name)?;
                self.write_config(&name, &self.agent_config(region, cluster))?;
            }
        }
        Ok(())
    }

    /// `tombolo ca issue` into the identity directory `out`.
    pub(crate) fn issue(&self, region: &str, who: &[&str], out: &str) -> anyhow::Result<()> {
        let (root, out) = (self.text("root"), self.text(out));
        let own = self.text(&format!("{region}/ca"));
        let trust = self.text(&format!("{}/ca", other(region)));
        let options = [
            "issue", "--mesh", MESH, "--root", &root, "--region", region, "--ca", &own, "--trust",
            &trust, "--out", &out,
        ];
        ca(&[&options, who].concat())
    }

    /// Replicas of a region issue from the same CA.
    fn copy_ca(&self, region: &str, name: &str) -> anyhow::Result<()> {
        let to = self.path(name).join("ca");
        std::fs::create_dir_all(&to)?;
        for entry in std::fs::read_dir(self.path(&format!("{region}/ca")))? {
            let from = entry?;
            std::fs::copy(from.path(), to.join(from.file_name()))?;
        }
        Ok(())
    }

    pub(crate) fn control_plane_config(&self, region: &str, name: &str) -> anyhow::Result<Value> {
        let peer = other(region);
        let etcd = self.etcds.get(region).context("etcd was started")?;
        let mut config = json!({
            "mesh": MESH,
            "region": region,
            "stateDir": self.state_dir(name),
            "identity": self.text(name),
            "listen": self.listen(name),
            "addresses": self.dials(region),
            "network": "demo",
            "peers": [{"region": peer, "address": self.dials(peer)}],
            "distances": {peer: 100},
            "store": {"etcd": {"endpoints": etcd.endpoints()}},
        });
        for (key, value) in self.setup.store.as_object().into_iter().flatten() {
            config["store"]["etcd"][key] = value.clone();
        }
        for (key, value) in self.setup.control_planes.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        Ok(config)
    }

    pub(crate) fn agent_config(&self, region: &str, cluster: &str) -> Value {
        let name = format!("{region}-{cluster}");
        json!({
            "mesh": MESH,
            "region": region,
            "cluster": cluster,
            "stateDir": self.state_dir(&name),
            "identity": self.text(&name),
            "listen": self.listen(&name),
            "controlPlane": self.dials(region),
            "network": "demo",
            "source": {
                "directory": self.manifests.path(&format!("{region}/{cluster}")),
                "podCidrs": ["127.0.0.0/8"],
            },
        })
    }

    fn listen(&self, name: &str) -> Value {
        let at = self.listens(name);
        json!({"grpc": at.grpc, "dns": at.dns, "admin": at.admin})
    }

    /// The gRPC addresses of a region's replicas.
    fn dials(&self, region: &str) -> Vec<String> {
        replicas(region).iter().map(|name| self.listens(name).grpc.to_string()).collect()
    }

    /// Writes `NAME.yaml`.
    pub(crate) fn write_config(&self, name: &str, config: &Value) -> anyhow::Result<()> {
        let path = self.path(&format!("{name}.yaml"));
        std::fs::write(&path, serde_json::to_string_pretty(config)?)
            .with_context(|| path.display().to_string())
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }
}

fn ca(arguments: &[&str]) -> anyhow::Result<()> {
    let ended = run(&[&["ca"], arguments].concat())?;
    ensure!(ended.code == 0, "ca {arguments:?}: {ended:?}");
    Ok(())
}
