//! The tables, the open file, and what redb's errors mean to a caller of the store.

use std::sync::{PoisonError, RwLock};

use bytes::Bytes;
use redb::{Database, ReadableTable, TableDefinition};

use crate::store::{Event, KeyValue, Revision, StoreError};

/// Every version of every key since the last compaction: (key, revision) -> what it was then.
pub(super) const HISTORY: TableDefinition<HistoryKey, HistoryValue> =
    TableDefinition::new("history");
/// What each commit touched, for watches and compaction: (revision, key).
pub(super) const CHANGES: TableDefinition<(u64, &str), ()> = TableDefinition::new("changes");
/// Which keys hang on which lease now: (lease, key).
pub(super) const LEASED: TableDefinition<(u64, &str), ()> = TableDefinition::new("leased");
/// The numbers below.
pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// How all of this is laid out.
pub(super) const FORMAT: &str = "format";
/// The newest revision.
pub(super) const REVISION: &str = "revision";
/// The oldest revision that can be read; 0 before the first compaction.
pub(super) const OLDEST: &str = "oldest";
/// How often the file was opened: no two openings give out the same lease.
pub(super) const OPENED: &str = "opened";

pub(super) type HistoryKey = (&'static str, u64);
/// Create revision, lease (0: none) and value; without a value the key was deleted.
pub(super) type HistoryValue = (u64, u64, Option<&'static [u8]>);

/// The open database; nothing once closed. Readers and the writer hold it only inside of blocking
/// work, so closing waits for no more than one of those.
pub(super) struct Disk(RwLock<Option<Database>>);

impl Disk {
    pub(super) fn new(database: Database) -> Self {
        Self(RwLock::new(Some(database)))
    }

    /// Blocks.
    pub(super) fn with<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        let open = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let database = open.as_ref().ok_or_else(closed)?;
        work(database).map_err(|failure| failure.0)
    }

    /// Blocks until what is being read or written is done.
    pub(super) fn close(&self) {
        drop(self.0.write().unwrap_or_else(PoisonError::into_inner).take());
    }
}

pub(super) fn closed() -> StoreError {
    StoreError::Unavailable("it is closed".to_owned())
}

/// A [`StoreError`] that `?` makes out of redb's many errors, without showing redb to callers.
#[derive(Debug)]
pub(super) struct Failure(pub(super) StoreError);

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        let text = error.to_string();
        Self(match error {
            redb::Error::Corrupted(_)
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TableIsMultimap(_)
            | redb::Error::TableDoesNotExist(_)
            | redb::Error::TypeDefinitionChanged { .. } => StoreError::Damaged(text),
            _ => StoreError::Unavailable(text),
        })
    }
}

/// What a key was at a revision.
pub(super) struct Version {
    pub(super) created: Revision,
    pub(super) modified: Revision,
    /// 0: none.
    pub(super) lease: u64,
    /// `None`: deleted.
    pub(super) value: Option<Bytes>,
}

impl Version {
    fn new(modified: Revision, (created, lease, value): (u64, u64, Option<&[u8]>)) -> Self {
        Self { created, modified, lease, value: value.map(Bytes::copy_from_slice) }
    }

    /// The version of `key` that holds at `revision`, be it a deletion.
    pub(super) fn at(
        history: &impl ReadableTable<HistoryKey, HistoryValue>,
        key: &str,
        revision: Revision,
    ) -> Result<Option<Self>, redb::StorageError> {
        let newest = history.range((key, 0)..=(key, revision))?.next_back().transpose()?;
        Ok(newest.map(|(at, version)| Self::new(at.value().1, version.value())))
    }

    /// What `key` is now, if it is there.
    pub(super) fn live(
        history: &impl ReadableTable<HistoryKey, HistoryValue>,
        key: &str,
    ) -> Result<Option<Self>, redb::StorageError> {
        Ok(Self::at(history, key, u64::MAX)?.filter(|version| version.value.is_some()))
    }

    /// What commit `revision` did to `key`.
    pub(super) fn of_change(
        history: &impl ReadableTable<HistoryKey, HistoryValue>,
        key: &str,
        revision: Revision,
    ) -> Result<Self, Failure> {
        let version = history.get((key, revision))?.ok_or_else(|| {
            Failure(StoreError::Damaged(format!("commit {revision} has lost key {key:?}")))
        })?;
        Ok(Self::new(revision, version.value()))
    }

    pub(super) fn into_entry(self, key: String) -> Option<KeyValue> {
        let (create_revision, mod_revision) = (self.created, self.modified);
        self.value.map(|value| KeyValue { key, value, create_revision, mod_revision })
    }

    pub(super) fn into_event(self, key: String) -> Event {
        let (create_revision, mod_revision) = (self.created, self.modified);
        match self.value {
            Some(value) => Event::Put(KeyValue { key, value, create_revision, mod_revision }),
            None => Event::Delete { key, revision: mod_revision },
        }
    }
}

/// Which revisions there are.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub(super) oldest: Revision,
    pub(super) newest: Revision,
}

impl Span {
    pub(super) fn of(
        meta: &impl ReadableTable<&'static str, u64>,
    ) -> Result<Self, redb::StorageError> {
        Ok(Self { oldest: number(meta, OLDEST)?, newest: number(meta, REVISION)? })
    }

    /// The revision to read for `wanted`.
    pub(super) fn admit(self, wanted: Option<Revision>) -> Result<Revision, StoreError> {
        let wanted = wanted.unwrap_or(self.newest);
        if wanted < self.oldest {
            return Err(StoreError::Compacted { wanted, oldest: self.oldest });
        }
        if wanted > self.newest {
            return Err(StoreError::Future { wanted, current: self.newest });
        }
        Ok(wanted)
    }
}

/// One of the numbers in [`META`]; 0 if it was never written.
pub(super) fn number(
    meta: &impl ReadableTable<&'static str, u64>,
    name: &str,
) -> Result<u64, redb::StorageError> {
    Ok(meta.get(name)?.map_or(0, |number| number.value()))
}
