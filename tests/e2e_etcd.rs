//! What happens to a region's etcd in operation: compaction, a full disk, a lost quorum.

mod common;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use common::manifests::service;
use common::regions::{self, Regions, Setup, replicas};
use common::{EU, SOON, US, ask};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use serde_json::json;
use tombolo_testbed::{Scratch, etcd, wait_for};

/// Dialling again is put off for at most 5 s, a leader is elected, the store is asked every 30 s.
const HEALED: Duration = Duration::from_mins(1);
const TOLD: Duration = Duration::from_mins(2);

fn start(test: &str, etcd: etcd::Options) -> Option<anyhow::Result<Regions>> {
    regions::etcd_or_skip(&format!("e2e_etcd::{test}"))?;
    Some(Regions::start(test, Setup { etcd, ..Setup::default() }))
}

#[test]
fn a_replica_that_was_away_while_its_history_was_compacted_compares_and_goes_on()
-> anyhow::Result<()> {
    let Some(regions) = start("compaction", etcd::Options::default()) else { return Ok(()) };
    let mut regions = regions?;
    let sampler = regions.sample()?;
    let away = regions.follower(US)?;
    wait_for("it has something to come back with", HEALED, || {
        let cache = regions.status(&away)?["cache"].take();
        ensure!(cache["unsaved"] == false && cache["saved"].as_u64() > Some(0), "{cache}");
        Ok(())
    })?;
    regions.kill(&away)?;
    let address = regions.manifests.us(1, 95);
    regions.manifests.write("us-west1/alpha/search.yaml", &service("search", &address))?;
    sampler.may_go("shop/checkout us-west1-alpha");
    regions.manifests.drop_last_document("us-west1/alpha/checkout.yaml", "ServiceExport")?;
    regions.converge(HEALED)?;
    let etcd = regions.etcd(US)?;
    let revision = etcd.status(0)?.revision.to_string();
    etcd.ctl(&["compact", &revision])?;
    regions.run(&away)?;
    let store = wait_for("it finds its history compacted", HEALED, || {
        let store = regions.status(&away)?["store"].take();
        ensure!(store["otherHistories"] == 1, "{store}");
        Ok(store)
    })?;
    assert!(store["otherHistory"].to_string().contains("compacted"), "{store}");
    regions.converge(HEALED)?;
    assert_eq!(regions.status(&away)?["store"]["lost"], 0);
    eprintln!("{} samples, no false delete", sampler.end()?);
    regions.end()
}

#[test]
fn an_etcd_that_is_full_is_told_of_while_all_is_served_and_takes_writes_once_it_has_room()
-> anyhow::Result<()> {
    let options = etcd::Options { quota: Some(16 << 20), ..etcd::Options::default() };
    let Some(regions) = start("no_space", options) else { return Ok(()) };
    let mut regions = regions?;
    let sampler = regions.sample()?;
    let leader = regions.leader(US)?;
    let filler = "x".repeat(120_000);
    let etcd = regions.etcd(US)?;
    let full = (0..1000).find_map(|n| etcd.ctl(&["put", &format!("/filler/{n}"), &filler]).err());
    ensure!(full.is_some_and(|error| format!("{error:#}").contains("space")), "it is not full");
    let address = regions.manifests.us(1, 95);
    regions.manifests.write("us-west1/alpha/search.yaml", &service("search", &address))?;
    wait_for("the alarm is shown", TOLD, || {
        let alarms = regions.status(&leader)?["store"]["alarms"].take().to_string();
        ensure!(alarms.contains("takes no more writes"), "{alarms}");
        Ok(())
    })?;
    for name in replicas(US) {
        assert_eq!(regions.addresses(&name, "catalog")?.len(), 4, "{name}");
        assert_eq!(regions.at(&name, |at| ask::code(at.dns, "search"))?, "NXDOMAIN", "{name}");
    }
    // The cluster's own is seen in the cluster, whatever becomes of the region's store.
    ask::same(&regions.addresses("us-west1-alpha", "search")?, &vec![address.clone()])?;

    let etcd = regions.etcd(US)?;
    etcd.ctl(&["del", "--prefix", "/filler/"])?;
    let revision = etcd.status(0)?.revision.to_string();
    etcd.ctl(&["compact", &revision])?;
    etcd.ctl(&["defrag"])?;
    etcd.ctl(&["alarm", "disarm"])?;
    eprintln!("written {:?} after that", regions.all_answer("search", &[address], HEALED)?);
    regions.converge(HEALED)?;
    wait_for("the alarm is over", TOLD, || {
        let store = regions.status(&leader)?["store"].take();
        ensure!(store["alarms"].is_null(), "{store}");
        Ok(())
    })?;
    eprintln!("{} samples, no false delete", sampler.end()?);
    regions.end()
}

#[test]
fn without_a_quorum_all_is_served_writes_wait_and_go_on_once_there_is_one() -> anyhow::Result<()> {
    let Some(regions) = start("quorum", etcd::Options::members(3)) else { return Ok(()) };
    let mut regions = regions?;
    let sampler = regions.sample()?;
    let etcd = regions.etcd(US)?;
    let killed = etcd.leader()?;
    etcd.kill(killed)?;
    // A majority is left: it goes on.
    let first = regions.manifests.us(1, 95);
    regions.manifests.write("us-west1/alpha/search.yaml", &service("search", &first))?;
    eprintln!("one killed: {:?}", regions.all_answer("search", &[first], HEALED)?);

    let etcd = regions.etcd(US)?;
    let paused = etcd.leader()?;
    etcd.pause(paused)?;
    let second = regions.manifests.us(1, 94);
    regions.manifests.write("us-west1/alpha/mail.yaml", &service("mail", &second))?;
    wait_for("the missing store is shown", TOLD, || {
        for name in replicas(US) {
            let status = regions.status(&name)?;
            ensure!(status["store"]["problem"].is_string(), "{name}: {status}");
            // Nobody leads, and who led last is told as that.
            let (leads, led_by) = (&status["leader"], &status["ledBy"]);
            ensure!(leads == false && led_by["lastKnown"] == true, "{name}: {leads} {led_by}");
        }
        Ok(())
    })?;
    for name in replicas(US) {
        assert_eq!(regions.addresses(&name, "catalog")?.len(), 4, "{name}");
        assert_eq!(regions.at(&name, |at| ask::code(at.dns, "mail"))?, "NXDOMAIN", "{name}");
    }
    ask::same(&regions.addresses("us-west1-alpha", "mail")?, &vec![second.clone()])?;
    let etcd = regions.etcd(US)?;
    etcd.resume(paused)?;
    eprintln!("a quorum again: {:?}", regions.all_answer("mail", &[second], HEALED)?);
    regions.etcd(US)?.restart(killed)?;
    regions.converge(HEALED)?;
    regions.leader(US)?;
    regions.history(US)?.assert_one_writer()?;
    wait_for("nothing is missing any more", SOON, || {
        for name in replicas(US) {
            let store = regions.status(&name)?["store"].take();
            ensure!(store["problem"].is_null() && store["lost"] == 0, "{name}: {store}");
        }
        Ok(())
    })?;
    eprintln!("{} samples, no false delete", sampler.end()?);
    regions.end()
}

/// When the key of the election was written, and its lease in hexadecimal as etcdctl takes it.
fn elected(regions: &mut Regions, region: &str) -> anyhow::Result<(u64, String)> {
    let key = ["get", "--prefix", "/tombolo/local/v1/election/", "-w", "json"];
    let said: serde_json::Value = serde_json::from_str(&regions.etcd(region)?.ctl(&key)?)?;
    let key = &said["kvs"][0];
    let number = |name: &str| key[name].as_u64().with_context(|| format!("no {name}: {said}"));
    Ok((number("create_revision")?, format!("{:x}", number("lease")?)))
}

#[test]
fn leases_that_are_revoked_again_and_again_cost_a_leader_and_no_record() -> anyhow::Result<()> {
    let Some(regions) = start("leases", etcd::Options::default()) else { return Ok(()) };
    let mut regions = regions?;
    let sampler = regions.sample()?;
    let digest = regions.agreed(SOON)?;
    for round in 1..=3 {
        regions.leader(US)?;
        // Those who lose an election give theirs back by themselves.
        let (written, lease) = elected(&mut regions, US)?;
        let etcd = regions.etcd(US)?;
        let hangs_on_it = etcd.ctl(&["lease", "timetolive", &lease, "--keys"])?;
        ensure!(hangs_on_it.contains("/election/"), "{hangs_on_it}");
        ensure!(!hangs_on_it.contains("/tombolo/v1/"), "{hangs_on_it}");
        etcd.ctl(&["lease", "revoke", &lease])?;
        wait_for(format!("somebody is elected anew in round {round}"), HEALED, || {
            let (now, _) = elected(&mut regions, US)?;
            ensure!(now > written, "still the one of revision {now}");
            Ok(())
        })?;
        regions.leader(US)?;
        assert_eq!(regions.agreed(HEALED)?, digest, "round {round}");
    }
    let address = regions.manifests.us(1, 95);
    regions.manifests.write("us-west1/alpha/search.yaml", &service("search", &address))?;
    regions.all_answer("search", &[address], HEALED)?;
    regions.converge(HEALED)?;
    regions.history(US)?.assert_one_writer()?;
    eprintln!("{} samples, nothing withdrawn", sampler.end()?);
    regions.end()
}

/// Writes a certificate and its key below `dir`.
fn issue(
    authority: &CertifiedIssuer<'static, KeyPair>,
    names: Vec<SanType>,
    dir: &Path,
    name: &str,
) -> anyhow::Result<(PathBuf, PathBuf)> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.subject_alt_names = names;
    let paths = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
    std::fs::write(&paths.0, params.signed_by(&key, authority)?.pem())?;
    std::fs::write(&paths.1, key.serialize_pem())?;
    Ok(paths)
}

fn authority() -> anyhow::Result<CertifiedIssuer<'static, KeyPair>> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

#[test]
fn client_certificates_and_passwords_are_used_and_what_is_wrong_with_them_is_said()
-> anyhow::Result<()> {
    let test = "e2e_etcd::client_certificates_and_passwords";
    let Some(release) = regions::etcd_or_skip(test) else { return Ok(()) };
    let files = Scratch::new("etcd-credentials")?;
    let dir = files.path();
    let (ours, stranger) = (authority()?, authority()?);
    let ca = dir.join("ca.pem");
    std::fs::write(&ca, ours.pem())?;
    let addresses = ["127.0.0.1", "10.77.0.1", "10.77.0.2"];
    let addresses = addresses.map(|ip| Ok(SanType::IpAddress(ip.parse::<IpAddr>()?)));
    let addresses = addresses.into_iter().collect::<anyhow::Result<_>>()?;
    let (cert, key) = issue(&ours, addresses, dir, "server")?;
    let name = || anyhow::Ok(vec![SanType::DnsName("tombolo".try_into()?)]);
    let (client_cert, client_key) = issue(&ours, name()?, dir, "client")?;
    let (other_cert, other_key) = issue(&stranger, name()?, dir, "stranger")?;
    let password = dir.join("password");
    std::fs::write(&password, "right\n")?;
    let store = json!({
        "ca": ca, "cert": client_cert, "key": client_key,
        "user": "tombolo", "passwordFile": password,
    });
    let tls = etcd::Tls { ca, cert, key, client_cert, client_key };
    let etcd = etcd::Options { tls: Some(tls), ..etcd::Options::default() };
    let setup = Setup { release, etcd, store, ..Setup::default() };
    let mut regions = Regions::prepare("credentials", setup)?;
    for (region, password) in [(US, "wrong"), (EU, "right")] {
        let etcd = regions.etcd(region)?;
        etcd.add_user("tombolo", password, "/tombolo/")?;
        etcd.enable_auth("root")?;
    }
    let [first, second, ..] = &replicas(US)[..] else { unreachable!("three of them") };
    let mut config = regions.control_plane_config(US, second)?;
    config["store"]["etcd"]["cert"] = other_cert.display().to_string().into();
    config["store"]["etcd"]["key"] = other_key.display().to_string().into();
    regions.write_config(second, &config)?;
    for name in Regions::names() {
        regions.run(&name)?;
    }
    for (name, words) in
        [(first, "correct the user or the password"), (second, "accept our certificate")]
    {
        let problem = wait_for(format!("{name} says why"), HEALED, || {
            let store = regions.status(name)?["store"].take();
            let problem = store["problem"].as_str().context("no problem yet")?;
            ensure!(problem.contains(words), "{problem}");
            Ok(problem.to_owned())
        })?;
        eprintln!("{name}: {problem}");
        let log = regions.process(name)?.stderr()?;
        assert!(log.contains(words), "{name}: {log}");
    }
    // What was right all along needs no restart; a file that was wrong is read at the start.
    let etcd = regions.etcd(US)?;
    etcd.ctl(&["user", "delete", "tombolo"])?;
    etcd.ctl(&["user", "add", "tombolo:right"])?;
    etcd.ctl(&["user", "grant-role", "tombolo", "tombolo"])?;
    wait_for(format!("{first} has the store"), HEALED, || {
        let store = regions.status(first)?["store"].take();
        ensure!(store["problem"].is_null() && store["position"].as_u64() > Some(0), "{store}");
        Ok(())
    })?;
    regions.kill(second)?;
    regions.write_config(second, &regions.control_plane_config(US, second)?)?;
    regions.run(second)?;
    for name in Regions::names() {
        regions.knows_all(&name)?;
    }
    regions.converge(HEALED)?;
    let address = regions.manifests.us(1, 95);
    regions.manifests.write("us-west1/alpha/search.yaml", &service("search", &address))?;
    regions.all_answer("search", &[address], HEALED)?;
    compaction_needs_root(&mut regions)?;
    regions.end()
}

/// What its user may not do is said by the leader, who is asked and not the store.
fn compaction_needs_root(regions: &mut Regions) -> anyhow::Result<()> {
    let leader = regions.leader(EU)?;
    let grows = |regions: &Regions, name: &str| {
        let alarms = regions.status(name)?["store"]["alarms"].take().to_string();
        anyhow::Ok(alarms.contains("history cannot be compacted"))
    };
    wait_for("what cannot be compacted is shown", TOLD, || {
        ask::same(&grows(regions, &leader)?, &true)
    })?;
    for name in replicas(EU).iter().filter(|name| **name != leader) {
        assert!(!grows(regions, name)?, "{name} does not lead");
    }
    regions.etcd(EU)?.ctl(&["user", "grant-role", "tombolo", "root"])?;
    wait_for("it may compact", TOLD, || {
        ask::same(&regions.status(&leader)?["store"]["alarms"], &serde_json::Value::Null)
    })?;
    // There is nothing that is an hour old.
    ask::same(&regions.status(&leader)?["store"]["compactedAgeSeconds"], &serde_json::Value::Null)
}
