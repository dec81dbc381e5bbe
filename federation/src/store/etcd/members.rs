//! Which member is asked, for how long, and who is asked next.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{Client, Error, GetOptions};
use tokio::time::{Instant, sleep};
use tracing::debug;

use super::EtcdConfig;
use super::failure::{Failure, Refusal};
pub(super) use super::member::One;
use super::secrets::{Secrets, check};
use crate::store::StoreError;
use crate::store::ending::before;

/// While the members have no leader, or are too busy, they are asked again this often.
const PAUSE: Duration = Duration::from_millis(100);
/// A member that said something within this time is trusted with a transaction.
const FRESH: Duration = Duration::from_secs(1);

/// Whether a request may be sent again when nobody knows whether it happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It may: it changes nothing, or the same whenever it happens.
    Freely,
    /// It may not.
    Never,
}

/// All members of one etcd.
#[derive(Debug)]
pub(super) struct Members {
    list: Vec<One>,
    /// Who is asked first: the index of the one that answered last.
    preferred: AtomicUsize,
    timeout: Duration,
    names: String,
}

impl Members {
    /// Talks to nobody.
    pub(super) async fn new(config: &EtcdConfig) -> Result<Self, StoreError> {
        if config.endpoints.is_empty() {
            return Err(StoreError::Refused("an etcd without endpoints".to_owned()));
        }
        let secrets = Arc::new(Secrets::new(config));
        let mut list = Vec::new();
        for endpoint in &config.endpoints {
            check(config, endpoint).await?;
            list.push(One::new(endpoint, Arc::clone(&secrets)));
        }
        let names = config.endpoints.join(", ");
        Ok(Self { list, preferred: AtomicUsize::new(0), timeout: config.request_timeout, names })
    }

    pub(super) fn all(&self) -> &[One] {
        &self.list
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// An error that says who was asked.
    pub(super) fn unavailable(&self, why: &str) -> StoreError {
        StoreError::Unavailable(format!("etcd at {}: {why}", self.names))
    }

    /// Does `request` on one member after the other until one answers or time is up: the usual
    /// time, or the asker's ([`ending_by`](crate::store::ending_by)).
    pub(super) async fn call<T, F, Fut>(&self, repeat: Repeat, request: F) -> Result<T, Refusal>
    where
        F: Fn(Client) -> Fut + Send + Sync,
        Fut: Future<Output = Result<T, Error>> + Send,
    {
        let mut round = Round::new(before(Instant::now() + self.timeout));
        let share = self.share(round.end);
        loop {
            let index = self.preferred.load(Ordering::Relaxed);
            let member = &self.list[index];
            let until = match repeat {
                Repeat::Freely => round.end.min(Instant::now() + share),
                Repeat::Never => round.end,
            };
            let (generation, failure) = match member.attempt(until, &request).await {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            debug!(endpoint = member.endpoint, ?failure, "a request to etcd failed");
            let mended = member.mend(generation, &failure, self.timeout * 2).await;
            let unknown = repeat == Repeat::Never && matches!(failure, Failure::Unknown(_));
            if mended && !round.healed && !unknown {
                round.healed = true;
                continue;
            }
            match failure {
                Failure::Refused(refusal) => return Err(self.named(refusal)),
                Failure::Stale(why) | Failure::Credentials(why) => {
                    return Err(self.gives_up(&why));
                }
                Failure::Unknown(why) if repeat == Repeat::Never => {
                    self.leave(index);
                    let why = format!("{}: {why}; it may have happened", member.endpoint);
                    return Err(self.gives_up(&why));
                }
                Failure::NotNow(why) => round.failed(&member.endpoint, &why, true),
                Failure::Unknown(why) | Failure::NotSent(why) => {
                    round.failed(&member.endpoint, &why, false);
                }
            }
            self.leave(index);
            if !round.goes_on(self.list.len()).await {
                return Err(self.gives_up(&round.last));
            }
        }
    }

    /// Makes sure that the next request goes to a member that lives, reaches the others, and takes
    /// our word: by reading `key`.
    pub(super) async fn warm(&self, key: &[u8]) -> Result<(), Refusal> {
        let member = &self.list[self.preferred.load(Ordering::Relaxed)];
        if member.heard_within(FRESH) {
            return Ok(());
        }
        let request = |mut client: Client| async move {
            client.get(key, Some(GetOptions::new().with_count_only())).await
        };
        self.call(Repeat::Freely, request).await.map(drop)
    }

    /// What one member may take if there are others to ask.
    fn share(&self, end: Instant) -> Duration {
        let members = u32::try_from(self.list.len()).unwrap_or(u32::MAX);
        end.saturating_duration_since(Instant::now()) / members
    }

    /// Asks the next one first, unless somebody else has found out already.
    fn leave(&self, index: usize) {
        let next = (index + 1) % self.list.len();
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        // A lost race means that another request has moved on.
        let _ = self.preferred.compare_exchange(index, next, set, fetch);
    }

    fn gives_up(&self, why: &str) -> Refusal {
        Refusal::Store(self.unavailable(why))
    }

    fn named(&self, refusal: Refusal) -> Refusal {
        match refusal {
            Refusal::Store(StoreError::Unavailable(why)) => self.gives_up(&why),
            other => other,
        }
    }
}

/// How far a request has come.
struct Round {
    end: Instant,
    healed: bool,
    asked: usize,
    /// A member lives and may do it in a moment.
    hopeful: bool,
    last: String,
}

impl Round {
    fn new(end: Instant) -> Self {
        Self { end, healed: false, asked: 0, hopeful: false, last: String::new() }
    }

    fn failed(&mut self, endpoint: &str, why: &str, hopeful: bool) {
        self.asked += 1;
        self.hopeful |= hopeful;
        self.last = format!("{endpoint}: {why}");
    }

    /// Whether to ask the next one; pauses between rounds.
    async fn goes_on(&mut self, members: usize) -> bool {
        if self.asked < members {
            return Instant::now() < self.end;
        }
        let hopeful = std::mem::take(&mut self.hopeful);
        self.asked = 0;
        if !hopeful || Instant::now() + PAUSE >= self.end {
            return false;
        }
        sleep(PAUSE).await;
        true
    }
}
