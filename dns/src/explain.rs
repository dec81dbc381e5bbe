//! Why an answer is what it is, for people: `tombolo dns NAME` and the admin API.
//!
//! Owns the words and their serialised form. Promises: the answer shown is the one that a DNS
//! client of the same view gets, made by the same function, but for the order of records.

use std::fmt::{self, Write as _};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use serde::Serialize;
use tombolo_federation::catalog::Catalog;
use tombolo_federation::names::RegionName;
use tombolo_federation::record::{ServicePort, ServiceType};

use crate::answer::reach::{PortDiffers, Rank, Reach, Tier};
use crate::answer::{self, Answer, Question, Reason, Scope};
use crate::{View, Zone};

/// An answer with its reason.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explained {
    /// The name asked for, as it was written, with its final dot.
    pub name: String,
    /// The type asked for.
    #[serde(rename = "type")]
    pub qtype: String,
    /// `NOERROR`, `NXDOMAIN`, `SERVFAIL` or `REFUSED`.
    pub rcode: String,
    /// The answer section.
    pub answers: Vec<Line>,
    /// The additional section.
    pub additionals: Vec<Line>,
    /// The reason, for programs.
    pub reason: Reason,
    /// The reason, for people.
    pub why: String,
    /// The region whose endpoints are answered; `None` where no choice of region was made.
    pub tier: Option<RegionName>,
    /// The service's endpoints by region, nearest first; empty where no service was found.
    pub regions: Vec<RegionCount>,
    /// Who asks.
    pub view: View,
    /// The catalog's generation, if there is a catalog.
    pub generation: Option<u64>,
    /// Whether the catalog holds everything that it must before a name is denied.
    pub complete: bool,
}

/// One record, as a zone file would have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Its owner.
    pub name: String,
    /// Seconds that it may be kept.
    pub ttl: u32,
    /// Its type.
    #[serde(rename = "type")]
    pub rtype: String,
    /// What it says.
    pub data: String,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, ttl, rtype, data } = self;
        write!(f, "{name} {ttl} IN {rtype} {data}")
    }
}

/// A service's endpoints in one region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RegionCount {
    /// The region.
    pub region: RegionName,
    /// Its distance as the asker's region declares it: 0 for that region itself, `None` when
    /// nothing is declared, which is the farthest.
    pub distance: Option<u32>,
    /// Ready, in a network that the asker reaches, and serving a port of the service.
    pub usable: usize,
    /// Ready in any network.
    pub ready: usize,
    /// All that its clusters name.
    pub total: usize,
}

/// Why a question cannot be asked at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidQuestion {
    /// Not a domain name.
    #[error(
        "{0:?} is not a domain name: expected labels of 1 to 63 bytes joined by '.', at most 253 in all"
    )]
    Name(String),
    /// Not a record type.
    #[error("{0:?} is not a record type: expected A, AAAA, SRV, TXT, ANY or another DNS type")]
    Type(String),
}

/// Answers `name` (taken as fully qualified) and `qtype`, and says why.
///
/// # Errors
/// When `name` or `qtype` is not one.
pub fn resolve(
    zone: &Zone,
    view: &View,
    catalog: Option<&Catalog>,
    name: &str,
    qtype: &str,
) -> Result<Explained, InvalidQuestion> {
    let asked = parse_name(name)?;
    let rtype = parse_type(qtype).ok_or_else(|| InvalidQuestion::Type(shorten(qtype)))?;
    let question = Question { name: &asked, qtype: rtype, class: DNSClass::IN, turn: 0 };
    let answer = answer::answer(zone, view, catalog, &question);
    let reach = catalog.and_then(|catalog| answer::reach_of(zone, view, catalog, &asked));
    // These say something about the chosen endpoints; other reasons come before a choice.
    let looked = matches!(answer.reason, Reason::Found | Reason::NoSuchType | Reason::PortsDiffer);
    let chosen = reach.as_ref().and_then(|(reach, scope)| tier(reach, *scope));
    let region = chosen.filter(|_| looked).map(|(tier, _)| tier.region.clone());
    let regions = reach.iter().flat_map(|(reach, _)| &reach.tiers).map(count).collect();
    Ok(Explained {
        name: asked.to_ascii(),
        qtype: rtype.to_string(),
        rcode: rcode_text(answer.rcode),
        answers: answer.answers.iter().map(line).collect(),
        additionals: answer.additionals.iter().map(line).collect(),
        reason: answer.reason,
        why: why(&answer, zone, view, rtype, reach.as_ref()),
        tier: region,
        regions,
        view: view.clone(),
        generation: catalog.map(|catalog| catalog.generation),
        complete: catalog.is_some_and(|catalog| catalog.complete),
    })
}

fn parse_name(text: &str) -> Result<Name, InvalidQuestion> {
    let invalid = || InvalidQuestion::Name(shorten(text));
    if text.is_empty() {
        return Err(invalid());
    }
    let mut name = Name::from_ascii(text).map_err(|_| invalid())?;
    name.set_fqdn(true);
    Ok(name)
}

/// A type by its name, or as `TYPE65280` (RFC 3597).
fn parse_type(text: &str) -> Option<RecordType> {
    let text = text.to_ascii_uppercase();
    match text.strip_prefix("TYPE") {
        Some(number) => number.parse().ok().map(|number: u16| RecordType::from(number)),
        None if text == "IXFR" => Some(RecordType::IXFR),
        None => text.parse().ok(),
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(300).collect()
}

fn rcode_text(rcode: ResponseCode) -> String {
    match rcode {
        ResponseCode::NoError => "NOERROR".to_owned(),
        ResponseCode::NXDomain => "NXDOMAIN".to_owned(),
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        ResponseCode::Refused => "REFUSED".to_owned(),
        other => other.to_string(),
    }
}

fn line(record: &Record) -> Line {
    Line {
        name: record.name.to_ascii(),
        ttl: record.ttl,
        rtype: record.record_type().to_string(),
        data: record.data.to_string(),
    }
}

/// The tier that the endpoints of an answer come from, and how many it could give.
fn tier<'r, 'a>(reach: &'r Reach<'a>, scope: Scope<'_>) -> Option<(&'r Tier<'a>, usize)> {
    match scope {
        Scope::Service => reach.chosen().map(|tier| (tier, tier.usable.len())),
        Scope::Port(port) => {
            reach.serving(port).map(|serving| (serving.tier, serving.endpoints.len()))
        }
        Scope::Single => None,
    }
}

fn count(tier: &Tier<'_>) -> RegionCount {
    RegionCount {
        region: tier.region.clone(),
        distance: match tier.rank {
            Rank::Own => Some(0),
            Rank::Declared(distance) => Some(distance),
            Rank::Undeclared => None,
        },
        usable: tier.usable.len(),
        ready: tier.ready,
        total: tier.total,
    }
}

fn why(
    answer: &Answer,
    zone: &Zone,
    view: &View,
    qtype: RecordType,
    reached: Option<&(Reach<'_>, Scope<'_>)>,
) -> String {
    let reach = reached.map(|(reach, _)| reach);
    match answer.reason {
        Reason::Found => found(reached, qtype),
        Reason::OtherClass => "only the class IN is served".to_owned(),
        Reason::OtherZone => format!("the name is not in the zone {}", zone.origin()),
        Reason::Transfer => "zone transfers are refused".to_owned(),
        Reason::NotReady => "no catalog has been received yet, so nothing is known".to_owned(),
        Reason::Incomplete => {
            "not found, but not everything has been received yet: it may exist".to_owned()
        }
        Reason::NoSuchShape => "nothing in the zone has a name of this shape".to_owned(),
        Reason::NoSuchNamespace => "no cluster has this namespace".to_owned(),
        Reason::NoSuchService => "no cluster exports this service".to_owned(),
        Reason::NoSuchPort => match reach {
            Some(reach) => format!("the service has no such named port; it has: {}", ports(reach)),
            None => "the service has no such named port".to_owned(),
        },
        Reason::NoSuchHost => "no ready endpoint within reach has this name".to_owned(),
        Reason::NoReadyEndpoint => no_ready(view, reach),
        Reason::PortNotServed => not_served(reached),
        Reason::PortsDiffer => differs(reach),
        Reason::NoSuchType => format!("the name exists, but has no records of type {qtype}"),
        Reason::EmptyName => "the name exists only because names below it do".to_owned(),
    }
}

fn found(reached: Option<&(Reach<'_>, Scope<'_>)>, qtype: RecordType) -> String {
    let Some((reach, scope)) = reached else {
        return "a name that the zone always has".to_owned();
    };
    let Some((tier, usable)) = tier(reach, *scope) else {
        return "the name of one endpoint, which is ready and within reach, in whatever region"
            .to_owned();
    };
    let nearer = reach.tiers.iter().take_while(|other| other.rank < tier.rank);
    let passed: Vec<String> = nearer.map(|tier| tier.region.to_string()).collect();
    let mut text = format!(
        "{} is the nearest region with {} endpoints within reach{} ({} of {})",
        tier.region,
        if reach.degraded { "degraded" } else { "ready" },
        if matches!(scope, Scope::Port(_)) { " that serve the port" } else { "" },
        usable,
        tier.total
    );
    let left_out = tier.usable.len() - tier.addressed().count();
    if left_out > 0 && matches!(qtype, RecordType::A | RecordType::AAAA) {
        let _ = write!(text, "; {left_out} with other ports than the service's only in SRV");
    }
    if reach.degraded {
        text.push_str("; none is ready anywhere, and their cluster's word on that is suspect");
    }
    if !passed.is_empty() {
        text = format!("{text}; nearer ones have none: {}", passed.join(", "));
    }
    if tier.rank != Rank::Own && passed.is_empty() {
        text.push_str("; the own region has no endpoints of it");
    }
    text
}

fn no_ready(view: &View, reach: Option<&Reach<'_>>) -> String {
    let View::Endpoints { network, .. } = view;
    let Some(reach) = reach else { return "the service has no ready endpoint".to_owned() };
    let sum = |of: fn(&Tier<'_>) -> usize| reach.tiers.iter().map(of).sum::<usize>();
    let (ready, total) = (sum(|tier| tier.ready), sum(|tier| tier.total));
    let mut text = match (ready, total) {
        (_, 0) => "the service has no endpoints".to_owned(),
        (0, _) => format!("none of the service's {total} endpoints is ready"),
        _ => format!("{ready} of {total} endpoints are ready, none of them in network {network:?}"),
    };
    if reach.service.service_type == ServiceType::Headless {
        text.push_str("; a headless service then does not exist");
    }
    text
}

fn not_served(reached: Option<&(Reach<'_>, Scope<'_>)>) -> String {
    let what = match reached {
        Some((_, Scope::Port(port))) => port_text(port),
        _ => "any port of the service".to_owned(),
    };
    format!(
        "endpoints are ready within reach, but none serves {what}: their clusters do not expose \
         it, or lost it to an older export (PortConflict)"
    )
}

fn differs(reach: Option<&Reach<'_>>) -> String {
    let found = reach.and_then(|reach| {
        let usable = reach.chosen()?.usable.first()?;
        Some((usable.endpoint, usable.differs?))
    });
    let Some((endpoint, PortDiffers { port, serves })) = found else {
        return "the endpoints' ports are not the service's: ask for SRV".to_owned();
    };
    format!(
        "{} of the service is not the endpoints' own: {} in {} serves it on {serves}; ask for \
         SRV, which has the real ports",
        port_text(port),
        endpoint.address(),
        endpoint.cluster,
    )
}

fn port_text(port: &ServicePort) -> String {
    let ServicePort { name, protocol, port: number, .. } = port;
    let named = if name.is_empty() { String::new() } else { format!(" ({name:?})") };
    format!("port {number}/{protocol}{named}")
}

fn ports(reach: &Reach<'_>) -> String {
    let with_name = reach.service.ports.iter().filter(|port| !port.name.is_empty());
    let owners: Vec<String> = with_name
        .map(|port| format!("_{}._{}", port.name, port.protocol.as_str().to_ascii_lowercase()))
        .collect();
    if owners.is_empty() { "none".to_owned() } else { owners.join(", ") }
}
