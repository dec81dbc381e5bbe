//! One type of resource on one stream: what is subscribed, what was sent, what is owed.
//!
//! The two protocols differ in how a request changes a subscription and in how a response is
//! written; between the two they are one. Promises: a name is dirty or it is not, so memory is
//! bounded by interest and never by the rate of changes (XDS X48); a resource is sent when the
//! client is owed it or its version is not the one sent last, so a refused one is not sent again
//! until it changes (X12).

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use tokio::time::Instant;

use crate::cache::{Names, Table};
use crate::resources::Version;

/// Names on one stream and type. Envoy asks for what it was sent; only a broken or hostile client
/// asks for more.
pub(super) const MAX_NAMES: usize = 100_000;
/// Of a name, in bytes; ours are below 320.
const MAX_NAME: usize = 1024;
/// A client names a wildcard explicitly by this.
const WILDCARD: &str = "*";

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
    /// Some name was ever subscribed, which ends the legacy wildcard (XDS X20).
    named: bool,
    /// Subscribed by name.
    names: Names,
    /// What the client holds as far as this stream knows.
    pub(super) sent: HashMap<Arc<str>, Version>,
    /// May differ from what was sent.
    pub(super) dirty: Names,
    /// Must be answered whatever was sent before; a part of `dirty`.
    pub(super) owed: BTreeSet<Arc<str>>,
    /// Resources that a changed parent makes due again, not bound by the window (XDS X49).
    pub(super) urgent: bool,
    /// A response must be sent even if nothing is in it (XDS X30).
    pub(super) greeting: bool,
    pub(super) unanswered: VecDeque<Unanswered>,
    /// Nonce of the newest response.
    pub(super) latest: Option<u64>,
}

/// A subscription that is not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum TooMuch {
    #[error("more than {MAX_NAMES} resource names are subscribed")]
    Names,
    #[error("a resource name is longer than {MAX_NAME} bytes")]
    Length,
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

    /// The client must be given these again: their parents changed (XDS X38).
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
        check(names.len(), names)?;
        self.opened = true;
        let wildcard = if names.is_empty() {
            legacy && !self.named
        } else {
            names.iter().any(|name| name == WILDCARD)
        };
        let now: Names =
            names.iter().filter(|name| *name != WILDCARD).map(|n| interned(table, n)).collect();
        self.named |= !names.is_empty();
        if wildcard && !self.wildcard {
            self.greeting = true;
            self.dirty.extend(table.iter().map(|resource| Arc::clone(&resource.name)));
        }
        let before = std::mem::replace(&mut self.names, now);
        self.wildcard = wildcard;
        let new: Vec<_> = self.names.difference(&before).cloned().collect();
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
        check(self.names.len() + names.len().max(held.len()), names.iter().chain(held.keys()))?;
        let first = !std::mem::replace(&mut self.opened, true);
        let held = if first { Some(held) } else { None }.filter(|held| !held.is_empty());
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
            // What the client still holds from before is not sent again if it is the same (X31);
            // everything else that it names is (X19).
            if held.is_some_and(|held| held.contains_key(&*name)) {
                self.dirty.insert(name);
            } else {
                self.owe(name);
            }
        }
        for (name, version) in held.into_iter().flatten() {
            if self.wants(name) {
                let name = interned(table, name);
                self.dirty.insert(Arc::clone(&name));
                self.sent.insert(name, Version::parse(version).unwrap_or_default());
            }
        }
        Ok(())
    }

    /// A delta request's removals. Silent, but for a name that the wildcard still covers: the
    /// client dropped it and must be told what it is (XDS X24).
    pub(super) fn unsubscribe(&mut self, names: &[String]) {
        for name in names {
            if name == WILDCARD {
                self.wildcard = false;
            } else if let Some(name) = self.names.take(name.as_str())
                && self.wildcard
            {
                self.owe(name);
            }
        }
        if !names.is_empty() {
            self.drop_unwanted();
        }
    }

    /// What is no longer subscribed needs no memory (XDS X36).
    fn drop_unwanted(&mut self) {
        if self.wildcard {
            return;
        }
        let names = &self.names;
        self.sent.retain(|name, _| names.contains(name));
        self.dirty.retain(|name| names.contains(name));
        self.owed.retain(|name| names.contains(name));
        if names.is_empty() {
            self.sent = HashMap::new();
            self.greeting = false;
        }
    }

    /// The client already has all of this: a state-of-the-world wildcard that reconnects with the
    /// version of the whole (XDS X32).
    pub(super) fn assume_held(&mut self, table: &Table) {
        let all = table.iter();
        self.sent = all.map(|resource| (Arc::clone(&resource.name), resource.version)).collect();
        self.dirty.clear();
        self.owed.clear();
        self.greeting = false;
    }

    /// The response that `nonce` answers, if it is one of this stream's that was not answered.
    /// Those before it were read as well: a stream keeps its order.
    pub(super) fn answered(&mut self, nonce: &str) -> Option<Unanswered> {
        let nonce: u64 = nonce.parse().ok()?;
        let at = self.unanswered.iter().position(|sent| sent.nonce == nonce)?;
        self.unanswered.drain(..=at).next_back()
    }
}

fn check<'a>(count: usize, names: impl IntoIterator<Item = &'a String>) -> Result<(), TooMuch> {
    if count > MAX_NAMES {
        return Err(TooMuch::Names);
    }
    let long = names.into_iter().any(|name| name.len() > MAX_NAME);
    if long { Err(TooMuch::Length) } else { Ok(()) }
}

/// Names that exist are shared with the cache.
fn interned(table: &Table, name: &str) -> Arc<str> {
    table.get(name).map_or_else(|| name.into(), |resource| Arc::clone(&resource.name))
}
