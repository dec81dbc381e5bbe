use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tombolo_federation::key::{Key, Kind};
use tombolo_federation::names::Owner;
use tombolo_federation::record::{Body, Epoch, READS_LEVEL, Region};
use tombolo_federation::replica;
use tombolo_federation::store::embedded::Embedded;
use tombolo_federation::store::{self, Op, Store, Txn};
use tombolo_federation::sync::ask::{Asking, Word};
use tombolo_federation::sync::decisions::Leaver;
use tombolo_federation::sync::own::OwnRecords;
use tombolo_federation::sync::{facts, follower, local};
use tracing::subscriber::DefaultGuard;

use super::super::{Approve, LEAVE, Leave, Leaving, bind, serve};
use super::*;

const LONG: Duration = Duration::from_mins(1);

/// What is logged on this thread.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn kept() -> (Self, DefaultGuard) {
        let lines = Self::default();
        let writer = lines.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(Mutex::new(writer)).finish();
        (lines, tracing::subscriber::set_default(subscriber))
    }

    fn audited(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains(" audit: ")).map(str::to_owned).collect()
    }

    async fn becomes(&self, lines: usize) -> Vec<String> {
        let there = async {
            while self.audited().len() < lines {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = timeout(LONG, there).await;
        assert!(waited.is_ok(), "{:?}", self.audited());
        self.audited()
    }
}

/// A control plane's desk over a real store, in a region that nobody leads.
struct Leaderless {
    asking: Asking,
}

impl Operated for Leaderless {
    fn approve(self: Arc<Self>, _: Approve, _: String) -> BoxFuture<'static, Outcome> {
        Box::pin(async { panic!("on purpose") })
    }

    fn leave(self: Arc<Self>, call: Leave, by: String) -> BoxFuture<'static, Outcome> {
        Box::pin(async move {
            let Leaving::Region(region) = call.who else { panic!("a region") };
            let at = Timestamp::UNIX_EPOCH;
            let word = Word { id: "one".to_owned(), by, at, note: call.note };
            let left = self.asking.leave(&Leaver::Region(region), true, word).await;
            left.map(|_| Answer { message: String::new(), decisions: Vec::new() })
                .map_err(|error| CallError::Failed(error.to_string()))
        })
    }
}

struct Bench {
    path: PathBuf,
    store: Arc<dyn Store>,
    calls: Calls,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    _dir: tempfile::TempDir,
}

impl Bench {
    async fn start() -> Self {
        let store: Arc<dyn Store> = Arc::new(Embedded::in_memory().await.unwrap());
        let eu: Owner = "eu/_".parse().unwrap();
        let mut own = OwnRecords::new(eu.clone(), Epoch { id: "eu".into(), count: 1 });
        let body = Body::Region(Region { reads_level: READS_LEVEL, ..Region::default() });
        let (key, value) = own.say(&Key::of_owner(eu, Kind::Region), &Arc::new(body));
        let ops = vec![Op::put(key.to_string(), value.unwrap())];
        assert!(store.commit(Txn { guards: Vec::new(), ops }).await.unwrap().is_done());

        let mut tasks = JoinSet::new();
        let (writer, mut replicas) = replica::channel();
        let follow =
            follower::follow(Arc::clone(&store), Arc::new(writer), None, watch::Sender::default());
        tasks.spawn(async move { drop(follow.await) });
        let mut facts = |prefix: String| {
            let (tx, rx) = watch::channel(None);
            let follow = local::follow(Arc::clone(&store), prefix, tx);
            tasks.spawn(async move { drop(follow.await) });
            rx
        };
        let (mut sessions, mut left) =
            (facts(facts::sessions_prefix()), facts(facts::left_prefix()));
        replicas.wait_for(|replica| replica.get(&key).is_some()).await.unwrap();
        sessions.wait_for(Option::is_some).await.unwrap();
        left.wait_for(Option::is_some).await.unwrap();

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("operator.sock");
        let (calls, stop) = (Calls::default(), CancellationToken::new());
        let asking = Asking {
            store: Arc::clone(&store),
            replicas,
            region: "us".parse().unwrap(),
            sessions,
            left,
            stop: stop.clone(),
        };
        let (desk, jobs) = Desk::new(Arc::new(Leaderless { asking }), calls.clone());
        let serving = serve(bind(&path).unwrap(), desk, jobs, axum::Router::new(), stop.clone());
        tasks.spawn(async move { serving.await.unwrap() });
        Self { path, store, calls, stop, tasks, _dir: dir }
    }

    async fn asks(&self) -> usize {
        store::list(&*self.store, &facts::asks_prefix()).await.unwrap().0.len()
    }

    async fn asked(&self) {
        let there = async {
            while self.asks().await == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        assert!(timeout(LONG, there).await.is_ok(), "there is no ask");
    }

    fn counted(&self, verb: &'static str, outcome: &'static str) -> u64 {
        self.calls.0.get_or_create(&CallLabels { verb, outcome }).get()
    }
}

/// Sends a call and does not wait for the answer.
fn call(socket: &Path, path: &str, json: &str) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    let head = format!("POST {path} HTTP/1.1\r\nHost: operator\r\nContent-Type: application/json");
    write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{json}", json.len()).unwrap();
    stream
}

const LEAVES: &str = r#"{"who": {"region": "eu"}, "note": "burnt down"}"#;

#[track_caller]
fn assert_line(line: &str, words: &[&str]) {
    for word in words {
        assert!(line.contains(word), "{word:?} is missing: {line}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_client_goes_away_is_audited_counted_and_taken_back() {
    let (lines, _logging) = Lines::kept();
    let bench = Bench::start().await;
    let client = call(&bench.path, LEAVE, LEAVES);
    bench.asked().await;
    drop(client);
    let audited = lines.becomes(2).await;
    assert_line(&audited[0], &["region eu", "burnt down", "outcome=\"received\""]);
    let failed = ["outcome=\"failed\"", "has no leader", "taken back", "answered=false"];
    assert_line(&audited[1], &failed);
    assert_eq!(bench.asks().await, 0, "the next leader finds nothing to say");
    assert_eq!(bench.counted("leave", "failed"), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_answered_is_taken_back_when_the_process_stops() {
    let (lines, _logging) = Lines::kept();
    let mut bench = Bench::start().await;
    let _client = call(&bench.path, LEAVE, LEAVES);
    bench.asked().await;
    bench.stop.cancel();
    let audited = lines.becomes(2).await;
    assert_line(&audited[1], &["outcome=\"failed\"", "is stopping", "taken back"]);
    assert_eq!(bench.asks().await, 0);
    bench.tasks.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_cut_off_is_audited_as_abandoned() {
    let (lines, _logging) = Lines::kept();
    let mut bench = Bench::start().await;
    let _client = call(&bench.path, LEAVE, LEAVES);
    bench.asked().await;
    bench.tasks.shutdown().await;
    let abandoned = ["outcome=\"abandoned\"", "the process ended before", "answered=false"];
    assert_line(&lines.becomes(2).await[1], &abandoned);
    assert_eq!(bench.counted("leave", "abandoned"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_panics_is_answered_and_the_next_one_taken() {
    let (lines, _logging) = Lines::kept();
    let bench = Bench::start().await;
    let approve = r#"{"cluster": "us-a", "hold": "h"}"#;
    let _client = call(&bench.path, super::super::APPROVE, approve);
    assert_line(&lines.becomes(2).await[1], &["verb=\"approve\"", "outcome=\"abandoned\""]);
    let _client = call(&bench.path, LEAVE, LEAVES);
    assert_line(&lines.becomes(4).await[3], &["outcome=\"failed\"", "answered=true"]);
}

/// Whom nobody asks.
struct Unasked;

impl Operated for Unasked {
    fn approve(self: Arc<Self>, _: Approve, _: String) -> BoxFuture<'static, Outcome> {
        panic!("nobody asks")
    }

    fn leave(self: Arc<Self>, _: Leave, _: String) -> BoxFuture<'static, Outcome> {
        panic!("nobody asks")
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_client_left_before_its_turn_was_never_begun() {
    let (lines, _logging) = Lines::kept();
    let calls = Calls::default();
    // Nobody carries out: as if as many as may already ran.
    let (desk, _jobs) = Desk::new(Arc::new(Unasked), calls.clone());
    let take = async |what: &str| {
        let (what, by, note) = (what.to_owned(), String::new(), String::new());
        let audit = Audit { verb: "leave", what, by, note };
        let never = desk.take(audit, |_| std::future::pending());
        assert!(timeout(Duration::from_secs(1), never).await.is_err());
    };
    take("the one that is queued").await;
    take("the one that waits").await;
    let audited = lines.becomes(3).await;
    assert_line(&audited[2], &["the one that waits", "outcome=\"abandoned\"", "never begun"]);
    assert_eq!(calls.0.get_or_create(&CallLabels { verb: "leave", outcome: "abandoned" }).get(), 1);
}
