//! `tombolo demo`: a whole mesh in one process, over real sockets.
//!
//! Runs the same roles as separate processes would, from configuration and identity files that it
//! writes to its state directory; regions share nothing but the network. What it adds is what a
//! real mesh gets from elsewhere: certificates, applications, Envoys, and somebody who pulls plugs.

pub(crate) mod announce;
pub(crate) mod backends;
pub(crate) mod control;
pub(crate) mod envoy;
pub(crate) mod files;
pub(crate) mod layout;
pub(crate) mod parts;
pub(crate) mod pki;
pub(crate) mod readiness;
pub(crate) mod show;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tombolo_federation::names::MeshDomain;

use self::announce::Announcement;
use self::files::{Prepared, Reading};
use self::layout::{Layout, Ports};
use self::parts::Parts;
use self::show::Progress;
use crate::cli::Output;

/// The manifests that come with the project.
pub(crate) const EXAMPLES: &str = "examples/demo";
/// The mesh that the demo makes.
const MESH: &str = "demo.tombolo.example";
/// After so long without being ready something is wrong enough to give up.
const READY_DEADLINE: Duration = Duration::from_mins(1);
/// Orders that wait for the one being carried out.
const ORDERS: usize = 16;

/// Which ports the demo listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum PortChoice {
    /// The documented ones, from 7000 on.
    Fixed,
    /// Free ones, written to demo.json.
    Auto,
}

/// What the command line said.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) dirs: Vec<String>,
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) ports: PortChoice,
    pub(crate) envoy: Option<PathBuf>,
    pub(crate) export_all: bool,
    pub(crate) output: Output,
}

/// Runs until SIGINT or SIGTERM.
pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let progress = Progress::start();
    let layout = Layout::from_arguments(&options.dirs)?;
    let mesh: MeshDomain = MESH.parse()?;
    let examples = options.dirs == [EXAMPLES];
    let reading = Reading { export_all: options.export_all, examples };
    // Removed when the demo ends, if nobody named one to keep.
    let temporary = tempfile::Builder::new().prefix("tombolo-demo-").tempdir()?;
    let state_dir = options.state_dir.clone().unwrap_or_else(|| temporary.path().to_owned());
    std::fs::create_dir_all(&state_dir).with_context(|| state_dir.display().to_string())?;
    let _lock = files::lock(&state_dir)?;
    announce::remove(&state_dir)?;
    let envoy = envoy::find(options.envoy.as_deref(), &crate::config::search_path())?;
    let ports = match options.ports {
        PortChoice::Fixed => Ports::fixed(&layout)?,
        PortChoice::Auto => Ports::free(&layout)?,
    };
    let control = crate::role::admin::bind("the demo's control", ports.control).await?;
    let prepared = Prepared::write(&state_dir, &mesh, &layout, &ports, reading)?;
    progress.done("certificates and configuration");

    let mut signals = crate::shutdown_signal()?;
    let mut mesh_parts = Parts::new(prepared, envoy);
    let supervised = supervise(&mut mesh_parts, control, &progress, &state_dir, options.output);
    let outcome = tokio::select! {
        ended = supervised => ended,
        () = signals.recv() => Ok(()),
    };
    show::stopping();
    announce::remove(&state_dir)?;
    tokio::select! {
        () = mesh_parts.stop_all() => outcome,
        () = signals.recv() => anyhow::bail!("told to stop twice: ending at once"),
    }
}

/// Starts everything, then does as it is told, for ever. May be dropped at any time.
async fn supervise(
    parts: &mut Parts,
    control: tokio::net::TcpListener,
    progress: &Progress,
    state_dir: &std::path::Path,
    output: Output,
) -> anyhow::Result<()> {
    let control_address = control.local_addr()?;
    let (orders_tx, mut orders) = mpsc::channel(ORDERS);
    let mut talkers = JoinSet::new();
    parts.start_all(progress, Instant::now() + READY_DEADLINE).await?;
    let announcement = Announcement::of(parts, control_address);
    announce::write(state_dir, &announcement)?;
    match output {
        Output::Table => progress.ready(parts, control_address),
        Output::Json => announcement.print()?,
    }
    talkers.spawn(control::serve(control, orders_tx.clone()));
    talkers.spawn(control::read_stdin(orders_tx));
    loop {
        tokio::select! {
            Some(order) = orders.recv() => {
                let done = parts.obey(&order.verb).await;
                // Whoever asked may have hung up.
                let _ = order.answer.send(done);
            }
            Some(ended) = talkers.join_next() => ended??,
            index = parts.edited() => parts.follow(index).await,
        }
    }
}
