use std::sync::Arc;

use proptest::prelude::*;
use tombolo_federation::record::ServiceType;

use super::*;
use crate::class::ClientKind;
use crate::testkit::{self, at, cluster, service};

fn client(region: &str, zone: Option<&str>) -> EndpointsView {
    EndpointsView {
        kind: ClientKind::Envoy,
        region: region.parse().unwrap(),
        zone: zone.map(Arc::from),
        network: "net".into(),
    }
}

fn distances(of: &[(&str, u32)]) -> Distances {
    of.iter().map(|(region, far)| (region.parse().unwrap(), *far)).collect()
}

/// `endpoints` as "region/zone/last octet[!%]", tiers as lists of last octets, `!` for unhealthy and `%` for
/// degraded ones.
fn check(endpoints: &str, client: &EndpointsView, distances: &Distances, expected: &str) {
    let service = service("shop/checkout").endpoints(endpoints).build();
    let tiers = prioritise(&service, &service.ports[0], client, distances);
    let shown: Vec<String> = tiers.iter().map(show).collect();
    assert_eq!(shown.join(" | "), expected, "{endpoints}");
}

fn show(tier: &Tier<'_>) -> String {
    let member = |m: &Member<'_>| {
        let octet = m.address.ip().to_string().rsplit('.').next().unwrap().to_owned();
        octet
            + match m.health {
                Health::Healthy => "",
                Health::Degraded => "%",
                Health::Unhealthy => "!",
            }
    };
    tier.members.iter().map(member).collect::<Vec<_>>().join(" ")
}

#[test]
fn zone_stands_from_three_endpoints() {
    let here = client("us", Some("a"));
    check("us/a/1 us/a/2 us/a/3 us/b/4 eu/a/5", &here, &Distances::new(), "1 2 3 | 4 | 5");
    check("us/a/1 us/a/2 us/b/4 eu/a/5", &here, &Distances::new(), "1 2 4 | 5");
    check("us/a/1 us/a/2! us/a/3! us/b/4", &here, &Distances::new(), "1 2! 3! | 4");
}

#[test]
fn zones_of_other_regions_are_not_ours() {
    let here = client("us", Some("a"));
    check("eu/a/1 eu/a/2 eu/a/3 us/b/4", &here, &Distances::new(), "4 | 1 2 3");
}

#[test]
fn regions_by_distance_then_name() {
    let far = distances(&[("eu", 90), ("asia", 90), ("au", 10)]);
    let here = client("us", None);
    check("eu/a/1 asia/a/2 au/a/3 af/a/4 us/a/5 zz/a/6", &here, &far, "5 | 3 | 2 | 1 | 4 | 6");
}

#[test]
fn p7_priorities_have_no_gaps() {
    check("eu/a/1", &client("us", Some("a")), &Distances::new(), "1");
    check("", &client("us", Some("a")), &Distances::new(), "");
}

#[test]
fn a_distance_to_itself_moves_nothing() {
    let far = distances(&[("us", 500), ("eu", 1)]);
    check("eu/a/1 us/a/2", &client("us", None), &far, "2 | 1");
}

#[test]
fn an_unknown_zone_matches_no_zone() {
    let here = client("us", Some(""));
    check("us//1 us//2 us//3 us/a/4", &here, &Distances::new(), "1 2 3 4");
}

#[test]
fn p4_p5_classes_of_endpoints() {
    let mut service = service("shop/checkout").endpoints("us/a/1 us/a/2 us/a/3 us/a/4").build();
    let state = |e: &mut Endpoint, ready, was_ready, terminating| {
        e.endpoint.ready = ready;
        e.endpoint.was_ready = was_ready;
        e.endpoint.terminating = terminating;
    };
    state(&mut service.endpoints[0], true, true, false);
    state(&mut service.endpoints[1], false, true, false);
    state(&mut service.endpoints[2], false, false, false);
    state(&mut service.endpoints[3], true, true, true);
    let here = client("us", None);
    let tiers = prioritise(&service, &service.ports[0], &here, &Distances::new());
    assert_eq!(tiers.iter().map(show).collect::<Vec<_>>(), ["1 2!"]);
    assert_eq!(tiers[0].health(), TierHealth { healthy: 1, degraded: 0, total: 2 });
}

#[test]
fn degraded_endpoints_stand_in_their_tiers_and_count_in_them() {
    let here = client("us", None);
    check("us/a/1 us/a/2% us/a/3! eu/a/4%", &here, &Distances::new(), "1 2% 3! | 4%");
    let service = service("shop/checkout").endpoints("us/a/1 us/a/2% us/a/3!").build();
    let tiers = prioritise(&service, &service.ports[0], &here, &Distances::new());
    assert_eq!(tiers[0].health(), TierHealth { healthy: 1, degraded: 1, total: 3 });
}

#[test]
fn other_networks_are_not_reached() {
    let mut service = service("shop/checkout").endpoints("us/a/1 us/a/2").build();
    service.endpoints[1].network = "elsewhere".into();
    let here = client("us", None);
    let tiers = prioritise(&service, &service.ports[0], &here, &Distances::new());
    assert_eq!(tiers.iter().map(show).collect::<Vec<_>>(), ["1"]);
}

#[test]
fn mcs_r24_only_clusters_that_expose_the_port() {
    let service = service("shop/checkout")
        .ports(&["http=80", "metrics=9090"])
        .endpoints("us/a/1 eu/a/2")
        .exports_only("eu-c", &["http=80"])
        .build();
    let here = client("us", None);
    let tiers = |port| {
        let tiers = prioritise(&service, port, &here, &Distances::new());
        tiers.iter().map(show).collect::<Vec<_>>().join(" | ")
    };
    assert_eq!(tiers(&service.ports[0]), "1 | 2");
    assert_eq!(tiers(&service.ports[1]), "1");
}

#[test]
fn mcs_r22_a_port_is_found_under_its_own_clusters_name() {
    let mut service = service("shop/checkout").endpoints("us/a/1 eu/a/2").build();
    let export = service.exports.iter_mut().find(|e| e.cluster == cluster("eu-c")).unwrap();
    export.ports[0].name = "web".into();
    service.endpoints[0].ports = testkit::endpoint_ports(&["web=8080"]);
    let here = client("us", None);
    let tiers = prioritise(&service, &service.ports[0], &here, &Distances::new());
    assert_eq!(tiers[1].members[0].address, at("10.0.0.2:8080"));
}

#[test]
fn a_headless_port_is_its_name_whatever_its_clusters_number_it() {
    let mut service = service("shop/checkout").endpoints("us/a/1 eu/a/2").build();
    service.service_type = ServiceType::Headless;
    let export = service.exports.iter_mut().find(|e| e.cluster == cluster("eu-c")).unwrap();
    export.ports[0].port = 8000;
    let here = client("us", None);
    let tiers = prioritise(&service, &service.ports[0], &here, &Distances::new());
    assert_eq!(tiers.iter().map(show).collect::<Vec<_>>(), ["1", "2"]);
}

#[test]
fn p6_an_address_claimed_twice_is_sent_once_and_the_ready_claim_wins() {
    let mut service = service("shop/checkout").endpoints("us/a/1! eu/a/1 us/a/2").build();
    service.endpoints.sort();
    let here = client("us", None);
    let tiers = prioritise(&service, &service.ports[0], &here, &Distances::new());
    assert_eq!(tiers.iter().map(show).collect::<Vec<_>>(), ["2", "1"]);
}

#[test]
fn more_regions_than_priorities_share_the_last() {
    let all: Vec<String> = (0..200).map(|n| format!("r{n:03}/a/{n}")).collect();
    let service = service("shop/checkout").endpoints(&all.join(" ")).build();
    let here = client("us", None);
    let tiers = prioritise(&service, &service.ports[0], &here, &Distances::new());
    assert_eq!(tiers.len(), MAX_TIERS);
    assert_eq!(tiers.iter().map(|t| t.members.len()).sum::<usize>(), 200);
}

proptest! {
    #[test]
    fn p9_no_endpoint_is_lost_and_order_is_total(
        endpoints in prop::collection::vec(("[a-d]", "[a-c]?", 0u8..3), 0..40),
        region in "[a-e]",
        zone in prop::option::of("[a-c]?"),
        far in prop::collection::btree_map("[a-d]", 0u32..3, 0..4),
    ) {
        let lines: Vec<String> = endpoints.iter().enumerate().map(|(n, (region, zone, state))| {
            format!("{region}/{zone}/{n}{}", ["", "!", "?"][usize::from(*state)])
        }).collect();
        let service = service("shop/checkout").endpoints(&lines.join(" ")).build();
        let sent = endpoints.iter().filter(|(_, _, state)| *state < 2).count();
        let far = far.into_iter().map(|(r, d)| (r.parse().unwrap(), d)).collect();
        let here = client(&region, zone.as_deref());
        let tiers = prioritise(&service, &service.ports[0], &here, &far);
        prop_assert_eq!(tiers.iter().map(|t| t.members.len()).sum::<usize>(), sent);
        prop_assert!(tiers.iter().all(|tier| !tier.members.is_empty()));
        let reaches: HashSet<String> = tiers.iter().map(|t| format!("{:?}", t.reach)).collect();
        prop_assert_eq!(reaches.len(), tiers.len());

        let mut shuffled = service.clone();
        shuffled.endpoints.reverse();
        let again = prioritise(&shuffled, &shuffled.ports[0], &here, &far);
        prop_assert_eq!(again.iter().map(show).collect::<Vec<_>>(),
            tiers.iter().map(show).collect::<Vec<_>>());
    }
}
