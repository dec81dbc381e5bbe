//! When what is held is saved.
//!
//! Owns: the one task that saves. Promises: only what is whole is saved, so that a part never takes
//! the place of a whole; a change is on disk a second after it, but nothing is saved more often
//! than every 5 s, nor for more than a tenth of the time; what was loaded is not replaced before it
//! has proven itself, or three starts that it ended would each leave a new image with the same
//! fault; a disk that fails is tried again, ever less often, while everything is served from
//! memory, and is told of once per reason; a clean stop saves. Beacons alone are saved once a
//! minute, for the ages of owners. Leaves to others: what whole means.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{Cache, Loaded, Saved, Snapshot};
use crate::digest::Digest;
use crate::key::Kind;
use crate::names::Owner;
use crate::record::Epoch;
use crate::replica::Replicas;
use crate::sync::chain;
use crate::sync::service::WallClock;

/// How often what is held is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Changes that come together are saved together.
    pub after_change: Duration,
    /// Least time between two saves.
    pub every: Duration,
    /// How old the saved ages of owners get when nothing else changes.
    pub refresh: Duration,
    /// A process that lives so long with a loaded image was not ended by it.
    pub proven_after: Duration,
    /// Longest wait after a failure.
    pub retry: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            after_change: Duration::from_secs(1),
            every: Duration::from_secs(5),
            refresh: Duration::from_mins(1),
            proven_after: Duration::from_mins(1),
            retry: Duration::from_mins(1),
        }
    }
}

/// A save that takes long is put off by so many times what the last one took.
const SHARE: u32 = 10;

/// How the cache stands, for status, metrics and readiness.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standings {
    /// The newest good image on disk.
    pub newest: Option<Kept>,
    /// The image that this process started from.
    pub restored: Option<Kept>,
    /// What was wrong at the start, in full sentences.
    pub found: Vec<String>,
    /// Why the last save failed, if it did.
    pub failing: Option<String>,
    /// What is held differs from the newest image; ages of owners apart.
    pub unsaved: bool,
    /// Saves that succeeded.
    pub saved: u64,
    /// Saves that failed.
    pub failed: u64,
}

/// An image by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Its generation.
    pub generation: u64,
    /// When it was saved.
    pub saved_at: Timestamp,
}

impl Standings {
    /// Of a process that has just started.
    #[must_use]
    pub fn of(loaded: &Loaded) -> Self {
        let restored = loaded.image.as_ref();
        let restored =
            restored.map(|image| Kept { generation: image.generation, saved_at: image.saved_at });
        let found = loaded.problems.iter().map(ToString::to_string).collect();
        Self { newest: restored, restored, found, ..Self::default() }
    }
}

/// Sections to save with a view of the replica; must be quick. Asked for before the view is taken:
/// a resume point in it is never ahead of the records.
pub type Extra = Arc<dyn Fn() -> BTreeMap<String, Bytes> + Send + Sync>;

/// What the task works on.
pub struct Keeper {
    /// Where to.
    pub cache: Cache,
    /// What is held.
    pub replicas: Replicas,
    /// Whether what is held is all that was ever known.
    pub whole: watch::Receiver<bool>,
    /// What else belongs to it.
    pub extra: Extra,
    /// For the ages of owners and images.
    pub clock: WallClock,
    /// How often.
    pub settings: Settings,
    /// Where the outcome goes; begins as [`Standings::of`] what was loaded.
    pub standings: watch::Sender<Standings>,
}

impl Keeper {
    /// Saves until told to stop, and then once more.
    pub async fn run(self, stop: CancellationToken) {
        let Self { cache, replicas, whole, extra, clock, settings, standings } = self;
        let sources = Sources { replicas, whole, extra };
        let cache = Arc::new(Mutex::new(cache));
        let mut saver = Saver { cache, clock, standings, settings, last: None, failures: 0 };
        saver.prove(&stop).await;
        saver.follow(sources, &stop).await;
    }
}

struct Sources {
    replicas: Replicas,
    whole: watch::Receiver<bool>,
    extra: Extra,
}

impl Sources {
    fn whole(&self) -> bool {
        *self.whole.borrow()
    }

    fn snapshot(&mut self) -> Snapshot {
        let extra = (self.extra)();
        Snapshot { replica: self.replicas.current(), extra }
    }
}

/// Equal for two snapshots that would be restored as the same, ages apart.
#[derive(Debug, PartialEq)]
struct Content(BTreeMap<Owner, (Digest, BTreeMap<Kind, Epoch>)>);

impl Content {
    fn of(snapshot: &Snapshot) -> Self {
        let holdings = snapshot.replica.owners();
        let content = holdings.map(|(owner, holding)| {
            (owner.clone(), (holding.digest(), holding.complete().clone()))
        });
        Self(content.collect())
    }
}

struct Saver {
    cache: Arc<Mutex<Cache>>,
    clock: WallClock,
    standings: watch::Sender<Standings>,
    settings: Settings,
    last: Option<Last>,
    failures: u32,
}

/// The last save of this process.
struct Last {
    content: Content,
    at: Instant,
    /// Until when the next one has to wait.
    rest: Instant,
}

impl Saver {
    /// Waits until the image that was loaded, if any, has proven itself, or for a clean stop.
    async fn prove(&self, stop: &CancellationToken) {
        if self.standings.borrow().restored.is_some() {
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(self.settings.proven_after) => {}
            }
        }
        let cache = Arc::clone(&self.cache);
        let proven = spawn_blocking(move || lock(&cache).proven()).await;
        if let Ok(Err(error)) = proven {
            warn!(%error, "the disk cache cannot note that this start went well");
        }
    }

    async fn follow(&mut self, mut sources: Sources, stop: &CancellationToken) {
        let mut changed_at = None;
        let mut retry_at = None;
        loop {
            let snapshot = sources.snapshot();
            changed_at = self.differs(&snapshot).then(|| changed_at.unwrap_or_else(Instant::now));
            self.note(changed_at.is_some());
            let due = self.due(changed_at).max(retry_at.unwrap_or_else(Instant::now));
            let whole = sources.whole();
            // All may be dropped: what has changed is looked at anew.
            let open = tokio::select! {
                () = stop.cancelled() => false,
                open = sources.replicas.changed() => open,
                Ok(()) = sources.whole.changed() => true,
                () = sleep_until(due), if whole => {
                    let saved = self.save(sources.snapshot()).await;
                    changed_at = None;
                    retry_at = (!saved).then(|| Instant::now() + self.backoff());
                    true
                }
            };
            if !open {
                break;
            }
        }
        let snapshot = sources.snapshot();
        if self.differs(&snapshot) && sources.whole() {
            self.save(snapshot).await;
        }
    }

    /// From what this process saved last.
    fn differs(&self, snapshot: &Snapshot) -> bool {
        self.last.as_ref().is_none_or(|last| last.content != Content::of(snapshot))
    }

    fn note(&self, unsaved: bool) {
        self.standings.send_if_modified(|standings| {
            std::mem::replace(&mut standings.unsaved, unsaved) != unsaved
        });
    }

    fn due(&self, first_change: Option<Instant>) -> Instant {
        let Some(last) = &self.last else {
            return first_change.unwrap_or_else(Instant::now) + self.settings.after_change;
        };
        match first_change {
            Some(first) => (first + self.settings.after_change).max(last.rest),
            None => (last.at + self.settings.refresh).max(last.rest),
        }
    }

    fn backoff(&self) -> Duration {
        let doubled = 2_u32.saturating_pow(self.failures.saturating_sub(1));
        self.settings.after_change.saturating_mul(doubled).min(self.settings.retry)
    }

    /// Returns whether it is on disk.
    async fn save(&mut self, snapshot: Snapshot) -> bool {
        let content = Content::of(&snapshot);
        let cache = Arc::clone(&self.cache);
        let now = (self.clock)();
        let began = Instant::now();
        let outcome = spawn_blocking(move || lock(&cache).save(&snapshot, now)).await;
        let at = Instant::now();
        match outcome {
            Ok(Ok(saved)) => {
                let rest = at + self.settings.every.max((at - began) * SHARE);
                self.last = Some(Last { content, at, rest });
                self.failures = 0;
                self.saved(saved, now);
                true
            }
            Ok(Err(error)) => self.failed(&error),
            Err(panicked) => self.failed(&panicked),
        }
    }

    fn saved(&self, saved: Saved, now: Timestamp) {
        let Saved { generation, bytes } = saved;
        debug!(generation, bytes, "saved what is held");
        self.standings.send_modify(|standings| {
            if standings.failing.take().is_some() {
                info!(generation, "the disk cache can be written again");
            }
            standings.saved += 1;
            standings.newest = Some(Kept { generation, saved_at: now });
            // Both files were replaced since: nothing of what was found is there any more.
            if standings.saved >= 2 {
                standings.found.clear();
            }
        });
    }

    fn failed(&mut self, error: &(dyn std::error::Error + 'static)) -> bool {
        self.failures = self.failures.saturating_add(1);
        let reason = chain(error);
        self.standings.send_modify(|standings| {
            if standings.failing.as_ref() != Some(&reason) {
                warn!(
                    error = reason,
                    "what is held cannot be saved, it is served from memory; the last good image stays"
                );
            }
            standings.failed += 1;
            standings.failing = Some(reason);
        });
        false
    }
}

fn lock(cache: &Mutex<Cache>) -> std::sync::MutexGuard<'_, Cache> {
    cache.lock().unwrap_or_else(PoisonError::into_inner)
}
