//! Which endpoints an asker is given: the nearest region that has a ready one it can reach.
//!
//! Owns what ports mean for that choice where clusters do not expose the same ones.
//! Clients of an address bring the service's own port numbers, so for `ClusterSetIP`:
//!
//! - An endpoint counts by the ports that its own cluster exposes and it serves
//!   ([`Service::serving`]). One that serves none of the service's ports is not usable: its cluster
//!   lost them all to older exports, and traffic for the service must not go there.
//! - An endpoint is an address answer if every TCP and UDP port that it serves has the service's
//!   number. One with another number is left out, but SRV names it. If the nearest tier has only
//!   such ones, address answers are empty: they do not skip to the next tier, since clients that
//!   ask for SRV and clients that ask for addresses would then be sent to different regions.
//! - A port that a cluster does not expose, or that a pod does not serve (as while it is being
//!   added), withholds nothing: an export or a port that is new somewhere must not take away the
//!   addresses that others had. The price is that an address is no promise of a port that only
//!   some clusters expose; SRV is, and looks for each port's own nearest tier.
//!
//! Degraded endpoints, those that a suspect cluster calls unready, count as if they were not there,
//! until no region has anything better: then they are given, nearest first, rather than nothing.
//!
//! Turned down: addresses only of clusters that expose all ports, or all of the oldest's: then
//! adding a port cluster by cluster takes all addresses away, or moves all clients to the first.

use std::collections::BTreeMap;

use tombolo_federation::catalog::{Catalog, Endpoint, Service};
use tombolo_federation::names::RegionName;
use tombolo_federation::record::{Protocol, ServicePort, ServiceType};

use crate::View;

/// A service's endpoints as one asker sees them, nearest region first.
#[derive(Debug)]
pub(crate) struct Reach<'a> {
    pub(crate) service: &'a Service,
    pub(crate) tiers: Vec<Tier<'a>>,
    /// No region has a usable endpoint that is ready: those that are called usable are degraded.
    pub(crate) degraded: bool,
    network: &'a str,
}

/// One region's endpoints.
#[derive(Debug)]
pub(crate) struct Tier<'a> {
    pub(crate) region: &'a RegionName,
    pub(crate) rank: Rank,
    /// Ready, not terminating, in the asker's network, and serving a port of the service.
    pub(crate) usable: Vec<Usable<'a>>,
    /// Like those, but degraded instead of ready; moved there if no tier has better.
    spare: Vec<Usable<'a>>,
    /// Ready or degraded, not terminating, and in the asker's network, whatever their ports.
    pub(crate) reachable: usize,
    /// Ready and not terminating, in any network.
    pub(crate) ready: usize,
    pub(crate) total: usize,
}

/// An endpoint that an asker can use, if it knows the ports.
#[derive(Debug)]
pub(crate) struct Usable<'a> {
    pub(crate) endpoint: &'a Endpoint,
    /// Why its address alone would mislead.
    pub(crate) differs: Option<PortDiffers<'a>>,
}

/// A port that an endpoint serves under another number than the service's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PortDiffers<'a> {
    pub(crate) port: &'a ServicePort,
    pub(crate) serves: u16,
}

/// The endpoints that serve a service's ports, each with the first port that differs. By address
/// in memory: they are all of one service in one catalog, and comparing them whole is slow.
type Serving<'a> = BTreeMap<*const Endpoint, Option<PortDiffers<'a>>>;

/// How near a region is; the derived order is the order of preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    Own,
    Declared(u32),
    Undeclared,
}

impl<'a> Reach<'a> {
    pub(crate) fn of(catalog: &'a Catalog, view: &'a View, service: &'a Service) -> Self {
        let View::Endpoints { region: own, network, .. } = view;
        let distances = catalog.regions.get(own).map(|region| &region.distances);
        let rank = |region: &RegionName| match distances.and_then(|known| known.get(region)) {
            _ if region == own => Rank::Own,
            Some(distance) => Rank::Declared(*distance),
            None => Rank::Undeclared,
        };
        let serving = serving(service);
        let mut by_region: BTreeMap<&RegionName, Tier<'a>> = BTreeMap::new();
        for endpoint in &service.endpoints {
            let region = &endpoint.region;
            by_region.entry(region).or_insert_with(|| Tier::empty(region, rank(region))).add(
                endpoint,
                network,
                serving.as_ref(),
            );
        }
        // Stable, from a map by name: regions that are equally far come in the order of names.
        let mut tiers: Vec<_> = by_region.into_values().collect();
        tiers.sort_by_key(|tier| tier.rank);
        let degraded = tiers.iter().all(|tier| tier.usable.is_empty())
            && tiers.iter().any(|tier| !tier.spare.is_empty());
        if degraded {
            for tier in &mut tiers {
                std::mem::swap(&mut tier.usable, &mut tier.spare);
            }
        }
        Self { service, tiers, degraded, network }
    }

    /// The tier whose endpoints are answered. `None` only when no reachable endpoint that serves
    /// any of the service's ports is ready, or at least degraded, anywhere.
    pub(crate) fn chosen(&self) -> Option<&Tier<'a>> {
        self.tiers.iter().find(|tier| !tier.usable.is_empty())
    }

    /// Usable endpoints of all tiers, degraded ones too. Names of single endpoints resolve for all
    /// of these: whoever asks for one endpoint wants that one, and a target from an SRV answer must
    /// not vanish because another tier has become the nearest.
    pub(crate) fn all_usable(&self) -> impl Iterator<Item = &'a Endpoint> {
        let of = |tier: &Tier<'a>| -> Vec<&'a Endpoint> {
            tier.usable.iter().chain(&tier.spare).map(|usable| usable.endpoint).collect()
        };
        self.tiers.iter().flat_map(of)
    }

    /// The nearest tier that serves `port`, and its endpoints that do, each with the number. Not
    /// always the chosen tier: there perhaps no cluster exposes the port. Degraded endpoints only
    /// where no region has better for this very port.
    pub(crate) fn serving(&self, port: &ServicePort) -> Option<PortTier<'_, 'a>> {
        self.serving_if(port, is_ready).or_else(|| self.serving_if(port, |e| e.degraded))
    }

    fn serving_if(
        &self,
        port: &ServicePort,
        is: impl Fn(&Endpoint) -> bool,
    ) -> Option<PortTier<'_, 'a>> {
        let usable =
            |(endpoint, _): &(&Endpoint, u16)| is(endpoint) && &*endpoint.network == self.network;
        let all: Vec<(&'a Endpoint, u16)> = self.service.serving(port).filter(usable).collect();
        self.tiers.iter().find_map(|tier| {
            let here = all.iter().filter(|(endpoint, _)| endpoint.region == *tier.region);
            let endpoints: Vec<_> = here.copied().collect();
            (!endpoints.is_empty()).then_some(PortTier { tier, endpoints })
        })
    }
}

/// Where one port is served.
#[derive(Debug)]
pub(crate) struct PortTier<'r, 'a> {
    pub(crate) tier: &'r Tier<'a>,
    /// Never empty; each with its number.
    pub(crate) endpoints: Vec<(&'a Endpoint, u16)>,
}

impl<'a> Tier<'a> {
    fn empty(region: &'a RegionName, rank: Rank) -> Self {
        let (usable, spare) = (Vec::new(), Vec::new());
        Self { region, rank, usable, spare, reachable: 0, ready: 0, total: 0 }
    }

    fn add(&mut self, endpoint: &'a Endpoint, network: &str, serving: Option<&Serving<'a>>) {
        self.total += 1;
        self.ready += usize::from(is_ready(endpoint));
        let takes = is_ready(endpoint) || endpoint.degraded;
        if !takes || &*endpoint.network != network {
            return;
        }
        self.reachable += 1;
        let differs = match serving.map(|serving| serving.get(&std::ptr::from_ref(endpoint))) {
            None => None,
            Some(Some(differs)) => *differs,
            Some(None) => return, // serves no port of the service
        };
        let list = if endpoint.degraded { &mut self.spare } else { &mut self.usable };
        list.push(Usable { endpoint, differs });
    }

    /// The endpoints whose addresses alone are an answer.
    pub(crate) fn addressed(&self) -> impl Iterator<Item = &'a Endpoint> {
        let alike = self.usable.iter().filter(|usable| usable.differs.is_none());
        alike.map(|usable| usable.endpoint)
    }
}

/// No fallback to serving-terminating ones.
fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.endpoint.ready && !endpoint.endpoint.terminating
}

/// `None` where ports decide nothing: the clients of a headless service connect to the endpoints'
/// own ports, and a service may have none.
fn serving(service: &Service) -> Option<Serving<'_>> {
    if service.service_type == ServiceType::Headless || service.ports.is_empty() {
        return None;
    }
    let mut all = Serving::new();
    for port in &service.ports {
        for (endpoint, serves) in service.serving(port) {
            let first = all.entry(std::ptr::from_ref(endpoint)).or_default();
            if serves != port.port && port.protocol != Protocol::Sctp {
                first.get_or_insert(PortDiffers { port, serves });
            }
        }
    }
    Some(all)
}
