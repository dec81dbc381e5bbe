//! A source played by hand, the real guard and a real replica.

use std::time::Duration;

use tokio::task::JoinSet;
use tombolo_federation::guard::Settings;
use tombolo_federation::manifests::{Counts, Listing};
use tombolo_federation::record::{Decision, Epoch, Namespace, Origin, Record};
use tombolo_federation::replica;

use super::*;

/// Ten times what a change takes to be seen on any machine.
const LONG: Duration = Duration::from_secs(5);

fn owner() -> Owner {
    "r/r-a".parse().unwrap()
}

fn key(name: &str) -> Key {
    Key::of_namespace(owner(), &name.parse().unwrap())
}

fn desired(names: &[&str], lost: Option<Lost>, listing: u64) -> Desired {
    let body = || Body::Namespace(Namespace::default());
    Desired {
        complete: true,
        gaps: false,
        listing: Listing { id: listing, at: Instant::now(), lost },
        records: names.iter().map(|name| (key(name), body())).collect(),
        counts: Counts::default(),
        problems: Vec::new(),
        more_problems: 0,
        services_without_endpoints: Vec::new(),
    }
}

fn records(names: &[&str]) -> Records {
    let bodies = desired(names, None, 1).records.into_iter();
    bodies.map(|(key, body)| (key, Arc::new(body))).collect()
}

struct Bench {
    source: watch::Sender<Arc<Desired>>,
    _joined: watch::Sender<Option<Timestamp>>,
    here: watch::Sender<BTreeSet<String>>,
    judge: mpsc::Sender<Surplus>,
    writer: Arc<ReplicaWriter>,
    replicas: Replicas,
    /// Ends with the test.
    _tasks: JoinSet<()>,
}

impl Bench {
    fn start(first: Desired, restored: Records) -> Self {
        let epoch = Epoch { id: "e".into(), count: 1 };
        let (source, desired) = watch::channel(Arc::new(first));
        let (joined, joined_rx) = watch::channel(None);
        let (approvals, approvals_rx) = watch::channel(BTreeSet::new());
        let (judge, surplus) = mpsc::channel(1);
        let (writer, replicas) = replica::channel();
        let writer = Arc::new(writer);
        let settings =
            Settings { confirm_after: Duration::from_millis(200), ..Settings::default() };
        let own = Own {
            records: OwnRecords::new(owner(), epoch.clone()),
            cluster: Cluster { uid: "u".into(), ..Cluster::default() },
            guard: Guarded::new(Guard::new(settings, epoch), restored),
            desired,
            joined: joined_rx,
            respected: watch::channel(None).0,
            approvals: approvals_rx,
            surplus,
            writer: Arc::clone(&writer),
        };
        let (here, here_rx) = watch::channel(BTreeSet::new());
        let following = follow_approvals(owner(), replicas.clone(), here_rx, approvals);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { own.run().await.unwrap() });
        tasks.spawn(following);
        Self { source, _joined: joined, here, judge, writer, replicas, _tasks: tasks }
    }

    fn says(&self, desired: Desired) {
        self.source.send_replace(Arc::new(desired));
    }

    /// Waits until these namespaces are said, with so many holds.
    async fn until(&mut self, names: &[&str], holds: usize) -> Vec<Hold> {
        let said = |replica: &Replica| {
            let records = replica.holding(&owner()).into_iter().flat_map(Holding::records);
            let names: BTreeSet<String> = records
                .filter(|(key, _)| key.kind == Kind::Namespace)
                .map(|(key, _)| key.name.to_string())
                .collect();
            (names, holds_of(replica))
        };
        let wanted = |replica: &Replica| {
            let (said, held) = said(replica);
            said.iter().eq(names) && held.as_ref().is_some_and(|held| held.len() == holds)
        };
        let waiting = tokio::time::timeout(LONG, self.replicas.wait_for(wanted)).await;
        let replica = self.replicas.peek();
        assert!(waiting.is_ok(), "expected {names:?} and {holds} holds: {:?}", said(&replica));
        holds_of(&replica).unwrap()
    }

    /// The region holds these namespaces of an earlier process: what went of them, and why.
    async fn judges(&self, names: &[&str]) -> Vec<(String, Removal)> {
        let origin =
            Origin { epoch: Epoch { id: "e".into(), count: 0 }, sequence: 1, ..Origin::default() };
        let seal = |(key, body): (Key, Arc<Body>)| {
            let body = (*body).clone();
            let value = Record { key: key.clone(), origin: origin.clone(), body }.seal().value;
            (key, value)
        };
        let (gone, judged) = tokio::sync::oneshot::channel();
        let records = records(names).into_iter().map(seal).collect();
        self.judge.send(Surplus { records, gone }).await.unwrap();
        let gone = tokio::time::timeout(LONG, judged).await.unwrap().unwrap();
        gone.iter().map(|(key, removed)| (key.name.to_string(), removed.removal)).collect()
    }

    /// What operators of `region` decided, under one name.
    fn decide(&self, region: &str, cluster: &str, hold: &str) {
        let region = Owner::region(region.parse().unwrap());
        let prefix = tombolo_federation::key::PREFIX;
        let key: Key = format!("{prefix}{region}/decision/_/approve-{hold}").parse().unwrap();
        let decision = Decision {
            by: "test".into(),
            at: Timestamp::UNIX_EPOCH,
            note: String::new(),
            what: Decided::Approve { cluster: cluster.parse().unwrap(), hold: hold.to_owned() },
        };
        let origin =
            Origin { epoch: Epoch { id: "r".into(), count: 1 }, sequence: 1, ..Origin::default() };
        let body = Body::Decision(decision);
        let record = Record { key: key.clone(), origin, body };
        let items = vec![(key, Some(record.seal().value))];
        self.writer.apply(Batch { items, ..Batch::default() }, Instant::now());
    }
}

fn cluster_of(replica: &Replica) -> Option<&Cluster> {
    let key = Key::of_owner(owner(), Kind::Cluster);
    match &replica.get(&key)?.record.as_ref()?.body {
        Body::Cluster(cluster) => Some(cluster),
        _ => None,
    }
}

fn holds_of(replica: &Replica) -> Option<Vec<Hold>> {
    Some(cluster_of(replica)?.holds.clone())
}

fn approved_of(replica: &Replica) -> Vec<String> {
    cluster_of(replica).map(|cluster| cluster.approved.clone()).unwrap_or_default()
}

#[tokio::test]
async fn what_is_removed_beside_others_goes_at_once() {
    let mut bench = Bench::start(desired(&["a", "b"], None, 1), Records::new());
    bench.until(&["a", "b"], 0).await;
    bench.says(desired(&["b"], None, 2));
    bench.until(&["b"], 0).await;
}

#[tokio::test]
async fn an_empty_directory_is_believed_the_second_time() {
    let mut bench = Bench::start(desired(&["a", "b"], None, 1), Records::new());
    bench.until(&["a", "b"], 0).await;
    bench.says(desired(&["a", "b"], Some(Lost::Empty), 2));
    let holds = bench.until(&["a", "b"], 1).await;
    assert!(holds[0].why.starts_with("the directory of manifests holds no manifest: "));
    tokio::time::sleep(Duration::from_millis(250)).await;
    bench.says(desired(&["a", "b"], Some(Lost::Empty), 2));
    bench.until(&["a", "b"], 1).await;
    bench.says(desired(&["a", "b"], Some(Lost::Empty), 3));
    bench.until(&[], 0).await;
    assert_eq!(approved_of(&bench.replicas.peek()), [""; 0], "nobody had to");
}

#[tokio::test]
async fn a_missing_directory_is_believed_by_the_word_of_the_own_region_alone() {
    let mut bench = Bench::start(desired(&["a", "b"], None, 1), Records::new());
    bench.until(&["a", "b"], 0).await;
    for lost in [Lost::Missing, Lost::Unreadable, Lost::Missing] {
        bench.says(desired(&["a", "b"], Some(lost), 1));
        tokio::time::sleep(Duration::from_millis(250)).await;
        bench.until(&["a", "b"], 1).await;
    }
    let id = bench.until(&["a", "b"], 1).await[0].id.clone();
    bench.decide("eu", "r-a", &id);
    bench.decide("r", "r-b", &id);
    tokio::time::sleep(Duration::from_millis(250)).await;
    bench.until(&["a", "b"], 1).await;
    bench.decide("r", "r-a", &id);
    bench.until(&[], 0).await;
    bench.says(desired(&["a", "b"], None, 2));
    bench.until(&["a", "b"], 0).await;
    // Its operator can say so at the agent itself, with the region away.
    bench.says(desired(&["a", "b"], Some(Lost::Missing), 2));
    let second = bench.until(&["a", "b"], 1).await[0].id.clone();
    bench.here.send_replace(BTreeSet::from([second.clone()]));
    bench.until(&[], 0).await;
    assert_eq!(approved_of(&bench.replicas.peek()), [id, second]);
    // Back, and all is as it was.
    bench.says(desired(&["a", "b"], None, 3));
    bench.until(&["a", "b"], 0).await;
}

#[tokio::test]
async fn after_a_restart_what_is_not_in_the_directory_goes_only_if_something_else_is() {
    let unread = Desired { complete: false, ..desired(&[], Some(Lost::Missing), 0) };
    let mut bench = Bench::start(unread, records(&["a", "b"]));
    bench.until(&["a", "b"], 1).await;
    bench.says(desired(&["b"], None, 1));
    bench.until(&["b"], 0).await;

    let gap = Desired { gaps: true, ..desired(&["b"], None, 1) };
    let mut bench = Bench::start(gap, records(&["a", "b"]));
    bench.until(&["a", "b"], 0).await;
    // What this process saw there itself is known to be gone.
    bench.says(Desired { gaps: true, ..desired(&["a", "c"], None, 2) });
    bench.until(&["a", "c"], 0).await;
    bench.says(desired(&["c"], None, 3));
    bench.until(&["c"], 0).await;
}

#[tokio::test]
async fn what_only_the_region_still_has_goes_through_the_guard() {
    let mut bench = Bench::start(desired(&["a"], None, 1), Records::new());
    bench.until(&["a"], 0).await;
    assert_eq!(bench.judges(&["a", "b"]).await, [("b".to_owned(), Removal::Explained)]);
    bench.until(&["a"], 0).await;

    // An emptied directory explains nothing: what the region has is said on, and held.
    bench.says(desired(&["a"], Some(Lost::Empty), 2));
    bench.until(&["a"], 1).await;
    assert_eq!(bench.judges(&["c"]).await, []);
    bench.until(&["a", "c"], 2).await;

    let gap = Desired { gaps: true, ..desired(&["a"], None, 1) };
    let mut bench = Bench::start(gap, Records::new());
    bench.until(&["a"], 0).await;
    assert_eq!(bench.judges(&["d"]).await, [], "it may stand where nothing can be read");
    bench.until(&["a", "d"], 0).await;
}

#[tokio::test]
async fn nothing_is_said_before_anything_was_read() {
    let unread = Desired { complete: false, ..desired(&[], Some(Lost::Empty), 1) };
    let mut bench = Bench::start(unread, Records::new());
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert!(holds_of(&bench.replicas.current()).is_none());
    bench.says(desired(&["a"], None, 2));
    bench.until(&["a"], 0).await;
}

#[test]
fn restored_keys_are_forgotten_one_by_one() {
    let guard = Guard::new(Settings::default(), Epoch { id: "e".into(), count: 1 });
    let mut guarded = Guarded::new(guard, records(&["a", "b"]));
    let gap = Desired { gaps: true, ..desired(&["b"], None, 1) };
    let wanted = guarded.wanted(&gap);
    assert_eq!(wanted.keys().collect::<Vec<_>>(), [&key("a"), &key("b")]);
    assert_eq!(guarded.restored, BTreeSet::from([key("a")]));
    let body: BTreeMap<Key, Body> = desired(&["a"], None, 1).records;
    guarded.wanted(&Desired { records: body, ..gap });
    assert!(guarded.restored.is_empty());
}
