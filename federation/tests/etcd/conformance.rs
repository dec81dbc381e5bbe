//! The suite of every store, random histories included.

use std::sync::Arc;

use tombolo_federation::store::conformance;
use tombolo_testbed::etcd::Options;

use crate::{connect, on_each, start};

#[tokio::test(flavor = "multi_thread")]
async fn etcd_conforms() {
    on_each("conformance", async |release, dir| {
        let etcd = Arc::new(start(release, dir, Options::default()));
        conformance::all(|| {
            let etcd = Arc::clone(&etcd);
            async move {
                // A fresh store is one without keys: etcd goes on counting.
                etcd.ctl(&["del", "", "--prefix"]).expect("deletes everything");
                connect(&etcd).await
            }
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_members_conform() {
    on_each("conformance-of-three", async |release, dir| {
        let etcd = Arc::new(start(release, dir, Options::members(3)));
        let factory = || {
            let etcd = Arc::clone(&etcd);
            async move {
                etcd.ctl(&["del", "", "--prefix"]).expect("deletes everything");
                connect(&etcd).await
            }
        };
        conformance::each(&factory).await;
    })
    .await;
}
