//! Where things are, and what the environment says. The only module here that reads it.

use std::ffi::OsString;
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
            ci: std::env::var_os("CI").is_some_and(|value| value == "true"),
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

    /// Where cargo-deny keeps its advisory databases.
    pub(crate) fn advisories() -> Option<PathBuf> {
        let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
        let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
        Some(home?.join("advisory-dbs"))
    }
}
