//! What the person at the terminal sees of the demo.

use std::io::Write as _;
use std::net::SocketAddr;

use tokio::time::Instant;
use tombolo_federation::names::ClusterId;

use super::control::USAGE;
use super::envoy::HOW_TO_GET;
use super::files::PreparedRegion;
use super::parts::Parts;
use crate::config::{CLUSTERSET_ZONE, Listen};

/// Says what is done while the demo starts, on stderr, so that stdout has only what follows.
pub(crate) struct Progress {
    started: Instant,
}

impl Progress {
    pub(crate) fn start() -> Self {
        Self { started: Instant::now() }
    }

    /// One step is done.
    pub(crate) fn done(&self, step: &str) {
        say(&format!("  {:>5.2} s  {step}", self.started.elapsed().as_secs_f64()));
    }

    /// All of them are.
    pub(crate) fn ready(&self, parts: &Parts, control: SocketAddr) {
        self.done("ready");
        say(&overview(parts, control));
    }
}

/// The demo is ending.
pub(crate) fn stopping() {
    say("stopping");
}

/// Nobody may be reading any more: then there is nobody to tell.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// What runs where, and what to try.
fn overview(parts: &Parts, control: SocketAddr) -> String {
    let mut lines = vec![String::new(), "What runs where".to_owned()];
    for (name, region) in &parts.prepared().regions {
        lines.extend(describe_region(parts, name.as_str(), region));
    }
    let backends = parts.backends();
    lines
        .push(format!("  {backends} backends on 127.x addresses, as the EndpointSlices name them"));
    if !parts.has_envoy() {
        lines.push(format!("  {HOW_TO_GET}"));
    }
    lines.extend([String::new(), "Things to try".to_owned()]);
    lines.extend(suggestions(parts).into_iter().map(|line| format!("  {line}")));
    lines.extend([String::new(), format!("Verbs here and on {control}: {USAGE}. Ctrl-C ends.")]);
    lines.join("\n")
}

fn describe_region(parts: &Parts, name: &str, region: &PreparedRegion) -> Vec<String> {
    let listen = |listen: &Listen| {
        let Listen { grpc, dns, admin } = listen;
        format!("grpc {grpc}  dns {dns}  admin {admin}")
    };
    let control_plane = listen(&region.control_plane.listen);
    let mut lines = vec![format!("  region {name:<22}{control_plane}")];
    for (id, cluster) in &region.clusters {
        let agent = listen(&cluster.agent.listen);
        let envoy = if parts.has_envoy() {
            format!("  envoy {}", cluster.envoy.listener)
        } else {
            String::new()
        };
        lines.push(format!("    agent {id:<21}{agent}{envoy}"));
        lines.extend(unread(parts, id).map(|what| format!("      not read there: {what}")));
    }
    lines
}

/// What a cluster's directory holds that is no part of a mesh.
fn unread(parts: &Parts, cluster: &ClusterId) -> Option<String> {
    let desired = parts.desired(cluster)?;
    let counts = &desired.counts;
    let kinds = counts.other_kinds.iter().map(|(kind, count)| format!("{count} {kind}"));
    let others = [
        (counts.templates, "templates"),
        (counts.not_kubernetes, "documents that are not Kubernetes objects"),
        (counts.fqdn_slices, "EndpointSlices of host names"),
        (desired.problems.len() + desired.more_problems, "problems, see `tombolo status`"),
    ];
    let others = others.iter().filter(|(count, _)| *count > 0);
    let others = others.map(|(count, what)| format!("{count} {what}"));
    let all: Vec<String> = kinds.chain(others).collect();
    (!all.is_empty()).then(|| all.join(", "))
}

/// Only what works with what runs.
fn suggestions(parts: &Parts) -> Vec<String> {
    let regions = &parts.prepared().regions;
    let Some((near, far)) = regions.keys().next_back().zip(regions.keys().next()) else {
        return Vec::new();
    };
    let Some((id, cluster)) = regions[near].clusters.iter().next() else { return Vec::new() };
    let Some((service, port)) = parts.popular_service() else {
        return vec![
            "export a service: these manifests hold no ServiceExport (see --export-all)".to_owned(),
        ];
    };
    let name = format!("{}.{}.svc.{CLUSTERSET_ZONE}", service.name, service.namespace);
    let Listen { dns, admin, .. } = &cluster.agent.listen;
    let this = program();
    let mut lines = vec![
        format!("dig @{} -p {} {name} +short", dns.ip(), dns.port()),
        format!("{this} services --admin {admin}"),
        format!("{this} dns {}.{} --admin {admin}", service.name, service.namespace),
    ];
    if parts.has_envoy() {
        lines.push(format!("curl -x http://{} http://{name}:{port}/", cluster.envoy.listener));
    }
    if parts.backends() > 0 {
        lines.push(format!(
            "stop backend {id}/{}        (type it here, and ask again)",
            service.name
        ));
    }
    lines.push(format!(
        "stop region {far}        (and ask again; `start region {far}` brings it back)"
    ));
    let directory = cluster.agent.source.directory.display();
    lines.push(format!("edit a file in {directory} and ask the other region"));
    lines
}

/// How this program was called, as far as that can be typed again.
fn program() -> String {
    std::env::args()
        .next()
        .filter(|name| !name.contains(' '))
        .unwrap_or_else(|| "tombolo".to_owned())
}
