use std::fs;

use tempfile::TempDir;
use tokio::task::JoinSet;

use super::super::Lost;
use super::*;

/// Ten times what is promised.
const LONG: Duration = Duration::from_secs(3);

/// A directory that is followed while a test edits it.
struct Bench {
    parent: TempDir,
    options: watch::Sender<Options>,
    desired: watch::Receiver<Arc<Desired>>,
    stop: CancellationToken,
    tasks: JoinSet<Result<(), SourceError>>,
}

fn service(port: u32) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {{ports: [{{port: {port}}}]}}\n"
    )
}

impl Bench {
    async fn start() -> Self {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("cluster");
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("a.yaml"), service(1)).unwrap();
        let mut options = Options::new("us-west1".parse().unwrap(), "us-west1-a".parse().unwrap());
        options.export_all = true;
        let (options, options_rx) = watch::channel(options);
        let (source, desired) = Source::open(directory, options_rx).await.unwrap();
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        tasks.spawn(source.run(stop.clone()));
        Self { parent, options, desired, stop, tasks }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.parent.path().join("cluster").join(name)
    }

    async fn until(&mut self, what: &str, is: impl Fn(&Desired) -> bool) {
        let waiting = tokio::time::timeout(LONG, self.desired.wait_for(|desired| is(desired)));
        assert!(waiting.await.is_ok_and(|found| found.is_ok()), "{what}: not seen");
    }

    async fn until_port(&mut self, port: u16) {
        self.until(&format!("port {port}"), |desired| has_port(desired, port)).await;
    }

    async fn end(mut self) {
        self.stop.cancel();
        let ended = tokio::time::timeout(LONG, self.tasks.join_next()).await;
        assert!(matches!(ended, Ok(Some(Ok(Ok(()))))), "{ended:?}");
    }
}

fn has_port(desired: &Desired, port: u16) -> bool {
    desired.records.values().any(|body| match body {
        crate::record::Body::Export(export) => export.ports[0].port == port,
        _ => false,
    })
}

#[tokio::test]
async fn edits_are_followed_however_they_are_made() {
    let mut bench = Bench::start().await;
    assert!(has_port(&bench.desired.borrow(), 1));
    fs::write(bench.path("a.yaml"), service(2)).unwrap();
    bench.until_port(2).await;
    // As editors do it.
    fs::write(bench.path(".a.yaml.swp"), service(3)).unwrap();
    fs::rename(bench.path(".a.yaml.swp"), bench.path("a.yaml")).unwrap();
    bench.until_port(3).await;
    // In a directory that comes to be only now.
    fs::create_dir_all(bench.path("x/y")).unwrap();
    fs::rename(bench.path("a.yaml"), bench.path("x/y/a.yaml")).unwrap();
    fs::write(bench.path("x/y/a.yaml"), service(4)).unwrap();
    bench.until_port(4).await;
    fs::write(bench.path("x/y/a.yaml"), service(99_999)).unwrap();
    bench.until("the problem", |d| d.problems.len() == 1 && has_port(d, 4)).await;
    fs::write(bench.path("x/y/a.yaml"), service(5)).unwrap();
    bench.until("no problem", |d| d.problems.is_empty() && has_port(d, 5)).await;
    bench.end().await;
}

#[tokio::test]
async fn a_directory_may_go_and_come_back() {
    let mut bench = Bench::start().await;
    fs::remove_dir_all(bench.path("")).unwrap();
    bench.until("the loss", |d| d.problems.len() == 1 && has_port(d, 1)).await;
    fs::create_dir(bench.path("")).unwrap();
    fs::write(bench.path("a.yaml"), service(2)).unwrap();
    bench.until_port(2).await;
    // It is watched, not only looked at from time to time.
    fs::write(bench.path("a.yaml"), service(3)).unwrap();
    bench.until_port(3).await;
    // Another directory under the same name.
    let other = bench.parent.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("a.yaml"), service(4)).unwrap();
    fs::rename(bench.path(""), bench.parent.path().join("old")).unwrap();
    fs::rename(&other, bench.path("")).unwrap();
    bench.until_port(4).await;
    fs::write(bench.path("a.yaml"), service(5)).unwrap();
    bench.until_port(5).await;
    bench.end().await;
}

#[tokio::test]
async fn each_reading_of_an_empty_directory_is_told_and_others_are_not() {
    let mut bench = Bench::start().await;
    fs::remove_file(bench.path("a.yaml")).unwrap();
    bench.until("the loss", |d| d.listing.lost == Some(Lost::Empty) && has_port(d, 1)).await;
    let first = bench.desired.borrow().listing.id;
    let passes = tokio::time::timeout(3 * PASS, bench.desired.wait_for(|d| d.listing.id > first));
    assert!(passes.await.is_ok(), "no other reading was told");
    fs::write(bench.path("a.yaml"), service(2)).unwrap();
    bench
        .until("it is back", |d| d.listing.lost.is_none() && d.listing.settled && has_port(d, 2))
        .await;
    bench.desired.mark_unchanged();
    let told = tokio::time::timeout(PASS + LONG, bench.desired.changed()).await;
    assert!(told.is_err(), "the same was told again");
    bench.end().await;
}

#[tokio::test]
async fn options_may_become_known_later() {
    let mut bench = Bench::start().await;
    let joined = jiff::Timestamp::from_second(1_700_000_000).unwrap();
    bench.options.send_modify(|options| options.joined = Some(joined));
    let precedes = |desired: &Desired| {
        desired.records.values().any(|body| match body {
            crate::record::Body::Export(export) => export.precedence == joined,
            _ => false,
        })
    };
    bench.until("the new precedence", precedes).await;
    bench.options.send_modify(|options| options.export_all = false);
    bench.until("no export", |desired| desired.records.is_empty()).await;
    bench.end().await;
}

#[tokio::test]
async fn a_directory_that_does_not_exist_yet_is_waited_for() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("later");
    let options = Options::new("us-west1".parse().unwrap(), "us-west1-a".parse().unwrap());
    let (_options, options_rx) = watch::channel(options);
    let (source, mut desired) = Source::open(directory.clone(), options_rx).await.unwrap();
    assert!(!desired.borrow().complete);
    let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
    tasks.spawn(source.run(stop.clone()));
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("a.yaml"), service(1)).unwrap();
    let complete = desired.wait_for(|desired| desired.complete);
    assert_eq!(
        tokio::time::timeout(LONG, complete).await.unwrap().unwrap().counts.read["Service"],
        1
    );
    stop.cancel();
    assert!(tasks.join_next().await.unwrap().unwrap().is_ok());
}
