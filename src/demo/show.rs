//! What the person at the terminal sees of the demo.

use std::io::Write as _;
use std::net::SocketAddr;

use tokio::time::Instant;

use super::envoy::HOW_TO_GET;
use super::files::{PreparedCluster, PreparedRegion};
use super::parts::Parts;

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

    pub(crate) fn stopping(&self) {
        say("stopping");
    }
}

/// Nobody may be reading any more: then there is nobody to tell.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// What runs where, and what to try.
fn overview(parts: &Parts, control: SocketAddr) -> String {
    let mut text = String::from("\nWhat runs where\n");
    for (name, region) in &parts.prepared().regions {
        text += &describe_region(name.as_str(), region, parts.has_envoy());
    }
    text += &format!(
        "  {} backends on 127.x addresses, as the EndpointSlices name them\n",
        parts.backends()
    );
    if !parts.has_envoy() {
        text += &format!("  {HOW_TO_GET}\n");
    }
    text += "\nThings to try\n";
    for line in suggestions(parts, control) {
        text += &format!("  {line}\n");
    }
    text += "\nVerbs here and on the control address: stop|start backend|agent|control-plane|region NAME. Ctrl-C ends.";
    text
}

fn describe_region(name: &str, region: &PreparedRegion, envoy: bool) -> String {
    let listen = &region.control_plane.listen;
    let mut text = format!(
        "  region {name:<14} control plane  grpc {}  dns {}  admin {}\n",
        listen.grpc, listen.dns, listen.admin
    );
    for (id, cluster) in &region.clusters {
        let listen = &cluster.agent.listen;
        text += &format!(
            "    {id:<19} agent          grpc {}  dns {}  admin {}",
            listen.grpc, listen.dns, listen.admin
        );
        if envoy {
            text += &format!("  envoy {}", cluster.envoy.listener);
        }
        text += "\n";
    }
    text
}

/// Only what works with what runs.
fn suggestions(parts: &Parts, control: SocketAddr) -> Vec<String> {
    let mut regions = parts.prepared().regions.iter();
    let Some((first, region)) = regions.next() else { return Vec::new() };
    let Some((id, cluster)) = region.clusters.iter().next() else { return Vec::new() };
    let dns = cluster.agent.listen.dns;
    let admin = region.control_plane.listen.admin;
    let mut lines = vec![
        format!("dig @{} -p {} checkout.shop.svc.clusterset.local +short", dns.ip(), dns.port()),
        format!("tombolo services --admin {admin}"),
        format!("tombolo dns catalog.shop --admin {}", cluster.agent.listen.admin),
    ];
    lines.extend(by_envoy(parts, id.as_str(), cluster, control));
    let last = regions.next_back().map_or(first, |(last, _)| last);
    lines.push(format!("echo 'stop region {last}' | nc -N {} {}", control.ip(), control.port()));
    lines
        .push(format!("edit a file in {} and ask again", cluster.agent.source.directory.display()));
    lines
}

fn by_envoy(
    parts: &Parts,
    id: &str,
    cluster: &PreparedCluster,
    control: SocketAddr,
) -> Vec<String> {
    if !parts.has_envoy() {
        return Vec::new();
    }
    let url = "http://checkout.shop.svc.clusterset.local:8080/";
    vec![
        format!("curl -x http://{} {url}", cluster.envoy.listener),
        format!(
            "echo 'stop backend {id}/checkout' | nc -N {} {}   and curl again",
            control.ip(),
            control.port()
        ),
    ]
}
