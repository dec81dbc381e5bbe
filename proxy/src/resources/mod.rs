//! Envoy's messages, made from a catalog by pure functions.
//!
//! Owns: every message that a client is sent, its name and its version. Promises: equal inputs give
//! equal bytes in every process and in whatever order the inputs arrived (a resend of
//! equal bytes costs a proxy nothing, of other bytes it drains connections), so no message here has
//! a map of more than one entry; and a Cluster carries nothing that changes with endpoints.
//! Leaves to others: when to encode (`cache`), when to send (`streams`). Each function takes
//! the projection of [`crate::ClientClass`] that it may read and nothing else.

mod cluster;
mod endpoints;
mod listener;
mod parts;
mod route;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use sha2::{Digest, Sha256};

pub(crate) use cluster::cluster;
pub(crate) use endpoints::endpoints;
pub(crate) use listener::{grpc_listeners, outbound_listener};
pub(crate) use route::{RouteTable, virtual_hosts};

/// Name of the listener of an Envoy, and of the routes that it asks for.
pub(crate) const OUTBOUND: &str = "outbound";

/// The types of resources that are served, in the order in which they are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Type {
    Cluster,
    Endpoints,
    Listener,
    Route,
}

impl Type {
    pub(crate) const ALL: [Self; 4] = [Self::Cluster, Self::Endpoints, Self::Listener, Self::Route];

    pub(crate) fn url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        }
    }

    /// As people and metrics call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Endpoints => "endpoints",
            Self::Listener => "listener",
            Self::Route => "route",
        }
    }

    pub(crate) fn of_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.url() == url)
    }

    /// Whether a state-of-the-world response must hold everything, absence being deletion;
    /// the same types have the legacy wildcard.
    pub(crate) fn is_whole(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }
}

/// Names the content of a resource, or of a set of them: equal bytes give equal versions in every
/// process, so that a proxy which changes servers keeps what it has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Version(u128);

impl Version {
    fn of(kind: Type, name: &str, body: &[u8]) -> Self {
        let mut hash = Sha256::new();
        hash.update(kind.url());
        hash.update(name);
        hash.update([0]);
        hash.update(body);
        let mut half = [0; 16];
        half.copy_from_slice(&hash.finalize()[..16]);
        Self(u128::from_be_bytes(half))
    }

    /// Reads what `Display` writes; anything else is a version of somebody else.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        u128::from_str_radix(text, 16).ok().map(Self)
    }
}

/// The version of a set is the sum of its members', which include their names.
impl std::iter::Sum for Version {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        Self(all.fold(0, |sum, version| sum.wrapping_add(version.0)))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An encoded resource, shared by all that are sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resource {
    pub(crate) name: Arc<str>,
    pub(crate) version: Version,
    pub(crate) body: Bytes,
}

impl Resource {
    pub(crate) fn new(kind: Type, name: String, message: &impl Message) -> Self {
        let body = Bytes::from(message.encode_to_vec());
        Self { version: Version::of(kind, &name, &body), name: name.into(), body }
    }
}
