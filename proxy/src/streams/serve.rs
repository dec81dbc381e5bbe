//! The task of one stream: reads, writes, and waits; what to say is the session's to know.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tonic::{Status, Streaming};
use tracing::{Span, debug, info, warn};

use super::Inner;
use super::admit::{Admitted, Refused, admit, check_id};
use super::dialect::Dialect;
use super::nacks::Nacks;
use super::session::{SILENCE, Session};
use super::status::{Enrolled, ProxyStatus};
use crate::cache::{Places, Views};
use crate::class::{ClientClass, ProxyIdentity};
use crate::resources::Type;
use crate::wire::Node;

type Answers<D> = mpsc::Sender<Result<<D as Dialect>::Response, Status>>;

/// Runs a stream to its end, and tells the client why it ended.
pub(super) async fn serve<D: Dialect>(
    inner: Arc<Inner>,
    identity: Option<ProxyIdentity>,
    requests: Streaming<D>,
    answers: Answers<D>,
) {
    let end = match open(&inner, identity, requests, &answers).await {
        Ok(Some(stream)) => stream.run(&inner, &answers).await,
        Ok(None) => End::Hangup,
        Err(end) => end,
    };
    let Some(status) = end.status() else { return debug!("client hung up") };
    if let End::Refused(_) = &end {
        inner.metrics.refused.inc();
        warn!(reason = status.message(), "stream refused");
    } else {
        info!(reason = status.message(), "stream ended");
    }
    // Whoever does not read what was sent before will not read why either.
    if answers.try_send(Err(status)).is_err() {
        debug!("client was not told");
    }
}

/// Why a stream ends.
#[derive(Debug)]
enum End {
    Hangup,
    Stopping,
    Silent,
    Blocked,
    Refused(Status),
}

impl End {
    fn status(&self) -> Option<Status> {
        Some(match self {
            Self::Hangup => return None,
            Self::Stopping => Status::unavailable("the server stops"),
            Self::Silent => Status::unavailable("no answer to a response for 60 s"),
            Self::Blocked => Status::unavailable("no room to write for 60 s"),
            Self::Refused(status) => status.clone(),
        })
    }
}

struct Stream<D> {
    requests: Streaming<D>,
    first: Option<D>,
    node_id: String,
    client: Admitted,
    places: watch::Receiver<Places>,
    session: Session,
    views: Views,
    nacks: Nacks,
    enrolled: Enrolled,
}

/// Reads the first request, and waits for a catalog: whatever was answered before there is one
/// would delete what the client has.
async fn open<D: Dialect>(
    inner: &Inner,
    identity: Option<ProxyIdentity>,
    mut requests: Streaming<D>,
    answers: &Answers<D>,
) -> Result<Option<Stream<D>>, End> {
    let first = tokio::select! {
        first = requests.message() => first,
        () = inner.stop.cancelled() => return Err(End::Stopping),
        () = tokio::time::sleep(SILENCE) => return Err(End::Silent),
    };
    let Ok(Some(mut first)) = first else { return Ok(None) };
    let node = first.take_node().ok_or_else(|| refused(Refused::NoNode))?;
    check_id(&node).map_err(refused)?;
    Span::current().record("node", node.id.as_str());
    if wait_for_catalog(inner, answers).await?.is_none() {
        return Ok(None);
    }
    let mut places = inner.cache.places();
    let client = admit(&inner.config, &places.borrow_and_update(), identity.as_ref(), &node);
    let client = client.map_err(refused)?;
    let class = &client.class;
    // There is a catalog, so there is a view.
    let Some(mut views) = inner.cache.subscribe(class) else { return Err(End::Stopping) };
    let view = Arc::clone(&views.borrow_and_update());
    let session = Session::new(D::VARIANT, class.kind, view);
    let enrolled = inner.roll.enrol(status::<D>(class, &node), &inner.metrics);
    info!(cluster = ?class.locality.cluster, kind = ?class.kind, "stream opened");
    let (first, node_id, nacks) = (Some(first), node.id, Nacks::default());
    Ok(Some(Stream { requests, first, node_id, client, places, session, views, nacks, enrolled }))
}

async fn wait_for_catalog<D>(inner: &Inner, answers: &mpsc::Sender<D>) -> Result<Option<()>, End> {
    let mut catalogs = inner.cache.catalog();
    tokio::select! {
        found = catalogs.wait_for(Option::is_some) => {
            found.map(|_| Some(())).map_err(|_| End::Stopping)
        }
        () = inner.stop.cancelled() => Err(End::Stopping),
        () = answers.closed() => Ok(None),
    }
}

fn refused(why: Refused) -> End {
    End::Refused(why.into())
}

fn status<D: Dialect>(class: &ClientClass, node: &Node) -> ProxyStatus {
    ProxyStatus {
        node: node.id.clone(),
        cluster: class.locality.cluster.clone(),
        region: class.locality.region.clone(),
        zone: class.locality.zone.clone(),
        kind: class.kind,
        version: node.version(),
        protocol: D::VARIANT,
        connected_seconds: 0,
        types: std::collections::BTreeMap::new(),
    }
}

impl<D: Dialect> Stream<D> {
    async fn run(mut self, inner: &Inner, answers: &Answers<D>) -> End {
        if let Some(first) = self.first.take()
            && let Err(end) = self.on_request(inner, first)
        {
            return end;
        }
        let mut work = true;
        let mut blocked = Instant::now() + SILENCE;
        loop {
            let silent = self.session.silent_at();
            // Each branch may be dropped at its await: `message`, `changed` and `reserve` lose
            // nothing but their place, the rest are timers.
            tokio::select! {
                () = inner.stop.cancelled() => return End::Stopping,
                request = self.requests.message() => {
                    let Ok(Some(request)) = request else { return End::Hangup };
                    if let Err(end) = self.on_request(inner, request) {
                        return end;
                    }
                }
                changed = self.views.changed() => {
                    if changed.is_err() {
                        return End::Stopping;
                    }
                    // A change that moves the client is first of all that.
                    if self.places.has_changed().unwrap_or(false)
                        && let Err(end) = self.follow(inner)
                    {
                        return end;
                    }
                    let view = Arc::clone(&self.views.borrow_and_update());
                    self.session.on_view(view);
                }
                changed = self.places.changed() => {
                    if changed.is_err() {
                        return End::Stopping;
                    }
                    if let Err(end) = self.follow(inner) {
                        return end;
                    }
                }
                room = answers.reserve(), if work => {
                    let Ok(room) = room else { return End::Hangup };
                    blocked = Instant::now() + SILENCE;
                    match self.next(inner) {
                        Some(response) => room.send(Ok(response)),
                        None => work = false,
                    }
                    continue;
                }
                () = sleep_until(silent.unwrap_or(blocked)), if silent.is_some() => {
                    return End::Silent;
                }
                () = sleep_until(blocked), if work => return End::Blocked,
            }
            if !work {
                work = true;
                blocked = Instant::now() + SILENCE;
            }
        }
    }

    /// The client's cluster may be known now, or say that it is elsewhere.
    fn follow(&mut self, inner: &Inner) -> Result<(), End> {
        if !self.client.follow(&self.places.borrow_and_update()) {
            return Ok(());
        }
        let class = &self.client.class;
        self.views = inner.cache.subscribe(class).ok_or(End::Stopping)?;
        let view = Arc::clone(&self.views.borrow_and_update());
        self.session.on_class(view);
        self.enrolled.moved(class.locality.zone.clone());
        info!(network = %class.locality.network, zone = ?class.locality.zone, "client moved");
        Ok(())
    }

    fn next(&mut self, inner: &Inner) -> Option<D::Response> {
        let now = Instant::now();
        let response = self.session.next(now)?;
        self.enrolled.sent(&response, now);
        self.count(Type::of_url(response.kind.url()));
        Some(D::response(response, &inner.config.identifier))
    }

    fn on_request(&mut self, inner: &Inner, mut request: D) -> Result<(), End> {
        // A node is the same on every message, if it is there at all.
        if request.take_node().is_some_and(|node| node.id != self.node_id) {
            inner.metrics.differing_nodes.inc();
        }
        let request = request.into_request();
        if request.type_url.is_empty() {
            return Err(refused(Refused::NoType));
        }
        let now = Instant::now();
        let of = Type::of_url(&request.type_url);
        let answer = self.session.on_request(request, now);
        let answer = answer.map_err(|e| End::Refused(Status::resource_exhausted(e.to_string())))?;
        if let Some((of, text)) = self.nacks.news(&answer) {
            warn!(r#type = of.name(), error = text, "client refused a response");
        }
        self.enrolled.answered(&answer, now);
        self.count(of);
        Ok(())
    }

    fn count(&self, of: Option<Type>) {
        if let Some(of) = of
            && let Some(counts) = self.session.counts(of)
        {
            self.enrolled.counted(of, counts);
        }
    }
}
