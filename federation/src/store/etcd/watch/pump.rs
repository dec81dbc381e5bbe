//! Moves a watch's events from the member to the reader.

use std::time::Duration;

use etcd_client::proto::PbWatchResponse;
use etcd_client::{Client, Error, GetOptions, WatchRequestSender, WatchResponseStream};
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::debug;

use super::super::failure::{Failure, Refusal, classify};
use super::super::range::{compacted_at, current_of};
use super::super::{EtcdConfig, signed, start_of, unsigned};
use super::joiner::{Joined, Joiner, Nonsense};
use super::{Opened, Scope, Wanted, compacted};
use crate::store::{Revision, StoreError, WatchEvent};

/// Why a watch is over: its last word, if anybody may want to hear one.
struct Over(Option<WatchEvent>);

pub(super) struct Pump {
    client: Client,
    requests: WatchRequestSender,
    responses: WatchResponseStream,
    events: mpsc::Sender<WatchEvent>,
    joiner: Joiner,
    wanted: Wanted,
    scope: Scope,
    /// The member has said that it has forgotten too much.
    compacted: Option<Revision>,
    /// The reader has all up to here.
    told: Revision,
    /// Nothing else happened up to here, and the reader will be told.
    owed: Revision,
    /// The reader kept the member waiting: what comes may be out of history, however it looks.
    stalled: bool,
    times: Times,
}

struct Times {
    heard: Instant,
    progress: Duration,
    stall: Duration,
    slow_reader: Duration,
    request: Duration,
}

impl Pump {
    pub(super) fn new(
        opened: Opened,
        wanted: Wanted,
        config: &EtcdConfig,
        events: mpsc::Sender<WatchEvent>,
    ) -> Self {
        let Opened { client, requests, responses, scope, compacted } = opened;
        let joiner = Joiner::new(wanted.clone());
        let told = wanted.from - 1;
        let times = Times {
            heard: Instant::now(),
            progress: config.watch_progress.max(Duration::from_millis(10)),
            stall: config.watch_stall,
            slow_reader: config.slow_reader,
            request: config.request_timeout,
        };
        let stalled = false;
        Self {
            client,
            requests,
            responses,
            events,
            joiner,
            wanted,
            scope,
            compacted,
            told,
            owed: told,
            stalled,
            times,
        }
    }

    pub(super) async fn run(mut self) {
        let events = self.events.clone();
        let over = tokio::select! {
            // Safe to drop anywhere: nothing is shared but the queue, and that ends with us.
            over = self.deliver() => over,
            () = events.closed() => Over(None),
        };
        if let Over(Some(last)) = over {
            debug!(?last, "the watch is over");
            // A reader that does not read must not keep this alive. It drains the queue and then
            // finds it ended.
            let _ = events.try_send(last);
        }
    }

    async fn deliver(&mut self) -> Over {
        if let Some(at) = self.compacted {
            return Over(Some(compacted(at)));
        }
        let mut ticks = interval(self.times.progress);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let step = tokio::select! {
                // Both can be dropped: a message that has come in part stays in the stream.
                message = self.responses.message() => self.message(message.map_err(Box::new)).await,
                _ = ticks.tick() => self.tick().await,
            };
            if let Err(over) = step {
                return over;
            }
        }
    }

    async fn message(
        &mut self,
        message: Result<Option<etcd_client::WatchResponse>, Box<Error>>,
    ) -> Result<(), Over> {
        self.times.heard = Instant::now();
        match message {
            Ok(Some(response)) => self.response(response.0).await,
            Ok(None) => Err(ended("the member ended the watch")),
            Err(error) => Err(match classify(&error) {
                Failure::Refused(Refusal::Store(error)) => Over(Some(WatchEvent::Ended(error))),
                _ => ended(&error.to_string()),
            }),
        }
    }

    async fn response(&mut self, response: PbWatchResponse) -> Result<(), Over> {
        if response.compact_revision > 0 {
            return Err(Over(Some(compacted(unsigned(response.compact_revision)))));
        }
        if response.canceled {
            return Err(ended(&format!("canceled: {}", response.cancel_reason)));
        }
        if response.events.is_empty() {
            // An answer to a request for progress.
            let revision = response.header.map_or(0, |header| unsigned(header.revision));
            if self.scope == Scope::Prefix && !response.created {
                self.stalled = false;
                self.owed = self.owed.max(revision);
                return self.progress().await;
            }
            return Ok(());
        }
        let joined = self.joiner.take(response).map_err(|nonsense| senseless(&nonsense))?;
        self.joined(joined).await
    }

    async fn joined(&mut self, joined: Joined) -> Result<(), Over> {
        if !joined.live || self.stalled {
            self.check_whole().await?;
        }
        for (revision, events) in joined.commits {
            self.send(WatchEvent::Commit { revision, events }).await?;
            self.told = revision;
        }
        if self.scope == Scope::Everything {
            self.owed = self.owed.max(joined.seen);
            if joined.live {
                self.stalled = false;
            }
        }
        Ok(())
    }

    /// Every so often: asks how far it is, says how far it is, and looks whether anybody answers.
    async fn tick(&mut self) -> Result<(), Over> {
        if self.scope == Scope::Everything {
            self.progress().await?;
        }
        if self.times.heard.elapsed() > self.times.stall {
            self.alive().await?;
        }
        match timeout(self.times.stall, self.requests.request_progress()).await {
            // If the stream has ended, that says more.
            Ok(_) => Ok(()),
            Err(_) => Err(ended("the member takes no more requests")),
        }
    }

    /// Nothing was heard. That is fine if there is nothing to hear: etcd does not answer for a watch
    /// of the future.
    async fn alive(&mut self) -> Result<(), Over> {
        let current = current_of(self.client.clone(), start_of(&self.wanted.prefix));
        let silent = format!("nothing was heard for {:?}", self.times.heard.elapsed());
        match timeout(self.times.request, current).await {
            Ok(Ok(current)) if current <= self.told.max(self.owed) => {
                self.times.heard = Instant::now();
                Ok(())
            }
            Ok(Ok(current)) => Err(ended(&format!("{silent}, and the store is at {current}"))),
            Ok(Err(error)) => Err(ended(&format!("{silent}: {error}"))),
            Err(_) => Err(ended(&silent)),
        }
    }

    /// Whether what has just come was not compacted in part. The member's own state is asked: it was
    /// that which it came from.
    async fn check_whole(&mut self) -> Result<(), Over> {
        let upto = signed(self.told.max(self.owed).max(1));
        let options = GetOptions::new().with_count_only().with_serializable().with_revision(upto);
        let key = start_of(&self.wanted.prefix);
        let mut client = self.client.clone();
        let asked = timeout(self.times.request, client.get(key.clone(), Some(options))).await;
        self.times.heard = Instant::now();
        let error = match asked {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_) => return Err(ended("the member does not answer")),
        };
        if classify(&error) != Failure::Refused(Refusal::Compacted) {
            return Err(ended(&error.to_string()));
        }
        match timeout(self.times.request, compacted_at(client, key)).await {
            Ok(Ok(at)) => Err(Over(Some(compacted(at)))),
            Ok(Err(error)) => Err(ended(&error.to_string())),
            Err(_) => Err(ended("the member does not answer")),
        }
    }

    async fn progress(&mut self) -> Result<(), Over> {
        if self.owed > self.told {
            self.send(WatchEvent::Progress { revision: self.owed }).await?;
            self.told = self.owed;
        }
        Ok(())
    }

    async fn send(&mut self, event: WatchEvent) -> Result<(), Over> {
        let event = match self.events.try_send(event) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Closed(_)) => return Err(Over(None)),
            Err(TrySendError::Full(event)) => event,
        };
        self.stalled = true;
        let sent = timeout(self.times.slow_reader, self.events.send(event)).await;
        // The member was not listened to meanwhile.
        self.times.heard = Instant::now();
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Over(None)),
            Err(_) => Err(ended("the reader did not read")),
        }
    }
}

/// Another member, or the same one asked anew, may make sense; what is stored is not ours to judge
/// by one answer.
fn senseless(nonsense: &Nonsense) -> Over {
    ended(&format!("an answer makes no sense: {nonsense}"))
}

fn ended(why: &str) -> Over {
    Over(Some(WatchEvent::Ended(StoreError::Unavailable(format!("watch of etcd: {why}")))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_makes_no_sense_is_no_damage() {
        let Over(last) = senseless(&Nonsense::Order { at: 3, after: 4 });
        let Some(WatchEvent::Ended(StoreError::Unavailable(why))) = last else {
            unreachable!("{last:?}")
        };
        assert!(why.contains("revision 3 comes after one of 4"), "{why}");
    }
}
