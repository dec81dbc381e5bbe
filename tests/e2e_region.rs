//! One region down: what the other goes on doing.

mod common;

use std::net::TcpStream;
use std::time::Duration;

use common::manifests::service;
use common::mesh::{Mesh, envoy};
use common::{EU, SOON, US, ask, run};
use tombolo_testbed::{http, wait_for};

/// A source is stale after 30 s of silence.
const STALE: Duration = Duration::from_mins(1);

/// Everything that us-west1's processes serve, by process.
fn served(mesh: &Mesh) -> anyhow::Result<Vec<serde_json::Value>> {
    let region = mesh.demo.region(US)?;
    let agents = region.clusters.iter().map(|cluster| cluster.admin);
    agents.chain([region.admin]).map(ask::services).collect()
}

#[test]
fn with_a_region_stopped_the_other_serves_what_runs_and_withdraws_nothing() -> anyhow::Result<()> {
    let Some(envoy) = envoy("e2e_region::with_a_region_stopped") else { return Ok(()) };
    let mesh = Mesh::start_with("region-stopped", Some(envoy))?;
    let digest = mesh.agreed_digest()?;
    let (before, catalog) = (served(&mesh)?, ask::addresses(mesh.us().dns, "catalog")?);
    assert_eq!(catalog.len(), 4);

    mesh.demo.control("stop region europe-west4")?;
    for port in [mesh.eu().grpc, mesh.eu().admin, mesh.eu().dns, Mesh::envoy_of(mesh.eu())] {
        assert!(TcpStream::connect(port).is_err(), "{port} of the stopped region still listens");
    }
    for (name, cluster) in mesh.clusters().filter(|(region, _)| *region == US) {
        for service in ["checkout", "cart", "payments", "inventory", "redis"] {
            ask::all_from(Mesh::envoy_of(cluster), service, name, 10)?;
        }
        // It is known and nothing of it runs: unavailable, not unknown.
        let url = format!("http://{}/", ask::full("catalog"));
        assert_eq!(http::get_via(Mesh::envoy_of(cluster), &url)?.status, 503);
        assert_eq!(ask::addresses(cluster.dns, "catalog")?, catalog);
        assert_eq!(ask::addresses(cluster.dns, "checkout")?.len(), 4);
    }
    assert_eq!(served(&mesh)?, before);
    assert_eq!(ask::digest(mesh.demo.region(US)?.admin)?, digest);

    // The region that is left is no museum.
    let new = mesh.manifests.us(2, 91);
    mesh.manifests.write("us-west1/beta/search.yaml", &service("search", &new))?;
    wait_for("an edit is seen in the region's other cluster", SOON, || {
        ask::same(&ask::addresses(mesh.us().dns, "search")?, &vec![new.clone()])
    })?;

    mesh.demo.control("start region europe-west4")?;
    for (region, cluster) in mesh.clusters() {
        wait_for("all is as before", SOON, || {
            ask::all_from(Mesh::envoy_of(cluster), "checkout", region, 10)?;
            ask::all_from(Mesh::envoy_of(cluster), "catalog", EU, 10)?;
            ask::all_from(Mesh::envoy_of(cluster), "search", US, 10)
        })?;
    }
    mesh.agreed_digest()?;
    std::fs::remove_file(mesh.manifests.path("us-west1/beta/search.yaml"))?;
    wait_for("the digest is the one of before", SOON, || {
        ask::same(&mesh.agreed_digest()?, &digest)
    })?;
    mesh.end()
}

#[test]
fn what_was_edited_while_a_region_was_down_counts_when_it_is_back() -> anyhow::Result<()> {
    let mesh = Mesh::start("region-edited-down")?;
    mesh.demo.control("stop region europe-west4")?;
    let address = mesh.manifests.eu(1, 92);
    mesh.manifests.write("europe-west4/alpha/search.yaml", &service("search", &address))?;
    for cluster in ["alpha", "beta"] {
        let file = format!("europe-west4/{cluster}/catalog.yaml");
        mesh.manifests.drop_last_document(&file, "ServiceExport")?;
    }
    assert_eq!(ask::code(mesh.us().dns, "search")?, "NXDOMAIN");
    assert_eq!(ask::addresses(mesh.us().dns, "catalog")?.len(), 4);

    mesh.demo.control("start region europe-west4")?;
    for (_, dns, _) in mesh.processes() {
        wait_for("what was added is there", SOON, || {
            ask::same(&ask::addresses(dns, "search")?, &vec![address.clone()])
        })?;
    }
    // What went while nobody looked is not known to have been removed: it is held.
    let clusters = || mesh.clusters().filter(|(region, _)| *region == EU).map(|(_, c)| c);
    for cluster in clusters() {
        wait_for("it is held", SOON, || ask::same(&mesh.approve_holds(cluster)?, &1))?;
    }
    for (_, dns, _) in mesh.processes() {
        wait_for("what was removed is gone once approved", SOON, || {
            ask::same(&ask::code(dns, "catalog")?.as_str(), &"NXDOMAIN")
        })?;
    }
    mesh.end()
}

#[test]
fn a_region_that_is_silent_for_30_s_is_stale_and_still_served() -> anyhow::Result<()> {
    let mesh = Mesh::start("region-stale")?;
    let (before, region) = (served(&mesh)?, mesh.demo.region(US)?.clone());
    let admin = region.admin.to_string();
    assert_eq!(run(&["status", "--admin", &admin])?.code, 0);

    mesh.demo.control("stop region europe-west4")?;
    wait_for("its sources are stale", STALE, || {
        let status = ask::status(region.admin)?;
        let sources = status["sources"].as_array().into_iter().flatten();
        let stale: Vec<&str> = sources
            .filter(|source| source["stale"] == true)
            .filter_map(|source| source["owner"].as_str())
            .collect();
        let expected = ["_", "europe-west4-alpha", "europe-west4-beta"];
        ask::same(
            &stale,
            &expected.map(|of| format!("{EU}/{of}")).each_ref().map(|s| &**s).to_vec(),
        )
    })?;
    assert_eq!(served(&mesh)?, before);
    assert_eq!(ask::addresses(mesh.us().dns, "catalog")?.len(), 4);
    let told = run(&["status", "--admin", &admin])?;
    assert_eq!(told.code, 1, "{told:?}");
    assert!(told.stdout.contains("stale, still served"), "{told:?}");

    mesh.demo.control("start region europe-west4")?;
    wait_for("nothing is stale", SOON, || {
        ask::same(&run(&["status", "--admin", &admin])?.code, &0)
    })?;
    mesh.end()
}
