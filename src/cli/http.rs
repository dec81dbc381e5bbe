//! One GET of a loopback admin address, or one GET or POST over a process's own socket.

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::role::operator::reachable;

/// Answers beyond this are not taken, in bytes.
const MAX_ANSWER: usize = 256 << 20;
/// From dialling to the last byte.
const DEADLINE: Duration = Duration::from_secs(10);

/// The body of `http://<address><path>`, if the answer is 200.
pub(crate) async fn get(address: &str, path: &str) -> anyhow::Result<String> {
    tokio::time::timeout(DEADLINE, exchange(address, path))
        .await
        .with_context(|| format!("{address} did not answer within {} s", DEADLINE.as_secs()))?
}

async fn exchange(address: &str, path: &str) -> anyhow::Result<String> {
    let stream = TcpStream::connect(address).await.with_context(|| {
        format!("cannot reach {address}: is it running? name another one with --admin HOST:PORT")
    })?;
    let request = Request::get(path).header(header::HOST, address).body(Full::default())?;
    let (status, text) = send(stream, address, request).await?;
    if !status.is_success() {
        bail!("{address}{path} answered {status}: {}", text.trim());
    }
    Ok(text)
}

/// The body of `path` over the Unix socket at `socket`, if the answer is 200.
pub(crate) async fn get_over(socket: &Path, path: &str) -> anyhow::Result<String> {
    let exchange = async {
        let request = Request::get(path).header(header::HOST, "operator").body(Full::default())?;
        let (status, text) = send(dial(socket).await?, "the process", request).await?;
        if !status.is_success() {
            bail!("{path} over {} was answered {status}: {}", socket.display(), text.trim());
        }
        Ok(text)
    };
    tokio::time::timeout(DEADLINE, exchange).await.with_context(|| {
        format!("{} did not answer within {} s", socket.display(), DEADLINE.as_secs())
    })?
}

async fn dial(socket: &Path) -> anyhow::Result<UnixStream> {
    let (short, _dir) = reachable(socket).with_context(|| no_socket(socket))?;
    UnixStream::connect(short).await.with_context(|| no_socket(socket))
}

/// What `POST path` with a JSON document is answered over the Unix socket at `socket`, of whatever
/// status, within `deadline`.
pub(crate) async fn post(
    socket: &Path,
    path: &str,
    json: String,
    deadline: Duration,
) -> anyhow::Result<(StatusCode, String)> {
    let shown = socket.display();
    let exchange = async {
        let stream = dial(socket).await?;
        let request = Request::post(path)
            .header(header::HOST, "operator")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(json))?;
        send(stream, "the process", request).await
    };
    tokio::time::timeout(deadline, exchange).await.with_context(|| {
        let within = deadline.as_secs();
        format!(
            "{shown} did not answer within {within} s: it may have been done, see `tombolo \
                 decisions` and the process's log"
        )
    })?
}

fn no_socket(socket: &Path) -> String {
    let shown = socket.display();
    if socket.is_relative() {
        return format!(
            "cannot reach the process behind {shown}, which is looked for from here: a relative \
             stateDir is one of the directory that the process was started in; ask from there, or \
             name the whole path with --socket PATH"
        );
    }
    format!(
        "cannot reach the process behind {shown}: it has to run on this machine, and only its own \
         user and root may open its socket; name another one with --socket PATH, or the process's \
         file with --config FILE"
    )
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    address: &str,
    request: Request<Full<Bytes>>,
) -> anyhow::Result<(StatusCode, String)> {
    let path = request.uri().path().to_owned();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("{address}{path}: {error}"))?.to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    tokio::select! {
        // The connection only drives the exchange; what ends first is the exchange, or it fails.
        answer = exchange => answer,
        Err(error) = connection => Err(error).context(format!("{address}{path}")),
    }
}
