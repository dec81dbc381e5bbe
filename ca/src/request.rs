//! Certificate requests: from a CSR its public key is taken, and nothing else on trust.
//!
//! Promises: a key is accepted only with proof of possession (the CSR's own signature) and only
//! of a kind that verifiers accept. A CSR may ask for the ID that the caller proved; one that asks
//! for anything else (a second name, a DNS name, to be a CA, any key usage) is refused rather than
//! silently cut down, as its sender expects a certificate that it will not get. The subject is
//! ignored: nothing of ours reads one.

use rcgen::{PublicKeyData, SubjectPublicKeyInfo};
use x509_parser::asn1_rs::FromDer;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::error::X509Error;
use x509_parser::extensions::{GeneralName, ParsedExtension, X509Extension};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION,
    OID_PKCS1_SHA256WITHRSA, OID_PKCS1_SHA384WITHRSA, OID_PKCS1_SHA512WITHRSA,
    OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384, OID_SIG_ED25519,
};
use x509_parser::public_key::PublicKey as ParsedKey;
use x509_parser::x509::SubjectPublicKeyInfo as Spki;

use crate::identity::SpiffeId;
use crate::x509::flat;

/// Far above any CSR of a 4096-bit key.
const LARGEST: usize = 16 * 1024;

/// Why a certificate request is refused.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Larger than any honest one.
    #[error("the certificate request has {0} bytes, at most {LARGEST} are read")]
    TooLarge(usize),
    /// Not a PKCS #10 request in DER.
    #[error("not a PKCS #10 certificate request in DER")]
    Malformed(#[source] X509Error),
    /// A request with something behind it.
    #[error("{0} bytes follow the certificate request")]
    Trailing(usize),
    /// A key that is too weak, too costly, or of a kind that verifiers do not know.
    #[error(
        "the public key is {found}; accepted are ECDSA P-256 and P-384, Ed25519, RSA 2048 to 4096"
    )]
    Key {
        /// What it is.
        found: String,
    },
    /// The sender does not hold the private key, or signed with an algorithm that is not accepted.
    #[error("the certificate request is not signed by the key it asks to certify")]
    NotPossessed,
    /// It asks for an extension that is not the sender's to ask for.
    #[error("the certificate request asks for {0}; it may ask for its own SPIFFE ID at most")]
    Asks(String),
}

/// A public key whose holder asked for a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestedKey(SubjectPublicKeyInfo);

impl RequestedKey {
    /// Checks the DER request `csr` of a caller that proved to be `proven`.
    ///
    /// # Errors
    /// Says what the request may not contain, or that it is none.
    pub fn from_csr(csr: &[u8], proven: &SpiffeId) -> Result<Self, RequestError> {
        if csr.len() > LARGEST {
            return Err(RequestError::TooLarge(csr.len()));
        }
        let (rest, request) = X509CertificationRequest::from_der(csr)
            .map_err(|error| RequestError::Malformed(flat(error)))?;
        if !rest.is_empty() {
            return Err(RequestError::Trailing(rest.len()));
        }
        // Kind and size first: verifying with a huge key is what such a key is sent for.
        let spki = &request.certification_request_info.subject_pki;
        check_key(spki)?;
        check_possession(&request)?;
        for attribute in request.certification_request_info.iter_attributes() {
            if let ParsedCriAttribute::ExtensionRequest(asked) = attribute.parsed_attribute() {
                asked.extensions.iter().try_for_each(|extension| check_asked(extension, proven))?;
            }
        }
        SubjectPublicKeyInfo::from_der(spki.raw)
            .map(Self)
            .map_err(|_| RequestError::Key { found: "encoded in an unknown way".to_owned() })
    }

    pub(crate) fn info(&self) -> &impl PublicKeyData {
        &self.0
    }
}

fn check_possession(request: &X509CertificationRequest<'_>) -> Result<(), RequestError> {
    let accepted = [
        OID_SIG_ECDSA_WITH_SHA256,
        OID_SIG_ECDSA_WITH_SHA384,
        OID_SIG_ED25519,
        OID_PKCS1_SHA256WITHRSA,
        OID_PKCS1_SHA384WITHRSA,
        OID_PKCS1_SHA512WITHRSA,
    ];
    if accepted.contains(&request.signature_algorithm.algorithm)
        && request.verify_signature().is_ok()
    {
        return Ok(());
    }
    Err(RequestError::NotPossessed)
}

fn check_key(key: &Spki<'_>) -> Result<(), RequestError> {
    let refused = |found: String| Err(RequestError::Key { found });
    let algorithm = &key.algorithm.algorithm;
    if *algorithm == OID_SIG_ED25519 {
        return Ok(());
    }
    if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = key.algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok());
        return match curve {
            Some(curve) if curve == OID_EC_P256 || curve == OID_NIST_EC_P384 => Ok(()),
            Some(curve) => refused(format!("on the curve {curve}")),
            None => refused("on an unnamed curve".to_owned()),
        };
    }
    if *algorithm == OID_PKCS1_RSAENCRYPTION {
        return match key.parsed() {
            Ok(ParsedKey::RSA(rsa)) => match significant_bits(rsa.modulus) {
                2048..=4096 => Ok(()),
                bits => refused(format!("RSA of {bits} bits")),
            },
            _ => refused("malformed RSA".to_owned()),
        };
    }
    refused(format!("of the kind {algorithm}"))
}

fn significant_bits(modulus: &[u8]) -> usize {
    let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
    let rest = &modulus[zeros..];
    rest.first().map_or(0, |first| rest.len() * 8 - first.leading_zeros() as usize)
}

fn check_asked(extension: &X509Extension<'_>, proven: &SpiffeId) -> Result<(), RequestError> {
    let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
        return Err(RequestError::Asks(format!("the extension {}", extension.oid)));
    };
    match &names.general_names[..] {
        [GeneralName::URI(uri)] if *uri == proven.to_string() => Ok(()),
        [GeneralName::URI(uri)] => Err(RequestError::Asks(format!("the name {uri:.100?}"))),
        [_] => Err(RequestError::Asks("a name that is no URI".to_owned())),
        more => Err(RequestError::Asks(format!("{} names", more.len()))),
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
