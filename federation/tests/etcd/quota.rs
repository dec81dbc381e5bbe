//! A database that is full, and what its members say before.

use tombolo_federation::store::{Alarm, Complaint, Op, StoreError};
use tombolo_testbed::etcd::{Options, Release};

use crate::{commit, config, connected, eventually, on_each, put, range, start};

const QUOTA: u64 = 32 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn nospace_is_told_before_and_after_it_happens() {
    on_each("nospace", async |release, dir| {
        let etcd = start(release, dir, Options { quota: Some(QUOTA), ..Options::default() });
        let mut settings = config(&etcd);
        let store = connected(settings.clone()).await;
        let state = store.members().await[0].state.clone().expect("answers");
        let told = match release {
            Release::Pinned => Some(QUOTA),
            Release::Debian => None,
        };
        assert_eq!(state.quota, told, "what it is set to is not guessed");
        settings.quota = Some(QUOTA);
        let store = connected(settings).await;
        let members = store.members().await;
        let state = members[0].state.clone().expect("answers");
        assert_eq!((members.len(), state.quota, state.leader), (1, Some(QUOTA), true), "{state:?}");
        assert!(state.alarms.is_empty() && state.full_percent() < Some(10), "{state:?}");
        assert!(state.version.starts_with(match release {
            Release::Pinned => "3.6.",
            Release::Debian => "3.",
        }));

        let value = "v".repeat(1_000_000);
        let (mut warned, mut last) = (false, 0);
        let why = loop {
            match commit(&*store, vec![Op::put("/k", value.clone())]).await {
                Ok(revision) => last = revision,
                Err(StoreError::Unavailable(why)) => break why,
                Err(other) => unreachable!("{other}"),
            }
            let state = store.members().await[0].state.clone().expect("answers");
            warned |= state.full_percent() >= Some(60);
        };
        assert!(why.contains("NOSPACE") && why.contains("disarm"), "{why}");
        assert!(warned, "60 % were seen before");
        let state = store.members().await[0].state.clone().expect("answers");
        let alarm = Alarm::NoSpace;
        assert_eq!(state.alarms, [Complaint { of: state.id, alarm }], "{state:?}");
        assert_eq!(store.range(range("/k", 1, None)).await.expect("reads").revision, last);

        // What the words say to do.
        store.compact(last).await.expect("compacts");
        eventually("defragmenting", async || {
            let done = etcd.ctl(&["defrag"]).and_then(|_| etcd.ctl(&["alarm", "disarm"]));
            done.map_err(|error| StoreError::Unavailable(error.to_string()))?;
            let small = commit(&*store, vec![Op::put("/k", "small")]).await?;
            assert_eq!(small, last + 1);
            Ok(())
        })
        .await;
        put(&*store, "/k", "more").await;
        let state = store.members().await[0].state.clone().expect("answers");
        assert!(state.alarms.is_empty() && state.full_percent() < Some(60), "{state:?}");
    })
    .await;
}
