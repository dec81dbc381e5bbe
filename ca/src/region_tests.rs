use std::process::Command;
use std::time::Duration;

use rcgen::PublicKeyData;

use super::*;
use crate::testing::{Mesh, NOW, agent, at, control_plane, mesh, region, workload};
use crate::x509::View;

fn issue(ca: &RegionCa, grant: &Grant, now: Timestamp) -> Result<Leaf, AuthorityError> {
    ca.issue_over(grant, &KeyPair::generate().unwrap(), now)
}

#[test]
fn a_leaf_is_an_x509_svid() {
    let west = Mesh::new().west;
    let key = KeyPair::generate().unwrap();
    let mut grant = Grant::new(workload("west"));
    grant.origin = Some("west-a/7b5e".parse().unwrap());
    let leaf = west.issue_over(&grant, &key, NOW).unwrap();
    let view = View::of(&leaf.chain[0]).unwrap();
    assert_eq!(
        view.spiffe_id().unwrap().to_string(),
        "spiffe://west.mesh.example/ns/shop/sa/checkout"
    );
    assert!(!view.is_ca().unwrap() && !view.may_sign_others().unwrap());
    assert!(view.may_sign_handshakes().unwrap() && view.usage_is_critical().unwrap());
    assert_eq!(view.origin().unwrap(), grant.origin);
    assert_eq!(view.generation().unwrap(), None);
    assert_eq!(view.public_key(), key.subject_public_key_info());
    assert_eq!((view.not_before(), view.not_after()), (at(-600), at(24 * 3600)));
    assert_eq!(view.serial(), leaf.serial);
    assert_eq!(leaf.chain.len(), 1);
}

#[test]
fn serial_numbers_differ() {
    let west = Mesh::new().west;
    let key = KeyPair::generate().unwrap();
    let grant = Grant::new(workload("west"));
    let serial = || west.issue_over(&grant, &key, NOW).unwrap().serial;
    assert_ne!(serial(), serial());
}

#[test]
fn a_ca_certifies_its_own_region_only() {
    let mesh = Mesh::new();
    for stranger in [workload("east"), control_plane("east"), agent("east", "east-a")] {
        let error = issue(&mesh.west, &Grant::new(stranger), NOW).unwrap_err();
        assert!(matches!(error, AuthorityError::OtherRegion { .. }), "{error}");
    }
    for own in [workload("west"), control_plane("west"), agent("west", "west-a")] {
        issue(&mesh.west, &Grant::new(own), NOW).unwrap();
    }
}

#[test]
fn an_agents_leaf_says_its_cluster() {
    let leaf = issue(&Mesh::new().west, &Grant::new(agent("west", "west-a")), NOW).unwrap();
    let origin = View::of(&leaf.chain[0]).unwrap().origin().unwrap().unwrap();
    assert_eq!(origin.to_string(), "west-a");
}

#[test]
fn a_leaf_never_outlives_its_issuer_and_an_ended_or_ending_issuer_refuses() {
    let west = Mesh::new().west;
    let end = west.bundle().not_after();
    let before_end = |seconds| end.checked_sub(jiff::SignedDuration::from_secs(seconds)).unwrap();
    let leaf = issue(&west, &Grant::new(workload("west")), before_end(3600)).unwrap();
    assert_eq!(leaf.not_after, end);
    for seconds in [3599, 60, 1] {
        let error = issue(&west, &Grant::new(workload("west")), before_end(seconds)).unwrap_err();
        assert!(matches!(error, AuthorityError::IssuerEnding { .. }), "{error}");
    }
    // What is made short on purpose needs no more than that.
    let short = Grant { lifetime: Duration::from_secs(9), ..Grant::new(workload("west")) };
    assert_eq!(issue(&west, &short, before_end(9)).unwrap().not_after, end);
    issue(&west, &short, before_end(8)).unwrap_err();
    for now in [end, at(-601)] {
        let error = issue(&west, &Grant::new(workload("west")), now).unwrap_err();
        assert!(matches!(error, AuthorityError::IssuerNotValid { .. }), "{error}");
    }
}

#[test]
fn a_region_never_outlives_its_root_and_an_ended_root_admits_nobody() {
    let root = Mesh::new().root;
    let end = root.validity().unwrap().not_after;
    let before_end = end.checked_sub(jiff::SignedDuration::from_secs(60)).unwrap();
    let late = RegionCa::create(&root, &region("late"), 1, before_end).unwrap();
    assert_eq!(late.bundle().not_after(), end);
    assert!(matches!(
        RegionCa::create(&root, &region("late"), 1, end),
        Err(AuthorityError::IssuerNotValid { .. })
    ));
    assert!(matches!(
        RegionCa::create(&root, &region("late"), 0, NOW),
        Err(AuthorityError::NoGeneration)
    ));
}

#[test]
fn a_clock_far_off_or_an_absurd_lifetime_is_an_error() {
    let mesh = Mesh::new();
    assert!(issue(&mesh.west, &Grant::new(workload("west")), Timestamp::MAX).is_err());
    assert!(issue(&mesh.west, &Grant::new(workload("west")), Timestamp::MIN).is_err());
    let grant = Grant { lifetime: Duration::MAX, ..Grant::new(workload("west")) };
    assert!(matches!(issue(&mesh.west, &grant, NOW), Err(AuthorityError::Time(_))));
    assert!(MeshRoot::create(&crate::testing::mesh(), Timestamp::MAX).is_err());
}

#[test]
fn a_region_is_loaded_as_it_was_saved_and_as_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let west = Mesh::new().west;
    west.save(dir.path()).unwrap();
    let loaded = RegionCa::load(dir.path(), &region("west"), &mesh()).unwrap();
    assert_eq!(loaded.bundle(), west.bundle());
    issue(&loaded, &Grant::new(workload("west")), NOW).unwrap();
    for (region, mesh) in [("east", "mesh.example"), ("west", "other.example")] {
        let loaded = RegionCa::load(dir.path(), &region.parse().unwrap(), &mesh.parse().unwrap());
        assert!(matches!(loaded, Err(AuthorityError::Bundle { .. })), "{loaded:?}");
    }
    assert!(west.save(dir.path()).is_err(), "a key is never overwritten");
    assert!(!format!("{loaded:?}").contains("BEGIN"));
    let root = Mesh::new().root;
    let again = RegionCa::load_or_create(dir.path(), &root, &region("west"), NOW).unwrap();
    assert_eq!(again.bundle(), west.bundle());
    // Killed between the two files: there is a bundle, and no key yet.
    std::fs::remove_file(dir.path().join("region-key.pem")).unwrap();
    let new = RegionCa::load_or_create(dir.path(), &root, &region("west"), NOW).unwrap();
    assert_ne!(new.bundle(), west.bundle());
    RegionCa::load(dir.path(), &region("west"), &mesh()).unwrap();
}

/// An independent reader and verifier of what we make.
#[test]
fn openssl_reads_the_leaf_and_verifies_the_chain() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = Mesh::new();
    let west = &mesh.west;
    let mut grant = Grant::new(agent("west", "west-a"));
    grant.lifetime = Duration::from_hours(24);
    let leaf = issue(west, &grant, NOW).unwrap();
    let write = |name: &str, pem: String| std::fs::write(dir.path().join(name), pem).unwrap();
    write("leaf.pem", x509::to_pem(&leaf.chain));
    write("west.pem", x509::to_pem(std::slice::from_ref(west.bundle().certificate())));
    write("east.pem", x509::to_pem(std::slice::from_ref(mesh.east.bundle().certificate())));
    write("proof.pem", x509::to_pem(std::slice::from_ref(west.bundle().proof())));
    write("root.pem", mesh.root.certificate().to_pem());
    let openssl = |args: &[&str]| {
        Command::new("openssl").current_dir(dir.path()).args(args).output().map(|output| {
            let text = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            (output.status.success(), text)
        })
    };
    let text = match openssl(&["x509", "-in", "leaf.pem", "-noout", "-text"]) {
        Ok((true, text)) => text,
        Ok((false, text)) => panic!("openssl cannot read the leaf: {text}"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let test = "region_tests::openssl_reads_the_leaf_and_verifies_the_chain";
            tombolo_testbed::skip(test, "no openssl binary on PATH");
            return;
        }
        Err(error) => panic!("openssl cannot be run: {error}"),
    };
    for part in [
        "URI:spiffe://west.mesh.example/tombolo/agent/west-a",
        "X509v3 Key Usage: critical\n                Digital Signature\n",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "CA:FALSE",
        "ASN1 OID: prime256v1",
        "west-a",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let when = NOW.as_second().to_string();
    let verify = |anchor: &str, purpose: &str| {
        let args = ["verify", "-x509_strict", "-attime", &when, "-purpose", purpose, "-CAfile"];
        openssl(&[&args[..], &[anchor, "leaf.pem"]].concat()).unwrap()
    };
    for purpose in ["sslserver", "sslclient"] {
        let (good, text) = verify("west.pem", purpose);
        assert!(good, "{text}");
        let (good, text) = verify("east.pem", purpose);
        assert!(!good, "{text}");
    }
    let (good, text) =
        openssl(&["verify", "-x509_strict", "-attime", &when, "-CAfile", "root.pem", "proof.pem"])
            .unwrap();
    assert!(good, "the proof is by the root: {text}");
}
