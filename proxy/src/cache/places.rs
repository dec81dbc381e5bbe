//! What clusters say of where their clients are.

use rpds::RedBlackTreeMapSync;
use tombolo_federation::catalog::Catalog;
use tombolo_federation::names::ClusterId;

use std::collections::BTreeSet;
use std::sync::Arc;

/// By cluster. Of a catalog it keeps no more than this, so that streams can hold on to it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places {
    by_cluster: RedBlackTreeMapSync<ClusterId, Place>,
}

/// As a cluster's record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) network: Arc<str>,
    /// None means that it does not know.
    pub(crate) zones: Arc<BTreeSet<String>>,
}

impl Places {
    pub(crate) fn get(&self, cluster: &ClusterId) -> Option<&Place> {
        self.by_cluster.get(cluster)
    }

    /// Takes over what `catalog` says; an incomplete one withdraws nothing. Returns whether a place
    /// is new or another one: that a cluster's is gone moves nobody who is there.
    pub(super) fn follow(&mut self, catalog: &Catalog) -> bool {
        if catalog.complete {
            let gone = self.by_cluster.keys().filter(|id| !catalog.clusters.contains_key(*id));
            for id in gone.cloned().collect::<Vec<_>>() {
                self.by_cluster.remove_mut(&id);
            }
        }
        let mut moved = false;
        for (id, cluster) in &catalog.clusters {
            let record = &cluster.record;
            let same =
                |held: &Place| *held.network == *record.network && *held.zones == record.zones;
            if !self.get(id).is_some_and(same) {
                let zones = Arc::new(record.zones.clone());
                let place = Place { network: record.network.as_str().into(), zones };
                self.by_cluster.insert_mut(id.clone(), place);
                moved = true;
            }
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::{catalog, cluster};

    #[test]
    fn only_places_that_are_new_or_others_are_news() {
        let mut places = Places::default();
        assert!(places.follow(&catalog(1, Vec::new())));
        assert!(!places.follow(&catalog(2, Vec::new())));
        let mut other = catalog(3, Vec::new());
        let mut moved = (*other.clusters[&cluster("us-c")]).clone();
        moved.record.software_version = "2".into();
        other.clusters.insert_mut(cluster("us-c"), Arc::new(moved.clone()));
        assert!(!places.follow(&other));
        moved.record.network = "vpc".into();
        other.clusters.insert_mut(cluster("us-c"), Arc::new(moved));
        assert!(places.follow(&other));
        assert_eq!(&*places.get(&cluster("us-c")).unwrap().network, "vpc");
    }

    #[test]
    fn an_incomplete_catalog_withdraws_nothing() {
        let mut places = Places::default();
        places.follow(&catalog(1, Vec::new()));
        let mut less = catalog(2, Vec::new());
        less.clusters.remove_mut(&cluster("us-c"));
        less.complete = false;
        assert!(!places.follow(&less));
        assert!(places.get(&cluster("us-c")).is_some());
        less.complete = true;
        assert!(!places.follow(&less));
        assert!(places.get(&cluster("us-c")).is_none());
    }
}
