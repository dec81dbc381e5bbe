use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::arbitrary::{self, plain_export, ready_endpoint};
use super::*;
use crate::record::{
    Beacon, Body, Cluster, EndpointPort, Endpoints, Epoch, Export, Namespace, Origin, Protocol,
    Region, Suspect,
};

type Change = (Key, Option<Arc<Record>>);

const CLUSTER_A: &str = "us/us-a/cluster/_/us-a";
const CLUSTER_B: &str = "us/us-b/cluster/_/us-b";

fn key(text: &str) -> Key {
    format!("{}{text}", crate::key::PREFIX).parse().unwrap()
}

fn put(text: &str, body: Body) -> Change {
    let key = key(text);
    let epoch = Epoch { id: "lease".into(), count: 1 };
    let origin = Origin { epoch, ..Origin::default() };
    (key.clone(), Some(Arc::new(Record { key, origin, body })))
}

fn remove(text: &str) -> Change {
    (key(text), None)
}

fn cluster(network: &str) -> Body {
    Body::Cluster(Cluster { uid: "u".into(), network: network.into(), ..Cluster::default() })
}

fn slice(addresses: &[&str]) -> Body {
    let http = EndpointPort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: 8080,
        app_protocol: String::new(),
    };
    let endpoints = addresses.iter().map(|address| ready_endpoint(address)).collect();
    Body::Endpoints(Endpoints { ports: vec![http], endpoints })
}

fn export() -> Body {
    Body::Export(plain_export())
}

fn service(text: &str) -> ServiceKey {
    let (namespace, name) = text.split_once('/').unwrap();
    ServiceKey { namespace: namespace.parse().unwrap(), name: name.parse().unwrap() }
}

/// Builds on what was there before; fails if nothing changed.
fn next(builder: &mut Builder, changes: impl IntoIterator<Item = Change>) -> Arc<Catalog> {
    builder.apply(changes);
    builder.snapshot().expect("something changed")
}

fn touched(catalog: &Catalog, since: u64) -> Vec<String> {
    let touched = catalog.touched_since(since).expect("not forgotten");
    touched.iter().map(ToString::to_string).collect()
}

/// `address network`
fn endpoints(catalog: &Catalog, name: &str) -> Vec<String> {
    let service = catalog.services.get(&service(name)).expect("exported");
    let shown = |e: &super::super::Endpoint| format!("{} {}", e.address(), e.network);
    service.endpoints.iter().map(shown).collect()
}

fn shop() -> Vec<Change> {
    vec![
        put(CLUSTER_A, cluster("vpc")),
        put("us/us-a/namespace/_/shop", Body::Namespace(Namespace::default())),
        put("us/us-a/export/shop/checkout", export()),
        put("us/us-a/endpoints/shop/checkout/s1", slice(&["10.0.0.1"])),
        put("us/us-a/export/shop/cart", export()),
    ]
}

#[test]
fn records_become_a_catalog() {
    let mut builder = Builder::new();
    assert!(builder.snapshot().is_none(), "nothing changed yet");
    builder.set_complete(true);
    let catalog = next(&mut builder, shop());
    assert!(catalog.complete);
    assert_eq!(catalog.generation, 1);
    assert_eq!(touched(&catalog, 0), ["shop/cart", "shop/checkout"]);
    assert_eq!(endpoints(&catalog, "shop/checkout"), ["10.0.0.1 vpc"]);
    let shop: NamespaceName = "shop".parse().unwrap();
    assert_eq!(catalog.namespaces.get(&shop).unwrap().len(), 1);
    let known = catalog.clusters.get(&"us-a".parse().unwrap()).unwrap();
    assert_eq!((known.region.as_str(), known.record.network.as_str()), ("us", "vpc"));

    let region = Region { reads_level: 1, ..Region::default() };
    let later = next(&mut builder, [put("us/_/region/_/us", Body::Region(region))]);
    assert_eq!(later.regions.get(&"us".parse().unwrap()).unwrap().reads_level, 1);
    assert_eq!(touched(&later, 1), Vec::<String>::new());
    assert_eq!(later.digest(), catalog.digest(), "regions' addresses are no content");
}

#[test]
fn removals_take_everything_back() {
    let mut builder = Builder::new();
    let before = next(&mut builder, shop());
    let gone: Vec<Change> = shop().into_iter().map(|(key, _)| (key, None)).collect();
    let after = next(&mut builder, gone);
    assert_eq!(touched(&after, before.generation), ["shop/cart", "shop/checkout"]);
    assert!(after.services.is_empty() && after.namespaces.is_empty());
    assert!(after.clusters.is_empty() && after.regions.is_empty());
    assert_eq!(after.digest(), Catalog::empty().digest());
    assert_eq!(before.services.size(), 2, "a snapshot does not change");
    let nothing = format!("{:?}", Sources::default());
    assert_eq!(format!("{:?}", builder.sources), nothing, "no index outlives its records");
}

#[test]
fn completeness_alone_is_a_change() {
    let mut builder = Builder::new();
    builder.set_complete(true);
    let catalog = builder.snapshot().expect("complete is news");
    assert_eq!(touched(&catalog, 0), Vec::<String>::new());
    assert!(builder.snapshot().is_none());
    builder.set_complete(false);
    builder.set_complete(true);
    assert!(builder.snapshot().is_none());
}

#[test]
fn suspicion_touches_the_services_of_its_cluster_once_and_its_numbers_touch_none() {
    let mut builder = Builder::new();
    let before = next(&mut builder, shop());
    let suspicious = |ready| {
        let suspect = Suspect { id: "s".into(), since: jiff::Timestamp::UNIX_EPOCH, ready, of: 10 };
        let Body::Cluster(cluster) = cluster("vpc") else { unreachable!() };
        put(CLUSTER_A, Body::Cluster(Cluster { suspect: Some(suspect), ..cluster }))
    };
    let mut fallen = ready_endpoint("10.0.0.1");
    fallen.ready = false;
    let slice = Endpoints { ports: Vec::new(), endpoints: vec![fallen] };
    let fallen = put("us/us-a/endpoints/shop/checkout/s1", Body::Endpoints(slice));
    let unready = next(&mut builder, [fallen]);
    let suspect = next(&mut builder, [suspicious(2)]);
    assert_eq!(touched(&suspect, unready.generation), ["shop/checkout"]);
    let endpoint = |catalog: &Catalog| {
        catalog.services.get(&service("shop/checkout")).unwrap().endpoints[0].degraded
    };
    assert!(endpoint(&suspect) && !endpoint(&unready));
    assert_ne!(suspect.digest(), unready.digest(), "what is served differs");
    let merges = builder.merges();
    let more = next(&mut builder, [suspicious(1)]);
    assert_eq!((touched(&more, suspect.generation), builder.merges()), (Vec::new(), merges));
    let over = next(&mut builder, [put(CLUSTER_A, cluster("vpc"))]);
    assert!(!endpoint(&over));
    assert_eq!(over.digest(), unready.digest());
    assert_ne!(over.digest(), before.digest());
}

#[test]
fn endpoints_wait_for_the_network_of_their_cluster() {
    let mut builder = Builder::new();
    let catalog = next(&mut builder, shop().into_iter().skip(1));
    assert_eq!(endpoints(&catalog, "shop/checkout"), Vec::<String>::new());
    assert_eq!(catalog.services.size(), 2, "exports do not wait");
    let catalog = next(&mut builder, [put(CLUSTER_A, cluster("vpc"))]);
    assert_eq!(touched(&catalog, 1), ["shop/checkout"]);
    let catalog = next(&mut builder, [put(CLUSTER_A, cluster("other"))]);
    assert_eq!(touched(&catalog, 2), ["shop/checkout"]);
    assert_eq!(endpoints(&catalog, "shop/checkout"), ["10.0.0.1 other"]);
}

#[test]
fn what_says_the_same_is_not_merged_again() {
    let mut builder = Builder::new();
    next(&mut builder, shop());
    let merges = builder.merges();
    builder.apply(shop().into_iter().map(|(key, record)| {
        let mut record = (*record.unwrap()).clone();
        record.origin.sequence = 99;
        (key, Some(Arc::new(record)))
    }));
    assert!(builder.snapshot().is_none());
    let grown = Cluster { software_version: "2".into(), ..Cluster::default() };
    let cluster = Body::Cluster(Cluster { network: "vpc".into(), ..grown });
    next(&mut builder, [put(CLUSTER_A, cluster)]);
    assert_eq!(builder.merges(), merges);
}

#[test]
fn what_merges_to_the_same_wakes_nobody() {
    let mut builder = Builder::new();
    let before = next(&mut builder, shop());
    let merges = builder.merges();
    // Endpoints without an export, and a second slice with what the first one says.
    builder.apply([
        put("us/us-a/endpoints/shop/other/s1", slice(&["10.0.0.9"])),
        put("us/us-a/endpoints/shop/checkout/s2", slice(&["10.0.0.1"])),
    ]);
    assert!(builder.snapshot().is_none());
    assert_eq!(builder.merges(), merges + 2);
    let after = next(&mut builder, [remove("us/us-a/export/shop/cart")]);
    let pick =
        |catalog: &Catalog| Arc::clone(catalog.services.get(&service("shop/checkout")).unwrap());
    assert!(Arc::ptr_eq(&pick(&before), &pick(&after)));
}

#[test]
fn what_the_catalog_is_not_made_of_is_ignored() {
    let mut builder = Builder::new();
    next(&mut builder, shop());
    let (mut foreign, _) = remove("us/us-a/export/shop/cart");
    foreign.owner.cluster = None;
    let mismatched = put("us/us-a/export/shop/cart", cluster("vpc"));
    let beacon = put("us/us-a/beacon/_/us-a", Body::Beacon(Beacon { nonce: 1 }));
    builder.apply([beacon, mismatched, (foreign, None), remove("us/us-a/policy/shop/p")]);
    assert!(builder.snapshot().is_none());
}

#[test]
fn one_id_in_two_regions_belongs_to_the_first() {
    let mut builder = Builder::new();
    let id = "us-west1-a".parse().unwrap();
    let owner = |catalog: &Catalog| catalog.clusters.get(&id).unwrap().region.to_string();
    let catalog =
        next(&mut builder, [put("us-west1/us-west1-a/cluster/_/us-west1-a", cluster("n"))]);
    assert_eq!(owner(&catalog), "us-west1");
    let catalog = next(&mut builder, [put("us/us-west1-a/cluster/_/us-west1-a", cluster("n"))]);
    assert_eq!(owner(&catalog), "us");
    let catalog = next(&mut builder, [remove("us/us-west1-a/cluster/_/us-west1-a")]);
    assert_eq!(owner(&catalog), "us-west1");
}

#[test]
fn the_digest_covers_content_and_not_join_times() {
    let digest = |a: i64, b: i64, address: &str, port: u16| {
        let export = |at| {
            let precedence = jiff::Timestamp::from_second(at).unwrap();
            Body::Export(Export { precedence, ..plain_export() })
        };
        let Body::Endpoints(mut slice) = slice(&[address]) else { unreachable!() };
        slice.ports[0].port = port;
        let mut builder = Builder::new();
        let changes = [
            put(CLUSTER_A, cluster("vpc")),
            put(CLUSTER_B, cluster("vpc")),
            put("us/us-a/export/shop/checkout", export(a)),
            put("us/us-b/export/shop/checkout", export(b)),
            put("us/us-a/endpoints/shop/checkout/s", Body::Endpoints(slice)),
        ];
        next(&mut builder, changes).digest()
    };
    let reference = digest(1, 2, "10.0.0.1", 80);
    assert_eq!(digest(4, 3, "10.0.0.1", 80), reference);
    assert_ne!(digest(1, 2, "10.0.0.2", 80), reference);
    assert_ne!(digest(1, 2, "10.0.0.1", 81), reference);
}

/// Processes of different versions compare digests: these bytes are not to change by accident.
#[test]
fn the_bytes_under_the_digest_are_golden() {
    let mut builder = Builder::new();
    let catalog = next(&mut builder, shop());
    let checkout = catalog.services.get(&service("shop/checkout")).unwrap();
    assert_eq!(
        String::from_utf8(content::service(checkout)).unwrap(),
        r#"{"service_type":"ClusterSetIP","ports":[],"session_affinity":"","session_affinity_timeout":null,"internal_traffic_policy":"","traffic_distribution":"","ip_families":["IPv4"],"labels":{},"annotations":{},"conflicts":[],"exports":{"us-a":{"region":"us","ports":[]}},"endpoints":[{"cluster":"us-a","region":"us","network":"vpc","address":"10.0.0.1","ready":true,"serving":true,"terminating":false,"was_ready":true,"zone":"","hostname":"","node":"","target":"","service_account":"","meshed":false,"ports":[{"name":"http","protocol":"TCP","port":8080}]}]}"#
    );
    assert_eq!(content::namespace(&["us-a".parse().unwrap()].into()), br#"["us-a"]"#);
}

#[test]
fn changes_are_forgotten_by_generations() {
    let mut builder = Builder::new();
    let flip = |builder: &mut Builder, on: bool| {
        let text = "us/us-a/export/shop/checkout";
        next(builder, [if on { put(text, export()) } else { remove(text) }])
    };
    let mut catalog = flip(&mut builder, true);
    for round in 1..300 {
        catalog = flip(&mut builder, round % 2 == 0);
    }
    assert_eq!(catalog.generation, 300);
    assert_eq!(catalog.touched_since(300), Some(BTreeSet::new()));
    assert_eq!(touched(&catalog, 44), ["shop/checkout"]);
    assert_eq!(catalog.touched_since(43), None, "generation 44 is no longer listed");
}

#[test]
fn changes_are_forgotten_by_keys() {
    let mut changes = super::super::Changes::default();
    let keys = |range: std::ops::Range<u32>| -> Vec<ServiceKey> {
        range.map(|n| service(&format!("shop/s{n}"))).collect()
    };
    changes.push(1, keys(0..4_000));
    changes.push(2, Vec::new());
    changes.push(3, keys(0..6_000));
    assert_eq!((changes.recent.len(), changes.forgotten), (2, 0));
    changes.push(4, keys(0..1));
    assert_eq!((changes.recent.len(), changes.forgotten), (2, 1));
    changes.push(5, keys(0..10_001));
    assert_eq!((changes.recent.len(), changes.forgotten), (0, 5));
    let catalog = Catalog { generation: 5, changes: Arc::new(changes), ..Catalog::empty() };
    assert_eq!(catalog.touched_since(4), None);
    assert_eq!(catalog.touched_since(5), Some(BTreeSet::new()));
}

/// Work is in proportion to what changed, not to what there is.
#[test]
fn one_endpoint_among_ten_thousand_services_merges_one() {
    let mut builder = Builder::new();
    let load = (0..10_000).flat_map(|n| {
        [
            put(&format!("us/us-a/export/shop/s{n}"), export()),
            put(&format!("us/us-a/endpoints/shop/s{n}/s"), slice(&["10.0.0.1", "10.0.0.2"])),
        ]
    });
    let before = next(&mut builder, load.chain([put(CLUSTER_A, cluster("vpc"))]));
    assert_eq!(builder.merges(), 10_000);
    let after = next(&mut builder, [put("us/us-a/endpoints/shop/s77/s", slice(&["10.0.0.1"]))]);
    assert_eq!(builder.merges(), 10_001);
    assert_eq!(touched(&after, before.generation), ["shop/s77"]);
    let differing = before.services.iter().filter(|(key, held)| {
        !Arc::ptr_eq(held, after.services.get(key).expect("nothing was removed"))
    });
    assert_eq!(differing.count(), 1);
}

/// A change to one of few keys, so that histories keep overwriting and removing.
fn change() -> impl Strategy<Value = Change> {
    // The last two have one and the same id.
    let owners = ["us/us-a", "eu/eu-a", "us/us-west1-a", "us-west1/us-west1-a"];
    let owner = prop::sample::select(owners.to_vec());
    let name = prop::sample::select(&["shop/checkout", "shop/cart", "bank/cart"][..]);
    let body = prop_oneof![
        2 => arbitrary::network().prop_map(|network| cluster(&network)),
        1 => Just(Body::Namespace(Namespace::default())),
        1 => (1_u32..3).prop_map(|level| Body::Region(Region { reads_level: level, ..Region::default() })),
        4 => arbitrary::export().prop_map(Body::Export),
        4 => arbitrary::slice().prop_map(Body::Endpoints),
    ];
    (owner, name, body, 0..2, prop::bool::weighted(0.3)).prop_map(
        |(owner, name, body, part, gone)| {
            let (region, id) = owner.split_once('/').unwrap();
            let (namespace, _) = name.split_once('/').unwrap();
            let text = match body {
                Body::Cluster(_) => format!("{owner}/cluster/_/{id}"),
                Body::Namespace(_) => format!("{owner}/namespace/_/{namespace}"),
                Body::Region(_) => format!("{region}/_/region/_/{region}"),
                Body::Export(_) => format!("{owner}/export/{name}"),
                _ => format!("{owner}/endpoints/{name}/s{part}"),
            };
            if gone { remove(&text) } else { put(&text, body) }
        },
    )
}

/// A history cut into groups, and what it leaves in another order.
fn history() -> impl Strategy<Value = (Vec<Vec<Change>>, Vec<Change>)> {
    let groups = prop::collection::vec(prop::collection::vec(change(), 0..8), 1..12);
    groups.prop_flat_map(|groups| {
        let last: BTreeMap<Key, _> = groups.iter().flatten().cloned().collect();
        let left: Vec<Change> = last.into_iter().filter(|(_, value)| value.is_some()).collect();
        (Just(groups), Just(left).prop_shuffle())
    })
}

fn differing(one: &Catalog, other: &Catalog) -> BTreeSet<ServiceKey> {
    let keys: BTreeSet<_> = one.services.keys().chain(other.services.keys()).cloned().collect();
    keys.into_iter().filter(|key| one.services.get(key) != other.services.get(key)).collect()
}

fn shares_what_is_equal(one: &Catalog, other: &Catalog) -> bool {
    one.services.iter().all(|(key, held)| match other.services.get(key) {
        Some(next) if next == held => Arc::ptr_eq(next, held),
        _ => true,
    })
}

proptest! {
    #[test]
    fn only_what_is_left_counts((groups, left) in history()) {
        let mut builder = Builder::new();
        let mut newest = Arc::new(Catalog::empty());
        for group in groups {
            builder.apply(group);
            newest = builder.snapshot().unwrap_or(newest);
        }
        let mut fresh = Builder::new();
        fresh.apply(left);
        let expected = fresh.snapshot().unwrap_or_else(|| Arc::new(Catalog::empty()));
        prop_assert_eq!(newest.digest(), expected.digest());
        prop_assert_eq!(&newest.services, &expected.services);
        prop_assert_eq!(&newest.namespaces, &expected.namespaces);
        prop_assert_eq!(&newest.clusters, &expected.clusters);
        prop_assert_eq!(&newest.regions, &expected.regions);
    }

    #[test]
    fn touched_is_exactly_what_differs((groups, _) in history()) {
        let mut builder = Builder::new();
        let mut before = Arc::new(Catalog::empty());
        let first = Arc::clone(&before);
        let mut all = BTreeSet::new();
        for group in groups {
            builder.apply(group);
            let Some(after) = builder.snapshot() else { continue };
            prop_assert_eq!(after.generation, before.generation + 1);
            let differing = differing(&before, &after);
            prop_assert_eq!(after.touched_since(before.generation), Some(differing.clone()));
            prop_assert!(shares_what_is_equal(&before, &after));
            all.extend(differing);
            prop_assert_eq!(after.touched_since(first.generation), Some(all.clone()));
            before = after;
        }
    }
}
