//! When a control plane's catalog opens, and who is let in.

use std::time::Duration;

use tokio::sync::watch;
use tombolo_federation::catalog::Publisher;
use tombolo_federation::key::{Key, Kind};
use tombolo_federation::names::{Owner, RegionName};
use tombolo_federation::record::Newest;
use tombolo_federation::replica::{Replica, Replicas};
use tracing::{info, warn};

use crate::role::catalog::{Gate, build};
use crate::role::status::{self};
use crate::role::tasks::Tasks;

/// How long a control plane waits for its agents before what it has is taken for all.
const AGENTS_COME_WITHIN: Duration = Duration::from_secs(10);
/// How long it then waits for owners that have not said all before it keeps what it has on disk
/// nevertheless: some never do, and a region need not have clusters.
const KEEP_PARTS_AFTER: Duration = Duration::from_mins(1);

/// Says when the region has spoken in its store since this process reads that, its members and what
/// they are entitled to among what it says: publishers wait for that. What stood there from the
/// start may be a backup's, and nobody may be there who knows that.
pub(super) async fn settle(
    region: RegionName,
    mut replicas: Replicas,
    settled: watch::Sender<bool>,
) {
    let owner = Owner::region(region);
    if let Some(first) = replicas.wait_for(|replica| replica.position > 0).await {
        let before = last_word(&first, &owner);
        let spoken = |replica: &Replica| {
            let word = last_word(replica, &owner);
            word.is_some() && word != before
        };
        if tokio::time::timeout(AGENTS_COME_WITHIN, replicas.wait_for(spoken)).await.is_err() {
            warn!(
                "nobody speaks for this region yet: its agents publish once a control plane leads"
            );
        }
        if replicas.wait_for(spoken).await.is_some() {
            settled.send_replace(true);
        }
    }
    // Sessions ask for as long as this process serves.
    std::future::pending::<()>().await;
}

/// The newest beacon of a leader that has said what the region is: each begins its term with that.
fn last_word(replica: &Replica, owner: &Owner) -> Option<Newest> {
    let origin = |kind| replica.get(&Key::of_owner(owner.clone(), kind))?.origin();
    let beacon = origin(Kind::Beacon)?.newest();
    (origin(Kind::Region)?.epoch == beacon.epoch).then_some(beacon)
}

/// Who is told that all is there.
pub(super) struct Told {
    /// Agents that subscribe: they open their own catalogs by it.
    pub(super) agents: watch::Sender<bool>,
    /// The disk cache, which keeps no less than that, or what there is when waiting was in vain. From
    /// the start if an image was restored: what is held is never less than that was.
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
    let (gate_tx, gate_rx) = watch::channel(first(restored, &region, &replicas.peek()));
    tasks.start_endless("gate", gate(region, replicas.clone(), gate_tx, told));
    tasks.start_fallible("catalog", build(replicas.clone(), gate_rx, publisher));
}

/// An image may be a part, which was kept for want of more.
fn first(restored: bool, region: &RegionName, replica: &Replica) -> Gate {
    match restored {
        false => Gate::Closed,
        true if is_whole(region, replica) => Gate::Open,
        true => Gate::Partial,
    }
}

/// Opens the catalog once the store was read, a cluster of this region is complete, and so is every
/// owner that is held: what was complete when it was committed is complete when it is read back. A
/// store that is new, or was lost, has nothing to vouch for until its agents have come, which they
/// are given 10 s for; until then what is not found is not known, unless it
/// was restored from disk: then the catalog is open already.
///
/// The same word goes to agents that subscribe. What is only taken for all is kept on disk a minute
/// later: by then more will hardly come.
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
        let whole = replicas.wait_for(|replica| is_whole(&region, replica));
        if tokio::time::timeout(KEEP_PARTS_AFTER, whole).await.is_err() {
            warn!("not all owners have said all: what they said is kept on disk as it is");
        }
        told.cache.send_replace(true);
    }
    // The catalog follows the gate for as long as it stands.
    std::future::pending::<()>().await;
}

pub(super) fn is_whole(region: &RegionName, replica: &Replica) -> bool {
    let own = |owner: &Owner| owner.region == *region && owner.cluster.is_some();
    replica.owners().any(|(owner, holding)| own(owner) && status::has_spoken(holding))
        && replica.owners().all(|(_, holding)| status::has_spoken(holding))
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;
    use tombolo_federation::record::{Beacon, Body, Epoch, Origin, Record, Region};
    use tombolo_federation::replica::{Batch, ReplicaWriter, channel};

    use super::*;

    fn spoken(writer: &ReplicaWriter, owners: &[(&str, Kind)]) {
        let epoch = Epoch { id: "e".into(), count: 1 };
        let complete =
            |(owner, kind): &(&str, Kind)| (owner.parse().unwrap(), *kind, epoch.clone());
        let complete = owners.iter().map(complete).collect();
        let batch = Batch { position: Some(1), complete, ..Batch::default() };
        writer.apply(batch, Instant::now());
    }

    async fn kept_after(owners: &[(&str, Kind)]) -> Duration {
        let (writer, replicas) = channel();
        let (agents, kept) = (watch::Sender::new(false), watch::Sender::new(false));
        let mut known = kept.subscribe();
        let told = Told { agents, cache: kept };
        let gate = gate("us".parse().unwrap(), replicas, watch::Sender::new(Gate::Closed), told);
        let began = Instant::now();
        spoken(&writer, owners);
        tokio::select! {
            () = gate => unreachable!("it stands"),
            known = known.wait_for(|kept| *kept) => drop(known.unwrap()),
        }
        began.elapsed()
    }

    /// One owner that never says all, or a region without clusters, are no reason to keep nothing.
    #[tokio::test(start_paused = true)]
    async fn what_is_whole_is_kept_at_once_and_a_part_when_waiting_was_in_vain() {
        let (region, cluster) = (("us/_", Kind::Region), ("us/us-a", Kind::Cluster));
        assert_eq!(kept_after(&[region, cluster]).await, Duration::ZERO);
        let patience = AGENTS_COME_WITHIN + KEEP_PARTS_AFTER;
        assert_eq!(kept_after(&[region]).await, patience);
        assert_eq!(kept_after(&[region, cluster, ("eu/eu-a", Kind::Namespace)]).await, patience);
    }

    /// What a leader says at change `sequence` of its term.
    fn said(term: u64, sequence: u64, body: Body) -> (Key, Option<bytes::Bytes>) {
        let owner = "us/_".parse().unwrap();
        let key = Key::of_owner(owner, body.kind());
        let epoch = Epoch { id: "us".into(), count: term };
        let origin = Origin { epoch, sequence, ..Origin::default() };
        let sealed = Record { key: key.clone(), origin, body }.seal();
        (key, Some(sealed.value))
    }

    #[tokio::test(start_paused = true)]
    async fn a_backups_word_on_the_region_settles_nothing() {
        let (writer, replicas) = channel();
        let (settled, settled_rx) = watch::channel(false);
        let (region, beacon) = (Region::default, |nonce| Body::Beacon(Beacon { nonce }));
        let says = |position, items| {
            let batch = Batch { position: Some(position), items, ..Batch::default() };
            writer.apply(batch, Instant::now());
        };
        let settles = async |expected| {
            let mut settled = settled_rx.clone();
            let within = tokio::time::timeout(Duration::from_mins(1), settled.wait_for(|s| *s));
            assert_eq!(within.await.is_ok(), expected);
        };
        says(7, vec![said(5, 1, Body::Region(region())), said(5, 9, beacon(8))]);
        let settling = settle("us".parse().unwrap(), replicas, settled);
        let speaking = async {
            settles(false).await;
            // Not yet: what it has said of itself is an earlier leader's still.
            says(8, vec![said(6, 2, beacon(1))]);
            settles(false).await;
            says(9, vec![said(6, 1, Body::Region(region()))]);
            settles(true).await;
        };
        tokio::select! {
            () = settling => unreachable!("it stands"),
            () = speaking => {}
        }
    }

    #[test]
    fn a_part_that_was_restored_is_not_taken_for_all() {
        let region: RegionName = "us".parse().unwrap();
        let (writer, replicas) = channel();
        spoken(&writer, &[("us/_", Kind::Region)]);
        assert_eq!(first(true, &region, &replicas.peek()), Gate::Partial);
        spoken(&writer, &[("us/us-a", Kind::Cluster)]);
        assert_eq!(first(true, &region, &replicas.peek()), Gate::Open);
        assert_eq!(first(false, &region, &replicas.peek()), Gate::Closed);
    }
}
