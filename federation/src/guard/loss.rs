//! What was published and is no longer wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use super::{Explanation, Records, namespace_of, services};
use crate::key::{Key, Kind};
use crate::names::{NamespaceName, ServiceKey};
use crate::record::{Body, Endpoints};

/// The smallest thing that can be lost.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// A record that holds no endpoints.
    Record(Key),
    /// One address of a slice, whether the slice stays or not; no other slice of the service has
    /// it.
    Endpoint(Key, IpAddr),
}

impl Loss {
    /// The record that is lost, or that loses an endpoint.
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Self::Record(key) | Self::Endpoint(key, _) => key,
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record(key) => fmt::Display::fmt(key, f),
            Self::Endpoint(key, address) => write!(f, "{key} {address}"),
        }
    }
}

/// Losses, each with how many endpoints it counts as.
#[derive(Debug, Clone, Default)]
pub(super) struct Losses {
    weights: BTreeMap<Loss, u32>,
    /// Services that were of use: something was exported, and not all of it on its way out.
    in_use: BTreeSet<ServiceKey>,
}

/// How many endpoints `records` hold, each address of a service once.
pub(super) fn endpoints(records: &Records) -> u32 {
    let count = by_service(records, |_| true).values().map(BTreeSet::len).sum::<usize>();
    u32::try_from(count).unwrap_or(u32::MAX)
}

impl Losses {
    pub(super) fn between(published: &Records, wanted: &Records) -> Self {
        let same = |(key, body): &(&Key, &_)| wanted.get(*key) == Some(*body);
        let changed: Vec<&Key> =
            published.iter().filter(|entry| !same(entry)).map(|(key, _)| key).collect();
        let concerned = services(changed.iter().copied());
        let offered = by_service(wanted, |service| concerned.contains(service));
        let had = by_service(published, |service| concerned.contains(service));
        let mut weights = BTreeMap::new();
        let mut told: BTreeSet<(ServiceKey, IpAddr)> = BTreeSet::new();
        for key in changed {
            match (slice(published, key), key.service()) {
                (Some(was), Some(service)) => {
                    let still = offered.get(&service);
                    let lost = |a: &IpAddr| still.is_none_or(|still| !still.contains(a));
                    for address in addresses(was).filter(lost) {
                        let first = told.insert((service.clone(), address));
                        weights.insert(Loss::Endpoint(key.clone(), address), u32::from(first));
                    }
                    if was.endpoints.is_empty() && !wanted.contains_key(key) {
                        weights.insert(Loss::Record(key.clone()), 0);
                    }
                }
                _ if wanted.contains_key(key) => {}
                _ => _ = weights.insert(Loss::Record(key.clone()), 1),
            }
        }
        let in_use = in_use(published, &concerned);
        let mut losses = Self { weights, in_use };
        losses.weigh_exports(&had);
        losses
    }

    /// An export counts as what it takes away beyond what its slices lose, and nothing counts
    /// twice: it is one only where there is nothing else.
    fn weigh_exports(&mut self, had: &BTreeMap<ServiceKey, BTreeSet<IpAddr>>) {
        let mut lost: BTreeMap<ServiceKey, u32> = BTreeMap::new();
        for (loss, weight) in &self.weights {
            if let (Loss::Endpoint(key, _), Some(service)) = (loss, loss.key().service()) {
                debug_assert_eq!(key.kind, Kind::Endpoints);
                *lost.entry(service).or_default() += weight;
            }
        }
        let exports = self.weights.iter_mut().filter(|(loss, _)| loss.key().kind == Kind::Export);
        for (loss, weight) in exports {
            let Some(service) = loss.key().service() else { continue };
            let all = had.get(&service).map_or(0, BTreeSet::len);
            let all = u32::try_from(all).unwrap_or(u32::MAX);
            let counted = lost.get(&service).copied().unwrap_or(0);
            *weight = if all == 0 { 1 } else { all.saturating_sub(counted) };
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.weights.is_empty()
    }

    pub(super) fn contains(&self, loss: &Loss) -> bool {
        self.weights.contains_key(loss)
    }

    pub(super) fn weights(&self) -> impl Iterator<Item = (&Loss, u32)> {
        self.weights.iter().map(|(loss, weight)| (loss, *weight))
    }

    pub(super) fn weight(&self) -> u64 {
        self.weights.values().map(|weight| u64::from(*weight)).sum()
    }

    pub(super) fn services(&self) -> BTreeSet<ServiceKey> {
        services(self.weights.keys().map(Loss::key))
    }

    /// All but what satisfies `left_out`.
    pub(super) fn without(&self, left_out: impl Fn(&Loss) -> bool) -> Self {
        self.only(|loss| !left_out(loss))
    }

    fn only(&self, which: impl Fn(&Loss) -> bool) -> Self {
        let weights = self.weights.iter().filter(|(loss, _)| which(loss));
        Self {
            weights: weights.map(|(loss, weight)| (loss.clone(), *weight)).collect(),
            in_use: self.in_use.clone(),
        }
    }

    /// Takes out what the source explains. An export that is gone for good reason takes its
    /// service along, and a namespace all that is in it.
    pub(super) fn take_explained(
        &mut self,
        explains: &dyn Fn(&Loss) -> Option<Explanation>,
    ) -> Vec<Loss> {
        let mut explained: BTreeSet<Loss> = BTreeSet::new();
        let (mut exports, mut namespaces) = (BTreeSet::new(), BTreeSet::new());
        for loss in self.weights.keys() {
            if explains(loss).is_none() {
                continue;
            }
            match loss.key().kind {
                Kind::Export => exports.extend(loss.key().service()),
                Kind::Namespace => namespaces.extend(namespace_of(loss.key())),
                _ => {}
            }
            explained.insert(loss.clone());
        }
        let covered = |loss: &Loss| {
            loss.key().service().is_some_and(|service| exports.contains(&service))
                || namespace_of(loss.key()).is_some_and(|name| namespaces.contains(&name))
        };
        let covered: Vec<Loss> =
            self.weights.keys().filter(|loss| covered(loss)).cloned().collect();
        explained.extend(covered);
        self.weights.retain(|loss, _| !explained.contains(loss));
        explained.into_iter().collect()
    }

    /// What leaves a service that was of use without any endpoint that is, by `wanted` alone: what
    /// other holds keep alive is no reason to take more. With it goes the namespace of what is
    /// held.
    pub(super) fn taking_the_last(
        &self,
        wanted: &Records,
        holds_in: impl Fn(&NamespaceName) -> bool,
    ) -> Self {
        let concerned = self.services();
        let left = in_use(wanted, &concerned);
        let bare: BTreeSet<&ServiceKey> =
            concerned.iter().filter(|s| self.in_use.contains(s) && !left.contains(s)).collect();
        let in_held = |name: &NamespaceName| {
            holds_in(name) || bare.iter().any(|service| service.namespace == *name)
        };
        self.only(|loss| match loss.key().service() {
            Some(service) => bare.contains(&service),
            None => {
                loss.key().kind == Kind::Namespace
                    && namespace_of(loss.key()).is_some_and(|name| in_held(&name))
            }
        })
    }
}

fn slice<'a>(records: &'a Records, key: &Key) -> Option<&'a Endpoints> {
    match &**records.get(key)? {
        Body::Endpoints(slice) => Some(slice),
        _ => None,
    }
}

fn addresses(slice: &Endpoints) -> impl Iterator<Item = IpAddr> {
    slice.endpoints.iter().map(|endpoint| endpoint.address)
}

fn slices(records: &Records) -> impl Iterator<Item = (ServiceKey, &Endpoints)> {
    records.iter().filter_map(|(key, body)| match &**body {
        Body::Endpoints(slice) => Some((key.service()?, slice)),
        _ => None,
    })
}

fn by_service(
    records: &Records,
    which: impl Fn(&ServiceKey) -> bool,
) -> BTreeMap<ServiceKey, BTreeSet<IpAddr>> {
    let mut all: BTreeMap<ServiceKey, BTreeSet<IpAddr>> = BTreeMap::new();
    for (service, slice) in slices(records).filter(|(service, _)| which(service)) {
        all.entry(service).or_default().extend(addresses(slice));
    }
    all
}

/// Exported services with an endpoint that is not on its way out, of those in `of`.
fn in_use(records: &Records, of: &BTreeSet<ServiceKey>) -> BTreeSet<ServiceKey> {
    let exported: BTreeSet<ServiceKey> =
        services(records.keys().filter(|key| key.kind == Kind::Export));
    let stays = |slice: &Endpoints| slice.endpoints.iter().any(|e| !e.terminating);
    slices(records)
        .filter(|(service, slice)| {
            of.contains(service) && exported.contains(service) && stays(slice)
        })
        .map(|(service, _)| service)
        .collect()
}
