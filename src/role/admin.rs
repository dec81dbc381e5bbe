//! The admin server: probes, metrics and, on loopback, the API, over plain HTTP. The API is also read
//! over the operator socket, wherever the admin server listens.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::common::Serving;
use super::metrics;
use super::status::{Services, Status};
use super::tasks::Tasks;

/// What a role lets the admin server see.
pub(crate) trait Visible: Send + Sync + 'static {
    /// How the process is.
    fn status(&self) -> Status;
    /// What it serves.
    fn serving(&self) -> &Serving;
}

/// The server's state.
#[derive(Clone)]
struct Admin {
    visible: Arc<dyn Visible>,
}

/// Starts the server as a task of its role.
pub(crate) fn start(
    tasks: &mut Tasks,
    listener: TcpListener,
    visible: Arc<dyn Visible>,
    stop: &CancellationToken,
) {
    tasks.start("admin", serve(listener, Admin { visible }, stop.clone()));
}

async fn serve(listener: TcpListener, admin: Admin, stop: CancellationToken) -> anyhow::Result<()> {
    let probes = Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape));
    // Nobody is authenticated here, so what is more than a probe stays on this machine.
    let local = listener.local_addr()?.ip().is_loopback();
    let router = if local { probes.merge(api()) } else { probes.fallback(elsewhere) };
    let server = axum::serve(listener, router.with_state(admin));
    server.with_graceful_shutdown(stop.cancelled_owned()).await?;
    Ok(())
}

fn api() -> Router<Admin> {
    Router::new()
        .route("/api/v1/status", get(status))
        .route("/api/v1/services", get(services))
        .route("/api/v1/dns", get(dns))
        .route("/api/v1/proxies", get(proxies))
}

/// The API alone, for another listener.
pub(crate) fn reads(visible: Arc<dyn Visible>) -> Router {
    api().with_state(Admin { visible })
}

async fn elsewhere() -> Response {
    let hint = "this admin address is not on loopback and serves probes and metrics alone: ask on \
                the process's machine, with --config FILE or --socket PATH\n";
    (StatusCode::NOT_FOUND, hint).into_response()
}

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on {address} for {what}: stop what uses the port, or give {what} another one"
)]
pub(crate) struct CannotListen {
    address: SocketAddr,
    what: String,
    #[source]
    source: std::io::Error,
}

/// Binds, saying what to do when it cannot.
pub(crate) async fn bind(what: &str, address: SocketAddr) -> Result<TcpListener, CannotListen> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(|source| CannotListen { address, what: what.to_owned(), source })
}

async fn readyz(State(admin): State<Admin>) -> Response {
    let status = admin.visible.status();
    if status.ready {
        return "ok\n".into_response();
    }
    let waiting: String =
        status.pending.iter().fold(String::new(), |text, what| text + "waiting for " + what + "\n");
    (StatusCode::SERVICE_UNAVAILABLE, waiting).into_response()
}

async fn scrape(State(admin): State<Admin>) -> Response {
    match metrics::encode(&*admin.visible) {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn status(State(admin): State<Admin>) -> Response {
    axum::Json(admin.visible.status()).into_response()
}

async fn services(State(admin): State<Admin>) -> Response {
    match admin.visible.serving().snapshots.current() {
        Some(catalog) => axum::Json(Services::of(&catalog)).into_response(),
        None => not_yet(&admin),
    }
}

#[derive(Deserialize)]
struct DnsQuestion {
    name: String,
    #[serde(rename = "type", default = "a")]
    record_type: String,
}

fn a() -> String {
    "A".to_owned()
}

async fn dns(State(admin): State<Admin>, Query(question): Query<DnsQuestion>) -> Response {
    match admin.visible.serving().explain(&question.name, &question.record_type) {
        Ok(answer) => axum::Json(answer).into_response(),
        Err(problem) => (StatusCode::BAD_REQUEST, problem).into_response(),
    }
}

async fn proxies(State(admin): State<Admin>) -> Response {
    axum::Json(admin.visible.serving().proxies()).into_response()
}

/// Not known yet is not empty.
fn not_yet(admin: &Admin) -> Response {
    let pending = admin.visible.status().pending.join(", ");
    (StatusCode::SERVICE_UNAVAILABLE, format!("nothing is served yet, waiting for {pending}\n"))
        .into_response()
}
