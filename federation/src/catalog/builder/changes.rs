//! The bounded memory of what recent generations touched.

use std::sync::Arc;

use super::super::Changes;
use crate::names::ServiceKey;

/// A reader that works through snapshots as they come is a few generations behind, not hundreds.
const GENERATIONS: usize = 256;
/// Beyond this, working through all services costs about as much as finding out which.
const KEYS: usize = 10_000;

impl Changes {
    /// Remembers that `generation`, newer than all before, touched `services`; forgets the oldest
    /// generations beyond the bounds.
    pub(super) fn push(&mut self, generation: u64, services: Vec<ServiceKey>) {
        if services.is_empty() {
            return;
        }
        self.recent.push((generation, Arc::new(services.into_iter().collect())));
        let surplus = self.surplus();
        if let Some((generation, _)) = self.recent.drain(..surplus).next_back() {
            self.forgotten = generation;
        }
    }

    fn surplus(&self) -> usize {
        let mut keys = 0;
        let newest_first = self.recent.iter().rev().take(GENERATIONS);
        let kept = newest_first.take_while(|(_, services)| {
            keys += services.len();
            keys <= KEYS
        });
        self.recent.len() - kept.count()
    }
}
