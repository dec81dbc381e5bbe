//! Reading and writing more than fits one request, on any store.

use super::{KeyValue, MAX_OPS, MAX_TXN_BYTES, Op, Range, Revision, Store, StoreError, Txn};

/// Keys per page: small enough for a message, large enough that pages are few.
const PAGE: usize = 1000;

/// Everything under `prefix` as of one revision, the newest, which is returned too: watch from the
/// one after it.
///
/// # Errors
/// Those of [`Store::range`]; [`StoreError::Compacted`] if history was forgotten between two
/// pages: list again.
pub async fn list(
    store: &dyn Store,
    prefix: &str,
) -> Result<(Vec<KeyValue>, Revision), StoreError> {
    let mut entries = Vec::new();
    let mut range = Range { prefix: prefix.to_owned(), after: None, limit: PAGE, revision: None };
    loop {
        let page = store.range(range.clone()).await?;
        range.after = page.entries.last().map(|last| last.key.clone());
        range.revision = Some(page.revision);
        entries.extend(page.entries);
        if !page.more || range.after.is_none() {
            return Ok((entries, page.revision));
        }
    }
}

/// One key's newest state.
///
/// # Errors
/// Those of [`Store::range`].
pub async fn read(store: &dyn Store, key: &str) -> Result<Option<KeyValue>, StoreError> {
    // A key sorts before all that it is a prefix of: if it exists, it is the first.
    let range = Range { prefix: key.to_owned(), after: None, limit: 1, revision: None };
    Ok(store.range(range).await?.entries.into_iter().find(|entry| entry.key == key))
}

/// Cuts `ops` into transactions that keep the limits: upserts first, deletes last, so that a
/// reader who sees a part never misses what only moved; each in the given order. Guards are the
/// caller's, on every part.
///
/// # Errors
/// [`StoreError::Refused`], naming the key of an operation that is too large by itself.
pub fn split(ops: impl IntoIterator<Item = Op>) -> Result<Vec<Txn>, StoreError> {
    let parts = split_in_groups(ops, Room::default(), |_| None::<()>)?;
    Ok(parts.into_iter().map(|ops| Txn { guards: Vec::new(), ops }).collect())
}

/// What [`split_in_groups`] leaves free in each part.
#[derive(Debug, Clone, Copy, Default)]
pub struct Room {
    /// Operations.
    pub ops: usize,
    /// Bytes of keys and values.
    pub bytes: usize,
}

/// Like [`split`], but leaves room in each part, and keeps a group (neighbours with an equal
/// `Some`) in one part where it fits one.
///
/// # Errors
/// Those of [`split`].
pub fn split_in_groups<G: PartialEq>(
    ops: impl IntoIterator<Item = Op>,
    leave: Room,
    group: impl Fn(&Op) -> Option<G>,
) -> Result<Vec<Vec<Op>>, StoreError> {
    let (mut ordered, deletes): (Vec<_>, Vec<_>) =
        ops.into_iter().partition(|op| matches!(op, Op::Put { .. }));
    ordered.extend(deletes);
    let whole = Room { ops: MAX_OPS - leave.ops, bytes: MAX_TXN_BYTES - leave.bytes };
    let mut parts: Vec<Vec<Op>> = Vec::new();
    let mut left = Room::default();
    for group in groups(ordered, group) {
        let bytes: usize = group.iter().map(Op::bytes).sum();
        let fits = |room: Room| group.len() <= room.ops && bytes <= room.bytes;
        if !fits(left) && fits(whole) {
            parts.push(Vec::new());
            left = whole;
        }
        for op in group {
            let bytes = op.bytes();
            if bytes > whole.bytes {
                let key = op.key();
                return Err(StoreError::Refused(format!(
                    "key {key:?} has {bytes} bytes, at most {} fit a transaction",
                    whole.bytes
                )));
            }
            if left.ops == 0 || bytes > left.bytes {
                parts.push(Vec::new());
                left = whole;
            }
            left = Room { ops: left.ops - 1, bytes: left.bytes - bytes };
            parts.last_mut().into_iter().for_each(|part| part.push(op.clone()));
        }
    }
    Ok(parts)
}

fn groups<G: PartialEq>(ops: Vec<Op>, group: impl Fn(&Op) -> Option<G>) -> Vec<Vec<Op>> {
    let mut groups: Vec<(Option<G>, Vec<Op>)> = Vec::new();
    for op in ops {
        let of = group(&op);
        match groups.last_mut() {
            Some((last, ops)) if of.is_some() && *last == of => ops.push(op),
            _ => groups.push((of, vec![op])),
        }
    }
    groups.into_iter().map(|(_, ops)| ops).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::embedded::Embedded;

    fn sizes(ops: Vec<Op>) -> Vec<usize> {
        let parts = split(ops).expect("each fits");
        for part in &parts {
            part.check().expect("a part keeps the limits");
        }
        parts.iter().map(|part| part.ops.len()).collect()
    }

    fn puts(count: usize, bytes: usize) -> Vec<Op> {
        (0..count).map(|n| Op::put(format!("{n:04}"), vec![b'v'; bytes - 4])).collect()
    }

    #[test]
    fn parts_keep_both_limits() {
        assert_eq!(sizes(vec![]), Vec::<usize>::new());
        assert_eq!(sizes(puts(128, 10)), [128]);
        assert_eq!(sizes(puts(129, 10)), [128, 1]);
        assert_eq!(sizes(puts(4, MAX_TXN_BYTES / 2)), [2, 2]);
        assert_eq!(sizes(puts(3, MAX_TXN_BYTES / 2 + 1)), [1, 1, 1]);
        assert_eq!(sizes(puts(1, MAX_TXN_BYTES)), [1]);
    }

    #[test]
    fn a_group_that_fits_one_part_is_not_cut() {
        let ops = || (0..200).map(|n| Op::put(format!("{n:04}"), "v"));
        let groups_of = |size: usize| {
            let group = move |op: &Op| op.key().parse::<usize>().ok().map(|n| n / size);
            let parts = split_in_groups(ops(), Room { ops: 28, bytes: 0 }, group).expect("small");
            parts.iter().map(Vec::len).collect::<Vec<_>>()
        };
        assert_eq!(groups_of(1), [100, 100]);
        assert_eq!(groups_of(40), [80, 80, 40]);
        assert_eq!(groups_of(150), [100, 100], "one that fits none is cut");
    }

    #[test]
    fn upserts_come_first_and_order_is_kept() {
        let ops = [Op::delete("b"), Op::put("z", "1"), Op::delete("a"), Op::put("y", "2")];
        let parts = split(ops).expect("small");
        let keys: Vec<_> = parts[0].ops.iter().map(Op::key).collect();
        assert_eq!(keys, ["z", "y", "b", "a"]);
    }

    #[test]
    fn an_op_over_the_limit_is_named() {
        let refused = split([Op::put("/huge", vec![0; MAX_TXN_BYTES])]).expect_err("too large");
        assert!(refused.to_string().contains("/huge"), "{refused}");
    }

    #[tokio::test]
    async fn list_pages_through_everything_at_one_revision() {
        let store = Embedded::in_memory().await.expect("memory");
        let ops = (0..=2 * PAGE).map(|n| Op::put(format!("/l/{n:05}"), "v"));
        for part in split(ops).expect("small") {
            store.commit(part).await.expect("commits");
        }
        let (entries, revision) = list(&store, "/l/").await.expect("lists");
        assert_eq!(entries.len(), 2 * PAGE + 1);
        assert!(entries.is_sorted_by(|a, b| a.key < b.key));
        assert_eq!(entries.iter().map(|e| e.mod_revision).max(), Some(revision));
        assert_eq!(list(&store, "/m/").await.expect("lists"), (vec![], revision));
    }

    #[tokio::test]
    async fn read_wants_the_very_key() {
        let store = Embedded::in_memory().await.expect("memory");
        let ops = vec![Op::put("/a/b", "1"), Op::put("/a/bc", "2")];
        store.commit(Txn { guards: vec![], ops }).await.expect("commits");
        assert_eq!(read(&store, "/a/b").await.expect("reads").expect("is there").value, "1");
        assert_eq!(read(&store, "/a/").await.expect("reads"), None);
    }
}
