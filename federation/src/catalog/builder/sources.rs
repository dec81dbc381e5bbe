//! The records that a catalog is made of, by what they are about, and what each change touches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::super::Cluster;
use super::super::merge::Source;
use crate::key::{Key, Kind};
use crate::names::{ClusterId, NamespaceName, ObjectName, Owner, RegionName, ServiceKey};
use crate::record::{Body, Endpoints, Export, Record, Region};

/// Parts of the catalog that may have changed.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pub(super) services: BTreeSet<ServiceKey>,
    pub(super) namespaces: BTreeSet<NamespaceName>,
    pub(super) clusters: BTreeSet<ClusterId>,
    pub(super) regions: BTreeSet<RegionName>,
}

#[derive(Debug, Default)]
pub(super) struct Sources {
    services: BTreeMap<ServiceKey, BTreeMap<Owner, Said>>,
    /// The services that a cluster says anything of: those are touched when its network changes, or
    /// whether its readiness is suspect.
    by_cluster: BTreeMap<Owner, BTreeSet<ServiceKey>>,
    namespaces: BTreeMap<NamespaceName, BTreeSet<Owner>>,
    /// Ids of regions `us` and `us-west1` can be equal, hence the two levels. The first region by
    /// name has the id then, as in `merge`.
    clusters: BTreeMap<ClusterId, BTreeMap<RegionName, Known>>,
    regions: BTreeMap<RegionName, Arc<Region>>,
}

/// What one cluster says of one service.
#[derive(Debug, Default)]
struct Said {
    export: Option<Arc<Record>>,
    slices: BTreeMap<ObjectName, Arc<Record>>,
}

/// What one cluster says of itself.
#[derive(Debug)]
struct Known {
    cluster: Arc<Cluster>,
    network: Arc<str>,
}

/// What merging services takes from a cluster's own record.
type Traits = (Arc<str>, bool);

impl Sources {
    /// Takes in one record, or its end, and notes what that touches.
    pub(super) fn apply(&mut self, key: &Key, record: Option<Arc<Record>>, touched: &mut Touched) {
        if record.as_ref().is_some_and(|record| record.body.kind() != key.kind) {
            return;
        }
        match key.kind {
            Kind::Region => self.apply_region(&key.owner.region, record.as_deref(), touched),
            Kind::Cluster => self.apply_cluster(&key.owner, record.as_deref(), touched),
            Kind::Namespace => self.apply_namespace(key, record.is_some(), touched),
            Kind::Export | Kind::Endpoints => self.apply_service(key, record, touched),
            // Imports concern their own cluster, policies and decisions are not acted upon yet,
            // and a beacon says how old the rest is, not what it is.
            Kind::Import | Kind::Policy | Kind::Beacon | Kind::Decision => {}
        }
    }

    fn apply_region(&mut self, name: &RegionName, record: Option<&Record>, touched: &mut Touched) {
        match record.map(|record| &record.body) {
            Some(Body::Region(region)) => {
                self.regions.insert(name.clone(), Arc::new(region.clone()));
            }
            _ => _ = self.regions.remove(name),
        }
        touched.regions.insert(name.clone());
    }

    fn apply_cluster(&mut self, owner: &Owner, record: Option<&Record>, touched: &mut Touched) {
        let Some(id) = &owner.cluster else { return };
        let next = record.and_then(|record| Known::read(&owner.region, &record.body));
        if self.known(owner).map(Known::traits) != next.as_ref().map(Known::traits) {
            touched.services.extend(self.by_cluster.get(owner).into_iter().flatten().cloned());
        }
        let regions = self.clusters.entry(id.clone()).or_default();
        match next {
            Some(next) => _ = regions.insert(owner.region.clone(), next),
            None => _ = regions.remove(&owner.region),
        }
        if regions.is_empty() {
            self.clusters.remove(id);
        }
        touched.clusters.insert(id.clone());
    }

    fn apply_namespace(&mut self, key: &Key, exists: bool, touched: &mut Touched) {
        let Ok(name) = key.name.as_str().parse::<NamespaceName>() else { return };
        let owners = self.namespaces.entry(name.clone()).or_default();
        if exists {
            owners.insert(key.owner.clone());
        } else {
            owners.remove(&key.owner);
        }
        if owners.is_empty() {
            self.namespaces.remove(&name);
        }
        touched.namespaces.insert(name);
    }

    fn apply_service(&mut self, key: &Key, record: Option<Arc<Record>>, touched: &mut Touched) {
        let (Some(service), Some(_)) = (key.service(), &key.owner.cluster) else { return };
        if key.part.is_some() != (key.kind == Kind::Endpoints) {
            return;
        }
        let by_owner = self.services.entry(service.clone()).or_default();
        let said = by_owner.entry(key.owner.clone()).or_default();
        let changed = said.replace(key, record);
        let silent = said.export.is_none() && said.slices.is_empty();
        if silent {
            by_owner.remove(&key.owner);
        }
        if by_owner.is_empty() {
            self.services.remove(&service);
        }
        self.index(&key.owner, &service, !silent);
        if changed {
            touched.services.insert(service);
        }
    }

    fn index(&mut self, owner: &Owner, service: &ServiceKey, speaks: bool) {
        let services = self.by_cluster.entry(owner.clone()).or_default();
        if speaks {
            if !services.contains(service) {
                services.insert(service.clone());
            }
        } else {
            services.remove(service);
        }
        if services.is_empty() {
            self.by_cluster.remove(owner);
        }
    }

    /// All that is said of a service, in the order of owners.
    pub(super) fn of_service(&self, key: &ServiceKey) -> Vec<Source<'_>> {
        let said = self.services.get(key).into_iter().flatten();
        said.filter_map(|(owner, said)| self.source(owner, said)).collect()
    }

    fn source<'a>(&'a self, owner: &'a Owner, said: &'a Said) -> Option<Source<'a>> {
        Some(Source {
            cluster: owner.cluster.as_ref()?,
            region: &owner.region,
            network: self.known(owner).map(|known| &known.network),
            suspect: self.known(owner).is_some_and(Known::suspect),
            export: said.export(),
            slices: said.slices().collect(),
        })
    }

    /// The clusters that have the namespace, if any has.
    pub(super) fn clusters_with(&self, name: &NamespaceName) -> Option<BTreeSet<ClusterId>> {
        let owners = self.namespaces.get(name)?;
        Some(owners.iter().filter_map(|owner| owner.cluster.clone()).collect())
    }

    pub(super) fn cluster(&self, id: &ClusterId) -> Option<Arc<Cluster>> {
        let (_, known) = self.clusters.get(id)?.first_key_value()?;
        Some(Arc::clone(&known.cluster))
    }

    pub(super) fn region(&self, name: &RegionName) -> Option<Arc<Region>> {
        self.regions.get(name).cloned()
    }

    fn known(&self, owner: &Owner) -> Option<&Known> {
        self.clusters.get(owner.cluster.as_ref()?)?.get(&owner.region)
    }
}

impl Known {
    fn read(region: &RegionName, body: &Body) -> Option<Self> {
        let Body::Cluster(record) = body else { return None };
        let network = record.network.as_str().into();
        let cluster = Cluster { region: region.clone(), record: record.clone() };
        Some(Self { cluster: Arc::new(cluster), network })
    }

    fn suspect(&self) -> bool {
        self.cluster.record.suspect.is_some()
    }

    fn traits(&self) -> Traits {
        (Arc::clone(&self.network), self.suspect())
    }
}

impl Said {
    /// Holds `next` in the place of what `key` held before; tells whether it says anything else.
    /// An owner that starts anew says the same things again.
    fn replace(&mut self, key: &Key, next: Option<Arc<Record>>) -> bool {
        let held = match &key.part {
            None => self.export.as_ref(),
            Some(part) => self.slices.get(part),
        };
        let changed = held.map(body) != next.as_ref().map(body);
        match (&key.part, next) {
            (None, next) => self.export = next,
            (Some(part), Some(next)) => _ = self.slices.insert(part.clone(), next),
            (Some(part), None) => _ = self.slices.remove(part),
        }
        changed
    }

    fn export(&self) -> Option<&Export> {
        match &self.export.as_ref()?.body {
            Body::Export(export) => Some(export),
            _ => None,
        }
    }

    fn slices(&self) -> impl Iterator<Item = &Endpoints> {
        self.slices.values().filter_map(|record| match &record.body {
            Body::Endpoints(slice) => Some(slice),
            _ => None,
        })
    }
}

fn body(record: &Arc<Record>) -> &Body {
    &record.body
}
