//! The region's side of a publish stream.
//!
//! Every transaction compares the mod revision of the session record, so that of two streams that
//! two replicas accepted, only the one accepted last commits anything. Nothing is taken for gone
//! because it is not declared: what is held beyond the declaration is told to the owner, who alone
//! says what became of it. Nothing is acknowledged before it is committed. One record that may not
//! be written or removed is refused by itself, with the reason; the rest of its batch goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::Instant;

pub use self::open::{Heard, region_word};
pub use self::refusal::{Reason, Tally};
use self::refusal::{Refusal, acks};
pub use self::removals::RemovalWindows;
use self::removals::Removals;
use super::facts::Fact;
use super::quota::{Quota, Usage};
use super::transactions::{Changes, transactions};
use super::{CLUSTER_KINDS, TARGET_MESSAGE, facts, feed};
use crate::key::{Key, Kind};
use crate::names::Owner;
use crate::proto::federation as wire;
use crate::proto::federation::publish_request::Message as Request;
use crate::proto::federation::publish_response::Message as Response;
use crate::record::{
    Body, Cluster, Entitlement, Epoch, Newest, Origin, Record, Removal, body_hash_of_value,
};
use crate::replica::{Removed, Replica};
use crate::store::{self, Commit, Guard, KeyValue, Revision, Store, StoreError};

mod admit;
mod open;
mod refusal;
mod removals;

/// Keys per `want` message.
const WANT_KEYS: usize = 1000;
/// A narrower entitlement takes away what is held once it has stood for so long on one stream. While
/// a wider one is rolled out replica by replica, the lead may pass to one that still says the narrower
/// one, and what it takes away nobody guards.
pub(super) const REVOKE_AFTER: Duration = Duration::from_mins(5);
/// What is refused is named with at most so many bytes: the longest key is shorter.
const MAX_NAMED: usize = 1024;
/// What is refused is named in the answer: publishers of this project send a quarter of this.
const MAX_CHANGES: usize = 16_384;

/// Why a stream ends. Where it is the agent's fault, the words are for it to read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The caller may not publish for this cluster, now or ever.
    #[error("{0}")]
    Refused(String),
    /// The id belongs to another cluster.
    #[error(
        "cluster id {owner} belongs to the cluster with UID {holder}, not to {uid}: give one of the \
         two another id, or let the first leave. If it is the same one, whose \
         agent lost its state directory: give it the first UID as clusterUid"
    )]
    Claimed {
        /// The cluster that is claimed.
        owner: Owner,
        /// The UID of the one that holds it.
        holder: String,
        /// The UID of who claims it.
        uid: String,
    },
    /// The caller broke the protocol.
    #[error("protocol error: {0}")]
    Protocol(&'static str),
    /// Another stream was accepted for this cluster since, or the store is not as this one left it:
    /// it was restored, or what it had lost was written back.
    #[error("a later publish stream of {0} was accepted, or the store went back")]
    Superseded(Owner),
    /// The store has no word of the region itself yet.
    #[error("the region has not said yet what {0} is entitled to, try again")]
    Unsettled(Owner),
    /// The store did not do as told.
    #[error("the region's store failed")]
    Store(#[from] StoreError),
}

/// One accepted publish stream.
#[derive(Debug)]
pub struct Session {
    store: Arc<dyn Store>,
    owner: Owner,
    epoch: Epoch,
    joined: Timestamp,
    fence: Guard,
    /// When the owner's last word was written; 0: never. Each commit compares it, so that a store
    /// that went back is not taken for one that has what this stream committed.
    said: Revision,
    /// What the owner holds, by its own word; built up by declaration and changes.
    present: BTreeSet<Key>,
    declared: BTreeMap<Key, Declared>,
    declaration: Usage,
    /// What the store holds of it.
    held: BTreeMap<Key, Held>,
    /// How much that is, and may be.
    usage: Usage,
    pub(super) quota: Quota,
    /// What it was told of and had not declared.
    told: BTreeSet<Key>,
    /// Its newest change in this epoch.
    sequence: u64,
    removals: Arc<Mutex<Removals>>,
    tally: Tally,
    phase: Phase,
    cluster: Option<Cluster>,
    entitlement: Entitlement,
    /// The word of the region by which it is entitled to that.
    entitled: Newest,
    /// What is held and its owner is not entitled to any more, by the numbers under which the owner
    /// says it now.
    revoked: BTreeMap<Key, u64>,
    /// When those go.
    revoke_at: Instant,
}

/// What a record is by its owner's declaration.
#[derive(Debug)]
struct Declared {
    hash: [u8; 32],
    sequence: u64,
}

impl Declared {
    /// Whether it is another than the stored one, or the same said again since: the store went back
    /// to before its owner said that, and others may have seen it.
    fn is_news(&self, stored: &Bytes, epoch: &Epoch) -> bool {
        let declared = Newest { epoch: epoch.clone(), sequence: self.sequence };
        let older = || {
            let held = Origin::of_value(stored);
            self.sequence > 0 && held.is_some_and(|held| held.newest().is_older_than(&declared))
        };
        body_hash_of_value(stored).is_none_or(|held| held != self.hash) || older()
    }
}

/// What a session remembers of a stored record.
#[derive(Debug, Clone, Default)]
struct Held {
    newest: Option<Newest>,
    /// The addresses of its endpoints.
    addresses: BTreeSet<IpAddr>,
    /// What it counts for in its owner's quota.
    bytes: usize,
}

impl Held {
    fn of(key: &Key, value: &Bytes) -> Self {
        let newest = Origin::of_value(value).map(|origin| origin.newest());
        let record = (key.kind == Kind::Endpoints).then(|| Record::open(key, value).ok()).flatten();
        let addresses = match record.map(|record| record.body) {
            Some(Body::Endpoints(slice)) => slice.endpoints.iter().map(|e| e.address).collect(),
            _ => BTreeSet::new(),
        };
        Self { newest, addresses, bytes: key.to_string().len() + value.len() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Declaring,
    Supplying,
    Flowing,
}

impl Session {
    /// Whose records come in here.
    #[must_use]
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The same, with what went unexplained on earlier streams of the owner counted.
    #[must_use]
    pub fn continuing(mut self, windows: &RemovalWindows) -> Self {
        self.removals = windows.of(&self.owner);
        self
    }

    /// The same, which takes away after `delay` what is held that the owner is not entitled to any
    /// more.
    #[must_use]
    pub fn revoking_after(self, delay: Duration) -> Self {
        Self { revoke_at: Instant::now() + delay, ..self }
    }

    /// Whether the owner is entitled to the same by what `replica` holds of its region, or that is
    /// older than what the stream was taken by: a stream that outlives a change says too much or,
    /// worse, vouches for records that were refused.
    #[must_use]
    pub fn is_entitled_by(&self, replica: &Replica) -> bool {
        let Owner { region, cluster: Some(cluster) } = &self.owner else { return true };
        let older = || {
            let held = region_word(replica, region);
            held.is_some_and(|held| held.is_older_than(&self.entitled))
        };
        // While the region's record is away, what it said last stands.
        feed::entitlement(replica, region, cluster)
            .is_none_or(|said| said == self.entitlement || older())
    }

    /// What was refused and removed since this was last asked.
    pub fn take_tally(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }

    /// The first answer of the stream.
    #[must_use]
    pub fn accepted(&self) -> wire::PublishResponse {
        let joined_ms = self.joined.as_millisecond();
        response(Response::Accepted(wire::Accepted { joined_ms }))
    }

    /// Takes a message; what it returns is already true of the store.
    ///
    /// # Errors
    /// When the stream has to end; see [`SessionError`].
    pub async fn receive(
        &mut self,
        request: wire::PublishRequest,
        now: Timestamp,
    ) -> Result<Vec<wire::PublishResponse>, SessionError> {
        match (request.message, self.phase) {
            (Some(Request::State(state)), Phase::Declaring) => self.declare(state).await,
            (Some(Request::Changes(changes)), Phase::Supplying | Phase::Flowing) => {
                self.change(changes, now).await
            }
            (Some(Request::Complete(complete)), Phase::Supplying | Phase::Flowing) => {
                self.complete(complete).await
            }
            // Of a newer version: what this one needs, a newer one still sends.
            (None, _) => Ok(Vec::new()),
            (Some(Request::Hello(_)), _) => Err(SessionError::Protocol("a second hello")),
            (Some(Request::State(_)), _) => Err(SessionError::Protocol("state after its end")),
            (Some(Request::Changes(_)), _) => Err(SessionError::Protocol("changes before state")),
            (Some(Request::Complete(_)), _) => Err(SessionError::Protocol("complete out of turn")),
        }
    }

    async fn declare(
        &mut self,
        state: wire::State,
    ) -> Result<Vec<wire::PublishResponse>, SessionError> {
        // Twice what is taken, so that a cluster beyond its quota is told which records those are.
        let Quota { records, bytes, .. } = self.quota;
        let most = Quota { of: "declaration", records: 2 * records, bytes: bytes / 4 };
        for entry in state.entries {
            let Ok(key) = entry.key.parse::<Key>() else { continue };
            if key.owner != self.owner {
                continue;
            }
            // What is no digest is that of nothing. Copied: it would keep its whole message.
            let hash = <[u8; 32]>::try_from(&entry.body_sha256[..]).unwrap_or_default();
            let declared = Declared { hash, sequence: entry.sequence };
            if self.declared.insert(key, declared).is_none() {
                let room = self.declaration.put(&most, None, entry.key.len());
                room.map_err(|error| SessionError::Refused(format!("key {} {error}", entry.key)))?;
            }
        }
        if !state.last {
            return Ok(Vec::new());
        }
        // Before the listing: what is written in between is found when this stream commits.
        let said = store::read(&*self.store, &facts::said_key(&self.owner)).await?;
        // What is supplied first is older than what others have heard: the owner's word must not
        // go back behind that.
        self.sequence = said.as_ref().map_or(0, |entry| self.said_before(entry));
        self.said = said.as_ref().map_or(0, |entry| entry.mod_revision);
        let heard = self.heard_all_of(said).await?;
        let stored = self.list().await?;
        let wanted = self.declared.iter().filter(|(key, declared)| {
            let value = stored.get(*key);
            value.is_none_or(|value| declared.is_news(value, &self.epoch)) || !self.may_say(key)
        });
        let wanted: Vec<String> = wanted.map(|(key, _)| key.to_string()).collect();
        let lacked = self.declared.iter().filter(|(key, declared)| {
            declared.sequence == 0 && !stored.contains_key(*key) && self.may_say(key)
        });
        let lacked: Vec<String> = lacked.map(|(key, _)| key.to_string()).collect();
        self.present = std::mem::take(&mut self.declared).into_keys().collect();
        let held = |(key, value): (&Key, &Bytes)| (key.clone(), Held::of(key, value));
        self.held = stored.iter().map(held).collect();
        let bytes = self.held.values().map(|held| held.bytes).sum();
        self.usage = Usage { records: self.held.len(), bytes };
        let mut answers = self.surplus(&stored, &CLUSTER_KINDS);
        answers.extend(want(&wanted, heard.map(|heard| (lacked, heard))));
        self.phase = Phase::Supplying;
        Ok(answers)
    }

    /// The newest change of the owner that was taken before this stream, if the owner has said all
    /// that it had in the epoch of that.
    async fn heard_all_of(&self, said: Option<KeyValue>) -> Result<Option<Newest>, StoreError> {
        let fact = |entry: KeyValue| facts::read(&entry.key, &entry.value);
        let Some(Fact::Said(_, said)) = said.and_then(fact) else { return Ok(None) };
        let key = facts::complete_key(&self.owner, Kind::Cluster);
        match store::read(&*self.store, &key).await?.and_then(fact) {
            Some(Fact::Complete(_, _, epoch)) if epoch == said.newest.epoch && !said.more => {
                Ok(Some(said.newest))
            }
            _ => Ok(None),
        }
    }

    /// Up to which change the owner was heard in this epoch, by its last word in the store. A change
    /// that broke off says nothing of that: as an owner that begins with it, this one would vouch for
    /// parts that never came.
    fn said_before(&self, entry: &KeyValue) -> u64 {
        match facts::read(&entry.key, &entry.value) {
            Some(Fact::Said(_, said)) if !said.more && said.newest.epoch == self.epoch => {
                said.newest.sequence
            }
            _ => 0,
        }
    }

    async fn list(&self) -> Result<BTreeMap<Key, Bytes>, StoreError> {
        let (stored, _) = store::list(&*self.store, &Key::owner_prefix(&self.owner)).await?;
        let records =
            stored.into_iter().filter_map(|entry| Some((entry.key.parse().ok()?, entry.value)));
        Ok(records.collect())
    }

    /// Tells of what is stored and was not declared, each once. The beacon is nobody's surplus.
    fn surplus(
        &mut self,
        stored: &BTreeMap<Key, Bytes>,
        kinds: &[Kind],
    ) -> Vec<wire::PublishResponse> {
        let mut messages = Vec::new();
        let mut next = wire::Surplus::default();
        let mut size = 0;
        for (key, value) in stored {
            let wanted = kinds.contains(&key.kind) && key.kind != Kind::Beacon;
            if !wanted || self.present.contains(key) || !self.told.insert(key.clone()) {
                continue;
            }
            let key = key.to_string();
            size += key.len() + value.len();
            next.records.push(wire::Put { key, value: value.clone() });
            if size >= TARGET_MESSAGE {
                messages.push(response(Response::Surplus(std::mem::take(&mut next))));
                size = 0;
            }
        }
        if !next.records.is_empty() {
            messages.push(response(Response::Surplus(next)));
        }
        messages
    }

    async fn change(
        &mut self,
        changes: wire::Changes,
        now: Timestamp,
    ) -> Result<Vec<wire::PublishResponse>, SessionError> {
        if changes.puts.len() + changes.tombstones.len() > MAX_CHANGES {
            return Err(SessionError::Protocol("more than 16384 changes in one message"));
        }
        let mut taken: BTreeMap<Key, Option<Bytes>> = BTreeMap::new();
        let mut removed = BTreeMap::new();
        let mut refused = Vec::new();
        let base = self.removal_base(&changes.tombstones);
        let room = self.made_room(&changes);
        self.usage = self.usage - room;
        for put in changes.puts {
            let outcome = self.admit(&put, now).and_then(|key| once(&taken, key));
            let outcome = outcome.and_then(|key| self.admit_more(key, &put));
            match outcome {
                Ok(key) => drop(taken.insert(key, Some(put.value))),
                Err(why) => {
                    self.note_revoked(&put, &why);
                    refused.push(self.refuse(put.key, why));
                }
            }
        }
        // What comes counts before what goes: in slices of other names it is not lost.
        self.note_puts(&taken);
        // From here on each gives back its own.
        self.usage = self.usage + room;
        for tombstone in changes.tombstones {
            let key = self.own_key(&tombstone.key).and_then(|key| once(&taken, key));
            let outcome =
                key.and_then(|key| Ok((self.admit_removal(&key, &tombstone, base)?, key)));
            match outcome {
                Ok((removal, key)) => {
                    // At once: the next one is judged by what is left.
                    self.let_go(&key);
                    let sequence = tombstone.sequence;
                    self.tally.removed(removal);
                    removed.insert(key.clone(), self.removed(removal, sequence));
                    taken.insert(key, None);
                }
                Err(why) => refused.push(self.refuse(tombstone.key, why)),
            }
        }
        for (key, gone) in self.revoke(Instant::now()) {
            removed.insert(key.clone(), gone);
            taken.insert(key, None);
        }
        self.note_removals(&removed);
        if !taken.is_empty() {
            let items = taken.into_iter().collect();
            let newest = Some(self.newest());
            let changes =
                Changes { items, removed, newest, more: changes.more, ..Changes::default() };
            self.commit(changes).await?;
        }
        Ok(acks(changes.batch, refused))
    }

    /// Forgets a record that is held no more, and gives back its room.
    fn let_go(&mut self, key: &Key) -> Option<Held> {
        self.revoked.remove(key);
        self.held.remove(key).inspect(|held| self.usage.removed(held.bytes))
    }

    fn refuse(&mut self, key: String, why: Refusal) -> wire::RefusedRecord {
        self.tally.refused(why.reason);
        // What is refused may be anything, also in length.
        let key =
            if key.len() > MAX_NAMED { key.chars().take(MAX_NAMED / 4).collect() } else { key };
        let for_room = why.reason == Reason::Quota;
        wire::RefusedRecord { key, reason: why.text, for_room }
    }

    /// Before the commit: if that fails, the stream ends.
    fn note_puts(&mut self, taken: &BTreeMap<Key, Option<Bytes>>) {
        let puts = taken.iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
        for (key, value) in puts {
            let held = Held::of(key, value);
            let sequence = held.newest.as_ref().map_or(0, |newest| newest.sequence);
            self.sequence = self.sequence.max(sequence);
            self.present.insert(key.clone());
            self.held.insert(key.clone(), held);
        }
    }

    fn note_removals(&mut self, removed: &BTreeMap<Key, Removed>) {
        for (key, removed) in removed {
            self.present.remove(key);
            self.sequence = self.sequence.max(removed.sequence);
        }
    }

    fn removed(&self, removal: Removal, sequence: u64) -> Removed {
        Removed { removal, sequence, epoch: Some(self.epoch.clone()) }
    }

    fn newest(&self) -> Newest {
        Newest { epoch: self.epoch.clone(), sequence: self.sequence }
    }

    /// The owner has said all. What is found that it did not declare and was not told of came since
    /// (a store's loss that was made good): it is told of it, and says so again. What it was told
    /// of and says nothing about stays, refused.
    async fn complete(
        &mut self,
        complete: wire::Complete,
    ) -> Result<Vec<wire::PublishResponse>, SessionError> {
        let named = complete.kinds.iter().filter_map(|kind| kind.parse().ok());
        let kinds: BTreeSet<Kind> = named.filter(|kind| CLUSTER_KINDS.contains(kind)).collect();
        let kinds: Vec<Kind> = kinds.into_iter().collect();
        let stored = self.list().await?;
        let untold = self.surplus(&stored, &kinds);
        if !untold.is_empty() {
            return Ok(untold);
        }
        let silent = |key: &&Key| {
            kinds.contains(&key.kind) && key.kind != Kind::Beacon && !self.present.contains(*key)
        };
        let silent: Vec<String> = stored.keys().filter(silent).map(ToString::to_string).collect();
        let why = || Refusal::new(Reason::Silent, "is neither declared nor removed: it stays");
        let refused = silent.into_iter().map(|key| self.refuse(key, why())).collect();
        self.sequence = self.sequence.max(complete.sequence);
        let complete_kinds = kinds.iter().map(|kind| (*kind, self.epoch.clone())).collect();
        let newest = Some(self.newest());
        let changes = Changes { complete: complete_kinds, newest, ..Changes::default() };
        self.commit(changes).await?;
        self.phase = Phase::Flowing;
        // The next time it may know more.
        self.told.clear();
        Ok(acks(complete.batch, refused))
    }

    async fn commit(&mut self, changes: Changes) -> Result<(), SessionError> {
        let owners = BTreeMap::from([(self.owner.clone(), changes)]);
        for mut part in transactions(owners, None)? {
            part.guards.push(self.fence.clone());
            part.guards.push(Guard::ModRevision(facts::said_key(&self.owner), self.said));
            match self.store.commit(part).await? {
                Commit::Done(revision) => self.said = revision,
                Commit::GuardFailed => return Err(SessionError::Superseded(self.owner.clone())),
            }
        }
        Ok(())
    }
}

/// Twice in one batch: the transaction takes a key once, and neither is the newer.
fn once(taken: &BTreeMap<Key, Option<Bytes>>, key: Key) -> Result<Key, Refusal> {
    if taken.contains_key(&key) {
        return Err(Refusal::new(Reason::Twice, "stands twice in one batch"));
    }
    Ok(key)
}

/// What is wanted, and what is lacked of what the owner had said up to some change.
fn want(keys: &[String], lacked: Option<(Vec<String>, Newest)>) -> Vec<wire::PublishResponse> {
    let wanted =
        keys.chunks(WANT_KEYS).map(|keys| wire::Want { keys: keys.to_vec(), ..Default::default() });
    let mut messages: Vec<wire::Want> = wanted.collect();
    if let Some((lacked, heard)) = lacked {
        messages.extend(lacked.chunks(WANT_KEYS).map(|lacked| wire::Want {
            lacked: lacked.to_vec(),
            heard: Some(wire::Newest {
                epoch: Some(facts::epoch_to_wire(&heard.epoch)),
                sequence: heard.sequence,
            }),
            ..Default::default()
        }));
    }
    messages.push(wire::Want { last: true, ..Default::default() });
    messages.into_iter().map(|want| response(Response::Want(want))).collect()
}

fn response(message: Response) -> wire::PublishResponse {
    wire::PublishResponse { message: Some(message) }
}
