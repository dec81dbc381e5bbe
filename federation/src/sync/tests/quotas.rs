//! One who says without end: is told what is too much, and everything else goes on.

use super::subscribing::{keys, rest, take};
use super::*;
use crate::record::Beacon;
use crate::sync::quota::{OWNERS, Quota};
use crate::sync::session::Reason;

type Request = wire::publish_request::Message;
type Answer = wire::publish_response::Message;

fn few(of: &'static str, records: usize) -> Quota {
    Quota { of, records, bytes: 1 << 20 }
}

/// A cluster that has published itself and two namespaces, where three records are taken.
async fn full(store: &Arc<dyn Store>) -> (Agent, Publisher, Session) {
    let mut agent = Agent::new(epoch("e", 1));
    agent.says(&[cluster(), namespace("a"), namespace("b")], &crate::sync::CLUSTER_KINDS);
    let (publisher, mut session, _) = publish(store, &mut agent).await;
    session.quota = few("cluster", 3);
    (agent, publisher, session)
}

fn named(refused: &[wire::RefusedRecord]) -> Vec<(&str, &str)> {
    let name = |refused: &wire::RefusedRecord| {
        refused.key.rsplit_once('/').map_or(0, |(p, _)| p.len() + 1)
    };
    refused.iter().map(|of| (&of.key[name(of)..], of.reason.as_str())).collect()
}

#[tokio::test]
async fn a_record_too_many_is_refused_by_name_and_what_is_there_may_change_and_make_room() {
    let store = store().await;
    let (mut agent, mut publisher, mut session) = full(&store).await;
    let why = "is one more than the 3 records that are taken of a cluster";
    agent.says(
        &[cluster(), namespace("a"), namespace("b"), namespace("c"), namespace("d")],
        &crate::sync::CLUSTER_KINDS,
    );
    let changes = publisher.changed(&agent.writer.current());
    let refused = settle(&mut publisher, &mut session, &mut agent, changes).await.unwrap();
    assert_eq!(named(&refused), [("c", why), ("d", why)]);
    assert_eq!(session.take_tally().refused, [(Reason::Quota, 2)].into());
    assert_eq!(stored(&store).await.len(), 3);

    // One that goes makes room for one, which is said again: the other one has none still.
    agent.says(
        &[cluster(), namespace("b"), namespace("c"), namespace("d")],
        &crate::sync::CLUSTER_KINDS,
    );
    let changes = publisher.changed(&agent.writer.current());
    settle(&mut publisher, &mut session, &mut agent, changes).await.unwrap();
    assert_eq!(stored_names(&store).await, ["r-a", "b", "c"]);
    // Another one takes the place of one in a single message, and what went is not said again.
    agent.says(&[cluster(), namespace("b"), namespace("e")], &crate::sync::CLUSTER_KINDS);
    let changes = publisher.changed(&agent.writer.current());
    assert_eq!(changes.len(), 1);
    let refused = settle(&mut publisher, &mut session, &mut agent, changes).await.unwrap();
    assert_eq!(named(&refused), []);
    assert_eq!(stored_names(&store).await, ["r-a", "b", "e"]);
}

async fn stored_names(store: &Arc<dyn Store>) -> Vec<String> {
    let keys = stored(store).await;
    keys.iter().filter_map(|key| Some(key.rsplit_once('/')?.1.to_owned())).collect()
}

/// Room is made by what goes, not by a message that it is to go.
#[tokio::test]
async fn a_removal_that_is_refused_makes_no_room() {
    let store = store().await;
    let (_, _, mut session) = full(&store).await;
    let mut own = OwnRecords::new(owner(), epoch("e", 1));
    let mut put = |name: &str| {
        // After all that was said before.
        let said = (0..100).map(|_| own.say(&namespace(name).0, &namespace(name).1)).last();
        let (key, value) = said.unwrap();
        wire::Put { key: key.to_string(), value: value.unwrap() }
    };
    let gone = |name: &str, sequence| wire::Tombstone {
        key: namespace(name).0.to_string(),
        removal: wire::Removal::Explained.into(),
        sequence,
    };
    let puts = vec![put("x"), put("y"), put("a")];
    // Without a number, twice, and of what is put by the same message.
    let tombstones = vec![gone("b", 0), gone("b", 900), gone("b", 900), gone("a", 900)];
    let changes = wire::Changes { batch: 9, puts, tombstones, more: false };
    let request = wire::PublishRequest { message: Some(Request::Changes(changes)) };
    session.receive(request, now()).await.unwrap();
    assert_eq!(stored_names(&store).await, ["r-a", "a", "x"]);
    assert_eq!(session.take_tally().refused[&Reason::Quota], 1);
}

#[tokio::test]
async fn a_cluster_that_is_too_large_is_heard_all_the_same() {
    let store = store().await;
    let (mut agent, mut publisher, mut session) = full(&store).await;
    let beacon = Key::of_owner(owner(), Kind::Beacon);
    let beats = (beacon, Arc::new(Body::Beacon(Beacon { nonce: 7 })));
    let grown = Cluster {
        uid: "uid".into(),
        directory: true,
        network: "n".repeat(900),
        ..Cluster::default()
    };
    let grown = (cluster().0, Arc::new(Body::Cluster(grown)));
    session.quota.bytes = 100;
    let says = [grown.clone(), namespace("a"), namespace("b"), namespace("c"), beats];
    agent.says(&says, &crate::sync::CLUSTER_KINDS);
    let changes = publisher.changed(&agent.writer.current());
    let refused = settle(&mut publisher, &mut session, &mut agent, changes).await.unwrap();
    assert_eq!(named(&refused).into_iter().map(|(name, _)| name).collect::<Vec<_>>(), ["c"]);
    assert_eq!(stored_names(&store).await, ["r-a", "r-a", "a", "b"]);

    // And to other regions.
    let (mirror, _) = replica::channel();
    let (_, mut intake, messages) = mirror_of(&agent.writer, 1);
    take(&mut intake, &mirror, messages).unwrap();
    assert_eq!((left_out(&intake), names(&mirror)), (3, vec!["r-a".into(), "r-a".into()]));
}

#[tokio::test]
async fn bytes_are_counted_over_all_records() {
    let store = store().await;
    let (mut agent, mut publisher, mut session) = full(&store).await;
    session.quota = Quota { of: "cluster", records: 100, bytes: 1000 };
    let labels = [("l".to_owned(), "v".repeat(900))].into();
    let body = Body::Namespace(Namespace { labels, ..Namespace::default() });
    let large = (namespace("large").0, Arc::new(body));
    let says = [cluster(), namespace("a"), namespace("b"), large, namespace("small")];
    agent.says(&says, &crate::sync::CLUSTER_KINDS);
    let changes = publisher.changed(&agent.writer.current());
    let refused = settle(&mut publisher, &mut session, &mut agent, changes).await.unwrap();
    let why = "would take more than the 1000 bytes that are taken of a cluster";
    assert_eq!(named(&refused), [("large", why)]);
    assert_eq!(stored(&store).await.len(), 4);
}

#[tokio::test]
async fn a_declaration_and_a_message_are_bounded() {
    let store = store().await;
    let mut session = open(&store, "uid", epoch("e", 1), Duration::ZERO).await.unwrap();
    session.quota = few("cluster", 3);
    let entry = |n: usize| wire::KeyHash {
        key: namespace(&format!("n{n}")).0.to_string(),
        ..wire::KeyHash::default()
    };
    let state = |entries: Vec<_>| {
        let state = wire::State { entries, last: false };
        wire::PublishRequest { message: Some(Request::State(state)) }
    };
    // The same again is no more.
    for _ in 0..3 {
        session.receive(state((0..6).map(entry).collect()), now()).await.unwrap();
    }
    let error = session.receive(state(vec![entry(6)]), now()).await.unwrap_err();
    let why = "key /tombolo/v1/r/r-a/namespace/_/n6 is one more than the 6 records that are taken of a declaration";
    assert_eq!(error, SessionError::Refused(why.to_owned()));

    let (_, _, mut session) = full(&store).await;
    let puts = vec![wire::Put::default(); 16_385];
    let changes = Request::Changes(wire::Changes { puts, ..wire::Changes::default() });
    let request = wire::PublishRequest { message: Some(changes) };
    let error = session.receive(request, now()).await.unwrap_err();
    assert_eq!(error, SessionError::Protocol("more than 16384 changes in one message"));
}

#[tokio::test]
async fn what_is_neither_declared_nor_removed_is_named_whatever_its_number() {
    let store = store().await;
    let mut agent = Agent::new(epoch("e", 1));
    let many = (0..3000).map(|n| namespace(&format!("{n:0>40}")));
    agent.says(&many.chain([cluster()]).collect::<Vec<_>>(), &crate::sync::CLUSTER_KINDS);
    publish(&store, &mut agent).await;

    let mut session = open(&store, "uid", epoch("e", 1), Duration::ZERO).await.unwrap();
    let state = Request::State(wire::State { entries: Vec::new(), last: true });
    session.receive(wire::PublishRequest { message: Some(state) }, now()).await.unwrap();
    let complete = wire::Complete { batch: 1, kinds: vec!["namespace".into()], sequence: 9000 };
    let request = wire::PublishRequest { message: Some(Request::Complete(complete)) };
    let answers = session.receive(request, now()).await.unwrap();
    let acks = answers.iter().filter_map(|answer| match &answer.message {
        Some(Answer::Ack(ack)) => Some(ack.refused.len()),
        _ => None,
    });
    let acks: Vec<_> = acks.collect();
    assert!(acks.len() > 1, "{acks:?}");
    assert_eq!(acks.into_iter().sum::<usize>(), 3000);
}

/// A mirror of region r that takes `records` of it, and what it is sent of a source.
pub(super) fn mirror_of(
    source: &ReplicaWriter,
    records: usize,
) -> (Feed, Intake, Vec<wire::SubscribeResponse>) {
    let region: RegionName = "r".parse().unwrap();
    let mut feed =
        Feed::open(Interest::all(Owners::Region(region.clone())), Has::default(), source.current());
    let mut intake = Intake::new(Accept::Region(region));
    intake.quota = Some(few("region", records));
    let messages = rest(&mut feed);
    (feed, intake, messages)
}

#[tokio::test]
async fn a_peer_beyond_its_quota_loses_nothing_and_brings_nothing_more() {
    let mut agent = Agent::new(epoch("e", 1));
    let (mirror, _) = replica::channel();
    agent.says(&[cluster(), namespace("x"), namespace("y")], &crate::sync::CLUSTER_KINDS);
    let (_, mut intake, messages) = mirror_of(&agent.writer, 3);
    take(&mut intake, &mirror, messages).unwrap();
    assert_eq!((left_out(&intake), keys(&mirror.current()).len()), (0, 3));

    // Others in their place are as many; a whole transfer replaces what is held.
    agent.says(&[cluster(), namespace("a"), namespace("b")], &crate::sync::CLUSTER_KINDS);
    let (mut feed, mut intake, messages) = mirror_of(&agent.writer, 3);
    take(&mut intake, &mirror, messages).unwrap();
    assert_eq!((left_out(&intake), keys(&mirror.current()).len()), (0, 3));
    assert_eq!(keys(&mirror.current()), keys(&agent.writer.current()));

    // One more, live.
    agent.says(
        &[cluster(), namespace("a"), namespace("b"), namespace("c")],
        &crate::sync::CLUSTER_KINDS,
    );
    feed.advance(agent.writer.current());
    take(&mut intake, &mirror, rest(&mut feed)).unwrap();
    assert_eq!((left_out(&intake), keys(&mirror.current()).len()), (1, 3));
    let why = "/tombolo/v1/r/r-a/namespace/_/c: is one more than the 3 records that are taken of a region";
    assert_eq!(intake.last_left_out(), Some(why));

    // And in whole transfers: what is left out is not absent, and what is absent makes room.
    agent.says(
        &[cluster(), namespace("a"), namespace("b"), namespace("0"), namespace("1")],
        &crate::sync::CLUSTER_KINDS,
    );
    for _ in 0..3 {
        let (_, mut intake, messages) = mirror_of(&agent.writer, 3);
        take(&mut intake, &mirror, messages).unwrap();
        assert_eq!(
            (left_out(&intake), names(&mirror)),
            (2, vec!["r-a".into(), "a".into(), "b".into()])
        );
    }
    agent.says(
        &[cluster(), namespace("0"), namespace("1"), namespace("2"), namespace("b")],
        &crate::sync::CLUSTER_KINDS,
    );
    let (_, mut intake, messages) = mirror_of(&agent.writer, 3);
    take(&mut intake, &mirror, messages).unwrap();
    assert_eq!(
        (left_out(&intake), names(&mirror)),
        (2, vec!["r-a".into(), "0".into(), "b".into()])
    );
}

fn names(replica: &ReplicaWriter) -> Vec<String> {
    let keys = keys(&replica.current());
    keys.iter().filter_map(|key| Some(key.rsplit_once('/')?.1.to_owned())).collect()
}

/// Feeds send what comes before what goes.
#[tokio::test]
async fn what_goes_makes_room_for_what_comes_in_the_same_change() {
    let mut agent = Agent::new(epoch("e", 1));
    let (mirror, _) = replica::channel();
    agent.says(&[cluster(), namespace("x"), namespace("y")], &crate::sync::CLUSTER_KINDS);
    let (mut feed, mut intake, messages) = mirror_of(&agent.writer, 3);
    take(&mut intake, &mirror, messages).unwrap();
    for (one, other) in [("a", "b"), ("c", "d"), ("a", "b")] {
        agent.says(&[cluster(), namespace(one), namespace(other)], &crate::sync::CLUSTER_KINDS);
        feed.advance(agent.writer.current());
        take(&mut intake, &mirror, rest(&mut feed)).unwrap();
        assert_eq!(
            (left_out(&intake), names(&mirror)),
            (0, vec!["r-a".to_owned(), one.into(), other.into()])
        );
    }
}

/// However often it says that something goes.
#[tokio::test]
async fn room_is_not_made_twice_by_one_record() {
    for second in ["a", "x"] {
        let mut agent = Agent::new(epoch("e", 1));
        let (mirror, _) = replica::channel();
        agent.says(&[cluster(), namespace("x"), namespace("y")], &crate::sync::CLUSTER_KINDS);
        let (_, mut intake, messages) = mirror_of(&agent.writer, 3);
        take(&mut intake, &mirror, messages).unwrap();
        let gone = || wire::Item {
            key: namespace("x").0.to_string(),
            sequence: 90,
            ..wire::Item::default()
        };
        let mut own = OwnRecords::new(owner(), epoch("e", 2));
        let mut put = |name: &str| {
            let (key, value) = own.say(&namespace(name).0, &namespace(name).1);
            wire::Item { key: key.to_string(), value, ..wire::Item::default() }
        };
        let parts = [vec![gone(), gone(), put(second), put("b")], vec![gone(), put("c")]];
        for (part, items) in parts.into_iter().enumerate() {
            let batch = wire::Batch { position: 9, items, more: part == 0 };
            let message = Some(wire::subscribe_response::Message::Batch(batch));
            take(&mut intake, &mirror, vec![wire::SubscribeResponse { message }]).unwrap();
        }
        assert_eq!(left_out(&intake), 2);
        assert!(keys(&mirror.current()).len() <= 3, "{:?}", names(&mirror));
    }
}

#[tokio::test]
async fn what_a_peer_has_beyond_its_quota_is_not_transferred_and_written_again_and_again() {
    let mut agent = Agent::new(epoch("e", 1));
    let (mirror, _) = replica::channel();
    let many = [cluster(), namespace("a"), namespace("b"), namespace("c")];
    agent.says(&many, &crate::sync::CLUSTER_KINDS);
    let (mut feed, mut intake, messages) = mirror_of(&agent.writer, 3);
    take(&mut intake, &mirror, messages).unwrap();
    assert_eq!(names(&mirror), ["r-a", "a", "b"]);
    for _ in 0..3 {
        take(&mut intake, &mirror, vec![feed.digests()]).unwrap();
    }
    // A whole transfer writes nothing of what is held as it is.
    let (_, mut again, messages) = mirror_of(&agent.writer, 3);
    for message in messages {
        let step = again.receive(message, &mirror.current()).unwrap();
        assert_eq!(step.batch.items, []);
    }
    // There is room for it: it is sent again.
    agent.says(&[cluster(), namespace("b"), namespace("c")], &crate::sync::CLUSTER_KINDS);
    feed.advance(agent.writer.current());
    take(&mut intake, &mirror, rest(&mut feed)).unwrap();
    let error = take(&mut intake, &mirror, vec![feed.digests()]).unwrap_err();
    assert_eq!(error, IntakeError::DigestMismatch { owner: owner() });
    let (feed, mut intake, messages) = mirror_of(&agent.writer, 3);
    take(&mut intake, &mirror, messages).unwrap();
    assert_eq!(names(&mirror), ["r-a", "b", "c"]);
    take(&mut intake, &mirror, vec![feed.digests()]).unwrap();
}

#[tokio::test]
async fn a_peer_of_owners_or_parts_without_end_is_left() {
    let (mirror, _) = replica::channel();
    let message = |message| wire::SubscribeResponse { message: Some(message) };
    let mut intake = Intake::new(Accept::Region("r".parse().unwrap()));
    let start = |n: usize| {
        let owner = format!("r/r-{n}");
        message(wire::subscribe_response::Message::Start(wire::Start {
            owner,
            ..wire::Start::default()
        }))
    };
    let owners = (0..=OWNERS).map(start).collect();
    let error = take(&mut intake, &mirror, owners).unwrap_err();
    assert_eq!(error, IntakeError::Unexpected("more than 1024 owners".to_owned()));

    let mut intake = Intake::new(Accept::Region("r".parse().unwrap()));
    intake.quota = Some(few("region", 2));
    let removal = wire::Item { key: namespace("x").0.to_string(), ..wire::Item::default() };
    let batch = wire::Batch { position: 1, items: vec![removal], more: true };
    let part = message(wire::subscribe_response::Message::Batch(batch));
    let error = take(&mut intake, &mirror, vec![part; 5]).unwrap_err();
    assert_eq!(error, IntakeError::Unexpected("a change of more than 4 records".to_owned()));
}
