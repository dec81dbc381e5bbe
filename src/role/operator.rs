//! Operators' calls, over the process's own Unix socket and nowhere else. What the admin server shows
//! is shown here too, for a process whose admin address is not on loopback.
//!
//! Whoever may open the socket may decide: it belongs to the process's user and has mode 0600.
//! Promises: who called is what the kernel says of the other end; each call is audited with target
//! `audit`, one line before anything is done and one with the outcome, and counted, also when the
//! client goes away ([`desk`]); a socket file that nobody listens on any more is replaced, one that
//! a process listens on is not. Leaves to others: what may be decided, and what it does
//! ([`Operated`]).

mod desk;
mod socket;

use std::future::IntoFuture as _;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::serve::IncomingStream;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tombolo_federation::names::{ClusterId, RegionName};
use tracing::info;

pub(crate) use self::desk::Calls;
use self::desk::{Audit, Desk, Jobs};
pub(crate) use self::socket::{Bound, reachable};
use super::admin::{self, Visible};
use super::mesh::DecisionStatus;
use super::tasks::Tasks;

/// The path of `tombolo approve`.
pub(crate) const APPROVE: &str = "/api/v1/approve";
/// The path of `tombolo leave`.
pub(crate) const LEAVE: &str = "/api/v1/leave";
/// Calls are a few names.
const MAX_BODY: usize = 64 << 10;

/// Let go what a hold holds back.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Approve {
    pub(crate) cluster: ClusterId,
    pub(crate) hold: String,
    #[serde(default)]
    pub(crate) note: String,
}

/// Let a cluster or a region leave for good.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Leave {
    pub(crate) who: Leaving,
    /// Also if it is alive.
    #[serde(default)]
    pub(crate) live: bool,
    /// Take it back instead.
    #[serde(default)]
    pub(crate) withdraw: bool,
    /// Only say what it would do. A process that does not know this takes no call that says it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) dry_run: bool,
    #[serde(default)]
    pub(crate) note: String,
}

/// Who leaves.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Leaving {
    Cluster(ClusterId),
    Region(RegionName),
}

/// What became of a call.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Answer {
    /// For people.
    pub(crate) message: String,
    /// What was decided, or taken back.
    #[serde(default)]
    pub(crate) decisions: Vec<DecisionStatus>,
}

/// Why a call did nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum CallError {
    /// It is not to be done.
    #[error("{0}")]
    Refused(String),
    /// It could not be done.
    #[error("{0}")]
    Failed(String),
}

/// What a role lets operators do. A call goes on without whoever made it.
pub(crate) trait Operated: Send + Sync + 'static {
    /// `by` is who calls.
    fn approve(
        self: Arc<Self>,
        call: Approve,
        by: String,
    ) -> BoxFuture<'static, Result<Answer, CallError>>;
    /// `by` is who calls.
    fn leave(
        self: Arc<Self>,
        call: Leave,
        by: String,
    ) -> BoxFuture<'static, Result<Answer, CallError>>;
}

/// The other end of a connection, as the kernel knows it.
#[derive(Debug, Clone)]
struct Peer(String);

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self(match stream.io().peer_cred() {
            Ok(cred) => {
                let pid = cred.pid().map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
                format!("uid {} pid {pid}", cred.uid())
            }
            Err(error) => format!("unknown ({error})"),
        })
    }
}

/// Binds the socket at `path`.
pub(crate) fn bind(path: &Path) -> anyhow::Result<Bound> {
    Ok(Bound::at(path)?)
}

/// Starts the server as a task of its role.
pub(crate) fn start<V: Operated + Visible>(
    tasks: &mut Tasks,
    bound: Bound,
    view: &Arc<V>,
    calls: Calls,
    stop: &CancellationToken,
) {
    info!(socket = %bound.path().display(), "taking operators' calls");
    let (desk, jobs) = Desk::new(Arc::<V>::clone(view), calls);
    let reads = admin::reads(Arc::<V>::clone(view));
    tasks.start("operator", serve(bound, desk, jobs, reads, stop.clone()));
}

async fn serve(
    mut bound: Bound,
    desk: Desk,
    jobs: Jobs,
    reads: Router,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let router = Router::new()
        .route(APPROVE, post(approve))
        .route(LEAVE, post(leave))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(desk)
        .merge(reads)
        .into_make_service_with_connect_info::<Peer>();
    let server = axum::serve(bound.listener()?, router);
    let server = server.with_graceful_shutdown(stop.cancelled_owned());
    // The server has the desks: when it ends, the calls do.
    let (ended, ()) = tokio::join!(server.into_future(), desk::carry_out(jobs));
    ended?;
    drop(bound);
    Ok(())
}

async fn approve(
    State(desk): State<Desk>,
    ConnectInfo(Peer(by)): ConnectInfo<Peer>,
    axum::Json(call): axum::Json<Approve>,
) -> Response {
    let what = format!("{} of {}", call.hold, call.cluster);
    let audit = Audit { verb: "approve", what, by: by.clone(), note: call.note.clone() };
    respond(desk.take(audit, |operated| operated.approve(call, by)).await)
}

async fn leave(
    State(desk): State<Desk>,
    ConnectInfo(Peer(by)): ConnectInfo<Peer>,
    axum::Json(call): axum::Json<Leave>,
) -> Response {
    let what = match &call.who {
        Leaving::Cluster(cluster) => format!("cluster {cluster}"),
        Leaving::Region(region) => format!("region {region}"),
    };
    let live = if call.live { ", alive" } else { "" };
    let dry = if call.dry_run { ", dry run" } else { "" };
    let what = format!("{what}{live}{dry}");
    let verb = if call.withdraw { "withdraw leave" } else { "leave" };
    let audit = Audit { verb, what, by: by.clone(), note: call.note.clone() };
    respond(desk.take(audit, |operated| operated.leave(call, by)).await)
}

fn respond(outcome: Result<Answer, CallError>) -> Response {
    match outcome {
        Ok(answer) => axum::Json(answer).into_response(),
        Err(CallError::Refused(why)) => (StatusCode::CONFLICT, why).into_response(),
        Err(CallError::Failed(why)) => (StatusCode::SERVICE_UNAVAILABLE, why).into_response(),
    }
}
