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
    let removed = Removed { removal: Removal::Explained, sequence };
    let removed = gone.map(|(key, _)| (key.clone(), removed)).collect();
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
    assert_eq!(removed, Removed { removal: Removal::Explained, sequence: 3 });
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

/// The store was restored from a backup: what is held and was said after it stays, and is written
/// back for all the others.
#[tokio::test(start_paused = true)]
async fn a_restored_store_takes_nothing_away_and_gets_back_what_it_lost() {
    for written_past in [false, true] {
        let before = store().await;
        commit(&*before, changes(vec![put("a", 1), put("old", 1)], 1)).await;
        commit(&*before, changes(vec![put("b", 2), (key("old"), None)], 2)).await;
        commit(&*before, changes(vec![put("a", 3)], 3)).await;
        let mut process = Process::new();
        process.catch_up(&before).await;

        let restored = store().await;
        commit(&*restored, changes(vec![put("a", 1), put("old", 1)], 1)).await;
        if written_past {
            for n in 0..9 {
                let ops = vec![Op::put("/tombolo/local/v1/x", n.to_string())];
                restored.commit(Txn { guards: vec![], ops }).await.unwrap();
            }
        }
        process.catch_up(&restored).await;
        assert_eq!(process.seen().other_histories, 1, "{written_past}");
        assert_eq!(process.seen().resume_point(), None, "from a disk, nobody would miss anything");
        assert!(process.names().contains(&"b".to_owned()), "what was said since stays");
        assert!(!process.names().contains(&"old".to_owned()), "what was removed since is not back");
        let held = process.writer.current();
        let sequence = held.get(&key("a")).unwrap().origin().unwrap().sequence;
        assert_eq!(sequence, 3, "nothing goes back");

        let election = vec![Op::put(facts::election_key(), "me")];
        restored.commit(Txn { guards: vec![], ops: election }).await.unwrap();
        let leading = store::read(&*restored, &facts::election_key()).await.unwrap().unwrap();
        process.catch_up(&restored).await;
        let mut leader = Leader::new(
            Arc::<Embedded>::clone(&restored),
            store::Guard::CreateRevision(facts::election_key(), leading.create_revision),
            process.writer.subscribe(),
        );
        let written = reseed(&mut leader, &process.following.subscribe()).await.unwrap();
        assert_eq!(written, 3, "b, a as it was last, and that old is gone");
        let mut other = Process::new();
        other.catch_up(&restored).await;
        assert!(other.names().contains(&"b".to_owned()));
        let newest = other.writer.current().holding(&owner()).unwrap().newest().cloned();
        assert_eq!(newest, Some(Newest { epoch: epoch(), sequence: 3 }));
        process.catch_up(&restored).await;
        assert!(process.seen().lost.owners.is_empty(), "{:?}", process.seen().lost);
        assert!(process.seen().resume_point().is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_spoke_to_the_restored_store_wins_over_what_was_lost() {
    let before = store().await;
    commit(&*before, changes(vec![put("a", 1), put("b", 2)], 2)).await;
    let mut process = Process::new();
    process.catch_up(&before).await;
    let restored = store().await;
    commit(&*restored, changes(vec![put("a", 1)], 1)).await;
    process.catch_up(&restored).await;
    assert_eq!(process.seen().lost.owners.len(), 1);

    // It says all anew, without b.
    let mut anew = changes(vec![put("a", 5)], 5);
    anew.complete = vec![(Kind::Namespace, epoch())];
    commit(&*restored, anew).await;
    let election = vec![Op::put(facts::election_key(), "me")];
    restored.commit(Txn { guards: vec![], ops: election }).await.unwrap();
    let leading = store::read(&*restored, &facts::election_key()).await.unwrap().unwrap();
    let mut leader = Leader::new(
        Arc::<Embedded>::clone(&restored),
        store::Guard::CreateRevision(facts::election_key(), leading.create_revision),
        process.writer.subscribe(),
    );
    // Before this process has seen it, and after.
    let stale = Arc::clone(&process.seen().lost);
    let lost = &stale.owners[&owner()];
    let seed = crate::sync::reseed::Seed {
        records: vec![(key("b"), Some(value("b", 2)))],
        said_revision: lost.said_revision,
        ..Default::default()
    };
    let written = crate::sync::reseed::seed_owner(&leader, &owner(), seed).await.unwrap();
    assert_eq!(written, 0);
    process.catch_up(&restored).await;
    assert_eq!(process.names(), ["a"]);
    assert_eq!(reseed(&mut leader, &process.following.subscribe()).await.unwrap(), 0);
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
    for (index, txn) in txns.into_iter().enumerate() {
        store.commit(txn).await.unwrap();
        let position = store::list(&*store, "/").await.unwrap().1;
        let shown = replicas.wait_for(|replica| replica.position >= position).await.unwrap();
        seen.push(names(&shown).len());
        assert_eq!(names(&shown).len(), if index + 1 < count { 1 } else { 301 });
    }

    // A writer that dies in the middle holds nothing back for long.
    let items: Vec<_> = (0..300).map(|n| put(&format!("m{n}"), 3)).collect();
    let first = transactions([(owner(), changes(items, 3))].into(), None).unwrap().remove(0);
    store.commit(first).await.unwrap();
    let shown = tokio::time::timeout(LONG, replicas.wait_for(|replica| names(replica).len() > 301));
    shown.await.expect("it is shown after 2 s").unwrap();
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

/// What was lost is not in the store to be deleted: the owner's word alone says that it is gone.
#[tokio::test(start_paused = true)]
async fn what_its_owner_removes_after_a_restore_goes_although_the_store_had_lost_it() {
    let before = store().await;
    commit(&*before, changes(vec![put("a", 1)], 1)).await;
    commit(&*before, changes(vec![put("b", 2), put("c", 2)], 2)).await;
    let mut process = Process::new();
    process.catch_up(&before).await;
    let restored = store().await;
    commit(&*restored, changes(vec![put("a", 1)], 1)).await;
    process.catch_up(&restored).await;
    assert_eq!(process.names(), ["a", "b", "c"]);

    commit(&*restored, changes(vec![(key("b"), None)], 3)).await;
    process.catch_up(&restored).await;
    assert_eq!(process.names(), ["a", "c"]);
    let lost = process.seen().lost;
    let lost = &lost.owners[&owner()];
    assert_eq!(lost.keys.keys().collect::<Vec<_>>(), [&key("c")]);
    let said = store::read(&*restored, &facts::said_key(&owner())).await.unwrap().unwrap();
    assert_eq!(lost.said_revision, said.mod_revision, "writing c back is not writing over that");
}

/// The owner changed a record, the store was restored to before, and the owner took its change
/// back: it need not say again what the store has.
#[tokio::test(start_paused = true)]
async fn what_a_restored_store_has_and_its_owner_confirms_is_not_withdrawn() {
    let before = store().await;
    commit(&*before, changes(vec![put("a", 1)], 1)).await;
    commit(&*before, changes(vec![put("a", 2)], 2)).await;
    let mut process = Process::new();
    process.catch_up(&before).await;
    let restored = store().await;
    commit(&*restored, changes(vec![put("a", 1)], 1)).await;
    process.catch_up(&restored).await;
    let mut confirmed = changes(Vec::new(), 3);
    confirmed.complete = vec![(Kind::Namespace, epoch())];
    commit(&*restored, confirmed).await;
    process.catch_up(&restored).await;
    assert_eq!(process.names(), ["a"]);
    let held = process.writer.current();
    assert_eq!(held.get(&key("a")).unwrap().origin().unwrap().sequence, 1);
}

/// A leader that does not know of the restore would make the store look complete.
#[tokio::test(start_paused = true)]
async fn nothing_is_said_on_top_of_what_a_restored_store_has_lost() {
    let at = |sequence| [(owner(), changes(vec![put("a", sequence)], sequence))].into();
    let (before, restored) = (store().await, store().await);
    let election = vec![Op::put(facts::election_key(), "me")];
    for store in [&before, &restored] {
        let txn = Txn { guards: vec![], ops: election.clone() };
        assert!(store.commit(txn).await.unwrap().is_done());
        commit(&**store, changes(vec![put("a", 1)], 1)).await;
    }
    let leading = store::read(&*before, &facts::election_key()).await.unwrap().unwrap();
    let fence = store::Guard::CreateRevision(facts::election_key(), leading.create_revision);
    let there = store::list(&*restored, "/").await.unwrap();
    let (_, replicas) = replica::channel();
    let mut leader = Leader::new(Arc::<Embedded>::clone(&before), fence, replicas);
    leader.commit_changes(at(2), None).await.unwrap();
    leader.commit_changes(at(3), None).await.unwrap();
    // Its lease and its key are in the backup.
    leader.store = Arc::<Embedded>::clone(&restored);
    let refused = leader.commit_changes(at(4), None).await;
    assert!(matches!(refused, Err(LeaderError::NotLeader)), "{refused:?}");
    assert_eq!(store::list(&*restored, "/").await.unwrap(), there, "nothing was written");
}

/// A seed of several transactions, read after the first and after the last.
#[tokio::test(start_paused = true)]
async fn what_is_half_written_back_is_not_gone_for_who_reads_it_then() {
    let items: Vec<_> = (0..300).map(|n| put(&format!("n{n}"), 1)).collect();
    let before = store().await;
    commit(&*before, changes(items.clone(), 1)).await;
    let mut process = Process::new();
    process.catch_up(&before).await;
    let restored = store().await;
    let election = vec![Op::put(facts::election_key(), "me")];
    restored.commit(Txn { guards: vec![], ops: election }).await.unwrap();
    let leading = store::read(&*restored, &facts::election_key()).await.unwrap().unwrap();
    let mut leader = Leader::new(
        Arc::<Embedded>::clone(&restored),
        store::Guard::CreateRevision(facts::election_key(), leading.create_revision),
        process.writer.subscribe(),
    );
    process.catch_up(&restored).await;
    let seeded = reseed(&mut leader, &process.following.subscribe()).await.unwrap();
    assert_eq!(seeded, items.len());
    let written = store::list(&*restored, "/").await.unwrap().1;
    assert!(written > 3, "several transactions");

    for read_at in 2..=written {
        let mut other = Process::new();
        other.catch_up(&before).await;
        let range =
            store::Range { prefix: "/".into(), after: None, limit: 1000, revision: Some(read_at) };
        let entries = restored.range(range).await.unwrap().entries;
        let batch = other.state.listed(&other.writer.current(), entries, read_at);
        let gone = batch.items.iter().filter(|(_, value)| value.is_none()).count();
        assert_eq!(gone, 0, "at {read_at} of {written}");
    }
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

/// Says, as `speaker`, that `incarnation` of the cluster left.
async fn leave(store: &dyn Store, speaker: &str, incarnation: &str) {
    let speaker = Owner::region(speaker.parse().unwrap());
    let what = Decided::Leave { owner: owner(), incarnation: incarnation.into() };
    let key = crate::sync::decisions::key(&speaker.region, &what);
    let at = jiff::Timestamp::UNIX_EPOCH;
    let body = Body::Decision(Decision { by: "op".into(), at, note: String::new(), what });
    let origin = Origin { epoch: epoch(), sequence: 1, ..Origin::default() };
    let value = Record { key: key.clone(), origin, body }.seal().value;
    let newest = Some(Newest { epoch: epoch(), sequence: 1 });
    let changes = Changes { items: vec![(key, Some(value))], newest, ..Changes::default() };
    for txn in transactions([(speaker, changes)].into(), None).unwrap() {
        assert!(store.commit(txn).await.unwrap().is_done());
    }
}

/// That somebody of its name left once, or that a third says so, takes nothing away from it.
#[tokio::test(start_paused = true)]
async fn a_store_without_an_owner_has_lost_it_unless_its_region_says_that_this_one_left() {
    let key = Key::of_owner(owner(), Kind::Cluster);
    let origin = Origin { epoch: epoch(), sequence: 1, ..Origin::default() };
    let body = Body::Cluster(Cluster { uid: "uid".into(), ..Cluster::default() });
    let cluster = Record { key: key.clone(), origin, body }.seal().value;
    for (speaker, incarnation, stays) in
        [("r", "uid", false), ("r", "old", true), ("s", "uid", true)]
    {
        let before = store().await;
        commit(&*before, changes(vec![(key.clone(), Some(cluster.clone())), put("a", 1)], 1)).await;
        let mut process = Process::new();
        process.catch_up(&before).await;
        let now = store().await;
        leave(&*now, speaker, incarnation).await;
        process.catch_up(&now).await;
        assert_eq!(process.seen().other_histories, 1);
        let there = process.names().contains(&"a".to_owned());
        assert_eq!(there, stays, "{speaker} says that {incarnation} left");
        assert_eq!(process.seen().lost.owners.contains_key(&owner()), stays);
    }
}

#[tokio::test(start_paused = true)]
async fn a_region_that_was_forgotten_is_with_all_its_clusters_and_as_that_one_only() {
    let region = Owner::region("r".parse().unwrap());
    let key = Key::of_owner(region.clone(), Kind::Region);
    let origin = Origin { epoch: epoch(), sequence: 1, ..Origin::default() };
    let body = Body::Region(Region { incarnation: "i".into(), ..Region::default() });
    let said = Record { key: key.clone(), origin, body }.seal().value;
    for (incarnation, stays) in [("i", false), ("old", true)] {
        let before = store().await;
        commit(&*before, changes(vec![put("a", 1)], 1)).await;
        let newest = Some(Newest { epoch: epoch(), sequence: 1 });
        let items = vec![(key.clone(), Some(said.clone()))];
        let changes = Changes { items, newest, ..Changes::default() };
        for txn in transactions([(region.clone(), changes)].into(), None).unwrap() {
            assert!(before.commit(txn).await.unwrap().is_done());
        }
        let mut process = Process::new();
        process.catch_up(&before).await;
        let now = store().await;
        let ops = vec![facts::left_op(&region.region, incarnation)];
        now.commit(Txn { guards: vec![], ops }).await.unwrap();
        process.catch_up(&now).await;
        assert_eq!(process.names() == ["a"], stays, "{incarnation}");
        assert_eq!(process.writer.current().get(&key).is_some(), stays);
        assert_eq!(process.seen().lost.owners.len(), if stays { 2 } else { 0 });
    }
}
