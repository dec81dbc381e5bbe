//! The mesh root: the key that admits regions, and nothing else.
//!
//! Promises: the root signs proofs for regions ([`crate::region`]); no verifier takes it for an
//! anchor of peers. Its key belongs offline; for trials it is a file. Left to others: which roots
//! are pinned ([`crate::bundle`]).

use std::fmt;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{DnType, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use tombolo_federation::names::MeshDomain;

use crate::clock::{TimeOutOfRange, after, before, whole};
use crate::files::{self, FileError};
use crate::identity::{InvalidId, TrustDomain};
use crate::tls;
use crate::x509::{self, CertificateError, Validity, View};

/// Twenty years: the root is pinned by every process, and the machinery to replace it needs none
/// of them to be in a hurry.
pub const LIFETIME: Duration = Duration::from_hours(20 * 365 * 24);

/// Certificates begin this long before they are made, as clocks may be 10 minutes apart.
pub const BACKDATE: Duration = Duration::from_mins(10);

/// What can go wrong while making certificates, or loading what makes them.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
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
    /// The certificate and the key beside it do not belong together.
    #[error("{file} does not belong to the private key beside it")]
    KeyMismatch {
        /// The certificate's file.
        file: String,
    },
    /// A bundle file that is none, or not of the region and mesh it should be of.
    #[error("{file} is not usable")]
    Bundle {
        /// Which file.
        file: String,
        /// Why.
        #[source]
        source: crate::bundle::BundleError,
    },
    /// Belongs to another mesh.
    #[error("the certificate is of mesh {found}, not of {expected}: is this the right directory?")]
    OtherMesh {
        /// The mesh that we are in.
        expected: MeshDomain,
        /// The one that the certificate names.
        found: String,
    },
    /// Names that do not fit a certificate.
    #[error("no certificate can carry that name")]
    Name(#[from] InvalidId),
    /// The clock is far off, or a lifetime absurd.
    #[error(transparent)]
    Time(#[from] TimeOutOfRange),
    /// The issuer's own certificate has ended, or has not begun.
    #[error("the issuing certificate is valid from {not_before} to {not_after}, and now is {now}")]
    IssuerNotValid {
        /// Its beginning.
        not_before: Timestamp,
        /// Its end.
        not_after: Timestamp,
        /// The clock.
        now: Timestamp,
    },
    /// Still valid, but not for long enough to certify anybody.
    #[error(
        "the issuing certificate ends at {not_after}, too soon after {now}: it needs a successor"
    )]
    IssuerEnding {
        /// Its end.
        not_after: Timestamp,
        /// The clock.
        now: Timestamp,
    },
    /// Generations count from 1.
    #[error("a region's key has a generation of 1 or more")]
    NoGeneration,
    /// An identity of a region that this CA does not speak for.
    #[error("the CA of {ours} does not certify the {identity}")]
    OtherRegion {
        /// The CA's region.
        ours: tombolo_federation::names::RegionName,
        /// What was asked for.
        identity: crate::Identity,
    },
    /// Signing failed.
    #[error("the certificate cannot be made")]
    Signing(#[from] rcgen::Error),
    /// No randomness.
    #[error("the machine gives no random numbers")]
    Random(#[from] rustls::Error),
}

/// A mesh root's certificate. What a process pins.
#[derive(Clone, PartialEq, Eq)]
pub struct RootCertificate {
    der: CertificateDer<'static>,
    mesh: MeshDomain,
}

impl RootCertificate {
    /// Reads a PEM file's contents: exactly one certificate.
    ///
    /// # Errors
    /// When it is not one CA certificate that names a mesh.
    pub fn from_pem(pem: &[u8]) -> Result<Self, CertificateError> {
        let found = x509::certificates(pem)?;
        match <[_; 1]>::try_from(found) {
            Ok([der]) => Self::from_der(der),
            Err(found) => {
                Err(CertificateError::Count { expected: "one certificate", found: found.len() })
            }
        }
    }

    fn from_der(der: CertificateDer<'static>) -> Result<Self, CertificateError> {
        let view = View::of(&der)?;
        if !view.is_ca()? || !view.may_certify()? {
            return Err(CertificateError::NotCa);
        }
        let id = view.spiffe_id()?;
        let mesh = id.trust_domain().as_str().parse().ok().filter(|_| id.path().is_empty());
        let mesh = mesh.ok_or(CertificateError::NotCa)?;
        Ok(Self { der, mesh })
    }

    /// The mesh it admits regions to.
    #[must_use]
    pub fn mesh(&self) -> &MeshDomain {
        &self.mesh
    }

    /// SHA-256 of the certificate: which root it is, in 32 bytes.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        Sha256::digest(&self.der).into()
    }

    /// As a PEM file.
    #[must_use]
    pub fn to_pem(&self) -> String {
        x509::to_pem(std::slice::from_ref(&self.der))
    }

    pub(crate) fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }
}

impl fmt::Debug for RootCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RootCertificate({})", self.mesh)
    }
}

/// A mesh root with its key.
pub struct MeshRoot {
    certificate: RootCertificate,
    key: KeyPair,
}

impl MeshRoot {
    /// Makes a new root.
    ///
    /// # Errors
    /// When the clock is far off or the machine gives no random numbers.
    pub fn create(mesh: &MeshDomain, now: Timestamp) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let validity = Validity {
            not_before: before(whole(now), BACKDATE)?,
            not_after: after(whole(now), LIFETIME)?,
        };
        let subject = [(DnType::CommonName, "mesh root")];
        let mut params = x509::params(&subject, validity, x509::serial(&tls::provider())?)?;
        x509::make_ca(&mut params, 2);
        let id = mesh.as_str().parse::<TrustDomain>()?.spiffe_id();
        params.subject_alt_names = vec![x509::uri(&id)?];
        let der = params.self_signed(&key)?.into();
        Ok(Self { certificate: RootCertificate { der, mesh: mesh.clone() }, key })
    }

    /// Writes `root-key.pem` (0600) and `root.pem` into `dir`.
    ///
    /// # Errors
    /// When there is a key already, or the files cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(), AuthorityError> {
        files::create_private_dir(dir)?;
        let key = dir.join(KEY_FILE);
        files::must_not_exist(&key)?;
        // The key last: if we are killed in between, there is none and so nothing to lose.
        files::write(&dir.join(CERTIFICATE_FILE), &self.certificate.to_pem())?;
        Ok(files::write_secret(&key, &self.key.serialize_pem())?)
    }

    /// Loads the root in `dir`, or makes and saves one if there is no key.
    ///
    /// # Errors
    /// As [`MeshRoot::load`], [`MeshRoot::create`] and [`MeshRoot::save`].
    pub fn load_or_create(
        dir: &Path,
        mesh: &MeshDomain,
        now: Timestamp,
    ) -> Result<Self, AuthorityError> {
        if files::must_not_exist(&dir.join(KEY_FILE)).is_err() {
            return Self::load(dir, mesh);
        }
        let root = Self::create(mesh, now)?;
        root.save(dir)?;
        Ok(root)
    }

    /// Reads what [`MeshRoot::save`] wrote.
    ///
    /// # Errors
    /// Names the file and what is wrong with it; also when it is the root of another mesh.
    pub fn load(dir: &Path, mesh: &MeshDomain) -> Result<Self, AuthorityError> {
        let key = load_key(&dir.join(KEY_FILE))?;
        let path = dir.join(CERTIFICATE_FILE);
        let certificate =
            RootCertificate::from_pem(&files::read(&path)?).map_err(contents(&path))?;
        if certificate.mesh != *mesh {
            let found = certificate.mesh.to_string();
            return Err(AuthorityError::OtherMesh { expected: mesh.clone(), found });
        }
        must_match(&key, &certificate.der, &path)?;
        Ok(Self { certificate, key })
    }

    /// The public half, to be pinned.
    #[must_use]
    pub fn certificate(&self) -> &RootCertificate {
        &self.certificate
    }

    pub(crate) fn validity(&self) -> Result<Validity, AuthorityError> {
        let view = View::of(&self.certificate.der).map_err(contents(Path::new("the root")))?;
        Ok(Validity { not_before: view.not_before(), not_after: view.not_after() })
    }

    pub(crate) fn issuer(&self) -> Result<Issuer<'static, &KeyPair>, rcgen::Error> {
        Issuer::from_ca_cert_der(&self.certificate.der, &self.key)
    }
}

impl fmt::Debug for MeshRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MeshRoot({}, key elided)", self.certificate.mesh)
    }
}

const KEY_FILE: &str = "root-key.pem";
/// Where a directory of a mesh root has its certificate.
pub const CERTIFICATE_FILE: &str = "root.pem";

pub(crate) fn contents(path: &Path) -> impl FnOnce(CertificateError) -> AuthorityError {
    move |source| AuthorityError::Contents { file: path.display().to_string(), source }
}

/// The only key of a secret PEM file.
pub(crate) fn load_key(path: &Path) -> Result<KeyPair, AuthorityError> {
    let keys = x509::keys(&files::read_secret(path)?).map_err(contents(path))?;
    let [key] = &keys[..] else {
        let expected = "one private key";
        return Err(contents(path)(CertificateError::Count { expected, found: keys.len() }));
    };
    KeyPair::try_from(key).map_err(|e| contents(path)(CertificateError::Key(e)))
}

pub(crate) fn must_match(
    key: &KeyPair,
    certificate: &CertificateDer<'_>,
    path: &Path,
) -> Result<(), AuthorityError> {
    use rcgen::PublicKeyData;
    let view = View::of(certificate).map_err(contents(path))?;
    if view.public_key() == key.subject_public_key_info() {
        return Ok(());
    }
    Err(AuthorityError::KeyMismatch { file: path.display().to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{NOW, mesh};

    #[test]
    fn a_root_is_loaded_as_it_was_saved_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let root = MeshRoot::create(&mesh(), NOW).unwrap();
        root.save(dir.path()).unwrap();
        let loaded = MeshRoot::load(dir.path(), &mesh()).unwrap();
        assert_eq!(loaded.certificate(), root.certificate());
        assert!(matches!(
            root.save(dir.path()),
            Err(AuthorityError::File(FileError::Exists { .. }))
        ));
        assert!(!format!("{loaded:?}").contains("BEGIN"));
        let again = MeshRoot::load_or_create(dir.path(), &mesh(), NOW).unwrap();
        assert_eq!(again.certificate(), root.certificate());
        // Killed between the two files: there is a certificate, and no key yet.
        std::fs::remove_file(dir.path().join("root-key.pem")).unwrap();
        let new = MeshRoot::load_or_create(dir.path(), &mesh(), NOW).unwrap();
        assert_ne!(new.certificate(), root.certificate());
        MeshRoot::load(dir.path(), &mesh()).unwrap();
    }

    #[test]
    fn only_who_may_sign_certificates_is_a_root() {
        use rcgen::KeyUsagePurpose::{CrlSign, KeyCertSign};
        let pinned = |usages| {
            let validity = Validity { not_before: NOW, not_after: NOW };
            let mut params = x509::params(&[], validity, [7; 16]).unwrap();
            x509::make_ca(&mut params, 2);
            let id = mesh().as_str().parse::<TrustDomain>().unwrap().spiffe_id();
            params.subject_alt_names = vec![x509::uri(&id).unwrap()];
            params.key_usages = usages;
            RootCertificate::from_der(
                params.self_signed(&KeyPair::generate().unwrap()).unwrap().into(),
            )
        };
        pinned(vec![KeyCertSign]).unwrap();
        for usages in [vec![CrlSign], vec![]] {
            assert!(matches!(pinned(usages), Err(CertificateError::NotCa)));
        }
    }

    #[test]
    fn the_root_of_another_mesh_and_a_strangers_key_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        MeshRoot::create(&mesh(), NOW).unwrap().save(dir.path()).unwrap();
        let other = "other.example".parse().unwrap();
        assert!(matches!(
            MeshRoot::load(dir.path(), &other),
            Err(AuthorityError::OtherMesh { .. })
        ));
        let stranger = MeshRoot::create(&mesh(), NOW).unwrap().certificate.to_pem();
        std::fs::write(dir.path().join("root.pem"), stranger).unwrap();
        let error = MeshRoot::load(dir.path(), &mesh()).unwrap_err();
        assert!(matches!(error, AuthorityError::KeyMismatch { .. }), "{error}");
        std::fs::write(dir.path().join("root.pem"), "no PEM").unwrap();
        let error = MeshRoot::load(dir.path(), &mesh()).unwrap_err();
        assert!(error.to_string().contains("root.pem"), "{error}");
    }
}
