//! The region's side of a publish stream.
//!
//! Every transaction compares the mod revision of the session record, so that of two streams that
//! two replicas accepted, only the one accepted last commits anything. Nothing that the owner does
//! not say under an end marker is taken for gone, and nothing is acknowledged before it is
//! committed. One record that may not be written is refused by itself, with the reason; the rest
//! of its batch goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use prost::Message;

use super::{CLUSTER_KINDS, Caller, TAKEOVER_SILENCE, facts};
use crate::key::{Key, Kind};
use crate::names::{ClusterId, Owner, RegionName};
use crate::proto::federation as wire;
use crate::proto::federation::publish_request::Message as Request;
use crate::proto::federation::publish_response::Message as Response;
use crate::proto::{local, records};
use crate::record::{Body, Cluster, Epoch, Record, body_hash_of_value};
use crate::store::{self, Commit, Guard, KeyValue, Op, Store, StoreError, Txn};

mod admit;

/// Keys per `want` message.
const WANT_KEYS: usize = 1000;
/// More keys than this are not taken from one cluster, whatever it declares.
const MAX_KEYS: usize = 1_000_000;

/// Why a stream ends. Where it is the agent's fault, the words are for it to read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The caller may not publish for this cluster, now or ever.
    #[error("{0}")]
    Refused(String),
    /// The caller broke the protocol.
    #[error("protocol error: {0}")]
    Protocol(&'static str),
    /// Another stream was accepted for this cluster since.
    #[error("a later publish stream of {0} was accepted")]
    Superseded(Owner),
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
    /// What the owner holds, by its own word; built up by declaration and changes.
    present: BTreeSet<Key>,
    declared: BTreeMap<Key, Bytes>,
    phase: Phase,
    cluster: Option<Cluster>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Declaring,
    Supplying,
    Flowing,
}

impl Session {
    /// Takes a stream: records that it is the one that publishes for its cluster.
    ///
    /// `silent_for` is how long nothing new was heard of the cluster.
    ///
    /// # Errors
    /// When the caller may not publish for the cluster it names, when another cluster holds the
    /// id, when a newer incarnation was accepted, or when the store fails.
    pub async fn open(
        store: Arc<dyn Store>,
        region: &RegionName,
        caller: &Caller,
        hello: wire::PublishHello,
        silent_for: Duration,
        now: Timestamp,
    ) -> Result<Self, SessionError> {
        let owner = authorised(region, caller, &hello.cluster)?;
        let epoch = crate::record::epoch(hello.epoch)
            .map_err(|error| SessionError::Refused(format!("hello: {error}")))?;
        if hello.uid.is_empty() || hello.uid.len() > 256 {
            return Err(SessionError::Refused("hello: uid is not 1 to 256 characters long".into()));
        }
        let key = facts::session_key(&owner);
        let held = store::read(&*store, &key).await?;
        let recorded = held.as_ref().map(|entry| decode_session(&owner, entry)).transpose()?;
        let next = match &recorded {
            Some(recorded) => succeed(&owner, recorded, &hello.uid, &epoch, silent_for)?,
            None => local::Session {
                uid: hello.uid,
                joined_ms: now.as_millisecond(),
                number: 1,
                epoch: Some(records::Epoch { id: epoch.id.clone(), count: epoch.count }),
            },
        };
        let joined = Timestamp::from_millisecond(next.joined_ms).unwrap_or(now);
        let guard = Guard::ModRevision(key.clone(), held.map_or(0, |entry| entry.mod_revision));
        let txn =
            Txn { guards: vec![guard], ops: vec![Op::put(key.clone(), next.encode_to_vec())] };
        match store.commit(txn).await? {
            Commit::Done(revision) => Ok(Self {
                fence: Guard::ModRevision(key, revision),
                cluster: recorded_cluster(&*store, &owner).await?,
                store,
                owner,
                epoch,
                joined,
                present: BTreeSet::new(),
                declared: BTreeMap::new(),
                phase: Phase::Declaring,
            }),
            Commit::GuardFailed => Err(SessionError::Superseded(owner)),
        }
    }

    /// Whose records come in here.
    #[must_use]
    pub fn owner(&self) -> &Owner {
        &self.owner
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
                Ok(vec![self.change(changes, now).await?])
            }
            (Some(Request::Complete(complete)), Phase::Supplying | Phase::Flowing) => {
                Ok(vec![self.complete(complete).await?])
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
        for entry in state.entries {
            let Ok(key) = entry.key.parse::<Key>() else { continue };
            if key.owner == self.owner {
                self.declared.insert(key, entry.body_sha256);
            }
            // Leaving one out would make it look gone.
            if self.declared.len() > MAX_KEYS {
                return Err(SessionError::Refused(format!("more than {MAX_KEYS} records")));
            }
        }
        if !state.last {
            return Ok(Vec::new());
        }
        let (held, _) = store::list(&*self.store, &Key::owner_prefix(&self.owner)).await?;
        let held: BTreeMap<&str, Option<[u8; 32]>> = held
            .iter()
            .map(|entry| (entry.key.as_str(), body_hash_of_value(&entry.value)))
            .collect();
        let lacks = |(key, hash): &(&Key, &Bytes)| {
            let held = held.get(key.to_string().as_str()).copied().flatten();
            held.is_none_or(|held| held[..] != hash[..])
        };
        let wanted: Vec<String> =
            self.declared.iter().filter(lacks).map(|(key, _)| key.to_string()).collect();
        self.present = std::mem::take(&mut self.declared).into_keys().collect();
        self.phase = Phase::Supplying;
        Ok(want(&wanted))
    }

    async fn change(
        &mut self,
        changes: wire::Changes,
        now: Timestamp,
    ) -> Result<wire::PublishResponse, SessionError> {
        let mut ops = Vec::new();
        let mut refused = Vec::new();
        let mut seen = BTreeSet::new();
        for put in changes.puts {
            match self.admit(&put, now) {
                // Twice in one batch: the transaction takes a key once, and neither is the newer.
                Ok(key) if !seen.insert(key.clone()) => {
                    refused.push(refusal(put.key, "stands twice in one batch".to_owned()));
                }
                Ok(key) => {
                    self.present.insert(key);
                    ops.push(Op::put(put.key, put.value));
                }
                Err(reason) => refused.push(refusal(put.key, reason)),
            }
        }
        for tombstone in changes.tombstones {
            match self.own_key(&tombstone.key) {
                Ok(key) if seen.insert(key.clone()) => {
                    self.present.remove(&key);
                    ops.push(Op::delete(tombstone.key));
                }
                Ok(_) => {
                    refused.push(refusal(tombstone.key, "stands twice in one batch".to_owned()));
                }
                Err(reason) => refused.push(refusal(tombstone.key, reason)),
            }
        }
        self.commit(ops).await?;
        Ok(response(Response::Ack(wire::Ack { batch: changes.batch, refused })))
    }

    /// What is held beyond what the owner declared and sent is gone: the one place where absence
    /// speaks, under an end marker of the epoch that was just accepted as the newest.
    async fn complete(
        &mut self,
        complete: wire::Complete,
    ) -> Result<wire::PublishResponse, SessionError> {
        let named = complete.kinds.iter().filter_map(|kind| kind.parse().ok());
        let kinds: BTreeSet<Kind> = named.filter(|kind| CLUSTER_KINDS.contains(kind)).collect();
        let (held, _) = store::list(&*self.store, &Key::owner_prefix(&self.owner)).await?;
        let gone = |entry: &KeyValue| {
            let key = entry.key.parse::<Key>().ok();
            key.is_some_and(|key| kinds.contains(&key.kind) && !self.present.contains(&key))
        };
        let deletes = held.iter().filter(|entry| gone(entry)).map(|entry| Op::delete(&entry.key));
        let mut ops: Vec<Op> = deletes.collect();
        ops.extend(kinds.iter().map(|kind| facts::complete_op(&self.owner, *kind, &self.epoch)));
        self.commit_in_order(ops).await?;
        self.phase = Phase::Flowing;
        Ok(response(Response::Ack(wire::Ack { batch: complete.batch, refused: Vec::new() })))
    }

    async fn commit(&self, ops: Vec<Op>) -> Result<(), SessionError> {
        commit_parts(&*self.store, &self.owner, &self.fence, store::split(ops)?).await
    }

    /// Deletes before the markers that vouch for them: a reader that sees the marker must have
    /// seen all it covers.
    async fn commit_in_order(&self, ops: Vec<Op>) -> Result<(), SessionError> {
        let (deletes, markers) = ops.into_iter().partition(|op| matches!(op, Op::Delete { .. }));
        self.commit(deletes).await?;
        self.commit(markers).await
    }
}

async fn commit_parts(
    store: &dyn Store,
    owner: &Owner,
    fence: &Guard,
    parts: Vec<Txn>,
) -> Result<(), SessionError> {
    for mut part in parts {
        part.guards.push(fence.clone());
        match store.commit(part).await? {
            Commit::Done(_) => {}
            Commit::GuardFailed => return Err(SessionError::Superseded(owner.clone())),
        }
    }
    Ok(())
}

/// The certificate says which cluster the caller is; the message must agree.
fn authorised(region: &RegionName, caller: &Caller, claimed: &str) -> Result<Owner, SessionError> {
    let refused = |why: String| Err(SessionError::Refused(why));
    let Caller::Agent { region: of, cluster } = caller else {
        return refused(format!("{caller} is no agent, and only agents publish"));
    };
    if of != region || !cluster.fits(region) {
        return refused(format!("{caller} belongs to region {of}, this is {region}"));
    }
    if claimed.parse::<ClusterId>().ok().as_ref() != Some(cluster) {
        return refused(format!("{caller} claims to publish for {claimed:?}"));
    }
    Ok(Owner::cluster(region.clone(), cluster.clone()))
}

/// Whether a known cluster's next stream may take over from the last one accepted.
fn succeed(
    owner: &Owner,
    recorded: &local::Session,
    uid: &str,
    epoch: &Epoch,
    silent_for: Duration,
) -> Result<local::Session, SessionError> {
    if recorded.uid != uid {
        return Err(SessionError::Refused(format!(
            "cluster id {owner} belongs to the cluster with UID {}, not to {uid}: give one of the two another id, \
             or let the first leave",
            recorded.uid
        )));
    }
    let held = crate::record::epoch(recorded.epoch.clone())
        .map_err(|error| StoreError::Damaged(format!("session of {owner}: {error}")))?;
    if epoch.is_older_than(&held) {
        return Err(SessionError::Refused(format!(
            "epoch {epoch} is older than {held}, which already publishes for {owner}"
        )));
    }
    if epoch.id != held.id && silent_for < TAKEOVER_SILENCE {
        return Err(SessionError::Refused(format!(
            "epoch {epoch} has another id than {held}, which was heard {} s ago: it takes over after {} s of silence",
            silent_for.as_secs(),
            TAKEOVER_SILENCE.as_secs()
        )));
    }
    Ok(local::Session {
        epoch: Some(records::Epoch { id: epoch.id.clone(), count: epoch.count }),
        number: recorded.number + 1,
        ..recorded.clone()
    })
}

fn decode_session(owner: &Owner, entry: &KeyValue) -> Result<local::Session, SessionError> {
    let session = local::Session::decode(entry.value.clone());
    session.map_err(|error| StoreError::Damaged(format!("session of {owner}: {error}")).into())
}

async fn recorded_cluster(store: &dyn Store, owner: &Owner) -> Result<Option<Cluster>, StoreError> {
    let key = Key::of_owner(owner.clone(), Kind::Cluster);
    let entry = store::read(store, &key.to_string()).await?;
    Ok(entry.and_then(|entry| match Record::open(&key, &entry.value).ok()?.body {
        Body::Cluster(cluster) => Some(cluster),
        _ => None,
    }))
}

fn want(keys: &[String]) -> Vec<wire::PublishResponse> {
    let message =
        |keys: &[String], last| response(Response::Want(wire::Want { keys: keys.to_vec(), last }));
    let mut messages: Vec<_> = keys.chunks(WANT_KEYS).map(|keys| message(keys, false)).collect();
    messages.push(message(&[], true));
    messages
}

fn refusal(key: String, reason: String) -> wire::RefusedRecord {
    wire::RefusedRecord { key, reason }
}

fn response(message: Response) -> wire::PublishResponse {
    wire::PublishResponse { message: Some(message) }
}
