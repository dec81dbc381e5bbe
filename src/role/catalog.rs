//! Replica to catalog: the one task that builds what a process serves from.
//!
//! Serves nothing before its source is complete (RELIABILITY promise 4); what exactly has to be
//! complete is the [`Gate`]'s word. What was restored from disk beside the replica stands, owner by
//! owner, until the replica has that owner's own word: a store that was lost, and is filled again,
//! takes nothing away meanwhile.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;
use tombolo_federation::cache::Standing;
use tombolo_federation::catalog::Publisher;
use tombolo_federation::catalog::builder::Builder;
use tombolo_federation::key::Key;
use tombolo_federation::names::Owner;
use tombolo_federation::record::Record;
use tombolo_federation::replica::{Change, Holding, Replica, Replicas};

use super::status;

/// Whether the catalog may be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Gate {
    /// Not at all: a client would take for gone what is only not known yet.
    #[default]
    Closed,
    /// What is found may be served; what is not found may exist.
    Partial,
    /// All that there is, is known.
    Open,
}

/// A record that is new or changed, or gone.
type Changed = (Key, Option<Arc<Record>>);

/// Builds and publishes catalogs for as long as there are replicas. `standing` is what is served
/// besides; it shrinks as the replica takes over.
pub(crate) async fn build(
    mut replicas: Replicas,
    mut gate: watch::Receiver<Gate>,
    publisher: Publisher,
    standing: watch::Sender<Standing>,
) -> anyhow::Result<()> {
    let mut builder = Builder::new();
    let mut overlay = Overlay { standing, decided: false };
    builder.apply(overlay.everything());
    let mut seen: Option<Arc<Replica>> = None;
    loop {
        // The gate first: if it is open, what is read after it has everything.
        let open = *gate.borrow_and_update();
        let replica = replicas.current();
        builder.apply(overlay.changed(&replica, seen.as_deref()));
        seen = Some(replica);
        builder.set_complete(open == Gate::Open);
        if open != Gate::Closed
            && let Some(catalog) = builder.snapshot()
        {
            publisher.publish(catalog);
        }
        tokio::select! {
            more = replicas.changed() => if !more { return Ok(()) },
            changed = gate.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}

/// What stands until the replica has it.
struct Overlay {
    standing: watch::Sender<Standing>,
    /// Whether the replica is of the history that the image was saved of was looked at.
    decided: bool,
}

impl Overlay {
    fn everything(&self) -> Vec<Changed> {
        self.standing.borrow().replica.as_deref().map(everything).unwrap_or_default()
    }

    fn changed(&mut self, replica: &Replica, seen: Option<&Replica>) -> Vec<Changed> {
        let mut changes = changed(replica, seen);
        if self.standing.borrow().owners.is_empty() {
            return changes;
        }
        let released = self.release(replica);
        let standing = self.standing.borrow();
        changes.retain(|(key, _)| !standing.owners.contains(&key.owner));
        for owner in &released {
            let image = standing.replica.as_ref().and_then(|image| image.holding(owner));
            let keys = [image, replica.holding(owner)].into_iter().flatten().flat_map(keys);
            changes.extend(keys.map(|key| now(replica, key.clone())));
        }
        changes
    }

    /// Hands owners over: all, if the store is the one that the image is of and not behind it; else
    /// each that has spoken since.
    fn release(&mut self, replica: &Replica) -> BTreeSet<Owner> {
        let first_reading = replica.position > 0 && !self.decided;
        self.decided |= first_reading;
        let mut released = BTreeSet::new();
        self.standing.send_if_modified(|standing| {
            let position = standing.replica.as_ref().map_or(0, |image| image.position);
            let same_store = first_reading && position > 0 && replica.position >= position;
            let spoken = |owner: &Owner| replica.holding(owner).is_some_and(status::has_spoken);
            released.extend(standing.owners.extract_if(.., |owner| same_store || spoken(owner)));
            !released.is_empty()
        });
        released
    }
}

fn keys(holding: &Holding) -> impl Iterator<Item = &Key> {
    holding.records().map(|(key, _)| key)
}

fn changed(replica: &Replica, seen: Option<&Replica>) -> Vec<Changed> {
    let Some(seen) = seen else { return everything(replica) };
    let changes = replica.changes_since(seen.version);
    let changes = changes.unwrap_or_else(|| replica.differences(seen));
    let records = changes.into_iter().filter_map(|change| match change {
        Change::Record(key) => Some(key),
        Change::Complete(..) => None,
    });
    records.map(|key| now(replica, key)).collect()
}

fn now(replica: &Replica, key: Key) -> Changed {
    let record = replica.get(&key).and_then(|entry| entry.record.clone());
    (key, record)
}

fn everything(replica: &Replica) -> Vec<Changed> {
    let records = replica.owners().flat_map(|(_, holding)| holding.records());
    records.map(|(key, entry)| (key.clone(), entry.record.clone())).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use tokio::time::Instant;
    use tombolo_federation::key::Kind;
    use tombolo_federation::record::{Body, Epoch, Namespace, Origin};
    use tombolo_federation::replica::{self, Batch, ReplicaWriter};

    use super::*;

    fn owner(name: &str) -> Owner {
        format!("r/r-{name}").parse().unwrap()
    }

    /// `owner/name` as a record, or `-owner/name` as its end.
    fn item(text: &str) -> (Key, Option<Bytes>) {
        let (owner, name) = text.trim_start_matches('-').split_once('/').unwrap();
        let key: Key = format!("/tombolo/v1/r/r-{owner}/namespace/_/{name}").parse().unwrap();
        let epoch = Epoch { id: "e".into(), count: 1 };
        let origin = Origin { epoch, sequence: 1, ..Origin::default() };
        let body = Body::Namespace(Namespace::default());
        let value = Record { key: key.clone(), origin, body }.seal().value;
        (key, (!text.starts_with('-')).then_some(value))
    }

    /// A position, what is new or gone there, and owners that have spoken.
    type Reading<'a> = (u64, &'a [&'a str], &'a [&'a str]);

    fn apply(writer: &ReplicaWriter, (position, items, spoken): Reading<'_>) -> Arc<Replica> {
        let spoken = spoken.iter().map(|name| (owner(name), Kind::Cluster, Epoch::default()));
        let items = items.iter().map(|text| item(text)).collect();
        let mut batch = Batch { items, ..Batch::default() };
        batch.complete = spoken.collect();
        batch.position = Some(position);
        writer.apply(batch, Instant::now());
        writer.current()
    }

    /// What is served after each reading of the store, by an image of position 5 with `a/x`,
    /// `a/y` and `b/x`, and who still stands.
    fn check(readings: &[(Reading<'_>, &str, &str)]) {
        let image = apply(&replica::channel().0, (5, &["a/x", "a/y", "b/x"], &["a", "b"]));
        let (store, _replicas) = replica::channel();
        let owners = [owner("a"), owner("b")].into();
        let standing = watch::Sender::new(Standing { replica: Some(image), owners });
        let standing_rx = standing.subscribe();
        let mut overlay = Overlay { standing, decided: false };
        let mut served: BTreeMap<Key, Option<Arc<Record>>> =
            overlay.everything().into_iter().collect();
        let mut seen: Option<Arc<Replica>> = None;
        for (reading, expected, stand) in readings {
            let replica = apply(&store, *reading);
            served.extend(overlay.changed(&replica, seen.as_deref()));
            seen = Some(replica);
            served.retain(|_, record| record.is_some());
            let short = |key: &Key| {
                let cluster = key.owner.cluster.as_ref().unwrap().to_string();
                format!("{}/{}", cluster.trim_start_matches("r-"), key.name)
            };
            let text: Vec<String> = served.keys().map(short).collect();
            assert_eq!(text.join(" "), *expected);
            let standing = standing_rx.borrow();
            let text: Vec<String> = standing.owners.iter().map(ToString::to_string).collect();
            assert_eq!(text.join(" "), *stand);
        }
    }

    #[test]
    fn a_store_that_is_not_behind_the_image_has_the_only_word() {
        check(&[
            ((0, &[], &[]), "a/x a/y b/x", "r/r-a r/r-b"),
            ((5, &["a/x", "c/x"], &["a", "c"]), "a/x c/x", ""),
        ]);
    }

    #[test]
    fn of_a_store_that_lost_all_each_owner_counts_once_it_has_spoken() {
        check(&[
            ((2, &[], &[]), "a/x a/y b/x", "r/r-a r/r-b"),
            // Half of what it has to say.
            ((3, &["a/x"], &[]), "a/x a/y b/x", "r/r-a r/r-b"),
            ((4, &["c/x"], &["a", "c"]), "a/x b/x c/x", "r/r-b"),
            // Past the image's position by itself.
            ((9, &["a/z", "-a/x", "-c/x"], &[]), "a/z b/x", "r/r-b"),
        ]);
    }
}
