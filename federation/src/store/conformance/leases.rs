//! Leases, one behaviour per function.

use std::time::Duration;

use bytes::Bytes;

use super::{current, next, put, shown};
use crate::store::{Event, LeaseId, Op, Revision, Store, StoreError, Txn, Watch, WatchEvent, read};

/// The shortest that every store can do.
const TTL: Duration = Duration::from_secs(2);

fn leased(key: &str, lease: LeaseId) -> Op {
    Op::Put { key: key.to_owned(), value: Bytes::from_static(b"leased"), lease: Some(lease) }
}

/// The commit that deletes keys, from a watch of all.
async fn deletion(watch: &mut Watch) -> (Revision, Vec<String>) {
    loop {
        if let WatchEvent::Commit { revision, events } = next(watch).await {
            let deleted = |event: &Event| matches!(event, Event::Delete { .. });
            if events.iter().any(deleted) {
                return (revision, events.iter().map(|event| event.key().to_owned()).collect());
            }
        }
    }
}

/// In one commit, and nothing else.
pub async fn a_revoked_lease_takes_its_keys(store: &dyn Store) {
    let lease = store.grant_lease(TTL * 100).await.expect("grants");
    let other = store.grant_lease(TTL * 100).await.expect("grants");
    assert_ne!(lease, other);
    put(store, [leased("/b", lease), leased("/a", lease), leased("/other", other)]).await;
    let before = put(store, [Op::put("/none", "")]).await;
    store.revoke_lease(lease).await.expect("revokes");
    assert_eq!(shown(store, "/", None).await, Ok(vec!["/none=".into(), "/other=leased".into()]));
    assert_eq!(current(store).await, before + 1, "the keys go in one commit");
    let unknown = store.revoke_lease(lease).await;
    assert_eq!(unknown, Err(StoreError::NoLease(lease)));
    store.revoke_lease(other).await.expect("revokes");
}

/// Its keys go in one commit, and it is of no use any more.
pub async fn a_lease_runs_out(store: &dyn Store) {
    let start = current(store).await;
    let lease = store.grant_lease(TTL).await.expect("grants");
    let mut watch = store.watch("/", start + 1).await.expect("watches");
    let written = put(store, [leased("/a", lease), leased("/b", lease)]).await;
    let (revision, keys) = deletion(&mut watch).await;
    assert_eq!((revision, keys), (written + 1, vec!["/a".to_owned(), "/b".to_owned()]));
    let late = store.keep_alive(lease).await;
    assert_eq!(late, Err(StoreError::NoLease(lease)));
    let late = store.commit(Txn { guards: vec![], ops: vec![leased("/c", lease)] }).await;
    assert_eq!(late, Err(StoreError::NoLease(lease)));
}

/// Beyond its time.
pub async fn a_lease_lives_while_it_is_kept_alive(store: &dyn Store) {
    let lease = store.grant_lease(TTL).await.expect("grants");
    put(store, [leased("/kept", lease)]).await;
    for _ in 0..6 {
        tokio::time::sleep(TTL / 3).await;
        store.keep_alive(lease).await.expect("lives");
    }
    assert!(read(store, "/kept").await.expect("reads").is_some(), "after twice its time");
    store.revoke_lease(lease).await.expect("revokes");
}

/// For none, or for that of the last put; a deleted one too.
pub async fn an_overwritten_key_leaves_its_lease(store: &dyn Store) {
    let lease = store.grant_lease(TTL * 100).await.expect("grants");
    let heir = store.grant_lease(TTL * 100).await.expect("grants");
    put(store, ["/freed", "/deleted", "/inherited", "/held"].map(|key| leased(key, lease))).await;
    put(store, [Op::put("/freed", "plain"), Op::delete("/deleted"), leased("/inherited", heir)])
        .await;
    let before = put(store, [Op::put("/deleted", "plain")]).await;
    store.revoke_lease(lease).await.expect("revokes");
    let left = vec!["/deleted=plain".into(), "/freed=plain".into(), "/inherited=leased".into()];
    assert_eq!(shown(store, "/", None).await, Ok(left));
    assert_eq!(current(store).await, before + 1);
    store.revoke_lease(heir).await.expect("revokes");
    assert_eq!(read(store, "/inherited").await, Ok(None));
}

/// With the whole transaction.
pub async fn unknown_leases_are_refused(store: &dyn Store) {
    let lease = store.grant_lease(TTL).await.expect("grants");
    store.revoke_lease(lease).await.expect("revokes");
    let start = current(store).await;
    assert_eq!(store.keep_alive(lease).await, Err(StoreError::NoLease(lease)));
    let ops = vec![Op::put("/a", "1"), leased("/b", lease)];
    let refused = store.commit(Txn { guards: vec![], ops }).await;
    assert_eq!(refused, Err(StoreError::NoLease(lease)));
    assert_eq!(current(store).await, start, "nothing of it happened");
    let none = store.grant_lease(Duration::ZERO).await;
    assert!(matches!(none, Err(StoreError::Refused(_))), "{none:?}");
}
