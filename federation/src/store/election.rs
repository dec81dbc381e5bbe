//! One leader among the replicas of a region, by a key of the store that hangs on a lease.
//!
//! Owns: [`campaign`] and the [`Leadership`] it ends with. Promises: whoever adds
//! [`Leadership::fence`] to each transaction commits nothing once another one leads, however late
//! it learns of that: the fence names the commit that created the election key, and the next
//! leader's is another. [`Leadership::lost`] ends at the latest when no sign of life got through
//! for nine tenths of the lease's time, on this process's monotonic clock: normally before another
//! one can lead. That is a courtesy, the fence is the guarantee. Leaves to others: what a leader does, and to stop doing it when it is lost.
//!
//! Turned down: leading as long as the lease is believed to live (clocks drift, processes are
//! suspended); etcd's election service (one more thing that an embedded store would have to fake).

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span, warn};

use super::{
    Commit, Event, Guard, LeaseId, Op, Range, Revision, Store, StoreError, Txn, WatchEvent,
    ending_by, read,
};

/// Signs of life per lease time.
const SIGNS: u32 = 3;
/// The part of the lease time that one of them may take: it is then given again, and once more
/// before the leader gives up.
const PER_SIGN: u32 = 4;
/// The part of the lease time after which one that failed is given again.
const AGAIN: u32 = 20;
/// The part of the lease time by which a leader gives up before the store may: it should have
/// noticed, on a clock that runs a little slower and a busy machine, when another one leads.
const MARGIN: u32 = 10;
/// A leader that is gone for longer is of no use to anybody.
const LONGEST: Duration = Duration::from_hours(1);

/// Waits until this candidate leads; tries again as long as the store is not available. May be
/// dropped at any time: what it has begun then ends by itself after `ttl`.
///
/// `key` is the election's, `id` says to people who leads, `ttl` is cut to an hour.
///
/// # Errors
/// [`StoreError::Damaged`] and [`StoreError::Refused`] (a `ttl` of zero, a bad key): what waiting
/// does not heal.
pub async fn campaign(
    store: Arc<dyn Store>,
    key: &str,
    id: &str,
    ttl: Duration,
) -> Result<Leadership, StoreError> {
    campaign_saying(store, key, || id.to_owned(), ttl).await
}

/// The same for a candidate whose `id` says since when it leads: it is asked at each attempt.
///
/// # Errors
/// Those of [`campaign`].
pub async fn campaign_saying(
    store: Arc<dyn Store>,
    key: &str,
    id: impl Fn() -> String + Send + Sync,
    ttl: Duration,
) -> Result<Leadership, StoreError> {
    let ttl = ttl.min(LONGEST);
    loop {
        match attempt(&store, key, &id(), ttl).await {
            Ok(Some(won)) => return Ok(Leadership::start(store, key, ttl, won)),
            Ok(None) => match vacancy(&*store, key).await {
                Ok(()) => {}
                Err(error) => pause(key, error, ttl).await?,
            },
            Err(error) => pause(key, error, ttl).await?,
        }
    }
}

/// Who leads, by the `id` it campaigned with.
///
/// # Errors
/// Those of [`Store::range`].
pub async fn leader(store: &dyn Store, key: &str) -> Result<Option<String>, StoreError> {
    let entry = read(store, key).await?;
    Ok(entry.map(|entry| String::from_utf8_lossy(&entry.value).into_owned()))
}

/// This process leads, or did until [`Leadership::lost`]. Dropping it resigns: the key is deleted
/// in the background, at the latest when the lease runs out.
#[derive(Debug)]
pub struct Leadership {
    key: String,
    created: Revision,
    lost: CancellationToken,
    resign: CancellationToken,
    keeper: JoinSet<()>,
}

impl Leadership {
    fn start(store: Arc<dyn Store>, key: &str, ttl: Duration, won: Won) -> Self {
        info!(key, revision = won.created, "leading");
        let (lost, resign) = (CancellationToken::new(), CancellationToken::new());
        let created = won.created;
        let keeper = Keeper { store, key: key.to_owned(), ttl, won, lost: lost.clone() };
        let mut tasks = JoinSet::new();
        let span = info_span!("leadership", key, revision = created);
        tasks.spawn(keeper.run(resign.clone()).instrument(span));
        Self { key: key.to_owned(), created, lost, resign, keeper: tasks }
    }

    /// Holds while this one leads. Every transaction that only a leader may make has it.
    #[must_use]
    pub fn fence(&self) -> Guard {
        Guard::CreateRevision(self.key.clone(), self.created)
    }

    /// Ends when another one may lead. Borrows nothing, so that it can stand in any `select!`.
    pub fn lost(&self) -> impl Future<Output = ()> + Send + 'static {
        self.lost.clone().cancelled_owned()
    }

    /// Whether [`Leadership::lost`] has ended.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }

    /// Hands over; returns when the key is deleted, or could not be within the lease's time.
    pub async fn resign(mut self) {
        self.resign.cancel();
        while self.keeper.join_next().await.is_some() {}
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        self.resign.cancel();
        self.lost.cancel();
        // It ends by itself: once it has revoked the lease, or after the lease's time.
        self.keeper.detach_all();
    }
}

struct Won {
    created: Revision,
    lease: LeaseId,
    /// Before the lease was asked for: it lives no shorter than counted from here.
    since: Instant,
}

/// Takes the key if it is free.
async fn attempt(
    store: &Arc<dyn Store>,
    key: &str,
    id: &str,
    ttl: Duration,
) -> Result<Option<Won>, StoreError> {
    let since = Instant::now();
    // One that is granted later has run out, or is about to.
    let granted = ending_by(since + ttl, store.grant_lease(ttl)).await;
    let late = || StoreError::Unavailable("no lease in time".to_owned());
    let lease = granted.unwrap_or_else(|_| Err(late()))?;
    let value = bytes::Bytes::copy_from_slice(id.as_bytes());
    let txn = Txn {
        guards: vec![Guard::CreateRevision(key.to_owned(), 0)],
        ops: vec![Op::Put { key: key.to_owned(), value, lease: Some(lease) }],
    };
    match store.commit(txn).await {
        Ok(Commit::Done(created)) => Ok(Some(Won { created, lease, since })),
        Ok(Commit::GuardFailed) => {
            revoke(&**store, lease, ttl).await;
            Ok(None)
        }
        Err(error) => {
            // It may have happened all the same; then this gives the key back.
            revoke(&**store, lease, ttl).await;
            Err(error)
        }
    }
}

/// Returns when the key is free, or may be.
async fn vacancy(store: &dyn Store, key: &str) -> Result<(), StoreError> {
    let range = Range { prefix: key.to_owned(), after: None, limit: 1, revision: None };
    let page = store.range(range).await?;
    if page.entries.first().is_none_or(|entry| entry.key != key) {
        return Ok(());
    }
    let mut watch = store.watch(key, page.revision + 1).await?;
    loop {
        match watch.events.recv().await {
            Some(WatchEvent::Commit { events, .. }) if events.iter().any(|e| frees(e, key)) => {
                return Ok(());
            }
            Some(WatchEvent::Commit { .. } | WatchEvent::Progress { .. }) => {}
            Some(WatchEvent::Compacted { .. }) => return Ok(()),
            Some(WatchEvent::Ended(error)) => return Err(error),
            None => return Err(StoreError::Unavailable("the watch ended".to_owned())),
        }
    }
}

fn frees(event: &Event, key: &str) -> bool {
    matches!(event, Event::Delete { key: deleted, .. } if deleted == key)
}

/// After `error`; or says that waiting does not help.
async fn pause(key: &str, error: StoreError, ttl: Duration) -> Result<(), StoreError> {
    match error {
        StoreError::Damaged(_) | StoreError::Refused(_) => Err(error),
        StoreError::Unavailable(_)
        | StoreError::NoLease(_)
        | StoreError::Compacted { .. }
        | StoreError::Future { .. } => {
            debug!(key, %error, "no campaign now, trying again");
            sleep(ttl / SIGNS).await;
            Ok(())
        }
    }
}

async fn revoke(store: &dyn Store, lease: LeaseId, ttl: Duration) {
    match ending_by(Instant::now() + ttl, store.revoke_lease(lease)).await {
        Ok(Ok(()) | Err(StoreError::NoLease(_))) => {}
        Ok(Err(error)) => debug!(?lease, %error, "the lease is left to run out"),
        Err(_) => debug!(?lease, "the lease has run out"),
    }
}

/// Gives signs of life until it resigns or is lost.
struct Keeper {
    store: Arc<dyn Store>,
    key: String,
    ttl: Duration,
    won: Won,
    lost: CancellationToken,
}

impl Keeper {
    async fn run(self, resign: CancellationToken) {
        tokio::select! {
            biased;
            // Safe to drop: a sign of life that is given up halfway harms nothing.
            why = self.keep() => warn!(why, "leadership lost"),
            () = resign.cancelled() => info!("resigning"),
        }
        self.lost.cancel();
        // Also when lost: the next leader need not wait, if the store hears us after all.
        revoke(&*self.store, self.won.lease, self.ttl).await;
    }

    /// Why it ended.
    async fn keep(&self) -> &'static str {
        let mut alive = self.won.since;
        let mut next = alive + self.ttl / SIGNS;
        loop {
            let end = alive + self.ttl - self.ttl / MARGIN;
            if timeout_at(end, sleep_until(next)).await.is_err() {
                return "no sign of life got through in time";
            }
            let asked = Instant::now();
            // A server that does not answer may have its share of this, not of the time that is left.
            let why = match ending_by(end.min(asked + self.ttl / PER_SIGN), self.sign()).await {
                Ok(Ok(true)) => {
                    (alive, next) = (asked, asked + self.ttl / SIGNS);
                    continue;
                }
                Ok(Ok(false)) => return "the election key is not ours any more",
                Ok(Err(StoreError::NoLease(_))) => return "the lease has ended",
                Ok(Err(error)) => error.to_string(),
                Err(_) => "not in time".to_owned(),
            };
            debug!(why, "a sign of life did not get through");
            next = Instant::now() + self.ttl / AGAIN;
        }
    }

    /// Whether the key is still ours: somebody may have deleted it, or restored the store.
    async fn sign(&self) -> Result<bool, StoreError> {
        self.store.keep_alive(self.won.lease).await?;
        let entry = read(&*self.store, &self.key).await?;
        Ok(entry.is_some_and(|entry| entry.create_revision == self.won.created))
    }
}
