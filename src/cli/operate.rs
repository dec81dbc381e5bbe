//! Verbs that change something: they go over the process's own Unix socket.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use hyper::StatusCode;
use serde::Serialize;
use tombolo_federation::names::{ClusterId, RegionName};

use super::verbs::{decisions_table, show};
use super::{Output, SocketArgs, http};
use crate::config::socket_from_environment;
use crate::role::operator::{APPROVE, Answer, Approve, LEAVE, Leave, Leaving};

/// What a process may take: 10 s for the decision and what it says about a missing one.
const DEADLINE: Duration = Duration::from_secs(20);
/// Exit code of what was refused.
const REFUSED: u8 = 1;

pub(crate) const APPROVE_HELP: &str = "\
An agent holds removals back that nothing explains. `tombolo status` of its control plane or of the
agent itself names the holds. At a control plane the approval is a decision of the region, which the
agent follows; at the agent it counts at once, also with the region away.

Exit code: 0 when approved, 1 when refused, 2 when it could not be asked.

Examples:
  tombolo approve us-west1-alpha 3f9a --config control-plane.yaml
  tombolo approve us-west1-alpha 3f9a --socket /var/lib/tombolo/operator.sock --note 'moved to beta'";

pub(crate) const LEAVE_HELP: &str = "\
Everything that CLUSTER published is removed here and in every other region; it may be dead. With
--region, another region and its clusters are removed here, and in each other region once that one
does not hear it either. It comes back as a new cluster or region (another UID, another store), or
after --withdraw. One that is alive is refused: stop it and wait for 30 s of silence.

Exit code: 0 when done, 1 when refused, 2 when it could not be asked.

Examples:
  tombolo leave us-west1-alpha --config control-plane.yaml --dry-run
  tombolo leave us-west1-alpha --config control-plane.yaml --note 'decommissioned'
  tombolo leave --region europe-west4 --config control-plane.yaml
  tombolo leave us-west1-alpha --withdraw --config control-plane.yaml";

/// Which process, and how to show its answer.
#[derive(Debug, Args)]
pub(crate) struct ProcessArgs {
    #[command(flatten)]
    socket: SocketArgs,
    /// Why, for those who read the decision later.
    #[arg(long, default_value = "")]
    note: String,
    /// How to show it.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Output,
}

/// Of `approve`.
#[derive(Debug, Args)]
pub(crate) struct ApproveArgs {
    /// The cluster's id.
    cluster: ClusterId,
    /// The hold's id, or at least 4 characters with which it alone begins.
    hold: String,
    #[command(flatten)]
    process: ProcessArgs,
}

/// Of `leave`.
#[derive(Debug, Args)]
pub(crate) struct LeaveArgs {
    /// The id of a cluster of the process's own region.
    #[arg(required_unless_present = "region", conflicts_with = "region")]
    cluster: Option<ClusterId>,
    /// Another region.
    #[arg(long)]
    region: Option<RegionName>,
    /// Also if it is alive.
    #[arg(long, conflicts_with = "withdraw")]
    live: bool,
    /// Take the decision back.
    #[arg(long)]
    withdraw: bool,
    /// Say what would be removed, or withdrawn, and do nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    process: ProcessArgs,
}

/// `tombolo approve`
pub(crate) async fn approve(args: &ApproveArgs) -> anyhow::Result<ExitCode> {
    let ApproveArgs { cluster, hold, process } = args;
    let (cluster, hold, note) = (cluster.clone(), hold.clone(), process.note.clone());
    call(process, APPROVE, &Approve { cluster, hold, note }).await
}

/// `tombolo leave`
pub(crate) async fn leave(args: &LeaveArgs) -> anyhow::Result<ExitCode> {
    let who = match (&args.cluster, &args.region) {
        (Some(cluster), _) => Leaving::Cluster(cluster.clone()),
        (None, Some(region)) => Leaving::Region(region.clone()),
        (None, None) => bail!("name a CLUSTER, or a region with --region"),
    };
    let &LeaveArgs { live, withdraw, dry_run, ref process, .. } = args;
    let call_of = Leave { who, live, withdraw, dry_run, note: process.note.clone() };
    call(process, LEAVE, &call_of).await
}

async fn call(
    process: &ProcessArgs,
    path: &str,
    call: &impl Serialize,
) -> anyhow::Result<ExitCode> {
    let socket = process.socket.named()?.or_else(socket_from_environment).context(
        "which process? name its socket with --socket PATH, or its configuration file with --config FILE",
    )?;
    let (status, text) = http::post(&socket, path, serde_json::to_string(call)?, DEADLINE).await?;
    if status == StatusCode::CONFLICT {
        // Nobody may be reading stderr: the exit code says it too.
        let _ = std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("refused: {}\n", text.trim()),
        );
        return Ok(ExitCode::from(REFUSED));
    }
    if !status.is_success() {
        bail!("{}", text.trim());
    }
    let answer: Answer =
        serde_json::from_str(&text).context("the answer is not what this version understands")?;
    show(process.output, &text, || match &answer.decisions[..] {
        [] => answer.message.clone(),
        decisions => format!("{}\n\n{}", answer.message, decisions_table(decisions)),
    })?;
    Ok(ExitCode::SUCCESS)
}
