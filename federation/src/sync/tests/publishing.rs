//! Publisher and session: what an agent says, and what a region takes.

use super::*;
use crate::record::{Beacon, Entitlement, Member, Region};
use crate::sync::facts;
use crate::sync::publisher::Lacking;
use crate::sync::session::REVOKE_AFTER;
use crate::sync::transactions::MAX_RECORD_BYTES;

#[tokio::test]
async fn what_the_agent_says_is_in_the_store_and_what_it_takes_back_is_not() {
    let store = store().await;
    let mut agent = Agent::new(epoch("e", 1));
    agent.says(&[cluster(), namespace("one"), namespace("two")], &crate::sync::CLUSTER_KINDS);
    let (mut publisher, mut session, values) = publish(&store, &mut agent).await;
    assert_eq!(values, 3);
    assert_eq!(stored(&store).await.len(), 3);

    agent.says(&[cluster(), namespace("two")], &crate::sync::CLUSTER_KINDS);
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
    first.says(&[cluster(), namespace("one"), namespace("two")], &crate::sync::CLUSTER_KINDS);
    publish(&store, &mut first).await;

    let mut second = Agent::new(epoch("e", 2));
    second.says(&[cluster(), namespace("two"), namespace("three")], &crate::sync::CLUSTER_KINDS);
    let (_, _, values) = publish(&store, &mut second).await;
    assert_eq!(values, 1, "two and the cluster are there already");
    let keys = stored(&store).await;
    assert_eq!(keys.len(), 3);
    assert!(keys.iter().all(|key| !key.ends_with("/one")));
}

/// An agent that was killed before it saved a removal says again what it removed.
#[tokio::test]
async fn what_a_region_lacks_is_named_with_what_it_had_heard() {
    let store = store().await;
    let all = [cluster(), namespace("one"), namespace("two")];
    let lacked = async |agent: &mut Agent| {
        let mut publisher = agent.publisher();
        let mut session = open(&store, "uid", agent.epoch.clone(), Duration::ZERO).await.unwrap();
        publisher.receive(session.accepted(), &agent.writer.current()).unwrap();
        let mut lacking = None;
        for request in publisher.declare(&agent.writer.current()) {
            for answer in session.receive(request, now()).await.unwrap() {
                lacking = publisher.receive(answer, &agent.writer.current()).unwrap().lacking;
            }
        }
        lacking.map(|Lacking { keys, heard }| (keys, heard.epoch, heard.sequence))
    };
    let mut first = Agent::new(epoch("e", 1));
    first.says(&all, &crate::sync::CLUSTER_KINDS);
    assert_eq!(lacked(&mut first).await, None, "a region that has heard nothing");
    publish(&store, &mut first).await;
    first.says(&[cluster(), namespace("one")], &crate::sync::CLUSTER_KINDS);
    publish(&store, &mut first).await;
    let removed = first.own.newest().sequence;

    let mut second = Agent::new(epoch("e", 2));
    second.says(&all, &crate::sync::CLUSTER_KINDS);
    let expected = (vec![namespace("two").0], epoch("e", 1), removed);
    assert_eq!(lacked(&mut second).await, Some(expected));
    // What is held as it was before is wanted, and not lacked.
    let Body::Namespace(mut other) = (*namespace("one").1).clone() else { panic!() };
    other.labels.insert("a".into(), "b".into());
    let changed = (namespace("one").0, Arc::new(Body::Namespace(other)));
    second.says(&[cluster(), changed], &crate::sync::CLUSTER_KINDS);
    assert_eq!(lacked(&mut second).await, None);
}

/// A store from a backup has it as it was before; others saw it go and come back, in this epoch of
/// its owner or since an earlier one. That it is there again may not have been told before.
#[tokio::test]
async fn what_went_and_is_there_again_as_it_was_is_said_again() {
    for (restarted, told) in [(false, true), (true, true), (false, false), (true, false)] {
        let (store, backup) = (store().await, store().await);
        let mut agent = Agent::new(epoch("e", 1));
        let all = [cluster(), namespace("one"), namespace("two")];
        agent.says(&all, &crate::sync::CLUSTER_KINDS);
        publish(&backup, &mut agent).await;
        if restarted {
            publish(&store, &mut agent).await;
            agent = Agent::new(epoch("e", 2));
            agent.says(&all, &crate::sync::CLUSTER_KINDS);
        }
        let values = publish(&store, &mut agent).await.2;
        assert_eq!(values, if restarted { 0 } else { 3 }, "as it was");
        agent.says(&[cluster(), namespace("two")], &crate::sync::CLUSTER_KINDS);
        publish(&store, &mut agent).await;
        agent.says(&all, &crate::sync::CLUSTER_KINDS);
        if told {
            assert_eq!(publish(&store, &mut agent).await.2, 1);
        }

        let again = publish(&backup, &mut agent).await.2;
        assert_eq!(again, 1, "restarted: {restarted}, told: {told}");
        let (key, _) = namespace("one");
        let held = store::read(&*backup, &key.to_string()).await.unwrap().unwrap();
        assert_eq!(held.value, agent.writer.current().get(&key).unwrap().value);
        assert_eq!(publish(&backup, &mut agent).await.2, 0, "once");
    }
}

#[tokio::test]
async fn an_agent_that_does_not_know_all_of_a_kind_removes_nothing_of_it() {
    let store = store().await;
    let mut first = Agent::new(epoch("e", 1));
    first.says(&[cluster(), namespace("one")], &crate::sync::CLUSTER_KINDS);
    publish(&store, &mut first).await;

    let mut second = Agent::new(epoch("e", 2));
    second.says(&[cluster()], &[Kind::Cluster]);
    let (mut publisher, mut session, _) = publish(&store, &mut second).await;
    assert_eq!(stored(&store).await.len(), 2, "absent, but not vouched for");

    second.says(&[cluster()], &crate::sync::CLUSTER_KINDS);
    let changes = publisher.changed(&second.writer.current());
    settle(&mut publisher, &mut session, &mut second, changes).await.unwrap();
    assert_eq!(stored(&store).await.len(), 1, "now it is");
}

#[tokio::test]
async fn of_two_streams_only_the_one_accepted_last_commits() {
    let store = store().await;
    let mut agent = Agent::new(epoch("e", 1));
    agent.says(&[cluster()], &crate::sync::CLUSTER_KINDS);
    let (mut publisher, mut session, _) = publish(&store, &mut agent).await;
    let _later = open(&store, "uid", epoch("e", 1), Duration::ZERO).await.unwrap();

    agent.says(&[cluster(), namespace("late")], &crate::sync::CLUSTER_KINDS);
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
    let heard = Heard::default();
    for caller in callers {
        let outcome =
            Session::open(Arc::clone(&store), &region, &caller, hello.clone(), &heard, now());
        assert!(matches!(outcome.await, Err(SessionError::Refused(_))), "{caller}");
    }
}

#[tokio::test]
async fn nobody_publishes_before_it_is_known_what_it_is_entitled_to() {
    let store = store().await;
    let check = async |op: store::Op| {
        store.commit(store::Txn { guards: Vec::new(), ops: vec![op] }).await.unwrap();
        let opened = open(&store, "uid", epoch("e", 1), Duration::ZERO).await;
        let session = store::read(&*store, "/tombolo/local/v1/session/r/r-a").await.unwrap();
        assert_eq!(session, None);
        opened.unwrap_err()
    };
    let key = region_word().0.to_string();
    assert_eq!(check(store::Op::delete(&key)).await, SessionError::Unsettled(owner()));
    let unreadable = check(store::Op::put(&key, "rubbish")).await;
    assert!(matches!(unreadable, SessionError::Store(_)), "{unreadable}");
}

/// What region r says when it has said `sequence` things: which namespaces r-a is entitled to.
fn entitling(sequence: u64, namespaces: &[&str]) -> (Key, Bytes) {
    let named = namespaces.iter().map(|name| name.parse().unwrap()).collect();
    let entitlements = [("r-a".parse().unwrap(), Entitlement::Namespaces(named))].into();
    let body = Arc::new(Body::Region(Region { entitlements, ..Region::default() }));
    let (key, _) = region_word();
    let mut own = OwnRecords::new(key.owner.clone(), epoch("r", 1));
    for _ in 1..sequence {
        own.say(&key, &body);
    }
    let (key, value) = own.say(&key, &body);
    (key, value.unwrap())
}

/// The replica, and thereby the process, knows more than a store that was restored.
#[tokio::test]
async fn nobody_publishes_by_an_entitlement_that_the_region_has_changed_since() {
    let (store, region) = (store().await, "r".parse().unwrap());
    let put = async |(key, value): (Key, Bytes)| {
        let ops = vec![store::Op::put(key.to_string(), value)];
        store.commit(store::Txn { guards: Vec::new(), ops }).await.unwrap();
    };
    let (writer, replicas) = replica::channel();
    let hears = |(key, value): (Key, Bytes)| {
        let items = vec![(key, Some(value))];
        writer.apply(Batch { items, ..Batch::default() }, Instant::now());
    };
    put(entitling(2, &["shop"])).await;
    hears(entitling(3, &["shop", "pay"]));
    let knows = || {
        let region = crate::sync::session::region_word(&replicas.peek(), &region);
        Heard { region, ..Heard::default() }
    };
    let early = open_knowing(&store, "uid", epoch("e", 1), knows()).await;
    assert_eq!(early.unwrap_err(), SessionError::Unsettled(owner()));
    let session = store::read(&*store, "/tombolo/local/v1/session/r/r-a").await.unwrap();
    assert_eq!(session, None);

    // Taken where that was not known, as before its word came back: it ends by what comes.
    let session = open(&store, "uid", epoch("e", 1), Duration::ZERO).await.unwrap();
    assert!(!session.is_entitled_by(&replicas.peek()));
    // One that knows more than its replica goes on, until that has what is newer and says another.
    put(entitling(4, &["pay"])).await;
    let session = open_knowing(&store, "uid", epoch("e", 1), knows()).await.unwrap();
    assert!(session.is_entitled_by(&replicas.peek()));
    hears(entitling(4, &["pay"]));
    assert!(session.is_entitled_by(&replicas.peek()));
    hears(entitling(5, &["pay"]));
    assert!(session.is_entitled_by(&replicas.peek()), "said again");
    hears(entitling(6, &["shop"]));
    assert!(!session.is_entitled_by(&replicas.peek()));
}

/// A wider entitlement is rolled out replica by replica: the next leader may still say the narrower.
#[tokio::test(start_paused = true)]
async fn what_a_cluster_is_not_entitled_to_any_more_goes_when_that_has_stood_for_a_while() {
    let store = store().await;
    let entitle = async |sequence, namespaces: &[&str]| {
        let (key, value) = entitling(sequence, namespaces);
        let ops = vec![store::Op::put(key.to_string(), value)];
        store.commit(store::Txn { guards: Vec::new(), ops }).await.unwrap();
    };
    let mut agent = Agent::new(epoch("e", 1));
    let all = [cluster(), namespace("shop"), namespace("pay")];
    agent.says(&all, &crate::sync::CLUSTER_KINDS);
    publish(&store, &mut agent).await;
    let pay = namespace("pay").0.to_string();
    for (sequence, stands) in [(2, REVOKE_AFTER / 2), (4, REVOKE_AFTER)] {
        entitle(sequence, &["shop"]).await;
        let (_, mut session, _) = publish(&store, &mut agent).await;
        let changed = agent.own.say(&namespace("pay").0, &namespace("pay").1);
        let changed = vec![(pay.clone(), changed.1.unwrap())];
        let key = Key::of_owner(owner(), Kind::Beacon);
        let beacon = agent.own.say(&key, &Arc::new(Body::Beacon(Beacon { nonce: 1 })));
        let beacon = vec![(key.to_string(), beacon.1.unwrap())];
        let refused = send_raw(&mut session, changed, Vec::new()).await;
        assert!(refused[0].1.contains("not entitled"), "{refused:?}");
        assert!(stored(&store).await.contains(&pay), "at once nothing goes");
        tokio::time::advance(stands).await;
        assert_eq!(send_raw(&mut session, beacon, Vec::new()).await, []);
        assert_eq!(stored(&store).await.contains(&pay), stands < REVOKE_AFTER, "{stands:?}");
        entitle(sequence + 1, &["shop", "pay"]).await;
        publish(&store, &mut agent).await;
        assert!(stored(&store).await.contains(&pay), "and what it may say again is there again");
    }
}

/// Nor does it make room for another cluster, as long as the region remembers whose the id is.
#[tokio::test]
async fn a_session_that_cannot_be_read_keeps_nobody_out() {
    let store = store().await;
    let key = "/tombolo/local/v1/session/r/r-a";
    let put = async |key: &str, value: Bytes| {
        let ops = vec![store::Op::put(key, value)];
        store.commit(store::Txn { guards: Vec::new(), ops }).await.unwrap();
    };
    let joined = now() - Duration::from_hours(1);
    let member = Member { uid: "uid".into(), joined };
    let members = [("r-a".parse().unwrap(), member)].into();
    let region = Body::Region(Region { members, ..Region::default() });
    let mut own = OwnRecords::new("r/_".parse().unwrap(), epoch("r", 2));
    let (region_key, value) = own.say(&region_word().0, &Arc::new(region));
    put(&region_key.to_string(), value.unwrap()).await;
    for rubbish in ["", "rubbish"] {
        put(key, Bytes::from_static(rubbish.as_bytes())).await;
        let other = open(&store, "other", epoch("x", 1), Duration::ZERO).await.unwrap_err();
        assert!(matches!(other, SessionError::Claimed { .. }), "{other}");
        let session = open(&store, "uid", epoch("e", 1), Duration::ZERO).await.unwrap();
        let Some(wire::publish_response::Message::Accepted(accepted)) = session.accepted().message
        else {
            panic!("{session:?}")
        };
        assert_eq!(accepted.joined_ms, joined.as_millisecond(), "as the region remembers");
    }
    let error = open(&store, "uid", epoch("e", 0), Duration::ZERO).await.unwrap_err();
    assert!(error.to_string().contains("is older than e#1"), "it is written anew: {error}");
}

/// Whoever lists the store before all is supplied again would take it for one that went back.
#[tokio::test]
async fn a_new_stream_of_an_epoch_does_not_take_the_owners_last_word_back() {
    let said = async |store: &Arc<dyn Store>| {
        let entry = store::read(&**store, &facts::said_key(&owner())).await.unwrap().unwrap();
        match facts::read(&entry.key, &entry.value) {
            Some(facts::Fact::Said(_, said)) => said.newest,
            other => panic!("{other:?}"),
        }
    };
    let store = store().await;
    let mut agent = Agent::new(epoch("e", 1));
    agent.says(&[cluster(), namespace("one"), namespace("two")], &crate::sync::CLUSTER_KINDS);
    publish(&store, &mut agent).await;
    let before = said(&store).await;
    assert_eq!(before.sequence, 3);

    // What it said first is wanted again.
    let key = namespace("one").0;
    let ops = vec![store::Op::delete(key.to_string())];
    store.commit(store::Txn { guards: Vec::new(), ops }).await.unwrap();
    let mut publisher = agent.publisher();
    let mut session = open(&store, "uid", agent.epoch.clone(), Duration::ZERO).await.unwrap();
    publisher.receive(session.accepted(), &agent.writer.current()).unwrap();
    let mut to_region = publisher.declare(&agent.writer.current());
    while store::read(&*store, &key.to_string()).await.unwrap().is_none() {
        for answer in session.receive(to_region.remove(0), now()).await.unwrap() {
            to_region.extend(publisher.receive(answer, &agent.writer.current()).unwrap().send);
        }
    }
    assert!(!to_region.is_empty(), "it is not complete yet");
    assert_eq!(said(&store).await, before);
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
            .map(|key| wire::Tombstone {
                key,
                removal: wire::Removal::Explained.into(),
                sequence: 0,
            })
            .collect(),
        more: false,
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
    agent.says(&[cluster()], &crate::sync::CLUSTER_KINDS);
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
    let yet_to_come = seal(export(now() + Duration::from_secs(601)));
    let large = (good.0.replace("good", "large"), Bytes::from(vec![0; MAX_RECORD_BYTES]));
    // Its sequence is none.
    let gone = good.0.clone();
    let puts = vec![good, foreign, damaged, early, far, region, yet_to_come, large];
    let gone = vec!["/tombolo/v1/r/r-b/namespace/_/x".into(), gone.replace("good", "gone")];
    let refused = send_raw(&mut session, puts, gone).await;

    let reasons: Vec<&str> = refused.iter().map(|(_, reason)| reason.as_str()).collect();
    for (reason, why) in reasons.iter().zip([
        "belongs to r/r-b",
        "not a valid Envelope",
        "claims precedence since",
        "endpoint 169.254.169.254 is unspecified, link-local or multicast",
        "belongs to r/_",
        "which is yet to come",
        "more than the",
        "belongs to r/r-b",
        "a tombstone has a sequence number",
    ]) {
        assert!(reason.contains(why), "{reason} is not {why}");
    }
    assert_eq!(reasons.len(), 9, "{reasons:?}");
    let unspecified =
        wire::Tombstone { key: namespace("good").0.to_string(), ..Default::default() };
    let message = Some(wire::publish_request::Message::Changes(wire::Changes {
        tombstones: vec![unspecified],
        ..Default::default()
    }));
    let answers = session.receive(wire::PublishRequest { message }, now()).await.unwrap();
    let Some(wire::publish_response::Message::Ack(ack)) = &answers[0].message else {
        panic!("{answers:?}")
    };
    assert!(ack.refused[0].reason.contains("says why"), "{ack:?}");
    let ahead = seal(export(now() + Duration::from_mins(10)));
    assert_eq!(send_raw(&mut session, vec![ahead], Vec::new()).await, [], "clocks differ");
    assert_eq!(stored(&store).await.len(), 3, "the good ones and the cluster");
}

#[tokio::test]
async fn an_export_as_old_as_the_join_is_taken() {
    let store = store().await;
    let mut agent = Agent::new(epoch("e", 1));
    agent.says(&[cluster()], &crate::sync::CLUSTER_KINDS);
    let (mut publisher, mut session, _) = publish(&store, &mut agent).await;
    let old = now() - Duration::from_secs(1_000_000);
    agent.says(&[cluster(), export(old), slice("127.1.1.1")], &crate::sync::CLUSTER_KINDS);
    let changes = publisher.changed(&agent.writer.current());
    let refused = settle(&mut publisher, &mut session, &mut agent, changes).await.unwrap();
    assert_eq!(refused, [], "the join is known, so the claim is bounded by it");
}
