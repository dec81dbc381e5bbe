//! The federation API's server.
//!
//! Puts streams around [`Session`] and [`Feed`]; decides nothing itself but who may call what.
//! Streams are driven by the reads of the transport, without a task or queue of their own, so that
//! a stream that is dropped leaves nothing behind.

use std::collections::{BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use super::feed::{Feed, Has, Interest, Owners, entitlement};
use super::session::{Session, SessionError};
use super::{Caller, DIGEST_INTERVAL, MAX_MESSAGE, chain};
use crate::key::LOCAL_PREFIX;
use crate::names::{InvalidName, NamespaceName, Owner, RegionName};
use crate::proto::federation as wire;
use crate::proto::federation::federation_server::{Federation, FederationServer};
use crate::proto::federation::publish_request::Message as PublishMessage;
use crate::proto::federation::publish_response::Message as PublishAnswer;
use crate::record::Entitlement;
use crate::replica::{Replica, Replicas};
use crate::store::{Range, Store};

/// Wall time, passed in.
pub type WallClock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// An agent that has not said what it wants after so long is cut off.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// A subscriber is kept waiting for so long, then told to try elsewhere. Longer than a control
/// plane waits for its agents.
const FIT_DEADLINE: Duration = Duration::from_secs(15);

/// What the server works on.
#[derive(Clone)]
pub struct FederationApi {
    region: RegionName,
    store: Arc<dyn Store>,
    replicas: Replicas,
    whole: watch::Receiver<bool>,
    clock: WallClock,
    started: Instant,
    stop: CancellationToken,
}

impl FederationApi {
    /// A server of `region`'s store and of the replica that follows it. `whole` says when what the
    /// replica holds may be taken for all that there is: agents are not told so before. Streams end
    /// when `stop` is cancelled.
    #[must_use]
    pub fn new(
        region: RegionName,
        store: Arc<dyn Store>,
        replicas: Replicas,
        whole: watch::Receiver<bool>,
        clock: WallClock,
        stop: CancellationToken,
    ) -> Self {
        Self { region, store, replicas, whole, clock, started: Instant::now(), stop }
    }

    /// The service for a tonic router.
    #[must_use]
    pub fn into_service(self) -> FederationServer<Self> {
        FederationServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// Since when nothing new was heard of an owner. What was never heard here was perhaps heard
    /// before this process started.
    fn silent_for(&self, owner: &Owner) -> Duration {
        let replica = self.replicas.clone().current();
        let heard = replica.holding(owner).and_then(super::super::replica::Holding::beacon_changed);
        heard.unwrap_or(self.started).max(self.started).elapsed()
    }

    /// The replica, once it is fit for the caller. Before the store was read it is empty, and
    /// `synced` would vouch for nothing. To an agent `synced` means that what it does not have is
    /// not there, which of a new or lost store is not true before its agents have come. A peer takes
    /// only this region's own word, and is not kept waiting: two regions that start together would
    /// wait for each other.
    async fn fit(&self, caller: &Caller, replicas: &mut Replicas) -> Result<Arc<Replica>, Status> {
        let mut whole = self.whole.clone();
        let fit = async {
            replicas.wait_for(|replica| replica.position > 0).await?;
            match caller {
                Caller::Agent { .. } => whole.wait_for(|whole| *whole).await.ok().map(drop),
                Caller::ControlPlane { .. } => Some(()),
            }
        };
        let fit = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Err(stopping()),
            fit = fit => fit,
            () = tokio::time::sleep(FIT_DEADLINE) => {
                return Err(Status::unavailable("this control plane does not know all of its region yet"));
            }
        };
        fit.ok_or_else(stopping)?;
        Ok(replicas.current())
    }

    /// Waits until the replica has what the subscriber has seen of this store elsewhere, so that no
    /// key goes back for it (RELIABILITY promise 14). 0 if the store itself has not come so far: it
    /// is another history then, and positions in it mean nothing.
    async fn reach(&self, position: u64, replicas: &mut Replicas) -> Result<u64, Status> {
        if replicas.peek().position >= position {
            return Ok(position);
        }
        let newest =
            Range { prefix: LOCAL_PREFIX.to_owned(), after: None, limit: 1, revision: None };
        let current = self.store.range(newest).await.map_err(|error| {
            warn!(%error, "a subscriber is ahead of this process, and the store does not answer");
            Status::unavailable("this control plane is behind and its store does not answer")
        })?;
        if current.revision < position {
            return Ok(0);
        }
        let reached = replicas.wait_for(|replica| replica.position >= position);
        match tokio::time::timeout(FIT_DEADLINE, reached).await {
            Ok(Some(_)) => Ok(position),
            Ok(None) => Err(stopping()),
            Err(_) => Err(Status::unavailable("this control plane is behind its store")),
        }
    }

    async fn open_session(
        &self,
        caller: &Caller,
        requests: &mut Streaming<wire::PublishRequest>,
    ) -> Result<Session, Status> {
        let first = tokio::time::timeout(HELLO_DEADLINE, requests.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no hello within 10 s"))??;
        let Some(PublishMessage::Hello(hello)) = first.and_then(|request| request.message) else {
            return Err(Status::invalid_argument("a publish stream begins with hello"));
        };
        let owner = format!("{}/{}", self.region, hello.cluster).parse::<Owner>();
        let silent_for = owner.map_or(Duration::ZERO, |owner| self.silent_for(&owner));
        let (store, now) = (Arc::clone(&self.store), (self.clock)());
        let session = Session::open(store, &self.region, caller, hello, silent_for, now).await;
        session.map_err(|error| {
            warn!(%caller, error = %chain(&error), "publish stream refused");
            status(&error)
        })
    }
}

impl std::fmt::Debug for FederationApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FederationApi").field("region", &self.region).finish_non_exhaustive()
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Federation for FederationApi {
    type PublishStream = Answers<wire::PublishResponse>;
    type SubscribeStream = Answers<wire::SubscribeResponse>;

    async fn publish(
        &self,
        request: Request<Streaming<wire::PublishRequest>>,
    ) -> Result<Response<Self::PublishStream>, Status> {
        let caller = caller(&request)?;
        let mut requests = request.into_inner();
        let first = match self.open_session(&caller, &mut requests).await {
            Ok(session) => session,
            // In the stream, where the agent can tell a verdict on itself from a broken line.
            Err(status) if status.code() == tonic::Code::FailedPrecondition => {
                let refused = wire::Refused { reason: status.message().to_owned() };
                let refused =
                    wire::PublishResponse { message: Some(PublishAnswer::Refused(refused)) };
                return Ok(Response::new(Box::pin(tokio_stream::once(Ok(refused)))));
            }
            Err(status) => return Err(status),
        };
        info!(owner = %first.owner(), "publish stream accepted");
        let publishing = Publishing {
            answers: VecDeque::from([first.accepted()]),
            session: first,
            requests,
            clock: Arc::clone(&self.clock),
            stop: self.stop.clone(),
        };
        let answers = futures::stream::unfold(Some(publishing), |state| async {
            let mut state = state?;
            match state.next().await {
                Ok(Some(answer)) => Some((Ok(answer), Some(state))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn subscribe(
        &self,
        request: Request<wire::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let owners = owners(&self.region, &caller, request.scope())?;
        let uses = uses(&request.uses)?;
        let mut replicas = self.replicas.clone();
        self.fit(&caller, &mut replicas).await?;
        let position = self.reach(request.position, &mut replicas).await?;
        let replica = replicas.current();
        let entitlement = entitlement_of(&caller, &replica);
        let digests = request.held.into_iter().filter_map(|held| {
            let owner: Owner = held.owner.parse().ok()?;
            Some((owner, held.digest.to_vec()))
        });
        let has = Has { digests: digests.collect(), position };
        let interest = Interest { owners, entitlement: entitlement.clone(), uses };
        let (feed, messages) = Feed::open(interest, &has, replica);
        info!(%caller, position, "subscribed");
        let mut digests =
            tokio::time::interval_at(Instant::now() + DIGEST_INTERVAL, DIGEST_INTERVAL);
        digests.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let subscription = Subscription {
            feed,
            replicas,
            messages: messages.into(),
            digests,
            api: self.clone(),
            caller,
            entitlement,
        };
        let messages = futures::stream::unfold(Some(subscription), |state| async {
            let mut state = state?;
            match state.next().await {
                Ok(message) => Some((Ok(message), Some(state))),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(messages)))
    }

    type RecoverStream = Answers<wire::SubscribeResponse>;

    async fn recover(
        &self,
        request: Request<wire::RecoverRequest>,
    ) -> Result<Response<Self::RecoverStream>, Status> {
        let caller = caller(&request)?;
        let Caller::ControlPlane { region } = &caller else {
            return Err(Status::permission_denied(format!("{caller} has no region to recover")));
        };
        let mut replicas = self.replicas.clone();
        let replica = self.fit(&caller, &mut replicas).await?;
        let interest = Interest::all(Owners::Region(region.clone()));
        let (_, messages) = Feed::open(interest, &Has::default(), replica);
        info!(%caller, messages = messages.len(), "recovers its region's records");
        Ok(Response::new(Box::pin(tokio_stream::iter(messages.into_iter().map(Ok)))))
    }
}

struct Publishing {
    session: Session,
    requests: Streaming<wire::PublishRequest>,
    answers: VecDeque<wire::PublishResponse>,
    clock: WallClock,
    stop: CancellationToken,
}

impl Publishing {
    async fn next(&mut self) -> Result<Option<wire::PublishResponse>, Status> {
        loop {
            if let Some(answer) = self.answers.pop_front() {
                return Ok(Some(answer));
            }
            let request = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(stopping()),
                request = self.requests.message() => request?,
            };
            let Some(request) = request else { return Ok(None) };
            let answers = self.session.receive(request, (self.clock)()).await;
            self.answers.extend(answers.map_err(|error| {
                let owner = self.session.owner();
                warn!(%owner, error = %chain(&error), "publish stream ends");
                status(&error)
            })?);
        }
    }
}

struct Subscription {
    feed: Feed,
    replicas: Replicas,
    messages: VecDeque<wire::SubscribeResponse>,
    digests: Interval,
    api: FederationApi,
    caller: Caller,
    entitlement: Entitlement,
}

impl Subscription {
    async fn next(&mut self) -> Result<wire::SubscribeResponse, Status> {
        loop {
            if let Some(message) = self.messages.pop_front() {
                return Ok(message);
            }
            tokio::select! {
                biased;
                () = self.api.stop.cancelled() => return Err(stopping()),
                // Before the changes, which could keep it from its turn.
                _ = self.digests.tick() => self.messages.push_back(self.feed.digests()),
                replica = self.replicas.next() => {
                    let replica = replica.ok_or_else(stopping)?;
                    if entitlement_of(&self.caller, &replica) != self.entitlement {
                        return Err(Status::aborted(
                            "what this subscriber is entitled to has changed: subscribe anew",
                        ));
                    }
                    self.messages.extend(self.feed.advance(replica));
                }
            }
        }
    }
}

fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| {
        Status::unauthenticated(
            "the federation API wants a certificate of an agent or a control plane of this mesh",
        )
    })
}

fn entitlement_of(caller: &Caller, replica: &Replica) -> Entitlement {
    match caller {
        Caller::Agent { region, cluster } => entitlement(replica, region, cluster),
        Caller::ControlPlane { .. } => Entitlement::All,
    }
}

/// Namespaces that a subscriber names; a bad name is told, since leaving it out would widen or
/// narrow what it gets.
fn uses(names: &[String]) -> Result<Option<BTreeSet<NamespaceName>>, Status> {
    if names.is_empty() {
        return Ok(None);
    }
    let names = names.iter().map(|name| {
        name.parse()
            .map_err(|error: InvalidName| Status::invalid_argument(format!("uses: {error}")))
    });
    names.collect::<Result<_, _>>().map(Some)
}

/// Whose records a caller may see follows from who it is; what it asks for must be that.
fn owners(region: &RegionName, caller: &Caller, scope: wire::Scope) -> Result<Owners, Status> {
    match (caller, scope) {
        (Caller::Agent { region: of, cluster }, wire::Scope::Mesh) if of == region => {
            Ok(Owners::MeshBut(Owner::cluster(of.clone(), cluster.clone())))
        }
        (Caller::Agent { region: of, .. }, wire::Scope::Mesh) => Err(Status::permission_denied(
            format!("{caller} belongs to region {of}, this is {region}"),
        )),
        (Caller::ControlPlane { .. }, wire::Scope::Region) => Ok(Owners::Region(region.clone())),
        (_, wire::Scope::Unspecified) => Err(Status::invalid_argument("the scope is missing")),
        (Caller::Agent { .. }, wire::Scope::Region)
        | (Caller::ControlPlane { .. }, wire::Scope::Mesh) => {
            Err(Status::permission_denied(format!("{caller} may not see this scope")))
        }
    }
}

fn stopping() -> Status {
    Status::unavailable("the control plane is stopping")
}

/// The one place where session errors become wire codes.
fn status(error: &SessionError) -> Status {
    match error {
        SessionError::Refused(why) => Status::failed_precondition(why.clone()),
        SessionError::Protocol(_) => Status::invalid_argument(error.to_string()),
        SessionError::Superseded(_) => Status::aborted(error.to_string()),
        SessionError::Store(_) => Status::unavailable("the region's store failed, try again"),
    }
}
