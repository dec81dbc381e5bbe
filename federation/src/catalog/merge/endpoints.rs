//! Each address once, whoever and however many name it.
//!
//! An endpoint is an address *within a network*: networks may reuse each other's ranges, so the
//! same address in two networks is two endpoints. Within one network only one thing can answer at
//! an address; if two clusters claim it, the cluster of the older export keeps it.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::super::Endpoint;
use super::Exporter;
use crate::record::{self, EndpointPort};

/// Of all exporters, oldest first, sorted.
pub(super) fn merge(exporters: &[Exporter<'_>]) -> Vec<Endpoint> {
    let mut taken: HashSet<(&str, IpAddr)> = HashSet::new();
    let mut merged = Vec::new();
    for exporter in exporters {
        let Some(network) = exporter.source.network else { continue };
        let claims = claims(exporter).into_values();
        let kept = claims.filter(|claim| taken.insert((network, claim.best.address)));
        merged.extend(kept.map(|claim| claim.into_endpoint(exporter, network)));
    }
    merged.sort();
    merged
}

/// One address in the slices of one cluster.
#[expect(clippy::struct_excessive_bools, reason = "mirrors record::Endpoint")]
struct Claim<'a> {
    /// Gives everything but the conditions: taken whole, since mixing would give one pod the
    /// identity of another that had its address before.
    best: &'a record::Endpoint,
    ready: bool,
    serving: bool,
    terminating: bool,
    was_ready: bool,
    ports: Arc<[EndpointPort]>,
}

fn claims<'a>(exporter: &Exporter<'a>) -> BTreeMap<IpAddr, Claim<'a>> {
    let mut claims: BTreeMap<IpAddr, Claim<'a>> = BTreeMap::new();
    for slice in &exporter.source.slices {
        let ports = sorted(slice.ports.iter().cloned());
        for endpoint in &slice.endpoints {
            claims
                .entry(endpoint.address)
                .and_modify(|claim| claim.join(endpoint, &ports))
                .or_insert_with(|| Claim::new(endpoint, &ports));
        }
    }
    claims
}

/// Without the order of the slice, which Kubernetes does not keep.
fn sorted(ports: impl Iterator<Item = EndpointPort>) -> Arc<[EndpointPort]> {
    let mut ports: Vec<_> = ports.collect();
    ports.sort();
    ports.dedup();
    ports.into()
}

impl<'a> Claim<'a> {
    fn new(endpoint: &'a record::Endpoint, ports: &Arc<[EndpointPort]>) -> Self {
        Self {
            best: endpoint,
            ready: endpoint.ready,
            serving: endpoint.serving,
            terminating: endpoint.terminating,
            was_ready: endpoint.was_ready,
            ports: Arc::clone(ports),
        }
    }

    /// Takes in another mention of the address; the order of mentions leaves no trace.
    fn join(&mut self, other: &'a record::Endpoint, ports: &Arc<[EndpointPort]>) {
        if worth(other) < worth(self.best) {
            self.best = other;
        }
        self.ready |= other.ready;
        self.serving |= other.serving;
        self.terminating &= other.terminating;
        self.was_ready |= other.was_ready;
        if self.ports != *ports {
            self.ports = sorted(self.ports.iter().chain(ports.iter()).cloned());
        }
    }

    fn into_endpoint(self, exporter: &Exporter<'_>, network: &Arc<str>) -> Endpoint {
        let fell = self.was_ready && !self.ready && !self.terminating;
        Endpoint {
            degraded: exporter.source.suspect && fell,
            cluster: exporter.source.cluster.clone(),
            region: exporter.source.region.clone(),
            network: Arc::clone(network),
            endpoint: record::Endpoint {
                ready: self.ready,
                serving: self.serving,
                terminating: self.terminating,
                was_ready: self.was_ready,
                ..self.best.clone()
            },
            ports: self.ports,
        }
    }
}

/// The liveliest mention comes first; what is equal in that is told apart by anything at all.
fn worth(endpoint: &record::Endpoint) -> impl Ord {
    let conditions =
        (!endpoint.ready, !endpoint.serving, endpoint.terminating, !endpoint.was_ready);
    (conditions, endpoint)
}
