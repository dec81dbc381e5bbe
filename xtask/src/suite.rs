//! Runs the tests and judges: what passed, failed and was skipped, and whether it may be.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use tombolo_testbed::Tool;

use crate::kept::Kept;
use crate::log::Log;
use crate::run::{Run, Verdict};
use crate::workspace::Workspace;
use crate::{gates, setup};

/// Cases per property in the long run; proptest's own default is 256.
const LONG_CASES: &str = "4096";

/// What the tests may take, the building of doc tests included. Each test has deadlines of its
/// own; this ends the run when one of them does not hold.
const LIMIT: Duration = Duration::from_mins(40);
const LONG_LIMIT: Duration = Duration::from_hours(4);

/// What to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Choice {
    /// Also run what takes long, and more cases of each property
    #[arg(long)]
    long: bool,
    /// Run only the tests with TEXT in their name
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Leave the format, lint and dependency checks out
    #[arg(long)]
    no_lint: bool,
}

/// The whole of `cargo xtask test`.
pub(crate) fn all(run: &mut Run, choice: &Choice) {
    setup::for_tests(run);
    let built = gates::build(run);
    if !choice.no_lint {
        gates::lint(run);
    }
    let mut closing = Closing::default();
    run.step("test", |workspace, log| {
        if !built {
            return Ok(Verdict::Warned("NOT RUN: the build failed".into()));
        }
        test(workspace, log, choice, &mut closing)
    });
    run.close_with(closing.line(&run.failed()));
}

fn test(
    workspace: &Workspace,
    log: &mut Log,
    choice: &Choice,
    closing: &mut Closing,
) -> anyhow::Result<Verdict> {
    let allowed = Allowed::read(&workspace.file("tests/allowed-skips.toml"))?;
    let skips = workspace.scratch().join("skips");
    std::fs::write(&skips, "").with_context(|| skips.display().to_string())?;

    let (mut tally, mut progress) = (Tally::default(), Progress::default());
    let mut kept = Kept::none_yet(workspace.kept_logs())?;
    let cargo = cargo_test(workspace, choice, &skips)?;
    let limit = if choice.long { LONG_LIMIT } else { LIMIT };
    let status = log.limited(&cargo, limit, |line| {
        tally.take(line);
        progress.take(line);
        kept.take(line);
    })?;
    if let Some(logs) = kept.left() {
        println!("logs of tests that failed: {}", logs.display());
    }

    let skipped = read_skips(&std::fs::read_to_string(&skips)?)?;
    for (test, reason) in &skipped {
        println!("SKIPPED {test}: {reason}");
    }
    *closing = Closing::of(&tally, skipped.len());
    let Some(status) = status else {
        bail!("stopped after {} min in {progress}", limit.as_secs() / 60);
    };
    judge(&tally, status.success(), choice.filter.as_deref())?;
    allowed.judge(&skipped, workspace.ci())
}

fn cargo_test(workspace: &Workspace, choice: &Choice, skips: &Path) -> anyhow::Result<Command> {
    let mut cargo = workspace.cargo(["test", "--workspace", "--locked", "--no-fail-fast"]);
    // What cargo says is read, and colours would be in the way.
    cargo.args(&choice.filter).env("TOMBOLO_SKIPS", skips).env("CARGO_TERM_COLOR", "never");
    for tool in Tool::ALL {
        if let Ok(path) = tool.path() {
            cargo.env(tool.variable(), path);
        }
    }
    // Tests that do not know the variable find dig where they find it on other machines.
    if let Some(dir) = Tool::Dig.path().ok().as_deref().and_then(Path::parent) {
        cargo.env("PATH", Workspace::path_before(dir)?);
    }
    if choice.long {
        cargo.env("TOMBOLO_LONG", "1").env("PROPTEST_CASES", LONG_CASES);
    }
    Ok(cargo)
}

/// What the test binaries said, summed up.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: usize,
    failed: usize,
    ignored: usize,
}

impl Tally {
    /// Takes a line of cargo's output: `test result: ok. 5 passed; 0 failed; 1 ignored; ...`
    fn take(&mut self, line: &str) {
        let Some((_, counts)) =
            line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for count in counts.split("; ") {
            match count.split_once(' ').map(|(number, what)| (number.parse::<usize>(), what)) {
                Some((Ok(number), "passed")) => self.passed += number,
                Some((Ok(number), "failed")) => self.failed += number,
                Some((Ok(number), "ignored")) => self.ignored += number,
                _ => {}
            }
        }
    }
}

/// What was running last, for a run that does not end.
#[derive(Debug, Default)]
struct Progress {
    binary: String,
    slow: BTreeSet<String>,
}

impl Progress {
    /// Takes a line of cargo's or a test binary's output. libtest names a test when it ends, and
    /// when it has been running for a minute.
    fn take(&mut self, line: &str) {
        let binary = line.trim_start().strip_prefix("Running ");
        if let Some(binary) = binary.or_else(|| line.trim_start().strip_prefix("Doc-tests ")) {
            binary.clone_into(&mut self.binary);
            self.slow.clear();
        } else if let Some(test) = line.strip_prefix("test ") {
            if let Some((test, _)) = test.split_once(" has been running for over ") {
                self.slow.insert(test.to_owned());
            } else if let Some((test, _)) = test.split_once(" ... ") {
                self.slow.remove(test);
            }
        }
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = if self.binary.is_empty() { "the build of the tests" } else { &self.binary };
        f.write_str(binary)?;
        for (index, test) in self.slow.iter().enumerate() {
            write!(f, "{}{test}", if index == 0 { ", in: " } else { ", " })?;
        }
        Ok(())
    }
}

/// The numbers of the last line.
#[derive(Debug, Default, PartialEq, Eq)]
struct Closing {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Closing {
    /// A skipped test passed for the test harness.
    fn of(tally: &Tally, skipped: usize) -> Self {
        let passed = tally.passed.saturating_sub(skipped);
        Self { passed, failed: tally.failed, skipped }
    }

    /// Each failed step is a failure. That of the tests stands for its failed tests, if there are
    /// any: it also fails when a test binary crashes, or a skip is not allowed.
    fn line(&self, failed_steps: &[&str]) -> String {
        let tests = usize::from(failed_steps.contains(&"test") && self.failed > 0);
        let failed = self.failed + failed_steps.len() - tests;
        format!("{} passed, {failed} failed, {} skipped", self.passed, self.skipped)
    }
}

fn judge(tally: &Tally, success: bool, filter: Option<&str>) -> anyhow::Result<()> {
    match tally {
        Tally { failed: 1.., .. } => bail!("{} tests failed", tally.failed),
        _ if !success => bail!("a test binary crashed or did not build: see above"),
        Tally { ignored: 1.., .. } => {
            bail!("{} tests are ignored: fix them, or skip with a reason", tally.ignored)
        }
        Tally { passed: 0, .. } => match filter {
            Some(text) => bail!("no test has {text:?} in its name"),
            None => bail!("no test ran"),
        },
        _ => Ok(()),
    }
}

type Skips = BTreeMap<String, String>;

/// Reads lines of `SKIPPED test: reason`.
fn read_skips(text: &str) -> anyhow::Result<Skips> {
    let entry = |line: &str| {
        let (name, reason) = line.strip_prefix("SKIPPED ")?.split_once(": ")?;
        Some((name.to_owned(), reason.to_owned()))
    };
    let read = |line| entry(line).with_context(|| format!("not a skip: {line:?}"));
    text.lines().map(read).collect()
}

/// `tests/allowed-skips.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Allowed {
    allowed: Skips,
}

impl Allowed {
    fn read(file: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        Self::parse(&text).with_context(|| file.display().to_string())
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let parsed: Self = toml::from_str(text)?;
        for (test, reason) in &parsed.allowed {
            ensure!(!reason.trim().is_empty(), "{test} is allowed without a reason");
        }
        Ok(parsed)
    }

    fn judge(&self, skipped: &Skips, ci: bool) -> anyhow::Result<Verdict> {
        let unlisted = skipped.keys().filter(|test| !self.allowed.contains_key(*test));
        let unlisted: Vec<_> = unlisted.map(String::as_str).collect();
        match unlisted.join(", ") {
            none if none.is_empty() => Ok(Verdict::Passed),
            names if ci => bail!("CI may not skip what tests/allowed-skips.toml omits: {names}"),
            names => Ok(Verdict::Warned(format!("skipped: {names}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_summed_and_others_are_not() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test a ... ok",
            "test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 0.10s",
            "test result: FAILED. 1 passed; 2 failed; 3 ignored; 0 measured; 0 filtered out; finished in 1.00s",
            "  test result: ok. 9 passed; 0 failed",
            "test result: ok",
        ] {
            tally.take(line);
        }
        assert_eq!(tally, Tally { passed: 6, failed: 2, ignored: 3 });
    }

    #[test]
    fn the_closing_line_counts_skips_apart_and_failed_steps_as_failures() {
        let line = |failed, skipped, steps: &[&str]| {
            Closing::of(&Tally { passed: 6, failed, ignored: 0 }, skipped).line(steps)
        };
        assert_eq!(line(0, 0, &[]), "6 passed, 0 failed, 0 skipped");
        assert_eq!(line(0, 2, &[]), "4 passed, 0 failed, 2 skipped");
        assert_eq!(line(0, 0, &["test"]), "6 passed, 1 failed, 0 skipped");
        assert_eq!(line(2, 0, &["test"]), "6 passed, 2 failed, 0 skipped");
        assert_eq!(line(2, 0, &["fmt", "clippy", "test"]), "6 passed, 4 failed, 0 skipped");
        assert_eq!(Closing::default().line(&["build"]), "0 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn what_runs_last_is_known() {
        let mut progress = Progress::default();
        assert_eq!(progress.to_string(), "the build of the tests");
        for line in [
            "     Running tests/a.rs (target/debug/deps/a-1)",
            "test old has been running for over 60 seconds",
            "     Running tests/b.rs (target/debug/deps/b-1)",
            "test b has been running for over 60 seconds",
            "test c has been running for over 60 seconds",
            "test d has been running for over 60 seconds",
            "test c ... ok",
        ] {
            progress.take(line);
        }
        assert_eq!(progress.to_string(), "tests/b.rs (target/debug/deps/b-1), in: b, d");
        progress.take("   Doc-tests tombolo_dns");
        assert_eq!(progress.to_string(), "tombolo_dns");
    }

    #[test]
    fn failures_crashes_ignored_tests_and_no_tests_fail_the_run() {
        let run = |passed, failed, ignored, success, filter| {
            judge(&Tally { passed, failed, ignored }, success, filter)
        };
        assert!(run(1, 0, 0, true, None).is_ok());
        assert!(run(1, 0, 0, true, Some("a")).is_ok());
        let none = run(0, 0, 0, true, Some("a")).unwrap_err();
        assert_eq!(none.to_string(), "no test has \"a\" in its name");
        assert!(run(0, 0, 0, true, None).is_err(), "no test ran");
        assert!(run(1, 1, 0, false, None).is_err());
        assert!(run(1, 0, 0, false, None).is_err(), "crashed");
        assert!(run(1, 0, 1, true, None).is_err(), "ignored");
    }

    #[test]
    fn ci_allows_listed_skips_only() {
        let allowed = Allowed::parse("[allowed]\n\"e2e::a\" = \"no kernel module\"").unwrap();
        let skips = |text: &str| read_skips(text).unwrap();
        let listed = skips("SKIPPED e2e::a: no module\n");
        let unlisted = skips("SKIPPED e2e::a: no module\nSKIPPED b: no dig: not installed\n");
        assert_eq!(unlisted["b"], "no dig: not installed");
        assert_eq!(allowed.judge(&listed, true).unwrap(), Verdict::Passed);
        assert_eq!(
            allowed.judge(&unlisted, true).unwrap_err().to_string(),
            "CI may not skip what tests/allowed-skips.toml omits: b"
        );
        assert_eq!(allowed.judge(&unlisted, false).unwrap(), Verdict::Warned("skipped: b".into()));
    }

    #[test]
    fn broken_files_are_refused() {
        assert!(read_skips("SKIPPED a\n").is_err());
        assert!(Allowed::parse("[allowed]\na = \" \"").is_err());
        assert!(Allowed::parse("[allowd]").is_err());
        let ours = include_str!("../../tests/allowed-skips.toml");
        Allowed::parse(ours).unwrap();
    }
}
