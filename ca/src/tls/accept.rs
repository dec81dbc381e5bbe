//! The way in: a listener's connections, handshaken, as tonic's `serve_with_incoming` takes them.
//!
//! Promises: a bad handshake costs one connection and never the loop (RUSTSEC-2024-0376); a silent
//! one costs at most its deadline; the numbers of handshakes and of connections are bounded, and
//! what is beyond waits in the kernel's queue, where full means that the peer's connect waits.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use tracing::{Instrument, debug, debug_span, warn};

use super::verify::reason;
use super::{peer_identity, server_config};
use crate::clock::Clock;
use crate::identity::PeerIdentity;
use crate::material::Held;

/// How much a listener takes on.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Time from accepted to handshaken.
    pub handshake: Duration,
    /// Handshakes at a time.
    pub handshakes: usize,
    /// Connections at a time, those in handshake included.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { handshake: Duration::from_secs(5), handshakes: 512, connections: 8192 }
    }
}

/// Who is at the other end. In tonic requests: `request.extensions().get::<PeerInfo>()`.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// The address.
    pub remote: SocketAddr,
    /// Who it proved to be, or `None` for a client without a certificate.
    pub identity: Option<Arc<PeerIdentity>>,
}

/// Accepts and handshakes; see [`Incoming::stream`].
#[derive(Debug)]
pub struct Incoming {
    listener: TcpListener,
    held: Held,
    acceptor: Handshaker,
    limits: Limits,
    connections: Arc<Semaphore>,
    handshakes: JoinSet<Option<Connection>>,
    /// After an accept error: when to try again, and the pause should that fail too.
    paused_until: Option<Instant>,
    pause: Duration,
}

const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

impl Incoming {
    /// Accepts on `listener` as `held` says at each handshake.
    ///
    /// # Errors
    /// When the cryptography provider lacks TLS 1.3.
    pub fn new(
        listener: TcpListener,
        held: &Held,
        clock: &Clock,
        limits: Limits,
    ) -> Result<Self, rustls::Error> {
        Ok(Self {
            listener,
            held: held.clone(),
            acceptor: Handshaker(TlsAcceptor::from(server_config(held, clock)?)),
            connections: Arc::new(Semaphore::new(limits.connections.max(1))),
            limits,
            handshakes: JoinSet::new(),
            paused_until: None,
            pause: SHORTEST_PAUSE,
        })
    }

    /// The connections, for `serve_with_incoming`. It never ends and never fails; dropping it
    /// closes the listener and aborts the handshakes under way.
    pub fn stream(self) -> impl Stream<Item = Result<Connection, Infallible>> + Send {
        futures::stream::unfold(self, |mut incoming| async {
            let connection = incoming.next().await;
            Some((Ok(connection), incoming))
        })
    }

    async fn next(&mut self) -> Connection {
        loop {
            // All three may be dropped at their await: no connection is lost by it.
            tokio::select! {
                Some(ended) = self.handshakes.join_next() => {
                    if let Some(connection) = finished(ended) {
                        return connection;
                    }
                }
                (permit, accepted) = accept(&self.listener, &self.connections, self.paused_until),
                    if self.handshakes.len() < self.limits.handshakes.max(1) => {
                    self.start(permit, accepted);
                }
            }
        }
    }

    fn start(
        &mut self,
        permit: OwnedSemaphorePermit,
        accepted: io::Result<(TcpStream, SocketAddr)>,
    ) {
        match accepted {
            Ok((tcp, remote)) => {
                (self.paused_until, self.pause) = (None, SHORTEST_PAUSE);
                let handshake = self.acceptor.clone().handshake(
                    tcp,
                    remote,
                    permit,
                    self.held.clone(),
                    self.limits.handshake,
                );
                self.handshakes.spawn(handshake.instrument(debug_span!("handshake", %remote)));
            }
            // The peer hung up while it waited: not ours to slow down for.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {
                debug!(%error, "a connection ended before it was accepted");
            }
            // No file descriptors or memory left: trying at once would only burn a core.
            Err(error) => {
                warn!(%error, pause = ?self.pause, "cannot accept connections");
                self.paused_until = Some(Instant::now() + self.pause);
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
    paused_until: Option<Instant>,
) -> (OwnedSemaphorePermit, io::Result<(TcpStream, SocketAddr)>) {
    if let Some(until) = paused_until {
        sleep_until(until).await;
    }
    match Arc::clone(connections).acquire_owned().await {
        Ok(permit) => (permit, listener.accept().await),
        // The semaphore is never closed.
        Err(_) => std::future::pending().await,
    }
}

fn finished(ended: Result<Option<Connection>, JoinError>) -> Option<Connection> {
    ended.unwrap_or_else(|error| {
        if error.is_panic() {
            tracing::error!(%error, "a handshake panicked");
        }
        None
    })
}

#[derive(Clone)]
struct Handshaker(TlsAcceptor);

impl std::fmt::Debug for Handshaker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handshaker")
    }
}

impl Handshaker {
    async fn handshake(
        self,
        tcp: TcpStream,
        remote: SocketAddr,
        permit: OwnedSemaphorePermit,
        held: Held,
        deadline: Duration,
    ) -> Option<Connection> {
        let _ = tcp.set_nodelay(true);
        let tls = match timeout(deadline, self.0.accept(tcp)).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => {
                debug!(error = %causes(&*reason(error)), "refused");
                return None;
            }
            Err(_) => {
                debug!(?deadline, "not finished in time");
                return None;
            }
        };
        let certificates = tls.get_ref().1.peer_certificates();
        let identity = match certificates.map(|c| peer_identity(c, held.current().bundles().mesh()))
        {
            Some(Ok(identity)) => Some(Arc::new(identity)),
            // The verifier has read the same certificate before; fail closed all the same.
            Some(Err(error)) => {
                debug!(error = %causes(&error), "refused");
                return None;
            }
            None => None,
        };
        let peer = PeerInfo { remote, identity };
        Some(Connection { tls, peer, _permit: permit })
    }
}

/// An error with its causes, for the log.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// A handshaken connection.
#[derive(Debug)]
pub struct Connection {
    tls: TlsStream<TcpStream>,
    peer: PeerInfo,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> &PeerInfo {
        &self.peer
    }
}

impl Connected for Connection {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
