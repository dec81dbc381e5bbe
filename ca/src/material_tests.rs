use std::fs;
use std::path::Path;
use std::time::Duration;

use super::directory::{Directory, issue_files, save, save_bundle};
use super::*;
use crate::testing::{Mesh, NOW, agent, at, control_plane, mesh, region, workload};

const DAY: Duration = Duration::from_hours(24);

fn written(mesh: &Mesh, dir: &Path) {
    let grant = Grant::new(agent("west", "west-a"));
    let roots = [mesh.root.certificate().clone()];
    let bundles = [mesh.west.bundle(), mesh.east.bundle()];
    issue_files(dir, &mesh.west, &grant, bundles, &roots, NOW).unwrap();
}

fn opened(dir: &Path) -> Directory {
    Directory::new(dir, mesh())
}

fn said(error: &MaterialError) -> String {
    tls::causes(error)
}

#[test]
fn a_directory_is_loaded_as_it_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = Mesh::new();
    written(&mesh, dir.path());
    let loaded = opened(dir.path()).load(NOW).unwrap();
    assert!(loaded.refused.is_empty());
    assert_eq!(*loaded.material.credential().identity(), agent("west", "west-a"));
    assert_eq!(loaded.material.bundles().iter().count(), 2);
    // Again over the same directory, as at each start of a demo.
    written(&mesh, dir.path());
    let again = opened(dir.path()).load(NOW).unwrap();
    let serial = |material: &Material| material.credential().subject().serial.clone();
    assert_ne!(serial(&loaded.material), serial(&again.material));
    let key = fs::read_to_string(dir.path().join("key.pem")).unwrap();
    assert_eq!(key.matches("BEGIN").count(), 1, "the old key is gone");
}

#[test]
fn each_missing_or_broken_file_is_named() {
    type Break = fn(&Path);
    let cases: [(&str, Break, &str); 9] = [
        ("key.pem", |p| fs::remove_file(p).unwrap(), "cannot read"),
        ("cert.pem", |p| fs::remove_file(p).unwrap(), "cannot read"),
        ("bundles", |p| fs::remove_dir_all(p).unwrap(), "cannot read"),
        ("roots", |p| fs::remove_dir_all(p).unwrap(), "cannot read"),
        ("key.pem", |p| fs::write(p, "").unwrap(), "expected a private key, found 0"),
        ("roots/root-1.pem", |p| fs::write(p, "x").unwrap(), "found 0 of them"),
        ("cert.pem", |p| fs::write(p, "x").unwrap(), ""),
        ("bundles/west.mesh.example.1.pem", |p| fs::write(p, "x").unwrap(), "not a bundle file"),
        (
            "key.pem",
            |p| {
                use std::os::unix::fs::PermissionsExt;
                fs::set_permissions(p, fs::Permissions::from_mode(0o644)).unwrap();
            },
            "chmod 600",
        ),
    ];
    let mesh = Mesh::new();
    for (file, break_it, says) in cases {
        let dir = tempfile::tempdir().unwrap();
        written(&mesh, dir.path());
        break_it(&dir.path().join(file));
        let text = said(&opened(dir.path()).load(NOW).unwrap_err());
        assert!(text.contains(says) && (says.is_empty() || text.contains(file)), "{file}: {text}");
    }
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let (mesh, stranger) = (Mesh::new(), Mesh::new());
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    written(&mesh, dir.path());
    written(&stranger, other.path());
    let copy = |file: &str| fs::copy(other.path().join(file), dir.path().join(file)).unwrap();
    copy("key.pem");
    assert!(matches!(opened(dir.path()).load(NOW), Err(MaterialError::Key(_))));
    copy("cert.pem");
    assert!(matches!(opened(dir.path()).load(NOW), Err(MaterialError::Unproven { .. })));
    // A directory of another mesh altogether.
    let foreign = Directory::new(dir.path(), "other.example".parse().unwrap()).load(NOW);
    assert!(foreign.is_err());
    fs::remove_file(dir.path().join("roots/root-1.pem")).unwrap();
    let none = opened(dir.path()).load(NOW);
    assert!(matches!(none, Err(MaterialError::Roots(BundleError::NoRoot))), "{none:?}");
}

/// "Fetch failed" never becomes "empty", and one bad file costs no other.
#[test]
fn a_broken_bundle_keeps_what_it_held_and_a_removed_one_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = Mesh::new();
    written(&mesh, dir.path());
    let mut directory = opened(dir.path());
    let holder = Holder::new(directory.load(NOW).unwrap().material);
    assert!(directory.reload_if_changed(&holder, NOW).unwrap().is_none(), "nothing has changed");

    let east = dir.path().join("bundles/east.mesh.example.1.pem");
    fs::write(&east, "-----BEGIN CERT").unwrap();
    let refused = directory.reload_if_changed(&holder, NOW).unwrap().unwrap();
    assert!(refused.len() == 1 && refused[0].kept && refused[0].file == east, "{refused:?}");
    let knows = |domain: &crate::TrustDomain| holder.current().bundles().knows(domain);
    assert!(knows(mesh.east.bundle().trust_domain()));

    fs::remove_file(&east).unwrap();
    assert!(directory.reload_if_changed(&holder, NOW).unwrap().unwrap().is_empty());
    assert!(!knows(mesh.east.bundle().trust_domain()));
    assert!(knows(mesh.west.bundle().trust_domain()));

    save_bundle(dir.path(), mesh.east.bundle()).unwrap();
    directory.reload_if_changed(&holder, NOW).unwrap().unwrap();
    assert!(knows(mesh.east.bundle().trust_domain()));

    fs::write(dir.path().join("cert.pem"), "broken").unwrap();
    directory.reload_if_changed(&holder, NOW).unwrap_err();
    assert_eq!(*holder.current().credential().identity(), agent("west", "west-a"));
    directory.reload_if_changed(&holder, NOW).unwrap_err();
}

/// A renewal that could not be written is not undone by the next change of a bundle file.
#[test]
fn what_is_read_again_neither_shortens_a_certificate_nor_changes_who_we_are() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = Mesh::new();
    written(&mesh, dir.path());
    let mut directory = opened(dir.path());
    let holder = Holder::new(directory.load(NOW).unwrap().material);
    let issued = |identity, hours: u64| {
        let grant = Grant { lifetime: DAY * 2, ..Grant::new(identity) };
        let now = at(i64::try_from(hours * 3600).unwrap());
        Credential::issue(&mesh.west, &grant, now).unwrap()
    };
    let serial = || holder.current().credential().subject().serial.clone();
    let ours = || agent("west", "west-a");
    let now = at(30 * 3600);
    holder.renew(issued(ours(), 20), now).unwrap();
    let renewed = serial();
    // The files still have the one that has ended since.
    fs::remove_file(dir.path().join("bundles/east.mesh.example.1.pem")).unwrap();
    directory.reload_if_changed(&holder, now).unwrap().unwrap();
    assert_eq!(serial(), renewed, "the old certificate is back");
    assert!(!holder.current().bundles().knows(mesh.east.bundle().trust_domain()));

    save(dir.path(), &issued(agent("west", "west-b"), 29)).unwrap();
    for _ in 0..2 {
        let refused = directory.reload_if_changed(&holder, now).unwrap_err();
        assert!(matches!(refused, MaterialError::OtherIdentity { .. }), "{refused}");
        assert!(said(&refused).contains("west-b") && said(&refused).contains("restart"));
    }
    assert_eq!(serial(), renewed);

    save(dir.path(), &issued(ours(), 29)).unwrap();
    directory.reload_if_changed(&holder, now).unwrap().unwrap();
    assert_ne!(serial(), renewed, "a later one is taken");
}

/// What is held and what is in the files, against bundles that prove only one of them.
#[test]
fn the_certificate_that_the_new_bundles_prove_is_used() {
    let mesh = Mesh::new();
    let next = RegionCa::create(&mesh.root, &region("west"), 2, NOW).unwrap();
    let issued = |ca: &RegionCa, lifetime| {
        let grant = Grant { lifetime, ..Grant::new(control_plane("west")) };
        Credential::issue(ca, &grant, NOW).unwrap()
    };
    let holder = mesh.holder(&mesh.west, control_plane("west"), 2 * DAY);
    let mut second = mesh.empty_bundles();
    second.accept(next.bundle().clone(), NOW).unwrap();
    let outcome = holder.replace(issued(&next, DAY), second.clone(), NOW).unwrap();
    assert_eq!(outcome, Replaced::Everything, "the later one held is proven no more");
    let outcome = holder.replace(issued(&mesh.west, DAY / 2), second.clone(), NOW).unwrap();
    assert_eq!(outcome, Replaced::Bundles, "the one in the files need not be proven");
    let neither = holder.replace(issued(&next, DAY), mesh.bundles(), NOW).unwrap_err();
    assert!(matches!(neither, MaterialError::Unproven { .. }), "{neither}");
}

/// `save` in three steps; at each of them a start finds a pair that fits.
#[test]
fn a_renewal_killed_at_any_step_leaves_a_pair_that_fits() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = Mesh::new();
    written(&mesh, dir.path());
    let load = || opened(dir.path()).load(NOW).unwrap().material.credential().subject().clone();
    let before = load();
    let read = |file: &str| fs::read_to_string(dir.path().join(file)).unwrap();
    let (old_key, old_certificate) = (read("key.pem"), read("cert.pem"));
    let next = Credential::issue(&mesh.west, &Grant::new(agent("west", "west-a")), NOW).unwrap();
    save(dir.path(), &next).unwrap();
    let (new_key, new_certificate) = (read("key.pem"), read("cert.pem"));
    assert_eq!(load(), *next.subject());
    fs::write(dir.path().join("key.pem"), format!("{new_key}{old_key}")).unwrap();
    fs::write(dir.path().join("cert.pem"), &old_certificate).unwrap();
    assert_eq!(load(), before, "killed before the certificate was replaced");
    fs::write(dir.path().join("cert.pem"), &new_certificate).unwrap();
    assert_eq!(load(), *next.subject(), "killed after it");
}

#[test]
fn an_expired_certificate_still_loads() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = Mesh::new();
    written(&mesh, dir.path());
    let later = at(10 * 24 * 3600);
    let loaded = opened(dir.path()).load(later).unwrap();
    assert!(!loaded.material.credential().valid_at(later));
}

#[test]
fn a_failed_change_leaves_what_is_held() {
    let (mesh, stranger) = (Mesh::new(), Mesh::new());
    let holder = mesh.holder(&mesh.west, control_plane("west"), DAY);
    let held = holder.held();
    let issued =
        |ca: &RegionCa, identity| Credential::issue(ca, &Grant::new(identity), NOW).unwrap();
    let serial = || holder.current().credential().subject().serial.clone();
    let before = serial();
    let refused = holder.renew(issued(&mesh.west, workload("west")), NOW);
    assert!(matches!(refused, Err(MaterialError::OtherIdentity { .. })));
    let refused = holder.renew(issued(&stranger.west, control_plane("west")), NOW);
    assert!(matches!(refused, Err(MaterialError::Unproven { .. })));
    holder.accept(stranger.east.bundle().clone(), NOW).unwrap_err();
    holder.accept(mesh.east.bundle().clone(), NOW).unwrap();
    assert_eq!(serial(), before);
    assert!(!held.0.has_changed().unwrap(), "readers were not woken for nothing");

    let next = RegionCa::create(&mesh.root, &region("west"), 2, NOW).unwrap();
    assert_eq!(holder.accept(next.bundle().clone(), NOW).unwrap(), Accepted::Added);
    assert!(held.0.has_changed().unwrap());
    holder.renew(issued(&next, control_plane("west")), NOW).unwrap();
    assert_ne!(serial(), before);
}

#[test]
fn renewal_is_due_at_half_life_less_a_tenth_and_not_for_all_at_once() {
    let west = Mesh::new().west;
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let credential = Credential::issue(&west, &Grant::new(workload("west")), NOW).unwrap();
        let due = credential.renewal_due();
        assert_eq!(due, credential.renewal_due());
        let life = 24 * 3600 + 600;
        assert!(at(-600 + life * 4 / 10) <= due && due <= at(-600 + life / 2), "{due}");
        seen.insert(due);
    }
    assert!(seen.len() > 10, "{seen:?}");
}

#[test]
fn no_key_is_in_any_debug() {
    let mesh = Mesh::new();
    let holder = mesh.holder(&mesh.west, control_plane("west"), DAY);
    let secret = x509_hex(&holder);
    for text in [format!("{holder:?}"), format!("{:?}", holder.held())] {
        assert!(text.contains("elided") && !text.contains(&secret), "{text}");
    }
}

fn x509_hex(holder: &Holder) -> String {
    // As a derived Debug would write the bytes of the key.
    let bytes = format!("{:?}", holder.current().credential().key.secret_der());
    bytes[1..40].to_owned()
}

#[tokio::test]
async fn a_watched_directory_is_read_again_by_itself() {
    use tokio_util::sync::CancellationToken;
    const LONG: Duration = Duration::from_secs(50);
    let dir = tempfile::tempdir().unwrap();
    let mesh = Mesh::new();
    written(&mesh, dir.path());
    let mut directory = opened(dir.path());
    let holder = Arc::new(Holder::new(directory.load(NOW).unwrap().material));
    let (mut held, stop) = (holder.held(), CancellationToken::new());
    let mut tasks = tokio::task::JoinSet::new();
    let (watched, ended) = (Arc::clone(&holder), stop.clone());
    tasks.spawn(async move {
        let clock = crate::Clock::new(|| NOW);
        directory.watch(&watched, clock, Duration::from_millis(10), ended).await;
    });
    fs::remove_file(dir.path().join("bundles/east.mesh.example.1.pem")).unwrap();
    let changed = tokio::time::timeout(LONG, held.changed()).await.expect("read again").unwrap();
    assert!(!changed.bundles().knows(mesh.east.bundle().trust_domain()));
    stop.cancel();
    tokio::time::timeout(LONG, tasks.join_next()).await.expect("it ends").unwrap().unwrap();
}
