use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use tonic::Code;

use super::*;
use crate::identity::Identity;
use crate::material::Credential;
use crate::testing::{Mesh, NOW, agent, at, control_plane, workload};

fn csr() -> Vec<u8> {
    let key = KeyPair::generate().unwrap();
    CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
}

fn authority(ca: RegionCa, now: Timestamp) -> Authority {
    Authority::new(Arc::new(ca), Clock::new(move || now))
}

fn proven(ca: &RegionCa, identity: Identity, lifetime: Duration) -> Proof {
    let grant = Grant { lifetime, ..Grant::new(identity) };
    Proof::Certificate(Arc::new(Credential::issue(ca, &grant, NOW).unwrap().subject().clone()))
}

const DAY: Duration = LEAF_LIFETIME;

#[test]
fn the_answer_is_for_whom_the_proof_is_and_where() {
    let mesh = Mesh::new();
    let proof = proven(&mesh.west, agent("west", "west-a"), DAY);
    let authority = authority(mesh.west, at(3600));
    let leaf = authority.issue(&proof, &csr()).unwrap();
    let peer = crate::tls::peer_identity(&leaf.chain, authority.ca.mesh()).unwrap();
    assert_eq!(peer.identity, agent("west", "west-a"));
    assert_eq!(peer.origin, proof.peer().origin);
    assert_eq!(peer.expires, at(3600 + 24 * 3600));
}

/// A replica of the region whose CA is another replica's.
#[test]
fn a_control_plane_is_renewed_by_its_own_regions_ca_alone() {
    let mesh = Mesh::new();
    let (own, other) = (control_plane("west"), control_plane("east"));
    let (own, other) = (proven(&mesh.west, own, DAY), proven(&mesh.east, other, DAY));
    let authority = authority(mesh.west, at(3600));
    let leaf = authority.issue(&own, &csr()).unwrap();
    let peer = crate::tls::peer_identity(&leaf.chain, authority.ca.mesh()).unwrap();
    assert_eq!(peer.identity, control_plane("west"));
    assert!(matches!(authority.issue(&other, &csr()), Err(SignError::NotPermitted(_))));
}

/// A leaf that was cut short by its issuer's end does not pass that on.
#[test]
fn renewal_gives_the_policys_life_whatever_the_proof_had() {
    let mesh = Mesh::new();
    for hours in [1, 3, 24, 100] {
        let proof = proven(&mesh.west, workload("west"), Duration::from_hours(hours));
        assert_eq!(proof.grant(NOW).unwrap().lifetime, LEAF_LIFETIME);
    }
    // By the last hours of one CA, renewed by the next.
    let end = mesh.west.bundle().not_after();
    let before_end = end.checked_sub(jiff::SignedDuration::from_hours(2)).unwrap();
    let cut = Credential::issue(&mesh.west, &Grant::new(workload("west")), before_end).unwrap();
    assert_eq!(cut.expires(), end);
    let root = crate::root::MeshRoot::create(&crate::testing::mesh(), before_end).unwrap();
    let next = RegionCa::create(&root, mesh.west.region(), 2, before_end).unwrap();
    let proof = Proof::Certificate(Arc::new(cut.subject().clone()));
    let leaf = authority(next, before_end).issue(&proof, &csr()).unwrap();
    assert_eq!(leaf.not_after.duration_since(before_end), jiff::SignedDuration::from_hours(24));
}

#[test]
fn each_refusal_has_its_code() {
    let check = |outcome: Result<Leaf, SignError>, code: Code, says: &str| {
        let status = Status::from(&outcome.unwrap_err());
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(says), "{status}");
    };
    let mesh = Mesh::new();
    let (west, east) =
        (proven(&mesh.west, workload("west"), DAY), proven(&mesh.east, workload("east"), DAY));
    let end = mesh.west.bundle().not_after();
    let now = authority(mesh.west, NOW);
    check(now.issue(&west, b"garbage"), Code::InvalidArgument, "PKCS #10");
    check(now.issue(&east, &csr()), Code::PermissionDenied, "not permitted");
    check(
        proof(None, None).and_then(|proof| now.issue(&proof, &csr())),
        Code::InvalidArgument,
        "no proof",
    );
    let kind = ProofKind::CurrentCertificate(crate::proto::CurrentCertificate {});
    let nobody = PeerInfo { remote: ([127, 0, 0, 1], 1).into(), identity: None };
    for connection in [None, Some(&nobody)] {
        let outcome = proof(Some(&kind), connection).and_then(|proof| now.issue(&proof, &csr()));
        check(outcome, Code::Unauthenticated, "no client certificate");
    }
    let later = Authority { ca: Arc::clone(&now.ca), clock: Clock::new(|| at(24 * 3600 + 1)) };
    check(later.issue(&west, &csr()), Code::Unauthenticated, "expired");
    // The proof is still good by a clock that has the CA ended.
    let Proof::Certificate(mut peer) = west;
    Arc::make_mut(&mut peer).expires = Timestamp::MAX;
    let ended = Authority { ca: Arc::clone(&now.ca), clock: Clock::new(move || end) };
    check(ended.issue(&Proof::Certificate(peer), &csr()), Code::FailedPrecondition, "region's own");
    let ending = AuthorityError::IssuerEnding { not_after: end, now: NOW };
    check(Err(SignError::issuing(ending)), Code::FailedPrecondition, "long enough");
    let internal = SignError::issuing(AuthorityError::NoGeneration);
    check(Err(internal), Code::Internal, "internal error");
}
