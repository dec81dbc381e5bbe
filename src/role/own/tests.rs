//! A source played by hand or a real directory, the real guard and a real replica.

use std::path::PathBuf;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tombolo_federation::guard::{Guard, Records, Settings};
use tombolo_federation::manifests::{Counts, Listing, Lost, Options, Source};
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
        listing: Listing { id: listing, at: Instant::now(), since: 1, settled: true, lost },
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

/// The newest change of an earlier process that its image had.
const SAVED: u64 = 5;

fn newest(sequence: u64) -> Newest {
    Newest { epoch: Epoch { id: "e".into(), count: 0 }, sequence }
}

struct Bench {
    source: watch::Sender<Arc<Desired>>,
    /// The first listing since it showed nothing.
    since: u64,
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
        let (source, desired) = watch::channel(Arc::new(first));
        Self::follow(source, desired, restored)
    }

    fn follow(
        source: watch::Sender<Arc<Desired>>,
        desired: watch::Receiver<Arc<Desired>>,
        restored: Records,
    ) -> Self {
        let epoch = Epoch { id: "e".into(), count: 1 };
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
            guard: Guarded::new(Guard::new(settings, epoch), restored, None),
            ask_again: None,
            desired,
            joined: joined_rx,
            respected: watch::channel(None).0,
            approvals: approvals_rx,
            restored: Some(newest(SAVED)),
            surplus,
            writer: Arc::clone(&writer),
        };
        let (here, here_rx) = watch::channel(BTreeSet::new());
        let following = follow_approvals(owner(), replicas.clone(), here_rx, approvals);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { own.run().await.unwrap() });
        tasks.spawn(following);
        Self { source, since: 1, _joined: joined, here, judge, writer, replicas, _tasks: tasks }
    }

    fn says(&mut self, mut desired: Desired) {
        if desired.listing.lost.is_some() {
            self.since = desired.listing.id + 1;
        }
        desired.listing.since = self.since;
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
        let surplus = Surplus { records, lacking: None, gone };
        self.asks(surplus, judged).await
    }

    /// The region has heard so much of an earlier process, and lacks these namespaces: what went of
    /// them, and why.
    async fn lacks(&self, names: &[&str], heard: u64) -> Vec<(String, Removal)> {
        let keys = names.iter().map(|name| key(name)).collect();
        let lacking = Some(Lacking { keys, heard: newest(heard) });
        let (gone, judged) = tokio::sync::oneshot::channel();
        self.asks(Surplus { records: Vec::new(), lacking, gone }, judged).await
    }

    async fn asks(
        &self,
        surplus: Surplus,
        judged: tokio::sync::oneshot::Receiver<BTreeMap<Key, Removed>>,
    ) -> Vec<(String, Removal)> {
        self.judge.send(surplus).await.unwrap();
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
async fn after_a_restart_what_is_not_in_the_directory_goes_when_that_is_seen_twice() {
    let unread = Desired { complete: false, ..desired(&[], Some(Lost::Missing), 0) };
    let mut bench = Bench::start(unread, records(&["a", "b"]));
    bench.until(&["a", "b"], 1).await;
    // It may only have begun to be filled.
    bench.says(desired(&["b"], None, 1));
    bench.until(&["a", "b"], 1).await;
    tokio::time::sleep(Duration::from_millis(250)).await;
    bench.says(desired(&["b"], None, 2));
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
    assert_eq!(bench.judges(&["a", "b"]).await, [("b".to_owned(), Removal::Unexplained)]);
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

/// It was killed after the removal was committed and before that was saved.
#[tokio::test]
async fn what_an_earlier_process_removed_is_not_brought_back_from_its_disk() {
    let restored = || records(&["a", "b", "c"]);
    let unread = || Desired { complete: false, ..desired(&[], Some(Lost::Missing), 0) };
    let mut bench = Bench::start(unread(), restored());
    bench.until(&["a", "b", "c"], 1).await;
    bench.says(desired(&["a"], None, 1));
    bench.until(&["a", "b", "c"], 1).await;
    // A store that was restored, or has not heard of all that was saved, says nothing.
    for heard in [SAVED - 1, SAVED] {
        assert_eq!(bench.lacks(&["a", "b", "c"], heard).await, []);
    }
    // What the directory shows is there, whoever lacks it.
    let gone = bench.lacks(&["a", "b"], SAVED + 1).await;
    assert_eq!(gone, [("b".to_owned(), Removal::Explained)]);
    bench.until(&["a", "c"], 1).await;
    bench.lacks(&["c"], SAVED + 1).await;
    bench.until(&["a"], 0).await;

    // Nor while the directory is not there.
    let mut bench = Bench::start(unread(), restored());
    bench.until(&["a", "b", "c"], 1).await;
    bench.lacks(&["b"], SAVED + 1).await;
    bench.until(&["a", "c"], 1).await;

    // Nor if it was all.
    let mut bench = Bench::start(unread(), restored());
    bench.until(&["a", "b", "c"], 1).await;
    let gone = bench.lacks(&["a", "b", "c"], SAVED + 1).await;
    assert_eq!(gone.len(), 3);
    bench.until(&[], 0).await;
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

/// A real directory that is followed while the test edits it.
struct Directory {
    scratch: tempfile::TempDir,
    _options: watch::Sender<Options>,
    /// Ends with the test.
    _source: JoinSet<()>,
}

impl Directory {
    /// With these services, and their agent.
    async fn start(services: &[(&str, usize)], restored: Records) -> (Self, Bench) {
        let scratch = tempfile::tempdir().unwrap();
        let options = Options::new("r".parse().unwrap(), "r-a".parse().unwrap());
        let (options, options_rx) = watch::channel(options);
        let path = scratch.path().join("cluster");
        std::fs::create_dir(&path).unwrap();
        for (name, endpoints) in services {
            std::fs::write(path.join(format!("{name}.yaml")), manifest(name, *endpoints)).unwrap();
        }
        let (source, desired) = Source::open(path, options_rx).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { source.run(CancellationToken::new()).await.unwrap() });
        let unused = watch::channel(Arc::clone(&desired.borrow())).0;
        let bench = Bench::follow(unused, desired, restored);
        (Self { scratch, _options: options, _source: tasks }, bench)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join("cluster").join(format!("{name}.yaml"))
    }

    fn write(&self, name: &str, endpoints: usize) {
        std::fs::write(self.path(name), manifest(name, endpoints)).unwrap();
    }
}

/// A Service, its export and its slice.
fn manifest(name: &str, endpoints: usize) -> String {
    let address = |n| format!("{{addresses: [10.0.{}.{}]}}", n / 250, n % 250 + 1);
    let addresses: Vec<_> = (0..endpoints).map(address).collect();
    let addresses = addresses.join(", ");
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{ports: [{{port: 80}}]}}}}
---
{{apiVersion: multicluster.x-k8s.io/v1beta1, kind: ServiceExport, metadata: {{name: {name}}}}}
---
{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: {name}-{}, labels: \
         {{kubernetes.io/service-name: {name}}}}}, addressType: IPv4, ports: [{{port: 8080}}], \
         endpoints: [{addresses}]}}
",
        endpoints % 2
    )
}

impl Bench {
    /// Waits until these services are said, with so many endpoints each, and so many holds.
    async fn until_services(&mut self, expected: &[(&str, usize)], holds: usize) {
        let wanted: BTreeMap<String, usize> =
            expected.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        let is = |replica: &Replica| {
            services(replica) == wanted && holds_of(replica).is_some_and(|h| h.len() == holds)
        };
        let waiting = tokio::time::timeout(4 * LONG, self.replicas.wait_for(is)).await;
        let replica = self.replicas.peek();
        let said = (services(&replica), holds_of(&replica));
        assert!(waiting.is_ok(), "expected {wanted:?} and {holds} holds: {said:?}");
    }
}

fn services(replica: &Replica) -> BTreeMap<String, usize> {
    let mut services = BTreeMap::new();
    for (key, entry) in replica.holding(&owner()).into_iter().flat_map(Holding::records) {
        let Some(record) = entry.record.as_ref().filter(|_| key.service().is_some()) else {
            continue;
        };
        *services.entry(key.name.to_string()).or_default() += record.body.endpoints();
    }
    services
}

#[tokio::test]
async fn what_is_done_to_a_real_directory_is_told_from_what_happens_to_it() {
    let all = [("a", 50), ("b", 60), ("c", 1)];
    let (directory, mut bench) = Directory::start(&all, Records::new()).await;
    bench.until_services(&all, 0).await;
    // A rollout to fewer, in a slice of another name; scaled to zero; removed.
    directory.write("a", 3);
    bench.until_services(&[("a", 3), ("b", 60), ("c", 1)], 0).await;
    directory.write("a", 0);
    bench.until_services(&[("a", 0), ("b", 60), ("c", 1)], 0).await;
    directory.write("a", 50);
    bench.until_services(&all, 0).await;
    std::fs::remove_file(directory.path("c")).unwrap();
    bench.until_services(&[("a", 50), ("b", 60)], 0).await;

    // A disk that goes, and comes back piece by piece.
    let (path, away) =
        (directory.scratch.path().join("cluster"), directory.scratch.path().join("away"));
    std::fs::rename(&path, &away).unwrap();
    bench.until_services(&[("a", 50), ("b", 60)], 1).await;
    std::fs::create_dir(&path).unwrap();
    directory.write("d", 2);
    bench.until_services(&[("a", 50), ("b", 60), ("d", 2)], 1).await;
    std::fs::rename(away.join("a.yaml"), directory.path("a")).unwrap();
    // What does not come back is believed by another listing, of which nobody is told.
    bench.until_services(&[("a", 50), ("d", 2)], 0).await;
}
