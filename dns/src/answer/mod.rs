//! What is said about a name: a pure function of a catalog, a view and a question.
//!
//! Owns the rules of the multicluster DNS specification as they read in the
//! endpoints view, where nobody has a clusterset IP:
//!
//! - `<svc>.<ns>.svc.Z` has the addresses of the ready endpoints of the nearest tier (see
//!   [`View`]), for headless services too: a subset is allowed.
//! - Of a `ClusterSetIP` service those of them whose TCP and UDP ports have the service's own
//!   numbers (see `reach`); when none has, A and AAAA are empty. SRV names single endpoints with
//!   their real ports wherever the addresses are not all that serve a port under its number.
//! - `<host>.<clusterid>.<svc>.<ns>.svc.Z` resolves for every reachable ready endpoint, whichever
//!   tier is nearest, and for `ClusterSetIP` services too (by address, see `host`): an SRV target
//!   stays resolvable when the tier or the service's ports change under it.
//! - A name with nothing but names below it is an empty answer (RFC 8020), a headless
//!   service without a ready endpoint does not exist, a `ClusterSetIP` one is empty.
//! - At most [`MAX_RECORDS`] records, evenly spread over all, so that any answer fits into a TCP
//!   message. A and AAAA are cut from the same endpoints.
//!
//! Leaves to others: sockets and encoding (`server`), reasons in words (`explain`). Turned down:
//! zones as tiers (see [`View`]); filling up from the next tier when the nearest is small, since
//! clients pick at random and would cross an ocean for no reason.

mod asked;
mod host;
mod locate;
mod order;
pub(crate) mod reach;
mod reason;
mod records;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use tombolo_federation::catalog::Catalog;
use tombolo_federation::record::ServicePort;

use crate::{View, Zone};
use asked::{Asked, Below};
use locate::Node;
pub use reason::Reason;

/// The most records of an answer: 200 SRV records with targets of the greatest length fit into
/// the 64 KiB of a TCP message.
pub const MAX_RECORDS: usize = 200;

/// What a client asks.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// As the client wrote it; records repeat its case.
    pub name: &'a Name,
    /// Any type, known or not.
    pub qtype: RecordType,
    /// Only IN has names here.
    pub class: DNSClass,
    /// A number that differs from query to query: decides which record comes first.
    pub turn: u64,
}

/// What it is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The response code.
    pub rcode: ResponseCode,
    /// Whether this is the zone's own word (AA): not so when refused or not able to tell.
    pub authoritative: bool,
    /// The answer section.
    pub answers: Vec<Record>,
    /// The authority section: the SOA of a negative answer.
    pub authority: Vec<Record>,
    /// The additional section: addresses of SRV targets.
    pub additionals: Vec<Record>,
    /// Why.
    pub reason: Reason,
}

/// Sections of a positive answer, or why there is none.
type Found = Result<(Vec<Record>, Vec<Record>), Reason>;

/// Answers `question` about `zone` as `view` sees it in `catalog`; `None` while there has been no
/// catalog yet.
#[must_use]
pub fn answer(
    zone: &Zone,
    view: &View,
    catalog: Option<&Catalog>,
    question: &Question<'_>,
) -> Answer {
    if question.class != DNSClass::IN {
        return Answer::without_data(ResponseCode::Refused, Reason::OtherClass);
    }
    let asked = Asked::parse(zone, question.name);
    if asked == Asked::Elsewhere {
        return Answer::without_data(ResponseCode::Refused, Reason::OtherZone);
    }
    if matches!(question.qtype, RecordType::AXFR | RecordType::IXFR) {
        return Answer::without_data(ResponseCode::Refused, Reason::Transfer);
    }
    let generation = catalog.map_or(0, |catalog| catalog.generation);
    let found = locate::locate(zone, view, catalog, &asked)
        .map(|node| records::records(zone, generation, &node, question));
    match found {
        Ok(Ok((answers, additionals))) => Answer::positive(answers, additionals, question.turn),
        // Before the first catalog only records that need none are given, and nothing is denied.
        Ok(Err(_)) if catalog.is_none() => Answer::unknown(Reason::NotReady),
        Ok(Err(reason)) if reason.may_pass() && !is_complete(catalog) => {
            Answer::unknown(Reason::Incomplete)
        }
        Ok(Err(reason)) => Answer::negative(ResponseCode::NoError, zone.soa(generation), reason),
        Err(Reason::NotReady) => Answer::unknown(Reason::NotReady),
        Err(_) if !is_complete(catalog) => Answer::unknown(Reason::Incomplete),
        Err(reason) => Answer::negative(ResponseCode::NXDomain, zone.soa(generation), reason),
    }
}

fn is_complete(catalog: Option<&Catalog>) -> bool {
    catalog.is_some_and(|catalog| catalog.complete)
}

impl Answer {
    fn positive(mut answers: Vec<Record>, additionals: Vec<Record>, turn: u64) -> Self {
        order::rotate(&mut answers, turn);
        Self {
            rcode: ResponseCode::NoError,
            authoritative: true,
            answers,
            authority: Vec::new(),
            additionals,
            reason: Reason::Found,
        }
    }

    fn negative(rcode: ResponseCode, soa: Record, reason: Reason) -> Self {
        let authority = vec![soa];
        Self { authoritative: true, authority, ..Self::without_data(rcode, reason) }
    }

    fn unknown(reason: Reason) -> Self {
        Self::without_data(ResponseCode::ServFail, reason)
    }

    fn without_data(rcode: ResponseCode, reason: Reason) -> Self {
        Self {
            rcode,
            authoritative: false,
            answers: Vec::new(),
            authority: Vec::new(),
            additionals: Vec::new(),
            reason,
        }
    }
}

/// What an answer's endpoints were chosen for; for explanations.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scope<'a> {
    /// Any port of the service: its nearest tier.
    Service,
    /// One port: the nearest tier that serves it.
    Port(&'a ServicePort),
    /// No choice between tiers: one endpoint or cluster.
    Single,
}

/// The reach of the service that `name` is or is below, and what is chosen there.
pub(crate) fn reach_of<'a>(
    zone: &Zone,
    view: &'a View,
    catalog: &'a Catalog,
    name: &Name,
) -> Option<(reach::Reach<'a>, Scope<'a>)> {
    let (key, below) = match Asked::parse(zone, name) {
        Asked::Service(key) => (key, None),
        Asked::Below(key, below) => (key, Some(below)),
        _ => return None,
    };
    let service = &**catalog.services.get(&key)?;
    let scope = match below {
        None => Scope::Service,
        Some(Below::Port { name, protocol }) => {
            locate::port(service, &name, protocol).map_or(Scope::Single, Scope::Port)
        }
        Some(_) => Scope::Single,
    };
    Some((reach::Reach::of(catalog, view, service), scope))
}

impl Node<'_> {
    /// Whether records are here, rather than only below.
    fn has_records(&self) -> bool {
        !matches!(self, Self::Empty)
    }
}
