use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;

use super::*;
use crate::class::{ClientKind, EndpointsView};
use crate::failover::Distances;
use crate::intent::targets;
use crate::testkit::{key, service};

const ZONE: &str = "clusterset.local";

fn view(kind: ClientKind) -> EndpointsView {
    EndpointsView {
        kind,
        region: "us".parse().unwrap(),
        zone: Some("a".into()),
        network: "net".into(),
    }
}

fn assignment(kind: ClientKind, endpoints_text: &str) -> (Resource, ClusterLoadAssignment) {
    let service = service("shop/checkout").endpoints(endpoints_text).build();
    let target = targets(&service, ZONE)[0];
    let resource = endpoints(&view(kind), &target, &Distances::new());
    let message = ClusterLoadAssignment::decode(&*resource.body).unwrap();
    (resource, message)
}

#[test]
fn x33_no_endpoints_is_an_empty_assignment() {
    let (resource, message) = assignment(ClientKind::Envoy, "us/a/1?");
    assert_eq!(message.endpoints, []);
    assert_eq!(message.cluster_name, &*resource.name);
    assert_eq!(&*resource.name, "outbound|80||checkout.shop.svc.clusterset.local");
}

#[test]
fn tiers_become_priorities_with_a_locality_per_place() {
    let (_, message) = assignment(ClientKind::Envoy, "us/a/1 us/a/2! us/a/3 us/b/4 eu/x/5");
    let shown: Vec<_> = message
        .endpoints
        .iter()
        .map(|e| {
            let at = e.locality.clone().unwrap();
            let healths: Vec<i32> = e.lb_endpoints.iter().map(|e| e.health_status).collect();
            (e.priority, at.region, at.zone, at.sub_zone, healths, e.load_balancing_weight)
        })
        .collect();
    let row = |p, region: &str, zone: &str, health: &[i32]| {
        (p, region.to_owned(), zone.to_owned(), format!("{region}-c"), health.to_vec(), None)
    };
    let expected =
        [row(0, "us", "a", &[1, 2, 1]), row(1, "us", "b", &[1]), row(2, "eu", "x", &[1])];
    assert_eq!(shown, expected);
    assert_eq!(message.policy.unwrap().overprovisioning_factor.unwrap().value, 140);
}

#[test]
fn g10_grpc_gets_weights_by_healthy_endpoints_and_never_zero() {
    let (_, message) = assignment(ClientKind::Grpc, "us/b/1 us/b/2 us/b/3! eu/x/4!");
    let weights: Vec<u32> =
        message.endpoints.iter().map(|e| e.load_balancing_weight.unwrap().value).collect();
    assert_eq!(weights, [2, 1]);
}

#[test]
fn envoy_is_told_who_is_degraded_and_grpc_uses_them_only_when_nothing_is_healthy() {
    let told = |kind, endpoints| -> Vec<(Vec<i32>, Option<u32>)> {
        let (_, message) = assignment(kind, endpoints);
        let each = message.endpoints.iter().map(|e| {
            let healths = e.lb_endpoints.iter().map(|e| e.health_status).collect();
            (healths, e.load_balancing_weight.map(|weight| weight.value))
        });
        each.collect()
    };
    let (some, none) = ("us/a/1% us/a/2% us/a/3! eu/x/4", "us/a/1% us/a/2% us/a/3! eu/x/4!");
    assert_eq!(told(ClientKind::Envoy, some), [(vec![5, 5, 2], None), (vec![1], None)]);
    assert_eq!(told(ClientKind::Envoy, none), [(vec![5, 5, 2], None), (vec![2], None)]);
    assert_eq!(told(ClientKind::Grpc, some), [(vec![5, 5, 2], Some(1)), (vec![1], Some(1))]);
    assert_eq!(told(ClientKind::Grpc, none), [(vec![1, 1, 2], Some(2)), (vec![2], Some(1))]);
}

#[test]
fn p14_cluster_bytes_do_not_move_with_endpoints() {
    let bytes = |endpoints: &str| {
        let service = service("shop/checkout").endpoints(endpoints).build();
        cluster(ClientKind::Envoy, &targets(&service, ZONE)[0])
    };
    assert_eq!(bytes("us/a/1"), bytes("us/a/1! us/a/2 eu/b/3"));
    assert_eq!(bytes("us/a/1"), bytes(""));
}

#[test]
fn clusters_by_protocol() {
    let service =
        service("shop/checkout").ports(&["http=80", "grpc=81@grpc", "db=82@redis"]).build();
    let options: Vec<usize> = targets(&service, ZONE)
        .iter()
        .map(|target| cluster(ClientKind::Envoy, target))
        .map(|r| Cluster::decode(&*r.body).unwrap().typed_extension_protocol_options.len())
        .collect();
    assert_eq!(options, [0, 1, 0]);
}

#[test]
fn g7_grpc_clusters_have_nothing_that_grpc_refuses() {
    let service = service("shop/checkout").build();
    let resource = cluster(ClientKind::Grpc, &targets(&service, ZONE)[0]);
    let message = Cluster::decode(&*resource.body).unwrap();
    assert_eq!((message.lb_policy, message.outlier_detection), (0, None));
    assert!(message.circuit_breakers.is_none() && message.common_lb_config.is_none());
}

#[test]
fn spliced_routes_are_a_route_configuration() {
    let mut table = RouteTable::default();
    let service = service("shop/checkout").ports(&["http=80", "db=82@redis"]).build();
    assert!(table.set(&service.key, virtual_hosts(&service, ZONE)));
    assert!(!table.set(&service.key, virtual_hosts(&service, ZONE)), "nothing changed");
    let routes = RouteConfiguration::decode(&*table.encode().body).unwrap();
    let domains: Vec<&[String]> = routes.virtual_hosts.iter().map(|h| &*h.domains).collect();
    let host = "checkout.shop.svc.clusterset.local".to_owned();
    assert_eq!(domains, [&[host.clone(), format!("{host}:80")][..], &["*".to_owned()]]);
    assert!(table.set(&service.key, Vec::new()));
    assert!(!table.set(&key("shop/other"), Vec::new()));
}

#[test]
fn x43_a_hundred_rebuilds_in_shuffled_order_give_equal_bytes() {
    let build = |seed: usize| {
        let mut table = RouteTable::default();
        let mut out = Vec::new();
        for n in 0..10 {
            let name = format!("shop/s{}", (n * 7 + seed) % 10);
            let mut service = service(&name)
                .ports(&["http=80", "grpc=81@grpc"])
                .endpoints("us/a/1 us/b/2! eu/a/3 eu/b/4")
                .build();
            service.endpoints.rotate_left(seed % 4);
            table.set(&service.key, virtual_hosts(&service, ZONE));
            for target in targets(&service, ZONE) {
                out.push(cluster(ClientKind::Envoy, &target));
                out.push(endpoints(&view(ClientKind::Envoy), &target, &Distances::new()));
                out.extend(grpc_listeners(&target));
            }
        }
        out.push(table.encode());
        out.push(outbound_listener("127.0.0.1:15001".parse().unwrap()));
        out.sort_by_key(|r| (r.version, r.name.clone()));
        out
    };
    let first = build(0);
    for seed in 1..100 {
        assert_eq!(build(seed), first, "seed {seed}");
    }
}

#[test]
fn versions_read_back() {
    let (resource, _) = assignment(ClientKind::Envoy, "us/a/1");
    assert_eq!(Version::parse(&resource.version.to_string()), Some(resource.version));
    assert_eq!(Version::parse("not ours"), None);
    let sum: Version = [resource.version, Version::default()].into_iter().sum();
    assert_eq!(sum, resource.version);
}
