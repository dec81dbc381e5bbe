//! The gates: the workspace builds without protoc, is formatted, has no warnings in code or documentation, and depends on
//! nothing that `deny.toml` refuses.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Context as _;

use crate::log::Log;
use crate::run::{Run, Verdict};
use crate::setup;
use crate::workspace::Workspace;

const NO_DENY: &str = "NOT CHECKED (no cargo-deny)";

/// Format, lints, documentation and dependencies.
pub(crate) fn lint(run: &mut Run) {
    setup::for_lints(run);
    run.step("fmt", |workspace, log| {
        watched(log, &mut workspace.cargo(["fmt", "--all", "--check"]))
    });
    run.step("clippy", |workspace, log| {
        let clippy = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
        watched(log, &mut workspace.cargo(clippy))
    });
    run.step("doc", |workspace, log| {
        let mut doc = workspace.cargo(["doc", "--workspace", "--no-deps", "--locked"]);
        watched(log, doc.env("RUSTDOCFLAGS", "-D warnings"))
    });
    run.step("deny", deny);
    run.step("advisories", advisories);
}

/// Builds everything with any installed protoc out of reach.
pub(crate) fn build(run: &mut Run) -> bool {
    run.step("build", |workspace, log| {
        let shim = without_protoc(&workspace.scratch().join("no-protoc"))?;
        let mut build = workspace.cargo(["build", "--workspace", "--all-targets", "--locked"]);
        build.env("PATH", shim).env_remove("PROTOC");
        watched(log, &mut build)
    })
}

/// `PATH` on which `protoc` is a program that fails and says why. Taking the real one's directory
/// off `PATH` would take the compiler along; and a build that falls back silently is seen too.
fn without_protoc(dir: &Path) -> anyhow::Result<std::ffi::OsString> {
    let protoc = dir.join("protoc");
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    fs::write(
        &protoc,
        "#!/bin/sh\necho 'the build must not need an installed protoc' >&2\nexit 1\n",
    )
    .and_then(|()| fs::set_permissions(&protoc, fs::Permissions::from_mode(0o755)))
    .with_context(|| protoc.display().to_string())?;
    Workspace::path_after(dir)
}

fn deny(workspace: &Workspace, log: &mut Log) -> anyhow::Result<Verdict> {
    let Some(mut deny) = cargo_deny(workspace) else {
        // In CI the setup step has failed already.
        return Ok(Verdict::Warned(NO_DENY.into()));
    };
    watched(log, deny.args(["--workspace", "--locked", "check", "bans", "licenses", "sources"]))
}

/// Reports and never fails: an advisory that appears overnight must not stop an unrelated change.
/// Uses the database that is there and fetches none, so that a run means the same every time.
fn advisories(workspace: &Workspace, log: &mut Log) -> anyhow::Result<Verdict> {
    let Some(mut deny) = cargo_deny(workspace) else {
        return Ok(Verdict::Warned(NO_DENY.into()));
    };
    if !Workspace::advisories().is_some_and(|databases| has_database(&databases)) {
        println!("advisories: NOT CHECKED (no database)");
        println!("`{} fetch db` gets one", deny.get_program().display());
        return Ok(Verdict::Warned("NOT CHECKED (no database)".into()));
    }
    let checked = watched(log, deny.args(["--workspace", "--offline", "check", "advisories"]));
    checked.or_else(|_| Ok(Verdict::Warned("not clean: see target/xtask/advisories.log".into())))
}

fn cargo_deny(workspace: &Workspace) -> Option<std::process::Command> {
    let program = setup::cargo_deny_dir().ok()?.join("bin/cargo-deny");
    program.is_file().then(|| workspace.command(program))
}

fn has_database(dir: &Path) -> bool {
    let is_one = |entry: fs::DirEntry| entry.path().join(".git").is_dir();
    fs::read_dir(dir).is_ok_and(|entries| entries.flatten().any(is_one))
}

fn watched(log: &mut Log, command: &mut std::process::Command) -> anyhow::Result<Verdict> {
    log.watched(command)?;
    Ok(Verdict::Passed)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn protoc_is_out_of_reach_and_the_rest_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = without_protoc(dir.path()).unwrap();
        let run = |script| Command::new("/bin/sh").args(["-c", script]).env("PATH", &path).output();
        let protoc = run("protoc --version").unwrap();
        assert!(!protoc.status.success());
        assert!(String::from_utf8_lossy(&protoc.stderr).contains("must not need"));
        assert!(run("ls /").unwrap().status.success());
    }
}
