//! The election cases of every store, in real time.

use std::sync::Arc;
use std::time::Duration;

use tombolo_federation::store::StoreError;
use tombolo_federation::store::conformance::elections::{self, Pace};
use tombolo_federation::store::election::campaign;
use tombolo_testbed::etcd::Options;

use crate::{config, connect, connected, eventually, on_each, put, start};

#[tokio::test(flavor = "multi_thread")]
async fn elections_hold_on_etcd() {
    on_each("elections", async |release, dir| {
        let etcd = Arc::new(start(release, dir, Options::default()));
        // etcd looks for leases that ran out twice a second and deletes so many per second.
        let ttl = Duration::from_secs(3);
        let pace = Pace { ttl, hold: ttl * 2, late: Duration::from_secs(5) };
        elections::all(pace, || {
            let etcd = Arc::clone(&etcd);
            async move {
                etcd.ctl(&["del", "", "--prefix"]).expect("deletes everything");
                connect(&etcd).await
            }
        })
        .await;
    })
    .await;
}

/// Whichever member freezes, the others answer within the lease's time, however long a request may
/// usually take.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_member_does_not_cost_leadership() {
    on_each("sigstop-leading", async |release, dir| {
        let mut etcd = start(release, dir, Options::members(3));
        let ttl = Duration::from_secs(3);
        for (leads, before) in [(false, false), (true, false), (false, true), (true, true)] {
            let leader = etcd.leader().expect("leads");
            let victim = if leads { leader } else { (leader + 1) % 3 };
            let mut settings = config(&etcd);
            settings.request_timeout = ttl * 3;
            settings.endpoints.rotate_left(victim);
            let store = connected(settings).await;
            put(&*store, "/a", "0").await;
            if before {
                etcd.pause(victim).expect("stops");
            }
            let won = campaign(Arc::clone(&store), "/leader", "me", ttl).await.expect("leads");
            if !before {
                etcd.pause(victim).expect("stops");
            }
            let lost = tokio::time::timeout(ttl * 2, won.lost()).await;
            assert!(lost.is_err(), "it leads: {leads}, it was frozen before: {before}");
            etcd.resume(victim).expect("goes on");
            won.resign().await;
            eventually("a leader again", async || {
                etcd.leader().map_err(|error| StoreError::Unavailable(error.to_string()))
            })
            .await;
        }
    })
    .await;
}
