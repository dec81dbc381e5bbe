//! What is saved and what is loaded: the same content, from a replica and for a replica.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;

use super::format::{Problem, malformed, misread};
use crate::key::{Key, Kind};
use crate::names::Owner;
use crate::proto::cache as wire;
use crate::record::{Epoch, Newest, Record};
use crate::replica::{Batch, Replica};

/// What a process serves, as of one moment, to be saved.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// What it holds.
    pub replica: Arc<Replica>,
    /// Named sections that come back as they are.
    pub extra: BTreeMap<String, Bytes>,
}

impl Snapshot {
    /// Of a process that serves what it holds.
    #[must_use]
    pub fn of(replica: Arc<Replica>) -> Self {
        Self { replica, extra: BTreeMap::new() }
    }
}

/// What was saved.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// Grows with every image.
    pub generation: u64,
    /// When it was saved, by the clock of that time.
    pub saved_at: Timestamp,
    /// The revision of the store that it is as of; 0 if there is none.
    pub position: u64,
    /// Of every owner.
    pub owners: BTreeMap<Owner, OwnerImage>,
    /// See [`Snapshot::extra`].
    pub extra: BTreeMap<String, Bytes>,
    /// Records and marks of kinds that only a newer version knows: they are not in the image.
    pub left_out: usize,
}

/// What was saved of one owner.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OwnerImage {
    /// When it was heard last.
    pub heard: Option<Timestamp>,
    /// See [`Holding::newest`](crate::replica::Holding::newest).
    pub newest: Option<Newest>,
    /// See [`Holding::complete`](crate::replica::Holding::complete).
    pub complete: BTreeMap<Kind, Epoch>,
    /// Ascending by key, beacons apart.
    pub records: Vec<RecordImage>,
}

/// One saved record.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordImage {
    /// Its key.
    pub key: Key,
    /// As it was received.
    pub value: Bytes,
    /// The bytes in use, where `value` was quarantined.
    pub good: Option<Bytes>,
}

impl Image {
    pub(super) fn new(generation: u64, saved_at: Timestamp, position: u64) -> Self {
        let (owners, extra) = (BTreeMap::new(), BTreeMap::new());
        Self { generation, saved_at, position, owners, extra, left_out: 0 }
    }

    pub(super) fn add_owner(&mut self, part: wire::Owner) -> Result<Owner, Problem> {
        let owner: Owner = part.owner.parse().map_err(|error| misread(&error))?;
        let heard = part.heard_unix_ms.map(Timestamp::from_millisecond);
        let heard = heard.transpose().map_err(|error| misread(&error))?;
        let mut complete = BTreeMap::new();
        for mark in part.complete {
            let epoch = Epoch { id: mark.epoch_id, count: mark.epoch_count };
            match mark.kind.parse::<Kind>() {
                Ok(kind) => _ = complete.insert(kind, epoch),
                Err(_) => self.left_out += 1,
            }
        }
        let newest = part.newest.map(|newest| Newest {
            epoch: Epoch { id: newest.epoch_id, count: newest.epoch_count },
            sequence: newest.sequence,
        });
        let image = OwnerImage { heard, newest, complete, records: Vec::new() };
        if self.owners.insert(owner.clone(), image).is_some() {
            return Err(malformed(format!("{owner} comes twice")));
        }
        Ok(owner)
    }

    pub(super) fn add_record(&mut self, owner: &Owner, part: wire::Record) -> Result<(), Problem> {
        let Ok(key) = part.key.parse::<Key>() else {
            self.left_out += 1;
            return Ok(());
        };
        if key.owner != *owner {
            return Err(malformed(format!("{key} among the records of {owner}")));
        }
        let record = RecordImage { key, value: part.value, good: part.good };
        self.owners.entry(owner.clone()).or_default().records.push(record);
        Ok(())
    }

    /// How many records it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.owners.values().map(|held| held.records.len()).sum()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What an owner had said, as far as it can be opened.
    #[must_use]
    pub fn records_of(&self, owner: &Owner) -> BTreeMap<Key, Arc<Record>> {
        let records = self.owners.get(owner).into_iter().flat_map(|held| &held.records);
        let open = |record: &RecordImage| {
            let good = record.good.as_ref().unwrap_or(&record.value);
            let opened = Record::open(&record.key, good).ok()?;
            Some((record.key.clone(), Arc::new(opened)))
        };
        records.filter_map(open).collect()
    }

    /// What makes an empty replica hold it. What cannot be opened is quarantined as ever, behind
    /// the bytes that were in use. `own` is who the process speaks for itself: its records are
    /// served, but it has yet to say in this life that they are all.
    #[must_use]
    pub fn into_batch(self, own: Option<&Owner>) -> Batch {
        let position = (self.position > 0).then_some(self.position);
        let mut batch = Batch { position, ..Batch::default() };
        for (owner, held) in self.owners {
            for RecordImage { key, value, good } in held.records {
                batch.items.extend(good.map(|good| (key.clone(), Some(good))));
                batch.items.push((key, Some(value)));
            }
            if own != Some(&owner) {
                batch.newest.extend(held.newest.map(|newest| (owner.clone(), newest)));
                let marks = held.complete.into_iter();
                batch.complete.extend(marks.map(|(kind, epoch)| (owner.clone(), kind, epoch)));
            }
        }
        batch
    }
}
