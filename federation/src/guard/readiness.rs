//! Whether the readiness that the source shows is to be believed.
//!
//! A split between nodes and their API server marks every pod unready at once. So a ready share
//! that is below the limit, and would not be had the endpoints stayed ready that ceased to be
//! within the last two minutes, is suspect. Endpoints count that are, or have been, ready and do
//! not terminate: a scale-up is no fall, and neither is removing the ready ones.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::Timestamp;
use tokio::time::Instant;

use super::{Ending, Records, Settings, short_id};
use crate::names::ServiceKey;
use crate::record::{Body, Endpoint, Epoch, Suspect};

type Name = (ServiceKey, IpAddr);

/// What was seen of a cluster's readiness.
#[derive(Debug)]
pub(super) struct Readiness {
    epoch: Epoch,
    counter: u64,
    /// Endpoints that were ready when last looked at.
    ready: BTreeSet<Name>,
    /// Since when endpoints are not ready that were seen to be.
    fell: BTreeMap<Name, Instant>,
    suspect: Option<Suspect>,
    /// An operator said that it is as bad as it looks; until it is better.
    believed: bool,
}

impl Readiness {
    pub(super) fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            counter: 0,
            ready: BTreeSet::new(),
            fell: BTreeMap::new(),
            suspect: None,
            believed: false,
        }
    }

    /// Goes on from what an earlier process saw.
    pub(super) fn resume(&mut self, records: &Records, suspect: Option<Suspect>) {
        self.ready = ready(readiness(records));
        self.suspect = suspect;
    }

    pub(super) fn suspect(&self) -> Option<&Suspect> {
        self.suspect.as_ref()
    }

    /// Looks at all endpoints; gives a suspicion that ends.
    pub(super) fn look(
        &mut self,
        records: &Records,
        approved: &BTreeSet<String>,
        settings: &Settings,
        now: Instant,
        wall: Timestamp,
    ) -> Option<(Suspect, Ending)> {
        let seen = readiness(records);
        self.fell.retain(|name, _| seen.get(name) == Some(&false));
        for (name, ready) in &seen {
            if !ready && self.ready.contains(name) {
                self.fell.entry(name.clone()).or_insert(now);
            }
        }
        let of = seen.len();
        self.ready = ready(seen);
        let ready = self.ready.len();
        let enough = |ready: usize| ready * 100 >= of * settings.suspect_below_percent as usize;
        if enough(ready) {
            self.believed = false;
            return self.suspect.take().map(|suspect| (suspect, Ending::Resolved));
        }
        let recent = |at: &&Instant| now.saturating_duration_since(**at) <= settings.suspect_within;
        let fast = enough(ready + self.fell.values().filter(recent).count());
        if let Some(suspect) = &mut self.suspect {
            (suspect.ready, suspect.of) = (number(ready), number(of));
            if approved.contains(&suspect.id) {
                self.believed = true;
                return self.suspect.take().map(|suspect| (suspect, Ending::Approved));
            }
        } else if fast && !self.believed {
            self.counter += 1;
            let parts = ["suspect".to_owned(), ready.to_string(), of.to_string()];
            let id = short_id(&self.epoch, self.counter, parts.into_iter());
            let (ready, of) = (number(ready), number(of));
            self.suspect = Some(Suspect { id, since: wall, ready, of });
        }
        None
    }
}

/// Of each address of a service that is or was ready and stays, whether it is ready, in whatever
/// slice.
fn readiness(records: &Records) -> BTreeMap<Name, bool> {
    let mut seen = BTreeMap::new();
    for (key, body) in records {
        let (Body::Endpoints(slice), Some(service)) = (&**body, key.service()) else { continue };
        let counts = |e: &&Endpoint| (e.ready || e.was_ready) && !e.terminating;
        for endpoint in slice.endpoints.iter().filter(counts) {
            *seen.entry((service.clone(), endpoint.address)).or_insert(false) |= endpoint.ready;
        }
    }
    seen
}

fn ready(seen: BTreeMap<Name, bool>) -> BTreeSet<Name> {
    seen.into_iter().filter(|(_, ready)| *ready).map(|(name, _)| name).collect()
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
