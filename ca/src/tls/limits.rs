//! How much a listener takes on, in all and from each address.
//!
//! Promises: a [`Place`] counts until it is dropped; an address without places costs nothing, so
//! that the tables are never larger than what is open. A share that is full refuses: who waited for
//! its place would hold a descriptor meanwhile. Only the listener as a whole makes wait, before it
//! accepts. Turned down: counting IPv6 by /64,
//! in which all pods of a cluster may be.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How much a listener takes on.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Time from accepted to handshaken.
    pub handshake: Duration,
    /// Handshakes at a time.
    pub handshakes: usize,
    /// Handshakes at a time from one address.
    pub handshakes_per_address: usize,
    /// Time from handshaken to the whole of HTTP/2's connection preface, which every client sends
    /// at once. Until then no keepalive of the HTTP/2 server runs.
    pub preface: Duration,
    /// Connections at a time, those in handshake included. The process needs as many file
    /// descriptors, and some more.
    pub connections: usize,
    /// Those among them from one address, which is that of a gateway where clients are behind one.
    pub connections_per_address: usize,
    /// Those among them whose client has no certificate.
    pub anonymous: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(5),
            handshakes: 512,
            handshakes_per_address: 128,
            preface: Duration::from_secs(5),
            connections: 8192,
            connections_per_address: 1024,
            anonymous: 256,
        }
    }
}

/// Why a connection is closed before it is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Full {
    #[error("its address has as many connections as one may have")]
    Connections,
    #[error("its address has as many handshakes under way as one may have")]
    Handshakes,
    #[error("there are as many clients without a certificate as there may be")]
    Anonymous,
}

/// The places that a listener has to give.
#[derive(Debug)]
pub(super) struct Places {
    connections: Arc<Semaphore>,
    anonymous: Arc<Semaphore>,
    connections_by_address: Tally,
    handshakes_by_address: Tally,
}

/// What a connection holds for as long as it is open.
#[derive(Debug)]
pub(super) struct Place {
    _any: OwnedSemaphorePermit,
    _of_address: Counted,
    anonymous: Arc<Semaphore>,
    _without_certificate: Option<OwnedSemaphorePermit>,
}

impl Places {
    pub(super) fn new(limits: &Limits) -> Self {
        let semaphore =
            |limit: usize| Arc::new(Semaphore::new(limit.clamp(1, Semaphore::MAX_PERMITS)));
        Self {
            connections: semaphore(limits.connections),
            anonymous: semaphore(limits.anonymous),
            connections_by_address: Tally::new(limits.connections_per_address),
            handshakes_by_address: Tally::new(limits.handshakes_per_address),
        }
    }

    /// What every connection needs before it is accepted. May be dropped at its await.
    pub(super) async fn any(&self) -> OwnedSemaphorePermit {
        match Arc::clone(&self.connections).acquire_owned().await {
            Ok(permit) => permit,
            // The semaphore is never closed.
            Err(_) => std::future::pending().await,
        }
    }

    /// What a connection from `address` needs further: its place, and what counts its handshake.
    pub(super) fn take(
        &self,
        any: OwnedSemaphorePermit,
        address: IpAddr,
    ) -> Result<(Place, Counted), Full> {
        let of_address = self.connections_by_address.count(address).ok_or(Full::Connections)?;
        let handshake = self.handshakes_by_address.count(address).ok_or(Full::Handshakes)?;
        let place = Place {
            _any: any,
            _of_address: of_address,
            anonymous: Arc::clone(&self.anonymous),
            _without_certificate: None,
        };
        Ok((place, handshake))
    }
}

impl Place {
    /// What a client without a certificate needs further.
    pub(super) fn without_certificate(self) -> Result<Self, Full> {
        let permit =
            Arc::clone(&self.anonymous).try_acquire_owned().map_err(|_| Full::Anonymous)?;
        Ok(Self { _without_certificate: Some(permit), ..self })
    }
}

/// Counts by address, up to a limit.
#[derive(Debug)]
struct Tally {
    limit: usize,
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One more of its address, until dropped.
#[derive(Debug)]
pub(super) struct Counted {
    address: IpAddr,
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Tally {
    fn new(limit: usize) -> Self {
        Self { limit: limit.max(1), counts: Arc::default() }
    }

    fn count(&self, address: IpAddr) -> Option<Counted> {
        // A dual-stack listener sees IPv4 as `::ffff:a.b.c.d`.
        let address = address.to_canonical();
        let mut counts = locked(&self.counts);
        let count = counts.entry(address).or_default();
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        Some(Counted { address, counts: Arc::clone(&self.counts) })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = locked(&self.counts);
        if let Some(count) = counts.get_mut(&self.address) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

fn locked(counts: &Mutex<HashMap<IpAddr, usize>>) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
    // Nothing under the lock panics, and each change is one step.
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_counted_in_both_forms_and_forgotten_when_it_is_gone() {
        let tally = Tally::new(2);
        let (v4, mapped) = ("192.0.2.1".parse().unwrap(), "::ffff:192.0.2.1".parse().unwrap());
        let one = tally.count(v4).unwrap();
        let two = tally.count(mapped).unwrap();
        assert!(tally.count(v4).is_none() && tally.count(mapped).is_none());
        let other = tally.count("192.0.2.2".parse().unwrap()).unwrap();
        drop(one);
        let again = tally.count(v4).unwrap();
        assert!(tally.count(v4).is_none());
        drop((two, other, again));
        assert!(locked(&tally.counts).is_empty());
    }

    #[tokio::test]
    async fn a_refusal_gives_back_what_was_taken_before_it() {
        let limits = Limits { handshakes_per_address: 1, anonymous: 1, ..Limits::default() };
        let places = Places::new(&limits);
        let address = "192.0.2.1".parse().unwrap();
        let (place, handshake) = places.take(places.any().await, address).unwrap();
        let refused = places.take(places.any().await, address).unwrap_err();
        assert_eq!(refused, Full::Handshakes);
        assert_eq!(locked(&places.connections_by_address.counts)[&address], 1);
        drop(handshake);
        let (second, _) = places.take(places.any().await, address).unwrap();
        let place = place.without_certificate().unwrap();
        assert_eq!(second.without_certificate().unwrap_err(), Full::Anonymous);
        drop(place);
        assert!(locked(&places.connections_by_address.counts).is_empty());
        assert_eq!(places.connections.available_permits(), limits.connections);
        assert_eq!(places.anonymous.available_permits(), 1);
    }
}
