//! What a subscriber asks for: from which position on, and about what.

use super::*;

fn request(position: u64, uses: &[&str]) -> wire::SubscribeRequest {
    wire::SubscribeRequest {
        scope: wire::Scope::Mesh.into(),
        reads_level: 1,
        position,
        uses: uses.iter().map(ToString::to_string).collect(),
        ..wire::SubscribeRequest::default()
    }
}

/// Commits something; the store's revision then.
async fn revision(store: &Arc<dyn Store>) -> u64 {
    let ops = vec![Op::put("/tombolo/local/v1/x", "x")];
    let committed = store.commit(Txn { guards: Vec::new(), ops }).await.unwrap();
    let Commit::Done(revision) = committed else { panic!("no guard") };
    revision
}

/// A server whose replica lacks the newest commit of its store, and the revision of that.
async fn behind_its_store() -> (Region, ReplicaWriter, u64) {
    let store = store().await;
    let (writer, replicas) = replica::channel();
    let newest = revision(&store).await;
    heard(&writer, newest - 1);
    let region = Region::start(0, &store, &replicas, Some(agent_of("r-a"))).await;
    (region, writer, newest)
}

/// All that comes up to `synced`: keys, and at which position it was.
async fn opening(
    answered: tonic::Response<tonic::Streaming<wire::SubscribeResponse>>,
) -> (Vec<String>, u64) {
    let mut messages = answered.into_inner();
    let mut keys = Vec::new();
    loop {
        let next = timeout(LONG, messages.message()).await.expect("in time").unwrap().unwrap();
        match next.message {
            Some(Message::Batch(batch)) => keys.extend(batch.items.into_iter().map(|of| of.key)),
            Some(Message::Synced(synced)) => return (keys, synced.position),
            _ => {}
        }
    }
}

/// It saw more of this store elsewhere: what is older is not said to it.
#[tokio::test]
async fn who_is_ahead_of_a_replica_waits_for_it() {
    let (region, writer, newest) = behind_its_store().await;
    let mut client = FederationClient::new(region.channel());
    let mut subscribe = std::pin::pin!(client.subscribe(request(newest, &[])));
    // Time for a server that does not wait to show it.
    let early = timeout(Duration::from_millis(200), &mut subscribe).await;
    assert!(early.is_err(), "answered while it is behind");
    heard(&writer, newest);
    let answered = timeout(LONG, subscribe).await.expect("in time").unwrap();
    assert_eq!(opening(answered).await.1, newest);
    region.stop().await;
}

/// The store was restored: to wait for it would be to wait for ever.
#[tokio::test]
async fn a_position_that_the_store_has_not_come_to_means_nothing() {
    let store = store().await;
    let (writer, replicas) = replica::channel();
    let newest = revision(&store).await;
    heard(&writer, newest);
    let region = Region::start(0, &store, &replicas, Some(agent_of("r-a"))).await;
    let mut client = FederationClient::new(region.channel());
    let subscribe = client.subscribe(request(newest + 1000, &[]));
    let answered = timeout(LONG, subscribe).await.expect("at once").unwrap();
    let (keys, position) = opening(answered).await;
    assert_eq!((keys, position), (vec![region_word().0.to_string()], newest), "all there is");
    region.stop().await;
}

#[tokio::test]
async fn who_is_ahead_of_a_replica_that_ends_is_sent_elsewhere() {
    let (region, writer, newest) = behind_its_store().await;
    let mut client = FederationClient::new(region.channel());
    let mut subscribe = std::pin::pin!(client.subscribe(request(newest, &[])));
    let early = timeout(Duration::from_millis(200), &mut subscribe).await;
    assert!(early.is_err(), "answered while it is behind");
    drop(writer);
    let refused = timeout(LONG, subscribe).await.expect("in time").map(drop).unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    region.stop().await;
}

#[tokio::test]
async fn a_subscriber_is_told_about_the_namespaces_that_it_uses_and_about_none() {
    let (writer, replicas) = replica::channel();
    heard(&writer, 7);
    let owner: Owner = "r/r-b".parse().unwrap();
    let mut own = OwnRecords::new(owner.clone(), Epoch { id: "e".into(), count: 1 });
    let namespace = |name: &str| Key::of_namespace(owner.clone(), &name.parse().unwrap());
    let cluster = Body::Cluster(Cluster { uid: "u".into(), ..Cluster::default() });
    let mut items = vec![own.say(&Key::of_owner(owner.clone(), Kind::Cluster), &Arc::new(cluster))];
    let body = Arc::new(Body::Namespace(Namespace::default()));
    items.extend(["one", "two", "three"].map(|name| own.say(&namespace(name), &body)));
    writer.apply(Batch { items, ..Batch::default() }, Instant::now());
    let region = Region::start(0, &store().await, &replicas, Some(agent_of("r-a"))).await;
    let mut client = FederationClient::new(region.channel());
    let mut told = async |uses: &[&str]| {
        let subscribe = client.subscribe(request(0, uses));
        timeout(LONG, subscribe).await.expect("in time")
    };
    let of = |keys: Vec<String>| {
        let of = keys.into_iter().filter(|key| key.starts_with("/tombolo/v1/r/r-b/"));
        of.map(|key| key.rsplit('/').next().unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    let all = told(&[]).await.unwrap();
    assert_eq!(of(opening(all).await.0), names(&["r-b", "one", "two", "three"]));
    let cut = told(&["one", "three", "elsewhere"]).await.unwrap();
    assert_eq!(of(opening(cut).await.0), names(&["r-b", "one", "three"]));
    // To leave it out would tell it less than it asked for, or all.
    for wrong in [&["one", "No Name"][..], &[""]] {
        let refused = told(wrong).await.map(drop).unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().starts_with("uses: "), "{refused}");
    }
    region.stop().await;
}
