//! Questions to a running mesh, by DNS, through Envoy and at the admin address.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use serde_json::Value;
use tombolo_testbed::dns::Question;
use tombolo_testbed::http;

/// `<service>.shop.svc.clusterset.local`
pub(crate) fn full(service: &str) -> String {
    format!("{service}.shop.svc.clusterset.local")
}

/// The addresses of a service of the shop, sorted as text, asked by dig. No answer is an error.
pub(crate) fn addresses(dns: SocketAddr, service: &str) -> anyhow::Result<Vec<String>> {
    let name = full(service);
    let answer = Question::udp(dns, &name, "A").dig(&[])?;
    ensure!(answer.status == "NOERROR", "{name} at {dns}: {}", answer.status);
    Ok(answer.data("A").into_iter().map(str::to_owned).collect())
}

/// The response code for a service's A.
pub(crate) fn code(dns: SocketAddr, service: &str) -> anyhow::Result<String> {
    Ok(Question::udp(dns, &full(service), "A").dig(&[])?.status)
}

/// What is there must be what was expected; for use in `wait_for`.
pub(crate) fn same<T: PartialEq + std::fmt::Debug>(got: &T, expected: &T) -> anyhow::Result<()> {
    ensure!(got == expected, "got {got:?}, expected {expected:?}");
    Ok(())
}

/// Who answered.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) struct Backend {
    pub(crate) service: String,
    #[serde(rename = "backend")]
    pub(crate) pod: String,
    pub(crate) cluster: String,
    pub(crate) region: String,
    pub(crate) zone: String,
}

/// GETs a service of the shop through an Envoy, which must succeed.
pub(crate) fn fetch(envoy: SocketAddr, service: &str) -> anyhow::Result<Backend> {
    let response = http::get_via(envoy, &format!("http://{}/", full(service)))?;
    ensure!(response.status == 200, "{service} through {envoy}: {response:?}");
    let backend: Backend = response.json()?;
    ensure!(backend.service == format!("shop/{service}"), "{backend:?} answered for {service}");
    Ok(backend)
}

/// How many of `count` requests each region answered. Each of them must succeed.
pub(crate) fn regions(
    envoy: SocketAddr,
    service: &str,
    count: usize,
) -> anyhow::Result<BTreeMap<String, usize>> {
    let mut regions = BTreeMap::new();
    for number in 1..=count {
        let backend = fetch(envoy, service).with_context(|| format!("request {number}"))?;
        *regions.entry(backend.region).or_default() += 1;
    }
    Ok(regions)
}

/// All of `count` requests are answered by `region`.
pub(crate) fn all_from(
    envoy: SocketAddr,
    service: &str,
    region: &str,
    count: usize,
) -> anyhow::Result<()> {
    same(&regions(envoy, service, count)?, &BTreeMap::from([(region.to_owned(), count)]))
}

/// The health flags of an address in an Envoy's `/clusters`: `healthy`, `/failed_eds_health`;
/// `None` while it does not have it.
pub(crate) fn envoy_health(
    envoy_admin: SocketAddr,
    address: &str,
) -> anyhow::Result<Option<String>> {
    let text = http::get(envoy_admin, "/clusters")?.text();
    let mark = format!("::{address}:8080::health_flags::");
    Ok(text.lines().find_map(|line| Some(line.split_once(&mark)?.1.to_owned())))
}

/// `/api/v1/status`
pub(crate) fn status(admin: SocketAddr) -> anyhow::Result<Value> {
    json(admin, "/api/v1/status")
}

/// The digest of what a process serves.
pub(crate) fn digest(admin: SocketAddr) -> anyhow::Result<String> {
    let status = status(admin)?;
    let catalog = &status["catalog"];
    ensure!(catalog["complete"] == true, "not complete: {status}");
    catalog["digest"].as_str().map(str::to_owned).context("a digest")
}

/// `/api/v1/services`, without what differs from one moment to the next.
pub(crate) fn services(admin: SocketAddr) -> anyhow::Result<Value> {
    Ok(json(admin, "/api/v1/services")?["services"].take())
}

/// The clusters that export a service of the shop, as one process sees it.
pub(crate) fn exporters(admin: SocketAddr, service: &str) -> anyhow::Result<Vec<String>> {
    let services = services(admin)?;
    let found = services.as_array().into_iter().flatten().find(|s| s["name"] == service);
    let clusters = found.and_then(|found| found["clusters"].as_array()).into_iter().flatten();
    let mut ids: Vec<String> =
        clusters.filter_map(|cluster| Some(cluster["cluster"].as_str()?.to_owned())).collect();
    ids.sort();
    Ok(ids)
}

/// What an agent says is wrong with its manifests.
pub(crate) fn problems(admin: SocketAddr) -> anyhow::Result<Vec<String>> {
    Ok(serde_json::from_value(status(admin)?["problems"].take()).unwrap_or_default())
}

fn json(admin: SocketAddr, path: &str) -> anyhow::Result<Value> {
    let response = http::get(admin, path)?;
    ensure!(response.status == 200, "{path} at {admin}: {response:?}");
    response.json()
}
