//! How changes of owners become transactions.
//!
//! Upserts first, deletes last, one service's records together, the markers that vouch for what
//! went before after it, and what belongs to all of it (a resume point) only in the last part.
//! Each part says of each owner in it up to which change it goes, what it
//! removes and why, and whether more follows, so that readers show a change whole.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::facts::{self, Said};
use crate::key::{Key, Kind};
use crate::names::Owner;
use crate::record::{Epoch, Newest, Origin};
use crate::replica::{Batch, Removed, Replica};
use crate::store::{self, Op, Room, StoreError, Txn};

/// Left for the fact that each part adds, with the names of all that it removes.
const SAID: Room = Room { ops: 1, bytes: 96 << 10 };
/// Key and value of a record together; more fits no transaction.
pub const MAX_RECORD_BYTES: usize = store::MAX_TXN_BYTES - SAID.bytes;

/// One owner's part of a change.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// New bytes, or `None` for removed.
    pub items: Vec<(Key, Option<Bytes>)>,
    /// What is known of the removals.
    pub removed: BTreeMap<Key, Removed>,
    /// The owner's newest change in it; without one the parts say nothing about themselves.
    pub newest: Option<Newest>,
    /// What is complete after it.
    pub complete: Vec<(Kind, Epoch)>,
    /// More of the same change comes in another call.
    pub more: bool,
}

impl Changes {
    /// The newest change that the items show. Removals do not name their epoch: those count of which
    /// `epoch_of` knows it.
    #[must_use]
    pub fn newest_of<'a>(
        items: &[(Key, Option<Bytes>)],
        removed: &BTreeMap<Key, Removed>,
        epoch_of: impl Fn(&Key) -> Option<&'a Epoch>,
    ) -> Option<Newest> {
        let put = |value: &Bytes| Origin::of_value(value).map(|origin| origin.newest());
        let of_puts = items.iter().filter_map(|(_, value)| put(value.as_ref()?));
        let of_removals = removed.iter().filter(|(_, removed)| removed.sequence > 0);
        let of_removals = of_removals.filter_map(|(key, removed)| {
            Some(Newest { epoch: epoch_of(key)?.clone(), sequence: removed.sequence })
        });
        of_puts.chain(of_removals).reduce(
            |newest, next| {
                if newest.is_older_than(&next) { next } else { newest }
            },
        )
    }

    /// Lets the parts say at least what is `held` of the owner, which all of them follow on. A
    /// removal of a record from before the owner's restart shows no newest change: without one,
    /// nobody would learn why it went, nor that more follows.
    pub fn follow_on(&mut self, held: Option<&Newest>) {
        let Some(held) = held.filter(|_| !self.items.is_empty()) else { return };
        if self.newest.as_ref().is_none_or(|newest| newest.is_older_than(held)) {
            self.newest = Some(held.clone());
        }
    }
}

/// In which epoch a record goes that `held` has: in its owner's newest, if it is of that itself. One
/// from before may have gone in any epoch since; to take that for the newest would make the owner's
/// word count for nothing until it has come to the same number again.
pub(super) fn epoch_of_removal<'a>(held: &'a Replica, key: &Key) -> Option<&'a Epoch> {
    let newest = &held.holding(&key.owner)?.newest()?.epoch;
    (held.get(key)?.origin()?.epoch == *newest).then_some(newest)
}

/// Sorts a batch by owner. Where it does not tell an owner's newest change, what it has shows it,
/// removals in the epoch that `epoch_of` knows.
#[must_use]
pub fn by_owner<'a>(
    batch: Batch,
    epoch_of: impl Fn(&Key) -> Option<&'a Epoch>,
) -> BTreeMap<Owner, Changes> {
    let mut owners: BTreeMap<Owner, Changes> = BTreeMap::new();
    for (key, value) in batch.items {
        let changes = owners.entry(key.owner.clone()).or_default();
        if let Some(removed) = batch.removed.get(&key) {
            changes.removed.insert(key.clone(), *removed);
        }
        changes.items.push((key, value));
    }
    for (owner, kind, epoch) in batch.complete {
        owners.entry(owner).or_default().complete.push((kind, epoch));
    }
    let mut told: BTreeMap<Owner, Newest> = batch.newest.into_iter().collect();
    for (owner, newest) in &told {
        owners.entry(owner.clone()).or_default().newest = Some(newest.clone());
    }
    for (owner, changes) in &mut owners {
        let known = |key: &Key| epoch_of(key).filter(|_| !told.contains_key(owner));
        let shown = Changes::newest_of(&changes.items, &changes.removed, known);
        changes.newest = match (told.remove(owner), shown) {
            (Some(told), Some(shown)) if told.is_older_than(&shown) => Some(shown),
            (Some(told), _) => Some(told),
            (None, shown) => shown,
        };
    }
    owners
}

/// The transactions that make `owners`' changes, in order; `last` goes with the last of them.
///
/// # Errors
/// [`StoreError::Refused`], naming a record that is too large for a store.
pub fn transactions(
    owners: BTreeMap<Owner, Changes>,
    last: Option<Op>,
) -> Result<Vec<Txn>, StoreError> {
    let mut txns: Vec<Txn> = Vec::new();
    for (owner, changes) in owners {
        for part in parts(&owner, changes)? {
            append(&mut txns, part);
        }
    }
    if let Some(last) = last {
        append(&mut txns, vec![last]);
    }
    Ok(txns)
}

/// Parts of one owner: cut between services, each with what it says about itself.
fn parts(owner: &Owner, changes: Changes) -> Result<Vec<Vec<Op>>, StoreError> {
    let Changes { mut items, removed, newest, complete, more } = changes;
    items.sort_by_cached_key(|(key, _)| key.service());
    let ops = items.into_iter().map(|(key, value)| match value {
        Some(value) => Op::put(key.to_string(), value),
        None => Op::delete(key.to_string()),
    });
    let service = |op: &Op| op.key().parse::<Key>().ok()?.service();
    let mut parts = store::split_in_groups(ops, SAID, service)?;
    let markers = complete.iter().map(|(kind, epoch)| facts::complete_op(owner, *kind, epoch));
    let markers: Vec<Op> = markers.collect();
    match parts.last_mut() {
        Some(last) if last.len() + markers.len() + SAID.ops <= store::MAX_OPS => {
            last.extend(markers);
        }
        _ => parts.push(markers),
    }
    let Some(newest) = newest else { return Ok(parts) };
    let count = parts.len();
    for (index, part) in parts.iter_mut().enumerate() {
        let more = more || index + 1 < count;
        let removed = part.iter().filter_map(|op| how(op, &removed)).collect();
        part.push(facts::said_op(owner, &Said { newest: newest.clone(), removed, more }));
    }
    Ok(parts)
}

fn how(op: &Op, removed: &BTreeMap<Key, Removed>) -> Option<(Key, Option<Removed>)> {
    let Op::Delete { key } = op else { return None };
    let key: Key = key.parse().ok()?;
    let removed = removed.get(&key).copied();
    Some((key, removed))
}

/// Many small changes share a transaction.
fn append(txns: &mut Vec<Txn>, ops: Vec<Op>) {
    let bytes = |ops: &[Op]| ops.iter().map(Op::bytes).sum::<usize>();
    match txns.last_mut() {
        Some(txn)
            if txn.ops.len() + ops.len() <= store::MAX_OPS
                && bytes(&txn.ops) + bytes(&ops) <= store::MAX_TXN_BYTES =>
        {
            txn.ops.extend(ops);
        }
        _ if ops.is_empty() => {}
        _ => txns.push(Txn { guards: Vec::new(), ops }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Removal;
    use crate::sync::facts::Fact;

    fn put(service: &str, part: usize) -> (Key, Option<Bytes>) {
        let key = format!("/tombolo/v1/r/r-a/endpoints/shop/{service}/{service}-{part}");
        (key.parse().unwrap(), Some(Bytes::from_static(b"v")))
    }

    fn facts_of(txn: &Txn) -> Vec<Fact> {
        let read = |op: &Op| match op {
            Op::Put { key, value, .. } => facts::read(key, value),
            Op::Delete { .. } => None,
        };
        txn.ops.iter().filter_map(read).collect()
    }

    fn epoch() -> Epoch {
        Epoch { id: "e".into(), count: 1 }
    }

    #[test]
    fn a_change_of_several_parts_says_so_in_each_and_vouches_in_the_last() {
        let mut items: Vec<_> = (0..300).map(|n| put(&format!("s{}", n % 100), n / 100)).collect();
        let gone = put("gone", 0).0;
        items.push((gone.clone(), None));
        let removed = [(gone.clone(), Removed { removal: Removal::Explained, sequence: 7 })].into();
        let newest = Some(Newest { epoch: epoch(), sequence: 7 });
        let complete = vec![(Kind::Endpoints, epoch())];
        let changes = Changes { items, removed, newest, complete, more: false };
        let owner: Owner = "r/r-a".parse().unwrap();
        let resume = facts::resume_op(&"eu".parse().unwrap(), 3);
        let txns = transactions([(owner, changes)].into(), Some(resume.clone())).unwrap();

        assert_eq!(txns.len(), 3);
        for (index, txn) in txns.iter().enumerate() {
            txn.check().unwrap();
            let last = index == 2;
            let facts = facts_of(txn);
            let said = facts.iter().find_map(|fact| match fact {
                Fact::Said(_, said) => Some(said),
                Fact::Complete(..) => None,
            });
            assert_eq!(said.unwrap().more, !last);
            assert_eq!(facts.len(), if last { 2 } else { 1 }, "markers come last");
            let services: Vec<_> =
                txn.ops.iter().filter_map(|op| op.key().parse::<Key>().ok()?.service()).collect();
            let together = services.windows(2).filter(|pair| pair[0] == pair[1]).count();
            assert!(last || together * 3 == services.len() * 2, "a service is cut");
        }
        assert_eq!(txns[2].ops.last(), Some(&resume));
        let deletes = txns[2].ops.iter().filter(|op| matches!(op, Op::Delete { .. })).count();
        assert_eq!(deletes, 1, "deletes last");
    }

    #[test]
    fn small_changes_of_many_owners_share_a_transaction() {
        let changes = |n: usize| {
            let owner: Owner = format!("r/r-{n}").parse().unwrap();
            let mut key = put("a", 0).0;
            key.owner = owner.clone();
            (owner, Changes { items: vec![(key, None)], ..Changes::default() })
        };
        let txns = transactions((0..100).map(changes).collect(), None).unwrap();
        assert_eq!(txns.len(), 1);
        assert!(transactions(BTreeMap::new(), None).unwrap().is_empty());
    }

    /// The owner restarted, and counts from the beginning: a removal of before is told late.
    #[test]
    fn a_removal_of_an_earlier_epoch_is_not_the_owners_newest_change() {
        let (key, _) = put("gone", 0);
        let owner = key.owner.clone();
        let at = |count, sequence| Newest { epoch: Epoch { id: "e".into(), count }, sequence };
        let removed = Removed { removal: Removal::Explained, sequence: 936 };
        let removal = |newest: Option<Newest>| Batch {
            items: vec![(key.clone(), None)],
            removed: [(key.clone(), removed)].into(),
            newest: newest.map(|newest| (owner.clone(), newest)).into_iter().collect(),
            ..Batch::default()
        };
        let holds = |count| {
            let origin = Origin { epoch: at(count, 1).epoch, ..Origin::default() };
            let body = crate::record::Body::Endpoints(crate::record::Endpoints::default());
            let value = crate::record::Record { key: key.clone(), origin, body }.seal().value;
            let (writer, _) = crate::replica::channel();
            let newest = vec![(owner.clone(), at(4, 27))];
            let items = vec![(key.clone(), Some(value))];
            writer.apply(Batch { items, newest, ..Batch::default() }, tokio::time::Instant::now());
            writer.current()
        };
        let says = |held: &Replica, batch| {
            let changes = by_owner(batch, |key| epoch_of_removal(held, key));
            changes[&owner].newest.clone()
        };
        assert_eq!(says(&holds(3), removal(Some(at(4, 28)))), Some(at(4, 28)), "as told");
        assert_eq!(says(&holds(3), removal(None)), None, "it may be of either");
        assert_eq!(says(&holds(4), removal(None)), Some(at(4, 936)), "it is of this one");

        let follows_on = |newest: Option<Newest>| {
            let mut changes =
                Changes { items: vec![(key.clone(), None)], newest, ..Changes::default() };
            changes.follow_on(Some(&at(4, 27)));
            changes.newest.unwrap()
        };
        assert_eq!(follows_on(None), at(4, 27), "it is told why it went");
        assert_eq!(follows_on(Some(at(4, 9))), at(4, 27), "nor does the owner's word go back");
        assert_eq!(follows_on(Some(at(5, 1))), at(5, 1));
        let anew = Newest { epoch: Epoch { id: "anew".into(), count: 1 }, sequence: 1 };
        assert_eq!(follows_on(Some(anew.clone())), anew);
    }
}
