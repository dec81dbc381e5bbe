//! The guard over a directory of manifests.
//!
//! Owns: what explains that a document's records go. A document was removed by somebody if this
//! process saw it and a later look at a directory that did not show nothing in between lacks it
//! ([`Listing::since`](super::Listing::since)). Nothing else explains anything: what only an earlier
//! process saw, or was there before the directory showed nothing, may not be there yet. With a gap it
//! may even be there, and is wanted.
//!
//! Leaves to others: looking (`source`), and what goes unexplained (`guard`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::Instant;

use super::{Desired, Lost};
use crate::guard::{Explanation, Guard, Listing, Loss, Records, Sight, Verdict};
use crate::key::{Key, Kind};
use crate::names::{NamespaceName, ServiceKey};
use crate::record::{Body, Endpoints, Suspect};

/// What a source shows; an agent says the rest of itself.
pub const GUARDED: [Kind; 3] = [Kind::Namespace, Kind::Export, Kind::Endpoints];

/// What a directory says, and what was published of it.
#[derive(Debug)]
pub struct Guarded {
    guard: Guard,
    /// What the guard let be published.
    published: Records,
    /// Of `published`, what was seen in the directory since it last showed nothing.
    seen: BTreeSet<Key>,
    /// The first listing since then.
    since: u64,
}

impl Guarded {
    /// Starts with what an earlier process published, and whether it was suspect, if that is known.
    #[must_use]
    pub fn new(guard: Guard, restored: Records, suspect: Option<Suspect>) -> Self {
        let guard = guard.continuing(&restored, suspect);
        Self { guard, published: restored, seen: BTreeSet::new(), since: 0 }
    }

    /// Takes up what was published and is not known of here.
    pub fn adopt(&mut self, records: impl Iterator<Item = (Key, Arc<Body>)>) {
        for (key, body) in records.filter(|(key, _)| GUARDED.contains(&key.kind)) {
            self.published.entry(key).or_insert(body);
        }
    }

    /// Forgets what was published of these by an earlier process and is known to have gone since: its
    /// own end kept it from saving that. What this process saw it judges itself.
    pub fn forget<'a>(&mut self, gone: impl Iterator<Item = &'a Key>) {
        for key in gone.filter(|key| !self.seen.contains(*key)) {
            self.published.remove(key);
        }
    }

    /// Whether there is anything to guard.
    #[must_use]
    pub fn has_published(&self) -> bool {
        !self.published.is_empty()
    }

    /// What becomes of what was published, now that the directory says `desired`; see
    /// [`Guard::decide`].
    pub fn decide(
        &mut self,
        desired: &Desired,
        approved: &BTreeSet<String>,
        now: Instant,
        wall: Timestamp,
    ) -> Verdict {
        self.see(desired);
        let lost = desired.listing.lost;
        let wanted = match lost {
            Some(_) => Records::new(),
            None => self.wanted(desired),
        };
        let unexplained = self.unexplained(&wanted);
        let explains = |loss: &Loss| {
            (lost.is_none() && !unexplained.contains(loss.key()))
                .then_some(Explanation::DocumentRemoved)
        };
        let blank = lost.map(|lost| format!("the directory of manifests {}", lost.as_str()));
        let super::Listing { id, at, settled, .. } = desired.listing;
        let sight = Sight {
            wanted: &wanted,
            // Each look opens the directory anew.
            listing: lost.is_none_or(Lost::is_listing).then_some(Listing {
                id,
                connection: id,
                at,
            }),
            blank: blank.as_deref(),
            settled,
            explains: &explains,
        };
        let verdict = self.guard.decide(&self.published, &sight, approved, now, wall);
        self.published.clone_from(&verdict.publish);
        let Self { seen, published, .. } = self;
        seen.retain(|key| published.contains_key(key));
        verdict
    }

    fn see(&mut self, desired: &Desired) {
        let listing = desired.listing;
        // That it showed nothing may have been and gone unnoticed here.
        if self.since != listing.since {
            self.since = listing.since;
            self.seen.clear();
        }
        if listing.lost.is_none() {
            self.seen.extend(desired.records.keys().cloned());
        }
    }

    /// What the directory says, and with a gap also what was published and not seen: that may stand
    /// there.
    fn wanted(&self, desired: &Desired) -> Records {
        let were_ready = were_ready(&self.published);
        let records = desired.records.iter();
        let mut wanted: Records = records
            .map(|(key, body)| (key.clone(), Arc::new(remember(key, body, &were_ready))))
            .collect();
        if desired.gaps {
            for (key, body) in self.published.iter().filter(|(key, _)| !self.seen.contains(*key)) {
                wanted.entry(key.clone()).or_insert_with(|| Arc::clone(body));
            }
        }
        wanted
    }

    /// What is not wanted and nobody removed: what was not seen, and the namespaces that it is in,
    /// which are there with anything that is in them.
    fn unexplained(&self, wanted: &Records) -> BTreeSet<Key> {
        let lost = self.published.keys().filter(|key| !wanted.contains_key(*key));
        let unseen = |key: &&Key| !self.seen.contains(*key);
        let mut unexplained: BTreeSet<Key> = lost.clone().filter(unseen).cloned().collect();
        let inhabited: BTreeSet<NamespaceName> =
            unexplained.iter().filter_map(|key| key.namespace.clone()).collect();
        let of_those = |key: &&Key| {
            key.kind == Kind::Namespace && key.about().is_some_and(|name| inhabited.contains(&name))
        };
        unexplained.extend(lost.filter(of_those).cloned());
        unexplained
    }
}

type Ready = BTreeMap<ServiceKey, BTreeSet<IpAddr>>;

/// Addresses that were ready at some time since they came to their service. One that left it is
/// forgotten, so that what comes under it later starts anew.
fn were_ready(published: &Records) -> Ready {
    let mut ready = Ready::new();
    for (key, body) in published {
        let (Body::Endpoints(slice), Some(service)) = (&**body, key.service()) else { continue };
        let were = slice.endpoints.iter().filter(|endpoint| endpoint.was_ready);
        ready.entry(service).or_default().extend(were.map(|endpoint| endpoint.address));
    }
    ready
}

/// A manifest says only whether an endpoint is ready now.
fn remember(key: &Key, body: &Body, were_ready: &Ready) -> Body {
    let Body::Endpoints(Endpoints { ports, endpoints }) = body else { return body.clone() };
    let were = key.service().and_then(|service| were_ready.get(&service));
    let mut endpoints = endpoints.clone();
    for endpoint in &mut endpoints {
        endpoint.was_ready |= were.is_some_and(|were| were.contains(&endpoint.address));
    }
    Body::Endpoints(Endpoints { ports: ports.clone(), endpoints })
}

#[cfg(test)]
mod tests;
