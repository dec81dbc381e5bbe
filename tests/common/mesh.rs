//! A running demo and all that belongs to it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tombolo_testbed::{Cluster, Demo, Scratch, Tool, skip, wait_for};

use super::manifests::Manifests;
use super::{EU, SOON, US, ask, run, tombolo};

/// The Envoy that tests use; without one `test` is skipped, which is said here.
pub(crate) fn envoy(test: &str) -> Option<PathBuf> {
    Tool::Envoy.path().map_err(|missing| skip(test, missing)).ok()
}

/// A demo over its own copy of the example manifests. The directory outlives the demo.
#[derive(Debug)]
pub(crate) struct Mesh {
    pub(crate) demo: Demo,
    pub(crate) manifests: Manifests,
    envoy: Option<PathBuf>,
    scratch: Scratch,
}

impl Mesh {
    /// Starts one without Envoy.
    pub(crate) fn start(test: &str) -> anyhow::Result<Self> {
        Self::start_with(test, None)
    }

    /// Starts one with that Envoy, if any.
    pub(crate) fn start_with(test: &str, envoy: Option<PathBuf>) -> anyhow::Result<Self> {
        let scratch = Scratch::new(test)?;
        let manifests = Manifests::copy(scratch.path())?;
        let demo = start(&scratch, &manifests, envoy.as_deref())?;
        Ok(Self { demo, manifests, envoy, scratch })
    }

    /// Kills it with signal 9 and starts it again on the same state.
    pub(crate) fn kill_and_restart(self) -> anyhow::Result<Self> {
        self.killed_between(|_| Ok(()))
    }

    /// The same, with something done before the start.
    pub(crate) fn killed_between(
        self,
        act: impl FnOnce(&Manifests) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let Self { demo, manifests, envoy, scratch } = self;
        demo.kill()?;
        act(&manifests)?;
        let demo = start(&scratch, &manifests, envoy.as_deref())?;
        Ok(Self { demo, manifests, envoy, scratch })
    }

    /// Ends it and starts another on the same manifests that knows nothing of it.
    pub(crate) fn restart_without_state(self) -> anyhow::Result<Self> {
        let Self { demo, manifests, envoy, scratch } = self;
        demo.interrupt()?;
        std::fs::remove_dir_all(scratch.path().join("state"))?;
        let demo = start(&scratch, &manifests, envoy.as_deref())?;
        Ok(Self { demo, manifests, envoy, scratch })
    }

    /// Ctrl-C, which has to end it cleanly; a panic at any time fails here.
    pub(crate) fn end(self) -> anyhow::Result<()> {
        self.demo.interrupt()
    }

    /// Approves all that a cluster's agent holds back now; says how many holds that were.
    pub(crate) fn approve_holds(&self, cluster: &Cluster) -> anyhow::Result<usize> {
        let socket = self.state_dir().join(format!("state/agent-{}/operator.sock", cluster.id));
        let mut approved = 0;
        for source in ask::status(cluster.admin)?["sources"].as_array().into_iter().flatten() {
            let own = source["owner"].as_str().is_some_and(|owner| owner.ends_with(&cluster.id));
            let holds = source["holds"].as_array().filter(|_| own);
            for hold in holds.into_iter().flatten().filter_map(|hold| hold["id"].as_str()) {
                let socket = socket.display().to_string();
                let ended = run(&["approve", &cluster.id, hold, "--socket", &socket])?;
                anyhow::ensure!(ended.code == 0, "{ended:?}");
                approved += 1;
            }
        }
        Ok(approved)
    }

    /// Where this test may write.
    pub(crate) fn dir(&self) -> &Path {
        self.scratch.path()
    }

    /// Where the demo keeps its state.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir().join("state")
    }

    /// All clusters with their regions.
    pub(crate) fn clusters(&self) -> impl Iterator<Item = (&str, &Cluster)> {
        let regions = self.demo.layout().regions.iter();
        regions.flat_map(|region| {
            region.clusters.iter().map(move |cluster| (region.name.as_str(), cluster))
        })
    }

    /// Every control plane and agent: its name, its DNS and its admin address.
    pub(crate) fn processes(&self) -> Vec<(String, SocketAddr, SocketAddr)> {
        let regions = self.demo.layout().regions.iter();
        let control_planes =
            regions.map(|region| (format!("region {}", region.name), region.dns, region.admin));
        let agents = self.clusters().map(|(_, c)| (format!("agent {}", c.id), c.dns, c.admin));
        control_planes.chain(agents).collect()
    }

    pub(crate) fn us(&self) -> &Cluster {
        self.demo.cluster(US, "alpha").expect("the examples have it")
    }

    pub(crate) fn eu(&self) -> &Cluster {
        self.demo.cluster(EU, "alpha").expect("the examples have it")
    }

    /// The Envoy of a cluster that was started with one.
    pub(crate) fn envoy_of(cluster: &Cluster) -> SocketAddr {
        cluster.envoy.expect("it was started with one")
    }

    /// Waits until every process serves the same, and gives its digest.
    pub(crate) fn agreed_digest(&self) -> anyhow::Result<String> {
        let admins: Vec<SocketAddr> = self.processes().iter().map(|(_, _, admin)| *admin).collect();
        agreed_digest(&admins)
    }
}

/// Waits until all of `admins` serve the same, and gives its digest.
pub(crate) fn agreed_digest(admins: &[SocketAddr]) -> anyhow::Result<String> {
    wait_for("every process serves the same", SOON, || {
        let digests: anyhow::Result<Vec<String>> =
            admins.iter().map(|admin| ask::digest(*admin)).collect();
        let digests = digests?;
        anyhow::ensure!(digests.windows(2).all(|pair| pair[0] == pair[1]), "{digests:?}");
        Ok(digests[0].clone())
    })
}

fn start(scratch: &Scratch, manifests: &Manifests, envoy: Option<&Path>) -> anyhow::Result<Demo> {
    let root = manifests.root().display().to_string();
    Demo::start(tombolo(), scratch.path(), envoy, &["--dir", &root])
}
