//! Who is who in the mesh, and the proof of it.
//!
//! Owns identities (SPIFFE), the mesh root, the regions' issuing keys, certificate requests,
//! issuing and renewal, trust bundles, and the TLS that every process speaks. Promises: a region's
//! key certifies names of that region and of no other; what is verified is verified against the
//! bundle of the trust domain that the peer's ID names; a failed renewal, reload or fetch leaves
//! what is valid in use; wall time comes from a [`Clock`] that the caller passes in.
//!
//! Leaves to others: who may do what (`tombolo`), which endpoints an identity backs
//! (`tombolo-federation`), SDS for proxies (`tombolo-proxy`).

pub mod bundle;
mod clock;
mod files;
pub mod identity;
pub mod material;
pub mod region;
pub mod renew;
pub mod request;
pub mod root;
pub mod service;
#[cfg(test)]
mod testing;
pub mod tls;
mod x509;

pub use clock::{Clock, TimeOutOfRange};
pub use files::FileError;
pub use identity::{Identity, Origin, PeerIdentity, SpiffeId, TrustDomain};
pub use x509::CertificateError;

/// Wire messages, generated from `proto/`.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::use_self,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod proto {
    tonic::include_proto!("tombolo.ca.v1");
}
