//! A watch: history from the file until it has caught up, then commits as they are made.
//!
//! It subscribes to live commits before it first reads the file, and knows the next revision it
//! owes, so what comes both ways is delivered once and what comes neither way is noticed. A reader
//! that is slow makes the live queue overrun; then the watch goes back to the file.

use std::sync::Arc;

use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::mpsc;

use super::disk::closed;
use super::read::{Committed, Replay, replay};
use super::{Shared, blocking};
use crate::store::{Event, Revision, WatchEvent};

pub(super) struct Feed {
    pub(super) shared: Arc<Shared>,
    pub(super) live: broadcast::Receiver<Arc<Committed>>,
    pub(super) events: mpsc::Sender<WatchEvent>,
    pub(super) prefix: Arc<str>,
    /// The first revision that was neither delivered nor found not to concern the reader.
    pub(super) next: Revision,
    /// The reader knows that it has everything up to here.
    pub(super) told: Revision,
}

/// The watch is over; what to say to the reader, if it is still there.
struct Over(Option<WatchEvent>);

impl Feed {
    pub(super) async fn run(mut self) {
        let (stop, events) = (self.shared.stop.clone(), self.events.clone());
        let last = tokio::select! {
            // Safe to drop anywhere: nothing is shared but the queue, and that ends with us.
            Over(last) = self.deliver() => last,
            () = stop.cancelled() => Some(WatchEvent::Ended(closed())),
            () = events.closed() => None,
        };
        if let Some(last) = last {
            // Waiting here would keep a closing store from closing. A full queue says enough: it
            // is drained and then found ended.
            let _ = events.try_send(last);
        }
    }

    async fn deliver(&mut self) -> Over {
        loop {
            if let Err(over) = self.catch_up().await {
                return over;
            }
            if let Err(over) = self.follow().await {
                return over;
            }
        }
    }

    async fn catch_up(&mut self) -> Result<(), Over> {
        loop {
            let (prefix, from) = (Arc::clone(&self.prefix), self.next);
            let read = blocking(&self.shared, move |db| replay(db, &prefix, from)).await;
            match read.map_err(|error| Over(Some(WatchEvent::Ended(error))))? {
                Replay::Compacted { oldest } => {
                    self.send(WatchEvent::Compacted { oldest }).await?;
                    return Err(Over(None));
                }
                Replay::Piece { commits, upto, newest } => {
                    for Committed { revision, events } in commits {
                        self.commit(revision, events).await?;
                    }
                    self.next = self.next.max(upto + 1);
                    if upto >= newest {
                        return self.progress().await;
                    }
                }
            }
        }
    }

    /// Until it has missed something.
    async fn follow(&mut self) -> Result<(), Over> {
        loop {
            match self.live.recv().await {
                Ok(commit) if commit.revision < self.next => {}
                Ok(commit) if commit.revision > self.next => return Ok(()),
                Ok(commit) => self.one(&commit).await?,
                Err(RecvError::Lagged(missed)) => {
                    tracing::debug!(missed, "the reader is slow, going back to the file");
                    return Ok(());
                }
                Err(RecvError::Closed) => return Err(Over(Some(WatchEvent::Ended(closed())))),
            }
        }
    }

    async fn one(&mut self, commit: &Committed) -> Result<(), Over> {
        let ours = |event: &&Event| event.key().starts_with(&*self.prefix);
        let events: Vec<Event> = commit.events.iter().filter(ours).cloned().collect();
        if !events.is_empty() {
            self.commit(commit.revision, events).await?;
        }
        self.next = commit.revision + 1;
        if self.live.is_empty() { self.progress().await } else { Ok(()) }
    }

    async fn commit(&mut self, revision: Revision, events: Vec<Event>) -> Result<(), Over> {
        self.send(WatchEvent::Commit { revision, events }).await?;
        self.told = revision;
        Ok(())
    }

    async fn progress(&mut self) -> Result<(), Over> {
        let revision = self.next - 1;
        if revision > self.told {
            self.send(WatchEvent::Progress { revision }).await?;
            self.told = revision;
        }
        Ok(())
    }

    async fn send(&self, event: WatchEvent) -> Result<(), Over> {
        self.events.send(event).await.map_err(|_| Over(None))
    }
}
