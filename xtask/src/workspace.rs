//! Where things are, and what the environment says. The only module here that reads it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

/// The checkout that this binary was built from.
#[derive(Debug)]
pub(crate) struct Workspace {
    root: PathBuf,
    target: PathBuf,
    cargo: OsString,
    ci: bool,
}

impl Workspace {
    /// Reads the environment.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("xtask lies in the workspace")?
            .to_owned();
        let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
        Ok(Self {
            target: root.join(target),
            cargo: std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()),
            ci: is_ci(std::env::var_os("CI").as_deref()),
            root,
        })
    }

    /// Whether this is CI, where nothing may be left out.
    pub(crate) fn ci(&self) -> bool {
        self.ci
    }

    /// A file or directory of the checkout.
    pub(crate) fn file(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Where logs and what belongs to one run lie.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.target.join("xtask")
    }

    /// Where tests keep the logs of what they started.
    pub(crate) fn kept_logs(&self) -> PathBuf {
        self.target.join(tombolo_testbed::logs::KEPT)
    }

    /// A program, run in the root of the checkout.
    pub(crate) fn command(&self, program: impl Into<OsString>) -> Command {
        let mut command = Command::new(program.into());
        command.current_dir(&self.root);
        command
    }

    /// cargo, run in the root of the checkout.
    pub(crate) fn cargo<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = self.command(&self.cargo);
        command.args(arguments);
        command
    }

    /// `PATH` with `dir` in front.
    pub(crate) fn path_after(dir: &Path) -> anyhow::Result<OsString> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs = std::iter::once(dir.to_owned()).chain(std::env::split_paths(&path));
        std::env::join_paths(dirs).context("PATH with one more directory")
    }

    /// `PATH` with `dir` at the end, where it hides nothing.
    pub(crate) fn path_before(dir: &Path) -> anyhow::Result<OsString> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs = std::env::split_paths(&path).chain(std::iter::once(dir.to_owned()));
        std::env::join_paths(dirs).context("PATH with one more directory")
    }

    /// Where cargo-deny keeps its advisory databases.
    pub(crate) fn advisories() -> Option<PathBuf> {
        let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
        let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
        Some(home?.join("advisory-dbs"))
    }
}

/// CI systems set `CI`, most of them to `true` and some to `1` or a name; a person unsets it with
/// nothing, `0` or `false`.
fn is_ci(value: Option<&OsStr>) -> bool {
    value.is_some_and(|value| !["", "0", "false"].contains(&&*value.to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_of_ci_is_strict_but_those_that_mean_no() {
        for yes in ["true", "1", "TRUE", "woodpecker"] {
            assert!(is_ci(Some(OsStr::new(yes))), "{yes}");
        }
        for no in [None, Some(""), Some("0"), Some("false")] {
            assert!(!is_ci(no.map(OsStr::new)), "{no:?}");
        }
    }
}
