//! Starts with everybody else away, from disk alone; separate processes of the real binary.

mod common;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use common::manifests::{Manifests, service};
use common::mesh::agreed_digest;
use common::processes::{Apart, Listens};
use common::{EU, SOON, US, ask, run};
use serde_json::Value;
use tombolo_testbed::{Process, Scratch, http, wait_for};

/// A mesh comes together, and an image follows a second after.
const REJOINED: Duration = Duration::from_secs(20);
/// From start to service, with everybody else away.
const PROMISED: Duration = Duration::from_secs(5);
const SAVES: &str = "tombolo_cache_saves_total{outcome=\"saved\"} ";
const FAILURES: &str = "tombolo_cache_saves_total{outcome=\"failed\"} ";
/// An Envoy of no configuration starts in a second; ten times that.
const AFTER_START: Duration = Duration::from_secs(10);
const AGENT: &str = "us-west1-alpha";

/// Starts all, edits twice, each time once each has an image with what was before, and kills all
/// once each has one with the last edit. Gives the digest of what they then served.
fn killed(apart: &Apart<'_>, manifests: &Manifests) -> anyhow::Result<String> {
    let names = Apart::names().into_iter();
    let mut processes: BTreeMap<String, Process> =
        names.map(|name| Ok((name.clone(), apart.start(&name)?))).collect::<anyhow::Result<_>>()?;
    let mut before = BTreeMap::new();
    for admin in apart.admins() {
        wait_for(format!("{admin} knows all clusters"), REJOINED, || {
            ask::same(&ask::exporters(admin, "cart")?.len(), &4)
        })?;
        before.insert(admin, saved(admin, 1)?);
    }
    // Twice, so that of the two images on disk the older has the first edit in any case.
    for (name, pod) in [("search", 97), ("mail", 98)] {
        let file = format!("europe-west4/alpha/{name}.yaml");
        manifests.write(&file, &service(name, &manifests.eu(1, pod)))?;
        for (admin, before) in &mut before {
            wait_for(format!("{admin} has {name}"), SOON, || {
                ask::same(&ask::exporters(*admin, name)?.len(), &1)
            })?;
            *before = saved(*admin, *before + 1)?;
        }
    }
    let digest = agreed_digest(&apart.admins())?;
    for process in processes.values_mut() {
        process.kill()?;
    }
    Ok(digest)
}

/// Waits until all that a process holds is on disk, in this generation or a later one.
fn saved(admin: SocketAddr, at_least: u64) -> anyhow::Result<u64> {
    wait_for(format!("{admin} has saved generation {at_least}"), REJOINED, || {
        let cache = ask::status(admin)?["cache"].take();
        let generation = cache["generation"].as_u64().context("nothing saved yet")?;
        ensure!(generation >= at_least && cache["unsaved"] == false, "{cache}");
        Ok(generation)
    })
}

/// Starts one process, which has to serve all that was known within what is promised.
fn start(apart: &Apart<'_>, name: &str) -> anyhow::Result<(Process, Listens)> {
    let began = Instant::now();
    let (process, listens) = begin(apart, name)?;
    wait_for(format!("{name} serves"), SOON, || ask::digest(listens.admin))?;
    assert!(began.elapsed() < PROMISED, "{:?}", began.elapsed());
    Ok((process, listens))
}

/// Starts one process that may have nothing to serve.
fn begin(apart: &Apart<'_>, name: &str) -> anyhow::Result<(Process, Listens)> {
    let process = apart.start(name)?;
    let listens = apart.listens(name);
    wait_for(format!("{name} answers at its admin address"), SOON, || ask::status(listens.admin))?;
    Ok((process, listens))
}

fn cache_of(apart: &Apart<'_>, name: &str) -> PathBuf {
    Path::new(&apart.path(&format!("state-{name}"))).join("cache")
}

/// The images of a process, newest first.
fn images(apart: &Apart<'_>, name: &str) -> Vec<PathBuf> {
    let dir = cache_of(apart, name);
    let mut images: Vec<_> = ["image-a", "image-b"].map(|image| dir.join(image)).into();
    images.sort_by_key(|path| std::fs::metadata(path).and_then(|found| found.modified()).ok());
    images.reverse();
    images
}

fn flip_a_bit(path: &Path) -> anyhow::Result<()> {
    let mut bytes = std::fs::read(path)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(path, bytes).context("written")
}

fn source<'a>(status: &'a Value, owner: &str) -> &'a Value {
    let sources = status["sources"].as_array().into_iter().flatten();
    sources.into_iter().find(|source| source["owner"] == owner).unwrap_or(&Value::Null)
}

#[test]
fn an_agent_alone_with_its_manifests_and_region_gone_serves_the_mesh_from_disk()
-> anyhow::Result<()> {
    let scratch = Scratch::new("cache-alone")?;
    let manifests = Manifests::copy(scratch.path())?;
    let apart = Apart::write(scratch.path(), &manifests)?;
    let digest = killed(&apart, &manifests)?;
    std::fs::rename(manifests.path("us-west1/alpha"), scratch.path().join("gone"))?;

    let (mut agent, listens) = start(&apart, AGENT)?;
    assert_eq!(ask::addresses(listens.dns, "search")?, [manifests.eu(1, 97)]);
    assert_eq!(ask::addresses(listens.dns, "payments")?.len(), 2, "of the region that is gone");
    assert!(!ask::addresses(listens.dns, "cart")?.is_empty(), "also of its own cluster");
    assert_eq!(ask::code(listens.dns, "nobody")?, "NXDOMAIN", "it knows all there was");
    assert_eq!(ask::digest(listens.admin)?, digest);
    let status = ask::status(listens.admin)?;
    assert_eq!(status["ready"], true, "{status}");
    assert_eq!(status["cache"]["restored"]["generation"], status["cache"]["generation"]);
    // What its own cluster had is held back by the guard: a directory that is gone explains nothing.
    wait_for("it is held", SOON, || {
        let status = ask::status(listens.admin)?;
        let own = source(&status, "us-west1/us-west1-alpha");
        ask::same(&own["holds"].as_array().map(Vec::len), &Some(1))
    })?;
    for owner in ["us-west1/us-west1-beta", "europe-west4/europe-west4-alpha", "us-west1/_"] {
        assert_eq!(source(&status, owner)["restored"], true, "{owner}: {status}");
    }
    let age = source(&status, "europe-west4/europe-west4-alpha")["ageSeconds"].as_f64();
    assert!(age.is_some_and(|age| (0.0..600.0).contains(&age)), "{status}");
    let metrics = http::get(listens.admin, "/metrics")?.text();
    for metric in ["tombolo_cache_generation ", "tombolo_cache_age_seconds ", SAVES] {
        assert!(metrics.contains(metric), "{metric} is missing");
    }

    // The others come back: nothing was lost, and nobody is restored any more.
    std::fs::rename(scratch.path().join("gone"), manifests.path("us-west1/alpha"))?;
    let others = Apart::names().into_iter().filter(|name| name != AGENT);
    let mut others: Vec<Process> =
        others.map(|name| apart.start(&name)).collect::<anyhow::Result<_>>()?;
    wait_for("all were heard again", REJOINED, || {
        let status = ask::status(listens.admin)?;
        let sources = status["sources"].as_array().cloned().unwrap_or_default();
        ensure!(sources.iter().all(|source| source["restored"] != true), "{status}");
        Ok(())
    })?;
    assert_eq!(agreed_digest(&apart.admins())?, digest);
    assert!(agent.terminate(Duration::from_secs(10))?.success());
    assert!(!agent.stderr()?.contains("panicked"));
    for process in &mut others {
        process.kill()?;
    }
    Ok(())
}

#[test]
fn an_envoy_gets_its_configuration_from_an_agent_that_is_alone() -> anyhow::Result<()> {
    let Some(envoy) = common::mesh::envoy("e2e_cache::an_envoy_gets_its_configuration") else {
        return Ok(());
    };
    let scratch = Scratch::new("cache-envoy")?;
    let manifests = Manifests::copy(scratch.path())?;
    let apart = Apart::write(scratch.path(), &manifests)?;
    killed(&apart, &manifests)?;
    std::fs::rename(manifests.path("us-west1/alpha"), scratch.path().join("gone"))?;
    let (mut agent, _) = start(&apart, AGENT)?;
    let (bootstrap, admin) = apart.envoy_of(AGENT)?;
    let mut command = std::process::Command::new(&envoy);
    command.args(["--disable-hot-restart", "--concurrency", "1", "-c", &bootstrap]);
    let mut process = Process::start("envoy", &mut command, scratch.path())?;
    wait_for("Envoy has the services of the region that is gone", AFTER_START, || {
        let health = ask::envoy_health(admin, &manifests.eu(1, 97))?;
        ask::same(&health.as_deref(), &Some("healthy"))
    })?;
    process.kill()?;
    agent.kill()
}

#[test]
fn a_flipped_bit_in_the_newest_image_falls_back_to_the_older_and_status_says_so()
-> anyhow::Result<()> {
    let scratch = Scratch::new("cache-older")?;
    let manifests = Manifests::copy(scratch.path())?;
    let apart = Apart::write(scratch.path(), &manifests)?;
    killed(&apart, &manifests)?;
    std::fs::rename(manifests.path("us-west1/alpha"), scratch.path().join("gone"))?;
    for name in [AGENT, EU] {
        flip_a_bit(&images(&apart, name)[0])?;
    }
    for name in [AGENT, EU] {
        let (mut process, listens) = start(&apart, name)?;
        assert_eq!(ask::addresses(listens.dns, "payments")?.len(), 2, "{name}");
        let status = ask::status(listens.admin)?;
        let problem = status["cache"]["problems"][0].as_str().unwrap_or_default();
        assert!(problem.contains("its checksum does not match"), "{status}");
        assert!(status["cache"]["restored"]["generation"].as_u64() > Some(0), "{status}");
        let shown = run(&["status", "--admin", &listens.admin.to_string()])?;
        assert!(shown.stdout.contains("restored from disk, generation"), "{shown:?}");
        assert!(shown.stdout.contains("its checksum does not match"), "{shown:?}");
        assert_eq!(ask::addresses(listens.dns, "search")?, [manifests.eu(1, 97)], "{name}");
        process.kill()?;
    }
    Ok(())
}

#[test]
fn with_both_images_damaged_what_is_not_known_is_servfail_and_status_says_so() -> anyhow::Result<()>
{
    let scratch = Scratch::new("cache-none")?;
    let manifests = Manifests::copy(scratch.path())?;
    let apart = Apart::write(scratch.path(), &manifests)?;
    killed(&apart, &manifests)?;
    std::fs::rename(manifests.path("us-west1/alpha"), scratch.path().join("gone"))?;
    for image in images(&apart, AGENT) {
        flip_a_bit(&image)?;
    }
    let (mut process, listens) = begin(&apart, AGENT)?;
    let began = Instant::now();
    // Past the time after which an agent serves its own cluster alone.
    while began.elapsed() < Duration::from_secs(7) {
        for service in ["payments", "cart", "nobody"] {
            assert_eq!(ask::code(listens.dns, service)?, "SERVFAIL", "{service}");
        }
    }
    let status = ask::status(listens.admin)?;
    assert_eq!(status["cache"]["problems"].as_array().map(Vec::len), Some(2), "{status}");
    assert!(status["cache"]["restored"].is_null() && status["ready"] == false, "{status}");
    run(&["decisions", "--admin", &listens.admin.to_string()])?
        .assert_refused(&["does not know yet what was decided"]);
    process.kill()
}

#[test]
fn a_control_plane_whose_store_was_lost_serves_from_its_cache_until_owners_speak_again()
-> anyhow::Result<()> {
    let scratch = Scratch::new("cache-store")?;
    let manifests = Manifests::copy(scratch.path())?;
    let apart = Apart::write(scratch.path(), &manifests)?;
    let digest = killed(&apart, &manifests)?;
    std::fs::remove_file(Path::new(&apart.path(&format!("state-{US}"))).join("store.redb"))?;
    let (mut region, listens) = start(&apart, US)?;
    let began = Instant::now();
    // Past the time that a control plane gives its agents.
    while began.elapsed() < Duration::from_secs(12) {
        assert_eq!(ask::digest(listens.admin)?, digest);
        assert_eq!(ask::addresses(listens.dns, "payments")?.len(), 2);
        assert_eq!(ask::code(listens.dns, "nobody")?, "NXDOMAIN");
    }
    let status = ask::status(listens.admin)?;
    assert_eq!(source(&status, "europe-west4/europe-west4-beta")["restored"], true, "{status}");

    // One cluster comes back and removes a service that it had: that counts at once, and what the
    // others had said still stands.
    let mut agent = apart.start(AGENT)?;
    wait_for("the cluster is heard", REJOINED, || {
        let status = ask::status(listens.admin)?;
        ensure!(source(&status, "us-west1/us-west1-alpha")["restored"] != true, "{status}");
        Ok(())
    })?;
    manifests.drop_last_document("us-west1/alpha/checkout.yaml", "ServiceExport")?;
    wait_for("the cluster's own word counts", REJOINED, || {
        let exporters = ask::exporters(listens.admin, "checkout")?;
        ensure!(!exporters.is_empty() && !exporters.contains(&AGENT.to_owned()), "{exporters:?}");
        Ok(())
    })?;
    let status = ask::status(listens.admin)?;
    assert_eq!(source(&status, "europe-west4/europe-west4-beta")["restored"], true, "{status}");
    assert_eq!(ask::addresses(listens.dns, "search")?, [manifests.eu(1, 97)]);
    agent.kill()?;
    region.kill()
}

#[test]
fn a_control_plane_with_its_store_takes_the_store_s_word_at_once() -> anyhow::Result<()> {
    let scratch = Scratch::new("cache-same")?;
    let manifests = Manifests::copy(scratch.path())?;
    let apart = Apart::write(scratch.path(), &manifests)?;
    let digest = killed(&apart, &manifests)?;
    let (mut region, listens) = start(&apart, EU)?;
    wait_for("the store was read", SOON, || {
        let status = ask::status(listens.admin)?;
        ensure!(status["store"]["position"].as_u64() > Some(0), "{status}");
        Ok(())
    })?;
    assert_eq!(ask::digest(listens.admin)?, digest);
    let status = ask::status(listens.admin)?;
    assert_eq!(status["store"]["otherHistories"], 0, "{status}");
    // Ages go on from before the restart.
    assert!(source(&status, "us-west1/us-west1-beta")["ageSeconds"].is_number(), "{status}");
    region.kill()
}

#[test]
fn a_disk_that_takes_nothing_is_told_of_while_all_is_served_and_is_used_once_mended()
-> anyhow::Result<()> {
    let scratch = Scratch::new("cache-disk")?;
    let manifests = Manifests::copy(scratch.path())?;
    let apart = Apart::write(scratch.path(), &manifests)?;
    // No rights stop root, but a file is no directory.
    let dir = cache_of(&apart, AGENT);
    std::fs::create_dir_all(dir.parent().context("a state directory")?)?;
    std::fs::write(&dir, "")?;
    let mut region = apart.start(US)?;
    let (mut agent, listens) = begin(&apart, AGENT)?;
    wait_for("the failure is told", REJOINED, || {
        let status = ask::status(listens.admin)?;
        ensure!(cannot_be_written(&status), "{status}");
        let metrics = http::get(listens.admin, "/metrics")?.text();
        let failures = metrics.lines().find_map(|line| line.strip_prefix(FAILURES));
        ensure!(failures.is_some_and(|count| count != "0"), "{failures:?}");
        Ok(())
    })?;
    assert!(!ask::addresses(listens.dns, "cart")?.is_empty());
    let told = agent.stderr()?.matches("what is held cannot be saved").count();
    assert_eq!(told, 1, "once per reason");
    std::fs::remove_file(&dir)?;
    saved(listens.admin, 1)?;
    let status = ask::status(listens.admin)?;
    assert!(!cannot_be_written(&status), "{status}");
    assert!(agent.stderr()?.contains("the disk cache can be written again"));
    agent.kill()?;
    region.kill()
}

fn cannot_be_written(status: &Value) -> bool {
    let problems = status["cache"]["problems"].as_array().into_iter().flatten();
    let mut problems = problems.filter_map(Value::as_str);
    let named = problems.any(|problem| problem.contains("the disk cache cannot be written"));
    assert_eq!(status["cache"]["failing"] == true, named, "{status}");
    named
}
