//! One type of resource on one stream: what is subscribed, what was sent, what is owed.
//!
//! The two protocols differ in how a request changes a subscription and in how a response is
//! written; between the two they are one. Promises: a name is dirty or it is not, so memory is
//! bounded by interest and never by the rate of changes; a resource is sent when the
//! client is owed it or its version is not the one sent last, so a refused one is not sent again
//! until it changes.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use tokio::time::Instant;

use super::names::{NameSet, TooMuch, Weight};
use crate::cache::{Names, Table};
use crate::resources::{Resource, Version};

/// A client names a wildcard explicitly by this.
pub(super) const WILDCARD: &str = "*";

/// A response that was not answered yet.
#[derive(Debug)]
pub(super) struct Unanswered {
    pub(super) nonce: u64,
    pub(super) version: Version,
    pub(super) at: Instant,
}

/// See the module.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "facts that hold independently of each other")]
pub(super) struct Substream {
    /// At least one request was read.
    pub(super) opened: bool,
    /// All that exists is subscribed.
    pub(super) wildcard: bool,
    /// Some name was ever subscribed, which ends the legacy wildcard.
    named: bool,
    /// Subscribed by name.
    names: NameSet,
    /// What the client says it holds and nobody knows of; told so, it is forgotten.
    claimed: NameSet,
    /// What the client holds as far as this stream knows.
    pub(super) sent: HashMap<Arc<str>, Version>,
    /// State of the world: what the client holds and is gone, until it may be told.
    pub(super) leaving: BTreeMap<Arc<str>, Arc<Resource>>,
    /// May differ from what was sent.
    pub(super) dirty: Names,
    /// Must be answered whatever was sent before; a part of `dirty`.
    pub(super) owed: BTreeSet<Arc<str>>,
    /// Resources that a changed parent makes due again, not bound by the window.
    pub(super) urgent: bool,
    /// A response must be sent even if nothing is in it.
    pub(super) greeting: bool,
    pub(super) unanswered: VecDeque<Unanswered>,
    /// Nonce of the newest response.
    pub(super) latest: Option<u64>,
}

impl Substream {
    /// Whether the client is to be told of `name`.
    pub(super) fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    /// How many resources are subscribed or held.
    pub(super) fn subscribed(&self) -> usize {
        self.sent.len().max(self.names.len())
    }

    /// What it costs of the stream's budget.
    pub(super) fn weight(&self) -> Weight {
        self.names.weight() + self.claimed.weight()
    }

    /// The version of everything the client holds.
    pub(super) fn version(&self) -> Version {
        self.sent.values().copied().sum()
    }

    /// Something changed in `table`: `names`, or unknown.
    pub(super) fn on_change(&mut self, table: &Table, names: Option<Names>) {
        match names {
            Some(names) => {
                let wanted = names.into_iter().filter(|name| self.wants(name));
                let wanted: Vec<_> = wanted.collect();
                self.dirty.extend(wanted);
            }
            None => self.compare(table),
        }
    }

    /// Marks all that is wanted and not as it was sent.
    pub(super) fn compare(&mut self, table: &Table) {
        if self.wildcard {
            self.dirty.extend(table.iter().map(|resource| Arc::clone(&resource.name)));
        }
        self.dirty.extend(self.names.iter().cloned());
        self.dirty.extend(self.sent.keys().cloned());
    }

    /// Remembers what of `before` the client holds and is not in `now`, as it was.
    pub(super) fn keep_leaving(&mut self, before: &Table, now: &Table) {
        self.leaving.retain(|name, _| now.get(name).is_none());
        for name in &self.dirty {
            // Another version than the client's would be a change, and make the client wait for
            // what follows a change.
            let held = |resource: &&Arc<Resource>| self.sent.get(name) == Some(&resource.version);
            if now.get(name).is_none()
                && let Some(resource) = before.get(name).filter(held)
            {
                self.leaving.insert(Arc::clone(name), Arc::clone(resource));
            }
        }
    }

    /// Whether something that exists is still to be sent.
    pub(super) fn has_more(&self, table: &Table) -> bool {
        let unsent = |name: &Arc<str>, version| self.sent.get(name) != Some(version);
        self.dirty.iter().filter(|name| self.wants(name)).any(|name| {
            let owed = self.owed.contains(name);
            table.get(name).is_some_and(|resource| owed || unsent(name, &resource.version))
        })
    }

    /// The client must be given these again: their parents changed.
    pub(super) fn renew(&mut self, names: impl IntoIterator<Item = Arc<str>>) {
        let wanted: Vec<_> = names.into_iter().filter(|name| self.wants(name)).collect();
        self.urgent |= !wanted.is_empty();
        for name in wanted {
            self.owe(name);
        }
    }

    fn owe(&mut self, name: Arc<str>) {
        self.dirty.insert(Arc::clone(&name));
        self.owed.insert(name);
    }

    /// A state-of-the-world request names the whole subscription. `legacy` says whether none at
    /// all may mean everything.
    pub(super) fn set_names(
        &mut self,
        names: &[String],
        legacy: bool,
        table: &Table,
    ) -> Result<(), TooMuch> {
        Weight::of(names.iter().map(String::as_str))?.check()?;
        self.opened = true;
        let wildcard = if names.is_empty() {
            legacy && !self.named
        } else {
            names.iter().any(|name| name == WILDCARD)
        };
        let now: NameSet =
            names.iter().filter(|name| *name != WILDCARD).map(|n| interned(table, n)).collect();
        self.named |= !names.is_empty();
        if wildcard && !self.wildcard {
            self.greeting = true;
            self.dirty.extend(table.iter().map(|resource| Arc::clone(&resource.name)));
        }
        let before = std::mem::replace(&mut self.names, now);
        self.wildcard = wildcard;
        let new = self.names.iter().filter(|name| !before.contains(name));
        let new: Vec<_> = new.cloned().collect();
        for name in new {
            self.owe(name);
        }
        self.drop_unwanted();
        Ok(())
    }

    /// A delta request's additions. `legacy` says whether none in the first request means
    /// everything; `held` are the versions that the client says it has from an earlier stream.
    pub(super) fn subscribe(
        &mut self,
        names: &[String],
        legacy: bool,
        held: &HashMap<String, String>,
        table: &Table,
    ) -> Result<(), TooMuch> {
        let first = !std::mem::replace(&mut self.opened, true);
        let held = if first { Some(held) } else { None }.filter(|held| !held.is_empty());
        let claims = held.into_iter().flat_map(HashMap::keys).map(String::as_str);
        let unknown = claims.filter(|name| table.get(name).is_none());
        Weight::of(names.iter().map(String::as_str).chain(unknown))?.check()?;
        self.named |= !names.is_empty();
        let explicit = names.iter().any(|name| name == WILDCARD);
        if explicit || (first && legacy && names.is_empty()) {
            self.wildcard = true;
            self.greeting |= held.is_none();
            self.dirty.extend(table.iter().map(|resource| Arc::clone(&resource.name)));
        }
        for name in names.iter().filter(|name| *name != WILDCARD) {
            let name = interned(table, name);
            self.names.insert(Arc::clone(&name));
            // What the client still holds from before is not sent again if it is the same;
            // everything else that it names is.
            if held.is_some_and(|held| held.contains_key(&*name)) {
                self.dirty.insert(name);
            } else {
                self.owe(name);
            }
        }
        for (name, version) in held.into_iter().flatten() {
            if self.wants(name) {
                let name = interned(table, name);
                if table.get(&name).is_none() && !self.names.contains(&name) {
                    self.claimed.insert(Arc::clone(&name));
                }
                self.dirty.insert(Arc::clone(&name));
                self.sent.insert(name, Version::parse(version).unwrap_or_default());
            }
        }
        Ok(())
    }

    /// A delta request's removals. Silent, but for a name that the wildcard still covers: the
    /// client dropped it and must be told what it is.
    pub(super) fn unsubscribe(&mut self, names: &[String]) {
        for name in names {
            if name == WILDCARD {
                self.wildcard = false;
            } else if let Some(name) = self.names.take(name)
                && self.wildcard
            {
                self.owe(name);
            }
        }
        if !names.is_empty() {
            self.drop_unwanted();
        }
    }

    /// What is no longer subscribed needs no memory.
    fn drop_unwanted(&mut self) {
        if self.wildcard {
            return;
        }
        let names = &self.names;
        self.sent.retain(|name, _| names.contains(name));
        self.dirty.retain(|name| names.contains(name));
        self.owed.retain(|name| names.contains(name));
        self.leaving.retain(|name, _| names.contains(name));
        self.claimed = NameSet::default();
        if names.is_empty() {
            self.sent = HashMap::new();
            self.greeting = false;
        }
    }

    /// The client already has all of this: a state-of-the-world wildcard that reconnects with the
    /// version of the whole.
    pub(super) fn assume_held(&mut self, table: &Table) {
        let all = table.iter();
        self.sent = all.map(|resource| (Arc::clone(&resource.name), resource.version)).collect();
        self.dirty.clear();
        self.owed.clear();
        self.greeting = false;
    }

    /// The client was told what has become of `name`, and no longer only claims to hold it.
    pub(super) fn told(&mut self, name: &str) {
        self.claimed.take(name);
    }

    /// The response that `nonce` answers, if it is one of this stream's that was not answered.
    /// Those before it were read as well: a stream keeps its order.
    pub(super) fn answered(&mut self, nonce: &str) -> Option<Unanswered> {
        let nonce: u64 = nonce.parse().ok()?;
        let at = self.unanswered.iter().position(|sent| sent.nonce == nonce)?;
        self.unanswered.drain(..=at).next_back()
    }
}

/// Names that exist are shared with the cache.
fn interned(table: &Table, name: &str) -> Arc<str> {
    table.get(name).map_or_else(|| name.into(), |resource| Arc::clone(&resource.name))
}
