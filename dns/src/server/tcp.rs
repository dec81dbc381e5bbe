//! Queries on connections.
//!
//! A client has a share of the connections, and what it opens above that is closed at once: a
//! resolver asks again or waits for one that it has, and what it has is never taken from it.
//! Programs behind one address have one share. Turned down: closing a client's longest idle
//! connection instead, as RFC 7766, section 6.2.3 allows: then whichever of those programs opens
//! most hangs up on the others.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{Id, JoinError, JoinSet};
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
    let mut connections = Connections::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(ended) = connections.tasks.join_next_with_id() => connections.ended(ended),
            accepted = listener.accept(), if connections.tasks.len() < limits.connections => {
                match accepted {
                    Ok((stream, client)) if connections.held_by(client.ip()) < limits.per_client => {
                        let (responder, stop) = (Arc::clone(&responder), stop.clone());
                        let task = connection(stream, client, responder, limits, stop);
                        connections.started(client.ip(), task);
                    }
                    Ok((_, client)) => {
                        debug!(%client, "a connection above the client's share was refused");
                        responder.metrics().refused();
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
        while let Some(ended) = connections.tasks.join_next_with_id().await {
            connections.ended(ended);
        }
    };
    if timeout(GRACE, drained).await.is_err() {
        debug!("connections with unread answers were cut at the stop");
    }
}

/// The connections that there are, and whose they are.
#[derive(Debug, Default)]
struct Connections {
    tasks: JoinSet<()>,
    clients: HashMap<Id, IpAddr>,
}

impl Connections {
    fn started(&mut self, ip: IpAddr, task: impl Future<Output = ()> + Send + 'static) {
        let id = self.tasks.spawn(task).id();
        self.clients.insert(id, client(ip));
    }

    fn ended(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => {
                error!(%error, "a DNS connection's task panicked");
                error.id()
            }
        };
        self.clients.remove(&id);
    }

    /// How many `ip`'s client holds. They are counted each time: there are few.
    fn held_by(&mut self, ip: IpAddr) -> usize {
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            self.ended(ended);
        }
        let client = client(ip);
        self.clients.values().filter(|holder| **holder == client).count()
    }
}

/// Whom a connection counts for: an IPv4 address, or an IPv6 network of 64 bits, in which a host
/// takes as many addresses as it likes.
fn client(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        ip @ IpAddr::V4(_) => ip,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_an_ipv4_address_or_an_ipv6_network() {
        for (ip, expected) in [
            ("10.0.0.1", "10.0.0.1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("127.0.0.2", "127.0.0.2"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("::1", "::"),
        ] {
            assert_eq!(client(ip.parse().unwrap()), expected.parse::<IpAddr>().unwrap());
        }
    }

    #[tokio::test]
    async fn a_panicking_connection_gives_its_share_back() {
        let ip: IpAddr = "10.0.0.1".parse().unwrap();
        let mut connections = Connections::default();
        connections.started(ip, std::future::pending());
        connections.started(ip, async { panic!("as a bug would") });
        assert_eq!(connections.clients.len(), 2);
        let ended = connections.tasks.join_next_with_id().await.unwrap();
        connections.ended(ended);
        assert_eq!(connections.held_by(ip), 1);
        assert_eq!(connections.held_by("10.0.0.2".parse().unwrap()), 0);
    }
}
