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
    recent: QueueSync<Step>,
    changes: usize,
    /// The newest version, and the highest position, of which something was forgotten.
    forgotten: u64,
    forgotten_position: u64,
}

#[derive(Debug, Clone)]
struct Step {
    version: u64,
    position: u64,
    changes: Arc<[Change]>,
}

impl Log {
    pub(super) fn new() -> Self {
        Self { recent: QueueSync::new_sync(), changes: 0, forgotten: 0, forgotten_position: 0 }
    }

    /// Returns what is forgotten for it.
    pub(super) fn push(
        &mut self,
        version: u64,
        position: u64,
        changes: Vec<Change>,
    ) -> Vec<Arc<[Change]>> {
        self.changes += changes.len();
        self.recent.enqueue_mut(Step { version, position, changes: changes.into() });
        let mut forgotten = Vec::new();
        while self.changes > MAX_CHANGES {
            let Some(step) = self.recent.peek().cloned() else { break };
            self.recent.dequeue_mut();
            self.changes -= step.changes.len();
            self.forgotten = step.version;
            self.forgotten_position = self.forgotten_position.max(step.position);
            forgotten.push(step.changes);
        }
        forgotten
    }

    /// Positions up to here mean nothing any more.
    pub(super) fn forget_positions(&mut self, before: u64) {
        self.forgotten_position = self.forgotten_position.max(before);
    }

    pub(super) fn since(&self, version: u64) -> Option<BTreeSet<Change>> {
        if version < self.forgotten {
            return None;
        }
        Some(self.changes(|step| step.version > version))
    }

    pub(super) fn since_position(&self, position: u64) -> Option<BTreeSet<Change>> {
        if position < self.forgotten_position {
            return None;
        }
        Some(self.changes(|step| step.position > position))
    }

    fn changes(&self, wanted: impl Fn(&Step) -> bool) -> BTreeSet<Change> {
        let steps = self.recent.iter().filter(|step| wanted(step));
        steps.flat_map(|step| step.changes.iter().cloned()).collect()
    }
}
