use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use prost::Message;
use tombolo_federation::record;

use super::*;
use crate::class::ClientLocality;
use crate::testkit::{at, catalog, key, service};

fn class(region: &str) -> ClientClass {
    ClientClass {
        kind: ClientKind::Envoy,
        locality: ClientLocality {
            region: region.parse().unwrap(),
            zone: None,
            cluster: None,
            network: "net".into(),
        },
        listener: at("127.0.0.1:15001"),
    }
}

fn cache() -> Cache {
    Cache::new("clusterset.local".into(), Counter::default())
}

fn two(endpoints: &str) -> Vec<Service> {
    vec![
        service("shop/checkout").endpoints(endpoints).build(),
        service("shop/cart").endpoints("us/a/9").build(),
    ]
}

#[expect(clippy::unnecessary_wraps, reason = "what `apply` takes")]
fn touched(names: &[&str]) -> Option<BTreeSet<ServiceKey>> {
    Some(names.iter().map(|name| key(name)).collect())
}

const CHECKOUT: &str = "outbound|80||checkout.shop.svc.clusterset.local";

#[test]
fn x7_nothing_before_the_first_complete_catalog() {
    let cache = cache();
    assert!(cache.subscribe(&class("us")).is_none());
    let mut early = catalog(1, two("us/a/1"));
    early.complete = false;
    cache.apply(&Arc::new(early), None);
    assert!(cache.subscribe(&class("us")).is_none());
    cache.apply(&Arc::new(catalog(2, two("us/a/1"))), None);
    let view = cache.subscribe(&class("us")).unwrap().borrow().clone();
    assert_eq!(Type::ALL.map(|of| view.table(of).iter().count()), [2, 2, 1, 1]);
}

#[test]
fn what_an_incomplete_catalog_lacks_stays_until_a_complete_one_lacks_it() {
    let cache = cache();
    cache.apply(&Arc::new(catalog(1, two("us/a/1"))), None);
    let views = cache.subscribe(&class("us")).unwrap();
    let mut partial = catalog(2, Vec::new());
    partial.complete = false;
    cache.apply(&Arc::new(partial), touched(&["shop/checkout", "shop/cart"]));
    assert!(views.borrow().table(Type::Cluster).get(CHECKOUT).is_some());
    cache.apply(&Arc::new(catalog(3, Vec::new())), touched(&[]));
    assert!(views.borrow().table(Type::Cluster).get(CHECKOUT).is_none());
}

#[test]
fn a_change_names_what_it_changed_and_shares_the_rest() {
    let cache = cache();
    cache.apply(&Arc::new(catalog(1, two("us/a/1"))), None);
    let mut views = cache.subscribe(&class("us")).unwrap();
    let before = views.borrow_and_update().clone();
    cache.apply(&Arc::new(catalog(2, two("us/a/1 us/a/2"))), touched(&["shop/checkout"]));
    assert!(views.has_changed().unwrap());
    let after = views.borrow_and_update().clone();
    let changes = |of| after.table(of).changed_since(before.revision).unwrap();
    assert_eq!(changes(Type::Endpoints), Names::from([Arc::from(CHECKOUT)]));
    assert!(Type::ALL.into_iter().filter(|t| *t != Type::Endpoints).all(|t| changes(t).is_empty()));
}

#[test]
fn s7_equal_bytes_wake_nobody() {
    let cache = cache();
    cache.apply(&Arc::new(catalog(1, two("us/a/1"))), None);
    let mut views = cache.subscribe(&class("us")).unwrap();
    views.borrow_and_update();
    let mut same = two("us/a/1");
    same[0].annotations.insert("touched-by".into(), "an autoscaler".into());
    cache.apply(&Arc::new(catalog(2, same)), touched(&["shop/checkout"]));
    assert!(!views.has_changed().unwrap());
}

#[test]
fn s3_classes_share_encodings_and_unused_ones_are_dropped() {
    let cache = cache();
    cache.apply(&Arc::new(catalog(1, two("us/a/1"))), None);
    let (us, eu) = (class("us"), class("eu"));
    let here = cache.subscribe(&us).unwrap();
    let there = cache.subscribe(&eu).unwrap();
    let shared = |of| {
        let (here, there) = (here.borrow().clone(), there.borrow().clone());
        here.table(of).iter().zip(there.table(of).iter()).all(|(a, b)| Arc::ptr_eq(a, b))
    };
    assert!(shared(Type::Cluster) && shared(Type::Route) && shared(Type::Listener));
    assert!(!shared(Type::Endpoints));
    drop(there);
    cache.apply(&Arc::new(catalog(2, two("us/a/1"))), touched(&[]));
    assert_eq!(cache.lock().endpoints.len(), 1);
}

#[test]
fn a_regions_new_distances_reorder_its_clients_priorities() {
    let cache = cache();
    let services = || vec![service("shop/checkout").endpoints("eu/a/1 af/a/2").build()];
    let with = |generation, af| {
        let mut catalog = catalog(generation, services());
        let region = record::Region {
            distances: [("eu".parse().unwrap(), 50), ("af".parse().unwrap(), af)].into(),
            ..record::Region::default()
        };
        catalog.regions.insert_mut("us".parse().unwrap(), Arc::new(region));
        Arc::new(catalog)
    };
    cache.apply(&with(1, 90), None);
    let views = cache.subscribe(&class("us")).unwrap();
    let nearest = || {
        let view = views.borrow().clone();
        let body = view.table(Type::Endpoints).get(CHECKOUT).unwrap().body.clone();
        let message = ClusterLoadAssignment::decode(body).unwrap();
        let first = message.endpoints.into_iter().find(|e| e.priority == 0);
        first.unwrap().locality.unwrap().region
    };
    assert_eq!(nearest(), "eu");
    cache.apply(&with(2, 10), touched(&[]));
    assert_eq!(nearest(), "af");
}

#[test]
fn ports_that_go_take_their_resources_with_them() {
    let cache = cache();
    let build = |ports: &[&str]| {
        let service = service("shop/checkout").ports(ports).endpoints("us/a/1").build();
        vec![service]
    };
    cache.apply(&Arc::new(catalog(1, build(&["http=80", "admin=81"]))), None);
    let views = cache.subscribe(&class("us")).unwrap();
    let count = |of| views.borrow().table(of).iter().count();
    assert_eq!((count(Type::Cluster), count(Type::Endpoints)), (2, 2));
    cache.apply(&Arc::new(catalog(2, build(&["http=80"]))), touched(&["shop/checkout"]));
    assert_eq!((count(Type::Cluster), count(Type::Endpoints)), (1, 1));
}
