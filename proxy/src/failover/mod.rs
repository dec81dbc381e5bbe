//! Which endpoints a client uses, in which order.
//!
//! Owns the two decisions of failover: endpoints into tiers ([`prioritise`]) and tiers' health into
//! shares of the load ([`load_split`], Envoy's own arithmetic). Pure: the pusher uses both, and so
//! can whoever asks "what if". Promises: every endpoint that can be reached and has been ready is
//! in exactly one tier, tiers are never empty, addresses are unique, and the result
//! depends on nothing but the arguments. Leaves to others: merging, encoding. Turned down: sending
//! ready endpoints only, which hides from Envoy how much of a tier is lost.

mod load;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;

use tombolo_federation::catalog::{Endpoint, Service};
use tombolo_federation::names::{ClusterId, RegionName};
use tombolo_federation::record::ServicePort;

use crate::class::EndpointsView;

pub use load::{OVERPROVISIONING_FACTOR, PANIC_THRESHOLD, Share, TierHealth, load_split};

/// A zone stands as a tier of its own from this many endpoints on; with fewer, one lost endpoint
/// would move most of the zone's load, and the region serves as one tier.
pub const ZONE_MINIMUM: usize = 3;

/// Envoy takes priorities 0 to 127; what would come after them shares the last.
const MAX_TIERS: usize = 128;

/// How far a region declares others to be; smaller is nearer, what is missing is farthest.
pub type Distances = BTreeMap<RegionName, u32>;

/// Endpoints that are used together, while those of the tiers before it do not suffice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tier<'a> {
    /// What makes it near or far.
    pub reach: Reach,
    /// In the order of region, zone, cluster and address; never empty.
    pub members: Vec<Member<'a>>,
}

/// What the members of a tier have in common with the client.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// The client's zone.
    Zone,
    /// The client's region, or what the zone's tier leaves of it.
    Region,
    /// Another region.
    Remote(RegionName),
}

/// An endpoint in its tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member<'a> {
    /// The endpoint.
    pub endpoint: &'a Endpoint,
    /// Where it serves the port in question.
    pub address: SocketAddr,
    /// Whether it takes load.
    pub health: Health,
}

/// Whether an endpoint takes load, or only counts in what its tier should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// Ready.
    Healthy,
    /// Has been ready and is not, says a cluster whose word on that is suspect: takes what healthy
    /// ones do not.
    Degraded,
    /// Has been ready and is not.
    Unhealthy,
}

impl Health {
    /// `None` for what must not be sent: endpoints that terminate and those that were
    /// never ready, since a scale-up is not a failover.
    #[must_use]
    pub fn of(endpoint: &Endpoint) -> Option<Self> {
        let state = &endpoint.endpoint;
        match (state.terminating, state.ready, state.was_ready) {
            (true, _, _) | (false, false, false) => None,
            (false, true, _) => Some(Self::Healthy),
            (false, false, true) if endpoint.degraded => Some(Self::Degraded),
            (false, false, true) => Some(Self::Unhealthy),
        }
    }
}

impl Tier<'_> {
    /// Members by health, as the load arithmetic wants them.
    #[must_use]
    pub fn health(&self) -> TierHealth {
        TierHealth {
            healthy: number(self.count(Health::Healthy)),
            degraded: number(self.count(Health::Degraded)),
            total: number(self.members.len()),
        }
    }

    /// How many members are of this health.
    #[must_use]
    pub fn count(&self, health: Health) -> usize {
        self.members.iter().filter(|member| member.health == health).count()
    }
}

/// The tiers of `service`'s `port` as `client` should use them: its zone (from [`ZONE_MINIMUM`]
/// endpoints on), its region, then other regions by the distances that its region declares, ties
/// and unknown ones by name. A tier's index is its xDS priority.
#[must_use]
pub fn prioritise<'a>(
    service: &'a Service,
    port: &ServicePort,
    client: &EndpointsView,
    distances: &Distances,
) -> Vec<Tier<'a>> {
    let members = usable(service, port, client);
    let zone_stands = members.iter().filter(|m| in_zone(m, client)).count() >= ZONE_MINIMUM;
    let mut tiers: BTreeMap<(Reach, u32), Vec<Member<'a>>> = BTreeMap::new();
    for member in members {
        let reach = reach(&member, client, zone_stands);
        tiers.entry(order(reach, distances)).or_default().push(member);
    }
    let mut tiers: Vec<_> = tiers.into_iter().collect();
    tiers.sort_by(|((a, a_far), _), ((b, b_far), _)| (a_far, a).cmp(&(b_far, b)));
    let named = tiers.into_iter().map(|((reach, _), members)| Tier { reach, members });
    capped(named.collect())
}

/// What the client reaches, may use for this port, and should know of; sorted, each address once.
fn usable<'a>(service: &'a Service, port: &ServicePort, client: &EndpointsView) -> Vec<Member<'a>> {
    let reachable = service.serving(port).filter(|(e, _)| e.network == client.network);
    let mut members: Vec<_> = reachable
        .filter_map(|(endpoint, number)| {
            let address = SocketAddr::new(endpoint.address(), number);
            Some(Member { endpoint, address, health: Health::of(endpoint)? })
        })
        .collect();
    // The merge already gives each address once; should two clusters ever claim one, the one that
    // is ready speaks for it, since a proxy that is told both keeps only one, or refuses all.
    members.sort_by_key(|m| (m.health, sort_key(m)));
    let mut seen = HashSet::with_capacity(members.len());
    members.retain(|member| seen.insert(member.address));
    members.sort_by_key(sort_key);
    members
}

fn sort_key<'a>(member: &Member<'a>) -> (&'a RegionName, &'a str, &'a ClusterId, SocketAddr) {
    let endpoint = member.endpoint;
    (&endpoint.region, &endpoint.endpoint.zone, &endpoint.cluster, member.address)
}

fn in_zone(member: &Member<'_>, client: &EndpointsView) -> bool {
    let zone = client.zone.as_deref().filter(|zone| !zone.is_empty());
    member.endpoint.region == client.region && zone == Some(member.endpoint.endpoint.zone.as_str())
}

fn reach(member: &Member<'_>, client: &EndpointsView, zone_stands: bool) -> Reach {
    if member.endpoint.region != client.region {
        Reach::Remote(member.endpoint.region.clone())
    } else if zone_stands && in_zone(member, client) {
        Reach::Zone
    } else {
        Reach::Region
    }
}

/// The client's own region is nearest whatever is declared of it.
fn order(reach: Reach, distances: &Distances) -> (Reach, u32) {
    let far = match &reach {
        Reach::Zone | Reach::Region => 0,
        Reach::Remote(region) => distances.get(region).copied().unwrap_or(u32::MAX),
    };
    (reach, far)
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn capped(mut tiers: Vec<Tier<'_>>) -> Vec<Tier<'_>> {
    if tiers.len() > MAX_TIERS {
        let beyond = tiers.split_off(MAX_TIERS);
        if let Some(last) = tiers.last_mut() {
            last.members.extend(beyond.into_iter().flat_map(|tier| tier.members));
        }
    }
    tiers
}
