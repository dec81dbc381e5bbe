//! Directories as projects publish them, and the examples of this one.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;
use tombolo_federation::key::Kind;
use tombolo_federation::manifests::{Desired, Options, Source};
use tombolo_federation::record::{Body, ServiceType};

fn options(region: &str, cluster: &str) -> Options {
    let id = format!("{region}-{cluster}");
    let mut options = Options::new(region.parse().unwrap(), id.parse().unwrap());
    options.pod_cidrs = vec!["127.0.0.0/8".parse().unwrap(), "10.0.0.0/8".parse().unwrap()];
    options
}

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

async fn read(directory: PathBuf, options: Options) -> Arc<Desired> {
    assert!(directory.is_dir(), "{}", directory.display());
    let (_options, options_rx) = watch::channel(options);
    let (_source, desired) = Source::open(directory, options_rx).await.unwrap();
    Arc::clone(&desired.borrow())
}

fn problems(desired: &Desired) -> Vec<String> {
    desired.problems.iter().map(ToString::to_string).collect()
}

/// The names of exported services.
fn exports(desired: &Desired) -> Vec<String> {
    let keys = desired.records.keys().filter(|key| key.kind == Kind::Export);
    keys.map(|key| key.service().unwrap().to_string()).collect()
}

#[tokio::test]
async fn a_published_set_is_read_among_everything_else() {
    let mut options = options("us-west1", "a");
    options.export_all = true;
    let desired = read(here("tests/manifests/webshop"), options).await;
    assert_eq!(problems(&desired), Vec::<String>::new());
    assert!(desired.complete && !desired.gaps);
    assert_eq!(exports(&desired), ["default/queue", "default/web", "default/web-external"]);
    let without: Vec<_> =
        desired.services_without_endpoints.iter().map(ToString::to_string).collect();
    assert_eq!(without, exports(&desired));
    let counts = &desired.counts;
    assert_eq!(counts.files, 9);
    assert_eq!(counts.read, BTreeMap::from([("Service", 4)]));
    let other: Vec<_> = counts.other_kinds.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
    assert_eq!(
        other,
        [
            "Cart.shop.example 1",
            "ConfigMap 1",
            "CustomResourceDefinition.apiextensions.k8s.io 1",
            "Deployment.apps 1",
            "Ingress.networking.k8s.io 1",
            "Kustomization.kustomize.config.k8s.io 1",
            "StatefulSet.apps 1",
        ]
    );
    // Both documents of the chart's template; its values and description, a patch, a
    // kustomization.
    assert_eq!((counts.templates, counts.not_kubernetes), (2, 4));
}

#[tokio::test]
async fn without_an_export_nothing_leaves() {
    let desired = read(here("tests/manifests/webshop"), options("us-west1", "a")).await;
    assert!(desired.records.is_empty(), "{:?}", desired.records);
}

#[tokio::test]
async fn a_dump_of_a_cluster_is_read() {
    let desired = read(here("tests/manifests/dump"), options("us-west1", "a")).await;
    assert_eq!(
        problems(&desired),
        [
            "exports.json, document 1 (line 1): ServiceExport orders/returns: Service orders/returns: \
          does not exist, expected one of the same namespace and name"
        ]
    );
    assert_eq!(exports(&desired), ["orders/orders"]);
    assert_eq!(desired.counts.other_kinds, BTreeMap::from([("Endpoints".to_owned(), 1)]));
    assert_eq!(desired.counts.imported_slices, 1);
    assert_eq!(desired.records.len(), 3, "{:?}", desired.records.keys());
    for body in desired.records.values() {
        match body {
            Body::Export(export) => {
                assert_eq!(export.session_affinity_timeout, Some(60));
                assert_eq!(export.traffic_distribution, "PreferClose");
                assert_eq!(export.ports[0].app_protocol, "kubernetes.io/h2c");
                assert_eq!(export.precedence.to_string(), "2025-04-01T00:00:00Z");
            }
            Body::Endpoints(slice) => {
                let [ready, leaving] = &slice.endpoints[..] else { panic!("{slice:?}") };
                assert!(ready.ready && ready.was_ready && ready.node == "gke-pool-1.example");
                assert!(!leaving.ready && leaving.serving && leaving.terminating);
                assert_eq!((&*leaving.target, &*leaving.zone), ("orders-1", "us-west1-b"));
            }
            other => assert_eq!(other.kind(), Kind::Namespace),
        }
    }
}

#[tokio::test]
async fn the_examples_hold_what_the_tour_shows() {
    for (region, cluster, expected) in [
        ("us-west1", "alpha", "cart checkout inventory payments"),
        ("us-west1", "beta", "cart checkout redis"),
        ("europe-west4", "alpha", "cart catalog checkout inventory"),
        ("europe-west4", "beta", "cart catalog checkout redis"),
    ] {
        let directory = here(&format!("../examples/demo/{region}/{cluster}"));
        let desired = read(directory, options(region, cluster)).await;
        assert_eq!(problems(&desired), Vec::<String>::new());
        assert_eq!(desired.services_without_endpoints, []);
        let counts = &desired.counts;
        assert_eq!((counts.other_kinds.len(), counts.not_kubernetes), (0, 0), "{counts:?}");
        let names: Vec<_> = expected.split(' ').map(|name| format!("shop/{name}")).collect();
        assert_eq!(exports(&desired), names);
        check_example(&desired, region, cluster);
    }
}

/// Every service has one port for callers and pods, but `inventory`, and a pod in each zone.
fn check_example(desired: &Desired, region: &str, cluster: &str) {
    let number = |name: &str, names: [&str; 2]| 1 + names.iter().position(|n| *n == name).unwrap();
    let net = format!(
        "127.{}.{}.",
        number(region, ["us-west1", "europe-west4"]),
        number(cluster, ["alpha", "beta"])
    );
    for (key, body) in &desired.records {
        let name = key.name.as_str();
        match body {
            Body::Export(export) => {
                let headless = export.service_type == ServiceType::Headless;
                assert_eq!(headless, name == "redis");
                assert_eq!(export.ports[0].port, if name == "inventory" { 80 } else { 8080 });
            }
            Body::Endpoints(slice) => {
                assert_eq!(slice.ports[0].port, 8080);
                let zones: Vec<_> = slice.endpoints.iter().map(|e| e.zone.clone()).collect();
                assert_eq!(zones, [format!("{region}-a"), format!("{region}-b")]);
                for endpoint in &slice.endpoints {
                    assert!(endpoint.address.to_string().starts_with(&net), "{endpoint:?}");
                    assert!(endpoint.target.starts_with(name) && endpoint.ready);
                    assert_eq!(endpoint.hostname.is_empty(), name != "redis");
                }
            }
            _ => {}
        }
    }
}
