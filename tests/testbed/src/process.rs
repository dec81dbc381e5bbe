//! A child process that ends with its owner and whose logs are part of a failed test.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait_for;

/// What a process gets to end by itself when its owner is dropped.
const GRACE: Duration = Duration::from_secs(5);

/// How much of a log a failed test shows.
const TAIL_LINES: usize = 60;

/// A running program. Dropping it sends SIGTERM, after a grace SIGKILL, and prints the end of
/// both logs: cargo shows that for a failed test and throws it away for a passed one. (Asking
/// whether the thread panics would miss tests that fail by returning an error.)
///
/// It stays in the process group of the test run, so that what ends the run ends it too: Ctrl-C,
/// or the time limit of `cargo xtask test`.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts `command` with its output appended to `NAME.stdout` and `NAME.stderr` in the
    /// existing directory `logs`. Its stdin stays open and empty until [`Process::say`].
    ///
    /// # Errors
    ///
    /// When the program cannot be started or the logs cannot be written.
    pub fn start(name: &str, command: &mut Command, logs: &Path) -> anyhow::Result<Self> {
        let stdout = logs.join(format!("{name}.stdout"));
        let stderr = logs.join(format!("{name}.stderr"));
        let child = command
            .stdin(Stdio::piped())
            .stdout(append(&stdout)?)
            .stderr(append(&stderr)?)
            .spawn()
            .with_context(|| format!("starting {name}: {}", command.get_program().display()))?;
        Ok(Self { name: name.to_owned(), child, stdout, stderr })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to stdout so far, over all starts with this name and directory.
    ///
    /// # Errors
    ///
    /// When the log is gone.
    pub fn stdout(&self) -> anyhow::Result<String> {
        read(&self.stdout)
    }

    /// The same for stderr.
    ///
    /// # Errors
    ///
    /// When the log is gone.
    pub fn stderr(&self) -> anyhow::Result<String> {
        read(&self.stderr)
    }

    /// Writes a line to its stdin.
    ///
    /// # Errors
    ///
    /// When it no longer reads.
    pub fn say(&mut self, line: &str) -> anyhow::Result<()> {
        let mut stdin = self.child.stdin.as_ref().context("stdin is open while it runs")?;
        writeln!(stdin, "{line}").with_context(|| format!("writing to {}", self.name))
    }

    /// How it ended, or `None` while it runs.
    ///
    /// # Errors
    ///
    /// When the system cannot say.
    pub fn exited(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("asking after {}", self.name))
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// When it still runs after `deadline`.
    #[track_caller]
    pub fn wait(&mut self, deadline: Duration) -> anyhow::Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        wait_for(what, deadline, || self.exited()?.context("it still runs"))
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// When it has ended already.
    pub fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        // Asked first: the id of a process that was waited for may belong to another by now.
        if let Some(status) = self.exited()? {
            bail!("{} has ended before: {status}", self.name);
        }
        kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("sending {signal:?} to {}", self.name))
    }

    /// SIGTERM, then waits for its end.
    ///
    /// # Errors
    ///
    /// When it has ended before, or still runs after `deadline`.
    #[track_caller]
    pub fn terminate(&mut self, deadline: Duration) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(deadline)
    }

    /// `kill -9`, and the end of the process is seen.
    ///
    /// # Errors
    ///
    /// When it has ended before.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::KILL)?;
        let status = self.wait(GRACE)?;
        if status.signal() != Some(Signal::KILL.as_raw()) {
            bail!("{} ended by itself: {status}", self.name);
        }
        Ok(())
    }

    fn end(&mut self) -> anyhow::Result<ExitStatus> {
        if let Some(status) = self.exited()? {
            return Ok(status);
        }
        self.terminate(GRACE).or_else(|_| {
            self.child.kill()?;
            Ok(self.child.wait()?)
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let name = &self.name.clone();
        match self.end() {
            Ok(status) => eprintln!("---- {name}: {status}"),
            Err(error) => eprintln!("---- {name} may still run: {error:#}"),
        }
        for log in [&self.stdout, &self.stderr] {
            let text = read(log).unwrap_or_else(|error| format!("{error:#}"));
            eprintln!("---- {}\n{}", log.display(), tail(&text, TAIL_LINES));
        }
    }
}

fn append(log: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new().append(true).create(true).open(log);
    file.with_context(|| log.display().to_string())
}

/// A log as text; what a real program prints need not be UTF-8.
fn read(log: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(log).with_context(|| log.display().to_string())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last `lines` lines of `text`.
fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scratch;

    const SOON: Duration = Duration::from_secs(10);

    fn sh(script: &str, scratch: &Scratch) -> Process {
        Process::start("sh", Command::new("sh").args(["-c", script]), scratch.path()).unwrap()
    }

    fn printed(process: &Process, what: &str) {
        wait_for(what, SOON, || {
            let text = process.stdout()?;
            text.contains(what).then_some(()).with_context(|| format!("printed {text:?}"))
        })
        .unwrap();
    }

    #[test]
    fn output_goes_to_the_logs_and_the_status_is_seen() {
        let scratch = Scratch::new("process").unwrap();
        let mut process = sh("echo out; echo err >&2; exit 7", &scratch);
        assert_eq!(process.wait(SOON).unwrap().code(), Some(7));
        assert_eq!(process.stdout().unwrap(), "out\n");
        assert_eq!(process.stderr().unwrap(), "err\n");
        assert!(process.signal(Signal::TERM).is_err(), "a dead process is not signalled");
    }

    #[test]
    fn it_reads_what_it_is_told() {
        let scratch = Scratch::new("process").unwrap();
        let mut process = sh("read line; echo got $line", &scratch);
        process.say("hello").unwrap();
        process.wait(SOON).unwrap();
        assert_eq!(process.stdout().unwrap(), "got hello\n");
    }

    #[test]
    fn terminate_lets_it_clean_up_and_kill_does_not() {
        let script = "trap 'echo cleaned; exit 3' TERM; echo up; while :; do sleep 0.02; done";
        let scratch = Scratch::new("process").unwrap();
        let mut process = sh(script, &scratch);
        printed(&process, "up");
        assert_eq!(process.terminate(SOON).unwrap().code(), Some(3));
        printed(&process, "cleaned");

        let scratch = Scratch::new("process").unwrap();
        let mut process = sh(script, &scratch);
        printed(&process, "up");
        process.kill().unwrap();
        assert_eq!(process.stdout().unwrap(), "up\n");
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let scratch = Scratch::new("process").unwrap();
        let process = sh("echo up; while :; do sleep 0.02; done", &scratch);
        printed(&process, "up");
        let id = Pid::from_child(&process.child);
        drop(process);
        assert!(rustix::process::test_kill_process(id).is_err());
    }

    #[test]
    fn a_program_that_does_not_exist_is_named() {
        let scratch = Scratch::new("process").unwrap();
        let started = Process::start("it", &mut Command::new("/no/such"), scratch.path());
        assert!(started.unwrap_err().to_string().contains("/no/such"));
    }

    #[test]
    fn the_tail_is_the_end() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a", 2), "a");
        assert_eq!(tail("", 2), "");
    }
}
