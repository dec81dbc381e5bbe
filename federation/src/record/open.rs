//! Bytes to types: everything that another process wrote passes through here once.

use bytes::Bytes;
use ipnet::IpNet;
use jiff::Timestamp;
use prost::Message;

use super::body::{
    Beacon, Body, Cluster, Decided, Decision, Endpoint, EndpointPort, Endpoints, Entitlement,
    Export, Hold, IpFamily, Member, Namespace, Protocol, Region, ServicePort, ServiceType, Suspect,
};
use super::seal::ALL_NAMESPACES;
use super::{Epoch, MAX_VALUE, Origin, Record};
use crate::key::{Key, Kind};
use crate::names::{ClusterId, RegionName};
use crate::proto::records as wire;

/// Why a value cannot be used. In each case it is kept and passed on as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// More than [`MAX_VALUE`] bytes.
    #[error("the value has {0} bytes, more than {MAX_VALUE}")]
    TooLarge(usize),
    /// Not the protobuf message that it should be.
    #[error("the value is not a valid {what} message")]
    Undecodable {
        /// Which message.
        what: &'static str,
        /// Where decoding ended.
        #[source]
        source: prost::DecodeError,
    },
    /// Written by a newer version, for newer readers only.
    #[error("the value wants a reader of schema level {needed}, this one reads {reads}")]
    NewerReader {
        /// The level that it wants.
        needed: u32,
        /// The level that there is.
        reads: u32,
    },
    /// A kind that this version passes on unread.
    #[error("records of kind {0} are not read by this version")]
    NotRead(Kind),
    /// A field that is missing or out of its range.
    #[error("{field} {problem}")]
    Field {
        /// Which field.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
}

pub(super) fn open(key: &Key, value: &Bytes, reads: u32) -> Result<Record, RecordError> {
    if value.len() > MAX_VALUE {
        return Err(RecordError::TooLarge(value.len()));
    }
    let envelope: wire::Envelope = decode("Envelope", value)?;
    if envelope.min_reader > reads {
        return Err(RecordError::NewerReader { needed: envelope.min_reader, reads });
    }
    if envelope.schema_level == 0 {
        return Err(field("schema_level", "is missing"));
    }
    let origin = origin(envelope.origin)?;
    let body = body(key.kind, &envelope.body)?;
    check_owner(key, &body)?;
    Ok(Record { key: key.clone(), origin, body })
}

/// Where a value names clusters that its owner speaks for, they are its owner's. That key and kind
/// fit the owner is proven by the key itself.
fn check_owner(key: &Key, body: &Body) -> Result<(), RecordError> {
    let region = &key.owner.region;
    let own = |name: &str, cluster: &ClusterId| {
        let problem = || format!("names cluster {cluster}, which is not one of region {region}");
        if cluster.fits(region) { Ok(()) } else { Err(field(name, problem())) }
    };
    match body {
        Body::Region(said) => {
            said.members.keys().try_for_each(|cluster| own("members", cluster))?;
            said.entitlements.keys().try_for_each(|cluster| own("entitlements", cluster))
        }
        Body::Decision(decision) => match &decision.what {
            Decided::Approve { cluster, .. } => own("approve.cluster", cluster),
            // Whom a region takes for gone is for it to say, of anybody.
            Decided::Leave { .. } => Ok(()),
        },
        Body::Cluster(_)
        | Body::Namespace(_)
        | Body::Export(_)
        | Body::Endpoints(_)
        | Body::Beacon(_) => Ok(()),
    }
}

pub(super) fn origin_of(value: &Bytes) -> Option<Origin> {
    origin(wire::Envelope::decode(value.clone()).ok()?.origin).ok()
}

fn decode<M: Message + Default>(what: &'static str, bytes: &Bytes) -> Result<M, RecordError> {
    M::decode(bytes.clone()).map_err(|source| RecordError::Undecodable { what, source })
}

fn field(name: impl Into<String>, problem: impl Into<String>) -> RecordError {
    RecordError::Field { field: name.into(), problem: problem.into() }
}

fn origin(origin: Option<wire::Origin>) -> Result<Origin, RecordError> {
    let origin = origin.ok_or_else(|| field("origin", "is missing"))?;
    Ok(Origin {
        epoch: epoch(origin.epoch)?,
        sequence: origin.sequence,
        resource_version: origin.resource_version,
        observed_age_ms: origin.observed_age_ms,
    })
}

/// Reads an epoch of any message.
///
/// # Errors
/// When it is missing or has no id.
pub(crate) fn epoch(epoch: Option<wire::Epoch>) -> Result<Epoch, RecordError> {
    let epoch = epoch.ok_or_else(|| field("epoch", "is missing"))?;
    if epoch.id.is_empty() || epoch.id.len() > 256 {
        return Err(field("epoch.id", "is not 1 to 256 characters long"));
    }
    Ok(Epoch { id: epoch.id, count: epoch.count })
}

fn body(kind: Kind, bytes: &Bytes) -> Result<Body, RecordError> {
    Ok(match kind {
        Kind::Region => Body::Region(region(decode("Region", bytes)?)?),
        Kind::Cluster => Body::Cluster(cluster(decode("Cluster", bytes)?)?),
        Kind::Namespace => {
            let namespace: wire::Namespace = decode("Namespace", bytes)?;
            Body::Namespace(Namespace {
                labels: namespace.labels,
                annotations: namespace.annotations,
            })
        }
        Kind::Export => Body::Export(export(decode("Export", bytes)?)?),
        Kind::Endpoints => Body::Endpoints(endpoints(decode("Endpoints", bytes)?)?),
        Kind::Beacon => {
            let beacon: wire::Beacon = decode("Beacon", bytes)?;
            Body::Beacon(Beacon { nonce: beacon.nonce })
        }
        Kind::Decision => Body::Decision(decision(decode("Decision", bytes)?)?),
        Kind::Import | Kind::Policy => return Err(RecordError::NotRead(kind)),
    })
}

fn region(region: wire::Region) -> Result<Region, RecordError> {
    let distances = region
        .distances
        .into_iter()
        .map(|(name, distance)| Ok((parse("distances", &name)?, distance)));
    let peers = region.peers.iter().map(|name| parse("peers", name));
    let entitlements = region.entitlements.into_iter().map(|(cluster, namespaces)| {
        Ok((parse("entitlements", &cluster)?, entitlement(&namespaces)?))
    });
    Ok(Region {
        distances: distances.collect::<Result<_, RecordError>>()?,
        addresses: region.addresses,
        reads_level: region.reads_level,
        software_version: region.software_version,
        incarnation: region.incarnation,
        peers: peers.collect::<Result<_, _>>()?,
        pinned_roots: region.pinned_roots.iter().map(root).collect::<Result<_, _>>()?,
        entitlements: entitlements.collect::<Result<_, RecordError>>()?,
        stand_ins: regions("stand_ins", &region.stand_ins)?,
        rollout_order: regions("rollout_order", &region.rollout_order)?,
        members: region.members.into_iter().map(member).collect::<Result<_, _>>()?,
    })
}

fn regions(field: &str, names: &[String]) -> Result<Vec<RegionName>, RecordError> {
    names.iter().map(|name| parse(field, name)).collect()
}

fn root(bytes: &Bytes) -> Result<[u8; 32], RecordError> {
    <[u8; 32]>::try_from(&bytes[..])
        .map_err(|_| field("pinned_roots", format!("has {} bytes, not 32", bytes.len())))
}

fn entitlement(namespaces: &wire::Namespaces) -> Result<Entitlement, RecordError> {
    if namespaces.names.iter().any(|name| name == ALL_NAMESPACES) {
        return Ok(Entitlement::All);
    }
    let names = namespaces.names.iter().map(|name| parse("entitlements", name));
    Ok(Entitlement::Namespaces(names.collect::<Result<_, _>>()?))
}

fn member(member: wire::Member) -> Result<(ClusterId, Member), RecordError> {
    let joined = timestamp("members.joined_ms", member.joined_ms)?;
    Ok((parse("members.cluster", &member.cluster)?, Member { uid: member.uid, joined }))
}

fn cluster(cluster: wire::Cluster) -> Result<Cluster, RecordError> {
    if cluster.uid.is_empty() {
        return Err(field("uid", "is empty"));
    }
    Ok(Cluster {
        pod_cidrs: nets("pod_cidrs", &cluster.pod_cidrs)?,
        node_cidrs: nets("node_cidrs", &cluster.node_cidrs)?,
        service_cidrs: nets("service_cidrs", &cluster.service_cidrs)?,
        uid: cluster.uid,
        network: cluster.network,
        zones: cluster.zones.into_iter().collect(),
        software_version: cluster.software_version,
        directory: cluster.directory,
        holds: each("holds", cluster.holds, hold)?,
        suspect: cluster.suspect.map(suspect).transpose()?,
        approved: cluster.approved,
    })
}

fn hold(hold: wire::Hold) -> Result<Hold, RecordError> {
    let services = hold.services.iter().map(|service| parse("services", service));
    Ok(Hold {
        services: services.collect::<Result<_, _>>()?,
        since: timestamp("since_ms", hold.since_ms)?,
        id: hold.id,
        records: hold.records,
        endpoints: hold.endpoints,
        why: hold.why,
    })
}

fn suspect(suspect: wire::Suspect) -> Result<Suspect, RecordError> {
    let since = timestamp("suspect.since_ms", suspect.since_ms)?;
    Ok(Suspect { id: suspect.id, since, ready: suspect.ready, of: suspect.of })
}

pub(super) fn decision(decision: wire::Decision) -> Result<Decision, RecordError> {
    use wire::decision::What;
    let what = match decision.what {
        Some(What::Approve(approve)) => Decided::Approve {
            cluster: parse("approve.cluster", &approve.cluster)?,
            hold: approve.hold,
        },
        Some(What::Leave(leave)) => Decided::Leave {
            owner: parse("leave.owner", &leave.owner)?,
            incarnation: leave.incarnation,
        },
        None => return Err(field("what", "is missing, or of a newer version")),
    };
    let at = timestamp("at_ms", decision.at_ms)?;
    Ok(Decision { by: decision.by, at, note: decision.note, what })
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(
    name: &str,
    text: &str,
) -> Result<T, RecordError> {
    text.parse().map_err(|error: T::Err| field(name, error.to_string()))
}

fn nets(name: &str, texts: &[String]) -> Result<Vec<IpNet>, RecordError> {
    let net =
        |text: &String| text.parse().map_err(|_| field(name, format!("has {text:?}, not a CIDR")));
    texts.iter().map(net).collect()
}

fn export(export: wire::Export) -> Result<Export, RecordError> {
    let service_type = match wire::ServiceType::try_from(export.r#type) {
        Ok(wire::ServiceType::ClusterSetIp) => ServiceType::ClusterSetIP,
        Ok(wire::ServiceType::Headless) => ServiceType::Headless,
        Ok(wire::ServiceType::Unspecified) | Err(_) => {
            return Err(field("type", format!("has the unknown value {}", export.r#type)));
        }
    };
    let created = match export.created_ms {
        0 => None,
        ms => Some(timestamp("created_ms", ms)?),
    };
    Ok(Export {
        service_type,
        ports: each("ports", export.ports, service_port)?,
        session_affinity: export.session_affinity,
        session_affinity_timeout: export.session_affinity_timeout_seconds,
        internal_traffic_policy: export.internal_traffic_policy,
        traffic_distribution: export.traffic_distribution,
        ip_families: each("ip_families", export.ip_families, |text| family(&text))?,
        created,
        precedence: timestamp("precedence_ms", export.precedence_ms)?,
        exported_labels: export.exported_labels,
        exported_annotations: export.exported_annotations,
    })
}

/// Converts a list, naming the element that is wrong.
fn each<A, B>(
    name: &str,
    list: Vec<A>,
    convert: impl Fn(A) -> Result<B, RecordError>,
) -> Result<Vec<B>, RecordError> {
    let named = |(index, item)| {
        convert(item).map_err(|error| match error {
            RecordError::Field { field, problem } => {
                RecordError::Field { field: format!("{name}[{index}].{field}"), problem }
            }
            other => other,
        })
    };
    list.into_iter().enumerate().map(named).collect()
}

fn timestamp(name: &str, ms: i64) -> Result<Timestamp, RecordError> {
    Timestamp::from_millisecond(ms).map_err(|_| field(name, format!("has {ms}, not a time")))
}

fn family(text: &str) -> Result<IpFamily, RecordError> {
    match text {
        "IPv4" => Ok(IpFamily::V4),
        "IPv6" => Ok(IpFamily::V6),
        _ => Err(field("family", format!("has {text:?}, neither IPv4 nor IPv6"))),
    }
}

fn protocol(text: &str) -> Result<Protocol, RecordError> {
    Protocol::parse(text)
        .ok_or_else(|| field("protocol", format!("has {text:?}, not TCP, UDP or SCTP")))
}

fn port(number: u32) -> Result<u16, RecordError> {
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(field("port", format!("has {number}, not 1 to 65535"))),
    }
}

fn service_port(wire: wire::ServicePort) -> Result<ServicePort, RecordError> {
    Ok(ServicePort {
        protocol: protocol(&wire.protocol)?,
        port: port(wire.port)?,
        name: wire.name,
        app_protocol: wire.app_protocol,
    })
}

fn endpoints(endpoints: wire::Endpoints) -> Result<Endpoints, RecordError> {
    Ok(Endpoints {
        ports: each("ports", endpoints.ports, endpoint_port)?,
        endpoints: each("endpoints", endpoints.endpoints, endpoint)?,
    })
}

fn endpoint_port(wire: wire::EndpointPort) -> Result<EndpointPort, RecordError> {
    Ok(EndpointPort {
        protocol: protocol(&wire.protocol)?,
        port: port(wire.port)?,
        name: wire.name,
        app_protocol: wire.app_protocol,
    })
}

fn endpoint(wire: wire::Endpoint) -> Result<Endpoint, RecordError> {
    let address = wire.address.parse();
    Ok(Endpoint {
        address: address
            .map_err(|_| field("address", format!("has {:?}, not an IP address", wire.address)))?,
        ready: wire.ready,
        serving: wire.serving,
        terminating: wire.terminating,
        was_ready: wire.was_ready,
        zone: wire.zone,
        hostname: wire.hostname,
        node: wire.node,
        target: wire.target,
        service_account: wire.service_account,
        meshed: wire.meshed,
    })
}
