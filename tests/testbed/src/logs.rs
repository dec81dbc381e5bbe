//! The logs of the processes that a test started, kept beyond the test.
//!
//! A test cannot know that it failed by returning an error, so each test's logs are kept, in place
//! of those of its last run; `cargo xtask test` removes those of tests that passed.

use std::fs::{self, File};
use std::io::{self, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

/// The directory in cargo's target directory.
pub const KEPT: &str = "testbed-logs";

/// What [`Process`](crate::Process) writes, and what real programs call a log.
const LOGS: [&str; 3] = ["stdout", "stderr", "log"];

/// How deep below a scratch directory logs are looked for.
const DEPTH: usize = 4;

/// What is kept of one log: its end.
const MOST: u64 = 8 << 20;

/// How a test's logs are called: test binary, without cargo's hash, and test.
#[must_use]
pub fn name(binary: &Path, test: &str) -> Option<String> {
    let stem = binary.file_name()?.to_str()?.rsplit_once('-')?.0;
    Some(format!("{stem}::{test}"))
}

/// Where this thread's test keeps the logs of the scratch directory `label`; `None` outside a test
/// that cargo built.
pub(crate) fn place(label: &str) -> Option<PathBuf> {
    let binary = std::env::current_exe().ok()?;
    let target = binary.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file())?;
    let thread = std::thread::current();
    Some(target.join(KEPT).join(name(&binary, thread.name()?)?).join(label))
}

/// Puts the logs below `from` into `to` in place of what is there; how many there were.
pub(crate) fn keep(from: &Path, to: &Path) -> io::Result<usize> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    copy_below(from, to, DEPTH)
}

fn copy_below(from: &Path, to: &Path, depth: usize) -> io::Result<usize> {
    let mut kept = 0;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (kind, path, copy) = (entry.file_type()?, entry.path(), to.join(entry.file_name()));
        let is_log = path.extension().is_some_and(|kind| LOGS.iter().any(|log| *log == kind));
        if kind.is_dir() && depth > 0 {
            kept += copy_below(&path, &copy, depth - 1)?;
        } else if kind.is_file() && is_log {
            fs::create_dir_all(to)?;
            copy_end(&path, &copy)?;
            kept += 1;
        }
    }
    Ok(kept)
}

fn copy_end(from: &Path, to: &Path) -> io::Result<()> {
    let mut log = File::open(from)?;
    log.seek(SeekFrom::Start(log.metadata()?.len().saturating_sub(MOST)))?;
    io::copy(&mut log, &mut File::create(to)?).map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn logs_are_kept_with_their_places_and_nothing_else_is() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let to = to.path().join("kept");
        fs::create_dir_all(from.path().join("us/member")).unwrap();
        for file in ["us/us-0.stderr", "us/member/db", "a.log", "b.toml"] {
            fs::write(from.path().join(file), file).unwrap();
        }
        let mut long = File::create(from.path().join("long.stdout")).unwrap();
        long.set_len(MOST).unwrap();
        long.seek(SeekFrom::End(0)).unwrap();
        long.write_all(b"the end").unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(to.join("old.log"), "of the last run").unwrap();

        assert_eq!(keep(from.path(), &to).unwrap(), 3);
        assert_eq!(fs::read_to_string(to.join("us/us-0.stderr")).unwrap(), "us/us-0.stderr");
        assert!(to.join("a.log").is_file());
        assert!(fs::read(to.join("long.stdout")).unwrap().ends_with(b"the end"));
        assert_eq!(fs::metadata(to.join("long.stdout")).unwrap().len(), MOST);
        for gone in ["us/member", "b.toml", "old.log"] {
            assert!(!to.join(gone).exists(), "{gone}");
        }
    }

    #[test]
    fn a_place_names_binary_and_test() {
        let name = name(Path::new("target/debug/deps/e2e_dns-0123abc"), "a::b");
        assert_eq!(name.unwrap(), "e2e_dns::a::b");
        let place = place("us").unwrap();
        let test = "tombolo_testbed::logs::tests::a_place_names_binary_and_test";
        // With one thread, the harness runs tests on its own.
        let main = "tombolo_testbed::main";
        assert!(
            [test, main].iter().any(|name| place.ends_with(format!("{KEPT}/{name}/us"))),
            "{}",
            place.display()
        );
    }
}
