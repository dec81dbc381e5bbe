//! The region's own check of removals that nothing explains.
//!
//! An agent holds such removals back itself (`guard`). One that does not, because it is broken or
//! was broken into, does not empty its cluster's records either: the same limits hold here, over
//! what the store has. A removal beyond them is refused, key by key; the stream goes on. What went
//! is counted over all streams of an owner to this process, so that a new stream is not a new
//! window.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use super::Held;
use crate::guard::Settings;
use crate::key::{Key, Kind};
use crate::names::Owner;

/// What went without explanation lately.
#[derive(Debug, Default)]
pub(super) struct Removals {
    /// The same limits as an agent's own.
    settings: Settings,
    gone: VecDeque<(Instant, usize)>,
}

/// What went of each owner lately, over all its streams. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct RemovalWindows(Arc<Mutex<BTreeMap<Owner, Arc<Mutex<Removals>>>>>);

impl RemovalWindows {
    pub(super) fn of(&self, owner: &Owner) -> Arc<Mutex<Removals>> {
        let mut owners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(owners.entry(owner.clone()).or_default())
    }
}

impl Removals {
    /// Counts the removal of `key` from what is `held`, if it may go.
    pub(super) fn allow(
        &mut self,
        key: &Key,
        held: &BTreeMap<Key, Held>,
        now: Instant,
    ) -> Result<(), String> {
        while self
            .gone
            .front()
            .is_some_and(|(at, _)| now.duration_since(*at) >= self.settings.window)
        {
            self.gone.pop_front();
        }
        let count = lost_with(key, held);
        let service = key.service();
        let of_service = |(other, _): &(&Key, &Held)| {
            other.kind == Kind::Endpoints && other.service() == service && *other != key
        };
        let left: usize = held.iter().filter(of_service).map(|(_, held)| held.endpoints).sum();
        if count > 0 && (left == 0 || key.kind == Kind::Export) {
            return Err(format!(
                "is held: it would take the last {count} endpoints of {} and nothing explains it",
                service.map(|service| service.to_string()).unwrap_or_default()
            ));
        }
        let gone: usize = self.gone.iter().map(|(_, count)| count).sum();
        let before: usize = gone + held.values().map(|held| held.endpoints).sum::<usize>();
        let share = before * self.settings.percent as usize / 100;
        let most = share.max(self.settings.floor as usize);
        if gone + count > most {
            return Err(format!(
                "is held: {} endpoints would be gone within 10 minutes and nothing explains it, \
                 at most {most} of {before} may",
                gone + count
            ));
        }
        if count > 0 {
            self.gone.push_back((now, count));
        }
        Ok(())
    }
}

/// An export takes its service's endpoints out of use with it.
fn lost_with(key: &Key, held: &BTreeMap<Key, Held>) -> usize {
    match key.kind {
        Kind::Endpoints => held.get(key).map_or(0, |held| held.endpoints),
        Kind::Export => {
            let service = key.service();
            let slices = held
                .iter()
                .filter(|(other, _)| other.kind == Kind::Endpoints && other.service() == service);
            slices.map(|(_, held)| held.endpoints).sum()
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(service: usize, part: usize) -> Key {
        format!("/tombolo/v1/r/r-a/endpoints/shop/s{service}/p{part}").parse().unwrap()
    }

    fn held(services: usize, slices: usize, endpoints: usize) -> BTreeMap<Key, Held> {
        let keys = (0..services).flat_map(|s| (0..slices).map(move |p| slice(s, p)));
        keys.map(|key| (key, Held { endpoints, ..Held::default() })).collect()
    }

    /// Removes as many as may go; says how many, and why no more.
    fn remove_all(held: &mut BTreeMap<Key, Held>, now: Instant) -> (usize, String) {
        let mut removals = Removals::default();
        let mut gone = 0;
        let mut reasons = Vec::new();
        for key in held.keys().cloned().collect::<Vec<_>>() {
            match removals.allow(&key, held, now) {
                Ok(()) => {
                    gone += held.remove(&key).unwrap().endpoints;
                }
                Err(why) => reasons.push(why),
            }
        }
        (gone, reasons.pop().unwrap_or_default())
    }

    #[test]
    fn a_hundred_percent_of_tombstones_remove_no_more_than_the_limits_allow() {
        let now = Instant::now();
        let (gone, why) = remove_all(&mut held(100, 2, 5), now);
        assert!(gone <= 150 && gone > 140, "{gone}");
        assert!(why.contains("at most 150 of 1000"), "{why}");
        let (gone, _) = remove_all(&mut held(2, 10, 1), now);
        assert_eq!(gone, 18, "up to 20, but no service's last");
        let (gone, why) = remove_all(&mut held(3, 1, 1), now);
        assert_eq!(gone, 0);
        assert!(why.contains("the last 1 endpoints of shop/s2"), "{why}");
    }

    #[test]
    fn the_window_slides() {
        let start = Instant::now();
        let mut held = held(1, 100, 1);
        let mut removals = Removals::default();
        let window = removals.settings.window;
        for part in 0..20 {
            removals.allow(&slice(0, part), &held, start).unwrap();
            held.remove(&slice(0, part));
        }
        assert!(removals.allow(&slice(0, 20), &held, start + window / 2).is_err());
        removals.allow(&slice(0, 20), &held, start + window).unwrap();
    }

    #[test]
    fn an_export_counts_with_its_endpoints_and_a_namespace_counts_nothing() {
        let held = held(1, 1, 3);
        let mut removals = Removals::default();
        let export: Key = "/tombolo/v1/r/r-a/export/shop/s0".parse().unwrap();
        assert!(removals.allow(&export, &held, Instant::now()).is_err());
        let namespace: Key = "/tombolo/v1/r/r-a/namespace/_/shop".parse().unwrap();
        removals.allow(&namespace, &held, Instant::now()).unwrap();
    }
}
