//! Who may publish, and what a stream begins with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use prost::Message;
use tokio::time::Instant;
use tracing::warn;

use super::{Phase, REVOKE_AFTER, Session, SessionError, Tally};
use crate::key::{Key, Kind};
use crate::names::{ClusterId, Owner, RegionName};
use crate::proto::federation as wire;
use crate::proto::local;
use crate::record::{Body, Cluster, Entitlement, Epoch, Newest, Record, Region};
use crate::replica::Replica;
use crate::store::{self, Commit, Guard, KeyValue, Op, Store, StoreError, Txn};
use crate::sync::quota::{self, Usage};
use crate::sync::{Caller, TAKEOVER_SILENCE, chain, facts};

/// What is known of a cluster and its region, apart from the store, when a stream opens.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    /// How long nothing new was heard of the cluster.
    pub silent_for: Duration,
    /// The newest that the region was heard to say of itself.
    pub region: Option<Newest>,
}

/// Which readable word of a region on itself `replica` holds.
#[must_use]
pub fn region_word(replica: &Replica, region: &RegionName) -> Option<Newest> {
    let entry = replica.get(&region_key(region))?;
    Some(entry.record.as_deref()?.origin.newest())
}

impl Session {
    /// Takes a stream: records that it is the one that publishes for its cluster.
    ///
    /// # Errors
    /// When the caller may not publish for the cluster it names, when another cluster holds the
    /// id, when a newer incarnation was accepted, while the store has not the region's newest word
    /// on itself, or when the store fails.
    pub async fn open(
        store: Arc<dyn Store>,
        region: &RegionName,
        caller: &Caller,
        hello: wire::PublishHello,
        heard: &Heard,
        now: Timestamp,
    ) -> Result<Self, SessionError> {
        let owner = authorised(region, caller, &hello.cluster)?;
        let epoch = crate::record::epoch(hello.epoch)
            .map_err(|error| SessionError::Refused(format!("hello: {error}")))?;
        // Operators of the region are shown it.
        let printable = !hello.uid.chars().any(char::is_control);
        if hello.uid.is_empty() || hello.uid.len() > 256 || !printable {
            let why = "hello: uid is not 1 to 256 bytes without control characters";
            return Err(SessionError::Refused(why.into()));
        }
        let key = facts::session_key(&owner);
        let held = store::read(&*store, &key).await?;
        let recorded = held.as_ref().and_then(|entry| recorded(&owner, entry));
        let said = region_record(&*store, region).await?;
        // A store that went back, and has not been given what it lost: what it says of entitlements
        // and members is not true any more.
        let stands = |(_, newest): &(Region, Newest)| {
            heard.region.as_ref().is_none_or(|heard| !newest.is_older_than(heard))
        };
        let (said, entitled) =
            said.filter(stands).ok_or_else(|| SessionError::Unsettled(owner.clone()))?;
        let next = match &recorded {
            Some(recorded) => succeed(&owner, recorded, &hello.uid, &epoch, heard.silent_for)?,
            // It cannot say whose the id is. The region may remember.
            None if held.is_some() => {
                refuse_another(&owner, &said, &hello.uid)?;
                first(&owner, &said, hello.uid, &epoch, now)
            }
            None => first(&owner, &said, hello.uid, &epoch, now),
        };
        let joined = Timestamp::from_millisecond(next.joined_ms).unwrap_or(now);
        let guard = Guard::ModRevision(key.clone(), held.map_or(0, |entry| entry.mod_revision));
        let txn =
            Txn { guards: vec![guard], ops: vec![Op::put(key.clone(), next.encode_to_vec())] };
        match store.commit(txn).await? {
            Commit::Done(revision) => Ok(Self {
                fence: Guard::ModRevision(key, revision),
                cluster: recorded_cluster(&*store, &owner).await?,
                entitlement: entitlement(&owner, &said),
                entitled,
                revoked: BTreeMap::new(),
                revoke_at: Instant::now() + REVOKE_AFTER,
                said: 0,
                store,
                owner,
                epoch,
                joined,
                present: BTreeSet::new(),
                declared: BTreeMap::new(),
                declaration: Usage::default(),
                held: BTreeMap::new(),
                usage: Usage::default(),
                quota: quota::CLUSTER,
                told: BTreeSet::new(),
                sequence: 0,
                removals: Arc::default(),
                tally: Tally::default(),
                phase: Phase::Declaring,
            }),
            Commit::GuardFailed => Err(SessionError::Superseded(owner)),
        }
    }
}

/// What the region says of itself in its own store, its members among it: that survives where
/// sessions were lost.
async fn region_record(
    store: &dyn Store,
    region: &RegionName,
) -> Result<Option<(Region, Newest)>, StoreError> {
    let key = region_key(region);
    let Some(entry) = store::read(store, &key.to_string()).await? else { return Ok(None) };
    // It says who is entitled to what: that it cannot be read entitles nobody.
    let record = Record::open(&key, &entry.value)
        .map_err(|error| StoreError::Damaged(format!("record {key}: {}", chain(&error))))?;
    match record.body {
        Body::Region(region) => Ok(Some((region, record.origin.newest()))),
        _ => Ok(None),
    }
}

fn region_key(region: &RegionName) -> Key {
    Key::of_owner(Owner::region(region.clone()), Kind::Region)
}

fn entitlement(owner: &Owner, region: &Region) -> Entitlement {
    let named = owner.cluster.as_ref().and_then(|cluster| region.entitlements.get(cluster));
    named.cloned().unwrap_or(Entitlement::All)
}

/// The first session in this store. A cluster that the region remembers as a member joined when it
/// says, not now.
fn first(
    owner: &Owner,
    region: &Region,
    uid: String,
    epoch: &Epoch,
    now: Timestamp,
) -> local::Session {
    let member = owner.cluster.as_ref().and_then(|cluster| region.members.get(cluster));
    let joined = member.filter(|member| member.uid == uid).map_or(now, |member| member.joined);
    local::Session {
        uid,
        joined_ms: joined.as_millisecond(),
        number: 1,
        epoch: Some(facts::epoch_to_wire(epoch)),
    }
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
    recorded: &Recorded,
    uid: &str,
    epoch: &Epoch,
    silent_for: Duration,
) -> Result<local::Session, SessionError> {
    if recorded.uid != uid {
        return Err(claimed(owner, &recorded.uid, uid));
    }
    let held = &recorded.epoch;
    if epoch.is_older_than(held) {
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
        uid: recorded.uid.clone(),
        joined_ms: recorded.joined_ms,
        number: recorded.number.saturating_add(1),
        epoch: Some(facts::epoch_to_wire(epoch)),
    })
}

/// The last session that was taken for a cluster.
struct Recorded {
    uid: String,
    joined_ms: i64,
    number: u64,
    epoch: Epoch,
}

/// Like any other local fact, one that cannot be read counts as never said: the cluster would be kept
/// out until somebody mends the key.
fn recorded(owner: &Owner, entry: &KeyValue) -> Option<Recorded> {
    let read = local::Session::decode(entry.value.clone()).ok().filter(|read| !read.uid.is_empty());
    let recorded = read.and_then(|local::Session { uid, joined_ms, number, epoch }| {
        let epoch = crate::record::epoch(epoch).ok()?;
        Some(Recorded { uid, joined_ms, number, epoch })
    });
    if recorded.is_none() {
        warn!(%owner, key = entry.key, "the session of a cluster cannot be read, it is written anew");
    }
    recorded
}

fn refuse_another(owner: &Owner, region: &Region, uid: &str) -> Result<(), SessionError> {
    let member = owner.cluster.as_ref().and_then(|cluster| region.members.get(cluster));
    match member.filter(|member| member.uid != uid) {
        Some(member) => Err(claimed(owner, &member.uid, uid)),
        None => Ok(()),
    }
}

fn claimed(owner: &Owner, holder: &str, uid: &str) -> SessionError {
    let (owner, holder, uid) = (owner.clone(), holder.to_owned(), uid.to_owned());
    SessionError::Claimed { owner, holder, uid }
}

async fn recorded_cluster(store: &dyn Store, owner: &Owner) -> Result<Option<Cluster>, StoreError> {
    let key = Key::of_owner(owner.clone(), Kind::Cluster);
    let entry = store::read(store, &key.to_string()).await?;
    Ok(entry.and_then(|entry| match Record::open(&key, &entry.value).ok()?.body {
        Body::Cluster(cluster) => Some(cluster),
        _ => None,
    }))
}
