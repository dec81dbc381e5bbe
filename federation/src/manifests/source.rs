//! Following a directory.
//!
//! The kernel says that something changed, never what it means: each time the whole directory is
//! looked at, files that did not change are not read again, and one path serves start, edit and
//! the periodic pass that makes up for lost events. When the directory cannot be watched (it is
//! gone, or the machine is out of watches) it is looked at several times a second instead.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::{EventKind, RecursiveMode, Watcher};
use tokio::sync::{Notify, watch};
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::problem::Problem;
use super::reader::{REST, Reader, Touched};
use super::scan::FileId;
use super::translate::translate;
use super::{Desired, Listing, Options};

/// An edit is over when nothing happened for this long: editors and `cp` write in several steps.
const QUIET: Duration = Duration::from_millis(50);
/// Under steady writing, look nevertheless: an edit is promised to show within 300 ms.
const AT_MOST: Duration = Duration::from_millis(200);
/// Makes up for events that the kernel or a network file system did not deliver.
const PASS: Duration = Duration::from_secs(5);
/// How often to look while nothing tells of changes.
const PASS_UNWATCHED: Duration = Duration::from_millis(200);
/// Names of touched files to remember; beyond, all are read again.
const MAX_TOUCHED: usize = 1024;
/// New problems that are logged one by one; the status lists all.
const MAX_LOGGED: usize = 20;

/// Why following a directory ended early.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A fault of this program: what is in the directory never is one.
    #[error("reading the manifests in {} ended unexpectedly", .directory.display())]
    Reading {
        /// The directory.
        directory: PathBuf,
        /// How it ended.
        #[source]
        source: JoinError,
    },
}

/// A directory of manifests, and what it says. Does nothing until [`Source::run`] is polled.
#[derive(Debug)]
pub struct Source {
    state: State,
    options: watch::Receiver<Options>,
    signal: Arc<Signal>,
    desired: watch::Sender<Arc<Desired>>,
}

impl Source {
    /// Reads `directory` once and starts to watch it. A directory that is missing is no error:
    /// the result says so, is not [`complete`](Desired::complete), and what appears is read. A
    /// change of `options` shows at once.
    ///
    /// # Errors
    /// Only for a fault of the program itself.
    pub async fn open(
        directory: PathBuf,
        options: watch::Receiver<Options>,
    ) -> Result<(Self, watch::Receiver<Arc<Desired>>), SourceError> {
        let signal = Arc::new(Signal::default());
        let state = State {
            reader: Reader::new(directory, Instant::now()),
            watched: None,
            unwatchable: false,
        };
        let now = options.borrow().clone();
        let (state, first) = look(state, Some(Touched::default()), now, &signal).await?;
        log(&[], &first);
        let (desired, desired_rx) = watch::channel(Arc::new(first));
        Ok((Self { state, options, signal, desired }, desired_rx))
    }

    /// Follows the directory until `stop`.
    ///
    /// # Errors
    /// Only for a fault of the program itself.
    pub async fn run(self, stop: CancellationToken) -> Result<(), SourceError> {
        let Self { mut state, mut options, signal, desired } = self;
        let mut pass = interval(PASS);
        pass.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut often = interval(PASS_UNWATCHED);
        often.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut options_live = true;
        loop {
            // Until two looks find the same, what is missing may be still to come.
            let settled = desired.borrow().listing.settled;
            let again = Instant::now() + REST;
            let unwatched = state.watched.is_none();
            // Every future here may be dropped: the signal keeps what it was told.
            let touched = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = signal.changed.notified() => {
                    tokio::select! {
                        () = stop.cancelled() => return Ok(()),
                        () = signal.settled() => Some(signal.take()),
                    }
                }
                changed = options.changed(), if options_live => {
                    options_live = changed.is_ok();
                    None
                }
                () = sleep_until(again), if !settled => Some(signal.take()),
                _ = pass.tick() => Some(signal.take()),
                _ = often.tick(), if unwatched => Some(signal.take()),
            };
            let now = options.borrow_and_update().clone();
            let (next_state, next) = look(state, touched, now, &signal).await?;
            state = next_state;
            publish(&desired, next);
        }
    }
}

/// Another listing of the same is no news, unless it confirms that nothing is there. It is there to
/// be found all the same: it may confirm that something is lacking.
fn publish(desired: &watch::Sender<Arc<Desired>>, mut next: Desired) {
    desired.send_if_modified(|current| {
        let listing = next.listing;
        if listing.lost.is_none() {
            let Listing { id, at, .. } = current.listing;
            next.listing = Listing { id, at, ..listing };
        }
        let news = **current != next;
        next.listing = listing;
        if news {
            log(&current.problems, &next);
        }
        *current = Arc::new(next);
        news
    });
}

/// Says what is newly wrong, and that something is no more.
fn log(before: &[Problem], now: &Desired) {
    let mut new = now.problems.iter().filter(|problem| !before.contains(problem));
    for problem in new.by_ref().take(MAX_LOGGED) {
        warn!(%problem, "manifest is not used as it stands");
    }
    let more = new.count();
    if more > 0 {
        warn!(more, "more manifests are not used as they stand");
    }
    let gone = before.iter().filter(|old| !now.problems.contains(old)).count();
    if gone > 0 {
        info!(gone, left = now.problems.len(), "problems of manifests are gone");
    }
}

/// What a look at the directory needs and leaves behind.
#[derive(Debug)]
struct State {
    reader: Reader,
    watched: Option<Watched>,
    /// Watching failed, and that was said.
    unwatchable: bool,
}

/// A watch on the directory that was at the path at the time.
struct Watched {
    _watcher: notify::RecommendedWatcher,
    directory: FileId,
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watched").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// Looks at the directory (unless `touched` is `None`: only options changed) on a thread that may
/// block.
async fn look(
    mut state: State,
    touched: Option<Touched>,
    options: Options,
    signal: &Arc<Signal>,
) -> Result<(State, Desired), SourceError> {
    let directory = state.reader.root().to_owned();
    let (signal, now) = (Arc::clone(signal), Instant::now());
    let looking = spawn_blocking(move || {
        if let Some(mut touched) = touched {
            // Watch first, so that no edit falls between.
            touched.all |= state.watch(&signal);
            state.reader.refresh(&touched, now);
        }
        let desired = translate(state.reader.view(), &options);
        (state, desired)
    });
    looking.await.map_err(|source| SourceError::Reading { directory, source })
}

impl State {
    /// Makes sure that what is at the path is watched, which may be another directory than
    /// before. Returns whether a new watch began.
    fn watch(&mut self, signal: &Arc<Signal>) -> bool {
        let root = self.reader.root();
        let Ok(directory) = std::fs::metadata(root).map(|metadata| FileId::of(&metadata)) else {
            self.watched = None;
            return false;
        };
        if self.watched.as_ref().is_some_and(|watched| watched.directory == directory) {
            return false;
        }
        match watcher(root, signal) {
            Ok(watcher) => {
                self.watched = Some(Watched { _watcher: watcher, directory });
                self.unwatchable = false;
                true
            }
            Err(error) => {
                if !self.unwatchable {
                    let directory = root.display();
                    warn!(%directory, %error, "cannot watch the directory, looking again and again");
                }
                self.watched = None;
                self.unwatchable = true;
                false
            }
        }
    }
}

fn watcher(root: &Path, signal: &Arc<Signal>) -> notify::Result<notify::RecommendedWatcher> {
    let signal = Arc::clone(signal);
    let mut watcher = notify::recommended_watcher(move |event| signal.event(event))?;
    watcher.watch(root, RecursiveMode::Recursive)?;
    Ok(watcher)
}

/// From the watcher's thread to the task: bounded, and never waits.
#[derive(Debug, Default)]
struct Signal {
    touched: Mutex<Touched>,
    changed: Notify,
}

impl Signal {
    fn event(&self, event: notify::Result<notify::Event>) {
        let mut touched = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            // Our own reading opens and closes files.
            Ok(event) if is_reading(event.kind) => return,
            Ok(event) if event.need_rescan() => touched.all = true,
            Ok(event) => touched.add(event.paths.iter().filter_map(|path| path.file_name())),
            Err(_) => touched.all = true,
        }
        drop(touched);
        self.changed.notify_one();
    }

    fn take(&self) -> Touched {
        std::mem::take(&mut *self.touched.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until nothing has happened for a while.
    async fn settled(&self) {
        let latest = Instant::now() + AT_MOST;
        loop {
            let quiet = (Instant::now() + QUIET).min(latest);
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep_until(quiet) => return,
            }
            if Instant::now() >= latest {
                return;
            }
        }
    }
}

fn is_reading(kind: EventKind) -> bool {
    use notify::event::{AccessKind, AccessMode};
    matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}

impl Touched {
    fn add<'a>(&mut self, names: impl Iterator<Item = &'a std::ffi::OsStr>) {
        self.names.extend(names.map(OsString::from));
        if self.names.len() > MAX_TOUCHED {
            self.names = BTreeSet::new();
            self.all = true;
        }
    }
}

#[cfg(test)]
mod tests;
