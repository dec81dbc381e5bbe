//! What comes from the distribution: dig, iptables, its etcd. Fetched with the lists and signatures
//! that apt checks, and unpacked where nothing may be installed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use tombolo_testbed::versions::{
    APT_CONFIG, DIG_SCRIPT, ETCD_PACKAGES, Versions, debian_etcd_dir, dig_dir,
};
use tombolo_testbed::{Tool, netns};

use super::lenient;
use crate::cache::{Held, ensure_made};
use crate::log::Log;
use crate::run::Verdict;
use crate::workspace::Workspace;

/// Installs dig, or unpacks it for a user who may not install.
pub(super) fn dig(workspace: &Workspace, log: &mut Log) -> anyhow::Result<Option<Held>> {
    let unpacked = dig_dir()?;
    if Tool::Dig.installed().is_some_and(|dig| !dig.starts_with(&unpacked)) {
        return Ok(None);
    }
    ensure!(has_apt(), "no dig: install Debian's bind9-dnsutils, or what your system calls it");
    if is_root() {
        install_dig(workspace, log).map(|()| None)
    } else {
        ensure_made(&unpacked, log, dig_works, |dir, log| unpack_dig(workspace, dir, log)).map(Some)
    }
}

/// What makes regions in network namespaces and cuts them off from each other.
const NETWORK: [(&str, &str); 2] = [("ip", "iproute2"), ("iptables", "iptables")];

/// Installs what is missing, where that is allowed, and says which faults can be made here. Whoever
/// is not root has none of it, also in CI: the tests skip, and the list of skips decides.
pub(super) fn network(workspace: &Workspace, log: &mut Log) -> anyhow::Result<Verdict> {
    let missing = NETWORK.iter().filter(|(program, _)| !runs(program, log));
    let packages: Vec<_> = missing.map(|(_, package)| *package).collect();
    if !packages.is_empty() && is_root() && has_apt() {
        let install = ["install", "-q", "-y", "--no-install-recommends"];
        let installed = log
            .quietly(&mut apt(workspace, &["update", "-q"]))
            .and_then(|()| log.quietly(apt(workspace, &install).args(&packages)));
        lenient(workspace, installed)?;
    }
    Ok(match netns::available() {
        Ok(()) => {
            println!(
                "faults: processes, links by proxy, regions in network namespaces, partitions"
            );
            Verdict::Passed
        }
        Err(missing) => {
            println!("faults: processes, links by proxy");
            Verdict::Warned(format!("{missing}: tests of regions cut off from each other skip"))
        }
    })
}

fn runs(program: &str, log: &mut Log) -> bool {
    log.quietly(Command::new(program).arg("-V")).is_ok()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// apt-get, as it runs with nobody to ask.
fn apt(workspace: &Workspace, arguments: &[&str]) -> Command {
    let mut command = workspace.command("apt-get");
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn has_apt() -> bool {
    Path::new("/usr/bin/apt-get").exists()
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
    let own = OwnApt::made(dir)?;
    own.run(workspace, log, &["update", "-q"])?;
    own.run(workspace, log, &[&INSTALL_DIG[..], &["--download-only"]].concat())?;
    // The loader and its libc are a pair: this machine's own loader takes its own libc.
    own.unpack(workspace, log, "archives", |package| !package.starts_with("libc6_"))?;
    write_dig_script(dir)
}

/// Unpacks the distribution's etcd, for root too: installed, it would start a server that is not
/// a test's.
pub(super) fn etcd(workspace: &Workspace, log: &mut Log) -> anyhow::Result<Held> {
    ensure!(has_apt(), "no etcd of a distribution: only Debian's packages are known here");
    ensure_made(&debian_etcd_dir()?, log, etcd_works, |dir, log| {
        println!("fetching {}", ETCD_PACKAGES.join(", "));
        let own = OwnApt::made(dir)?;
        own.run(workspace, log, &["update", "-q"])?;
        own.run(workspace, log, &[&["download", "-q"][..], &ETCD_PACKAGES].concat())?;
        own.unpack(workspace, log, "", |_| true)?;
        // Before it is in its place: the tests run whatever is there.
        has_pinned_series(dir)
    })
}

fn etcd_works(dir: &Path, log: &mut Log) -> anyhow::Result<()> {
    has_pinned_series(dir)?;
    let programs = dir.join("root/usr/bin");
    log.quietly(Command::new(programs.join("etcdctl")).arg("version").env("ETCDCTL_API", "3"))
}

fn has_pinned_series(dir: &Path) -> anyhow::Result<()> {
    let program = dir.join("root/usr/bin/etcd");
    let said = Command::new(&program).arg("--version").output();
    let said = said.with_context(|| format!("starting {}", program.display()))?;
    is_of_series(Versions::pinned()?.debian_etcd(), &String::from_utf8_lossy(&said.stdout))
}

/// Whether that is what `etcd --version` says of a patch of `series`.
fn is_of_series(series: &str, said: &str) -> anyhow::Result<()> {
    let version = said.lines().find_map(|line| line.strip_prefix("etcd Version: "));
    let version = version.with_context(|| format!("not the version of an etcd: {said:?}"))?.trim();
    let patch = version.strip_prefix(series).and_then(|rest| rest.strip_prefix('.'));
    ensure!(
        patch.is_some(),
        "the distribution's etcd is {version}, and tests/versions.toml says {series}"
    );
    Ok(())
}

/// apt with lists and archives of its own in `DIR/apt`, which unpacks to `DIR/root`.
struct OwnApt {
    apt: PathBuf,
    root: PathBuf,
    config: PathBuf,
}

impl OwnApt {
    fn made(dir: &Path) -> anyhow::Result<Self> {
        let (apt, root) = (dir.join("apt"), dir.join("root"));
        for needed in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(apt.join(needed)).context("a directory for apt")?;
        }
        fs::create_dir(&root).with_context(|| root.display().to_string())?;
        let written = APT_CONFIG.replace("{dir}", apt.to_str().context("the cache is not UTF-8")?);
        let config = apt.join("apt.conf");
        fs::write(apt.join("status"), "").and_then(|()| fs::write(&config, written))?;
        Ok(Self { apt, root, config })
    }

    /// Runs apt-get where `download` puts what it gets. As root it does not become the user _apt,
    /// who cannot look into root's cache.
    fn run(&self, workspace: &Workspace, log: &mut Log, what: &[&str]) -> anyhow::Result<()> {
        let mut apt = apt(workspace, what);
        apt.arg("--config-file").arg(&self.config).args(["-o", "APT::Sandbox::User=root"]);
        log.quietly(apt.current_dir(&self.apt))
    }

    /// Unpacks the packages in a directory of apt's whose file names are `wanted`, and removes
    /// apt's files. Nothing outside is written, no script of a package runs.
    fn unpack(
        &self,
        workspace: &Workspace,
        log: &mut Log,
        from: &str,
        wanted: impl Fn(&str) -> bool,
    ) -> anyhow::Result<()> {
        for package in files_in(&self.apt.join(from), "deb")? {
            if wanted(&file_name(&package)) {
                let mut extract = workspace.command("dpkg-deb");
                log.quietly(extract.arg("--extract").arg(package).arg(&self.root))?;
            }
        }
        let apt = &self.apt;
        fs::remove_dir_all(apt).with_context(|| format!("removing {}", apt.display()))
    }
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

    #[test]
    fn a_distribution_s_etcd_of_another_series_is_refused_by_both_versions() {
        let said = |version: &str| format!("etcd Version: {version}\nGit SHA: Not provided\n");
        is_of_series("3.4", &said("3.4.23")).unwrap();
        for other in ["3.5.16", "3.40.1", "3.4"] {
            let error = is_of_series("3.4", &said(other)).unwrap_err().to_string();
            assert!(error.contains(other) && error.contains("says 3.4"), "{error}");
        }
        is_of_series("3.4", "").unwrap_err();
    }
}
