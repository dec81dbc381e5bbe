//! The store as a page of code that is plainly right: every state it was ever in, kept whole.

use std::collections::{BTreeMap, BTreeSet};

use crate::store::{
    Commit, Event, Guard, KeyValue, LeaseId, Op, Page, Range, Revision, StoreError, Txn,
};

/// Every state since the beginning.
#[derive(Debug)]
pub struct Model {
    start: Revision,
    states: Vec<State>,
    oldest: Revision,
    leases: BTreeMap<LeaseId, BTreeSet<String>>,
}

#[derive(Debug, Default, Clone)]
struct State {
    entries: BTreeMap<String, KeyValue>,
    /// What led here.
    events: Vec<Event>,
}

impl Model {
    /// Of a store without keys that is at revision `start`.
    #[must_use]
    pub fn new(start: Revision) -> Self {
        Self { start, states: vec![State::default()], oldest: 0, leases: BTreeMap::new() }
    }

    /// The newest revision.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.start + self.states.len() as Revision - 1
    }

    /// The oldest revision that can be read.
    #[must_use]
    pub fn oldest(&self) -> Revision {
        self.oldest.max(self.start)
    }

    fn state(&self, revision: Revision) -> Option<&State> {
        let index = revision.checked_sub(self.start)?;
        self.states.get(usize::try_from(index).ok()?)
    }

    fn newest(&self) -> &State {
        self.states.last().expect("begins with one, loses none")
    }

    /// As [`crate::store::Store::range`].
    ///
    /// # Errors
    /// The same.
    pub fn range(&self, range: &Range) -> Result<Page, StoreError> {
        let revision = range.revision.unwrap_or(self.revision());
        if revision < self.oldest {
            return Err(StoreError::Compacted { wanted: revision, oldest: self.oldest });
        }
        let current = self.revision();
        let state = self.state(revision);
        let state = state.ok_or(StoreError::Future { wanted: revision, current })?;
        let mut entries: Vec<KeyValue> = state
            .entries
            .values()
            .filter(|entry| entry.key.starts_with(&range.prefix))
            .filter(|entry| range.after.as_ref().is_none_or(|after| entry.key > *after))
            .cloned()
            .collect();
        let more = entries.len() > range.limit;
        entries.truncate(range.limit);
        Ok(Page { entries, more, revision })
    }

    /// As [`crate::store::Store::commit`].
    ///
    /// # Errors
    /// The same.
    pub fn commit(&mut self, txn: &Txn) -> Result<Commit, StoreError> {
        txn.check()?;
        if !txn.guards.iter().all(|guard| self.holds(guard)) {
            return Ok(Commit::GuardFailed);
        }
        for op in &txn.ops {
            if let Op::Put { lease: Some(lease), .. } = op
                && !self.leases.contains_key(lease)
            {
                return Err(StoreError::NoLease(*lease));
            }
        }
        self.apply(&txn.ops);
        Ok(Commit::Done(self.revision()))
    }

    fn holds(&self, guard: &Guard) -> bool {
        let live = |key: &String| self.newest().entries.get(key);
        match guard {
            Guard::ModRevision(key, at) => live(key).map_or(0, |entry| entry.mod_revision) == *at,
            Guard::CreateRevision(key, at) => {
                live(key).map_or(0, |entry| entry.create_revision) == *at
            }
        }
    }

    fn apply(&mut self, ops: &[Op]) {
        let revision = self.revision() + 1;
        let mut entries = self.newest().entries.clone();
        let mut events = BTreeMap::new();
        for op in ops {
            let key = op.key().to_owned();
            let before = entries.remove(&key);
            for keys in self.leases.values_mut() {
                keys.remove(&key);
            }
            match op {
                Op::Put { value, lease, .. } => {
                    let create_revision = before.map_or(revision, |entry| entry.create_revision);
                    let entry = KeyValue {
                        key: key.clone(),
                        value: value.clone(),
                        create_revision,
                        mod_revision: revision,
                    };
                    if let Some(keys) = lease.and_then(|lease| self.leases.get_mut(&lease)) {
                        keys.insert(key.clone());
                    }
                    entries.insert(key.clone(), entry.clone());
                    events.insert(key, Event::Put(entry));
                }
                Op::Delete { .. } if before.is_some() => {
                    events.insert(key.clone(), Event::Delete { key, revision });
                }
                Op::Delete { .. } => {}
            }
        }
        if !events.is_empty() {
            self.states.push(State { entries, events: events.into_values().collect() });
        }
    }

    /// A lease that the store granted.
    pub fn granted(&mut self, lease: LeaseId) {
        self.leases.insert(lease, BTreeSet::new());
    }

    /// As [`crate::store::Store::revoke_lease`].
    ///
    /// # Errors
    /// The same.
    pub fn revoke(&mut self, lease: LeaseId) -> Result<(), StoreError> {
        let keys = self.leases.remove(&lease).ok_or(StoreError::NoLease(lease))?;
        self.apply(&keys.into_iter().map(Op::delete).collect::<Vec<_>>());
        Ok(())
    }

    /// As [`crate::store::Store::compact`].
    ///
    /// # Errors
    /// The same.
    pub fn compact(&mut self, oldest: Revision) -> Result<(), StoreError> {
        if oldest > self.revision() {
            return Err(StoreError::Future { wanted: oldest, current: self.revision() });
        }
        self.oldest = self.oldest.max(oldest);
        Ok(())
    }

    /// What a watch of `prefix` from `from` delivers up to `upto`.
    #[must_use]
    pub fn events(
        &self,
        prefix: &str,
        from: Revision,
        upto: Revision,
    ) -> Vec<(Revision, Vec<Event>)> {
        (from..=upto)
            .filter_map(|revision| Some((revision, self.state(revision)?)))
            .map(|(revision, state)| {
                let ours = |event: &&Event| event.key().starts_with(prefix);
                (revision, state.events.iter().filter(ours).cloned().collect::<Vec<_>>())
            })
            .filter(|(_, events)| !events.is_empty())
            .collect()
    }
}
