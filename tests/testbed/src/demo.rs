//! `tombolo demo` as a child process, driven from outside as a person or a script would.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;
use serde::Deserialize;

use crate::{Process, wait_for};

/// Ten times the promise of three seconds.
const READY: Duration = Duration::from_secs(30);

/// For a control verb to be carried out, and for a stop on Ctrl-C.
const CARRIED_OUT: Duration = Duration::from_secs(30);

/// What `demo.json` says: where everything listens.
#[derive(Debug, Clone, Deserialize)]
pub struct Layout {
    /// The regions, in the demo's order.
    pub regions: Vec<Region>,
    /// Takes control verbs, one line per connection.
    pub control: SocketAddr,
}

/// A region's control plane and its clusters.
#[derive(Debug, Clone, Deserialize)]
pub struct Region {
    /// `us-west1`
    pub name: String,
    /// DNS, UDP and TCP.
    pub dns: SocketAddr,
    /// gRPC over TLS.
    pub grpc: SocketAddr,
    /// Admin HTTP.
    pub admin: SocketAddr,
    /// Its clusters.
    pub clusters: Vec<Cluster>,
}

/// A cluster's agent and Envoy.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    /// The name within the region.
    pub name: String,
    /// The name within the mesh.
    pub id: String,
    /// DNS of the agent, UDP and TCP.
    pub dns: SocketAddr,
    /// gRPC of the agent, over TLS.
    pub grpc: SocketAddr,
    /// Admin HTTP of the agent.
    pub admin: SocketAddr,
    /// The client-side Envoy, if there is one.
    pub envoy: Option<SocketAddr>,
    /// That Envoy's own admin page.
    pub envoy_admin: Option<SocketAddr>,
}

/// A running demo. Stopped when dropped; [`Demo::interrupt`] stops it and looks how that went.
#[derive(Debug)]
pub struct Demo {
    process: Process,
    layout: Layout,
    file: PathBuf,
}

impl Demo {
    /// Starts `binary demo` with its state in `DIR/state` and its logs in `DIR`, and waits until
    /// it is ready. A second start on the same `dir` finds the first one's state.
    ///
    /// # Errors
    ///
    /// When it ends early or is not ready in time.
    pub fn start(
        binary: &Path,
        dir: &Path,
        envoy: Option<&Path>,
        arguments: &[&str],
    ) -> anyhow::Result<Self> {
        let state = dir.join("state");
        let file = state.join("demo.json");
        std::fs::create_dir_all(&state).with_context(|| state.display().to_string())?;
        // The demo removes it too, but later than the first look below: after a kill -9 the file
        // of the last run would pass for this one's.
        remove(&file)?;

        let mut command = Command::new(binary);
        command.arg("demo").arg("--state-dir").arg(&state).args(["--ports", "auto"]);
        if let Some(envoy) = envoy {
            command.arg("--envoy").arg(envoy);
        }
        command.args(arguments);
        let mut process = Process::start("demo", &mut command, dir)?;
        let layout = wait_for("the demo is ready", READY, || ready(&mut process, &file))??;
        Ok(Self { process, layout, file })
    }

    /// Where everything listens.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The process, for its logs and for signals that are not part of a normal run.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The region called `name`.
    ///
    /// # Errors
    ///
    /// When there is none, with the names there are.
    pub fn region(&self, name: &str) -> anyhow::Result<&Region> {
        let regions = &self.layout.regions;
        let found = regions.iter().find(|region| region.name == name);
        found.with_context(|| {
            let names: Vec<_> = regions.iter().map(|region| region.name.as_str()).collect();
            format!("no region {name} among {names:?}")
        })
    }

    /// The cluster called `name` in `region`.
    ///
    /// # Errors
    ///
    /// When there is none, with the names there are.
    pub fn cluster(&self, region: &str, name: &str) -> anyhow::Result<&Cluster> {
        let clusters = &self.region(region)?.clusters;
        let found = clusters.iter().find(|cluster| cluster.name == name);
        found.with_context(|| {
            let names: Vec<_> = clusters.iter().map(|cluster| cluster.name.as_str()).collect();
            format!("no cluster {name} in {region} among {names:?}")
        })
    }

    /// Has a verb carried out (`stop backend NAME`, `start region NAME`) and gives what the demo
    /// answered after `ok`.
    ///
    /// # Errors
    ///
    /// When the demo refuses it or does not answer.
    pub fn control(&self, verb: &str) -> anyhow::Result<String> {
        control(self.layout.control, verb).with_context(|| format!("control verb {verb:?}"))
    }

    /// Ctrl-C: it must end with success, take `demo.json` with it, and never have panicked.
    ///
    /// # Errors
    ///
    /// When it does not.
    #[track_caller]
    pub fn interrupt(mut self) -> anyhow::Result<()> {
        self.process.signal(Signal::INT)?;
        let status = self.process.wait(CARRIED_OUT)?;
        ensure!(status.success(), "the demo ended on Ctrl-C with {status}");
        ensure!(!self.file.exists(), "the demo left {} behind", self.file.display());
        self.never_panicked()
    }

    /// `kill -9`: whatever it started must end by itself, and it must not have panicked before.
    ///
    /// # Errors
    ///
    /// When it has ended before, or panicked.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        self.never_panicked()
    }

    fn never_panicked(&self) -> anyhow::Result<()> {
        let log = self.process.stderr()?;
        let panics: Vec<&str> = log.lines().filter(|line| line.contains("panicked")).collect();
        ensure!(panics.is_empty(), "the demo panicked: {panics:?}");
        Ok(())
    }
}

fn remove(file: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", file.display()))
        }
        _ => Ok(()),
    }
}

/// The layout, or for good that it will never come, or why not yet. The file is written by
/// rename, so what is there is whole: one that cannot be read is a failure, not a reason to wait.
fn ready(process: &mut Process, file: &Path) -> anyhow::Result<anyhow::Result<Layout>> {
    if let Some(status) = process.exited()? {
        return Ok(Err(anyhow::anyhow!("the demo ended before it was ready: {status}")));
    }
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    Ok(serde_json::from_str(&text).with_context(|| format!("demo.json: {text}")))
}

fn control(address: SocketAddr, verb: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, CARRIED_OUT)?;
    stream.set_read_timeout(Some(CARRIED_OUT))?;
    writeln!(stream, "{verb}")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    match answer.trim_end().split_once(' ').unwrap_or((answer.trim_end(), "")) {
        ("ok", said) => Ok(said.to_owned()),
        ("error", why) => bail!("refused: {why}"),
        _ => bail!("neither ok nor error: {answer:?}"),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;
    use crate::Scratch;

    const LAYOUT: &str = r#"{"regions": [{"name": "us-west1", "dns": "127.0.0.1:5353",
        "grpc": "127.0.0.1:7443", "admin": "127.0.0.1:7080", "clusters": [
            {"name": "a", "id": "us-west1-a", "dns": "127.0.0.1:5354", "grpc": "127.0.0.1:7444",
             "admin": "127.0.0.1:7081", "envoy": null, "envoyAdmin": null},
            {"name": "b", "id": "us-west1-b", "dns": "127.0.0.1:5355", "grpc": "127.0.0.1:7445",
             "admin": "127.0.0.1:7082", "envoy": "127.0.0.1:10000",
             "envoyAdmin": "127.0.0.1:10001"}]}],
        "control": "127.0.0.1:7000"}"#;

    /// A stand-in for the binary: `body` runs with the state directory in `$state`. Another
    /// process makes the file: a descriptor of ours, inherited by a child that another test forks
    /// in that moment, would make its start fail with "text file busy".
    fn fake(scratch: &Scratch, body: &str) -> PathBuf {
        let text = scratch.path().join("text");
        let file = scratch.path().join("fake");
        let script = format!("#!/bin/sh\nstate=$3\necho \"$@\" > \"$state/arguments\"\n{body}\n");
        std::fs::write(&text, script).unwrap();
        let made = Command::new("install").args(["-m", "755"]).arg(&text).arg(&file).status();
        assert!(made.unwrap().success());
        file
    }

    fn serving(on_interrupt: &str) -> String {
        format!(
            "trap '{on_interrupt}' INT\ncat > \"$state/new\" <<'END'\n{LAYOUT}\nEND\n\
             mv \"$state/new\" \"$state/demo.json\"\nwhile :; do sleep 0.02; done"
        )
    }

    #[test]
    fn it_is_ready_when_its_file_is_there_and_ends_clean_on_interrupt() {
        let scratch = Scratch::new("demo").unwrap();
        let binary = fake(&scratch, &serving("rm $state/demo.json; exit 0"));
        let envoy = Some(Path::new("/envoy"));
        let demo = Demo::start(&binary, scratch.path(), envoy, &["--export-all"]).unwrap();

        let state = scratch.path().join("state");
        let arguments = std::fs::read_to_string(state.join("arguments")).unwrap();
        let state = state.display();
        let expected =
            format!("demo --state-dir {state} --ports auto --envoy /envoy --export-all\n");
        assert_eq!(arguments, expected);
        assert_eq!(demo.region("us-west1").unwrap().admin.port(), 7080);
        assert_eq!(demo.cluster("us-west1", "a").unwrap().envoy, None);
        assert_eq!(demo.cluster("us-west1", "b").unwrap().envoy.unwrap().port(), 10000);
        let error = demo.cluster("us-west1", "c").unwrap_err().to_string();
        assert_eq!(error, r#"no cluster c in us-west1 among ["a", "b"]"#);
        demo.interrupt().unwrap();
    }

    #[test]
    fn an_unclean_end_is_an_error() {
        let scratch = Scratch::new("demo").unwrap();
        let panicked = "rm $state/demo.json; echo thread main panicked at x >&2; exit 0";
        let ends = [("exit 4", "exit status: 4"), ("exit 0", "left"), (panicked, "panicked at x")];
        for (trap, expected) in ends {
            let binary = fake(&scratch, &serving(trap));
            let demo = Demo::start(&binary, scratch.path(), None, &[]).unwrap();
            let error = demo.interrupt().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn an_early_end_is_reported_at_once_even_beside_an_old_file() {
        let scratch = Scratch::new("demo").unwrap();
        let state = scratch.path().join("state");
        std::fs::create_dir(&state).unwrap();
        std::fs::write(state.join("demo.json"), LAYOUT).unwrap();
        let binary = fake(&scratch, "exit 9");
        let error = Demo::start(&binary, scratch.path(), None, &[]).unwrap_err();
        assert!(error.to_string().contains("exit status: 9"), "{error:#}");
    }

    #[test]
    fn a_file_of_another_shape_is_an_error() {
        let scratch = Scratch::new("demo").unwrap();
        let binary = fake(
            &scratch,
            "echo '{}' > \"$state/new\"; mv \"$state/new\" \"$state/demo.json\"; sleep 30",
        );
        let error = Demo::start(&binary, scratch.path(), None, &[]).unwrap_err();
        assert!(format!("{error:#}").contains("missing field"), "{error:#}");
    }

    #[test]
    fn a_verb_is_one_line_each_way() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            for answer in ["ok stopped web\n", "ok\n", "error no backend x\n", "what\n", ""] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut verb = String::new();
                BufReader::new(stream.try_clone().unwrap()).read_line(&mut verb).unwrap();
                assert_eq!(verb, "stop backend web\n");
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        let ask = || control(address, "stop backend web");
        assert_eq!(ask().unwrap(), "stopped web");
        assert_eq!(ask().unwrap(), "");
        assert_eq!(ask().unwrap_err().to_string(), "refused: no backend x");
        assert!(ask().is_err());
        assert!(ask().is_err());
        server.join().unwrap();
    }
}
