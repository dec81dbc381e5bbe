//! What the region says of itself, by its leader.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tracing::warn;

use super::leader::{Leader, LeaderError};
use super::own::OwnRecords;
use super::{BEACON_INTERVAL, chain, client};
use crate::key::{Key, Kind};
use crate::record::{Beacon, Body, Region};
use crate::replica::Batch;
use crate::store::StoreError;

/// Writes the region's own records, and its beacon every 5 s, for as long as the leadership holds.
///
/// # Errors
/// Only when the leadership is lost, or the store is damaged.
pub async fn speak_for_region(
    leader: Leader,
    own: Arc<Mutex<OwnRecords>>,
    region: Region,
) -> LeaderError {
    // Held for the term: the next one goes on with its sequence, so that nothing that it says is
    // older than what this one said.
    let mut own = own.lock().await;
    own.forget();
    let key = Key::of_owner(own.owner().clone(), Kind::Region);
    let region = Arc::new(Body::Region(region));
    let beacon_key = Key::of_owner(own.owner().clone(), Kind::Beacon);
    let mut first = true;
    let mut nonce = 0;
    let mut backoff = client::backoff();
    loop {
        let mut batch = Batch::default();
        if first {
            batch = own
                .reconcile(&BTreeMap::from([(key.clone(), Arc::clone(&region))]), &BTreeMap::new());
            batch.complete = own.complete(&super::REGION_KINDS);
        }
        nonce += 1;
        batch.items.push(own.say(&beacon_key, &Arc::new(Body::Beacon(Beacon { nonce }))));
        let wait = match leader.commit(batch, None).await {
            Ok(_) => {
                first = false;
                backoff = client::backoff();
                BEACON_INTERVAL
            }
            Err(LeaderError::Store(StoreError::Damaged(why))) => {
                return LeaderError::Store(StoreError::Damaged(why));
            }
            Err(error @ LeaderError::NotLeader) => return error,
            Err(error) => {
                warn!(error = chain(&error), "the region's own records could not be written");
                // Say everything again: what of the batch was committed is not known.
                own.forget();
                first = true;
                backoff.next().unwrap_or(Duration::from_secs(5))
            }
        };
        tokio::time::sleep(wait).await;
    }
}
