//! The demo's running parts: roles, backends, Envoys; starting and stopping them by name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::future::select_all;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tombolo_federation::manifests::{Desired, Options, Source};
use tombolo_federation::names::{ClusterId, Owner, RegionName, ServiceKey};
use tombolo_federation::record::Body;
use tracing::error;

use super::backends::Backends;
use super::control::{Action, Target, Verb};
use super::envoy::Envoy;
use super::files::{Prepared, PreparedCluster};
use super::readiness::knows;
use super::show::Progress;
use crate::role::agent::Agent;
use crate::role::control_plane::ControlPlane;

/// How often readiness is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// A role in this process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    ControlPlane(RegionName),
    Agent(ClusterId),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ControlPlane(region) => write!(f, "control-plane {region}"),
            Self::Agent(cluster) => write!(f, "agent {cluster}"),
        }
    }
}

/// A cluster and what its manifests say.
type Manifests = (RegionName, ClusterId, watch::Receiver<Arc<Desired>>);

/// A running role: told to stop by one token, known to have ended by the other.
struct Running {
    stop: CancellationToken,
    ended: CancellationToken,
}

/// Everything that runs.
pub(crate) struct Parts {
    prepared: Prepared,
    envoy_program: Option<PathBuf>,
    running: BTreeMap<Part, Running>,
    roles: JoinSet<(Part, anyhow::Result<()>)>,
    envoys: BTreeMap<ClusterId, Envoy>,
    backends: Backends,
    manifests: Vec<Manifests>,
    readers: JoinSet<()>,
    stop_readers: CancellationToken,
}

impl Parts {
    pub(crate) fn new(prepared: Prepared, envoy_program: Option<PathBuf>) -> Self {
        Self {
            prepared,
            envoy_program,
            running: BTreeMap::new(),
            roles: JoinSet::new(),
            envoys: BTreeMap::new(),
            backends: Backends::default(),
            manifests: Vec::new(),
            readers: JoinSet::new(),
            stop_readers: CancellationToken::new(),
        }
    }

    pub(crate) fn prepared(&self) -> &Prepared {
        &self.prepared
    }

    pub(crate) fn has_envoy(&self) -> bool {
        self.envoy_program.is_some()
    }

    pub(crate) fn backends(&self) -> usize {
        self.backends.running()
    }

    /// What a cluster's manifests say now.
    pub(crate) fn desired(&self, cluster: &ClusterId) -> Option<Arc<Desired>> {
        let found = self.manifests.iter().find(|(_, id, _)| id == cluster);
        found.map(|(_, _, desired)| Arc::clone(&desired.borrow()))
    }

    /// The service that most clusters export, with its first port: what to try first.
    pub(crate) fn popular_service(&self) -> Option<(ServiceKey, u16)> {
        let mut exports: BTreeMap<ServiceKey, (usize, u16)> = BTreeMap::new();
        for (_, _, desired) in &self.manifests {
            for (key, body) in &desired.borrow().records {
                if let (Body::Export(export), Some(service)) = (body, key.service())
                    && let Some(port) = export.ports.first()
                {
                    exports.entry(service).or_insert((0, port.port)).0 += 1;
                }
            }
        }
        let popular = exports.into_iter().max_by_key(|(_, (count, _))| *count);
        popular.map(|(service, (_, port))| (service, port))
    }

    /// Starts everything and waits until each part knows all the others.
    pub(crate) async fn start_all(
        &mut self,
        progress: &Progress,
        deadline: Instant,
    ) -> anyhow::Result<()> {
        self.read_manifests().await?;
        progress.done(&format!("{} backends", self.backends.running()));
        for part in self.all_parts(None) {
            self.start(&part).await?;
        }
        progress.done("control planes and agents listen");
        for cluster in self.clusters(None) {
            self.start_envoy(&cluster)?;
        }
        self.all_know_all(deadline).await?;
        progress.done("every process knows every cluster");
        for (cluster, envoy) in &mut self.envoys {
            envoy.ready(deadline).await.with_context(|| format!("Envoy of {cluster}"))?;
        }
        if self.has_envoy() {
            progress.done("Envoys have their configuration");
        }
        Ok(())
    }

    /// Ends everything.
    pub(crate) async fn stop_all(&mut self) {
        for (_, envoy) in std::mem::take(&mut self.envoys) {
            envoy.stop().await;
        }
        for running in self.running.values() {
            running.stop.cancel();
        }
        while self.roles.join_next().await.is_some() {}
        self.stop_readers.cancel();
        while self.readers.join_next().await.is_some() {}
    }

    /// Carries out an order.
    pub(crate) async fn obey(&mut self, verb: &Verb) -> Result<String, String> {
        let Verb { action, target, name } = verb;
        let done = match action {
            Action::Stop => "stopped",
            Action::Start => "started",
        };
        let what = match target {
            Target::Backend => {
                let count = match action {
                    Action::Stop => self.backends.stop(name).await?,
                    Action::Start => self.backends.start(name).await?,
                };
                format!("{count} backend(s) {name}")
            }
            Target::ControlPlane => {
                self.switch(*action, &Part::ControlPlane(self.region(name)?)).await?
            }
            Target::Agent => self.switch(*action, &Part::Agent(self.cluster(name)?)).await?,
            Target::Region => self.switch_region(*action, &self.region(name)?).await?,
        };
        Ok(format!("{done} {what}"))
    }

    /// Waits for a change of a cluster's manifests, which is then to be [followed](Self::follow), or
    /// for a role that ended by itself, which is told here. Cancel safe.
    pub(crate) async fn changed(&mut self) -> Option<usize> {
        let Self { manifests, roles, running, .. } = self;
        tokio::select! {
            index = edited(manifests) => Some(index),
            Some(ended) = roles.join_next() => {
                reap(running, ended);
                None
            }
        }
    }

    /// Lets the backends follow the manifests that changed. Not cancel safe: a change is seen once.
    pub(crate) async fn follow(&mut self, changed: usize) {
        let (region, cluster, desired) = &mut self.manifests[changed];
        let records = Arc::clone(&desired.borrow_and_update());
        self.backends.follow(region, cluster, &records.records).await;
    }

    async fn read_manifests(&mut self) -> anyhow::Result<()> {
        for (region, cluster) in self.all_clusters() {
            let config = &self.prepared.regions[&region].clusters[&cluster].agent;
            let mut options = Options::new(region.clone(), cluster.clone());
            options.export_all = config.source.export_all;
            let (options, options_rx) = watch::channel(options);
            let directory = config.source.directory.clone();
            let (source, mut desired) = Source::open(directory, options_rx).await?;
            let stop = self.stop_readers.clone();
            self.readers.spawn(async move {
                let _options = options;
                if let Err(error) = source.run(stop).await {
                    error!(%error, "backends do not follow their manifests any more");
                }
            });
            let first =
                desired.wait_for(|desired| desired.complete || !desired.problems.is_empty());
            let first = Arc::clone(&*first.await?);
            refuse_unread(&config.source.directory, &first)?;
            self.backends.follow(&region, &cluster, &first.records).await;
            self.manifests.push((region, cluster, desired));
        }
        Ok(())
    }

    async fn start(&mut self, part: &Part) -> anyhow::Result<()> {
        let stop = CancellationToken::new();
        let ended = CancellationToken::new();
        let done = ended.clone().drop_guard();
        let name = part.clone();
        match part {
            Part::ControlPlane(region) => {
                let config = self.prepared.regions[region].control_plane.clone();
                let bound = ControlPlane::bind(config, stop.clone()).await;
                let bound = bound.with_context(|| part.to_string())?;
                self.roles.spawn(async move {
                    let outcome = Box::pin(bound.run()).await;
                    drop(done);
                    (name, outcome)
                });
            }
            Part::Agent(cluster) => {
                let config = self.prepared_cluster(cluster)?.agent.clone();
                let bound = Agent::bind(config, stop.clone()).await;
                let bound = bound.with_context(|| part.to_string())?;
                self.roles.spawn(async move {
                    let outcome = Box::pin(bound.run()).await;
                    drop(done);
                    (name, outcome)
                });
            }
        }
        self.running.insert(part.clone(), Running { stop, ended });
        Ok(())
    }

    async fn switch(&mut self, action: Action, part: &Part) -> Result<String, String> {
        match (action, self.running.get(part)) {
            (Action::Stop, None) => Err(format!("{part} is stopped already")),
            (Action::Start, Some(_)) => Err(format!("{part} is running already")),
            (Action::Start, None) => {
                self.start(part).await.map_err(|error| format!("{error:#}"))?;
                Ok(part.to_string())
            }
            (Action::Stop, Some(running)) => {
                running.stop.cancel();
                running.ended.cancelled().await;
                self.running.remove(part);
                Ok(part.to_string())
            }
        }
    }

    /// A region is its control plane, its agents, its backends and its Envoys; what of it is in
    /// the wanted state already stays as it is.
    async fn switch_region(
        &mut self,
        action: Action,
        region: &RegionName,
    ) -> Result<String, String> {
        if action == Action::Stop {
            for cluster in self.clusters(Some(region)) {
                if let Some(envoy) = self.envoys.remove(&cluster) {
                    envoy.stop().await;
                }
            }
        }
        let running = |parts: &Self, part: &Part| parts.running.contains_key(part);
        for part in self.all_parts(Some(region)) {
            if running(self, &part) == (action == Action::Stop) {
                self.switch(action, &part).await?;
            }
        }
        for cluster in self.clusters(Some(region)) {
            // A cluster of somebody's own manifests has no backends here.
            let _ = match action {
                Action::Stop => self.backends.stop(cluster.as_str()).await,
                Action::Start => self.backends.start(cluster.as_str()).await,
            };
            let is_up = self.envoys.get_mut(&cluster).is_some_and(Envoy::is_running);
            if action == Action::Start && !is_up {
                self.start_envoy(&cluster).map_err(|error| format!("{error:#}"))?;
            }
        }
        Ok(format!("region {region}"))
    }

    fn start_envoy(&mut self, cluster: &ClusterId) -> anyhow::Result<()> {
        let Some(program) = &self.envoy_program else { return Ok(()) };
        let prepared = &self.prepared_cluster(cluster)?.envoy;
        let envoy = Envoy::start(program, &prepared.bootstrap, &prepared.log, prepared.admin)?;
        self.envoys.insert(cluster.clone(), envoy);
        Ok(())
    }

    /// Waits until each process holds everything of every owner.
    async fn all_know_all(&mut self, deadline: Instant) -> anyhow::Result<()> {
        let owners = self.all_clusters().into_iter();
        let owners = owners.map(|(region, cluster)| Owner::cluster(region, cluster).to_string());
        let owners: BTreeSet<String> = owners.collect();
        for part in self.all_parts(None) {
            let admin = self.admin(&part)?;
            while let Err(missing) = knows(admin, &owners).await {
                if let Some(ended) = self.roles.try_join_next() {
                    let (part, outcome) = ended?;
                    outcome.with_context(|| part.to_string())?;
                    bail!("{part} ended while the demo was starting");
                }
                if Instant::now() > deadline {
                    bail!("{part} is not ready: {missing:#}");
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }

    fn admin(&self, part: &Part) -> anyhow::Result<SocketAddr> {
        Ok(match part {
            Part::ControlPlane(region) => self.prepared.regions[region].control_plane.listen.admin,
            Part::Agent(cluster) => self.prepared_cluster(cluster)?.agent.listen.admin,
        })
    }

    fn all_parts(&self, region: Option<&RegionName>) -> Vec<Part> {
        let regions = self.prepared.regions.keys().filter(|name| region.is_none_or(|r| r == *name));
        let control_planes = regions.cloned().map(Part::ControlPlane);
        control_planes.chain(self.clusters(region).into_iter().map(Part::Agent)).collect()
    }

    fn clusters(&self, region: Option<&RegionName>) -> Vec<ClusterId> {
        let all = self.all_clusters().into_iter();
        all.filter(|(of, _)| region.is_none_or(|region| region == of)).map(|(_, id)| id).collect()
    }

    fn all_clusters(&self) -> Vec<(RegionName, ClusterId)> {
        let regions = self.prepared.regions.iter();
        regions
            .flat_map(|(name, region)| region.clusters.keys().map(|id| (name.clone(), id.clone())))
            .collect()
    }

    fn prepared_cluster(&self, cluster: &ClusterId) -> anyhow::Result<&PreparedCluster> {
        let mut regions = self.prepared.regions.values();
        let found = regions.find_map(|region| region.clusters.get(cluster));
        found.with_context(|| format!("no cluster is called {cluster}"))
    }

    fn region(&self, name: &str) -> Result<RegionName, String> {
        let known = self.prepared.regions.keys().find(|region| region.as_str() == name);
        known.cloned().ok_or_else(|| {
            let names: Vec<&str> = self.prepared.regions.keys().map(RegionName::as_str).collect();
            format!("no region is called {name}; there are {}", names.join(", "))
        })
    }

    /// By id, or as `<region>/<cluster>`.
    fn cluster(&self, name: &str) -> Result<ClusterId, String> {
        let clusters = self.clusters(None);
        let id = name.replacen('/', "-", 1);
        let known = clusters.iter().find(|cluster| cluster.as_str() == id);
        known.cloned().ok_or_else(|| {
            let names: Vec<&str> = clusters.iter().map(ClusterId::as_str).collect();
            format!("no cluster is called {name}; there are {}", names.join(", "))
        })
    }
}

/// A cluster of which nothing could be read would keep everybody waiting.
fn refuse_unread(directory: &Path, desired: &Desired) -> anyhow::Result<()> {
    if desired.complete {
        return Ok(());
    }
    let problems: Vec<String> = desired.problems.iter().take(5).map(ToString::to_string).collect();
    bail!(
        "no manifest could be read in {}: {}",
        directory.display(),
        if problems.is_empty() { "it holds none".to_owned() } else { problems.join("; ") }
    )
}

/// Waits for an edit of any of them; says which. Cancel safe.
async fn edited(manifests: &mut Vec<Manifests>) -> usize {
    loop {
        if manifests.is_empty() {
            std::future::pending::<()>().await;
        }
        let edits = manifests.iter_mut().map(|(_, _, desired)| Box::pin(desired.changed()));
        let (outcome, index, _) = select_all(edits).await;
        if outcome.is_ok() {
            return index;
        }
        // Its reader ended, and said why: nothing of it will change any more.
        manifests.remove(index);
    }
}

/// Takes note of a role that ended; one that was not told to is told to the person.
fn reap(
    running: &mut BTreeMap<Part, Running>,
    ended: Result<(Part, anyhow::Result<()>), tokio::task::JoinError>,
) {
    match ended {
        Ok((part, outcome)) => {
            // One that was stopped and started again since is another.
            let alone = running.get(&part).is_some_and(|running| running.ended.is_cancelled());
            if alone {
                running.remove(&part);
            }
            match outcome {
                Ok(()) if !alone => {}
                Ok(()) => error!(%part, "ended by itself"),
                Err(problem) => error!(%part, error = format!("{problem:#}"), "failed"),
            }
        }
        Err(join) => error!(%join, "a role panicked"),
    }
}
