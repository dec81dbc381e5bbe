//! What a mirror costs its own store.

use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use futures::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

use super::*;
use crate::proto::federation::federation_server::{Federation, FederationServer};
use crate::store::{LeaseId, Page, Range, Revision, StoreError, Watch};
use crate::sync::intake::Reason;
use crate::sync::mirror::mirror_at;
use crate::sync::service::Rate;
use crate::sync::transport::Dial;

/// Counts reads.
#[derive(Debug)]
struct Counted {
    store: Arc<dyn Store>,
    reads: AtomicUsize,
}

#[async_trait]
impl Store for Counted {
    async fn range(&self, range: Range) -> Result<Page, StoreError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.store.range(range).await
    }

    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError> {
        self.store.commit(txn).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        self.store.watch(prefix, from).await
    }

    async fn compact(&self, oldest: Revision) -> Result<(), StoreError> {
        self.store.compact(oldest).await
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.store.grant_lease(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.keep_alive(lease).await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.revoke_lease(lease).await
    }
}

/// Leads to whoever is at home, and says how often it was asked.
#[derive(Clone)]
struct Ways {
    to: watch::Receiver<Channel>,
    dials: watch::Sender<usize>,
}

impl Dial for Ways {
    type Transport = Channel;

    fn dial(&self) -> Channel {
        self.dials.send_modify(|dials| *dials += 1);
        self.to.borrow().clone()
    }
}

#[tokio::test]
async fn a_peer_that_is_down_is_dialled_and_the_store_is_not_read_for_it() {
    let (theirs, their_replicas, _following) = region_with_a_cluster(&["one"]).await;
    let nobody = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = nobody.local_addr().unwrap().port();
    drop(nobody);
    let nowhere = Endpoint::try_from(format!("http://127.0.0.1:{port}")).unwrap().connect_lazy();

    let ours = Arc::new(Counted { store: store().await, reads: AtomicUsize::new(0) });
    let key = facts::election_key();
    let led = ours.commit(Txn { guards: Vec::new(), ops: vec![Op::put(&key, "me")] }).await;
    let Commit::Done(led) = led.unwrap() else { panic!("no guard") };
    let (fence, nobody) = (Guard::CreateRevision(key, led), replica::channel().1);
    let leader = Leader::new(Arc::<Counted>::clone(&ours), fence, nobody);
    let (to, to_rx) = watch::channel(nowhere);
    let (dials, mut dialled) = watch::channel(0);
    let (link, mut linked) = watch::channel(Link::default());
    let mut tasks = JoinSet::new();
    let way = Ways { to: to_rx, dials };
    tasks.spawn(async move {
        mirror(leader, "r".parse().unwrap(), way, link, None).await;
    });
    timeout(LONG, dialled.wait_for(|dials| *dials >= 2)).await.expect("in time").unwrap();
    let reads = ours.reads.load(Ordering::Relaxed);
    timeout(LONG, dialled.wait_for(|dials| *dials >= 5)).await.expect("in time").unwrap();
    assert_eq!(ours.reads.load(Ordering::Relaxed), reads);

    let caller = Caller::ControlPlane { region: "s".parse().unwrap() };
    let peer = Region::start(0, &theirs, &their_replicas, Some(caller)).await;
    to.send_replace(peer.channel());
    timeout(LONG, linked.wait_for(|link| link.synced)).await.expect("in time").unwrap();
    let one = store::read(&*ours, "/tombolo/v1/r/r-a/namespace/_/one").await.unwrap();
    assert!(one.is_some());

    // Somebody else has written what the mirror counts on: that is found, and read.
    peer.stop().await;
    timeout(LONG, linked.wait_for(|link| !link.synced)).await.expect("in time").unwrap();
    let ops = vec![
        Op::delete(facts::resume_key(&"r".parse().unwrap())),
        Op::delete("/tombolo/v1/r/r-a/namespace/_/one"),
    ];
    ours.commit(Txn { guards: Vec::new(), ops }).await.unwrap();
    let caller = Caller::ControlPlane { region: "s".parse().unwrap() };
    let peer = Region::start(0, &theirs, &their_replicas, Some(caller)).await;
    to.send_replace(peer.channel());
    timeout(LONG, linked.wait_for(|link| link.synced)).await.expect("in time").unwrap();
    let one = store::read(&*ours, "/tombolo/v1/r/r-a/namespace/_/one").await.unwrap();
    assert!(one.is_some(), "read anew, so that what lacks was asked for");
    drop(tasks);
    peer.stop().await;
}

/// Mirrors region r, and says how it goes.
pub(super) async fn mirroring(
    ours: &Arc<dyn Store>,
    changes: Rate,
    peer: &Region,
) -> (JoinSet<()>, watch::Receiver<Link>) {
    let key = facts::election_key();
    let led = ours.commit(Txn { guards: Vec::new(), ops: vec![Op::put(&key, "me")] }).await;
    let Commit::Done(led) = led.unwrap() else { panic!("no guard") };
    let (fence, nobody) = (Guard::CreateRevision(key, led), replica::channel().1);
    let leader = Leader::new(Arc::clone(ours), fence, nobody);
    let (link, linked) = watch::channel(Link::default());
    let mut tasks = JoinSet::new();
    let channel = peer.channel();
    tasks.spawn(async move {
        mirror_at(changes, leader, "r".parse().unwrap(), channel, link, None).await;
    });
    (tasks, linked)
}

/// Its owner says `name` with as many bytes, as its region writes it.
fn says(own: &mut OwnRecords, writer: &ReplicaWriter, position: u64, bytes: usize) {
    let key: Key = "/tombolo/v1/r/r-a/namespace/_/large".parse().unwrap();
    let labels = [("l".to_owned(), "v".repeat(bytes))].into();
    let body = Body::Namespace(Namespace { labels, annotations: BTreeMap::new() });
    let items = vec![own.say(&key, &Arc::new(body))];
    let batch = Batch { position: Some(position), items, ..Batch::default() };
    writer.apply(batch, Instant::now());
}

/// The store keeps every version for an hour.
#[tokio::test]
async fn a_peer_that_rewrites_its_records_without_end_is_read_more_slowly_and_loses_nothing() {
    let (writer, replicas) = replica::channel();
    heard(&writer, 1);
    let mut own = OwnRecords::new("r/r-a".parse().unwrap(), Epoch { id: "e".into(), count: 1 });
    says(&mut own, &writer, 2, 100 << 10);
    let caller = Caller::ControlPlane { region: "s".parse().unwrap() };
    let peer = Region::start(0, &store().await, &replicas, Some(caller)).await;
    let ours = store().await;
    let rate = Rate { per_second: 200 << 10, burst: 250 << 10 };
    let (tasks, mut linked) = mirroring(&ours, rate, &peer).await;
    let since = Instant::now();
    timeout(LONG, linked.wait_for(|link| link.synced)).await.expect("in time").unwrap();

    // 150 KiB are left, and then it takes half a second for each.
    let key = "/tombolo/v1/r/r-a/namespace/_/large";
    let size = |n: u64| usize::try_from(n).unwrap() + (100 << 10);
    let mut versions = BTreeSet::new();
    for n in 1..=20 {
        says(&mut own, &writer, 2 + n, size(n));
        tokio::time::sleep(Duration::from_millis(20)).await;
        versions.extend(store::read(&*ours, key).await.unwrap().map(|entry| entry.mod_revision));
    }
    let most = 5 + 2 * since.elapsed().as_secs();
    assert!(versions.len() as u64 <= most, "{} in {:?}", versions.len(), since.elapsed());
    let newest = async {
        loop {
            let entry = store::read(&*ours, key).await.unwrap();
            if entry.is_some_and(|entry| entry.value.len() > size(20)) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, newest).await.expect("the newest comes in the end");
    assert!(linked.borrow().synced);
    drop(tasks);
    peer.stop().await;
}

/// A peer that sends what it is told to.
struct Scripted {
    script: Mutex<Option<mpsc::Receiver<wire::SubscribeResponse>>>,
}

type Answers<T> = Pin<Box<dyn futures::Stream<Item = Result<T, Status>> + Send>>;

#[async_trait]
impl Federation for Scripted {
    type PublishStream = Answers<wire::PublishResponse>;
    type SubscribeStream = Answers<wire::SubscribeResponse>;
    type RecoverStream = Answers<wire::SubscribeResponse>;

    async fn publish(
        &self,
        _: Request<Streaming<wire::PublishRequest>>,
    ) -> Result<Response<Self::PublishStream>, Status> {
        Err(Status::unimplemented("not told to"))
    }

    async fn subscribe(
        &self,
        _: Request<wire::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let script = self.script.lock().unwrap().take();
        let script = script.ok_or_else(|| Status::unavailable("the script is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(script).map(Ok))))
    }

    async fn recover(
        &self,
        _: Request<wire::RecoverRequest>,
    ) -> Result<Response<Self::RecoverStream>, Status> {
        Err(Status::unimplemented("not told to"))
    }
}

impl Scripted {
    async fn start() -> (Region, mpsc::Sender<wire::SubscribeResponse>) {
        let (say, script) = mpsc::channel(8);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let service = FederationServer::new(Self { script: Mutex::new(Some(script)) });
        let stop = CancellationToken::new();
        let ended = stop.clone().cancelled_owned();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            let server = Server::builder().add_service(service);
            server.serve_with_incoming_shutdown(incoming, ended).await.unwrap();
        });
        (Region { tasks, stop, port }, say)
    }
}

fn said(message: Message) -> wire::SubscribeResponse {
    wire::SubscribeResponse { message: Some(message) }
}

#[tokio::test]
async fn what_a_peer_may_not_send_is_shown_with_its_reason_while_the_stream_is_up() {
    let (peer, say) = Scripted::start().await;
    let ours = store().await;
    let rate = Rate { per_second: 1 << 20, burst: 1 << 20 };
    let (tasks, mut linked) = mirroring(&ours, rate, &peer).await;
    let mut own = OwnRecords::new("r/r-a".parse().unwrap(), Epoch { id: "e".into(), count: 1 });
    let key: Key = "/tombolo/v1/r/r-a/namespace/_/one".parse().unwrap();
    let mut labelled = |value: &str| {
        let labels = [("l".to_owned(), value.to_owned())].into();
        let body = Body::Namespace(Namespace { labels, annotations: BTreeMap::new() });
        own.say(&key, &Arc::new(body)).1
    };
    let (older, newer) = (labelled("older"), labelled("newer"));
    let start = wire::Start { owner: "r/r-a".into(), ..wire::Start::default() };
    say.send(said(Message::Start(start))).await.unwrap();
    say.send(said(Message::Synced(wire::Synced { position: 1 }))).await.unwrap();
    let item = |key: &str, value: Option<Bytes>| wire::Item {
        key: key.to_owned(),
        value,
        ..wire::Item::default()
    };
    let sends =
        |position, items| said(Message::Batch(wire::Batch { position, items, more: false }));
    let good = item(&key.to_string(), newer);
    say.send(sends(2, vec![good])).await.unwrap();
    let large = "/tombolo/v1/r/r-a/namespace/_/large";
    let cases = [
        (Reason::Owner, "/tombolo/v1/s/s-a/namespace/_/x", Bytes::new(), "belongs to s/s-a"),
        (Reason::Size, large, vec![0; 1_000_000].into(), "more than the 950272"),
        (Reason::Kind, "/tombolo/v1/r/r-a/gadget/_/x", Bytes::new(), "is no kind of record"),
        (Reason::Key, "nothing of the kind", Bytes::new(), "does not begin with"),
    ];
    for (reason, key, value, why) in cases {
        say.send(sends(3, vec![item(key, Some(value))])).await.unwrap();
        let shown = linked.wait_for(|link| link.strays.left_out.contains_key(&reason));
        let link = timeout(LONG, shown).await.expect("in time").unwrap().clone();
        assert_eq!((link.strays.left_out[&reason], link.synced), (1, true));
        let last = link.strays.last_left_out.unwrap();
        assert!(last.contains(key) && last.contains(why), "{last}");
    }
    say.send(sends(4, vec![item(&key.to_string(), older)])).await.unwrap();
    let shown = linked.wait_for(|link| link.strays.went_back > 0);
    let link = timeout(LONG, shown).await.expect("in time").unwrap().clone();
    assert_eq!(link.strays.last_went_back, Some(key.to_string()));
    assert!(link.synced);
    drop(tasks);
    peer.stop().await;
}
