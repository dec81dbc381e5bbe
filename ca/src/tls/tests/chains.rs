//! What a chain proves, without sockets.

use super::*;

#[test]
fn a_leaf_proves_what_its_regions_bundle_says() {
    let mesh = Mesh::new();
    for (ca, identity) in [
        (&mesh.west, workload("west")),
        (&mesh.west, agent("west", "west-a")),
        (&mesh.east, control_plane("east")),
    ] {
        let chain = [leaf(ca, identity.clone())];
        assert_eq!(verified(&mesh.bundles(), &chain, NOW).unwrap(), identity);
    }
    verified(&mesh.bundles(), &[forged(&mesh.west, |_| {})], NOW).unwrap();
}

/// What a stolen region key can do, and what it cannot.
#[test]
fn a_region_cannot_mint_another_regions_names() {
    let mesh = Mesh::new();
    for stolen in [
        "spiffe://west.mesh.example/ns/shop/sa/checkout",
        "spiffe://west.mesh.example/tombolo/region",
        "spiffe://west.mesh.example/tombolo/agent/west-a",
    ] {
        let leaf = forged(&mesh.east, |params| params.subject_alt_names = vec![name(stolen)]);
        // Alone, and with everything that could build a path to something.
        let helpers = [
            mesh.east.bundle().certificate(),
            mesh.east.bundle().proof(),
            mesh.root.certificate().der(),
        ];
        let with_helpers: Vec<_> = std::iter::once(&leaf).chain(helpers).cloned().collect();
        for chain in [&[leaf.clone()][..], &with_helpers] {
            let refused = verified(&mesh.bundles(), chain, NOW).unwrap_err();
            assert!(matches!(refused, PeerRefused::Unproven { .. }), "{stolen}: {refused}");
        }
    }
}

#[test]
fn the_mesh_root_is_no_anchor() {
    let mesh = Mesh::new();
    let key = KeyPair::generate().unwrap();
    let mut params =
        x509::params(&[], Validity { not_before: at(-60), not_after: at(3600) }, [7; 16]).unwrap();
    params.is_ca = rcgen::IsCa::ExplicitNoCa;
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    params.subject_alt_names = vec![name("spiffe://west.mesh.example/tombolo/region")];
    let by_root = params.signed_by(&key, &mesh.root.issuer().unwrap()).unwrap().into();
    let chain = [by_root, mesh.root.certificate().der().clone()];
    let refused = verified(&mesh.bundles(), &chain, NOW).unwrap_err();
    assert!(matches!(refused, PeerRefused::Unproven { .. }), "{refused}");
}

/// B26, and the rest of what X.509-SVID forbids in a leaf.
#[test]
fn certificates_that_are_no_leaf_of_the_mesh() {
    use rcgen::{BasicConstraints, IsCa, KeyUsagePurpose};
    let mesh = Mesh::new();
    let not_leaf: [fn(&mut rcgen::CertificateParams); 4] = [
        |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
        |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign),
        |p| p.key_usages.push(KeyUsagePurpose::CrlSign),
        |p| p.key_usages = vec![KeyUsagePurpose::KeyAgreement],
    ];
    for change in not_leaf {
        let refused = verified(&mesh.bundles(), &[forged(&mesh.west, change)], NOW).unwrap_err();
        assert!(matches!(refused, PeerRefused::NotLeaf(_)), "{refused}");
    }
    for own in [mesh.west.bundle().certificate(), mesh.west.bundle().proof()] {
        let refused = verified(&mesh.bundles(), std::slice::from_ref(own), NOW).unwrap_err();
        assert!(matches!(refused, PeerRefused::NotLeaf(_)), "{refused}");
    }
    // keyUsage with digitalSignature, as an issuer that marks nothing would write it.
    let lax = |params: &mut rcgen::CertificateParams| {
        params.key_usages.clear();
        let usage = rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 15], vec![3, 2, 7, 0x80]);
        params.custom_extensions.push(usage);
    };
    let refused = verified(&mesh.bundles(), &[forged(&mesh.west, lax)], NOW).unwrap_err();
    assert!(matches!(refused, PeerRefused::UsageNotCritical(_)), "{refused}");
    let malformed: [fn(&mut rcgen::CertificateParams); 4] = [
        |p| p.subject_alt_names.push(name("spiffe://west.mesh.example/tombolo/region")),
        |p| p.subject_alt_names.clear(),
        |p| p.subject_alt_names = vec![name("https://west.mesh.example/x")],
        |p| p.subject_alt_names = vec![name("spiffe://west.mesh.example/ns/a\0/sa/b")],
    ];
    for change in malformed {
        let refused = verified(&mesh.bundles(), &[forged(&mesh.west, change)], NOW).unwrap_err();
        assert!(matches!(refused, PeerRefused::Malformed(_)), "{refused}");
    }
    let strangers: [fn(&mut rcgen::CertificateParams); 3] = [
        |p| p.subject_alt_names = vec![name("spiffe://west.mesh.example")],
        |p| p.subject_alt_names = vec![name("spiffe://west.mesh.example/somebody")],
        |p| p.subject_alt_names = vec![name("spiffe://west.other.example/tombolo/region")],
    ];
    for change in strangers {
        let refused = verified(&mesh.bundles(), &[forged(&mesh.west, change)], NOW).unwrap_err();
        assert!(matches!(refused, PeerRefused::Stranger(_)), "{refused}");
    }
}

/// A leaf signs another leaf, and is sent along as its issuer.
#[test]
fn a_leaf_is_no_ca() {
    let mesh = Mesh::new();
    let key = KeyPair::generate().unwrap();
    let leaf =
        mesh.west.issue_over(&Grant::new(workload("west")), &key, NOW).unwrap().chain.remove(0);
    let issuer = rcgen::Issuer::from_ca_cert_der(&leaf, &key).unwrap();
    let mut params =
        x509::params(&[], Validity { not_before: at(-60), not_after: at(3600) }, [7; 16]).unwrap();
    params.is_ca = rcgen::IsCa::ExplicitNoCa;
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    params.subject_alt_names = vec![name("spiffe://west.mesh.example/tombolo/region")];
    let minted: CertificateDer<'static> =
        params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap().into();
    let refused = verified(&mesh.bundles(), &[minted, leaf], NOW).unwrap_err();
    assert!(matches!(refused, PeerRefused::Unproven { .. }), "{refused}");
}

#[test]
fn an_intermediate_of_the_region_may_lead_to_its_anchor() {
    let mesh = Mesh::new();
    let key = KeyPair::generate().unwrap();
    let validity = Validity { not_before: at(-60), not_after: at(3600) };
    let mut params =
        x509::params(&[(rcgen::DnType::CommonName, "replica")], validity, [8; 16]).unwrap();
    x509::make_ca(&mut params, 0);
    let intermediate: CertificateDer<'static> =
        params.signed_by(&key, &mesh.west.issuer().unwrap()).unwrap().into();
    let issuer = rcgen::Issuer::from_ca_cert_der(&intermediate, &key).unwrap();
    let mut params = x509::params(&[], validity, [9; 16]).unwrap();
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    params.subject_alt_names = vec![name("spiffe://west.mesh.example/tombolo/region")];
    let minted: CertificateDer<'static> =
        params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap().into();
    let chain = [minted.clone(), intermediate.clone()];
    assert_eq!(verified(&mesh.bundles(), &chain, NOW).unwrap(), control_plane("west"));
    let mut long = vec![minted];
    long.extend(std::iter::repeat_n(intermediate, 4));
    let refused = verified(&mesh.bundles(), &long, NOW).unwrap_err();
    assert!(matches!(refused, PeerRefused::TooMany(_, 4)), "{refused}");
}

/// Clocks 10 minutes apart refuse nothing fresh; beyond that, and after the end,
/// they do.
#[test]
fn dates_count_and_leave_room_for_clocks() {
    let mesh = Mesh::new();
    // Regions that are older than their leaves, so that only the leaves' dates count.
    let late = 7 * 24 * 3600;
    let key = KeyPair::generate().unwrap();
    let chain = mesh.west.issue_over(&Grant::new(workload("west")), &key, at(late)).unwrap().chain;
    for (offset, good) in [(-600, true), (-601, false), (86_400, true), (86_401, false)] {
        let outcome = verified(&mesh.bundles(), &chain, at(late + offset));
        assert_eq!(outcome.is_ok(), good, "{offset}: {outcome:?}");
    }
    let far = unix(jiff::Timestamp::MAX).unwrap();
    assert!(verify(&mesh.bundles(), &chain[0], &[], far, Role::Client).is_err());
}

#[test]
fn without_a_bundle_nothing_is_proven() {
    let mesh = Mesh::new();
    let chain = [leaf(&mesh.west, workload("west"))];
    let mut bundles = mesh.empty_bundles();
    bundles.accept(mesh.east.bundle().clone(), NOW).unwrap();
    let refused = verified(&bundles, &chain, NOW).unwrap_err();
    assert!(matches!(refused, PeerRefused::NoBundle { .. }), "{refused}");
    let end = mesh.west.bundle().not_after();
    let late = end.checked_add(jiff::SignedDuration::from_secs(1)).unwrap();
    let refused = verified(&mesh.bundles(), &chain, late).unwrap_err();
    assert!(matches!(refused, PeerRefused::BundleNotValid { .. }), "{refused}");
}

#[test]
fn no_bent_certificate_is_accepted_and_none_panics() {
    let mesh = Mesh::new();
    let bundles = mesh.bundles();
    let good = leaf(&mesh.west, agent("west", "west-a"));
    for index in 0..good.len() {
        let mut bent = good.to_vec();
        bent[index] ^= 0x01;
        let chain = [CertificateDer::from(bent)];
        assert!(verified(&bundles, &chain, NOW).is_err(), "byte {index}");
        let cut = [CertificateDer::from(good[..index].to_vec())];
        assert!(verified(&bundles, &cut, NOW).is_err(), "cut at {index}");
    }
    assert!(verified(&bundles, &[good], NOW).is_ok());
}
