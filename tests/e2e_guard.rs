//! Absence is not deletion: what a directory of manifests no longer shows stays in the whole mesh
//! until that is explained, seen twice, or approved; and a fall of readiness is not believed.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use common::manifests::Manifests;
use common::mesh::{Mesh, agreed_digest, envoy};
use common::processes::Apart;
use common::{EU, SOON, US, ask, run};
use serde_json::Value;
use tombolo_testbed::{Process, Scratch, http, wait_for};

const OWNER: &str = "us-west1/us-west1-alpha";
const AGENT: &str = "us-west1-alpha";
/// The cluster in the other region that is asked whether anything was withdrawn.
const REMOTE: &str = "europe-west4-alpha";
const DIRECTORY: &str = "us-west1/alpha";

/// Both regions, the cluster whose directory is edited and one that looks on from far away.
struct Half<'a> {
    apart: &'a Apart<'a>,
    processes: BTreeMap<&'static str, Process>,
}

impl<'a> Half<'a> {
    /// With `guard` as the edited cluster's settings.
    fn start(apart: &'a Apart<'a>, guard: &Value) -> anyhow::Result<Self> {
        let mut config = apart.agent_config(US, "alpha");
        config["guard"] = guard.clone();
        apart.write_config(AGENT, &config)?;
        let names = [US, EU, AGENT, REMOTE].into_iter();
        let processes = names.map(|name| Ok((name, apart.start(name)?)));
        let half = Self { apart, processes: processes.collect::<anyhow::Result<_>>()? };
        wait_for("all know of both clusters", 2 * SOON, || {
            for admin in half.admins() {
                ask::same(&ask::exporters(admin, "cart")?.len(), &2)?;
            }
            half.digest().map(drop)
        })?;
        Ok(half)
    }

    fn admin(&self, name: &str) -> SocketAddr {
        self.apart.listens(name).admin
    }

    fn admins(&self) -> Vec<SocketAddr> {
        self.processes.keys().map(|name| self.admin(name)).collect()
    }

    fn digest(&self) -> anyhow::Result<String> {
        agreed_digest(&self.admins())
    }

    /// What the process `name` shows of the edited cluster.
    fn source(&self, name: &str) -> anyhow::Result<Value> {
        let status = ask::status(self.admin(name))?;
        let mut sources = status["sources"].as_array().context("sources")?.iter();
        sources.find(|source| source["owner"] == OWNER).cloned().context("the edited cluster")
    }

    /// Waits until the other region, too, is told of a hold for `why`, and gives it.
    fn held(&self, why: &str) -> anyhow::Result<Value> {
        wait_for(format!("a hold: {why}"), SOON, || {
            for name in [AGENT, EU, REMOTE] {
                let source = self.source(name)?;
                let told =
                    source["holds"][0]["why"].as_str().context(format!("{name}: {source}"))?;
                anyhow::ensure!(told.contains(why), "{told}");
            }
            Ok(())
        })?;
        Ok(self.source(REMOTE)?["holds"][0].clone())
    }

    fn wait_for_no_hold(&self, within: Duration) -> anyhow::Result<()> {
        wait_for("no hold", within, || {
            for name in [AGENT, REMOTE] {
                let source = self.source(name)?;
                anyhow::ensure!(source.get("holds").is_none(), "{name}: {source}");
            }
            Ok(())
        })
    }

    fn payments(&self, name: &str) -> anyhow::Result<usize> {
        Ok(ask::addresses(self.apart.listens(name).dns, "payments")?.len())
    }

    fn end(mut self) -> anyhow::Result<()> {
        for (name, process) in &mut self.processes {
            assert!(process.terminate(Duration::from_secs(10))?.success(), "{name}");
            assert!(!process.stderr()?.contains("panicked"), "{name}");
        }
        Ok(())
    }
}

/// Takes every manifest of the edited cluster out of its directory; gives them back by name.
fn empty(manifests: &Manifests) -> anyhow::Result<BTreeMap<String, String>> {
    let mut taken = BTreeMap::new();
    for entry in fs::read_dir(manifests.path(DIRECTORY))? {
        let path = entry?.path();
        let name = path.file_name().context("a name")?.to_string_lossy().into_owned();
        taken.insert(name, fs::read_to_string(&path)?);
        fs::remove_file(path)?;
    }
    Ok(taken)
}

fn put_back(manifests: &Manifests, files: &BTreeMap<String, String>) -> anyhow::Result<()> {
    files.iter().try_for_each(|(name, text)| manifests.write(&format!("{DIRECTORY}/{name}"), text))
}

#[test]
fn a_directory_that_shows_nothing_withdraws_nothing_anywhere_and_status_says_what_is_held()
-> anyhow::Result<()> {
    let scratch = Scratch::new("guard-held")?;
    let manifests = Manifests::copy(scratch.path())?;
    let apart = Apart::write(scratch.path(), &manifests)?;
    let half = Half::start(&apart, &serde_json::json!({}))?;
    let before = half.digest()?;

    let files = empty(&manifests)?;
    let hold = half.held("the directory of manifests holds no manifest")?;
    assert_eq!(half.digest()?, before);
    assert_eq!(half.payments(REMOTE)?, 2);
    assert!(hold["endpoints"].as_u64() > Some(5) && hold["records"].as_u64() > Some(5), "{hold}");
    let id = hold["id"].as_str().context("an id")?;
    let shown = run(&["status", "--admin", &half.admin(REMOTE).to_string()])?;
    let what_to_do = format!("tombolo approve {AGENT} {id}");
    assert!(shown.stdout.contains(&what_to_do), "{shown:?}");
    assert_eq!(shown.code, 1, "somebody has to look");
    let metrics = http::get(half.admin(REMOTE), "/metrics")?.text();
    assert!(metrics.contains(&format!("tombolo_holds{{owner=\"{OWNER}\"}} 1")), "{metrics}");
    let log = half.processes[AGENT].stderr()?;
    let line = log.lines().find(|line| line.contains("removals are held back"));
    assert!(line.is_some_and(|l| l.contains("WARN") && l.contains(id)), "{log}");

    put_back(&manifests, &files)?;
    half.wait_for_no_hold(SOON)?;
    assert_eq!(half.digest()?, before);

    let (here, away) = (manifests.path(DIRECTORY), manifests.path("us-west1-alpha-away"));
    fs::rename(&here, &away)?;
    half.held("the directory of manifests is missing")?;
    assert_eq!(half.digest()?, before);
    fs::rename(&away, &here)?;
    half.wait_for_no_hold(SOON)?;

    // Something that is there and cannot be listed, whoever asks.
    fs::rename(&here, &away)?;
    fs::write(&here, "no directory")?;
    half.held("the directory of manifests")?;
    assert_eq!(half.digest()?, before);
    fs::remove_file(&here)?;
    fs::rename(&away, &here)?;
    half.wait_for_no_hold(SOON)?;
    assert_eq!(half.digest()?, before);
    half.end()
}

#[test]
fn what_is_removed_while_the_rest_stays_readable_goes_at_once() -> anyhow::Result<()> {
    let scratch = Scratch::new("guard-removed")?;
    let manifests = Manifests::copy(scratch.path())?;
    let apart = Apart::write(scratch.path(), &manifests)?;
    let half = Half::start(&apart, &serde_json::json!({}))?;
    let cart = || ask::exporters(half.admin(REMOTE), "cart");

    manifests.drop_last_document(&format!("{DIRECTORY}/cart.yaml"), "ServiceExport")?;
    wait_for("cart is withdrawn", SOON, || ask::same(&cart()?, &vec![REMOTE.to_owned()]))?;
    // All but one file at once: still somebody's doing.
    for name in ["checkout", "frontend", "inventory", "payments", "cart"] {
        fs::remove_file(manifests.path(&format!("{DIRECTORY}/{name}.yaml")))?;
    }
    wait_for("all is withdrawn", SOON, || {
        let payments = ask::exporters(half.admin(REMOTE), "payments")?;
        ask::same(&payments, &Vec::new())
    })?;
    assert!(half.source(REMOTE)?.get("holds").is_none());
    assert!(!half.processes[AGENT].stderr()?.contains("held back"));
    half.end()
}

#[test]
fn an_emptied_directory_is_believed_the_second_time_and_a_missing_one_never() -> anyhow::Result<()>
{
    let scratch = Scratch::new("guard-release")?;
    let manifests = Manifests::copy(scratch.path())?;
    let apart = Apart::write(scratch.path(), &manifests)?;
    let half = Half::start(&apart, &serde_json::json!({"confirmAfterSeconds": 1}))?;
    let before = half.digest()?;

    let (here, away) = (manifests.path(DIRECTORY), manifests.path("us-west1-alpha-away"));
    fs::rename(&here, &away)?;
    let missing = half.held("the directory of manifests is missing")?;
    // Longer than two passes, each more than a second after the other.
    let passes = Instant::now() + Duration::from_secs(11);
    wait_for("two passes", 3 * SOON, || {
        assert_eq!(half.source(REMOTE)?["holds"][0]["id"], missing["id"]);
        assert_eq!(half.digest()?, before);
        anyhow::ensure!(Instant::now() > passes, "not yet");
        Ok(())
    })?;
    fs::rename(&away, &here)?;
    half.wait_for_no_hold(SOON)?;

    empty(&manifests)?;
    for name in [AGENT, US, EU, REMOTE] {
        wait_for(format!("{name} is offered nothing any more"), 2 * SOON, || {
            ask::same(&ask::exporters(half.admin(name), "payments")?, &Vec::new())
        })?;
    }
    half.wait_for_no_hold(SOON)?;
    assert_ne!(half.digest()?, before);
    let log = half.processes[AGENT].stderr()?;
    assert!(log.contains("removals are no longer held") && log.contains("released"), "{log}");
    half.end()
}

#[test]
fn a_hold_that_is_approved_at_the_control_plane_is_let_go_in_the_whole_mesh() -> anyhow::Result<()>
{
    let scratch = Scratch::new("guard-approved")?;
    let manifests = Manifests::copy(scratch.path())?;
    let apart = Apart::write(scratch.path(), &manifests)?;
    let half = Half::start(&apart, &serde_json::json!({}))?;
    empty(&manifests)?;
    let hold = half.held("the directory of manifests holds no manifest")?;
    assert_eq!(half.payments(REMOTE)?, 2);

    // At its region, from where the word goes to the agent as any other decision.
    let id = hold["id"].as_str().context("an id")?;
    let config = apart.path(&format!("{US}.yaml"));
    let approved = run(&["approve", AGENT, id, "--note", "moved away", "--config", &config])?;
    assert_eq!(approved.code, 0, "{approved:?}");
    half.wait_for_no_hold(SOON)?;
    for name in [AGENT, US, EU, REMOTE] {
        wait_for(format!("{name} has let it go"), SOON, || {
            ask::same(&ask::exporters(half.admin(name), "payments")?, &Vec::new())
        })?;
    }
    wait_for("the decision is carried out", SOON, || {
        let decisions = ask::status(half.admin(US))?["decisions"].take();
        let [told] = decisions.as_array().context("decisions")?.as_slice() else {
            anyhow::bail!("{decisions}")
        };
        assert_eq!((&told["verb"], &told["id"]), (&"approve".into(), &hold["id"]), "{told}");
        assert_eq!((&told["about"], &told["note"]), (&AGENT.into(), &"moved away".into()));
        ask::same(&told["state"], &"applied".into())
    })?;
    let log = half.processes[AGENT].stderr()?;
    assert!(log.contains("removals are no longer held") && log.contains("approved"), "{log}");
    // What the cluster says of itself goes on.
    assert_eq!(half.source(REMOTE)?["stale"], false);
    half.end()
}

#[test]
fn a_cluster_that_falls_unready_at_once_is_suspect_and_still_answered_where_it_is_alone()
-> anyhow::Result<()> {
    let scratch = Scratch::new("guard-suspect")?;
    let manifests = Manifests::copy(scratch.path())?;
    let apart = Apart::write(scratch.path(), &manifests)?;
    let half = Half::start(&apart, &serde_json::json!({}))?;
    let remote = apart.listens(REMOTE);
    let cart = ask::addresses(remote.dns, "cart")?;

    let files = ["cart", "checkout", "frontend", "inventory", "payments"];
    let edit = |from: &str, to: &str| {
        files
            .iter()
            .try_for_each(|file| manifests.edit(&format!("{DIRECTORY}/{file}.yaml"), from, to))
    };
    edit("ready: true", "ready: false")?;
    wait_for("it is suspect", SOON, || {
        let source = half.source(REMOTE)?;
        anyhow::ensure!(source["suspect"]["ready"] == 0, "{source}");
        Ok(())
    })?;
    let services = ask::services(remote.admin)?.to_string();
    assert!(services.contains("\"degraded\":true"), "{services}");
    // Exported there alone: better a degraded endpoint than none. Elsewhere healthy ones exist.
    assert_eq!(half.payments(REMOTE)?, 2);
    assert_eq!(ask::addresses(apart.listens(AGENT).dns, "cart")?, cart);
    let metrics = http::get(half.admin(EU), "/metrics")?.text();
    assert!(metrics.contains(&format!("tombolo_suspect{{owner=\"{OWNER}\"}} 1")), "{metrics}");

    edit("ready: false", "ready: true")?;
    wait_for("it is believed", SOON, || {
        let source = half.source(REMOTE)?;
        anyhow::ensure!(source.get("suspect").is_none(), "{source}");
        Ok(())
    })?;
    half.end()
}

#[test]
fn an_agent_that_was_killed_takes_neither_a_part_nor_unreadiness_for_the_whole()
-> anyhow::Result<()> {
    let scratch = Scratch::new("guard-restart")?;
    let manifests = Manifests::copy(scratch.path())?;
    let apart = Apart::write(scratch.path(), &manifests)?;
    let mut half = Half::start(&apart, &serde_json::json!({}))?;
    let files = ["cart", "checkout", "frontend", "inventory", "payments"];
    for file in files {
        manifests.edit(&format!("{DIRECTORY}/{file}.yaml"), "ready: true", "ready: false")?;
    }
    let suspect = |name: &str| Ok::<_, anyhow::Error>(half.source(name)?["suspect"].take());
    let suspicion = wait_for("it is suspect", SOON, || {
        let suspect = suspect(REMOTE)?;
        anyhow::ensure!(suspect["ready"] == 0, "{suspect}");
        Ok(suspect["id"].clone())
    })?;
    let before = half.digest()?;
    wait_for("that is on disk", 2 * SOON, || {
        let cache = ask::status(half.admin(AGENT))?["cache"].take();
        anyhow::ensure!(cache["unsaved"] == false && cache["generation"].is_u64(), "{cache}");
        Ok(())
    })?;

    // While it is away the directory is, too, and only a part of it has come back.
    half.processes.get_mut(AGENT).context("it runs")?.kill()?;
    let (here, away) = (manifests.path(DIRECTORY), manifests.path("us-west1-alpha-away"));
    fs::rename(&here, &away)?;
    fs::create_dir(&here)?;
    fs::rename(away.join("cart.yaml"), here.join("cart.yaml"))?;
    half.processes.insert(AGENT, apart.start(AGENT)?);
    let held = |name: &str| {
        let source = half.source(name)?;
        anyhow::ensure!(source["holds"][0]["endpoints"].as_u64() > Some(5), "{name}: {source}");
        ask::same(&source["suspect"]["id"], &suspicion)
    };
    for name in [AGENT, EU, REMOTE] {
        wait_for(format!("{name} is told of the rest"), 2 * SOON, || held(name))?;
    }
    assert_eq!(half.digest()?, before);
    let services = ask::services(half.admin(REMOTE))?.to_string();
    assert!(services.contains("\"degraded\":true"), "{services}");
    assert_eq!(half.payments(REMOTE)?, 2);

    for entry in fs::read_dir(&away)? {
        let from = entry?.path();
        fs::rename(&from, here.join(from.file_name().context("a name")?))?;
    }
    half.wait_for_no_hold(SOON)?;
    assert_eq!(half.digest()?, before);
    for file in files {
        manifests.edit(&format!("{DIRECTORY}/{file}.yaml"), "ready: false", "ready: true")?;
    }
    wait_for("it is believed", SOON, || ask::same(&half.source(REMOTE)?["suspect"], &Value::Null))?;
    half.end()
}

#[test]
fn envoys_use_what_is_degraded_where_nothing_is_healthy_and_only_there() -> anyhow::Result<()> {
    let Some(envoy) = envoy("e2e_guard::envoys_use_what_is_degraded") else { return Ok(()) };
    let mesh = Mesh::start_with("guard-envoy", Some(envoy))?;
    let (near, far) = (Mesh::envoy_of(mesh.us()), Mesh::envoy_of(mesh.eu()));
    let pod = ask::addresses(mesh.us().dns, "payments")?.remove(0);
    for file in ["cart", "checkout", "frontend", "inventory", "payments"] {
        let file = format!("{DIRECTORY}/{file}.yaml");
        mesh.manifests.edit(&file, "ready: true", "ready: false")?;
    }
    for cluster in [mesh.us(), mesh.eu()] {
        let admin = cluster.envoy_admin.context("an Envoy")?;
        wait_for("the Envoy is told", SOON, || {
            let told = ask::envoy_health(admin, &pod)?;
            ask::same(&told.as_deref(), &Some("/degraded_eds_health"))
        })?;
    }
    ask::all_from(near, "payments", US, 25)?;
    ask::all_from(far, "payments", US, 25)?;
    wait_for("the healthy ones of others take it all", SOON, || {
        for _ in 0..25 {
            let backend = ask::fetch(near, "checkout")?;
            anyhow::ensure!(backend.cluster != AGENT, "{backend:?}");
        }
        Ok(())
    })?;
    mesh.end()
}
