//! Who a client is, as far as that decides what it is sent.
//!
//! Owns [`ClientClass`], the only thing besides the catalog that an encoder sees, and its
//! projections: each type of resource takes just the fields that it reads, so that clients which
//! differ elsewhere share one encoding, and no input can be forgotten in a cache key.
//! Promises: region, cluster and network come from an authenticated [`ProxyIdentity`], never from
//! the node message, which may only refine the zone. Leaves to others: authentication.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;
use tombolo_federation::names::{ClusterId, NamespaceName, RegionName};

/// What a client's certificate proves. Whoever terminates TLS puts it into the request's
/// extensions.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ProxyIdentity {
    /// The cluster that the proxy runs in.
    pub cluster: ClusterId,
    /// That cluster's region.
    pub region: RegionName,
    /// The namespace of its workload.
    pub namespace: NamespaceName,
}

/// Where a client is, for choosing what is near.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientLocality {
    /// Its region.
    pub region: RegionName,
    /// Its zone, if known.
    pub zone: Option<Arc<str>>,
    /// Its cluster, if it is in one.
    pub cluster: Option<ClusterId>,
    /// Its network: it reaches endpoints of an equal one.
    pub network: Arc<str>,
}

/// Which implementation of xDS a client has: both want other bytes for the same intent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientKind {
    /// Envoy, with wildcard LDS and CDS.
    Envoy,
    /// A gRPC library, which names what it wants.
    Grpc,
}

impl ClientKind {
    /// gRPC libraries say who they are in `user_agent_name` ("gRPC Go", "gRPC C-core Linux",
    /// "grpc-java"); all else is taken for Envoy, whose name others may change.
    #[must_use]
    pub fn of_user_agent(name: &str) -> Self {
        if name.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("grpc")) {
            Self::Grpc
        } else {
            Self::Envoy
        }
    }
}

/// Everything about a client that its resources may depend on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientClass {
    /// Which implementation it is.
    pub kind: ClientKind,
    /// Where it is.
    pub locality: ClientLocality,
    /// Where an Envoy listens for its workload's requests.
    pub listener: SocketAddr,
}

/// What endpoint assignments read of a class: not the cluster, since the same zone in two clusters
/// of one network is one tier.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointsView {
    /// Which implementation it is.
    pub kind: ClientKind,
    /// Its region.
    pub region: RegionName,
    /// Its zone, if known.
    pub zone: Option<Arc<str>>,
    /// Its network.
    pub network: Arc<str>,
}

/// What listeners read of a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ListenerView {
    /// An Envoy that listens here.
    Envoy(SocketAddr),
    /// gRPC: one API listener per target.
    Grpc,
}

impl ClientClass {
    /// The part that endpoint assignments depend on.
    #[must_use]
    pub fn endpoints(&self) -> EndpointsView {
        EndpointsView {
            kind: self.kind,
            region: self.locality.region.clone(),
            zone: self.locality.zone.clone(),
            network: Arc::clone(&self.locality.network),
        }
    }

    /// The part that listeners depend on.
    #[must_use]
    pub fn listener(&self) -> ListenerView {
        match self.kind {
            ClientKind::Envoy => ListenerView::Envoy(self.listener),
            ClientKind::Grpc => ListenerView::Grpc,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_by_user_agent() {
        for grpc in ["gRPC Go", "gRPC C-core Linux", "grpc-java", "grpc-node"] {
            assert_eq!(ClientKind::of_user_agent(grpc), ClientKind::Grpc, "{grpc}");
        }
        for envoy in ["envoy", "", "ünknown", "grp"] {
            assert_eq!(ClientKind::of_user_agent(envoy), ClientKind::Envoy, "{envoy}");
        }
    }
}
