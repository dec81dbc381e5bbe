//! An owner's own records: from what should be said to the changes that say it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;

use crate::key::{Key, Kind};
use crate::names::Owner;
use crate::record::{Body, Epoch, Export, Newest, Origin, Record, Removal, WRITES_LEVEL};
use crate::replica::{Batch, Removed};

/// Seals an owner's records, giving every change its (epoch, sequence). One per owner and process.
#[derive(Debug)]
pub struct OwnRecords {
    owner: Owner,
    epoch: Epoch,
    sequence: u64,
    level: u32,
    said: BTreeMap<Key, Arc<Body>>,
}

/// `desired` with the precedence of its exports bounded by the cluster's join, as the region
/// recorded it: a migrated cluster with old objects must not take over (MCS R30).
#[must_use]
pub fn with_join(
    desired: &BTreeMap<Key, Arc<Body>>,
    joined: Option<Timestamp>,
) -> BTreeMap<Key, Arc<Body>> {
    let bounded = |body: &Arc<Body>| match &**body {
        Body::Export(export) => {
            let oldest = joined.unwrap_or(Timestamp::UNIX_EPOCH);
            let precedence = export.created.map_or(oldest, |created| created.max(oldest));
            Arc::new(Body::Export(Export { precedence, ..export.clone() }))
        }
        _ => Arc::clone(body),
    };
    desired.iter().map(|(key, body)| (key.clone(), bounded(body))).collect()
}

impl OwnRecords {
    /// Has said nothing yet in `epoch`.
    #[must_use]
    pub fn new(owner: Owner, epoch: Epoch) -> Self {
        Self { owner, epoch, sequence: 0, level: WRITES_LEVEL, said: BTreeMap::new() }
    }

    /// Everything is to be said again. The sequence goes on: what was said counts as older.
    pub fn forget(&mut self) {
        self.said.clear();
    }

    /// From now on writes at `level`. What was said at another stands: its body is the same.
    pub fn set_level(&mut self, level: u32) {
        self.level = level.clamp(1, WRITES_LEVEL);
    }

    /// Whether `body` stands under `key`.
    #[must_use]
    pub fn has_said(&self, key: &Key, body: &Body) -> bool {
        self.said.get(key).is_some_and(|said| **said == *body)
    }

    /// Who the owner is.
    #[must_use]
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The changes from what was said to what `desired` says, beacons apart. Keys of other owners
    /// are left out: nobody can speak for them. What goes without one of the `reasons` goes because
    /// its owner says so, and what has one goes even if it was an earlier process that said it.
    pub fn reconcile(
        &mut self,
        desired: &BTreeMap<Key, Arc<Body>>,
        reasons: &BTreeMap<Key, Removal>,
    ) -> Batch {
        let mut items = Vec::new();
        for (key, body) in desired {
            if key.owner == self.owner && !self.has_said(key, body) {
                items.push(self.say(key, body));
            }
        }
        let gone = |key: &&Key| {
            !desired.contains_key(*key) && key.kind != Kind::Beacon && key.owner == self.owner
        };
        let gone: BTreeSet<Key> =
            self.said.keys().chain(reasons.keys()).filter(gone).cloned().collect();
        let mut removed = BTreeMap::new();
        for key in gone {
            let reason = reasons.get(&key).copied().unwrap_or(Removal::Explained);
            self.said.remove(&key);
            removed.insert(key.clone(), self.remove(reason));
            items.push((key, None));
        }
        let newest =
            if items.is_empty() { Vec::new() } else { vec![(self.owner.clone(), self.newest())] };
        Batch { items, removed, newest, ..Batch::default() }
    }

    /// Numbers a removal.
    pub fn remove(&mut self, removal: Removal) -> Removed {
        self.sequence += 1;
        Removed { removal, sequence: self.sequence, epoch: Some(self.epoch.clone()) }
    }

    /// The newest change that was said.
    #[must_use]
    pub fn newest(&self) -> Newest {
        Newest { epoch: self.epoch.clone(), sequence: self.sequence }
    }

    /// Says one thing, whether or not it was said before.
    pub fn say(&mut self, key: &Key, body: &Arc<Body>) -> (Key, Option<Bytes>) {
        self.sequence += 1;
        let origin =
            Origin { epoch: self.epoch.clone(), sequence: self.sequence, ..Origin::default() };
        let record = Record { key: key.clone(), origin, body: (**body).clone() };
        self.said.insert(key.clone(), Arc::clone(body));
        (key.clone(), Some(record.seal_at(self.level).value))
    }

    /// Says that all of `kinds` was said.
    #[must_use]
    pub fn complete(&self, kinds: &[Kind]) -> Vec<(Owner, Kind, Epoch)> {
        let each = |kind: &Kind| (self.owner.clone(), *kind, self.epoch.clone());
        kinds.iter().map(each).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Namespace;

    #[test]
    fn only_differences_are_said() {
        let owner: Owner = "r/r-a".parse().unwrap();
        let key: Key = "/tombolo/v1/r/r-a/namespace/_/shop".parse().unwrap();
        let other: Key = "/tombolo/v1/r/r-b/namespace/_/shop".parse().unwrap();
        let body = Arc::new(Body::Namespace(Namespace::default()));
        let mut own = OwnRecords::new(owner, Epoch { id: "e".into(), count: 1 });

        let desired = BTreeMap::from([(key.clone(), Arc::clone(&body)), (other, body)]);
        let said = own.reconcile(&desired, &BTreeMap::new()).items;
        assert_eq!(said.len(), 1, "nobody speaks for another owner");
        let record = Record::open(&key, said[0].1.as_ref().unwrap()).unwrap();
        assert_eq!(record.origin.sequence, 1);
        assert!(own.reconcile(&desired, &BTreeMap::new()).is_empty());
        let gone = own.reconcile(&BTreeMap::new(), &BTreeMap::new());
        assert_eq!(gone.items, [(key, None)]);
    }

    #[test]
    fn what_goes_says_why_and_in_its_turn() {
        let key = |name: &str| -> Key {
            format!("/tombolo/v1/r/r-a/namespace/_/{name}").parse().unwrap()
        };
        let body = Arc::new(Body::Namespace(Namespace::default()));
        let mut own = OwnRecords::new("r/r-a".parse().unwrap(), Epoch { id: "e".into(), count: 1 });
        let desired = ["a", "b"].map(|name| (key(name), Arc::clone(&body)));
        own.reconcile(&desired.into(), &BTreeMap::new());
        // `c` was said by an earlier process, and `x` is not ours.
        let other: Key = "/tombolo/v1/r/r-b/namespace/_/x".parse().unwrap();
        let reasons = [
            (key("a"), Removal::Released),
            (key("c"), Removal::Approved),
            (other, Removal::Approved),
        ];
        let batch = own.reconcile(&BTreeMap::new(), &reasons.into());
        let epoch = Some(own.epoch.clone());
        let removed = |removal, sequence| Removed { removal, sequence, epoch: epoch.clone() };
        let expected = [
            (key("a"), removed(Removal::Released, 3)),
            (key("b"), removed(Removal::Explained, 4)),
            (key("c"), removed(Removal::Approved, 5)),
        ];
        assert_eq!(batch.removed, BTreeMap::from(expected));
        let item = own.say(&key("a"), &body).1.unwrap();
        let said = Record::open(&key("a"), &item).unwrap();
        assert_eq!(said.origin.sequence, 6, "what comes back is newer than its end");
        assert!(own.reconcile(&BTreeMap::from([(key("a"), body)]), &BTreeMap::new()).is_empty());
    }
}
