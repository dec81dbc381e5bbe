//! A replica of any size, all of whose records say the same.

#![allow(dead_code, reason = "each test file is a crate of its own and uses what it needs")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::time::Instant;
use tombolo_federation::cache::Image;
use tombolo_federation::key::Key;
use tombolo_federation::names::Owner;
use tombolo_federation::record::{Body, Epoch, Namespace, Origin, Record};
use tombolo_federation::replica::{self, Batch, Replica};

pub(crate) const OURS: &str = "agent of m/r/r-a";

fn owner() -> Owner {
    "r/r-a".parse().expect("an owner")
}

/// So many records that say `label`.
pub(crate) fn replica_of(records: usize, label: &str) -> Arc<Replica> {
    let items = (0..records)
        .map(|number| {
            let key: Key =
                format!("/tombolo/v1/r/r-a/namespace/_/n{number}").parse().expect("a key");
            let epoch = Epoch { id: "e".into(), count: 1 };
            let labels = [("l".to_owned(), label.to_owned())].into();
            let body = Body::Namespace(Namespace { labels, annotations: BTreeMap::new() });
            let origin = Origin { epoch, sequence: 1, ..Origin::default() };
            let record = Record { key: key.clone(), origin, body };
            (key, Some(record.seal().value))
        })
        .collect();
    let (writer, _replicas) = replica::channel();
    writer.apply(Batch { items, ..Batch::default() }, Instant::now());
    writer.current()
}

/// What all records of an image say.
pub(crate) fn says(image: Image) -> String {
    let (writer, _replicas) = replica::channel();
    writer.apply(image.into_batch(None), Instant::now());
    let replica = writer.current();
    let records = replica.holding(&owner()).expect("the owner").records();
    let labels: BTreeSet<String> = records
        .map(|(key, entry)| match &entry.record.as_ref().expect("opens").body {
            Body::Namespace(namespace) => namespace.labels["l"].clone(),
            other => unreachable!("{key}: {other:?}"),
        })
        .collect();
    assert_eq!(labels.len(), 1, "{labels:?}");
    labels.into_iter().next().expect("one")
}
