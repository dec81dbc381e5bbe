//! What the end-to-end tests share: a demo over a copy of the example manifests, with addresses
//! of its own, and questions to it that read as sentences.
//!
//! Promises: tests that run at once do not meet, also those of another checkout on the same
//! machine; the examples themselves are never edited.

#![allow(dead_code, reason = "each test file is a crate of its own and uses what it needs")]

pub(crate) mod ask;
pub(crate) mod manifests;
pub(crate) mod mesh;
pub(crate) mod processes;
pub(crate) mod regions;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use tombolo_testbed::{Process, Scratch};

/// A change is to be seen everywhere after a second; ten times that fails a test.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// For a run that has nothing to wait for.
const ENDED: Duration = Duration::from_secs(30);

/// For what has to wait out an Envoy's ejection (at most 30 s).
pub(crate) const AFTER_EJECTION: Duration = Duration::from_secs(40);

pub(crate) const US: &str = "us-west1";
pub(crate) const EU: &str = "europe-west4";

/// The program under test.
pub(crate) fn tombolo() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_tombolo"))
}

/// Runs it to its end, which must be near: verbs that ask, and starts that are refused.
pub(crate) fn run(arguments: &[&str]) -> anyhow::Result<Ended> {
    run_in(Path::new("."), arguments)
}

/// The same, in a directory.
pub(crate) fn run_in(dir: &Path, arguments: &[&str]) -> anyhow::Result<Ended> {
    let logs = Scratch::new("run")?;
    let mut command = Command::new(tombolo());
    // Without an Envoy on the path, so that no demo finds one by chance.
    command.args(arguments).current_dir(dir).env("PATH", "").env_remove("TOMBOLO_ADMIN");
    let mut process = Process::start("tombolo", &mut command, logs.path())?;
    let status = process.wait(ENDED)?;
    Ok(Ended {
        code: status.code().with_context(|| format!("tombolo {arguments:?} ended by {status}"))?,
        stdout: process.stdout()?,
        stderr: process.stderr()?,
    })
}

/// How a run of the program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// It ended with exit code 2 and an error that holds all of `words`.
    #[track_caller]
    pub(crate) fn assert_refused(&self, words: &[&str]) {
        assert_eq!(self.code, 2, "{self:?}");
        assert!(self.stderr.contains("error: ") && !self.stderr.contains("panicked"), "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is missing: {}", self.stderr);
        }
    }
}
