//! From a stream of changed records to snapshots of the catalog.
//!
//! Owns: the records that the catalog is made of, and which of its parts a change touches.
//! Promises: a snapshot depends on the set of records held, not on the order or grouping in which
//! they came; work is in proportion to what changed (a service is merged anew only if a record of
//! it, or the network or suspicion of a cluster that speaks of it, changed); what is merged anew and comes out
//! equal counts as unchanged, so that nobody is woken by it; snapshots share all that did not
//! change. Leaves to others: the rules (`merge`), what records say and whether they may (`record`
//! and ingest), when everything is there ([`Builder::set_complete`]), publishing.
//!
//! Endpoints of a cluster whose own record is not there have no network, so nobody can tell who
//! reaches them: they stay out of the catalog until it is there. The export counts meanwhile.
//!
//! A lock and shared ownership were turned down: one task owns a builder. Merging is synchronous,
//! the first snapshot of a large mesh merges everything.

mod changes;
mod content;
mod sources;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use rpds::RedBlackTreeMapSync;

use self::sources::{Sources, Touched};
use super::Catalog;
use super::merge::merge;
use crate::key::Key;
use crate::names::{NamespaceName, ServiceKey};
use crate::record::Record;

/// Builds catalogs; see the module.
#[derive(Debug)]
pub struct Builder {
    sources: Sources,
    touched: Touched,
    /// The last snapshot. The next one is made by changing it: its maps share structure with
    /// those that were given out, which do not notice.
    catalog: Catalog,
    complete: bool,
    merges: u64,
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

impl Builder {
    /// Holds nothing, and is not complete.
    #[must_use]
    pub fn new() -> Self {
        Self {
            sources: Sources::default(),
            touched: Touched::default(),
            catalog: Catalog::empty(),
            complete: false,
            merges: 0,
        }
    }

    /// Takes in records that are new or changed, or `None` for those that are gone. Kinds that
    /// the catalog is not made of are ignored, and so is a record whose body is not of its key's
    /// kind: what was held under that key stays.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = (Key, Option<Arc<Record>>)>) {
        for (key, record) in changes {
            self.sources.apply(&key, record, &mut self.touched);
        }
    }

    /// Whether everything that must be known is held; see [`Catalog::complete`].
    pub fn set_complete(&mut self, complete: bool) {
        self.complete = complete;
    }

    /// The catalog as it now is, or `None` if that is how it was at the last call.
    #[must_use]
    pub fn snapshot(&mut self) -> Option<Arc<Catalog>> {
        let Touched { services, namespaces, clusters, regions } = std::mem::take(&mut self.touched);
        let mut changed = self.catalog.complete != self.complete;
        self.catalog.complete = self.complete;
        for region in &regions {
            changed |= put(&mut self.catalog.regions, region, self.sources.region(region));
        }
        for cluster in &clusters {
            changed |= put(&mut self.catalog.clusters, cluster, self.sources.cluster(cluster));
        }
        for namespace in &namespaces {
            changed |= self.renew_namespace(namespace);
        }
        let renewed: Vec<_> =
            services.into_iter().filter(|service| self.renew_service(service)).collect();
        if !changed && renewed.is_empty() {
            return None;
        }
        self.catalog.generation += 1;
        Arc::make_mut(&mut self.catalog.changes).push(self.catalog.generation, renewed);
        Some(Arc::new(self.catalog.clone()))
    }

    /// How many services were merged so far, those that came out equal included.
    #[must_use]
    pub fn merges(&self) -> u64 {
        self.merges
    }

    fn renew_service(&mut self, key: &ServiceKey) -> bool {
        self.merges += 1;
        let merged = merge(key, &self.sources.of_service(key)).map(Arc::new);
        let held = self.catalog.services.get(key).cloned();
        let changed = put(&mut self.catalog.services, key, merged.clone());
        if changed {
            self.renew_content(&content::service_name(key), held, merged, content::service);
        }
        changed
    }

    fn renew_namespace(&mut self, name: &NamespaceName) -> bool {
        let clusters = self.sources.clusters_with(name).map(Arc::new);
        let held = self.catalog.namespaces.get(name).cloned();
        let changed = put(&mut self.catalog.namespaces, name, clusters.clone());
        if changed {
            self.renew_content(&content::namespace_name(name), held, clusters, content::namespace);
        }
        changed
    }

    fn renew_content<V>(
        &mut self,
        name: &[u8],
        held: Option<Arc<V>>,
        next: Option<Arc<V>>,
        bytes: impl Fn(&V) -> Vec<u8>,
    ) {
        if let Some(held) = held {
            self.catalog.content.remove(name, &bytes(&held));
        }
        if let Some(next) = next {
            self.catalog.content.add(name, &bytes(&next));
        }
    }
}

/// Makes `next` the value at `key`; tells whether it was another. An equal one leaves the old in
/// place, so that readers may compare pointers.
fn put<K: Ord + Clone, V: PartialEq>(
    map: &mut RedBlackTreeMapSync<K, Arc<V>>,
    key: &K,
    next: Option<Arc<V>>,
) -> bool {
    if map.get(key) == next.as_ref() {
        return false;
    }
    match next {
        Some(next) => map.insert_mut(key.clone(), next),
        None => _ = map.remove_mut(key),
    }
    true
}
