//! The way out: dials for a tonic channel and talks to one expected identity.

use std::error::Error;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::http::Uri;
use tower::Service;

use super::client_config;
use super::verify::reason;
use crate::clock::Clock;
use crate::identity::Identity;
use crate::material::Held;

/// Time to dial and to handshake, together.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URI names no host and port.
    #[error("{0} has no host and port to dial")]
    NoAddress(Uri),
    /// The host is not there, or refuses.
    #[error("cannot reach {authority}")]
    Dial {
        /// Host and port.
        authority: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Someone answered who is not the expected one, or does not accept us.
    #[error("no TLS with the {expected} at {authority}")]
    Handshake {
        /// Who was dialled.
        expected: Identity,
        /// Host and port.
        authority: String,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Neither happened in time.
    #[error("{authority} did not answer within {after:?}")]
    TimedOut {
        /// Host and port.
        authority: String,
        /// The time it had.
        after: Duration,
    },
}

/// Connects to one expected identity; for `Endpoint::connect_with_connector` with an `http://` URI
/// of the address to dial. Each connection is made with what is held then.
#[derive(Debug, Clone)]
pub struct Connector {
    config: Arc<ClientConfig>,
    expected: Identity,
    timeout: Duration,
    /// Where the expected one is, and which of them is next.
    among: Option<Arc<(Vec<Uri>, AtomicUsize)>>,
}

impl Connector {
    /// Dials as `held`, and talks to `expected` only.
    ///
    /// # Errors
    /// When the cryptography provider lacks TLS 1.3.
    pub fn new(held: &Held, expected: Identity, clock: &Clock) -> Result<Self, rustls::Error> {
        let config = client_config(held, expected.clone(), clock)?;
        Ok(Self { config, expected, timeout: TIMEOUT, among: None })
    }

    /// With another limit for dialling and handshaking than 5 s.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Dials these instead of what it is asked for, each attempt the next: whoever has been dialled
    /// for nothing, or is left by its connection, is not the one dialled again. Clones take turns
    /// together. None leaves it as it is.
    #[must_use]
    pub fn among(self, addresses: Vec<Uri>) -> Self {
        let among = (!addresses.is_empty()).then(|| Arc::new((addresses, AtomicUsize::new(0))));
        Self { among, ..self }
    }

    /// Of how many addresses each connection takes the next.
    pub(crate) fn addresses(&self) -> usize {
        self.among.as_ref().map_or(1, |among| among.0.len())
    }

    fn next(&self, asked: Uri) -> Uri {
        let Some(among) = &self.among else { return asked };
        let (addresses, next) = &**among;
        let turn = next.fetch_add(1, Ordering::Relaxed) % addresses.len();
        addresses.get(turn).cloned().unwrap_or(asked)
    }

    /// Dials host and port of `uri` and handshakes.
    ///
    /// # Errors
    /// Says whether the host was not there, or not the one expected.
    pub async fn connect(&self, uri: &Uri) -> Result<TlsStream<TcpStream>, ConnectError> {
        let (Some(host), Some(port)) = (uri.host(), uri.port_u16()) else {
            return Err(ConnectError::NoAddress(uri.clone()));
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let authority = uri.authority().map_or_else(String::new, ToString::to_string);
        match timeout(self.timeout, self.dial(host, port, &authority)).await {
            Ok(connected) => connected,
            Err(_) => Err(ConnectError::TimedOut { authority, after: self.timeout }),
        }
    }

    async fn dial(
        &self,
        host: &str,
        port: u16,
        authority: &str,
    ) -> Result<TlsStream<TcpStream>, ConnectError> {
        let dial = |source| ConnectError::Dial { authority: authority.to_owned(), source };
        let tcp = TcpStream::connect((host, port)).await.map_err(dial)?;
        tcp.set_nodelay(true).map_err(dial)?;
        // rustls wants a name; ours are in the verifier, and this one is not sent.
        let address: SocketAddr = tcp.peer_addr().map_err(dial)?;
        let name = ServerName::IpAddress(address.ip().into());
        let connector = TlsConnector::from(Arc::clone(&self.config));
        connector.connect(name, tcp).await.map_err(|error| ConnectError::Handshake {
            expected: self.expected.clone(),
            authority: authority.to_owned(),
            source: reason(error),
        })
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connector, uri) = (self.clone(), self.next(uri));
        Box::pin(async move { connector.connect(&uri).await.map(TokioIo::new) })
    }
}
