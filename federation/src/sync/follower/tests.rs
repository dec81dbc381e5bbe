mod restored;

use bytes::Bytes;

use super::state::State;
use super::*;
use crate::key::{Key, Kind};
use crate::names::Owner;
use crate::record::{
    Body, Cluster, Decided, Decision, Epoch, Namespace, Newest, Origin, Record, Region, Removal,
};
use crate::replica::{self, Batch, Removed};
use crate::store::embedded::Embedded;
use crate::store::{Op, Txn};
use crate::sync::facts;
use crate::sync::leader::{Leader, LeaderError};
use crate::sync::reseed::reseed;
use crate::sync::transactions::{Changes, transactions};

const LONG: Duration = Duration::from_secs(30);

fn owner() -> Owner {
    "r/r-a".parse().unwrap()
}

fn epoch() -> Epoch {
    Epoch { id: "e".into(), count: 1 }
}

fn key(name: &str) -> Key {
    format!("/tombolo/v1/r/r-a/namespace/_/{name}").parse().unwrap()
}

fn value(name: &str, sequence: u64) -> Bytes {
    let origin = Origin { epoch: epoch(), sequence, ..Origin::default() };
    let body = Body::Namespace(Namespace::default());
    Record { key: key(name), origin, body }.seal().value
}

fn put(name: &str, sequence: u64) -> (Key, Option<Bytes>) {
    (key(name), Some(value(name, sequence)))
}

fn changes(items: Vec<(Key, Option<Bytes>)>, sequence: u64) -> Changes {
    let gone = items.iter().filter(|(_, value)| value.is_none());
    let removed = Removed { removal: Removal::Explained, sequence, epoch: Some(epoch()) };
    let removed = gone.map(|(key, _)| (key.clone(), removed.clone())).collect();
    let newest = Some(Newest { epoch: epoch(), sequence });
    Changes { items, removed, newest, ..Changes::default() }
}

async fn commit(store: &dyn Store, changes: Changes) {
    for txn in transactions([(owner(), changes)].into(), None).unwrap() {
        assert!(store.commit(txn).await.unwrap().is_done());
    }
}

fn names(replica: &replica::Replica) -> Vec<String> {
    let holding = replica.holding(&owner());
    let records = holding.into_iter().flat_map(replica::Holding::records);
    records.map(|(key, _)| key.name.to_string()).collect()
}

/// A process: its replica survives the store.
struct Process {
    writer: Arc<ReplicaWriter>,
    following: watch::Sender<Following>,
    state: State,
}

impl Process {
    fn new() -> Self {
        let (writer, _) = replica::channel();
        Self {
            writer: Arc::new(writer),
            following: watch::Sender::default(),
            state: State::new(None),
        }
    }

    /// Follows until all that the store has is in the replica.
    async fn catch_up(&mut self, store: &Arc<Embedded>) {
        let state = std::mem::take(&mut self.state);
        let following = self.following.clone();
        let mut follower = Follower {
            store: Arc::<Embedded>::clone(store),
            writer: Arc::clone(&self.writer),
            state,
            following,
            from_disk: None,
        };
        let all = store::list(&**store, "/").await.unwrap().1;
        let marked = store::read(&**store, &facts::mark_key()).await.unwrap().is_some();
        // Of the history before, perhaps.
        self.following.send_modify(|following| following.resume = None);
        let (replicas, following) = (self.writer.subscribe(), self.following.subscribe());
        let caught_up = async {
            // The watch has gone over all since the mark, too: that is what it goes on from.
            let at = |point: &ResumePoint| point.revision == all;
            while replicas.peek().position != all
                || (marked && !following.borrow().resume.as_ref().is_some_and(at))
            {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let mut backoff = client::backoff();
        tokio::select! {
            ended = follower.once(&mut backoff) => panic!("{ended:?}"),
            () = caught_up => {}
        }
        self.state = follower.state;
    }

    fn names(&self) -> Vec<String> {
        names(&self.writer.current())
    }

    fn seen(&self) -> Following {
        self.following.borrow().clone()
    }
}

/// What all of them have in common is what was in the backup.
async fn store() -> Arc<Embedded> {
    let store = Arc::new(Embedded::in_memory().await.unwrap());
    mark(&*store, "drawn before the backup").await;
    store
}

async fn mark(store: &dyn Store, drawn: &str) {
    let ops = vec![facts::mark_op(drawn.to_owned())];
    store.commit(Txn { guards: vec![], ops }).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ended_goes_on_without_listing() {
    let store = store().await;
    commit(&*store, changes(vec![put("a", 1)], 1)).await;
    let mut process = Process::new();
    process.catch_up(&store).await;
    commit(&*store, changes(vec![put("b", 2)], 2)).await;
    process.catch_up(&store).await;
    commit(&*store, changes(vec![(key("a"), None)], 3)).await;
    process.catch_up(&store).await;
    assert_eq!(process.names(), ["b"]);
    assert_eq!((process.seen().listings, process.seen().other_histories), (1, 0));
    let removed = process.writer.current().removed(&key("a")).unwrap();
    let change = Newest { epoch: epoch(), sequence: 3 };
    assert_eq!((removed.removal, removed.change()), (Removal::Explained, Some(change)));
}

/// Who asks it for everything would be told of what was when it was saved.
#[tokio::test(start_paused = true)]
async fn what_comes_from_a_disk_says_of_no_time_before_it_has_caught_up() {
    let store = store().await;
    commit(&*store, changes(vec![put("a", 1)], 1)).await;
    let mut before = Process::new();
    before.catch_up(&store).await;
    let resume = before.seen().resume;
    for n in 2..9 {
        commit(&*store, changes(vec![put("b", n)], n)).await;
    }
    let (writer, mut replicas) = replica::channel();
    writer.apply(Batch { items: vec![put("a", 1)], ..Batch::default() }, Instant::now());
    let mut follower = Follower {
        store: Arc::<Embedded>::clone(&store),
        writer: Arc::new(writer),
        state: State::new(resume),
        following: watch::Sender::default(),
        from_disk: None,
    };
    let (watch, next) = follower.resumed().await.unwrap().expect("the store is the same");
    assert_eq!(replicas.peek().position, 0);
    let said = async {
        let said = replicas.wait_for(|replica| replica.position > 0).await.unwrap();
        let newest = said.get(&key("b")).and_then(|entry| entry.origin()).cloned();
        assert_eq!(newest.map(|newest| newest.sequence), Some(8));
        said.position
    };
    let position = tokio::select! {
        ended = follower.follow(watch, next) => panic!("{ended:?}"),
        position = said => position,
    };
    assert_eq!(position, store::list(&*store, "/").await.unwrap().1);
}

#[tokio::test(start_paused = true)]
async fn what_no_mark_proves_is_listed_again() {
    let store = Arc::new(Embedded::in_memory().await.unwrap());
    commit(&*store, changes(vec![put("a", 1)], 1)).await;
    let mut process = Process::new();
    process.catch_up(&store).await;
    commit(&*store, changes(vec![put("b", 2)], 2)).await;
    process.catch_up(&store).await;
    assert_eq!((process.seen().listings, process.seen().other_histories), (2, 0));
    let restored = Arc::new(Embedded::in_memory().await.unwrap());
    commit(&*restored, changes(vec![put("a", 1)], 1)).await;
    process.catch_up(&restored).await;
    assert_eq!((process.seen().listings, process.seen().other_histories), (3, 1));
    assert_eq!(process.names(), ["a", "b"]);
}

/// The store is restored to before the last words of an owner, and the very same commits of others
/// come again behind something else: they prove nothing, the mark does.
#[tokio::test(start_paused = true)]
async fn what_repeats_after_a_restore_hides_nothing() {
    let foreign = async |store: &dyn Store, times: usize| {
        for _ in 0..times {
            let ops = vec![Op::put("/somebody/else", "v")];
            store.commit(Txn { guards: vec![], ops }).await.unwrap();
        }
    };
    let same_again = async |store: &dyn Store| {
        for n in 0..40 {
            let ops = vec![Op::put("/tombolo/local/v1/x", n.to_string())];
            store.commit(Txn { guards: vec![], ops }).await.unwrap();
        }
    };
    for marked in [false, true] {
        let before = store().await;
        foreign(&*before, 3).await;
        commit(&*before, changes(vec![put("a", 1)], 1)).await;
        if marked {
            mark(&*before, "drawn after the backup").await;
        }
        same_again(&*before).await;
        foreign(&*before, 3).await;
        let mut process = Process::new();
        process.catch_up(&before).await;

        let restored = store().await;
        foreign(&*restored, 3).await;
        commit(&*restored, changes(vec![put("b", 1)], 1)).await;
        if marked {
            mark(&*restored, "drawn after the restore").await;
        }
        same_again(&*restored).await;
        foreign(&*restored, 5).await;
        process.catch_up(&restored).await;
        assert_eq!(process.seen().other_histories, 1, "{marked}");
        assert!(process.names().contains(&"b".to_owned()), "{marked}");
    }
}

#[tokio::test(start_paused = true)]
async fn history_that_is_gone_is_made_up_for_with_its_deletes() {
    let store = store().await;
    commit(&*store, changes(vec![put("a", 1), put("b", 1)], 1)).await;
    let mut process = Process::new();
    process.catch_up(&store).await;
    commit(&*store, changes(vec![(key("a"), None)], 2)).await;
    commit(&*store, changes(vec![put("c", 3)], 3)).await;
    let newest = store::list(&*store, "/").await.unwrap().1;
    store.compact(newest).await.unwrap();
    mark(&*store, "drawn after all of that").await;
    process.catch_up(&store).await;
    assert_eq!(process.names(), ["b", "c"]);
    assert!(process.seen().lost.owners.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_change_in_several_transactions_is_shown_at_once() {
    let store: Arc<Embedded> = store().await;
    let (writer, mut replicas) = replica::channel();
    let mut tasks = tokio::task::JoinSet::new();
    let following = watch::Sender::default();
    tasks.spawn(follow(Arc::<Embedded>::clone(&store), Arc::new(writer), None, following));
    commit(&*store, changes(vec![put("first", 1)], 1)).await;
    replicas.wait_for(|replica| names(replica).len() == 1).await.unwrap();

    let items: Vec<_> = (0..300).map(|n| put(&format!("n{n}"), 2)).collect();
    let txns = transactions([(owner(), changes(items, 2))].into(), None).unwrap();
    let count = txns.len();
    assert!(count > 2);
    let mut seen = vec![1];
    let other: Owner = "r/r-b".parse().unwrap();
    let before = replicas.peek().position;
    for (index, txn) in txns.into_iter().enumerate() {
        store.commit(txn).await.unwrap();
        // Another owner is seen meanwhile, and nobody goes on from a position after a part.
        let name = Key::of_namespace(other.clone(), &format!("n{index}").parse().unwrap());
        let ops = vec![Op::put(name.to_string(), value("x", 1))];
        store.commit(Txn { guards: Vec::new(), ops }).await.unwrap();
        let shown = replicas.wait_for(|replica| replica.get(&name).is_some()).await.unwrap();
        seen.push(names(&shown).len());
        let last = index + 1 == count;
        assert_eq!(names(&shown).len(), if last { 301 } else { 1 });
        assert_eq!(shown.position > before, last);
    }

    // A writer that dies in the middle holds nothing back for long.
    let items: Vec<_> = (0..300).map(|n| put(&format!("m{n}"), 3)).collect();
    let first = transactions([(owner(), changes(items, 3))].into(), None).unwrap().remove(0);
    store.commit(first).await.unwrap();
    let shown = tokio::time::timeout(LONG, replicas.wait_for(|replica| names(replica).len() > 301));
    let shown = shown.await.expect("it is shown after 2 s").unwrap();
    assert_eq!(shown.position, store::list(&*store, "/").await.unwrap().1);
}

#[tokio::test(start_paused = true)]
async fn an_owner_whose_last_word_is_deleted_is_forgotten() {
    let store = store().await;
    commit(&*store, changes(vec![put("a", 1)], 1)).await;
    let mut process = Process::new();
    process.catch_up(&store).await;
    let ops = vec![Op::delete(facts::said_key(&owner())), Op::delete(key("a").to_string())];
    store.commit(Txn { guards: vec![], ops }).await.unwrap();
    process.catch_up(&store).await;
    assert!(process.writer.current().holding(&owner()).is_none());
}

#[test]
fn what_is_held_back_is_not_resumed_after() {
    let mut state = State::new(None);
    let mut part = changes(vec![put("a", 1)], 1);
    part.more = true;
    let txn = transactions([(owner(), part)].into(), None).unwrap().remove(0);
    let events: Vec<_> = txn
        .ops
        .into_iter()
        .filter_map(|op| match op {
            Op::Put { key, value, .. } => Some(store::Event::Put(store::KeyValue {
                key,
                value,
                create_revision: 1,
                mod_revision: 1,
            })),
            Op::Delete { .. } => None,
        })
        .collect();
    let batch = state.committed(&replica::channel().0.current(), 1, &events);
    assert!(batch.items.is_empty() && state.has_unfinished());
    let flushed: Batch = state.flush();
    assert_eq!(flushed.items.len(), 1);
}

/// A removal of several transactions, read after each of them and followed from there.
#[tokio::test(start_paused = true)]
async fn a_removal_that_is_read_between_its_parts_is_whole_in_the_end() {
    let items: Vec<_> = (0..300).map(|n| put(&format!("n{n}"), 1)).collect();
    let gone: Vec<_> = items.iter().skip(1).map(|(key, _)| (key.clone(), None)).collect();
    let txns = transactions([(owner(), changes(gone, 2))].into(), None).unwrap();
    assert!(txns.len() > 2);
    for read_after in 1..txns.len() {
        let store = store().await;
        commit(&*store, changes(items.clone(), 1)).await;
        let mut process = Process::new();
        process.catch_up(&store).await;
        for (index, txn) in txns.iter().enumerate() {
            assert!(store.commit(txn.clone()).await.unwrap().is_done());
            if index + 1 == read_after {
                mark(&*store, "drawn in the middle of it").await;
                let newest = store::list(&*store, "/").await.unwrap().1;
                store.compact(newest).await.unwrap();
                process.catch_up(&store).await;
                assert_eq!(process.seen().listings, 2);
                assert_eq!(process.names().len(), 300, "a part is not shown");
            }
        }
        process.catch_up(&store).await;
        assert_eq!(process.seen().listings, 2);
        assert_eq!(process.names(), ["n0"]);
        assert!(process.seen().lost.owners.is_empty(), "{:?}", process.seen().lost);
    }
}
