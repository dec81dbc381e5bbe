use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use super::*;
use crate::key::Key;
use crate::record::{Body, Epoch, Namespace, Newest, Origin, Record};
use crate::store::embedded::Embedded;
use crate::store::{
    Commit, LeaseId, Page, Range, Revision, Store, StoreError, Watch as StoreWatch,
};

/// A store whose operation number `fails` fails, as a member that is restarted does it: before it
/// has done anything, or after.
#[derive(Debug)]
struct Hiccup {
    store: Embedded,
    fails: usize,
    afterwards: bool,
    asked: AtomicUsize,
}

impl Hiccup {
    fn now(&self) -> Result<(), StoreError> {
        if self.asked.fetch_add(1, Ordering::SeqCst) == self.fails {
            return Err(StoreError::Unavailable("its leader changed".to_owned()));
        }
        Ok(())
    }
}

#[async_trait]
impl Store for Hiccup {
    async fn range(&self, range: Range) -> Result<Page, StoreError> {
        self.now()?;
        self.store.range(range).await
    }
    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError> {
        if !self.afterwards {
            self.now()?;
            return self.store.commit(txn).await;
        }
        let done = self.store.commit(txn).await;
        self.now()?;
        done
    }
    async fn watch(&self, prefix: &str, from: Revision) -> Result<StoreWatch, StoreError> {
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

fn epoch() -> Epoch {
    Epoch { id: "e".into(), count: 1 }
}

fn said_by(owner: &Owner, name: &str) -> (Key, Option<Bytes>) {
    let key = Key::of_namespace(owner.clone(), &name.parse().unwrap());
    let origin = Origin { epoch: epoch(), sequence: 1, ..Origin::default() };
    let record = Record { key, origin, body: Body::Namespace(Namespace::default()) };
    (record.key.clone(), Some(record.seal().value))
}

/// Two clusters, the second with more than one transaction takes.
fn given_back() -> Batch {
    let (a, b): (Owner, Owner) = ("r/r-a".parse().unwrap(), "r/r-b".parse().unwrap());
    let many = (0..300).map(|n| said_by(&b, &format!("n{n}")));
    let newest = Newest { epoch: epoch(), sequence: 1 };
    Batch {
        items: std::iter::once(said_by(&a, "shop")).chain(many).collect(),
        complete: vec![
            (a.clone(), Kind::Namespace, epoch()),
            (b.clone(), Kind::Namespace, epoch()),
        ],
        newest: vec![(a, newest.clone()), (b, newest)],
        ..Batch::default()
    }
}

/// Recovers over a store that fails once, and says what it has then, and whether it did fail.
async fn recovered(fails: usize, afterwards: bool) -> (Vec<String>, bool) {
    let store = Embedded::in_memory().await.unwrap();
    let election = vec![Op::put(facts::election_key(), "me")];
    store.commit(Txn { guards: vec![], ops: election }).await.unwrap();
    let leading = store::read(&store, &facts::election_key()).await.unwrap().unwrap();
    let hiccup = Arc::new(Hiccup { store, fails, afterwards, asked: AtomicUsize::new(0) });
    let leader = Leader {
        store: Arc::<Hiccup>::clone(&hiccup),
        fence: Guard::CreateRevision(facts::election_key(), leading.create_revision),
        replicas: replica::channel().1,
    };
    write(&leader, &"eu".parse().unwrap(), given_back()).await.expect("a store that is well again");
    let (entries, _) = store::list(&hiccup.store, "/tombolo/").await.unwrap();
    let keys = entries.into_iter().map(|entry| entry.key).collect();
    (keys, hiccup.asked.load(Ordering::SeqCst) > fails)
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_once_at_any_moment_ends_no_recovery() {
    let (all, failed) = recovered(usize::MAX, false).await;
    assert!(all.len() > 301 && !failed, "{all:?}");
    for afterwards in [false, true] {
        let mut moments = 0;
        loop {
            let (keys, failed) = recovered(moments, afterwards).await;
            assert_eq!(keys, all, "operation {moments} failed, afterwards: {afterwards}");
            if !failed {
                break;
            }
            moments += 1;
        }
        assert!(moments >= 7, "{moments} operations: two questions per owner, and four commits");
    }
}

#[tokio::test(start_paused = true)]
async fn what_does_not_pass_is_not_tried_again() {
    let attempts = AtomicUsize::new(0);
    let fails = |error: fn() -> LeaderError| {
        let attempts = &attempts;
        move || async move {
            attempts.fetch_add(1, Ordering::SeqCst);
            Err::<(), _>(error())
        }
    };
    let damaged = || LeaderError::Store(StoreError::Damaged("a page".to_owned()));
    let ended = persist("writing", fails(damaged)).await;
    assert!(matches!(ended, Err(LeaderError::Store(StoreError::Damaged(_)))), "{ended:?}");
    let ended = persist("writing", fails(|| LeaderError::NotLeader)).await;
    assert!(matches!(ended, Err(LeaderError::NotLeader)), "{ended:?}");
    assert_eq!(attempts.load(Ordering::SeqCst), 2);
}
