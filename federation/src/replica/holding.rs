//! What is held of one owner, and of one record.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rpds::RedBlackTreeMapSync;
use tokio::time::Instant;

use super::Change;
use crate::digest::Digest;
use crate::key::{Key, Kind};
use crate::names::{NamespaceName, Owner};
use crate::record::{Epoch, Newest, Origin, Record, RecordError};

/// Beacons come every 5 s: whoever misses more of them than two in a row was not listening.
pub const BEACON_GAP: Duration = Duration::from_secs(15);

/// What is held of one owner.
#[derive(Debug, Clone)]
pub struct Holding {
    records: RedBlackTreeMapSync<Key, Entry>,
    digest: Digest,
    /// Of the records of each level's kinds, about each namespace and about none; together
    /// [`Self::digest`].
    digests: RedBlackTreeMapSync<(u32, Option<NamespaceName>), Digest>,
    pub(super) complete: BTreeMap<Kind, Epoch>,
    newest: Option<Newest>,
    beacon_changed: Option<Instant>,
    /// The first of those that came without a gap up to `beacon_changed`.
    beacons_since: Option<Instant>,
    quarantined: usize,
    bytes: usize,
}

/// One record as it was received.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The bytes, verbatim.
    pub value: Bytes,
    /// The newest version that could be opened: of these bytes, or of earlier ones.
    pub record: Option<Arc<Record>>,
    /// Why the bytes are quarantined, if they are.
    pub problem: Option<Arc<RecordError>>,
    /// The bytes of `record`, where they are not `value`: the last good ones, for the disk.
    pub good: Option<Bytes>,
    /// Which change these bytes are, where they cannot be opened but tell.
    unopened: Option<Origin>,
    /// Of this entry alone; zero for a beacon.
    digest: Digest,
}

impl Holding {
    pub(super) fn new() -> Self {
        Self {
            records: RedBlackTreeMapSync::new_sync(),
            digest: Digest::default(),
            digests: RedBlackTreeMapSync::new_sync(),
            complete: BTreeMap::new(),
            newest: None,
            beacon_changed: None,
            beacons_since: None,
            quarantined: 0,
            bytes: 0,
        }
    }

    /// All its records, ascending by key: kinds in their order, then names.
    pub fn records(&self) -> impl Iterator<Item = (&Key, &Entry)> {
        self.records.iter()
    }

    /// Those of them beyond `key`; all without one.
    pub fn records_after(&self, key: Option<&Key>) -> impl Iterator<Item = (&Key, &Entry)> {
        use std::ops::Bound;
        let from = key.map_or(Bound::Unbounded, Bound::Excluded);
        self.records.range((from, Bound::Unbounded))
    }

    /// The record under `key`.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&Entry> {
        self.records.get(key)
    }

    /// How many records it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.size()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Over keys and bytes of all records but beacons, which differ every 5 s and would make
    /// every reconnect a full transfer.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// [`Self::digest`] of the records of kinds that readers of `level` know.
    #[must_use]
    pub fn digest_at(&self, level: u32) -> Digest {
        self.digest_within(level, |_| true)
    }

    /// [`Self::digest_at`] of the records about these namespaces, and about none.
    pub fn digest_within(
        &self,
        level: u32,
        within: impl Fn(Option<&NamespaceName>) -> bool,
    ) -> Digest {
        let within = |(since, about): &(u32, Option<NamespaceName>)| {
            *since <= level && within(about.as_ref())
        };
        let parts = self.digests.iter().filter(|(part, _)| within(part));
        parts.fold(Digest::default(), |mut sum, (_, part)| {
            sum += *part;
            sum
        })
    }

    /// [`Self::digest_at`] of what is left without these keys.
    pub fn digest_without<'a>(&self, level: u32, keys: impl Iterator<Item = &'a Key>) -> Digest {
        let known = keys.filter(|key| key.kind.since_level() <= level);
        known.filter_map(|key| self.records.get(key)).fold(
            self.digest_at(level),
            |mut sum, entry| {
                sum -= entry.digest;
                sum
            },
        )
    }

    /// The owner's newest change that was seen: of a record that is held, a removal, or a beacon.
    #[must_use]
    pub fn newest(&self) -> Option<&Newest> {
        self.newest.as_ref()
    }

    /// The kinds that the owner said are complete, and in which epoch.
    #[must_use]
    pub fn complete(&self) -> &BTreeMap<Kind, Epoch> {
        &self.complete
    }

    /// When a new beacon was last seen to arrive. One that was there from the start may be of any
    /// age, so it does not count.
    #[must_use]
    pub fn beacon_changed(&self) -> Option<Instant> {
        self.beacon_changed
    }

    /// For how long, up to now, beacons have come without a gap of more than [`BEACON_GAP`]. Zero
    /// if there is such a gap now: nothing is known of what happened in one.
    #[must_use]
    pub fn heard_without_gap(&self, now: Instant) -> Duration {
        let (Some(last), Some(since)) = (self.beacon_changed, self.beacons_since) else {
            return Duration::ZERO;
        };
        if now.saturating_duration_since(last) > BEACON_GAP {
            return Duration::ZERO;
        }
        now.saturating_duration_since(since)
    }

    /// Records whose newest bytes could not be opened.
    #[must_use]
    pub fn quarantined(&self) -> usize {
        self.quarantined
    }

    /// Which those are, and why.
    pub fn quarantine(&self) -> impl Iterator<Item = (&Key, &RecordError)> {
        // Nearly always there are none, and nobody looks through all records for that.
        let some = (self.quarantined > 0).then(|| self.records.iter());
        some.into_iter().flatten().filter_map(|(key, entry)| Some((key, entry.problem.as_deref()?)))
    }

    /// What its values have together: about what a transfer of all of it costs.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn differences(&self, owner: &Owner, other: Option<&Self>) -> Vec<Change> {
        let differs = |(key, entry): &(&Key, &Entry)| {
            other
                .and_then(|other| other.records.get(key))
                .is_none_or(|held| held.value != entry.value)
        };
        let records = self.records().filter(differs).map(|(key, _)| Change::Record(key.clone()));
        let kinds = self.complete.iter().filter(|(kind, epoch)| {
            other.and_then(|other| other.complete.get(kind)) != Some(epoch)
        });
        let kinds = kinds.map(|(kind, _)| Change::Complete(owner.clone(), *kind));
        records.chain(kinds).collect()
    }

    /// Returns whether anything is different now. `vouched` is the epoch in which the owner says,
    /// with this, that it has said all of the kind.
    pub(super) fn set(
        &mut self,
        key: &Key,
        value: Option<Entry>,
        vouched: Option<&Epoch>,
        now: Instant,
    ) -> bool {
        let held = self.records.get(key).cloned();
        let Some(mut entry) = value else {
            let Some(held) = held else { return false };
            self.forget(key, &held);
            self.records.remove_mut(key);
            return true;
        };
        if held.as_ref().is_some_and(|held| held.value == entry.value) {
            return false;
        }
        if let Some(held) = &held {
            if entry.goes_back_before(held) && !held.gives_way(key, vouched) {
                return false;
            }
            if entry.problem.is_some() {
                entry.record.clone_from(&held.record);
                entry.good = held.good_bytes();
            }
            self.forget(key, held);
            if key.kind == Kind::Beacon {
                self.beacon_came(now);
            }
        }
        self.change_digest(key, |digest| *digest += entry.digest);
        self.quarantined += usize::from(entry.problem.is_some());
        self.bytes += entry.value.len();
        if let Some(origin) = entry.origin() {
            self.saw(origin.newest());
        }
        self.records.insert_mut(key.clone(), entry);
        true
    }

    fn beacon_came(&mut self, now: Instant) {
        if self.heard_without_gap(now).is_zero() {
            self.beacons_since = Some(now);
        }
        self.beacon_changed = Some(now);
    }

    fn forget(&mut self, key: &Key, held: &Entry) {
        self.change_digest(key, |digest| *digest -= held.digest);
        self.quarantined -= usize::from(held.problem.is_some());
        self.bytes -= held.value.len();
    }

    fn change_digest(&mut self, key: &Key, change: impl Fn(&mut Digest)) {
        change(&mut self.digest);
        let place = (key.kind.since_level(), key.about());
        let mut part = self.digests.get(&place).copied().unwrap_or_default();
        change(&mut part);
        if part == Digest::default() {
            self.digests.remove_mut(&place);
        } else {
            self.digests.insert_mut(place, part);
        }
    }

    /// Another incarnation than the one known counts as newer: there is no order between them, and
    /// the store has only one at a time.
    pub(super) fn saw(&mut self, newest: Newest) -> bool {
        let news = self
            .newest
            .as_ref()
            .is_none_or(|held| held.epoch.id != newest.epoch.id || held.is_older_than(&newest));
        if news {
            self.newest = Some(newest);
        }
        news
    }
}

impl Entry {
    /// All that costs: decoding and hashing.
    pub(super) fn open(key: &Key, value: Bytes, level: u32) -> Self {
        let digest = match key.kind {
            Kind::Beacon => Digest::default(),
            _ => Digest::of(key.to_string().as_bytes(), &value),
        };
        let (record, problem) = match Record::open_at(key, &value, level) {
            Ok(record) => (Some(Arc::new(record)), None),
            // Kinds that are only passed on are not in quarantine for it.
            Err(RecordError::NotRead(_)) => (None, None),
            Err(error) => {
                tracing::warn!(%key, %error, "record quarantined, its last good version stays in use");
                (None, Some(Arc::new(error)))
            }
        };
        let unopened = if record.is_none() { Origin::of_value(&value) } else { None };
        Self { value, record, problem, good: None, unopened, digest }
    }

    fn good_bytes(&self) -> Option<Bytes> {
        self.record.as_ref()?;
        Some(self.good.clone().unwrap_or_else(|| self.value.clone()))
    }

    /// No observer may see a key go back to an older version of its owner. Versions of different
    /// epoch ids have no order.
    fn goes_back_before(&self, held: &Self) -> bool {
        let (Some(new), Some(held)) = (self.origin(), held.origin()) else { return false };
        is_rewind(new, held)
    }

    fn gives_way(&self, key: &Key, vouched: Option<&Epoch>) -> bool {
        self.origin().is_some_and(|held| gives_way(key, held, vouched))
    }

    /// Which change of its owner the bytes are, if they tell; also of a record that only newer
    /// readers can open.
    #[must_use]
    pub fn origin(&self) -> Option<&Origin> {
        match &self.record {
            Some(record) if self.problem.is_none() => Some(&record.origin),
            _ => self.unopened.as_ref(),
        }
    }
}

/// Whether `new` is known to come before `held`.
#[must_use]
pub fn is_rewind(new: &Origin, held: &Origin) -> bool {
    new.newest().is_older_than(&held.newest())
}

/// Whether `held` gives way even to an earlier change, because its owner has said all of the kind in
/// the later epoch `vouched`. A cluster that starts anew confirms what its region has, and says anew
/// only what differs: where the region was restored to before a change that `held` is, what is there
/// is the owner's newest word. A region never confirms, it says anew; and nobody confirms a beacon.
#[must_use]
pub fn gives_way(key: &Key, held: &Origin, vouched: Option<&Epoch>) -> bool {
    let confirms = key.owner.cluster.is_some() && key.kind != Kind::Beacon;
    confirms && vouched.is_some_and(|epoch| held.epoch.is_older_than(epoch))
}
