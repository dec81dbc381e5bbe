//! The sending side of a subscription.
//!
//! A feed is a cursor into the replica: what it sends next is always the newest value of each key
//! that changed since, so a slow reader gets fewer versions, and holds up nothing but itself. It is
//! cut to what the subscriber is entitled to and uses; so are the digests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{TARGET_MESSAGE, facts};
use crate::digest::Digest;
use crate::key::{Key, Kind};
use crate::names::{ClusterId, NamespaceName, Owner, RegionName};
use crate::proto::federation as wire;
use crate::proto::federation::subscribe_response::Message;
use crate::record::{Body, Entitlement, Epoch};
use crate::replica::{Change, Holding, Replica};

/// Whose records a subscriber is to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owners {
    /// All but its own cluster, which its agent knows better.
    MeshBut(Owner),
    /// A region and its clusters.
    Region(RegionName),
}

/// What a subscriber is to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interest {
    /// Of whom.
    pub owners: Owners,
    /// About which namespaces it may be told.
    pub entitlement: Entitlement,
    /// About which of them it wants to be told; `None` is all.
    pub uses: Option<BTreeSet<NamespaceName>>,
}

impl Interest {
    /// Everything of these owners.
    #[must_use]
    pub fn all(owners: Owners) -> Self {
        Self { owners, entitlement: Entitlement::All, uses: None }
    }

    fn includes_owner(&self, owner: &Owner) -> bool {
        match &self.owners {
            Owners::MeshBut(own) => owner != own,
            Owners::Region(region) => owner.region == *region,
        }
    }

    fn includes(&self, key: &Key) -> bool {
        self.includes_owner(&key.owner) && self.covers(key.about().as_ref())
    }

    fn covers(&self, namespace: Option<&NamespaceName>) -> bool {
        let uses = |namespace| self.uses.as_ref().is_none_or(|uses| uses.contains(namespace));
        self.entitlement.covers(namespace) && namespace.is_none_or(uses)
    }

    fn digest(&self, holding: &Holding) -> Digest {
        match (&self.entitlement, &self.uses) {
            (Entitlement::All, None) => holding.digest(),
            _ => holding.digest_within(|namespace| self.covers(namespace)),
        }
    }
}

/// What the region says that a cluster is entitled to; all, if it says nothing.
#[must_use]
pub fn entitlement(replica: &Replica, region: &RegionName, cluster: &ClusterId) -> Entitlement {
    let key = Key::of_owner(Owner::region(region.clone()), Kind::Region);
    let record = replica.get(&key).and_then(|entry| entry.record.as_deref());
    match record.map(|record| &record.body) {
        Some(Body::Region(region)) => {
            region.entitlements.get(cluster).cloned().unwrap_or(Entitlement::All)
        }
        _ => Entitlement::All,
    }
}

/// What a subscriber has already.
#[derive(Debug, Clone, Default)]
pub struct Has {
    /// Digests of what it holds, by owner.
    pub digests: BTreeMap<Owner, Vec<u8>>,
    /// Up to where it followed this store before; 0: nowhere.
    pub position: u64,
}

/// One subscription.
#[derive(Debug)]
pub struct Feed {
    interest: Interest,
    sent: Arc<Replica>,
}

impl Feed {
    /// Starts a feed for a subscriber that has `has`, with all messages up to `synced`. Where it
    /// can go on from its position it is sent only what changed since, and the digests to check
    /// that by at once: positions of another history mean nothing.
    #[must_use]
    pub fn open(
        interest: Interest,
        has: &Has,
        replica: Arc<Replica>,
    ) -> (Self, Vec<wire::SubscribeResponse>) {
        let feed = Self { interest, sent: replica };
        let since = (has.position > 0 && has.position <= feed.sent.position)
            .then(|| feed.sent.changes_since_position(has.position))
            .flatten();
        let since = since.map(by_owner);
        let mut messages = Vec::new();
        let mut deltas = false;
        for (owner, holding) in feed.owners() {
            let held = has.digests.get(owner);
            let same = held.is_some_and(|held| *held == feed.interest.digest(holding).to_bytes());
            let changed = since.as_ref().filter(|_| held.is_some() && !same);
            let changed = changed.map(|since| since.get(owner).cloned().unwrap_or_default());
            deltas |= changed.is_some();
            messages.extend(feed.owner(owner, holding, same, changed));
        }
        let position = feed.sent.position;
        messages.push(message(Message::Synced(wire::Synced { position })));
        if deltas {
            messages.push(feed.digests());
        }
        (feed, messages)
    }

    /// All that is sent of one owner at the start: everything, what changed, or only the beacon,
    /// which digests do not cover.
    fn owner(
        &self,
        owner: &Owner,
        holding: &Holding,
        same: bool,
        changed: Option<BTreeSet<Key>>,
    ) -> Vec<wire::SubscribeResponse> {
        let newest = holding.newest().map(|newest| wire::Newest {
            epoch: Some(facts::epoch_to_wire(&newest.epoch)),
            sequence: newest.sequence,
        });
        let delta = changed.is_some();
        let start = wire::Start { owner: owner.to_string(), same, newest, delta };
        let items = match changed {
            Some(keys) => self.changed(keys),
            None => self.whole(holding, same),
        };
        let mut messages = vec![message(Message::Start(start))];
        messages.extend(batches(self.sent.position, items));
        messages.extend(holding.complete().iter().map(|(kind, epoch)| end(owner, *kind, epoch)));
        messages
    }

    /// What is to be sent because the replica may hold something else now.
    pub fn advance(&mut self, replica: Arc<Replica>) -> Vec<wire::SubscribeResponse> {
        let changes = replica.changes_since(self.sent.version);
        let changes = changes.unwrap_or_else(|| replica.differences(&self.sent));
        self.sent = replica;
        let mut keys = BTreeSet::new();
        let mut ends = Vec::new();
        for change in changes {
            match change {
                Change::Record(key) => drop(keys.insert(key)),
                Change::Complete(owner, kind) if self.interest.includes_owner(&owner) => {
                    let epoch = self.sent.holding(&owner).and_then(|h| h.complete().get(&kind));
                    ends.extend(epoch.map(|epoch| end(&owner, kind, epoch)));
                }
                Change::Complete(..) => {}
            }
        }
        let mut messages = batches(self.sent.position, self.changed(keys));
        messages.extend(ends);
        messages
    }

    /// What the subscriber has to hold once it has taken everything up to here.
    #[must_use]
    pub fn digests(&self) -> wire::SubscribeResponse {
        let owners = self.owners().map(|(owner, holding)| wire::OwnerDigest {
            owner: owner.to_string(),
            digest: self.interest.digest(holding).to_bytes().into(),
        });
        let position = self.sent.position;
        message(Message::Digests(wire::Digests { position, owners: owners.collect() }))
    }

    fn owners(&self) -> impl Iterator<Item = (&Owner, &Holding)> {
        self.sent.owners().filter(|(owner, _)| self.interest.includes_owner(owner))
    }

    fn whole(&self, holding: &Holding, same: bool) -> Vec<wire::Item> {
        let wanted = |key: &Key| (!same || key.kind == Kind::Beacon) && self.interest.includes(key);
        let records = holding.records().filter(|(key, _)| wanted(key));
        records.map(|(key, _)| self.item(key)).collect()
    }

    /// Upserts first, deletes last, so that no reader sees a service without endpoints between the
    /// two halves of a move.
    fn changed(&self, keys: BTreeSet<Key>) -> Vec<wire::Item> {
        let keys = keys.into_iter().filter(|key| self.interest.includes(key));
        let mut items: Vec<wire::Item> = keys.map(|key| self.item(&key)).collect();
        items.sort_by_key(|item| item.value.is_none());
        items
    }

    fn item(&self, key: &Key) -> wire::Item {
        let value = self.sent.get(key).map(|entry| entry.value.clone());
        let removed = if value.is_none() { self.sent.removed(key) } else { None };
        wire::Item {
            key: key.to_string(),
            value,
            removal: removed.map_or(0, |removed| removed.removal.to_wire()),
            sequence: removed.map_or(0, |removed| removed.sequence),
        }
    }
}

fn by_owner(changes: BTreeSet<Change>) -> BTreeMap<Owner, BTreeSet<Key>> {
    let mut owners: BTreeMap<Owner, BTreeSet<Key>> = BTreeMap::new();
    for change in changes {
        if let Change::Record(key) = change {
            owners.entry(key.owner.clone()).or_default().insert(key);
        }
    }
    owners
}

fn batches(position: u64, items: Vec<wire::Item>) -> Vec<wire::SubscribeResponse> {
    let mut batches = Vec::new();
    let mut batch = Vec::new();
    let mut size = 0;
    for item in items {
        size += item.key.len() + item.value.as_ref().map_or(0, bytes::Bytes::len);
        batch.push(item);
        if size >= TARGET_MESSAGE {
            batches.push(std::mem::take(&mut batch));
            size = 0;
        }
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    let last = batches.len().saturating_sub(1);
    let numbered = batches.into_iter().enumerate();
    numbered
        .map(|(index, items)| {
            message(Message::Batch(wire::Batch { position, items, more: index < last }))
        })
        .collect()
}

fn end(owner: &Owner, kind: Kind, epoch: &Epoch) -> wire::SubscribeResponse {
    message(Message::End(wire::End {
        owner: owner.to_string(),
        kind: kind.to_string(),
        epoch: Some(facts::epoch_to_wire(epoch)),
    }))
}

fn message(message: Message) -> wire::SubscribeResponse {
    wire::SubscribeResponse { message: Some(message) }
}
