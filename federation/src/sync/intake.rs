//! The receiving side of a subscription.
//!
//! What comes before `synced` is collected aside, owner by owner, and compared with what is held;
//! only a kind under an end marker whose epoch is not older than the one held may lose records.
//! A stream that breaks off half-way through an owner has changed nothing of it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::transactions::MAX_RECORD_BYTES;
use crate::key::{Key, Kind};
use crate::names::{Owner, RegionName};
use crate::proto::federation as wire;
use crate::proto::federation::subscribe_response::Message;
use crate::record::{Epoch, READS_LEVEL};
use crate::replica::{Batch, Replica};

/// What the subscriber takes from the other side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accept {
    /// Everything but its own cluster's records: an agent.
    MeshBut(Owner),
    /// Only what this region owns: a mirror. A peer that sends another's records is not believed.
    Region(RegionName),
}

/// What to do about a message.
#[derive(Debug, Default)]
pub struct Step {
    /// To be applied as a whole, if not empty.
    pub batch: Batch,
    /// All owners have been sent.
    pub synced: bool,
    /// The other side's position, where the message has one.
    pub position: Option<u64>,
}

/// Why a subscription ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IntakeError {
    /// The other side broke the protocol.
    #[error("the other side sent {0}")]
    Unexpected(String),
    /// What is held is not what the other side holds: subscribing anew transfers the difference.
    #[error("what is held of {owner} differs from what the other side holds")]
    DigestMismatch {
        /// Of whom.
        owner: Owner,
    },
}

/// One subscription.
#[derive(Debug)]
pub struct Intake {
    accept: Accept,
    collecting: Option<Collecting>,
    pending: Vec<(Key, Option<Bytes>)>,
    synced: bool,
    refused: u64,
}

#[derive(Debug)]
struct Collecting {
    owner: Owner,
    same: bool,
    items: BTreeMap<Key, Bytes>,
    ends: BTreeMap<Kind, Epoch>,
}

impl Intake {
    /// For the messages of one stream.
    #[must_use]
    pub fn new(accept: Accept) -> Self {
        Self { accept, collecting: None, pending: Vec::new(), synced: false, refused: 0 }
    }

    /// What to subscribe with: digests of what is held of the owners that may be sent.
    #[must_use]
    pub fn request(&self, held: &Replica) -> wire::SubscribeRequest {
        let owners = held.owners().filter(|(owner, _)| self.accepts(owner));
        let digest = |(owner, holding): (&Owner, &crate::replica::Holding)| wire::OwnerDigest {
            owner: owner.to_string(),
            digest: holding.digest().to_bytes().into(),
        };
        let scope = match &self.accept {
            Accept::MeshBut(_) => wire::Scope::Mesh,
            Accept::Region(_) => wire::Scope::Region,
        };
        let held = owners.map(digest).collect();
        wire::SubscribeRequest {
            scope: scope.into(),
            held,
            reads_level: READS_LEVEL,
            ..wire::SubscribeRequest::default()
        }
    }

    /// Items that the other side may not send, or that are no records.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Takes a message. `held` must be what all earlier steps led to.
    ///
    /// # Errors
    /// When the subscription has to end; see [`IntakeError`].
    pub fn receive(
        &mut self,
        response: wire::SubscribeResponse,
        held: &Replica,
    ) -> Result<Step, IntakeError> {
        let unexpected = |what: &str| Err(IntakeError::Unexpected(what.to_owned()));
        match response.message {
            // Of a newer version: what this one needs, a newer one still sends.
            None => Ok(Step::default()),
            Some(Message::Start(_) | Message::Synced(_)) if self.synced => {
                unexpected("an owner from the start after all were sent")
            }
            Some(Message::Start(start)) => {
                let batch = self.finish(held);
                self.start(&start)?;
                Ok(Step { batch, ..Step::default() })
            }
            Some(Message::Batch(batch)) => Ok(self.batch(batch)),
            Some(Message::End(end)) => self.end(end),
            Some(Message::Synced(synced)) => {
                self.synced = true;
                let batch = self.finish(held);
                Ok(Step { batch, synced: true, position: Some(synced.position) })
            }
            Some(Message::Digests(digests)) => self.compare(&digests, held),
        }
    }

    /// Says the first of a stream: one that sends many would fill the log.
    fn refuse(&mut self, what: &'static str, name: &str) {
        self.refused += 1;
        if self.refused == 1 {
            let name: String = name.chars().take(300).collect();
            tracing::warn!(
                name,
                "left out {what} that is not the other side's to send, or not known here"
            );
        }
    }

    fn accepts(&self, owner: &Owner) -> bool {
        match &self.accept {
            Accept::MeshBut(own) => owner != own,
            Accept::Region(region) => owner.region == *region,
        }
    }

    fn start(&mut self, start: &wire::Start) -> Result<(), IntakeError> {
        let owner: Owner = parse(&start.owner)?;
        if !self.accepts(&owner) {
            return Err(IntakeError::Unexpected(format!(
                "records of {owner}, which is not its to send"
            )));
        }
        let (items, ends) = (BTreeMap::new(), BTreeMap::new());
        self.collecting = Some(Collecting { owner, same: start.same, items, ends });
        Ok(())
    }

    fn batch(&mut self, batch: wire::Batch) -> Step {
        let mut items = Vec::new();
        for item in batch.items {
            match self.item(item) {
                Ok(item) => items.push(item),
                Err(key) => self.refuse("a record", &key),
            }
        }
        if let Some(collecting) = &mut self.collecting {
            let values = items.into_iter().filter_map(|(key, value)| Some((key, value?)));
            collecting.items.extend(values);
            return Step::default();
        }
        self.pending.extend(items);
        if batch.more {
            return Step::default();
        }
        let items = std::mem::take(&mut self.pending);
        let position = Some(batch.position);
        Step { batch: Batch { items, ..Batch::default() }, position, synced: false }
    }

    /// The key alone for what the other side may not send. A kind that only a newer version knows
    /// is left out too: levels keep writers from using it before all can read it.
    fn item(&self, item: wire::Item) -> Result<(Key, Option<Bytes>), String> {
        let Ok(key) = item.key.parse::<Key>() else { return Err(item.key) };
        let in_turn =
            self.collecting.as_ref().is_none_or(|collecting| collecting.owner == key.owner);
        let size = |value: &Bytes| item.key.len() + value.len();
        let fits = item.value.as_ref().is_none_or(|value| size(value) <= MAX_RECORD_BYTES);
        if self.accepts(&key.owner) && in_turn && fits {
            Ok((key, item.value))
        } else {
            Err(item.key)
        }
    }

    fn end(&mut self, end: wire::End) -> Result<Step, IntakeError> {
        let owner: Owner = parse(&end.owner)?;
        let Ok(kind) = end.kind.parse::<Kind>() else {
            // Of a newer version. It vouches for records that this one cannot hold anyway.
            self.refuse("an end marker of kind", &end.kind);
            return Ok(Step::default());
        };
        let epoch = crate::record::epoch(end.epoch)
            .map_err(|error| IntakeError::Unexpected(format!("an end marker whose {error}")))?;
        if !self.accepts(&owner) {
            return Err(IntakeError::Unexpected(format!("an end marker of {owner}")));
        }
        match &mut self.collecting {
            Some(collecting) if collecting.owner == owner => {
                collecting.ends.insert(kind, epoch);
                Ok(Step::default())
            }
            Some(_) => {
                Err(IntakeError::Unexpected(format!("an end marker of {owner} out of turn")))
            }
            None => {
                let batch = Batch { complete: vec![(owner, kind, epoch)], ..Batch::default() };
                Ok(Step { batch, ..Step::default() })
            }
        }
    }

    /// Compares what was collected of an owner with what is held of it.
    fn finish(&mut self, held: &Replica) -> Batch {
        let Some(collected) = self.collecting.take() else { return Batch::default() };
        let holding = held.holding(&collected.owner);
        let older = |kind: &Kind, epoch: &Epoch| {
            let held = holding.and_then(|holding| holding.complete().get(kind));
            held.is_some_and(|held| epoch.is_older_than(held))
        };
        let current = collected.ends.iter().filter(|(kind, epoch)| !older(kind, epoch));
        let vouched: BTreeSet<Kind> = current.clone().map(|(kind, _)| *kind).collect();
        let gone = holding.into_iter().flat_map(super::super::replica::Holding::records).filter(
            |(key, _)| {
                !collected.same && vouched.contains(&key.kind) && !collected.items.contains_key(key)
            },
        );
        let gone = gone.map(|(key, _)| (key.clone(), None));
        let complete = current.map(|(kind, epoch)| (collected.owner.clone(), *kind, epoch.clone()));
        let complete = complete.collect();
        let items = collected.items.iter().map(|(key, value)| (key.clone(), Some(value.clone())));
        Batch { items: items.chain(gone).collect(), complete, ..Batch::default() }
    }

    fn compare(&self, digests: &wire::Digests, held: &Replica) -> Result<Step, IntakeError> {
        for theirs in &digests.owners {
            let owner: Owner = parse(&theirs.owner)?;
            let ours = held.holding(&owner).map(|holding| holding.digest().to_bytes());
            let ours = ours.unwrap_or_else(|| crate::digest::Digest::default().to_bytes());
            if self.accepts(&owner) && ours[..] != theirs.digest[..] {
                return Err(IntakeError::DigestMismatch { owner });
            }
        }
        Ok(Step { position: Some(digests.position), ..Step::default() })
    }
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, IntakeError> {
    text.parse().map_err(|error: T::Err| IntakeError::Unexpected(error.to_string()))
}
