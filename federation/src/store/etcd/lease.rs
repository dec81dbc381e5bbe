//! Leases. One whose granting is asked for twice, because nobody knows about the first, is left to
//! run out.

use std::time::Duration;

use etcd_client::Client;

use super::failure::Refusal;
use super::members::{Members, Repeat};
use crate::store::{LeaseId, StoreError};

pub(super) async fn grant(members: &Members, ttl: Duration) -> Result<LeaseId, StoreError> {
    if ttl.is_zero() {
        return Err(StoreError::Refused("a lease of no time".to_owned()));
    }
    let whole = ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0));
    let seconds = i64::try_from(whole).unwrap_or(i64::MAX);
    let request = |client: Client| async move { client.lease_client().grant(seconds, None).await };
    let granted = members.call(Repeat::Freely, request).await?;
    Ok(LeaseId(granted.id().cast_unsigned()))
}

pub(super) async fn keep_alive(members: &Members, lease: LeaseId) -> Result<(), StoreError> {
    let id = lease.0.cast_signed();
    let request = |client: Client| async move { client.lease_client().keep_alive(id).await };
    let kept = members.call(Repeat::Freely, request).await;
    kept.map(drop).map_err(|refusal| named(refusal, lease))
}

/// If the first try was not answered and the second one finds no lease, then nobody can tell whether
/// there ever was one: that is told like a lease that ended.
pub(super) async fn revoke(members: &Members, lease: LeaseId) -> Result<(), StoreError> {
    let id = lease.0.cast_signed();
    let request = |client: Client| async move { client.lease_client().revoke(id).await };
    let revoked = members.call(Repeat::Freely, request).await;
    revoked.map(drop).map_err(|refusal| named(refusal, lease))
}

/// Which of `leases` does not exist: etcd does not say when it refuses a transaction.
pub(super) async fn missing(
    members: &Members,
    leases: &[LeaseId],
) -> Result<StoreError, StoreError> {
    for lease in leases {
        let id = lease.0.cast_signed();
        let request =
            |client: Client| async move { client.lease_client().time_to_live(id, None).await };
        match members.call(Repeat::Freely, request).await {
            Ok(left) if left.ttl() > 0 => {}
            Ok(_) | Err(Refusal::NoLease) => return Ok(StoreError::NoLease(*lease)),
            Err(refusal) => return Err(refusal.into()),
        }
    }
    let why = "etcd misses a lease of the transaction, yet has them all: try again";
    Ok(StoreError::Unavailable(why.to_owned()))
}

fn named(refusal: Refusal, lease: LeaseId) -> StoreError {
    match refusal {
        Refusal::NoLease => StoreError::NoLease(lease),
        other => other.into(),
    }
}
