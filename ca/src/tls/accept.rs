//! The way in: a listener's connections, handshaken, as tonic's `serve_with_incoming` takes them.
//!
//! Promises: a bad handshake costs one connection and never the loop (RUSTSEC-2024-0376). A client
//! that is silent, in the handshake or after it, is cut off at a deadline ([`Limits::handshake`],
//! [`Limits::preface`]). One address has some of the handshakes and connections and never all, and
//! clients without a certificate have a share of their own; who is beyond such a share is closed
//! at once and counted in the log. Only where all handshakes or connections of the listener are
//! taken do further ones wait in the kernel's queue, where full means that the peer's connect
//! waits: that takes many addresses, for connections also certificates.
//!
//! Left to others: silence after the HTTP/2 preface (the server's keepalive), and clients that are
//! served, answer and never go.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::Stream;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{Instrument, debug, debug_span, warn};

use super::connection::{Connection, PeerInfo};
use super::limits::{Counted, Full, Limits, Place, Places};
use super::verify::reason;
use super::{peer_identity, server_config};
use crate::clock::Clock;
use crate::material::Held;

/// Accepts and handshakes; see [`Incoming::stream`].
#[derive(Debug)]
pub struct Incoming {
    listener: TcpListener,
    held: Held,
    acceptor: Acceptor,
    limits: Limits,
    places: Places,
    refusals: Refusals,
    handshakes: JoinSet<Option<Connection>>,
    /// After an accept error: when to try again, and the pause should that fail too.
    paused_until: Option<Instant>,
    pause: Duration,
}

const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
const SAY_EVERY: Duration = Duration::from_secs(10);

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
            acceptor: Acceptor(TlsAcceptor::from(server_config(held, clock)?)),
            places: Places::new(&limits),
            refusals: Refusals::default(),
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
                (permit, accepted) = accept(&self.listener, &self.places, self.paused_until),
                    if self.handshakes.len() < self.limits.handshakes.max(1) => {
                    self.judge(permit, accepted);
                }
            }
        }
    }

    fn judge(
        &mut self,
        permit: OwnedSemaphorePermit,
        accepted: io::Result<(TcpStream, SocketAddr)>,
    ) {
        match accepted {
            Ok((tcp, remote)) => {
                (self.paused_until, self.pause) = (None, SHORTEST_PAUSE);
                match self.places.take(permit, remote.ip()) {
                    Ok((place, handshake)) => self.start(tcp, remote, place, handshake),
                    // Dropping the socket closes it.
                    Err(full) => self.refusals.refused(remote, full),
                }
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

    fn start(&mut self, tcp: TcpStream, remote: SocketAddr, place: Place, counted: Counted) {
        let span = debug_span!("handshake", %remote);
        let handshaker = Handshaker {
            acceptor: self.acceptor.clone(),
            held: self.held.clone(),
            limits: self.limits.clone(),
            refusals: self.refusals.clone(),
        };
        let handshake = async move {
            let connection = handshaker.handshake(tcp, remote, place).await;
            drop(counted);
            connection
        };
        self.handshakes.spawn(handshake.instrument(span));
    }
}

async fn accept(
    listener: &TcpListener,
    places: &Places,
    paused_until: Option<Instant>,
) -> (OwnedSemaphorePermit, io::Result<(TcpStream, SocketAddr)>) {
    if let Some(until) = paused_until {
        sleep_until(until).await;
    }
    let permit = places.any().await;
    (permit, listener.accept().await)
}

fn finished(ended: Result<Option<Connection>, JoinError>) -> Option<Connection> {
    ended.unwrap_or_else(|error| {
        if error.is_panic() {
            tracing::error!(%error, "a handshake panicked");
        }
        None
    })
}

/// Says what was closed for lack of a place, but not for each: an attacker would fill the log.
#[derive(Debug, Clone, Default)]
struct Refusals(Arc<Mutex<Said>>);

#[derive(Debug, Default)]
struct Said {
    last: Option<Instant>,
    since: u64,
}

impl Refusals {
    fn refused(&self, remote: SocketAddr, full: Full) {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        said.since = said.since.saturating_add(1);
        if said.last.is_none_or(|last| last.elapsed() >= SAY_EVERY) {
            warn!(%remote, why = %full, closed = said.since, "closing connections that are too many");
            *said = Said { last: Some(Instant::now()), since: 0 };
        }
    }
}

#[derive(Clone)]
struct Acceptor(TlsAcceptor);

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor")
    }
}

/// What one handshake needs.
struct Handshaker {
    acceptor: Acceptor,
    held: Held,
    limits: Limits,
    refusals: Refusals,
}

impl Handshaker {
    async fn handshake(
        self,
        tcp: TcpStream,
        remote: SocketAddr,
        place: Place,
    ) -> Option<Connection> {
        let _ = tcp.set_nodelay(true);
        let deadline = self.limits.handshake;
        let tls = match timeout(deadline, self.acceptor.0.accept(tcp)).await {
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
        let material = self.held.current();
        let identity = match certificates.map(|c| peer_identity(c, material.bundles().mesh())) {
            Some(Ok(identity)) => Some(Arc::new(identity)),
            // The verifier has read the same certificate before; fail closed all the same.
            Some(Err(error)) => {
                debug!(error = %causes(&error), "refused");
                return None;
            }
            None => None,
        };
        let place = match identity {
            Some(_) => place,
            None => place
                .without_certificate()
                .inspect_err(|full| self.refusals.refused(remote, *full))
                .ok()?,
        };
        Some(Connection::new(tls, PeerInfo { remote, identity }, place, self.limits.preface))
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
