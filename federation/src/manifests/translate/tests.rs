use super::super::Listing;
use super::super::contents::Contents;
use super::super::{Counts, reader::View};
use super::*;

const SERVICE: &str = "{apiVersion: v1, kind: Service, metadata: {name: NAME, namespace: shop, \
    creationTimestamp: 2024-01-01T00:00:00Z}, spec: SPEC}";
const EXPORT: &str = "{apiVersion: multicluster.x-k8s.io/v1beta1, kind: ServiceExport, metadata: \
    {name: NAME, namespace: shop, creationTimestamp: 2025-01-01T00:00:00Z}, spec: SPEC}";
const SLICE: &str = "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: \
    NAME-x, namespace: shop, labels: {kubernetes.io/service-name: NAME}}, SPEC}";

fn object(template: &str, name: &str, spec: &str) -> String {
    format!("--- {}\n", template.replace("NAME", name).replace("SPEC", spec))
}

fn service(name: &str) -> String {
    object(SERVICE, name, "{ports: [{name: http, port: 80}]}")
}

fn slice(name: &str, endpoints: &str) -> String {
    let spec =
        format!("addressType: IPv4, ports: [{{name: http, port: 8080}}], endpoints: [{endpoints}]");
    object(SLICE, name, &spec)
}

fn options() -> Options {
    Options::new("us-west1".parse().unwrap(), "us-west1-a".parse().unwrap())
}

fn desired(text: &str, options: &Options) -> Desired {
    let contents = Contents::of("a.yaml", text, false);
    assert_eq!(contents.broken, []);
    let view = View {
        objects: contents.objects.iter().map(|found| (&found.id, found)).collect(),
        unreadable: BTreeSet::new(),
        problems: Vec::new(),
        counts: Counts::default(),
        complete: true,
        gaps: false,
        listing: Listing {
            id: 1,
            at: tokio::time::Instant::now(),
            since: 1,
            settled: true,
            lost: None,
        },
    };
    translate(view, options)
}

/// The records by the end of their keys, and the problems.
#[track_caller]
fn check(text: &str, options: &Options, records: &[&str], problems: &[&str]) -> Desired {
    let desired = desired(text, options);
    let keys: Vec<_> = desired.records.keys().map(ToString::to_string).collect();
    let prefix = "/tombolo/v1/us-west1/us-west1-a/";
    let keys: Vec<_> = keys.iter().map(|key| key.strip_prefix(prefix).unwrap()).collect();
    assert_eq!(keys, records);
    let found: Vec<_> = desired.problems.iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), problems.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(problems) {
        assert!(found.contains(expected), "{found}");
    }
    for (key, body) in &desired.records {
        assert_eq!(key.to_string().parse::<Key>().unwrap(), *key);
        assert_eq!(key.kind, body.kind());
    }
    desired
}

fn export_of(desired: &Desired) -> &record::Export {
    let exports = desired.records.values().find_map(|body| match body {
        Body::Export(export) => Some(export),
        _ => None,
    });
    exports.unwrap()
}

fn endpoints_of(desired: &Desired) -> Vec<Endpoint> {
    let endpoints = desired.records.values().filter_map(|body| match body {
        Body::Endpoints(endpoints) => Some(endpoints.endpoints.clone()),
        _ => None,
    });
    endpoints.flatten().collect()
}

#[test]
fn what_has_a_service_and_an_export_is_exported() {
    let spec = "{exportedLabels: {a: b}}";
    let text = service("cart")
        + &service("local")
        + &object(EXPORT, "cart", spec)
        + &slice("cart", "{addresses: [10.0.0.1]}")
        + &slice("local", "{addresses: [10.0.0.2]}");
    let records = ["namespace/_/shop", "export/shop/cart", "endpoints/shop/cart/cart-x"];
    let desired = check(&text, &options(), &records, &[]);
    let export = export_of(&desired);
    assert_eq!(export.exported_labels["a"], "b");
    assert_eq!(export.service_type, ServiceType::ClusterSetIP);
    assert_eq!(export.ip_families, [IpFamily::V4]);
    assert_eq!(export.created.unwrap().to_string(), "2025-01-01T00:00:00Z");
    assert!(desired.services_without_endpoints.is_empty());
}

#[test]
fn exports_of_nothing_and_of_aliases_are_reported() {
    let text = object(EXPORT, "gone", "{}")
        + &object(EXPORT, "alias", "{}")
        + &object(SERVICE, "alias", "{type: ExternalName, externalName: example.com}");
    let problems = [
        "ServiceExport shop/alias: Service shop/alias: is of type ExternalName",
        "ServiceExport shop/gone: Service shop/gone: does not exist",
    ];
    check(&text, &options(), &[], &[problems[1], problems[0]]);
}

#[test]
fn all_services_are_exported_on_request() {
    let api = service("kubernetes").replace("namespace: shop", "namespace: default");
    let text = service("cart")
        + &api
        + &object(SERVICE, "alias", "{type: ExternalName, externalName: example.com}");
    let options = Options { export_all: true, ..options() };
    let desired = check(&text, &options, &["namespace/_/shop", "export/shop/cart"], &[]);
    assert_eq!(desired.services_without_endpoints.len(), 1);
    // By the Service's own time, as nothing else says when it was exported (MCS R30).
    assert_eq!(export_of(&desired).precedence.to_string(), "2024-01-01T00:00:00Z");
}

#[test]
fn precedence_is_the_later_of_creation_and_join() {
    let text = service("cart") + &object(EXPORT, "cart", "{}");
    let precedence = |text: &str, joined: Option<&str>| {
        let joined = joined.map(|text| text.parse().unwrap());
        let options = Options { joined, ..options() };
        export_of(&desired(text, &options)).precedence.to_string()
    };
    assert_eq!(precedence(&text, None), "2025-01-01T00:00:00Z");
    assert_eq!(precedence(&text, Some("2024-06-01T00:00:00Z")), "2025-01-01T00:00:00Z");
    assert_eq!(precedence(&text, Some("2026-01-01T00:00:00Z")), "2026-01-01T00:00:00Z");
    let undated = text.replace("creationTimestamp", "x");
    assert_eq!(precedence(&undated, None), "1970-01-01T00:00:00Z");
    assert_eq!(precedence(&undated, Some("2026-01-01T00:00:00Z")), "2026-01-01T00:00:00Z");
}

#[test]
fn addresses_outside_the_cluster_are_refused_one_by_one() {
    let addresses = ["10.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "11.0.0.1"];
    let endpoints = addresses.map(|address| format!("{{addresses: [{address}]}}")).join(", ");
    let text = service("cart") + &object(EXPORT, "cart", "{}") + &slice("cart", &endpoints);
    let accepted = |cidrs: &[&str], problems: &[&str]| {
        let pod_cidrs = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        let options = Options { pod_cidrs, ..options() };
        let records = ["namespace/_/shop", "export/shop/cart", "endpoints/shop/cart/cart-x"];
        let desired = check(&text, &options, &records, problems);
        endpoints_of(&desired).iter().map(|e| e.address.to_string()).collect::<Vec<_>>()
    };
    let never = "EndpointSlice shop/cart-x: endpoints: 169.254.169.254, 0.0.0.0, 224.0.0.1 refused";
    let outside = "EndpointSlice shop/cart-x: endpoints: 11.0.0.1 refused: the cluster declares \
                   10.0.0.0/8";
    assert_eq!(accepted(&[], &[never]), ["10.0.0.1", "11.0.0.1"]);
    assert_eq!(accepted(&["10.0.0.0/8"], &[outside, never]), ["10.0.0.1"]);
    assert_eq!(accepted(&["0.0.0.0/0"], &[never]), ["10.0.0.1", "11.0.0.1"]);
}

#[test]
fn conditions_that_are_not_set_have_kubernetes_meaning() {
    let check = |conditions: &str, expected: (bool, bool, bool)| {
        let endpoint = format!("{{addresses: [10.0.0.1], conditions: {conditions}}}");
        let text = service("cart") + &object(EXPORT, "cart", "{}") + &slice("cart", &endpoint);
        let found = &endpoints_of(&desired(&text, &options()))[0];
        assert_eq!((found.ready, found.serving, found.terminating), expected, "{conditions}");
    };
    check("{}", (true, true, false));
    check("null", (true, true, false));
    check("{ready: false}", (false, false, false));
    check("{ready: false, serving: true, terminating: true}", (false, true, true));
}

#[test]
fn slices_that_cannot_be_used_say_so() {
    let lone = slice("cart", "{addresses: [10.0.0.1]}").replace("kubernetes.io/service-name", "x");
    check(&lone, &options(), &[], &["metadata.labels: has no kubernetes.io/service-name"]);
    let text = service("cart")
        + &object(EXPORT, "cart", "{}")
        + &slice("cart", "{addresses: [10.0.0.1]}").replace("name: http", "name: web");
    let records = ["namespace/_/shop", "export/shop/cart", "endpoints/shop/cart/cart-x"];
    let mismatch = "ports: has \"web\" TCP, expected one of Service shop/cart: \"http\" TCP";
    check(&text, &options(), &records, &[mismatch]);
    let imported = "kubernetes.io/service-name: cart, multicluster.kubernetes.io/source-cluster: x";
    let text = service("cart")
        + &object(EXPORT, "cart", "{}")
        + &slice("cart", "{addresses: [10.0.0.1]}")
            .replace("kubernetes.io/service-name: cart", imported);
    check(&text, &options(), &["namespace/_/shop", "export/shop/cart"], &[]);
}

#[test]
fn headless_services_and_families() {
    let export = |spec: &str, slices: &str| {
        let text = object(SERVICE, "cart", spec) + &object(EXPORT, "cart", "{}") + slices;
        let desired = desired(&text, &options());
        let export = export_of(&desired);
        (export.service_type, export.ip_families.clone())
    };
    let six = object(SLICE, "cart", "addressType: IPv6, endpoints: []");
    let (v4, v6) = (IpFamily::V4, IpFamily::V6);
    assert_eq!(export("{clusterIP: None}", ""), (ServiceType::Headless, vec![v4]));
    assert_eq!(export("{clusterIP: None}", &six), (ServiceType::Headless, vec![v6]));
    let declared = "{clusterIP: None, ipFamilies: [IPv6, IPv4]}";
    assert_eq!(export(declared, &six), (ServiceType::Headless, vec![v6, v4]));
    let by_ip = "{clusterIPs: [10.0.0.1, \"fd00::1\"], ports: [{port: 80}]}";
    assert_eq!(export(by_ip, ""), (ServiceType::ClusterSetIP, vec![v4, v6]));
}

#[test]
fn of_a_namespaces_labels_only_allowed_ones_leave() {
    let text = "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {a: b, c: d}}}";
    let labels = |options: &Options| {
        let desired = check(text, options, &["namespace/_/shop"], &[]);
        match desired.records.into_values().next() {
            Some(Body::Namespace(namespace)) => namespace.labels.into_keys().collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        }
    };
    assert!(labels(&options()).is_empty());
    assert_eq!(labels(&Options { namespace_labels: ["c".to_owned()].into(), ..options() }), ["c"]);
}
