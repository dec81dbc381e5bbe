//! Store to replica: keeps a process's replica equal to its region's store.
//!
//! Lists once and watches from there. When the watch ends (store away, too slow, compacted) it
//! goes on where it was if the store is still the same one ([`history`]), and lists anew if not. A
//! listing of another history is compared with what is held: an owner's older word takes nothing
//! away, and what the store lost is kept, shown as [`Lost`], and written back by the leader
//! ([`reseed`](super::reseed)). While the store is away the replica stays as it was and goes on
//! serving. A change that came in several transactions is shown at once.

mod listing;
mod state;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info, warn};

pub(super) use self::listing::read;
use self::state::State;
pub use self::state::{Lost, LostOwner};
use super::history::{self, Going, LONGEST, ResumePoint, Resumed, Trail};
use super::{client, facts};
use crate::proto::local::Founding;
use crate::replica::{Batch, ReplicaWriter};
use crate::store::{self, Revision, Store, StoreError, Watch, WatchEvent};

/// Follows all that Tombolo keeps.
pub const ALL: &str = "/tombolo/";
/// The rest of a change is waited for so long: its writer commits part after part, or is gone.
const UNFINISHED: Duration = Duration::from_secs(2);

/// How a follower is doing, for status and metrics.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Following {
    /// From where it would go on. Another process does so from [`Self::resume_point`].
    pub resume: Option<ResumePoint>,
    /// Why it does not follow just now.
    pub problem: Option<String>,
    /// Listings so far.
    pub listings: u64,
    /// How often the store turned out to have another history, and what was found the last time.
    pub other_histories: u64,
    /// See [`Self::other_histories`].
    pub other_history: Option<String>,
    /// What the store has lost and this process holds.
    pub lost: Arc<Lost>,
    /// What the store says of itself, as it was followed up to here: a leader that finds its own
    /// term in it knows that this is the store it writes to, with all that it has lost.
    pub founding: Option<Founding>,
    /// Where the store was when it was listed or gone on with the last time: all commits since were
    /// seen as they happened. Up to there it may have been restored to an earlier state, unnoticed
    /// by who had seen less.
    pub without_gap_since: Revision,
    /// Keys in the store that are no record keys, or have more under them than a record can be,
    /// and why: left alone, whoever wrote them. Up to 20.
    pub strays: BTreeMap<String, String>,
}

impl Following {
    /// From where a process may go on that has nothing but what is held here, from a disk. None while
    /// the store has lost some of that: who went on would compare nothing, and not know of it.
    #[must_use]
    pub fn resume_point(&self) -> Option<&ResumePoint> {
        self.resume.as_ref().filter(|_| self.lost.owners.is_empty())
    }
}

/// Follows `store` for ever; ends only when dropped. `resume` goes with what `writer` already
/// holds, if it comes from a disk cache.
///
/// # Errors
/// When the store is damaged: nothing that this process could do would mend it.
pub async fn follow(
    store: Arc<dyn Store>,
    writer: Arc<ReplicaWriter>,
    resume: Option<ResumePoint>,
    following: watch::Sender<Following>,
) -> Result<(), StoreError> {
    let state = State::new(resume);
    let mut follower = Follower { store, writer, state, following, from_disk: None };
    let mut backoff = client::backoff();
    loop {
        match follower.once(&mut backoff).await {
            Err(error @ StoreError::Damaged(_)) => return Err(error),
            Err(error) => follower.report(&error),
            Ok(()) => debug!("the watch ended"),
        }
        tokio::time::sleep(backoff.next().unwrap_or(client::MAX_BACKOFF)).await;
    }
}

struct Follower {
    store: Arc<dyn Store>,
    writer: Arc<ReplicaWriter>,
    state: State,
    following: watch::Sender<Following>,
    /// Up to where the store had come when it was asked, as long as what is held is behind that and
    /// has said of no time yet.
    from_disk: Option<Revision>,
}

impl Follower {
    async fn once(&mut self, backoff: &mut client::Backoff) -> Result<(), StoreError> {
        let (watch, next) = match self.resumed().await? {
            Some((watch, next)) => (watch, next),
            None => (self.list().await?, None),
        };
        *backoff = client::backoff();
        self.following.send_modify(|following| following.problem = None);
        self.follow(watch, next).await
    }

    /// The watch that goes on where the last one ended, if that is possible, and what it has said
    /// already.
    async fn resumed(&mut self) -> Result<Option<(Watch, Option<WatchEvent>)>, StoreError> {
        let Some(point) = self.state.resume() else { return Ok(None) };
        match history::resume(&*self.store, ALL, &point).await? {
            Resumed::Same(Going { watch, next, trail, current }) => {
                self.state.goes_on_after(trail);
                debug!(revision = point.revision, current, "the store is the same, going on");
                // What is held comes from a disk, and has not said yet of when it is.
                if self.writer.current().position == 0 {
                    self.from_disk = Some(current);
                    self.apply(Batch::default());
                }
                self.following.send_modify(|following| following.without_gap_since = current);
                Ok(Some((watch, next)))
            }
            Resumed::Other(why) => {
                self.another(why);
                // Told once: the listing that comes may fail.
                self.state.forget_point();
                Ok(None)
            }
        }
    }

    fn another(&self, why: String) {
        warn!(
            why,
            "the store has another history than the one that was followed: all of it is compared"
        );
        self.following.send_modify(|following| {
            following.other_histories += 1;
            following.other_history = Some(why);
        });
    }

    /// Reads everything. The watch begins at the store's last mark and goes over what was listed
    /// since: that is what shows the next time that the store is still the same.
    async fn list(&mut self) -> Result<Watch, StoreError> {
        let (entries, revision) = store::list(&*self.store, ALL).await?;
        if revision < self.state.revision() {
            let before = self.state.revision();
            self.another(format!("it is at revision {revision}, and was at {before} before"));
        }
        let marked = entries.iter().find(|entry| facts::is_mark(&entry.key, &entry.value));
        let marked = marked.map(|mark| mark.mod_revision).filter(|at| at + LONGEST >= revision);
        let batch = self.state.listed(&self.writer.current(), entries, revision);
        info!(revision, changes = batch.items.len(), "read the store");
        for (owner, lost) in &self.state.lost().owners {
            warn!(%owner, records = lost.keys.len(), "the store has lost what is held of this owner");
        }
        self.show_lost();
        self.from_disk = None;
        self.apply(batch);
        self.following.send_modify(|following| {
            following.listings += 1;
            following.without_gap_since = revision;
        });
        self.show();
        self.store.watch(ALL, marked.unwrap_or(revision + 1)).await
    }

    async fn follow(
        &mut self,
        mut watch: Watch,
        mut next: Option<WatchEvent>,
    ) -> Result<(), StoreError> {
        let mut unfinished = None;
        loop {
            let event = match unfinished {
                _ if next.is_some() => next.take(),
                None => watch.events.recv().await,
                Some(since) => {
                    let event = timeout_at(since + UNFINISHED, watch.events.recv()).await;
                    let Ok(event) = event else {
                        debug!("the rest of a change does not come, what is there is shown");
                        let flushed = self.state.flush();
                        self.apply(flushed);
                        unfinished = None;
                        continue;
                    };
                    event
                }
            };
            let batch = match event {
                Some(WatchEvent::Commit { revision, events }) => {
                    self.state.committed(&self.writer.current(), revision, &events)
                }
                Some(WatchEvent::Progress { revision }) => self.state.progressed(revision),
                Some(WatchEvent::Compacted { oldest }) if oldest <= self.state.revision() + 1 => {
                    // All that is gone was listed: there is nothing to compare.
                    debug!(oldest, "compacted up to where the store was read");
                    self.state.goes_on_after(Trail::default());
                    watch = self.store.watch(ALL, self.state.revision() + 1).await?;
                    continue;
                }
                Some(WatchEvent::Compacted { oldest }) => {
                    debug!(oldest, "compacted under the watch");
                    return Ok(());
                }
                Some(WatchEvent::Ended(error)) => return Err(error),
                None => return Ok(()),
            };
            unfinished = match (self.state.has_unfinished(), unfinished) {
                (true, Some(since)) => Some(since),
                (true, None) => Some(Instant::now()),
                (false, _) => None,
            };
            self.show_lost();
            self.apply(batch);
            self.show();
        }
    }

    /// What was restored from a disk is not said to be of any time before it has caught up with the
    /// store as this process found it: whoever asks for all would be told of what was long ago.
    fn apply(&mut self, mut batch: Batch) {
        if let Some(newest) = self.from_disk {
            let caught_up = self.state.revision() >= newest;
            batch.position = caught_up.then_some(self.state.position());
            self.from_disk = self.from_disk.filter(|_| !caught_up);
        }
        self.writer.apply(batch, Instant::now());
    }

    /// Quietly: positions change with every commit, and only who asks wants them.
    fn show(&self) {
        let founding = self.state.founding().and_then(facts::founding);
        self.following.send_if_modified(|following| {
            // What is held back is not in the replica yet: going on after it would lose it.
            if !self.state.has_unfinished() {
                following.resume = self.state.resume();
            }
            let strays_changed = following.strays != *self.state.strays();
            if strays_changed {
                following.strays.clone_from(self.state.strays());
            }
            let founded = following.founding != founding;
            following.founding = founding;
            strays_changed || founded
        });
    }

    /// Before the replica has it: who waits for a position there finds here what is lost then. The
    /// point of before goes with what was lost before.
    fn show_lost(&self) {
        if *self.following.borrow().lost != *self.state.lost() {
            let lost = Arc::new(self.state.lost().clone());
            self.following.send_modify(|following| {
                following.lost = lost;
                following.resume = None;
            });
        }
    }

    fn report(&mut self, error: &StoreError) {
        let problem = error.to_string();
        if self.following.borrow().problem.as_ref() == Some(&problem) {
            debug!(%error, "the store cannot be followed");
        } else {
            warn!(%error, "the store cannot be followed, what was read last stays in use");
        }
        self.following.send_modify(|following| following.problem = Some(problem));
    }
}

#[cfg(test)]
mod tests;
