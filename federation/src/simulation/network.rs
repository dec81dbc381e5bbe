//! The ways between processes: what is said arrives in order, late, or breaks off.
//!
//! A client calls the real server of a process through a [`Wire`]; what travels are the frames of
//! gRPC bodies. While a way is blocked its frames wait, as a sender's buffers would have them; a
//! connection that is blocked for longer than [`KEEPALIVE`] is broken for both ends.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::poll_fn;
use http_body::{Body as _, Frame};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};

use super::Shared;
use super::tap::Tap;
use crate::names::RegionName;
use crate::proto::federation::federation_server::FederationServer;
use crate::replica::{Replica, Replicas};
use crate::store::conformance::random::Random;
use crate::sync::Caller;
use crate::sync::service::FederationApi;

/// A connection that is blocked for so long is given up by both ends.
const KEEPALIVE: Duration = Duration::from_secs(8);
/// A way that is blocked when a call begins is not waited for longer.
const CONNECTS_WITHIN: Duration = Duration::from_secs(3);
/// Frames on their way at a time.
const WINDOW: usize = 8;
/// How often somebody looks whether a blocked way is free.
const LOOK: Duration = Duration::from_millis(100);

/// A process's tasks: none of them outlives it.
#[derive(Debug, Clone, Default)]
pub(super) struct Spawner(Arc<Mutex<Option<JoinSet<()>>>>);

impl Spawner {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Some(JoinSet::new()))))
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(tasks) = &mut *lock(&self.0) {
            tasks.spawn(task);
        }
    }

    /// Ends all of them where they stand.
    pub(super) fn kill(&self) {
        drop(lock(&self.0).take());
    }
}

/// All ways.
#[derive(Debug, Default)]
pub(super) struct Network {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// From whom to whom nothing gets through.
    blocked: BTreeSet<(String, String)>,
    servers: BTreeMap<String, Server>,
    connections: Vec<Connection>,
}

#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) region: RegionName,
    pub(super) service: FederationServer<FederationApi>,
    pub(super) replicas: Replicas,
    pub(super) tasks: Spawner,
}

#[derive(Debug)]
struct Connection {
    client: String,
    server: String,
    broken: CancellationToken,
}

impl Connection {
    fn between(&self, a: &str, b: &str) -> bool {
        (self.client == a && self.server == b) || (self.client == b && self.server == a)
    }
}

impl Network {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    pub(super) fn serve(&self, process: &str, server: Server) {
        self.inner().servers.insert(process.to_owned(), server);
    }

    pub(super) fn leave(&self, process: &str) {
        self.inner().servers.remove(process);
    }

    pub(super) fn block(&self, from: &str, to: &str) {
        self.inner().blocked.insert((from.to_owned(), to.to_owned()));
    }

    pub(super) fn free(&self, from: &str, to: &str) {
        self.inner().blocked.remove(&(from.to_owned(), to.to_owned()));
    }

    pub(super) fn free_all(&self) {
        self.inner().blocked.clear();
    }

    fn is_blocked(&self, from: &str, to: &str) -> bool {
        self.inner().blocked.contains(&(from.to_owned(), to.to_owned()))
    }

    /// Breaks what there is between two. How many connections it was.
    pub(super) fn cut(&self, a: &str, b: &str) -> usize {
        let mut inner = self.inner();
        inner.connections.retain(|connection| !connection.broken.is_cancelled());
        let cut = inner.connections.iter().filter(|connection| connection.between(a, b));
        cut.map(|connection| connection.broken.cancel()).count()
    }

    /// A balancer knows who is up, and nothing else.
    fn any_of(&self, region: &RegionName, random: &mut Random) -> Option<(String, Server)> {
        let inner = self.inner();
        let servers = inner.servers.iter().filter(|(_, server)| server.region == *region);
        let servers: Vec<_> = servers.collect();
        let index = random.below(servers.len().max(1) as u64);
        let (name, server) = servers.get(usize::try_from(index).ok()?)?;
        Some(((*name).clone(), (*server).clone()))
    }

    fn connect(&self, client: &str, server: &str) -> CancellationToken {
        let broken = CancellationToken::new();
        let connection = Connection {
            client: client.to_owned(),
            server: server.to_owned(),
            broken: broken.clone(),
        };
        let mut inner = self.inner();
        inner.connections.retain(|connection| !connection.broken.is_cancelled());
        inner.connections.push(connection);
        broken
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whom a client's last subscription reached, and what that one held then.
#[derive(Debug, Clone)]
pub(super) struct Reached {
    pub(super) server: Server,
    pub(super) held: Arc<Replica>,
}

/// One client's way to a region, whichever of its processes answers.
#[derive(Debug, Clone)]
pub(super) struct Wire {
    pub(super) shared: Arc<Shared>,
    pub(super) client: String,
    pub(super) region: RegionName,
    pub(super) caller: Caller,
    pub(super) tasks: Spawner,
    pub(super) reached: Arc<Mutex<Option<Reached>>>,
}

impl Service<http::Request<Body>> for Wire {
    type Response = http::Response<Body>;
    type Error = Status;
    type Future = BoxFuture<Self::Response, Status>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let wire = self.clone();
        Box::pin(async move { wire.carry(request).await })
    }
}

impl Wire {
    async fn carry(self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        let mut random = self.shared.fork();
        let latency = Duration::from_micros(300 + random.below(30_000));
        sleep(latency).await;
        let network = &self.shared.network;
        let found = network.any_of(&self.region, &mut random);
        let (name, server) = found.ok_or_else(|| Status::unavailable("connection refused"))?;
        let asked = Instant::now();
        while network.is_blocked(&self.client, &name) || network.is_blocked(&name, &self.client) {
            if asked.elapsed() > CONNECTS_WITHIN {
                return Err(Status::unavailable("the connection is not answered"));
            }
            sleep(LOOK).await;
        }
        let broken = network.connect(&self.client, &name);
        let tap =
            Tap::new(&self.shared, &self.client, &server, request.uri().path(), random.next());
        if request.uri().path().ends_with("/Subscribe") {
            let reached = Reached { server: server.clone(), held: server.replicas.peek() };
            *lock(&self.reached) = Some(reached);
        }
        let way = |from: &str, to: &str, upwards| Way {
            shared: Arc::clone(&self.shared),
            from: from.to_owned(),
            to: to.to_owned(),
            latency,
            broken: broken.clone(),
            tap: tap.clone(),
            upwards,
        };
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(self.caller.clone());
        let upward = way(&self.client, &name, true);
        let (frames, piped) = pipe();
        self.tasks.spawn(upward.pump(body, frames));
        let request = http::Request::from_parts(parts, Body::new(piped));
        let downward = way(&name, &self.client, false);
        let (head, headed) = oneshot::channel();
        let mut service = server.service.clone();
        let lost = broken.clone();
        server.tasks.spawn(async move {
            let answering = async {
                let Ok(response) = service.call(request).await;
                let (parts, body) = response.into_parts();
                let (frames, piped) = pipe();
                downward.travel().await;
                if head.send(http::Response::from_parts(parts, Body::new(piped))).is_ok() {
                    downward.pump(body, frames).await;
                }
            };
            tokio::select! {
                biased;
                () = lost.cancelled() => {}
                () = answering => {}
            }
        });
        tokio::select! {
            biased;
            () = broken.cancelled() => Err(Status::unavailable("the connection broke")),
            head = headed => head.map_err(|_| Status::unavailable("the connection was reset")),
        }
    }
}

/// One direction of a connection.
struct Way {
    shared: Arc<Shared>,
    from: String,
    to: String,
    latency: Duration,
    broken: CancellationToken,
    tap: Tap,
    /// From the client to the server.
    upwards: bool,
}

impl Way {
    async fn pump(self, mut body: Body, frames: mpsc::Sender<Piece>) {
        let pumping = async {
            loop {
                let frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
                let piece = match frame {
                    Some(Ok(frame)) => Piece::Frame(self.tapped(frame)),
                    Some(Err(_)) => return,
                    None => Piece::End,
                };
                self.travel().await;
                let ended = matches!(piece, Piece::End);
                if frames.send(piece).await.is_err() || ended {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            () = self.broken.cancelled() => {}
            // Nobody reads any more: whoever waits for more to say need not.
            () = frames.closed() => {}
            () = pumping => {}
        }
    }

    fn tapped(&self, frame: Frame<Bytes>) -> Frame<Bytes> {
        match frame.into_data() {
            Ok(data) if self.upwards => Frame::data(self.tap.request(data)),
            Ok(data) => Frame::data(self.tap.response(data)),
            Err(frame) => frame,
        }
    }

    async fn travel(&self) {
        sleep(self.latency).await;
        let since = Instant::now();
        while self.shared.network.is_blocked(&self.from, &self.to) {
            if since.elapsed() > KEEPALIVE {
                self.broken.cancel();
            }
            sleep(LOOK).await;
        }
    }
}

enum Piece {
    Frame(Frame<Bytes>),
    End,
}

/// The reading end of a way.
struct Piped {
    frames: mpsc::Receiver<Piece>,
    ended: bool,
}

fn pipe() -> (mpsc::Sender<Piece>, Piped) {
    let (tx, frames) = mpsc::channel(WINDOW);
    (tx, Piped { frames, ended: false })
}

impl http_body::Body for Piped {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        self.frames.poll_recv(cx).map(|piece| match piece {
            Some(Piece::Frame(frame)) => Some(Ok(frame)),
            Some(Piece::End) => {
                self.ended = true;
                None
            }
            None => {
                self.ended = true;
                Some(Err(Status::unavailable("the connection was reset")))
            }
        })
    }
}
