//! Whether a peer's certificate chain proves the ID it carries.

use std::error::Error;
use std::io;
use std::sync::Arc;

use jiff::Timestamp;
use rustls::CertificateError as CertificateRejected;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use crate::bundle::Bundles;
use crate::identity::{Identity, InvalidId, PeerIdentity, SpiffeId, TrustDomain};
use crate::tls;
use crate::x509::{CertificateError, View};

/// Ours have none, and one more is foreseen for replicas of a region whose key is in a KMS. What
/// sends more wants us to build paths (RUSTSEC-2023-0053).
const INTERMEDIATES: usize = 3;

/// Why a peer's certificate is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum PeerRefused {
    /// Cannot be read, or carries no single name.
    #[error("the peer's certificate is not usable")]
    Malformed(#[source] CertificateError),
    /// Not an identity that this mesh gives out.
    #[error("the peer's certificate is of no identity of this mesh")]
    Stranger(#[source] InvalidId),
    /// A certificate that could sign others (X.509-SVID section 5.2), or could not sign this
    /// handshake.
    #[error("the certificate of {0} is not a leaf: a signing certificate authenticates nobody")]
    NotLeaf(SpiffeId),
    /// X.509-SVID section 4.3: what the key is for must be marked critical.
    #[error("the certificate of {0} has a keyUsage that is not critical")]
    UsageNotCritical(SpiffeId),
    /// More certificates than any path of ours has.
    #[error("{0} sent {1} certificates beside its own")]
    TooMany(SpiffeId, usize),
    /// No bundle of its trust domain is held.
    #[error("{id} cannot be verified: no bundle of trust domain {trust_domain} is held")]
    NoBundle {
        /// The peer.
        id: SpiffeId,
        /// Its trust domain.
        trust_domain: TrustDomain,
    },
    /// The bundle of its trust domain is held, but not valid at this time.
    #[error("{id} cannot be verified: the bundle of {trust_domain} is not valid now")]
    BundleNotValid {
        /// The peer.
        id: SpiffeId,
        /// Its trust domain.
        trust_domain: TrustDomain,
    },
    /// No valid path to the bundle of its trust domain: another issuer, expired, not yet valid.
    #[error("the certificate of {id} is not proven by the bundle of {trust_domain}")]
    Unproven {
        /// The peer.
        id: SpiffeId,
        /// Its trust domain.
        trust_domain: TrustDomain,
        /// What webpki found.
        #[source]
        source: webpki::Error,
    },
    /// Proven, but somebody else than was dialled.
    #[error("the server is the {found}, expected was the {expected}")]
    Unexpected {
        /// Who was dialled.
        expected: Identity,
        /// Who answered.
        found: Identity,
    },
}

/// Our own words for a failed handshake, which rustls wraps where no `source` leads.
pub(crate) fn reason(error: io::Error) -> Box<dyn Error + Send + Sync> {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    if let Some(rustls::Error::InvalidCertificate(CertificateRejected::Other(ours))) = tls {
        return Box::new(Arc::clone(&ours.0));
    }
    Box::new(error)
}

/// What the peer is to us.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Role {
    Server,
    Client,
}

/// Verifies `leaf` for the identity it carries, at `now`.
pub(crate) fn verify(
    bundles: &Bundles,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
    role: Role,
) -> Result<PeerIdentity, PeerRefused> {
    let peer = read(bundles, leaf)?;
    if intermediates.len() > INTERMEDIATES {
        return Err(PeerRefused::TooMany(peer.id, intermediates.len()));
    }
    let (id, trust_domain) = (peer.id.clone(), peer.id.trust_domain().clone());
    // Times beyond what a `Timestamp` holds are after the end of any certificate.
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let at = Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
    let anchors = bundles.anchors(&trust_domain, at);
    if anchors.is_empty() {
        return Err(if bundles.knows(&trust_domain) {
            PeerRefused::BundleNotValid { id, trust_domain }
        } else {
            PeerRefused::NoBundle { id, trust_domain }
        });
    }
    let usage = match role {
        Role::Server => KeyUsage::server_auth(),
        Role::Client => KeyUsage::client_auth(),
    };
    let algorithms = tls::provider().signature_verification_algorithms.all;
    EndEntityCert::try_from(leaf)
        .and_then(|leaf| {
            leaf.verify_for_usage(algorithms, &anchors, intermediates, now, usage, None, None)
                .map(drop)
        })
        .map_err(|source| PeerRefused::Unproven { id, trust_domain, source })?;
    Ok(peer)
}

/// The checks that webpki knows nothing of: those of an X.509-SVID.
fn read(bundles: &Bundles, leaf: &CertificateDer<'_>) -> Result<PeerIdentity, PeerRefused> {
    let view = View::of(leaf).map_err(PeerRefused::Malformed)?;
    let id = view.spiffe_id().map_err(PeerRefused::Malformed)?;
    let signs_others = view.is_ca().map_err(PeerRefused::Malformed)?
        || view.may_sign_others().map_err(PeerRefused::Malformed)?;
    if signs_others || !view.may_sign_handshakes().map_err(PeerRefused::Malformed)? {
        return Err(PeerRefused::NotLeaf(id));
    }
    if !view.usage_is_critical().map_err(PeerRefused::Malformed)? {
        return Err(PeerRefused::UsageNotCritical(id));
    }
    match tls::peer_identity(std::slice::from_ref(leaf), bundles.mesh()) {
        Ok(peer) => Ok(peer),
        Err(CertificateError::Name(source)) => Err(PeerRefused::Stranger(source)),
        Err(other) => Err(PeerRefused::Malformed(other)),
    }
}
