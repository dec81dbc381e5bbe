//! Starts that are refused: what is wrong, where, and what to do.

mod common;

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;

use common::manifests::{Manifests, service};
use common::mesh::Mesh;
use common::processes::Apart;
use common::{Ended, SOON, US, run, run_in};
use tombolo_testbed::{Scratch, wait_for};

/// A demo that must not start.
fn demo(state: &Path, arguments: &[&str]) -> anyhow::Result<Ended> {
    let state = state.display().to_string();
    run(&[&["demo", "--ports", "auto", "--state-dir", &state], arguments].concat())
}

#[test]
fn a_cluster_id_that_is_given_twice() -> anyhow::Result<()> {
    let scratch = Scratch::new("refused-twice")?;
    let (one, two) = (scratch.path().join("one"), scratch.path().join("two"));
    for dir in [&one, &two] {
        std::fs::create_dir(dir)?;
        std::fs::write(dir.join("web.yaml"), service("web", "127.0.0.9"))?;
    }
    let (one, two) = (one.display().to_string(), two.display().to_string());
    // us + west-a and us-west + a are one id, as ids are joined by a dash.
    let dirs = [format!("us/west-a={one}"), format!("us-west/a={two}")];
    demo(&scratch.path().join("s"), &["--dir", &dirs[0], "--dir", &dirs[1]])?.assert_refused(&[
        "us-west-a",
        "claimed by",
        &one,
        &two,
        "rename one",
    ]);
    Ok(())
}

#[test]
fn directories_that_are_no_mesh() -> anyhow::Result<()> {
    let scratch = Scratch::new("refused-dirs")?;
    let state = scratch.path().join("s");
    let here = scratch.path().display().to_string();
    // Unasked it shows the examples, which are where the sources are.
    run_in(scratch.path(), &["demo", "--ports", "auto"])?
        .assert_refused(&["examples/demo", "--dir REGION/CLUSTER=PATH"]);
    demo(&state, &["--dir", "/no/such/mesh"])?
        .assert_refused(&["/no/such/mesh", "REGION/CLUSTER=PATH"]);
    demo(&state, &["--dir", &format!("eu/a={here}/nothing")])?
        .assert_refused(&["eu/a", "not a directory"]);
    demo(&state, &["--dir", &format!("eu={here}")])?.assert_refused(&["REGION/CLUSTER=PATH"]);
    demo(&state, &["--dir", &format!("EU/a={here}")])?.assert_refused(&["EU", "region name"]);
    demo(&state, &["--dir", &format!("eu/a_b={here}")])?.assert_refused(&["a_b"]);
    Ok(())
}

#[test]
fn an_envoy_that_is_not_there_or_is_none() -> anyhow::Result<()> {
    let scratch = Scratch::new("refused-envoy")?;
    let manifests = Manifests::copy(scratch.path())?;
    let root = manifests.root().display().to_string();
    let state = scratch.path().join("s");
    demo(&state, &["--dir", &root, "--envoy", "/no/such/envoy"])?
        .assert_refused(&["--envoy /no/such/envoy", "no such file"]);
    // A file, but no program.
    let file = format!("{root}/us-west1/alpha/cart.yaml");
    let refused = demo(&state, &["--dir", &root, "--envoy", &file])?;
    refused.assert_refused(&["Envoy of", &file]);
    assert!(!state.join("demo.json").exists());
    Ok(())
}

#[test]
fn an_unknown_key_in_the_config_of_a_role() -> anyhow::Result<()> {
    let scratch = Scratch::new("refused-key")?;
    let manifests = Manifests::copy(scratch.path())?;
    let apart = Apart::write(scratch.path(), &manifests)?;
    let mut config = apart.agent_config(US, "alpha");
    config["listen"]["https"] = "127.0.0.1:1".into();
    let file = apart.write_config("wrong", &config)?;
    for role in ["agent", "control-plane"] {
        run(&[role, "--config", &file])?.assert_refused(&[&file, "unknown field `"]);
    }
    let agent = run(&["agent", "--config", &file])?;
    agent.assert_refused(&["listen", "unknown field `https`", "grpc", "admin"]);

    config = apart.agent_config(US, "alpha");
    config["listen"]["dns"] = "localhost".into();
    let file = apart.write_config("wrong", &config)?;
    run(&["agent", "--config", &file])?.assert_refused(&[&file, "listen.dns"]);
    run(&["agent", "--config", "/no/such.yaml"])?.assert_refused(&["/no/such.yaml", "read"]);
    std::fs::write(&file, "mesh: [\n")?;
    run(&["agent", "--config", &file])?.assert_refused(&[&file]);
    Ok(())
}

#[test]
fn a_port_in_use() -> anyhow::Result<()> {
    let scratch = Scratch::new("refused-port")?;
    let manifests = Manifests::copy(scratch.path())?;
    let apart = Apart::write(scratch.path(), &manifests)?;
    for (role, name) in [("control-plane", US), ("agent", "us-west1-alpha")] {
        let listens = apart.listens(name);
        let config = apart.path(&format!("{name}.yaml"));
        let refused = |taken: SocketAddr| -> anyhow::Result<()> {
            let refused = run(&[role, "--config", &config])?;
            refused.assert_refused(&[&taken.to_string(), "in use", "stop ", "another"]);
            Ok(())
        };
        for taken in [listens.grpc, listens.dns, listens.admin] {
            let _held = TcpListener::bind(taken)?;
            refused(taken)?;
        }
        let _held = UdpSocket::bind(listens.dns)?;
        refused(listens.dns)?;
    }
    // The demo's own are fixed. Whoever has this one, the test or somebody's demo, it is taken.
    let _held = TcpListener::bind("127.0.0.1:7000");
    let root = manifests.root().display().to_string();
    let refused = run(&["demo", "--dir", &root])?;
    refused.assert_refused(&["127.0.0.1:7000", "in use", "stop ", "another", "--ports auto"]);
    Ok(())
}

#[test]
fn a_state_directory_of_another_mesh_or_cluster() -> anyhow::Result<()> {
    let scratch = Scratch::new("refused-state")?;
    let manifests = Manifests::copy(scratch.path())?;
    let apart = Apart::write(scratch.path(), &manifests)?;
    let mut agent = apart.start("us-west1-alpha")?;
    let state = apart.path("state-us-west1-alpha");
    let identity = Path::new(&state).join("identity.json");
    wait_for("its state directory is its own", SOON, || std::fs::metadata(&identity))?;

    let mut config = apart.agent_config(US, "beta");
    config["stateDir"] = state.as_str().into();
    let file = apart.write_config("wrong", &config)?;
    run(&["agent", "--config", &file])?.assert_refused(&[
        &state,
        "in use by another process",
        "name another directory",
    ]);
    agent.kill()?;
    run(&["agent", "--config", &file])?.assert_refused(&[
        &state,
        "belongs to apart.example/us-west1/us-west1-alpha",
        "this is apart.example/us-west1/us-west1-beta",
        "name another directory",
    ]);

    // The demo is another mesh than the one whose files are there.
    let demo_state = scratch.path().join("s");
    std::fs::create_dir_all(demo_state.join("pki"))?;
    std::fs::rename(apart.path("root"), demo_state.join("pki/root"))?;
    let root = manifests.root().display().to_string();
    demo(&demo_state, &["--dir", &root])?.assert_refused(&[
        "pki/root",
        "apart.example",
        "demo.tombolo.example",
    ]);
    Ok(())
}

#[test]
fn a_state_directory_in_use_by_another_demo() -> anyhow::Result<()> {
    let mesh = Mesh::start("refused-demo")?;
    let root = mesh.manifests.root().display().to_string();
    let state = mesh.state_dir();
    demo(&state, &["--dir", &root])?.assert_refused(&[
        &state.display().to_string(),
        "in use by another demo",
        "name another --state-dir",
    ]);
    assert!(state.join("demo.json").is_file(), "the one that runs keeps its file");
    mesh.agreed_digest()?;
    mesh.end()
}
