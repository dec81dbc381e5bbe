//! Which keys recent versions touched, bounded, shared between views.

use std::collections::BTreeSet;
use std::sync::Arc;

use rpds::QueueSync;

use super::Change;

/// A reader further behind than this compares everything once; it would have to look at as much
/// anyway.
const MAX_CHANGES: usize = 16_384;

#[derive(Debug, Clone)]
pub(super) struct Log {
    recent: QueueSync<(u64, Arc<[Change]>)>,
    changes: usize,
    forgotten: u64,
}

impl Log {
    pub(super) fn new() -> Self {
        Self { recent: QueueSync::new_sync(), changes: 0, forgotten: 0 }
    }

    pub(super) fn push(&mut self, version: u64, changes: Vec<Change>) {
        self.changes += changes.len();
        self.recent.enqueue_mut((version, changes.into()));
        while self.changes > MAX_CHANGES {
            let Some((version, changes)) = self.recent.peek().cloned() else { break };
            self.recent.dequeue_mut();
            self.changes -= changes.len();
            self.forgotten = version;
        }
    }

    pub(super) fn since(&self, version: u64) -> Option<BTreeSet<Change>> {
        if version < self.forgotten {
            return None;
        }
        let newer = self.recent.iter().filter(|(at, _)| *at > version);
        Some(newer.flat_map(|(_, changes)| changes.iter().cloned()).collect())
    }
}
