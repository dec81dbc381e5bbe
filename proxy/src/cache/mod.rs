//! Each resource, encoded once for all that are sent the same bytes.
//!
//! Owns: the tables of every variant in use, and which class of clients reads which. Promises: a
//! change costs in proportion to the services it touched and the variants in use, never to the
//! number of clients; a change that alters no bytes of a class wakes none of its streams;
//! nothing is served before the first complete catalog, and while a later one is incomplete,
//! what it lacks stays. Leaves to others: what a stream was sent (`streams`). Variants are made
//! when the first client of a class comes and dropped when the last has gone.
//!
//! Turned down: encoding when a stream asks, which encodes under whichever stream happens to come
//! first and wakes all of them at every change to find out that there is none.

mod places;
mod table;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::counter::Counter;
use tokio::sync::watch;
use tombolo_federation::catalog::{Catalog, Service};
use tombolo_federation::names::{RegionName, ServiceKey};

use crate::class::{ClientClass, ClientKind, EndpointsView, ListenerView};
use crate::failover::Distances;
use crate::intent::targets;
use crate::resources::{
    Resource, RouteTable, Type, cluster, endpoints, grpc_listeners, outbound_listener,
    virtual_hosts,
};

pub(crate) use places::Places;
use table::edits;
pub(crate) use table::{Names, Table};

/// All that clients of one class are sent, at one moment.
#[derive(Debug, Clone)]
pub(crate) struct View {
    /// Grows with every change; means nothing elsewhere.
    pub(crate) revision: u64,
    tables: [Table; 4],
}

impl View {
    pub(crate) fn table(&self, of: Type) -> &Table {
        let [clusters, endpoints, listeners, routes] = &self.tables;
        match of {
            Type::Cluster => clusters,
            Type::Endpoints => endpoints,
            Type::Listener => listeners,
            Type::Route => routes,
        }
    }
}

/// The views of one class: always the newest.
pub(crate) type Views = watch::Receiver<Arc<View>>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Cache {
    state: Mutex<State>,
    catalog: watch::Sender<Option<Arc<Catalog>>>,
    places: watch::Sender<Places>,
}

#[derive(Debug)]
struct State {
    zone: Arc<str>,
    revision: u64,
    applied: Option<Arc<Catalog>>,
    /// What is served, by service: usually the catalog's, but see [`State::intended`].
    services: BTreeMap<ServiceKey, Arc<Service>>,
    classes: HashMap<ClientClass, watch::Sender<Arc<View>>>,
    clusters: HashMap<ClientKind, Table>,
    endpoints: HashMap<EndpointsView, Table>,
    listeners: HashMap<ListenerView, Table>,
    routes: HashMap<ClientKind, (RouteTable, Table)>,
    encoded: Counter,
}

impl Cache {
    /// An empty cache for services in `zone`; `encoded` counts encodings of services.
    pub(crate) fn new(zone: Arc<str>, encoded: Counter) -> Self {
        let state = State {
            zone,
            revision: 0,
            applied: None,
            services: BTreeMap::new(),
            classes: HashMap::new(),
            clusters: HashMap::new(),
            endpoints: HashMap::new(),
            listeners: HashMap::new(),
            routes: HashMap::new(),
            encoded,
        };
        Self {
            state: Mutex::new(state),
            catalog: watch::Sender::new(None),
            places: watch::Sender::default(),
        }
    }

    /// The catalog that is served, `None` before the first complete one.
    pub(crate) fn catalog(&self) -> watch::Receiver<Option<Arc<Catalog>>> {
        self.catalog.subscribe()
    }

    /// Where clusters are, and of which class their clients therefore are; empty before the first
    /// complete catalog. Known before anything is served by it.
    pub(crate) fn places(&self) -> watch::Receiver<Places> {
        self.places.subscribe()
    }

    /// Serves `catalog` from now on. `touched` are the services that may differ from the last one
    /// applied, `None` for all.
    pub(crate) fn apply(&self, catalog: &Arc<Catalog>, touched: Option<BTreeSet<ServiceKey>>) {
        let mut state = self.lock();
        if state.applied.is_none() && !catalog.complete {
            return;
        }
        self.places.send_if_modified(|places| places.follow(catalog));
        state.apply(catalog, touched);
        drop(state);
        self.catalog.send_replace(Some(Arc::clone(catalog)));
    }

    /// The generation that was applied last; 0 for none.
    pub(crate) fn generation(&self) -> u64 {
        self.lock().applied.as_ref().map_or(0, |catalog| catalog.generation)
    }

    /// The views of `class`; `None` before the first complete catalog.
    pub(crate) fn subscribe(&self, class: &ClientClass) -> Option<Views> {
        let mut state = self.lock();
        state.applied.as_ref()?;
        if let Some(views) = state.classes.get(class) {
            return Some(views.subscribe());
        }
        state.forget_unused();
        let view = Arc::new(state.view(class));
        let (views, first) = watch::channel(view);
        state.classes.insert(class.clone(), views);
        Some(first)
    }

    /// Nothing panics while it holds the lock; should it, the tables are still whole values.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn apply(&mut self, catalog: &Arc<Catalog>, touched: Option<BTreeSet<ServiceKey>>) {
        self.revision += 1;
        self.forget_unused();
        let before = self.applied.replace(Arc::clone(catalog));
        // A catalog that was incomplete held services back; what it lacks is only now gone.
        let was_complete = before.as_ref().is_some_and(|before| before.complete);
        let keys = touched.filter(|_| was_complete || !catalog.complete);
        let keys = keys.unwrap_or_else(|| self.all_keys(catalog));
        let mut changed = Changed::default();
        for key in keys {
            self.touch(catalog, &key, &mut changed);
        }
        self.follow_distances(before.as_deref(), catalog, &mut changed);
        for (kind, (hosts, table)) in &mut self.routes {
            if changed.hosts.contains(kind) {
                let edit = table::Edit::Put(hosts.encode());
                changed.routes |= table.apply(self.revision, vec![edit]);
            }
        }
        self.publish(&changed);
    }

    fn all_keys(&self, catalog: &Catalog) -> BTreeSet<ServiceKey> {
        catalog.services.keys().chain(self.services.keys()).cloned().collect()
    }

    /// What is to be served for `key`: while sources are missing, one that is not in the catalog
    /// may exist, and what is served of it stays.
    fn intended(&self, catalog: &Catalog, key: &ServiceKey) -> Option<Arc<Service>> {
        let held = || self.services.get(key).filter(|_| !catalog.complete);
        catalog.services.get(key).or_else(held).cloned()
    }

    fn touch(&mut self, catalog: &Catalog, key: &ServiceKey, changed: &mut Changed) {
        let now = self.intended(catalog, key);
        let before = match &now {
            Some(now) => self.services.insert(key.clone(), Arc::clone(now)),
            None => self.services.remove(key),
        };
        let same = match (&before, &now) {
            (Some(before), Some(now)) => Arc::ptr_eq(before, now),
            (None, None) => true,
            _ => false,
        };
        if same {
            return;
        }
        let (before, now) = (before.as_deref(), now.as_deref());
        let names = |service: &Service| -> Vec<Arc<str>> {
            let of = targets(service, &self.zone);
            of.iter().map(|target| target.cluster_name().into()).collect()
        };
        let old = before.map(names).unwrap_or_default();
        self.touch_clusters(&old, now, changed);
        self.touch_endpoints(&old, now, catalog, changed);
        self.touch_listeners(before, now, changed);
        let hosts = now.map(|service| virtual_hosts(service, &self.zone)).unwrap_or_default();
        for (kind, (table, _)) in &mut self.routes {
            if table.set(key, hosts.clone()) {
                changed.hosts.insert(*kind);
            }
        }
    }

    fn touch_clusters(&mut self, old: &[Arc<str>], now: Option<&Service>, changed: &mut Changed) {
        for (kind, table) in &mut self.clusters {
            let new = now.map(|service| clusters_of(*kind, service, &self.zone));
            self.encoded.inc();
            let edits = edits(old.to_vec(), new.unwrap_or_default());
            changed.clusters |= table.apply(self.revision, edits);
        }
    }

    fn touch_endpoints(
        &mut self,
        old: &[Arc<str>],
        now: Option<&Service>,
        catalog: &Catalog,
        changed: &mut Changed,
    ) {
        for (view, table) in &mut self.endpoints {
            let far = distances(catalog, &view.region);
            let new = now.map(|service| endpoints_of(view, service, &self.zone, &far));
            self.encoded.inc();
            let edits = edits(old.to_vec(), new.unwrap_or_default());
            if table.apply(self.revision, edits) {
                changed.endpoints.insert(view.clone());
            }
        }
    }

    fn touch_listeners(
        &mut self,
        before: Option<&Service>,
        now: Option<&Service>,
        changed: &mut Changed,
    ) {
        let Some(table) = self.listeners.get_mut(&ListenerView::Grpc) else { return };
        let of = |service| grpc_listeners_of(service, &self.zone);
        let old = before.map(of).unwrap_or_default().into_iter().map(|r| r.name).collect();
        let edits = edits(old, now.map(of).unwrap_or_default());
        changed.listeners |= table.apply(self.revision, edits);
    }

    /// Distances are an input of assignments that no service's change tells of.
    fn follow_distances(&mut self, before: Option<&Catalog>, now: &Catalog, changed: &mut Changed) {
        for (view, table) in &mut self.endpoints {
            let far = distances(now, &view.region);
            if before.is_some_and(|before| distances(before, &view.region) == far) {
                continue;
            }
            let all = self.services.values();
            let new = all.flat_map(|service| endpoints_of(view, service, &self.zone, &far));
            let edits = new.map(table::Edit::Put).collect();
            if table.apply(self.revision, edits) {
                changed.endpoints.insert(view.clone());
            }
        }
    }

    /// Hands each class its new view, if it has one.
    fn publish(&mut self, changed: &Changed) {
        let classes: Vec<ClientClass> =
            self.classes.keys().filter(|class| changed.concerns(class)).cloned().collect();
        for class in classes {
            let view = Arc::new(self.view(&class));
            if let Some(views) = self.classes.get(&class) {
                views.send_replace(view);
            }
        }
    }

    /// The tables of `class`, made where they are missing.
    fn view(&mut self, class: &ClientClass) -> View {
        let tables = [
            self.clusters(class.kind),
            self.endpoints(&class.endpoints()),
            self.listeners(class.listener()),
            self.routes(class.kind),
        ];
        View { revision: self.revision, tables }
    }

    fn clusters(&mut self, kind: ClientKind) -> Table {
        let make = || {
            let all = self.services.values();
            Table::new(self.revision, all.flat_map(|s| clusters_of(kind, s, &self.zone)))
        };
        self.clusters.entry(kind).or_insert_with(make).clone()
    }

    fn endpoints(&mut self, view: &EndpointsView) -> Table {
        if let Some(table) = self.endpoints.get(view) {
            return table.clone();
        }
        let far = self.applied.as_deref().map(|c| distances(c, &view.region)).unwrap_or_default();
        let all = self.services.values();
        let resources = all.flat_map(|service| endpoints_of(view, service, &self.zone, &far));
        let table = Table::new(self.revision, resources);
        self.endpoints.insert(view.clone(), table.clone());
        table
    }

    fn listeners(&mut self, view: ListenerView) -> Table {
        let make = || match view {
            ListenerView::Envoy(at) => Table::new(self.revision, [outbound_listener(at)]),
            ListenerView::Grpc => {
                let all = self.services.values();
                Table::new(self.revision, all.flat_map(|s| grpc_listeners_of(s, &self.zone)))
            }
        };
        self.listeners.entry(view).or_insert_with(make).clone()
    }

    fn routes(&mut self, kind: ClientKind) -> Table {
        let make = || {
            let mut hosts = RouteTable::default();
            // gRPC has its routes inline.
            if kind == ClientKind::Grpc {
                return (hosts, Table::new(self.revision, []));
            }
            for (key, service) in &self.services {
                hosts.set(key, virtual_hosts(service, &self.zone));
            }
            let table = Table::new(self.revision, [hosts.encode()]);
            (hosts, table)
        };
        self.routes.entry(kind).or_insert_with(make).1.clone()
    }

    fn forget_unused(&mut self) {
        self.classes.retain(|_, views| views.receiver_count() > 0);
        let used = &self.classes;
        keep(&mut self.clusters, used.keys().map(|class| class.kind));
        keep(&mut self.routes, used.keys().map(|class| class.kind));
        keep(&mut self.endpoints, used.keys().map(ClientClass::endpoints));
        keep(&mut self.listeners, used.keys().map(ClientClass::listener));
    }
}

/// Which variants a catalog changed.
#[derive(Debug, Default)]
struct Changed {
    clusters: bool,
    endpoints: BTreeSet<EndpointsView>,
    /// gRPC's; an Envoy's listener never changes.
    listeners: bool,
    hosts: BTreeSet<ClientKind>,
    routes: bool,
}

impl Changed {
    /// Kinds' clusters change together, but for those two no finer answer is worth its keeping.
    fn concerns(&self, class: &ClientClass) -> bool {
        self.clusters
            || (self.routes && class.kind == ClientKind::Envoy)
            || (self.listeners && class.kind == ClientKind::Grpc)
            || self.endpoints.contains(&class.endpoints())
    }
}

fn keep<K: Eq + Hash, V>(all: &mut HashMap<K, V>, used: impl Iterator<Item = K>) {
    let used: std::collections::HashSet<K> = used.collect();
    all.retain(|key, _| used.contains(key));
}

fn distances(catalog: &Catalog, region: &RegionName) -> Distances {
    catalog.regions.get(region).map(|region| region.distances.clone()).unwrap_or_default()
}

fn clusters_of(kind: ClientKind, service: &Service, zone: &str) -> Vec<Resource> {
    targets(service, zone).iter().map(|target| cluster(kind, target)).collect()
}

fn endpoints_of(
    view: &EndpointsView,
    service: &Service,
    zone: &str,
    distances: &Distances,
) -> Vec<Resource> {
    targets(service, zone).iter().map(|target| endpoints(view, target, distances)).collect()
}

fn grpc_listeners_of(service: &Service, zone: &str) -> Vec<Resource> {
    targets(service, zone).iter().flat_map(grpc_listeners).collect()
}
