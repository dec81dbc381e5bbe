//! A handshaken connection, and who is at its other end.
//!
//! Promises: a client that does not send HTTP/2's connection preface in time is cut off. hyper
//! has no deadline for it, and its keepalive starts only after it, so that a client which says
//! nothing at all would hold its place for ever. Later silence is left to that keepalive.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::limits::Place;
use crate::identity::PeerIdentity;

/// RFC 9113 section 3.4.
const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();

/// Who is at the other end. In tonic requests: `request.extensions().get::<PeerInfo>()`.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// The address.
    pub remote: SocketAddr,
    /// Who it proved to be, or `None` for a client without a certificate.
    pub identity: Option<Arc<PeerIdentity>>,
}

/// A handshaken connection.
#[derive(Debug)]
pub struct Connection {
    tls: TlsStream<TcpStream>,
    peer: PeerInfo,
    /// Until the preface has been read.
    preface: Option<Preface>,
    _place: Place,
}

#[derive(Debug)]
struct Preface {
    missing: usize,
    deadline: Pin<Box<Sleep>>,
}

impl Connection {
    pub(super) fn new(
        tls: TlsStream<TcpStream>,
        peer: PeerInfo,
        place: Place,
        preface: Duration,
    ) -> Self {
        let preface = Preface { missing: PREFACE, deadline: Box::pin(sleep(preface)) };
        Self { tls, peer, preface: Some(preface), _place: place }
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> &PeerInfo {
        &self.peer
    }

    /// Fails when the preface is late, and wakes the task when it gets late. Writing asks too: a
    /// client that takes nothing in would keep the server from ever getting to read.
    fn in_time(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let late = self.preface.as_mut().is_some_and(|p| p.deadline.as_mut().poll(cx).is_ready());
        if late {
            let said = "the client did not send the HTTP/2 preface in time";
            return Err(io::Error::new(io::ErrorKind::TimedOut, said));
        }
        Ok(())
    }

    fn has_read(&mut self, bytes: usize) {
        if let Some(preface) = &mut self.preface {
            preface.missing = preface.missing.saturating_sub(bytes);
            if preface.missing == 0 {
                self.preface = None;
            }
        }
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
        self.in_time(cx)?;
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.tls).poll_read(cx, buffer);
        self.has_read(buffer.filled().len().saturating_sub(before));
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.in_time(cx)?;
        Pin::new(&mut self.tls).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.in_time(cx)?;
        Pin::new(&mut self.tls).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.in_time(cx)?;
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    // Not in the way of an end: who closes does not wait for a preface any more.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
