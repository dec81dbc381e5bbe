//! Starts with everything else gone, and agents that are killed, doubled or impostors.

mod common;

use std::time::{Duration, Instant};

use anyhow::ensure;
use common::manifests::service;
use common::regions::{self, Regions, Setup, replicas};
use common::{EU, SOON, US, ask};
use tombolo_testbed::wait_for;

/// From start to service, with everybody else away.
const PROMISED: Duration = Duration::from_secs(5);
/// An image follows a change after a second; dialling again is put off for at most 5 s.
const HEALED: Duration = Duration::from_mins(1);

fn start(test: &str) -> Option<anyhow::Result<Regions>> {
    regions::etcd_or_skip(&format!("e2e_dark::{test}"))?;
    Some(Regions::start(test, Setup::default()))
}

/// Waits until all that a process holds is on its disk.
fn saved(regions: &Regions, name: &str) -> anyhow::Result<()> {
    wait_for(format!("{name} has saved"), HEALED, || {
        let cache = regions.status(name)?["cache"].take();
        ensure!(cache["unsaved"] == false && cache["saved"].as_u64() > Some(0), "{cache}");
        Ok(())
    })
}

#[test]
fn one_control_plane_and_one_agent_alone_serve_within_5_s_with_etcd_and_peers_gone()
-> anyhow::Result<()> {
    let Some(regions) = start("alone") else { return Ok(()) };
    let mut regions = regions?;
    let address = regions.manifests.eu(1, 97);
    regions.manifests.write("europe-west4/alpha/search.yaml", &service("search", &address))?;
    regions.all_answer("search", std::slice::from_ref(&address), HEALED)?;
    let digest = regions.agreed(HEALED)?;
    for name in Regions::names() {
        saved(&regions, &name)?;
    }
    regions.kill_all()?;
    for region in [US, EU] {
        regions.etcd(region)?.kill_all()?;
    }
    let first = replicas(US).remove(0);
    for name in [first.as_str(), "us-west1-alpha"] {
        let began = Instant::now();
        regions.run(name)?;
        wait_for(format!("{name} answers"), 10 * PROMISED, || {
            ask::same(&regions.addresses(name, "search")?, &vec![address.clone()])
        })?;
        let took = began.elapsed();
        eprintln!("{name} answers {took:?} after its start");
        assert!(took < PROMISED, "{took:?}");
        assert_eq!(regions.at(name, |at| ask::digest(at.admin))?, digest);
        assert_eq!(regions.at(name, |at| ask::code(at.dns, "nobody"))?, "NXDOMAIN");
    }
    // It says what is missing, and nobody leads.
    wait_for("the store's problem is shown", SOON, || {
        let status = regions.status(&first)?;
        ensure!(status["store"]["problem"].is_string() && status["leader"] == false, "{status}");
        Ok(())
    })?;
    let sampler = regions.sample()?;
    for region in [US, EU] {
        regions.etcd(region)?.start_all()?;
    }
    for name in Regions::names() {
        if !regions.running().contains(&name) {
            regions.run(&name)?;
        }
    }
    for name in Regions::names() {
        regions.knows_all(&name)?;
    }
    regions.converge(HEALED)?;
    eprintln!("{} samples, no false delete", sampler.end()?);
    regions.end()
}

#[test]
fn a_killed_agent_loses_nothing_and_what_changed_meanwhile_counts_when_it_is_back()
-> anyhow::Result<()> {
    let Some(regions) = start("a_killed_agent") else { return Ok(()) };
    let mut regions = regions?;
    let sampler = regions.sample()?;
    regions.kill("us-west1-alpha")?;
    let address = regions.manifests.us(1, 93);
    regions.manifests.write("us-west1/alpha/search.yaml", &service("search", &address))?;
    sampler.may_go("shop/checkout us-west1-alpha");
    regions.manifests.drop_last_document("us-west1/alpha/checkout.yaml", "ServiceExport")?;
    for name in regions.running() {
        assert_eq!(regions.at(&name, |at| ask::exporters(at.admin, "checkout"))?.len(), 4);
    }
    // Nobody saw it go: it is believed when two readings agree.
    let mut config = regions.agent_config(US, "alpha");
    config["guard"] = serde_json::json!({"confirmAfterSeconds": 1});
    regions.write_config("us-west1-alpha", &config)?;
    regions.run("us-west1-alpha")?;
    regions.all_answer("search", &[address], HEALED)?;
    wait_for("what was removed meanwhile is gone", HEALED, || {
        for name in regions.running() {
            ask::same(&regions.at(&name, |at| ask::exporters(at.admin, "checkout"))?.len(), &3)?;
        }
        anyhow::Ok(())
    })?;
    regions.converge(HEALED)?;
    sampler.is_gone("shop/checkout us-west1-alpha");
    regions.history(US)?.assert_one_writer()?;
    eprintln!("{} samples, no false delete", sampler.end()?);
    regions.end()
}

#[test]
fn a_copy_of_an_agent_and_an_impostor_are_refused_and_both_sides_say_so() -> anyhow::Result<()> {
    let Some(regions) = start("a_copy_of_an_agent") else { return Ok(()) };
    let mut regions = regions?;
    let digest = regions.agreed(SOON)?;
    let sampler = regions.sample()?;

    // Another cluster of the same name: it has a state directory, so a UID, of its own.
    let m = &regions.manifests;
    m.write("us-west1/impostor/stray.yaml", &service("stray", &m.us(1, 91))).or_else(|_| {
        std::fs::create_dir_all(m.path("us-west1/impostor"))?;
        m.write("us-west1/impostor/stray.yaml", &service("stray", &m.us(1, 91)))
    })?;
    let mut config = regions.agent_config(US, "alpha");
    config["stateDir"] = regions.state_dir("us-west1-gamma").display().to_string().into();
    config["listen"] = regions.agent_config(US, "gamma")["listen"].take();
    config["source"]["directory"] = m.path("us-west1/impostor").display().to_string().into();
    regions.write_config("us-west1-gamma", &config)?;
    regions.run("us-west1-gamma")?;
    wait_for("the impostor is told", HEALED, || {
        let status = regions.status("us-west1-gamma")?;
        let problem = status["links"].to_string();
        ensure!(problem.contains("belongs to the cluster with UID"), "{problem}");
        Ok(())
    })?;
    wait_for("the region says so", SOON, || {
        let mut said = String::new();
        for name in replicas(US) {
            said += &regions.process(&name)?.stderr()?;
        }
        ensure!(said.contains("belongs to the cluster with UID"), "no word of it");
        Ok(())
    })?;
    regions.kill("us-west1-gamma")?;
    assert_eq!(regions.agreed(SOON)?, digest, "nothing of it was taken");
    for name in regions.running() {
        assert_eq!(regions.at(&name, |at| ask::code(at.dns, "stray"))?, "NXDOMAIN", "{name}");
    }

    // The same cluster twice, from a copy of its state: whoever started last publishes.
    let copy = regions.state_dir("us-west1-gamma");
    std::fs::remove_dir_all(&copy)?;
    std::fs::create_dir_all(&copy)?;
    for entry in std::fs::read_dir(regions.state_dir("us-west1-alpha"))? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), copy.join(entry.file_name()))?;
        }
    }
    config["source"] = regions.agent_config(US, "alpha")["source"].take();
    regions.write_config("us-west1-gamma", &config)?;
    regions.run("us-west1-gamma")?;
    wait_for("the one that started before is told", HEALED, || {
        let status = regions.status("us-west1-alpha")?;
        let problem = status["links"].to_string();
        ensure!(problem.contains("is older than"), "{problem}");
        Ok(())
    })?;
    let status = regions.status("us-west1-gamma")?;
    ensure!(status["links"][0]["problem"].is_null(), "{status}");
    regions.kill("us-west1-gamma")?;
    regions.kill("us-west1-alpha")?;
    regions.run("us-west1-alpha")?;
    wait_for("it publishes again", HEALED, || {
        let links = regions.status("us-west1-alpha")?["links"].take();
        ensure!(links[0]["synced"] == true && links[0]["problem"].is_null(), "{links}");
        Ok(())
    })?;
    assert_eq!(regions.agreed(HEALED)?, digest);
    regions.history(US)?.assert_one_writer()?;
    eprintln!("{} samples, no false delete", sampler.end()?);
    regions.end()
}
