//! All backends of a service in one region die under load, and come back.
//!
//! Requests are due at fixed times whatever happens to earlier ones, and each is timed from when it
//! was due, so that an answer that is late makes those behind it late as well.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use tombolo_testbed::{Demo, Scratch, http};

use crate::edit::Manifests;
use crate::machine::Watch;
use crate::stats::{Row, Samples, Section};
use crate::{Bench, pause};

/// 200 requests a second.
const EVERY: Duration = Duration::from_millis(5);
/// Enough that none has to wait for another's answer while answers take less than 100 ms.
const CLIENTS: u32 = 20;
const BEFORE: Duration = Duration::from_secs(2);
const DEAD: Duration = Duration::from_secs(4);
/// The load goes on until answers were local again for so long.
const STEADY: Duration = Duration::from_secs(1);
/// To the other region, and no failed request, with one round trip that is nothing here.
const GOAL: Duration = Duration::from_millis(50);
const GIVE_UP: Duration = Duration::from_mins(1);

const URL: &str = "http://checkout.shop.svc.clusterset.local:8080/";
const LOCAL: &str = "us-west1";
const BACKENDS: [&str; 2] = ["us-west1-alpha/checkout", "us-west1-beta/checkout"];

/// What became of one request.
#[derive(Debug, Clone)]
struct Outcome {
    due: Instant,
    done: Instant,
    region: Result<String, String>,
}

impl Outcome {
    fn is_local(&self) -> bool {
        self.region.as_deref() == Ok(LOCAL)
    }

    fn took(&self) -> Duration {
        self.done.saturating_duration_since(self.due)
    }
}

#[derive(Deserialize)]
struct Answer {
    region: String,
}

/// The whole measurement.
pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Section> {
    let envoy = bench.envoy()?;
    let watch = Watch::start();
    let mut all = Figures::default();
    for _ in 0..bench.rounds(10) {
        round(bench, &envoy, &mut all)?;
    }
    Ok(Section { others: watch.others(), ..all.into_section() })
}

#[derive(Default)]
struct Figures {
    quiet: Samples,
    disturbed: Samples,
    first_remote: Samples,
    all_remote: Samples,
    first_local: Samples,
    all_local: Samples,
    limit: Samples,
    requests: u64,
    failed: u64,
    failures: Vec<String>,
}

impl Figures {
    fn into_section(self) -> Section {
        let held = |what: &str, samples: Samples| Row {
            promise: Some(GOAL),
            limit: Some(self.limit.clone()),
            ..Row::new(what, samples)
        };
        let rows = vec![
            Row::new("request, all well", self.quiet),
            Row::new("request due in the second after the stop", self.disturbed),
            held("backends stopped -> first answer from the other region", self.first_remote),
            held("backends stopped -> last answer that was not", self.all_remote),
            Row::new("backends started -> first local answer", self.first_local),
            Row::new("backends started -> last answer that was not local", self.all_local),
            Row::new("limit: refused, then a request to the other region", self.limit.clone()),
        ];
        let mut counts =
            vec![("requests".to_owned(), self.requests), ("failed".to_owned(), self.failed)];
        counts.extend(self.failures.into_iter().take(5).map(|why| (format!("  failed: {why}"), 1)));
        Section { rows, counts, ..Section::default() }
    }

    fn take(&mut self, outcomes: &[Outcome], stopping: Instant, started: Instant) {
        let after = |done: Option<Instant>, from: Instant| {
            done.map_or(Duration::ZERO, |done| done.saturating_duration_since(from))
        };
        let due = |from: Instant, to: Instant| {
            outcomes.iter().filter(move |outcome| (from..to).contains(&outcome.due))
        };
        for outcome in outcomes {
            self.requests += 1;
            if let Err(why) = &outcome.region {
                self.failed += 1;
                self.failures.push(why.clone());
            }
        }
        let first = outcomes.iter().map(|outcome| outcome.due).min().unwrap_or(stopping);
        for outcome in due(first, stopping) {
            self.quiet.push(outcome.took());
        }
        for outcome in due(stopping, stopping + Duration::from_secs(1)) {
            self.disturbed.push(outcome.took());
        }
        let remote = |outcome: &&Outcome| outcome.region.as_ref().is_ok_and(|r| r != LOCAL);
        let dead = || outcomes.iter().filter(|o| (stopping..started).contains(&o.done));
        self.first_remote.push(after(dead().filter(remote).map(|o| o.done).min(), stopping));
        self.all_remote.push(after(dead().filter(|o| !remote(o)).map(|o| o.done).max(), stopping));
        let back = || outcomes.iter().filter(|outcome| outcome.done >= started);
        self.first_local
            .push(after(back().filter(|o| o.is_local()).map(|o| o.done).min(), started));
        self.all_local.push(after(back().filter(|o| !o.is_local()).map(|o| o.done).max(), started));
    }
}

/// A mesh of its own per round: what Envoy remembers of an earlier death would count.
fn round(bench: &Bench, envoy: &Path, all: &mut Figures) -> anyhow::Result<()> {
    let scratch = Scratch::new("bench")?;
    let manifests = Manifests::copy_to(scratch.path())?;
    let root = manifests.root().display().to_string();
    let demo = Demo::start(&bench.binary, scratch.path(), Some(envoy), &["--dir", &root])?;
    let proxy = demo.cluster(LOCAL, "alpha")?.envoy.context("the demo has no Envoy")?;
    http::get_via(proxy, URL)?;

    let (outcomes, stop) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    let schedule = Instant::now();
    let (stopping, started) = thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (outcomes, stop) = (&outcomes, &stop);
            scope.spawn(move || load(proxy, schedule, client, outcomes, stop));
        }
        let marks = drive(&demo, &manifests, &outcomes, all);
        stop.store(true, Ordering::Relaxed);
        marks
    })?;
    let outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    let before = outcomes.iter().filter(|outcome| outcome.done < stopping);
    ensure!(before.clone().all(Outcome::is_local), "not all answers were local to begin with");
    all.take(&outcomes, stopping, started);
    demo.interrupt()
}

/// Stops, waits, starts, and waits until all is as before. When it began to stop, and had started.
fn drive(
    demo: &Demo,
    manifests: &Manifests,
    outcomes: &Mutex<Vec<Outcome>>,
    all: &mut Figures,
) -> anyhow::Result<(Instant, Instant)> {
    pause(BEFORE);
    let stopping = Instant::now();
    for backend in BACKENDS {
        demo.control(&format!("stop backend {backend}"))?;
    }
    pause(DEAD);
    for _ in 0..10 {
        all.limit.push(limit(manifests)?);
    }
    for backend in BACKENDS {
        demo.control(&format!("start backend {backend}"))?;
    }
    let started = Instant::now();
    while !steady(outcomes) {
        if started.elapsed() > GIVE_UP {
            bail!("answers are not local again {GIVE_UP:?} after the backends were started");
        }
        pause(Duration::from_millis(50));
    }
    Ok((stopping, started))
}

fn steady(outcomes: &Mutex<Vec<Outcome>>) -> bool {
    let outcomes = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(since) = Instant::now().checked_sub(STEADY) else { return false };
    outcomes.iter().filter(|outcome| outcome.done > since).all(Outcome::is_local)
}

/// Sends this client's share of the schedule.
fn load(
    proxy: SocketAddr,
    schedule: Instant,
    client: u32,
    outcomes: &Mutex<Vec<Outcome>>,
    stop: &AtomicBool,
) {
    let mut due = schedule + EVERY * client;
    while !stop.load(Ordering::Relaxed) {
        pause(due.saturating_duration_since(Instant::now()));
        let region = request(proxy).map_err(|error| format!("{error:#}"));
        let outcome = Outcome { due, done: Instant::now(), region };
        outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
        due += EVERY * CLIENTS;
    }
}

fn request(proxy: SocketAddr) -> anyhow::Result<String> {
    let response = http::get_via(proxy, URL)?;
    ensure!(response.status == 200, "status {}: {}", response.status, response.text());
    Ok(response.json::<Answer>()?.region)
}

/// The least that a failover takes: to be refused, and to ask the other region.
fn limit(manifests: &Manifests) -> anyhow::Result<Duration> {
    let started = Instant::now();
    ensure!(TcpStream::connect(manifests.backend()).is_err(), "a dead backend answers");
    let response = http::get(manifests.far_backend(), "/")?;
    ensure!(response.status == 200, "the other region's backend says {}", response.status);
    Ok(started.elapsed())
}
