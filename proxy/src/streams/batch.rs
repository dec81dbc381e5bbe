//! What goes into one response of one type.
//!
//! Promises: nothing is in a response that the client has and is not owed; what is put and what is
//! taken away are chosen apart, so that the session can put an order between them.

use std::sync::Arc;

use super::substream::Substream;
use crate::cache::{Names, Table};
use crate::resources::Resource;

/// So many responses of a type may be on their way before the client answers.
const WINDOW: usize = 2;
/// Responses are cut near this size, so that one does not hold up the others.
const RESPONSE_BYTES: usize = 1 << 20;

type Whole = Vec<Arc<Resource>>;
type Missing = Vec<Arc<str>>;

impl Substream {
    pub(super) fn is_open(&self) -> bool {
        self.unanswered.len() < WINDOW || self.urgent
    }

    /// What exists among the dirty names and must be sent, up to a response's size, and which of
    /// it is new to the client. State-of-the-world clusters and listeners come whole or not at
    /// all.
    pub(super) fn take_batch(
        &mut self,
        table: &Table,
        whole: bool,
    ) -> Option<(Vec<Arc<Resource>>, Names)> {
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
            self.told(name);
        }
        self.urgent &= !self.owed.is_empty();
        if batch.is_empty() {
            return None;
        }
        let differs = |r: &&Arc<Resource>| self.sent.get(&r.name) != Some(&r.version);
        let changed = batch.iter().filter(differs).map(|r| Arc::clone(&r.name)).collect();
        if whole {
            self.owed.clear();
            batch = self.hold_whole(table);
            // What is gone stays until nothing names it: it is dirty, to be left out next time.
            self.dirty = self.leaving.keys().cloned().collect();
            self.sent.extend(self.leaving.values().map(|r| (Arc::clone(&r.name), r.version)));
            batch.extend(self.leaving.values().cloned());
        } else {
            self.sent.extend(batch.iter().map(|r| (Arc::clone(&r.name), r.version)));
        }
        Some((batch, changed))
    }

    /// State of the world: everything, when something is gone or a first answer is due.
    pub(super) fn take_whole(&mut self, table: &Table) -> Option<(Whole, Missing)> {
        let dirty = std::mem::take(&mut self.dirty);
        let owed = std::mem::take(&mut self.owed);
        let greeting = std::mem::take(&mut self.greeting);
        self.leaving.clear();
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
    /// the resource is sent when it appears.
    pub(super) fn take_gone(&mut self, table: &Table) -> Vec<Arc<str>> {
        let absent = |name: &&Arc<str>| table.get(name).is_none() || !self.wants(name);
        let absent: Vec<Arc<str>> = self.dirty.iter().filter(absent).cloned().collect();
        let mut gone = Vec::new();
        for name in absent {
            self.dirty.remove(&name);
            self.told(&name);
            let owed = self.owed.remove(&name);
            if self.sent.remove(&name).is_some() || owed {
                gone.push(name);
            }
        }
        self.urgent &= !self.owed.is_empty();
        gone
    }
}
