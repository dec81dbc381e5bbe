//! A disk that loses what was not synced, counts its syncs, and breaks on demand.

use std::io;
use std::sync::{Mutex, MutexGuard};

use redb::StorageBackend;

use super::super::open::backend;
use super::*;

#[derive(Debug, Clone, Default)]
struct Faulty(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    now: Vec<u8>,
    synced: Vec<u8>,
    /// Since the last sync.
    writes: Vec<(usize, Vec<u8>)>,
    syncs: usize,
    broken: bool,
    /// At every write: what was acknowledged, and what the disk may look like after a power loss.
    crashes: Option<Crashes>,
}

#[derive(Debug)]
struct Crashes {
    random: u64,
    acknowledged: Arc<AtomicU32>,
    images: Vec<(u32, Vec<u8>)>,
}

impl Faulty {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics with it")
    }

    fn store(&self) -> Embedded {
        Embedded::start(backend(self.clone()).expect("opens"))
    }

    fn of(image: Vec<u8>) -> Self {
        let state = State { now: image.clone(), synced: image, ..State::default() };
        Self(Arc::new(Mutex::new(state)))
    }
}

impl State {
    /// What was synced, and any of the writes since.
    fn crash(&mut self) {
        let Some(crashes) = &mut self.crashes else { return };
        let mut image = self.synced.clone();
        image.resize(self.now.len(), 0);
        for (offset, bytes) in &self.writes {
            crashes.random = crashes.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            if crashes.random >> 63 == 1 {
                image[*offset..offset + bytes.len()].copy_from_slice(bytes);
            }
        }
        crashes.images.push((crashes.acknowledged.load(Ordering::SeqCst), image));
    }
}

fn at(offset: u64) -> usize {
    usize::try_from(offset).expect("fits memory")
}

impl StorageBackend for Faulty {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        let from = state.now.get(at(offset)..at(offset) + out.len());
        out.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.state().now.resize(at(len), 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state();
        if state.broken {
            return Err(io::Error::other("the disk is broken"));
        }
        state.crash();
        state.synced = state.now.clone();
        state.writes.clear();
        state.syncs += 1;
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        if state.broken {
            return Err(io::Error::other("the disk is broken"));
        }
        state.now[at(offset)..at(offset) + data.len()].copy_from_slice(data);
        state.writes.push((at(offset), data.to_vec()));
        Ok(())
    }
}

#[tokio::test]
async fn what_is_acknowledged_is_synced() {
    let disk = Faulty::default();
    let store = disk.store();
    for n in 0..20 {
        let revision = put(&store, [Op::put(format!("/{n}"), "v")]).await;
        let synced = disk.state().synced.clone();
        let survivor = Faulty::of(synced).store();
        let (entries, newest) = list(&survivor, "/").await.expect("lists");
        assert_eq!((entries.len(), newest), (n + 1, revision));
    }
}

/// Just before each sync, where most can be lost.
#[tokio::test]
async fn a_power_loss_takes_nothing_acknowledged_and_leaves_nothing_half_done() {
    for seed in 1..=5 {
        let disk = Faulty::default();
        let store = disk.store();
        let acknowledged = Arc::new(AtomicU32::new(0));
        let known = Arc::clone(&acknowledged);
        disk.state().crashes = Some(Crashes { random: seed, acknowledged: known, images: vec![] });
        for n in 1..=15 {
            put(&store, [Op::put("/a", format!("{n}")), Op::put("/b", format!("{n}"))]).await;
            acknowledged.store(n, Ordering::SeqCst);
        }
        let crashes = disk.state().crashes.take().expect("was set");
        assert!(crashes.images.len() >= 15, "one for each commit at least");
        for (known, image) in crashes.images {
            let survivor = Faulty::of(image).store();
            let (entries, revision) = list(&survivor, "/").await.expect("lists");
            assert!(revision >= u64::from(known), "seed {seed}: {revision} of {known}");
            let expected = if revision == 0 { vec![] } else { vec![revision.to_string(); 2] };
            let values: Vec<_> =
                entries.iter().map(|e| String::from_utf8_lossy(&e.value).into_owned()).collect();
            assert_eq!(values, expected, "seed {seed}, after {known}");
        }
    }
}

#[tokio::test]
async fn commits_at_once_share_syncs() {
    let disk = Faulty::default();
    let store = disk.store();
    let before = disk.state().syncs;
    let commits = (0..500).map(|n| put(&store, [Op::put(format!("/{n}"), "v")]));
    futures::future::join_all(commits).await;
    let syncs = disk.state().syncs - before;
    assert!(syncs < 100, "{syncs} syncs for 500 commits");
}

#[tokio::test]
async fn a_broken_disk_fails_commits_and_loses_none() {
    let disk = Faulty::default();
    let store = disk.store();
    let last = put(&store, [Op::put("/k", "1")]).await;
    let mut watch = store.watch("", last + 1).await.expect("watches");
    disk.state().broken = true;
    for _ in 0..3 {
        let txn = Txn { guards: vec![], ops: vec![Op::put("/k", "2")] };
        let failed = store.commit(txn).await;
        assert!(matches!(failed, Err(StoreError::Unavailable(_))), "{failed:?}");
    }
    assert!(watch.events.try_recv().is_err(), "what failed is not delivered");
    drop(store);
    let repaired = Faulty::of(disk.state().synced.clone()).store();
    assert_eq!(read(&repaired, "/k").await.expect("reads").expect("is there").value, "1");
}
