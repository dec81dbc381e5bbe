//! From what clusters say of one service to the service that all of them see.
//!
//! Owns: the rules of KEP-1645 for exporters of one service, one pure function. Promises: the same
//! set of sources gives the same [`Service`], conflicts and messages included, whatever their
//! order; a cluster without an export contributes nothing. Leaves to others: collecting the sources
//! (`builder`), computing precedence (whoever records the export), reachability.
//!
//! A winner that stays although an older export has turned up (which the KEP permits) was turned
//! down: it depends on history, and regions that saw other histories would differ. For the same
//! reason a change between `ClusterSetIP` and Headless follows the oldest export here at once;
//! whoever acts on a type (a derived Service must be made anew) sees `TypeConflict` as long as
//! exporters disagree, and holds back until they agree or an operator decides.

mod contest;
mod endpoints;
mod ports;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use self::contest::Contest;
use super::{Service, ServiceExport};
use crate::names::{ClusterId, RegionName, ServiceKey};
use crate::record::{Endpoints, Export};

/// All that one cluster says of one service, and what must be known of the cluster.
#[derive(Debug, Clone)]
pub struct Source<'a> {
    /// The cluster.
    pub cluster: &'a ClusterId,
    /// Its region.
    pub region: &'a RegionName,
    /// Its network; `None` while the cluster's own record is not there. Nobody can tell then who
    /// reaches its endpoints, so they are left out, while its export counts.
    pub network: Option<&'a Arc<str>>,
    /// Whether its readiness is suspect: then endpoints that have been ready and are not are
    /// degraded.
    pub suspect: bool,
    /// Its export of the service, if it exports it.
    pub export: Option<&'a Export>,
    /// Its endpoints of the service, one per `EndpointSlice`.
    pub slices: Vec<&'a Endpoints>,
}

/// A source that exports the service.
#[derive(Clone, Copy)]
struct Exporter<'a> {
    source: &'a Source<'a>,
    export: &'a Export,
}

/// Merges what `sources`, at most one per cluster and region, say of the service `key`; `None`
/// if none of them exports it.
#[must_use]
pub fn merge(key: &ServiceKey, sources: &[Source<'_>]) -> Option<Service> {
    let exporters = oldest_first(sources);
    let mut contest = Contest::among(&exporters)?;
    let ports = contest.ports();
    let ip_families = contest.ip_families();
    let service_type = contest.service_type();
    let session_affinity = contest.session_affinity();
    let session_affinity_timeout = contest.session_affinity_timeout();
    let internal_traffic_policy = contest.internal_traffic_policy();
    let traffic_distribution = contest.traffic_distribution();
    let labels = contest.labels();
    let annotations = contest.annotations();
    Some(Service {
        key: key.clone(),
        service_type,
        ports,
        session_affinity,
        session_affinity_timeout,
        internal_traffic_policy,
        traffic_distribution,
        ip_families,
        labels,
        annotations,
        conflicts: contest.into_conflicts(),
        endpoints: endpoints::merge(&exporters),
        exports: exporters.iter().copied().map(Exporter::to_service_export).collect(),
    })
}

/// By precedence, oldest first, ties by cluster id.
fn oldest_first<'a>(sources: &'a [Source<'a>]) -> Vec<Exporter<'a>> {
    let exporting = |source: &'a Source<'a>| Some(Exporter { source, export: source.export? });
    // Ids of regions `us` and `us-west1` can be equal (`us-west1-a`). That is a mistake in naming
    // the regions; the first region by name has the id, so that all processes still agree.
    let mut by_cluster: BTreeMap<&ClusterId, Exporter<'a>> = BTreeMap::new();
    for exporter in sources.iter().filter_map(exporting) {
        let held = by_cluster.entry(exporter.source.cluster).or_insert(exporter);
        if exporter.source.region < held.source.region {
            *held = exporter;
        }
    }
    let mut exporters: Vec<_> = by_cluster.into_values().collect();
    exporters.sort_by_key(|exporter| (exporter.export.precedence, exporter.source.cluster));
    exporters
}

impl Exporter<'_> {
    fn to_service_export(self) -> ServiceExport {
        ServiceExport {
            cluster: self.source.cluster.clone(),
            region: self.source.region.clone(),
            precedence: self.export.precedence,
            ports: self.export.ports.clone(),
        }
    }
}
