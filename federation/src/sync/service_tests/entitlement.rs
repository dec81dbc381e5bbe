//! What an agent is told and may say follows from what its region entitles it to, also when that
//! changes while it is connected.

use super::*;
use crate::names::ClusterId;
use crate::record::{Entitlement, Removal};
use crate::sync::feed;

/// The region's word on what r-b is entitled to.
async fn entitle(store: &Arc<dyn Store>, own: &mut OwnRecords, namespaces: Option<&[&str]>) {
    let named = namespaces.map(|names| names.iter().map(|name| name.parse().unwrap()).collect());
    let entitlement = named.map_or(Entitlement::All, Entitlement::Namespaces);
    let cluster: ClusterId = "r-b".parse().unwrap();
    let region = crate::record::Region {
        entitlements: [(cluster, entitlement)].into(),
        ..crate::record::Region::default()
    };
    let key = Key::of_owner(own.owner().clone(), Kind::Region);
    let (key, value) = own.say(&key, &Arc::new(Body::Region(region)));
    let ops = vec![Op::put(key.to_string(), value.unwrap())];
    store.commit(Txn { guards: Vec::new(), ops }).await.unwrap();
}

/// Waits until the server knows that r-b is restricted.
async fn is_restricted(replicas: &Replicas) {
    let (region, cluster) = ("r".parse().unwrap(), "r-b".parse().unwrap());
    let said = |replica: &replica::Replica| feed::entitlement(replica, &region, &cluster);
    let mut replicas = replicas.clone();
    let known = replicas.wait_for(|replica| said(replica).is_some_and(|of| of != Entitlement::All));
    timeout(LONG, known).await.expect("in time").unwrap();
}

#[tokio::test]
async fn an_agent_sees_and_says_what_it_is_entitled_to_and_follows_when_that_changes() {
    let (store, replicas, _following) = region_with_a_cluster(&["one", "two", "three"]).await;
    let mut own = OwnRecords::new("r/_".parse().unwrap(), Epoch { id: "e".into(), count: 1 });
    entitle(&store, &mut own, Some(&["one", "two"])).await;
    is_restricted(&replicas).await;
    let limits = Limits { revoke_after: Duration::ZERO, ..Limits::default() };
    let region = Region::start_limited(&store, &replicas, agent_of("r-b"), limits).await;
    let mut agent = Agent::start("r-b", &region.channel());
    agent.says(&["one", "three"]);
    agent.respect_join().await;
    agent.is_in_step().await;
    let key = |name: &str| format!("/tombolo/v1/r/r-a/namespace/_/{name}");
    agent.sees(&key("one"), true).await;
    agent.sees(&key("two"), true).await;
    assert!(agent.replicas.peek().get(&key("three").parse().unwrap()).is_none());

    // What it says of the third is refused by name, the rest is taken.
    let third = "/tombolo/v1/r/r-b/namespace/_/three";
    let refused = agent.published.wait_for(|link| link.refused.contains_key(third));
    let refused = timeout(LONG, refused).await.expect("in time").unwrap().clone();
    assert_eq!(
        refused.refused,
        BTreeMap::from([(
            third.to_owned(),
            "is about namespace three, which r/r-b is not entitled to".to_owned()
        )])
    );
    assert!(store::read(&*store, third).await.unwrap().is_none());
    let first = store::read(&*store, "/tombolo/v1/r/r-b/namespace/_/one").await.unwrap();
    assert!(first.is_some());

    entitle(&store, &mut own, None).await;
    agent.sees(&key("three"), true).await;
    // What was refused before is taken now, without its owner saying it anew.
    let taken = agent.published.wait_for(|link| link.synced && link.refused.is_empty());
    drop(timeout(LONG, taken).await.expect("in time").unwrap());
    assert!(store::read(&*store, third).await.unwrap().is_some());

    entitle(&store, &mut own, Some(&["two"])).await;
    agent.sees(&key("one"), false).await;
    agent.sees(&key("three"), false).await;
    agent.sees(&key("two"), true).await;
    agent.says(&["one", "three", "four"]);
    // What was taken when it was entitled to it does not stand for ever as it was then.
    let names = ["four", "one", "three"];
    let keys = names.map(|name| format!("/tombolo/v1/r/r-b/namespace/_/{name}"));
    let all = |link: &Link| keys.iter().all(|key| link.refused.contains_key(key));
    let refused = agent.published.wait_for(|link| link.synced && all(link));
    drop(timeout(LONG, refused).await.expect("in time").unwrap());
    for key in &keys {
        assert!(store::read(&*store, key).await.unwrap().is_none(), "{key}");
    }
    let said = facts::said_key(&"r/r-b".parse().unwrap());
    let said = store::read(&*store, &said).await.unwrap().unwrap();
    let Some(facts::Fact::Said(_, said)) = facts::read(&said.key, &said.value) else {
        panic!("{said:?}")
    };
    assert!(said.removals().all(|(_, how)| how.removal == Removal::Explained), "{said:?}");
    let link = agent.subscribed.wait_for(|link| link.synced);
    let mismatches = timeout(LONG, link).await.unwrap().unwrap().mismatches;
    assert_eq!(mismatches, 0, "a change of entitlement is no fault");
    drop(agent);
    region.stop().await;
}

/// What another region holds of this one, as long as the tasks run.
async fn mirrored(peer: &Region) -> (Replicas, JoinSet<()>) {
    let store = store().await;
    let key = facts::election_key();
    let ops = vec![Op::put(&key, "me")];
    let led = store.commit(Txn { guards: Vec::new(), ops }).await.unwrap();
    let Commit::Done(led) = led else { panic!("no guard") };
    let (writer, replicas) = replica::channel();
    let mut tasks = JoinSet::new();
    let follow =
        follower::follow(Arc::clone(&store), Arc::new(writer), None, watch::Sender::default());
    tasks.spawn(async move { follow.await.unwrap() });
    let leader = Leader::new(store, Guard::CreateRevision(key, led), replicas.clone());
    let (peer, (link, _)) = (peer.channel(), watch::channel(Link::default()));
    tasks.spawn(async move {
        mirror(leader, "r".parse().unwrap(), peer, link, None).await;
    });
    (replicas, tasks)
}

async fn is_there(replicas: &Replicas, keys: &[Key], there: bool) {
    let mut replicas = replicas.clone();
    let as_told =
        |replica: &replica::Replica| keys.iter().all(|key| replica.get(key).is_some() == there);
    let seen = timeout(LONG, replicas.wait_for(as_told)).await;
    seen.unwrap_or_else(|_| panic!("there: {there}")).unwrap();
}

/// Its owner does not say it anew: it comes as it was, under its own number.
#[tokio::test]
async fn what_was_taken_back_and_is_given_again_is_there_again_also_in_other_regions() {
    let (store, here, _following) = region_with_a_cluster(&[]).await;
    let mut own = OwnRecords::new("r/_".parse().unwrap(), Epoch { id: "e".into(), count: 1 });
    entitle(&store, &mut own, Some(&["one", "two"])).await;
    is_restricted(&here).await;
    let limits = Limits { revoke_after: Duration::ZERO, ..Limits::default() };
    let region = Region::start_limited(&store, &here, agent_of("r-b"), limits).await;
    let other = Caller::ControlPlane { region: "s".parse().unwrap() };
    let peer = Region::start(0, &store, &here, Some(other)).await;
    let (there, mirroring) = mirrored(&peer).await;
    let mut agent = Agent::start("r-b", &region.channel());
    agent.says(&["one", "two"]);
    agent.respect_join().await;
    agent.is_in_step().await;
    let keys = ["one", "two"].map(|name| format!("/tombolo/v1/r/r-b/namespace/_/{name}"));
    let keys = keys.map(|key| key.parse().unwrap());
    let everywhere = async |are: bool| {
        is_there(&here, &keys, are).await;
        is_there(&there, &keys, are).await;
    };
    everywhere(true).await;
    let number = |key| here.peek().get(key).unwrap().origin().unwrap().sequence;
    let numbers: Vec<u64> = keys.iter().map(number).collect();

    entitle(&store, &mut own, Some(&["other"])).await;
    everywhere(false).await;
    for replica in [here.peek(), there.peek()] {
        let removed = keys.iter().map(|key| replica.removed(key).unwrap().sequence);
        assert_eq!(removed.collect::<Vec<u64>>(), numbers);
    }
    entitle(&store, &mut own, Some(&["one", "two"])).await;
    everywhere(true).await;
    drop((agent, mirroring));
    region.stop().await;
    peer.stop().await;
}

/// The region's record as it cannot be read here.
const FOR_NEWER_READERS: &[u8] = &[0x08, 9, 0x10, 9];

async fn subscribe(channel: Channel) -> Result<(), tonic::Status> {
    let request = wire::SubscribeRequest { scope: wire::Scope::Mesh.into(), ..Default::default() };
    FederationClient::new(channel).subscribe(request).await.map(drop)
}

#[tokio::test]
async fn nobody_is_told_anything_before_it_is_known_what_it_is_entitled_to() {
    let check = async |said: Option<&'static [u8]>| {
        let (writer, replicas) = replica::channel();
        let (key, word) = region_word();
        let unreadable = said.map(|value| (key.clone(), Some(Bytes::from_static(value))));
        let items = unreadable.into_iter().collect();
        writer.apply(Batch { position: Some(1), items, ..Batch::default() }, Instant::now());
        let region = Region::start(0, &store().await, &replicas, Some(agent_of("r-b"))).await;
        let mut subscribed = std::pin::pin!(subscribe(region.channel()));
        // Time for a server that does not wait to show it.
        let early = timeout(Duration::from_millis(200), &mut subscribed).await;
        assert!(early.is_err(), "answered: {early:?}");
        let items = vec![(key, Some(word))];
        writer.apply(Batch { position: Some(2), items, ..Batch::default() }, Instant::now());
        timeout(LONG, subscribed).await.expect("in time").unwrap();
        region.stop().await;
    };
    check(None).await;
    check(Some(FOR_NEWER_READERS)).await;
}

#[tokio::test]
async fn what_a_subscriber_is_entitled_to_stands_while_the_regions_word_is_away() {
    let (store, replicas, _following) = region_with_a_cluster(&["one", "two"]).await;
    let mut own = OwnRecords::new("r/_".parse().unwrap(), Epoch { id: "e".into(), count: 1 });
    entitle(&store, &mut own, Some(&["one"])).await;
    is_restricted(&replicas).await;
    let region = Region::start(0, &store, &replicas, Some(agent_of("r-b"))).await;
    let mut agent = Agent::start("r-b", &region.channel());
    let key = |name: &str| format!("/tombolo/v1/r/r-a/namespace/_/{name}");
    agent.sees(&key("one"), true).await;
    let (word, _) = region_word();
    let ops = vec![Op::delete(word.to_string())];
    store.commit(Txn { guards: Vec::new(), ops }).await.unwrap();
    agent.sees(&word.to_string(), false).await;
    assert!(agent.replicas.peek().get(&key("two").parse().unwrap()).is_none());
    assert!(agent.subscribed.borrow().synced, "and the stream goes on");
    drop(agent);
    region.stop().await;
}
