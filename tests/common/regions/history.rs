//! What a region's store has gone through, read from its own history.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tombolo_federation::names::Owner;
use tombolo_federation::record::Newest;
use tombolo_federation::store::etcd::{Etcd, EtcdConfig};
use tombolo_federation::store::{Event, Range, Revision, Store as _, WatchEvent};
use tombolo_federation::sync::facts::{self, Fact};

use super::Regions;

/// A local etcd sends some hundred commits in a moment.
const READ_WITHIN: Duration = Duration::from_secs(30);

/// What every commit did, first to last.
pub(crate) struct History(pub(crate) Vec<(Revision, Vec<Event>)>);

impl Regions {
    /// All that happened under Tombolo's keys since the store was made (or restored: a snapshot
    /// brings its history along).
    pub(crate) fn history(&self, region: &'static str) -> anyhow::Result<History> {
        let endpoints = self.etcds.get(region).context("its etcd")?.endpoints();
        self.inside(region, || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()?;
            runtime.block_on(async { tokio::time::timeout(READ_WITHIN, read(&endpoints)).await? })
        })
    }
}

async fn read(endpoints: &[String]) -> anyhow::Result<History> {
    let store = Etcd::connect(EtcdConfig::new(endpoints)).await?;
    let prefix = "/tombolo/".to_owned();
    let newest = Range { prefix: prefix.clone(), after: None, limit: 1, revision: None };
    let end = store.range(newest).await?.revision;
    let mut watch = store.watch(&prefix, 1).await?;
    let mut commits = Vec::new();
    loop {
        match watch.events.recv().await.context("the watch ended")? {
            WatchEvent::Commit { revision, events } => {
                commits.push((revision, events));
                if revision >= end {
                    break;
                }
            }
            WatchEvent::Progress { revision } if revision >= end => break,
            WatchEvent::Progress { .. } => {}
            other => bail!("{other:?}"),
        }
    }
    Ok(History(commits))
}

impl History {
    /// Each owner's word only ever goes on: by epoch and sequence no transaction comes after a
    /// newer one, which is what two writers at a time would look like.
    pub(crate) fn assert_one_writer(&self) -> anyhow::Result<()> {
        let mut newest: BTreeMap<Owner, (Newest, Revision)> = BTreeMap::new();
        for (revision, events) in &self.0 {
            for event in events {
                let Event::Put(entry) = event else { continue };
                let Some(Fact::Said(owner, said)) = facts::read(&entry.key, &entry.value) else {
                    continue;
                };
                if let Some((before, at)) = newest.get(&owner) {
                    ensure!(
                        !said.newest.is_older_than(before),
                        "{owner} said {before:?} at revision {at} and {:?} at {revision}",
                        said.newest
                    );
                }
                newest.insert(owner, (said.newest, *revision));
            }
        }
        ensure!(newest.len() >= 6, "two regions and four clusters have spoken: {newest:?}");
        Ok(())
    }

    /// The terms that leaders began, in the order in which they did: store id and count.
    pub(crate) fn terms(&self) -> Vec<(String, u64)> {
        let events = self.0.iter().flat_map(|(_, events)| events);
        let founding = events.filter_map(|event| match event {
            Event::Put(entry) if entry.key == facts::founding_key() => {
                facts::founding(&entry.value)
            }
            _ => None,
        });
        let mut terms: Vec<_> = founding.map(|founding| (founding.id, founding.term)).collect();
        terms.dedup();
        terms
    }

    /// Who was elected, in the order in which they were.
    pub(crate) fn elected(&self) -> Vec<String> {
        let events = self.0.iter().flat_map(|(_, events)| events);
        let elected = events.filter_map(|event| match event {
            Event::Put(entry) if entry.key == facts::election_key() => {
                Some(String::from_utf8_lossy(&entry.value).into_owned())
            }
            _ => None,
        });
        elected.collect()
    }
}
