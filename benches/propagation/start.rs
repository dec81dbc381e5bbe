//! From starting the process to a mesh in which every process knows every cluster.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tombolo_testbed::{Process, Scratch, free_ports, http};

use crate::edit::Manifests;
use crate::machine::Watch;
use crate::stats::{Row, Samples, Section};
use crate::{Bench, pause};

/// Ready in under this after the build.
const PROMISE: Duration = Duration::from_secs(3);
const DEADLINE: Duration = Duration::from_secs(30);
/// One Envoy for each cluster of the example.
const ENVOYS: usize = 4;

/// With Envoys where there is one, and without.
pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Section> {
    let watch = Watch::start();
    let rounds = bench.rounds(20);
    let alone = |_| Ok((demo(&bench.binary, None)?, program(&bench.binary)?));
    let mut rows = vec![row("demo, no Envoy (limit: the program's --help)", rounds, alone)?];
    let mut counts = Vec::new();
    match bench.envoy() {
        Ok(envoy) => {
            let with = |_| Ok((demo(&bench.binary, Some(&envoy))?, envoys(&envoy)?));
            rows.push(row("demo, 4 Envoys (limit: 4 Envoys without work)", rounds, with)?);
        }
        Err(missing) => counts.push((format!("not measured with Envoy, {missing}"), 0)),
    }
    Ok(Section { rows, counts, others: watch.others(), ..Section::default() })
}

fn row(
    what: &str,
    rounds: usize,
    round: impl FnMut(usize) -> anyhow::Result<(Duration, Duration)>,
) -> anyhow::Result<Row> {
    let pairs: Vec<_> = (0..rounds).map(round).collect::<anyhow::Result<_>>()?;
    let (samples, limit): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    Ok(Row {
        promise: Some(PROMISE),
        limit: Some(limit.into_iter().collect()),
        ..Row::new(what, samples.into_iter().collect::<Samples>())
    })
}

/// Process start to `demo.json`, on an empty state directory.
fn demo(binary: &Path, envoy: Option<&Path>) -> anyhow::Result<Duration> {
    let scratch = Scratch::new("bench")?;
    let state = scratch.path().join("state");
    let manifests = Manifests::copy_to(scratch.path())?;
    let mut command = Command::new(binary);
    command.arg("demo").arg("--dir").arg(manifests.root()).arg("--state-dir").arg(&state);
    command.args(["--ports", "auto"]);
    match envoy {
        Some(envoy) => command.arg("--envoy").arg(envoy),
        // So that none is found there.
        None => command.env("PATH", "/nowhere"),
    };
    let started = Instant::now();
    let mut process = Process::start("demo", &mut command, scratch.path())?;
    let ready = state.join("demo.json");
    while !ready.exists() {
        ensure!(process.exited()?.is_none(), "the demo ended before it was ready");
        ensure!(started.elapsed() < DEADLINE, "the demo is not ready after {DEADLINE:?}");
        pause(Duration::from_millis(1));
    }
    let took = started.elapsed();
    process.terminate(DEADLINE)?;
    Ok(took)
}

/// What it takes to load and run the program at all.
fn program(binary: &Path) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let status = Command::new(binary).arg("--help").stdout(Stdio::null()).status()?;
    ensure!(status.success(), "--help ended with {status}");
    Ok(started.elapsed())
}

/// As many Envoys with nothing to do, all at once, until each is live.
fn envoys(envoy: &Path) -> anyhow::Result<Duration> {
    let scratch = Scratch::new("bench")?;
    let admins = free_ports(ENVOYS)?;
    let mut processes = Vec::new();
    let started = Instant::now();
    for (index, admin) in admins.iter().enumerate() {
        let config = serde_json::json!({
            "node": { "id": "bench", "cluster": "bench" },
            "admin": { "address": { "socket_address": {
                "address": admin.ip().to_string(), "port_value": admin.port(),
            } } },
        });
        let mut command = Command::new(envoy);
        command.args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]);
        command.arg("--config-yaml").arg(config.to_string());
        processes.push(Process::start(&format!("envoy-{index}"), &mut command, scratch.path())?);
    }
    for admin in admins {
        while !http::get(admin, "/ready").is_ok_and(|response| response.text().trim() == "LIVE") {
            ensure!(started.elapsed() < DEADLINE, "an Envoy is not live after {DEADLINE:?}");
            pause(Duration::from_millis(2));
        }
    }
    let took = started.elapsed();
    for mut process in processes {
        process.terminate(DEADLINE).context("ending an Envoy")?;
    }
    Ok(took)
}
