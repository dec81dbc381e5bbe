//! An edit of one region's manifests, as the other region's DNS and Envoy show it.

mod common;

use common::manifests::{endpoint, service};
use common::mesh::{Mesh, envoy};
use common::{EU, SOON, US, ask};
use tombolo_testbed::{http, wait_for};

const CATALOG: &str = "europe-west4/alpha/catalog.yaml";

/// The four pods of the example.
fn pods(mesh: &Mesh) -> Vec<String> {
    let pods = [(1, 31), (1, 32), (2, 31), (2, 32)];
    pods.map(|(cluster, pod)| mesh.manifests.eu(cluster, pod)).to_vec()
}

/// Waits until DNS in us-west1 gives exactly `expected` for catalog.
fn resolves_to(mesh: &Mesh, expected: &[String]) -> anyhow::Result<()> {
    let mut expected = expected.to_vec();
    expected.sort();
    for dns in [mesh.us().dns, mesh.demo.region(US)?.dns] {
        wait_for("the other region's DNS shows the edit", SOON, || {
            ask::same(&ask::addresses(dns, "catalog")?, &expected)
        })?;
    }
    Ok(())
}

/// Waits until the Envoy of us-west1 says that of an address.
fn envoy_says(mesh: &Mesh, address: &str, health: Option<&str>) -> anyhow::Result<()> {
    let admin = mesh.us().envoy_admin.expect("it was started with one");
    let expected = health.map(str::to_owned);
    wait_for(format!("the other region's Envoy has {address} {health:?}"), SOON, || {
        ask::same(&ask::envoy_health(admin, address)?, &expected)
    })
}

#[test]
fn an_endpoint_added_made_unready_and_removed_shows_in_the_other_region() -> anyhow::Result<()> {
    let Some(envoy) = envoy("e2e_edits::an_endpoint_added") else { return Ok(()) };
    let mesh = Mesh::start_with("edit-endpoints", Some(envoy))?;
    let before = mesh.manifests.read(CATALOG)?;
    let (first, new) = (mesh.manifests.eu(1, 31), mesh.manifests.eu(1, 33));
    resolves_to(&mesh, &pods(&mesh))?;
    envoy_says(&mesh, &first, Some("healthy"))?;

    let added = format!("endpoints:\n{}", endpoint(&new, "europe-west4-a"));
    mesh.manifests.edit(CATALOG, "endpoints:\n", &added)?;
    resolves_to(&mesh, &[pods(&mesh), vec![new.clone()]].concat())?;
    envoy_says(&mesh, &new, Some("healthy"))?;
    // The demo gave the new endpoint a backend, as a Deployment would: it answers.
    wait_for("the new endpoint answers", SOON, || {
        let address = new.clone() + ":8080";
        let answer = http::get(address.parse()?, "/")?;
        anyhow::ensure!(answer.text().contains("shop/catalog"), "{answer:?}");
        Ok(())
    })?;

    let (ready, unready) =
        (format!("[{first}]\n    conditions:\n      ready: true"), "ready: false");
    mesh.manifests.edit(CATALOG, &ready, &ready.replace("ready: true", unready))?;
    let rest = [&pods(&mesh)[1..], std::slice::from_ref(&new)].concat();
    resolves_to(&mesh, &rest)?;
    // Once ready, it stays in the tier's count: unhealthy, not gone.
    envoy_says(&mesh, &first, Some("/failed_eds_health"))?;

    mesh.manifests.write(CATALOG, &before)?;
    resolves_to(&mesh, &pods(&mesh))?;
    envoy_says(&mesh, &first, Some("healthy"))?;
    envoy_says(&mesh, &new, None)?;
    mesh.end()
}

#[test]
fn an_export_that_is_removed_is_gone_in_the_other_region_and_comes_back() -> anyhow::Result<()> {
    let Some(envoy) = envoy("e2e_edits::an_export_that_is_removed") else { return Ok(()) };
    let mesh = Mesh::start_with("edit-export", Some(envoy))?;
    let beta = "europe-west4/beta/catalog.yaml";
    let (before, before_beta) = (mesh.manifests.read(CATALOG)?, mesh.manifests.read(beta)?);

    mesh.manifests.drop_last_document(CATALOG, "ServiceExport")?;
    resolves_to(&mesh, &pods(&mesh)[2..])?;
    mesh.manifests.drop_last_document(beta, "ServiceExport")?;
    for (_, dns, _) in mesh.processes() {
        wait_for("the name is gone", SOON, || {
            ask::same(&ask::code(dns, "catalog")?.as_str(), &"NXDOMAIN")
        })?;
    }
    let through = Mesh::envoy_of(mesh.us());
    let url = format!("http://{}/", ask::full("catalog"));
    wait_for("the route is gone", SOON, || ask::same(&http::get_via(through, &url)?.status, &404))?;
    ask::all_from(through, "checkout", US, 5)?;

    mesh.manifests.write(CATALOG, &before)?;
    mesh.manifests.write(beta, &before_beta)?;
    resolves_to(&mesh, &pods(&mesh))?;
    wait_for("the route is back", SOON, || ask::all_from(through, "catalog", EU, 5))?;
    mesh.end()
}

#[test]
fn a_new_file_makes_a_service_everywhere_and_goes_with_it() -> anyhow::Result<()> {
    let Some(envoy) = envoy("e2e_edits::a_new_file") else { return Ok(()) };
    let mesh = Mesh::start_with("edit-file", Some(envoy))?;
    let address = mesh.manifests.eu(2, 91);
    let file = "europe-west4/beta/search.yaml";
    mesh.manifests.write(file, &service("search", &address))?;
    for (_, dns, _) in mesh.processes() {
        wait_for("the new name resolves", SOON, || {
            ask::same(&ask::addresses(dns, "search")?, &vec![address.clone()])
        })?;
    }
    for (_, cluster) in mesh.clusters() {
        wait_for("requests reach it", SOON, || {
            ask::all_from(Mesh::envoy_of(cluster), "search", EU, 5)
        })?;
    }
    std::fs::remove_file(mesh.manifests.path(file))?;
    for (_, dns, _) in mesh.processes() {
        wait_for("the name is gone", SOON, || {
            ask::same(&ask::code(dns, "search")?.as_str(), &"NXDOMAIN")
        })?;
    }
    mesh.end()
}
