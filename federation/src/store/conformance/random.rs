//! Random histories, the same for the same seed, held against the [`Model`].

use super::model::Model;
use super::{current, watched};
use crate::store::{Guard, LeaseId, Op, Range, Revision, Store, Txn, Watch};
use std::time::Duration;

const STEPS: usize = 300;
const KEYS: [&str; 9] = ["/a", "/a/a", "/a/b", "/a/b/c", "/ab", "/b", "/b/a", "/b/b", "/c"];
const PREFIXES: [&str; 7] = ["", "/", "/a", "/a/", "/a/b", "/b/", "/nothing"];
/// Longer than any history takes.
const TTL: Duration = Duration::from_hours(1);

/// One history of a store that has no keys. Says its seed if it fails.
pub async fn history(store: &dyn Store, seed: u64) {
    let said = SaySeed(seed);
    let model = Model::new(current(store).await);
    let random = Random(seed);
    let mut run = Run { store, model, random, watches: Vec::new(), leases: Vec::new() };
    for _ in 0..STEPS {
        run.step().await;
    }
    run.finish().await;
    drop(said);
}

/// Of no use to a failed assertion deep inside, so it is said on the way out.
struct SaySeed(u64);

impl Drop for SaySeed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the random history of seed {} failed", self.0);
        }
    }
}

/// `SplitMix64`.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// 0 to `end - 1`; `end` is small enough that the bias does not matter.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn one_of<T: Copy>(&mut self, from: &[T]) -> T {
        let index = self.below(from.len() as u64);
        from[usize::try_from(index).expect("is below a length")]
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

struct Run<'s> {
    store: &'s dyn Store,
    model: Model,
    random: Random,
    watches: Vec<Started>,
    leases: Vec<LeaseId>,
}

struct Started {
    prefix: &'static str,
    from: Revision,
    watch: Watch,
}

impl Run<'_> {
    async fn step(&mut self) {
        match self.random.below(100) {
            0..55 => self.commit().await,
            55..85 => self.range().await,
            85..92 => self.watch().await,
            92..95 => self.compact().await,
            95..98 => self.grant().await,
            _ => self.revoke().await,
        }
    }

    async fn commit(&mut self) {
        let mut keys = KEYS.to_vec();
        let ops = (0..self.random.below(4)).map(|_| {
            let at = usize::try_from(self.random.below(keys.len() as u64)).expect("small");
            self.random.op(keys.swap_remove(at), &self.leases)
        });
        let ops = ops.collect();
        let guards = (0..self.random.below(3)).map(|_| self.guard()).collect();
        let txn = Txn { guards, ops };
        let expected = self.model.commit(&txn);
        assert_eq!(self.store.commit(txn.clone()).await, expected, "{txn:?}");
    }

    /// One that holds, more often than not.
    fn guard(&mut self) -> Guard {
        let key = self.random.one_of(&KEYS);
        let range = Range { prefix: key.to_owned(), after: None, limit: 1, revision: None };
        let page = self.model.range(&range).expect("the newest can be read");
        let entry = page.entries.into_iter().find(|entry| entry.key == key);
        let off = u64::from(self.random.chance(20));
        if self.random.chance(50) {
            let at = entry.map_or(0, |entry| entry.mod_revision);
            Guard::ModRevision(key.to_owned(), at + off)
        } else {
            let at = entry.map_or(0, |entry| entry.create_revision);
            Guard::CreateRevision(key.to_owned(), at + off)
        }
    }

    /// From before what there is to after it, but never 0, which some stores take for "now".
    fn revision(&mut self) -> Revision {
        let first = self.model.events("", 0, self.model.revision()).first().map(|(at, _)| *at);
        // What the store's first revision did, before it had no keys, is nobody's concern.
        let first = first.unwrap_or(self.model.revision() + 1);
        first + self.random.below(self.model.revision() + 3 - first)
    }

    async fn range(&mut self) {
        let range = Range {
            prefix: self.random.one_of(&PREFIXES).to_owned(),
            after: self.random.chance(40).then(|| self.random.one_of(&KEYS).to_owned()),
            limit: usize::try_from(1 + self.random.below(10)).expect("small"),
            revision: self.random.chance(70).then(|| self.revision()),
        };
        let expected = self.model.range(&range);
        assert_eq!(self.store.range(range.clone()).await, expected, "{range:?}");
    }

    async fn watch(&mut self) {
        let (prefix, from) = (self.random.one_of(&PREFIXES), self.revision());
        let watch = self.store.watch(prefix, from).await.expect("watches");
        let mut started = Started { prefix, from, watch };
        if self.random.chance(50) && from <= self.model.revision() {
            // Caught up now, so that it follows from here on; the rest may be overtaken.
            let upto = self.model.revision();
            if !started.check(&self.model, upto).await {
                return;
            }
            started.from = upto + 1;
        }
        self.watches.push(started);
    }

    async fn compact(&mut self) {
        // Mostly far back: else there would be little history to read.
        let oldest = match self.random.below(10) {
            0 => self.revision(),
            _ => self.model.oldest() + self.random.below(10),
        };
        let expected = self.model.compact(oldest);
        assert_eq!(self.store.compact(oldest).await, expected, "to {oldest}");
    }

    async fn grant(&mut self) {
        let lease = self.store.grant_lease(TTL).await.expect("grants");
        self.model.granted(lease);
        self.leases.push(lease);
    }

    async fn revoke(&mut self) {
        if !self.leases.is_empty() {
            // It stays in the list: later steps put under it, or revoke it again.
            let lease = self.random.one_of(&self.leases);
            let expected = self.model.revoke(lease);
            assert_eq!(self.store.revoke_lease(lease).await, expected, "{lease:?}");
        }
    }

    async fn finish(mut self) {
        let furthest = self.watches.iter().map(|watch| watch.from).max().unwrap_or(0);
        while self.model.revision() < furthest {
            let txn = Txn { guards: vec![], ops: vec![Op::put("/c", "end")] };
            assert_eq!(self.store.commit(txn.clone()).await, self.model.commit(&txn));
        }
        let last = self.model.revision();
        for mut started in self.watches {
            started.check(&self.model, last).await;
        }
    }
}

impl Random {
    fn op(&mut self, key: &str, leases: &[LeaseId]) -> Op {
        if self.chance(30) {
            return Op::delete(key);
        }
        let value = format!("{}", self.next()).into();
        let lease = (!leases.is_empty() && self.chance(20)).then(|| self.one_of(leases));
        Op::Put { key: key.to_owned(), value, lease }
    }
}

impl Started {
    /// Holds what the watch delivers up to `upto` against the model. Whether it goes on.
    async fn check(&mut self, model: &Model, upto: Revision) -> bool {
        if self.from > upto {
            return true;
        }
        let (prefix, from) = (self.prefix, self.from);
        let seen = watched(&mut self.watch, upto).await;
        // A compacted watch delivered what it still could; where it stopped is the store's affair.
        let whole = match seen.compacted {
            None => upto,
            Some(oldest) => {
                // It says what was the oldest when it was overtaken; there was more compaction.
                let owed = seen.told.max(from - 1) + 1;
                assert!(owed < oldest, "{prefix:?} from {from}: {seen:?}");
                assert!(oldest <= model.oldest(), "{prefix:?} from {from}: {seen:?}");
                seen.told
            }
        };
        assert_eq!(seen.commits, model.events(prefix, from, whole), "{prefix:?} from {from}");
        seen.compacted.is_none()
    }
}
