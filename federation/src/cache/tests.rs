use std::fs;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use tokio::time::Instant;

use super::*;
use crate::key::{Key, Kind};
use crate::record::{Beacon, Body, Epoch, Namespace, Origin, Record};
use crate::replica::{self, Batch, Replica, ReplicaWriter};

mod damage;
mod keeping;

pub(super) const OURS: &str = "agent of m/r/r-a";

pub(super) fn owner() -> Owner {
    "r/r-a".parse().unwrap()
}

pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

pub(super) fn key(name: &str) -> Key {
    format!("/tombolo/v1/r/r-a/namespace/_/{name}").parse().unwrap()
}

fn epoch() -> Epoch {
    Epoch { id: "e".into(), count: 1 }
}

pub(super) fn namespace(name: &str, sequence: u64, label: &str) -> (Key, Option<Bytes>) {
    let record = Record {
        key: key(name),
        origin: Origin { epoch: epoch(), sequence, ..Origin::default() },
        body: Body::Namespace(Namespace {
            labels: [("l".to_owned(), label.to_owned())].into(),
            annotations: BTreeMap::new(),
        }),
    };
    (record.key.clone(), Some(record.seal().value))
}

pub(super) fn beacon(nonce: u64) -> (Key, Option<Bytes>) {
    let record = Record {
        key: "/tombolo/v1/r/r-a/beacon/_/r-a".parse().unwrap(),
        origin: Origin { epoch: epoch(), sequence: nonce, ..Origin::default() },
        body: Body::Beacon(Beacon { nonce }),
    };
    (record.key.clone(), Some(record.seal().value))
}

pub(super) fn apply(writer: &ReplicaWriter, items: Vec<(Key, Option<Bytes>)>) {
    writer.apply(Batch { items, ..Batch::default() }, Instant::now());
}

/// One owner with two records, one of which says `label`, complete at position 7.
pub(super) fn replica(label: &str) -> Arc<Replica> {
    let (writer, _replicas) = replica::channel();
    let mut batch = Batch { position: Some(7), ..Batch::default() };
    batch.items = vec![namespace("shop", 1, label), namespace("other", 2, "x"), beacon(1)];
    batch.complete = vec![(owner(), Kind::Namespace, epoch()), (owner(), Kind::Cluster, epoch())];
    writer.apply(batch, Instant::now());
    writer.current()
}

pub(super) fn save(cache: &mut Cache, label: &str, seconds: i64) -> Saved {
    cache.save(&Snapshot::of(replica(label)), at(seconds)).unwrap()
}

/// Generation 1 says `old`, generation 2 says `new`.
pub(super) fn two_generations(dir: &Path) {
    let (mut cache, loaded) = Cache::open(dir, OURS);
    assert!(loaded.image.is_none() && loaded.problems.is_empty(), "{loaded:?}");
    assert_eq!(save(&mut cache, "old", 100).generation, 1);
    assert_eq!(save(&mut cache, "new", 200).generation, 2);
}

pub(super) fn restored(image: Image, own: Option<&Owner>) -> Arc<Replica> {
    let (writer, _replicas) = replica::channel();
    writer.apply(image.into_batch(own), Instant::now());
    writer.current()
}

fn label_of(replica: &Replica) -> String {
    let entry = replica.get(&key("shop")).unwrap();
    match &entry.record.as_ref().unwrap().body {
        Body::Namespace(namespace) => namespace.labels["l"].clone(),
        other => panic!("{other:?}"),
    }
}

/// What a start finds: the generation, what it says, and the problems as text.
pub(super) fn start(dir: &Path) -> (Option<(u64, String)>, Vec<String>) {
    let (mut cache, loaded) = Cache::open(dir, OURS);
    cache.proven().unwrap();
    let problems = loaded.problems.iter().map(ToString::to_string).collect();
    let image = loaded.image.map(|image| (image.generation, label_of(&restored(image, None))));
    (image, problems)
}

#[expect(clippy::unnecessary_wraps, reason = "to be compared with what a start finds")]
pub(super) fn says(generation: u64, label: &str) -> Option<(u64, String)> {
    Some((generation, label.to_owned()))
}

#[test]
fn what_was_saved_is_restored_as_it_was_beacons_apart() {
    let dir = tempfile::tempdir().unwrap();
    let (mut cache, _) = Cache::open(dir.path(), OURS);
    let held = replica("a");
    let mut snapshot = Snapshot::of(Arc::clone(&held));
    snapshot.extra.insert("resume".to_owned(), Bytes::from_static(b"point"));
    cache.save(&snapshot, at(100)).unwrap();

    let (_, loaded) = Cache::open(dir.path(), OURS);
    let image = loaded.image.unwrap();
    assert_eq!((image.generation, image.saved_at, image.position), (1, at(100), 7));
    assert_eq!(image.extra["resume"], "point");
    assert_eq!(image.len(), 2);
    let again = restored(image.clone(), None);
    let (then, now) = (held.holding(&owner()).unwrap(), again.holding(&owner()).unwrap());
    assert_eq!((then.digest(), then.complete()), (now.digest(), now.complete()));
    assert_eq!((again.position, now.len()), (7, 2), "no beacon");

    let own = restored(image, Some(&owner()));
    let own = own.holding(&owner()).unwrap();
    assert!(own.complete().is_empty() && own.len() == 2, "it has yet to speak for itself");
}

#[tokio::test(start_paused = true)]
async fn when_an_owner_was_heard_outlives_restarts_in_which_it_is_silent() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, _replicas) = replica::channel();
    apply(&writer, vec![namespace("shop", 1, "a"), beacon(1)]);
    apply(&writer, vec![beacon(2)]);
    tokio::time::advance(std::time::Duration::from_secs(40)).await;
    let (mut cache, _) = Cache::open(dir.path(), OURS);
    cache.save(&Snapshot::of(writer.current()), at(1000)).unwrap();

    for now in [5000, 6000] {
        let (mut cache, loaded) = Cache::open(dir.path(), OURS);
        let image = loaded.image.unwrap();
        assert_eq!(image.owners[&owner()].heard, Some(at(960)));
        cache.save(&Snapshot::of(restored(image, None)), at(now)).unwrap();
    }
}

#[test]
fn of_a_quarantined_record_the_bytes_in_use_and_the_newest_ones_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, _replicas) = replica::channel();
    let good = namespace("shop", 1, "good");
    apply(&writer, vec![good.clone()]);
    for damaged in [&b"\xff"[..], b"\xff\xfe"] {
        apply(&writer, vec![(key("shop"), Some(Bytes::from_static(damaged)))]);
    }
    let (mut cache, _) = Cache::open(dir.path(), OURS);
    cache.save(&Snapshot::of(writer.current()), at(1)).unwrap();

    let image = Cache::open(dir.path(), OURS).1.image.unwrap();
    assert_eq!(image.records_of(&owner()).len(), 1, "what it last said that could be opened");
    let again = restored(image, None);
    let entry = again.get(&key("shop")).unwrap();
    assert_eq!((&entry.value[..], entry.good.clone()), (&b"\xff\xfe"[..], good.1));
    assert!(entry.problem.is_some() && label_of(&again) == "good");
    assert_eq!(again.holding(&owner()).unwrap().quarantined(), 1);
}

#[test]
fn the_newer_image_is_never_written_to() {
    let dir = tempfile::tempdir().unwrap();
    two_generations(dir.path());
    let newest = fs::read(dir.path().join("image-b")).unwrap();
    let (mut cache, loaded) = Cache::open(dir.path(), OURS);
    assert_eq!(loaded.image.unwrap().generation, 2);
    assert_eq!(save(&mut cache, "newest", 300).generation, 3);
    assert_eq!(fs::read(dir.path().join("image-b")).unwrap(), newest);
    assert_eq!(start(dir.path()), (says(3, "newest"), vec![]));
}

#[test]
fn the_third_start_that_ended_too_soon_falls_back_and_a_proven_one_counts_anew() {
    let dir = tempfile::tempdir().unwrap();
    two_generations(dir.path());
    let generation = |(_, loaded): (Cache, Loaded)| loaded.image.map(|image| image.generation);
    let crash = || generation(Cache::open(dir.path(), OURS));
    assert_eq!([crash(), crash()], [Some(2); 2]);
    assert_eq!(start(dir.path()), (says(2, "new"), vec![]), "and it proved itself");

    assert_eq!([crash(), crash(), crash()], [Some(2); 3]);
    let (_, loaded) = Cache::open(dir.path(), OURS);
    assert_eq!(loaded.image.unwrap().generation, 1);
    let said = loaded.problems[0].to_string();
    assert!(said.contains("image-b (generation 2): 3 starts with it ended too soon"), "{said}");
    assert_eq!([crash(), crash()], [Some(1); 2]);
    let (_, loaded) = Cache::open(dir.path(), OURS);
    assert_eq!(loaded.image.unwrap().generation, 2, "what ends it is in neither");
    let said = loaded.problems.last().unwrap().to_string();
    assert!(said.contains("remove this directory to start without"), "{said}");
    assert_eq!([crash(), crash()], [Some(2); 2]);
    assert_eq!(crash(), Some(1), "and all counts anew");
}

#[test]
fn after_falling_back_the_suspect_image_is_the_one_that_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    two_generations(dir.path());
    for _ in 0..3 {
        let (_, loaded) = Cache::open(dir.path(), OURS);
        assert_eq!(loaded.image.unwrap().generation, 2);
    }
    let (mut cache, loaded) = Cache::open(dir.path(), OURS);
    assert_eq!(loaded.image.unwrap().generation, 1);
    assert_eq!(save(&mut cache, "mended", 300).generation, 3);
    cache.proven().unwrap();
    assert_eq!(start(dir.path()), (says(3, "mended"), vec![]));
    fs::remove_file(dir.path().join("image-b")).unwrap();
    assert_eq!(start(dir.path()), (says(1, "old"), vec![]));
}
