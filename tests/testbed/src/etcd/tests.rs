use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};

use super::*;
use crate::{Scratch, skip};

const SOON: Duration = Duration::from_mins(1);

/// Runs `test` on each release that is here.
fn on_each(name: &str, test: impl Fn(Release, &Scratch) -> anyhow::Result<()>) {
    for release in Release::ALL {
        match release.available() {
            Ok(()) => {
                let scratch = Scratch::new(&release.to_string()).unwrap();
                test(release, &scratch).unwrap_or_else(|error| panic!("{release}: {error:?}"));
            }
            Err(missing) => skip(&format!("testbed::etcd::{name}::{release}"), missing),
        }
    }
}

fn value(etcd: &Etcd, key: &str) -> anyhow::Result<String> {
    Ok(etcd.ctl(&["get", key, "--print-value-only"])?.trim_end().to_owned())
}

fn put(etcd: &Etcd, value: impl std::fmt::Display) -> anyhow::Result<()> {
    etcd.ctl(&["put", "key", &value.to_string()]).map(|_| ())
}

#[test]
fn one_member_keeps_its_data_and_address_when_it_is_killed_and_started_again() {
    on_each("kill", |release, scratch| {
        let mut etcd = Etcd::start("us", release, scratch.path(), Options::default())?;
        etcd.put("bytes", b"\x0a\xff\0\0")?;
        assert!(etcd.ctl(&["get", "bytes", "--write-out=json"])?.contains("\"Cv8AAA==\""));
        put(&etcd, 1)?;
        let (before, address) = (etcd.status(0)?, etcd.addresses());
        etcd.kill(0)?;
        ensure!(etcd.running().is_empty() && put(&etcd, 2).is_err(), "it is down");
        etcd.restart(0)?;
        assert_eq!(value(&etcd, "key")?, "1");
        let after = etcd.status(0)?;
        assert_eq!((after.revision, after.cluster), (before.revision, before.cluster));
        assert_eq!(etcd.addresses(), address);

        etcd.stop(0)?;
        assert!(etcd.stop(0).is_err(), "it is down");
        etcd.restart(0)?;
        assert_eq!(value(&etcd, "key")?, "1");
        Ok(())
    });
}

#[test]
fn three_members_go_on_without_their_leader_killed_or_paused_and_take_it_back() {
    on_each("leader", |release, scratch| {
        let mut etcd = Etcd::start("eu", release, scratch.path(), Options::members(3))?;
        let killed = etcd.leader()?;
        put(&etcd, 1)?;
        etcd.kill(killed)?;
        wait_for("another leader", SOON, || put(&etcd, 2))?;
        assert_ne!(etcd.leader()?, killed);
        etcd.restart(killed)?;
        assert_eq!(etcd.ctl_at(killed, &["get", "key", "--print-value-only"])?, "2\n");

        let paused = etcd.leader()?;
        etcd.pause(paused)?;
        let others: Vec<_> = (0..3).filter(|member| *member != paused).collect();
        wait_for("a leader among the others", SOON, || {
            let status = etcd.status(others[0])?;
            let all: Vec<_> = others.iter().filter_map(|m| etcd.status(*m).ok()).collect();
            let known = all.iter().any(|one| one.member == status.leader);
            ensure!(known, "{all:?}");
            Ok(())
        })?;
        etcd.ctl_at(others[1], &["put", "key", "3"])?;
        etcd.resume(paused)?;
        etcd.ready(paused)?;
        assert_eq!(etcd.ctl_at(paused, &["get", "key", "--print-value-only"])?, "3\n");
        Ok(())
    });
}

/// What makes a restore so hard to notice: only the revision tells, and only until writes have
/// passed the old one.
#[test]
fn a_restored_backup_has_the_old_revision_and_the_same_ids() {
    on_each("restore", |release, scratch| {
        for members in [1, 3] {
            let name = format!("of{members}");
            let mut etcd = Etcd::start(&name, release, scratch.path(), Options::members(members))?;
            for round in 1..=10 {
                put(&etcd, round)?;
            }
            let saved = scratch.path().join(format!("{name}.db"));
            etcd.snapshot(0, &saved)?;
            let then = etcd.status(0)?;
            for round in 11..=40 {
                put(&etcd, round)?;
            }
            let before = etcd.status(0)?;
            assert_eq!(before.revision, then.revision + 30);

            etcd.restore(&saved, &[])?;
            let after = etcd.status(0)?;
            assert_eq!(after.revision, then.revision, "{name}");
            assert_eq!((after.cluster, after.member), (before.cluster, before.member), "{name}");
            assert_eq!(value(&etcd, "key")?, "10");
        }
        Ok(())
    });
}

#[test]
fn a_snapshot_makes_another_cluster() {
    on_each("snapshot", |release, scratch| {
        let etcd = Etcd::start("old", release, scratch.path(), Options::default())?;
        put(&etcd, "kept")?;
        let saved = scratch.path().join("saved.db");
        etcd.snapshot(0, &saved)?;
        let options = Options::members(3);
        let other = Etcd::from_snapshot("new", release, scratch.path(), options, &saved)?;
        assert_eq!(value(&other, "key")?, "kept");
        assert_ne!(other.status(0)?.cluster, etcd.status(0)?.cluster);
        Ok(())
    });
}

#[test]
fn with_auth_a_user_has_its_prefix_and_a_stranger_nothing() {
    on_each("auth", |release, scratch| {
        let mut etcd = Etcd::start("us", release, scratch.path(), Options::default())?;
        etcd.add_user("agent", "secret", "/own/")?;
        etcd.enable_auth("sesame")?;
        etcd.ctl_as("agent", "secret", &["put", "/own/key", "1"])?;
        assert_eq!(value(&etcd, "/own/key")?, "1");
        let others = etcd.ctl_as("agent", "secret", &["put", "/other/key", "1"]).unwrap_err();
        assert!(format!("{others:#}").contains("permission denied"), "{others:#}");
        assert!(etcd.ctl_as("agent", "wrong", &["get", "/own/key"]).is_err());
        etcd.kill(0)?;
        etcd.restart(0)?;
        assert_eq!(value(&etcd, "/own/key")?, "1");
        Ok(())
    });
}

#[test]
fn at_its_quota_it_refuses_writes() {
    on_each("quota", |release, scratch| {
        let options = Options { quota: Some(1 << 20), ..Options::default() };
        let etcd = Etcd::start("us", release, scratch.path(), options)?;
        let big = "x".repeat(100_000);
        let refused = (0..40).find_map(|n| etcd.ctl(&["put", &format!("k{n}"), &big]).err());
        let refused = format!("{:#}", refused.context("the quota holds")?);
        assert!(refused.contains("database space exceeded"), "{}", tail(&refused));
        assert!(etcd.ctl(&["alarm", "list"])?.contains("NOSPACE"));
        Ok(())
    });
}

fn tail(text: &str) -> &str {
    &text[text.len().saturating_sub(500)..]
}

#[test]
fn with_tls_a_client_without_a_certificate_is_refused() {
    on_each("tls", |release, scratch| {
        let tls = certificates(scratch.path())?;
        let options = Options { tls: Some(tls), ..Options::default() };
        let etcd = Etcd::start("us", release, scratch.path(), options)?;
        assert!(etcd.endpoints()[0].starts_with("https://127.0.0.1:"));
        put(&etcd, 1)?;
        assert_eq!(value(&etcd, "key")?, "1");

        let ca = etcd.options.tls.as_ref().context("it has TLS")?.ca.clone();
        let mut stranger = command(&etcd.programs.client);
        stranger.args(["--endpoints", &etcd.endpoints()[0], "--command-timeout=2s"]);
        stranger.arg("--cacert").arg(ca).args(["get", "key"]);
        assert!(ctl::output(&mut stranger).is_err(), "it has no certificate");
        Ok(())
    });
}

/// A CA with a server's and a client's certificate.
fn certificates(dir: &Path) -> anyhow::Result<Tls> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    let write = |name: &str, pem: String| -> anyhow::Result<PathBuf> {
        let file = dir.join(name);
        std::fs::write(&file, pem)?;
        Ok(file)
    };
    let issue = |name: &str| -> anyhow::Result<(PathBuf, PathBuf)> {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()])?;
        params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &authority)?;
        let key = write(&format!("{name}.key"), key.serialize_pem())?;
        Ok((write(&format!("{name}.pem"), cert.pem())?, key))
    };
    let ((cert, key), (client_cert, client_key)) = (issue("server")?, issue("client")?);
    Ok(Tls { ca: write("ca.pem", authority.pem())?, cert, key, client_cert, client_key })
}

#[test]
fn a_server_that_refuses_to_start_is_quoted_at_once() {
    on_each("refused", |release, scratch| {
        let options = Options { flags: vec!["--no-such-flag".into()], ..Options::default() };
        let started = std::time::Instant::now();
        let error = Etcd::start("us", release, scratch.path(), options).unwrap_err();
        assert!(error.to_string().starts_with("us-0 has ended: exit status"), "{error:#}");
        assert!(started.elapsed() < READY, "it does not wait for what has ended");
        Ok(())
    });
}
