//! What a caller may do follows from its certificate, in real calls.

use prometheus_client::registry::Registry;
use tokio_stream::wrappers::ReceiverStream;

use super::*;
use crate::proto::federation::publish_request::Message as Say;
use crate::proto::federation::publish_response::Message as Answer;
use crate::proto::records;
use crate::record::{Decided, Decision, Origin, Record};
use crate::sync::decisions;

fn hello(cluster: &str) -> wire::PublishRequest {
    let epoch = Some(records::Epoch { id: "e".into(), count: 1 });
    let (cluster, uid) = (cluster.to_owned(), "u".to_owned());
    let hello = wire::PublishHello { cluster, uid, epoch, reads_level: 2 };
    wire::PublishRequest { message: Some(Say::Hello(hello)) }
}

fn say(message: Say) -> wire::PublishRequest {
    wire::PublishRequest { message: Some(message) }
}

/// A server for `caller` over a store that has `keys`.
async fn region_for(caller: Caller, keys: &[&str]) -> (Region, Arc<dyn Store>, Following) {
    let store = store().await;
    let record = |key: &str| {
        let key: Key = key.parse().unwrap();
        let epoch = Epoch { id: "e".into(), count: 1 };
        let origin = Origin { epoch, sequence: 1, ..Origin::default() };
        let body = Body::Namespace(Namespace::default());
        Op::put(key.to_string(), Record { key, origin, body }.seal().value)
    };
    let mut ops: Vec<Op> = keys.iter().map(|key| record(key)).collect();
    ops.push(Op::put("/tombolo/local/v1/founding", "x"));
    store.commit(Txn { guards: Vec::new(), ops }).await.unwrap();
    let (writer, replicas) = replica::channel();
    let mut following = JoinSet::new();
    let follow =
        follower::follow(Arc::clone(&store), Arc::new(writer), None, watch::Sender::default());
    following.spawn(async move { follow.await.unwrap() });
    let region = Region::start(0, &store, &replicas, Some(caller)).await;
    (region, store, following)
}

type Following = JoinSet<()>;

/// Publishes `requests` and collects what the region says until it has said `wanted` things.
async fn publish(
    region: &Region,
    requests: Vec<wire::PublishRequest>,
    wanted: usize,
) -> Result<Vec<Answer>, tonic::Status> {
    let (tx, rx) = mpsc::channel(64);
    for request in requests {
        tx.send(request).await.unwrap();
    }
    let mut client = FederationClient::new(region.channel());
    let answers = timeout(LONG, client.publish(ReceiverStream::new(rx))).await.unwrap()?;
    let mut answers = answers.into_inner();
    let mut said = Vec::new();
    while said.len() < wanted {
        match timeout(LONG, answers.message()).await.expect("in time")? {
            Some(answer) => said.extend(answer.message),
            None => break,
        }
    }
    Ok(said)
}

#[tokio::test]
async fn an_agent_writes_under_its_own_prefix_and_nowhere_else() {
    const OTHERS: [&str; 3] = [
        "/tombolo/v1/r/r-b/namespace/_/shop",
        "/tombolo/v1/s/s-a/namespace/_/shop",
        "/tombolo/v1/r/r-a2/namespace/_/shop",
    ];
    let (region, store, _following) = region_for(agent_of("r-a"), &OTHERS).await;
    let before = store::list(&*store, "/tombolo/v1/").await.unwrap().0;
    let odd = ["/tombolo/v1/r/r-a/../r-b/namespace/_/shop", "/tombolo/local/v1/session/r/r-b"];
    let keys: Vec<String> = OTHERS.iter().chain(&odd).map(ToString::to_string).collect();
    let entry = |key: &String| wire::KeyHash {
        key: key.clone(),
        body_sha256: vec![1; 32].into(),
        sequence: 9,
    };
    let state = wire::State { entries: keys.iter().map(entry).collect(), last: true };
    let put = |key: &String| wire::Put { key: key.clone(), value: vec![1; 9].into() };
    let puts =
        wire::Changes { batch: 1, puts: keys.iter().map(put).collect(), ..Default::default() };
    let gone = |key: &String| wire::Tombstone { key: key.clone(), removal: 1, sequence: 99 };
    let gone = wire::Changes {
        batch: 2,
        tombstones: keys.iter().map(gone).collect(),
        ..Default::default()
    };
    let kinds = vec!["namespace".into()];
    let complete = wire::Complete { batch: 3, kinds, sequence: 99 };
    let requests = vec![
        hello("r-a"),
        say(Say::State(state)),
        say(Say::Changes(puts)),
        say(Say::Changes(gone)),
        say(Say::Complete(complete)),
    ];
    let said = publish(&region, requests, 5).await.unwrap();
    let acks = said.iter().filter_map(|answer| match answer {
        Answer::Ack(ack) => Some(ack.refused.len()),
        Answer::Want(want) => {
            assert_eq!(want.keys, [""; 0], "asked for what is not the agent's to give");
            None
        }
        _ => None,
    });
    assert_eq!(acks.collect::<Vec<_>>(), [keys.len(), keys.len(), 0], "{said:?}");
    let after = store::list(&*store, "/tombolo/v1/").await.unwrap().0;
    assert_eq!(after, before);
    let others = store::list(&*store, "/tombolo/local/v1/session/").await.unwrap().0;
    assert_eq!(others.len(), 1, "only its own session");
    region.stop().await;
}

#[tokio::test]
async fn a_cluster_that_left_is_refused_and_counted_and_another_of_its_name_is_taken() {
    let (region, store, mut following) = region_for(agent_of("r-a"), &[]).await;
    region.stop().await;
    let leave = |uid: &str| Decision {
        by: "uid 0".into(),
        at: Timestamp::UNIX_EPOCH,
        note: String::new(),
        what: Decided::Leave { owner: "r/r-a".parse().unwrap(), incarnation: uid.into() },
    };
    let mut own = OwnRecords::new("r/_".parse().unwrap(), Epoch { id: "e".into(), count: 1 });
    let key = decisions::key(&"r".parse().unwrap(), &leave("u").what);
    let mut says = async |uid: &str| {
        let (key, value) = own.say(&key, &Arc::new(Body::Decision(leave(uid))));
        let ops = vec![Op::put(key.to_string(), value.unwrap())];
        let Commit::Done(done) = store.commit(Txn { guards: Vec::new(), ops }).await.unwrap()
        else {
            panic!("no guards")
        };
        done
    };
    let (writer, mut replicas) = replica::channel();
    let follow =
        follower::follow(Arc::clone(&store), Arc::new(writer), None, watch::Sender::default());
    following.spawn(async move { follow.await.unwrap() });
    let (api, stop) = Region::api(&store, &replicas, watch::channel(true).1);
    let mut registry = Registry::with_prefix("tombolo");
    api.register(&mut registry);
    let region = Region::serve(0, (api, stop), Some(agent_of("r-a"))).await;
    let mut answered = async |left: &str| {
        let done = says(left).await;
        replicas.wait_for(|replica| replica.position >= done).await.unwrap();
        publish(&region, vec![hello("r-a")], 1).await.unwrap().remove(0)
    };

    let Answer::Refused(refused) = answered("u").await else { panic!("it is taken") };
    let words = ["r-a left the mesh for good at 1970", "by the word of uid 0", "--withdraw"];
    assert!(words.iter().all(|word| refused.reason.contains(word)), "{}", refused.reason);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let counted = "refused_streams_total{call=\"publish\",reason=\"left\"} 1";
    assert!(text.contains(counted), "{text}");
    assert!(!matches!(answered("another").await, Answer::Refused(_)));
    region.stop().await;
}

#[tokio::test]
async fn who_may_not_publish_is_told_so_in_the_stream() {
    let check = async |caller: Caller, cluster: &str, why: &str| {
        let (region, store, _following) = region_for(caller, &[]).await;
        let said = publish(&region, vec![hello(cluster)], 1).await.unwrap();
        let Answer::Refused(refused) = &said[0] else { panic!("{said:?}") };
        assert!(refused.reason.contains(why), "{}", refused.reason);
        let sessions = store::list(&*store, "/tombolo/local/v1/session/").await.unwrap().0;
        assert_eq!(sessions.len(), 0);
        region.stop().await;
    };
    let peer = Caller::ControlPlane { region: "r".parse().unwrap() };
    check(peer, "r-a", "control plane r is no agent, and only agents publish").await;
    let foreign = Caller::Agent { region: "s".parse().unwrap(), cluster: "s-a".parse().unwrap() };
    check(foreign, "s-a", "belongs to region s, this is r").await;
    // A region that issues names of another one.
    let liar = Caller::Agent { region: "r".parse().unwrap(), cluster: "s-a".parse().unwrap() };
    check(liar, "s-a", "belongs to region r, this is r").await;
    check(agent_of("r-a"), "r-b", "agent r-a claims to publish for \"r-b\"").await;
    check(agent_of("r-a"), "r-a/../r-b", "claims to publish for").await;
    check(agent_of("r-a"), "", "claims to publish for \"\"").await;
}

#[tokio::test]
async fn a_region_recovers_its_own_records_and_nobody_elses() {
    const KEYS: [&str; 3] = [
        "/tombolo/v1/r/r-a/namespace/_/shop",
        "/tombolo/v1/s/s-a/namespace/_/shop",
        "/tombolo/v1/t/t-a/namespace/_/shop",
    ];
    let recover = async |caller: Caller| {
        let (region, _store, _following) = region_for(caller, &KEYS).await;
        let mut client = FederationClient::new(region.channel());
        let request = wire::RecoverRequest { reads_level: 2 };
        let answered = timeout(LONG, client.recover(request)).await.unwrap();
        let mut keys = Vec::new();
        if let Ok(answered) = answered {
            let mut messages = answered.into_inner();
            while let Some(message) = timeout(LONG, messages.message()).await.unwrap().unwrap() {
                if let Some(Message::Batch(batch)) = message.message {
                    keys.extend(batch.items.into_iter().map(|item| item.key));
                }
            }
            region.stop().await;
            return Ok(keys);
        }
        region.stop().await;
        Err(answered.map(drop).unwrap_err().code())
    };
    let peer = Caller::ControlPlane { region: "s".parse().unwrap() };
    assert_eq!(recover(peer).await, Ok(vec![KEYS[1].to_owned()]));
    let stranger = Caller::ControlPlane { region: "x".parse().unwrap() };
    assert_eq!(recover(stranger).await, Ok(Vec::new()));
    assert_eq!(recover(agent_of("r-a")).await, Err(Code::PermissionDenied));
}

#[tokio::test]
async fn a_peer_sees_what_this_region_owns_and_an_agent_all_but_its_own() {
    const KEYS: [&str; 4] = [
        "/tombolo/v1/r/r-a/namespace/_/shop",
        "/tombolo/v1/r/r-b/namespace/_/shop",
        "/tombolo/v1/s/s-a/namespace/_/shop",
        "/tombolo/v1/t/t-a/namespace/_/shop",
    ];
    let sees = async |caller: Caller, scope: wire::Scope| {
        let (region, _store, _following) = region_for(caller, &KEYS).await;
        let request = wire::SubscribeRequest {
            scope: scope.into(),
            reads_level: 2,
            ..wire::SubscribeRequest::default()
        };
        let mut client = FederationClient::new(region.channel());
        let mut messages =
            timeout(LONG, client.subscribe(request)).await.unwrap().unwrap().into_inner();
        let mut keys = Vec::new();
        loop {
            let message = timeout(LONG, messages.message()).await.unwrap().unwrap().unwrap();
            match message.message {
                Some(Message::Batch(batch)) => {
                    keys.extend(batch.items.into_iter().map(|item| item.key));
                }
                Some(Message::Synced(_)) => break,
                _ => {}
            }
        }
        drop(messages);
        region.stop().await;
        keys.sort();
        keys
    };
    let peer = Caller::ControlPlane { region: "s".parse().unwrap() };
    let with_region = |keys: &[&str]| {
        let mut keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
        keys.push(region_word().0.to_string());
        keys.sort();
        keys
    };
    assert_eq!(sees(peer, wire::Scope::Region).await, with_region(&KEYS[..2]));
    assert_eq!(sees(agent_of("r-a"), wire::Scope::Mesh).await, with_region(&KEYS[1..]));
}
