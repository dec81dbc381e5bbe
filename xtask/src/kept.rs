//! The logs that tests keep of what they started: those of a test that passed are removed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tombolo_testbed::logs;

/// What is kept of the run so far.
#[derive(Debug)]
pub(crate) struct Kept {
    dir: PathBuf,
    binary: PathBuf,
}

impl Kept {
    /// Nothing of earlier runs.
    pub(crate) fn none_yet(dir: PathBuf) -> anyhow::Result<Self> {
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
        }
        Ok(Self { dir, binary: PathBuf::new() })
    }

    /// Takes a line of cargo's, which names the binary that runs, or of a test binary.
    pub(crate) fn take(&mut self, line: &str) {
        if let Some(running) = line.trim_start().strip_prefix("Running ") {
            let path = running.rsplit_once(" (").and_then(|(_, path)| path.strip_suffix(')'));
            self.binary = path.map(PathBuf::from).unwrap_or_default();
        } else if let Some(test) = passed(line)
            && let Some(name) = logs::name(&self.binary, test)
        {
            // Most tests start nothing, so there is nothing to remove.
            drop(fs::remove_dir_all(self.dir.join(name)));
        }
    }

    /// Where logs are left, if there are any.
    pub(crate) fn left(&self) -> Option<&Path> {
        let any = fs::read_dir(&self.dir).is_ok_and(|mut entries| entries.next().is_some());
        any.then_some(&self.dir)
    }
}

/// The test that a line of libtest's says has passed.
fn passed(line: &str) -> Option<&str> {
    let test = line.strip_prefix("test ")?.strip_suffix(" ... ok")?;
    Some(test.strip_suffix(" - should panic").unwrap_or(test))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logs_of_tests_that_did_not_pass_are_left() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("kept");
        fs::create_dir_all(dir.join("of an earlier run")).unwrap();
        let mut kept = Kept::none_yet(dir.clone()).unwrap();
        assert_eq!(kept.left(), None);

        let names = ["e2e_dns::good", "e2e_dns::bad", "e2e_edits::good", "e2e_dns::panics"];
        for name in names {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        for line in [
            "     Running tests/e2e_dns.rs (target/debug/deps/e2e_dns-0123456789abcdef)",
            "test good ... ok",
            "test panics - should panic ... ok",
            "test bad ... FAILED",
        ] {
            kept.take(line);
        }
        assert_eq!(kept.left(), Some(&*dir));
        let left = names.map(|name| dir.join(name).exists());
        assert_eq!(left, [false, true, true, false]);
        kept.take("     Running tests/e2e_edits.rs (target/debug/deps/e2e_edits-0123456789abcdef)");
        kept.take("test good ... ok");
        kept.take("     Running tests/e2e_dns.rs (target/debug/deps/e2e_dns-0123456789abcdef)");
        kept.take("test bad ... ok");
        assert_eq!(kept.left(), None);
    }
}
