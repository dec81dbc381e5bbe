use std::collections::BTreeSet;

use super::*;
use crate::digest::Digest;
use crate::record::{Beacon, Body, Namespace, Origin, Record};

fn key(text: &str) -> Key {
    text.parse().unwrap()
}

fn namespace(count: u64, sequence: u64, label: &str) -> (Key, Option<Bytes>) {
    let record = Record {
        key: key("/tombolo/v1/r/r-a/namespace/_/shop"),
        origin: Origin { epoch: Epoch { id: "e".into(), count }, sequence, ..Origin::default() },
        body: Body::Namespace(Namespace {
            labels: [("l".to_owned(), label.to_owned())].into(),
            annotations: BTreeMap::new(),
        }),
    };
    (record.key.clone(), Some(record.seal().value))
}

fn beacon(nonce: u64) -> (Key, Option<Bytes>) {
    let record = Record {
        key: key("/tombolo/v1/r/r-a/beacon/_/r-a"),
        origin: Origin {
            epoch: Epoch { id: "e".into(), count: 1 },
            sequence: nonce,
            ..Origin::default()
        },
        body: Body::Beacon(Beacon { nonce }),
    };
    (record.key.clone(), Some(record.seal().value))
}

fn apply(writer: &ReplicaWriter, items: Vec<(Key, Option<Bytes>)>) -> Arc<Replica> {
    writer.apply(Batch { items, ..Batch::default() }, Instant::now());
    writer.current()
}

fn label(replica: &Replica) -> String {
    let entry = replica.get(&key("/tombolo/v1/r/r-a/namespace/_/shop")).unwrap();
    match &entry.record.as_ref().unwrap().body {
        Body::Namespace(namespace) => namespace.labels["l"].clone(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn damaged_bytes_are_held_and_the_last_good_record_stays_in_use() {
    let (writer, _readers) = channel();
    apply(&writer, vec![namespace(1, 1, "good")]);
    let damaged = Bytes::from_static(b"\xff\xff");
    let replica =
        apply(&writer, vec![(key("/tombolo/v1/r/r-a/namespace/_/shop"), Some(damaged.clone()))]);
    let holding = replica.holding(&"r/r-a".parse().unwrap()).unwrap();
    assert_eq!(holding.quarantined(), 1);
    assert_eq!(label(&replica), "good");
    let entry = replica.get(&key("/tombolo/v1/r/r-a/namespace/_/shop")).unwrap();
    assert_eq!(entry.value, damaged);

    let replica = apply(&writer, vec![namespace(1, 3, "mended")]);
    assert_eq!(label(&replica), "mended");
    assert_eq!(replica.holding(&"r/r-a".parse().unwrap()).unwrap().quarantined(), 0);
}

#[tokio::test]
async fn a_key_never_goes_back() {
    let (writer, _readers) = channel();
    apply(&writer, vec![namespace(2, 5, "new")]);
    assert_eq!(label(&apply(&writer, vec![namespace(2, 4, "old")])), "new");
    assert_eq!(label(&apply(&writer, vec![namespace(1, 9, "older")])), "new");
    assert_eq!(label(&apply(&writer, vec![namespace(3, 1, "newer")])), "newer");
}

/// Its region was restored to before a change, and the owner, started anew, has what is there.
#[tokio::test]
async fn a_key_goes_back_to_what_its_owner_confirms_in_a_later_epoch() {
    let owner: Owner = "r/r-a".parse().unwrap();
    let confirmed_in = |epoch: Epoch, by: Kind| {
        let (writer, _readers) = channel();
        apply(&writer, vec![namespace(1, 5, "lost")]);
        let items = vec![namespace(1, 4, "confirmed"), beacon(0)];
        apply(&writer, vec![beacon(7)]);
        let complete = vec![(owner.clone(), by, epoch)];
        writer.apply(Batch { items, complete, ..Batch::default() }, Instant::now());
        let held = writer.current();
        let beacon = held.get(&key("/tombolo/v1/r/r-a/beacon/_/r-a")).unwrap();
        assert_eq!(beacon.origin().unwrap().sequence, 7, "nobody confirms a beacon");
        label(&held)
    };
    let epoch = |id: &str, count| Epoch { id: id.into(), count };
    assert_eq!(confirmed_in(epoch("e", 2), Kind::Namespace), "confirmed");
    assert_eq!(confirmed_in(epoch("e", 1), Kind::Namespace), "lost", "in the same one");
    assert_eq!(confirmed_in(epoch("f", 2), Kind::Namespace), "lost", "they have no order");
    assert_eq!(confirmed_in(epoch("e", 2), Kind::Beacon), "lost", "it is of another kind");
}

#[tokio::test]
async fn equal_sets_have_equal_digests_and_beacons_do_not_count() {
    let (one, _readers) = channel();
    apply(&one, vec![namespace(1, 1, "x"), beacon(1)]);
    apply(&one, vec![namespace(1, 2, "y")]);
    let (two, _readers) = channel();
    apply(&two, vec![namespace(1, 2, "y")]);
    let owner: Owner = "r/r-a".parse().unwrap();
    let digest = |writer: &ReplicaWriter| writer.current().holding(&owner).unwrap().digest();
    assert_eq!(digest(&one), digest(&two));
    apply(&one, vec![(key("/tombolo/v1/r/r-a/namespace/_/shop"), None)]);
    assert_eq!(digest(&one), Digest::default());
}

#[tokio::test]
async fn readers_learn_each_change_once() {
    let (writer, mut readers) = channel();
    let first = apply(&writer, vec![namespace(1, 1, "x")]);
    apply(&writer, vec![namespace(1, 2, "y"), beacon(1)]);
    let last = apply(&writer, vec![beacon(2)]);
    let touched: BTreeSet<Change> = [
        Change::Record(key("/tombolo/v1/r/r-a/namespace/_/shop")),
        Change::Record(key("/tombolo/v1/r/r-a/beacon/_/r-a")),
    ]
    .into();
    assert_eq!(last.changes_since(first.version), Some(touched.clone()));
    assert_eq!(last.differences(&first), touched);
    assert_eq!(last.changes_since(last.version), Some(BTreeSet::new()));

    readers.current();
    apply(&writer, vec![beacon(2)]);
    assert!(!readers.rx.has_changed().unwrap(), "equal bytes wake nobody");
}

#[tokio::test]
async fn a_reader_too_far_behind_is_told_to_compare() {
    let (writer, _readers) = channel();
    for nonce in 1..=17_000 {
        apply(&writer, vec![beacon(nonce)]);
    }
    let replica = writer.current();
    assert_eq!(replica.changes_since(1), None);
    assert_eq!(replica.changes_since(16_999).unwrap().len(), 1);
}

#[tokio::test]
async fn nothing_is_known_of_what_happened_before_the_first_position() {
    let (writer, _readers) = channel();
    let listed = Batch { items: vec![namespace(1, 1, "x")], ..Batch::default() };
    writer.apply(Batch { position: Some(10), ..listed }, Instant::now());
    let replica = writer.current();
    assert_eq!(replica.changes_since_position(9), None, "what went before 10 is not in the log");
    assert_eq!(replica.changes_since_position(10), Some(BTreeSet::new()));
}

#[tokio::test]
async fn only_a_beacon_that_changes_was_heard() {
    let (writer, _readers) = channel();
    let owner: Owner = "r/r-a".parse().unwrap();
    let replica = apply(&writer, vec![beacon(1)]);
    assert_eq!(replica.holding(&owner).unwrap().beacon_changed(), None);
    let replica = apply(&writer, vec![beacon(2)]);
    assert!(replica.holding(&owner).unwrap().beacon_changed().is_some());
}

/// An agent that restarts counts from the beginning: what it said again is not from before the
/// removal, although its number is smaller.
#[tokio::test]
async fn what_went_in_one_epoch_may_be_said_again_in_the_next() {
    let (writer, _readers) = channel();
    let (key, value) = namespace(3, 900, "l");
    let at = |count, sequence| Newest { epoch: Epoch { id: "e".into(), count }, sequence };
    let owner = key.owner.clone();
    apply(&writer, vec![(key.clone(), value)]);
    let explained = |sequence| Removed { removal: Removal::Explained, sequence };
    let gone = |newest: Newest, removed| Batch {
        items: vec![(key.clone(), None)],
        removed: [(key.clone(), removed)].into(),
        newest: vec![(owner.clone(), newest)],
        ..Batch::default()
    };
    writer.apply(gone(at(3, 940), explained(940)), Instant::now());
    let news = Batch { newest: vec![(owner.clone(), at(4, 32))], ..Batch::default() };
    writer.apply(news, Instant::now());
    let since = |change| writer.current().was_removed_since(&key, &change);
    assert!(since(at(3, 939)) && since(at(2, 2000)), "from before it went");
    assert!(!since(at(3, 940)) && !since(at(4, 29)) && !since(at(5, 1)), "said again");

    // Told late, when the next epoch has begun, or before its number is: what went does not return.
    for newest in [at(4, 32), at(3, 910)] {
        apply(&writer, vec![namespace(3, 900, "l")]);
        writer.apply(gone(newest, explained(940)), Instant::now());
        assert!(!since(at(4, 33)) && since(at(3, 900)));
    }
}
