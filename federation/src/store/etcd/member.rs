//! One member: its client, and when that is replaced.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{Client, Error};
use tokio::time::{Instant, timeout, timeout_at};

use super::failure::{Failure, classify};
use super::secrets::Secrets;

/// How long somebody else who is connecting is waited for.
const PAUSE: Duration = Duration::from_millis(100);
/// While requests fail, it is looked so often whether the secrets were replaced.
const LOOKED_AFTER: Duration = Duration::from_secs(1);

/// A member.
pub(super) struct One {
    pub(super) endpoint: String,
    secrets: Arc<Secrets>,
    slot: tokio::sync::Mutex<Slot>,
    heard: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Slot {
    client: Option<Client>,
    /// Counts the clients, so that one which was replaced already is not thrown away again.
    generation: u64,
    /// Which secrets it was made with.
    secrets: u64,
}

impl One {
    pub(super) fn new(endpoint: &str, secrets: Arc<Secrets>) -> Self {
        let (slot, heard) = (tokio::sync::Mutex::default(), Mutex::default());
        Self { endpoint: endpoint.to_owned(), secrets, slot, heard }
    }

    /// One try. With what failed comes the client's generation, for [`One::mend`].
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

    /// Lets go of a client that is no good any more: with the next one come a new connection, a new
    /// token, and what the secrets are now. Says whether that may help at once.
    pub(super) async fn mend(&self, generation: u64, failure: &Failure, silent: Duration) -> bool {
        match failure {
            Failure::Stale(_) => self.forget(generation).await,
            // Nobody gets in; but if there was a client, its secrets may have been replaced.
            Failure::Credentials(_) if generation > 0 => self.forget(generation).await,
            // A server that refuses a certificate may not even say so.
            Failure::NotSent(_) | Failure::Unknown(_) if self.is_outdated(generation).await => {
                self.forget(generation).await;
            }
            // Its connection may be dead and not know it, which TCP can take a quarter of an hour to
            // find out. Somebody who is connecting anew already is not waited for.
            Failure::Unknown(_) if !self.heard_within(silent) => {
                let _ = timeout(PAUSE, self.forget(generation)).await;
                return false;
            }
            _ => return false,
        }
        true
    }

    async fn forget(&self, generation: u64) {
        let mut slot = self.slot.lock().await;
        if slot.generation == generation {
            slot.client = None;
        }
    }

    /// Whether the secrets have changed since that client was made.
    async fn is_outdated(&self, generation: u64) -> bool {
        self.secrets.refresh(LOOKED_AFTER).await;
        let newest = self.secrets.newest().1;
        let Ok(slot) = timeout(PAUSE, self.slot.lock()).await else { return false };
        slot.client.is_some() && slot.generation == generation && slot.secrets != newest
    }

    /// With credentials this asks etcd for a token. Others wait meanwhile: they need it too.
    async fn client(&self) -> Result<(Client, u64), Error> {
        let mut slot = self.slot.lock().await;
        if let Some(client) = &slot.client {
            return Ok((client.clone(), slot.generation));
        }
        self.secrets.refresh(Duration::ZERO).await;
        let (options, secrets) = self.secrets.newest();
        let client = Client::connect([&self.endpoint], Some(options)).await?;
        slot.client = Some(client.clone());
        slot.secrets = secrets;
        slot.generation += 1;
        Ok((client, slot.generation))
    }

    pub(super) fn heard_within(&self, time: Duration) -> bool {
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
