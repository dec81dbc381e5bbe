//! The receiving side of a subscription.
//!
//! What comes before `synced` is collected aside, owner by owner, and compared with what is held;
//! only a kind under an end marker whose epoch is not older than the one held may lose records, and
//! only if the other side knows all that is known here of the owner: the word of a server that is
//! behind on an owner, or that was restored from a backup, is neither presence nor absence, nor is
//! what it sends on its way to what is held here (`behind`). A stream that breaks off half-way
//! through an owner has changed nothing of it.

mod behind;
mod collecting;
mod kept;
mod left_out;
mod room;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tokio::time::Instant;

use self::behind::Behind;
use self::collecting::Collecting;
use self::kept::Kept;
use self::left_out::LeftOut;
pub use self::left_out::{Reason, Strays};
use super::decisions;
use super::quota::{self, Quota, Usage};
use super::transactions::MAX_RECORD_BYTES;
use crate::key::{InvalidKey, Key, Kind};
use crate::names::{NamespaceName, Owner, RegionName};
use crate::proto::federation as wire;
use crate::proto::federation::subscribe_response::Message;
use crate::record::{Epoch, Newest, Origin, Removal};
use crate::replica::{Batch, Holding, Removed, Replica, gives_way, is_rewind};

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
    /// The other side was behind, and what it removed on its way has no order with what is held:
    /// to be subscribed anew, from no position.
    #[error("the other side has caught up on {owner}: what it removed on its way is compared")]
    CaughtUp {
        /// On whom.
        owner: Owner,
    },
}

impl IntakeError {
    /// Whether whole owners have to be sent to settle it.
    #[must_use]
    pub fn distrusts_positions(&self) -> bool {
        match self {
            Self::DigestMismatch { .. } | Self::CaughtUp { .. } => true,
            Self::Unexpected(_) => false,
        }
    }
}

/// One subscription.
#[derive(Debug)]
pub struct Intake {
    accept: Accept,
    uses: Vec<String>,
    collecting: Option<Collecting>,
    pending: Batch,
    /// What the change under way leads to, as far as it has come.
    running: Option<Usage>,
    /// How much is taken of a region by its mirrors. An agent takes what its own region holds.
    pub(super) quota: Option<Quota>,
    synced: bool,
    /// Owners that the other side spoke of.
    started: BTreeSet<Owner>,
    /// Those of them on which it is behind.
    behind: Behind,
    /// Those of the others who said something older than what is held.
    gone_back: BTreeSet<Owner>,
    /// Bytes of a live change of which more is to come.
    waiting: usize,
    kept: Kept,
    left_out: LeftOut,
}

impl Intake {
    /// For the messages of one stream.
    #[must_use]
    pub fn new(accept: Accept) -> Self {
        let quota = matches!(accept, Accept::Region(_)).then_some(quota::REGION);
        Self {
            accept,
            quota,
            running: None,
            uses: Vec::new(),
            collecting: None,
            pending: Batch::default(),
            synced: false,
            started: BTreeSet::new(),
            behind: Behind::default(),
            gone_back: BTreeSet::new(),
            waiting: 0,
            kept: Kept::default(),
            left_out: LeftOut::default(),
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

    /// How many items were left out: see [`Reason`].
    #[must_use]
    pub fn left_out(&self) -> &BTreeMap<Reason, u64> {
        self.left_out.counts()
    }

    /// The last of them, and why.
    #[must_use]
    pub fn last_left_out(&self) -> Option<&str> {
        self.left_out.last()
    }

    /// What came that should not have, since this was last asked.
    pub fn take_strays(&mut self) -> Option<Strays> {
        self.left_out.take_news()
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
            Some(Message::Batch(batch)) => self.batch(batch, held),
            Some(Message::End(end)) => self.end(end, held),
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
            self.behind.begin(owner.clone(), newest.clone());
        }
        self.started.insert(owner.clone());
        if self.quota.is_some() && self.started.len() > quota::OWNERS {
            let many = format!("more than {} owners", quota::OWNERS);
            return Err(IntakeError::Unexpected(many));
        }
        let whole = !start.same && !start.delta;
        self.collecting = Some(Collecting::new(owner, current, whole, newest));
        Ok(())
    }

    fn batch(&mut self, batch: wire::Batch, held: &Replica) -> Result<Step, IntakeError> {
        let collected = self.collecting.as_ref().map(|of| of.owner.clone());
        let usage = self.running.take();
        let mut usage = usage.unwrap_or_else(|| self.held_but_of(collected.as_ref(), held));
        let items: Vec<Item> =
            batch.items.into_iter().filter_map(|item| self.item(item, held)).collect();
        self.make_room(&items, held, &mut usage);
        for item in items {
            self.take(item, held, &mut usage);
        }
        self.running = Some(usage);
        // Removals, too, and what comes twice.
        let waiting = self.collecting.as_ref().map_or(self.pending.items.len(), Collecting::len);
        if let Some(Quota { records, .. }) = self.quota.filter(|quota| waiting > 2 * quota.records)
        {
            let many = format!("a change of more than {} records", 2 * records);
            return Err(IntakeError::Unexpected(many));
        }
        if self.collecting.is_some() || batch.more {
            self.bounded()?;
            return Ok(Step::default());
        }
        self.waiting = 0;
        let newest = |owner: &Owner| held.holding(owner)?.newest();
        self.behind.settle(newest).map_err(|owner| IntakeError::CaughtUp { owner })?;
        let position = Some(batch.position);
        self.running = None;
        Ok(Step { batch: std::mem::take(&mut self.pending), position, synced: false })
    }

    /// Nothing, if it comes from before what is held, or may not come. A kind that only a newer
    /// version knows is left out too: levels keep writers from using it before all can read it.
    fn item(&mut self, item: wire::Item, held: &Replica) -> Option<Item> {
        let key = match item.key.parse::<Key>() {
            Ok(key) => key,
            Err(error) => return self.unreadable(&item.key, &error),
        };
        let in_turn =
            self.collecting.as_ref().is_none_or(|collecting| collecting.owner == key.owner);
        if !self.accepts(&key.owner) || !in_turn {
            let why = format!("belongs to {}, of whom it is not to be told here", key.owner);
            self.left_out.count(Reason::Owner, &item.key, &why);
            return None;
        }
        if self.is_one_too_many(&key.owner, held) {
            let why = format!("{} would be one of more than {} owners", key.owner, quota::OWNERS);
            self.left_out.count(Reason::Quota, &item.key, &why);
            return None;
        }
        let size = item.key.len() + item.value.as_ref().map_or(0, Bytes::len);
        let known = key.kind.since_level() <= held.reads_level();
        if !known || size > MAX_RECORD_BYTES {
            self.cannot_hold(key, known, size);
            return None;
        }
        if let Some(value) = item.value {
            // What is collected is compared as a whole.
            let stale = self.collecting.is_none() && self.is_stale(&key, &value, held);
            return (!stale).then_some((key, Some(value), None));
        }
        // One without a reason is still its owner's removal: it says so by sending it.
        let removal = Removal::from_wire(item.removal).unwrap_or(Removal::Unexplained);
        let epoch = item.epoch.and_then(|epoch| crate::record::epoch(Some(epoch)).ok());
        let removed = Removed { removal, sequence: item.sequence, epoch };
        // One that was not behind at the start only goes on from there: its removals are newer than
        // all that is held, whatever their number. They count within an epoch that they do not
        // name, and the first that is heard of an owner's next epoch may be a removal.
        let newest = held.holding(&key.owner).and_then(Holding::newest);
        let counts = self.collecting.is_some() || self.behind.removes(&key.owner, &removed, newest);
        counts.then_some((key, None, Some(removed)))
    }

    /// Kinds that are not known here are in no digest that is compared.
    fn unreadable(&mut self, key: &str, error: &InvalidKey) -> Option<Item> {
        let reason = Reason::of_unreadable(key);
        self.left_out.count(reason, key, &error.to_string());
        if let Some(collecting) = self.collecting.as_ref().filter(|_| reason != Reason::Kind) {
            self.left_out.lacks_unnamed(&collecting.owner);
        }
        None
    }

    /// Owners are known by their beginning at first; later ones come as they join.
    fn is_one_too_many(&mut self, owner: &Owner, held: &Replica) -> bool {
        if self.quota.is_none() || self.started.contains(owner) || held.holding(owner).is_some() {
            return false;
        }
        let full = self.started.len() >= quota::OWNERS;
        if !full {
            self.started.insert(owner.clone());
        }
        full
    }

    /// What is given out only once the rest of it has come takes up memory until then, also if each
    /// part takes the place of the one before.
    fn bounded(&self) -> Result<(), IntakeError> {
        match &self.quota {
            Some(quota) if self.waiting > quota.bytes => {
                let many = format!("a change of more than {} bytes", quota.bytes);
                Err(IntakeError::Unexpected(many))
            }
            _ => Ok(()),
        }
    }

    /// Kinds that are not known here are in no digest that is compared.
    fn cannot_hold(&mut self, key: Key, known: bool, size: usize) {
        if !known {
            let why = format!("kind {} is not known here", key.kind);
            self.left_out.count(Reason::Kind, &key.to_string(), &why);
            return;
        }
        let why = format!("has {size} bytes, more than the {MAX_RECORD_BYTES} that a store takes");
        self.left_out.count(Reason::Size, &key.to_string(), &why);
        self.left_out.lacks(&key, None);
        if let Some(collecting) = &mut self.collecting {
            collecting.leave_out(key);
        }
    }

    /// Whether a record that comes after the start is from before what is held, which has it in a
    /// newer version or knows it to be removed.
    fn is_stale(&mut self, key: &Key, value: &Bytes, held: &Replica) -> bool {
        if rewinds(key, value, held, None) {
            if !self.behind.contains(&key.owner) {
                self.gone_back.insert(key.owner.clone());
            }
            self.went_back(key);
            return true;
        }
        let Some(new) = Origin::of_value(value).map(|origin| origin.newest()) else { return false };
        // Also where the other side had nothing of the owner, and then had it from who knew less.
        if held.was_removed_since(key, &new) {
            self.went_back(key);
            return true;
        }
        if !self.behind.contains(&key.owner) {
            return false;
        }
        self.behind.shows(&key.owner, &new);
        let vouched = held.holding(&key.owner).and_then(|of| of.complete().get(&key.kind));
        if held.get(key).is_some() && vouched.is_some_and(|epoch| new.epoch.is_older_than(epoch)) {
            // The owner has confirmed what is held since.
            return true;
        }
        let known = held.holding(&key.owner).and_then(Holding::newest);
        let known = known.is_some_and(|known| new == *known || new.is_older_than(known));
        known && held.get(key).is_none()
    }

    /// One that is known to be behind says what is old.
    fn went_back(&mut self, key: &Key) {
        if !self.behind.contains(&key.owner) {
            self.left_out.went_back(key);
        }
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

    fn end(&mut self, end: wire::End, held: &Replica) -> Result<Step, IntakeError> {
        let owner: Owner = parse(&end.owner)?;
        let Ok(kind) = end.kind.parse::<Kind>() else {
            // Of a newer version. It vouches for records that this one cannot hold anyway.
            let why = "an end marker of a kind that is not known here";
            self.left_out.count(Reason::Kind, &end.kind, why);
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
                if self.behind.contains(&owner) || is_older(held, &owner, kind, &epoch) {
                    return Ok(Step::default());
                }
                // What came before may be what the owner has: it is compared under this word.
                if self.gone_back.remove(&owner) {
                    return Err(IntakeError::DigestMismatch { owner });
                }
                let newest = held.holding(&owner).and_then(Holding::newest);
                let counts = counts_absence(&owner, &epoch, newest);
                let absent = if counts { self.kept.absent(&owner, kind) } else { Vec::new() };
                let items = absent.into_iter().map(|key| (key, None)).collect();
                let whole = !self.left_out.has(&owner, kind);
                let complete = whole.then_some((owner, kind, epoch)).into_iter().collect();
                let batch = Batch { items, complete, ..Batch::default() };
                Ok(Step { batch, ..Step::default() })
            }
        }
    }

    /// Compares what was collected of an owner with what is held of it.
    fn finish(&mut self, held: &Replica) -> Batch {
        let Some(collected) = self.collecting.take() else { return Batch::default() };
        self.running = None;
        if !collected.current {
            return Batch::default();
        }
        let (gone, kept) = collected.absent(held);
        self.kept.insert(&collected.owner, kept);
        let ends = collected.complete(held);
        let newest = collected.newest.clone();
        let newest = newest.map(|newest| (collected.owner.clone(), newest)).into_iter().collect();
        let vouched = ends.iter().map(|(_, kind, epoch)| (*kind, epoch)).collect();
        let mut items = self.news(collected.items, &gone, &vouched, held);
        items.extend(gone.into_iter().map(|key| (key, None)));
        // Not all of it is here: who recovers from this one would take the rest for gone.
        let whole = |(owner, kind, _): &(Owner, Kind, Epoch)| !self.left_out.has(owner, *kind);
        let complete = ends.iter().filter(|end| whole(end)).cloned().collect();
        Batch { items, removed: collected.removed, complete, newest, ..Batch::default() }
    }

    fn compare(&mut self, digests: &wire::Digests, held: &Replica) -> Result<Step, IntakeError> {
        // An older server does not count what it does not know, nor would it have sent it.
        let level = digests.level.max(1);
        let usage = self.held_but_of(None, held);
        for theirs in &digests.owners {
            let owner: Owner = parse(&theirs.owner)?;
            let ours = held.holding(&owner);
            let ours = ours.map(|holding| self.kept.digest_beside(holding, &owner, level));
            let ours = ours.unwrap_or_default().to_bytes();
            let same = ours[..] == theirs.digest[..];
            // Known to differ: to subscribe anew would find the same, as long as it is so.
            let excused = self.behind.contains(&owner)
                || self.left_out.explains(&owner, self.quota.as_ref(), usage);
            if same {
                self.behind.end(&owner);
                self.left_out.complete(&owner);
            } else if self.accepts(&owner) && !excused {
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

/// Whether the owner's word on a kind is older than the one that is held.
fn is_older(held: &Replica, owner: &Owner, kind: Kind, epoch: &Epoch) -> bool {
    let held = held.holding(owner).and_then(|holding| holding.complete().get(&kind));
    held.is_some_and(|held| epoch.is_older_than(held))
}

/// Whether it is an older version of what is held that its owner has not confirmed since, by what it
/// `vouched` for.
fn rewinds(key: &Key, value: &Bytes, held: &Replica, vouched: Option<&Epoch>) -> bool {
    let Some(held) = held.get(key).filter(|held| held.value != *value) else { return false };
    let (Some(new), Some(origin)) = (Origin::of_value(value), held.origin()) else { return false };
    is_rewind(&new, origin) && !gives_way(key, origin, vouched)
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
