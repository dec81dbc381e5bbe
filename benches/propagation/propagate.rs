//! From an edit of a manifest in one region to the other region's DNS and Envoy.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::Deserialize;
use tombolo_testbed::{Demo, Scratch, http};

use crate::dns::{Prober, until_visible};
use crate::edit::{Manifests, SERVICE};
use crate::limit::{Limit, Parts};
use crate::machine::Watch;
use crate::stats::{Row, Samples, Section};
use crate::{Bench, Jitter, pause};

/// An edit in one region is visible in the other.
const PROMISE: Duration = Duration::from_secs(1);
const DEADLINE: Duration = Duration::from_secs(10);
/// How long the reader of manifests waits for an edit to be over: `QUIET` in
/// `federation/src/manifests/source.rs`, deliberate, since editors write in several steps.
const QUIET: Duration = Duration::from_millis(50);
/// Between two questions to one DNS server.
const ASK: Duration = Duration::from_millis(1);
/// The same where steps of a millisecond are told apart; all of one core.
const ASK_OFTEN: Duration = Duration::from_micros(250);
/// Between two looks at Envoy's admin page, which its main thread answers.
const LOOK: Duration = Duration::from_millis(2);

const HERE: (&str, &str) = ("us-west1", "alpha");
const THERE: (&str, &str) = ("europe-west4", "alpha");

/// A demo over its own copy of the examples, and the limit measured beside it.
struct Bed {
    demo: Demo,
    manifests: Manifests,
    limit: Limit,
    jitter: Jitter,
    scratch: Scratch,
}

impl Bed {
    fn start(bench: &Bench, envoy: Option<&Path>) -> anyhow::Result<Self> {
        let scratch = Scratch::new("bench")?;
        let manifests = Manifests::copy_to(scratch.path())?;
        let root = manifests.root().display().to_string();
        let demo = Demo::start(&bench.binary, scratch.path(), envoy, &["--dir", &root])?;
        let limit = Limit::new(scratch.path())?;
        Ok(Self { demo, manifests, limit, jitter: Jitter::new(), scratch })
    }

    fn dns(&self, (region, cluster): (&str, &str)) -> anyhow::Result<Prober> {
        Prober::new(self.demo.cluster(region, cluster)?.dns, SERVICE)
    }

    fn region_dns(&self, (region, _): (&str, &str)) -> anyhow::Result<Prober> {
        Prober::new(self.demo.region(region)?.dns, SERVICE)
    }

    /// Measures edit and limit in turn, so that both see the same machine; `seen` says when an
    /// edit was visible at each of its places.
    fn rounds(
        &mut self,
        count: usize,
        mut seen: impl FnMut(&BTreeSet<Ipv4Addr>, Instant) -> anyhow::Result<Vec<Duration>>,
    ) -> anyhow::Result<(Vec<Samples>, Vec<Parts>)> {
        let (mut places, mut limits) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let (started, wanted) = self.manifests.edit()?;
            let took = seen(&wanted, started)?;
            places.resize(took.len(), Samples::default());
            for (samples, took) in places.iter_mut().zip(took) {
                samples.push(took);
            }
            limits.push(self.limit.pass()?);
            // Not in step with anything periodic in the servers.
            pause(self.jitter.between(Duration::from_millis(50), Duration::from_millis(250)));
        }
        Ok((places, limits))
    }
}

/// The whole way, and what of it is not waiting on purpose.
fn rows(what: &str, samples: &Samples, limits: &[Parts]) -> Vec<Row> {
    let limit: Samples = limits.iter().map(|limit| limit.sum()).collect();
    let whole = Row { promise: Some(PROMISE), ..Row::new(what, samples.clone()) };
    let work = Row::new("  of it after the quiet time", samples.less(QUIET));
    [(whole, QUIET), (work, Duration::ZERO)]
        .map(|(row, deliberate)| Row { limit: Some(limit.clone()), deliberate, ..row })
        .into()
}

/// Edit to the other region's DNS.
pub(crate) fn to_dns(bench: &Bench) -> anyhow::Result<Section> {
    let mut bed = Bed::start(bench, None)?;
    let watch = Watch::start();
    let mut servers = [bed.dns(THERE)?];
    let (places, limits) = bed.rounds(bench.rounds(100), |wanted, since| {
        until_visible(&mut servers, wanted, since, (ASK, DEADLINE))
    })?;
    let others = watch.others();
    let part = |what: &str, part: fn(&Parts) -> Duration| {
        Row::new(what, limits.iter().map(part).collect())
    };
    let mut rows = rows("edit in us-west1 -> DNS of an agent in europe-west4", &places[0], &limits);
    rows.extend([
        part("limit: the kernel wakes a thread for the rename", |limit| limit.noticed),
        part("limit: 2 commits of 4 KiB, synced", |limit| limit.committed),
        part("limit: 3 round trips over loopback TCP", |limit| limit.carried),
    ]);
    bed.demo.interrupt()?;
    Ok(Section { rows, others, ..Section::default() })
}

/// Where the time of that goes.
pub(crate) fn path(bench: &Bench) -> anyhow::Result<Section> {
    let mut bed = Bed::start(bench, None)?;
    let watch = Watch::start();
    let mut servers =
        [bed.dns(HERE)?, bed.region_dns(HERE)?, bed.region_dns(THERE)?, bed.dns(THERE)?];
    let mut steps: [Samples; 4] = Default::default();
    let (places, limits) = bed.rounds(bench.rounds(100), |wanted, since| {
        let seen = until_visible(&mut servers, wanted, since, (ASK_OFTEN, DEADLINE))?;
        let mut before = Duration::ZERO;
        for (step, at) in steps.iter_mut().zip(&seen) {
            // A later place can be asked just before an earlier one, and be seen first.
            step.push(at.saturating_sub(before));
            before = *at;
        }
        Ok(seen)
    })?;
    let others = watch.others();
    let names: [Step; 4] = [
        ("own agent: noticed, quiet, read, merged, served", |limit| limit.noticed),
        ("own region: published, committed, merged, served", commit_and_hop),
        ("other region: mirrored, committed, merged, served", commit_and_hop),
        ("agent of the other region: fed, merged, served", hop),
    ];
    let mut rows = vec![Row {
        promise: Some(PROMISE),
        ..Row::new("edit -> agent of the other region", places[3].clone())
    }];
    for (index, ((name, limit), step)) in names.into_iter().zip(steps).enumerate() {
        let limit = Some(limits.iter().map(limit).collect());
        let deliberate = if index == 0 { QUIET } else { Duration::ZERO };
        rows.push(Row { limit, deliberate, ..Row::new(format!("  of it {name}"), step) });
    }
    bed.demo.interrupt()?;
    Ok(Section { rows, others, ..Section::default() })
}

/// A step's name, and its share of the limit.
type Step = (&'static str, fn(&Parts) -> Duration);

fn hop(limit: &Parts) -> Duration {
    limit.carried / 3
}

fn commit_and_hop(limit: &Parts) -> Duration {
    limit.committed / 2 + hop(limit)
}

/// Edit to the other region's Envoy.
pub(crate) fn to_envoy(bench: &Bench) -> anyhow::Result<Section> {
    let envoy = bench.envoy()?;
    let mut bed = Bed::start(bench, Some(&envoy))?;
    let watch = Watch::start();
    let admin = admin(bed.scratch.path(), THERE)?;
    let mut looks = Samples::default();
    let (places, limits) = bed.rounds(bench.rounds(50), |wanted, since| {
        let seen = until_routed(admin, wanted, since)?;
        let started = Instant::now();
        hosts(admin)?;
        looks.push(started.elapsed());
        Ok(vec![seen])
    })?;
    let others = watch.others();
    let mut rows =
        rows("edit in us-west1 -> endpoints of an Envoy in europe-west4", &places[0], &limits);
    rows.push(Row::new("limit of sight: one look at Envoy's admin page", looks));
    bed.demo.interrupt()?;
    Ok(Section { rows, others, ..Section::default() })
}

fn until_routed(
    admin: SocketAddr,
    wanted: &BTreeSet<Ipv4Addr>,
    since: Instant,
) -> anyhow::Result<Duration> {
    let mut tick = Instant::now();
    loop {
        let seen = hosts(admin)?;
        if seen == *wanted {
            return Ok(since.elapsed());
        }
        if since.elapsed() > DEADLINE {
            bail!("Envoy has {seen:?} instead of {wanted:?} after {DEADLINE:?}");
        }
        tick += LOOK;
        pause(tick.saturating_duration_since(Instant::now()));
    }
}

#[derive(Deserialize)]
struct Clusters {
    #[serde(default)]
    cluster_statuses: Vec<Status>,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    host_statuses: Vec<Host>,
}

#[derive(Deserialize)]
struct Host {
    address: Address,
    health_status: Health,
}

#[derive(Deserialize)]
struct Address {
    socket_address: Socket,
}

#[derive(Deserialize)]
struct Socket {
    address: Ipv4Addr,
}

#[derive(Deserialize)]
struct Health {
    eds_health_status: String,
}

/// The healthy hosts that an Envoy has for the edited service.
fn hosts(admin: SocketAddr) -> anyhow::Result<BTreeSet<Ipv4Addr>> {
    let clusters: Clusters = http::get(admin, "/clusters?format=json&filter=payments")?.json()?;
    let hosts = clusters.cluster_statuses.into_iter().flat_map(|status| status.host_statuses);
    let healthy = hosts.filter(|host| host.health_status.eds_health_status == "HEALTHY");
    Ok(healthy.map(|host| host.address.socket_address.address).collect())
}

/// The admin address of a cluster's Envoy, which only `demo.json` knows.
fn admin(scratch: &Path, (region, cluster): (&str, &str)) -> anyhow::Result<SocketAddr> {
    let text = std::fs::read_to_string(scratch.join("state/demo.json"))?;
    let layout: serde_json::Value = serde_json::from_str(&text)?;
    let named = |list: &serde_json::Value, name: &str| {
        list.as_array()?.iter().find(|entry| entry["name"] == name).cloned()
    };
    let cluster = named(&layout["regions"], region)
        .and_then(|region| named(&region["clusters"], cluster))
        .context("demo.json lacks the cluster")?;
    Ok(cluster["envoyAdmin"].as_str().context("demo.json names no Envoy admin")?.parse()?)
}
