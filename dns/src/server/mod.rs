//! DNS over UDP and TCP on one port.
//!
//! Owns the sockets, what a client may cost, and how messages are read and written. Promises: a
//! message that is a response, or too short to be one of anything, gets no reply, whatever else is
//! wrong with it (RFC 1035; RUSTSEC-2023-0041); every other gets exactly one; a client that drips,
//! never reads or never ends costs one of a bounded number of connections for a bounded time, and
//! no client holds more than its share of them. The price of the bounds: a few clients together
//! can hold all connections, and others then wait for up to a connection's time.
//!
//! Turned down: the socket loops of hickory-server; only hickory-proto reads and writes messages
//! here. Measured on 0.26.3: it replies to malformed responses (12 bytes with QR=1 and QDCOUNT=1
//! get a FORMERR); it accepts connections without a limit (2000 of 2000 idle ones held, 39 to
//! 172 KiB each once they send or never read) and ends none that stays busy; with no descriptor
//! left it retries accepting 54,000 times a second and takes a core from everything else in the
//! process. Nuisances beside that: OPT is missing from truncated answers when fewer than 11 bytes
//! are left, and there are two lines at INFO per query. None of it can be configured. With a pure
//! function from bytes to bytes, what is left of a server is shorter than working around it, the
//! rate is the same, and the fast path of the design needs that function to be compared with.

mod metrics;
mod respond;
mod tcp;
mod udp;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UdpSocket};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tombolo_federation::catalog::Snapshots;

use crate::{View, Zone};
pub use metrics::{Metrics, Transport};
use respond::Responder;

/// How often a port that is free for TCP is tried for UDP, when any port will do.
const PORT_TRIES: usize = 32;

/// What to serve, to whom, and within which limits.
#[derive(Debug, Clone)]
pub struct Config {
    /// The zone.
    pub zone: Zone,
    /// How its clients see it.
    pub view: View,
    /// Counts what happens.
    pub metrics: Metrics,
    /// Limits of TCP.
    pub tcp: TcpLimits,
}

impl Config {
    /// With the default limits.
    #[must_use]
    pub fn new(zone: Zone, view: View, metrics: Metrics) -> Self {
        Self { zone, view, metrics, tcp: TcpLimits::default() }
    }
}

/// What TCP clients may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpLimits {
    /// Connections at a time; more wait in the kernel until one ends.
    pub connections: usize,
    /// Of these, how many one client may hold, that is an IPv4 address or an IPv6 /64; what it
    /// opens above that is closed at once. Nobody is exempt, not loopback either.
    pub per_client: usize,
    /// How long one query may take to arrive, and one answer to be taken.
    pub idle: Duration,
    /// How long a connection may last, busy or not: nobody holds one for ever.
    pub lifetime: Duration,
}

impl Default for TcpLimits {
    fn default() -> Self {
        let (idle, lifetime) = (Duration::from_secs(5), Duration::from_mins(1));
        Self { connections: 256, per_client: 64, idle, lifetime }
    }
}

/// Why there is no server, or no longer one.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("cannot listen for DNS over {transport} on {address}: {advice}")]
    Bind {
        /// UDP or TCP.
        transport: Transport,
        /// As configured.
        address: SocketAddr,
        /// What to do about it.
        advice: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A task of the server panicked.
    #[error("the DNS server's {transport} task ended by a panic")]
    Panicked {
        /// Whose task.
        transport: Transport,
        /// How it ended.
        #[source]
        source: JoinError,
    },
}

/// Entry point: [`Server::bind`].
#[derive(Debug)]
pub struct Server;

/// A server whose sockets are bound; nothing is answered before [`Bound::run`].
#[derive(Debug)]
pub struct Bound {
    address: SocketAddr,
    udp: UdpSocket,
    tcp: TcpListener,
    responder: Arc<Responder>,
    limits: TcpLimits,
}

impl Server {
    /// Binds UDP and TCP on `address`; with port 0, on some port that is free for both.
    ///
    /// # Errors
    /// When either is not possible, with what to do.
    pub async fn bind(
        address: SocketAddr,
        snapshots: Snapshots,
        config: Config,
    ) -> Result<Bound, ServeError> {
        let (tcp, udp) = bind_both(address).await?;
        let bound = tcp.local_addr();
        let bound = bound.map_err(|source| bind_error(Transport::Tcp, address, source))?;
        let limits = config.tcp;
        let responder = Arc::new(Responder::new(snapshots, config));
        Ok(Bound { address: bound, udp, tcp, responder, limits })
    }
}

impl Bound {
    /// Where UDP and TCP listen.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`, then lets TCP connections finish the answer that they are at.
    ///
    /// # Errors
    /// When a part ends by itself, which is a bug.
    pub async fn run(self, stop: CancellationToken) -> Result<(), ServeError> {
        let Self { udp, tcp, responder, limits, .. } = self;
        let stop = stop.child_token();
        let mut tasks = JoinSet::new();
        let udp = tasks.spawn(udp::serve(udp, Arc::clone(&responder), stop.clone())).id();
        tasks.spawn(tcp::serve(tcp, responder, limits, stop.clone()));
        let mut first = Ok(());
        while let Some(ended) = tasks.join_next().await {
            stop.cancel(); // an early end of one is the end of both
            if let Err(source) = ended {
                let transport = if source.id() == udp { Transport::Udp } else { Transport::Tcp };
                first = first.and(Err(ServeError::Panicked { transport, source }));
            }
        }
        first
    }
}

/// TCP first: its ports are the scarcer ones, then the same port for UDP.
async fn bind_both(address: SocketAddr) -> Result<(TcpListener, UdpSocket), ServeError> {
    let mut tries = if address.port() == 0 { PORT_TRIES } else { 1 };
    loop {
        tries -= 1;
        let tcp = TcpListener::bind(address).await;
        let tcp = tcp.map_err(|source| bind_error(Transport::Tcp, address, source))?;
        let same = tcp.local_addr();
        let same = same.map_err(|source| bind_error(Transport::Tcp, address, source))?;
        match UdpSocket::bind(same).await {
            Ok(udp) => return Ok((tcp, udp)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
            Err(source) => return Err(bind_error(Transport::Udp, same, source)),
        }
    }
}

fn bind_error(transport: Transport, address: SocketAddr, source: io::Error) -> ServeError {
    let port = address.port();
    let advice = match source.kind() {
        io::ErrorKind::AddrInUse => format!(
            "port {port} is taken; stop the process that holds it (`ss -lntup 'sport = :{port}'` \
             names it) or configure another port"
        ),
        io::ErrorKind::PermissionDenied => format!(
            "this process may not bind port {port}; grant it CAP_NET_BIND_SERVICE or configure a \
             port above 1023"
        ),
        io::ErrorKind::AddrNotAvailable => {
            format!(
                "no interface of this machine has the address {}; configure one that it has",
                address.ip()
            )
        }
        _ => "configure an address that this machine can listen on".to_owned(),
    };
    ServeError::Bind { transport, address, advice, source }
}
