//! What a cluster's source wants to say, said into the agent's replica: the overlay that its own
//! proxies and DNS clients see at once, and that the publisher then carries to the region.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tombolo_federation::key::{Key, Kind};
use tombolo_federation::manifests::Desired;
use tombolo_federation::record::{Beacon, Body, Cluster};
use tombolo_federation::replica::{Batch, ReplicaWriter};
use tombolo_federation::sync::own::{OwnRecords, with_join};
use tombolo_federation::sync::settings::mesh_level;
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
    pub(crate) writer: Arc<ReplicaWriter>,
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
                _ = beat.tick() => {
                    if self.records.set_level(mesh_level(&self.writer.current())) {
                        self.reconcile();
                    }
                    nonce += 1;
                    let body = Arc::new(Body::Beacon(Beacon { nonce }));
                    let items = vec![self.records.say(&beacon_key, &body)];
                    self.writer.apply(Batch { items, ..Batch::default() }, Instant::now());
                }
            }
        }
    }

    fn reconcile(&mut self) {
        let desired = Arc::clone(&self.desired.borrow_and_update());
        let joined = *self.joined.borrow_and_update();
        if desired.complete {
            let bodies = with_join(&self.bodies(&desired), joined);
            let mut batch = self.records.reconcile(&bodies);
            batch.complete = self.records.complete(known_kinds(&desired));
            self.writer.apply(batch, Instant::now());
        }
        self.respected.send_if_modified(|respected| {
            let news = *respected != joined;
            *respected = joined;
            news
        });
    }

    fn bodies(&self, desired: &Desired) -> BTreeMap<Key, Arc<Body>> {
        let key = Key::of_owner(self.records.owner().clone(), Kind::Cluster);
        let cluster = Arc::new(Body::Cluster(self.cluster.clone()));
        let records = desired.records.iter();
        records
            .map(|(key, body)| (key.clone(), Arc::new(body.clone())))
            .chain([(key, cluster)])
            .collect()
    }
}

/// With a gap (a document that was never readable in this process's life), what an earlier run
/// published may still be wanted: then these kinds are not vouched for, and nothing of them goes
/// for being absent.
fn known_kinds(desired: &Desired) -> &'static [Kind] {
    if desired.gaps { &[Kind::Cluster, Kind::Beacon] } else { &CLUSTER_KINDS }
}
