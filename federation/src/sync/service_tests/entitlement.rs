//! What an agent is told and may say follows from what its region entitles it to, also when that
//! changes while it is connected.

use super::*;
use crate::names::ClusterId;
use crate::record::{Entitlement, Removal};

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

#[tokio::test]
async fn an_agent_sees_and_says_what_it_is_entitled_to_and_follows_when_that_changes() {
    let (store, replicas, _following) = region_with_a_cluster(&["one", "two", "three"]).await;
    let mut own = OwnRecords::new("r/_".parse().unwrap(), Epoch { id: "e".into(), count: 1 });
    entitle(&store, &mut own, Some(&["one", "two"])).await;
    let region = Region::start(0, &store, &replicas, Some(agent_of("r-b"))).await;
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
