//! What the person at the terminal sees of the demo.

use std::io::Write as _;
use std::net::SocketAddr;

use tokio::time::Instant;

use super::control::USAGE;
use super::envoy::HOW_TO_GET;
use super::files::PreparedRegion;
use super::parts::Parts;
use crate::config::Listen;

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
        lines.extend(describe_region(name.as_str(), region, parts.has_envoy()));
    }
    let backends = parts.backends();
    lines
        .push(format!("  {backends} backends on 127.x addresses, as the EndpointSlices name them"));
    if !parts.has_envoy() {
        lines.push(format!("  {HOW_TO_GET}"));
    }
    lines.extend([String::new(), "Things to try".to_owned()]);
    lines.extend(suggestions(parts, control).into_iter().map(|line| format!("  {line}")));
    lines.extend([String::new(), format!("Verbs here and on {control}: {USAGE}. Ctrl-C ends.")]);
    lines.join("\n")
}

fn describe_region(name: &str, region: &PreparedRegion, envoy: bool) -> Vec<String> {
    let listen = |listen: &Listen| {
        let Listen { grpc, dns, admin } = listen;
        format!("grpc {grpc}  dns {dns}  admin {admin}")
    };
    let control_plane = listen(&region.control_plane.listen);
    let mut lines = vec![format!("  region {name:<16} {control_plane}")];
    for (id, cluster) in &region.clusters {
        let agent = listen(&cluster.agent.listen);
        let envoy =
            if envoy { format!("  envoy {}", cluster.envoy.listener) } else { String::new() };
        lines.push(format!("    agent {id:<17}{agent}{envoy}"));
    }
    lines
}

/// Only what works with what runs.
fn suggestions(parts: &Parts, control: SocketAddr) -> Vec<String> {
    let regions = &parts.prepared().regions;
    let Some((near, far)) = regions.keys().next_back().zip(regions.keys().next()) else {
        return Vec::new();
    };
    let Some((id, cluster)) = regions[near].clusters.iter().next() else { return Vec::new() };
    let Listen { dns, admin, .. } = &cluster.agent.listen;
    let this = program();
    let mut lines = vec![
        format!("dig @{} -p {} checkout.shop.svc.clusterset.local +short", dns.ip(), dns.port()),
        format!("{this} services --admin {admin}"),
        format!("{this} dns catalog.shop --admin {admin}"),
    ];
    if parts.has_envoy() {
        let url = "http://checkout.shop.svc.clusterset.local:8080/";
        lines.push(format!("curl -x http://{} {url}", cluster.envoy.listener));
        lines.push(format!("stop backend {id}/checkout       (type it here, and curl again)"));
    }
    lines.push(format!(
        "stop region {far}        (and ask again; `start region {far}` brings it back)"
    ));
    let directory = cluster.agent.source.directory.display();
    lines.push(format!("edit a file in {directory} and ask the other region"));
    lines.push(format!("echo 'stop agent {id}' | nc -N {} {}", control.ip(), control.port()));
    lines
}

/// How this program was called, as far as that can be typed again.
fn program() -> String {
    std::env::args()
        .next()
        .filter(|name| !name.contains(' '))
        .unwrap_or_else(|| "tombolo".to_owned())
}
