//! Queries in datagrams.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::metrics::{Dropped, Transport};
use super::respond::Responder;

/// Longer queries are cut, and so malformed: no question with its options is near this.
const MAX_QUERY: usize = 4096;
/// After the socket failed: an error that stays must not become a busy loop.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers until `stop`, one query after the other: an answer is computed, never waited for.
pub(super) async fn serve(socket: UdpSocket, responder: Arc<Responder>, stop: CancellationToken) {
    let mut buffer = vec![0; MAX_QUERY];
    loop {
        let received = tokio::select! {
            () = stop.cancelled() => return,
            received = socket.recv_from(&mut buffer) => received, // cancel safe
        };
        match received {
            Ok((length, client)) => {
                let Some(reply) = responder.respond(&buffer[..length], Transport::Udp) else {
                    continue;
                };
                // Fails for what a forged source makes of it (port 0, broadcast, no route).
                if let Err(error) = socket.send_to(&reply, client).await {
                    debug!(%client, %error, "an answer could not be sent");
                    responder.metrics().dropped(Transport::Udp, Dropped::Unsent);
                }
            }
            Err(error) => {
                warn!(%error, "receiving a query failed");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
