//! What nobody should send, from each side: it panics nothing, changes nothing that is not the
//! sender's, is named with its reason, and everything else goes on.

use proptest::prelude::*;
use prost::Message as _;

use super::subscribing::{keys, rest, take};
use super::*;
use crate::proto::records;
use crate::record::{MAX_VALUE, Origin, Record};
use crate::sync::follower::{self, Following};
use crate::sync::session::{Reason, RemovalWindows};

type Request = wire::publish_request::Message;
type Answer = wire::publish_response::Message;
type Said = wire::subscribe_response::Message;

const KEYS: [&str; 14] = [
    "/tombolo/v1/r/r-a/cluster/_/r-a",
    "/tombolo/v1/r/r-a/namespace/_/shop",
    "/tombolo/v1/r/r-a/export/shop/checkout",
    "/tombolo/v1/r/r-a/endpoints/shop/checkout/s1",
    "/tombolo/v1/r/r-a/beacon/_/r-a",
    "/tombolo/v1/r/r-b/namespace/_/shop",
    "/tombolo/v1/r/_/region/_/r",
    "/tombolo/v1/r/_/decision/_/d",
    "/tombolo/v1/s/s-a/namespace/_/shop",
    "/tombolo/v1/r/r-a/../r-b/namespace/_/shop",
    "/tombolo/v1/r/r-a/namespace/_/..",
    "/tombolo/local/v1/session/r/r-b",
    "/tombolo/v1/r/r-a/gadget/_/x",
    "",
];

fn any_key() -> impl Strategy<Value = String> {
    prop_oneof![8 => prop::sample::select(&KEYS[..]).prop_map(str::to_owned), 1 => ".{0,80}"]
}

/// Sealed as it should be, cut short, or nothing of the kind.
fn any_value() -> impl Strategy<Value = Bytes> {
    let sealed =
        (any_key(), 0_u64..20, 0_u64..3, 0_usize..400).prop_map(|(key, sequence, count, cut)| {
            let Ok(key) = key.parse::<Key>() else { return Bytes::new() };
            let bodies = [cluster().1, namespace("shop").1, export(now()).1, slice("127.1.1.1").1];
            let body = bodies.into_iter().find(|body| body.kind() == key.kind);
            let body = body.unwrap_or_else(|| namespace("shop").1);
            let origin = Origin { epoch: epoch("e", count), sequence, ..Origin::default() };
            let mut value = Record { key, origin, body: (*body).clone() }.seal().value;
            value.truncate(if cut < 80 { cut } else { usize::MAX });
            value
        });
    prop_oneof![4 => sealed, 1 => prop::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from)]
}

fn any_epoch() -> impl Strategy<Value = Option<records::Epoch>> {
    let epoch = (prop::sample::select(vec!["e", "other", ""]), 0_u64..4);
    prop::option::of(epoch.prop_map(|(id, count)| records::Epoch { id: id.into(), count }))
}

fn any_request() -> impl Strategy<Value = wire::PublishRequest> {
    let changes = (
        prop::collection::vec((any_key(), any_value()), 0..6),
        prop::collection::vec((any_key(), -1_i32..7, 0_u64..20), 0..6),
        any::<bool>(),
    );
    let changes = changes.prop_map(|(puts, tombstones, more)| {
        let puts = puts.into_iter().map(|(key, value)| wire::Put { key, value });
        let tombstones = tombstones.into_iter();
        let tombstones =
            tombstones.map(|(key, removal, sequence)| wire::Tombstone { key, removal, sequence });
        let (puts, tombstones) = (puts.collect(), tombstones.collect());
        Request::Changes(wire::Changes { batch: 1, puts, tombstones, more })
    });
    let state = prop::collection::vec((any_key(), any_value()), 0..6).prop_map(|entries| {
        let entries = entries.into_iter();
        let entries = entries.map(|(key, body_sha256)| wire::KeyHash {
            key,
            body_sha256,
            ..Default::default()
        });
        Request::State(wire::State { entries: entries.collect(), last: true })
    });
    let kinds = prop::collection::vec("cluster|namespace|export|endpoints|region|gadget", 0..4);
    let complete =
        kinds.prop_map(|kinds| Request::Complete(wire::Complete { batch: 2, kinds, sequence: 3 }));
    let bytes = prop::collection::vec(any::<u8>(), 0..100);
    prop_oneof![
        6 => changes.prop_map(|message| wire::PublishRequest { message: Some(message) }),
        2 => state.prop_map(|message| wire::PublishRequest { message: Some(message) }),
        2 => complete.prop_map(|message| wire::PublishRequest { message: Some(message) }),
        1 => bytes.prop_map(|bytes| wire::PublishRequest::decode(&bytes[..]).unwrap_or_default()),
    ]
}

fn any_said() -> impl Strategy<Value = wire::SubscribeResponse> {
    let owner = || prop::sample::select(vec!["r/r-a", "r/_", "s/s-a", "s/_", "r/../x", "s"]);
    let start = (owner(), any::<bool>(), any::<bool>(), any_epoch(), 0_u64..9).prop_map(
        |(owner, same, delta, epoch, sequence)| {
            let newest = epoch.map(|epoch| wire::Newest { epoch: Some(epoch), sequence });
            Said::Start(wire::Start { owner: owner.into(), same, newest, delta })
        },
    );
    let removal = (-1_i32..7, 0_u64..20, prop::option::of((any::<bool>(), 0_u64..3)));
    let items = (any_key(), prop::option::of(any_value()), removal);
    let batch = (prop::collection::vec(items, 0..6), any::<bool>()).prop_map(|(items, more)| {
        let items = items.into_iter().map(|(key, value, (removal, sequence, epoch))| wire::Item {
            key,
            value,
            removal,
            sequence,
            epoch: epoch.map(|(named, count)| records::Epoch {
                id: if named { "e".to_owned() } else { String::new() },
                count,
            }),
        });
        Said::Batch(wire::Batch { position: 3, items: items.collect(), more })
    });
    let kind = "cluster|namespace|export|endpoints|region|gadget";
    let end = (owner(), kind, any_epoch())
        .prop_map(|(owner, kind, epoch)| Said::End(wire::End { owner: owner.into(), kind, epoch }));
    let digests = (owner(), any_value(), 0_u32..4).prop_map(|(owner, digest, level)| {
        let owners = vec![wire::OwnerDigest { owner: owner.into(), digest }];
        Said::Digests(wire::Digests { position: 3, owners, level })
    });
    let bytes = prop::collection::vec(any::<u8>(), 0..100);
    let message = prop_oneof![
        4 => start,
        6 => batch,
        4 => end,
        1 => digests,
        1 => (0_u64..9).prop_map(|position| Said::Synced(wire::Synced { position })),
    ];
    prop_oneof![
        9 => message.prop_map(|message| wire::SubscribeResponse { message: Some(message) }),
        1 => bytes.prop_map(|b| wire::SubscribeResponse::decode(&b[..]).unwrap_or_default()),
    ]
}

fn any_answer() -> impl Strategy<Value = wire::PublishResponse> {
    let message = prop_oneof![
        any::<i64>().prop_map(|joined_ms| Answer::Accepted(wire::Accepted { joined_ms })),
        (prop::collection::vec(any_key(), 0..5), any::<bool>())
            .prop_map(|(keys, last)| Answer::Want(wire::Want { keys, last, ..Default::default() })),
        (0_u64..5, prop::collection::vec(any_key(), 0..3)).prop_map(|(batch, keys)| {
            let refused = keys.into_iter().map(|key| {
                let for_room = key.len() % 2 == 0;
                wire::RefusedRecord { key, reason: "because".to_owned(), for_room }
            });
            Answer::Ack(wire::Ack { batch, refused: refused.collect() })
        }),
        prop::collection::vec((any_key(), any_value()), 0..4).prop_map(|records| {
            let records = records.into_iter().map(|(key, value)| wire::Put { key, value });
            Answer::Surplus(wire::Surplus { records: records.collect() })
        }),
    ];
    let bytes = prop::collection::vec(any::<u8>(), 0..100);
    prop_oneof![
        9 => message.prop_map(|message| wire::PublishResponse { message: Some(message) }),
        1 => bytes.prop_map(|b| wire::PublishResponse::decode(&b[..]).unwrap_or_default()),
    ]
}

/// All keys and values of a store that are not `r-a`'s business.
async fn of_others(store: &Arc<dyn Store>) -> Vec<(String, Bytes)> {
    let (entries, _) = store::list(&**store, "/").await.unwrap();
    let entries = entries.into_iter().filter(|entry| !entry.key.contains("/r/r-a"));
    entries.map(|entry| (entry.key, entry.value)).collect()
}

async fn check_session(requests: Vec<wire::PublishRequest>) {
    let store = store().await;
    let ops = KEYS.iter().filter(|key| !key.is_empty() && !key.contains("/r-a/"));
    let ops = ops.map(|key| store::Op::put(*key, "theirs"));
    let ops: Vec<_> = ops.filter(|op| !op.key().contains("/region/")).collect();
    store.commit(store::Txn { guards: Vec::new(), ops }).await.unwrap();
    let before = of_others(&store).await;
    let mut session = open(&store, "uid", epoch("e", 1), Duration::ZERO).await.unwrap();
    for request in requests {
        // An error ends a stream; that a sender goes on all the same changes nothing either.
        let _outcome = session.receive(request, now()).await;
    }
    assert_eq!(of_others(&store).await, before);
    for key in stored(&store).await {
        let key: Key = key.parse().expect("only record keys are written");
        assert!(crate::sync::CLUSTER_KINDS.contains(&key.kind), "{key}");
    }
}

fn check_intake(accept: Accept, messages: Vec<wire::SubscribeResponse>) {
    let own = match &accept {
        Accept::MeshBut(own) => own.clone(),
        Accept::Region(_) => owner(),
    };
    let (writer, _readers) = replica::channel();
    let mut agent = OwnRecords::new(own.clone(), epoch("e", 1));
    let key = Key::of_namespace(own.clone(), &"shop".parse().unwrap());
    let mut batch = agent.reconcile(&[(key, namespace("shop").1)].into(), &BTreeMap::new());
    batch.complete = agent.complete(&crate::sync::CLUSTER_KINDS);
    writer.apply(batch, Instant::now());
    let before = writer.current().holding(&own).unwrap().digest();
    let mut intake = Intake::new(accept.clone());
    for message in messages {
        if let Ok(step) = intake.receive(message, &writer.current()) {
            writer.apply(step.batch, Instant::now());
        }
    }
    let replica = writer.current();
    assert_eq!(replica.holding(&own).unwrap().digest(), before, "changed what is not the sender's");
    if let Accept::Region(region) = accept {
        let of_others = |(of, _): &(&Owner, _)| of.region != region && **of != own;
        assert_eq!(replica.owners().filter(of_others).count(), 0);
    }
}

fn check_publisher(answers: Vec<wire::PublishResponse>) {
    let mut agent = Agent::new(epoch("e", 1));
    agent.says(&[cluster(), namespace("shop")], &crate::sync::CLUSTER_KINDS);
    let replica = agent.writer.current();
    let mut publisher = agent.publisher();
    for answer in answers {
        let Ok(step) = publisher.receive(answer, &replica) else { continue };
        let mut send = step.send;
        send.extend(step.joined.into_iter().flat_map(|_| publisher.declare(&replica)));
        if let Some(surplus) = step.surplus {
            let gone = agent.judge(&surplus);
            send.extend(publisher.judged(&gone));
        }
        for request in send {
            if let Some(Request::Changes(changes)) = request.message {
                let puts = changes.puts.iter().map(|put| &put.key);
                let mut keys = puts.chain(changes.tombstones.iter().map(|gone| &gone.key));
                assert!(keys.all(|key| key.starts_with("/tombolo/v1/r/r-a/")), "{changes:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_stream_of_an_agent_panics_or_writes_what_is_not_its_own(
        requests in prop::collection::vec(any_request(), 0..12),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let first = Request::State(wire::State { entries: Vec::new(), last: true });
        let first = wire::PublishRequest { message: Some(first) };
        runtime.block_on(check_session(std::iter::once(first).chain(requests).collect()));
    }

    #[test]
    fn no_feed_of_a_peer_panics_or_changes_what_is_not_its_own(
        messages in prop::collection::vec(any_said(), 0..20),
    ) {
        check_intake(Accept::Region("s".parse().unwrap()), messages.clone());
        check_intake(Accept::MeshBut(owner()), messages);
    }

    #[test]
    fn no_answer_of_a_region_panics_an_agent_or_makes_it_speak_for_others(
        answers in prop::collection::vec(any_answer(), 0..20),
    ) {
        let accepted = Answer::Accepted(wire::Accepted { joined_ms: 1 });
        let first = wire::PublishResponse { message: Some(accepted) };
        check_publisher(std::iter::once(first).chain(answers).collect());
    }
}

/// Takes what `r-a` sends in one batch; the refusals with their reasons.
async fn send(
    session: &mut Session,
    puts: Vec<wire::Put>,
    tombstones: Vec<wire::Tombstone>,
) -> Vec<wire::RefusedRecord> {
    let changes = wire::Changes { batch: 9, puts, tombstones, more: false };
    let request = wire::PublishRequest { message: Some(Request::Changes(changes)) };
    let answers = session.receive(request, now()).await.unwrap();
    let Some(Answer::Ack(ack)) = answers.into_iter().next().and_then(|answer| answer.message)
    else {
        panic!("no acknowledgement")
    };
    ack.refused
}

/// A cluster that has published `services` of 2 endpoints each, and its open session.
async fn publishing(store: &Arc<dyn Store>, services: usize) -> (Session, Vec<Key>) {
    let mut agent = Agent::new(epoch("e", 1));
    let slices = (0..services)
        .flat_map(|s| (0..2).map(move |p| format!("/tombolo/v1/r/r-a/endpoints/shop/s{s}/p{p}")));
    let slices: Vec<Key> = slices.map(|key| key.parse().unwrap()).collect();
    let bodies = ["127.1.1.1", "127.1.1.2"].map(|address| slice(address).1);
    let bodies = bodies.iter().cycle();
    let mut says: Vec<_> =
        slices.iter().zip(bodies).map(|(key, body)| (key.clone(), Arc::clone(body))).collect();
    says.insert(0, cluster());
    agent.says(&says, &crate::sync::CLUSTER_KINDS);
    let (_, session, _) = publish(store, &mut agent).await;
    assert_eq!(stored(store).await.len(), 1 + slices.len());
    (session, slices)
}

fn tombstones(keys: &[Key], removal: wire::Removal, from: u64) -> Vec<wire::Tombstone> {
    let numbered = keys.iter().zip(from..);
    let tombstone = |(key, sequence): (&Key, u64)| wire::Tombstone {
        key: key.to_string(),
        removal: removal.into(),
        sequence,
    };
    numbered.map(tombstone).collect()
}

#[tokio::test]
async fn a_hundred_percent_of_tombstones_pass_if_explained_and_are_held_if_not() {
    let store = store().await;
    let (mut session, slices) = publishing(&store, 50).await;
    let unexplained = tombstones(&slices, wire::Removal::Unexplained, 1000);
    let refused = send(&mut session, Vec::new(), unexplained).await;
    assert_eq!(refused.len(), 80, "20 of 100 may go, and no service's last");
    assert!(refused.iter().all(|refused| refused.reason.contains("nothing explains it")));
    assert_eq!(stored(&store).await.len(), 81);
    let tally = session.take_tally();
    assert_eq!(tally.refused, [(Reason::Held, 80)].into());
    assert_eq!(tally.removed, [(Removal::Unexplained, 20)].into());

    let left: Vec<Key> = refused.iter().map(|refused| refused.key.parse().unwrap()).collect();
    let explained = tombstones(&left, wire::Removal::Explained, 2000);
    assert_eq!(send(&mut session, Vec::new(), explained).await, []);
    assert_eq!(stored(&store).await.len(), 1);
    assert_eq!(session.take_tally().removed, [(Removal::Explained, 80)].into());
}

#[tokio::test]
async fn slices_that_change_their_names_in_one_batch_take_nothing_away() {
    let store = store().await;
    let (mut session, slices) = publishing(&store, 50).await;
    let renamed = |(key, sequence): (&Key, u64)| {
        let address = if sequence % 2 == 0 { "127.1.1.1" } else { "127.1.1.2" };
        let key: Key = format!("{key}-new").parse().unwrap();
        let origin = Origin { epoch: epoch("e", 1), sequence, ..Origin::default() };
        let body = (*slice(address).1).clone();
        let value = Record { key: key.clone(), origin, body }.seal().value;
        wire::Put { key: key.to_string(), value }
    };
    let puts: Vec<_> = slices.iter().zip(1000..).map(renamed).collect();
    let keys: Vec<Key> = puts.iter().map(|put| put.key.parse().unwrap()).collect();
    let gone = tombstones(&slices, wire::Removal::Unexplained, 2000);
    assert_eq!(send(&mut session, puts, gone).await, []);
    assert_eq!(stored(&store).await.len(), 101);
    // But what is there in the end counts, however it is called.
    let gone = tombstones(&keys, wire::Removal::Unexplained, 3000);
    assert_eq!(send(&mut session, Vec::new(), gone).await.len(), 80);
}

#[tokio::test]
async fn a_new_stream_is_not_a_new_window_for_removals_that_nothing_explains() {
    let store = store().await;
    let (session, slices) = publishing(&store, 50).await;
    let windows = RemovalWindows::default();
    let mut session = session.continuing(&windows);
    for stream in 1_u64..=5 {
        let gone = tombstones(&slices, wire::Removal::Unexplained, stream * 1000);
        send(&mut session, Vec::new(), gone).await;
        assert_eq!(stored(&store).await.len(), 81, "stream {stream}");
        let next = open(&store, "uid", epoch("e", 1), Duration::ZERO).await.unwrap();
        session = next.continuing(&windows);
        let state = wire::State { entries: Vec::new(), last: true };
        let state = wire::PublishRequest { message: Some(Request::State(state)) };
        session.receive(state, now()).await.unwrap();
    }
}

#[tokio::test]
async fn numbers_that_go_back_are_refused_one_by_one_and_the_rest_goes_on() {
    let store = store().await;
    let (mut session, slices) = publishing(&store, 1).await;
    let put = |key: &Key, sequence, count| {
        let origin = Origin { epoch: epoch("e", count), sequence, ..Origin::default() };
        let body = (*slice("127.1.1.2").1).clone();
        let value = Record { key: key.clone(), origin, body }.seal().value;
        wire::Put { key: key.to_string(), value }
    };
    assert_eq!(send(&mut session, vec![put(&slices[0], 50, 1)], Vec::new()).await, []);
    let puts = vec![put(&slices[0], 49, 1), put(&slices[1], 51, 1)];
    let refused = send(&mut session, puts, Vec::new()).await;
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].reason, "goes back: change 49 comes after change 50 of it was taken");
    let refused = send(&mut session, vec![put(&slices[0], 99, 2)], Vec::new()).await;
    assert_eq!(refused[0].reason, "was written in epoch e#2, this stream is of e#1");
    let older = tombstones(&slices[..1], wire::Removal::Explained, 10);
    let refused = send(&mut session, Vec::new(), older).await;
    assert_eq!(refused[0].reason, "goes back: removed by change 10, and change 50 of it is held");
    assert_eq!(session.take_tally().refused, [(Reason::Sequence, 3)].into());
}

#[tokio::test]
async fn odd_keys_are_refused_by_name_wherever_they_stand() {
    let store = store().await;
    let (mut session, _) = publishing(&store, 1).await;
    let before = of_others(&store).await;
    let cases = [
        ("/tombolo/v1/r/r-b/namespace/_/shop", Reason::Owner, "belongs to r/r-b"),
        ("/tombolo/v1/s/s-a/namespace/_/shop", Reason::Owner, "belongs to s/s-a"),
        ("/tombolo/v1/r/_/region/_/r", Reason::Owner, "belongs to r/_"),
        ("/tombolo/v1/r/r-a/../r-b/namespace/_/shop", Reason::Key, "has 7 segments"),
        ("/tombolo/v1/r/r-a/namespace/_/..", Reason::Key, "is not a"),
        ("/tombolo/v1/r/r-a/namespace/../shop", Reason::Key, "is not a"),
        ("/tombolo/v1/r/r-a//_/shop", Reason::Key, "is no kind of record"),
        ("/tombolo/v1/r/r-a/gadget/_/x", Reason::Key, "is no kind of record"),
        ("/tombolo/v1/r/r-a/policy/_/x", Reason::Kind, "do not publish records of kind policy"),
        ("/tombolo/local/v1/session/r/r-b", Reason::Key, "does not begin with"),
        ("/tombolo/v1/r/r-a/namespace/_/sh\u{0}op", Reason::Key, "is not a"),
        ("", Reason::Key, "does not begin with"),
    ];
    for (key, reason, why) in cases {
        let put = wire::Put { key: key.to_owned(), value: Bytes::from_static(b"x") };
        let gone = wire::Tombstone { key: key.to_owned(), removal: 1, sequence: 9000 };
        for (puts, gone) in [(vec![put], Vec::new()), (Vec::new(), vec![gone])] {
            let refused = send(&mut session, puts, gone).await;
            assert_eq!(refused.len(), 1, "{key}");
            assert!(refused[0].reason.contains(why), "{key}: {}", refused[0].reason);
            assert_eq!(session.take_tally().refused, [(reason, 1)].into(), "{key}");
        }
    }
    let huge = wire::Put { key: "k".repeat(1 << 20), value: Bytes::new() };
    let refused = send(&mut session, vec![huge], Vec::new()).await;
    assert!(refused[0].key.len() < 1000 && refused[0].reason.len() < 2000, "answers stay small");
    assert_eq!(of_others(&store).await, before);
}

#[tokio::test]
async fn a_declaration_cannot_speak_for_another_and_a_want_does_not_ask_for_it() {
    let store = store().await;
    let mut session = open(&store, "uid", epoch("e", 1), Duration::ZERO).await.unwrap();
    let entries = KEYS.iter().map(|key| wire::KeyHash {
        key: (*key).to_owned(),
        body_sha256: Bytes::from_static(b"hash"),
        sequence: 0,
    });
    let state = wire::State { entries: entries.collect(), last: true };
    let request = wire::PublishRequest { message: Some(Request::State(state)) };
    let answers = session.receive(request, now()).await.unwrap();
    let wanted = answers.into_iter().filter_map(|answer| match answer.message {
        Some(Answer::Want(want)) => Some(want.keys),
        _ => None,
    });
    let wanted: Vec<String> = wanted.flatten().collect();
    assert_eq!(wanted.len(), 5, "{wanted:?}");
    assert!(wanted.iter().all(|key| key.starts_with("/tombolo/v1/r/r-a/")), "{wanted:?}");
}

/// A value for each way in which one can be bad, and what is said of it.
fn bad_values() -> Vec<(&'static str, Bytes, &'static str)> {
    let origin = Origin { epoch: epoch("e", 1), sequence: 90, ..Origin::default() };
    let body = (*cluster().1).clone();
    let good = Record { key: cluster().0, origin, body }.seal().value;
    let mut envelope = records::Envelope::decode(good.clone()).unwrap();
    envelope.min_reader = 9;
    let newer = envelope.encode_to_vec();
    envelope.min_reader = 1;
    envelope.body = vec![0x0b; 100_000].into();
    let nested = envelope.encode_to_vec();
    vec![
        ("a", good.slice(..good.len() - 3), "not a valid Envelope"),
        ("b", newer.into(), "wants a reader of schema level 9"),
        ("c", nested.into(), "not a valid"),
        ("d", Bytes::from(vec![0; MAX_VALUE + 1]), "more than 1048576"),
        ("e", Bytes::new(), "schema_level is missing"),
        ("f", Bytes::from_static(b"rubbish"), "not a valid Envelope"),
    ]
}

fn said_of(replica: &Replica, key: &Key) -> Option<String> {
    let mut kept = replica.holding(&key.owner)?.quarantine();
    kept.find(|(of, _)| *of == key).map(|(_, why)| crate::sync::chain(why))
}

#[tokio::test]
async fn bad_values_in_the_store_are_kept_aside_with_their_reasons_and_the_rest_goes_on() {
    let store = store().await;
    let (writer, mut replicas) = replica::channel();
    let (status, mut strays) = tokio::sync::watch::channel(Following::default());
    let mut following = tokio::task::JoinSet::new();
    let follow = follower::follow(Arc::clone(&store), Arc::new(writer), None, status);
    following.spawn(async move { follow.await.unwrap() });
    let mut agent = Agent::new(epoch("e", 1));
    let names = ["a", "b", "c", "d", "e", "f", "good"];
    let says: Vec<_> = names.into_iter().map(namespace).collect();
    agent.says(&[&[cluster()], &says[..]].concat(), &crate::sync::CLUSTER_KINDS);
    publish(&store, &mut agent).await;

    let (large, bad): (Vec<_>, Vec<_>) =
        bad_values().into_iter().partition(|(_, value, _)| value.len() > MAX_VALUE);
    let put = |name: &str, value: Bytes| store::Op::put(namespace(name).0.to_string(), value);
    let mut ops: Vec<_> = bad.iter().map(|(name, value, _)| put(name, value.clone())).collect();
    // A transaction takes a little more than a record may have.
    let value = Bytes::from(vec![0; MAX_VALUE - 10_000]);
    let txn = store::Txn { guards: Vec::new(), ops: vec![put(large[0].0, value)] };
    store.commit(txn).await.unwrap();
    ops.push(store::Op::put("/tombolo/v1/r/r-a/../r-b/namespace/_/x", "odd"));
    store.commit(store::Txn { guards: Vec::new(), ops }).await.unwrap();
    let owner = owner();
    let seen = replicas.wait_for(|replica| {
        replica.holding(&owner).is_some_and(|held| held.quarantined() == bad.len())
    });
    let replica = tokio::time::timeout(Duration::from_secs(20), seen).await.unwrap().unwrap();
    let large = namespace(large[0].0).0;
    assert!(replica.get(&large).unwrap().record.is_some(), "as it was read last");
    let strays = strays.wait_for(|following| following.strays.len() == 2).await.unwrap();
    assert!(strays.strays[&large.to_string()].contains("bytes with its key, more than"));
    assert!(strays.strays["/tombolo/v1/r/r-a/../r-b/namespace/_/x"].contains("segments"));
    for (name, value, why) in &bad {
        let key = namespace(name).0;
        let said = said_of(&replica, &key).unwrap_or_default();
        assert!(said.contains(why), "{name}: {said}");
        let entry = replica.get(&key).unwrap();
        assert_eq!(entry.value, *value);
        assert!(entry.record.is_some(), "{name}: the last good version stays in use");
    }
    assert_eq!(said_of(&replica, &namespace("good").0), None);
}

#[tokio::test]
async fn bad_values_of_a_peer_are_passed_on_as_they_are_and_too_large_ones_are_left_out() {
    let (source, _readers) = replica::channel();
    let mut agent = OwnRecords::new(owner(), epoch("e", 1));
    let (key, value) = agent.say(&namespace("good").0, &namespace("good").1);
    let bad = bad_values();
    let mut items: Vec<_> =
        bad.iter().map(|(name, value, _)| (namespace(name).0, Some(value.clone()))).collect();
    items.push((key, value));
    let complete = agent.complete(&crate::sync::CLUSTER_KINDS);
    source.apply(Batch { items, complete, ..Batch::default() }, Instant::now());
    let interest = Interest::all(Owners::Region("r".parse().unwrap()));
    let mut feed = Feed::open(interest, Has::default(), source.current());
    let mut intake = Intake::new(Accept::Region("r".parse().unwrap()));
    let (reader, _) = replica::channel();
    assert!(take(&mut intake, &reader, rest(&mut feed)).unwrap());
    let replica = reader.current();
    for (name, _, why) in &bad {
        let said = said_of(&replica, &namespace(name).0);
        let left_out = *name == "d";
        assert_eq!(said.is_none(), left_out, "{name}");
        assert!(left_out || said.unwrap().contains(why), "{name}");
    }
    assert_eq!((left_out(&intake), keys(&replica).len()), (1, bad.len()));
    let why = "/tombolo/v1/r/r-a/namespace/_/d: has 1048608 bytes, more than the 950272 that a store takes";
    assert_eq!(intake.last_left_out(), Some(why));
    // It differs for that, and to send it again would change nothing.
    take(&mut intake, &reader, vec![feed.digests()]).unwrap();
}
