//! Queries on connections.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::TcpLimits;
use super::metrics::{Dropped, Transport};
use super::respond::Responder;

/// No question with its options is near this; a client that announces more is hung up on.
const MAX_QUERY: usize = 4096;
/// After accepting failed, as a rule for lack of descriptors: until some are back.
const PAUSE: Duration = Duration::from_millis(100);
/// How long answers that are being written at a stop may take.
const GRACE: Duration = Duration::from_secs(1);

/// Serves connections until `stop`.
pub(super) async fn serve(
    listener: TcpListener,
    responder: Arc<Responder>,
    limits: TcpLimits,
    stop: CancellationToken,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(ended) = connections.join_next() => report(ended),
            accepted = listener.accept(), if connections.len() < limits.connections => {
                match accepted {
                    Ok((stream, client)) => {
                        let (responder, stop) = (Arc::clone(&responder), stop.clone());
                        connections.spawn(connection(stream, client, responder, limits, stop));
                    }
                    Err(error) => {
                        warn!(%error, "accepting a connection failed");
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        }
    }
    drop(listener);
    let drained = async {
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
    };
    if timeout(GRACE, drained).await.is_err() {
        debug!("connections with unread answers were cut at the stop");
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        error!(%error, "a DNS connection's task panicked");
    }
}

async fn connection(
    mut stream: TcpStream,
    client: SocketAddr,
    responder: Arc<Responder>,
    limits: TcpLimits,
    stop: CancellationToken,
) {
    let deadline = Instant::now() + limits.lifetime;
    loop {
        let until = deadline.min(Instant::now() + limits.idle);
        let query = tokio::select! {
            () = stop.cancelled() => return,
            // Not cancel safe, and need not be: the connection ends with either.
            query = timeout_at(until, read(&mut stream)) => query,
        };
        let query = match query {
            Ok(Ok(query)) => query,
            Ok(Err(error)) => return debug!(%client, %error, "a connection ended"),
            Err(_) => return debug!(%client, "a connection was idle or lasted too long"),
        };
        // What gets no reply over UDP ends the connection: no client sends it.
        let Some(reply) = responder.respond(&query, Transport::Tcp) else { return };
        if let Err(error) = write(&mut stream, &reply, limits.idle).await {
            debug!(%client, %error, "an answer could not be sent");
            return responder.metrics().dropped(Transport::Tcp, Dropped::Unsent);
        }
    }
}

/// One message, after the two bytes of its length.
async fn read(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > MAX_QUERY {
        let text = format!("a query of {length} bytes was announced, at most {MAX_QUERY} are read");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut query = vec![0; length];
    stream.read_exact(&mut query).await?;
    Ok(query)
}

async fn write(stream: &mut TcpStream, reply: &[u8], limit: Duration) -> io::Result<()> {
    let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
    // In one write, so that it is one segment where it fits (RFC 7766, section 8).
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(reply);
    timeout(limit, stream.write_all(&framed)).await?
}
