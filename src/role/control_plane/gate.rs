//! When a control plane's catalog opens, and who is let in.

use std::time::Duration;

use tokio::sync::watch;
use tombolo_federation::catalog::Publisher;
use tombolo_federation::key::{Key, Kind};
use tombolo_federation::names::{Owner, RegionName};
use tombolo_federation::replica::{Replica, Replicas};
use tracing::{info, warn};

use crate::role::catalog::{Gate, build};
use crate::role::status::{self};
use crate::role::tasks::Tasks;

/// How long a control plane waits for its agents before what it has is taken for all.
const AGENTS_COME_WITHIN: Duration = Duration::from_secs(10);

/// Says when the region has spoken in its store, its members among what it says. One that cannot
/// (nobody leads) keeps its agents waiting no longer than its catalog does.
pub(super) async fn settle(
    region: RegionName,
    mut replicas: Replicas,
    settled: watch::Sender<bool>,
) {
    let key = Key::of_owner(Owner::region(region), Kind::Region);
    if replicas.wait_for(|replica| replica.position > 0).await.is_some() {
        let spoken = replicas.wait_for(|replica| replica.get(&key).is_some());
        if tokio::time::timeout(AGENTS_COME_WITHIN, spoken).await.is_err() {
            warn!("nobody has spoken for this region yet, agents are let in all the same");
        }
        settled.send_replace(true);
    }
    // Sessions ask for as long as this process serves.
    std::future::pending::<()>().await;
}

/// Who is told that all is there.
pub(super) struct Told {
    /// Agents that subscribe: they open their own catalogs by it.
    pub(super) agents: watch::Sender<bool>,
    /// The disk cache, which keeps nothing less. From the start if an image was restored: what is held
    /// is never less than that was.
    pub(super) cache: watch::Sender<bool>,
}

/// Opens the catalog at once for what was restored from disk, else once what was read of the store
/// is whole, and says so; see [`gate`].
pub(super) fn start_catalog(
    tasks: &mut Tasks,
    replicas: &Replicas,
    publisher: Publisher,
    region: RegionName,
    told: Told,
) {
    let restored = *told.cache.borrow();
    let first = if restored { Gate::Open } else { Gate::Closed };
    let (gate_tx, gate_rx) = watch::channel(first);
    tasks.start_endless("gate", gate(region, replicas.clone(), gate_tx, told));
    tasks.start_fallible("catalog", build(replicas.clone(), gate_rx, publisher));
}

/// Opens the catalog once the store was read, a cluster of this region is complete, and so is every
/// owner that is held: what was complete when it was committed is complete when it is read back. A
/// store that is new, or was lost, has nothing to vouch for until its agents have come, which they
/// are given 10 s for; until then what is not found is not known (RELIABILITY promise 4), unless it
/// was restored from disk: then the catalog is open already.
///
/// The same word goes to agents that subscribe. What is only taken for all is not kept on disk.
pub(super) async fn gate(
    region: RegionName,
    mut replicas: Replicas,
    gate: watch::Sender<Gate>,
    told: Told,
) {
    if replicas.wait_for(|replica| replica.position > 0).await.is_some() {
        if *gate.borrow() == Gate::Closed {
            gate.send_replace(Gate::Partial);
        }
        let whole = replicas.wait_for(|replica| is_whole(&region, replica));
        if tokio::time::timeout(AGENTS_COME_WITHIN, whole).await.is_err() {
            info!("not all owners are complete, serving what there is");
        }
        gate.send_replace(Gate::Open);
        told.agents.send_replace(true);
        if replicas.wait_for(|replica| is_whole(&region, replica)).await.is_some() {
            told.cache.send_replace(true);
        }
    }
    // The catalog follows the gate for as long as it stands.
    std::future::pending::<()>().await;
}

pub(super) fn is_whole(region: &RegionName, replica: &Replica) -> bool {
    let own = |owner: &Owner| owner.region == *region && owner.cluster.is_some();
    replica.owners().any(|(owner, holding)| own(owner) && status::has_spoken(holding))
        && replica.owners().all(|(_, holding)| status::has_spoken(holding))
}
