//! Asks between the replica that left them and the leader: said, taken back, or not known.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;

use async_trait::async_trait;

use super::*;
use crate::store::{Commit, Guard, KeyValue, LeaseId, Page, Range, Revision, StoreError, Watch};

#[tokio::test(start_paused = true)]
async fn without_a_leader_the_ask_is_taken_back_and_the_operator_told() {
    let bench = Bench::on(&store().await, Duration::from_mins(2));
    bench.joins("us/us-a", "uid", &[]).await;
    let error = bench.leaves(Leaver::Cluster(cluster("us-a"))).await.unwrap_err().to_string();
    assert!(error.contains("the region has no leader") && error.contains("taken back"), "{error}");
    assert_eq!(bench.stored("/ask/").await, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn without_the_store_the_operator_is_told_that_it_may_happen_yet() {
    let embedded = Arc::new(Embedded::in_memory().await.unwrap());
    let store: Arc<dyn Store> = Arc::<Embedded>::clone(&embedded);
    let bench = Bench::on(&store, Duration::from_mins(2));
    bench.joins("us/us-a", "uid", &[]).await;
    embedded.close().await;
    let error = bench.leaves(Leaver::Cluster(cluster("us-a"))).await.unwrap_err();
    assert!(matches!(error, AskError::Store { .. }), "{error}");
    assert!(error.to_string().contains("may happen yet"), "{error}");
}

#[tokio::test]
async fn an_ask_of_a_replica_that_died_is_dropped_once_it_is_old() {
    let bench = leading().await;
    bench.joins("us/us-a", "uid", &[]).await;
    let what = Decided::Leave { owner: owner("us/us-a"), incarnation: "uid".into() };
    let at = now() - jiff::SignedDuration::from_mins(16);
    let decision = Decision { by: "uid 0".into(), at, note: String::new(), what };
    let ask = facts::Ask { decision, withdraw: false };
    bench.commit(vec![facts::ask_op("old", &ask), Op::put(facts::ask_key("bad"), "\u{7f}")]).await;
    bench.is_gone("/ask/").await;
    assert!(decisions::held(&bench.replicas.peek()).next().is_none());
    assert!(!bench.stored("/us-a").await.is_empty());
}

/// What a store does when it is told to create an ask.
#[derive(Debug)]
enum Does {
    /// It does it, and these after it.
    Then(Vec<Op>),
    /// It does it, and the answer is lost.
    Unheard,
    /// It does it, and the answer never comes.
    Hangs,
    /// Nothing.
    Away,
    Refuses,
}

/// A store that does `script` with its next asks, and then what it is told.
#[derive(Debug)]
struct Odd {
    inner: Arc<dyn Store>,
    script: Mutex<VecDeque<Does>>,
}

#[async_trait]
impl Store for Odd {
    async fn range(&self, range: Range) -> Result<Page, StoreError> {
        self.inner.range(range).await
    }

    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError> {
        let asks = |op: &Op| matches!(op, Op::Put { key, .. } if key.contains("/ask/"));
        let asked = txn.ops.iter().any(asks);
        let does = asked.then(|| self.script.lock().unwrap().pop_front()).flatten();
        let away = || Err(StoreError::Unavailable("on purpose".to_owned()));
        match does {
            None => self.inner.commit(txn).await,
            Some(Does::Then(ops)) => {
                let done = self.inner.commit(txn).await?;
                self.inner.commit(Txn { guards: Vec::new(), ops }).await?;
                Ok(done)
            }
            Some(Does::Unheard) => self.inner.commit(txn).await.and_then(|_| away()),
            Some(Does::Hangs) => {
                self.inner.commit(txn).await?;
                std::future::pending().await
            }
            Some(Does::Away) => away(),
            Some(Does::Refuses) => Err(StoreError::Refused("on purpose".to_owned())),
        }
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        self.inner.watch(prefix, from).await
    }

    async fn compact(&self, oldest: Revision) -> Result<(), StoreError> {
        self.inner.compact(oldest).await
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.inner.grant_lease(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.keep_alive(lease).await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.revoke_lease(lease).await
    }
}

fn leave_of_us_a() -> Decision {
    let what = Decided::Leave { owner: owner("us/us-a"), incarnation: "uid".into() };
    Decision { by: "uid 0".into(), at: now(), note: "why".into(), what }
}

/// As the leader writes it.
fn said(decision: &Decision) -> Op {
    let mut own = OwnRecords::new(Owner::region(us()), Epoch { id: "us".into(), count: 1 });
    let key = decisions::key(&us(), &decision.what);
    let (key, value) = own.say(&key, &Arc::new(Body::Decision(decision.clone())));
    Op::put(key.to_string(), value.unwrap())
}

/// The outcome of a leave, in a region without a leader, whose store does `script`, and how many
/// asks are there after it. The replica that is asked does not follow the store any more.
async fn outcome(script: impl IntoIterator<Item = Does>) -> (String, usize) {
    let bench = Bench::on(&store().await, Duration::from_mins(2));
    bench.joins("us/us-a", "uid", &[]).await;
    let (writer, replicas) = replica::channel();
    let held = bench.replicas.peek();
    let records = held.owners().flat_map(|(_, holding)| holding.records());
    let items = records.map(|(key, entry)| (key.clone(), Some(entry.value.clone()))).collect();
    let position = Some(held.position);
    writer.apply(Batch { position, items, ..Batch::default() }, Instant::now());
    let script = Mutex::new(script.into_iter().collect());
    let odd = Arc::new(Odd { inner: Arc::clone(&bench.store), script });
    let asking = Asking { store: odd, replicas, ..bench.asking.clone() };
    let leaver = Leaver::Cluster(cluster("us-a"));
    let outcome = match asking.leave(&leaver, true, bench.word("id")).await {
        Ok(answer) => format!("done by {}", answer.decision.by),
        Err(error) => error.to_string(),
    };
    let asks = bench.stored("/ask/").await.len();
    (outcome, asks)
}

#[track_caller]
fn assert_says((outcome, asks): (String, usize), words: &[&str]) {
    for word in words {
        assert!(outcome.contains(word), "{word:?} is missing: {outcome}");
    }
    assert_eq!(asks, 0, "{outcome}");
}

#[tokio::test(start_paused = true)]
async fn what_was_said_meanwhile_is_no_failure_and_not_taken_back() {
    let there = vec![said(&leave_of_us_a()), Op::delete(facts::ask_key("id"))];
    assert_says(outcome([Does::Then(there)]).await, &["done by uid 0"]);
    let dropped = vec![Op::delete(facts::ask_key("id"))];
    assert_says(outcome([Does::Then(dropped)]).await, &["nobody has said it", "dropped it"]);
}

#[tokio::test(start_paused = true)]
async fn an_ask_of_which_nothing_was_heard_is_found_and_taken_back() {
    assert_says(outcome([Does::Unheard]).await, &["has no leader", "it is taken back"]);
    assert_says(outcome([Does::Hangs]).await, &["did not take it", "it is taken back"]);
}

#[tokio::test(start_paused = true)]
async fn what_may_still_happen_is_said_to() {
    let away = || std::iter::repeat_with(|| Does::Away).take(1000);
    assert_says(outcome(away()).await, &["did not take it", "may happen yet"]);
    // Another attempt of which nothing was heard may come after the one that is taken back.
    let twice = [Does::Away, Does::Hangs];
    assert_says(outcome(twice).await, &["did not take it", "may happen yet"]);
    assert_says(outcome([Does::Refuses]).await, &["did not take it", "nothing was decided"]);
}

#[tokio::test(start_paused = true)]
async fn whoever_withdraws_says_so_in_their_own_name() {
    let bench = Bench::on(&store().await, Duration::from_mins(2));
    let decision = Decision { by: "uid 7".into(), ..leave_of_us_a() };
    bench.commit(vec![said(&decision)]).await;
    let key = decisions::key(&us(), &decision.what);
    bench.sees("the decision", |replica| replica.get(&key).is_some()).await;
    let mut asks = bench.asks.clone();
    let asked = asks.wait_for(|asks| asks.as_ref().is_some_and(|asks| !asks.is_empty()));
    let leaver = Leaver::Cluster(cluster("us-a"));
    let withdrawn = bench.asking.withdraw(&leaver, bench.word("id"));
    let ask = tokio::select! {
        biased;
        asked = asked => facts::ask(asked.unwrap().as_ref().unwrap().values().next().unwrap()),
        withdrawn = withdrawn => panic!("{withdrawn:?}"),
    };
    let ask = ask.unwrap();
    assert!(ask.withdraw && ask.decision.what == decision.what);
    assert_eq!((&*ask.decision.by, &*ask.decision.note), ("uid 0", "why"));
}

#[tokio::test]
async fn an_ask_that_was_taken_back_is_not_said_by_who_still_sees_it() {
    let mut bench = Bench::on(&store().await, Duration::from_mins(2));
    let what = Decided::Leave { owner: owner("us/us-a"), incarnation: "before".into() };
    let ask = facts::Ask { decision: Decision { what, ..leave_of_us_a() }, withdraw: false };
    let Op::Put { key, value, .. } = facts::ask_op("gone", &ask) else { panic!("a put") };
    let seen = Arc::new(BTreeMap::from([(key, value)]));
    let (asks, follow) = watch::channel(Some(seen));
    bench.asks = follow;
    bench.lead().await;
    bench.sees("the region", |replica| settings::held(replica, &us()).is_some()).await;
    // The ones that stand are said after it.
    let other = Decision { by: "uid 9".into(), ..leave_of_us_a() };
    let op = facts::ask_op("there", &facts::Ask { decision: other, withdraw: false });
    let Op::Put { key, value, .. } = op.clone() else { panic!("a put") };
    bench.commit(vec![op]).await;
    asks.send_modify(|asks| {
        let mut both = (**asks.as_ref().unwrap()).clone();
        both.insert(key, value);
        *asks = Some(Arc::new(both));
    });
    let by = |replica: &Replica| {
        decisions::held(replica).map(|told| told.decision.by.clone()).collect::<Vec<_>>()
    };
    bench.sees("the one that stands", |replica| by(replica) == ["uid 9"]).await;
}

#[tokio::test]
async fn a_leader_says_only_what_is_still_asked_for() {
    let store = store().await;
    let (_, replicas) = replica::channel();
    // An election key that was never made: it does not exist, so the fence holds.
    let fence = Guard::CreateRevision("/never".into(), 0);
    let leader = Leader::new(Arc::clone(&store), fence, replicas);
    let key = facts::ask_key("id");
    let there = async || {
        let done = store.commit(Txn { guards: vec![], ops: vec![Op::put(&key, "ask")] }).await;
        assert!(done.unwrap().is_done());
        store::read(&*store, &key).await.unwrap().unwrap()
    };
    let says = async |found: KeyValue| {
        let record = Key::of_owner(owner("us/_"), Kind::Region);
        let items = vec![(record, Some("v".into()))];
        let batch = Batch { items, ..Batch::default() };
        let done = leader.commit_if_there(&found, batch, Op::delete(&key)).await;
        (done, store::list(&*store, "/tombolo/").await.unwrap().0.len())
    };
    let before = there().await;
    let again = there().await;
    assert!(matches!(says(before).await, (Ok(false), 1)));
    assert!(matches!(says(again).await, (Ok(true), 1)), "the ask has become the record");
    let ops = vec![Op::put("/never", "another leads")];
    assert!(store.commit(Txn { guards: vec![], ops }).await.unwrap().is_done());
    let third = there().await;
    assert!(matches!(says(third).await, (Err(LeaderError::NotLeader), 2)));
}
