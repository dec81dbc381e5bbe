//! Two regions of real processes on real etcd: three control-plane replicas and two agents each.
//!
//! Owns: certificates and configuration files, the etcd of each region, the processes, and where
//! each of them listens. With root each region is in a network namespace of its own, so that what
//! goes between regions can be lost; else all is on loopback and [`Regions::link`] is an error.
//!
//! Names: a replica is `us-west1-0`, an agent `us-west1-alpha`. Replicas of a region have its
//! identity and its CA, each a copy, and a state directory of their own.

mod files;
mod history;
mod judge;
pub(crate) mod sampler;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tombolo_testbed::etcd::{self, Etcd, Release};
use tombolo_testbed::netns::{self, Namespace, Namespaces};
use tombolo_testbed::{Process, Scratch, skip, wait_for};

use super::manifests::Manifests;
use super::processes::Listens;
use super::{EU, US, ask, tombolo};

pub(crate) const REPLICAS: usize = 3;
const CLUSTERS: [&str; 2] = ["alpha", "beta"];

/// Ten processes of a build without optimisation start on a machine that builds something else.
pub(crate) const TOGETHER: Duration = Duration::from_mins(1);

/// What the regions are started with.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) release: Release,
    /// Of each region's etcd.
    pub(crate) etcd: etcd::Options,
    /// Keys of `store.etcd` in every control plane's file beside the endpoints.
    pub(crate) store: Value,
    /// Keys of every control plane's file beside the usual ones.
    pub(crate) control_planes: Value,
}

impl Default for Setup {
    fn default() -> Self {
        let (release, etcd) = (Release::Pinned, etcd::Options::members(1));
        let (store, control_planes) = (Value::Null, Value::Null);
        Self { release, etcd, store, control_planes }
    }
}

/// All of it, running. Ends when dropped, processes before the etcds they use.
pub(crate) struct Regions {
    processes: BTreeMap<String, Process>,
    pub(crate) etcds: BTreeMap<&'static str, Etcd>,
    net: Option<Namespaces>,
    setup: Setup,
    pub(crate) manifests: Manifests,
    scratch: Scratch,
}

/// The etcd of a test that needs no particular one; `None`, said as a skip, if there is none.
pub(crate) fn etcd_or_skip(test: &str) -> Option<Release> {
    available(test, Release::Pinned)
}

/// The same for this release.
pub(crate) fn available(test: &str, release: Release) -> Option<Release> {
    release.available().map(|()| release).map_err(|missing| skip(test, missing)).ok()
}

/// Whether links can be cut; said as a skip if not.
pub(crate) fn links_or_skip(test: &str) -> Option<()> {
    netns::available().map_err(|missing| skip(test, missing)).ok()
}

impl Regions {
    /// Starts all and waits until every process serves all that the examples export.
    pub(crate) fn start(test: &str, setup: Setup) -> anyhow::Result<Self> {
        let mut regions = Self::prepare(test, setup)?;
        for name in Self::names() {
            regions.run(&name)?;
        }
        for name in Self::names() {
            regions.knows_all(&name)?;
        }
        Ok(regions)
    }

    /// Everything but the processes: etcd runs, files are written.
    pub(crate) fn prepare(test: &str, setup: Setup) -> anyhow::Result<Self> {
        let scratch = Scratch::new(test)?;
        let manifests = Manifests::copy(scratch.path())?;
        let net = netns::available().ok().map(|()| Namespaces::make(&[US, EU])).transpose()?;
        let (processes, etcds) = (BTreeMap::new(), BTreeMap::new());
        let mut regions = Self { processes, etcds, net, setup, manifests, scratch };
        for region in [US, EU] {
            let etcd = regions.new_etcd(region, region)?;
            regions.etcds.insert(region, etcd);
        }
        regions.write_files()?;
        Ok(regions)
    }

    /// An etcd that knows nothing, where the region is.
    fn new_etcd(&self, region: &str, name: &str) -> anyhow::Result<Etcd> {
        let mut options = self.setup.etcd.clone();
        options.namespaces = self.namespace(region)?.cloned().into_iter().collect();
        Etcd::start(&format!("etcd-{name}"), self.setup.release, self.dir(), options)
    }

    /// Waits until a process serves every cluster's word.
    pub(crate) fn knows_all(&self, name: &str) -> anyhow::Result<()> {
        wait_for(format!("{name} knows all clusters"), TOGETHER, || {
            ask::same(&self.at(name, |at| ask::exporters(at.admin, "cart"))?.len(), &4)
        })
    }

    /// Starts a process that does not run.
    pub(crate) fn run(&mut self, name: &str) -> anyhow::Result<()> {
        ensure!(!self.processes.contains_key(name), "{name} runs already");
        let role = if is_replica(name) { "control-plane" } else { "agent" };
        let mut command = Command::new(tombolo());
        command.arg(role).arg("--config").arg(self.path(&format!("{name}.yaml")));
        let process = self.inside(name, || Process::start(name, &mut command, self.dir()))?;
        self.processes.insert(name.to_owned(), process);
        Ok(())
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self, name: &str) -> anyhow::Result<()> {
        self.processes.remove(name).with_context(|| format!("{name} does not run"))?.kill()
    }

    pub(crate) fn kill_all(&mut self) -> anyhow::Result<()> {
        let running: Vec<_> = self.processes.keys().cloned().collect();
        running.iter().try_for_each(|name| self.kill(name))
    }

    /// A process that runs, for signals and logs.
    pub(crate) fn process(&mut self, name: &str) -> anyhow::Result<&mut Process> {
        self.processes.get_mut(name).with_context(|| format!("{name} does not run"))
    }

    /// SIGTERM to all: each ends with success and never panicked.
    pub(crate) fn end(mut self) -> anyhow::Result<()> {
        for (name, process) in &mut self.processes {
            let status = process.terminate(Duration::from_secs(20))?;
            ensure!(status.success(), "{name}: {status}");
            ensure!(!process.stderr()?.contains("panicked"), "{name} panicked");
        }
        Ok(())
    }

    /// All names, control planes first.
    pub(crate) fn names() -> Vec<String> {
        let agents = [US, EU].into_iter().flat_map(agents);
        [US, EU].into_iter().flat_map(replicas).chain(agents).collect()
    }

    pub(crate) fn running(&self) -> Vec<String> {
        self.processes.keys().cloned().collect()
    }

    /// Asks something of a process, from where it is.
    pub(crate) fn at<T: Send>(
        &self,
        name: &str,
        ask: impl FnOnce(Listens) -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        let listens = self.listens(name);
        self.inside(name, || ask(listens)).with_context(|| name.to_owned())
    }

    pub(crate) fn status(&self, name: &str) -> anyhow::Result<Value> {
        self.at(name, |at| ask::status(at.admin))
    }

    /// The addresses that a process gives for a service of the shop.
    pub(crate) fn addresses(&self, name: &str, service: &str) -> anyhow::Result<Vec<String>> {
        self.at(name, |at| ask::addresses(at.dns, service))
    }

    /// What can happen on the way between the regions; needs [`links_or_skip`].
    pub(crate) fn link(&self) -> anyhow::Result<&Namespaces> {
        self.net.as_ref().context("links cannot be cut without network namespaces")
    }

    pub(crate) fn etcd(&mut self, region: &str) -> anyhow::Result<&mut Etcd> {
        self.etcds.get_mut(region).with_context(|| format!("no etcd of {region}"))
    }

    /// Where files and logs are.
    pub(crate) fn dir(&self) -> &Path {
        self.scratch.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    pub(crate) fn state_dir(&self, name: &str) -> PathBuf {
        self.path(&format!("state-{name}"))
    }

    /// Where a process listens: DNS and admin on a loopback address that the manifests own, gRPC
    /// where the other region reaches it.
    pub(crate) fn listens(&self, name: &str) -> Listens {
        let host = match name.rsplit('-').next() {
            Some("alpha") => 21,
            Some("beta") => 22,
            // For a second agent that claims to be one of them.
            Some("gamma") => 23,
            replica => 10 + replica.and_then(|number| number.parse().ok()).unwrap_or(0),
        };
        let m = &self.manifests;
        let loopback = if region_of(name) == US { m.us(0, host) } else { m.eu(0, host) };
        let loopback: IpAddr = loopback.parse().expect("an address");
        let namespace = self.namespace(region_of(name)).ok().flatten();
        let outside = namespace.map_or(loopback, |one| one.address().into());
        Listens {
            grpc: SocketAddr::new(outside, 7400 + u16::from(host)),
            dns: SocketAddr::new(loopback, 5353),
            admin: SocketAddr::new(loopback, 7080),
        }
    }

    fn namespace(&self, region: &str) -> anyhow::Result<Option<&Namespace>> {
        self.net.as_ref().map(|net| net.of(region)).transpose()
    }

    pub(crate) fn inside<T: Send>(
        &self,
        name: &str,
        work: impl FnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        match self.namespace(region_of(name))? {
            Some(namespace) => namespace.inside(work)?,
            None => work(),
        }
    }
}

/// The names of a region's control planes.
pub(crate) fn replicas(region: &str) -> Vec<String> {
    (0..REPLICAS).map(|number| format!("{region}-{number}")).collect()
}

/// The names of a region's agents.
pub(crate) fn agents(region: &str) -> Vec<String> {
    CLUSTERS.map(|cluster| format!("{region}-{cluster}")).into()
}

pub(crate) fn other(region: &str) -> &'static str {
    if region == US { EU } else { US }
}

pub(crate) fn is_replica(name: &str) -> bool {
    name.ends_with(|last: char| last.is_ascii_digit()) && name != US && name != EU
}

fn region_of(name: &str) -> &'static str {
    if name.starts_with(US) { US } else { EU }
}
