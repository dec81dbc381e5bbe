//! Endpoint assignments: where a port of a service is served, in tiers.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::core::v3::{HealthStatus, Locality};
use envoy_types::pb::envoy::config::endpoint::v3::cluster_load_assignment::Policy;
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};

use envoy_types::pb::google::protobuf::UInt32Value;
use tombolo_federation::names::{ClusterId, RegionName};

use super::parts::{address, number};
use super::{Resource, Type};
use crate::class::{ClientKind, EndpointsView};
use crate::failover::{Distances, Health, Member, OVERPROVISIONING_FACTOR, Tier, prioritise};
use crate::intent::Target;

/// The assignment for one port of a service. It exists also when there is no endpoint: that is how
/// a proxy is told to forget the last one, since it ignores a removal.
pub(crate) fn endpoints(
    view: &EndpointsView,
    target: &Target<'_>,
    distances: &Distances,
) -> Resource {
    let tiers = prioritise(target.service, target.port, view, distances);
    let name = target.cluster_name();
    let told = Told::of(view.kind, &tiers);
    let priorities = (0..).zip(&tiers);
    let message = ClusterLoadAssignment {
        cluster_name: name.clone(),
        endpoints: priorities.flat_map(|(p, tier)| localities(told, p, tier)).collect(),
        policy: Some(Policy {
            overprovisioning_factor: number(OVERPROVISIONING_FACTOR),
            ..Policy::default()
        }),
        ..ClusterLoadAssignment::default()
    };
    Resource::new(Type::Endpoints, name, &message)
}

/// A tier's endpoints, one entry for each region, zone and cluster.
fn localities(told: Told, priority: u32, tier: &Tier<'_>) -> Vec<LocalityLbEndpoints> {
    let mut places: BTreeMap<Place<'_>, Vec<&Member<'_>>> = BTreeMap::new();
    for member in &tier.members {
        let at = member.endpoint;
        let place = (&at.region, at.endpoint.zone.as_str(), &at.cluster);
        places.entry(place).or_default().push(member);
    }
    let entry = |((region, zone, cluster), members): (Place<'_>, Vec<&Member<'_>>)| {
        let locality = Locality {
            region: region.to_string(),
            zone: zone.to_owned(),
            sub_zone: cluster.to_string(),
        };
        LocalityLbEndpoints {
            locality: Some(locality),
            load_balancing_weight: told.weight(&members),
            lb_endpoints: members.into_iter().map(|member| told.endpoint(member)).collect(),
            priority,
            ..LocalityLbEndpoints::default()
        }
    };
    places.into_iter().map(entry).collect()
}

/// Region, zone and cluster.
type Place<'a> = (&'a RegionName, &'a str, &'a ClusterId);

/// How members are told to a client.
#[derive(Debug, Clone, Copy)]
struct Told {
    kind: ClientKind,
    /// What a degraded member is called.
    degraded: HealthStatus,
}

impl Told {
    /// Envoy knows what degraded means. gRPC uses nothing but healthy endpoints, so that it is
    /// told degraded ones are, once no tier has better, as DNS answers them then.
    fn of(kind: ClientKind, tiers: &[Tier<'_>]) -> Self {
        let healthy = tiers.iter().any(|tier| tier.count(Health::Healthy) > 0);
        let degraded = match (kind, healthy) {
            (ClientKind::Grpc, false) => HealthStatus::Healthy,
            _ => HealthStatus::Degraded,
        };
        Self { kind, degraded }
    }

    fn health(self, member: &Member<'_>) -> HealthStatus {
        match member.health {
            Health::Healthy => HealthStatus::Healthy,
            Health::Degraded => self.degraded,
            Health::Unhealthy => HealthStatus::Unhealthy,
        }
    }

    /// Envoy spreads a priority over its hosts and reads no locality weight; gRPC spreads it over
    /// localities, and ignores those without weight. Healthy ones count there, since it
    /// uses no others, and never none, since an empty first priority is refused (G9).
    fn weight(self, members: &[&Member<'_>]) -> Option<UInt32Value> {
        match self.kind {
            ClientKind::Envoy => None,
            ClientKind::Grpc => {
                let healthy = |member: &&&Member<'_>| self.health(member) == HealthStatus::Healthy;
                let healthy = members.iter().filter(healthy).count();
                number(u32::try_from(healthy).unwrap_or(u32::MAX).max(1))
            }
        }
    }

    fn endpoint(self, member: &Member<'_>) -> LbEndpoint {
        let endpoint = Endpoint { address: Some(address(member.address)), ..Endpoint::default() };
        LbEndpoint {
            health_status: self.health(member).into(),
            host_identifier: Some(HostIdentifier::Endpoint(endpoint)),
            ..LbEndpoint::default()
        }
    }
}
