//! The election cases of every store, in real time.

use std::sync::Arc;
use std::time::Duration;

use tombolo_federation::store::conformance::elections::{self, Pace};
use tombolo_testbed::etcd::Options;

use crate::{connect, on_each, start};

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
