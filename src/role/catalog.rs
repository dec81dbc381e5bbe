//! Replica to catalog: the one task that builds what a process serves from.
//!
//! Serves nothing before its source is complete; what exactly has to be
//! complete is the [`Gate`]'s word.

use std::sync::Arc;

use tokio::sync::watch;
use tombolo_federation::catalog::Publisher;
use tombolo_federation::catalog::builder::Builder;
use tombolo_federation::key::Key;
use tombolo_federation::record::Record;
use tombolo_federation::replica::{Change, Replica, Replicas};

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

/// Builds and publishes catalogs for as long as there are replicas.
pub(crate) async fn build(
    mut replicas: Replicas,
    mut gate: watch::Receiver<Gate>,
    publisher: Publisher,
) -> anyhow::Result<()> {
    let mut builder = Builder::new();
    let mut seen: Option<Arc<Replica>> = None;
    loop {
        // The gate first: if it is open, what is read after it has everything.
        let open = *gate.borrow_and_update();
        let replica = replicas.current();
        builder.apply(changed(&replica, seen.as_deref()));
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

fn changed(replica: &Replica, seen: Option<&Replica>) -> Vec<(Key, Option<Arc<Record>>)> {
    let Some(seen) = seen else { return everything(replica) };
    let changes = replica.changes_since(seen.version);
    let changes = changes.unwrap_or_else(|| replica.differences(seen));
    let records = changes.into_iter().filter_map(|change| match change {
        Change::Record(key) => Some(key),
        Change::Complete(..) => None,
    });
    records
        .map(|key| {
            let record = replica.get(&key).and_then(|entry| entry.record.clone());
            (key, record)
        })
        .collect()
}

fn everything(replica: &Replica) -> Vec<(Key, Option<Arc<Record>>)> {
    let records = replica.owners().flat_map(|(_, holding)| holding.records());
    records.map(|(key, entry)| (key.clone(), entry.record.clone())).collect()
}
