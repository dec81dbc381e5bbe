//! Reading pages, and forgetting what was.

use etcd_client::proto::{PbKeyValue, PbRangeResponse, PbTxnOpResponse};
use etcd_client::{Client, Error, GetOptions, TxnOp, WatchOptions};
use tracing::debug;

use super::failure::{Failure, Refusal, classify};
use super::members::{Members, Repeat};
use super::{MAX_MESSAGE, OURS, end_of, signed, start_of, unsigned, watch};
use crate::store::{KeyValue, Page, Range, Revision, StoreError};

pub(super) async fn range(members: &Members, range: Range) -> Result<Page, StoreError> {
    let (mut start, end) = (first_key(&range), end_of(&range.prefix));
    // `after` is behind all of the prefix. etcd takes such a range amiss.
    let nothing = end != [0] && start >= end;
    if nothing {
        start = start_of(&range.prefix);
    }
    let (limit, revision) = (range.limit.max(1), range.revision);
    let mut cut = Cut { start, end, nothing, limit, revision };
    let mut entries: Vec<KeyValue> = Vec::new();
    loop {
        let raw = piece(members, &mut cut).await?;
        cut.revision = Some(raw.revision);
        if let Some(last) = raw.kvs.last() {
            cut.start = [last.key.as_slice(), &[0]].concat();
        }
        entries.extend(raw.kvs.into_iter().filter_map(entry));
        cut.limit = range.limit.max(1).saturating_sub(entries.len());
        // Foreign keys leave room; and a page without entries must be the last one.
        if !raw.more || cut.limit == 0 || (raw.cut && !entries.is_empty()) {
            return Ok(Page { entries, more: raw.more, revision: raw.revision });
        }
    }
}

pub(super) async fn compact(members: &Members, oldest: Revision) -> Result<(), StoreError> {
    let current = current(members).await?;
    if oldest > current {
        return Err(StoreError::Future { wanted: oldest, current });
    }
    // One less: see the module's words on compaction. etcd's first revision is the empty store.
    let Some(at) = oldest.checked_sub(1).filter(|at| *at > 0) else { return Ok(()) };
    let request = |mut client: Client| async move { client.compact(signed(at), None).await };
    match members.call(Repeat::Freely, request).await {
        Ok(_) | Err(Refusal::Compacted) => Ok(()),
        Err(refusal) => Err(refusal.into()),
    }
}

/// The newest revision, linearizably.
async fn current(members: &Members) -> Result<Revision, StoreError> {
    let request = |client: Client| current_of(client, OURS.into());
    Ok(members.call(Repeat::Freely, request).await?)
}

pub(super) async fn current_of(mut client: Client, key: Vec<u8>) -> Result<Revision, Error> {
    let response = client.get(key, Some(GetOptions::new().with_count_only())).await?;
    Ok(response.header().map_or(0, |header| unsigned(header.revision())))
}

/// The revision that this member is compacted at: etcd says it only to watches. There must have
/// been a compaction beyond revision 1.
pub(super) async fn compacted_at(mut client: Client, key: Vec<u8>) -> Result<Revision, Error> {
    let options = WatchOptions::new().with_start_revision(1);
    let mut watch = client.watch(key, Some(options)).await?;
    while let Some(response) = watch.message().await? {
        if response.compact_revision() > 0 {
            return Ok(unsigned(response.compact_revision()));
        }
        if response.canceled() {
            return Err(watch::refused(response.cancel_reason()));
        }
    }
    Err(Error::WatchError("a watch of what is compacted ended without saying so".to_owned()))
}

/// What is still wanted.
#[derive(Debug, Clone)]
struct Cut {
    start: Vec<u8>,
    end: Vec<u8>,
    /// There are no such keys; only the revision matters.
    nothing: bool,
    limit: usize,
    revision: Option<Revision>,
}

/// What etcd had of it.
struct Raw {
    kvs: Vec<PbKeyValue>,
    more: bool,
    revision: Revision,
    /// It was too large for a message, and is less than was asked for.
    cut: bool,
}

/// Reads; less than was asked for, if that is too large.
async fn piece(members: &Members, cut: &mut Cut) -> Result<Raw, StoreError> {
    let mut smaller = false;
    loop {
        let request = |client: Client| Box::pin(read(client, cut.clone()));
        match members.call(Repeat::Freely, request).await {
            Ok(answer) => return answer.map(|raw| Raw { cut: smaller, ..raw }),
            Err(Refusal::TooLarge) if cut.limit > 1 => {
                debug!(limit = cut.limit, "a page is too large for a message, reading half of it");
                cut.limit = cut.limit.min(1 << 16) / 2;
                smaller = true;
            }
            Err(refusal) => return Err(refusal.into()),
        }
    }
}

/// On one member. The inner error is what the member said for sure.
async fn read(client: Client, cut: Cut) -> Result<Result<Raw, StoreError>, Error> {
    match cut.revision {
        None => newest(client, cut).await.map(Ok),
        Some(revision @ (0 | 1)) => Box::pin(nothing(client, cut.start, revision)).await,
        Some(revision) => Box::pin(at(client, cut, revision)).await,
    }
}

async fn newest(client: Client, cut: Cut) -> Result<Raw, Error> {
    let options = options(&cut);
    let mut kv = client.kv_client().max_decoding_message_size(MAX_MESSAGE);
    let response = kv.get(cut.start, Some(options)).await?;
    let revision = response.header().map_or(0, |header| unsigned(header.revision()));
    Ok(raw(response.0, revision))
}

/// The empty store, which is not read: etcd takes 0 for "now".
async fn nothing(
    mut client: Client,
    key: Vec<u8>,
    wanted: Revision,
) -> Result<Result<Raw, StoreError>, Error> {
    let first = GetOptions::new().with_count_only().with_revision(1);
    match client.get(key.clone(), Some(first)).await {
        Ok(_) => Ok(Ok(Raw { kvs: Vec::new(), more: false, revision: wanted, cut: false })),
        Err(error) => refused(client, key, wanted, error).await.map(Err),
    }
}

/// As of a revision, and only if the one before it can still be read: etcd keeps the live keys of the
/// revision that it is compacted at, but that one is forgotten.
async fn at(client: Client, cut: Cut, wanted: Revision) -> Result<Result<Raw, StoreError>, Error> {
    let before = GetOptions::new().with_count_only().with_revision(signed(wanted - 1));
    let page = options(&cut).with_revision(signed(wanted));
    let key = cut.start;
    let ops = [TxnOp::get(key.clone(), Some(before)), TxnOp::get(key.clone(), Some(page))];
    let mut kv = client.kv_client().max_decoding_message_size(MAX_MESSAGE);
    match kv.txn(etcd_client::Txn::new().and_then(ops)).await {
        Err(error) => refused(client, key, wanted, error).await.map(Err),
        Ok(response) => match response.0.responses.into_iter().nth(1).and_then(|op| op.response) {
            Some(PbTxnOpResponse::ResponseRange(page)) => Ok(Ok(raw(page, wanted))),
            other => {
                let why = format!("etcd answered a read with {other:?}");
                Ok(Err(StoreError::Unavailable(why)))
            }
        },
    }
}

/// Why there is no such revision, in numbers; other errors are passed on.
async fn refused(
    client: Client,
    key: Vec<u8>,
    wanted: Revision,
    error: Error,
) -> Result<StoreError, Error> {
    match classify(&error) {
        // This very member said so, and compaction does not go back: it can say where.
        Failure::Refused(Refusal::Compacted) => {
            let oldest = compacted_at(client, key).await? + 1;
            Ok(StoreError::Compacted { wanted, oldest })
        }
        Failure::Refused(Refusal::Future) => {
            let current = current_of(client, key).await?;
            // It may have come meanwhile.
            Ok(StoreError::Future { wanted, current: current.min(wanted - 1) })
        }
        _ => Err(error),
    }
}

fn options(cut: &Cut) -> GetOptions {
    if cut.nothing {
        return GetOptions::new().with_count_only();
    }
    let limit = i64::try_from(cut.limit).unwrap_or(i64::MAX);
    GetOptions::new().with_range(cut.end.clone()).with_limit(limit)
}

fn first_key(range: &Range) -> Vec<u8> {
    let prefix = start_of(&range.prefix);
    match &range.after {
        Some(after) => prefix.max([after.as_bytes(), &[0]].concat()),
        None => prefix,
    }
}

fn raw(response: PbRangeResponse, revision: Revision) -> Raw {
    Raw { kvs: response.kvs, more: response.more, revision, cut: false }
}

/// `None` for a foreign key.
pub(super) fn entry(kv: PbKeyValue) -> Option<KeyValue> {
    Some(KeyValue {
        key: String::from_utf8(kv.key).ok()?,
        value: kv.value.into(),
        create_revision: unsigned(kv.create_revision),
        mod_revision: unsigned(kv.mod_revision),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_begin_after_the_key_before_and_end_behind_the_prefix() {
        let first = |prefix: &str, after: Option<&str>| {
            let (prefix, after) = (prefix.to_owned(), after.map(ToOwned::to_owned));
            first_key(&Range { prefix, after, limit: 1, revision: None })
        };
        assert_eq!(first("", None), b"\0");
        assert_eq!(first("/a", None), b"/a");
        assert_eq!(first("/a", Some("/a/b")), b"/a/b\0");
        assert_eq!(first("/a", Some("/")), b"/a", "before the prefix");
        assert_eq!(end_of("/a/"), b"/a0");
        assert_eq!(end_of(""), b"\0", "everything");
        assert_eq!(end_of("/\u{10ffff}"), b"/\xf4\x8f\xbf\xc0");
    }
}
