//! What a process holds to prove who it is and to verify others, in memory.
//!
//! Owns the one value ([`Material`]: own key and certificate, accepted bundles) with its one
//! writer ([`Holder`]) and many readers ([`Held`]). It is one value, because a certificate and the
//! bundle that proves it must never be seen half changed. Promises: whatever fails to load, renew
//! or be accepted leaves the old value in place; keys are in no `Debug`. Left to others: the files
//! ([`directory`]), and when to renew ([`crate::renew`]).

pub mod directory;

use std::fmt;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;
use tombolo_federation::names::MeshDomain;

use crate::bundle::{Accepted, Bundle, BundleError, Bundles};
use crate::clock::{TimeOutOfRange, unix};
use crate::files::FileError;
use crate::identity::{Identity, PeerIdentity};
use crate::region::{Grant, RegionCa};
use crate::root::AuthorityError;
use crate::tls::{self, PeerRefused, Role};
use crate::x509::CertificateError;

/// Why a process cannot be who it wants to be.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file's contents.
    #[error("{file} is not usable")]
    Contents {
        /// Which file.
        file: String,
        /// Why.
        #[source]
        source: CertificateError,
    },
    /// The certificate is not one to present.
    #[error("the certificate is not usable")]
    Certificate(#[source] CertificateError),
    /// Key and certificate do not belong together, or the key is of an unknown kind.
    #[error("the private key does not fit the certificate")]
    Key(#[source] rustls::Error),
    /// No peer would accept our certificate, by our own bundles.
    #[error("our own certificate does not verify{}", listed(refused))]
    Unproven {
        /// Why.
        #[source]
        source: Box<PeerRefused>,
        /// Bundle files that were not accepted, which may be why.
        refused: Vec<directory::RefusedBundle>,
    },
    /// The pinned roots.
    #[error("the pinned roots are not usable")]
    Roots(#[source] BundleError),
    /// A renewed certificate of somebody else, or files that were swapped under us.
    #[error(
        "the new certificate is for the {found}, and we are the {ours}: only a restart changes \
         who a process is"
    )]
    OtherIdentity {
        /// Who we are.
        ours: Box<Identity>,
        /// Whose it is.
        found: Box<Identity>,
    },
    /// The clock is far off.
    #[error(transparent)]
    Time(#[from] TimeOutOfRange),
}

fn listed(refused: &[directory::RefusedBundle]) -> String {
    use fmt::Write;
    refused.iter().fold(String::new(), |mut text, bundle| {
        let _ = write!(text, "; {bundle}");
        text
    })
}

/// A key with the certificate over it.
pub struct Credential {
    certified: Arc<CertifiedKey>,
    key: PrivateKeyDer<'static>,
    subject: PeerIdentity,
}

impl Credential {
    /// Puts a chain (the leaf first) and its key together.
    ///
    /// # Errors
    /// When they do not belong together, or the leaf is not of `mesh`.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        mesh: &MeshDomain,
    ) -> Result<Self, MaterialError> {
        let subject = tls::peer_identity(&chain, mesh).map_err(MaterialError::Certificate)?;
        let certified = CertifiedKey::from_der(chain, key.clone_key(), &tls::provider())
            .map_err(MaterialError::Key)?;
        Ok(Self { certified: Arc::new(certified), key, subject })
    }

    /// A new key, certified by a CA in this process.
    ///
    /// # Errors
    /// As [`RegionCa::issue`].
    pub fn issue(ca: &RegionCa, grant: &Grant, now: Timestamp) -> Result<Self, IssueError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(AuthorityError::from)?;
        let leaf = ca.issue_over(grant, &key, now)?;
        Ok(Self::new(leaf.chain, key.into(), ca.mesh())?)
    }

    /// Who it makes us.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.subject.identity
    }

    /// All that the certificate says.
    #[must_use]
    pub fn subject(&self) -> &PeerIdentity {
        &self.subject
    }

    /// When it ends.
    #[must_use]
    pub fn expires(&self) -> Timestamp {
        self.subject.expires
    }

    /// Whether it can be used at `at`.
    #[must_use]
    pub fn valid_at(&self, at: Timestamp) -> bool {
        self.subject.not_before <= at && at <= self.subject.expires
    }

    /// When to ask for the next: at half life, less up to a tenth of the life, so that what was
    /// issued together is not renewed together. Derived from the serial number, which is random,
    /// so that the answer does not change with each question.
    #[must_use]
    pub fn renewal_due(&self) -> Timestamp {
        let PeerIdentity { not_before, expires, serial, .. } = &self.subject;
        let life = expires.duration_since(*not_before);
        let spread = serial.bytes().fold(0_i32, |sum, byte| (sum * 31 + i32::from(byte)) % 1000);
        let wait = life / 2 - (life / 10_000) * spread;
        not_before.checked_add(wait.max(SignedDuration::ZERO)).unwrap_or(*not_before)
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential({}, until {}, key elided)", self.subject.id, self.subject.expires)
    }
}

/// Why a CA in this process gave us no certificate.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// It could not be made.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// It was made and is of no use.
    #[error(transparent)]
    Material(#[from] MaterialError),
}

/// Own certificate and accepted bundles, as of one moment.
#[derive(Debug, Clone)]
pub struct Material {
    credential: Arc<Credential>,
    bundles: Bundles,
}

impl Material {
    /// Puts both together.
    ///
    /// # Errors
    /// When `bundles` do not prove the credential. One that has expired is let through, as a
    /// process without a valid certificate still has work to do, and may get another.
    pub fn new(
        credential: Credential,
        bundles: Bundles,
        now: Timestamp,
    ) -> Result<Self, MaterialError> {
        Self::proven(Arc::new(credential), bundles, now)
    }

    fn proven(
        credential: Arc<Credential>,
        bundles: Bundles,
        now: Timestamp,
    ) -> Result<Self, MaterialError> {
        let subject = &credential.subject;
        let at = now.min(subject.expires).max(subject.not_before);
        let (leaf, rest) = credential.certified.cert.split_first().ok_or_else(|| {
            let expected = "a leaf and what leads to its anchor";
            MaterialError::Certificate(CertificateError::Count { expected, found: 0 })
        })?;
        tls::verify(&bundles, leaf, rest, unix(at)?, Role::Client).map_err(|source| {
            MaterialError::Unproven { source: Box::new(source), refused: Vec::new() }
        })?;
        Ok(Self { credential, bundles })
    }

    /// Our key and certificate.
    #[must_use]
    pub fn credential(&self) -> &Arc<Credential> {
        &self.credential
    }

    /// Whom we can verify.
    #[must_use]
    pub fn bundles(&self) -> &Bundles {
        &self.bundles
    }

    /// Nobody becomes somebody else while running: peers know us, and we act, as who we were.
    fn must_stay(&self, next: &Credential) -> Result<(), MaterialError> {
        let (ours, found) = (self.credential.identity(), next.identity());
        if ours == found {
            return Ok(());
        }
        let (ours, found) = (Box::new(ours.clone()), Box::new(found.clone()));
        Err(MaterialError::OtherIdentity { ours, found })
    }
}

/// What [`Holder::replace`] has replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replaced {
    /// Certificate and bundles.
    Everything,
    /// The bundles; the certificate held ends later and stays.
    Bundles,
}

/// The writer of a process's [`Material`]. Its methods may be called from several tasks (a
/// renewer, a reader of bundles): each change is made whole.
#[derive(Debug)]
pub struct Holder(watch::Sender<Arc<Material>>);

impl Holder {
    /// Holds `material` from now on.
    #[must_use]
    pub fn new(material: Material) -> Self {
        Self(watch::Sender::new(Arc::new(material)))
    }

    /// A reader.
    #[must_use]
    pub fn held(&self) -> Held {
        Held(self.0.subscribe())
    }

    /// What is held.
    #[must_use]
    pub fn current(&self) -> Arc<Material> {
        Arc::clone(&self.0.borrow())
    }

    /// Takes in what was read again from files: all `bundles`, and `credential` unless the one
    /// held ends later. That one was renewed and is not in the files (yet, or because they cannot
    /// be written), and going back would be to a certificate that ends sooner or has ended.
    ///
    /// # Errors
    /// When `credential` is of somebody else, or `bundles` prove neither; what is held then stays.
    pub fn replace(
        &self,
        credential: Credential,
        bundles: Bundles,
        now: Timestamp,
    ) -> Result<Replaced, MaterialError> {
        self.change(|current| {
            current.must_stay(&credential)?;
            let held = &current.credential;
            if held.valid_at(now) && held.expires() > credential.expires() {
                let kept = Material::proven(Arc::clone(held), bundles.clone(), now);
                if let Ok(kept) = kept {
                    return Ok((Some(kept), Replaced::Bundles));
                }
            }
            let next = Material::new(credential, bundles, now)?;
            Ok((Some(next), Replaced::Everything))
        })
    }

    /// Takes a renewed key and certificate into use at the next handshake.
    ///
    /// # Errors
    /// When it is of somebody else, or the bundles held do not prove it; the old one then stays.
    pub fn renew(&self, credential: Credential, now: Timestamp) -> Result<(), MaterialError> {
        self.change(|current| {
            current.must_stay(&credential)?;
            let next = Material::new(credential, current.bundles.clone(), now)?;
            Ok((Some(next), ()))
        })
    }

    /// Accepts a bundle, as [`Bundles::accept`].
    ///
    /// # Errors
    /// When it is not accepted; what is held then stays.
    pub fn accept(&self, bundle: Bundle, now: Timestamp) -> Result<Accepted, BundleError> {
        self.change(|current| {
            let mut next = current.clone();
            let accepted = next.bundles.accept(bundle, now)?;
            Ok(((accepted != Accepted::Unchanged).then_some(next), accepted))
        })
    }

    /// Decides and changes under one lock, so that two writers cannot undo each other.
    fn change<T, E>(
        &self,
        decide: impl FnOnce(&Material) -> Result<(Option<Material>, T), E>,
    ) -> Result<T, E> {
        let mut outcome = None;
        self.0.send_if_modified(|current| match decide(current) {
            Ok((next, value)) => {
                outcome = Some(Ok(value));
                next.map(|next| *current = Arc::new(next)).is_some()
            }
            Err(error) => {
                outcome = Some(Err(error));
                false
            }
        });
        outcome.expect("send_if_modified calls its closure exactly once")
    }
}

/// A reader of a process's [`Material`]. Clones read the same.
#[derive(Debug, Clone)]
pub struct Held(watch::Receiver<Arc<Material>>);

impl Held {
    /// What is held now. It stays so when the [`Holder`] is gone.
    #[must_use]
    pub fn current(&self) -> Arc<Material> {
        Arc::clone(&self.0.borrow())
    }

    /// Waits for a change; `None` when there will be none any more. May be dropped at any await.
    pub async fn changed(&mut self) -> Option<Arc<Material>> {
        self.0.changed().await.ok()?;
        Some(Arc::clone(&self.0.borrow_and_update()))
    }
}

#[cfg(test)]
#[path = "material_tests.rs"]
mod tests;
