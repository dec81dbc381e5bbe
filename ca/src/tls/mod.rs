//! The TLS that every process speaks: 1.3, both sides named by SPIFFE IDs.
//!
//! Owns the rustls configurations, the verifiers behind them, and the ways in and out:
//! [`Incoming`] accepts connections for a tonic server, [`Connector`] dials for a tonic client.
//! Promises: a peer is verified against the bundle of the trust domain that its ID names, and
//! against no other; own certificate and bundles are read from a [`Held`] at each handshake, so
//! that renewal and reload need no restart. Nothing is resumed: a resumed session would not be
//! verified again (CVE-2022-21654). Left to others: what a verified peer may do, and closing
//! connections that outlive a certificate or a bundle.

mod accept;
mod config;
mod connect;
mod connection;
mod limits;
mod verify;

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls_pki_types::CertificateDer;
use tombolo_federation::names::MeshDomain;

pub use accept::Incoming;
pub(crate) use accept::causes;
pub use config::{client_config, server_config};
pub use connect::{ConnectError, Connector};
pub use connection::{Connection, PeerInfo};
pub use limits::Limits;
pub use verify::PeerRefused;
pub(crate) use verify::{Role, verify};

use crate::identity::{Identity, PeerIdentity};
use crate::x509::{CertificateError, View};

#[cfg(doc)]
use crate::material::Held;

/// The one cryptography provider.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    // Making one is cheap, but not cheap enough for each serial number.
    static PROVIDER: std::sync::OnceLock<Arc<CryptoProvider>> = std::sync::OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(aws_lc_rs::default_provider())))
}

/// What the certificates of a connection say about the peer.
///
/// Only for chains that one of our verifiers let through, as those of a finished handshake are:
/// this reads, it does not verify.
///
/// # Errors
/// When there is no leaf, or it is not one of this mesh.
pub fn peer_identity(
    verified: &[CertificateDer<'_>],
    mesh: &MeshDomain,
) -> Result<PeerIdentity, CertificateError> {
    let leaf = verified.first().ok_or(CertificateError::Count {
        expected: "a leaf and what leads to its anchor",
        found: 0,
    })?;
    let view = View::of(leaf)?;
    let id = view.spiffe_id()?;
    Ok(PeerIdentity {
        identity: Identity::of(&id, mesh).map_err(CertificateError::Name)?,
        id,
        origin: view.origin()?,
        serial: view.serial(),
        not_before: view.not_before(),
        expires: view.not_after(),
    })
}

#[cfg(test)]
mod tests;
