//! A region's issuing CA: one key, two certificates over it.
//!
//! The self-signed one is what verifiers anchor on; the one by the mesh root is the proof that
//! admits the first into the mesh, names the trust domain and carries the key's generation. An
//! issuing certificate by the shared root as the anchor was turned down: every region could then
//! mint every other region's names.
//!
//! Promises: leaves are X.509-SVIDs of this region and of no other, live no longer than both
//! certificates, and hold nothing that the caller chose but the public key; an issuer that is
//! about to end refuses instead of issuing for a moment. Left to others: who proved what
//! ([`crate::service`]).

use std::fmt;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use rustls_pki_types::CertificateDer;
use tombolo_federation::names::{MeshDomain, RegionName};

use crate::bundle::Bundle;
use crate::clock::{after, before, whole};
use crate::files;
use crate::identity::{Identity, Origin, SpiffeId, TrustDomain};
use crate::request::RequestedKey;
use crate::root::{AuthorityError, BACKDATE, MeshRoot, load_key, must_match};
use crate::tls;
use crate::x509::{self, Validity};

/// Two years for a region's certificates.
pub const LIFETIME: Duration = Duration::from_hours(2 * 365 * 24);

/// A day for a leaf: with renewal at half life, 12 hours without a CA are survived.
pub const LEAF_LIFETIME: Duration = Duration::from_hours(24);

/// What an issuer must have left to issue. A shorter leaf would be due for renewal almost at once,
/// and each further one sooner; refusing loses nothing, as a leaf that is renewed in time has as
/// much left.
pub const SHORTEST_LEAF: Duration = Duration::from_hours(1);

/// What a leaf shall say. Whoever makes one has verified every part of it.
#[derive(Debug, Clone)]
pub struct Grant {
    /// Who the holder is.
    pub identity: Identity,
    /// Where the holder runs.
    pub origin: Option<Origin>,
    /// How long it lives at most.
    pub lifetime: Duration,
}

impl Grant {
    /// A grant for [`LEAF_LIFETIME`]. An agent's origin is its cluster.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        let origin = match &identity {
            Identity::Agent { cluster, .. } => Some(Origin { cluster: cluster.clone(), pod: None }),
            Identity::Workload { .. } | Identity::ControlPlane { .. } => None,
        };
        Self { identity, origin, lifetime: LEAF_LIFETIME }
    }
}

/// An issued certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// The leaf first, then what leads to the anchor, without the anchor.
    pub chain: Vec<CertificateDer<'static>>,
    /// The ID it carries.
    pub id: SpiffeId,
    /// Its serial number, in hexadecimal.
    pub serial: String,
    /// Its beginning.
    pub not_before: Timestamp,
    /// Its end.
    pub not_after: Timestamp,
}

/// A region's issuing key with its certificates.
pub struct RegionCa {
    region: RegionName,
    mesh: MeshDomain,
    bundle: Bundle,
    key: KeyPair,
}

impl RegionCa {
    /// Makes a region's key, and has `root` admit it as `generation` (1 for the first).
    ///
    /// # Errors
    /// When the root is not valid now, or the names or times do not fit a certificate.
    pub fn create(
        root: &MeshRoot,
        region: &RegionName,
        generation: u64,
        now: Timestamp,
    ) -> Result<Self, AuthorityError> {
        if generation == 0 {
            return Err(AuthorityError::NoGeneration);
        }
        let mesh = root.certificate().mesh().clone();
        let trust_domain = TrustDomain::of(region, &mesh)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let validity = within(lifetime(now, LIFETIME)?, root.validity()?, now)?;
        let certificate =
            region_params(region, &trust_domain, generation, validity)?.self_signed(&key)?.into();
        let mut proof = region_params(region, &trust_domain, generation, validity)?;
        proof.custom_extensions.push(x509::generation_extension(generation));
        let proof = proof.signed_by(&key, &root.issuer()?)?.into();
        let bundle = Bundle::of(certificate, proof).map_err(|source| AuthorityError::Bundle {
            file: "the new bundle".to_owned(),
            source,
        })?;
        Ok(Self { region: region.clone(), mesh, bundle, key })
    }

    /// Writes `region-key.pem` (0600) and `region.pem`, the bundle, into `dir`.
    ///
    /// # Errors
    /// When there is a key already, or the files cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(), AuthorityError> {
        files::create_private_dir(dir)?;
        let key = dir.join(KEY_FILE);
        files::must_not_exist(&key)?;
        // The key last: if we are killed in between, there is none and so nothing to lose.
        files::write(&dir.join(BUNDLE_FILE), &self.bundle.to_pem())?;
        Ok(files::write_secret(&key, &self.key.serialize_pem())?)
    }

    /// Loads the CA in `dir`, or makes one of generation 1 and saves it if there is no key.
    ///
    /// # Errors
    /// As [`RegionCa::load`], [`RegionCa::create`] and [`RegionCa::save`].
    pub fn load_or_create(
        dir: &Path,
        root: &MeshRoot,
        region: &RegionName,
        now: Timestamp,
    ) -> Result<Self, AuthorityError> {
        if files::must_not_exist(&dir.join(KEY_FILE)).is_err() {
            return Self::load(dir, region, root.certificate().mesh());
        }
        let ca = Self::create(root, region, 1, now)?;
        ca.save(dir)?;
        Ok(ca)
    }

    /// Reads what [`RegionCa::save`] wrote.
    ///
    /// # Errors
    /// Names the file and what is wrong with it; also when it is of another region or mesh.
    pub fn load(
        dir: &Path,
        region: &RegionName,
        mesh: &MeshDomain,
    ) -> Result<Self, AuthorityError> {
        let key = load_key(&dir.join(KEY_FILE))?;
        let path = dir.join(BUNDLE_FILE);
        let bundle = Bundle::from_pem(&files::read(&path)?).map_err(|source| {
            AuthorityError::Bundle { file: path.display().to_string(), source }
        })?;
        must_match(&key, bundle.certificate(), &path)?;
        let expected = TrustDomain::of(region, mesh)?;
        if *bundle.trust_domain() != expected {
            let source = crate::bundle::BundleError::OtherTrustDomain {
                expected,
                found: bundle.trust_domain().clone(),
            };
            return Err(AuthorityError::Bundle { file: path.display().to_string(), source });
        }
        Ok(Self { region: region.clone(), mesh: mesh.clone(), bundle, key })
    }

    /// The region.
    #[must_use]
    pub fn region(&self) -> &RegionName {
        &self.region
    }

    /// The mesh.
    #[must_use]
    pub fn mesh(&self) -> &MeshDomain {
        &self.mesh
    }

    /// What verifiers need to verify leaves of this CA.
    #[must_use]
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// Issues a leaf over `key`.
    ///
    /// # Errors
    /// When the identity is not of this region, or this CA's own certificates are not valid now
    /// or end before [`SHORTEST_LEAF`] (and before `grant`) does.
    pub fn issue(
        &self,
        grant: &Grant,
        key: &RequestedKey,
        now: Timestamp,
    ) -> Result<Leaf, AuthorityError> {
        self.issue_over(grant, key.info(), now)
    }

    pub(crate) fn issue_over(
        &self,
        grant: &Grant,
        key: &impl rcgen::PublicKeyData,
        now: Timestamp,
    ) -> Result<Leaf, AuthorityError> {
        if *grant.identity.region() != self.region {
            let (ours, identity) = (self.region.clone(), grant.identity.clone());
            return Err(AuthorityError::OtherRegion { ours, identity });
        }
        let validity = within(lifetime(now, grant.lifetime)?, self.bundle.validity(), now)?;
        self.must_last(grant.lifetime.min(SHORTEST_LEAF), now)?;
        let id = grant.identity.spiffe_id(&self.mesh)?;
        let serial = x509::serial(&tls::provider())?;
        let params = leaf_params(&id, grant.origin.as_ref(), validity, serial)?;
        let leaf = params.signed_by(key, &self.issuer()?)?;
        Ok(Leaf {
            chain: vec![leaf.into()],
            id,
            serial: x509::hex(&serial),
            not_before: validity.not_before,
            not_after: validity.not_after,
        })
    }

    fn must_last(&self, least: Duration, now: Timestamp) -> Result<(), AuthorityError> {
        let not_after = self.bundle.validity().not_after;
        if not_after < after(whole(now), least)? {
            return Err(AuthorityError::IssuerEnding { not_after, now });
        }
        Ok(())
    }

    pub(crate) fn issuer(&self) -> Result<Issuer<'static, &KeyPair>, rcgen::Error> {
        Issuer::from_ca_cert_der(self.bundle.certificate(), &self.key)
    }
}

impl fmt::Debug for RegionCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegionCa({}, key elided)", self.bundle.trust_domain())
    }
}

const KEY_FILE: &str = "region-key.pem";
/// Where the directory of a region's CA has its bundle.
pub const BUNDLE_FILE: &str = "region.pem";

fn lifetime(now: Timestamp, life: Duration) -> Result<Validity, AuthorityError> {
    let now = whole(now);
    Ok(Validity { not_before: before(now, BACKDATE)?, not_after: after(now, life)? })
}

/// `wanted`, but never outside of the issuer's own dates, and nothing at all outside of them.
fn within(wanted: Validity, issuer: Validity, now: Timestamp) -> Result<Validity, AuthorityError> {
    let Validity { not_before, not_after } = issuer;
    if now < not_before || now >= not_after {
        return Err(AuthorityError::IssuerNotValid { not_before, not_after, now });
    }
    Ok(Validity {
        not_before: wanted.not_before.max(not_before),
        not_after: wanted.not_after.min(not_after),
    })
}

fn region_params(
    region: &RegionName,
    trust_domain: &TrustDomain,
    generation: u64,
    validity: Validity,
) -> Result<CertificateParams, AuthorityError> {
    // The generation in the name lets path builders tell two keys of a region apart.
    let unit = format!("region CA, generation {generation}");
    let subject =
        [(DnType::OrganizationalUnitName, unit.as_str()), (DnType::CommonName, region.as_str())];
    let mut params = x509::params(&subject, validity, x509::serial(&tls::provider())?)?;
    // Room for one intermediate: a replica's own, where the region's key stays in a KMS.
    x509::make_ca(&mut params, 1);
    params.subject_alt_names = vec![x509::uri(&trust_domain.spiffe_id())?];
    Ok(params)
}

fn leaf_params(
    id: &SpiffeId,
    origin: Option<&Origin>,
    validity: Validity,
    serial: [u8; 16],
) -> Result<CertificateParams, AuthorityError> {
    let mut params = x509::params(&[], validity, serial)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.subject_alt_names = vec![x509::uri(id)?];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.custom_extensions.extend(origin.map(x509::origin_extension));
    Ok(params)
}

#[cfg(test)]
#[path = "region_tests.rs"]
mod tests;
