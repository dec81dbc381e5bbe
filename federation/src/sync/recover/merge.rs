//! What of a peer's answer is newer than what the store has. Pure.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::key::{Key, Kind};
use crate::record::{Epoch, Newest, Origin};
use crate::replica::{Holding, gives_way, is_rewind};
use crate::sync::intake::counts_absence;
use crate::sync::transactions::Changes;

/// What an owner has said beyond what is held of it, as a peer has it; `None` if it is not known to
/// have said more. Incarnations with different ids have no order: what is held stays, its owner is
/// the one who published here.
pub(super) fn newer(held: Option<&Holding>, theirs: Changes) -> Option<Changes> {
    let newest = theirs.newest.as_ref()?;
    let ours = held.and_then(Holding::newest);
    let behind = |ours: &Newest| ours.epoch.id != newest.epoch.id || newest.is_older_than(ours);
    if ours.is_some_and(behind) {
        return None;
    }
    // Who knows no later change of the owner knows of none that is gone: what a peer forgets of one
    // that left it may forget in the middle of an answer.
    let later = ours != Some(newest);
    let gone = if later { absent(held, &theirs, |_| true) } else { Vec::new() };
    let gone: Vec<_> = gone.into_iter().map(|key| (key, None)).collect();
    let vouched = |kind: Kind| theirs.complete.iter().find(|(of, _)| *of == kind).map(|(_, e)| e);
    let differs =
        |(key, value): &&(Key, _)| differs(held, key, Option::as_ref(value), vouched(key.kind));
    let items = theirs.items.iter().filter(differs).cloned();
    let items: Vec<_> = items.chain(gone).collect();
    let vouched = |kind: &Kind| held.and_then(|held| held.complete().get(kind));
    let complete = theirs.complete.into_iter().filter(|(kind, epoch)| {
        vouched(kind).is_none_or(|held| held != epoch && !epoch.is_older_than(held))
    });
    let complete: Vec<_> = complete.collect();
    let same = items.is_empty() && complete.is_empty() && ours == Some(newest);
    (!same).then(|| Changes { items, complete, newest: theirs.newest, ..Changes::default() })
}

/// What the peer knows of the region's decisions that was decided after `known`: the region has
/// spoken since, so that its other words stand. What was known and is not held was withdrawn.
pub(super) fn decided(
    held: Option<&Holding>,
    theirs: &Changes,
    known: Option<&Newest>,
) -> Vec<(Key, Option<Bytes>)> {
    let Some(newest) = &theirs.newest else { return Vec::new() };
    let news = |change: &Newest| known.is_none_or(|known| known.is_older_than(change));
    if !news(newest) {
        return Vec::new();
    }
    let puts = theirs.items.iter().filter(|(key, value)| {
        let origin = value.as_ref().and_then(Origin::of_value);
        key.kind == Kind::Decision
            && origin.is_some_and(|origin| news(&origin.newest()))
            && differs(held, key, value.as_ref(), None)
    });
    // Not what was decided since.
    let before = |decided: &Newest| decided.is_older_than(newest);
    let gone = absent(held, theirs, before).into_iter().filter(|key| key.kind == Kind::Decision);
    puts.cloned().chain(gone.map(|key| (key, None))).collect()
}

/// Whether a record is another one than what is held, and not an older version of it that its owner
/// has not confirmed.
fn differs(
    held: Option<&Holding>,
    key: &Key,
    value: Option<&Bytes>,
    vouched: Option<&Epoch>,
) -> bool {
    let Some(entry) = held.and_then(|held| held.get(key)) else { return value.is_some() };
    let Some(value) = value else { return false };
    let stands = |held: &&Origin| !gives_way(key, held, vouched);
    let older =
        |new: &Origin| entry.origin().filter(stands).is_some_and(|held| is_rewind(new, held));
    entry.value != *value && !Origin::of_value(value).is_some_and(|new| older(&new))
}

/// Records that are held, of which the peer knows that they are gone.
fn absent(held: Option<&Holding>, theirs: &Changes, before: impl Fn(&Newest) -> bool) -> Vec<Key> {
    let Some((held, newest)) = held.zip(theirs.newest.as_ref()) else { return Vec::new() };
    let there: BTreeSet<&Key> = theirs.items.iter().map(|(key, _)| key).collect();
    let vouched = |key: &Key| {
        let told = theirs.complete.iter().find(|(kind, _)| *kind == key.kind);
        let older = |epoch: &Epoch| {
            held.complete().get(&key.kind).is_some_and(|held| epoch.is_older_than(held))
        };
        told.is_some_and(|(_, epoch)| {
            counts_absence(&key.owner, epoch, Some(newest)) && !older(epoch)
        })
    };
    let gone = held.records().filter(|(key, entry)| {
        let known = entry.origin().is_some_and(|origin| before(&origin.newest()));
        key.kind != Kind::Beacon && known && !there.contains(key) && vouched(key)
    });
    gone.map(|(key, _)| key.clone()).collect()
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::names::Owner;
    use crate::record::{Body, Namespace, Record};
    use crate::replica::{self, Batch};

    fn at(sequence: u64) -> Newest {
        Newest { epoch: Epoch { id: "e".into(), count: 1 }, sequence }
    }

    /// It may have forgotten a part already of one that left it.
    #[test]
    fn who_knows_nothing_later_takes_nothing_away() {
        let owner: Owner = "r/r-a".parse().unwrap();
        let key = Key::of_namespace(owner.clone(), &"shop".parse().unwrap());
        let origin = Origin { epoch: at(1).epoch, sequence: 1, ..Origin::default() };
        let body = Body::Namespace(Namespace::default());
        let value = Record { key: key.clone(), origin, body }.seal().value;
        let (writer, _) = replica::channel();
        let items = vec![(key.clone(), Some(value))];
        let newest = vec![(owner.clone(), at(5))];
        writer.apply(Batch { items, newest, ..Batch::default() }, Instant::now());
        let held = writer.current();
        let answered = |sequence| {
            let complete = vec![(Kind::Namespace, at(1).epoch)];
            let theirs = Changes { newest: Some(at(sequence)), complete, ..Changes::default() };
            newer(held.holding(&owner), theirs).map(|changes| changes.items)
        };
        assert_eq!(answered(4), None);
        assert_eq!(answered(5), Some(Vec::new()));
        assert_eq!(answered(6), Some(vec![(key, None)]), "it has seen that it went");
    }
}
