//! `tombolo`: one binary, a subcommand per role and the command line.
//!
//! Only wires and speaks; what decides is in the crates.

mod cli;
mod config;
mod demo;
mod role;
mod state_dir;

use std::process::ExitCode;

use clap::Parser as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use tracing_subscriber::EnvFilter;

use crate::cli::{Cli, Verb};
use crate::config::{AgentConfig, ControlPlaneConfig};
use crate::role::agent::Agent;
use crate::role::control_plane::ControlPlane;

/// Exit code of a command that could not do what it was asked; 1 is a negative answer.
const FAILED: u8 = 2;

fn main() -> ExitCode {
    match run(Cli::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            // Nobody may be reading stderr: then there is nobody to tell.
            let _ = std::io::Write::write_fmt(
                &mut std::io::stderr(),
                format_args!("error: {error:#}\n"),
            );
            ExitCode::from(FAILED)
        }
    }
}

fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    if let Verb::Tied { parent, program, arguments } = verb {
        return Err(demo::envoy::become_tied(parent, &program, &arguments));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(Box::pin(async {
        match verb {
            Verb::Demo(args) => {
                log("warn");
                let options = demo::Options {
                    dirs: args.dir,
                    state_dir: args.state_dir,
                    ports: args.ports,
                    envoy: args.envoy,
                    export_all: args.export_all,
                    output: args.output,
                };
                demo::run(options).await.map(|()| ExitCode::SUCCESS)
            }
            Verb::ControlPlane(args) => {
                log("info");
                let config: ControlPlaneConfig = config::load(&args.config)?;
                info!(config = %serde_json::to_string(&config)?, "effective configuration");
                let stop = stop_on_signal()?;
                let bound = ControlPlane::bind(config, stop).await?;
                bound.run().await.map(|()| ExitCode::SUCCESS)
            }
            Verb::Agent(args) => {
                log("info");
                let config: AgentConfig = config::load(&args.config)?;
                info!(config = %serde_json::to_string(&config)?, "effective configuration");
                let stop = stop_on_signal()?;
                Agent::bind(config, stop).await?.run().await.map(|()| ExitCode::SUCCESS)
            }
            Verb::Status(args) => cli::verbs::status(&args).await,
            Verb::Services(args) => cli::verbs::services(&args).await,
            Verb::Dns(args) => cli::verbs::dns(&args).await,
            Verb::Approve(args) => cli::operate::approve(&args).await,
            Verb::Leave(args) => cli::operate::leave(&args).await,
            Verb::Decisions(args) => cli::verbs::decisions(&args).await,
            Verb::Ca(args) => cli::ca::run(args).map(|()| ExitCode::SUCCESS),
            Verb::Tied { .. } => unreachable!("handled before the runtime started"),
        }
    }))
}

/// Logs go to stderr; stdout is for answers.
fn log(default: &str) {
    let filter = EnvFilter::try_new(config::log_filter(default));
    let filter = filter.unwrap_or_else(|_| EnvFilter::new(default));
    // What operators did is not to be filtered away by who looks for something else.
    let filter = match "audit=info".parse() {
        Ok(audit) => filter.add_directive(audit),
        Err(_) => filter,
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr)
        .init();
}

/// SIGINT and SIGTERM.
struct ShutdownSignal {
    interrupt: Signal,
    terminate: Signal,
}

fn shutdown_signal() -> anyhow::Result<ShutdownSignal> {
    Ok(ShutdownSignal {
        interrupt: signal(SignalKind::interrupt())?,
        terminate: signal(SignalKind::terminate())?,
    })
}

impl ShutdownSignal {
    /// Waits for either. Cancel safe.
    async fn recv(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// A token that a signal cancels; a second signal ends the process at once.
fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut signals = shutdown_signal()?;
    let cancel = stop.clone();
    std::thread::Builder::new().name("signals".to_owned()).spawn({
        let handle = tokio::runtime::Handle::current();
        move || {
            handle.block_on(signals.recv());
            info!("told to stop");
            cancel.cancel();
            handle.block_on(signals.recv());
            error!("told to stop twice, ending at once");
            std::process::exit(i32::from(FAILED));
        }
    })?;
    Ok(stop)
}
