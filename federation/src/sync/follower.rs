//! Store to replica: keeps a process's replica equal to its region's store.
//!
//! Lists once, watches from there, and lists anew whenever the watch cannot go on (compacted,
//! too slow, store away). A relist is compared as a whole and applied at once; while the store is
//! away the replica stays as it was and goes on serving.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::client;
use super::facts::{self, Fact};
use crate::key::{Key, LOCAL_PREFIX, PREFIX};
use crate::replica::{Batch, Replica, ReplicaWriter};
use crate::store::{self, Event, KeyValue, Revision, Store, StoreError, WatchEvent};

/// Follows all that Tombolo keeps.
const ALL: &str = "/tombolo/";

/// Follows `store` for ever; ends only when dropped.
///
/// # Errors
/// When the store is damaged: nothing that this process could do would mend it.
pub async fn follow(store: Arc<dyn Store>, writer: Arc<ReplicaWriter>) -> Result<(), StoreError> {
    let mut backoff = client::backoff();
    loop {
        match follow_once(&*store, &writer, &mut backoff).await {
            Err(error @ StoreError::Damaged(_)) => return Err(error),
            Err(error) => {
                warn!(%error, "the store cannot be followed, what was read last stays in use");
            }
            Ok(()) => debug!("the watch ended, listing anew"),
        }
        tokio::time::sleep(backoff.next().unwrap_or(client::MAX_BACKOFF)).await;
    }
}

async fn follow_once(
    store: &dyn Store,
    writer: &ReplicaWriter,
    backoff: &mut client::Backoff,
) -> Result<(), StoreError> {
    let (entries, revision) = store::list(store, ALL).await?;
    let batch = relisted(&writer.current(), entries, revision);
    info!(revision, changes = batch.items.len(), "read the store");
    writer.apply(batch, Instant::now());
    *backoff = client::backoff();
    let mut watch = store.watch(ALL, revision + 1).await?;
    while let Some(event) = watch.events.recv().await {
        match event {
            WatchEvent::Commit { revision, events } => {
                writer.apply(committed(revision, events), Instant::now());
            }
            WatchEvent::Progress { revision } => {
                let batch = Batch { position: Some(revision), ..Batch::default() };
                writer.apply(batch, Instant::now());
            }
            WatchEvent::Compacted { .. } => return Ok(()),
            WatchEvent::Ended(error) => return Err(error),
        }
    }
    Ok(())
}

/// What the listing says, and that what it does not say is gone: it is the store's own, complete
/// word, read at one revision.
fn relisted(held: &Replica, entries: Vec<KeyValue>, revision: Revision) -> Batch {
    let mut batch = Batch { position: Some(revision), ..Batch::default() };
    let mut listed = BTreeSet::new();
    for entry in entries {
        if let Some(key) = take(&mut batch, &entry.key, Some(entry.value)) {
            listed.insert(key);
        }
    }
    let records = held.owners().flat_map(|(_, holding)| holding.records());
    let gone = records.map(|(key, _)| key).filter(|key| !listed.contains(*key)).cloned();
    batch.items.extend(gone.map(|key| (key, None)).collect::<Vec<_>>());
    batch
}

fn committed(revision: Revision, events: Vec<Event>) -> Batch {
    let mut batch = Batch { position: Some(revision), ..Batch::default() };
    for event in events {
        match event {
            Event::Put(entry) => take(&mut batch, &entry.key, Some(entry.value)),
            Event::Delete { key, .. } => take(&mut batch, &key, None),
        };
    }
    batch
}

/// Adds what a stored entry means. Returns the key of a record.
fn take(batch: &mut Batch, key: &str, value: Option<Bytes>) -> Option<Key> {
    if key.starts_with(LOCAL_PREFIX) {
        if let Some(Fact::Complete(owner, kind, epoch)) = facts::read(key, &value?) {
            batch.complete.push((owner, kind, epoch));
        }
        return None;
    }
    if !key.starts_with(PREFIX) {
        return None;
    }
    match key.parse::<Key>() {
        Ok(parsed) => {
            batch.items.push((parsed.clone(), value));
            Some(parsed)
        }
        Err(error) => {
            warn!(%error, "the store has a key that is not a record's, it is left alone");
            None
        }
    }
}
