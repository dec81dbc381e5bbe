//! The ADS server: streams, and what all of them share.
//!
//! Owns: who may open a stream and as which class of client ([`admit`]), the task of each stream
//! (`serve`), and the list of who is connected (`status`). Promises: interest follows the
//! authenticated identity, and a node that contradicts it is refused; streams end when the
//! server stops; a client that does not read or answer costs a bounded amount of memory for a
//! bounded time. Leaves to others: TLS, and putting [`crate::ProxyIdentity`] into requests.

mod admit;
mod batch;
mod dialect;
mod nacks;
mod names;
mod seats;
mod serve;
mod service;
mod session;
mod status;
mod substream;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tombolo_federation::catalog::Snapshots;
use tonic::{Request, Response, Status, Streaming};
use tracing::{Instrument, error, info_span};

use crate::cache::Cache;
use crate::class::{ClientLocality, ProxyIdentity};

pub(crate) use admit::LISTENER;
pub use service::AdsService;
pub use session::Variant;
pub use status::{Nack, ProxyStatus, TypeStatus};

use dialect::Dialect;
use seats::Seats;
use status::{Metrics, Roll};

/// How a server answers.
#[derive(Debug, Clone)]
pub struct AdsConfig {
    /// The clusterset's DNS zone, `clusterset.local`.
    pub zone: Arc<str>,
    /// Tells servers apart in what clients say of them.
    pub identifier: String,
    /// Where the server is: its network stands in for that of clusters that the catalog does not
    /// know, and with `allow_anonymous` its region and cluster for what a node does not say.
    pub home: ClientLocality,
    /// Where an Envoy listens if its node's metadata has no `tombolo.listener`.
    pub listener: SocketAddr,
    /// Serves clients without a [`ProxyIdentity`], as what they say they are. For tests and trials
    /// on loopback; otherwise they are refused.
    pub allow_anonymous: bool,
    /// So many streams at a time may be open by one identity, which all proxies of a namespace in a
    /// cluster share; those without one count as one. More are refused.
    pub streams_per_identity: usize,
}

impl AdsConfig {
    /// For a server at `home`: identities required, Envoys listen on 127.0.0.1:15001.
    #[must_use]
    pub fn new(home: ClientLocality) -> Self {
        Self {
            zone: "clusterset.local".into(),
            identifier: String::new(),
            home,
            listener: SocketAddr::from(([127, 0, 0, 1], 15001)),
            allow_anonymous: false,
            streams_per_identity: 1024,
        }
    }
}

/// Serves aggregated discovery, delta and state-of-the-world, from one catalog.
#[derive(Debug, Clone)]
pub struct AdsServer {
    inner: Arc<Inner>,
    snapshots: Snapshots,
}

#[derive(Debug)]
pub(crate) struct Inner {
    config: AdsConfig,
    cache: Cache,
    roll: Arc<Roll>,
    metrics: Metrics,
    stop: CancellationToken,
    seats: Arc<Seats>,
    /// Streams run in tasks of their own, so that one whose writes are blocked still ends on time.
    streams: Mutex<JoinSet<()>>,
}

impl AdsServer {
    /// A server of what `snapshots` brings. It serves nothing new until [`Self::run`] runs, and
    /// its streams end with `stop`.
    #[must_use]
    pub fn new(snapshots: Snapshots, config: AdsConfig, stop: CancellationToken) -> Self {
        let metrics = Metrics::new();
        let cache = Cache::new(Arc::clone(&config.zone), metrics.encoded.clone());
        let inner = Inner {
            config,
            cache,
            roll: Arc::default(),
            metrics,
            stop,
            seats: Arc::default(),
            streams: Mutex::default(),
        };
        Self { inner: Arc::new(inner), snapshots }
    }

    /// The service, to be added to a tonic router.
    #[must_use]
    pub fn into_service(&self) -> AdsService {
        AdsService { inner: Arc::clone(&self.inner) }
    }

    /// Follows the catalog until the server stops or the catalog's writer is gone, then waits for
    /// the streams to end. To be run once, in a task of the caller's.
    pub async fn run(self) {
        let Self { inner, mut snapshots } = self;
        let follow = async {
            // One may have been published before this reader was made.
            let mut next = match snapshots.current() {
                None => snapshots.next().await,
                published => published,
            };
            while let Some(catalog) = next {
                let touched = match inner.cache.generation() {
                    0 => None,
                    applied => catalog.touched_since(applied),
                };
                inner.cache.apply(&catalog, touched);
                next = snapshots.next().await;
            }
        };
        tokio::select! {
            () = inner.stop.cancelled() => {}
            () = follow => inner.stop.cancelled().await,
        }
        let mut streams = std::mem::take(&mut *inner.streams());
        while let Some(ended) = streams.join_next().await {
            report(ended);
        }
    }

    /// Who is connected.
    #[must_use]
    pub fn proxies(&self) -> Vec<ProxyStatus> {
        self.inner.roll.list()
    }

    /// The catalog generation that is served; 0 before the first complete one.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.inner.cache.generation()
    }

    /// Adds the server's metrics to `registry`, as `tombolo_xds_*`.
    pub fn register(&self, registry: &mut Registry) {
        self.inner.metrics.register(registry);
    }
}

/// The answers of a stream.
type Outgoing<D> = ReceiverStream<Result<<D as Dialect>::Response, Status>>;

impl Inner {
    /// Starts a stream's task; its answers come out of what is returned.
    fn open<D: Dialect>(
        self: &Arc<Self>,
        request: Request<Streaming<D>>,
    ) -> Result<Response<Outgoing<D>>, Status>
    where
        Streaming<D>: Send,
    {
        let identity = request.extensions().get::<ProxyIdentity>().cloned();
        if identity.is_none() && !self.config.allow_anonymous {
            self.metrics.refused.inc();
            return Err(Status::unauthenticated("a mesh certificate is required"));
        }
        let most = self.config.streams_per_identity;
        let Some(seat) = self.seats.take(identity.clone(), most) else {
            self.metrics.refused.inc();
            let text = format!("{most} streams of this identity are open already");
            return Err(Status::resource_exhausted(text));
        };
        // One: what waits to be written is made when there is room for it, from the newest state.
        let (answers, outgoing) = mpsc::channel(1);
        let span = info_span!("ads", protocol = ?D::VARIANT, node = tracing::field::Empty);
        let stream = serve::serve(Arc::clone(self), identity, request.into_inner(), answers);
        let stream = async move {
            stream.await;
            drop(seat);
        };
        let mut streams = self.streams();
        while let Some(ended) = streams.try_join_next() {
            report(ended);
        }
        streams.spawn(stream.instrument(span));
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }

    fn streams(&self) -> std::sync::MutexGuard<'_, JoinSet<()>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(failed) = ended
        && failed.is_panic()
    {
        error!(error = %failed, "an ADS stream ended in a panic");
    }
}
