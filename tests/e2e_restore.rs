//! A region's etcd is restored from a backup, or lost, under running regions.

mod common;

use std::time::Duration;

use anyhow::{Context as _, ensure};
use common::manifests::service;
use common::regions::{self, Regions, Setup, agents, replicas};
use common::{EU, SOON, US, ask};
use rustix::process::Signal;
use serde_json::{Value, json};
use tombolo_testbed::etcd::Release;
use tombolo_testbed::wait_for;

/// Dialling etcd and the region again is put off for at most 5 s each, and a leader is elected.
const HEALED: Duration = Duration::from_mins(1);

/// When, and what was written before anybody came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meanwhile {
    Nothing,
    /// Past the revision that was seen last, by somebody else.
    WrittenPast,
}

fn restored(test: &str, setup: Setup, meanwhile: Meanwhile) -> anyhow::Result<()> {
    let full = format!("e2e_restore::{test}");
    if regions::available(&full, setup.release).is_none() {
        return Ok(());
    }
    let mut regions = Regions::start(test, setup)?;
    let joined = members(&regions, US)?;
    let snapshot = regions.path("backup.db");
    regions.etcd(US)?.snapshot(0, &snapshot)?;

    // What the backup does not know: added, changed and removed, by both regions.
    let sampler = regions.sample()?;
    let m = &regions.manifests;
    let (us, eu, moved) = (m.us(1, 95), m.eu(1, 95), m.us(2, 99));
    let before = m.us(2, 21);
    let gone = [
        "shop/checkout us-west1-alpha".to_owned(),
        "shop/catalog europe-west4-beta".to_owned(),
        format!("shop/cart us-west1-beta {before}"),
    ];
    for record in &gone {
        sampler.may_go(record);
    }
    m.write("us-west1/alpha/search.yaml", &service("search", &us))?;
    m.write("europe-west4/alpha/mail.yaml", &service("mail", &eu))?;
    m.edit("us-west1/beta/cart.yaml", &format!("[{before}]"), &format!("[{moved}]"))?;
    m.drop_last_document("us-west1/alpha/checkout.yaml", "ServiceExport")?;
    m.drop_last_document("europe-west4/beta/catalog.yaml", "ServiceExport")?;
    regions.converge(HEALED)?;
    for record in &gone {
        sampler.is_gone(record);
    }

    restore(&mut regions, &snapshot, meanwhile)?;
    for name in replicas(US) {
        let store = wait_for(format!("{name} notices"), HEALED, || {
            let store = regions.status(&name)?["store"].take();
            ensure!(store["otherHistories"].as_u64() > Some(0), "{store}");
            Ok(store)
        })?;
        eprintln!("{name}: {}", store["otherHistory"]);
    }
    wait_for("what was lost is written back", HEALED, || written_back(&mut regions))?;
    for name in replicas(US) {
        wait_for(format!("{name} misses nothing"), HEALED, || {
            let store = regions.status(&name)?["store"].take();
            ensure!(store["lost"] == 0 && store["problem"].is_null(), "{store}");
            Ok(())
        })?;
    }
    eprintln!("agreed again after {:?}", regions.converge(HEALED)?);
    assert_eq!(members(&regions, US)?, joined, "who joined when");

    // And it goes on: edits, and a replica that knows only what the store does.
    let late = regions.manifests.us(2, 96);
    regions.manifests.write("us-west1/beta/late.yaml", &service("late", &late))?;
    regions.all_answer("late", &[late], HEALED)?;
    let fresh = regions.follower(US)?;
    regions.kill(&fresh)?;
    std::fs::remove_dir_all(regions.state_dir(&fresh))?;
    regions.run(&fresh)?;
    regions.converge(HEALED)?;
    eprintln!("{} samples, nothing withdrawn, nothing resurrected", sampler.end()?);
    regions.end()
}

/// The operator's recipe; nobody of the region comes back before it is done.
fn restore(
    regions: &mut Regions,
    snapshot: &std::path::Path,
    meanwhile: Meanwhile,
) -> anyhow::Result<()> {
    if meanwhile == Meanwhile::Nothing {
        return regions.etcd(US)?.restore(snapshot, &[]);
    }
    let seen = regions.etcd(US)?.status(0)?.revision;
    for name in replicas(US) {
        regions.process(&name)?.signal(Signal::STOP)?;
    }
    let etcd = regions.etcd(US)?;
    etcd.restore(snapshot, &[])?;
    while etcd.status(0)?.revision <= seen + 3 {
        etcd.ctl(&["put", "/somebody/else", "writes"])?;
    }
    for name in replicas(US) {
        regions.process(&name)?.signal(Signal::CONT)?;
    }
    Ok(())
}

fn written_back(regions: &mut Regions) -> anyhow::Result<()> {
    let keys = regions.etcd(US)?.ctl(&["get", "/tombolo/v1/", "--prefix", "--keys-only"])?;
    for there in [
        "us-west1/us-west1-alpha/export/shop/search",
        "europe-west4/europe-west4-alpha/export/shop/mail",
    ] {
        ensure!(keys.contains(there), "{there} is not in {keys}");
    }
    for gone in [
        "us-west1/us-west1-alpha/export/shop/checkout",
        "europe-west4/europe-west4-beta/export/shop/catalog",
    ] {
        ensure!(!keys.contains(gone), "{gone} is in {keys}");
    }
    Ok(())
}

/// Who joined a region and when, as every replica of both has it.
fn members(regions: &Regions, region: &str) -> anyhow::Result<Value> {
    let of = |name: &String| -> anyhow::Result<Value> {
        let mut status = regions.status(name)?;
        if status["settings"]["region"] == region {
            return Ok(status["settings"]["members"].take());
        }
        let peers = status["peers"].as_array().into_iter().flatten();
        let peer = peers.into_iter().find(|peer| peer["region"] == region);
        Ok(peer.context("the peer")?["members"].clone())
    };
    let names: Vec<_> = [US, EU].into_iter().flat_map(replicas).collect();
    wait_for("all know who joined", SOON, || {
        let running = regions.running();
        let mut all = names.iter().filter(|name| running.contains(name)).map(of);
        let first = all.next().context("a replica runs")??;
        ensure!(first.as_object().is_some_and(|members| members.len() == 2), "{first}");
        for other in all {
            ask::same(&other?, &first)?;
        }
        Ok(first)
    })
}

#[test]
fn a_restored_etcd_is_noticed_and_what_it_lost_is_written_back() -> anyhow::Result<()> {
    restored("a_restored_etcd", Setup::default(), Meanwhile::Nothing)
}

#[test]
fn a_restored_etcd_that_was_written_past_is_noticed_too() -> anyhow::Result<()> {
    restored("a_restored_etcd_past", Setup::default(), Meanwhile::WrittenPast)
}

#[test]
fn the_distribution_s_etcd_restored_is_noticed_too() -> anyhow::Result<()> {
    let setup = Setup { release: Release::Debian, ..Setup::default() };
    restored("the_distribution_s_etcd", setup, Meanwhile::Nothing)
}

#[test]
fn the_distribution_s_etcd_restored_and_written_past_is_noticed_too() -> anyhow::Result<()> {
    let setup = Setup { release: Release::Debian, ..Setup::default() };
    restored("the_distribution_s_etcd_past", setup, Meanwhile::WrittenPast)
}

#[test]
fn a_leader_that_outlives_the_restore_writes_back_what_was_lost() -> anyhow::Result<()> {
    // Its lease is in the backup and does not run out meanwhile: nobody is elected anew.
    let setup = Setup { control_planes: json!({"leaderTtl": "60s"}), ..Setup::default() };
    restored("a_leader_that_outlives", setup, Meanwhile::Nothing)
}

/// What a process shows of an owner.
fn source(regions: &Regions, name: &str, owner: &str) -> anyhow::Result<Value> {
    let sources = regions.status(name)?["sources"].take();
    let mut sources = sources.as_array().into_iter().flatten();
    sources.find(|source| source["owner"] == owner).cloned().context("it is not there")
}

/// As if its disks were gone.
fn lose_etcd(regions: &mut Regions) -> anyhow::Result<()> {
    regions.etcd(US)?.kill_all()?;
    std::fs::remove_dir_all(regions.path("etcd-us-west1/etcd-us-west1-0"))?;
    regions.etcd(US)?.start_all()
}

#[test]
fn a_new_empty_etcd_gets_back_what_the_replicas_still_hold() -> anyhow::Result<()> {
    let test = "e2e_restore::a_new_empty_etcd";
    if regions::etcd_or_skip(test).is_none() {
        return Ok(());
    }
    let mut regions = Regions::start("a_new_empty_etcd", Setup::default())?;
    let joined = members(&regions, US)?;
    let digest = regions.agreed(SOON)?;
    // One cluster cannot speak for itself.
    regions.kill("us-west1-beta")?;
    let sampler = regions.sample()?;
    lose_etcd(&mut regions)?;
    wait_for("the silent cluster's records are written back", HEALED, || {
        let keys = regions.etcd(US)?.ctl(&["get", "/tombolo/v1/", "--prefix", "--keys-only"])?;
        for there in ["us-west1-beta/export/shop/cart", "europe-west4-beta/export/shop/catalog"] {
            ensure!(keys.contains(there), "{there} is not in {keys}");
        }
        Ok(())
    })?;
    assert_eq!(regions.agreed(HEALED)?, digest);
    regions.run("us-west1-beta")?;
    regions.converge(HEALED)?;
    assert_eq!(members(&regions, US)?, joined, "who joined when");
    eprintln!("{} samples, nothing withdrawn", sampler.end()?);
    regions.end()
}

#[test]
fn a_region_that_lost_its_etcd_and_all_its_disks_recovers_from_its_peer() -> anyhow::Result<()> {
    let test = "e2e_restore::a_region_that_lost_all";
    if regions::etcd_or_skip(test).is_none() {
        return Ok(());
    }
    let mut regions = Regions::start("a_region_that_lost_all", Setup::default())?;
    let joined = members(&regions, US)?;
    let digest = regions.agreed(SOON)?;
    let sampler = regions.sample()?;
    for name in replicas(US) {
        regions.kill(&name)?;
        std::fs::remove_dir_all(regions.state_dir(&name))?;
    }
    // The one is gone with its disk, the other one only lives on with what it knows.
    regions.kill("us-west1-beta")?;
    lose_etcd(&mut regions)?;
    for name in replicas(US) {
        regions.run(&name)?;
    }
    assert_eq!(regions.agreed(HEALED)?, digest, "the peer gave back what it had");
    // Nobody of the region has heard of it since: what the peer says is no word of its own.
    for name in replicas(US) {
        let beta = source(&regions, &name, "us-west1/us-west1-beta")?;
        assert!(beta.get("ageSeconds").is_none(), "it has not been heard: {beta}");
        wait_for(format!("{name} does not take it for alive"), HEALED, || {
            let beta = source(&regions, &name, "us-west1/us-west1-beta")?;
            ensure!(beta["stale"] == true && beta["complete"] == true, "{beta}");
            Ok(())
        })?;
        let alpha = source(&regions, &name, "us-west1/us-west1-alpha")?;
        assert_eq!(alpha["stale"], false, "{alpha}");
    }
    assert_eq!(regions.agreed(SOON)?, digest, "and it is served");
    regions.run("us-west1-beta")?;
    regions.converge(HEALED)?;
    assert_eq!(members(&regions, US)?, joined, "who joined when");
    for name in agents(US) {
        wait_for(format!("{name} publishes again"), HEALED, || {
            let links = regions.status(&name)?["links"].take();
            ensure!(links[0]["synced"] == true && links[0]["problem"].is_null(), "{links}");
            Ok(())
        })?;
    }
    eprintln!("{} samples, nothing withdrawn", sampler.end()?);
    regions.end()
}

#[test]
fn a_backup_under_processes_that_are_all_new_gives_way_to_what_the_peer_holds() -> anyhow::Result<()>
{
    let test = "e2e_restore::a_backup_under_new_processes";
    if regions::etcd_or_skip(test).is_none() {
        return Ok(());
    }
    let mut regions = Regions::start("a_backup_under_new_processes", Setup::default())?;
    let joined = members(&regions, US)?;
    let snapshot = regions.path("backup.db");
    regions.etcd(US)?.snapshot(0, &snapshot)?;
    let m = &regions.manifests;
    let (added, before, moved) = (m.us(1, 95), m.us(2, 21), m.us(2, 99));
    m.write("us-west1/alpha/search.yaml", &service("search", &added))?;
    m.edit("us-west1/beta/cart.yaml", &format!("[{before}]"), &format!("[{moved}]"))?;
    m.drop_last_document("us-west1/alpha/checkout.yaml", "ServiceExport")?;
    regions.converge(HEALED)?;
    let digest = regions.agreed(SOON)?;

    for name in agents(US) {
        // From an older image it would not know why the export went, and hold it.
        wait_for(format!("{name} has saved what it says"), HEALED, || {
            let cache = regions.status(&name)?["cache"].take();
            ensure!(cache["unsaved"] == false, "{cache}");
            Ok(())
        })?;
        regions.kill(&name)?;
    }
    for name in replicas(US) {
        regions.kill(&name)?;
        std::fs::remove_dir_all(regions.state_dir(&name))?;
    }
    let sampler = regions.sample()?;
    // A new process may show what the backup has, before the peer has answered.
    sampler.may_go("shop/checkout us-west1-alpha");
    sampler.may_go(&format!("shop/cart us-west1-beta {before}"));
    regions.etcd(US)?.restore(&snapshot, &[])?;
    for name in replicas(US) {
        regions.run(&name)?;
    }
    wait_for("the peer has given back what the backup lacks", HEALED, || {
        ask::same(&regions.agreed(HEALED)?, &digest)
    })?;
    wait_for("nobody is asked any more", HEALED, || {
        let store = regions.status(&regions.leader(US)?)?["store"].take();
        ensure!(store["asked"].is_null() && store["lost"] == 0, "{store}");
        Ok(())
    })?;
    let keys = regions.etcd(US)?.ctl(&["get", "/tombolo/v1/", "--prefix", "--keys-only"])?;
    let alpha = "us-west1/us-west1-alpha/export/shop";
    ensure!(keys.contains(&format!("{alpha}/search")), "{keys}");
    ensure!(!keys.contains(&format!("{alpha}/checkout")), "{keys}");

    for name in agents(US) {
        regions.run(&name)?;
    }
    regions.converge(HEALED)?;
    assert_eq!(members(&regions, US)?, joined, "who joined when");
    eprintln!("{} samples, nothing withdrawn", sampler.end()?);
    regions.end()
}
