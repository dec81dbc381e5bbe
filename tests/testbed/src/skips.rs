//! Tests that cannot run here, and tests that are for the long run only.
//!
//! cargo throws away what a passing test prints, and a skipped test passes; so a skip is
//! appended to the file that `cargo xtask test` names, which counts it and holds it against
//! `tests/allowed-skips.toml`. Under a plain `cargo test` it is a line on stderr.

use std::ffi::OsStr;
use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::{self, Write as _};

/// Names the file that skips are appended to; set by `cargo xtask test`.
pub(crate) const SKIPS: &str = "TOMBOLO_SKIPS";

/// Says that `test` cannot run here, and why. The test returns right after.
///
/// `test` is the name that `tests/allowed-skips.toml` would list: file and test, as in
/// `e2e_demo::survives_kill_9`.
///
/// # Panics
///
/// If the skip cannot be recorded: an unrecorded skip would look like a pass.
#[track_caller]
pub fn skip(test: &str, reason: impl Display) {
    let file = std::env::var_os(SKIPS);
    record(file.as_deref(), &line(test, &reason)).expect("a skip can be recorded");
}

/// Whether this is the long run (`cargo xtask test --long`).
#[must_use]
pub fn long() -> bool {
    std::env::var_os("TOMBOLO_LONG").is_some_and(|value| value == "1")
}

fn line(test: &str, reason: &impl Display) -> String {
    let reason = reason.to_string().replace(['\n', '\r'], " ");
    format!("SKIPPED {test}: {reason}\n")
}

fn record(file: Option<&OsStr>, line: &str) -> io::Result<()> {
    match file {
        // One write to a file opened for appending: lines of parallel tests do not mix.
        Some(file) => {
            OpenOptions::new().append(true).create(true).open(file)?.write_all(line.as_bytes())
        }
        None => io::stderr().write_all(line.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skips_are_appended_one_per_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("skips");
        record(Some(file.as_os_str()), &line("a::b", &"no\nenvoy")).unwrap();
        record(Some(file.as_os_str()), &line("c", &"no dig")).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(text, "SKIPPED a::b: no envoy\nSKIPPED c: no dig\n");
    }

    #[test]
    fn a_skip_that_cannot_be_recorded_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(record(Some(dir.path().as_os_str()), "SKIPPED a: b\n").is_err());
    }
}
