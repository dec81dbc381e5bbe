//! The four state machines against each other, without a network: messages are carried by hand,
//! so that a test can lose them, stop half-way, and look at each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::Instant;

use super::Caller;
use super::feed::{Feed, Interest};
use super::intake::{Accept, Intake, IntakeError};
use super::own::{OwnRecords, with_join};
use super::publisher::Publisher;
use super::session::{Session, SessionError};
use crate::key::{Key, Kind};
use crate::names::{Owner, RegionName};
use crate::proto::federation as wire;
use crate::record::{Body, Cluster, Endpoint, Endpoints, Epoch, Export, Namespace, ServiceType};
use crate::replica::{self, Batch, Replica, ReplicaWriter};
use crate::store::embedded::Embedded;
use crate::store::{self, Store};

const OWNER: &str = "r/r-a";

fn owner() -> Owner {
    OWNER.parse().unwrap()
}

fn epoch(id: &str, count: u64) -> Epoch {
    Epoch { id: id.into(), count }
}

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn namespace(name: &str) -> (Key, Arc<Body>) {
    let key = Key::of_namespace(owner(), &name.parse().unwrap());
    (key, Arc::new(Body::Namespace(Namespace::default())))
}

fn cluster() -> (Key, Arc<Body>) {
    let body = Cluster { uid: "uid".into(), directory: true, ..Cluster::default() };
    (Key::of_owner(owner(), Kind::Cluster), Arc::new(Body::Cluster(body)))
}

fn export(precedence: Timestamp) -> (Key, Arc<Body>) {
    let body = Export {
        service_type: ServiceType::ClusterSetIP,
        ports: Vec::new(),
        session_affinity: String::new(),
        session_affinity_timeout: None,
        internal_traffic_policy: String::new(),
        traffic_distribution: String::new(),
        ip_families: Vec::new(),
        created: Some(precedence),
        precedence,
        exported_labels: BTreeMap::new(),
        exported_annotations: BTreeMap::new(),
    };
    ("/tombolo/v1/r/r-a/export/shop/checkout".parse().unwrap(), Arc::new(Body::Export(body)))
}

fn slice(address: &str) -> (Key, Arc<Body>) {
    let endpoint = Endpoint {
        address: address.parse().unwrap(),
        ready: true,
        serving: true,
        terminating: false,
        was_ready: true,
        zone: String::new(),
        hostname: String::new(),
        node: String::new(),
        target: String::new(),
        service_account: String::new(),
        meshed: false,
    };
    let body = Endpoints { ports: Vec::new(), endpoints: vec![endpoint] };
    let key = "/tombolo/v1/r/r-a/endpoints/shop/checkout/s1".parse().unwrap();
    (key, Arc::new(Body::Endpoints(body)))
}

/// An agent's side: its replica, and what it says into it.
struct Agent {
    own: OwnRecords,
    epoch: Epoch,
    writer: ReplicaWriter,
    joined: Option<Timestamp>,
}

impl Agent {
    fn new(epoch: Epoch) -> Self {
        let (writer, _readers) = replica::channel();
        Self { own: OwnRecords::new(owner(), epoch.clone()), epoch, writer, joined: None }
    }

    fn says(&mut self, bodies: &[(Key, Arc<Body>)], kinds: &[Kind]) {
        let desired = with_join(&bodies.iter().cloned().collect(), self.joined);
        let mut batch = self.own.reconcile(&desired);
        batch.complete = self.own.complete(kinds);
        self.writer.apply(batch, Instant::now());
    }

    fn publisher(&self) -> Publisher {
        Publisher::new(owner(), "uid".into(), self.epoch.clone())
    }
}

async fn open(
    store: &Arc<dyn Store>,
    uid: &str,
    epoch: Epoch,
    silent_for: Duration,
) -> Result<Session, SessionError> {
    let region: RegionName = "r".parse().unwrap();
    let caller = Caller::Agent { region: region.clone(), cluster: "r-a".parse().unwrap() };
    let epoch = crate::proto::records::Epoch { id: epoch.id, count: epoch.count };
    let hello = wire::PublishHello {
        cluster: "r-a".into(),
        uid: uid.into(),
        epoch: Some(epoch),
        reads_level: 1,
    };
    Session::open(Arc::clone(store), &region, &caller, hello, silent_for, now()).await
}

/// Carries messages both ways until neither side has any. Returns what the region refused.
async fn settle(
    publisher: &mut Publisher,
    session: &mut Session,
    agent: &mut Agent,
    mut to_region: Vec<wire::PublishRequest>,
) -> Result<Vec<wire::RefusedRecord>, SessionError> {
    let mut refused = Vec::new();
    while !to_region.is_empty() {
        let request = to_region.remove(0);
        for answer in session.receive(request, now()).await? {
            let step = publisher.receive(answer, &agent.writer.current()).unwrap();
            refused.extend(step.refused);
            to_region.extend(step.send);
        }
    }
    Ok(refused)
}

/// Connects and publishes all; the stream then flows.
async fn publish(store: &Arc<dyn Store>, agent: &mut Agent) -> (Publisher, Session, usize) {
    let mut publisher = agent.publisher();
    let mut session = open(store, "uid", agent.epoch.clone(), Duration::ZERO).await.unwrap();
    let step = publisher.receive(session.accepted(), &agent.writer.current()).unwrap();
    agent.joined = step.joined;
    let declared = publisher.declare(&agent.writer.current());
    let mut values = 0;
    let mut to_region = declared;
    while !to_region.is_empty() {
        let request = to_region.remove(0);
        if let Some(wire::publish_request::Message::Changes(changes)) = &request.message {
            values += changes.puts.len();
        }
        for answer in session.receive(request, now()).await.unwrap() {
            let step = publisher.receive(answer, &agent.writer.current()).unwrap();
            assert_eq!(step.refused, []);
            to_region.extend(step.send);
        }
    }
    (publisher, session, values)
}

async fn stored(store: &Arc<dyn Store>) -> Vec<String> {
    let (entries, _) = store::list(&**store, &Key::owner_prefix(&owner())).await.unwrap();
    entries.into_iter().map(|entry| entry.key).collect()
}

async fn store() -> Arc<dyn Store> {
    Arc::new(Embedded::in_memory().await.unwrap())
}

#[tokio::test]
async fn what_the_agent_says_is_in_the_store_and_what_it_takes_back_is_not() {
    let store = store().await;
    let mut agent = Agent::new(epoch("e", 1));
    agent.says(&[cluster(), namespace("one"), namespace("two")], &super::CLUSTER_KINDS);
    let (mut publisher, mut session, values) = publish(&store, &mut agent).await;
    assert_eq!(values, 3);
    assert_eq!(stored(&store).await.len(), 3);

    agent.says(&[cluster(), namespace("two")], &super::CLUSTER_KINDS);
    let changes = publisher.changed(&agent.writer.current());
    let refused = settle(&mut publisher, &mut session, &mut agent, changes).await.unwrap();
    assert_eq!(refused, []);
    let keys = stored(&store).await;
    assert_eq!(keys.len(), 2);
    assert!(keys.iter().all(|key| !key.ends_with("/one")));
}

#[tokio::test]
async fn a_restarted_agent_sends_only_what_differs_and_what_went_meanwhile_goes() {
    let store = store().await;
    let mut first = Agent::new(epoch("e", 1));
    first.says(&[cluster(), namespace("one"), namespace("two")], &super::CLUSTER_KINDS);
    publish(&store, &mut first).await;

    let mut second = Agent::new(epoch("e", 2));
    second.says(&[cluster(), namespace("two"), namespace("three")], &super::CLUSTER_KINDS);
    let (_, _, values) = publish(&store, &mut second).await;
    assert_eq!(values, 1, "two and the cluster are there already");
    let keys = stored(&store).await;
    assert_eq!(keys.len(), 3);
    assert!(keys.iter().all(|key| !key.ends_with("/one")));
}

#[tokio::test]
async fn an_agent_that_does_not_know_all_of_a_kind_removes_nothing_of_it() {
    let store = store().await;
    let mut first = Agent::new(epoch("e", 1));
    first.says(&[cluster(), namespace("one")], &super::CLUSTER_KINDS);
    publish(&store, &mut first).await;

    let mut second = Agent::new(epoch("e", 2));
    second.says(&[cluster()], &[Kind::Cluster]);
    let (mut publisher, mut session, _) = publish(&store, &mut second).await;
    assert_eq!(stored(&store).await.len(), 2, "absent, but not vouched for");

    second.says(&[cluster()], &super::CLUSTER_KINDS);
    let changes = publisher.changed(&second.writer.current());
    settle(&mut publisher, &mut session, &mut second, changes).await.unwrap();
    assert_eq!(stored(&store).await.len(), 1, "now it is");
}

#[tokio::test]
async fn of_two_streams_only_the_one_accepted_last_commits() {
    let store = store().await;
    let mut agent = Agent::new(epoch("e", 1));
    agent.says(&[cluster()], &super::CLUSTER_KINDS);
    let (mut publisher, mut session, _) = publish(&store, &mut agent).await;
    let _later = open(&store, "uid", epoch("e", 1), Duration::ZERO).await.unwrap();

    agent.says(&[cluster(), namespace("late")], &super::CLUSTER_KINDS);
    let changes = publisher.changed(&agent.writer.current());
    let error = settle(&mut publisher, &mut session, &mut agent, changes).await.unwrap_err();
    assert_eq!(error, SessionError::Superseded(owner()));
    assert_eq!(stored(&store).await.len(), 1);
}

#[tokio::test]
async fn who_may_not_publish_is_told_why() {
    let store = store().await;
    open(&store, "uid", epoch("e", 2), Duration::ZERO).await.unwrap();
    let check = async |uid: &str, epoch: Epoch, silent: u64, why: &str| {
        let outcome = open(&store, uid, epoch, Duration::from_secs(silent)).await;
        match outcome {
            Ok(_) => assert_eq!(why, ""),
            Err(error) => assert!(!why.is_empty() && error.to_string().contains(why), "{error}"),
        }
    };
    check("other", epoch("e", 3), 0, "belongs to the cluster with UID uid").await;
    check("uid", epoch("e", 1), 0, "epoch e#1 is older than e#2").await;
    check("uid", epoch("new", 1), 59, "takes over after 60 s of silence").await;
    check("", epoch("e", 2), 0, "uid is not").await;
    check("uid", epoch("", 2), 0, "epoch.id is not").await;
    check("uid", epoch("e", 2), 0, "").await;
    check("uid", epoch("new", 1), 60, "").await;

    let region: RegionName = "r".parse().unwrap();
    let hello =
        wire::PublishHello { cluster: "r-b".into(), uid: "u".into(), epoch: None, reads_level: 1 };
    let callers = [
        Caller::Agent { region: region.clone(), cluster: "r-a".parse().unwrap() },
        Caller::ControlPlane { region: region.clone() },
        Caller::Agent { region: "s".parse().unwrap(), cluster: "s-a".parse().unwrap() },
    ];
    for caller in callers {
        let outcome = Session::open(
            Arc::clone(&store),
            &region,
            &caller,
            hello.clone(),
            Duration::ZERO,
            now(),
        );
        assert!(matches!(outcome.await, Err(SessionError::Refused(_))), "{caller}");
    }
}

/// Sends puts and tombstones as they are, past the publisher. Returns (key, reason) of each refusal.
async fn send_raw(
    session: &mut Session,
    puts: Vec<(String, Bytes)>,
    tombstones: Vec<String>,
) -> Vec<(String, String)> {
    let changes = wire::Changes {
        batch: 9,
        puts: puts.into_iter().map(|(key, value)| wire::Put { key, value }).collect(),
        tombstones: tombstones
            .into_iter()
            .map(|key| wire::Tombstone { key, removal: wire::Removal::Explained.into() })
            .collect(),
    };
    let message = Some(wire::publish_request::Message::Changes(changes));
    let answers = session.receive(wire::PublishRequest { message }, now()).await.unwrap();
    let Some(wire::publish_response::Message::Ack(ack)) = answers[0].message.clone() else {
        panic!("{answers:?}")
    };
    ack.refused.into_iter().map(|refused| (refused.key, refused.reason)).collect()
}

#[tokio::test]
async fn a_record_that_may_not_be_written_is_refused_by_itself() {
    let store = store().await;
    let mut agent = Agent::new(epoch("e", 1));
    agent.says(&[cluster()], &super::CLUSTER_KINDS);
    let (_publisher, mut session, _) = publish(&store, &mut agent).await;

    let mut seal = |(key, body): (Key, Arc<Body>)| {
        let (key, value) = agent.own.say(&key, &body);
        (key.to_string(), value.unwrap())
    };
    let good = seal(namespace("good"));
    let foreign = (good.0.replace("r-a", "r-b"), good.1.clone());
    let damaged = (good.0.replace("good", "damaged"), Bytes::from_static(b"\xff"));
    let early = seal(export(now() - Duration::from_hours(1)));
    let far = seal(slice("169.254.169.254"));
    let region = ("/tombolo/v1/r/_/region/_/r".to_owned(), good.1.clone());
    let puts = vec![good, foreign, damaged, early, far, region];
    let refused =
        send_raw(&mut session, puts, vec!["/tombolo/v1/r/r-b/namespace/_/x".into()]).await;

    let reasons: Vec<&str> = refused.iter().map(|(_, reason)| reason.as_str()).collect();
    for (reason, why) in reasons.iter().zip([
        "belongs to r/r-b",
        "not a valid Envelope",
        "claims precedence since",
        "endpoint 169.254.169.254 is unspecified, link-local or multicast",
        "belongs to r/_",
        "belongs to r/r-b",
    ]) {
        assert!(reason.contains(why), "{reason}");
    }
    assert_eq!(reasons.len(), 6, "{reasons:?}");
    assert_eq!(stored(&store).await.len(), 2, "the good one and the cluster");
}

#[tokio::test]
async fn an_export_as_old_as_the_join_is_taken() {
    let store = store().await;
    let mut agent = Agent::new(epoch("e", 1));
    agent.says(&[cluster()], &super::CLUSTER_KINDS);
    let (mut publisher, mut session, _) = publish(&store, &mut agent).await;
    let old = now() - Duration::from_secs(1_000_000);
    agent.says(&[cluster(), export(old), slice("127.1.1.1")], &super::CLUSTER_KINDS);
    let changes = publisher.changed(&agent.writer.current());
    let refused = settle(&mut publisher, &mut session, &mut agent, changes).await.unwrap();
    assert_eq!(refused, [], "the join is known, so the claim is bounded by it");
}

/// A replica filled as a control plane's would be.
fn held(epoch: Epoch, bodies: &[(Key, Arc<Body>)], kinds: &[Kind]) -> ReplicaWriter {
    let mut agent = Agent::new(epoch);
    agent.says(bodies, kinds);
    agent.writer
}

fn subscribe(
    source: &ReplicaWriter,
    subscriber: &ReplicaWriter,
) -> (Feed, Intake, Vec<wire::SubscribeResponse>) {
    let intake = Intake::new(Accept::MeshBut("x/x-x".parse().unwrap()));
    let request = intake.request(&subscriber.current());
    let held = request.held.into_iter();
    let held = held.map(|held| (held.owner.parse().unwrap(), held.digest.to_vec())).collect();
    let interest = Interest::MeshBut("x/x-x".parse().unwrap());
    let (feed, messages) = Feed::open(interest, &held, source.current());
    (feed, intake, messages)
}

fn take(
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

fn keys(replica: &Replica) -> Vec<String> {
    let records = replica.owners().flat_map(|(_, holding)| holding.records());
    records.map(|(key, _)| key.to_string()).collect()
}

#[tokio::test]
async fn a_subscriber_ends_up_with_the_same_and_follows() {
    let mut agent = Agent::new(epoch("e", 1));
    agent.says(&[cluster(), namespace("one"), namespace("two")], &super::CLUSTER_KINDS);
    let (subscriber, _readers) = replica::channel();
    let (mut feed, mut intake, messages) = subscribe(&agent.writer, &subscriber);
    assert!(take(&mut intake, &subscriber, messages).unwrap());
    assert_eq!(keys(&subscriber.current()), keys(&agent.writer.current()));

    agent.says(&[cluster(), namespace("two"), namespace("three")], &super::CLUSTER_KINDS);
    let messages = feed.advance(agent.writer.current());
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
    agent.says(&[cluster()], &super::CLUSTER_KINDS);
    let (subscriber, _readers) = replica::channel();
    let (mut feed, _, _) = subscribe(&agent.writer, &subscriber);
    for n in 0..100 {
        let bodies = if n % 2 == 0 { vec![cluster(), namespace("x")] } else { vec![cluster()] };
        agent.says(&bodies, &super::CLUSTER_KINDS);
    }
    agent.says(&[cluster(), namespace("x")], &super::CLUSTER_KINDS);
    let messages = feed.advance(agent.writer.current());
    let Some(wire::subscribe_response::Message::Batch(batch)) = &messages[0].message else {
        panic!("{messages:?}")
    };
    assert_eq!(batch.items.len(), 1);
}

#[tokio::test]
async fn what_was_missed_goes_only_under_an_end_marker_that_is_not_older() {
    let check = |sender: ReplicaWriter, kept: bool| {
        let subscriber = held(epoch("e", 5), &[cluster(), namespace("one")], &super::CLUSTER_KINDS);
        let (_, mut intake, messages) = subscribe(&sender, &subscriber);
        take(&mut intake, &subscriber, messages).unwrap();
        let has = keys(&subscriber.current()).iter().any(|key| key.ends_with("/one"));
        assert_eq!(has, kept);
    };
    let all = &super::CLUSTER_KINDS;
    check(held(epoch("e", 5), &[cluster()], all), false);
    check(held(epoch("e", 6), &[cluster()], all), false);
    check(held(epoch("other", 1), &[cluster()], all), false);
    // An older word on absence, no word on this kind, no word on anything: nothing goes.
    check(held(epoch("e", 4), &[cluster()], all), true);
    check(held(epoch("e", 6), &[cluster()], &[Kind::Cluster]), true);
    check(replica::channel().0, true);
}

#[tokio::test]
async fn a_stream_that_breaks_off_has_changed_nothing_of_the_owner_it_was_at() {
    let sender = held(epoch("e", 6), &[cluster(), namespace("new")], &super::CLUSTER_KINDS);
    let count = subscribe(&sender, &replica::channel().0).2.len();
    for cut in 0..count {
        let subscriber = held(epoch("e", 5), &[cluster(), namespace("old")], &super::CLUSTER_KINDS);
        let before = keys(&subscriber.current());
        let (_, mut intake, mut messages) = subscribe(&sender, &subscriber);
        messages.truncate(cut);
        assert!(!take(&mut intake, &subscriber, messages).unwrap());
        assert_eq!(keys(&subscriber.current()), before, "cut at {cut} of {count}");
    }
}

#[tokio::test]
async fn a_difference_is_found_by_the_digests() {
    let sender = held(epoch("e", 1), &[cluster(), namespace("one")], &super::CLUSTER_KINDS);
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
    let sender = held(epoch("e", 1), &[cluster()], &super::CLUSTER_KINDS);
    let interest = Interest::Region("r".parse().unwrap());
    let (_, messages) = Feed::open(interest, &BTreeMap::new(), sender.current());
    let (subscriber, _readers) = replica::channel();
    let mut intake = Intake::new(Accept::Region("other".parse().unwrap()));
    let error = take(&mut intake, &subscriber, messages).unwrap_err();
    assert!(error.to_string().contains("r/r-a, which is not its to send"), "{error}");
    assert_eq!(keys(&subscriber.current()), [""; 0]);

    let mut intake = Intake::new(Accept::Region("other".parse().unwrap()));
    let item = wire::Item { key: cluster().0.to_string(), value: Some(Bytes::new()) };
    let batch = wire::Batch { position: 1, items: vec![item], more: false };
    let message = Some(wire::subscribe_response::Message::Batch(batch));
    let stray = wire::SubscribeResponse { message };
    take(&mut intake, &subscriber, vec![stray]).unwrap();
    assert_eq!((keys(&subscriber.current()).len(), intake.refused()), (0, 1));
}
