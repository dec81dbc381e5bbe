//! The records at a name that exists.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hickory_proto::rr::rdata::{A, AAAA, HINFO, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tombolo_federation::catalog::{Endpoint, Service};
use tombolo_federation::record::{IpFamily, ServicePort, ServiceType};

use super::locate::Node;
use super::order::spread;
use super::reach::{PortTier, Reach, Tier};
use super::reason::Reason;
use super::{Found, MAX_RECORDS, Question, host};
use crate::Zone;
use crate::zone::TTL;

/// The version of the multicluster DNS specification that is followed.
const DNS_VERSION: &str = "1.0.0";

/// What is at `node` for `question`.
pub(super) fn records(
    zone: &Zone,
    generation: u64,
    node: &Node<'_>,
    question: &Question<'_>,
) -> Found {
    let Question { name, qtype, .. } = *question;
    if qtype == RecordType::ANY && node.has_records() {
        return Ok((vec![any(name)], Vec::new()));
    }
    match (node, qtype) {
        (Node::Empty, _) => Err(Reason::EmptyName),
        (Node::Apex, RecordType::SOA) => {
            let mut soa = zone.soa(generation);
            soa.name = name.clone();
            Ok((vec![soa], Vec::new()))
        }
        (Node::Apex, RecordType::NS) => {
            Ok((vec![zone.ns(name)], addresses(zone.name_server(), zone.addresses())))
        }
        (Node::Version, RecordType::TXT) => Ok((vec![version(name)], Vec::new())),
        (Node::NameServer, _) => of_family(name, qtype, zone.addresses().iter().copied()),
        (Node::Host(endpoints), _) => {
            of_family(name, qtype, endpoints.iter().map(|endpoint| endpoint.address()))
        }
        (Node::Service(reach), RecordType::A | RecordType::AAAA) => at_service(reach, question),
        (Node::Service(reach), RecordType::SRV) => {
            srv(zone, reach, reach.service.ports.iter(), name)
        }
        (Node::Port(reach, port), RecordType::SRV) => {
            srv(zone, reach, std::iter::once(*port), name)
        }
        _ => Err(Reason::NoSuchType),
    }
}

/// RFC 8482, section 4.2: one small record rather than everything.
fn any(owner: &Name) -> Record {
    let hinfo = HINFO::new("RFC8482".to_owned(), String::new());
    Record::from_rdata(owner.clone(), TTL, RData::HINFO(hinfo))
}

fn version(owner: &Name) -> Record {
    let txt = TXT::new(vec![DNS_VERSION.to_owned()]);
    Record::from_rdata(owner.clone(), TTL, RData::TXT(txt))
}

fn at_service(reach: &Reach<'_>, question: &Question<'_>) -> Found {
    let tier = reach.chosen().ok_or_else(|| unserved(reach))?;
    let endpoints: Vec<&Endpoint> = tier.addressed().collect();
    if endpoints.is_empty() {
        return Err(Reason::PortsDiffer);
    }
    // Cut before the family is looked at: A and AAAA show the same endpoints.
    let endpoints = spread(endpoints, MAX_RECORDS);
    of_family(question.name, question.qtype, endpoints.iter().map(|endpoint| endpoint.address()))
}

/// Why no endpoint takes what is asked for.
fn unserved(reach: &Reach<'_>) -> Reason {
    let reachable = reach.tiers.iter().any(|tier| tier.reachable > 0);
    if reachable { Reason::PortNotServed } else { Reason::NoReadyEndpoint }
}

fn of_family(owner: &Name, qtype: RecordType, all: impl Iterator<Item = IpAddr>) -> Found {
    let family = match qtype {
        RecordType::A => IpFamily::V4,
        RecordType::AAAA => IpFamily::V6,
        _ => return Err(Reason::NoSuchType),
    };
    let of_family: BTreeSet<IpAddr> = all.filter(|ip| IpFamily::of(*ip) == family).collect();
    if of_family.is_empty() {
        return Err(Reason::NoSuchType);
    }
    let records = of_family.into_iter().map(|ip| address(owner, ip)).collect();
    Ok((spread(records, MAX_RECORDS), Vec::new()))
}

fn address(owner: &Name, ip: IpAddr) -> Record {
    let data = match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    };
    Record::from_rdata(owner.clone(), TTL, data)
}

fn addresses(owner: &Name, all: &[IpAddr]) -> Vec<Record> {
    all.iter().map(|ip| address(owner, *ip)).collect()
}

/// Where a port is found: a target, its port number, and the target's addresses.
struct Target {
    name: Name,
    port: u16,
    addresses: Vec<IpAddr>,
}

/// SRV records of `ports` at `owner`; each (target, number) once, whatever the protocol.
fn srv<'p>(
    zone: &Zone,
    reach: &Reach<'_>,
    ports: impl Iterator<Item = &'p ServicePort>,
    owner: &Name,
) -> Found {
    let nearest = reach.chosen().ok_or_else(|| unserved(reach))?;
    let (mut records, mut additionals) = (Vec::new(), Vec::new());
    let (mut told, mut named) = (BTreeSet::new(), BTreeSet::new());
    let mut reason = Reason::NoSuchType;
    for port in ports {
        let Some(PortTier { endpoints, .. }) = reach.serving(port) else {
            reason = Reason::PortNotServed;
            continue;
        };
        let targets = targets(zone, reach.service, nearest, port, endpoints);
        let weight = weight(targets.len());
        for Target { name, port, addresses: all } in targets {
            if !told.insert((name.clone(), port)) {
                continue;
            }
            if named.insert(name.clone()) {
                additionals.extend(addresses(&name, &all));
            }
            let srv = RData::SRV(SRV::new(0, weight, port, name));
            records.push(Record::from_rdata(owner.clone(), TTL, srv));
        }
    }
    if records.is_empty() {
        return Err(reason);
    }
    Ok((spread(records, MAX_RECORDS), spread(additionals, MAX_RECORDS)))
}

/// The service's own name where its addresses are exactly the endpoints that serve `port`, and
/// under the service's number; else each endpoint that serves it.
fn targets(
    zone: &Zone,
    service: &Service,
    nearest: &Tier<'_>,
    port: &ServicePort,
    serving: Vec<(&Endpoint, u16)>,
) -> Vec<Target> {
    let alike = serving.iter().all(|(_, serves)| *serves == port.port);
    let all = || serving.iter().map(|(endpoint, _)| std::ptr::from_ref(*endpoint));
    let direct = service.service_type == ServiceType::ClusterSetIP
        && alike
        && all().eq(nearest.addressed().map(std::ptr::from_ref));
    if direct {
        let addresses = serving.iter().map(|(endpoint, _)| endpoint.address()).collect();
        let name = host::service_name(zone, &service.key);
        let target = name.map(|name| Target { name, port: port.port, addresses });
        return target.into_iter().collect();
    }
    let each = serving.into_iter().filter_map(|(endpoint, port)| {
        let name = host::endpoint_name(zone, service, endpoint)?;
        Some(Target { name, port, addresses: vec![endpoint.address()] })
    });
    spread(each.collect(), MAX_RECORDS)
}

/// As `CoreDNS` has it: all alike, and as a share of a hundred.
fn weight(targets: usize) -> u16 {
    let share = 100 / targets.max(1);
    u16::try_from(share.max(1)).unwrap_or(1)
}
