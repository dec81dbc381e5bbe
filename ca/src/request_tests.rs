use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, RsaKeySize, SanType,
};

use super::*;
use crate::testing::{mesh, workload};

fn proven() -> SpiffeId {
    workload("west").spiffe_id(&mesh()).unwrap()
}

fn blank() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.to_owned().try_into().unwrap())
}

fn csr(params: &CertificateParams) -> Vec<u8> {
    csr_of(params, &KeyPair::generate().unwrap())
}

fn csr_of(params: &CertificateParams, key: &KeyPair) -> Vec<u8> {
    params.serialize_request(key).unwrap().der().to_vec()
}

fn check(csr: &[u8]) -> Result<RequestedKey, RequestError> {
    RequestedKey::from_csr(csr, &proven())
}

#[test]
fn keys_of_the_accepted_kinds() {
    for key in [
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap(),
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap(),
        KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap(),
        KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap(),
    ] {
        let requested = check(&csr_of(&blank(), &key)).unwrap();
        assert_eq!(requested.info().subject_public_key_info(), key.subject_public_key_info());
    }
}

#[test]
fn asking_for_nothing_or_for_the_proven_id_is_fine() {
    check(&csr(&blank())).unwrap();
    let mut params = blank();
    params.subject_alt_names = vec![uri(&proven().to_string())];
    check(&csr(&params)).unwrap();
}

/// Refused, whatever is asked for beyond one's own.
#[test]
fn asking_for_more_is_refused() {
    let own = uri(&proven().to_string());
    let dns = |name: &str| SanType::DnsName(name.to_owned().try_into().unwrap());
    let names = [
        vec![own.clone(), own.clone()],
        vec![own.clone(), uri("spiffe://west.mesh.example/tombolo/region")],
        vec![uri("spiffe://west.mesh.example/ns/other/sa/checkout")],
        vec![uri("spiffe://east.mesh.example/ns/shop/sa/checkout")],
        vec![uri("spiffe://west.mesh.example/tombolo/region")],
        vec![uri("spiffe://west.mesh.example/ns/shop/sa/checkout\0.evil")],
        vec![uri("spiffe://west.mesh.example/ns/{{\"x\"}}/sa/checkout")],
        vec![dns("control-plane.tombolo.svc")],
        vec![own.clone(), dns("control-plane.tombolo.svc")],
        vec![SanType::IpAddress([127, 0, 0, 1].into())],
    ];
    for names in names {
        let mut params = blank();
        params.subject_alt_names = names.clone();
        let outcome = check(&csr(&params));
        assert!(matches!(outcome, Err(RequestError::Asks(_))), "{names:?}: {outcome:?}");
    }
    let extensions: [fn(&mut CertificateParams); 6] = [
        |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
        |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)),
        |params| params.is_ca = IsCa::ExplicitNoCa,
        |params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign],
        |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any],
        |params| {
            let origin = crate::x509::origin_extension(&"west-b".parse().unwrap());
            params.custom_extensions = vec![origin];
        },
    ];
    for (index, ask) in extensions.iter().enumerate() {
        let mut params = blank();
        // An own name before it, so that the request is looked at to its end.
        params.subject_alt_names = vec![own.clone()];
        ask(&mut params);
        if index == 4 {
            // rcgen writes this one only beside another.
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        }
        let outcome = check(&csr(&params));
        assert!(matches!(outcome, Err(RequestError::Asks(_))), "{index}: {outcome:?}");
    }
}

/// B5: a subject is not asked for anything, and is not looked at.
#[test]
fn a_subject_is_ignored() {
    let mut params = blank();
    params.distinguished_name.push(DnType::CommonName, "spiffe://west.mesh.example/tombolo/region");
    check(&csr(&params)).unwrap();
}

/// B6: without possession, too weak, too large, or of an unknown kind.
#[test]
fn keys_that_are_not_accepted() {
    let mut forged = csr(&blank());
    let last = forged.len() - 1;
    forged[last] ^= 1;
    assert!(matches!(check(&forged), Err(RequestError::NotPossessed | RequestError::Malformed(_))));

    let p521 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
    let outcome = check(&csr_of(&blank(), &p521));
    assert!(matches!(outcome, Err(RequestError::Key { .. })), "{outcome:?}");

    for (bits, good) in
        [(1024_usize, false), (2047, false), (2048, true), (4096, true), (16384, false)]
    {
        let mut modulus = vec![0xff; bits.div_ceil(8)];
        modulus[0] >>= (8 - bits % 8) % 8;
        if modulus[0] >= 0x80 {
            modulus.insert(0, 0);
        }
        assert_eq!(significant_bits(&modulus), bits);
        let outcome = check(&rsa_request(&modulus));
        match outcome {
            // Not signed by anything, but looked at that far only if the size is fine.
            Err(RequestError::NotPossessed) => assert!(good, "{bits}"),
            Err(RequestError::Key { ref found }) => {
                assert!(!good && found.contains(&bits.to_string()), "{bits}: {found}");
            }
            other => panic!("{bits}: {other:?}"),
        }
    }
    assert_eq!(significant_bits(&[]), 0);
    assert_eq!(significant_bits(&[0, 0]), 0);
}

/// A request with an RSA key of that modulus, and a signature that is none.
fn rsa_request(modulus: &[u8]) -> Vec<u8> {
    fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let content = parts.concat();
        let mut out = vec![tag, 0x82];
        out.extend(u16::try_from(content.len()).unwrap().to_be_bytes());
        out.extend(content);
        out
    }
    let rsa_encryption = [0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 5, 0];
    let sha256_with_rsa = [0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11, 5, 0];
    let key = der(0x30, &[&der(0x02, &[modulus]), &[2, 3, 1, 0, 1]]);
    let spki = der(0x30, &[&der(0x30, &[&rsa_encryption]), &der(0x03, &[&[0], &key])]);
    let info = der(0x30, &[&[2, 1, 0], &[0x30, 0], &spki, &[0xa0, 0]]);
    der(0x30, &[&info, &der(0x30, &[&sha256_with_rsa]), &der(0x03, &[&[0], &[0x5a; 256]])])
}

/// B8 and the like: no input panics, and each has an error.
#[test]
fn what_is_not_a_request() {
    let good = csr(&blank());
    check(&good).unwrap();
    assert!(matches!(check(&[&good[..], b"x"].concat()), Err(RequestError::Trailing(1))));
    assert!(matches!(check(&vec![0x30; 20_000]), Err(RequestError::TooLarge(20_000))));
    for bad in [&b""[..], &[0x30, 0], &[0x30, 0x80], &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff], b"PEM"]
    {
        assert!(matches!(check(bad), Err(RequestError::Malformed(_))), "{bad:?}");
    }
    for end in 0..good.len() {
        assert!(check(&good[..end]).is_err(), "cut at {end}");
    }
    for index in 0..good.len() {
        for bit in [0x01, 0x80] {
            let mut bent = good.clone();
            bent[index] ^= bit;
            // Only what is signed counts; class bits of the headers around it are not.
            if let Ok(key) = check(&bent) {
                assert_eq!(key, check(&good).unwrap(), "bit {bit:#x} of byte {index} bent");
            }
        }
    }
    // An extension request with an extension whose content is empty.
    let mut params = blank();
    let san = CustomExtension::from_oid_content(&[2, 5, 29, 17], vec![0x30, 0]);
    params.custom_extensions = vec![san];
    assert!(matches!(check(&csr(&params)), Err(RequestError::Asks(_))));
}
