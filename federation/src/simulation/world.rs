//! The mesh of a run: stores, processes, and what becomes of them.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use tokio::time::Instant;

use super::Shared;
use super::agent::Agent;
use super::control::ControlPlane;
use super::store::{Backup, SimStore};
use super::truth::Truth;
use crate::key::Kind;
use crate::names::{ClusterId, Owner, RegionName};
use crate::record::{Body, Record};
use crate::replica::Holding;
use crate::store::conformance::random::Random;
use crate::sync::own::with_join;

const REGIONS: [&str; 3] = ["eu", "us", "asia"];
const CLUSTERS: [&str; 2] = ["a", "b"];

/// Everything.
pub(super) struct World {
    pub(super) shared: Arc<Shared>,
    pub(super) random: Random,
    pub(super) regions: Vec<RegionName>,
    pub(super) truths: Vec<Arc<Truth>>,
    /// By name; `None` while it is down.
    pub(super) control: BTreeMap<String, Process<ControlPlane>>,
    pub(super) agents: BTreeMap<String, Process<Agent>>,
    pub(super) backups: BTreeMap<RegionName, Backup>,
    began: Instant,
}

/// A process that may be down.
pub(super) struct Process<T> {
    pub(super) up: Option<T>,
    starts: u64,
    place: usize,
}

impl World {
    /// Everything up, nothing said.
    pub(super) fn start(shared: &Arc<Shared>) -> Self {
        let mut random = shared.fork();
        let count = 2 + usize::from(random.chance(30));
        let regions: Vec<RegionName> =
            REGIONS[..count].iter().filter_map(|name| name.parse().ok()).collect();
        let mut world = Self {
            shared: Arc::clone(shared),
            random,
            regions,
            truths: Vec::new(),
            control: BTreeMap::new(),
            agents: BTreeMap::new(),
            backups: BTreeMap::new(),
            began: Instant::now(),
        };
        for place in 0..world.regions.len() {
            world.found(place);
        }
        let names: Vec<String> = world.control.keys().cloned().collect();
        for name in &names {
            world.start_control(name);
        }
        let names: Vec<String> = world.agents.keys().cloned().collect();
        for name in &names {
            world.start_agent(name);
        }
        world
    }

    fn found(&mut self, place: usize) {
        let region = self.regions[place].clone();
        let store = SimStore::start();
        self.backups.insert(region.clone(), store.backup());
        let mut stores = self.shared.stores.lock().unwrap_or_else(PoisonError::into_inner);
        stores.insert(region.clone(), store);
        drop(stores);
        for process in 0..=self.random.below(2) {
            let name = format!("{region}/cp{process}");
            self.control.insert(name, Process { up: None, starts: 0, place });
        }
        for cluster in CLUSTERS {
            let Ok(cluster) = format!("{region}-{cluster}").parse::<ClusterId>() else { continue };
            let truth = Arc::new(Truth::new(Owner::cluster(region.clone(), cluster.clone())));
            for _ in 0..4 {
                truth.change(&mut self.random);
            }
            self.shared.checker.add(&truth);
            let place = self.truths.len();
            self.truths.push(truth);
            self.agents.insert(format!("agent/{cluster}"), Process { up: None, starts: 0, place });
        }
    }

    pub(super) fn start_control(&mut self, name: &str) {
        let Some(process) = self.control.get_mut(name) else { return };
        if process.up.is_some() {
            return;
        }
        process.starts += 1;
        let region = &self.regions[process.place];
        let peers = self.regions.iter().filter(|peer| *peer != region);
        let peers: Vec<RegionName> = peers.cloned().collect();
        process.up = ControlPlane::start(&self.shared, region, name, &peers, self.began);
    }

    pub(super) fn start_agent(&mut self, name: &str) {
        let Some(process) = self.agents.get_mut(name) else { return };
        if process.up.is_none() {
            process.starts += 1;
            let truth = &self.truths[process.place];
            process.up = Agent::start(&self.shared, truth, process.starts);
        }
    }

    pub(super) fn crash(&mut self, name: &str) {
        if let Some(process) = self.control.get_mut(name).and_then(|process| process.up.take()) {
            process.kill(&self.shared);
        }
        if let Some(process) = self.agents.get_mut(name).and_then(|process| process.up.take()) {
            process.kill();
        }
    }

    pub(super) fn restart(&mut self, name: &str) {
        self.start_control(name);
        self.start_agent(name);
    }

    /// Everybody's name.
    pub(super) fn names(&self) -> Vec<String> {
        self.control.keys().chain(self.agents.keys()).cloned().collect()
    }

    /// Why not everybody holds what the owners hold; nothing if everybody does.
    pub(super) fn differs(&self) -> Option<String> {
        self.processes_differ().or_else(|| self.bodies_differ()).or_else(|| self.stores_differ())
    }

    fn processes_differ(&self) -> Option<String> {
        let checker = &self.shared.checker;
        for process in self.control.values() {
            let Some(up) = &process.up else { return Some("a process is down".to_owned()) };
            let differs = checker.differs(&up.name, &up.replicas.peek());
            if differs.is_some() {
                return differs;
            }
        }
        for process in self.agents.values() {
            let Some(up) = &process.up else { return Some("an agent is down".to_owned()) };
            // Its region may have news for it, of its join for one, by which its exports change.
            if !up.published.borrow().synced {
                return Some(format!("{} has not said all to its region yet", up.name));
            }
            let differs = checker.differs(&up.name, &up.replicas.peek());
            if differs.is_some() {
                return differs;
            }
        }
        None
    }

    /// Equal keys are not yet equal records: bodies as the owner holds them, bytes as everybody
    /// else does.
    fn bodies_differ(&self) -> Option<String> {
        for (name, process) in &self.agents {
            let truth = &self.truths[process.place];
            let joined = process.up.as_ref().and_then(|up| *up.joined.borrow());
            let wanted = with_join(&truth.bodies(), joined);
            let own = process.up.as_ref().map(|up| up.replicas.peek());
            let mut digest = None;
            let agents = self.agents.iter().filter(|(other, _)| *other != name);
            let agents = agents.filter_map(|(_, process)| process.up.as_ref());
            let agents = agents.map(|up| (&up.name, up.replicas.peek()));
            let control = self.control.values().filter_map(|process| process.up.as_ref());
            let control = control.map(|up| (&up.name, up.replicas.peek()));
            for (who, replica) in control.chain(agents) {
                for (key, body) in &wanted {
                    let held = replica.get(key).and_then(|entry| entry.record.clone());
                    if held.as_ref().is_none_or(|held| held.body != **body) {
                        return Some(format!("{who} holds another {key} than its owner"));
                    }
                    let now = own.as_ref().and_then(|own| own.get(key)?.record.clone());
                    if now.zip(held).is_some_and(|(now, held)| will_change(&now, &held)) {
                        return Some(format!(
                            "{who} holds {key} as of before it went and came back"
                        ));
                    }
                }
                let held = replica.holding(&truth.owner).map(Holding::digest);
                if *digest.get_or_insert(held) != held {
                    return Some(format!("{who} has another digest of {}", truth.owner));
                }
            }
        }
        None
    }

    /// What processes hold could be what a store has lost.
    fn stores_differ(&self) -> Option<String> {
        for region in &self.regions {
            let store = self.shared.store(region)?;
            for truth in &self.truths {
                for (key, _) in truth.bodies() {
                    if store.entry(&key.to_string()).is_none() {
                        return Some(format!("the store of {region} lacks {key}"));
                    }
                }
            }
            let known = |key: &crate::key::Key| {
                self.truths.iter().any(|truth| truth.bodies().contains_key(key))
            };
            for entry in store.entries() {
                let Ok(key) = entry.key.parse::<crate::key::Key>() else { continue };
                let cluster = key.owner.cluster.is_some() && key.kind != Kind::Beacon;
                if cluster && !known(&key) {
                    return Some(format!("the store of {region} has {key}, which is gone"));
                }
            }
        }
        None
    }

    /// How many records there are, for the report.
    pub(super) fn records(&self) -> usize {
        let bodies = self.truths.iter().map(|truth| truth.bodies());
        bodies
            .map(|bodies| {
                bodies.values().filter(|body| !matches!(***body, Body::Beacon(_))).count()
            })
            .sum()
    }
}

/// Whether a record of the same epoch is held under another change than its owner's. What an
/// earlier epoch said need not be said again.
fn will_change(now: &Record, held: &Record) -> bool {
    if matches!(now.body, Body::Beacon(_)) {
        return false;
    }
    let (now, held) = (&now.origin, &held.origin);
    now.epoch == held.epoch && now.sequence != held.sequence
}
