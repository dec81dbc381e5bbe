//! The command line: what a person can ask of Tombolo.

pub(crate) mod ca;
pub(crate) mod http;
pub(crate) mod operate;
mod status;
pub(crate) mod table;
pub(crate) mod verbs;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::operator_socket_of;
use crate::demo::{EXAMPLES, PortChoice};

/// Keeps services of Kubernetes clusters in several regions in step, answers their names, and
/// steers Envoy between zones and regions.
#[derive(Debug, Parser)]
#[command(
    version,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run a mesh on this machine: regions, clusters from manifests, real sockets, one process.
    #[command(after_help = "Examples:
  tombolo demo                                     the example mesh: two regions, four clusters
  tombolo demo --dir my-mesh                       my-mesh/<region>/<cluster>/*.yaml
  tombolo demo --dir eu/shop=k8s/ --export-all     anybody's manifests, every Service exported
  tombolo demo --state-dir /tmp/d --ports auto     for scripts: addresses in /tmp/d/demo.json")]
    Demo(DemoArgs),
    /// Run a region's control plane.
    #[command(after_help = "Example:
  tombolo control-plane --config control-plane.yaml

The demo writes working files: see config/ in its --state-dir.")]
    ControlPlane(RoleArgs),
    /// Run a cluster's agent.
    #[command(after_help = "Example:
  tombolo agent --config agent.yaml

The demo writes working files: see config/ in its --state-dir.")]
    Agent(RoleArgs),
    /// Show how a process and its sources are.
    #[command(after_help = status::HELP)]
    Status(AskArgs),
    /// Show merged services with their endpoints by cluster.
    #[command(after_help = "Examples:
  tombolo services
  tombolo services -n shop -o json")]
    Services(ServicesArgs),
    /// Show what DNS answers for a name, and why.
    #[command(after_help = "NAME may be <service>.<namespace>, or any full name.

Exit code: 0 when there is an answer, 1 when there is none, 2 when it cannot be asked.

Examples:
  tombolo dns checkout.shop
  tombolo dns _http._tcp.inventory.shop -t SRV --admin 127.0.0.1:7112 -o json")]
    Dns(DnsArgs),
    /// Let go what a cluster's agent holds back.
    #[command(after_help = operate::APPROVE_HELP)]
    Approve(operate::ApproveArgs),
    /// Let a cluster, or a region with its clusters, leave the mesh for good.
    #[command(after_help = operate::LEAVE_HELP)]
    Leave(operate::LeaveArgs),
    /// Show operators' decisions and what became of them.
    #[command(
        after_help = "Exit code: 0 when none waits, 1 when one does, 2 when it cannot be asked.

Examples:
  tombolo decisions
  tombolo decisions --admin 127.0.0.1:7102 -o json"
    )]
    Decisions(AskArgs),
    /// Make the certificates that separate processes need.
    Ca(ca::CaArgs),
    /// Become a program that ends with its parent.
    #[command(hide = true)]
    Tied {
        /// Process id of the parent.
        parent: u32,
        /// What to become.
        program: PathBuf,
        /// Its arguments.
        #[arg(last = true)]
        arguments: Vec<OsString>,
    },
}

/// Of `demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Manifests: a directory laid out as REGION/CLUSTER/, or REGION/CLUSTER=PATH; repeatable.
    #[arg(long, default_value = EXAMPLES, value_name = "DIR")]
    pub(crate) dir: Vec<String>,
    /// Keep state here, and write demo.json when everything is ready; temporary by default.
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Ports: the documented ones from 7000 on, or free ones.
    #[arg(long, value_enum, default_value = "fixed")]
    pub(crate) ports: PortChoice,
    /// The Envoy to start, one per cluster; `envoy` on the search path by default.
    #[arg(long, value_name = "PATH")]
    pub(crate) envoy: Option<PathBuf>,
    /// Export every Service, for manifests that hold no `ServiceExport`.
    #[arg(long)]
    pub(crate) export_all: bool,
    /// What to show once everything is ready: an overview, or what demo.json has, on stdout.
    #[arg(long, short, value_enum, default_value = "table")]
    pub(crate) output: Output,
}

/// Of a role.
#[derive(Debug, Args)]
pub(crate) struct RoleArgs {
    /// The role's configuration file.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) config: PathBuf,
}

/// Of a verb that asks a running process.
#[derive(Debug, Args)]
pub(crate) struct AskArgs {
    /// Admin address of a control plane or an agent, HOST:PORT; `$TOMBOLO_ADMIN`, then
    /// `$TOMBOLO_SOCKET`, or the demo's first region (127.0.0.1:7102) by default.
    #[arg(long, value_name = "HOST:PORT", conflicts_with_all = ["socket", "config"])]
    pub(crate) admin: Option<String>,
    #[command(flatten)]
    pub(crate) socket: SocketArgs,
    /// How to show it.
    #[arg(long, short, value_enum, default_value = "table")]
    pub(crate) output: Output,
}

/// Which process, by its operator socket.
#[derive(Debug, Args)]
pub(crate) struct SocketArgs {
    /// The process's operator socket; `$TOMBOLO_SOCKET` by default.
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    socket: Option<PathBuf>,
    /// The process's configuration file, which says where its socket is.
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl SocketArgs {
    /// The socket, if one was named.
    fn named(&self) -> anyhow::Result<Option<PathBuf>> {
        match (&self.socket, &self.config) {
            (Some(socket), _) => Ok(Some(socket.clone())),
            (None, Some(config)) => Ok(Some(operator_socket_of(config)?)),
            (None, None) => Ok(None),
        }
    }
}

/// Of `services`.
#[derive(Debug, Args)]
pub(crate) struct ServicesArgs {
    /// Only this namespace.
    #[arg(long, short)]
    pub(crate) namespace: Option<String>,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

/// Of `dns`.
#[derive(Debug, Args)]
pub(crate) struct DnsArgs {
    /// The name to resolve.
    pub(crate) name: String,
    /// Type of record.
    #[arg(long = "type", short = 't', default_value = "A")]
    pub(crate) record_type: String,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
}

/// How answers are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// One JSON document, the API's own.
    Json,
}
