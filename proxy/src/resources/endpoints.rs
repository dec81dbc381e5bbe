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
/// a proxy is told to forget the last one, since it ignores a removal (XDS X33).
pub(crate) fn endpoints(
    view: &EndpointsView,
    target: &Target<'_>,
    distances: &Distances,
) -> Resource {
    let tiers = prioritise(target.service, target.port, view, distances);
    let name = target.cluster_name();
    let priorities = (0..).zip(&tiers);
    let message = ClusterLoadAssignment {
        cluster_name: name.clone(),
        endpoints: priorities.flat_map(|(p, tier)| localities(view.kind, p, tier)).collect(),
        policy: Some(Policy {
            overprovisioning_factor: number(OVERPROVISIONING_FACTOR),
            ..Policy::default()
        }),
        ..ClusterLoadAssignment::default()
    };
    Resource::new(Type::Endpoints, name, &message)
}

/// A tier's endpoints, one entry for each region, zone and cluster.
fn localities(kind: ClientKind, priority: u32, tier: &Tier<'_>) -> Vec<LocalityLbEndpoints> {
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
            load_balancing_weight: weight(kind, &members),
            lb_endpoints: members.into_iter().map(lb_endpoint).collect(),
            priority,
            ..LocalityLbEndpoints::default()
        }
    };
    places.into_iter().map(entry).collect()
}

/// Region, zone and cluster.
type Place<'a> = (&'a RegionName, &'a str, &'a ClusterId);

/// Envoy spreads a priority over its hosts and reads no locality weight; gRPC spreads it over
/// localities, and ignores those without weight (XDS G10). Healthy ones count there, since it uses
/// no others, and never none, since an empty first priority is refused (G9).
fn weight(kind: ClientKind, members: &[&Member<'_>]) -> Option<UInt32Value> {
    match kind {
        ClientKind::Envoy => None,
        ClientKind::Grpc => {
            let healthy = members.iter().filter(|m| m.health == Health::Healthy).count();
            number(u32::try_from(healthy).unwrap_or(u32::MAX).max(1))
        }
    }
}

fn lb_endpoint(member: &Member<'_>) -> LbEndpoint {
    let endpoint = Endpoint { address: Some(address(member.address)), ..Endpoint::default() };
    let health = match member.health {
        Health::Healthy => HealthStatus::Healthy,
        Health::Unhealthy => HealthStatus::Unhealthy,
    };
    LbEndpoint {
        health_status: health.into(),
        host_identifier: Some(HostIdentifier::Endpoint(endpoint)),
        ..LbEndpoint::default()
    }
}
