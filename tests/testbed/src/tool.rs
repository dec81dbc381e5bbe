//! The real programs that tests run, and why one is missing.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::versions::{Versions, debian_etcd_dir, dig_dir};

/// A program that is not ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// The pinned Envoy. One that happens to be on `PATH` is not used: it is another version.
    Envoy,
    /// dig, of any version: on `PATH`, or unpacked where nobody may install it.
    Dig,
    /// The Python of the virtual environment that holds the pinned packages.
    Python,
    /// The pinned etcd.
    Etcd,
    /// The client of the pinned etcd.
    EtcdCtl,
    /// What works on the files of the pinned etcd: restores, defragments.
    EtcdUtl,
    /// The distribution's etcd, an older one.
    EtcdDebian,
    /// The client of the distribution's etcd, which also restores.
    EtcdCtlDebian,
}

/// Why a tool cannot be used; made to be the reason of a [`skip`](crate::skip).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing(String);

impl Missing {
    pub(crate) fn because(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

impl Tool {
    /// Every one of them.
    pub const ALL: [Self; 8] = [
        Self::Envoy,
        Self::Dig,
        Self::Python,
        Self::Etcd,
        Self::EtcdCtl,
        Self::EtcdUtl,
        Self::EtcdDebian,
        Self::EtcdCtlDebian,
    ];

    /// The environment variable by which `cargo xtask test` says where the tool is.
    #[must_use]
    pub const fn variable(self) -> &'static str {
        match self {
            Self::Envoy => "TOMBOLO_ENVOY",
            Self::Dig => "TOMBOLO_DIG",
            Self::Python => "TOMBOLO_PYTHON",
            Self::Etcd => "TOMBOLO_ETCD",
            Self::EtcdCtl => "TOMBOLO_ETCDCTL",
            Self::EtcdUtl => "TOMBOLO_ETCDUTL",
            Self::EtcdDebian => "TOMBOLO_ETCD_DEBIAN",
            Self::EtcdCtlDebian => "TOMBOLO_ETCDCTL_DEBIAN",
        }
    }

    /// Where the tool is: as the variable says, else where `cargo xtask setup` puts it.
    ///
    /// # Errors
    ///
    /// When it is in neither place, with what to do.
    pub fn path(self) -> Result<PathBuf, Missing> {
        self.located(std::env::var_os(self.variable()).as_deref(), self.installed())
    }

    /// Where the tool is without being told.
    #[must_use]
    pub fn installed(self) -> Option<PathBuf> {
        let in_venv = |file| Some(Versions::pinned().ok()?.python_dir().ok()?.join(file));
        let built = |file| Some(Versions::pinned().ok()?.etcd_dir().ok()?.join(file));
        let unpacked = |file| Some(debian_etcd_dir().ok()?.join("root/usr/bin").join(file));
        match self {
            Self::Envoy => in_venv("envoy"),
            Self::Python => in_venv("bin/python"),
            Self::Etcd => built("etcd"),
            Self::EtcdCtl => built("etcdctl"),
            Self::EtcdUtl => built("etcdutl"),
            Self::EtcdDebian => unpacked("etcd"),
            Self::EtcdCtlDebian => unpacked("etcdctl"),
            Self::Dig => std::env::var_os("PATH")
                .and_then(|path| on_path(&path, "dig"))
                .or_else(|| Some(dig_dir().ok()?.join("dig"))),
        }
        .filter(|path| path.is_file())
    }

    fn located(self, told: Option<&OsStr>, installed: Option<PathBuf>) -> Result<PathBuf, Missing> {
        let variable = self.variable();
        match told.filter(|told| !told.is_empty()).map(Path::new) {
            Some(told) if told.is_file() => Ok(told.to_owned()),
            Some(told) => Err(Missing(format!("{variable} names no file: {}", told.display()))),
            None => installed.ok_or_else(|| {
                Missing(format!("{self:?} is not installed: `cargo xtask setup` gets it"))
            }),
        }
    }
}

/// The first file called `name` in the directories of `path`.
fn on_path(path: &OsStr, name: &str) -> Option<PathBuf> {
    std::env::split_paths(path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_wins_and_must_name_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let told = Some(file.path().as_os_str());
        let other = Some(PathBuf::from("/other"));
        assert_eq!(Tool::Envoy.located(told, other.clone()).unwrap(), file.path());

        let missing = Tool::Envoy.located(Some(OsStr::new("/nowhere")), other).unwrap_err();
        assert_eq!(missing.to_string(), "TOMBOLO_ENVOY names no file: /nowhere");
    }

    #[test]
    fn without_a_variable_it_is_the_installed_one_or_a_hint() {
        let installed = Some(PathBuf::from("/there"));
        assert_eq!(Tool::Dig.located(None, installed).unwrap(), Path::new("/there"));
        let missing = Tool::Dig.located(Some(OsStr::new("")), None).unwrap_err();
        assert!(missing.to_string().contains("cargo xtask setup"), "{missing}");
    }

    #[test]
    fn path_is_searched_in_order() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(b.path().join("dig"), "").unwrap();
        let path = std::env::join_paths([a.path(), b.path()]).unwrap();
        assert_eq!(on_path(&path, "dig").unwrap(), b.path().join("dig"));
        assert_eq!(on_path(&path, "dug"), None);
    }
}
