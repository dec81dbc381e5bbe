//! Feed and intake: what a region passes on, and what a subscriber takes for gone.

use std::collections::BTreeSet;

use prost::Message as _;

use super::*;
use crate::record::{Decided, Decision, Entitlement};

/// A replica filled as a control plane's would be.
pub(super) fn held(epoch: Epoch, bodies: &[(Key, Arc<Body>)], kinds: &[Kind]) -> ReplicaWriter {
    let mut agent = Agent::new(epoch);
    agent.says(bodies, kinds);
    agent.writer
}

pub(super) fn subscribe(
    source: &ReplicaWriter,
    subscriber: &ReplicaWriter,
) -> (Feed, Intake, Vec<wire::SubscribeResponse>) {
    let intake = Intake::new(Accept::MeshBut("x/x-x".parse().unwrap()));
    let request = intake.request(&subscriber.current(), 0);
    let held = request.held.into_iter();
    let digests = held.map(|held| (held.owner.parse().unwrap(), held.digest.to_vec())).collect();
    let interest = Interest::all(Owners::MeshBut("x/x-x".parse().unwrap()));
    let has = Has { digests, position: request.position };
    let mut feed = Feed::open(interest, has, source.current());
    let messages = rest(&mut feed);
    (feed, intake, messages)
}

/// All that the feed has to give now.
pub(super) fn rest(feed: &mut Feed) -> Vec<wire::SubscribeResponse> {
    std::iter::from_fn(|| feed.next_message()).collect()
}

pub(super) fn take(
    intake: &mut Intake,
    subscriber: &ReplicaWriter,
    messages: Vec<wire::SubscribeResponse>,
) -> Result<bool, IntakeError> {
    let mut synced = false;
    for message in messages {
        let step = intake.receive(message, &subscriber.current())?;
        synced |= step.synced;
        subscriber.apply(step.batch, Instant::now());
    }
    Ok(synced)
}

pub(super) fn keys(replica: &Replica) -> Vec<String> {
    let records = replica.owners().flat_map(|(_, holding)| holding.records());
    records.map(|(key, _)| key.to_string()).collect()
}

#[tokio::test]
async fn a_subscriber_ends_up_with_the_same_and_follows() {
    let mut agent = Agent::new(epoch("e", 1));
    agent.says(&[cluster(), namespace("one"), namespace("two")], &crate::sync::CLUSTER_KINDS);
    let (subscriber, _readers) = replica::channel();
    let (mut feed, mut intake, messages) = subscribe(&agent.writer, &subscriber);
    assert!(take(&mut intake, &subscriber, messages).unwrap());
    assert_eq!(keys(&subscriber.current()), keys(&agent.writer.current()));

    agent.says(&[cluster(), namespace("two"), namespace("three")], &crate::sync::CLUSTER_KINDS);
    feed.advance(agent.writer.current());
    let messages = rest(&mut feed);
    take(&mut intake, &subscriber, messages).unwrap();
    assert_eq!(keys(&subscriber.current()), keys(&agent.writer.current()));
    take(&mut intake, &subscriber, vec![feed.digests()]).unwrap();

    // Nothing is sent again to one that holds the same.
    let (_, _, messages) = subscribe(&agent.writer, &subscriber);
    let batches = messages.iter().filter(|message| {
        matches!(message.message, Some(wire::subscribe_response::Message::Batch(_)))
    });
    assert_eq!(batches.count(), 0);
}

#[tokio::test]
async fn a_slow_reader_gets_the_newest_of_each_key_once() {
    let mut agent = Agent::new(epoch("e", 1));
    agent.says(&[cluster()], &crate::sync::CLUSTER_KINDS);
    let (subscriber, _readers) = replica::channel();
    let (mut feed, _, _) = subscribe(&agent.writer, &subscriber);
    for n in 0..100 {
        let bodies = if n % 2 == 0 { vec![cluster(), namespace("x")] } else { vec![cluster()] };
        agent.says(&bodies, &crate::sync::CLUSTER_KINDS);
    }
    agent.says(&[cluster(), namespace("x")], &crate::sync::CLUSTER_KINDS);
    feed.advance(agent.writer.current());
    let messages = rest(&mut feed);
    let Some(wire::subscribe_response::Message::Batch(batch)) = &messages[0].message else {
        panic!("{messages:?}")
    };
    assert_eq!(batch.items.len(), 1);
}

#[tokio::test]
async fn what_was_missed_goes_only_under_an_end_marker_that_is_not_older() {
    let check = |sender: ReplicaWriter, kept: bool| {
        let subscriber =
            held(epoch("e", 5), &[cluster(), namespace("one")], &crate::sync::CLUSTER_KINDS);
        let (_, mut intake, messages) = subscribe(&sender, &subscriber);
        take(&mut intake, &subscriber, messages).unwrap();
        let has = keys(&subscriber.current()).iter().any(|key| key.ends_with("/one"));
        assert_eq!(has, kept);
    };
    let all = &crate::sync::CLUSTER_KINDS;
    let mut removed = Agent::new(epoch("e", 5));
    removed.says(&[cluster(), namespace("one")], all);
    removed.says(&[cluster()], all);
    check(removed.writer, false);
    check(held(epoch("e", 6), &[cluster()], all), false);
    check(held(epoch("other", 1), &[cluster()], all), false);
    // The word of one who does not know all that is known here (a server that is behind, or was
    // restored from a backup), an older word, no word on this kind, none on anything: nothing goes.
    check(held(epoch("e", 5), &[cluster()], all), true);
    check(held(epoch("e", 4), &[cluster()], all), true);
    check(held(epoch("e", 6), &[cluster()], &[Kind::Cluster]), true);
    check(replica::channel().0, true);
}

#[tokio::test]
async fn a_removal_in_an_owners_next_epoch_is_taken_whatever_its_number() {
    let mut sender = Agent::new(epoch("e", 1));
    for name in ["a", "b", "c"] {
        sender.says(&[cluster(), namespace(name), namespace("one")], &crate::sync::CLUSTER_KINDS);
    }
    let (subscriber, _readers) = replica::channel();
    let (mut feed, mut intake, messages) = subscribe(&sender.writer, &subscriber);
    take(&mut intake, &subscriber, messages).unwrap();
    assert_eq!(keys(&subscriber.current()).len(), 3);

    // It starts anew, declares the same, and the first thing that it says is that one went.
    let key = namespace("c").0;
    let removed = Removed { removal: Removal::Explained, sequence: 1, epoch: None };
    let newest = Newest { epoch: epoch("e", 2), sequence: 1 };
    let batch = Batch {
        items: vec![(key.clone(), None)],
        removed: [(key, removed)].into(),
        newest: vec![(owner(), newest)],
        ..Batch::default()
    };
    sender.writer.apply(batch, Instant::now());
    feed.advance(sender.writer.current());
    take(&mut intake, &subscriber, rest(&mut feed)).unwrap();
    assert_eq!(keys(&subscriber.current()).len(), 2);
    take(&mut intake, &subscriber, vec![feed.digests()]).unwrap();
}

#[tokio::test]
async fn a_stream_that_breaks_off_has_changed_nothing_of_the_owner_it_was_at() {
    let sender = held(epoch("e", 6), &[cluster(), namespace("new")], &crate::sync::CLUSTER_KINDS);
    let count = subscribe(&sender, &replica::channel().0).2.len();
    for cut in 0..count {
        let subscriber =
            held(epoch("e", 5), &[cluster(), namespace("old")], &crate::sync::CLUSTER_KINDS);
        let before = keys(&subscriber.current());
        let (_, mut intake, mut messages) = subscribe(&sender, &subscriber);
        messages.truncate(cut);
        assert!(!take(&mut intake, &subscriber, messages).unwrap());
        assert_eq!(keys(&subscriber.current()), before, "cut at {cut} of {count}");
    }
}

#[tokio::test]
async fn a_difference_is_found_by_the_digests() {
    let sender = held(epoch("e", 1), &[cluster(), namespace("one")], &crate::sync::CLUSTER_KINDS);
    let (subscriber, _readers) = replica::channel();
    let (feed, mut intake, messages) = subscribe(&sender, &subscriber);
    take(&mut intake, &subscriber, messages).unwrap();
    let missed = vec![(namespace("one").0, None)];
    subscriber.apply(Batch { items: missed, ..Batch::default() }, Instant::now());
    let error = take(&mut intake, &subscriber, vec![feed.digests()]).unwrap_err();
    assert_eq!(error, IntakeError::DigestMismatch { owner: owner() });
}

#[tokio::test]
async fn a_peer_is_believed_about_itself_only() {
    let sender = held(epoch("e", 1), &[cluster()], &crate::sync::CLUSTER_KINDS);
    let interest = Interest::all(Owners::Region("r".parse().unwrap()));
    let messages = rest(&mut Feed::open(interest, Has::default(), sender.current()));
    let (subscriber, _readers) = replica::channel();
    let mut intake = Intake::new(Accept::Region("other".parse().unwrap()));
    let error = take(&mut intake, &subscriber, messages).unwrap_err();
    assert!(error.to_string().contains("r/r-a, which is not its to send"), "{error}");
    assert_eq!(keys(&subscriber.current()), [""; 0]);

    let mut intake = Intake::new(Accept::Region("other".parse().unwrap()));
    let item = wire::Item {
        key: cluster().0.to_string(),
        value: Some(Bytes::new()),
        ..Default::default()
    };
    let batch = wire::Batch { position: 1, items: vec![item], more: false };
    let message = Some(wire::subscribe_response::Message::Batch(batch));
    let stray = wire::SubscribeResponse { message };
    take(&mut intake, &subscriber, vec![stray]).unwrap();
    assert_eq!((keys(&subscriber.current()).len(), left_out(&intake)), (0, 1));
}

/// A server that says nothing of an owner does not take it away; an operator's word does.
#[tokio::test]
async fn who_left_while_a_subscriber_was_away_is_forgotten() {
    let region: Owner = "r/_".parse().unwrap();
    let subscriber =
        held(epoch("e", 1), &[cluster(), namespace("one")], &crate::sync::CLUSTER_KINDS);
    let (server, _readers) = replica::channel();
    let mut own = OwnRecords::new(region.clone(), epoch("region", 1));
    let speak = |own: &mut OwnRecords, bodies: BTreeMap<Key, Arc<Body>>| {
        let mut batch = own.reconcile(&bodies, &BTreeMap::new());
        batch.complete = own.complete(&crate::sync::REGION_KINDS);
        server.apply(batch, Instant::now());
    };
    speak(&mut own, BTreeMap::new());
    let sync = || {
        let (_, mut intake, messages) = subscribe(&server, &subscriber);
        take(&mut intake, &subscriber, messages).unwrap();
        subscriber.current().holding(&owner()).is_some()
    };
    assert!(sync(), "silence is not a word");

    let leave = |incarnation: &str| {
        let what = Decided::Leave { owner: owner(), incarnation: incarnation.to_owned() };
        let key = crate::sync::decisions::key(&region.region, &what);
        let by = "an operator".to_owned();
        let decision = Decision { by, at: now(), note: String::new(), what };
        BTreeMap::from([(key, Arc::new(Body::Decision(decision)))])
    };
    speak(&mut own, leave("another uid"));
    assert!(sync(), "it was another that left");
    speak(&mut own, leave("uid"));
    assert!(!sync());
}

fn interest(entitlement: &[&str], uses: Option<&[&str]>) -> Interest {
    let names =
        |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<BTreeSet<_>>();
    Interest {
        entitlement: Entitlement::Namespaces(names(entitlement)),
        uses: uses.map(names),
        ..Interest::all(Owners::MeshBut("x/x-x".parse().unwrap()))
    }
}

/// Follows for an hour, with digests every minute, while every namespace changes.
fn follow_for_an_hour(interest: &Interest, wanted: &[&str]) {
    let mut agent = Agent::new(epoch("e", 1));
    let all = ["one", "two", "three"];
    let (subscriber, _readers) = replica::channel();
    agent.says(&[cluster(), namespace("one")], &crate::sync::CLUSTER_KINDS);
    let mut feed = Feed::open(interest.clone(), Has::default(), agent.writer.current());
    let mut intake = Intake::new(Accept::MeshBut("x/x-x".parse().unwrap()));
    take(&mut intake, &subscriber, rest(&mut feed)).unwrap();
    for minute in 0..60 {
        let mut says = vec![cluster(), slice("127.1.1.1")];
        let there = all.iter().enumerate().filter(|(n, _)| minute % (n + 2) != 0);
        says.extend(there.map(|(_, name)| namespace(name)));
        agent.says(&says, &crate::sync::CLUSTER_KINDS);
        feed.advance(agent.writer.current());
        take(&mut intake, &subscriber, rest(&mut feed)).unwrap();
        take(&mut intake, &subscriber, vec![feed.digests()]).unwrap();
        let held = subscriber.current();
        for key in held.owners().flat_map(|(_, holding)| holding.records()).map(|(key, _)| key) {
            let about = key.about().map(|about| about.to_string());
            let told = about.as_deref().is_none_or(|about| wanted.contains(&about));
            assert!(told, "was told of {key}");
        }
        let count = says
            .iter()
            .filter(|(key, _)| key.about().is_none_or(|about| wanted.contains(&about.as_str())));
        assert_eq!(keys(&held).len(), count.count(), "minute {minute}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_is_told_of_what_it_is_entitled_to_and_uses_and_digests_agree_for_an_hour() {
    follow_for_an_hour(&interest(&["one", "two"], None), &["one", "two"]);
    follow_for_an_hour(&interest(&["one", "two"], Some(&["two", "three"])), &["two"]);
    follow_for_an_hour(&interest(&["shop"], None), &["shop"]);
    follow_for_an_hour(&interest(&[], None), &[]);
}

#[tokio::test]
async fn what_is_sent_is_made_when_it_is_asked_for() {
    let (source, _readers) = replica::channel();
    let mut own = OwnRecords::new(owner(), epoch("e", 1));
    let records = (0..100).map(|n| {
        let labels = [("l".to_owned(), "v".repeat(64 << 10))].into();
        let body = Body::Namespace(Namespace { labels, annotations: BTreeMap::new() });
        own.say(&namespace(&format!("n{n}")).0, &Arc::new(body))
    });
    let items: Vec<_> = records.collect();
    source.apply(Batch { items, ..Batch::default() }, Instant::now());
    let interest = Interest::all(Owners::Region("r".parse().unwrap()));
    let mut feed = Feed::open(interest, Has::default(), source.current());
    assert!(feed.transfer_bytes() > 6 << 20, "{}", feed.transfer_bytes());
    let mut batches = 0;
    while let Some(message) = feed.next_message() {
        assert!(message.encoded_len() < crate::sync::TARGET_MESSAGE + (128 << 10));
        let is_batch = matches!(message.message, Some(wire::subscribe_response::Message::Batch(_)));
        batches += usize::from(is_batch);
    }
    assert_eq!(batches, 25);
    assert!(!feed.is_opening() && feed.transfer_bytes() == 0);
}
