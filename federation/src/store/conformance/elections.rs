//! Elections on any store. Time is the caller's: paused, or short and real.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::store::election::{Leadership, campaign, leader};
use crate::store::{
    Commit, Guard, LeaseId, Op, Page, Range, Revision, Store, StoreError, Txn, Watch, read,
};

/// How long things take.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Of the leases.
    pub ttl: Duration,
    /// How long it is watched that nothing changes; longer than `ttl`.
    pub hold: Duration,
    /// How much later than its time a lease may end and be noticed.
    pub late: Duration,
}

/// Runs every case on a store of its own.
pub async fn all<F, Made>(pace: Pace, factory: F)
where
    F: Fn() -> Made,
    Made: Future<Output = Arc<dyn Store>>,
{
    of_many_candidates_one_leads(factory().await, pace).await;
    a_leader_that_is_cut_off_is_followed_and_fenced(factory().await, pace).await;
    lost_before_another_can_lead(factory().await, pace).await;
    dropping_resigns(factory().await, pace).await;
    a_deleted_key_ends_leadership(factory().await, pace).await;
    a_campaign_outlasts_an_absent_store(factory().await, pace).await;
}

const KEY: &str = "/tombolo/local/v1/leader";
/// Ten times what anything here may take.
const LONG: Duration = Duration::from_secs(90);

async fn lead(store: &Arc<dyn Store>, id: &str, ttl: Duration) -> Leadership {
    let campaign = campaign(Arc::clone(store), KEY, id, ttl);
    timeout(LONG, campaign).await.expect("in time").expect("leads")
}

async fn write(store: &dyn Store, fence: Guard, value: &'static str) -> Commit {
    let ops = vec![Op::put("/data", value)];
    store.commit(Txn { guards: vec![fence], ops }).await.expect("is answered")
}

/// A store that can be cut off.
#[derive(Debug)]
struct Cut {
    store: Arc<dyn Store>,
    off: AtomicBool,
}

impl Cut {
    fn new(store: &Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self { store: Arc::clone(store), off: AtomicBool::new(false) })
    }

    fn reach(&self) -> Result<&dyn Store, StoreError> {
        if self.off.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("cut off".to_owned()));
        }
        Ok(&*self.store)
    }
}

#[async_trait]
impl Store for Cut {
    async fn range(&self, range: Range) -> Result<Page, StoreError> {
        self.reach()?.range(range).await
    }
    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError> {
        self.reach()?.commit(txn).await
    }
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        self.reach()?.watch(prefix, from).await
    }
    async fn compact(&self, oldest: Revision) -> Result<(), StoreError> {
        self.reach()?.compact(oldest).await
    }
    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.reach()?.grant_lease(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        if self.off.load(Ordering::SeqCst) {
            // As a packet into nowhere.
            std::future::pending::<()>().await;
        }
        self.reach()?.keep_alive(lease).await
    }
    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.reach()?.revoke_lease(lease).await
    }
}

/// And keeps leading; the next one leads when it resigns.
pub async fn of_many_candidates_one_leads(store: Arc<dyn Store>, pace: Pace) {
    let ttl = pace.ttl;
    let mut candidates = JoinSet::new();
    for n in 0..5 {
        let store = Arc::clone(&store);
        candidates.spawn(async move { campaign(store, KEY, &format!("c{n}"), ttl).await });
    }
    let mut fences = Vec::new();
    for _ in 0..5 {
        let won = timeout(LONG, candidates.join_next()).await.expect("in time");
        let leadership = won.expect("one is left").expect("no panic").expect("leads");
        // Far longer than the lease: signs of life keep it.
        let waited = timeout(pace.hold, candidates.join_next()).await;
        assert!(matches!(waited, Err(_) | Ok(None)), "another one leads too");
        assert!(!leadership.is_lost());
        assert!(write(&*store, leadership.fence(), "v").await.is_done());
        for old in &fences {
            assert_eq!(write(&*store, Guard::clone(old), "v").await, Commit::GuardFailed);
        }
        fences.push(leadership.fence());
        let asked = Instant::now();
        leadership.resign().await;
        assert!(asked.elapsed() < ttl / 2, "resigning does not wait for the lease");
    }
    assert_eq!(leader(&*store, KEY).await, Ok(None));
}

/// Whatever it still believes.
pub async fn a_leader_that_is_cut_off_is_followed_and_fenced(store: Arc<dyn Store>, pace: Pace) {
    let ttl = pace.ttl;
    let cut = Cut::new(&store);
    let reach: Arc<dyn Store> = Arc::clone(&cut) as _;
    let first = lead(&reach, "first", ttl).await;
    assert_eq!(leader(&*store, KEY).await, Ok(Some("first".to_owned())));
    assert!(write(&*reach, first.fence(), "first").await.is_done());

    cut.off.store(true, Ordering::SeqCst);
    let since = Instant::now();
    let second = lead(&store, "second", ttl).await;
    assert!(since.elapsed() <= ttl + pace.late, "after {:?}", since.elapsed());
    assert!(since.elapsed() >= ttl * 2 / 3, "the first is given its time");
    assert_eq!(leader(&*store, KEY).await, Ok(Some("second".to_owned())));
    timeout(ttl, first.lost()).await.expect("it knows by itself");
    assert!(first.is_lost());

    cut.off.store(false, Ordering::SeqCst);
    assert!(write(&*store, second.fence(), "second").await.is_done());
    assert_eq!(write(&*reach, first.fence(), "late").await, Commit::GuardFailed);
    let data = read(&*store, "/data").await.expect("reads").expect("is there");
    assert_eq!(data.value, "second");
    // Its late farewell does not take the other's key.
    first.resign().await;
    assert!(!second.is_lost());
    assert!(write(&*store, second.fence(), "second").await.is_done());
}

/// On its own clock.
pub async fn lost_before_another_can_lead(store: Arc<dyn Store>, pace: Pace) {
    let ttl = pace.ttl;
    let cut = Cut::new(&store);
    let reach: Arc<dyn Store> = Arc::clone(&cut) as _;
    let first = lead(&reach, "first", ttl).await;
    let lost = first.lost();
    let mut tasks = JoinSet::new();
    let other = Arc::clone(&store);
    tasks.spawn(async move { campaign(other, KEY, "second", ttl).await });
    cut.off.store(true, Ordering::SeqCst);
    timeout(LONG, lost).await.expect("in time");
    let early = tasks.try_join_next();
    assert!(early.is_none(), "the first must not believe in itself while a second leads");
    let second = timeout(LONG, tasks.join_next()).await.expect("in time");
    drop(second.expect("one").expect("no panic").expect("leads"));
}

/// Without waiting for the lease.
pub async fn dropping_resigns(store: Arc<dyn Store>, pace: Pace) {
    let ttl = pace.ttl;
    let first = lead(&store, "first", ttl).await;
    let lost = first.lost();
    let since = Instant::now();
    drop(first);
    timeout(LONG, lost).await.expect("at once");
    drop(lead(&store, "second", ttl).await);
    assert!(since.elapsed() < ttl / 2, "without waiting for the lease");
}

/// Whoever deleted it.
pub async fn a_deleted_key_ends_leadership(store: Arc<dyn Store>, pace: Pace) {
    let ttl = pace.ttl;
    let first = lead(&store, "first", ttl).await;
    let ops = vec![Op::delete(KEY)];
    store.commit(Txn { guards: vec![], ops }).await.expect("deletes");
    timeout(ttl / 2, first.lost()).await.expect("it looks with each sign of life");
    assert_eq!(write(&*store, first.fence(), "late").await, Commit::GuardFailed);
}

/// And is refused what waiting does not heal.
pub async fn a_campaign_outlasts_an_absent_store(store: Arc<dyn Store>, pace: Pace) {
    let ttl = pace.ttl;
    let cut = Cut::new(&store);
    let reach: Arc<dyn Store> = Arc::clone(&cut) as _;
    cut.off.store(true, Ordering::SeqCst);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { campaign(reach, KEY, "patient", ttl).await });
    let early = timeout(pace.hold, tasks.join_next()).await;
    assert!(early.is_err(), "it waits: {early:?}");
    cut.off.store(false, Ordering::SeqCst);
    let won = timeout(LONG, tasks.join_next()).await.expect("in time").expect("one");
    drop(won.expect("no panic").expect("leads"));
    let refused = campaign(Arc::clone(&store), KEY, "no time", Duration::ZERO).await;
    assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    let endless = campaign(Arc::clone(&store), KEY, "all time", Duration::MAX);
    let endless = timeout(LONG, endless).await.expect("in time").expect("leads");
    assert!(write(&*store, endless.fence(), "v").await.is_done());
}
