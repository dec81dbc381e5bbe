//! Keys and values of a region's local facts.
//!
//! Under [`LOCAL_PREFIX`]: who publishes (`session`), what is complete (`complete`), up to which
//! change an owner was heard (`said`), up to where peers were mirrored (`resume`), the store's own
//! identity (`founding`), what operators asked for (`ask`), who leads (`election`), by what a store is
//! known again (`mark`). Nobody else reads them and no mirror copies them. What does not parse counts as never said.

use bytes::Bytes;
use jiff::Timestamp;
use prost::Message;

use crate::key::{Key, Kind, LOCAL_PREFIX, PREFIX};
use crate::names::{Owner, RegionName};
use crate::proto::{local as wire, records};
use crate::record::{Decision, Epoch, Member, Newest, Removal};
use crate::replica::Removed;
use crate::store::Op;

/// A local fact, read from its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// An owner completed a kind in this epoch.
    Complete(Owner, Kind, Epoch),
    /// What the newest transaction of an owner said.
    Said(Owner, Said),
}

/// What a transaction that changes records of an owner says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// The newest change of the owner that is in it.
    pub newest: Newest,
    /// What it removes, and how, where that is known.
    pub removed: Vec<(Key, Option<Removed>)>,
    /// More transactions of the same change follow.
    pub more: bool,
}

impl Said {
    /// The removals as a replica keeps them.
    pub fn removals(&self) -> impl Iterator<Item = (Key, Removed)> {
        self.removed.iter().filter_map(|(key, removed)| Some((key.clone(), (*removed)?)))
    }
}

/// Where the publisher of `owner` is recorded.
#[must_use]
pub fn session_key(owner: &Owner) -> String {
    format!("{LOCAL_PREFIX}session/{owner}")
}

/// Below it, all sessions.
#[must_use]
pub fn sessions_prefix() -> String {
    format!("{LOCAL_PREFIX}session/")
}

/// Where the leader of the region is elected.
#[must_use]
pub fn election_key() -> String {
    format!("{LOCAL_PREFIX}election/leader")
}

/// Where the store says which one it is.
#[must_use]
pub fn founding_key() -> String {
    format!("{LOCAL_PREFIX}founding")
}

/// What is shorter was not drawn, but written by hand.
const MARK_BYTES: usize = 16;

/// Where the leader writes what no other store has (see [`history`](super::history)).
#[must_use]
pub fn mark_key() -> String {
    format!("{LOCAL_PREFIX}mark")
}

/// The operation that marks a commit; `drawn` is for this one attempt, and random.
#[must_use]
pub fn mark_op(drawn: String) -> Op {
    Op::put(mark_key(), drawn)
}

/// Whether this is what [`mark_op`] wrote.
#[must_use]
pub fn is_mark(key: &str, value: &[u8]) -> bool {
    key.strip_prefix(LOCAL_PREFIX) == Some("mark") && value.len() >= MARK_BYTES
}

/// Below it, what operators asked replicas for and the leader has not said yet.
#[must_use]
pub fn asks_prefix() -> String {
    format!("{LOCAL_PREFIX}ask/")
}

/// Below these are the records of a region and its clusters, and the facts about them.
#[must_use]
pub fn prefixes_of(region: &RegionName) -> [String; 3] {
    [
        format!("{PREFIX}{region}/"),
        format!("{LOCAL_PREFIX}complete/{region}/"),
        format!("{LOCAL_PREFIX}said/{region}/"),
    ]
}

/// Up to where `peer` was mirrored.
#[must_use]
pub fn resume_key(peer: &RegionName) -> String {
    format!("{LOCAL_PREFIX}resume/{peer}")
}

/// Reads what [`resume_op`] wrote; 0 for what does not parse.
#[must_use]
pub fn resume_position(value: &Bytes) -> u64 {
    wire::Resume::decode(value.clone()).map(|resume| resume.position).unwrap_or_default()
}

/// The operation that records up to where a peer was mirrored.
#[must_use]
pub fn resume_op(peer: &RegionName, position: u64) -> Op {
    Op::put(resume_key(peer), wire::Resume { position }.encode_to_vec())
}

/// Where it is recorded that `owner` completed `kind`.
#[must_use]
pub fn complete_key(owner: &Owner, kind: Kind) -> String {
    format!("{LOCAL_PREFIX}complete/{owner}/{kind}")
}

/// The operation that records that `owner` completed `kind`.
#[must_use]
pub fn complete_op(owner: &Owner, kind: Kind, epoch: &Epoch) -> Op {
    let value = wire::Complete { epoch: Some(epoch_to_wire(epoch)) }.encode_to_vec();
    Op::put(complete_key(owner, kind), value)
}

/// Where the newest change of `owner` is recorded.
#[must_use]
pub fn said_key(owner: &Owner) -> String {
    format!("{LOCAL_PREFIX}said/{owner}")
}

/// The operation that records what a transaction says about itself. One per owner and transaction.
#[must_use]
pub fn said_op(owner: &Owner, said: &Said) -> Op {
    let removed = said.removed.iter().map(|(key, removed)| wire::Removed {
        key: key.to_string(),
        removal: removed.map_or(0, |removed| removed.removal.to_wire()),
        sequence: removed.map(|removed| removed.sequence),
    });
    let value = wire::Said {
        epoch: Some(epoch_to_wire(&said.newest.epoch)),
        sequence: said.newest.sequence,
        removed: removed.collect(),
        more: said.more,
    };
    Op::put(said_key(owner), value.encode_to_vec())
}

/// An epoch as messages have it.
#[must_use]
pub fn epoch_to_wire(epoch: &Epoch) -> records::Epoch {
    records::Epoch { id: epoch.id.clone(), count: epoch.count }
}

/// Reads a fact that a replica holds; `None` for other facts, and for what does not parse, which
/// then counts as never said.
#[must_use]
pub fn read(key: &str, value: &Bytes) -> Option<Fact> {
    let path = key.strip_prefix(LOCAL_PREFIX)?;
    if let Some(owner) = path.strip_prefix("said/") {
        return Some(Fact::Said(owner.parse().ok()?, said(value)?));
    }
    let (owner, kind) = path.strip_prefix("complete/")?.rsplit_once('/')?;
    let complete = wire::Complete::decode(value.clone()).ok()?;
    let epoch = crate::record::epoch(complete.epoch).ok()?;
    Some(Fact::Complete(owner.parse().ok()?, kind.parse().ok()?, epoch))
}

/// The owner whose [`said_key`] this is: deleted when it has left.
#[must_use]
pub fn owner_of_said(key: &str) -> Option<Owner> {
    key.strip_prefix(LOCAL_PREFIX)?.strip_prefix("said/")?.parse().ok()
}

fn said(value: &Bytes) -> Option<Said> {
    let said = wire::Said::decode(value.clone()).ok()?;
    let removed = said.removed.into_iter().filter_map(|removed| {
        let sequence = removed.sequence.unwrap_or(said.sequence);
        let how = Removal::from_wire(removed.removal).map(|removal| Removed { removal, sequence });
        Some((removed.key.parse().ok()?, how))
    });
    let epoch = crate::record::epoch(said.epoch).ok()?;
    let newest = Newest { epoch, sequence: said.sequence };
    Some(Said { newest, removed: removed.collect(), more: said.more })
}

/// The store's own identity as it is written.
#[must_use]
pub fn founding_op(founding: &wire::Founding) -> Op {
    Op::put(founding_key(), founding.encode_to_vec())
}

/// Reads what [`founding_op`] wrote; `None` also for what has no id.
#[must_use]
pub fn founding(value: &Bytes) -> Option<wire::Founding> {
    wire::Founding::decode(value.clone()).ok().filter(|founding| !founding.id.is_empty())
}

/// What is known of the region's own words, as the store's own identity has it.
#[must_use]
pub fn past_to_wire(known: Option<&Newest>) -> wire::Past {
    wire::Past {
        epoch: known.map(|known| epoch_to_wire(&known.epoch)),
        sequence: known.map_or(0, |known| known.sequence),
    }
}

/// Reads what [`past_to_wire`] wrote.
#[must_use]
pub fn past(past: &wire::Past) -> Option<Newest> {
    let epoch = crate::record::epoch(past.epoch.clone()).ok()?;
    Some(Newest { epoch, sequence: past.sequence })
}

/// Where an operator's word waits for the leader.
#[must_use]
pub fn ask_key(id: &str) -> String {
    format!("{LOCAL_PREFIX}ask/{id}")
}

/// An operator's word, as it waits for the leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// What was decided.
    pub decision: Decision,
    /// To be taken back.
    pub withdraw: bool,
}

/// The operation that leaves a word for the leader.
#[must_use]
pub fn ask_op(id: &str, ask: &Ask) -> Op {
    let decision = Some(ask.decision.to_wire());
    let value = wire::Ask { decision, withdraw: ask.withdraw }.encode_to_vec();
    Op::put(ask_key(id), value)
}

/// Reads what [`ask_op`] wrote.
#[must_use]
pub fn ask(value: &Bytes) -> Option<Ask> {
    let ask = wire::Ask::decode(value.clone()).ok()?;
    let decision = Decision::from_wire(ask.decision?).ok()?;
    Some(Ask { decision, withdraw: ask.withdraw })
}

/// Below it, which regions were forgotten here.
#[must_use]
pub fn left_prefix() -> String {
    format!("{LOCAL_PREFIX}left/")
}

/// Where it is recorded that `region` was forgotten here.
#[must_use]
pub fn left_key(region: &RegionName) -> String {
    format!("{}{}", left_prefix(), Owner::region(region.clone()))
}

/// The operation that records which incarnation of `region` was forgotten here.
#[must_use]
pub fn left_op(region: &RegionName, incarnation: &str) -> Op {
    let value = wire::Left { incarnation: incarnation.to_owned() }.encode_to_vec();
    Op::put(left_key(region), value)
}

/// Reads what [`left_op`] wrote: the region and its incarnation.
#[must_use]
pub fn left(key: &str, value: &Bytes) -> Option<(RegionName, String)> {
    let owner: Owner = key.strip_prefix(&left_prefix())?.parse().ok()?;
    let left = wire::Left::decode(value.clone()).ok()?;
    owner.cluster.is_none().then_some((owner.region, left.incarnation))
}

/// The cluster that publishes, or did, by what a session recorded of it.
#[must_use]
pub fn member(key: &str, value: &Bytes) -> Option<(Owner, Member)> {
    let owner: Owner = key.strip_prefix(&sessions_prefix())?.parse().ok()?;
    let session = wire::Session::decode(value.clone()).ok()?;
    let joined = Timestamp::from_millisecond(session.joined_ms).ok()?;
    Some((owner, Member { uid: session.uid, joined }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(op: Op) -> (String, Bytes) {
        match op {
            Op::Put { key, value, .. } => (key, value),
            Op::Delete { .. } => panic!("not a put"),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let owner: Owner = "r/r-a".parse().unwrap();
        let epoch = Epoch { id: "e".into(), count: 4 };
        let (key, value) = written(complete_op(&owner, Kind::Export, &epoch));
        assert_eq!(key, "/tombolo/local/v1/complete/r/r-a/export");
        let complete = Fact::Complete(owner.clone(), Kind::Export, epoch.clone());
        assert_eq!(read(&key, &value), Some(complete));
        assert_eq!(read(&key, &Bytes::from_static(b"\xff")), None);
        assert_eq!(read("/tombolo/local/v1/complete/r", &value), None);

        let released = Removed { removal: Removal::Released, sequence: 3 };
        let removed = vec![
            ("/tombolo/v1/r/r-a/namespace/_/shop".parse().unwrap(), Some(released)),
            ("/tombolo/v1/r/r-a/namespace/_/pay".parse().unwrap(), None),
        ];
        let said = Said { newest: Newest { epoch, sequence: 9 }, removed, more: true };
        let (key, value) = written(said_op(&owner, &said));
        assert_eq!(read(&key, &value), Some(Fact::Said(owner.clone(), said.clone())));
        assert_eq!(owner_of_said(&key), Some(owner));
        let removals: Vec<Removed> = said.removals().map(|(_, removed)| removed).collect();
        assert_eq!(removals, [released], "by its own number");

        let mut before = wire::Said::decode(value).unwrap();
        before.removed.iter_mut().for_each(|removed| removed.sequence = None);
        let Some(Fact::Said(_, before)) = read(&key, &before.encode_to_vec().into()) else {
            panic!("{before:?}")
        };
        let numbers: Vec<u64> = before.removals().map(|(_, removed)| removed.sequence).collect();
        assert_eq!(numbers, [9], "as who wrote no numbers meant it");

        let region = "eu".parse().unwrap();
        let (key, value) = written(resume_op(&region, 7));
        assert_eq!((key, resume_position(&value)), (resume_key(&region), 7));
        assert_eq!(resume_position(&Bytes::from_static(b"\xff")), 0);
    }
}
