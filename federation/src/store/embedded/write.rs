//! Writing: transactions, ends of leases and compaction, several to one durable commit of the file.
//!
//! Each transaction is checked whole before it changes anything, so one that is refused leaves no
//! trace among its neighbours; a failure of the file fails all of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use redb::{Database, ReadableTable, Table};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::disk::{
    CHANGES, Failure, HISTORY, HistoryKey, HistoryValue, LEASED, META, OLDEST, REVISION, Version,
    number,
};
use super::lease::Leases;
use super::read::Committed;
use crate::store::{Commit, Event, Guard, KeyValue, LeaseId, Op, Revision, StoreError, Txn};

/// Changes that compaction forgets in one go; others' commits get in between.
const COMPACT_CHANGES: usize = 2048;

/// One thing for the writer to do.
pub(super) struct Request {
    pub(super) work: Work,
    pub(super) reply: oneshot::Sender<Result<Answer, StoreError>>,
}

pub(super) enum Work {
    Commit(Txn),
    Revoke(LeaseId),
    /// Ends all leases whose time is over.
    Expire,
    Compact(Revision),
}

#[derive(Debug)]
pub(super) enum Answer {
    Commit(Commit),
    Ended,
    /// If there is more to forget, ask again.
    Compacted {
        more: bool,
    },
}

type Answers = Vec<Result<Answer, StoreError>>;

/// Does all of `work` in one durable commit of the file. Blocks.
pub(super) fn apply(
    database: &Database,
    leases: &Leases,
    now: Instant,
    work: &[Work],
) -> Result<(Answers, Vec<Arc<Committed>>), Failure> {
    let txn = database.begin_write()?;
    let mut tables = Tables::open(&txn)?;
    let mut answers = Vec::with_capacity(work.len());
    for work in work {
        answers.push(tables.work(work, leases, now)?);
    }
    let (dirty, committed) = tables.finish()?;
    if dirty {
        txn.commit()?;
    } else {
        txn.abort()?;
    }
    Ok((answers, committed))
}

pub(super) struct Tables<'t> {
    history: Table<'t, HistoryKey, HistoryValue>,
    changes: Table<'t, (u64, &'static str), ()>,
    leased: Table<'t, (u64, &'static str), ()>,
    pub(super) meta: Table<'t, &'static str, u64>,
    revision: Revision,
    committed: Vec<Arc<Committed>>,
    dirty: bool,
}

impl<'t> Tables<'t> {
    pub(super) fn open(txn: &'t redb::WriteTransaction) -> Result<Self, redb::Error> {
        let meta = txn.open_table(META)?;
        Ok(Self {
            history: txn.open_table(HISTORY)?,
            changes: txn.open_table(CHANGES)?,
            leased: txn.open_table(LEASED)?,
            revision: number(&meta, REVISION)?,
            meta,
            committed: Vec::new(),
            dirty: false,
        })
    }

    /// Whether anything was changed, and the commits that were made.
    pub(super) fn finish(mut self) -> Result<(bool, Vec<Arc<Committed>>), redb::Error> {
        if !self.committed.is_empty() {
            self.meta.insert(REVISION, self.revision)?;
        }
        Ok((self.dirty, self.committed))
    }

    fn work(
        &mut self,
        work: &Work,
        leases: &Leases,
        now: Instant,
    ) -> Result<Result<Answer, StoreError>, redb::Error> {
        match work {
            Work::Commit(txn) => Ok(self.commit(txn, leases, now)?.map(Answer::Commit)),
            Work::Revoke(lease) if !leases.remove(*lease) => Ok(Err(StoreError::NoLease(*lease))),
            Work::Revoke(lease) => {
                self.end_lease(*lease)?;
                Ok(Ok(Answer::Ended))
            }
            Work::Expire => {
                for lease in leases.remove_expired(now) {
                    self.end_lease(lease)?;
                }
                Ok(Ok(Answer::Ended))
            }
            Work::Compact(oldest) => self.compact(*oldest),
        }
    }

    fn commit(
        &mut self,
        txn: &Txn,
        leases: &Leases,
        now: Instant,
    ) -> Result<Result<Commit, StoreError>, redb::Error> {
        for guard in &txn.guards {
            if !self.holds(guard)? {
                return Ok(Ok(Commit::GuardFailed));
            }
        }
        for op in &txn.ops {
            if let Op::Put { lease: Some(lease), .. } = op
                && !leases.lives(*lease, now)
            {
                return Ok(Err(StoreError::NoLease(*lease)));
            }
        }
        let mut ops: Vec<&Op> = txn.ops.iter().collect();
        ops.sort_unstable_by_key(|op| op.key());
        Ok(Ok(Commit::Done(self.change(ops)?)))
    }

    fn holds(&self, guard: &Guard) -> Result<bool, redb::Error> {
        let (key, wanted) = match guard {
            Guard::ModRevision(key, wanted) | Guard::CreateRevision(key, wanted) => (key, *wanted),
        };
        let live = Version::live(&self.history, key)?;
        let found = live.map_or(0, |version| match guard {
            Guard::ModRevision(..) => version.modified,
            Guard::CreateRevision(..) => version.created,
        });
        Ok(found == wanted)
    }

    /// Makes one commit of `ops`, which are in the order of their keys. The revision after it.
    fn change<'o>(
        &mut self,
        ops: impl IntoIterator<Item = &'o Op>,
    ) -> Result<Revision, redb::Error> {
        let revision = self.revision + 1;
        let mut events = Vec::new();
        for op in ops {
            events.extend(self.one(op, revision)?);
        }
        if !events.is_empty() {
            self.revision = revision;
            self.dirty = true;
            self.committed.push(Arc::new(Committed { revision, events }));
        }
        Ok(self.revision)
    }

    fn one(&mut self, op: &Op, revision: Revision) -> Result<Option<Event>, redb::Error> {
        let key = op.key();
        let before = Version::live(&self.history, key)?;
        if let Some(before) = &before
            && before.lease != 0
        {
            self.leased.remove((before.lease, key))?;
        }
        let (key, event) = match (op, before) {
            (Op::Delete { .. }, None) => return Ok(None),
            (Op::Delete { key }, Some(_)) => {
                self.history.insert((key.as_str(), revision), (0, 0, None))?;
                (key, Event::Delete { key: key.clone(), revision })
            }
            (Op::Put { key, value, lease }, before) => {
                let created = before.map_or(revision, |before| before.created);
                let lease = lease.map_or(0, |lease| lease.0);
                if lease != 0 {
                    self.leased.insert((lease, key.as_str()), ())?;
                }
                let version = (created, lease, Some(value.as_ref()));
                self.history.insert((key.as_str(), revision), version)?;
                let entry = KeyValue {
                    key: key.clone(),
                    value: value.clone(),
                    create_revision: created,
                    mod_revision: revision,
                };
                (key, Event::Put(entry))
            }
        };
        self.changes.insert((revision, key.as_str()), ())?;
        Ok(Some(event))
    }

    fn end_lease(&mut self, lease: LeaseId) -> Result<(), redb::Error> {
        let deletes = self.leased_keys((lease.0, "")..(lease.0 + 1, ""))?;
        self.change(&deletes)?;
        Ok(())
    }

    /// Deletes what hung on leases of processes that are gone, in one commit.
    pub(super) fn end_all_leases(&mut self) -> Result<(), redb::Error> {
        let mut deletes = self.leased_keys((0, "")..)?;
        deletes.sort_unstable_by(|a, b| a.key().cmp(b.key()));
        self.change(&deletes)?;
        Ok(())
    }

    fn leased_keys<'r>(
        &self,
        range: impl std::ops::RangeBounds<(u64, &'r str)> + 'r,
    ) -> Result<Vec<Op>, redb::Error> {
        let keys = self.leased.range::<(u64, &str)>(range)?;
        Ok(keys
            .map(|key| key.map(|(key, _)| Op::delete(key.value().1)))
            .collect::<Result<_, _>>()?)
    }

    fn compact(&mut self, oldest: Revision) -> Result<Result<Answer, StoreError>, redb::Error> {
        if oldest > self.revision {
            let current = self.revision;
            return Ok(Err(StoreError::Future { wanted: oldest, current }));
        }
        let before = number(&self.meta, OLDEST)?;
        let oldest = oldest.max(before);
        let forgotten = self.take_changes(oldest)?;
        // The new limit is in the file with or before the first loss: no reader finds half of it.
        if oldest > before || !forgotten.is_empty() {
            self.meta.insert(OLDEST, oldest)?;
            self.dirty = true;
        }
        let more = forgotten.len() == COMPACT_CHANGES;
        let keys: BTreeSet<String> = forgotten.into_iter().collect();
        for key in keys {
            self.forget(&key, oldest)?;
        }
        Ok(Ok(Answer::Compacted { more }))
    }

    /// Takes the first changes before `oldest` out of the index. Their keys.
    fn take_changes(&mut self, oldest: Revision) -> Result<Vec<String>, redb::Error> {
        let gone: Vec<(u64, String)> = self
            .changes
            .range((0, "")..(oldest, ""))?
            .take(COMPACT_CHANGES)
            .map(|change| change.map(|(at, _)| (at.value().0, at.value().1.to_owned())))
            .collect::<Result<_, _>>()?;
        for (revision, key) in &gone {
            self.changes.remove((*revision, key.as_str()))?;
        }
        Ok(gone.into_iter().map(|(_, key)| key).collect())
    }

    /// Drops the versions of `key` that nobody can read who reads at `oldest` or later.
    fn forget(&mut self, key: &str, oldest: Revision) -> Result<(), redb::Error> {
        let Some(base) = Version::at(&self.history, key, oldest)? else { return Ok(()) };
        // A deletion at `oldest` itself can still be watched.
        let deleted_before = base.value.is_none() && base.modified < oldest;
        let keep_from = if deleted_before { base.modified + 1 } else { base.modified };
        self.history.retain_in((key, 0)..(key, keep_from), |_, _| false)?;
        Ok(())
    }
}
