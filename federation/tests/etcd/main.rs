//! The etcd store on real etcd, of two versions: the suite that every store has to pass, and what
//! only a store of several servers can get wrong.

mod alarms;
mod auth;
mod conformance;
mod elections;
mod follower;
mod members;
mod quota;
mod ranges;
mod rubbish;
mod tls;
mod unknown;
mod watches;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;
use tombolo_federation::store::etcd::{Etcd, EtcdConfig};
use tombolo_federation::store::{
    Commit, Op, Range, Revision, Store, StoreError, Txn, Watch, WatchEvent,
};
use tombolo_testbed::etcd::{self as real, Options, Release};
use tombolo_testbed::{Scratch, skip};

/// Ten times what anything here may take.
const LONG: Duration = Duration::from_mins(1);

/// Runs `test` on each release that is here, in a directory of its own.
async fn on_each(name: &str, test: impl AsyncFn(Release, &Path)) {
    for release in Release::ALL {
        match release.available() {
            Ok(()) => {
                let scratch = Scratch::new(&format!("{name}-{release}")).expect("a directory");
                eprintln!("{name} on {release}");
                test(release, scratch.path()).await;
            }
            Err(missing) => skip(&format!("etcd::{name}::{release}"), missing),
        }
    }
}

fn start(release: Release, dir: &Path, options: Options) -> real::Etcd {
    real::Etcd::start("etcd", release, dir, options).expect("etcd starts")
}

/// Quick enough for tests: progress is asked for often.
fn config(etcd: &real::Etcd) -> EtcdConfig {
    let mut config = EtcdConfig::new(etcd.endpoints());
    config.watch_progress = Duration::from_millis(100);
    config.watch_stall = Duration::from_secs(3);
    config
}

async fn connect(etcd: &real::Etcd) -> Arc<dyn Store> {
    connected(config(etcd)).await
}

async fn connected(config: EtcdConfig) -> Arc<dyn Store> {
    Arc::new(Etcd::connect(config).await.expect("the configuration makes sense"))
}

async fn commit(store: &dyn Store, ops: Vec<Op>) -> Result<Revision, StoreError> {
    match store.commit(Txn { guards: Vec::new(), ops }).await? {
        Commit::Done(revision) => Ok(revision),
        Commit::GuardFailed => unreachable!("there is no guard"),
    }
}

async fn put(store: &dyn Store, key: &str, value: &str) -> Revision {
    commit(store, vec![Op::put(key, value.to_owned())]).await.expect("commits")
}

fn range(prefix: &str, limit: usize, revision: Option<Revision>) -> Range {
    Range { prefix: prefix.to_owned(), after: None, limit, revision }
}

async fn next(watch: &mut Watch) -> Option<WatchEvent> {
    timeout(LONG, watch.events.recv()).await.expect("the watch says something")
}

/// What the watch says last.
async fn last_word(watch: &mut Watch) -> Option<WatchEvent> {
    let mut last = None;
    while let Some(event) = next(watch).await {
        last = Some(event);
    }
    last
}

/// Tries until it works; fails after [`LONG`].
async fn eventually<T>(what: &str, mut attempt: impl AsyncFnMut() -> Result<T, StoreError>) -> T {
    let since = Instant::now();
    loop {
        match attempt().await {
            Ok(done) => return done,
            Err(error) => assert!(since.elapsed() < LONG, "{what}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
