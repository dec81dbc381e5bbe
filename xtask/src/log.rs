//! The output of one step: in its file always, on the terminal where a person wants to watch.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};

/// How much of a quiet step's output is shown when it fails.
const TAIL_LINES: usize = 40;

/// Runs its arguments and ends all of their process group when stdin ends.
///
/// stdin is a pipe that this process holds: letting go of it stops the group, and so does the end
/// of this process, whatever its cause. (A group of its own is out of Ctrl-C's reach.)
const ON_A_LIFELINE: &str = r#"
exec 3<&0
(read -r _ <&3; kill -KILL 0) >/dev/null 2>&1 &
watch=$!
"$@" </dev/null 3<&-
status=$?
kill "$watch"
exit "$status"
"#;

/// The log of one step.
#[derive(Debug)]
pub(crate) struct Log {
    file: File,
    path: PathBuf,
    quiet: bool,
}

impl Log {
    /// Starts the file anew.
    pub(crate) fn create(path: PathBuf) -> anyhow::Result<Self> {
        let file = File::create(&path).with_context(|| path.display().to_string())?;
        Ok(Self { file, path, quiet: true })
    }

    /// Its file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `command` with its output in the file only.
    pub(crate) fn quietly(&mut self, command: &mut Command) -> anyhow::Result<()> {
        self.note(command)?;
        let stdout = self.file.try_clone()?;
        let stderr = self.file.try_clone()?;
        let status = command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).status();
        ended(command, status?)
    }

    /// Runs `command` with its output in the file and on the terminal.
    pub(crate) fn watched(&mut self, command: &mut Command) -> anyhow::Result<()> {
        self.note(command)?;
        let mut child = piped(command.stdin(Stdio::null()))?;
        self.pass_on(&mut child, |_| {})?;
        ended(command, child.wait()?)
    }

    /// The same for at most `limit`, and hands every line to `on_line`. Says how the command
    /// ended, or `None` if it was stopped at the limit, with all that it had started.
    pub(crate) fn limited(
        &mut self,
        command: &Command,
        limit: Duration,
        on_line: impl FnMut(&str) + Send,
    ) -> anyhow::Result<Option<ExitStatus>> {
        self.note(command)?;
        let mut child = piped(&mut on_a_lifeline(command))?;
        let lifeline = child.stdin.take();
        let (ended, end) = mpsc::channel::<()>();
        let watch = thread::spawn(move || {
            let late = end.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout);
            drop(lifeline);
            late
        });
        let passed_on = self.pass_on(&mut child, on_line);
        drop(ended);
        let late = watch.join().map_err(|_| anyhow!("the watch over the time panicked"))?;
        let status = child.wait()?;
        passed_on.map(|()| (!late).then_some(status))
    }

    /// Passes the output on until its end: to the file, the terminal and `on_line`.
    fn pass_on(
        &mut self,
        child: &mut Child,
        on_line: impl FnMut(&str) + Send,
    ) -> anyhow::Result<()> {
        self.quiet = false;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (file, on_line) = (&self.file, Mutex::new(on_line));
        let tell = |line: &str| on_line.lock().unwrap_or_else(PoisonError::into_inner)(line);
        thread::scope(|scope| {
            let errors = scope.spawn(|| {
                each_line(stderr, file, |line| {
                    eprintln!("{line}");
                    tell(line);
                })
            });
            each_line(stdout, file, |line| {
                println!("{line}");
                tell(line);
            })?;
            errors.join().unwrap_or_else(|_| Err(io::Error::other("the reader panicked")))
        })
        .context("reading the output")
    }

    /// The end of what has been logged, if it was not on the terminal already.
    pub(crate) fn unseen_tail(&self) -> Option<String> {
        let text = self.quiet.then(|| std::fs::read(&self.path).ok()).flatten()?;
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        Some(lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n"))
    }

    fn note(&mut self, command: &Command) -> anyhow::Result<()> {
        writeln!(self.file, "$ {command:?}").with_context(|| self.path.display().to_string())
    }
}

fn each_line(
    from: Option<impl Read>,
    mut file: &File,
    mut on_line: impl FnMut(&str),
) -> io::Result<()> {
    let Some(from) = from else { return Ok(()) };
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line)? > 0 {
        // One write per line: the other stream is written to the same file.
        file.write_all(&line)?;
        on_line(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']));
        line.clear();
    }
    Ok(())
}

fn piped(command: &mut Command) -> anyhow::Result<Child> {
    let spawned = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    spawned.with_context(|| program(command))
}

/// `command` in a process group of its own that ends with the pipe to it.
fn on_a_lifeline(command: &Command) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", ON_A_LIFELINE, "sh"]).arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(key, value),
            None => shell.env_remove(key),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        shell.current_dir(dir);
    }
    shell.stdin(Stdio::piped()).process_group(0);
    shell
}

fn ended(command: &Command, status: ExitStatus) -> anyhow::Result<()> {
    if !status.success() {
        bail!("{}: {status}", program(command));
    }
    Ok(())
}

fn program(command: &Command) -> String {
    let name = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let first = command.get_args().next().unwrap_or_default();
    format!("{} {}", name.display(), first.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> (tempfile::TempDir, Log) {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::create(dir.path().join("step.log")).unwrap();
        (dir, log)
    }

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    const LONG: Duration = Duration::from_mins(1);

    #[test]
    fn all_lines_are_handed_over_and_kept() {
        let (_dir, mut log) = log();
        let mut lines = Vec::new();
        let script = "echo one; echo $TWO >&2; printf three; exit 5";
        let status = log
            .limited(sh(script).env("TWO", "two"), LONG, |line| lines.push(line.to_owned()))
            .unwrap();
        assert_eq!(status.unwrap().code(), Some(5));
        lines.sort();
        assert_eq!(lines, ["one", "three", "two"]);
        let kept = std::fs::read_to_string(log.path()).unwrap();
        assert!(kept.contains("two\n") && kept.contains("three"), "{kept}");
        assert_eq!(log.unseen_tail(), None);
    }

    #[test]
    fn at_the_limit_the_whole_group_is_stopped() {
        let (dir, mut log) = log();
        let pid = dir.path().join("pid");
        // The grandchild holds the output open: only its own end ends the reading.
        let mut command = sh("sleep 1000 & echo $! >\"$0\"; echo started; wait");
        let mut lines = Vec::new();
        let late = log
            .limited(command.arg(&pid), Duration::from_secs(2), |line| lines.push(line.to_owned()))
            .unwrap();
        assert_eq!(late, None);
        assert_eq!(lines, ["started"]);
        assert!(std::fs::read_to_string(pid).unwrap().trim().parse::<u32>().is_ok());
    }

    #[test]
    fn a_quiet_failure_is_an_error_with_its_output_to_show() {
        let (_dir, mut log) = log();
        let error = log.quietly(&mut sh("echo why; exit 5")).unwrap_err();
        assert_eq!(error.to_string(), "sh -c: exit status: 5");
        assert!(log.unseen_tail().unwrap().ends_with("why"));
    }
}
