//! What a mirror costs its own store.

use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;

use super::*;
use crate::store::{LeaseId, Page, Range, Revision, StoreError, Watch};
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
