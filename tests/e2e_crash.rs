//! `kill -9` at moments that differ by how far an edit has come, and what is there afterwards.

mod common;

use std::process::Command;

use anyhow::Context as _;
use common::manifests::service;
use common::mesh::Mesh;
use common::{SOON, US, ask, tombolo};
use tombolo_testbed::{Process, wait_for};

const FILE: &str = "europe-west4/alpha/search.yaml";

/// How far the edit has come when the demo is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// On disk, perhaps not even read.
    Written,
    /// In the catalog of the cluster's own agent.
    AtItsAgent,
    /// In the store of its region.
    InItsRegion,
    /// In the store of the other region.
    InTheOther,
    /// Before it another was made, which was then taken back.
    AmongOthers,
}

#[test]
fn killed_at_any_moment_of_an_edit_it_comes_back_with_what_the_manifests_say() -> anyhow::Result<()>
{
    let mut mesh = Mesh::start("crash")?;
    let moments = [
        Moment::Written,
        Moment::AtItsAgent,
        Moment::InItsRegion,
        Moment::InTheOther,
        Moment::AmongOthers,
    ];
    for (pod, moment) in (100..).zip(moments) {
        let address = mesh.manifests.eu(1, pod);
        if let Moment::AmongOthers = moment {
            mesh.manifests.write("us-west1/beta/gone.yaml", &service("gone", &address))?;
            std::fs::remove_file(mesh.manifests.path("us-west1/beta/gone.yaml"))?;
        }
        mesh.manifests.write(FILE, &service("search", &address))?;
        let at = match moment {
            Moment::Written | Moment::AmongOthers => None,
            Moment::AtItsAgent => Some(mesh.eu().dns),
            Moment::InItsRegion => Some(mesh.demo.region(common::EU)?.dns),
            Moment::InTheOther => Some(mesh.demo.region(US)?.dns),
        };
        let arrived = |dns| ask::same(&ask::addresses(dns, "search")?, &vec![address.clone()]);
        if let Some(dns) = at {
            wait_for(format!("{moment:?}"), SOON, || arrived(dns))?;
        }
        mesh = mesh.kill_and_restart()?;
        if let Moment::AmongOthers = moment {
            taken_back(&mesh)?;
        }
        for (process, dns, _) in mesh.processes() {
            wait_for(format!("{moment:?}: {process} has the edit"), SOON, || arrived(dns))?;
        }
        mesh.agreed_digest()?;
    }
    let after_crashes = mesh.agreed_digest()?;
    mesh.manifests.edit(FILE, "8080", "8081")?;
    wait_for("it still follows its manifests", SOON, || {
        anyhow::ensure!(mesh.agreed_digest()? != after_crashes, "the digest of before");
        Ok(())
    })?;
    mesh.manifests.edit(FILE, "8081", "8080")?;
    wait_for("back", SOON, || ask::same(&mesh.agreed_digest()?, &after_crashes))?;

    // What a mesh that never crashed makes of the same manifests.
    let fresh = mesh.restart_without_state()?;
    assert_eq!(fresh.agreed_digest()?, after_crashes);
    fresh.end()
}

/// If anybody had heard of what was made and taken back, it may be held: the process that saw it
/// there is no more.
fn taken_back(mesh: &Mesh) -> anyhow::Result<()> {
    let beta = mesh.demo.cluster(US, "beta").context("the examples have it")?;
    wait_for("what was taken back is gone", 2 * SOON, || {
        mesh.approve_holds(beta)?;
        let status = ask::status(beta.admin)?;
        anyhow::ensure!(status["links"][0]["synced"] == true, "{status}");
        for (_, dns, _) in mesh.processes() {
            ask::same(&ask::code(dns, "gone")?.as_str(), &"NXDOMAIN")?;
        }
        Ok(())
    })
}

#[test]
fn killed_while_it_starts_it_starts_the_next_time() -> anyhow::Result<()> {
    let mesh = Mesh::start("crash-starting")?;
    let digest = mesh.agreed_digest()?;
    let (state, dir) = (mesh.state_dir(), mesh.dir().to_owned());
    let mesh = mesh.killed_between(|manifests| {
        let steps = ["certificates and configuration", "backends", "listen", "every process"];
        for (number, step) in steps.into_iter().enumerate() {
            let mut command = Command::new(tombolo());
            command.args(["demo", "--ports", "auto", "--state-dir"]).arg(&state);
            command.arg("--dir").arg(manifests.root());
            let name = format!("demo-{number}");
            let mut process = Process::start(&name, &mut command, &dir)?;
            wait_for(step, SOON, || {
                let said = process.stderr()?;
                anyhow::ensure!(said.contains(step), "{said}");
                Ok(())
            })?;
            process.kill()?;
            assert!(!process.stderr()?.contains("panicked"));
        }
        Ok(())
    })?;
    assert_eq!(mesh.agreed_digest()?, digest);
    mesh.end()
}
