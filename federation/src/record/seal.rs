//! Types to bytes.
//!
//! A body is the same at every level. Readers ignore fields that they do not know, and a field that
//! was left out for them would be lost to everybody: one region of an older version, or one that
//! says that it is, could take entitlements, members and holds from all the others. What an older
//! reader must not misread takes a new kind, or a higher `min_reader`.

use bytes::Bytes;
use prost::Message;
use sha2::{Digest, Sha256};

use super::{
    Body, Decided, Endpoint, Entitlement, Export, Origin, Record, ServiceType, body, to_unix_ms,
};
use crate::key::Key;
use crate::proto::records as wire;

/// Entitles to every namespace.
pub(super) const ALL_NAMESPACES: &str = "*";

/// A record as it is stored and sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Sealed {
    /// Where it is stored.
    pub key: Key,
    /// An encoded envelope.
    pub value: Bytes,
}

/// SHA-256 of what `body` says, whatever envelope it comes in: an owner that starts anew need not
/// send again what the region has.
#[must_use]
pub fn body_hash(body: &Body) -> [u8; 32] {
    Sha256::digest(encode(body)).into()
}

/// [`body_hash`] of a stored value; `None` if it is no envelope.
#[must_use]
pub fn body_hash_of_value(value: &Bytes) -> Option<[u8; 32]> {
    let envelope = wire::Envelope::decode(value.clone()).ok()?;
    Some(Sha256::digest(&envelope.body).into())
}

pub(super) fn seal(record: &Record, level: u32) -> Sealed {
    let envelope = wire::Envelope {
        schema_level: level,
        min_reader: 1,
        origin: Some(origin(&record.origin)),
        body: encode(&record.body).into(),
    };
    Sealed { key: record.key.clone(), value: envelope.encode_to_vec().into() }
}

fn origin(origin: &Origin) -> wire::Origin {
    wire::Origin {
        epoch: Some(wire::Epoch { id: origin.epoch.id.clone(), count: origin.epoch.count }),
        sequence: origin.sequence,
        resource_version: origin.resource_version.clone(),
        observed_age_ms: origin.observed_age_ms,
    }
}

fn encode(body: &Body) -> Vec<u8> {
    match body {
        Body::Region(region) => self::region(region).encode_to_vec(),
        Body::Cluster(cluster) => self::cluster(cluster).encode_to_vec(),
        Body::Namespace(namespace) => wire::Namespace {
            labels: namespace.labels.clone(),
            annotations: namespace.annotations.clone(),
        }
        .encode_to_vec(),
        Body::Export(export) => self::export(export).encode_to_vec(),
        Body::Endpoints(endpoints) => wire::Endpoints {
            ports: endpoints.ports.iter().map(endpoint_port).collect(),
            endpoints: endpoints.endpoints.iter().map(endpoint).collect(),
        }
        .encode_to_vec(),
        Body::Beacon(beacon) => wire::Beacon { nonce: beacon.nonce }.encode_to_vec(),
        Body::Decision(decision) => self::decision(decision).encode_to_vec(),
    }
}

fn region(region: &body::Region) -> wire::Region {
    let names = |regions: &[crate::names::RegionName]| {
        regions.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    wire::Region {
        addresses: region.addresses.clone(),
        distances: region.distances.iter().map(|(name, d)| (name.to_string(), *d)).collect(),
        reads_level: region.reads_level,
        software_version: region.software_version.clone(),
        incarnation: region.incarnation.clone(),
        peers: region.peers.iter().map(ToString::to_string).collect(),
        pinned_roots: region.pinned_roots.iter().map(|root| root.to_vec().into()).collect(),
        entitlements: region
            .entitlements
            .iter()
            .map(|(cluster, entitlement)| (cluster.to_string(), namespaces(entitlement)))
            .collect(),
        stand_ins: names(&region.stand_ins),
        rollout_order: names(&region.rollout_order),
        members: region.members.iter().map(member).collect(),
    }
}

fn namespaces(entitlement: &Entitlement) -> wire::Namespaces {
    let names = match entitlement {
        Entitlement::All => vec![ALL_NAMESPACES.to_owned()],
        Entitlement::Namespaces(names) => names.iter().map(ToString::to_string).collect(),
    };
    wire::Namespaces { names }
}

fn member((cluster, member): (&crate::names::ClusterId, &body::Member)) -> wire::Member {
    wire::Member {
        cluster: cluster.to_string(),
        uid: member.uid.clone(),
        joined_ms: to_unix_ms(member.joined),
    }
}

fn cluster(cluster: &body::Cluster) -> wire::Cluster {
    let texts = |nets: &[ipnet::IpNet]| nets.iter().map(ToString::to_string).collect();
    wire::Cluster {
        uid: cluster.uid.clone(),
        network: cluster.network.clone(),
        pod_cidrs: texts(&cluster.pod_cidrs),
        node_cidrs: texts(&cluster.node_cidrs),
        service_cidrs: texts(&cluster.service_cidrs),
        zones: cluster.zones.iter().cloned().collect(),
        software_version: cluster.software_version.clone(),
        directory: cluster.directory,
        holds: cluster.holds.iter().map(hold).collect(),
        suspect: cluster.suspect.as_ref().map(|suspect| wire::Suspect {
            id: suspect.id.clone(),
            since_ms: to_unix_ms(suspect.since),
            ready: suspect.ready,
            of: suspect.of,
        }),
        approved: cluster.approved.clone(),
    }
}

fn hold(hold: &body::Hold) -> wire::Hold {
    wire::Hold {
        id: hold.id.clone(),
        since_ms: to_unix_ms(hold.since),
        records: hold.records,
        endpoints: hold.endpoints,
        why: hold.why.clone(),
        services: hold.services.iter().map(ToString::to_string).collect(),
    }
}

pub(super) fn decision(decision: &body::Decision) -> wire::Decision {
    use wire::decision::What;
    let what = match &decision.what {
        Decided::Approve { cluster, hold } => {
            What::Approve(wire::Approve { cluster: cluster.to_string(), hold: hold.clone() })
        }
        Decided::Leave { owner, incarnation } => {
            What::Leave(wire::Leave { owner: owner.to_string(), incarnation: incarnation.clone() })
        }
    };
    wire::Decision {
        by: decision.by.clone(),
        at_ms: to_unix_ms(decision.at),
        note: decision.note.clone(),
        what: Some(what),
    }
}

fn export(export: &Export) -> wire::Export {
    let service_type = match export.service_type {
        ServiceType::ClusterSetIP => wire::ServiceType::ClusterSetIp,
        ServiceType::Headless => wire::ServiceType::Headless,
    };
    wire::Export {
        r#type: service_type.into(),
        ports: export.ports.iter().map(service_port).collect(),
        session_affinity: export.session_affinity.clone(),
        session_affinity_timeout_seconds: export.session_affinity_timeout,
        internal_traffic_policy: export.internal_traffic_policy.clone(),
        traffic_distribution: export.traffic_distribution.clone(),
        ip_families: export.ip_families.iter().map(|f| f.as_str().to_owned()).collect(),
        created_ms: export.created.map_or(0, to_unix_ms),
        precedence_ms: to_unix_ms(export.precedence),
        exported_labels: export.exported_labels.clone(),
        exported_annotations: export.exported_annotations.clone(),
    }
}

fn service_port(port: &body::ServicePort) -> wire::ServicePort {
    wire::ServicePort {
        name: port.name.clone(),
        protocol: port.protocol.as_str().to_owned(),
        port: port.port.into(),
        app_protocol: port.app_protocol.clone(),
    }
}

fn endpoint_port(port: &body::EndpointPort) -> wire::EndpointPort {
    wire::EndpointPort {
        name: port.name.clone(),
        protocol: port.protocol.as_str().to_owned(),
        port: port.port.into(),
        app_protocol: port.app_protocol.clone(),
    }
}

fn endpoint(endpoint: &Endpoint) -> wire::Endpoint {
    wire::Endpoint {
        address: endpoint.address.to_string(),
        ready: endpoint.ready,
        serving: endpoint.serving,
        terminating: endpoint.terminating,
        was_ready: endpoint.was_ready,
        zone: endpoint.zone.clone(),
        hostname: endpoint.hostname.clone(),
        node: endpoint.node.clone(),
        target: endpoint.target.clone(),
        service_account: endpoint.service_account.clone(),
        meshed: endpoint.meshed,
    }
}
