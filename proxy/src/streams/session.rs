//! One stream, as a state machine without I/O: requests and views in, responses out.
//!
//! Owns: the order of types (XDS X37 to X42), nonces, the window of unanswered responses and when a
//! client has been silent for too long. Promises: types are independent of each other but for that
//! order (X2); it answers nothing before it has a view (X7), whatever arrives first; a response is
//! made when there is room to write it, from the newest view (X48). Leaves to others: reading,
//! writing and timers (`serve`).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::substream::{Substream, TooMuch, Unanswered};
use crate::cache::{Names, Table, View};
use crate::class::ClientKind;
use crate::resources::{Resource, Type, Version};
use crate::wire::Status;

/// So many responses of a type may be on their way before the client answers (XDS X49).
const WINDOW: usize = 2;
/// A client that does not answer for so long is sent away; its place may be taken by one that does.
pub(super) const SILENCE: Duration = Duration::from_mins(1);
/// Responses are cut near this size, so that one does not hold up the others (XDS X51).
const RESPONSE_BYTES: usize = 1 << 20;
/// Type URLs that are not served and yet answered, per stream.
const UNKNOWN_TYPES: usize = 16;

/// Which of the two protocols a stream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// Incremental: `DeltaAggregatedResources`.
    Delta,
    /// State of the world: `StreamAggregatedResources`.
    StateOfTheWorld,
}

/// A type of resource, served or not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    Served(Type),
    Unknown(Arc<str>),
}

impl Kind {
    pub(super) fn url(&self) -> &str {
        match self {
            Self::Served(of) => of.url(),
            Self::Unknown(url) => url,
        }
    }
}

/// A request of either protocol; the fields of the other one are empty.
#[derive(Debug, Default)]
pub(super) struct Request {
    pub(super) type_url: String,
    pub(super) nonce: String,
    pub(super) error: Option<Status>,
    /// State of the world: all names that are subscribed.
    pub(super) names: Vec<String>,
    /// State of the world: what the client has.
    pub(super) version: String,
    /// Delta: names that are added.
    pub(super) subscribe: Vec<String>,
    /// Delta: names that are removed.
    pub(super) unsubscribe: Vec<String>,
    /// Delta: what the client has.
    pub(super) held: HashMap<String, String>,
}

/// A response of either protocol.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) kind: Kind,
    pub(super) nonce: u64,
    /// Of all that the client holds after this.
    pub(super) version: Version,
    pub(super) resources: Vec<Arc<Resource>>,
    /// No longer there, or never was.
    pub(super) removed: Vec<Arc<str>>,
}

/// What a request turned out to be, for whoever keeps count.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Acknowledged {
        of: Type,
        version: Version,
        after: Duration,
    },
    Refused {
        of: Type,
        version: Version,
        text: String,
    },
    /// About subscriptions only, or of no consequence.
    Other,
    /// Of a type that is not served.
    UnknownType,
}

type Whole = Vec<Arc<Resource>>;
type Missing = Vec<Arc<str>>;

/// See the module.
#[derive(Debug)]
pub(super) struct Session {
    variant: Variant,
    client: ClientKind,
    view: Arc<View>,
    subs: BTreeMap<Kind, Substream>,
    nonce: u64,
    /// Clusters that were sent as new or changed and not followed by their endpoints yet.
    unfollowed: Names,
    nothing: Table,
}

impl Session {
    pub(super) fn new(variant: Variant, client: ClientKind, view: Arc<View>) -> Self {
        Self {
            variant,
            client,
            view,
            subs: BTreeMap::new(),
            nonce: 0,
            unfollowed: Names::new(),
            nothing: Table::empty(),
        }
    }

    /// What is there now.
    pub(super) fn on_view(&mut self, view: Arc<View>) {
        let before = std::mem::replace(&mut self.view, view);
        for of in Type::ALL {
            if let Some(sub) = self.subs.get_mut(&Kind::Served(of)) {
                let table = self.view.table(of);
                sub.on_change(table, table.changed_since(before.revision));
            }
        }
    }

    pub(super) fn on_request(&mut self, request: Request, now: Instant) -> Result<Answer, TooMuch> {
        let Some(kind) = self.kind(&request.type_url) else { return Ok(Answer::UnknownType) };
        let sub = self.subs.entry(kind.clone()).or_default();
        let answered = sub.answered(&request.nonce);
        let newest = |latest: u64| request.nonce.is_empty() || request.nonce == latest.to_string();
        let stale = sub.latest.is_some_and(|latest| !newest(latest));
        let table = match &kind {
            Kind::Served(of) => self.view.table(*of),
            Kind::Unknown(_) => &self.nothing,
        };
        // Only listeners and clusters have the legacy wildcard (X22), and gRPC has none (X23).
        let legacy =
            self.client == ClientKind::Envoy && matches!(&kind, Kind::Served(of) if of.is_whole());
        match self.variant {
            Variant::Delta => {
                // Honoured whatever the nonce says of an earlier response (X10).
                sub.subscribe(&request.subscribe, legacy, &request.held, table)?;
                sub.unsubscribe(&request.unsubscribe);
            }
            // The client is about to say the same, or newer, with the latest nonce (X9).
            Variant::StateOfTheWorld if stale => {}
            Variant::StateOfTheWorld => {
                let first = !sub.opened;
                sub.set_names(&request.names, legacy, table)?;
                let whole: Version = table.iter().map(|resource| resource.version).sum();
                let has_it = Version::parse(&request.version) == Some(whole);
                // The version proves the content only if the subscription is all there is (X32).
                if first && has_it && sub.wildcard && request.names.is_empty() {
                    sub.assume_held(table);
                }
            }
        }
        if kind == Kind::Served(Type::Endpoints) {
            // The reconnect trap (X39): the clusters were answered before this request was read,
            // and what the client holds of their endpoints does not count for a changed cluster.
            sub.renew(self.unfollowed.iter().cloned());
        }
        Ok(outcome(kind, answered, request.error, now))
    }

    fn kind(&self, url: &str) -> Option<Kind> {
        if let Some(of) = Type::of_url(url) {
            return Some(Kind::Served(of));
        }
        let kind = Kind::Unknown(url.into());
        let unknown = |kind: &&Kind| matches!(kind, Kind::Unknown(_));
        let room = self.subs.keys().filter(unknown).count() < UNKNOWN_TYPES;
        (room || self.subs.contains_key(&kind)).then_some(kind)
    }

    /// The next response, if there is one to send now: first what is new or changed, clusters
    /// before endpoints before listeners before routes; then what is gone, the other way round, so
    /// that no route names a cluster that is not there (X37). A cluster's endpoints follow it at
    /// once and never wait for its ACK, which waits for them (X38, X40).
    pub(super) fn next(&mut self, now: Instant) -> Option<Response> {
        let put = Type::ALL.into_iter().find_map(|of| self.put(of, now));
        put.or_else(|| self.removal(now))
    }

    fn put(&mut self, of: Type, now: Instant) -> Option<Response> {
        let kind = Kind::Served(of);
        let sub = self.subs.get_mut(&kind).filter(|sub| sub.is_open())?;
        let table = self.view.table(of);
        let batch =
            sub.take_batch(table, self.variant == Variant::StateOfTheWorld && of.is_whole());
        let (resources, changed) = batch?;
        if of == Type::Cluster {
            // Endpoints are named as their clusters are, one to one.
            self.unfollowed.extend(changed.iter().cloned());
            if let Some(endpoints) = self.subs.get_mut(&Kind::Served(Type::Endpoints)) {
                endpoints.renew(changed);
            }
        } else if of == Type::Endpoints {
            for resource in &resources {
                self.unfollowed.remove(&resource.name);
            }
        }
        Some(self.respond(kind, resources, Vec::new(), now))
    }

    /// Removals, and answers about what does not exist: they wait for all that is still to be
    /// added, except where nothing can be.
    fn removal(&mut self, now: Instant) -> Option<Response> {
        let unknown: Vec<Kind> =
            self.subs.keys().filter(|kind| matches!(kind, Kind::Unknown(_))).cloned().collect();
        let served = [Type::Route, Type::Listener, Type::Cluster, Type::Endpoints];
        let order = served.into_iter().map(Kind::Served).chain(unknown);
        let order: Vec<Kind> = order.collect();
        order.into_iter().find_map(|kind| self.remove(kind, now))
    }

    fn remove(&mut self, kind: Kind, now: Instant) -> Option<Response> {
        if kind == Kind::Served(Type::Cluster) && self.routes_pending() {
            return None;
        }
        let sub = self.subs.get_mut(&kind).filter(|sub| sub.is_open())?;
        let table = match &kind {
            Kind::Served(of) => self.view.table(*of),
            Kind::Unknown(_) => &self.nothing,
        };
        let whole = matches!(&kind, Kind::Served(of) if of.is_whole());
        if self.variant == Variant::StateOfTheWorld && whole {
            let (resources, missing) = sub.take_whole(table)?;
            return Some(self.respond(kind, resources, missing, now));
        }
        let gone = sub.take_gone(table);
        if kind == Kind::Served(Type::Cluster) {
            for name in &gone {
                self.unfollowed.remove(name);
            }
        }
        // Envoy has no use for being told in state-of-the-world that there is nothing (X28).
        let silent = self.variant == Variant::StateOfTheWorld
            && (self.client == ClientKind::Envoy || matches!(kind, Kind::Unknown(_)));
        let greeting = std::mem::take(&mut sub.greeting);
        if (gone.is_empty() || silent) && !greeting {
            return None;
        }
        Some(self.respond(kind, Vec::new(), gone, now))
    }

    /// A route may still name a cluster that is to go.
    fn routes_pending(&self) -> bool {
        let routes = self.subs.get(&Kind::Served(Type::Route));
        routes.is_some_and(|sub| !sub.dirty.is_empty() || sub.greeting)
    }

    fn respond(
        &mut self,
        kind: Kind,
        resources: Vec<Arc<Resource>>,
        removed: Vec<Arc<str>>,
        now: Instant,
    ) -> Response {
        self.nonce += 1;
        let nonce = self.nonce;
        let sub = self.subs.entry(kind.clone()).or_default();
        let version = sub.version();
        sub.greeting = false;
        sub.latest = Some(nonce);
        sub.unanswered.push_back(Unanswered { nonce, version, at: now });
        Response { kind, nonce, version, resources, removed }
    }

    /// When the client will have been silent for too long; `None` while nothing is unanswered.
    pub(super) fn silent_at(&self) -> Option<Instant> {
        let oldest =
            self.subs.values().filter_map(|sub| sub.unanswered.front()).map(|sent| sent.at);
        oldest.min().map(|at| at + SILENCE)
    }

    /// Per served type: how many resources are subscribed, and how many responses unanswered.
    pub(super) fn counts(&self, of: Type) -> Option<(usize, usize)> {
        let sub = self.subs.get(&Kind::Served(of))?;
        Some((sub.subscribed(), sub.unanswered.len()))
    }
}

impl Substream {
    fn is_open(&self) -> bool {
        self.unanswered.len() < WINDOW || self.urgent
    }

    /// What exists among the dirty names and must be sent, up to a response's size, and which of
    /// it is new to the client. State-of-the-world clusters and listeners come whole or not at
    /// all (X18).
    fn take_batch(&mut self, table: &Table, whole: bool) -> Option<(Vec<Arc<Resource>>, Names)> {
        let mut batch = Vec::new();
        let mut size = 0;
        let mut settled = Vec::new();
        for name in &self.dirty {
            let Some(resource) = table.get(name).filter(|_| self.wants(name)) else { continue };
            settled.push(Arc::clone(name));
            let same = self.sent.get(name) == Some(&resource.version);
            if same && !self.owed.contains(name) {
                continue;
            }
            size += resource.body.len();
            batch.push(Arc::clone(resource));
            if size >= RESPONSE_BYTES && !whole {
                break;
            }
        }
        for name in &settled {
            self.dirty.remove(name);
            self.owed.remove(name);
        }
        self.urgent &= !self.owed.is_empty();
        if batch.is_empty() {
            return None;
        }
        let differs = |r: &&Arc<Resource>| self.sent.get(&r.name) != Some(&r.version);
        let changed = batch.iter().filter(differs).map(|r| Arc::clone(&r.name)).collect();
        if whole {
            self.dirty.clear();
            self.owed.clear();
            batch = self.hold_whole(table);
        } else {
            self.sent.extend(batch.iter().map(|r| (Arc::clone(&r.name), r.version)));
        }
        Some((batch, changed))
    }

    /// State of the world: everything, when something is gone or a first answer is due.
    fn take_whole(&mut self, table: &Table) -> Option<(Whole, Missing)> {
        let dirty = std::mem::take(&mut self.dirty);
        let owed = std::mem::take(&mut self.owed);
        let greeting = std::mem::take(&mut self.greeting);
        let gone = dirty.iter().any(|name| self.sent.contains_key(name) || owed.contains(name));
        let missing = owed.into_iter().filter(|name| table.get(name).is_none()).collect();
        (gone || greeting).then(|| (self.hold_whole(table), missing))
    }

    fn hold_whole(&mut self, table: &Table) -> Vec<Arc<Resource>> {
        let all: Vec<_> = table.iter().filter(|r| self.wants(&r.name)).map(Arc::clone).collect();
        self.sent = all.iter().map(|r| (Arc::clone(&r.name), r.version)).collect();
        all
    }

    /// What the client holds, or asked for, and does not exist. A name stays subscribed, so that
    /// the resource is sent when it appears (X28).
    fn take_gone(&mut self, table: &Table) -> Vec<Arc<str>> {
        let absent = |name: &&Arc<str>| table.get(name).is_none() || !self.wants(name);
        let absent: Vec<Arc<str>> = self.dirty.iter().filter(absent).cloned().collect();
        let mut gone = Vec::new();
        for name in absent {
            self.dirty.remove(&name);
            let owed = self.owed.remove(&name);
            if self.sent.remove(&name).is_some() || owed {
                gone.push(name);
            }
        }
        self.urgent &= !self.owed.is_empty();
        gone
    }
}

fn outcome(
    kind: Kind,
    answered: Option<Unanswered>,
    error: Option<Status>,
    now: Instant,
) -> Answer {
    match (kind, answered, error) {
        (Kind::Unknown(_), _, _) => Answer::UnknownType,
        (Kind::Served(of), Some(sent), Some(error)) => {
            Answer::Refused { of, version: sent.version, text: error.message }
        }
        // Presence of the error alone makes a NACK (X11), also one for a response long answered.
        (Kind::Served(of), None, Some(error)) => {
            Answer::Refused { of, version: Version::default(), text: error.message }
        }
        (Kind::Served(of), Some(sent), None) => Answer::Acknowledged {
            of,
            version: sent.version,
            after: now.saturating_duration_since(sent.at),
        },
        (Kind::Served(_), None, None) => Answer::Other,
    }
}
