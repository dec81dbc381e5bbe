//! A directory per test, kept for reading when the test fails.

use std::path::Path;

use anyhow::Context as _;
use tempfile::TempDir;

/// A fresh directory that goes when the test passes and stays, with its path printed, when the
/// test panics or `TOMBOLO_KEEP=1`. Declare it before what writes into it: Rust drops in
/// reverse order.
#[derive(Debug)]
pub struct Scratch(TempDir);

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
        Ok(Self(dir))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if asked_to_keep() || std::thread::panicking() {
            self.0.disable_cleanup(true);
            eprintln!("kept for reading: {}", self.path().display());
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
