//! Trust bundles: what a verifier needs to know of a region, and why it believes it.
//!
//! Owns the file form (PEM: the self-signed certificate, then the proof by the mesh root) and the
//! rule of acceptance. A [`Bundle`] is a claim; [`Bundles`] holds those that were accepted, and
//! [`Bundles::accept`] is the only way in. Promises: which bundles are held depends on which were
//! seen and not on their order; a bundle that cannot be read or accepted changes nothing, so that
//! "fetch failed" never becomes "trust nobody". Turned down: a merged pool of all regions' CAs,
//! in which each could mint the others' names.
//!
//! A limit of bundles that are configured as files: the newest generation seen of a region, below
//! which [`BundleError::TooOld`] refuses, is known in memory only, and for as long as its file is
//! there. A restart or reload with an older file alone takes the older key back, which the root
//! has once admitted and which may be a withdrawn one. Whoever writes the files is trusted with
//! that. Bundles that come from peers may not be accepted so: before they do, the newest
//! generation of each region has to be written down and survive both.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use rustls_pki_types::{CertificateDer, TrustAnchor};
use tombolo_federation::names::MeshDomain;

use crate::identity::TrustDomain;
use crate::root::RootCertificate;
use crate::x509::{self, CertificateError, Validity, View};

/// Why a bundle is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// One of its two certificates cannot be read.
    #[error("the bundle's {which} is not usable")]
    Certificate {
        /// `region certificate` or `proof`.
        which: &'static str,
        /// Why.
        #[source]
        source: CertificateError,
    },
    /// Not two certificates.
    #[error("not a bundle file: a region's self-signed certificate and its proof, in PEM")]
    File(#[source] CertificateError),
    /// The proof carries no generation, or generation 0.
    #[error("the proof for {0} carries no generation")]
    NoGeneration(TrustDomain),
    /// Certificate and proof say different things.
    #[error("region certificate and proof for {trust_domain} differ in their {what}")]
    Differ {
        /// What the proof is for.
        trust_domain: TrustDomain,
        /// `key`, `trust domain` or `subject`.
        what: &'static str,
    },
    /// The region certificate is not signed by its own key.
    #[error("the region certificate of {0} is not self-signed")]
    NotSelfSigned(TrustDomain),
    /// The bundle of another region or mesh than it should be of.
    #[error("the bundle is of {found}, not of {expected}")]
    OtherTrustDomain {
        /// Whose it should be.
        expected: TrustDomain,
        /// Whose it is.
        found: TrustDomain,
    },
    /// Its trust domain is not `<region>.<our mesh>`.
    #[error("{found} is not a region of mesh {mesh}")]
    OtherMesh {
        /// Our mesh.
        mesh: MeshDomain,
        /// What the bundle is for.
        found: TrustDomain,
    },
    /// No pinned root signed the proof, or the root that did is not valid now.
    #[error("the proof for {0} is not by a pinned mesh root that is valid now")]
    NotAdmitted(TrustDomain),
    /// Ended, or not begun.
    #[error("the bundle of {trust_domain} is valid from {not_before} to {not_after}, now is {now}")]
    NotValid {
        /// Whose it is.
        trust_domain: TrustDomain,
        /// Its beginning.
        not_before: Timestamp,
        /// Its end.
        not_after: Timestamp,
        /// The clock.
        now: Timestamp,
    },
    /// Older than the last but one.
    #[error("the bundle of {trust_domain} has generation {found}, and {newest} is known: too old")]
    TooOld {
        /// Whose it is.
        trust_domain: TrustDomain,
        /// Its generation.
        found: u64,
        /// The newest that was accepted.
        newest: u64,
    },
    /// Two keys claim one generation: the root has signed twice, someone must look.
    #[error(
        "the bundle of {trust_domain} has another key than the held one of generation {generation}"
    )]
    OtherKey {
        /// Whose it is.
        trust_domain: TrustDomain,
        /// The generation of both.
        generation: u64,
    },
    /// A set of bundles without a pinned root accepts nothing.
    #[error("no mesh root is pinned")]
    NoRoot,
    /// A pinned root of another mesh.
    #[error("a pinned root is of mesh {found}, not of {mesh}")]
    OtherRoot {
        /// Our mesh.
        mesh: MeshDomain,
        /// The root's.
        found: MeshDomain,
    },
}

/// A region's certificates, as a claim. See [`Bundles::accept`].
#[derive(Clone, PartialEq, Eq)]
pub struct Bundle {
    trust_domain: TrustDomain,
    certificate: CertificateDer<'static>,
    proof: CertificateDer<'static>,
    generation: u64,
    validity: Validity,
}

impl Bundle {
    /// Reads both certificates, without believing them.
    ///
    /// # Errors
    /// When they cannot be read, or the proof names no trust domain or generation.
    pub fn of(
        certificate: CertificateDer<'static>,
        proof: CertificateDer<'static>,
    ) -> Result<Self, BundleError> {
        let (ours, theirs) = (view(&certificate, REGION)?, view(&proof, PROOF)?);
        let id = theirs.spiffe_id().map_err(bad(PROOF))?;
        if !id.path().is_empty() {
            return Err(bad(PROOF)(CertificateError::NotCa));
        }
        let trust_domain = id.trust_domain().clone();
        let generation = theirs.generation().map_err(bad(PROOF))?.filter(|g| *g > 0);
        let generation =
            generation.ok_or_else(|| BundleError::NoGeneration(trust_domain.clone()))?;
        let validity = Validity {
            not_before: ours.not_before().max(theirs.not_before()),
            not_after: ours.not_after().min(theirs.not_after()),
        };
        Ok(Self { trust_domain, certificate, proof, generation, validity })
    }

    /// Reads a bundle file.
    ///
    /// # Errors
    /// When it is not PEM, does not hold exactly two certificates, or as [`Bundle::of`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, BundleError> {
        let found = x509::certificates(pem).map_err(BundleError::File)?;
        match <[_; 2]>::try_from(found) {
            Ok([certificate, proof]) => Self::of(certificate, proof),
            Err(found) => {
                let expected = "two certificates";
                Err(BundleError::File(CertificateError::Count { expected, found: found.len() }))
            }
        }
    }

    /// The self-signed certificate alone, for verifiers that take every certificate of a file for
    /// an anchor: the proof is none.
    #[must_use]
    pub fn anchor_pem(&self) -> String {
        x509::to_pem(std::slice::from_ref(&self.certificate))
    }

    /// As a bundle file.
    #[must_use]
    pub fn to_pem(&self) -> String {
        x509::to_pem(&[self.certificate.clone(), self.proof.clone()])
    }

    /// Whose it claims to be.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Which key of the region it claims to be about.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The self-signed certificate: the anchor, for Envoy's validator too.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The certificate by the mesh root.
    #[must_use]
    pub fn proof(&self) -> &CertificateDer<'static> {
        &self.proof
    }

    /// When it ends.
    #[must_use]
    pub fn not_after(&self) -> Timestamp {
        self.validity.not_after
    }

    pub(crate) fn validity(&self) -> Validity {
        self.validity
    }

    fn valid_at(&self, now: Timestamp) -> bool {
        self.validity.not_before <= now && now <= self.validity.not_after
    }

    /// Every check that needs no memory of earlier bundles.
    fn verify(
        &self,
        mesh: &MeshDomain,
        roots: &[RootCertificate],
        now: Timestamp,
    ) -> Result<(), BundleError> {
        let trust_domain = || self.trust_domain.clone();
        if self.trust_domain.region(mesh).is_none() {
            return Err(BundleError::OtherMesh { mesh: mesh.clone(), found: trust_domain() });
        }
        let (ours, proof) = (view(&self.certificate, REGION)?, view(&self.proof, PROOF)?);
        self.must_agree(&ours, &proof)?;
        if !ours.is_signed_by(&ours) {
            return Err(BundleError::NotSelfSigned(trust_domain()));
        }
        if !roots.iter().any(|root| admits(root, &proof, now)) {
            return Err(BundleError::NotAdmitted(trust_domain()));
        }
        if !self.valid_at(now) {
            let Validity { not_before, not_after } = self.validity;
            let trust_domain = trust_domain();
            return Err(BundleError::NotValid { trust_domain, not_before, not_after, now });
        }
        Ok(())
    }

    fn must_agree(&self, ours: &View<'_>, proof: &View<'_>) -> Result<(), BundleError> {
        must_be_ca(ours, REGION)?;
        must_be_ca(proof, PROOF)?;
        let id = ours.spiffe_id().map_err(bad(REGION))?;
        let what = if ours.public_key() != proof.public_key() {
            "key"
        } else if id != self.trust_domain.spiffe_id() {
            "trust domain"
        } else if ours.subject() != proof.subject() {
            "subject"
        } else {
            return Ok(());
        };
        Err(BundleError::Differ { trust_domain: self.trust_domain.clone(), what })
    }
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bundle({}, generation {})", self.trust_domain, self.generation)
    }
}

const REGION: &str = "region certificate";
const PROOF: &str = "proof";

fn bad(which: &'static str) -> impl FnOnce(CertificateError) -> BundleError {
    move |source| BundleError::Certificate { which, source }
}

fn view<'a>(der: &'a CertificateDer<'_>, which: &'static str) -> Result<View<'a>, BundleError> {
    View::of(der).map_err(bad(which))
}

fn must_be_ca(view: &View<'_>, which: &'static str) -> Result<(), BundleError> {
    let is_ca = view.is_ca().map_err(bad(which))? && view.may_certify().map_err(bad(which))?;
    if is_ca { Ok(()) } else { Err(bad(which)(CertificateError::NotCa)) }
}

fn admits(root: &RootCertificate, proof: &View<'_>, now: Timestamp) -> bool {
    View::of(root.der()).is_ok_and(|root| root.valid_at(now) && proof.is_signed_by(&root))
}

/// What accepting a bundle changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// The region was not known, or its key is new.
    Added,
    /// The same key with a later end.
    Extended,
    /// Nothing new.
    Unchanged,
}

/// The accepted bundles of a mesh, by trust domain and generation. Cheap to clone.
#[derive(Clone)]
pub struct Bundles {
    mesh: MeshDomain,
    roots: Arc<[RootCertificate]>,
    by_domain: BTreeMap<TrustDomain, BTreeMap<u64, Held>>,
}

#[derive(Clone)]
struct Held {
    bundle: Arc<Bundle>,
    anchor: TrustAnchor<'static>,
}

impl Bundles {
    /// An empty set that accepts bundles with a proof by one of `roots`.
    ///
    /// # Errors
    /// When there is no root, or one of another mesh.
    pub fn pinned(mesh: MeshDomain, roots: Vec<RootCertificate>) -> Result<Self, BundleError> {
        if roots.is_empty() {
            return Err(BundleError::NoRoot);
        }
        if let Some(root) = roots.iter().find(|root| *root.mesh() != mesh) {
            return Err(BundleError::OtherRoot { mesh, found: root.mesh().clone() });
        }
        Ok(Self { mesh, roots: roots.into(), by_domain: BTreeMap::new() })
    }

    /// Takes `bundle` in if its proof holds and its generation is not older
    /// than the last but one.
    ///
    /// # Errors
    /// Says which check failed; the set is then as it was.
    pub fn accept(&mut self, bundle: Bundle, now: Timestamp) -> Result<Accepted, BundleError> {
        bundle.verify(&self.mesh, &self.roots, now)?;
        let anchor = webpki::anchor_from_trusted_cert(&bundle.certificate)
            .map_err(|_| bad(REGION)(CertificateError::NotCa))?
            .to_owned();
        let (trust_domain, generation) = (bundle.trust_domain.clone(), bundle.generation);
        let empty = BTreeMap::new();
        let held = self.by_domain.get(&trust_domain).unwrap_or(&empty);
        let newest = held.keys().next_back().copied().unwrap_or(generation).max(generation);
        if generation.saturating_add(1) < newest {
            return Err(BundleError::TooOld { trust_domain, found: generation, newest });
        }
        let accepted = match held.get(&generation) {
            None => Accepted::Added,
            Some(old) if !same_key(&old.anchor, &anchor) => {
                return Err(BundleError::OtherKey { trust_domain, generation });
            }
            Some(old) if old.bundle.not_after() < bundle.not_after() => Accepted::Extended,
            Some(_) => return Ok(Accepted::Unchanged),
        };
        let held = self.by_domain.entry(trust_domain).or_default();
        held.insert(generation, Held { bundle: Arc::new(bundle), anchor });
        held.retain(|generation, _| generation.saturating_add(1) >= newest);
        Ok(accepted)
    }

    /// The mesh whose regions are accepted.
    #[must_use]
    pub fn mesh(&self) -> &MeshDomain {
        &self.mesh
    }

    /// The pinned roots.
    #[must_use]
    pub fn roots(&self) -> &[RootCertificate] {
        &self.roots
    }

    /// All bundles held, by trust domain, the older generation first.
    pub fn iter(&self) -> impl Iterator<Item = &Bundle> {
        self.by_domain.values().flat_map(BTreeMap::values).map(|held| &*held.bundle)
    }

    /// Whether a bundle of this trust domain is held, valid or not.
    #[must_use]
    pub fn knows(&self, trust_domain: &TrustDomain) -> bool {
        self.by_domain.contains_key(trust_domain)
    }

    /// What a peer of `trust_domain` is verified against now. Whoever was accepted is not
    /// believed beyond its end: webpki looks at no anchor's dates.
    pub(crate) fn anchors(
        &self,
        trust_domain: &TrustDomain,
        now: Timestamp,
    ) -> Vec<TrustAnchor<'_>> {
        let held = self.by_domain.get(trust_domain).into_iter().flat_map(BTreeMap::values);
        held.filter(|held| held.bundle.valid_at(now)).map(|held| held.anchor.clone()).collect()
    }
}

impl fmt::Debug for Bundles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

fn same_key(a: &TrustAnchor<'_>, b: &TrustAnchor<'_>) -> bool {
    a.subject_public_key_info == b.subject_public_key_info
}

#[cfg(test)]
#[path = "bundle_tests.rs"]
mod tests;
