//! Leases: in memory, since the only process that can hold one is this.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::store::{LeaseId, StoreError};

/// Longer is as good as for ever, and adding it to now cannot overflow.
const MAX_TTL: Duration = Duration::from_hours(24 * 365);

/// All that live, or have run out and await their end by the writer.
pub(super) struct Leases {
    held: Mutex<Held>,
    /// The next end may be another one now.
    changed: Notify,
}

struct Held {
    last: u64,
    by_id: HashMap<LeaseId, Lease>,
}

struct Lease {
    ttl: Duration,
    ends: Instant,
}

impl Leases {
    /// Ids above `last`.
    pub(super) fn new(last: u64) -> Self {
        let held = Mutex::new(Held { last, by_id: HashMap::new() });
        Self { held, changed: Notify::new() }
    }

    pub(super) fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        if ttl.is_zero() {
            return Err(StoreError::Refused("a lease of no time".to_owned()));
        }
        let ttl = ttl.min(MAX_TTL);
        let mut held = self.held();
        held.last += 1;
        let id = LeaseId(held.last);
        held.by_id.insert(id, Lease { ttl, ends: Instant::now() + ttl });
        drop(held);
        self.changed.notify_one();
        Ok(id)
    }

    /// Does not wake up who waits: the end only moves away.
    pub(super) fn keep_alive(&self, id: LeaseId) -> Result<(), StoreError> {
        let now = Instant::now();
        match self.held().by_id.get_mut(&id) {
            Some(lease) if lease.ends > now => {
                lease.ends = now + lease.ttl;
                Ok(())
            }
            _ => Err(StoreError::NoLease(id)),
        }
    }

    pub(super) fn lives(&self, id: LeaseId, now: Instant) -> bool {
        self.held().by_id.get(&id).is_some_and(|lease| lease.ends > now)
    }

    pub(super) fn remove(&self, id: LeaseId) -> bool {
        self.held().by_id.remove(&id).is_some()
    }

    pub(super) fn remove_expired(&self, now: Instant) -> Vec<LeaseId> {
        let mut held = self.held();
        let mut expired: Vec<LeaseId> =
            held.by_id.iter().filter(|(_, lease)| lease.ends <= now).map(|(id, _)| *id).collect();
        expired.sort_unstable();
        for id in &expired {
            held.by_id.remove(id);
        }
        expired
    }

    /// Returns when a lease has run out.
    pub(super) async fn expired(&self) {
        loop {
            let changed = self.changed.notified();
            let Some(ends) = self.next_end() else {
                changed.await;
                continue;
            };
            if ends <= Instant::now() {
                return;
            }
            tokio::select! {
                () = changed => {}
                () = sleep_until(ends) => {}
            }
        }
    }

    fn next_end(&self) -> Option<Instant> {
        self.held().by_id.values().map(|lease| lease.ends).min()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
