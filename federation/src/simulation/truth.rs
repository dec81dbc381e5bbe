//! What an owner holds: the API server, or the directory, behind an agent. It survives everything.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::key::{Key, Kind};
use crate::names::{NamespaceName, Owner};
use crate::record::{Body, Cluster, Endpoint, Endpoints, Export, Namespace, ServiceType};
use crate::store::conformance::random::Random;

/// Services of a cluster at a time.
const SERVICES: u64 = 6;
/// More than one transaction takes.
const BULK: u64 = 140;

/// One cluster's.
#[derive(Debug)]
pub(super) struct Truth {
    pub(super) owner: Owner,
    pub(super) uid: String,
    inner: Mutex<Inner>,
    pub(super) changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    bodies: BTreeMap<Key, Arc<Body>>,
    removed: BTreeMap<Key, Vec<Instant>>,
    /// All that was ever held, and from when; `None` is nothing.
    held: BTreeMap<Key, Vec<(Instant, Option<Arc<Body>>)>>,
    addresses: u32,
}

impl Inner {
    fn put(&mut self, key: Key, body: Arc<Body>) {
        let held = (Instant::now(), Some(Arc::clone(&body)));
        self.held.entry(key.clone()).or_default().push(held);
        self.bodies.insert(key, body);
    }

    fn remove(&mut self, key: &Key) {
        let now = Instant::now();
        self.bodies.remove(key);
        self.held.entry(key.clone()).or_default().push((now, None));
        self.removed.entry(key.clone()).or_default().push(now);
    }
}

impl Truth {
    pub(super) fn new(owner: Owner) -> Self {
        let uid = format!(
            "uid-of-{}",
            owner.cluster.as_ref().map(ToString::to_string).unwrap_or_default()
        );
        let cluster = Cluster { uid: uid.clone(), directory: true, ..Cluster::default() };
        let truth = Self { owner, uid, inner: Mutex::default(), changed: watch::Sender::new(0) };
        let key = Key::of_owner(truth.owner.clone(), Kind::Cluster);
        truth.inner().put(key, Arc::new(Body::Cluster(cluster)));
        truth
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn bodies(&self) -> BTreeMap<Key, Arc<Body>> {
        self.inner().bodies.clone()
    }

    /// Whether the owner removed this after it said it.
    pub(super) fn removed_since(&self, key: &Key, said: Instant) -> bool {
        let inner = self.inner();
        inner.removed.get(key).is_some_and(|removed| removed.iter().any(|at| *at >= said))
    }

    /// Whether the owner held this at some time since `began`. What a region adds to it is left out.
    pub(super) fn held_since(&self, key: &Key, body: &Body, began: Instant) -> bool {
        let inner = self.inner();
        let Some(held) = inner.held.get(key) else { return false };
        let until = held.iter().skip(1).map(|(at, _)| Some(*at)).chain([None]);
        held.iter().zip(until).any(|((_, held), until)| {
            let then = until.is_none_or(|until| until >= began);
            then && held.as_ref().is_some_and(|held| without_join(held) == without_join(body))
        })
    }

    fn key(&self, kind: Kind, rest: &str) -> Option<Key> {
        format!("{}{kind}/{rest}", Key::owner_prefix(&self.owner)).parse().ok()
    }

    /// One change, as an owner makes it: all of it at once. In words.
    pub(super) fn change(&self, random: &mut Random) -> String {
        let service = random.below(SERVICES);
        let namespace = format!("ns{}", service % 3);
        let what = match random.below(20) {
            0..6 => self.add(&namespace, service, 1 + random.below(3)),
            6..9 => self.remove(&format!("/svc{service}")),
            9..14 => self.readdress(&format!("/svc{service}/"), random),
            14..17 => self.remove(&format!("/svc{service}/s{}", random.below(3))),
            17 => self.add("bulk", 99, BULK + random.below(BULK)),
            18 => self.readdress("/svc99/", &mut Random(1)),
            _ => self.remove("/svc99"),
        };
        self.changed.send_modify(|version| *version += 1);
        format!("{} {what}", self.owner)
    }

    fn add(&self, namespace: &str, service: u64, slices: u64) -> String {
        let mut new = Vec::new();
        if let Ok(name) = namespace.parse::<NamespaceName>() {
            let key = Key::of_namespace(self.owner.clone(), &name);
            new.push((key, Body::Namespace(Namespace::default())));
        }
        let export = self.key(Kind::Export, &format!("{namespace}/svc{service}"));
        new.extend(export.map(|key| (key, export_body())));
        for slice in 0..slices {
            let path = format!("{namespace}/svc{service}/s{slice}");
            let key = self.key(Kind::Endpoints, &path);
            new.extend(key.map(|key| (key, self.endpoints())));
        }
        let mut inner = self.inner();
        for (key, body) in new {
            inner.put(key, Arc::new(body));
        }
        format!("has svc{service} with {slices} slices")
    }

    fn endpoints(&self) -> Body {
        let mut inner = self.inner();
        inner.addresses += 1;
        let address = IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + inner.addresses));
        let endpoint = Endpoint {
            address,
            ready: true,
            serving: true,
            terminating: false,
            was_ready: true,
            zone: String::new(),
            hostname: String::new(),
            node: String::new(),
            target: String::new(),
            service_account: String::new(),
            meshed: false,
        };
        Body::Endpoints(Endpoints { ports: Vec::new(), endpoints: vec![endpoint] })
    }

    fn of(&self, path: &str) -> Vec<Key> {
        let inner = self.inner();
        let keys = inner.bodies.keys();
        keys.filter(|key| format!("{key}/").contains(&format!("{path}/").replace("//", "/")))
            .cloned()
            .collect()
    }

    fn remove(&self, path: &str) -> String {
        let keys = self.of(path);
        let mut inner = self.inner();
        for key in &keys {
            inner.remove(key);
        }
        format!("removed {} records of {path}", keys.len())
    }

    fn readdress(&self, path: &str, random: &mut Random) -> String {
        let slices = self.of(path).into_iter().filter(|key| key.kind == Kind::Endpoints);
        let slices: Vec<Key> = slices.filter(|_| random.chance(60)).collect();
        for key in &slices {
            let body = Arc::new(self.endpoints());
            self.inner().put(key.clone(), body);
        }
        format!("changed {} slices of {path}", slices.len())
    }
}

fn without_join(body: &Body) -> Body {
    match body {
        Body::Export(export) => {
            Body::Export(Export { precedence: Timestamp::UNIX_EPOCH, ..export.clone() })
        }
        other => other.clone(),
    }
}

fn export_body() -> Body {
    Body::Export(Export {
        service_type: ServiceType::ClusterSetIP,
        ports: Vec::new(),
        session_affinity: String::new(),
        session_affinity_timeout: None,
        internal_traffic_policy: String::new(),
        traffic_distribution: String::new(),
        ip_families: Vec::new(),
        created: None,
        precedence: Timestamp::UNIX_EPOCH,
        exported_labels: BTreeMap::new(),
        exported_annotations: BTreeMap::new(),
    })
}
