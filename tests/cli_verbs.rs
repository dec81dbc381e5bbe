//! The verbs that ask a running process: tables, JSON, exit codes.

mod common;

use std::time::Duration;

use anyhow::ensure;
use common::mesh::Mesh;
use common::{EU, US, ask, run};
use serde_json::Value;
use tombolo_testbed::wait_for;

/// A source is heard with its next beacon, 5 s later at most.
const HEARD: Duration = Duration::from_secs(50);

/// What a verb says of the mesh by table and by JSON, with the exit code of both.
fn ask_both(verb: &[&str], admin: &str) -> anyhow::Result<(i32, String, Value)> {
    let table = run(&[verb, &["--admin", admin]].concat())?;
    let json = run(&[verb, &["--admin", admin, "-o", "json"]].concat())?;
    assert_eq!(table.code, json.code, "{verb:?}: {table:?} {json:?}");
    assert_eq!((table.stderr.as_str(), json.stderr.as_str()), ("", ""), "{verb:?}");
    Ok((table.code, table.stdout, serde_json::from_str(&json.stdout)?))
}

#[test]
fn status_is_a_table_or_the_document_of_the_api() -> anyhow::Result<()> {
    let mesh = Mesh::start("cli-status")?;
    let digest = mesh.agreed_digest()?;
    for (role, region, admin) in
        [("control-plane", US, mesh.demo.region(US)?.admin), ("agent", EU, mesh.eu().admin)]
    {
        let (code, table, json) = wait_for("every source is heard", HEARD, || {
            let answer = ask_both(&["status"], &admin.to_string())?;
            ensure!(!answer.1.contains("not heard yet"), "{}", answer.1);
            anyhow::Ok(answer)
        })?;
        assert_eq!(code, 0, "{table}");
        assert!(table.starts_with(&format!("{role} of region {region}")), "{table}");
        assert!(table.contains("6 services, 30 endpoints") && table.contains(&digest[..12]));
        for cluster in ["us-west1/us-west1-alpha", "europe-west4/europe-west4-beta"] {
            assert!(
                table.lines().any(|l| l.starts_with(cluster) && l.contains("current")),
                "{table}"
            );
        }
        assert_eq!((&json["role"], &json["ready"]), (&role.into(), &true.into()));
        assert_eq!(json["catalog"]["digest"], digest.as_str());
        assert_eq!(json["sources"].as_array().map(Vec::len), Some(6));
    }
    mesh.end()
}

#[test]
fn services_are_shown_by_cluster_and_by_namespace() -> anyhow::Result<()> {
    let mesh = Mesh::start("cli-services")?;
    let admin = mesh.us().admin.to_string();
    let (code, table, json) = ask_both(&["services"], &admin)?;
    assert_eq!(code, 0);
    let shown: Vec<&str> = table.lines().filter_map(|l| Some(l.split_once("shop/")?.1)).collect();
    let names: Vec<&str> = shown.iter().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(names, ["cart", "catalog", "checkout", "inventory", "payments", "redis"]);
    let redis = shown.last().copied().unwrap_or_default();
    assert!(redis.contains("Headless") && redis.contains("2/2"), "{table}");
    assert_eq!(json["services"], ask::services(mesh.us().admin)?);

    let (_, table, json) = ask_both(&["services", "-n", "nothing"], &admin)?;
    assert_eq!(
        (table.lines().count(), &json["services"]),
        (1, &Value::Array(Vec::new())),
        "{table}"
    );
    mesh.end()
}

#[test]
fn dns_shows_the_answer_and_why_and_its_exit_code_is_the_answer() -> anyhow::Result<()> {
    let mesh = Mesh::start("cli-dns")?;
    let admin = mesh.us().admin.to_string();
    let (code, table, json) = ask_both(&["dns", "catalog.shop"], &admin)?;
    assert_eq!(code, 0);
    for (pod, why) in [((1, 31), EU), ((2, 32), "nearest region")] {
        assert!(table.contains(&mesh.manifests.eu(pod.0, pod.1)) && table.contains(why), "{table}");
    }
    assert_eq!(json["answers"].as_array().map(Vec::len), Some(4));
    assert_eq!((&json["rcode"], &json["type"]), (&"NOERROR".into(), &"A".into()));

    let srv = ["dns", "_http._tcp.inventory.shop", "-t", "SRV"];
    let (code, table, _) = ask_both(&srv, &admin)?;
    assert!(code == 0 && table.contains("0 50 8080 "), "{table}");
    for (name, rcode) in [("inventory.shop", "NOERROR"), ("nothing.shop", "NXDOMAIN")] {
        let (code, table, json) = ask_both(&["dns", name], &admin)?;
        assert_eq!((code, &json["rcode"]), (1, &rcode.into()), "{table}");
        assert!(table.contains(rcode) && json["why"].as_str().is_some_and(|why| !why.is_empty()));
    }
    for arguments in [["dns", "catalog.shop", "-t", "RUBBISH"], ["dns", "a..b", "-t", "A"]] {
        run(&[&arguments[..], &["--admin", &admin]].concat())?.assert_refused(&["400"]);
    }
    mesh.end()
}

#[test]
fn an_admin_address_that_does_not_answer_is_named_with_what_to_do() -> anyhow::Result<()> {
    for verb in [&["status"][..], &["services"], &["dns", "checkout.shop"]] {
        for output in ["table", "json"] {
            run(&[verb, &["--admin", "127.0.0.1:1", "-o", output]].concat())?.assert_refused(&[
                "127.0.0.1:1",
                "is it running?",
                "--admin HOST:PORT",
            ]);
        }
    }
    run(&["status", "--admin", "no-port"])?.assert_refused(&["no-port"]);
    Ok(())
}

#[test]
fn help_names_every_verb_and_a_wrong_one_is_refused() -> anyhow::Result<()> {
    let help = run(&["--help"])?;
    assert_eq!(help.code, 0);
    for verb in ["demo", "control-plane", "agent", "status", "services", "dns", "ca"] {
        assert!(help.stdout.contains(&format!("  {verb} ")), "{verb}: {}", help.stdout);
        let of_verb = run(&[verb, "--help"])?;
        assert!(of_verb.code == 0 && of_verb.stdout.contains("Usage:"), "{of_verb:?}");
    }
    run(&["statsu"])?.assert_refused(&["statsu", "status"]);
    Ok(())
}
