//! What records say.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::Serialize;

use crate::key::Kind;
use crate::names::{ClusterId, NamespaceName, Owner, RegionName, ServiceKey};

/// The content of a record, by the kind of its key. Kinds that this version stores and passes on
/// without reading them (import, policy) have no variant.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// A region's description of itself.
    Region(Region),
    /// A cluster's description of itself.
    Cluster(Cluster),
    /// A namespace exists.
    Namespace(Namespace),
    /// A service is exported.
    Export(Export),
    /// Endpoints of an exported service.
    Endpoints(Endpoints),
    /// A sign of life.
    Beacon(Beacon),
    /// An operator's word.
    Decision(Decision),
}

impl Body {
    /// How many endpoints it names.
    #[must_use]
    pub fn endpoints(&self) -> usize {
        match self {
            Self::Endpoints(endpoints) => endpoints.endpoints.len(),
            _ => 0,
        }
    }

    /// The kind of key that this body belongs under.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Region(_) => Kind::Region,
            Self::Cluster(_) => Kind::Cluster,
            Self::Namespace(_) => Kind::Namespace,
            Self::Export(_) => Kind::Export,
            Self::Endpoints(_) => Kind::Endpoints,
            Self::Beacon(_) => Kind::Beacon,
            Self::Decision(_) => Kind::Decision,
        }
    }
}

/// A region's description of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Region {
    /// `host:port` of its federation API.
    pub addresses: Vec<String>,
    /// Declared distance to other regions; smaller is nearer, what is missing is farthest.
    pub distances: BTreeMap<RegionName, u32>,
    /// The highest schema level that all its replicas read.
    pub reads_level: u32,
    /// Of its control plane.
    pub software_version: String,
    /// Made when the region's store was founded: another one means that it was lost. Empty in
    /// records of level 1.
    pub incarnation: String,
    /// Regions that it mirrors.
    pub peers: BTreeSet<RegionName>,
    /// SHA-256 of each mesh root certificate that it pins.
    pub pinned_roots: BTreeSet<[u8; 32]>,
    /// What its clusters may speak of and are told of; one that is not named is entitled to all.
    pub entitlements: BTreeMap<ClusterId, Entitlement>,
    /// Regions that are to issue for its clusters while it is stale; the first that is up. Compared;
    /// nothing acts upon it yet.
    pub stand_ins: Vec<RegionName>,
    /// Regions in the order in which policy is to be activated. Compared; nothing acts upon it yet.
    pub rollout_order: Vec<RegionName>,
    /// The clusters that joined it, by id.
    pub members: BTreeMap<ClusterId, Member>,
}

/// The namespaces that a cluster may speak of and is told of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Entitlement {
    /// Every one.
    All,
    /// These.
    Namespaces(BTreeSet<NamespaceName>),
}

impl Entitlement {
    /// Whether it covers what is about `namespace`; what is about none is for everybody.
    #[must_use]
    pub fn covers(&self, namespace: Option<&NamespaceName>) -> bool {
        match (self, namespace) {
            (Self::All, _) | (_, None) => true,
            (Self::Namespaces(names), Some(namespace)) => names.contains(namespace),
        }
    }
}

/// A cluster that joined a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its UID: the cluster's incarnation.
    pub uid: String,
    /// When the region first recorded it.
    pub joined: Timestamp,
}

/// A cluster's description of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cluster {
    /// UID of its kube-system namespace, or a directory cluster's own id.
    pub uid: String,
    /// Clusters with an equal network reach each other's pods directly.
    pub network: String,
    /// Where its pods' addresses come from; empty in a directory cluster means that all but
    /// unspecified and link-local addresses are accepted.
    pub pod_cidrs: Vec<IpNet>,
    /// Where its nodes' addresses come from.
    pub node_cidrs: Vec<IpNet>,
    /// Where its Services' addresses come from.
    pub service_cidrs: Vec<IpNet>,
    /// Zones that it has nodes in.
    pub zones: BTreeSet<String>,
    /// Of its agent.
    pub software_version: String,
    /// A directory of manifests rather than a cluster with an API server.
    pub directory: bool,
    /// Removals that its agent holds back because nothing explains them.
    pub holds: Vec<Hold>,
    /// Set while its readiness is not to be believed.
    pub suspect: Option<Suspect>,
    /// Ids of holds and suspicions that ended because they were approved, the newest last, and not
    /// for ever.
    pub approved: Vec<String>,
}

/// Removals that an agent holds back until they are approved, explained, or seen twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// Names this hold and no later one of the same records.
    pub id: String,
    /// When it began.
    pub since: Timestamp,
    /// Records that stay.
    pub records: u32,
    /// Endpoints that stay.
    pub endpoints: u32,
    /// Which limit it is above, in words.
    pub why: String,
    /// Some of the services concerned.
    pub services: Vec<ServiceKey>,
}

/// The ready share of a cluster fell so fast that a split between nodes and API server is likelier
/// than that all of it is down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspect {
    /// Names this suspicion, as [`Hold::id`] names a hold: once that is approved, the readiness is
    /// believed.
    pub id: String,
    /// Since when.
    pub since: Timestamp,
    /// Endpoints that are ready.
    pub ready: u32,
    /// Endpoints that are, or have been.
    pub of: u32,
}

/// Why a record is no more, as its tombstone says it. The order is that of how sure it is: of
/// several reasons the last is the one to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Removal {
    /// The owner knows why: a DELETE event, a removed document, replicas 0.
    Explained,
    /// An operator approved it.
    Approved,
    /// Two complete listings agreed.
    Released,
    /// Gone from what the source lists, for no known reason, and few enough to believe it.
    Unexplained,
}

impl Removal {
    /// As it is shown, and as metrics are labelled.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Explained => "explained",
            Self::Approved => "approved",
            Self::Released => "released",
            Self::Unexplained => "unexplained",
        }
    }

    /// Reads the wire's value; `None` for one that is missing or of a newer version.
    #[must_use]
    pub fn from_wire(value: i32) -> Option<Self> {
        match crate::proto::federation::Removal::try_from(value).ok()? {
            crate::proto::federation::Removal::Unspecified => None,
            crate::proto::federation::Removal::Explained => Some(Self::Explained),
            crate::proto::federation::Removal::Approved => Some(Self::Approved),
            crate::proto::federation::Removal::Released => Some(Self::Released),
            crate::proto::federation::Removal::Unexplained => Some(Self::Unexplained),
        }
    }

    /// The wire's value.
    #[must_use]
    pub fn to_wire(self) -> i32 {
        let wire = match self {
            Self::Explained => crate::proto::federation::Removal::Explained,
            Self::Approved => crate::proto::federation::Removal::Approved,
            Self::Released => crate::proto::federation::Removal::Released,
            Self::Unexplained => crate::proto::federation::Removal::Unexplained,
        };
        wire.into()
    }
}

impl fmt::Display for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What an operator decided, said by the region where it was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Who, as the process could prove it.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// In the operator's words; may be empty.
    pub note: String,
    /// What.
    pub what: Decided,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decided {
    /// The removals that this hold of this cluster holds back may happen.
    Approve {
        /// Whose.
        cluster: ClusterId,
        /// Which: see [`Hold::id`].
        hold: String,
    },
    /// This incarnation of an owner, a region's with its clusters, has left for good.
    Leave {
        /// A cluster, or a region.
        owner: Owner,
        /// The cluster's UID or the region's incarnation; empty for one that never said it.
        incarnation: String,
    },
}

/// A namespace exists in the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Namespace {
    /// Labels that may leave the cluster.
    pub labels: BTreeMap<String, String>,
    /// Annotations that may leave the cluster.
    pub annotations: BTreeMap<String, String>,
}

/// Whether a service has one address for all, or is its endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum ServiceType {
    /// Load-balanced behind one IP per family.
    ClusterSetIP,
    /// Names resolve to the endpoints.
    Headless,
}

impl fmt::Display for ServiceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ClusterSetIP => "ClusterSetIP",
            Self::Headless => "Headless",
        })
    }
}

/// Transport of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Protocol {
    /// TCP, Kubernetes' default.
    #[serde(rename = "TCP")]
    Tcp,
    /// UDP.
    #[serde(rename = "UDP")]
    Udp,
    /// SCTP.
    #[serde(rename = "SCTP")]
    Sctp,
}

impl Protocol {
    /// As Kubernetes writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    /// Reads what Kubernetes writes; empty means TCP.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum IpFamily {
    /// IPv4.
    #[serde(rename = "IPv4")]
    V4,
    /// IPv6.
    #[serde(rename = "IPv6")]
    V6,
}

impl IpFamily {
    /// The family of `address`.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// As Kubernetes writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// A port of a service, as its clients see it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ServicePort {
    /// Empty for an only, unnamed port; otherwise unique in the service.
    pub name: String,
    /// Transport.
    pub protocol: Protocol,
    /// 1 to 65535.
    pub port: u16,
    /// `kubernetes.io/h2c` and the like; empty for none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub app_protocol: String,
}

/// A service that its cluster exports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Whether it has an address of its own.
    pub service_type: ServiceType,
    /// In the order of the Service.
    pub ports: Vec<ServicePort>,
    /// `ClientIP`; empty for none.
    pub session_affinity: String,
    /// How long `ClientIP` affinity sticks, in seconds.
    pub session_affinity_timeout: Option<u32>,
    /// `Local`; empty for `Cluster`.
    pub internal_traffic_policy: String,
    /// `PreferClose` and the like; empty for none.
    pub traffic_distribution: String,
    /// Families that the Service has, in its order.
    pub ip_families: Vec<IpFamily>,
    /// creationTimestamp of the `ServiceExport`, if it has one.
    pub created: Option<Timestamp>,
    /// max(created, the cluster's join as its region recorded it): older exports win conflicts.
    pub precedence: Timestamp,
    /// From the export's spec, never from metadata (MCS R26).
    pub exported_labels: BTreeMap<String, String>,
    /// From the export's spec, never from metadata (MCS R26).
    pub exported_annotations: BTreeMap<String, String>,
}

/// A port that endpoints listen on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct EndpointPort {
    /// Pairs with [`ServicePort::name`].
    pub name: String,
    /// Transport.
    pub protocol: Protocol,
    /// 1 to 65535.
    pub port: u16,
    /// `kubernetes.io/h2c` and the like; empty for none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub app_protocol: String,
}

/// One address behind a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "the four conditions of an EndpointSlice and one of ours"
)]
pub struct Endpoint {
    /// Where it listens.
    pub address: IpAddr,
    /// Takes traffic.
    pub ready: bool,
    /// Would take traffic, were it not terminating.
    pub serving: bool,
    /// Is on its way out.
    pub terminating: bool,
    /// Was ready at least once while its owner looked.
    pub was_ready: bool,
    /// Empty when unknown.
    pub zone: String,
    /// Empty for none.
    pub hostname: String,
    /// The node it runs on; empty when unknown.
    pub node: String,
    /// Name of the object behind it, as a rule the pod; empty when unknown.
    pub target: String,
    /// Of its pod; empty when unknown.
    pub service_account: String,
    /// Has a sidecar that takes mTLS.
    pub meshed: bool,
}

/// One `EndpointSlice` of an exported service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Endpoints {
    /// Ports that all endpoints of the slice listen on.
    pub ports: Vec<EndpointPort>,
    /// In the order of the slice.
    pub endpoints: Vec<Endpoint>,
}

/// A sign of life, written every 5 s through the whole pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Beacon {
    /// Different each time.
    pub nonce: u64,
}
