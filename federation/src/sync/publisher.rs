//! The agent's side of a publish stream.
//!
//! Declares the full state as (key, hash) pairs, supplies what the region lacks, says what became
//! of what the region holds beyond it (its owner's judgement, asked for by the caller), says that it
//! is complete, and lets changes flow from then on. Never starts before the cluster's own source is
//! complete: not yet known is not empty.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use jiff::Timestamp;

use self::without_room::WithoutRoom;
use super::TARGET_MESSAGE;
use crate::key::Key;
use crate::names::Owner;
use crate::proto::federation as wire;
use crate::proto::federation::publish_request::Message as Request;
use crate::proto::federation::publish_response::Message as Response;
use crate::proto::records;
use crate::record::{Epoch, Newest, READS_LEVEL, Removal, body_hash_of_value};
use crate::replica::{Change, Removed, Replica};

mod without_room;

/// What a publisher makes of a message.
#[derive(Debug, Default)]
pub struct Step {
    /// To be sent, in order.
    pub send: Vec<wire::PublishRequest>,
    /// The region took the stream, and recorded the cluster's join at this time.
    pub joined: Option<Timestamp>,
    /// Keys of the records that an acknowledged batch had: the region's word on them is new.
    pub settled: Vec<String>,
    /// Those of them that the region did not take, with its reasons.
    pub refused: Vec<wire::RefusedRecord>,
    /// All that was declared is committed.
    pub complete: bool,
    /// Records that the region holds and that were not declared: [`Publisher::judged`] goes on once
    /// it is known what became of them.
    pub surplus: Option<Vec<(Key, Bytes)>>,
    /// What the region lacks and knows to have been there, with `surplus`, which may be empty then.
    pub lacking: Option<Lacking>,
}

/// What a region lacks of what its owner declares, and up to which change it had heard all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lacking {
    /// Those of them that were said to no region in this epoch.
    pub keys: Vec<Key>,
    /// The newest change that the region had heard.
    pub heard: Newest,
}

/// Why a stream ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The region does not take this publisher.
    #[error("the region refuses this publisher: {0}")]
    Refused(String),
    /// The region broke the protocol.
    #[error("the region sent {0}")]
    Unexpected(&'static str),
}

/// What was said in this epoch, on whatever stream. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Said(Arc<Mutex<SaidSince>>);

#[derive(Debug, Default)]
struct SaidSince {
    /// The newest change of the first declaration. What is newer was not there then as it is now.
    first: Option<u64>,
    /// Of what was declared then, what was sent since, as long as it is there.
    sent: BTreeSet<Key>,
}

impl Said {
    fn since(&self) -> MutexGuard<'_, SaidSince> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SaidSince {
    /// Whether a region that has an older change than this of the record went back. It may have what
    /// an owner holds unchanged since before it started from an earlier epoch.
    fn names(&self, key: &Key, sequence: u64) -> bool {
        self.first.is_some_and(|first| sequence > first) || self.sent.contains(key)
    }
}

/// What a batch had.
#[derive(Debug, Default)]
struct Sent {
    keys: Vec<String>,
    /// How many of them were removals.
    gone: usize,
}

/// One publish stream of one cluster.
#[derive(Debug)]
pub struct Publisher {
    owner: Owner,
    uid: String,
    epoch: Epoch,
    phase: Phase,
    batch: u64,
    surplus: Vec<(Key, Bytes)>,
    lacking: Option<Lacking>,
    /// What each batch without an acknowledgement has.
    in_flight: BTreeMap<u64, Sent>,
    /// What the region had no room for.
    without_room: WithoutRoom,
    said: Said,
}

#[derive(Debug)]
enum Phase {
    Greeted,
    /// The region took the stream; the state is to be declared.
    Accepted,
    /// The state was declared from this view; what the region wants of it is collected.
    Declared(Arc<Replica>, Vec<Key>),
    /// The owner is asked about what the region holds beyond the declaration.
    Judging(Arc<Replica>, Vec<Key>),
    /// All values were sent, as the batch of this number says.
    Completing(Arc<Replica>, u64),
    /// Changes up to this view were sent.
    Flowing(Arc<Replica>),
}

impl Publisher {
    /// A publisher for `owner`'s records.
    #[must_use]
    pub fn new(owner: Owner, uid: String, epoch: Epoch) -> Self {
        Self {
            owner,
            uid,
            epoch,
            phase: Phase::Greeted,
            batch: 0,
            surplus: Vec::new(),
            lacking: None,
            in_flight: BTreeMap::new(),
            without_room: WithoutRoom::default(),
            said: Said::default(),
        }
    }

    /// The same after other streams of the epoch, which have said this.
    #[must_use]
    pub fn after(self, said: Said) -> Self {
        Self { said, ..self }
    }

    /// The first message of the stream.
    #[must_use]
    pub fn greet(&self) -> wire::PublishRequest {
        let cluster = self.owner.cluster.as_ref().map(ToString::to_string).unwrap_or_default();
        let epoch = records::Epoch { id: self.epoch.id.clone(), count: self.epoch.count };
        request(Request::Hello(wire::PublishHello {
            cluster,
            uid: self.uid.clone(),
            epoch: Some(epoch),
            reads_level: READS_LEVEL,
        }))
    }

    /// Takes a message of the region.
    ///
    /// # Errors
    /// When the stream has to end; see [`PublishError`].
    pub fn receive(
        &mut self,
        response: wire::PublishResponse,
        replica: &Arc<Replica>,
    ) -> Result<Step, PublishError> {
        // Of a newer version: what this one needs, a newer one still sends.
        let Some(message) = response.message else { return Ok(Step::default()) };
        match (message, &mut self.phase) {
            (Response::Refused(refused), _) => Err(PublishError::Refused(refused.reason)),
            (Response::Accepted(accepted), Phase::Greeted) => self.accepted(accepted),
            (Response::Want(want), Phase::Declared(view, wanted)) => {
                wanted.extend(want.keys.iter().filter_map(|key| key.parse().ok()));
                if let Some(heard) = want.heard.and_then(newest) {
                    let keys = want.lacked.iter().filter_map(|key| key.parse().ok());
                    let lacking = self.lacking.get_or_insert(Lacking { keys: Vec::new(), heard });
                    lacking.keys.extend(keys);
                }
                if !want.last {
                    return Ok(Step::default());
                }
                let (view, wanted) = (Arc::clone(view), std::mem::take(wanted));
                Ok(self.declared(view, wanted))
            }
            (Response::Surplus(surplus), Phase::Declared(..)) => {
                self.surplus.extend(records(surplus));
                Ok(Step::default())
            }
            // Found when everything had been said: it is asked about all the same.
            (Response::Surplus(surplus), Phase::Completing(view, _) | Phase::Flowing(view)) => {
                self.phase = Phase::Judging(Arc::clone(view), Vec::new());
                Ok(Step { surplus: Some(records(surplus).collect()), ..Step::default() })
            }
            (Response::Surplus(surplus), Phase::Judging(..)) => {
                Ok(Step { surplus: Some(records(surplus).collect()), ..Step::default() })
            }
            (Response::Ack(ack), _) => Ok(self.acknowledged(ack, replica)),
            (Response::Accepted(_), _) => Err(PublishError::Unexpected("a second acceptance")),
            (Response::Surplus(_), _) => Err(PublishError::Unexpected("surplus out of turn")),
            (Response::Want(_), _) => Err(PublishError::Unexpected("a want out of turn")),
        }
    }

    /// What is to be sent because the cluster's records may be different now.
    pub fn changed(&mut self, replica: &Arc<Replica>) -> Vec<wire::PublishRequest> {
        let Phase::Flowing(sent) = &self.phase else { return Vec::new() };
        let changes = replica.changes_since(sent.version);
        let changes = changes.unwrap_or_else(|| replica.differences(sent));
        let completed =
            |change: &Change| matches!(change, Change::Complete(of, _) if *of == self.owner);
        let newly_complete = changes.iter().any(completed);
        let own = changes.into_iter().filter_map(|change| match change {
            Change::Record(key) if key.owner == self.owner => Some(key),
            Change::Record(_) | Change::Complete(..) => None,
        });
        let sequence = self.sequence(replica);
        let values: Vec<(Key, Result<Bytes, Removed>)> = own
            .map(|key| {
                let value = replica.get(&key).map(|entry| entry.value.clone());
                // The replica forgets reasons after some thousand changes more. What is removed
                // there was removed by its owner.
                let epoch = Some(self.epoch.clone());
                let explained = Removed { removal: Removal::Explained, sequence, epoch };
                let value = value.ok_or_else(|| replica.removed(&key).unwrap_or(explained));
                (key, value)
            })
            .collect();
        self.phase = Phase::Flowing(Arc::clone(replica));
        let mut requests = self.changes(values);
        if newly_complete {
            requests.push(self.complete(replica));
        }
        requests
    }

    /// Declares the full state, once the region took the stream and what it said of the join has
    /// found its way into the exports' precedence.
    pub fn declare(&mut self, replica: &Arc<Replica>) -> Vec<wire::PublishRequest> {
        if !matches!(self.phase, Phase::Accepted) {
            return Vec::new();
        }
        let sequence = self.sequence(replica);
        let mut send = {
            let mut said = self.said.since();
            said.first.get_or_insert(sequence);
            declaration(&self.owner, replica, &said)
        };
        if let Some(wire::PublishRequest { message: Some(Request::State(state)) }) = send.last_mut()
        {
            state.last = true;
        }
        self.phase = Phase::Declared(Arc::clone(replica), Vec::new());
        send
    }

    fn accepted(&mut self, accepted: wire::Accepted) -> Result<Step, PublishError> {
        let joined = Timestamp::from_millisecond(accepted.joined_ms)
            .map_err(|_| PublishError::Unexpected("a join time that is no time"))?;
        self.phase = Phase::Accepted;
        Ok(Step { joined: Some(joined), ..Step::default() })
    }

    fn declared(&mut self, view: Arc<Replica>, wanted: Vec<Key>) -> Step {
        self.phase = Phase::Judging(view, wanted);
        let (surplus, lacking) = (std::mem::take(&mut self.surplus), self.lacking.take());
        if surplus.is_empty() && lacking.is_none() {
            return Step { send: self.judged(&BTreeMap::new()), ..Step::default() };
        }
        Step { surplus: Some(surplus), lacking, ..Step::default() }
    }

    /// What the owner says of the last [`Step::surplus`] and [`Step::lacking`]: these are gone, and
    /// why. Of the others it says nothing: they stay, or are sent.
    pub fn judged(&mut self, gone: &BTreeMap<Key, Removed>) -> Vec<wire::PublishRequest> {
        let Phase::Judging(view, wanted) = &mut self.phase else { return Vec::new() };
        let (view, wanted) = (Arc::clone(view), std::mem::take(wanted));
        let value = |key: &Key| Some((key.clone(), Ok(view.get(key)?.value.clone())));
        let owner = self.owner.clone();
        let wanted = wanted.iter().filter(|key| key.owner == owner && !gone.contains_key(*key));
        let values = wanted.filter_map(value);
        let gone = gone.iter().filter(|(key, _)| key.owner == owner);
        let gone = gone.map(|(key, removed)| (key.clone(), Err(removed.clone())));
        let mut send = self.changes(values.chain(gone).collect());
        send.push(self.complete(&view));
        self.phase = Phase::Completing(view, self.batch);
        send
    }

    /// Vouches for the kinds of which the source knows all; of the others nothing may go for not
    /// having been declared.
    fn complete(&mut self, view: &Replica) -> wire::PublishRequest {
        self.batch += 1;
        let known = view.holding(&self.owner).map(|holding| holding.complete().keys());
        let kinds = known.into_iter().flatten().map(ToString::to_string).collect();
        let sequence = self.sequence(view);
        request(Request::Complete(wire::Complete { batch: self.batch, kinds, sequence }))
    }

    /// The owner's newest change that this view has.
    fn sequence(&self, view: &Replica) -> u64 {
        let newest = view.holding(&self.owner).and_then(crate::replica::Holding::newest);
        newest.map_or(0, |newest| newest.sequence)
    }

    fn acknowledged(&mut self, ack: wire::Ack, replica: &Arc<Replica>) -> Step {
        let Sent { keys: settled, gone } = self.in_flight.remove(&ack.batch).unwrap_or_default();
        self.without_room.settled(&settled, gone, &ack.refused);
        let mut step = Step { settled, refused: ack.refused, ..Step::default() };
        if let Phase::Completing(view, batch) = &self.phase
            && *batch == ack.batch
        {
            self.phase = Phase::Flowing(Arc::clone(view));
            step.complete = true;
            step.send = self.changed(replica);
        }
        if let Phase::Flowing(sent) = &self.phase {
            let sent = Arc::clone(sent);
            step.send.extend(self.say_again(&sent));
        }
        step
    }

    /// What there was no room for, as much of it as has gone since. Of the view that was sent: what
    /// has changed after that is said anyway.
    fn say_again(&mut self, sent: &Replica) -> Vec<wire::PublishRequest> {
        let again = self.without_room.next(|key| sent.get(key).is_some());
        let value = |key: Key| Some((key.clone(), Ok(sent.get(&key)?.value.clone())));
        self.changes(again.into_iter().filter_map(value).collect())
    }

    /// Upserts first, deletes last, in messages of bounded size, of which all but the last say that
    /// more follows.
    fn changes(&mut self, values: Vec<(Key, Result<Bytes, Removed>)>) -> Vec<wire::PublishRequest> {
        {
            // What went is not declared any more: names come and go for as long as an agent runs.
            let sent = &mut self.said.since().sent;
            for (key, value) in &values {
                if value.is_ok() {
                    sent.insert(key.clone());
                } else {
                    sent.remove(key);
                }
            }
        }
        let (puts, tombstones): (Vec<_>, Vec<_>) =
            values.into_iter().partition(|(_, value)| value.is_ok());
        let mut messages = Vec::new();
        let mut next = wire::Changes::default();
        let mut size = 0;
        for (key, value) in puts.into_iter().chain(tombstones) {
            let key = key.to_string();
            size += key.len() + value.as_ref().map_or(0, Bytes::len);
            match value {
                Ok(value) => next.puts.push(wire::Put { key, value }),
                Err(Removed { removal, sequence, .. }) => {
                    let removal = removal.to_wire();
                    next.tombstones.push(wire::Tombstone { key, removal, sequence });
                }
            }
            if size >= TARGET_MESSAGE {
                messages.push(std::mem::take(&mut next));
                size = 0;
            }
        }
        if !next.puts.is_empty() || !next.tombstones.is_empty() {
            messages.push(next);
        }
        let last = messages.len().saturating_sub(1);
        let numbered = messages
            .into_iter()
            .enumerate()
            .map(|(index, changes)| self.numbered(wire::Changes { more: index < last, ..changes }));
        numbered.collect()
    }

    fn numbered(&mut self, changes: wire::Changes) -> wire::PublishRequest {
        self.batch += 1;
        let puts = changes.puts.iter().map(|put| &put.key);
        let keys = puts.chain(changes.tombstones.iter().map(|tombstone| &tombstone.key));
        let sent = Sent { keys: keys.cloned().collect(), gone: changes.tombstones.len() };
        self.in_flight.insert(self.batch, sent);
        request(Request::Changes(wire::Changes { batch: self.batch, ..changes }))
    }
}

/// What does not parse cannot be this owner's, and is the region's to mend.
fn records(surplus: wire::Surplus) -> impl Iterator<Item = (Key, Bytes)> {
    surplus.records.into_iter().filter_map(|put| Some((put.key.parse().ok()?, put.value)))
}

fn newest(heard: wire::Newest) -> Option<Newest> {
    let epoch = crate::record::epoch(heard.epoch).ok()?;
    Some(Newest { epoch, sequence: heard.sequence })
}

fn request(message: Request) -> wire::PublishRequest {
    wire::PublishRequest { message: Some(message) }
}

/// At least one message. The number of a change that the region was never told of would make it ask
/// for all that a restarted owner holds unchanged.
fn declaration(owner: &Owner, replica: &Replica, said: &SaidSince) -> Vec<wire::PublishRequest> {
    const ENTRIES: usize = 1000;
    let records: BTreeMap<_, _> = replica
        .holding(owner)
        .into_iter()
        .flat_map(super::super::replica::Holding::records)
        .collect();
    let entries: Vec<wire::KeyHash> = records
        .into_iter()
        .filter_map(|(key, entry)| {
            let hash = body_hash_of_value(&entry.value)?;
            let sequence = entry.origin().map_or(0, |origin| origin.sequence);
            let sequence = if said.names(key, sequence) { sequence } else { 0 };
            Some(wire::KeyHash {
                key: key.to_string(),
                body_sha256: hash.to_vec().into(),
                sequence,
            })
        })
        .collect();
    let state = |entries: &[wire::KeyHash]| {
        request(Request::State(wire::State { entries: entries.to_vec(), last: false }))
    };
    if entries.is_empty() { vec![state(&[])] } else { entries.chunks(ENTRIES).map(state).collect() }
}
