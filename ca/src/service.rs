//! The CA's gRPC service: who is given a certificate, and for what.
//!
//! Promises: a certificate is for the identity that the caller proved and no other;
//! an unknown kind of proof is refused before anything else is looked at; every issuance and
//! every refusal is one line of the log's `audit` target. Left to others: rate limits (the
//! server's layers), and which identities may exist at all.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use tonic::{Request, Response, Status};
use tracing::{error, info, warn};

use crate::clock::Clock;
use crate::identity::PeerIdentity;
use crate::proto::certificate_authority_server::{
    CertificateAuthority, CertificateAuthorityServer,
};
use crate::proto::sign_request::Proof as ProofKind;
use crate::proto::{SignRequest, SignResponse};
use crate::region::{Grant, LEAF_LIFETIME, Leaf, RegionCa};
use crate::request::{RequestError, RequestedKey};
use crate::root::AuthorityError;
use crate::tls::{PeerInfo, causes};

/// How a caller has proven who it is. Each kind says what may be issued on its strength.
#[derive(Debug, Clone)]
pub enum Proof {
    /// By the certificate of its connection: it gets another for the same identity and origin,
    /// for [`LEAF_LIFETIME`]. How long that one lived is no measure: one cut short by its issuer's
    /// end would pass its short life on for ever.
    Certificate(Arc<PeerIdentity>),
}

impl Proof {
    fn grant(&self, now: Timestamp) -> Result<Grant, SignError> {
        match self {
            // Handshakes check the dates; a connection may be older than that.
            Self::Certificate(peer) if now > peer.expires => {
                Err(SignError::ProofExpired { expired: peer.expires })
            }
            Self::Certificate(peer) => Ok(Grant {
                identity: peer.identity.clone(),
                origin: peer.origin.clone(),
                lifetime: LEAF_LIFETIME,
            }),
        }
    }

    fn peer(&self) -> &PeerIdentity {
        match self {
            Self::Certificate(peer) => peer,
        }
    }
}

/// Why a caller gets no certificate.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The request is not one that is ever granted.
    #[error("the certificate request is refused")]
    Request(#[source] RequestError),
    /// A kind of proof that this version does not know, or none.
    #[error("no proof of a kind that is known here")]
    UnknownProof,
    /// The caller presented no certificate.
    #[error("the connection has no client certificate")]
    Unproven,
    /// The caller's certificate has ended since the connection was made.
    #[error("the certificate of this connection expired at {expired}")]
    ProofExpired {
        /// When.
        expired: Timestamp,
    },
    /// Proven, but not an identity that this CA speaks for.
    #[error("not permitted")]
    NotPermitted(#[source] AuthorityError),
    /// This CA's own certificates have ended, or are about to.
    #[error("the region's own certificate is not valid now, or not for long enough")]
    IssuerNotValid(#[source] AuthorityError),
    /// Our fault.
    #[error("the certificate cannot be made")]
    Internal(#[source] AuthorityError),
}

impl SignError {
    fn issuing(error: AuthorityError) -> Self {
        match error {
            AuthorityError::OtherRegion { .. } => Self::NotPermitted(error),
            AuthorityError::IssuerNotValid { .. } | AuthorityError::IssuerEnding { .. } => {
                Self::IssuerNotValid(error)
            }
            AuthorityError::File(_)
            | AuthorityError::Contents { .. }
            | AuthorityError::KeyMismatch { .. }
            | AuthorityError::Bundle { .. }
            | AuthorityError::OtherMesh { .. }
            | AuthorityError::Name(_)
            | AuthorityError::Time(_)
            | AuthorityError::NoGeneration
            | AuthorityError::Signing(_)
            | AuthorityError::Random(_) => Self::Internal(error),
        }
    }
}

/// The only place where errors become codes. What is the caller's fault is explained to it.
impl From<&SignError> for Status {
    fn from(error: &SignError) -> Self {
        match error {
            SignError::Request(source) => Self::invalid_argument(causes(source)),
            SignError::UnknownProof => Self::invalid_argument(error.to_string()),
            SignError::Unproven | SignError::ProofExpired { .. } => {
                Self::unauthenticated(error.to_string())
            }
            SignError::NotPermitted(_) => Self::permission_denied("not permitted"),
            SignError::IssuerNotValid(_) => Self::failed_precondition(error.to_string()),
            SignError::Internal(_) => Self::internal("internal error"),
        }
    }
}

/// Decides and issues.
#[derive(Debug)]
pub struct Authority {
    ca: Arc<RegionCa>,
    clock: Clock,
}

impl Authority {
    /// Issues with `ca`.
    #[must_use]
    pub fn new(ca: Arc<RegionCa>, clock: Clock) -> Self {
        Self { ca, clock }
    }

    /// As a service for a tonic server behind [`crate::tls::Incoming`].
    #[must_use]
    pub fn into_service(self) -> CertificateAuthorityServer<Self> {
        CertificateAuthorityServer::new(self).max_decoding_message_size(64 * 1024)
    }

    /// A certificate over the key of `csr` for what `proof` proves.
    ///
    /// # Errors
    /// Says whose fault it is.
    pub fn issue(&self, proof: &Proof, csr: &[u8]) -> Result<Leaf, SignError> {
        let now = self.clock.now();
        let grant = proof.grant(now)?;
        let key = RequestedKey::from_csr(csr, &proof.peer().id).map_err(SignError::Request)?;
        self.ca.issue(&grant, &key, now).map_err(SignError::issuing)
    }
}

fn proof(kind: Option<&ProofKind>, connection: Option<&PeerInfo>) -> Result<Proof, SignError> {
    match kind {
        None => Err(SignError::UnknownProof),
        Some(ProofKind::CurrentCertificate(_)) => connection
            .and_then(|peer| peer.identity.clone())
            .map(Proof::Certificate)
            .ok_or(SignError::Unproven),
    }
}

#[tonic::async_trait]
impl CertificateAuthority for Authority {
    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let connection = request.extensions().get::<PeerInfo>().cloned();
        let request = request.into_inner();
        let outcome = proof(request.proof.as_ref(), connection.as_ref())
            .and_then(|proof| self.issue(&proof, &request.csr));
        audit(connection.as_ref(), &outcome);
        match outcome {
            Ok(leaf) => {
                let chain = leaf.chain.iter().map(|der| Bytes::copy_from_slice(der)).collect();
                Ok(Response::new(SignResponse { chain }))
            }
            Err(error) => Err(Status::from(&error)),
        }
    }
}

/// One line per request. Values that a caller chose are in the debug form, which is escaped.
fn audit(connection: Option<&PeerInfo>, outcome: &Result<Leaf, SignError>) {
    let remote = connection.map(|peer| peer.remote);
    let caller = connection.and_then(|peer| peer.identity.as_deref());
    let (caller, proof_serial) = (caller.map(|c| &c.id), caller.map(|c| c.serial.as_str()));
    match outcome {
        Ok(leaf) => info!(
            target: "audit", ?remote, ?caller, proof_serial,
            id = %leaf.id, serial = leaf.serial, not_before = %leaf.not_before,
            expires = %leaf.not_after, "certificate issued"
        ),
        Err(refused @ SignError::Internal(_)) => error!(
            target: "audit", ?remote, ?caller, proof_serial, error = ?causes(refused),
            "certificate not issued"
        ),
        Err(refused) => warn!(
            target: "audit", ?remote, ?caller, proof_serial, error = ?causes(refused),
            "certificate refused"
        ),
    }
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
