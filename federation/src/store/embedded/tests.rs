use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;
use tokio::time::{advance, timeout};

use super::*;
use crate::store::{Event, Guard, Op, WatchEvent, conformance, list, read};

mod faults;

/// Ten times what anything here may take.
const DEADLINE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn in_memory_conforms() {
    conformance::all(|| async {
        let store: Arc<dyn Store> = Arc::new(Embedded::in_memory().await.expect("memory"));
        store
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn durable_conforms() {
    let directory = tempfile::tempdir().expect("a directory");
    let made = AtomicU32::new(0);
    conformance::all(|| async {
        let name = format!("{}.redb", made.fetch_add(1, Ordering::Relaxed));
        let store = Embedded::open(directory.path().join(name)).await.expect("opens");
        let store: Arc<dyn Store> = Arc::new(store);
        store
    })
    .await;
}

async fn put(store: &dyn Store, ops: impl IntoIterator<Item = Op>) -> Revision {
    let txn = Txn { guards: Vec::new(), ops: ops.into_iter().collect() };
    match store.commit(txn).await.expect("commits") {
        Commit::Done(revision) => revision,
        Commit::GuardFailed => unreachable!("there is no guard"),
    }
}

async fn leased(store: &dyn Store, key: &str, ttl: Duration) -> LeaseId {
    let lease = store.grant_lease(ttl).await.expect("grants");
    let value = bytes::Bytes::from_static(b"leased");
    put(store, [Op::Put { key: key.to_owned(), value, lease: Some(lease) }]).await;
    lease
}

async fn at(store: &dyn Store, revision: Revision) -> Result<Page, StoreError> {
    let prefix = String::new();
    store.range(Range { prefix, after: None, limit: 1000, revision: Some(revision) }).await
}

fn file(directory: &TempDir) -> PathBuf {
    directory.path().join("not/yet/there/store.redb")
}

async fn open(path: &Path) -> Embedded {
    Embedded::open(path).await.expect("opens")
}

#[tokio::test]
async fn everything_but_leased_keys_survives_reopening() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = file(&directory);
    let store = open(&path).await;
    put(&store, [Op::put("/k", "1")]).await;
    let second = put(&store, [Op::put("/k", "2"), Op::put("/l", "2")]).await;
    let lease = leased(&store, "/election", DEADLINE * 100).await;
    let last = put(&store, [Op::put("/k", "4")]).await;
    store.compact(second).await.expect("compacts");
    let before = at(&store, second).await;
    drop(store);

    let store = open(&path).await;
    assert_eq!(at(&store, second).await, before);
    let gone = StoreError::Compacted { wanted: 1, oldest: second };
    assert_eq!(at(&store, 1).await, Err(gone));
    assert_eq!(read(&store, "/election").await, Ok(None), "who held the lease is gone");
    let mut watch = store.watch("/election", last + 1).await.expect("watches");
    let seen = timeout(DEADLINE, watch.events.recv()).await.expect("in time");
    let deleted = Event::Delete { key: "/election".to_owned(), revision: last + 1 };
    let commit = WatchEvent::Commit { revision: last + 1, events: vec![deleted] };
    assert_eq!(seen, Some(commit), "and its end is a commit like any other");
    assert_eq!(store.keep_alive(lease).await, Err(StoreError::NoLease(lease)));
    let next = store.grant_lease(DEADLINE).await.expect("grants");
    assert!(next > lease, "a lease is never given out twice: {lease:?}, {next:?}");
    assert_eq!(put(&store, [Op::put("/k", "6")]).await, last + 2);
}

#[tokio::test]
async fn a_copy_of_the_open_file_has_all_that_was_committed() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = file(&directory);
    let store = open(&path).await;
    for n in 0..20 {
        let last = put(&store, [Op::put(format!("/{n}"), "v")]).await;
        let copy = directory.path().join(format!("copy-{n}"));
        std::fs::copy(&path, &copy).expect("copies");
        let copied = open(&copy).await;
        let (entries, revision) = list(&copied, "/").await.expect("lists");
        assert_eq!((entries.len(), revision), (n + 1, last));
    }
    // As a process that is killed: nothing is closed.
    std::mem::forget(store);
}

#[tokio::test]
async fn one_opening_at_a_time() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = file(&directory);
    let store = open(&path).await;
    let second = Embedded::open(&path).await.expect_err("it is in use");
    assert!(matches!(second, OpenError::Locked { .. }), "{second}");
    assert!(second.to_string().contains("stop the other"), "{second}");
    put(&store, [Op::put("/k", "1")]).await;
    for _ in 0..5 {
        // With a commit and a watch under way.
        let watch = open_watch_and_commit(&path, directory.path()).await;
        drop(watch);
    }
    store.close().await;
    drop(open(&path).await);
}

/// On a file of its own: dropped while busy, it is free at once.
async fn open_watch_and_commit(path: &Path, directory: &Path) -> Watch {
    let own = directory.join("own.redb");
    assert_ne!(path, own);
    let store = Arc::new(open(&own).await);
    let watch = store.watch("", 1).await.expect("watches");
    let (busy, n) = (Arc::clone(&store), 100);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        for n in 0..n {
            put(&*busy, [Op::put(format!("/{n}"), "v")]).await;
        }
    });
    tokio::task::yield_now().await;
    tasks.shutdown().await;
    drop(Arc::into_inner(store).expect("the only one"));
    watch
}

#[tokio::test]
async fn a_closed_store_says_so_and_can_be_opened_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = file(&directory);
    let store = open(&path).await;
    let last = put(&store, [Op::put("/k", "1")]).await;
    let lease = store.grant_lease(DEADLINE).await.expect("grants");
    let mut watch = store.watch("", last + 1).await.expect("watches");
    store.close().await;
    let ended = timeout(DEADLINE, watch.events.recv()).await.expect("in time");
    assert!(matches!(ended, Some(WatchEvent::Ended(StoreError::Unavailable(_)))), "{ended:?}");
    let closed = StoreError::Unavailable("it is closed".to_owned());
    assert_eq!(at(&store, last).await.err(), Some(closed.clone()));
    assert_eq!(store.commit(Txn::default()).await.err(), Some(closed.clone()));
    assert_eq!(store.watch("", 1).await.err(), Some(closed.clone()));
    assert_eq!(store.compact(1).await.err(), Some(closed.clone()));
    assert_eq!(store.grant_lease(DEADLINE).await.err(), Some(closed.clone()));
    assert_eq!(store.keep_alive(lease).await.err(), Some(closed.clone()));
    assert_eq!(store.revoke_lease(lease).await.err(), Some(closed));
    let again = open(&path).await;
    assert_eq!(at(&again, last).await.expect("reads").entries.len(), 1);
    store.close().await;
}

async fn refused(path: &Path) -> OpenError {
    Embedded::open(path).await.map(drop).expect_err("is refused")
}

#[tokio::test]
async fn what_is_no_store_is_refused_with_what_to_do() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("store.redb");
    for content in ["", "not a database", &"x".repeat(100_000)] {
        std::fs::write(&path, content).expect("writes");
        let error = refused(&path).await;
        assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("store.redb"), "{error}");
        assert!(error.to_string().contains("backup"), "{error}");
        let left = std::fs::read(&path).expect("is still there");
        assert_eq!(left, content.as_bytes(), "a refused file is left alone");
    }
    let below = path.join("store.redb");
    let error = refused(&below).await;
    assert!(matches!(error, OpenError::Io { .. }), "{error}");
}

#[tokio::test]
async fn other_databases_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("store.redb");
    let database = Database::create(&path).expect("creates");
    let write = |set: &dyn Fn(&redb::WriteTransaction)| {
        let txn = database.begin_write().expect("begins");
        set(&txn);
        txn.commit().expect("commits");
    };
    let foreign = redb::TableDefinition::<u64, u64>::new("theirs");
    write(&|txn| drop(txn.open_table(foreign).expect("opens")));
    drop(database);
    let error = refused(&path).await;
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");

    let path = directory.path().join("newer.redb");
    drop(open(&path).await);
    let database = Database::open(&path).expect("opens");
    let txn = database.begin_write().expect("begins");
    txn.open_table(disk::META).expect("opens").insert(disk::FORMAT, 7).expect("inserts");
    txn.commit().expect("commits");
    drop(database);
    let error = refused(&path).await;
    assert!(matches!(error, OpenError::Newer { found: 7, .. }), "{error}");
}

/// Wherever the damage is, the answer is an error or the right data, never other data.
#[tokio::test]
async fn damage_is_found_when_opened() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("store.redb");
    let store = open(&path).await;
    for n in 0..50 {
        put(&store, [Op::put(format!("/{n:02}"), vec![b'v'; 300])]).await;
    }
    let whole = list(&store, "/").await.expect("lists").0;
    drop(store);
    let content = std::fs::read(&path).expect("reads");
    let damaged = directory.path().join("damaged.redb");
    let (mut found, mut tried) = (0, 0);
    for at in (0..content.len()).step_by(content.len() / 60) {
        let mut content = content.clone();
        for byte in content.iter_mut().skip(at).take(64) {
            *byte ^= 0xA5;
        }
        std::fs::write(&damaged, &content).expect("writes");
        tried += 1;
        match Embedded::open(&damaged).await {
            Err(OpenError::Damaged { .. }) => found += 1,
            Err(other) => panic!("damage at {at} is taken for {other}"),
            Ok(store) => assert_eq!(list(&store, "/").await.expect("lists").0, whole, "at {at}"),
        }
    }
    assert!(found > 0, "some of {tried} were in use");
    for length in [1, 100, 4096, content.len() / 2, content.len() - 1] {
        std::fs::write(&damaged, &content[..length]).expect("writes");
        let error = refused(&damaged).await;
        assert!(matches!(error, OpenError::Damaged { .. }), "{length} bytes: {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_ends_when_its_time_is_over_and_not_before() {
    let store = Embedded::in_memory().await.expect("memory");
    let (ttl, almost) = (Duration::from_secs(10), Duration::from_millis(9_999));
    let lease = leased(&store, "/k", ttl).await;
    advance(almost).await;
    assert!(read(&store, "/k").await.expect("reads").is_some());
    store.keep_alive(lease).await.expect("it lives");
    advance(almost).await;
    assert!(read(&store, "/k").await.expect("reads").is_some());
    let mut watch = store.watch("/k", 2).await.expect("watches");
    advance(Duration::from_millis(1)).await;
    assert_eq!(store.keep_alive(lease).await, Err(StoreError::NoLease(lease)));
    let ended = timeout(DEADLINE, watch.events.recv()).await.expect("in time");
    assert!(matches!(ended, Some(WatchEvent::Commit { revision: 2, .. })), "{ended:?}");
    // One that can hardly be waited for is no trouble.
    store.grant_lease(Duration::MAX).await.expect("grants");
}

#[tokio::test]
async fn a_dropped_watch_leaves_no_task() {
    let store = Embedded::in_memory().await.expect("memory");
    for _ in 0..100 {
        drop(store.watch("", 1).await.expect("watches"));
    }
    let gone = async {
        // The writer, the leases, and the watch that does the looking.
        while store.tasks().len() > 3 {
            drop(store.watch("", 1).await.expect("watches"));
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, gone).await.expect("their tasks end");
}

#[tokio::test]
async fn a_guarded_commit_sees_those_of_its_batch() {
    let store = Embedded::in_memory().await.expect("memory");
    let increments = (0..50).map(|_| async {
        loop {
            let entry = read(&store, "/n").await.expect("reads");
            let (at, n) = entry.map_or((0, 0), |entry| (entry.mod_revision, entry.value.len()));
            let guards = vec![Guard::ModRevision("/n".to_owned(), at)];
            let ops = vec![Op::put("/n", vec![b'i'; n + 1])];
            if let Commit::Done(_) = store.commit(Txn { guards, ops }).await.expect("commits") {
                return;
            }
        }
    });
    timeout(DEADLINE, futures::future::join_all(increments)).await.expect("in time");
    assert_eq!(read(&store, "/n").await.expect("reads").expect("is there").value.len(), 50);
}

#[tokio::test]
async fn compaction_of_much_leaves_little() {
    let store = Embedded::in_memory().await.expect("memory");
    let mut last = 0;
    for n in 0..60 {
        last = put(&store, (0..100).map(|key| Op::put(format!("/{key}"), format!("{n}")))).await;
    }
    // One that was cut short, and then one to less: the first limit stays, the second finishes.
    let begun = store.request(Work::Compact(last)).await;
    assert!(matches!(begun, Ok(Answer::Compacted { more: true })), "{begun:?}");
    store.compact(1).await.expect("compacts");
    let gone = StoreError::Compacted { wanted: last - 1, oldest: last };
    assert_eq!(at(&store, last - 1).await, Err(gone));
    let left = blocking(&store.shared, |database| {
        use redb::{ReadableDatabase, ReadableTableMetadata};
        let txn = database.begin_read()?;
        let changes = txn.open_table(disk::CHANGES)?.len()?;
        Ok((txn.open_table(disk::HISTORY)?.len()?, changes))
    });
    assert_eq!(left.await, Ok((100, 100)), "the newest version of each, and its commit");
    assert_eq!(list(&store, "/").await.expect("lists").0.len(), 100);
}
