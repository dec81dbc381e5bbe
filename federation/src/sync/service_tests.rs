//! The federation API over real connections (without TLS, which is the wiring's).

mod asking;
mod entitlement;
mod limits;
mod mirroring;
mod permission;
mod raw_peer;
mod wire_limits;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request};

use super::Caller;
use super::client::{self, Link, Publication};
use super::intake::Strays;
use super::leader::{Leader, LeaderError};
use super::mirror::mirror;
use super::own::{OwnRecords, with_join};
use super::service::{FederationApi, Limits};
use super::tests::{region_word, store};
use super::{facts, follower};
use crate::key::{Key, Kind};
use crate::names::Owner;
use crate::proto::federation as wire;
use crate::proto::federation::federation_client::FederationClient;
use crate::proto::federation::subscribe_response::Message;
use crate::record::{Body, Cluster, Epoch, Namespace};
use crate::replica::{self, Batch, ReplicaWriter, Replicas};
use crate::store::{self, Commit, Guard, Op, Store, Txn};

/// Ten times and more what any of this takes.
const LONG: Duration = Duration::from_secs(20);

fn agent_of(cluster: &str) -> Caller {
    Caller::Agent { region: "r".parse().unwrap(), cluster: cluster.parse().unwrap() }
}

/// A region's server on a free port, to which every caller is `caller`.
struct Region {
    tasks: JoinSet<()>,
    stop: CancellationToken,
    port: u16,
}

impl Region {
    async fn start(
        port: u16,
        store: &Arc<dyn Store>,
        replicas: &Replicas,
        caller: Option<Caller>,
    ) -> Self {
        let whole = watch::channel(true).1;
        Self::start_when(port, store, replicas, caller, whole).await
    }

    async fn start_when(
        port: u16,
        store: &Arc<dyn Store>,
        replicas: &Replicas,
        caller: Option<Caller>,
        whole: watch::Receiver<bool>,
    ) -> Self {
        let api = Self::api(store, replicas, whole);
        Self::serve(port, api, caller).await
    }

    fn api(
        store: &Arc<dyn Store>,
        replicas: &Replicas,
        whole: watch::Receiver<bool>,
    ) -> (FederationApi, CancellationToken) {
        let stop = CancellationToken::new();
        let clock = Arc::new(|| Timestamp::from_second(1_800_000_000).unwrap());
        let api = FederationApi::new(
            "r".parse().unwrap(),
            Arc::clone(store),
            replicas.clone(),
            whole,
            clock,
            stop.clone(),
        );
        (api, stop)
    }

    async fn start_limited(
        store: &Arc<dyn Store>,
        replicas: &Replicas,
        caller: Caller,
        limits: Limits,
    ) -> Self {
        let (api, stop) = Self::api(store, replicas, watch::channel(true).1);
        Self::serve(0, (api.with_limits(limits), stop), Some(caller)).await
    }

    async fn serve(
        port: u16,
        (api, stop): (FederationApi, CancellationToken),
        caller: Option<Caller>,
    ) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let service =
            InterceptedService::new(api.into_service(), move |mut request: Request<()>| {
                caller.clone().map(|caller| request.extensions_mut().insert(caller));
                Ok(request)
            });
        let server = Server::builder().add_service(service);
        let ended = stop.clone().cancelled_owned();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            server.serve_with_incoming_shutdown(incoming, ended).await.unwrap();
        });
        Self { tasks, stop, port }
    }

    fn channel(&self) -> Channel {
        let uri = format!("http://127.0.0.1:{}", self.port);
        Endpoint::try_from(uri).unwrap().connect_lazy()
    }

    async fn stop(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// A replica of a store up to `position`, in which the region has said who it is and no more.
fn heard(writer: &ReplicaWriter, position: u64) {
    let (key, value) = region_word();
    let items = vec![(key, Some(value))];
    let batch = Batch { position: Some(position), items, ..Batch::default() };
    writer.apply(batch, Instant::now());
}

#[tokio::test]
async fn nothing_is_vouched_for_before_the_store_was_read() {
    let (writer, replicas) = replica::channel();
    let region = Region::start(0, &store().await, &replicas, Some(agent_of("r-a"))).await;
    let mut client = FederationClient::new(region.channel());
    let request = wire::SubscribeRequest {
        scope: wire::Scope::Mesh.into(),
        reads_level: 1,
        ..wire::SubscribeRequest::default()
    };
    let subscribe = async { client.subscribe(request).await.unwrap().into_inner() };
    let read = async {
        // Time for a server that does not wait to show it.
        tokio::time::sleep(Duration::from_millis(100)).await;
        heard(&writer, 7);
    };
    let (mut messages, ()) = timeout(LONG, async { tokio::join!(subscribe, read) }).await.unwrap();
    let first = timeout(LONG, messages.message()).await.unwrap().unwrap().unwrap();
    assert!(matches!(first.message, Some(Message::Start(_))), "{first:?}");
    drop(messages);
    region.stop().await;
}

/// A store that is new, or was lost, has something in it as soon as a leader is elected.
#[tokio::test]
async fn an_agent_is_not_told_that_a_part_is_all_and_a_peer_does_not_wait() {
    let (writer, replicas) = replica::channel();
    heard(&writer, 1);
    let (whole, whole_rx) = watch::channel(false);
    let store = store().await;
    let start = |caller| Region::start_when(0, &store, &replicas, Some(caller), whole_rx.clone());
    let peer = start(Caller::ControlPlane { region: "s".parse().unwrap() }).await;
    let agent = start(agent_of("r-a")).await;
    let request = |scope: wire::Scope| wire::SubscribeRequest {
        scope: scope.into(),
        reads_level: 1,
        ..wire::SubscribeRequest::default()
    };
    let mut client = FederationClient::new(peer.channel());
    let answered = timeout(LONG, client.subscribe(request(wire::Scope::Region))).await.unwrap();
    drop(answered.unwrap());

    let mut client = FederationClient::new(agent.channel());
    let subscribe = client.subscribe(request(wire::Scope::Mesh));
    let mut subscribe = std::pin::pin!(subscribe);
    // Time for a server that does not wait to show it.
    let early = timeout(Duration::from_millis(200), &mut subscribe).await;
    assert!(early.is_err(), "answered before what it has is whole");
    whole.send_replace(true);
    drop(timeout(LONG, subscribe).await.unwrap().unwrap());
    peer.stop().await;
    agent.stop().await;
}

#[tokio::test]
async fn who_may_not_call_is_refused() {
    let check = async |caller: Option<Caller>, scope: wire::Scope, code: Code| {
        let (writer, replicas) = replica::channel();
        heard(&writer, 1);
        let region = Region::start(0, &store().await, &replicas, caller).await;
        let request =
            wire::SubscribeRequest { scope: scope.into(), reads_level: 1, ..Default::default() };
        let mut client = FederationClient::new(region.channel());
        let outcome = timeout(LONG, client.subscribe(request)).await.unwrap();
        assert_eq!(outcome.map(drop).unwrap_err().code(), code);
        region.stop().await;
    };
    let peer = Caller::ControlPlane { region: "s".parse().unwrap() };
    let foreign = Caller::Agent { region: "s".parse().unwrap(), cluster: "s-a".parse().unwrap() };
    check(None, wire::Scope::Mesh, Code::Unauthenticated).await;
    check(Some(foreign), wire::Scope::Mesh, Code::PermissionDenied).await;
    check(Some(agent_of("r-a")), wire::Scope::Region, Code::PermissionDenied).await;
    check(Some(peer.clone()), wire::Scope::Mesh, Code::PermissionDenied).await;
    check(Some(peer), wire::Scope::Unspecified, Code::InvalidArgument).await;
}

/// An agent that says `namespaces`, joined to the region by real streams.
struct Agent {
    own: OwnRecords,
    writer: Arc<ReplicaWriter>,
    replicas: Replicas,
    joined: watch::Receiver<Option<Timestamp>>,
    respected: watch::Sender<Option<Timestamp>>,
    published: watch::Receiver<Link>,
    subscribed: watch::Receiver<Link>,
    _tasks: JoinSet<()>,
}

impl Agent {
    fn start(cluster: &str, channel: &Channel) -> Self {
        let owner = Owner::cluster("r".parse().unwrap(), cluster.parse().unwrap());
        let epoch = Epoch { id: cluster.to_owned(), count: 1 };
        let (writer, replicas) = replica::channel();
        let writer = Arc::new(writer);
        let (joined_tx, joined) = watch::channel(None);
        let (respected, respected_rx) = watch::channel(None);
        let (publishing, published) = watch::channel(Link::default());
        let (subscribing, subscribed) = watch::channel(Link::default());
        let (judge, mut surplus) = mpsc::channel::<client::Surplus>(1);
        let publication = Publication {
            owner: owner.clone(),
            uid: format!("uid of {cluster}"),
            epoch: epoch.clone(),
            joined: joined_tx,
            respected: respected_rx,
            judge,
        };
        let mut tasks = JoinSet::new();
        // Such an agent says nothing about what it did not declare.
        tasks.spawn(async move {
            while let Some(surplus) = surplus.recv().await {
                surplus.gone.send(BTreeMap::new()).unwrap();
            }
        });
        tasks.spawn(client::publish(channel.clone(), publication, replicas.clone(), publishing));
        tasks.spawn(client::subscribe(
            channel.clone(),
            owner.clone(),
            BTreeSet::new(),
            Arc::clone(&writer),
            subscribing,
        ));
        let own = OwnRecords::new(owner, epoch);
        Self { own, writer, replicas, joined, respected, published, subscribed, _tasks: tasks }
    }

    fn says(&mut self, namespaces: &[&str]) {
        let owner = self.own.owner().clone();
        let key = Key::of_owner(owner.clone(), Kind::Cluster);
        let cluster = Cluster { uid: "u".into(), directory: true, ..Cluster::default() };
        let mut bodies = BTreeMap::from([(key, Arc::new(Body::Cluster(cluster)))]);
        for namespace in namespaces {
            let key = Key::of_namespace(owner.clone(), &namespace.parse().unwrap());
            bodies.insert(key, Arc::new(Body::Namespace(Namespace::default())));
        }
        let joined = *self.joined.borrow();
        let mut batch = self.own.reconcile(&with_join(&bodies, joined), &BTreeMap::new());
        batch.complete = self.own.complete(&super::CLUSTER_KINDS);
        self.writer.apply(batch, Instant::now());
    }

    /// Answers the region's word on the join as the wiring does.
    async fn respect_join(&mut self) {
        timeout(LONG, self.joined.wait_for(Option::is_some)).await.unwrap().unwrap();
        let joined = *self.joined.borrow();
        self.respected.send_replace(joined);
    }

    async fn sees(&mut self, wanted: &str, there: bool) {
        let key: Key = wanted.parse().unwrap();
        let seen = self.replicas.wait_for(|replica| replica.get(&key).is_some() == there);
        timeout(LONG, seen).await.expect("in time").unwrap();
    }

    async fn is_in_step(&mut self) {
        for link in [&mut self.published, &mut self.subscribed] {
            timeout(LONG, link.wait_for(|link| link.synced)).await.expect("in time").unwrap();
        }
    }
}

#[tokio::test]
async fn two_agents_see_each_other_through_the_region_also_after_it_was_away() {
    let store = store().await;
    let (writer, replicas) = replica::channel();
    let mut following = JoinSet::new();
    let follow =
        follower::follow(Arc::clone(&store), Arc::new(writer), None, watch::Sender::default());
    following.spawn(async move { follow.await.unwrap() });
    // Every caller of one server is one agent here, so each agent has its own.
    let first = Region::start(0, &store, &replicas, Some(agent_of("r-a"))).await;
    let second = Region::start(0, &store, &replicas, Some(agent_of("r-b"))).await;
    let mut a = Agent::start("r-a", &first.channel());
    let mut b = Agent::start("r-b", &second.channel());
    a.says(&["one"]);
    b.says(&[]);
    a.respect_join().await;
    b.respect_join().await;
    a.is_in_step().await;
    b.is_in_step().await;
    b.sees("/tombolo/v1/r/r-a/namespace/_/one", true).await;

    a.says(&["two"]);
    b.sees("/tombolo/v1/r/r-a/namespace/_/two", true).await;
    b.sees("/tombolo/v1/r/r-a/namespace/_/one", false).await;

    let port = first.port;
    first.stop().await;
    timeout(LONG, a.published.wait_for(|link| !link.synced)).await.unwrap().unwrap();
    a.says(&["three"]);
    let first = Region::start(port, &store, &replicas, Some(agent_of("r-a"))).await;
    a.is_in_step().await;
    b.sees("/tombolo/v1/r/r-a/namespace/_/three", true).await;
    b.sees("/tombolo/v1/r/r-a/namespace/_/two", false).await;
    first.stop().await;
    second.stop().await;
}

/// What a region holds of the cluster r-a, put there as its own store would have it.
async fn region_with_a_cluster(namespaces: &[&str]) -> (Arc<dyn Store>, Replicas, JoinSet<()>) {
    let store = store().await;
    write_cluster(&store, 1, namespaces).await;
    let (writer, replicas) = replica::channel();
    let mut following = JoinSet::new();
    let follow =
        follower::follow(Arc::clone(&store), Arc::new(writer), None, watch::Sender::default());
    following.spawn(async move { follow.await.unwrap() });
    (store, replicas, following)
}

async fn write_cluster(store: &Arc<dyn Store>, count: u64, namespaces: &[&str]) {
    let owner = Owner::cluster("r".parse().unwrap(), "r-a".parse().unwrap());
    let mut own = OwnRecords::new(owner.clone(), Epoch { id: "e".into(), count });
    let bodies = namespaces.iter().map(|name| {
        let key = Key::of_namespace(owner.clone(), &name.parse().unwrap());
        (key, Arc::new(Body::Namespace(Namespace::default())))
    });
    let batch = own.reconcile(&bodies.collect(), &BTreeMap::new());
    let (held, _) = store::list(&**store, &Key::owner_prefix(&owner)).await.unwrap();
    let mut ops: Vec<Op> = held.into_iter().map(|entry| Op::delete(entry.key)).collect();
    for (key, value) in batch.items {
        ops.retain(|op| op.key() != key.to_string());
        ops.push(Op::put(key.to_string(), value.unwrap()));
    }
    let complete = own.complete(&super::CLUSTER_KINDS).into_iter();
    ops.extend(complete.map(|(owner, kind, epoch)| facts::complete_op(&owner, kind, &epoch)));
    store.commit(Txn { guards: Vec::new(), ops }).await.unwrap();
}

#[tokio::test]
async fn a_leader_mirrors_what_its_peer_owns_and_stops_when_it_leads_no_more() {
    let (theirs, their_replicas, _following) = region_with_a_cluster(&["one", "two"]).await;
    let caller = Caller::ControlPlane { region: "s".parse().unwrap() };
    let peer = Region::start(0, &theirs, &their_replicas, Some(caller)).await;

    let ours = store().await;
    let key = facts::election_key();
    let led =
        ours.commit(Txn { guards: Vec::new(), ops: vec![Op::put(&key, "me")] }).await.unwrap();
    let Commit::Done(led) = led else { panic!("{led:?}") };
    let (writer, mut replicas) = replica::channel();
    let mut tasks = JoinSet::new();
    let follow =
        follower::follow(Arc::clone(&ours), Arc::new(writer), None, watch::Sender::default());
    tasks.spawn(async move { follow.await.unwrap() });
    let leader =
        Leader::new(Arc::clone(&ours), Guard::CreateRevision(key.clone(), led), replicas.clone());
    let (link, mut linked) = watch::channel(Link::default());
    let mut mirroring = JoinSet::new();
    mirroring.spawn(mirror(leader, "r".parse().unwrap(), peer.channel(), link, None));
    timeout(LONG, linked.wait_for(|link| link.synced)).await.unwrap().unwrap();

    let digests = |replica: &replica::Replica| {
        replica.holding(&"r/r-a".parse().unwrap()).map(replica::Holding::digest)
    };
    let truth = digests(&their_replicas.clone().current()).unwrap();
    let same = replicas.wait_for(|replica| digests(replica) == Some(truth));
    timeout(LONG, same).await.expect("the same bytes are here").unwrap();

    // A delete and a change, then the peer is away, and comes back with less.
    write_cluster(&theirs, 2, &["two", "three"]).await;
    let three: Key = "/tombolo/v1/r/r-a/namespace/_/three".parse().unwrap();
    let seen = replicas.wait_for(|replica| replica.get(&three).is_some());
    timeout(LONG, seen).await.expect("the change is here").unwrap();
    let port = peer.port;
    peer.stop().await;
    timeout(LONG, linked.wait_for(|link| !link.synced)).await.unwrap().unwrap();
    write_cluster(&theirs, 3, &["three"]).await;
    let caller = Caller::ControlPlane { region: "s".parse().unwrap() };
    let peer = Region::start(port, &theirs, &their_replicas, Some(caller)).await;
    let two: Key = "/tombolo/v1/r/r-a/namespace/_/two".parse().unwrap();
    let gone = replicas.wait_for(|replica| replica.get(&two).is_none());
    timeout(LONG, gone).await.expect("what went while it was away is gone").unwrap();
    assert!(replicas.current().get(&three).is_some());
    let resume = store::read(&*ours, "/tombolo/local/v1/resume/r").await.unwrap();
    assert!(resume.is_some(), "the peer's position is committed with its data");

    // Another leads: whatever comes in now commits nothing.
    let ops = vec![Op::delete(&key)];
    ours.commit(Txn { guards: Vec::new(), ops }).await.unwrap();
    write_cluster(&theirs, 4, &["three", "four"]).await;
    let ended = timeout(LONG, mirroring.join_next()).await.expect("in time").unwrap().unwrap();
    assert!(matches!(ended, LeaderError::NotLeader), "{ended:?}");
    let four = store::read(&*ours, "/tombolo/v1/r/r-a/namespace/_/four").await.unwrap();
    assert_eq!(four, None);
    peer.stop().await;
}

/// As level 3 may write it: unknown fields in envelope and body, one for newer readers only, one of
/// an unknown kind, one that is cut short.
async fn write_of_level_3(store: &Arc<dyn Store>) -> BTreeMap<String, Bytes> {
    let read = store::read(&**store, "/tombolo/v1/r/r-a/namespace/_/one").await.unwrap().unwrap();
    // Field 900, a string.
    let newer = Bytes::from([&read.value[..], &[0xa2, 0x38, 3, b'n', b'e', b'w']].concat());
    // Field 2, `min_reader`; the last one counts.
    let for_newer = Bytes::from([&read.value[..], &[0x10, 9]].concat());
    let key = |kind: &str, name: &str| format!("/tombolo/v1/r/r-a/{kind}/_/{name}");
    let values = BTreeMap::from([
        (key("namespace", "one"), newer.clone()),
        (key("namespace", "for-newer"), for_newer),
        (key("namespace", "cut"), newer.slice(..newer.len() - 1)),
    ]);
    let mut ops: Vec<Op> = values.iter().map(|(key, value)| Op::put(key, value.clone())).collect();
    ops.push(Op::put(key("gadget", "x"), newer));
    store.commit(Txn { guards: Vec::new(), ops }).await.unwrap();
    values
}

#[tokio::test]
async fn a_mirror_stores_what_a_newer_version_wrote_byte_for_byte_and_stays_in_step() {
    let (theirs, their_replicas, _following) = region_with_a_cluster(&["one"]).await;
    let written = write_of_level_3(&theirs).await;
    let seen = |replica: &replica::Replica| {
        let kept = replica.owners().map(|(_, holding)| holding.quarantined()).sum::<usize>();
        kept == 2
    };
    timeout(LONG, their_replicas.clone().wait_for(seen)).await.expect("in time").unwrap();
    // Digests every half second.
    let limits = Limits { silence: Duration::from_secs(1), ..Limits::default() };
    let caller = Caller::ControlPlane { region: "s".parse().unwrap() };
    let peer = Region::start_limited(&theirs, &their_replicas, caller, limits).await;

    let ours = store().await;
    let key = facts::election_key();
    let led = ours.commit(Txn { guards: Vec::new(), ops: vec![Op::put(&key, "me")] }).await;
    let Commit::Done(led) = led.unwrap() else { panic!("no guard") };
    let (writer, mut replicas) = replica::channel();
    let mut tasks = JoinSet::new();
    let follow =
        follower::follow(Arc::clone(&ours), Arc::new(writer), None, watch::Sender::default());
    tasks.spawn(async move { follow.await.unwrap() });
    let fence = Guard::CreateRevision(key, led);
    let leader = Leader::new(Arc::clone(&ours), fence, replicas.clone());
    let (link, mut linked) = watch::channel(Link::default());
    tasks.spawn(async move {
        mirror(leader, "r".parse().unwrap(), peer.channel(), link, None).await;
    });
    timeout(LONG, linked.wait_for(|link| link.synced)).await.unwrap().unwrap();
    timeout(LONG, replicas.wait_for(seen)).await.expect("in time").unwrap();
    for (key, value) in &written {
        let stored = store::read(&*ours, key).await.unwrap().unwrap();
        assert_eq!(stored.value, *value, "{key}");
    }
    // A few digests on, nothing was asked for again.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let link = linked.borrow().clone();
    assert_eq!(
        (link.synced, link.mismatches, &link.strays),
        (true, 0, &Strays::default()),
        "{link:?}"
    );
}
