//! A process that is killed in the midst of committing loses nothing that it was told is done.
//!
//! The test starts itself as a child, which commits in a loop and prints every revision that it
//! was answered, kills it at a random moment, several times on one file, and then reads the file.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tombolo_federation::store::embedded::Embedded;
use tombolo_federation::store::{
    Commit, Event, LeaseId, Op, Revision, Store, Txn, WatchEvent, list,
};

const NAME: &str = "what_was_answered_survives_sigkill";
/// How the child is told its file; to the test harness it is one more filter.
const CHILD: &str = "child-of-store-crash=";
const KILLS: u64 = 8;
/// Ten times what a start and the first commits may take.
const DEADLINE: Duration = Duration::from_mins(1);
/// Keys that the child overwrites in turn.
const KEYS: u64 = 17;

#[tokio::test]
async fn what_was_answered_survives_sigkill() {
    if let Some(path) = std::env::args().find_map(|arg| Some(arg.strip_prefix(CHILD)?.to_owned())) {
        return commit_until_killed(Path::new(&path)).await;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("store.redb");
    let mut answered = BTreeMap::new();
    for seed in 0..KILLS {
        let killed = killed_child(&path, seed);
        assert!(!killed.is_empty(), "run {seed} committed something");
        answered.extend(killed);
    }
    let store = Embedded::open(&path).await.expect("opens after the last kill");
    check(&store, &answered).await;
}

/// Revision -> the key and the value that were committed with it.
type Answered = BTreeMap<Revision, (String, String)>;

/// Starts a child, lets it commit for a while, kills it. What it was answered until then.
fn killed_child(path: &Path, seed: u64) -> Answered {
    let mut child = Command::new(std::env::current_exe().expect("is running"))
        .args(["--exact", NAME, "--nocapture", &format!("{CHILD}{}", path.display())])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let lines = BufReader::new(child.stderr.take().expect("is piped")).lines();
    // From in the midst of the first commits to some hundred later, and mid-commit mostly.
    let until = 1 + usize::try_from(seed * seed * 7).expect("small");
    let delay = Duration::from_micros(seed * 397);
    let started = Instant::now();
    let mut answered = Answered::new();
    for line in lines {
        let line = line.expect("text");
        assert!(started.elapsed() < DEADLINE, "the child is too slow");
        if let Some((revision, key, value)) = parse(&line) {
            answered.insert(revision, (key, value));
        } else {
            assert!(!line.contains("panicked"), "the child failed: {line}");
        }
        if answered.len() == until {
            kill_after(&mut child, delay);
        }
    }
    assert!(answered.len() >= until, "run {seed}: the child ended early");
    child.wait().expect("ends");
    answered
}

/// The child goes on committing meanwhile, so that the kill hits anywhere in a commit.
fn kill_after(child: &mut Child, delay: Duration) {
    let since = Instant::now();
    while since.elapsed() < delay {
        std::thread::yield_now();
    }
    child.kill().expect("is running");
}

fn parse(line: &str) -> Option<(Revision, String, String)> {
    let mut words = line.strip_prefix("committed ")?.split(' ');
    let revision = words.next()?.parse().ok()?;
    Some((revision, words.next()?.to_owned(), words.next()?.to_owned()))
}

async fn commit_until_killed(path: &Path) {
    let store = Embedded::open(path).await.expect("opens after a kill");
    let lease = store.grant_lease(DEADLINE).await.expect("grants");
    for n in 0.. {
        // Half under a lease, two at a time, so that commits also share one write of the file.
        let (one, two) = tokio::join!(
            commit(&store, format!("/kept/{}", n % KEYS), n, None),
            commit(&store, format!("/leased/{}", n % KEYS), n, Some(lease)),
        );
        // Standard error is not buffered: each of the two is written whole or not at all.
        eprintln!("{one}\n{two}");
    }
}

async fn commit(store: &Embedded, key: String, n: u64, lease: Option<LeaseId>) -> String {
    let value = format!("{}-{n}", std::process::id());
    let put = Op::Put { key: key.clone(), value: value.clone().into(), lease };
    let ops = vec![put, Op::put("/last", value.clone())];
    match store.commit(Txn { guards: vec![], ops }).await.expect("commits") {
        Commit::Done(revision) => format!("committed {revision} {key} {value}"),
        Commit::GuardFailed => unreachable!("there is no guard"),
    }
}

async fn check(store: &Embedded, answered: &Answered) {
    let (entries, newest) = list(store, "/").await.expect("lists");
    assert!(entries.iter().all(|entry| !entry.key.starts_with("/leased/")), "{entries:?}");
    let mut kept = BTreeMap::new();
    for (at, events) in history(store, newest).await {
        if let Some((key, value)) = answered.get(&at) {
            let found = |event: &Event| {
                matches!(event, Event::Put(entry)
                if entry.key == *key && entry.value == *value && entry.mod_revision == at)
            };
            assert!(events.iter().any(found), "{key}={value} was answered at {at}: {events:?}");
            let both = events.iter().any(|event| event.key() == "/last");
            assert!(both, "commit {at} is whole: {events:?}");
        }
        for event in events {
            match event {
                Event::Put(entry) => kept.insert(entry.key.clone(), entry),
                Event::Delete { key, .. } => kept.remove(&key),
            };
        }
    }
    assert_eq!(entries, kept.into_values().collect::<Vec<_>>(), "history leads to the state");
    assert!(answered.keys().all(|at| *at <= newest));
}

/// All of it; fails if a revision is missing.
async fn history(store: &Embedded, newest: Revision) -> Vec<(Revision, Vec<Event>)> {
    let mut watch = store.watch("", 1).await.expect("watches");
    let mut commits = Vec::new();
    while commits.len() as Revision != newest {
        let event = tokio::time::timeout(DEADLINE, watch.events.recv()).await.expect("in time");
        match event.expect("goes on") {
            WatchEvent::Commit { revision, events } => {
                assert_eq!(revision, commits.len() as Revision + 1, "history is contiguous");
                commits.push((revision, events));
            }
            other => unreachable!("after {} commits of {newest}: {other:?}", commits.len()),
        }
    }
    commits
}
