//! Versions side by side: a writer and a reader a schema level apart, both ways.
//!
//! This version is level 2. A reader of level 1 is this one with a replica of level 1, which does
//! not know the kinds that came with level 2; what a writer of level 3 makes is put together by
//! hand.

use prost::Message as _;

use super::subscribing::{rest, take};
use super::*;
use crate::proto::records;
use crate::record::{Beacon, Decided, Decision, Origin, READS_LEVEL, Record, Region};
use crate::sync::follower::{self, Following};

type Answer = wire::subscribe_response::Message;

fn region() -> Owner {
    "r/_".parse().unwrap()
}

/// What a region says at level 2: its record, a decision, its beacon; and a cluster of it.
fn said(sequence: u64, decisions: usize) -> Vec<(Key, Option<Bytes>)> {
    let seal = |key: Key, body: Body| {
        let origin = Origin { epoch: epoch("e", 1), sequence, ..Origin::default() };
        (key.clone(), Some(Record { key, origin, body }.seal().value))
    };
    let mut said = vec![
        seal(
            Key::of_owner(region(), Kind::Region),
            Body::Region(Region { incarnation: "i".into(), reads_level: 2, ..Region::default() }),
        ),
        seal(Key::of_owner(region(), Kind::Beacon), Body::Beacon(Beacon { nonce: sequence })),
        seal(cluster().0, (*cluster().1).clone()),
        seal(namespace("one").0, (*namespace("one").1).clone()),
    ];
    said.extend((0..decisions).map(|n| {
        let what = Decided::Leave { owner: "s/s-a".parse().unwrap(), incarnation: "u".into() };
        let decision = Decision { by: "me".into(), at: now(), note: String::new(), what };
        let key = format!("/tombolo/v1/r/_/decision/_/d{n}").parse().unwrap();
        seal(key, Body::Decision(decision))
    }));
    said
}

fn complete() -> Vec<(Owner, Kind, Epoch)> {
    let of_region = [Kind::Region, Kind::Decision].map(|kind| (region(), kind, epoch("e", 1)));
    let of_cluster = crate::sync::CLUSTER_KINDS.map(|kind| (owner(), kind, epoch("e", 1)));
    of_region.into_iter().chain(of_cluster).collect()
}

fn hold(writer: &ReplicaWriter, items: Vec<(Key, Option<Bytes>)>) {
    writer.apply(Batch { items, complete: complete(), ..Batch::default() }, Instant::now());
}

/// A stream from `source` to `reader` as the service opens it.
fn stream(source: &ReplicaWriter, reader: &ReplicaWriter) -> (Feed, Intake) {
    let intake = Intake::new(Accept::Region("r".parse().unwrap()));
    let request = intake.request(&reader.current(), 0);
    let held = request.held.into_iter();
    let digests = held.map(|held| (held.owner.parse().unwrap(), held.digest.to_vec())).collect();
    let known = source.current().reads_level();
    let interest = Interest {
        level: request.reads_level.clamp(1, known),
        ..Interest::all(Owners::Region("r".parse().unwrap()))
    };
    (Feed::open(interest, Has { digests, position: 0 }, source.current()), intake)
}

fn values(replica: &Replica) -> BTreeMap<String, Bytes> {
    let records = replica.owners().flat_map(|(_, holding)| holding.records());
    records.map(|(key, entry)| (key.to_string(), entry.value.clone())).collect()
}

fn without_decisions(replica: &Replica) -> BTreeMap<String, Bytes> {
    let mut values = values(replica);
    values.retain(|key, _| !key.contains("/decision/"));
    values
}

fn quarantined(replica: &Replica) -> BTreeMap<String, String> {
    let kept = replica.owners().flat_map(|(_, holding)| holding.quarantine());
    kept.map(|(key, why)| (key.to_string(), why.to_string())).collect()
}

#[tokio::test(start_paused = true)]
async fn a_reader_one_level_back_holds_all_that_it_knows_byte_for_byte_and_nothing_flaps() {
    let (source, _) = replica::channel();
    let (reader, _) = replica::channel_at(1);
    hold(&source, said(1, 3));
    let (mut feed, mut intake) = stream(&source, &reader);
    assert!(take(&mut intake, &reader, rest(&mut feed)).unwrap());
    // An hour with a digest each minute, while decisions come and go.
    for minute in 1..=60 {
        hold(&source, said(minute, usize::try_from(minute % 4).unwrap()));
        if minute % 5 == 0 {
            let gone = said(minute, 4).into_iter().map(|(key, _)| (key, None)).skip(4);
            hold(&source, gone.collect());
        }
        feed.advance(source.current());
        take(&mut intake, &reader, rest(&mut feed)).unwrap();
        take(&mut intake, &reader, vec![feed.digests()]).unwrap();
        assert_eq!(values(&reader.current()), without_decisions(&source.current()));
    }
    assert_eq!(left_out(&intake), 0, "{:?}", intake.last_left_out());
    assert_eq!(quarantined(&reader.current()), BTreeMap::new());

    // Nor is anything but the beacon sent again to one that comes back.
    let (mut feed, _) = stream(&source, &reader);
    let mut again = 0;
    for message in rest(&mut feed) {
        match message.message.unwrap() {
            Answer::Start(start) => assert!(start.same, "{start:?}"),
            Answer::Batch(batch) => again += batch.items.len(),
            Answer::End(_) | Answer::Synced(_) | Answer::Digests(_) => {}
        }
    }
    assert_eq!(again, 1, "the region's beacon");
}

#[tokio::test]
async fn what_an_older_server_does_not_know_is_kept_and_makes_no_difference() {
    let (source, _) = replica::channel_at(1);
    let (reader, _) = replica::channel();
    hold(&source, said(5, 2));
    assert_eq!(values(&source.current()), without_decisions(&source.current()));
    // From before, when a server of this level answered.
    hold(&reader, said(4, 2));
    let (mut feed, mut intake) = stream(&source, &reader);
    take(&mut intake, &reader, rest(&mut feed)).unwrap();
    let mut digests = feed.digests();
    if let Some(Answer::Digests(digests)) = &mut digests.message {
        digests.level = 0;
    }
    take(&mut intake, &reader, vec![digests]).unwrap();
    assert_eq!(without_decisions(&reader.current()), values(&source.current()));
    assert_eq!(values(&reader.current()).len(), values(&source.current()).len() + 2);
}

#[tokio::test]
async fn an_older_reader_of_a_newer_servers_uncut_feed_leaves_out_what_it_does_not_know() {
    let (source, _) = replica::channel();
    let (reader, _) = replica::channel_at(1);
    hold(&source, said(1, 2));
    let interest = Interest::all(Owners::Region("r".parse().unwrap()));
    let mut feed = Feed::open(interest, Has::default(), source.current());
    let mut intake = Intake::new(Accept::Region("r".parse().unwrap()));
    take(&mut intake, &reader, rest(&mut feed)).unwrap();
    assert_eq!(values(&reader.current()), without_decisions(&source.current()));
    assert_eq!(left_out(&intake), 2);
    assert!(intake.last_left_out().unwrap().contains("/decision/"));
}

#[tokio::test]
async fn followers_of_two_levels_on_one_store_agree_on_what_both_know() {
    let store = store().await;
    let records = said(1, 2).into_iter();
    let mut ops: Vec<store::Op> =
        records.map(|(key, value)| store::Op::put(key.to_string(), value.unwrap())).collect();
    let gadget = "/tombolo/v1/r/r-a/gadget/shop/checkout";
    ops.push(store::Op::put(gadget, "of level 3"));
    store.commit(store::Txn { guards: Vec::new(), ops }).await.unwrap();

    let mut following = tokio::task::JoinSet::new();
    let mut follow = |level| {
        let (writer, replicas) = replica::channel_at(level);
        let (status, status_rx) = tokio::sync::watch::channel(Following::default());
        let follower = follower::follow(Arc::clone(&store), Arc::new(writer), None, status);
        following.spawn(async move { follower.await.unwrap() });
        (replicas, status_rx)
    };
    let mut replicas = Vec::new();
    for level in [1, READS_LEVEL] {
        let (mut read, mut status) = follow(level);
        replicas.push(read.wait_for(|replica| replica.position > 0).await.unwrap());
        let named = status.wait_for(|status| status.strays.contains_key(gadget)).await.unwrap();
        assert!(named.strays[gadget].contains("\"gadget\" is no kind of record"));
    }
    let digests = |replica: &Replica| {
        replica.owners().map(|(owner, held)| (owner.clone(), held.digest_at(1))).collect::<Vec<_>>()
    };
    assert_eq!(digests(&replicas[0]), digests(&replicas[1]));
    assert_eq!(values(&replicas[0]), without_decisions(&replicas[1]));
    let kept = store::read(&*store, gadget).await.unwrap().unwrap();
    assert_eq!(&kept.value[..], b"of level 3", "what nobody here knows stays in the store");
}

/// Field 900, a string.
const UNKNOWN: [u8; 8] = [0xa2, 0x38, 5, b'n', b'e', b'w', b'e', b'r'];

/// As a writer of level 3 makes it: fields that this version does not know in envelope and body.
fn of_level_3(key: &Key, body: &Body, sequence: u64, min_reader: u32) -> Bytes {
    let origin = Origin { epoch: epoch("e", 1), sequence, ..Origin::default() };
    let sealed = Record { key: key.clone(), origin, body: body.clone() }.seal();
    let mut envelope = records::Envelope::decode(sealed.value).unwrap();
    envelope.body = [&envelope.body[..], &UNKNOWN].concat().into();
    envelope.schema_level = 3;
    envelope.min_reader = min_reader;
    [envelope.encode_to_vec(), UNKNOWN.to_vec()].concat().into()
}

/// What passes from one replica to the next, and is the same there.
fn mirrored(source: &ReplicaWriter) -> ReplicaWriter {
    let (reader, _) = replica::channel();
    let (mut feed, mut intake) = stream(source, &reader);
    take(&mut intake, &reader, rest(&mut feed)).unwrap();
    take(&mut intake, &reader, vec![feed.digests()]).unwrap();
    assert_eq!(values(&reader.current()), values(&source.current()));
    reader
}

#[tokio::test]
async fn fields_of_a_newer_version_pass_two_mirrors_byte_for_byte_and_the_rest_is_used() {
    let (source, _) = replica::channel();
    let (key, body) = cluster();
    let value = of_level_3(&key, &body, 7, 2);
    hold(&source, vec![(key.clone(), Some(value.clone()))]);
    let last = mirrored(&mirrored(&source));
    let replica = last.current();
    let entry = replica.get(&key).unwrap();
    assert_eq!(entry.value, value);
    assert_eq!(entry.record.as_ref().unwrap().body, *body);
    assert_eq!(quarantined(&replica), BTreeMap::new());
}

#[tokio::test]
async fn what_only_newer_readers_can_use_is_kept_aside_and_the_last_good_version_stays_in_use() {
    let (source, _) = replica::channel();
    let (key, body) = cluster();
    hold(&source, said(1, 0));
    let reader = mirrored(&source);
    let (mut feed, mut intake) = stream(&source, &reader);
    take(&mut intake, &reader, rest(&mut feed)).unwrap();

    let value = of_level_3(&key, &body, 7, 3);
    hold(&source, vec![(key.clone(), Some(value.clone()))]);
    // For an hour: that it cannot be read here is no reason to ask for it again.
    for _ in 0..60 {
        feed.advance(source.current());
        take(&mut intake, &reader, rest(&mut feed)).unwrap();
        take(&mut intake, &reader, vec![feed.digests()]).unwrap();
    }
    let replica = reader.current();
    let entry = replica.get(&key).unwrap();
    assert_eq!((&entry.value, &entry.record.as_ref().unwrap().body), (&value, &*body));
    assert_eq!(entry.record.as_ref().unwrap().origin.sequence, 1, "the last good one");
    let why = "the value wants a reader of schema level 3, this one reads 2".to_owned();
    assert_eq!(quarantined(&replica), [(key.to_string(), why)].into());
    assert_eq!(mirrored(&reader).current().get(&key).unwrap().value, value);

    hold(&source, vec![(key.clone(), Some(of_level_3(&key, &body, 8, 2)))]);
    feed.advance(source.current());
    take(&mut intake, &reader, rest(&mut feed)).unwrap();
    let replica = reader.current();
    assert_eq!(quarantined(&replica), BTreeMap::new());
    assert_eq!(replica.get(&key).unwrap().record.as_ref().unwrap().origin.sequence, 8);
}

#[tokio::test]
async fn a_kind_of_a_newer_version_is_left_out_and_the_rest_goes_on() {
    let (source, _) = replica::channel();
    let (reader, _) = replica::channel();
    hold(&source, said(1, 1));
    let (mut feed, mut intake) = stream(&source, &reader);
    // A sender that does not cut: gadgets among the records, and an end marker for them.
    let mut messages = rest(&mut feed);
    for message in &mut messages {
        let Some(Answer::Batch(batch)) = &mut message.message else { continue };
        let mut item = batch.items[0].clone();
        item.key =
            item.key.replace("/cluster/_/", "/gadget/_/").replace("/region/_/", "/gadget/_/");
        batch.items.insert(0, item);
    }
    let at = messages.iter().position(|m| matches!(m.message, Some(Answer::End(_)))).unwrap();
    let mut end = messages[at].clone();
    if let Some(Answer::End(end)) = &mut end.message {
        end.kind = "gadget".into();
    }
    messages.insert(at, end);
    assert!(take(&mut intake, &reader, messages).unwrap());
    assert_eq!(values(&reader.current()), values(&source.current()));
    assert!(left_out(&intake) >= 2, "{}", left_out(&intake));
    take(&mut intake, &reader, vec![feed.digests()]).unwrap();
}
