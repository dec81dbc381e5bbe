//! Operators: what they decide, over a process's own socket, and what becomes of it everywhere.

mod common;

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use common::manifests::{Manifests, service};
use common::processes::Apart;
use common::{EU, Ended, SOON, US, ask, run, tombolo};
use serde_json::Value;
use tombolo_ca::root::RootCertificate;
use tombolo_testbed::{Demo, Process, Scratch, http, wait_for};

/// Dialling again is put off for at most 5 s; the rest as ever.
const REJOINED: Duration = Duration::from_secs(20);
/// Silence is known after 30 s.
const SILENT: Duration = Duration::from_secs(90);

const EU_BETA: &str = "europe-west4-beta";

/// A running mesh of separate processes.
struct Running<'a> {
    apart: Apart<'a>,
    processes: BTreeMap<String, Process>,
}

impl Running<'_> {
    /// `tombolo VERB...` to the process of a region or a cluster.
    fn operate(&self, name: &str, words: &[&str]) -> anyhow::Result<Ended> {
        let config = self.apart.path(&format!("{name}.yaml"));
        run(&[words, &["--config", &config]].concat())
    }

    fn admin(&self, name: &str) -> SocketAddr {
        self.apart.listens(name).admin
    }

    fn kill(&mut self, name: &str) -> anyhow::Result<()> {
        self.processes.remove(name).expect("it runs").kill()
    }

    fn log(&self, name: &str) -> anyhow::Result<String> {
        self.processes[name].stderr()
    }

    /// Every process that runs sees so many exporters of cart.
    fn all_see(&self, exporters: usize) -> anyhow::Result<()> {
        for name in self.processes.keys() {
            let seen = ask::exporters(self.admin(name), "cart")?;
            ensure!(seen.len() == exporters, "{name} sees {seen:?}");
        }
        Ok(())
    }

    /// Every process that runs answers for search in this way.
    fn all_answer(&self, code: &str) -> anyhow::Result<()> {
        for name in self.processes.keys() {
            ask::same(&ask::code(self.apart.listens(name).dns, "search")?.as_str(), &code)?;
        }
        Ok(())
    }

    fn end(mut self) -> anyhow::Result<()> {
        for (name, process) in &mut self.processes {
            let status = process.terminate(Duration::from_secs(10))?;
            ensure!(status.success(), "{name}: {status}");
            ensure!(!process.stderr()?.contains("panicked"), "{name}");
        }
        Ok(())
    }
}

fn start<'a>(scratch: &Scratch, manifests: &'a Manifests) -> anyhow::Result<Running<'a>> {
    let apart = Apart::write(scratch.path(), manifests)?;
    // The one thing that the two regions do not say the same of.
    let mut config = apart.control_plane_config(EU);
    config["distances"] = serde_json::json!({US: 90});
    apart.write_config(EU, &config)?;
    // The first replica of its region is not there.
    let mut config = apart.agent_config(EU, "alpha");
    let dead = format!("{}:1", manifests.eu(0, 10));
    config["controlPlane"] = serde_json::json!([dead, apart.listens(EU).grpc]);
    apart.write_config("europe-west4-alpha", &config)?;
    let names = Apart::names().into_iter();
    let processes =
        names.map(|name| Ok((name.clone(), apart.start(&name)?))).collect::<anyhow::Result<_>>()?;
    let running = Running { apart, processes };
    wait_for("all know all clusters", REJOINED, || running.all_see(4))?;
    Ok(running)
}

/// A POST over TCP, which nobody takes.
fn post(admin: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(admin)?;
    stream.set_read_timeout(Some(SOON))?;
    let head = format!("POST {path} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n");
    write!(stream, "{head}Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[track_caller]
fn assert_refused(ended: &Ended, words: &[&str]) {
    assert_eq!(ended.code, 1, "{ended:?}");
    for word in words {
        assert!(ended.stderr.contains(word), "{word:?} is missing: {}", ended.stderr);
    }
}

fn decisions(admin: SocketAddr) -> anyhow::Result<Vec<Value>> {
    Ok(serde_json::from_value(ask::status(admin)?["decisions"].take()).unwrap_or_default())
}

#[test]
fn clusters_and_regions_leave_by_an_operators_word_alone() -> anyhow::Result<()> {
    let scratch = Scratch::new("operator-leave")?;
    let manifests = Manifests::copy(scratch.path())?;
    let alone = manifests.eu(2, 95);
    manifests.write("europe-west4/beta/search.yaml", &service("search", &alone))?;
    let mut mesh = start(&scratch, &manifests)?;
    wait_for("the name is known", SOON, || mesh.all_answer("NOERROR"))?;

    who_may_ask_and_what_is_refused(&mesh)?;
    what_regions_disagree_on_is_named(&mesh)?;

    mesh.kill(EU_BETA)?;
    // Its region still hears it, in a way of speaking.
    assert_refused(&mesh.operate(EU, &["leave", EU_BETA])?, &["may be alive", "--live"]);
    assert_refused(
        &mesh.operate(US, &["leave", EU_BETA])?,
        &["ask a control plane of europe-west4"],
    );
    mesh.all_answer("NOERROR")?;
    let dry = ["leave", EU_BETA, "--live", "--dry-run"];
    let would = mesh.operate(EU, &dry)?;
    assert!(would.code == 0 && would.stdout.contains("would leave"), "{would:?}");
    assert!(would.stdout.contains("europe-west4/europe-west4-beta: "), "{would:?}");
    assert_eq!(decisions(mesh.admin(EU))?.len(), 0);
    let done = wait_for("its silence is known", SILENT, || {
        let ended = mesh.operate(EU, &["leave", EU_BETA, "--note", "burnt down"])?;
        ensure!(ended.code == 0, "{ended:?}");
        Ok(ended)
    })?;
    assert!(done.stdout.contains("europe-west4-beta leaves"), "{done:?}");
    wait_for("it is gone in both regions", SOON, || {
        mesh.all_see(3)?;
        mesh.all_answer("NXDOMAIN")
    })?;
    wait_for("its region has nothing left to do", SOON, || {
        let told = decisions(mesh.admin(EU))?;
        ensure!(told.len() == 1 && told[0]["state"] == "applied", "{told:?}");
        ensure!(
            told[0]["note"] == "burnt down" && told[0]["about"] == "europe-west4/europe-west4-beta"
        );
        Ok(())
    })?;
    let shown = run(&["decisions", "--admin", &mesh.admin(EU).to_string()])?;
    assert!(shown.code == 0 && shown.stdout.contains("burnt down"), "{shown:?}");
    let again = mesh.operate(EU, &["leave", EU_BETA])?;
    assert_refused(&again, &["no cluster europe-west4-beta is known here"]);

    a_dead_region_leaves(mesh)
}

/// Approvals, live clusters, other channels; each call is audited and counted.
fn who_may_ask_and_what_is_refused(mesh: &Running<'_>) -> anyhow::Result<()> {
    let approve = ["approve", "us-west1-alpha", "no-such-hold"];
    assert_refused(&mesh.operate(US, &approve)?, &["no hold \"no-such-hold\"", "it holds nothing"]);
    assert_refused(&mesh.operate("us-west1-alpha", &approve)?, &["no hold \"no-such-hold\""]);
    assert_refused(
        &mesh.operate("us-west1-beta", &approve)?,
        &["agent of us-west1/us-west1-beta", "ask the one of us-west1-alpha"],
    );
    assert_refused(&mesh.operate(US, &["leave", "us-west1-alpha"])?, &["may be alive (", "--live"]);
    assert_refused(&mesh.operate(US, &["leave", "--region", US])?, &["is this region itself"]);
    assert_refused(&mesh.operate(US, &["leave", "--region", "asia"])?, &["known are europe-west4"]);
    let withdraw = ["leave", "us-west1-alpha", "--withdraw"];
    assert_refused(
        &mesh.operate(US, &withdraw)?,
        &["has not said that us-west1/us-west1-alpha left"],
    );
    mesh.all_see(4)?;

    let log = mesh.log(US)?;
    let audited = |words: &[&str]| {
        log.lines().any(|line| line.contains(" audit: ") && words.iter().all(|w| line.contains(w)))
    };
    let uid = rustix::process::getuid().as_raw();
    assert!(
        audited(&[
            "approve",
            "no-such-hold of us-west1-alpha",
            "refused",
            &format!("uid {uid} pid")
        ]),
        "{log}"
    );
    assert!(audited(&["verb=\"leave\"", "cluster us-west1-alpha", "refused"]), "{log}");
    let metrics = http::get(mesh.admin(US), "/metrics")?.text();
    let counted = "tombolo_operator_calls_total{verb=\"leave\",outcome=\"refused\"} 3";
    assert!(metrics.contains(counted), "{metrics}");

    for path in ["/api/v1/approve", "/api/v1/leave", "/api/v1/status"] {
        let answer = post(mesh.admin(US), path)?;
        let refused = answer.starts_with("HTTP/1.1 404") || answer.starts_with("HTTP/1.1 405");
        assert!(refused, "{path}: {answer}");
    }
    let socket = mesh.apart.path("state-us-west1/operator.sock");
    let mode = std::fs::metadata(&socket)?.permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let nowhere = ["approve", "us-west1-alpha", "h", "--socket", "/no/such.sock"];
    run(&nowhere)?
        .assert_refused(&["cannot reach the process behind /no/such.sock", "--config FILE"]);
    run(&["leave", "us-west1-alpha"])?.assert_refused(&["which process?", "--socket PATH"]);
    let relative = ["leave", "us-west1-alpha", "--socket", "state/operator.sock"];
    run(&relative)?.assert_refused(&["state/operator.sock", "a relative stateDir"]);
    let dead = scratch_file(&mesh.apart.path("no-socket"))?;
    run(&["leave", "us-west1-alpha", "--socket", &dead])?.assert_refused(&[&dead, "cannot reach"]);
    Ok(())
}

fn scratch_file(path: &str) -> anyhow::Result<String> {
    std::fs::write(path, "")?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(path.to_owned())
}

fn what_regions_disagree_on_is_named(mesh: &Running<'_>) -> anyhow::Result<()> {
    for (region, other, ours, theirs) in [(US, EU, "100", "90"), (EU, US, "90", "100")] {
        let expected = serde_json::json!([
            {"regions": [region, other], "field": "distances", "ours": ours, "theirs": theirs}
        ]);
        wait_for("the disagreement is seen", SOON, || {
            ask::same(&ask::status(mesh.admin(region))?["disagreements"], &expected)
        })?;
    }
    let shown = run(&["status", "--admin", &mesh.admin(US).to_string()])?.stdout;
    assert!(shown.contains("DISAGREE") && shown.contains("distances"), "{shown}");
    let status = ask::status(mesh.admin(US))?;
    let members = status["settings"]["members"].as_object().map(serde_json::Map::len);
    assert_eq!(members, Some(2), "{status}");
    assert_eq!(status["peers"][0]["region"], EU);
    let root = RootCertificate::from_pem(&std::fs::read(mesh.apart.path("root/root.pem"))?)?;
    let root = root.fingerprint().map(|byte| format!("{byte:02x}")).concat();
    for said in [&status["settings"], &status["peers"][0]] {
        assert_eq!(said["roots"], serde_json::json!([root]), "{said}");
    }
    let metrics = http::get(mesh.admin(US), "/metrics")?.text();
    assert!(metrics.contains("tombolo_peer_disagreements 1"), "{metrics}");
    Ok(())
}

fn a_dead_region_leaves(mut mesh: Running<'_>) -> anyhow::Result<()> {
    for name in ["europe-west4-alpha", EU] {
        mesh.kill(name)?;
    }
    assert_refused(&mesh.operate(US, &["leave", "--region", EU])?, &["may be alive", "--live"]);
    mesh.all_see(3)?;
    wait_for("its silence is known", SILENT, || {
        let ended = mesh.operate(US, &["leave", "--region", EU])?;
        ensure!(ended.code == 0, "{ended:?}");
        Ok(())
    })?;
    wait_for("it is gone with its clusters", SOON, || {
        mesh.all_see(2)?;
        let told = decisions(mesh.admin(US))?;
        ensure!(told.len() == 1 && told[0]["state"] == "applied", "{told:?}");
        Ok(())
    })?;
    let withdraw = mesh.operate(US, &["leave", "--region", EU, "--withdraw"])?;
    assert_eq!(withdraw.code, 0, "{withdraw:?}");
    assert_eq!(decisions(mesh.admin(US))?.len(), 0);
    // What is withdrawn may come back as it was.
    for name in [EU, "europe-west4-alpha"] {
        let process = mesh.apart.start(name)?;
        mesh.processes.insert(name.to_owned(), process);
    }
    wait_for("it is back", REJOINED, || mesh.all_see(3))?;
    // The cluster that left is still refused, and whoever runs it is told.
    let process = mesh.apart.start(EU_BETA)?;
    mesh.processes.insert(EU_BETA.to_owned(), process);
    wait_for("the cluster that left is refused", REJOINED, || {
        let links = ask::status(mesh.admin(EU_BETA))?["links"].to_string();
        ensure!(links.contains("left the mesh for good"), "{links}");
        let told = run(&["status", "--admin", &mesh.admin(EU_BETA).to_string()])?;
        ensure!(told.code == 1 && told.stdout.contains("left the mesh for good"), "{told:?}");
        let metrics = http::get(mesh.admin(EU), "/metrics")?.text();
        let counted = "tombolo_federation_refused_streams_total{call=\"publish\",reason=\"left\"}";
        ensure!(metrics.contains(counted), "{metrics}");
        Ok(())
    })?;
    assert!(mesh.log(EU)?.contains("a cluster that left the mesh was refused"));
    assert_eq!(ask::exporters(mesh.admin(EU), "cart")?.len(), 3);
    mesh.end()
}

#[test]
fn an_admin_address_off_loopback_has_probes_alone_and_the_operator_socket_the_rest()
-> anyhow::Result<()> {
    let scratch = Scratch::new("operator-reads")?;
    let manifests = Manifests::copy(scratch.path())?;
    let apart = Apart::write(scratch.path(), &manifests)?;
    let mut config = apart.control_plane_config(US);
    config["listen"]["admin"] = "0.0.0.0:0".into();
    let file = apart.write_config(US, &config)?;
    let mut process = apart.start(US)?;
    let admin = wait_for("it says where it listens", SOON, || {
        let log = process.stderr()?;
        let (_, rest) = log.split_once(" admin=0.0.0.0:").context("not yet")?;
        let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
        anyhow::Ok(SocketAddr::from(([127, 0, 0, 1], port.parse()?)))
    })?;
    wait_for("it is ready", REJOINED, || {
        let ready = http::get(admin, "/readyz")?;
        ensure!(ready.status == 200, "{}", ready.text());
        Ok(())
    })?;
    for path in ["/livez", "/metrics"] {
        assert_eq!(http::get(admin, path)?.status, 200, "{path}");
    }
    for path in ["/api/v1/status", "/api/v1/services", "/api/v1/proxies"] {
        assert_eq!(http::get(admin, path)?.status, 404, "{path}");
    }
    let hint = ["404", "is not on loopback", "--config FILE or --socket PATH"];
    run(&["decisions", "--admin", &admin.to_string()])?.assert_refused(&hint);

    let socket = apart.path("state-us-west1/operator.sock");
    let verbs: [&[&str]; 4] = [&["status"], &["services"], &["decisions"], &["dns", "nobody.shop"]];
    for verb in verbs {
        for to in [["--config", &file], ["--socket", &socket]] {
            let shown = run(&[verb, &to, &["-o", "json"]].concat())?;
            assert!(shown.code < 2, "{verb:?} {to:?}: {shown:?}");
            serde_json::from_str::<Value>(&shown.stdout)?;
        }
    }
    assert!(process.terminate(Duration::from_secs(10))?.success());
    run(&["status", "--config", &file])?.assert_refused(&["cannot reach the process behind"]);
    Ok(())
}

#[test]
fn a_region_that_its_peer_hears_stays_there_whoever_says_that_it_left() -> anyhow::Result<()> {
    let scratch = Scratch::new("operator-heard")?;
    let manifests = Manifests::copy(scratch.path())?;
    let dir = |part: &str| manifests.path(part).display().to_string();
    let dirs = [
        format!("us/a={}", dir("us-west1/alpha")),
        format!("eu/a={}", dir("europe-west4/alpha")),
        format!("asia/a={}", dir("us-west1/beta")),
    ];
    let dirs: Vec<&str> = dirs.iter().flat_map(|dir| ["--dir", dir]).collect();
    let demo = Demo::start(tombolo(), scratch.path(), None, &dirs)?;
    let config = scratch.path().join("state/config/control-plane-us.yaml").display().to_string();
    let leave = ["leave", "--region", "eu", "--live", "--config", &config];
    let (us, asia) = (demo.region("us")?.admin, demo.region("asia")?.admin);
    let left = run(&leave)?;
    assert_eq!(left.code, 0, "{left:?}");
    wait_for("it is said in asia, and waits there", SOON, || {
        let told = decisions(asia)?;
        ensure!(told.len() == 1 && told[0]["state"] == "waiting", "{told:?}");
        let reason = told[0]["reason"].as_str().unwrap_or_default();
        ensure!(reason.contains("eu/_ may be alive: heard"), "{reason}");
        Ok(())
    })?;
    // Long enough for who looks every 5 s.
    let begun = Instant::now();
    wait_for("two looks have passed", SOON, || {
        let seen = ask::exporters(asia, "cart")?;
        assert_eq!(seen, ["asia-a", "eu-a", "us-a"]);
        ensure!(begun.elapsed() > Duration::from_secs(8), "{:?}", begun.elapsed());
        Ok(())
    })?;
    let shown = run(&["decisions", "--admin", &asia.to_string()])?;
    assert!(shown.code == 1 && shown.stdout.contains("may be alive"), "{shown:?}");
    let withdraw = ["leave", "--region", "eu", "--withdraw", "--config", &config];
    let back = run(&withdraw)?;
    assert_eq!(back.code, 0, "{back:?}");
    wait_for("all is as before", REJOINED, || {
        ask::same(&ask::exporters(us, "cart")?.len(), &3)?;
        ask::same(&decisions(asia)?.len(), &0)
    })?;
    demo.interrupt()
}
