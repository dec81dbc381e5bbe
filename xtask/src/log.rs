//! The output of one step: in its file always, on the terminal where a person wants to watch.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;

use anyhow::{Context as _, bail};

/// How much of a quiet step's output is shown when it fails.
const TAIL_LINES: usize = 40;

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
        let status = self.read(command, |_| {})?;
        ended(command, status)
    }

    /// The same, and hands every line of stdout to `on_line`; says how the command ended.
    pub(crate) fn read(
        &mut self,
        command: &mut Command,
        mut on_line: impl FnMut(&str),
    ) -> anyhow::Result<ExitStatus> {
        self.note(command)?;
        self.quiet = false;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| program(command))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let file = &self.file;
        thread::scope(|scope| {
            let errors = scope.spawn(|| each_line(stderr, file, |line| eprintln!("{line}")));
            each_line(stdout, file, |line| {
                println!("{line}");
                on_line(line);
            })?;
            errors.join().unwrap_or_else(|_| Err(io::Error::other("the reader panicked")))
        })
        .context("reading the output")?;
        Ok(child.wait()?)
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

    #[test]
    fn lines_of_stdout_are_handed_over_and_both_streams_are_kept() {
        let (_dir, mut log) = log();
        let mut lines = Vec::new();
        let status = log
            .read(&mut sh("echo one; echo two >&2; printf three; exit 5"), |line| {
                lines.push(line.to_owned());
            })
            .unwrap();
        assert_eq!(status.code(), Some(5));
        assert_eq!(lines, ["one", "three"]);
        let kept = std::fs::read_to_string(log.path()).unwrap();
        assert!(kept.contains("two\n") && kept.contains("three"), "{kept}");
        assert_eq!(log.unseen_tail(), None);
    }

    #[test]
    fn a_quiet_failure_is_an_error_with_its_output_to_show() {
        let (_dir, mut log) = log();
        let error = log.quietly(&mut sh("echo why; exit 5")).unwrap_err();
        assert_eq!(error.to_string(), "sh -c: exit status: 5");
        assert!(log.unseen_tail().unwrap().ends_with("why"));
    }
}
