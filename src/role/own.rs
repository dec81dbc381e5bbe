//! What a cluster's source wants to say, said into the agent's replica: the overlay that its own
//! proxies and DNS clients see at once, and that the publisher then carries to the region.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tombolo_federation::key::{Key, Kind};
use tombolo_federation::manifests::Desired;
use tombolo_federation::record::{Beacon, Body, Cluster, Record, Removal};
use tombolo_federation::replica::{Batch, ReplicaWriter};
use tombolo_federation::sync::client::Surplus;
use tombolo_federation::sync::own::{OwnRecords, with_join};
use tombolo_federation::sync::{BEACON_INTERVAL, CLUSTER_KINDS};

/// Everything that the task works on.
pub(crate) struct Own {
    pub(crate) records: OwnRecords,
    pub(crate) cluster: Cluster,
    pub(crate) desired: watch::Receiver<Arc<Desired>>,
    /// The region's word on when the cluster joined.
    pub(crate) joined: watch::Receiver<Option<Timestamp>>,
    /// The join that what was said respects.
    pub(crate) respected: watch::Sender<Option<Timestamp>>,
    /// Asks what became of records that only the region has.
    pub(crate) surplus: mpsc::Receiver<Surplus>,
    pub(crate) writer: Arc<ReplicaWriter>,
    /// What an earlier run published, as it was restored from disk. It is served, not said, until
    /// the source can vouch for what is there and what is not.
    pub(crate) restored: BTreeMap<Key, Arc<Record>>,
}

impl Own {
    /// Keeps saying what the source wants said, and every 5 s that it is alive.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let mut beat = interval(BEACON_INTERVAL);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let beacon_key = Key::of_owner(self.records.owner().clone(), Kind::Beacon);
        let mut nonce = 0;
        self.reconcile();
        loop {
            tokio::select! {
                changed = self.desired.changed() => match changed {
                    Ok(()) => self.reconcile(),
                    Err(_) => return Ok(()),
                },
                changed = self.joined.changed() => match changed {
                    Ok(()) => self.reconcile(),
                    Err(_) => return Ok(()),
                },
                surplus = self.surplus.recv() => match surplus {
                    Some(surplus) => self.judge(surplus),
                    None => return Ok(()),
                },
                _ = beat.tick() => {
                    nonce += 1;
                    let body = Arc::new(Body::Beacon(Beacon { nonce }));
                    let items = vec![self.records.say(&beacon_key, &body)];
                    self.writer.apply(Batch { items, ..Batch::default() }, Instant::now());
                }
            }
        }
    }

    /// What was published before this process started and is not wanted any more was removed by
    /// somebody while it was away. With a gap nothing can be said.
    fn judge(&mut self, surplus: Surplus) {
        let desired = Arc::clone(&self.desired.borrow());
        let known = if desired.complete { known_kinds(&desired) } else { &[] };
        let wanted = self.bodies(&desired);
        let gone = surplus.records.iter().map(|(key, _)| key);
        let gone = gone.filter(|key| known.contains(&key.kind) && !wanted.contains_key(*key));
        let gone: Vec<Key> = gone.cloned().collect();
        let gone = gone.into_iter().map(|key| (key, self.records.remove(Removal::Explained)));
        // Whoever asked is gone with its stream.
        let _ = surplus.gone.send(gone.collect());
    }

    /// Says what the source wants said, if it is known.
    pub(crate) fn reconcile(&mut self) {
        let desired = Arc::clone(&self.desired.borrow_and_update());
        let joined = *self.joined.borrow_and_update();
        if desired.complete {
            // From here on its own word counts, also when it is that it is gone.
            self.restored.retain(|key, _| !desired.records.contains_key(key));
            let bodies = with_join(&self.bodies(&desired), joined);
            let mut batch = self.records.reconcile(&bodies);
            batch.items.extend(self.outdated(&desired, &bodies));
            batch.complete = self.records.complete(known_kinds(&desired));
            self.writer.apply(batch, Instant::now());
        }
        self.respected.send_if_modified(|respected| {
            let news = *respected != joined;
            *respected = joined;
            news
        });
    }

    /// The cluster itself, what the source wants, and what was said before and may still be wanted.
    fn bodies(&self, desired: &Desired) -> BTreeMap<Key, Arc<Body>> {
        let key = Key::of_owner(self.records.owner().clone(), Kind::Cluster);
        let cluster = Arc::new(Body::Cluster(self.cluster.clone()));
        let kept = self.restored.iter().filter(|_| desired.gaps);
        let records = desired.records.iter();
        kept.map(|(key, record)| (key.clone(), Arc::new(record.body.clone())))
            .chain(records.map(|(key, body)| (key.clone(), Arc::new(body.clone()))))
            .chain([(key, cluster)])
            .collect()
    }

    /// What was restored and is not wanted any more; known once the source has no gap.
    fn outdated(
        &mut self,
        desired: &Desired,
        bodies: &BTreeMap<Key, Arc<Body>>,
    ) -> Vec<(Key, Option<Bytes>)> {
        if desired.gaps {
            return Vec::new();
        }
        let restored = std::mem::take(&mut self.restored).into_keys();
        restored.filter(|key| !bodies.contains_key(key)).map(|key| (key, None)).collect()
    }
}

/// With a gap (a document that was never readable in this process's life), what an earlier run
/// published may still be wanted: then these kinds are not vouched for, and nothing of them goes
/// for being absent.
fn known_kinds(desired: &Desired) -> &'static [Kind] {
    if desired.gaps { &[Kind::Cluster, Kind::Beacon] } else { &CLUSTER_KINDS }
}

#[cfg(test)]
mod tests {
    use tombolo_federation::manifests::Counts;
    use tombolo_federation::names::Owner;
    use tombolo_federation::record::{Epoch, Namespace};
    use tombolo_federation::replica;

    use super::*;

    fn owner() -> Owner {
        "r/r-a".parse().unwrap()
    }

    fn key(name: &str) -> Key {
        format!("/tombolo/v1/r/r-a/namespace/_/{name}").parse().unwrap()
    }

    fn body() -> Body {
        Body::Namespace(Namespace::default())
    }

    fn says(names: &[&str], complete: bool, gaps: bool) -> Arc<Desired> {
        Arc::new(Desired {
            complete,
            gaps,
            records: names.iter().map(|name| (key(name), body())).collect(),
            counts: Counts::default(),
            problems: Vec::new(),
            more_problems: 0,
            services_without_endpoints: Vec::new(),
        })
    }

    /// Names and the count of the epoch they were said in.
    type Held<'a> = &'a [(&'a str, u64)];

    /// The namespaces that are held after each word of the source, from `restored` on, with the
    /// epochs they were said in, and whether that is all.
    fn check(restored: &[&str], words: &[(Arc<Desired>, Held<'_>, bool)]) {
        let (writer, replicas) = replica::channel();
        let writer = Arc::new(writer);
        let epoch = |count| Epoch { id: "e".into(), count };
        let bodies = restored.iter().map(|name| (key(name), Arc::new(body()))).collect();
        let before = OwnRecords::new(owner(), epoch(1)).reconcile(&bodies);
        let restored = before.items.iter().map(|(key, value)| {
            let record = Record::open(key, value.as_ref().unwrap()).unwrap();
            (key.clone(), Arc::new(record))
        });
        let restored = restored.collect();
        writer.apply(before, Instant::now());
        let (desired_tx, desired) = watch::channel(says(&[], false, false));
        let mut own = Own {
            records: OwnRecords::new(owner(), epoch(2)),
            cluster: Cluster::default(),
            desired,
            joined: watch::channel(None).1,
            respected: watch::Sender::new(None),
            surplus: mpsc::channel(1).1,
            writer,
            restored,
        };
        for (word, held, all) in words {
            desired_tx.send_replace(Arc::clone(word));
            own.reconcile();
            let replica = replicas.peek();
            let holding = replica.holding(&owner()).unwrap();
            let records = holding.records().filter_map(|(_, entry)| entry.record.as_ref());
            let namespaces = records.filter(|record| record.key.kind == Kind::Namespace);
            let namespaces: Vec<_> = namespaces
                .map(|record| (record.key.name.to_string(), record.origin.epoch.count))
                .collect();
            let expected: Vec<_> =
                held.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
            assert_eq!(namespaces, expected, "{word:?}");
            assert_eq!(holding.complete().contains_key(&Kind::Namespace), *all, "{word:?}");
        }
    }

    #[test]
    fn what_was_restored_is_served_unsaid_until_the_source_was_read() {
        check(
            &["a", "b"],
            &[
                (says(&[], false, false), &[("a", 1), ("b", 1)], false),
                (says(&["b", "c"], true, false), &[("b", 2), ("c", 2)], true),
            ],
        );
    }

    #[test]
    fn with_a_gap_what_was_restored_is_said_on_until_the_source_says_otherwise() {
        check(
            &["a", "b"],
            &[
                (says(&["b"], true, true), &[("a", 2), ("b", 2)], false),
                (says(&[], true, true), &[("a", 2)], false),
                (says(&[], true, false), &[], true),
            ],
        );
    }
}
