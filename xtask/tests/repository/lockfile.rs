//! `Cargo.lock` against the version floors.
//!
//! An advisory database knows what was reported; some of these holes never were (tonic ignored
//! its size limit on decompressed data until 0.14.3 and no advisory says so). The table is
//! looked through again at each release.

use anyhow::{Context as _, ensure};
use serde::Deserialize;

use crate::read;

/// The oldest version of each crate that may be in the lock file, if the crate is in it at all.
/// A name that ends in `*` stands for all crates that begin so.
const FLOORS: [(&str, [u64; 3]); 5] = [
    ("hickory-*", [0, 26, 3]),
    ("tonic", [0, 14, 3]),
    ("h2", [0, 4, 16]),
    ("rustls-webpki", [0, 103, 13]),
    ("quinn-proto", [0, 11, 15]),
];

/// What the project cannot do without, so that a floor cannot go unused by a wrong name.
const NEEDED: [&str; 4] = ["hickory-proto", "tonic", "h2", "rustls-webpki"];

#[derive(Debug, Deserialize)]
struct Lock {
    package: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    version: String,
}

/// Every version in the lock file counts: an old one stays reachable beside a new one.
fn check(lock: &str) -> anyhow::Result<()> {
    let lock: Lock = toml::from_str(lock).context("Cargo.lock")?;
    for Package { name, version } in &lock.package {
        for (pattern, floor) in FLOORS.iter().filter(|(pattern, _)| matches(pattern, name)) {
            let found = numbers(version).with_context(|| format!("{name} {version}"))?;
            ensure!(found >= *floor, "{name} {version} is below the floor {floor:?} of {pattern}");
        }
    }
    for needed in NEEDED {
        let there = lock.package.iter().any(|package| package.name == needed);
        ensure!(there, "{needed} is not in Cargo.lock: is its floor still needed?");
    }
    Ok(())
}

fn matches(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |start| name.starts_with(start))
}

/// A release as numbers. A pre-release of a floor is older than the floor, so it is no version.
fn numbers(version: &str) -> Option<[u64; 3]> {
    let release = version.split('+').next()?;
    let parts: Vec<u64> = release.split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
    parts.try_into().ok()
}

#[test]
fn the_lock_file_is_above_the_floors() {
    check(&read("Cargo.lock").unwrap()).unwrap();
}

#[test]
fn versions_below_a_floor_or_unreadable_are_refused() {
    let good = [("hickory-proto", "0.26.3"), ("tonic", "0.14.10"), ("h2", "0.4.16")];
    let is_good = |name: &str, version: &str| {
        let entries = good.into_iter().chain([("rustls-webpki", "0.104.0"), (name, version)]);
        let lines = entries.map(|(n, v)| format!("[[package]]\nname = \"{n}\"\nversion = \"{v}\""));
        check(&lines.collect::<Vec<_>>().join("\n")).is_ok()
    };
    assert!(is_good("toml", "1.2.1+spec-1.1.0"));
    assert!(is_good("hickory-server", "0.27.0"));
    assert!(is_good("crc-fast", "1.3.0-rc.1"), "a pre-release of what has no floor");
    assert!(!is_good("hickory-server", "0.26.2"));
    assert!(!is_good("quinn-proto", "0.11.14"));
    assert!(!is_good("h2", "0.4.9"), "numbers, not text, and every version counts");
    assert!(!is_good("tonic", "0.14.3-rc.1"));
    assert!(check("[[package]]\nname = \"tonic\"\nversion = \"0.14.9\"\n").is_err(), "none needed");
}
