//! One stream, as a state machine without I/O: requests and views in, responses out.
//!
//! Owns: the order of types, nonces, the window of unanswered responses and when a
//! client has been silent for too long. Promises: types are independent of each other but for that
//! order; it answers nothing before it has a view, whatever arrives first; a response is
//! made when there is room to write it, from the newest view. Leaves to others: reading,
//! writing and timers (`serve`).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::names::{TooMuch, Weight};
use super::substream::{Substream, Unanswered, WILDCARD};
use crate::cache::{Names, Table, View};
use crate::class::ClientKind;
use crate::resources::{Resource, Type, Version};
use crate::wire::Status;

/// A client that does not answer for so long is sent away; its place may be taken by one that does.
pub(super) const SILENCE: Duration = Duration::from_mins(1);
/// A NACK's text is kept up to so many characters; Envoy repeats whole messages in it.
const NACK_TEXT: usize = 500;

/// What is gone is said top down.
const REMOVALS: [Type; 4] = [Type::Route, Type::Listener, Type::Cluster, Type::Endpoints];

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
        /// In the client's words, cut.
        text: String,
    },
    /// About subscriptions only, or of no consequence.
    Other,
    /// Of a type that is not served.
    UnknownType,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Session {
    variant: Variant,
    client: ClientKind,
    view: Arc<View>,
    subs: BTreeMap<Type, Substream>,
    nonce: u64,
    /// Clusters that were sent as new or changed and not followed by their endpoints yet.
    unfollowed: Names,
    /// What was asked of types that are not served, until it is answered.
    unknown: VecDeque<Unknown>,
}

/// Names of a type that is not served.
#[derive(Debug)]
struct Unknown {
    url: Arc<str>,
    names: Vec<Arc<str>>,
    weight: Weight,
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
            unknown: VecDeque::new(),
        }
    }

    /// What is there now.
    pub(super) fn on_view(&mut self, view: Arc<View>) {
        let since = self.view.revision;
        self.replace(view, |table| table.changed_since(since));
    }

    /// What is there now for the client, which turned out to be of another class.
    pub(super) fn on_class(&mut self, view: Arc<View>) {
        self.replace(view, |_| None);
    }

    fn replace(&mut self, view: Arc<View>, changed: impl Fn(&Table) -> Option<Names>) {
        let before = std::mem::replace(&mut self.view, view);
        for (of, sub) in &mut self.subs {
            let table = self.view.table(*of);
            sub.on_change(table, changed(table));
            if self.variant == Variant::StateOfTheWorld && *of == Type::Cluster {
                sub.keep_leaving(before.table(*of), table);
            }
        }
    }

    pub(super) fn on_request(&mut self, request: Request, now: Instant) -> Result<Answer, TooMuch> {
        let answer = match Type::of_url(&request.type_url) {
            Some(of) => self.on_served(of, request, now)?,
            None => self.on_unknown(&request)?,
        };
        let subscribed = self.subs.values().map(Substream::weight);
        let asked = self.unknown.iter().map(|unknown| unknown.weight);
        subscribed.chain(asked).sum::<Weight>().check()?;
        Ok(answer)
    }

    /// A client that waits for what there is not is told so, once; nothing is kept of it.
    /// State of the world has no words for it, and repeats its names in every answer.
    fn on_unknown(&mut self, request: &Request) -> Result<Answer, TooMuch> {
        if !request.subscribe.is_empty() {
            let url = request.type_url.as_str();
            let names = || request.subscribe.iter().map(String::as_str);
            let weight = Weight::of(names().chain([url]))?;
            weight.check()?;
            let names = names().filter(|name| *name != WILDCARD).map(Arc::from).collect();
            self.unknown.push_back(Unknown { url: url.into(), names, weight });
        }
        Ok(Answer::UnknownType)
    }

    fn on_served(&mut self, of: Type, request: Request, now: Instant) -> Result<Answer, TooMuch> {
        let sub = self.subs.entry(of).or_default();
        let answered = sub.answered(&request.nonce);
        let newest = |latest: u64| request.nonce.is_empty() || request.nonce == latest.to_string();
        let stale = sub.latest.is_some_and(|latest| !newest(latest));
        let table = self.view.table(of);
        // Only listeners and clusters have the legacy wildcard, and gRPC has none.
        let legacy = self.client == ClientKind::Envoy && of.is_whole();
        match self.variant {
            Variant::Delta => {
                // Honoured whatever the nonce says of an earlier response.
                sub.subscribe(&request.subscribe, legacy, &request.held, table)?;
                sub.unsubscribe(&request.unsubscribe);
            }
            // The client is about to say the same, or newer, with the latest nonce.
            Variant::StateOfTheWorld if stale => {}
            Variant::StateOfTheWorld => {
                let first = !sub.opened;
                sub.set_names(&request.names, legacy, table)?;
                let whole: Version = table.iter().map(|resource| resource.version).sum();
                let has_it = Version::parse(&request.version) == Some(whole);
                // The version proves the content only if the subscription is all there is.
                if first && has_it && sub.wildcard && request.names.is_empty() {
                    sub.assume_held(table);
                }
            }
        }
        if of == Type::Endpoints {
            // The reconnect trap: the clusters were answered before this request was read,
            // and what the client holds of their endpoints does not count for a changed cluster.
            sub.renew(self.unfollowed.iter().cloned());
        }
        Ok(outcome(of, answered, request.error, now))
    }

    /// The next response, if there is one to send now: first what is new or changed, clusters
    /// before endpoints before listeners before routes; then what is gone, the other way round, so
    /// that no route names a cluster that is not there. Types whose windows are full hold up
    /// those that may name them. A cluster's endpoints follow it at
    /// once and never wait for its ACK, which waits for them.
    pub(super) fn next(&mut self, now: Instant) -> Option<Response> {
        let put = Type::ALL.into_iter().find_map(|of| self.put(of, now));
        put.or_else(|| REMOVALS.into_iter().find_map(|of| self.remove(of, now)))
            .or_else(|| self.not_served())
    }

    fn put(&mut self, of: Type, now: Instant) -> Option<Response> {
        if names_clusters(of) && self.clusters_pending() {
            return None;
        }
        let sub = self.subs.get_mut(&of).filter(|sub| sub.is_open())?;
        let table = self.view.table(of);
        let whole = self.variant == Variant::StateOfTheWorld && of.is_whole();
        let (resources, changed) = sub.take_batch(table, whole)?;
        if of == Type::Cluster {
            if whole {
                self.unfollowed.retain(|name| sub.sent.contains_key(name));
            }
            // Endpoints are named as their clusters are, one to one.
            self.unfollowed.extend(changed.iter().cloned());
            if let Some(endpoints) = self.subs.get_mut(&Type::Endpoints) {
                endpoints.renew(changed);
            }
        } else if of == Type::Endpoints {
            for resource in &resources {
                self.unfollowed.remove(&resource.name);
            }
        }
        Some(self.respond(of, resources, Vec::new(), now))
    }

    /// Removals, and answers about what does not exist: they wait for all that is still to be
    /// added, except where nothing can be.
    fn remove(&mut self, of: Type, now: Instant) -> Option<Response> {
        let early = match of {
            Type::Cluster => self.users_pending(),
            Type::Listener | Type::Route => self.clusters_pending(),
            Type::Endpoints => false,
        };
        if early {
            return None;
        }
        let sub = self.subs.get_mut(&of).filter(|sub| sub.is_open())?;
        let table = self.view.table(of);
        if self.variant == Variant::StateOfTheWorld && of.is_whole() {
            let (resources, missing) = sub.take_whole(table)?;
            if of == Type::Cluster {
                self.unfollowed.retain(|name| sub.sent.contains_key(name));
            }
            return Some(self.respond(of, resources, missing, now));
        }
        let gone = sub.take_gone(table);
        if of == Type::Cluster {
            for name in &gone {
                self.unfollowed.remove(name);
            }
        }
        // Envoy has no use for being told in state-of-the-world that there is nothing.
        let silent = self.variant == Variant::StateOfTheWorld && self.client == ClientKind::Envoy;
        let greeting = std::mem::take(&mut sub.greeting);
        if (gone.is_empty() || silent) && !greeting {
            return None;
        }
        Some(self.respond(of, Vec::new(), gone, now))
    }

    /// A cluster that a listener or a route may name is still to be sent: its window is full.
    fn clusters_pending(&self) -> bool {
        let clusters = self.subs.get(&Type::Cluster);
        clusters.is_some_and(|sub| sub.has_more(self.view.table(Type::Cluster)))
    }

    /// A route, or one inside a listener, may still name a cluster that is to go.
    fn users_pending(&self) -> bool {
        let users = self.subs.iter().filter(|(of, _)| names_clusters(**of));
        users.into_iter().any(|(_, sub)| !sub.dirty.is_empty() || sub.greeting)
    }

    fn not_served(&mut self) -> Option<Response> {
        let Unknown { url, names, .. } = self.unknown.pop_front()?;
        self.nonce += 1;
        Some(Response {
            kind: Kind::Unknown(url),
            nonce: self.nonce,
            version: Version::default(),
            resources: Vec::new(),
            removed: names,
        })
    }

    fn respond(
        &mut self,
        of: Type,
        resources: Vec<Arc<Resource>>,
        removed: Vec<Arc<str>>,
        now: Instant,
    ) -> Response {
        self.nonce += 1;
        let nonce = self.nonce;
        let sub = self.subs.entry(of).or_default();
        let version = sub.version();
        sub.greeting = false;
        sub.latest = Some(nonce);
        sub.unanswered.push_back(Unanswered { nonce, version, at: now });
        Response { kind: Kind::Served(of), nonce, version, resources, removed }
    }

    /// When the client will have been silent for too long; `None` while nothing is unanswered.
    pub(super) fn silent_at(&self) -> Option<Instant> {
        let oldest =
            self.subs.values().filter_map(|sub| sub.unanswered.front()).map(|sent| sent.at);
        oldest.min().map(|at| at + SILENCE)
    }

    /// Per served type: how many resources are subscribed, and how many responses unanswered.
    pub(super) fn counts(&self, of: Type) -> Option<(usize, usize)> {
        let sub = self.subs.get(&of)?;
        Some((sub.subscribed(), sub.unanswered.len()))
    }
}

/// Listeners hold routes or ask for them, and routes name clusters.
fn names_clusters(of: Type) -> bool {
    matches!(of, Type::Listener | Type::Route)
}

fn outcome(of: Type, answered: Option<Unanswered>, error: Option<Status>, now: Instant) -> Answer {
    // Presence of the error alone makes a NACK, also one for a response long answered.
    if let Some(error) = error {
        let version = answered.map(|sent| sent.version).unwrap_or_default();
        let text = error.message.chars().take(NACK_TEXT).collect();
        return Answer::Refused { of, version, text };
    }
    answered.map_or(Answer::Other, |sent| Answer::Acknowledged {
        of,
        version: sent.version,
        after: now.saturating_duration_since(sent.at),
    })
}
