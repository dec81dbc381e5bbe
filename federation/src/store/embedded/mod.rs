//! The store of one process, on redb: durable in a file, or in memory.
//!
//! Owns: the file, its history and its leases. Promises what [`super`] promises; a commit is
//! answered after fsync. The file is made whole or not at all, is one process's at a time, is
//! verified when it is opened, and then no key is left that hung on a lease: the process that held
//! it is gone. Compaction frees pages for reuse; the file does not shrink.
//!
//! One task writes: whatever has queued up while the disk was busy becomes one durable commit of
//! the file, so many small commits at once cost few fsyncs, yet each has its own revision and its
//! own outcome. Everything that touches the file runs on the runtime's blocking threads, where a
//! panic of the library over a damaged page is one failed request.
//!
//! Turned down: a writer thread of its own (a test's paused clock runs on while it works, it
//! cannot see such a thread); all live keys in memory beside the file (two states to keep equal,
//! for reads that redb's page cache already makes cheap); ending slow watches (the history that
//! they lack is in the file, so they can be left to read it).

mod disk;
mod lease;
mod open;
mod read;
#[cfg(test)]
mod tests;
mod watch;
mod write;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use redb::Database;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info_span};

pub use self::open::OpenError;

use self::disk::{Disk, Failure, closed};
use self::lease::Leases;
use self::open::Opened;
use self::read::Committed;
use self::watch::Feed;
use self::write::{Answer, Request, Work, apply};
use super::{Commit, LeaseId, Page, Range, Revision, Store, StoreError, Txn, Watch};

/// Requests that wait for the writer; more wait for room.
const REQUESTS: usize = 256;
/// Requests per durable commit of the file.
const BATCH: usize = 64;
/// Commits that a watch may lag behind before it reads the file again.
const LIVE: usize = 256;
/// Events that wait for the reader of a watch; then the watch waits.
const WATCH: usize = 64;

/// A store in a file or in memory, for one process. Close it with [`Embedded::close`], or drop it:
/// both end its watches and release the file before they return.
pub struct Embedded {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
    tasks: Mutex<JoinSet<()>>,
}

struct Shared {
    disk: Disk,
    leases: Leases,
    commits: broadcast::Sender<Arc<Committed>>,
    stop: CancellationToken,
}

impl Embedded {
    /// Opens the file, or makes it, and the directories above.
    ///
    /// # Errors
    /// Each [`OpenError`] says what to do.
    pub async fn open(path: impl Into<PathBuf>) -> Result<Self, OpenError> {
        let path = path.into();
        let damaged = path.clone();
        let opened = spawn_blocking(move || open::file(&path)).await.unwrap_or_else(|failed| {
            Err(OpenError::Damaged { path: damaged, reason: failed.to_string() })
        })?;
        Ok(Self::start(opened))
    }

    /// A store that is gone when dropped.
    ///
    /// # Errors
    /// None that are known; redb's interface has them.
    #[expect(clippy::unused_async, reason = "needs a runtime as `open` does, and reads like it")]
    pub async fn in_memory() -> Result<Self, OpenError> {
        Ok(Self::start(open::memory()?))
    }

    fn start(Opened { database, times }: Opened) -> Self {
        let shared = Arc::new(Shared {
            disk: Disk::new(database),
            leases: Leases::new(times << 32),
            commits: broadcast::Sender::new(LIVE),
            stop: CancellationToken::new(),
        });
        let (requests, requests_rx) = mpsc::channel(REQUESTS);
        let mut tasks = JoinSet::new();
        tasks.spawn(write(Arc::clone(&shared), requests_rx).instrument(info_span!("store")));
        tasks.spawn(expire(Arc::clone(&shared), requests.clone()).instrument(info_span!("leases")));
        Self { shared, requests, tasks: Mutex::new(tasks) }
    }

    /// Ends what runs, then closes the file; whatever is asked after that is
    /// [`StoreError::Unavailable`]. Watches end with [`super::WatchEvent::Ended`].
    pub async fn close(&self) {
        self.shared.stop.cancel();
        let mut tasks = std::mem::take(&mut *self.tasks());
        while tasks.join_next().await.is_some() {}
        let shared = Arc::clone(&self.shared);
        if let Err(failed) = spawn_blocking(move || shared.disk.close()).await {
            error!(error = %failed, "closing the store failed");
        }
    }

    async fn request(&self, work: Work) -> Result<Answer, StoreError> {
        let (reply, answer) = oneshot::channel();
        let request = Request { work, reply };
        if self.requests.send(request).await.is_err() {
            return Err(closed());
        }
        answer.await.unwrap_or_else(|_| Err(abandoned(&self.shared)))
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, JoinSet<()>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Embedded {
    /// Waits for the disk if a commit is under way: whoever opens the file next finds it free.
    fn drop(&mut self) {
        self.shared.stop.cancel();
        self.shared.disk.close();
    }
}

impl std::fmt::Debug for Embedded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Embedded").finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for Embedded {
    async fn range(&self, range: Range) -> Result<Page, StoreError> {
        blocking(&self.shared, move |database| read::range(database, &range)).await
    }

    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError> {
        txn.check()?;
        match self.request(Work::Commit(txn)).await? {
            Answer::Commit(commit) => Ok(commit),
            other => Err(confused(&other)),
        }
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        if self.shared.stop.is_cancelled() {
            return Err(closed());
        }
        let (events, events_rx) = mpsc::channel(WATCH);
        let next = from.max(1);
        let feed = Feed {
            live: self.shared.commits.subscribe(),
            shared: Arc::clone(&self.shared),
            events,
            prefix: prefix.into(),
            next,
            told: next - 1,
        };
        let mut tasks = self.tasks();
        while let Some(ended) = tasks.try_join_next() {
            if let Err(failed) = ended {
                error!(error = %failed, "a task of the store failed");
            }
        }
        tasks.spawn(feed.run().instrument(info_span!("watch", prefix, from)));
        Ok(Watch { events: events_rx })
    }

    async fn compact(&self, oldest: Revision) -> Result<(), StoreError> {
        loop {
            match self.request(Work::Compact(oldest)).await? {
                Answer::Compacted { more: true } => {}
                Answer::Compacted { more: false } => return Ok(()),
                other => return Err(confused(&other)),
            }
        }
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        if self.shared.stop.is_cancelled() {
            return Err(closed());
        }
        self.shared.leases.grant(ttl)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        if self.shared.stop.is_cancelled() {
            return Err(closed());
        }
        self.shared.leases.keep_alive(lease)
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        match self.request(Work::Revoke(lease)).await? {
            Answer::Ended => Ok(()),
            other => Err(confused(&other)),
        }
    }
}

/// Runs `work` where waiting for the disk holds up nobody.
async fn blocking<T: Send + 'static>(
    shared: &Arc<Shared>,
    work: impl FnOnce(&Database) -> Result<T, Failure> + Send + 'static,
) -> Result<T, StoreError> {
    let shared = Arc::clone(shared);
    match spawn_blocking(move || shared.disk.with(work)).await {
        Ok(result) => result,
        Err(failed) if failed.is_panic() => Err(StoreError::Damaged(failed.to_string())),
        Err(_) => Err(closed()),
    }
}

/// The one that writes.
async fn write(shared: Arc<Shared>, mut requests: mpsc::Receiver<Request>) {
    loop {
        let mut batch = Vec::new();
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            // Safe to drop: it takes nothing unless it is done.
            taken = requests.recv_many(&mut batch, BATCH) => if taken == 0 { return },
        }
        let shared = Arc::clone(&shared);
        let now = Instant::now();
        // Not cut short by a stop: the closure publishes and answers before it ends.
        if let Err(failed) = spawn_blocking(move || write_batch(&shared, batch, now)).await {
            error!(error = %failed, "a write failed, its outcome is unknown");
        }
    }
}

/// Publishes before it answers: who has the answer finds the commit in every watch.
fn write_batch(shared: &Shared, batch: Vec<Request>, now: Instant) {
    let (work, replies): (Vec<Work>, Vec<_>) =
        batch.into_iter().map(|request| (request.work, request.reply)).unzip();
    let applied = shared.disk.with(|database| apply(database, &shared.leases, now, &work));
    let (answers, committed) = applied.unwrap_or_else(|error| {
        error!(%error, requests = work.len(), "the store could not write");
        (work.iter().map(|_| Err(error.clone())).collect(), Vec::new())
    });
    for commit in committed {
        // Nobody watching is no error, here nor below.
        let _ = shared.commits.send(commit);
    }
    for (reply, answer) in replies.into_iter().zip(answers) {
        let _ = reply.send(answer);
    }
}

/// Has the writer end leases that ran out. If that fails, the file is not to be written any more
/// until it is opened again, and that ends them too.
async fn expire(shared: Arc<Shared>, requests: mpsc::Sender<Request>) {
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = shared.leases.expired() => {}
        }
        let (reply, answer) = oneshot::channel();
        let work = Work::Expire;
        if requests.send(Request { work, reply }).await.is_err() {
            return;
        }
        // Until it is done the same leases would be found again.
        if !matches!(answer.await, Ok(Ok(_))) {
            return;
        }
    }
}

fn abandoned(shared: &Shared) -> StoreError {
    if shared.stop.is_cancelled() {
        closed()
    } else {
        StoreError::Unavailable("the write failed, its outcome is unknown".to_owned())
    }
}

fn confused(answer: &Answer) -> StoreError {
    StoreError::Unavailable(format!("the writer answered another request: {answer:?}"))
}
