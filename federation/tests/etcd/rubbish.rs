//! What somebody writes into etcd past every interface, while a region follows it.

use std::collections::BTreeMap;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tombolo_federation::key::Key;
use tombolo_federation::record::{Body, Epoch, Namespace, Origin, Record, Region};
use tombolo_federation::replica;
use tombolo_federation::sync::follower::{self, Following};

use super::*;

fn key(name: &str) -> Key {
    format!("/tombolo/v1/r/r-a/namespace/_/{name}").parse().expect("a record key")
}

fn namespace(name: &str, sequence: u64) -> Op {
    let epoch = Epoch { id: "e".into(), count: 1 };
    let origin = Origin { epoch, sequence, ..Origin::default() };
    let record = Record { key: key(name), origin, body: Body::Namespace(Namespace::default()) };
    Op::put(key(name).to_string(), record.seal().value)
}

/// Keys where records are, that are none.
const ODD: [&str; 5] = [
    "/tombolo/v1/r/r-a/../r-b/namespace/_/x",
    "/tombolo/v1/r/s-a/namespace/_/x",
    "/tombolo/v1/r/r-a/gadget/_/x",
    "/tombolo/v1/r/_/region/_/s",
    "/tombolo/v1/",
];
#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_writes_past_everything_is_kept_aside_by_name_and_the_rest_goes_on() {
    on_each("rubbish", async |release, dir| {
        let etcd = start(release, dir, Options::default());
        let store = connect(&etcd).await;
        let names = ["text", "empty", "cut", "good"];
        commit(&*store, names.map(|name| namespace(name, 1)).to_vec()).await.expect("commits");
        let region: Key = "/tombolo/v1/r/_/region/_/r".parse().expect("a record key");
        let origin =
            Origin { epoch: Epoch { id: "r".into(), count: 1 }, sequence: 1, ..Origin::default() };
        let said = Record { key: region.clone(), origin, body: Body::Region(Region::default()) };
        let said = Op::put(region.to_string(), said.seal().value);
        commit(&*store, vec![said]).await.expect("commits");
        let (writer, mut replicas) = replica::channel();
        let (status, mut following) = watch::channel(Following::default());
        let mut tasks = JoinSet::new();
        let follow = follower::follow(Arc::clone(&store), Arc::new(writer), None, status);
        tasks.spawn(async move { follow.await.expect("the store is not damaged") });

        for odd in ODD {
            etcd.ctl(&["put", odd, "rubbish"]).expect("etcdctl puts");
        }
        for fact in ["said", "complete", "session"] {
            let fact = format!("/tombolo/local/v1/{fact}/r/r-a");
            etcd.ctl(&["put", &fact, "rubbish"]).expect("etcdctl puts");
        }
        etcd.ctl(&["put", &region.to_string(), "rubbish"]).expect("etcdctl puts");
        etcd.ctl(&["put", &key("text").to_string(), "rubbish"]).expect("etcdctl puts");
        etcd.ctl(&["put", &key("empty").to_string(), ""]).expect("etcdctl puts");
        let Op::Put { value, .. } = namespace("cut", 2) else { unreachable!("it is a put") };
        let cut = Op::put(key("cut").to_string(), value.slice(..value.len() - 1));
        commit(&*store, vec![cut, namespace("good", 2)]).await.expect("commits");

        let owner = key("good").owner;
        let kept = replicas.wait_for(|replica| {
            replica.holding(&owner).is_some_and(|held| held.quarantined() == 3)
        });
        let replica = timeout(LONG, kept).await.expect("in time").expect("it follows");
        let spoilt = replica.get(&region).expect("it is held");
        assert!(spoilt.problem.is_some() && spoilt.record.is_some(), "{spoilt:?}");
        let holding = replica.holding(&owner).expect("it has records");
        let why: BTreeMap<&str, String> =
            holding.quarantine().map(|(key, why)| (key.name.as_str(), why.to_string())).collect();
        assert_eq!(why.keys().copied().collect::<Vec<_>>(), ["cut", "empty", "text"]);
        assert_eq!(why["empty"], "schema_level is missing");
        assert_eq!(why["text"], "the value is not a valid Envelope message");
        for name in names {
            let entry = holding.get(&key(name)).expect("it is held");
            let record = entry.record.as_ref().expect("the last good version is in use");
            assert_eq!(record.origin.sequence, if name == "good" { 2 } else { 1 }, "{name}");
        }
        let strays = following.wait_for(|following| following.strays.len() == ODD.len());
        let strays = timeout(LONG, strays).await.expect("in time").expect("it follows").clone();
        assert!(ODD.iter().all(|odd| strays.strays.contains_key(*odd)), "{:?}", strays.strays);
        assert_eq!((strays.problem, strays.listings), (None, 1));

        // Mended as it was spoilt.
        let mended = names.map(|name| namespace(name, 3)).to_vec();
        commit(&*store, mended).await.expect("commits");
        let good = replicas.wait_for(|replica| {
            replica.holding(&owner).is_some_and(|held| held.quarantined() == 0)
        });
        timeout(LONG, good).await.expect("in time").expect("it follows");
        tasks.shutdown().await;
    })
    .await;
}
