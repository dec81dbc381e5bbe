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
    assert!(said.removed.iter().all(|(_, why)| *why == Some(Removal::Explained)), "{said:?}");
    let link = agent.subscribed.wait_for(|link| link.synced);
    let mismatches = timeout(LONG, link).await.unwrap().unwrap().mismatches;
    assert_eq!(mismatches, 0, "a change of entitlement is no fault");
    drop(agent);
    region.stop().await;
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
