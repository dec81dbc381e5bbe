//! Requests through the demo's Envoys: near while near is healthy, far while it is not.

mod common;

use common::mesh::{Mesh, envoy};
use common::{AFTER_EJECTION, EU, SOON, US, ask};
use tombolo_testbed::{http, wait_for};

/// Requests that have to succeed one and all after backends went.
const EVERY_ONE: usize = 50;

#[test]
fn traffic_stays_in_its_region_while_that_is_healthy() -> anyhow::Result<()> {
    let Some(envoy) = envoy("e2e_traffic::traffic_stays_in_its_region") else { return Ok(()) };
    let mesh = Mesh::start_with("traffic-local", Some(envoy))?;
    for (region, cluster) in mesh.clusters() {
        for service in ["checkout", "cart", "inventory", "redis"] {
            ask::all_from(Mesh::envoy_of(cluster), service, region, 25)?;
        }
        // A backend says where it runs, as its slice has it.
        let backend = ask::fetch(Mesh::envoy_of(cluster), "checkout")?;
        assert!(backend.cluster.starts_with(region), "{backend:?}");
        assert!(backend.zone.starts_with(region), "{backend:?}");
        assert!(["checkout-1", "checkout-2"].contains(&backend.pod.as_str()), "{backend:?}");
        // Theirs alone: near or far, the name is the same.
        ask::all_from(Mesh::envoy_of(cluster), "catalog", EU, 10)?;
        ask::all_from(Mesh::envoy_of(cluster), "payments", US, 10)?;
    }
    mesh.end()
}

#[test]
fn with_local_backends_stopped_every_request_succeeds_elsewhere_and_then_all_come_back()
-> anyhow::Result<()> {
    let Some(envoy) = envoy("e2e_traffic::with_local_backends_stopped") else { return Ok(()) };
    let mesh = Mesh::start_with("traffic-failover", Some(envoy))?;
    let through = Mesh::envoy_of(mesh.us());
    ask::all_from(through, "checkout", US, EVERY_ONE)?;

    mesh.demo.control("stop backend us-west1-alpha/checkout")?;
    // One cluster of the region is left, at half its strength: gradual failover sends a part
    // away, and none of it is lost.
    let half = ask::regions(through, "checkout", EVERY_ONE)?;
    assert!(half.contains_key(US), "{half:?}");
    mesh.demo.control("stop backend us-west1-beta/checkout")?;
    ask::all_from(through, "checkout", EU, EVERY_ONE)?;
    // What was not stopped did not move.
    ask::all_from(through, "cart", US, 10)?;
    ask::all_from(Mesh::envoy_of(mesh.eu()), "checkout", EU, 10)?;

    mesh.demo.control("start backend us-west1-alpha/checkout")?;
    mesh.demo.control("start backend us-west1-beta/checkout")?;
    wait_for("traffic is local again, all of it", AFTER_EJECTION, || {
        ask::all_from(through, "checkout", US, EVERY_ONE)
    })?;
    mesh.end()
}

#[test]
fn a_service_without_any_backend_left_is_unavailable_and_alone_in_that() -> anyhow::Result<()> {
    let Some(envoy) = envoy("e2e_traffic::a_service_without_any_backend") else { return Ok(()) };
    let mesh = Mesh::start_with("traffic-nothing-left", Some(envoy))?;
    mesh.demo.control("stop backend us-west1-alpha/payments")?;
    let url = format!("http://{}/", ask::full("payments"));
    for (region, cluster) in mesh.clusters() {
        let through = Mesh::envoy_of(cluster);
        assert_eq!(http::get_via(through, &url)?.status, 503);
        ask::all_from(through, "checkout", region, 5)?;
    }
    mesh.demo.control("start backend us-west1-alpha/payments")?;
    for (_, cluster) in mesh.clusters() {
        wait_for("payments is back", AFTER_EJECTION, || {
            ask::all_from(Mesh::envoy_of(cluster), "payments", US, 5)
        })?;
    }
    mesh.end()
}

#[test]
fn a_name_that_is_no_service_gets_an_answer_that_says_so() -> anyhow::Result<()> {
    let Some(envoy) = envoy("e2e_traffic::a_name_that_is_no_service") else { return Ok(()) };
    let mesh = Mesh::start_with("traffic-nowhere", Some(envoy))?;
    for host in [ask::full("nothing"), ask::full("frontend"), "example.com".to_owned()] {
        let answer = http::get_as(Mesh::envoy_of(mesh.us()), &host, "/")?;
        assert_eq!(answer.status, 404, "{host}: {answer:?}");
        assert!(!answer.body.is_empty(), "{host}: {answer:?}");
    }
    // Both forms of a request reach a service: with a proxy that is told, and one that is not.
    wait_for("a plain request", SOON, || {
        let host = ask::full("catalog");
        let answer = http::get_as(Mesh::envoy_of(mesh.us()), &host, "/")?;
        anyhow::ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    })?;
    mesh.end()
}
