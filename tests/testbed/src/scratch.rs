//! A directory per test, kept for reading when the test fails.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tempfile::TempDir;

use crate::logs;

/// A fresh directory that goes when the test passes and stays, with its path printed, when the
/// test panics or `TOMBOLO_KEEP=1`. Declare it before what writes into it: Rust drops in
/// reverse order.
///
/// The logs in it stay in any case, in `target/testbed-logs/BINARY::TEST`: see [`logs`].
#[derive(Debug)]
pub struct Scratch {
    dir: TempDir,
    logs: Option<PathBuf>,
}

impl Scratch {
    /// Makes the directory; `test` is part of its name.
    ///
    /// # Errors
    ///
    /// When the system's temporary directory cannot be written.
    pub fn new(test: &str) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix(&format!("tombolo-{test}-"))
            .tempdir()
            .context("no scratch directory")?;
        // Asked now: a test may drop it on another thread than its own.
        Ok(Self { dir, logs: logs::place(test) })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if asked_to_keep() || std::thread::panicking() {
            self.dir.disable_cleanup(true);
            eprintln!("kept for reading: {}", self.path().display());
        }
        if let Some(place) = &self.logs {
            match logs::keep(self.path(), place) {
                Ok(0) => {}
                Ok(_) => eprintln!("---- logs kept in {}", place.display()),
                Err(error) => eprintln!("---- no logs in {}: {error}", place.display()),
            }
        }
    }
}

fn asked_to_keep() -> bool {
    std::env::var_os("TOMBOLO_KEEP").is_some_and(|value| value == "1")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn goes_when_the_test_passes() {
        let scratch = Scratch::new("pass").unwrap();
        let path = scratch.path().to_owned();
        assert!(path.is_dir());
        drop(scratch);
        assert_eq!(path.exists(), asked_to_keep());
    }

    #[test]
    fn the_logs_of_a_test_that_returns_an_error_stay_without_it() {
        let scratch = Scratch::new("logs-stay").unwrap();
        let place = scratch.logs.clone().unwrap();
        std::fs::write(scratch.path().join("it.stderr"), "why").unwrap();
        drop(scratch);
        assert_eq!(std::fs::read_to_string(place.join("it.stderr")).unwrap(), "why");
    }

    #[test]
    fn stays_when_the_test_panics() {
        let failed = std::thread::spawn(|| {
            let scratch = Scratch::new("panic").unwrap();
            std::panic::panic_any(scratch.path().to_owned());
        });
        let path = *failed.join().unwrap_err().downcast::<PathBuf>().unwrap();
        assert!(path.is_dir());
        std::fs::remove_dir(path).unwrap();
    }
}
