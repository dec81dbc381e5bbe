//! What somebody else writes into a region's etcd: kept aside, told of, and in nobody's way.

mod common;

use std::time::{Duration, Instant};

use anyhow::ensure;
use common::manifests::service;
use common::regions::{self, Regions, Setup, replicas};
use common::{EU, SOON, US, ask, run};
use serde_json::Value;
use tombolo_federation::key::Key;
use tombolo_federation::record::{Body, Entitlement, Epoch, Namespace, Origin, Record, Region};
use tombolo_testbed::etcd::Etcd;
use tombolo_testbed::{http, wait_for};

/// Processes of a build without optimisation, on a machine that builds something else.
const SEEN: Duration = Duration::from_mins(1);

const ALPHA: &str = "us-west1/us-west1-alpha";
/// A region that nobody runs, in whose name somebody wrote.
const ASIA: &str = "asia/_";

fn sealed(key: &str, body: Body) -> anyhow::Result<(Key, Vec<u8>)> {
    let key: Key = key.parse()?;
    let epoch = Epoch { id: "somebody".to_owned(), count: 1 };
    let origin = Origin { epoch, sequence: 1, ..Origin::default() };
    let sealed = Record { key: key.clone(), origin, body }.seal();
    Ok((key, sealed.value.to_vec()))
}

fn namespace(name: &str) -> String {
    format!("/tombolo/v1/{ALPHA}/namespace/_/{name}")
}

/// Under the keys of records, with what is said of them.
fn unreadable() -> anyhow::Result<Vec<(String, Vec<u8>, &'static str)>> {
    let (_, good) = sealed(&namespace("x"), Body::Namespace(Namespace::default()))?;
    // Of a field that is there twice the last one counts.
    let newer = [&good[..], b"\x10\x09"].concat();
    let nested = [&good[..], &b"{".repeat(100_000)].concat();
    let entitlements = [("us-west1-alpha".parse()?, Entitlement::All)].into();
    let asia = Region { reads_level: 1, entitlements, ..Region::default() };
    let (of_asia, foreign) =
        sealed(&format!("/tombolo/v1/{ASIA}/region/_/asia"), Body::Region(asia))?;
    Ok(vec![
        (namespace("cut"), good[..good.len() - 1].to_vec(), "not a valid Envelope message"),
        (namespace("newer"), newer, "wants a reader of schema level 9"),
        (namespace("nested"), nested, "recursion limit reached"),
        (of_asia.to_string(), foreign, "which is not one of region asia"),
    ])
}

/// What cannot be a record, with what is said of it.
fn strays() -> Vec<(String, Vec<u8>, &'static str)> {
    let foreign = format!("/tombolo/v1/{US}/{EU}-alpha/namespace/_/x");
    vec![
        (namespace("large"), vec![0; (1 << 20) + 1], "bytes with its key, more than"),
        (foreign, b"x".to_vec(), "europe-west4-alpha"),
    ]
}

fn put_all(etcd: &Etcd, values: &[(String, Vec<u8>, &str)]) -> anyhow::Result<()> {
    values.iter().try_for_each(|(key, value, _)| etcd.put(key, value))
}

#[test]
fn what_is_no_record_is_named_in_log_metric_and_status_and_all_else_goes_on() -> anyhow::Result<()>
{
    let Some(_) = regions::etcd_or_skip("e2e_strays::named") else { return Ok(()) };
    let mut regions = Regions::start("strays", Setup::default())?;
    let sampler = regions.sample()?;
    let (unreadable, strays) = (unreadable()?, strays());
    // One of them is a record that is in use.
    let export = format!("/tombolo/v1/{ALPHA}/export/shop/payments");
    let etcd = regions.etcd(US)?;
    ensure!(!etcd.ctl(&["get", &export])?.is_empty(), "{export} is there");
    etcd.put(&export, b"rubbish")?;
    put_all(etcd, &unreadable)?;
    put_all(etcd, &strays)?;

    let begun = Instant::now();
    for name in replicas(US) {
        wait_for(format!("{name} names all"), SEEN, || {
            let status = regions.status(&name)?;
            named(&status, &export, &unreadable)?;
            stray(&status, &strays)
        })?;
        let metrics = regions.at(&name, |at| Ok(http::get(at.admin, "/metrics")?.text()))?;
        for line in [
            format!("tombolo_source_quarantined{{owner=\"{ALPHA}\"}} 4.0"),
            format!("tombolo_source_quarantined{{owner=\"{ASIA}\"}} 1.0"),
            "tombolo_store_strays 2.0".to_owned(),
        ] {
            ensure!(metrics.lines().any(|known| known == line), "{name}: no {line}: {metrics}");
        }
        let shown = regions.at(&name, |at| run(&["status", "--admin", &at.admin.to_string()]))?;
        ensure!(shown.code == 1 && shown.stdout.contains("quarantined: "), "{name}: {shown:?}");
        let log = regions.process(&name)?.stderr()?;
        for (key, ..) in &unreadable {
            ensure!(logged(&log, "record quarantined", key), "{name}: {key} in {log}");
        }
        for (key, ..) in &strays {
            ensure!(logged(&log, "the store has what is not a record", key), "{name}: {key}");
        }
        eprintln!("{name} names all after {:?}", begun.elapsed());
    }

    // What was read last of payments stays in use, here and in the other region.
    for name in Regions::names() {
        ask::same(&regions.addresses(&name, "payments")?.len(), &2)?;
    }
    let address = regions.manifests.us(1, 95);
    regions.manifests.write("us-west1/alpha/search.yaml", &service("search", &address))?;
    eprintln!("an edit: {:?}", regions.all_answer("search", &[address], SEEN)?);
    regions.converge(SEEN)?;

    let etcd = regions.etcd(US)?;
    for (key, ..) in &strays {
        etcd.ctl(&["del", key])?;
    }
    for name in replicas(US) {
        wait_for("what was removed is not named any more", SOON, || {
            let status = regions.status(&name)?;
            ask::same(
                &(&status["problems"], &status["store"]["strays"]),
                &(&Value::Null, &0.into()),
            )
        })?;
    }
    eprintln!("{} samples, no false delete", sampler.end()?);
    regions.end()
}

fn logged(log: &str, what: &str, key: &str) -> bool {
    log.lines().any(|line| line.contains(what) && line.contains(key))
}

/// Each by its key, with the reason.
fn named(
    status: &Value,
    export: &str,
    unreadable: &[(String, Vec<u8>, &str)],
) -> anyhow::Result<()> {
    let sources = status["sources"].as_array().into_iter().flatten();
    let quarantine: serde_json::Map<String, Value> =
        sources.filter_map(|source| source["quarantine"].as_object().cloned()).flatten().collect();
    ask::same(&quarantine.len(), &(unreadable.len() + 1))?;
    let expected = unreadable.iter().map(|(key, _, why)| (key.as_str(), *why));
    for (key, why) in expected.chain([(export, "not a valid Envelope message")]) {
        let said = quarantine.get(key).and_then(Value::as_str).unwrap_or_default();
        ensure!(said.contains(why), "{key}: {said:?} in {quarantine:?}");
    }
    Ok(())
}

fn stray(status: &Value, strays: &[(String, Vec<u8>, &str)]) -> anyhow::Result<()> {
    let problems = &status["problems"];
    let said: Vec<&str> =
        problems.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (key, _, why) in strays {
        let is = |said: &&str| said.contains(key.as_str()) && said.contains(why);
        ensure!(said.iter().any(is), "{key} in {problems}");
    }
    ask::same(&(said.len(), &status["store"]["strays"]), &(strays.len(), &strays.len().into()))
}
