use rcgen::{KeyPair, PublicKeyData};

use super::*;
use crate::region::RegionCa;
use crate::root::MeshRoot;
use crate::testing::{Mesh, NOW, at, mesh, region};

fn of(root: &MeshRoot, generation: u64) -> Bundle {
    RegionCa::create(root, &region("west"), generation, NOW).unwrap().bundle().clone()
}

fn generations(bundles: &Bundles) -> Vec<u64> {
    bundles.iter().map(Bundle::generation).collect()
}

#[test]
fn a_bundle_file_reads_back() {
    let bundle = Mesh::new().west.bundle().clone();
    assert_eq!(Bundle::from_pem(bundle.to_pem().as_bytes()).unwrap(), bundle);
    assert_eq!(bundle.trust_domain().as_str(), "west.mesh.example");
    let half = x509::to_pem(std::slice::from_ref(bundle.certificate()));
    for bad in ["", "text", half.as_str(), &format!("{half}{half}{half}")] {
        assert!(Bundle::from_pem(bad.as_bytes()).is_err(), "{bad:?}");
    }
    let swapped = Bundle::of(bundle.proof().clone(), bundle.certificate().clone());
    assert!(matches!(swapped, Err(BundleError::NoGeneration(_))), "{swapped:?}");
}

#[test]
fn what_a_pinned_root_admits_is_accepted() {
    let mesh = Mesh::new();
    let mut bundles = mesh.empty_bundles();
    let bundle = mesh.west.bundle().clone();
    assert_eq!(bundles.accept(bundle.clone(), NOW).unwrap(), Accepted::Added);
    assert_eq!(bundles.accept(bundle, NOW).unwrap(), Accepted::Unchanged);
    assert_eq!(bundles.anchors(mesh.west.bundle().trust_domain(), NOW).len(), 1);
}

#[test]
fn what_no_pinned_root_admits_is_refused() {
    let ours = Mesh::new();
    let stranger = MeshRoot::create(&mesh(), NOW).unwrap();
    let mut bundles = ours.empty_bundles();
    assert!(matches!(bundles.accept(of(&stranger, 1), NOW), Err(BundleError::NotAdmitted(_))));
    // Its own certificate in the place of the proof has no generation, so nothing to begin with;
    // the proof of another bundle is over another key.
    let mixed =
        Bundle::of(of(&stranger, 1).certificate().clone(), ours.west.bundle().proof().clone())
            .unwrap();
    assert!(matches!(bundles.accept(mixed, NOW), Err(BundleError::Differ { what: "key", .. })));
    assert_eq!(bundles.iter().count(), 0, "what is refused changes nothing");
}

/// A region's key signs a proof for its neighbour's trust domain, or passes itself off as root.
#[test]
fn a_region_cannot_admit_anybody() {
    let mesh = Mesh::new();
    let key = KeyPair::generate().unwrap();
    let forge = |ca: &RegionCa| {
        let validity = Validity { not_before: at(-60), not_after: at(3600) };
        let mut params = x509::params(&[], validity, [7; 16]).unwrap();
        x509::make_ca(&mut params, 1);
        params.subject_alt_names =
            vec![x509::uri(&mesh.east.bundle().trust_domain().spiffe_id()).unwrap()];
        let certificate = params.self_signed(&key).unwrap();
        params.custom_extensions.push(x509::generation_extension(9));
        let issuer = ca.issuer().unwrap();
        Bundle::of(certificate.into(), params.signed_by(&key, &issuer).unwrap().into()).unwrap()
    };
    let mut bundles = mesh.bundles();
    let refused = bundles.accept(forge(&mesh.west), NOW);
    assert!(matches!(refused, Err(BundleError::NotAdmitted(_))), "{refused:?}");
    let refused = bundles.accept(forge(&mesh.east), NOW);
    assert!(matches!(refused, Err(BundleError::NotAdmitted(_))), "{refused:?}");
    assert_eq!(generations(&bundles), [1, 1]);
}

/// Each check of the pair, by a root that signs anything.
#[test]
fn certificate_and_proof_have_to_agree() {
    let mesh = Mesh::new();
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let make = |domain: &str, ca: bool, key: &KeyPair, signer: Option<&KeyPair>, proof: bool| {
        let validity = Validity { not_before: at(-60), not_after: at(3600) };
        let mut params = x509::params(&[], validity, [7; 16]).unwrap();
        if ca {
            x509::make_ca(&mut params, 1);
        }
        let domain: TrustDomain = domain.parse().unwrap();
        params.subject_alt_names = vec![x509::uri(&domain.spiffe_id()).unwrap()];
        if proof {
            params.custom_extensions.push(x509::generation_extension(1));
            return params.signed_by(key, &mesh.root.issuer().unwrap()).unwrap().into();
        }
        let issuer = rcgen::Issuer::from_params(&params, signer.unwrap_or(key));
        params.signed_by(key, &issuer).unwrap().into()
    };
    let accept = |certificate, proof| {
        mesh.empty_bundles().accept(Bundle::of(certificate, proof).unwrap(), NOW)
    };
    let west = "west.mesh.example";
    let proof = || make(west, true, &key, None, true);
    accept(make(west, true, &key, None, false), proof()).unwrap();

    let refused = accept(make("east.mesh.example", true, &key, None, false), proof());
    assert!(
        matches!(refused, Err(BundleError::Differ { what: "trust domain", .. })),
        "{refused:?}"
    );
    let refused = accept(make(west, true, &key, Some(&other), false), proof());
    assert!(matches!(refused, Err(BundleError::NotSelfSigned(_))), "{refused:?}");
    let refused = accept(make(west, false, &key, None, false), proof());
    assert!(matches!(refused, Err(BundleError::Certificate { .. })), "{refused:?}");
    let refused = accept(make(west, true, &key, None, false), make(west, false, &key, None, true));
    assert!(matches!(refused, Err(BundleError::Certificate { .. })), "{refused:?}");
    for foreign in ["west.other.example", "mesh.example", "a.west.mesh.example"] {
        let refused =
            accept(make(foreign, true, &key, None, false), make(foreign, true, &key, None, true));
        assert!(matches!(refused, Err(BundleError::OtherMesh { .. })), "{refused:?}");
    }
    assert_ne!(key.subject_public_key_info(), other.subject_public_key_info());
}

/// cRLSign alone makes no CA, of a region's certificate or of a proof.
#[test]
fn who_may_sign_lists_only_is_no_region() {
    let mesh = Mesh::new();
    let key = KeyPair::generate().unwrap();
    let both = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    let lists = vec![rcgen::KeyUsagePurpose::CrlSign];
    for (of_region, of_proof, good) in
        [(&both, &both, true), (&lists, &both, false), (&both, &lists, false)]
    {
        let validity = Validity { not_before: at(-60), not_after: at(3600) };
        let mut params = x509::params(&[], validity, [7; 16]).unwrap();
        x509::make_ca(&mut params, 1);
        let id = mesh.west.bundle().trust_domain().spiffe_id();
        params.subject_alt_names = vec![x509::uri(&id).unwrap()];
        params.key_usages.clone_from(of_region);
        let certificate = params.self_signed(&key).unwrap().into();
        params.key_usages.clone_from(of_proof);
        params.custom_extensions.push(x509::generation_extension(1));
        let proof = params.signed_by(&key, &mesh.root.issuer().unwrap()).unwrap().into();
        let outcome = mesh.empty_bundles().accept(Bundle::of(certificate, proof).unwrap(), NOW);
        match outcome {
            Ok(Accepted::Added) => assert!(good, "{of_region:?}, {of_proof:?}"),
            Err(BundleError::Certificate { source: CertificateError::NotCa, .. }) => {
                assert!(!good, "{of_region:?}, {of_proof:?}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn bundles_are_accepted_and_believed_within_their_dates_only() {
    let mesh = Mesh::new();
    let bundle = mesh.west.bundle();
    let end = bundle.not_after();
    let late = end.checked_add(jiff::SignedDuration::from_secs(1)).unwrap();
    let refused = mesh.empty_bundles().accept(bundle.clone(), late);
    assert!(matches!(refused, Err(BundleError::NotValid { .. })), "{refused:?}");
    assert!(mesh.empty_bundles().accept(bundle.clone(), at(-601)).is_err());
    let bundles = mesh.bundles();
    assert_eq!(bundles.anchors(bundle.trust_domain(), end).len(), 1);
    assert_eq!(bundles.anchors(bundle.trust_domain(), late).len(), 0);
    assert!(bundles.knows(bundle.trust_domain()));
}

#[test]
fn the_newest_two_generations_are_held_in_whatever_order_they_come() {
    let mesh = Mesh::new();
    let [one, two, three] = [1, 2, 3].map(|generation| of(&mesh.root, generation));
    for (order, kept) in [
        (vec![&one, &two], vec![1, 2]),
        (vec![&two, &one], vec![1, 2]),
        (vec![&one, &two, &three], vec![2, 3]),
        (vec![&three, &two, &one], vec![2, 3]),
        (vec![&two, &three, &one], vec![2, 3]),
        (vec![&one, &three], vec![3]),
        (vec![&three, &one], vec![3]),
    ] {
        let mut bundles = mesh.empty_bundles();
        for bundle in &order {
            match bundles.accept((*bundle).clone(), NOW) {
                Ok(Accepted::Added) | Err(BundleError::TooOld { found: 1, newest: 3, .. }) => {}
                other => panic!("{order:?}: {other:?}"),
            }
        }
        assert_eq!(generations(&bundles), kept, "{order:?}");
    }
    let mut bundles = mesh.empty_bundles();
    bundles.accept(of(&mesh.root, u64::MAX), NOW).unwrap();
    assert!(matches!(bundles.accept(one, NOW), Err(BundleError::TooOld { .. })));
}

#[test]
fn two_keys_of_one_generation_are_a_conflict() {
    let mesh = Mesh::new();
    let mut bundles = mesh.bundles();
    let refused = bundles.accept(of(&mesh.root, 1), NOW);
    assert!(matches!(refused, Err(BundleError::OtherKey { generation: 1, .. })), "{refused:?}");
}

#[test]
fn roots_are_needed_and_of_this_mesh() {
    assert!(matches!(Bundles::pinned(mesh(), vec![]), Err(BundleError::NoRoot)));
    let other = MeshRoot::create(&"other.example".parse().unwrap(), NOW).unwrap();
    let refused = Bundles::pinned(mesh(), vec![other.certificate().clone()]);
    assert!(matches!(refused, Err(BundleError::OtherRoot { .. })));
}

#[test]
fn a_root_that_has_ended_admits_nobody() {
    let mesh = Mesh::new();
    let end = mesh.root.validity().unwrap().not_after;
    let view = View::of(mesh.west.bundle().proof()).unwrap();
    assert!(admits(mesh.root.certificate(), &view, end));
    let late = end.checked_add(jiff::SignedDuration::from_secs(1)).unwrap();
    assert!(!admits(mesh.root.certificate(), &view, late));
}
