//! The receiving side of a subscription.
//!
//! What comes before `synced` is collected aside, owner by owner, and compared with what is held;
//! only a kind under an end marker whose epoch is not older than the one held may lose records, and
//! only if the other side knows all that is known here of the owner: the word of a server that is
//! behind on an owner, or that was restored from a backup, is neither presence nor absence. A stream
//! that breaks off half-way through an owner has changed nothing of it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tokio::time::Instant;

use super::decisions;
use super::transactions::MAX_RECORD_BYTES;
use crate::key::{Key, Kind};
use crate::names::{NamespaceName, Owner, RegionName};
use crate::proto::federation as wire;
use crate::proto::federation::subscribe_response::Message;
use crate::record::{Epoch, Newest, Origin, Removal};
use crate::replica::{Batch, Holding, Removed, Replica};

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
    uses: Vec<String>,
    collecting: Option<Collecting>,
    pending: Batch,
    synced: bool,
    /// Owners that the other side spoke of.
    started: BTreeSet<Owner>,
    /// Those of them on which it is behind.
    behind: BTreeSet<Owner>,
    /// Those of these of which something newer came since than what was held: it may know all now.
    caught_up: BTreeSet<Owner>,
    /// Regions whose leader does not say yet which decisions there are, of which more are held.
    unsure: BTreeSet<Owner>,
    /// Of both, what the other side had of them when that was compared the first time.
    differing: BTreeMap<Owner, Bytes>,
    refused: u64,
    last_refused: Option<String>,
}

#[derive(Debug)]
struct Collecting {
    owner: Owner,
    /// The other side's word counts.
    current: bool,
    /// Everything of the owner follows, so that absence means something.
    whole: bool,
    newest: Option<Newest>,
    items: BTreeMap<Key, Option<Bytes>>,
    removed: BTreeMap<Key, Removed>,
    ends: BTreeMap<Kind, Epoch>,
}

impl Intake {
    /// For the messages of one stream.
    #[must_use]
    pub fn new(accept: Accept) -> Self {
        Self {
            accept,
            uses: Vec::new(),
            collecting: None,
            pending: Batch::default(),
            synced: false,
            started: BTreeSet::new(),
            behind: BTreeSet::new(),
            caught_up: BTreeSet::new(),
            unsure: BTreeSet::new(),
            differing: BTreeMap::new(),
            refused: 0,
            last_refused: None,
        }
    }

    /// Asks only for what is about these namespaces, and about none; for all, if it is empty.
    #[must_use]
    pub fn using(mut self, namespaces: impl IntoIterator<Item = NamespaceName>) -> Self {
        self.uses = namespaces.into_iter().map(|namespace| namespace.to_string()).collect();
        self
    }

    /// What to subscribe with: digests of what is held of the owners that may be sent, and up to
    /// where the other side was followed, 0 to be sent whole owners.
    #[must_use]
    pub fn request(&self, held: &Replica, position: u64) -> wire::SubscribeRequest {
        let owners = held.owners().filter(|(owner, _)| self.accepts(owner));
        let digest = |(owner, holding): (&Owner, &Holding)| wire::OwnerDigest {
            owner: owner.to_string(),
            digest: holding.digest().to_bytes().into(),
        };
        let scope = match &self.accept {
            Accept::MeshBut(_) => wire::Scope::Mesh,
            Accept::Region(_) => wire::Scope::Region,
        };
        let reads_level = held.reads_level();
        let (held, uses) = (owners.map(digest).collect(), self.uses.clone());
        wire::SubscribeRequest { scope: scope.into(), held, reads_level, position, uses }
    }

    /// Items that the other side may not send, or that are no records.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// The last of them.
    #[must_use]
    pub fn last_refused(&self) -> Option<&str> {
        self.last_refused.as_deref()
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
                self.start(start, held)?;
                Ok(Step { batch, ..Step::default() })
            }
            Some(Message::Batch(batch)) => Ok(self.batch(batch, held)),
            Some(Message::End(end)) => self.end(end),
            Some(Message::Synced(synced)) => {
                self.synced = true;
                let mut batch = self.finish(held);
                // Who left may be told in the very last part.
                let decided = batch.items.iter().any(|(key, _)| key.kind == Kind::Decision);
                batch.forgotten = if decided {
                    self.forgettable(&held.with(batch.clone(), Instant::now()))
                } else {
                    self.forgettable(held)
                };
                Ok(Step { batch, synced: true, position: Some(synced.position) })
            }
            Some(Message::Digests(digests)) => self.compare(&digests, held),
        }
    }

    /// Says the first of a stream: one that sends many would fill the log.
    fn refuse(&mut self, what: &'static str, name: &str) {
        self.refused += 1;
        let name: String = name.chars().take(300).collect();
        if self.refused == 1 {
            tracing::warn!(
                name,
                "left out {what} that is not the other side's to send, or not known here"
            );
        }
        self.last_refused = Some(format!("{what} {name}"));
    }

    fn accepts(&self, owner: &Owner) -> bool {
        match &self.accept {
            Accept::MeshBut(own) => owner != own,
            Accept::Region(region) => owner.region == *region,
        }
    }

    fn start(&mut self, start: wire::Start, held: &Replica) -> Result<(), IntakeError> {
        let owner: Owner = parse(&start.owner)?;
        if !self.accepts(&owner) {
            return Err(IntakeError::Unexpected(format!(
                "records of {owner}, which is not its to send"
            )));
        }
        let newest = start.newest.map(newest).transpose()?;
        let held = held.holding(&owner).and_then(Holding::newest);
        let current = match (&newest, held) {
            (Some(theirs), Some(ours)) => !theirs.is_older_than(ours),
            (None, Some(_)) => false,
            (_, None) => true,
        };
        if !current {
            tracing::debug!(%owner, "the other side is behind on this owner, nothing of it counts");
            self.behind.insert(owner.clone());
        }
        self.started.insert(owner.clone());
        self.collecting = Some(Collecting {
            owner,
            current,
            whole: !start.same && !start.delta,
            newest,
            items: BTreeMap::new(),
            removed: BTreeMap::new(),
            ends: BTreeMap::new(),
        });
        Ok(())
    }

    fn batch(&mut self, batch: wire::Batch, held: &Replica) -> Step {
        for item in batch.items {
            match self.item(item, held) {
                Ok(Some((key, value, removed))) => self.take(key, value, removed),
                Ok(None) => {}
                Err(key) => self.refuse("record", &key),
            }
        }
        if self.collecting.is_some() || batch.more {
            return Step::default();
        }
        let position = Some(batch.position);
        Step { batch: std::mem::take(&mut self.pending), position, synced: false }
    }

    fn take(&mut self, key: Key, value: Option<Bytes>, removed: Option<Removed>) {
        if let Some(collecting) = &mut self.collecting {
            collecting.removed.extend(removed.map(|removed| (key.clone(), removed)));
            collecting.items.insert(key, value);
        } else {
            self.pending.removed.extend(removed.map(|removed| (key.clone(), removed)));
            self.pending.items.push((key, value));
        }
    }

    /// Nothing, if it is a removal from before what is held; the key alone for what the other side
    /// may not send. A kind that only a newer version knows is left out too: levels keep writers
    /// from using it before all can read it.
    fn item(&mut self, item: wire::Item, held: &Replica) -> Result<Option<Item>, String> {
        let Ok(key) = item.key.parse::<Key>() else { return Err(item.key) };
        if key.kind.since_level() > held.reads_level() {
            return Err(item.key);
        }
        let in_turn =
            self.collecting.as_ref().is_none_or(|collecting| collecting.owner == key.owner);
        let size = |value: &Bytes| item.key.len() + value.len();
        let fits = item.value.as_ref().is_none_or(|value| size(value) <= MAX_RECORD_BYTES);
        if !self.accepts(&key.owner) || !in_turn || !fits {
            return Err(item.key);
        }
        if let Some(value) = &item.value {
            // The other side had it from who knew less.
            let change = Origin::of_value(value).map(|origin| origin.newest());
            let gone = change.as_ref().is_some_and(|change| held.was_removed_since(&key, change));
            let newest = held.holding(&key.owner).and_then(Holding::newest);
            let newer = newest.zip(change).is_some_and(|(held, new)| held.is_older_than(&new));
            if newer && self.behind.contains(&key.owner) {
                self.caught_up.insert(key.owner.clone());
            }
            return Ok((!gone).then_some((key, item.value, None)));
        }
        // One without a reason is still its owner's removal: it says so by sending it.
        let removal = Removal::from_wire(item.removal).unwrap_or(Removal::Unexplained);
        let removed = Removed { removal, sequence: item.sequence };
        let rewinds = self.rewinds(&item, &key.owner, held);
        if !rewinds && self.behind.contains(&key.owner) {
            self.caught_up.insert(key.owner.clone());
        }
        Ok((!rewinds).then_some((key, None, Some(removed))))
    }

    /// Whether a removal comes from a server that is behind on its owner and has not caught up. One
    /// that was not behind at the start only goes on from there: its removals are newer than all
    /// that is held, whatever their number. They count within an epoch that they do not name, and
    /// the first that is heard of an owner's next epoch may be a removal.
    fn rewinds(&self, item: &wire::Item, owner: &Owner, held: &Replica) -> bool {
        let newest = held.holding(owner).and_then(Holding::newest);
        self.behind.contains(owner) && newest.is_some_and(|held| item.sequence <= held.sequence)
    }

    /// Owners of whom the other side says nothing and nothing is held, or who have left by the word
    /// of an operator while this subscriber was away.
    fn forgettable(&self, held: &Replica) -> Vec<Owner> {
        let silent = held
            .owners()
            .filter(|(owner, _)| self.accepts(owner) && !self.started.contains(*owner));
        let gone =
            silent.filter(|(owner, holding)| holding.is_empty() || decisions::is_gone(held, owner));
        gone.map(|(owner, _)| owner.clone()).collect()
    }

    fn end(&mut self, end: wire::End) -> Result<Step, IntakeError> {
        let owner: Owner = parse(&end.owner)?;
        let Ok(kind) = end.kind.parse::<Kind>() else {
            // Of a newer version. It vouches for records that this one cannot hold anyway.
            self.refuse("end marker of kind", &end.kind);
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
                // The next comparison counts.
                self.unsure.remove(&owner);
                let complete = (!self.behind.contains(&owner)).then_some((owner, kind, epoch));
                let complete = complete.into_iter().collect();
                let batch = Batch { complete, ..Batch::default() };
                Ok(Step { batch, ..Step::default() })
            }
        }
    }

    /// Compares what was collected of an owner with what is held of it.
    fn finish(&mut self, held: &Replica) -> Batch {
        let Some(collected) = self.collecting.take() else { return Batch::default() };
        if !collected.current {
            return Batch::default();
        }
        let holding = held.holding(&collected.owner);
        let older = |kind: &Kind, epoch: &Epoch| {
            let held = holding.and_then(|holding| holding.complete().get(kind));
            held.is_some_and(|held| epoch.is_older_than(held))
        };
        let current = collected.ends.iter().filter(|(kind, epoch)| !older(kind, epoch));
        let counts = |epoch| counts_absence(&collected.owner, epoch, collected.newest.as_ref());
        let vouched = current.clone().filter(|(_, epoch)| counts(epoch));
        let vouched: BTreeSet<Kind> = vouched.map(|(kind, _)| *kind).collect();
        let absent = holding
            .into_iter()
            .flat_map(Holding::records)
            .filter(|(key, _)| collected.whole && !collected.items.contains_key(key));
        let (gone, kept): (Vec<_>, Vec<_>) =
            absent.map(|(key, _)| key).partition(|key| vouched.contains(&key.kind));
        // Digests do not cover beacons.
        let kept = kept.iter().any(|key| key.kind != Kind::Beacon);
        if kept && collected.owner.cluster.is_none() {
            self.unsure.insert(collected.owner.clone());
        }
        let gone = gone.into_iter().map(|key| (key.clone(), None));
        let complete = current.map(|(kind, epoch)| (collected.owner.clone(), *kind, epoch.clone()));
        let complete = complete.collect();
        let newest = collected.newest.clone();
        let newest = newest.map(|newest| (collected.owner.clone(), newest)).into_iter().collect();
        let items = collected.items.iter().map(|(key, value)| (key.clone(), value.clone()));
        let items = items.chain(gone).collect();
        Batch { items, removed: collected.removed, complete, newest, ..Batch::default() }
    }

    /// Whether it is known that the other side holds something else, and it still holds that: to
    /// subscribe anew would find the same. Once something has changed there, it may know all.
    fn is_excused(&mut self, owner: &Owner, digest: &Bytes) -> bool {
        let behind = self.behind.contains(owner) && !self.caught_up.contains(owner);
        let known = behind || self.unsure.contains(owner);
        known && self.differing.entry(owner.clone()).or_insert_with(|| digest.clone()) == digest
    }

    fn compare(&mut self, digests: &wire::Digests, held: &Replica) -> Result<Step, IntakeError> {
        // An older server does not count what it does not know, nor would it have sent it.
        let level = digests.level.max(1);
        for theirs in &digests.owners {
            let owner: Owner = parse(&theirs.owner)?;
            let ours = held.holding(&owner).map(|holding| holding.digest_at(level).to_bytes());
            let ours = ours.unwrap_or_else(|| crate::digest::Digest::default().to_bytes());
            let same = ours[..] == theirs.digest[..];
            if same {
                self.behind.remove(&owner);
                self.differing.remove(&owner);
            } else if self.accepts(&owner) && !self.is_excused(&owner, &theirs.digest) {
                return Err(IntakeError::DigestMismatch { owner });
            }
        }
        let named = digests.owners.iter().filter_map(|theirs| theirs.owner.parse().ok());
        self.started = named.collect();
        let batch = Batch { forgotten: self.forgettable(held), ..Batch::default() };
        Ok(Step { batch, position: Some(digests.position), ..Step::default() })
    }
}

/// Whether what an owner completed in `epoch` says what is not there, now that it has said
/// `newest`. A cluster's store goes only by the cluster's word. A region's leader begins its term by
/// saying what it knows, and vouches for decisions only once no peer may know more of them: until
/// then what an earlier leader vouched for may come from a backup.
pub(super) fn counts_absence(owner: &Owner, epoch: &Epoch, newest: Option<&Newest>) -> bool {
    owner.cluster.is_some() || newest.is_none_or(|newest| !epoch.is_older_than(&newest.epoch))
}

/// A record or its removal, as it was sent.
type Item = (Key, Option<Bytes>, Option<Removed>);

fn newest(wire: wire::Newest) -> Result<Newest, IntakeError> {
    let epoch = crate::record::epoch(wire.epoch).map_err(|error| {
        IntakeError::Unexpected(format!("an owner's newest change whose {error}"))
    })?;
    Ok(Newest { epoch, sequence: wire.sequence })
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, IntakeError> {
    text.parse().map_err(|error: T::Err| IntakeError::Unexpected(error.to_string()))
}
