//! Runs the tests and judges: what passed, failed and was skipped, and whether it may be.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use tombolo_testbed::Tool;

use crate::log::Log;
use crate::run::{Run, Verdict};
use crate::workspace::Workspace;
use crate::{gates, setup};

/// Cases per property in the long run; proptest's own default is 256.
const LONG_CASES: &str = "4096";

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
    if built {
        run.step("test", |workspace, log| test(workspace, log, choice, &mut closing));
    }
    run.close_with(closing.line());
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

    let mut tally = Tally::default();
    let mut cargo = cargo_test(workspace, choice, &skips);
    let status = log.read(&mut cargo, |line| tally.take(line))?;

    let skipped = read_skips(&std::fs::read_to_string(&skips)?)?;
    for (test, reason) in &skipped {
        println!("SKIPPED {test}: {reason}");
    }
    *closing = Closing::of(&tally, skipped.len(), status.success());
    judge(&tally, status.success(), choice.filter.is_some())?;
    allowed.judge(&skipped, workspace.ci())
}

fn cargo_test(workspace: &Workspace, choice: &Choice, skips: &Path) -> Command {
    let mut cargo = workspace.cargo(["test", "--workspace", "--locked", "--no-fail-fast"]);
    cargo.args(&choice.filter).env("TOMBOLO_SKIPS", skips);
    for tool in [Tool::Envoy, Tool::Dig, Tool::Python] {
        if let Ok(path) = tool.path() {
            cargo.env(tool.variable(), path);
        }
    }
    if choice.long {
        cargo.env("TOMBOLO_LONG", "1").env("PROPTEST_CASES", LONG_CASES);
    }
    cargo
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

/// The numbers of the last line.
#[derive(Debug, Default, PartialEq, Eq)]
struct Closing {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Closing {
    /// A skipped test passed for the test harness. A run that fails without a failed test crashed
    /// or did not build, which is a failure to be counted too.
    fn of(tally: &Tally, skipped: usize, success: bool) -> Self {
        let failed = if success { tally.failed } else { tally.failed.max(1) };
        Self { passed: tally.passed.saturating_sub(skipped), failed, skipped }
    }

    fn line(&self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

fn judge(tally: &Tally, success: bool, filtered: bool) -> anyhow::Result<()> {
    match tally {
        Tally { failed: 1.., .. } => bail!("{} tests failed", tally.failed),
        _ if !success => bail!("a test binary crashed or did not build: see above"),
        Tally { ignored: 1.., .. } => {
            bail!("{} tests are ignored: fix them, or skip with a reason", tally.ignored)
        }
        Tally { passed: 0, .. } if !filtered => bail!("no test ran"),
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
    fn the_closing_line_counts_skips_apart_and_crashes_as_failures() {
        let tally = Tally { passed: 6, failed: 0, ignored: 0 };
        let line = |skipped, success| Closing::of(&tally, skipped, success).line();
        assert_eq!(line(0, true), "6 passed, 0 failed, 0 skipped");
        assert_eq!(line(2, true), "4 passed, 0 failed, 2 skipped");
        assert_eq!(line(0, false), "6 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn failures_crashes_ignored_tests_and_no_tests_fail_the_run() {
        let run = |passed, failed, ignored, success, filtered| {
            judge(&Tally { passed, failed, ignored }, success, filtered).is_ok()
        };
        assert!(run(1, 0, 0, true, false));
        assert!(run(0, 0, 0, true, true), "a filter may match nothing");
        assert!(!run(0, 0, 0, true, false), "no test ran");
        assert!(!run(1, 1, 0, false, false));
        assert!(!run(1, 0, 0, false, false), "crashed");
        assert!(!run(1, 0, 1, true, false), "ignored");
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
