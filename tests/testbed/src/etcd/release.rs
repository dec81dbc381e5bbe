//! Which etcd: the pinned one, or the distribution's older one.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Missing, Tool};

/// An etcd that tests run against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// The one that `tests/versions.toml` pins, with all known holes closed.
    Pinned,
    /// The distribution's. Debian 12 has 3.4.23, which is what many people still run.
    Debian,
}

/// The programs of a release.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    pub(super) server: PathBuf,
    pub(super) client: PathBuf,
    /// The program that has `snapshot restore`: etcdutl since 3.6, before it the client.
    pub(super) restorer: PathBuf,
}

impl Release {
    /// Both of them, for tests of what must hold on each.
    pub const ALL: [Self; 2] = [Self::Pinned, Self::Debian];

    /// Whether it can be run here; what is missing is the reason of a [`skip`](crate::skip).
    ///
    /// # Errors
    ///
    /// When one of its programs is not there.
    pub fn available(self) -> Result<(), Missing> {
        self.programs().map(|_| ())
    }

    pub(super) fn programs(self) -> Result<Programs, Missing> {
        let (server, client, restorer) = match self {
            Self::Pinned => (Tool::Etcd, Tool::EtcdCtl, Tool::EtcdUtl),
            Self::Debian => (Tool::EtcdDebian, Tool::EtcdCtlDebian, Tool::EtcdCtlDebian),
        };
        Ok(Programs { server: server.path()?, client: client.path()?, restorer: restorer.path()? })
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pinned => "etcd-pinned",
            Self::Debian => "etcd-debian",
        })
    }
}

/// A program of etcd's that takes nothing from the environment: all of them read `ETCD...`.
pub(super) fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"ETCD") {
            command.env_remove(name);
        }
    }
    // Before 3.4 became the default; harmless after.
    command.env("ETCDCTL_API", "3");
    command
}
