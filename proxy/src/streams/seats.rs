//! How many streams an identity may have open at a time.
//!
//! What one stream costs is bounded; this bounds how often a client can have it. Per identity and
//! not per connection, which are as many as a client likes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::class::ProxyIdentity;

/// Those without an identity count as one.
type Who = Option<ProxyIdentity>;

/// Of all identities.
#[derive(Debug, Default)]
pub(super) struct Seats {
    taken: Mutex<HashMap<Who, usize>>,
}

/// One stream's; free again when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    who: Who,
    seats: Arc<Seats>,
}

impl Seats {
    /// `None` if `who` has `most` already.
    pub(super) fn take(self: &Arc<Self>, who: Who, most: usize) -> Option<Seat> {
        let mut taken = self.lock();
        let count = taken.get(&who).copied().unwrap_or(0);
        if count >= most {
            return None;
        }
        taken.insert(who.clone(), count + 1);
        Some(Seat { who, seats: Arc::clone(self) })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Who, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.lock();
        if let Some(count) = taken.get_mut(&self.who) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::cluster;

    #[test]
    fn seats_are_counted_by_identity_and_given_back() {
        let seats: Arc<Seats> = Arc::default();
        let who = |id: &str| {
            let (region, namespace) = ("us".parse().unwrap(), "shop".parse().unwrap());
            Some(ProxyIdentity { cluster: cluster(id), region, namespace })
        };
        let first = seats.take(who("a"), 1).unwrap();
        assert!(seats.take(who("a"), 1).is_none());
        let _others = (seats.take(who("b"), 1).unwrap(), seats.take(None, 1).unwrap());
        drop(first);
        assert!(!seats.lock().contains_key(&who("a")));
        assert!(seats.take(who("a"), 1).is_some());
    }
}
