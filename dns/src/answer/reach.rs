//! Which endpoints an asker is given: the nearest region that has a ready one it can reach.

use std::collections::{BTreeMap, BTreeSet};

use tombolo_federation::catalog::{Catalog, Endpoint, Service};
use tombolo_federation::names::{ClusterId, RegionName};
use tombolo_federation::record::{Protocol, ServicePort, ServiceType};

use crate::View;

/// A service's endpoints as one asker sees them, nearest region first.
#[derive(Debug)]
pub(crate) struct Reach<'a> {
    pub(crate) service: &'a Service,
    pub(crate) tiers: Vec<Tier<'a>>,
}

/// One region's endpoints.
#[derive(Debug)]
pub(crate) struct Tier<'a> {
    pub(crate) region: &'a RegionName,
    pub(crate) rank: Rank,
    /// Ready, not terminating, and in the asker's network.
    pub(crate) usable: Vec<&'a Endpoint>,
    /// Ready and not terminating, in any network.
    pub(crate) ready: usize,
    pub(crate) total: usize,
}

/// How near a region is; the derived order is the order of preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    Own,
    Declared(u32),
    Undeclared,
}

/// A port that an endpoint does not serve under the number that the service gives it.
#[derive(Debug)]
pub(crate) struct PortDiffers<'a> {
    pub(crate) port: &'a ServicePort,
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) serves: Option<u16>,
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
        let mut by_region: BTreeMap<&RegionName, Tier<'a>> = BTreeMap::new();
        for endpoint in &service.endpoints {
            let region = &endpoint.region;
            by_region
                .entry(region)
                .or_insert_with(|| Tier::empty(region, rank(region)))
                .add(endpoint, network);
        }
        // Stable, from a map by name: regions that are equally far come in the order of names.
        let mut tiers: Vec<_> = by_region.into_values().collect();
        tiers.sort_by_key(|tier| tier.rank);
        Self { service, tiers }
    }

    /// The tier whose endpoints are answered. `None` only when no reachable endpoint is ready
    /// anywhere.
    pub(crate) fn chosen(&self) -> Option<&Tier<'a>> {
        self.tiers.iter().find(|tier| !tier.usable.is_empty())
    }

    /// Usable endpoints of all tiers. Names of single endpoints resolve for all of these: whoever
    /// asks for one endpoint wants that one, and a target from an SRV answer must not vanish
    /// because another tier has become the nearest.
    pub(crate) fn all_usable(&self) -> impl Iterator<Item = &'a Endpoint> {
        self.tiers.iter().flat_map(|tier| tier.usable.iter().copied())
    }

    /// The first TCP or UDP port that an endpoint of `tier` does not serve under the service's own
    /// number. An address alone is then no answer: the client would connect to the wrong port.
    pub(crate) fn port_differs(&self, tier: &Tier<'a>) -> Option<PortDiffers<'a>> {
        if self.service.service_type == ServiceType::Headless {
            return None; // a headless service's clients connect to the endpoints' own ports
        }
        let addressed = |port: &&ServicePort| port.protocol != Protocol::Sctp;
        self.service.ports.iter().filter(addressed).find_map(|port| {
            let (endpoint, serves) =
                tier.serving(self.service, port).find(|(_, serves)| *serves != Some(port.port))?;
            Some(PortDiffers { port, endpoint, serves })
        })
    }
}

impl<'a> Tier<'a> {
    fn empty(region: &'a RegionName, rank: Rank) -> Self {
        Self { region, rank, usable: Vec::new(), ready: 0, total: 0 }
    }

    fn add(&mut self, endpoint: &'a Endpoint, network: &str) {
        self.total += 1;
        if !endpoint.endpoint.ready || endpoint.endpoint.terminating {
            return; // MCS R79, and no fallback to serving-terminating ones
        }
        self.ready += 1;
        if &*endpoint.network == network {
            self.usable.push(endpoint);
        }
    }

    /// Each usable endpoint with the number on which it serves `port`. `None` where its cluster
    /// does not expose that port, even if something listens there (MCS R24).
    pub(crate) fn serving(
        &self,
        service: &'a Service,
        port: &'a ServicePort,
    ) -> impl Iterator<Item = (&'a Endpoint, Option<u16>)> {
        let same = |own: &ServicePort| own.name == port.name && own.protocol == port.protocol;
        let exposing: BTreeSet<&ClusterId> = service
            .exports
            .iter()
            .filter(|export| export.ports.iter().any(same))
            .map(|export| &export.cluster)
            .collect();
        self.usable.iter().map(move |endpoint| {
            let exposed = exposing.contains(&endpoint.cluster);
            (*endpoint, exposed.then(|| endpoint.port(&port.name, port.protocol)).flatten())
        })
    }
}
