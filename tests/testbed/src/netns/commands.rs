//! What is asked of iproute2, and taking namespaces away.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{NAMES, PREFIX};

/// Runs `ip`.
pub(super) fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    run(Command::new("ip").args(arguments)).map(|_| ())
}

/// Runs a command to its end, and gives what it printed.
pub(super) fn run(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().display().to_string();
    let output = command.output().with_context(|| {
        format!("starting {program}: `cargo xtask setup` installs iproute2 and iptables for root")
    })?;
    ensure!(
        output.status.success(),
        "{command:?}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Removes a namespace, and first what still runs inside: it would keep it alive without a name.
pub(super) fn delete(name: &str) -> anyhow::Result<()> {
    for id in run(Command::new("ip").args(["netns", "pids", name]))?.split_whitespace() {
        if let Some(id) = id.parse().ok().and_then(Pid::from_raw) {
            // One that has ended meanwhile is as good.
            let _ = kill_process(id, Signal::KILL);
        }
    }
    ip(&["netns", "delete", name])
}

/// Removes what runs that were killed have left. Another run may do the same at the same time, so
/// what fails here was done there, or is tried again by the next.
pub(super) fn clear_leftovers() {
    let Ok(names) = std::fs::read_dir(NAMES) else { return };
    for name in names.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        if maker(&name).is_some_and(|id| !Path::new("/proc").join(id.to_string()).exists()) {
            drop(delete(&name));
        }
    }
}

/// The process that made a namespace, by its name: `tombolo-PID-SET-LABEL`.
pub(super) fn maker(name: &str) -> Option<u32> {
    let rest = name.strip_prefix(PREFIX)?.strip_prefix('-')?;
    rest.split_once('-')?.0.parse().ok()
}
