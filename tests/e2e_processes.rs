//! The same mesh as separate processes, with configuration files and certificates as files.

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::manifests::{Manifests, service};
use common::mesh::{Mesh, agreed_digest};
use common::processes::Apart;
use common::{EU, SOON, US, ask, run};
use tombolo_testbed::{Process, Scratch, wait_for};

/// Dialling again is put off for at most 5 s; the rest as ever.
const REJOINED: Duration = Duration::from_secs(20);

/// 60 s of silence before another epoch id is taken, and dialling again.
const TAKEN_OVER: Duration = Duration::from_secs(90);

type Processes = BTreeMap<String, Process>;

fn start_all(apart: &Apart<'_>) -> anyhow::Result<Processes> {
    let names = Apart::names().into_iter();
    let processes: Processes =
        names.map(|name| Ok((name.clone(), apart.start(&name)?))).collect::<anyhow::Result<_>>()?;
    for admin in apart.admins() {
        wait_for(format!("{admin} knows all clusters"), REJOINED, || {
            let digest = ask::digest(admin)?;
            anyhow::ensure!(ask::exporters(admin, "cart")?.len() == 4, "{digest}");
            Ok(())
        })?;
    }
    Ok(processes)
}

/// SIGTERM to all: each ends with success and never panicked.
fn end_all(mut processes: Processes) -> anyhow::Result<()> {
    for (name, process) in &mut processes {
        let status = process.terminate(Duration::from_secs(10))?;
        assert!(status.success(), "{name}: {status}");
        assert!(!process.stderr()?.contains("panicked"), "{name}");
    }
    Ok(())
}

#[test]
fn separate_processes_reach_the_digest_that_the_demo_has_for_the_same_directories()
-> anyhow::Result<()> {
    let mesh = Mesh::start("apart-digest")?;
    let of_the_demo = mesh.agreed_digest()?;
    let apart = Apart::write(mesh.dir(), &mesh.manifests)?;
    let processes = start_all(&apart)?;
    assert_eq!(agreed_digest(&apart.admins())?, of_the_demo);

    // And go on doing so: both follow the same files.
    let address = mesh.manifests.eu(1, 95);
    mesh.manifests.write("europe-west4/alpha/search.yaml", &service("search", &address))?;
    wait_for("both show the edit", SOON, || {
        let (demo, apart) = (mesh.agreed_digest()?, agreed_digest(&apart.admins())?);
        anyhow::ensure!(demo == apart && demo != of_the_demo, "{demo} and {apart}");
        Ok(())
    })?;
    end_all(processes)?;
    mesh.end()
}

#[test]
fn a_killed_control_plane_leaves_its_agents_answering_and_they_join_it_again() -> anyhow::Result<()>
{
    let scratch = Scratch::new("apart-kill")?;
    let manifests = Manifests::copy(scratch.path())?;
    let apart = Apart::write(scratch.path(), &manifests)?;
    let mut processes = start_all(&apart)?;
    let digest = agreed_digest(&apart.admins())?;
    let (agent, remote) = (apart.listens("us-west1-alpha"), apart.listens("europe-west4-alpha"));

    processes.remove(US).expect("it was started").kill()?;
    assert_eq!(ask::addresses(agent.dns, "catalog")?.len(), 4);
    assert_eq!(ask::addresses(agent.dns, "payments")?.len(), 2);
    assert_eq!(ask::digest(agent.admin)?, digest);
    // The other region withdraws nothing of the one whose control plane is gone.
    assert_eq!(ask::addresses(remote.dns, "payments")?.len(), 2);
    assert_eq!(ask::digest(remote.admin)?, digest);
    // The cluster's own pods are seen without it.
    let address = manifests.us(1, 96);
    manifests.write("us-west1/alpha/search.yaml", &service("search", &address))?;
    wait_for("the agent shows its own", SOON, || {
        ask::same(&ask::addresses(agent.dns, "search")?, &vec![address.clone()])
    })?;

    processes.insert(US.to_owned(), apart.start(US)?);
    for name in Apart::names() {
        wait_for(format!("{name} has what was said meanwhile"), REJOINED, || {
            ask::same(&ask::addresses(apart.listens(&name).dns, "search")?, &vec![address.clone()])
        })?;
    }
    agreed_digest(&apart.admins())?;
    end_all(processes)
}

#[test]
fn a_killed_region_comes_back_from_its_store_alone() -> anyhow::Result<()> {
    let scratch = Scratch::new("apart-store")?;
    let manifests = Manifests::copy(scratch.path())?;
    let apart = Apart::write(scratch.path(), &manifests)?;
    let mut processes = start_all(&apart)?;
    let digest = agreed_digest(&apart.admins())?;
    for (_, mut process) in std::mem::take(&mut processes) {
        process.kill()?;
    }
    // Nobody to ask: neither an agent nor the other region.
    processes.insert(EU.to_owned(), apart.start(EU)?);
    let region = apart.listens(EU);
    wait_for("its state is back", SOON, || ask::same(&ask::digest(region.admin)?, &digest))?;
    assert_eq!(ask::addresses(region.dns, "payments")?.len(), 2);
    end_all(processes)
}

#[test]
fn without_the_peer_nothing_is_withdrawn_and_edits_follow_when_it_is_back() -> anyhow::Result<()> {
    let scratch = Scratch::new("apart-peer")?;
    let manifests = Manifests::copy(scratch.path())?;
    let apart = Apart::write(scratch.path(), &manifests)?;
    let mut processes = start_all(&apart)?;
    let us: Vec<_> =
        ["us-west1", "us-west1-alpha", "us-west1-beta"].map(|n| apart.listens(n)).into();
    let before = ask::services(us[0].admin)?;

    let mut peer = processes.remove(EU).expect("it was started");
    assert!(peer.terminate(Duration::from_secs(10))?.success());
    wait_for("the link is seen to be down", SOON, || {
        ask::same(&ask::status(us[0].admin)?["links"][0]["synced"], &false.into())
    })?;
    manifests.drop_last_document("europe-west4/alpha/catalog.yaml", "ServiceExport")?;
    for listens in &us {
        assert_eq!(ask::services(listens.admin)?, before);
        assert_eq!(ask::addresses(listens.dns, "catalog")?.len(), 4);
    }
    processes.insert(EU.to_owned(), apart.start(EU)?);
    for listens in &us {
        wait_for("the edit has arrived", REJOINED, || {
            ask::same(&ask::addresses(listens.dns, "catalog")?.len(), &2)
        })?;
    }
    end_all(processes)
}

const BETA: &str = "us-west1-beta";

/// `us-west1-beta` is entitled to the shop. It speaks of another namespace all the same, and of one
/// that others export it is not told.
#[test]
fn what_a_cluster_says_of_a_namespace_that_is_not_its_is_refused_and_seen_nowhere_else()
-> anyhow::Result<()> {
    let scratch = Scratch::new("apart-entitled")?;
    let manifests = Manifests::copy(scratch.path())?;
    let apart = Apart::write(scratch.path(), &manifests)?;
    let mut config = apart.control_plane_config(US);
    config["entitlements"] = serde_json::json!({BETA: ["shop"]});
    apart.write_config(US, &config)?;
    let processes = start_all(&apart)?;

    let elsewhere =
        |name, address: &str| service(name, address).replace("namespace: shop", "namespace: bank");
    manifests.write("us-west1/beta/vault.yaml", &elsewhere("vault", &manifests.us(2, 95)))?;
    manifests.write("us-west1/alpha/till.yaml", &elsewhere("till", &manifests.us(1, 95)))?;
    let beta = apart.listens(BETA).admin;
    let refused = wait_for("it is refused", SOON, || {
        let refused = ask::status(beta)?["links"][0]["refused"].take();
        let of = |kind: &str| format!("/tombolo/v1/{US}/{BETA}/{kind}/bank/vault");
        let why = format!("is about namespace bank, which {US}/{BETA} is not entitled to");
        ask::same(&refused[of("export")], &why.as_str().into())?;
        anyhow::Ok(refused)
    })?;
    let refused = refused.as_object().cloned().unwrap_or_default();
    assert!(refused.keys().all(|key| key.contains("bank")), "{refused:?}");
    let shown = run(&["status", "--admin", &beta.to_string()])?;
    assert!(shown.code == 1 && shown.stdout.contains("refused by publish: "), "{shown:?}");

    let exporters = |name: &str, of| ask::exporters(apart.listens(name).admin, of);
    for name in Apart::names().iter().filter(|name| *name != BETA) {
        wait_for(format!("{name} has what it may have"), SOON, || {
            ask::same(&exporters(name, "till")?, &vec!["us-west1-alpha".to_owned()])
        })?;
    }
    // Its own is its own, and what is the shop's goes on.
    assert_eq!(exporters(BETA, "vault")?, [BETA]);
    assert!(exporters(BETA, "till")?.is_empty(), "it is told of");
    let address = manifests.us(2, 96);
    manifests.write("us-west1/beta/search.yaml", &service("search", &address))?;
    for name in Apart::names() {
        wait_for(format!("{name} sees the edit"), SOON, || {
            ask::same(&ask::addresses(apart.listens(&name).dns, "search")?, &vec![address.clone()])
        })?;
        assert_eq!(exporters(&name, "cart")?.len(), 4, "{name}");
        // What came after it has arrived.
        assert!(name == BETA || exporters(&name, "vault")?.is_empty(), "{name}");
    }
    for region in [US, EU] {
        let status = ask::status(apart.listens(region).admin)?;
        let said = if region == US { &status["settings"] } else { &status["peers"][0] };
        assert_eq!(said["entitlements"], serde_json::json!({BETA: ["shop"]}), "{region}");
    }
    end_all(processes)
}

#[test]
fn an_agent_that_lost_its_state_directory_publishes_again_as_the_cluster_that_it_was()
-> anyhow::Result<()> {
    let scratch = Scratch::new("apart-state")?;
    let manifests = Manifests::copy(scratch.path())?;
    let apart = Apart::write(scratch.path(), &manifests)?;
    let name = "us-west1-alpha";
    let mut processes = start_all(&apart)?;
    let (agent, region) = (apart.listens(name), apart.listens(US));
    let restart = |processes: &mut Processes, keep_state: bool| -> anyhow::Result<()> {
        processes.remove(name).expect("it was started").kill()?;
        if !keep_state {
            std::fs::remove_dir_all(apart.path(&format!("state-{name}")))?;
        }
        processes.insert(name.to_owned(), apart.start(name)?);
        Ok(())
    };
    // Its UID went with the directory: to its region it is another cluster.
    restart(&mut processes, false)?;
    let refused = || {
        let link = ask::status(agent.admin)?["links"][0].take();
        let problem = link["problem"].as_str().unwrap_or_default().to_owned();
        anyhow::ensure!(problem.contains("give it the first UID as clusterUid"), "{link}");
        Ok(problem)
    };
    let problem = wait_for("it is refused", REJOINED, refused)?;
    wait_for("its region tells of it", SOON, || {
        let status = ask::status(region.admin)?;
        let told = status["problems"].to_string();
        anyhow::ensure!(told.contains("is claimed by a second cluster"), "{status}");
        Ok(())
    })?;
    assert_eq!(ask::addresses(region.dns, "catalog")?.len(), 4, "the first is unharmed");
    let uid = problem.split("with UID ").nth(1).and_then(|rest| rest.split(',').next());
    let mut config = apart.agent_config(US, "alpha");
    config["clusterUid"] = uid.expect("it is named").into();
    apart.write_config(name, &config)?;

    // Whoever it is by its word, it waits until the one of before is silent.
    restart(&mut processes, false)?;
    let address = manifests.us(1, 97);
    manifests.write("us-west1/alpha/search.yaml", &service("search", &address))?;
    wait_for("everybody has what it says", TAKEN_OVER, || {
        for name in Apart::names() {
            let dns = apart.listens(&name).dns;
            ask::same(&ask::addresses(dns, "search")?, &vec![address.clone()])?;
        }
        Ok::<(), anyhow::Error>(())
    })?;
    agreed_digest(&apart.admins())?;
    restart(&mut processes, true)?;
    wait_for("it is taken at once from now on", REJOINED, || {
        ask::same(&ask::status(agent.admin)?["links"][0]["synced"], &true.into())
    })?;
    end_all(processes)
}

#[test]
fn a_process_with_the_certificate_of_another_is_refused_at_its_start() -> anyhow::Result<()> {
    let scratch = Scratch::new("apart-certificate")?;
    let manifests = Manifests::copy(scratch.path())?;
    let apart = Apart::write(scratch.path(), &manifests)?;
    let mut config = apart.agent_config(US, "alpha");
    for (whose, said) in [("us-west1-beta", "us-west1-beta"), (US, "control plane"), (EU, EU)] {
        config["identity"] = apart.path(whose).into();
        let file = apart.write_config("wrong", &config)?;
        run(&["agent", "--config", &file])?.assert_refused(&[
            "certificate in",
            whose,
            said,
            "us-west1-alpha",
        ]);
    }
    // Nor is one of another mesh, whoever it is for.
    config["identity"] = apart.path("us-west1-alpha").into();
    config["mesh"] = "another.example".into();
    let file = apart.write_config("wrong", &config)?;
    run(&["agent", "--config", &file])?.assert_refused(&["another.example"]);
    Ok(())
}

#[test]
fn an_authority_is_never_made_over_another() -> anyhow::Result<()> {
    let scratch = Scratch::new("apart-authority")?;
    let root = scratch.path().join("root").display().to_string();
    let init = ["ca", "init", "--mesh", "a.example", "--root", &root];
    assert_eq!(run(&init)?.code, 0);
    run(&init)?.assert_refused(&[&root, "exists already", "name another directory"]);
    let out = scratch.path().join("us").display().to_string();
    run(&[
        "ca",
        "region",
        "--mesh",
        "b.example",
        "--root",
        &root,
        "--region",
        "us",
        "--out",
        &out,
    ])?
    .assert_refused(&["a.example", "b.example"]);
    Ok(())
}
