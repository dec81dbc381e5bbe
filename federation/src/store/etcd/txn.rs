//! Transactions.

use etcd_client::{Client, Compare, CompareOp, GetOptions, PutOptions, TxnOp};

use super::failure::Refusal;
use super::members::{Members, Repeat};
use super::{OURS, lease, signed, unsigned};
use crate::store::{Commit, Guard, LeaseId, Op, StoreError, Txn};

pub(super) async fn commit(members: &Members, txn: Txn) -> Result<Commit, StoreError> {
    txn.check()?;
    let leases = leases(&txn);
    let repeat = if txn.ops.is_empty() { Repeat::Freely } else { Repeat::Never };
    if repeat == Repeat::Never {
        members.warm(first_key(&txn)).await?;
    }
    let request = request(txn);
    let send = |mut client: Client| {
        let request = request.clone();
        async move { client.txn(request).await }
    };
    match members.call(repeat, send).await {
        Ok(response) if !response.succeeded() => Ok(Commit::GuardFailed),
        Ok(response) => {
            Ok(Commit::Done(response.header().map_or(0, |header| unsigned(header.revision()))))
        }
        Err(Refusal::NoLease) => Err(lease::missing(members, &leases).await?),
        Err(refusal) => Err(refusal.into()),
    }
}

fn first_key(txn: &Txn) -> &[u8] {
    txn.ops.first().map_or(OURS, Op::key).as_bytes()
}

fn leases(txn: &Txn) -> Vec<LeaseId> {
    let lease = |op: &Op| match op {
        Op::Put { lease, .. } => *lease,
        Op::Delete { .. } => None,
    };
    txn.ops.iter().filter_map(lease).collect()
}

fn request(txn: Txn) -> etcd_client::Txn {
    // Without a read that asks for it, etcd answers guards alone from the member's own state.
    let ask = txn.ops.is_empty().then(|| {
        let key = txn.guards.first().map_or(OURS, key_of);
        TxnOp::get(key, Some(GetOptions::new().with_count_only()))
    });
    let ops: Vec<TxnOp> = txn.ops.into_iter().map(operation).chain(ask).collect();
    let guards: Vec<Compare> = txn.guards.into_iter().map(compare).collect();
    etcd_client::Txn::new().when(guards).and_then(ops)
}

fn key_of(guard: &Guard) -> &str {
    match guard {
        Guard::ModRevision(key, _) | Guard::CreateRevision(key, _) => key,
    }
}

fn compare(guard: Guard) -> Compare {
    match guard {
        Guard::ModRevision(key, at) => Compare::mod_revision(key, CompareOp::Equal, signed(at)),
        Guard::CreateRevision(key, at) => {
            Compare::create_revision(key, CompareOp::Equal, signed(at))
        }
    }
}

fn operation(op: Op) -> TxnOp {
    match op {
        Op::Put { key, value, lease } => {
            let lease = lease.map(|lease| PutOptions::new().with_lease(lease.0.cast_signed()));
            TxnOp::put(key, Vec::from(value), lease)
        }
        Op::Delete { key } => TxnOp::delete(key, None),
    }
}
