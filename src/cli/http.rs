//! One GET of a loopback admin address.

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::net::TcpStream;

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
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path).header(header::HOST, address).body(Empty::<Bytes>::new())?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("{address}{path}: {error}"))?.to_bytes();
        let text = String::from_utf8_lossy(&body).into_owned();
        if !status.is_success() {
            bail!("{address}{path} answered {status}: {}", text.trim());
        }
        Ok(text)
    };
    tokio::select! {
        // The connection only drives the exchange; what ends first is the exchange, or it fails.
        answer = exchange => answer,
        Err(error) = connection => Err(error).context(format!("{address}{path}")),
    }
}
