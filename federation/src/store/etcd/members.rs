//! Which member is asked, for how long, and who is asked next.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error, GetOptions};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::debug;

use super::EtcdConfig;
use super::failure::{Failure, Refusal, classify};
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
        let options = config.options();
        let mut list = Vec::new();
        for endpoint in &config.endpoints {
            check(config, endpoint).await?;
            list.push(One::new(endpoint, options.clone()));
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
            if matches!(failure, Failure::Unknown(_)) && !member.heard_within(self.timeout * 2) {
                // Its connection may be dead and not know it, which TCP can take a quarter of an
                // hour to find out. Somebody who is connecting anew already is not waited for.
                let _ = timeout(PAUSE, member.forget(generation)).await;
            }
            match failure {
                Failure::Refused(refusal) => return Err(self.named(refusal)),
                Failure::Stale(_) if !round.healed => {
                    round.healed = true;
                    member.forget(generation).await;
                    continue;
                }
                Failure::Stale(why) => return Err(self.gives_up(&why)),
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

/// Finds out whether a client can be made at all. With credentials, making one asks etcd.
async fn check(config: &EtcdConfig, endpoint: &str) -> Result<(), StoreError> {
    let refused = |why: &str| StoreError::Refused(format!("etcd endpoint {endpoint:?}: {why}"));
    match (endpoint.starts_with("https://"), endpoint.starts_with("http://"), &config.tls) {
        (false, false, _) => return Err(refused("begins with neither https:// nor http://")),
        (true, _, None) => return Err(refused("needs TLS material")),
        (_, true, Some(_)) => return Err(refused("has TLS material, but is not https://")),
        _ => {}
    }
    let anonymous = EtcdConfig { credentials: None, ..config.clone() };
    let made = Client::connect([endpoint], Some(anonymous.options())).await;
    made.map(drop).map_err(|error| refused(&words(&error)))
}

/// tonic keeps what matters in the source.
fn words(error: &Error) -> String {
    match error {
        Error::TransportError(transport) => {
            let source = std::error::Error::source(transport).map(ToString::to_string);
            source.map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
        }
        other => other.to_string(),
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

/// A member.
pub(super) struct One {
    pub(super) endpoint: String,
    options: ConnectOptions,
    slot: tokio::sync::Mutex<Slot>,
    heard: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Slot {
    client: Option<Client>,
    /// Counts the clients, so that one which was replaced already is not thrown away again.
    generation: u64,
}

impl One {
    fn new(endpoint: &str, options: ConnectOptions) -> Self {
        let (slot, heard) = (tokio::sync::Mutex::default(), Mutex::default());
        Self { endpoint: endpoint.to_owned(), options, slot, heard }
    }

    /// One try. With what failed comes the client's generation, for [`One::forget`].
    pub(super) async fn attempt<T, F, Fut>(
        &self,
        until: Instant,
        request: &F,
    ) -> Result<T, (u64, Failure)>
    where
        F: Fn(Client) -> Fut + Send + Sync,
        Fut: Future<Output = Result<T, Error>> + Send,
    {
        let late = |what: &str| format!("no {what} in time");
        let (client, generation) = match timeout_at(until, Box::pin(self.client())).await {
            Err(_) => return Err((0, Failure::NotSent(late("connection")))),
            Ok(Err(error)) => return Err((0, unsent(classify(&error)))),
            Ok(Ok(made)) => made,
        };
        match timeout_at(until, request(client)).await {
            Err(_) => Err((generation, Failure::Unknown(late("answer")))),
            Ok(Err(error)) => Err((generation, classify(&error))),
            Ok(Ok(answer)) => {
                *self.heard() = Some(Instant::now());
                Ok(answer)
            }
        }
    }

    /// Makes the next request get a new client, with a new token.
    pub(super) async fn forget(&self, generation: u64) {
        let mut slot = self.slot.lock().await;
        if slot.generation == generation {
            slot.client = None;
        }
    }

    /// With credentials this asks etcd for a token. Others wait meanwhile: they need it too.
    async fn client(&self) -> Result<(Client, u64), Error> {
        let mut slot = self.slot.lock().await;
        if let Some(client) = &slot.client {
            return Ok((client.clone(), slot.generation));
        }
        let client = Client::connect([&self.endpoint], Some(self.options.clone())).await?;
        slot.client = Some(client.clone());
        slot.generation += 1;
        Ok((client, slot.generation))
    }

    fn heard_within(&self, time: Duration) -> bool {
        self.heard().is_some_and(|at| at.elapsed() <= time)
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for One {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("One").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// A failure before there was a client: whatever was to be asked, was not.
fn unsent(failure: Failure) -> Failure {
    match failure {
        Failure::Unknown(why) => Failure::NotSent(why),
        other => other,
    }
}
