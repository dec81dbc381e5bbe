//! One invocation: its steps, what became of them, and the summary.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::cache::Held;
use crate::log::Log;
use crate::workspace::Workspace;

/// What became of a step that did not fail.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// All is well.
    Passed,
    /// Something was left out or found, and the run goes on. The words say what.
    Warned(String),
}

/// One invocation of xtask.
#[derive(Debug)]
pub(crate) struct Run {
    /// The checkout.
    pub(crate) workspace: Workspace,
    started: Instant,
    rows: Vec<Row>,
    closing: Option<String>,
    held: Vec<Held>,
}

#[derive(Debug)]
struct Row {
    step: &'static str,
    took: Duration,
    outcome: Outcome,
}

#[derive(Debug)]
enum Outcome {
    Passed,
    Warned(String),
    Failed(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("ok"),
            Self::Warned(why) => write!(f, "warning: {why}"),
            Self::Failed(why) => write!(f, "FAILED: {why}"),
        }
    }
}

impl Run {
    /// Makes the directory for logs.
    pub(crate) fn start(workspace: Workspace) -> anyhow::Result<Self> {
        let scratch = workspace.scratch();
        std::fs::create_dir_all(&scratch).with_context(|| scratch.display().to_string())?;
        Ok(Self {
            workspace,
            started: Instant::now(),
            rows: Vec::new(),
            closing: None,
            held: Vec::new(),
        })
    }

    /// Does one step, and says whether what builds on it can go on.
    pub(crate) fn step(
        &mut self,
        step: &'static str,
        work: impl FnOnce(&Workspace, &mut Log) -> anyhow::Result<Verdict>,
    ) -> bool {
        println!("==> {step} (at {:.1}s)", self.started.elapsed().as_secs_f64());
        let started = Instant::now();
        let outcome = self.attempt(step, work);
        let took = started.elapsed();
        println!("<== {step}: {outcome} ({:.1}s)", took.as_secs_f64());
        let good = !matches!(outcome, Outcome::Failed(_));
        self.rows.push(Row { step, took, outcome });
        good
    }

    fn attempt(
        &self,
        step: &str,
        work: impl FnOnce(&Workspace, &mut Log) -> anyhow::Result<Verdict>,
    ) -> Outcome {
        let mut log = match Log::create(self.workspace.scratch().join(format!("{step}.log"))) {
            Ok(log) => log,
            Err(error) => return Outcome::Failed(format!("{error:#}")),
        };
        match work(&self.workspace, &mut log) {
            Ok(Verdict::Passed) => Outcome::Passed,
            Ok(Verdict::Warned(why)) => Outcome::Warned(why),
            Err(error) => {
                if let Some(tail) = log.unseen_tail() {
                    println!("{tail}\n(all of it: {})", log.path().display());
                }
                Outcome::Failed(format!("{error:#}"))
            }
        }
    }

    /// Keeps a tool that this run uses from being replaced until it ends.
    pub(crate) fn hold(&mut self, tool: Option<Held>) {
        self.held.extend(tool);
    }

    /// The steps that have failed so far.
    pub(crate) fn failed(&self) -> Vec<&'static str> {
        let failed = self.rows.iter().filter(|row| matches!(row.outcome, Outcome::Failed(_)));
        failed.map(|row| row.step).collect()
    }

    /// The line that ends the output.
    pub(crate) fn close_with(&mut self, line: String) {
        self.closing = Some(line);
    }

    /// Prints the summary and the closing line; whether nothing failed.
    pub(crate) fn finish(self) -> bool {
        println!("\n{:>10}  step", "time");
        for Row { step, took, outcome } in &self.rows {
            println!("{:>9.1}s  {step}: {outcome}", took.as_secs_f64());
        }
        println!("{:>9.1}s  in all", self.started.elapsed().as_secs_f64());
        let failed = self.failed();
        if !failed.is_empty() {
            let scratch = self.workspace.scratch();
            println!("FAILED: {} (logs in {})", failed.join(", "), scratch.display());
        }
        if let Some(line) = &self.closing {
            println!("{line}");
        }
        failed.is_empty()
    }
}
