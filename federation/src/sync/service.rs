//! The federation API's server.
//!
//! Puts streams around [`Session`] and [`Feed`]; decides nothing itself but who may call what, and
//! how much of it ([`Limits`]). Streams are driven by the reads of the transport, without a task or
//! queue of their own, so that a stream that is dropped leaves nothing behind, and one that nobody
//! reads holds one message and a reference to what all share.

mod admission;
mod claims;
mod limits;
mod metrics;
mod streams;
mod watched;

use std::collections::{BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use jiff::Timestamp;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use self::admission::{Admission, Busy, Slot, Turn};
pub use self::claims::Claims;
pub(super) use self::limits::Bucket;
pub use self::limits::{Limits, Rate};
use self::metrics::{Call, Metrics, Refused};
use self::streams::{Publishing, Subscription};
use self::watched::Lookout;
use super::decisions;
use super::feed::{self, Feed, Has, Interest, Owners};
use super::session::{self, Heard, RemovalWindows, Session, SessionError};
use super::{Caller, DIGEST_INTERVAL, MAX_MESSAGE, chain};
use crate::key::LOCAL_PREFIX;
use crate::names::{InvalidName, NamespaceName, Owner, RegionName};
use crate::proto::federation as wire;
use crate::proto::federation::federation_server::{Federation, FederationServer};
use crate::proto::federation::publish_request::Message as PublishMessage;
use crate::proto::federation::publish_response::Message as PublishAnswer;
use crate::record::{Decision, Entitlement, READS_LEVEL};
use crate::replica::{Replica, Replicas};
use crate::store::{Range, Store, StoreError};

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
    settled: Option<watch::Receiver<bool>>,
    clock: WallClock,
    started: Instant,
    stop: CancellationToken,
    admission: Arc<Admission>,
    lookout: Arc<Lookout>,
    removals: RemovalWindows,
    claims: Claims,
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
        let admission = Arc::new(Admission::new(Limits::default(), Metrics::default()));
        let (started, lookout) = (Instant::now(), Arc::default());
        let removals = RemovalWindows::default();
        Self {
            region,
            store,
            replicas,
            whole,
            settled: None,
            clock,
            started,
            stop,
            admission,
            lookout,
            removals,
            claims: Claims::default(),
        }
    }

    /// Who claims an id that another cluster holds.
    #[must_use]
    pub fn claims(&self) -> Claims {
        self.claims.clone()
    }

    /// Takes no publisher before `settled`: until a new store's region knows what its peers know of
    /// it, a cluster would seem to join for the first time.
    #[must_use]
    pub fn once_settled(self, settled: watch::Receiver<bool>) -> Self {
        Self { settled: Some(settled), ..self }
    }

    /// The same with other limits than the default ones. To be said before anything is served.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.admission = Arc::new(Admission::new(limits, self.admission.metrics.clone()));
        self
    }

    /// Registers what this server counts, named `federation_...` below the registry's own prefix.
    pub fn register(&self, registry: &mut Registry) {
        self.admission.metrics.register(registry);
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
                Caller::Agent { .. } => whole.wait_for(|whole| *whole).await.ok().map(drop)?,
                Caller::ControlPlane { .. } => {}
            }
            replicas.wait_for(|replica| entitlement_of(caller, replica).is_some()).await.map(drop)
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
    /// key goes back for it. 0 if the store itself has not come so far: it
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
        slot: &Slot,
        requests: &mut Streaming<wire::PublishRequest>,
    ) -> Result<Session, Status> {
        if let Some(mut settled) = self.settled.clone() {
            let waited = tokio::time::timeout(FIT_DEADLINE, settled.wait_for(|settled| *settled));
            if !matches!(waited.await, Ok(Ok(_))) {
                return Err(Status::unavailable("this region has not found itself yet"));
            }
        }
        let caller = &slot.caller;
        let first = tokio::select! {
            biased;
            () = slot.ended.cancelled() => return Err(replaced(slot)),
            first = tokio::time::timeout(HELLO_DEADLINE, requests.message()) => first,
        };
        let first = first.map_err(|_| Status::deadline_exceeded("no hello within 10 s"))??;
        let Some(PublishMessage::Hello(hello)) = first.and_then(|request| request.message) else {
            slot.refused(Refused::Request);
            return Err(Status::invalid_argument("a publish stream begins with hello"));
        };
        let owner = format!("{}/{}", self.region, hello.cluster).parse::<Owner>().ok();
        let heard = Heard {
            silent_for: owner.as_ref().map_or(Duration::ZERO, |owner| self.silent_for(owner)),
            region: session::region_word(&self.replicas.peek(), &self.region),
        };
        let (store, now) = (Arc::clone(&self.store), (self.clock)());
        if let Some(owner) = &owner {
            self.refuse_departed(slot, owner, &hello.uid)?;
        }
        let session = Session::open(store, &self.region, caller, hello, &heard, now).await;
        let session = session.map(|session| {
            let revoke_after = self.admission.limits.revoke_after;
            session.continuing(&self.removals).revoking_after(revoke_after)
        });
        session.inspect(|_| slot.accepted()).map_err(|error| {
            warn!(%caller, error = %chain(&error), "publish stream refused");
            self.claims.note(&error, Instant::now());
            let claimed = matches!(error, SessionError::Claimed { .. });
            slot.refused(if claimed { Refused::Uid } else { Refused::Session });
            status(&error)
        })
    }

    /// A cluster of which an operator said that it left is not taken back by its own word.
    fn refuse_departed(&self, slot: &Slot, owner: &Owner, uid: &str) -> Result<(), Status> {
        let Caller::Agent { region, cluster } = &slot.caller else { return Ok(()) };
        // Who claims to be another one is refused for that, and learns nothing of it.
        if *owner != Owner::cluster(region.clone(), cluster.clone()) {
            return Ok(());
        }
        let replica = self.replicas.peek();
        let Some(Decision { by, at, .. }) = decisions::has_left(&replica, owner, uid) else {
            return Ok(());
        };
        warn!(caller = %slot.caller, %owner, uid, by, %at, "a cluster that left the mesh was refused");
        slot.refused(Refused::Left);
        Err(Status::failed_precondition(format!(
            "cluster {cluster} left the mesh for good at {at}, by the word of {by}: withdraw that with \
             `tombolo leave {cluster} --withdraw`, or let it join as another cluster"
        )))
    }

    /// Who calls, and room for one more stream of theirs.
    fn admit<T>(&self, request: &Request<T>, call: Call) -> Result<Slot, Status> {
        let caller = caller(request);
        let caller =
            caller.inspect_err(|_| self.admission.metrics.refused(call, Refused::Identity))?;
        Ok(self.admission.admit(&caller, call)?)
    }

    /// Waits for the turn that a full transfer needs; none for less.
    async fn turn(&self, slot: &Slot, feed: &Feed) -> Result<Option<Turn>, Status> {
        let bytes = feed.transfer_bytes();
        if bytes <= self.admission.limits.full_transfer_bytes {
            return Ok(None);
        }
        let turn = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Err(stopping()),
            turn = self.admission.turn() => turn,
        };
        let turn = turn.inspect_err(|busy: &Busy| {
            warn!(caller = %slot.caller, bytes, %busy, "a full transfer was refused");
            slot.refused(busy.reason());
        })?;
        Ok(Some(turn))
    }

    fn watch<T: 'static>(
        &self,
        slot: Slot,
        turn: Option<Turn>,
        stream: Answers<T>,
    ) -> Response<Answers<T>> {
        Response::new(self.lookout.watch(&self.admission.limits, slot, turn, stream))
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
        let slot = self.admit(&request, Call::Publish)?;
        let mut requests = request.into_inner();
        let session = match self.open_session(&slot, &mut requests).await {
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
        info!(owner = %session.owner(), "publish stream accepted");
        let (limits, now) = (&self.admission.limits, Instant::now());
        let mut replicas = self.replicas.clone();
        // A change that came while the stream was taken is none of those that follow.
        streams::still_entitled(&session, &replicas.current())?;
        let publishing = Publishing {
            replicas,
            answers: VecDeque::from([session.accepted()]),
            session,
            requests,
            clock: Arc::clone(&self.clock),
            stop: self.stop.clone(),
            ended: slot.ended.clone(),
            metrics: self.admission.metrics.clone(),
            messages: Bucket::full(limits.publish_messages, now),
            bytes: Bucket::full(limits.publish_bytes, now),
            changes: Arc::clone(&slot.changes),
        };
        let answers = futures::stream::unfold(Some(publishing), |state| async {
            let mut state = state?;
            match state.next().await {
                Ok(Some(answer)) => Some((Ok(answer), Some(state))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(self.watch(slot, None, Box::pin(answers)))
    }

    async fn subscribe(
        &self,
        request: Request<wire::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let slot = self.admit(&request, Call::Subscribe)?;
        let request = request.into_inner();
        let owners = owners(&self.region, &slot.caller, request.scope());
        let owners = owners.inspect_err(|_| slot.refused(Refused::Permission))?;
        let uses = uses(&request.uses).inspect_err(|_| slot.refused(Refused::Request))?;
        let mut replicas = self.replicas.clone();
        self.fit(&slot.caller, &mut replicas).await?;
        let position = self.reach(request.position, &mut replicas).await?;
        let digests = request.held.into_iter().filter_map(|held| {
            let owner: Owner = held.owner.parse().ok()?;
            Some((owner, held.digest.to_vec()))
        });
        let has = Has { digests: digests.collect(), position };
        let level = request.reads_level.clamp(1, READS_LEVEL);
        let open = |replica: Arc<Replica>| {
            // What it was waited for can be lost again only with its record.
            let entitlement = entitlement_of(&slot.caller, &replica).ok_or_else(unknown)?;
            let interest = Interest {
                owners: owners.clone(),
                entitlement: entitlement.clone(),
                uses: uses.clone(),
                level,
            };
            Ok::<_, Status>((Feed::open(interest, has.clone(), replica), entitlement))
        };
        let (mut feed, mut entitlement) = open(replicas.current())?;
        let turn = self.turn(&slot, &feed).await?;
        if turn.is_some() {
            // It may have waited.
            (feed, entitlement) = open(replicas.current())?;
        }
        info!(caller = %slot.caller, position, "subscribed");
        // The digests also show that somebody takes what is sent.
        let every = DIGEST_INTERVAL.min(self.admission.limits.silence / 2);
        let mut digests = tokio::time::interval_at(Instant::now() + every, every);
        digests.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let subscription = Subscription {
            feed,
            turn: turn.clone(),
            replicas,
            digests,
            stop: self.stop.clone(),
            caller: slot.caller.clone(),
            entitlement,
        };
        let messages = futures::stream::unfold(Some(subscription), |state| async {
            let mut state = state?;
            match state.next().await {
                Ok(message) => Some((Ok(message), Some(state))),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(self.watch(slot, turn, Box::pin(messages)))
    }

    type RecoverStream = Answers<wire::SubscribeResponse>;

    async fn recover(
        &self,
        request: Request<wire::RecoverRequest>,
    ) -> Result<Response<Self::RecoverStream>, Status> {
        let slot = self.admit(&request, Call::Recover)?;
        let Caller::ControlPlane { region } = &slot.caller else {
            slot.refused(Refused::Permission);
            let why = format!("{} has no region to recover", slot.caller);
            return Err(Status::permission_denied(why));
        };
        let level = request.into_inner().reads_level.clamp(1, READS_LEVEL);
        let interest = Interest { level, ..Interest::all(Owners::Region(region.clone())) };
        let mut replicas = self.replicas.clone();
        let replica = self.fit(&slot.caller, &mut replicas).await?;
        let mut feed = Feed::open(interest.clone(), Has::default(), replica);
        let turn = self.turn(&slot, &feed).await?;
        if turn.is_some() {
            feed = Feed::open(interest, Has::default(), replicas.current());
        }
        info!(caller = %slot.caller, "recovers its region's records");
        let messages = futures::stream::iter(std::iter::from_fn(move || feed.next_message()));
        Ok(self.watch(slot, turn, Box::pin(futures::StreamExt::map(messages, Ok))))
    }
}

fn replaced(slot: &Slot) -> Status {
    slot.refused(Refused::Replaced);
    Status::aborted(format!("{} opened more publish streams: this one is ended", slot.caller))
}

fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| {
        Status::unauthenticated(
            "the federation API wants a certificate of an agent or a control plane of this mesh",
        )
    })
}

/// `None` while the region's word on it is not known.
fn entitlement_of(caller: &Caller, replica: &Replica) -> Option<Entitlement> {
    match caller {
        Caller::Agent { region, cluster } => feed::entitlement(replica, region, cluster),
        Caller::ControlPlane { .. } => Some(Entitlement::All),
    }
}

fn unknown() -> Status {
    Status::unavailable("this control plane does not know what this agent is entitled to")
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
        SessionError::Claimed { .. } => Status::failed_precondition(error.to_string()),
        SessionError::Protocol(_) => Status::invalid_argument(error.to_string()),
        SessionError::Superseded(_) => Status::aborted(error.to_string()),
        SessionError::Unsettled(_) => Status::unavailable(error.to_string()),
        // Who waits for that to be mended has to know what it is.
        SessionError::Store(damaged @ StoreError::Damaged(_)) => {
            Status::unavailable(format!("the region's store cannot be used: {damaged}"))
        }
        SessionError::Store(_) => Status::unavailable("the region's store failed, try again"),
    }
}
