//! Reading: pages of keys at a revision, and what happened since one.

use std::ops::Bound;

use redb::{Database, ReadableDatabase, ReadableTable};

use super::disk::{CHANGES, Failure, HISTORY, HistoryKey, HistoryValue, META, Span, Version};
use crate::store::{Event, Page, Range, Revision};

/// A replay ends at the first whole commit after so many changes, matching or not, ...
const REPLAY_CHANGES: usize = 2048;
/// ... or so many bytes of values, so that a watch holds little and shuts nobody out for long.
const REPLAY_BYTES: usize = 4 << 20;

/// What one commit did, under all prefixes or one.
#[derive(Debug)]
pub(super) struct Committed {
    pub(super) revision: Revision,
    /// By key.
    pub(super) events: Vec<Event>,
}

/// A piece of history.
pub(super) enum Replay {
    /// All commits with events under the prefix, up to and with `upto`.
    Piece { commits: Vec<Committed>, upto: Revision, newest: Revision },
    /// Gone.
    Compacted { oldest: Revision },
}

/// Costs two descents per key, however many versions a key has: resume points and session records
/// have one for each of their owner's commits.
pub(super) fn range(database: &Database, range: &Range) -> Result<Page, Failure> {
    let txn = database.begin_read()?;
    let revision = Span::of(&txn.open_table(META)?)?.admit(range.revision).map_err(Failure)?;
    let history = txn.open_table(HISTORY)?;
    let mut page = Page { entries: Vec::new(), more: false, revision };
    let mut key = match &range.after {
        Some(after) if *after >= range.prefix => next_key(&history, after)?,
        _ => first_key(&history, &range.prefix)?,
    };
    while let Some(found) = key.filter(|key| key.starts_with(&range.prefix)) {
        key = next_key(&history, &found)?;
        let version = Version::at(&history, &found, revision)?;
        if let Some(entry) = version.and_then(|version| version.into_entry(found)) {
            if page.entries.len() == range.limit.max(1) {
                page.more = true;
                break;
            }
            page.entries.push(entry);
        }
    }
    Ok(page)
}

fn first_key(
    history: &impl ReadableTable<HistoryKey, HistoryValue>,
    prefix: &str,
) -> Result<Option<String>, redb::StorageError> {
    let first = history.range((prefix, 0)..)?.next().transpose()?;
    Ok(first.map(|(at, _)| at.value().0.to_owned()))
}

fn next_key(
    history: &impl ReadableTable<HistoryKey, HistoryValue>,
    after: &str,
) -> Result<Option<String>, redb::StorageError> {
    let beyond = (Bound::Excluded((after, u64::MAX)), Bound::Unbounded);
    let next = history.range::<(&str, u64)>(beyond)?.next().transpose()?;
    Ok(next.map(|(at, _)| at.value().0.to_owned()))
}

/// What happened under `prefix` from revision `from` on, in whole commits; call again from
/// `upto + 1` until `upto` is `newest`.
pub(super) fn replay(database: &Database, prefix: &str, from: Revision) -> Result<Replay, Failure> {
    let txn = database.begin_read()?;
    let Span { oldest, newest } = Span::of(&txn.open_table(META)?)?;
    if from < oldest {
        return Ok(Replay::Compacted { oldest });
    }
    let (changes, history) = (txn.open_table(CHANGES)?, txn.open_table(HISTORY)?);
    let mut commits: Vec<Committed> = Vec::new();
    let (mut seen, mut bytes, mut upto) = (0, 0, from.saturating_sub(1));
    for change in changes.range((from, "")..)? {
        let change = change?.0;
        let (revision, key) = change.value();
        if revision != upto && (seen >= REPLAY_CHANGES || bytes >= REPLAY_BYTES) {
            return Ok(Replay::Piece { commits, upto, newest });
        }
        (seen, upto) = (seen + 1, revision);
        if key.starts_with(prefix) {
            let version = Version::of_change(&history, key, revision)?;
            bytes += version.value.as_ref().map_or(0, bytes::Bytes::len);
            push(&mut commits, revision, version.into_event(key.to_owned()));
        }
    }
    Ok(Replay::Piece { commits, upto: newest, newest })
}

fn push(commits: &mut Vec<Committed>, revision: Revision, event: Event) {
    match commits.last_mut() {
        Some(last) if last.revision == revision => last.events.push(event),
        _ => commits.push(Committed { revision, events: vec![event] }),
    }
}
