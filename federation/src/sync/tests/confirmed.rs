//! Earlier versions of what is held: from a server that went back, and from an owner that confirms
//! them.

use super::subscribing::{rest, subscribe, take};
use super::*;
use crate::record::{Origin, Record};

type Said = wire::subscribe_response::Message;

fn at(count: u64, sequence: u64) -> Newest {
    Newest { epoch: epoch("e", count), sequence }
}

fn sealed(at: &Newest, label: &str) -> (Key, Option<Bytes>) {
    let (key, _) = namespace("one");
    let labels = [("l".to_owned(), label.to_owned())].into();
    let body = Body::Namespace(Namespace { labels, ..Namespace::default() });
    let origin = Origin { epoch: at.epoch.clone(), sequence: at.sequence, ..Origin::default() };
    let record = Record { key: key.clone(), origin, body };
    (key, Some(record.seal().value))
}

/// An owner that had said this, and has come to `newest`, vouching for all in that epoch.
fn said(items: Vec<(Key, Option<Bytes>)>, newest: Newest) -> Batch {
    let kinds = crate::sync::CLUSTER_KINDS.into_iter();
    let complete = kinds.map(|kind| (owner(), kind, newest.epoch.clone())).collect();
    Batch { items, complete, newest: vec![(owner(), newest)], ..Batch::default() }
}

fn process(batch: Batch) -> ReplicaWriter {
    let (writer, _) = replica::channel();
    writer.apply(batch, Instant::now());
    writer
}

fn held(writer: &ReplicaWriter) -> Option<Bytes> {
    writer.current().get(&namespace("one").0).map(|entry| entry.value.clone())
}

/// What a mirror would commit, which no replica looks at before.
#[tokio::test]
async fn an_older_version_of_what_is_held_is_not_passed_on() {
    let subscriber = process(said(vec![sealed(&at(1, 5), "new")], at(1, 5)));
    let old = sealed(&at(1, 4), "old");
    let server = process(said(vec![old.clone()], at(1, 9)));
    let (_, mut intake, messages) = subscribe(&server, &subscriber);
    let mut items = Vec::new();
    for message in messages {
        items.extend(intake.receive(message, &subscriber.current()).unwrap().batch.items);
    }
    assert_eq!(items, [], "at the start");

    let item = wire::Item { key: old.0.to_string(), value: old.1, ..Default::default() };
    let batch = Said::Batch(wire::Batch { position: 9, items: vec![item], more: false });
    let message = wire::SubscribeResponse { message: Some(batch) };
    let items = intake.receive(message, &subscriber.current()).unwrap().batch.items;
    assert_eq!(items, [], "and later");
}

/// The owner's region was restored to before its last change. The owner, started anew since, holds
/// what is there.
#[tokio::test]
async fn what_its_owner_confirms_in_a_later_epoch_takes_the_place_of_what_was_lost() {
    let confirmed = sealed(&at(1, 4), "there");
    let subscriber = process(said(vec![sealed(&at(1, 5), "lost")], at(1, 5)));
    let server = process(said(vec![confirmed.clone()], at(2, 1)));
    let (feed, mut intake, messages) = subscribe(&server, &subscriber);
    take(&mut intake, &subscriber, messages).unwrap();
    assert_eq!(held(&subscriber), confirmed.1);
    take(&mut intake, &subscriber, vec![feed.digests()]).unwrap();
}

/// The same while it is listened to: what comes is not known to be confirmed before the word after
/// it, and then all is compared at once.
#[tokio::test]
async fn what_is_confirmed_on_a_stream_is_compared_as_soon_as_it_is_known() {
    let lost = sealed(&at(1, 5), "lost");
    let subscriber = process(said(vec![lost.clone()], at(1, 5)));
    let server = process(said(vec![lost.clone()], at(1, 5)));
    let (mut feed, mut intake, messages) = subscribe(&server, &subscriber);
    take(&mut intake, &subscriber, messages).unwrap();

    let confirmed = sealed(&at(1, 4), "there");
    server.apply(said(vec![confirmed.clone()], at(2, 1)), Instant::now());
    feed.advance(server.current());
    let ended = take(&mut intake, &subscriber, rest(&mut feed)).unwrap_err();
    assert_eq!(ended, IntakeError::DigestMismatch { owner: owner() });
    assert_eq!(held(&subscriber), lost.1, "nothing goes back without a word");

    let (feed, mut intake, messages) = subscribe(&server, &subscriber);
    take(&mut intake, &subscriber, messages).unwrap();
    assert_eq!(held(&subscriber), confirmed.1);
    take(&mut intake, &subscriber, vec![feed.digests()]).unwrap();
}

/// A server that has not heard of it yet still has what the owner said before, by its number a later
/// change than the one that stands.
#[tokio::test]
async fn what_an_owner_had_said_before_it_confirmed_another_does_not_come_back() {
    let confirmed = sealed(&at(1, 4), "there");
    let subscriber = process(said(vec![confirmed.clone()], at(2, 1)));
    let server = process(said(vec![confirmed.clone()], at(1, 4)));
    let (mut feed, mut intake, messages) = subscribe(&server, &subscriber);
    take(&mut intake, &subscriber, messages).unwrap();

    server.apply(said(vec![sealed(&at(1, 5), "lost")], at(1, 5)), Instant::now());
    feed.advance(server.current());
    take(&mut intake, &subscriber, rest(&mut feed)).unwrap();
    assert_eq!(held(&subscriber), confirmed.1);

    server.apply(said(vec![confirmed.clone()], at(2, 1)), Instant::now());
    feed.advance(server.current());
    take(&mut intake, &subscriber, rest(&mut feed)).unwrap();
    assert_eq!(held(&subscriber), confirmed.1);
}
