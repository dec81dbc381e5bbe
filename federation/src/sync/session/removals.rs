//! The region's own check of removals that nothing explains.
//!
//! An agent holds such removals back itself (`guard`). One that does not, because its guard is broken,
//! meets the same limits here, over what the store has: a removal beyond them is refused, key by key,
//! and the stream goes on. A batch is judged by the addresses that a service has before and after it,
//! what it puts counted first: slices that only change their names take nothing away. What went is
//! counted over all streams of an owner to this process, so that a new stream is not a new window.
//!
//! It is no defence against an agent that lies: what that calls explained goes, and what it empties
//! instead of removing carries no reason at all.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use super::{Held, Session};
use crate::guard::Settings;
use crate::key::{Key, Kind};
use crate::names::{Owner, ServiceKey};
use crate::proto::federation as wire;

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
    /// Of how many endpoints a share may go: what is `held`, and what went lately.
    fn base(&mut self, held: &BTreeMap<Key, Held>, now: Instant) -> usize {
        self.slide(now);
        self.gone() + endpoints(held)
    }

    fn slide(&mut self, now: Instant) {
        let window = self.settings.window;
        while self.gone.front().is_some_and(|(at, _)| now.duration_since(*at) >= window) {
            self.gone.pop_front();
        }
    }

    fn gone(&self) -> usize {
        self.gone.iter().map(|(_, count)| count).sum()
    }

    /// Counts the removal of `key` from what is `held`, if it may go. `base` is that of its batch.
    pub(super) fn allow(
        &mut self,
        key: &Key,
        held: &BTreeMap<Key, Held>,
        base: usize,
        now: Instant,
    ) -> Result<(), String> {
        self.slide(now);
        let Some(service) = key.service() else { return Ok(()) };
        let (lost, left) = split(key, &service, held);
        if lost == 0 {
            return Ok(());
        }
        if left == 0 {
            return Err(format!(
                "is held: it would take the last {lost} endpoints of {service} and nothing \
                 explains it"
            ));
        }
        let gone = self.gone() + lost;
        let share = base * self.settings.percent as usize / 100;
        let most = share.max(self.settings.floor as usize);
        if gone > most {
            return Err(format!(
                "is held: {gone} endpoints would be gone within 10 minutes and nothing explains \
                 it, at most {most} of {base} may"
            ));
        }
        self.gone.push_back((now, lost));
        Ok(())
    }
}

impl Session {
    /// What the removals of a batch are judged by, from before its puts: what comes with them must not
    /// raise the limit. It is not asked for where nothing is to be judged, as it looks at everything.
    pub(super) fn removal_base(&self, tombstones: &[wire::Tombstone]) -> usize {
        let unexplained = wire::Removal::Unexplained as i32;
        if tombstones.iter().all(|tombstone| tombstone.removal != unexplained) {
            return 0;
        }
        let mut removals = self.removals.lock().unwrap_or_else(PoisonError::into_inner);
        removals.base(&self.held, Instant::now())
    }
}

/// How many endpoints of `service` go with `key`, and how many are left. An export takes all of them
/// out of use.
fn split(key: &Key, service: &ServiceKey, held: &BTreeMap<Key, Held>) -> (usize, usize) {
    let first = Key::of_service(key.owner.clone(), Kind::Endpoints, service, None);
    let slices = held.range(first..).take_while(|(slice, _)| {
        slice.kind == Kind::Endpoints && slice.service().as_ref() == Some(service)
    });
    let (own, others): (Vec<_>, Vec<_>) =
        slices.partition(|(slice, _)| key.kind == Kind::Export || *slice == key);
    let own = addresses(own.into_iter());
    let others = addresses(others.into_iter());
    (own.difference(&others).count(), others.len())
}

fn addresses<'a>(slices: impl Iterator<Item = (&'a Key, &'a Held)>) -> BTreeSet<IpAddr> {
    slices.flat_map(|(_, held)| held.addresses.iter().copied()).collect()
}

/// How many endpoints are held, each address of a service once.
fn endpoints(held: &BTreeMap<Key, Held>) -> usize {
    let mut services: BTreeMap<ServiceKey, BTreeSet<IpAddr>> = BTreeMap::new();
    for (key, held) in held.iter().filter(|(_, held)| !held.addresses.is_empty()) {
        if let Some(service) = key.service() {
            services.entry(service).or_default().extend(&held.addresses);
        }
    }
    services.values().map(BTreeSet::len).sum()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn slice(service: usize, part: usize) -> Key {
        format!("/tombolo/v1/r/r-a/endpoints/shop/s{service}/p{part}").parse().unwrap()
    }

    fn held(services: usize, slices: usize, endpoints: usize) -> BTreeMap<Key, Held> {
        let parts = (0..services).flat_map(|s| (0..slices).map(move |p| (s, p)));
        parts.map(|(s, p)| (slice(s, p), of(p * endpoints, endpoints))).collect()
    }

    /// A slice of so many addresses, from this one on.
    fn of(first: usize, count: usize) -> Held {
        let address =
            |n: usize| Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(n).unwrap()).into();
        Held { addresses: (first..first + count).map(address).collect(), ..Held::default() }
    }

    /// Removes as many as may go; says how many, and why no more.
    fn remove_all(held: &mut BTreeMap<Key, Held>, now: Instant) -> (usize, String) {
        let mut removals = Removals::default();
        let base = removals.base(held, now);
        let mut gone = 0;
        let mut reasons = Vec::new();
        for key in held.keys().cloned().collect::<Vec<_>>() {
            match removals.allow(&key, held, base, now) {
                Ok(()) => {
                    gone += held.remove(&key).unwrap().addresses.len();
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
            removals.allow(&slice(0, part), &held, 100, start).unwrap();
            held.remove(&slice(0, part));
        }
        assert!(removals.allow(&slice(0, 20), &held, 100, start + window / 2).is_err());
        removals.allow(&slice(0, 20), &held, 80, start + window).unwrap();
    }

    #[test]
    fn an_export_counts_with_its_endpoints_and_a_namespace_counts_nothing() {
        let held = held(1, 1, 3);
        let mut removals = Removals::default();
        let export: Key = "/tombolo/v1/r/r-a/export/shop/s0".parse().unwrap();
        assert!(removals.allow(&export, &held, 3, Instant::now()).is_err());
        let namespace: Key = "/tombolo/v1/r/r-a/namespace/_/shop".parse().unwrap();
        removals.allow(&namespace, &held, 3, Instant::now()).unwrap();
    }

    #[test]
    fn an_address_that_another_slice_has_is_not_lost_and_counts_once() {
        let now = Instant::now();
        // Two slices of the same addresses, as of a service of two ports.
        let mut held = BTreeMap::from([(slice(0, 0), of(0, 100)), (slice(0, 1), of(0, 100))]);
        let mut removals = Removals::default();
        assert_eq!(removals.base(&held, now), 100);
        removals.allow(&slice(0, 0), &held, 100, now).unwrap();
        assert_eq!(removals.gone(), 0);
        held.remove(&slice(0, 0));
        let why = removals.allow(&slice(0, 1), &held, 100, now).unwrap_err();
        assert!(why.contains("the last 100 endpoints of shop/s0"), "{why}");
    }
}
