//! The sending side of a subscription.
//!
//! A feed is a cursor into the replica: what it sends next is always the newest value of each key
//! that changed since, so a slow reader gets fewer versions, and holds up nothing but itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::TARGET_MESSAGE;
use crate::key::{Key, Kind};
use crate::names::Owner;
use crate::proto::federation as wire;
use crate::proto::federation::subscribe_response::Message;
use crate::proto::records;
use crate::record::Epoch;
use crate::replica::{Change, Holding, Replica};

/// Which owners a subscriber is to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Interest {
    /// All but its own cluster, which its agent knows better.
    MeshBut(Owner),
    /// A region and its clusters.
    Region(crate::names::RegionName),
}

impl Interest {
    fn includes(&self, owner: &Owner) -> bool {
        match self {
            Self::MeshBut(own) => owner != own,
            Self::Region(region) => owner.region == *region,
        }
    }
}

/// One subscription.
#[derive(Debug)]
pub struct Feed {
    interest: Interest,
    sent: Arc<Replica>,
}

impl Feed {
    /// Starts a feed for a subscriber that holds `held`, with all messages up to `synced`.
    #[must_use]
    pub fn open(
        interest: Interest,
        held: &BTreeMap<Owner, Vec<u8>>,
        replica: Arc<Replica>,
    ) -> (Self, Vec<wire::SubscribeResponse>) {
        let mut messages = Vec::new();
        for (owner, holding) in replica.owners().filter(|(owner, _)| interest.includes(owner)) {
            let same = held.get(owner).is_some_and(|held| *held == holding.digest().to_bytes());
            messages.push(message(Message::Start(wire::Start {
                owner: owner.to_string(),
                same,
                ..wire::Start::default()
            })));
            messages.extend(batches(replica.position, whole(holding, same)));
            messages
                .extend(holding.complete().iter().map(|(kind, epoch)| end(owner, *kind, epoch)));
        }
        let position = replica.position;
        messages.push(message(Message::Synced(wire::Synced { position })));
        (Self { interest, sent: replica }, messages)
    }

    /// What is to be sent because the replica may hold something else now.
    pub fn advance(&mut self, replica: Arc<Replica>) -> Vec<wire::SubscribeResponse> {
        let changes = replica.changes_since(self.sent.version);
        let changes = changes.unwrap_or_else(|| replica.differences(&self.sent));
        let mut items = Vec::new();
        let mut ends = Vec::new();
        for change in changes {
            match change {
                Change::Record(key) if self.interest.includes(&key.owner) => {
                    let value = replica.get(&key).map(|entry| entry.value.clone());
                    items.push(wire::Item { key: key.to_string(), value, ..wire::Item::default() });
                }
                Change::Complete(owner, kind) if self.interest.includes(&owner) => {
                    let epoch = replica.holding(&owner).and_then(|h| h.complete().get(&kind));
                    ends.extend(epoch.map(|epoch| end(&owner, kind, epoch)));
                }
                Change::Record(_) | Change::Complete(..) => {}
            }
        }
        // Upserts first, deletes last, so that no reader sees a service without endpoints between
        // the two halves of a move.
        items.sort_by_key(|item| item.value.is_none());
        let mut messages = batches(replica.position, items);
        messages.extend(ends);
        self.sent = replica;
        messages
    }

    /// What the subscriber has to hold once it has taken everything up to here.
    #[must_use]
    pub fn digests(&self) -> wire::SubscribeResponse {
        let owners = self.sent.owners().filter(|(owner, _)| self.interest.includes(owner));
        let owners = owners.map(|(owner, holding)| wire::OwnerDigest {
            owner: owner.to_string(),
            digest: holding.digest().to_bytes().into(),
        });
        let position = self.sent.position;
        message(Message::Digests(wire::Digests { position, owners: owners.collect() }))
    }
}

/// All of an owner's records; where the subscriber has them, only the beacon, which its digest
/// does not cover.
fn whole(holding: &Holding, same: bool) -> Vec<wire::Item> {
    let wanted = |(key, _): &(&Key, _)| !same || key.kind == Kind::Beacon;
    let records = holding.records().filter(wanted);
    records
        .map(|(key, entry)| wire::Item {
            key: key.to_string(),
            value: Some(entry.value.clone()),
            ..wire::Item::default()
        })
        .collect()
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
        epoch: Some(records::Epoch { id: epoch.id.clone(), count: epoch.count }),
    }))
}

fn message(message: Message) -> wire::SubscribeResponse {
    wire::SubscribeResponse { message: Some(message) }
}
