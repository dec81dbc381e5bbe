//! The catalog: the merged view of everything, as all that serves reads it.
//!
//! Owns: the immutable, generation-numbered [`Catalog`], and the [`Publisher`]/[`Snapshots`] pair
//! that hands it from the one task that builds it to all that serve from it. Promises: a snapshot
//! never changes; generations grow; [`Catalog::touched_since`] names every service that differs,
//! so that DNS and xDS work in proportion to what changed; equal sets of records give equal
//! [`Catalog::digest`]s in every process, whatever the order of events. [`merge`] holds the rules,
//! [`builder`] applies them to what changed. Leaves to others: where records come from
//! (`replica`), what is reachable and nearest (`tombolo-proxy`, `tombolo-dns`).

#[cfg(test)]
mod arbitrary;
pub mod builder;
pub mod merge;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use rpds::RedBlackTreeMapSync;
use serde::Serialize;
use tokio::sync::watch;

use crate::names::{ClusterId, NamespaceName, RegionName, ServiceKey};
use crate::record::{self, EndpointPort, IpFamily, Protocol, ServicePort, ServiceType};

/// One consistent view of the mesh.
#[derive(Debug, Clone)]
pub struct Catalog {
    /// Grows with every snapshot that this process builds; means nothing elsewhere.
    pub generation: u64,
    /// False while a source that must be known is not: what is not found here may exist, so DNS
    /// answers SERVFAIL, never NXDOMAIN.
    pub complete: bool,
    /// Merged services, exported by at least one cluster.
    pub services: RedBlackTreeMapSync<ServiceKey, Arc<Service>>,
    /// Which clusters have which namespaces.
    pub namespaces: RedBlackTreeMapSync<NamespaceName, Arc<BTreeSet<ClusterId>>>,
    /// What clusters say of themselves.
    pub clusters: RedBlackTreeMapSync<ClusterId, Arc<Cluster>>,
    /// What regions say of themselves.
    pub regions: RedBlackTreeMapSync<RegionName, Arc<record::Region>>,
    pub(crate) changes: Arc<Changes>,
    pub(crate) content: crate::digest::Digest,
}

/// A cluster and the region that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Its region.
    pub region: RegionName,
    /// What it says of itself.
    pub record: record::Cluster,
}

/// One service, merged from all its exports (KEP-1645).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub key: ServiceKey,
    /// Of the oldest export.
    pub service_type: ServiceType,
    /// Union of all exports' ports, the oldest export's first and in its order; names and
    /// (protocol, port) pairs are unique.
    pub ports: Vec<ServicePort>,
    /// Of the oldest export; empty for none.
    pub session_affinity: String,
    /// Of the oldest export.
    pub session_affinity_timeout: Option<u32>,
    /// Of the oldest export; empty for `Cluster`.
    pub internal_traffic_policy: String,
    /// Of the oldest export; empty for none.
    pub traffic_distribution: String,
    /// Families that all exports have in common, or the oldest export's if there are none.
    pub ip_families: Vec<IpFamily>,
    /// Of the oldest export, whole.
    pub labels: BTreeMap<String, String>,
    /// Of the oldest export, whole.
    pub annotations: BTreeMap<String, String>,
    /// What exporters disagree on, sorted by reason; it concerns every one of them.
    pub conflicts: Vec<Conflict>,
    /// Who exports it, oldest first.
    pub exports: Vec<ServiceExport>,
    /// All endpoints of all exporters, also those that are not ready, sorted and each address of
    /// a network once (networks may reuse addresses). Endpoints of clusters that do not export the
    /// service, or of which nothing else is known yet, are not here.
    pub endpoints: Vec<Endpoint>,
}

/// One cluster's export of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceExport {
    /// The exporting cluster.
    pub cluster: ClusterId,
    /// Its region.
    pub region: RegionName,
    /// Decides which export is the oldest; ties by cluster id.
    pub precedence: Timestamp,
    /// The ports that this cluster exposes: traffic for others must not go there.
    pub ports: Vec<ServicePort>,
}

/// A field that exporters of one service disagree on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Conflict {
    /// `PortConflict` and the other reasons of the MCS API.
    pub reason: &'static str,
    /// The exporter whose value is used.
    pub winner: ClusterId,
    /// Names field, winner, value used and how many disagree.
    pub message: String,
}

/// One address behind a merged service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// The cluster it runs in.
    pub cluster: ClusterId,
    /// That cluster's region.
    pub region: RegionName,
    /// That cluster's network; equal networks reach each other.
    pub network: Arc<str>,
    /// What the `EndpointSlice` says of it.
    pub endpoint: record::Endpoint,
    /// It was ready, is not, and its cluster's readiness is suspect: more likely the nodes are cut
    /// off from their API server than down, so it is used where nothing healthy is.
    pub degraded: bool,
    /// The ports it listens on.
    pub ports: Arc<[EndpointPort]>,
}

impl Endpoint {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.endpoint.address
    }

    /// The number on which it serves the service's port of this name and protocol.
    #[must_use]
    pub fn port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        let serves = |port: &&EndpointPort| port.name == name && port.protocol == protocol;
        self.ports.iter().find(serves).map(|port| port.port)
    }
}

/// The services that recent generations touched.
#[derive(Debug, Clone, Default)]
pub(crate) struct Changes {
    /// Ascending by generation; the oldest first. Bounded, see `builder`.
    pub(crate) recent: Vec<(u64, Arc<BTreeSet<ServiceKey>>)>,
    /// Changes up to and including this generation are no longer listed.
    pub(crate) forgotten: u64,
}

impl Catalog {
    /// A view of nothing, which knows that it knows nothing.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            generation: 0,
            complete: false,
            services: RedBlackTreeMapSync::new_sync(),
            namespaces: RedBlackTreeMapSync::new_sync(),
            clusters: RedBlackTreeMapSync::new_sync(),
            regions: RedBlackTreeMapSync::new_sync(),
            changes: Arc::default(),
            content: crate::digest::Digest::default(),
        }
    }

    /// The services that may differ from how they were at `generation`: changed, new or gone.
    /// `None` when that is too long ago to tell: then all may.
    #[must_use]
    pub fn touched_since(&self, generation: u64) -> Option<BTreeSet<ServiceKey>> {
        if generation < self.changes.forgotten {
            return None;
        }
        let newer = self.changes.recent.iter().filter(|(at, _)| *at > generation);
        Some(newer.flat_map(|(_, touched)| touched.iter().cloned()).collect())
    }

    /// What this view holds, in 64 hexadecimal digits: equal for equal views. Covers merged
    /// services with their endpoints and which cluster has which namespace, and nothing that
    /// differs between processes (generation, ages, when clusters joined).
    #[must_use]
    pub fn digest(&self) -> String {
        self.content.to_string()
    }
}

/// The writing end of a catalog; not `Clone`, since there is one writer.
#[derive(Debug)]
pub struct Publisher {
    tx: watch::Sender<Option<Arc<Catalog>>>,
}

/// The reading end: always the newest snapshot, or `None` while nothing may be served yet.
#[derive(Debug, Clone)]
pub struct Snapshots {
    rx: watch::Receiver<Option<Arc<Catalog>>>,
}

/// A connected pair, with nothing published yet.
#[must_use]
pub fn channel() -> (Publisher, Snapshots) {
    let (tx, rx) = watch::channel(None);
    (Publisher { tx }, Snapshots { rx })
}

impl Publisher {
    /// Makes `next` the newest snapshot; one that is not newer is dropped. Returns whether it was
    /// taken.
    #[expect(clippy::must_use_candidate, reason = "a snapshot that came too late needs no care")]
    pub fn publish(&self, next: Arc<Catalog>) -> bool {
        self.tx.send_if_modified(|current| {
            let newer = current.as_ref().is_none_or(|held| next.generation > held.generation);
            if newer {
                *current = Some(next);
            }
            newer
        })
    }
}

impl Snapshots {
    /// The newest snapshot.
    #[must_use]
    pub fn current(&self) -> Option<Arc<Catalog>> {
        self.rx.borrow().clone()
    }

    /// Waits for a snapshot that this reader has not been given yet, and gives it. `None` once the
    /// writer is gone.
    ///
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<Arc<Catalog>> {
        loop {
            self.rx.changed().await.ok()?;
            if let Some(catalog) = self.rx.borrow_and_update().clone() {
                return Some(catalog);
            }
        }
    }

    /// Waits until a snapshot satisfies `wanted`, and gives it. `None` once the writer is gone.
    pub async fn wait_for(&mut self, wanted: impl Fn(&Catalog) -> bool) -> Option<Arc<Catalog>> {
        let seen = self.rx.wait_for(|held| held.as_deref().is_some_and(&wanted)).await.ok()?;
        seen.clone()
    }
}
