//! The one place that reads and writes the details of X.509.
//!
//! Owns: our two private extensions, key usages, serial numbers, PEM. Signature checks of chains
//! are rustls-webpki's ([`crate::tls`]); those of CA certificates, which webpki does not check as
//! end entities, are here.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, IsCa,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::crypto::CryptoProvider;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem};
use x509_parser::asn1_rs::{FromDer, ToDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::error::X509Error;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::{OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384};

use crate::clock::{TimeOutOfRange, date};
use crate::identity::{InvalidId, Origin, SpiffeId};

/// Our arc: 1.2.840.113556.1.8000.2554, which Microsoft set aside for private OIDs made from a
/// UUID, and the UUID 8c524451-9633-47ca-a9b3-28241c273267 in its seven parts. `2.25.<UUID>` would
/// be shorter, but its 128-bit component does not fit what certificate libraries hold one in.
macro_rules! oid {
    ($last:literal) => {
        &[
            1, 2, 840, 113_556, 1, 8000, 2554, 35922, 17489, 38451, 18378, 43443, 2_630_684,
            2_568_807, $last,
        ]
    };
}

/// INTEGER: the generation of a region's key, in the proof by the mesh root.
pub(crate) const GENERATION: &[u64] = oid!(1);
/// `UTF8String`: an [`Origin`], in a leaf.
pub(crate) const ORIGIN: &[u64] = oid!(2);

/// What is wrong with a certificate, a key, or a file of them.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Not DER, or not a certificate.
    #[error("not an X.509 certificate in DER")]
    Der(#[source] X509Error),
    /// A certificate with something behind it.
    #[error("{0} bytes follow the certificate")]
    Trailing(usize),
    /// An extension that occurs twice or cannot be read.
    #[error("its {name} extension is malformed")]
    Extension {
        /// Which.
        name: &'static str,
        /// Why, where known.
        #[source]
        source: Option<X509Error>,
    },
    /// X.509-SVID section 2: exactly one URI SAN.
    #[error("it has {0} URI names, an X.509-SVID has exactly one")]
    UriNames(usize),
    /// The URI SAN, or the origin, is not what it has to be.
    #[error("its name is not usable")]
    Name(#[source] InvalidId),
    /// Not the CA certificate that it has to be.
    #[error("not a CA certificate whose URI name is a mesh or trust domain")]
    NotCa,
    /// A certificate that is not valid when it is needed.
    #[error("it is not valid now")]
    Dates,
    /// Not PEM.
    #[error("not PEM")]
    Pem(#[source] pem::Error),
    /// A file with more or fewer certificates or keys than it has to hold.
    #[error("expected {expected}, found {found} of them")]
    Count {
        /// What has to be there.
        expected: &'static str,
        /// How many there are.
        found: usize,
    },
    /// A private key of a kind that we do not use, or damaged.
    #[error("the private key is not usable")]
    Key(#[source] rcgen::Error),
}

/// A certificate, read.
pub(crate) struct View<'a>(X509Certificate<'a>);

impl<'a> View<'a> {
    pub(crate) fn of(der: &'a [u8]) -> Result<Self, CertificateError> {
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|e| CertificateError::Der(flat(e)))?;
        if rest.is_empty() {
            Ok(Self(certificate))
        } else {
            Err(CertificateError::Trailing(rest.len()))
        }
    }

    /// The only URI SAN.
    pub(crate) fn spiffe_id(&self) -> Result<SpiffeId, CertificateError> {
        let names = self.0.subject_alternative_name().map_err(malformed("subjectAltName"))?;
        let names = names.map_or(&[][..], |san| &san.value.general_names);
        let uris: Vec<_> = names.iter().filter(|name| is_uri(name)).collect();
        match uris[..] {
            [GeneralName::URI(uri)] => uri.parse().map_err(CertificateError::Name),
            [_] => Err(CertificateError::Extension { name: "subjectAltName", source: None }),
            _ => Err(CertificateError::UriNames(uris.len())),
        }
    }

    pub(crate) fn is_ca(&self) -> Result<bool, CertificateError> {
        let constraints = self.0.basic_constraints().map_err(malformed("basicConstraints"))?;
        Ok(constraints.is_some_and(|constraints| constraints.value.ca))
    }

    /// Whether keyUsage is there, and lets the key sign certificates: what a CA must have.
    pub(crate) fn may_certify(&self) -> Result<bool, CertificateError> {
        let usage = self.0.key_usage().map_err(malformed("keyUsage"))?;
        Ok(usage.is_some_and(|usage| usage.value.key_cert_sign()))
    }

    /// Whether keyUsage lets the key sign certificates or lists of revoked ones: what a leaf must
    /// not have (X.509-SVID section 4.3).
    pub(crate) fn may_sign_others(&self) -> Result<bool, CertificateError> {
        let usage = self.0.key_usage().map_err(malformed("keyUsage"))?;
        Ok(usage.is_some_and(|usage| usage.value.key_cert_sign() || usage.value.crl_sign()))
    }

    /// Whether keyUsage is there, and nobody who cannot read it may use the certificate.
    pub(crate) fn usage_is_critical(&self) -> Result<bool, CertificateError> {
        let usage = self.0.key_usage().map_err(malformed("keyUsage"))?;
        Ok(usage.is_some_and(|usage| usage.critical))
    }

    pub(crate) fn may_sign_handshakes(&self) -> Result<bool, CertificateError> {
        let usage = self.0.key_usage().map_err(malformed("keyUsage"))?;
        Ok(usage.is_some_and(|usage| usage.value.digital_signature()))
    }

    pub(crate) fn not_before(&self) -> Timestamp {
        moment(self.0.validity().not_before.timestamp())
    }

    pub(crate) fn not_after(&self) -> Timestamp {
        moment(self.0.validity().not_after.timestamp())
    }

    pub(crate) fn valid_at(&self, at: Timestamp) -> bool {
        self.not_before() <= at && at <= self.not_after()
    }

    pub(crate) fn serial(&self) -> String {
        hex(self.0.raw_serial())
    }

    pub(crate) fn public_key(&self) -> &[u8] {
        self.0.public_key().raw
    }

    pub(crate) fn subject(&self) -> &[u8] {
        self.0.subject().as_raw()
    }

    /// Whether `issuer` signed this. ECDSA only, as our CAs use nothing else: webpki's RSA and
    /// SHA-1 rules need no copy here.
    pub(crate) fn is_signed_by(&self, issuer: &View<'_>) -> bool {
        let algorithm = &self.0.signature_algorithm.algorithm;
        (*algorithm == OID_SIG_ECDSA_WITH_SHA256 || *algorithm == OID_SIG_ECDSA_WITH_SHA384)
            && self.0.issuer().as_raw() == issuer.subject()
            && self.0.verify_signature(Some(issuer.0.public_key())).is_ok()
    }

    pub(crate) fn generation(&self) -> Result<Option<u64>, CertificateError> {
        self.private(GENERATION, "generation", |content| {
            let (rest, generation) = u64::from_der(content).ok()?;
            rest.is_empty().then_some(generation)
        })
    }

    pub(crate) fn origin(&self) -> Result<Option<Origin>, CertificateError> {
        let text = self.private(ORIGIN, "origin", |content| {
            let (rest, text) = String::from_der(content).ok()?;
            rest.is_empty().then_some(text)
        })?;
        text.map(|text| text.parse().map_err(CertificateError::Name)).transpose()
    }

    fn private<T>(
        &self,
        oid: &[u64],
        name: &'static str,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, CertificateError> {
        let malformed = || CertificateError::Extension { name, source: None };
        let mut found = self.0.iter_extensions().filter(|extension| {
            extension.oid.iter().is_some_and(|parts| parts.eq(oid.iter().copied()))
        });
        let Some(extension) = found.next() else {
            return Ok(None);
        };
        if found.next().is_some() {
            return Err(malformed());
        }
        read(extension.value).map(Some).ok_or_else(malformed)
    }
}

fn is_uri(name: &GeneralName<'_>) -> bool {
    // 6 is uniformResourceIdentifier (RFC 5280 section 4.2.1.6). One that is no text still counts.
    matches!(name, GeneralName::URI(_))
        || matches!(name, GeneralName::Invalid(tag, _) if tag.0 == 6)
}

fn malformed(name: &'static str) -> impl FnOnce(X509Error) -> CertificateError {
    move |source| CertificateError::Extension { name, source: Some(source) }
}

pub(crate) fn flat(error: x509_parser::nom::Err<X509Error>) -> X509Error {
    match error {
        x509_parser::nom::Err::Error(error) | x509_parser::nom::Err::Failure(error) => error,
        x509_parser::nom::Err::Incomplete(_) => X509Error::Generic,
    }
}

fn moment(seconds: i64) -> Timestamp {
    // DER times have years 0 to 9999, all of which a `Timestamp` holds; should a parser ever hand
    // out others, a time in the past is the safe reading of an end.
    Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH)
}

pub(crate) fn generation_extension(generation: u64) -> CustomExtension {
    // Writing to memory cannot fail.
    let content = generation.to_der_vec().unwrap_or_default();
    CustomExtension::from_oid_content(GENERATION, content)
}

pub(crate) fn origin_extension(origin: &Origin) -> CustomExtension {
    let content = origin.to_string().to_der_vec().unwrap_or_default();
    CustomExtension::from_oid_content(ORIGIN, content)
}

/// Where a certificate stands between its two dates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
}

/// What all our certificates have in common. Fails only for a clock far off.
pub(crate) fn params(
    subject: &[(DnType, &str)],
    validity: Validity,
    serial: [u8; 16],
) -> Result<CertificateParams, TimeOutOfRange> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Tombolo");
    for (kind, value) in subject {
        params.distinguished_name.push(kind.clone(), *value);
    }
    params.not_before = date(validity.not_before)?;
    params.not_after = date(validity.not_after)?;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// Makes `params` those of a CA certificate with room for `below` CA certificates under it.
pub(crate) fn make_ca(params: &mut CertificateParams, below: u8) {
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
}

pub(crate) fn uri(id: &SpiffeId) -> Result<SanType, rcgen::Error> {
    Ok(SanType::URI(id.to_string().try_into()?))
}

/// 127 random bits; never negative, never zero (RFC 5280 section 4.1.2.2).
pub(crate) fn serial(provider: &CryptoProvider) -> Result<[u8; 16], rustls::Error> {
    let mut bytes = [0; 16];
    provider.secure_random.fill(&mut bytes).map_err(|_| rustls::Error::FailedToGetRandomBytes)?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(bytes)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// All certificates of a PEM file, in order.
pub(crate) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(CertificateError::Pem)
}

/// All private keys of a PEM file, in order.
pub(crate) fn keys(pem: &[u8]) -> Result<Vec<PrivateKeyDer<'static>>, CertificateError> {
    PrivateKeyDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(CertificateError::Pem)
}

pub(crate) fn to_pem(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(|der| block("CERTIFICATE", der)).collect()
}

pub(crate) fn key_to_pem(key: &PrivateKeyDer<'_>) -> String {
    let label = match key {
        PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        _ => "PRIVATE KEY",
    };
    block(label, key.secret_der())
}

fn block(label: &str, der: &[u8]) -> String {
    use std::fmt::Write;
    let text = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    let _ = writeln!(pem, "-----END {label}-----");
    pem
}
