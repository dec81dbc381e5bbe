use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use super::*;
use crate::key::Key;
use crate::record::{
    Beacon, Body, Cluster, Decided, Decision, Epoch, Namespace, Newest, Origin, Record, Removal,
};
use crate::replica::{Removed, ReplicaWriter};
use crate::store::embedded::Embedded;
use crate::store::{
    Commit, LeaseId, Page, Range, Revision, Store, StoreError, Watch as StoreWatch,
};
use crate::sync::facts::Fact;
use crate::sync::feed::{Feed, Has, Interest, Owners};
use crate::sync::intake::{Accept, Intake};
use crate::sync::reseed::{Seed, seed_owner};

/// A store whose operation number `fails` fails, as a member that is restarted does it: before it
/// has done anything, or after.
#[derive(Debug)]
struct Hiccup {
    store: Embedded,
    fails: usize,
    afterwards: bool,
    asked: AtomicUsize,
}

impl Hiccup {
    fn now(&self) -> Result<(), StoreError> {
        if self.asked.fetch_add(1, Ordering::SeqCst) == self.fails {
            return Err(StoreError::Unavailable("its leader changed".to_owned()));
        }
        Ok(())
    }
}

#[async_trait]
impl Store for Hiccup {
    async fn range(&self, range: Range) -> Result<Page, StoreError> {
        self.now()?;
        self.store.range(range).await
    }
    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError> {
        if !self.afterwards {
            self.now()?;
            return self.store.commit(txn).await;
        }
        let done = self.store.commit(txn).await;
        self.now()?;
        done
    }
    async fn watch(&self, prefix: &str, from: Revision) -> Result<StoreWatch, StoreError> {
        self.store.watch(prefix, from).await
    }
    async fn compact(&self, oldest: Revision) -> Result<(), StoreError> {
        self.store.compact(oldest).await
    }
    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.store.grant_lease(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.keep_alive(lease).await
    }
    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.revoke_lease(lease).await
    }
}

fn epoch() -> Epoch {
    Epoch { id: "e".into(), count: 1 }
}

fn said_by(owner: &Owner, name: &str) -> (Key, Option<Bytes>) {
    let key = Key::of_namespace(owner.clone(), &name.parse().unwrap());
    let origin = Origin { epoch: epoch(), sequence: 1, ..Origin::default() };
    let record = Record { key, origin, body: Body::Namespace(Namespace::default()) };
    (record.key.clone(), Some(record.seal().value))
}

/// Two clusters, the second with more than one transaction takes.
fn given_back() -> Batch {
    let (a, b): (Owner, Owner) = ("r/r-a".parse().unwrap(), "r/r-b".parse().unwrap());
    let many = (0..300).map(|n| said_by(&b, &format!("n{n}")));
    let newest = Newest { epoch: epoch(), sequence: 1 };
    Batch {
        items: std::iter::once(said_by(&a, "shop")).chain(many).collect(),
        complete: vec![
            (a.clone(), Kind::Namespace, epoch()),
            (b.clone(), Kind::Namespace, epoch()),
        ],
        newest: vec![(a, newest.clone()), (b, newest)],
        ..Batch::default()
    }
}

async fn elected(store: &dyn Store) -> Guard {
    let election = vec![Op::put(facts::election_key(), "me")];
    store.commit(Txn { guards: vec![], ops: election }).await.unwrap();
    let leading = store::read(store, &facts::election_key()).await.unwrap().unwrap();
    Guard::CreateRevision(facts::election_key(), leading.create_revision)
}

async fn led(store: Arc<dyn Store>) -> Leader {
    let fence = elected(&*store).await;
    let leader = Leader::new(store, fence, replica::channel().1);
    founding::begin(&leader, "id", jiff::Timestamp::UNIX_EPOCH).await.unwrap();
    leader
}

/// Of region r, whose peers are asked by hand.
fn recovery(leader: Leader) -> Recovery<tonic::transport::Channel> {
    Recovery {
        leader,
        region: "r".parse().unwrap(),
        past: None,
        peers: BTreeMap::new(),
        left: watch::channel(None).1,
        asked: watch::Sender::default(),
    }
}

fn nothing_known() -> Mutex<Known> {
    Mutex::new(Known { newest: None, spoken: false })
}

/// Recovers over a store that fails once, and says what it has then, and whether it did fail.
async fn recovered(fails: usize, afterwards: bool) -> (Vec<String>, bool) {
    let store = Embedded::in_memory().await.unwrap();
    let hiccup = Arc::new(Hiccup { store, fails, afterwards, asked: AtomicUsize::new(0) });
    let fence = elected(&hiccup.store).await;
    let leader = Leader::new(Arc::<Hiccup>::clone(&hiccup), fence, replica::channel().1);
    let (recovery, known) = (recovery(leader), nothing_known());
    let write = || recovery.write(given_back(), &known);
    persist("writing", write).await.expect("a store that is well again");
    let (entries, _) = store::list(&hiccup.store, "/tombolo/").await.unwrap();
    let keys = entries.into_iter().map(|entry| entry.key).collect();
    (keys, hiccup.asked.load(Ordering::SeqCst) > fails)
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_once_at_any_moment_ends_no_recovery() {
    let (all, failed) = recovered(usize::MAX, false).await;
    assert!(all.len() > 301 && !failed, "{all:?}");
    for afterwards in [false, true] {
        let mut moments = 0;
        loop {
            let (keys, failed) = recovered(moments, afterwards).await;
            assert_eq!(keys, all, "operation {moments} failed, afterwards: {afterwards}");
            if !failed {
                break;
            }
            moments += 1;
        }
        assert!(moments >= 6, "{moments} operations: three listings, and a commit per part");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_written_back_in_parts_says_so_until_all_is_there() {
    let store = Embedded::in_memory().await.unwrap();
    let hiccup =
        Arc::new(Hiccup { store, fails: 1, afterwards: false, asked: AtomicUsize::new(0) });
    let fence = elected(&hiccup.store).await;
    let leader = Leader::new(Arc::<Hiccup>::clone(&hiccup), fence, replica::channel().1);
    let owner: Owner = "r/r-b".parse().unwrap();
    let seed = || Seed {
        records: (0..300).map(|n| said_by(&owner, &format!("n{n}"))).collect(),
        newest: Some(Newest { epoch: epoch(), sequence: 1 }),
        ..Seed::default()
    };
    let more = || async {
        let key = facts::said_key(&owner);
        let entry = store::read(&hiccup.store, &key).await.unwrap().unwrap();
        let Some(Fact::Said(_, said)) = facts::read(&key, &entry.value) else {
            panic!("{entry:?}")
        };
        (said.more, entry.mod_revision)
    };
    assert!(seed_owner(&leader, &owner, seed()).await.is_err());
    let (partial, said_revision) = more().await;
    assert!(partial);
    let rest = Seed { said_revision, ..seed() };
    assert_eq!(seed_owner(&leader, &owner, rest).await.unwrap(), 300);
    assert!(!more().await.0);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_pass_is_not_tried_again() {
    let attempts = AtomicUsize::new(0);
    let fails = |error: fn() -> LeaderError| {
        let attempts = &attempts;
        move || async move {
            attempts.fetch_add(1, Ordering::SeqCst);
            Err::<(), _>(error())
        }
    };
    let damaged = || LeaderError::Store(StoreError::Damaged("a page".to_owned()));
    let ended = persist("writing", fails(damaged)).await;
    assert!(matches!(ended, Err(LeaderError::Store(StoreError::Damaged(_)))), "{ended:?}");
    let ended = persist("writing", fails(|| LeaderError::NotLeader)).await;
    assert!(matches!(ended, Err(LeaderError::NotLeader)), "{ended:?}");
    assert_eq!(attempts.load(Ordering::SeqCst), 2);
}

/// An owner's state, for short: `4.2: a=1 b=2 | shop` is change 2 of epoch 4 with records a and b of
/// changes 1 and 2; kinds after the bar are complete.
fn state(owner: &str, epoch_id: &str, text: &str) -> Batch {
    let owner: Owner = owner.parse().unwrap();
    let (newest, records) = text.split_once(':').unwrap();
    let (count, sequence) = newest.split_once('.').unwrap();
    let epoch = Epoch { id: epoch_id.into(), count: count.parse().unwrap() };
    let record = |text: &str| {
        let (name, change) = text.split_once('=').unwrap();
        let origin =
            Origin { epoch: epoch.clone(), sequence: change.parse().unwrap(), ..Origin::default() };
        let (key, body) = if owner.cluster.is_some() {
            let key = Key::of_namespace(owner.clone(), &name.parse().unwrap());
            (key, Body::Namespace(Namespace::default()))
        } else {
            let what = Decided::Leave { owner: owner.clone(), incarnation: name.into() };
            let decision = Decision {
                by: "me".into(),
                at: jiff::Timestamp::UNIX_EPOCH,
                note: String::new(),
                what,
            };
            (decisions::key(&owner.region, &decision.what), Body::Decision(decision))
        };
        let record = Record { key, origin, body };
        (record.key.clone(), Some(record.seal().value))
    };
    let kind = if owner.cluster.is_some() { Kind::Namespace } else { Kind::Decision };
    let newest = Newest { epoch: epoch.clone(), sequence: sequence.parse().unwrap() };
    Batch {
        items: records.split_whitespace().map(record).collect(),
        complete: vec![(owner.clone(), kind, epoch)],
        newest: vec![(owner, newest)],
        ..Batch::default()
    }
}

/// A leader whose store was put back to `held`.
async fn restored(held: Batch) -> Recovery<tonic::transport::Channel> {
    let leader = led(Arc::new(Embedded::in_memory().await.unwrap())).await;
    leader.commit(held, None).await.unwrap();
    recovery(leader)
}

/// What the store has of an owner: which records, in which change.
async fn stored(recovery: &Recovery<tonic::transport::Channel>, owner: &str) -> Vec<String> {
    let owner: Owner = owner.parse().unwrap();
    let held = Held::read(&recovery.leader, &recovery.region).await.unwrap();
    let records = held.replica.holding(&owner).into_iter().flat_map(Holding::records);
    let shown = |(key, entry): (&Key, &replica::Entry)| {
        let name = match &entry.record.as_ref().unwrap().body {
            Body::Decision(Decision { what: Decided::Leave { incarnation, .. }, .. }) => {
                incarnation.clone()
            }
            _ => key.name.to_string(),
        };
        format!("{name}={}", entry.origin().unwrap().sequence)
    };
    let mut shown: Vec<String> = records.map(shown).collect();
    shown.sort();
    shown
}

#[tokio::test]
async fn the_newest_change_of_an_owner_wins_whoever_answers_first() {
    const A: &str = "r/r-a";
    let newest = state(A, "e", "4.9: kept=1 changed=7 added=9");
    let older = state(A, "e", "4.7: kept=1 changed=7 gone=2 withdrawn=6");
    let ancient = state(A, "e", "3.50: kept=50 ancient=50");
    let other = state(A, "another", "1.1: other=1");
    let unheard = state(A, "e", "4.9: ");
    let orders = [
        vec![&newest, &older, &ancient, &other],
        vec![&other, &ancient, &older, &newest],
        vec![&older, &newest, &ancient, &other, &newest],
    ];
    for order in orders {
        let recovery = restored(state(A, "e", "4.5: kept=1 changed=3 gone=2")).await;
        let known = nothing_known();
        for answer in order {
            recovery.write(answer.clone(), &known).await.unwrap();
        }
        assert_eq!(stored(&recovery, A).await, ["added=9", "changed=7", "kept=1"]);
        let held = Held::read(&recovery.leader, &recovery.region).await.unwrap();
        let owner: Owner = A.parse().unwrap();
        assert_eq!(held.replica.holding(&owner).unwrap().newest().unwrap().sequence, 9);
        assert_eq!(recovery.write(newest.clone(), &known).await.unwrap(), 0, "once is enough");
    }
    // The peer vouches for nothing: what is absent there is not known to be gone.
    let recovery = restored(state(A, "e", "4.5: gone=2")).await;
    let silent = Batch { complete: Vec::new(), ..unheard };
    recovery.write(silent, &nothing_known()).await.unwrap();
    assert_eq!(stored(&recovery, A).await, ["gone=2"]);
}

#[tokio::test]
async fn an_owner_that_speaks_meanwhile_wins() {
    const A: &str = "r/r-a";
    let recovery = restored(state(A, "e", "4.5: kept=1")).await;
    let owner: Owner = A.parse().unwrap();
    let held = Held::read(&recovery.leader, &recovery.region).await.unwrap();
    recovery.leader.commit(state(A, "e", "4.6: kept=6"), None).await.unwrap();
    let changes = by_owner(state(A, "e", "4.9: late=9"), |_| None).remove(&owner).unwrap();
    assert_eq!(recovery.commit(&held, &owner, changes).await.unwrap(), 0);
    assert_eq!(stored(&recovery, A).await, ["kept=6"]);
}

#[tokio::test]
async fn a_cluster_that_has_left_is_not_brought_back() {
    const A: &str = "r/r-a";
    let owner: Owner = A.parse().unwrap();
    let body = Body::Cluster(Cluster { uid: "uid".into(), ..Cluster::default() });
    let origin = Origin { epoch: epoch(), sequence: 1, ..Origin::default() };
    let key = Key::of_owner(owner.clone(), Kind::Cluster);
    let record = Record { key: key.clone(), origin, body };
    let answer = Batch { items: vec![(key, Some(record.seal().value))], ..Batch::default() };
    let what = Decided::Leave { owner, incarnation: "uid".into() };
    let leave =
        Decision { by: "me".into(), at: jiff::Timestamp::UNIX_EPOCH, note: String::new(), what };
    let key = decisions::key(&"r".parse().unwrap(), &leave.what);
    let origin =
        Origin { epoch: Epoch { id: "r".into(), count: 3 }, sequence: 1, ..Origin::default() };
    let leave = Record { key: key.clone(), origin, body: Body::Decision(leave) };
    for (leaves, back) in [(true, 0), (false, 1)] {
        let held = vec![(key.clone(), leaves.then(|| leave.seal().value))];
        let recovery = restored(Batch { items: held, ..Batch::default() }).await;
        recovery.write(answer.clone(), &nothing_known()).await.unwrap();
        assert_eq!(stored(&recovery, A).await.len(), back);
    }
}

const US: &str = "r/_";

#[tokio::test]
async fn what_was_decided_after_the_backup_is_known_again_and_what_was_withdrawn_is_not() {
    let newest = state(US, "r", "5.25: made=20 both=12");
    let older = state(US, "r", "5.21: made=20 both=12 withdrawn=9 brief=15");
    for spoken in [false, true] {
        for order in [[&newest, &older], [&older, &newest]] {
            let recovery = restored(state(US, "r", "5.10: withdrawn=9")).await;
            let newest = founding::last_word(&recovery.leader, &recovery.region).await.unwrap().0;
            let known = Mutex::new(Known { newest, spoken });
            if spoken {
                // It vouches for no decisions yet.
                let own = Batch { complete: Vec::new(), ..state(US, "r", "6.4: own=3") };
                recovery.leader.commit(own, None).await.unwrap();
            }
            for answer in order {
                recovery.write(answer.clone(), &known).await.unwrap();
            }
            let own = spoken.then_some("own=3");
            let wanted: Vec<&str> = ["both=12", "made=20"].into_iter().chain(own).collect();
            assert_eq!(stored(&recovery, US).await, wanted, "spoken: {spoken}");
            // For the next leader, should this one not come to the end.
            let following = watch::Sender::default().subscribe();
            let past = founding::past(&recovery.leader, &recovery.region, &following).await;
            let known = past.unwrap().unwrap().known.unwrap();
            assert_eq!((known.epoch.count, known.sequence), (5, 25));
        }
    }
}

#[tokio::test]
async fn what_was_withdrawn_before_the_peer_was_cut_off_does_not_come_back_late() {
    let recovery = restored(state(US, "r", "5.30: stands=2")).await;
    let newest = founding::last_word(&recovery.leader, &recovery.region).await.unwrap().0;
    let known = Mutex::new(Known { newest, spoken: true });
    recovery.leader.commit(state(US, "r", "6.4: stands=2"), None).await.unwrap();
    recovery.write(state(US, "r", "5.21: withdrawn=20 stands=2"), &known).await.unwrap();
    assert_eq!(stored(&recovery, US).await, ["stands=2"]);
}

/// A subscription of who holds `held` to who has `has`, up to `synced`.
fn subscribed(has: &ReplicaWriter, held: &ReplicaWriter) -> (Feed, Intake) {
    let region: RegionName = "r".parse().unwrap();
    let interest = Interest::all(Owners::Region(region.clone()));
    let mut feed = Feed::open(interest, Has::default(), has.current());
    let mut intake = Intake::new(Accept::Region(region));
    follow(&mut feed, &mut intake, held);
    (feed, intake)
}

fn follow(feed: &mut Feed, intake: &mut Intake, held: &ReplicaWriter) {
    while let Some(message) = feed.next_message() {
        let step = intake.receive(message, &held.current()).unwrap();
        held.apply(step.batch, Instant::now());
    }
}

fn replica_of(batch: Batch) -> ReplicaWriter {
    let (writer, _) = replica::channel();
    writer.apply(Batch { position: Some(1), ..batch }, Instant::now());
    writer
}

#[tokio::test(start_paused = true)]
async fn a_restored_region_that_has_not_heard_its_peers_takes_no_decision_from_them() {
    let peer = replica_of(state(US, "r", "5.25: old=2 made=20"));
    let region = replica_of(state(US, "r", "5.10: old=2"));
    // A leader begins to speak, and does not vouch for decisions.
    let first = Batch { complete: Vec::new(), ..state(US, "r", "6.1: own=1") };
    region.apply(first, Instant::now());
    let (mut feed, mut intake) = subscribed(&region, &peer);
    let decided = || peer.current().holding(&US.parse().unwrap()).unwrap().len();
    assert_eq!(decided(), 3, "what the region has lost, too");
    for _ in 0..3 {
        let compared = intake.receive(feed.digests(), &peer.current());
        assert!(compared.is_ok(), "that they differ is known: {compared:?}");
    }

    // Now it knows, and it was withdrawn.
    let all = Batch { items: Vec::new(), ..state(US, "r", "6.2: ") };
    region.apply(all, Instant::now());
    feed.advance(region.current());
    follow(&mut feed, &mut intake, &peer);
    assert_eq!(decided(), 2);
    let compared = intake.receive(feed.digests(), &peer.current());
    assert!(compared.is_ok(), "{compared:?}");
}

#[tokio::test(start_paused = true)]
async fn who_knows_more_than_a_restored_region_is_not_told_so_every_minute() {
    const A: &str = "r/r-a";
    let peer = replica_of(state(A, "e", "4.9: kept=1 added=9"));
    let region = replica_of(state(A, "e", "4.5: kept=1"));
    let (mut feed, mut intake) = subscribed(&region, &peer);
    for _ in 0..3 {
        assert!(intake.receive(feed.digests(), &peer.current()).is_ok());
    }
    // Its owner is heard there again, which digests do not show.
    let beacon = Record {
        key: Key::of_owner(A.parse().unwrap(), Kind::Beacon),
        origin: Origin {
            epoch: Epoch { id: "e".into(), count: 4 },
            sequence: 10,
            ..Origin::default()
        },
        body: Body::Beacon(Beacon { nonce: 1 }),
    };
    let beacon = (beacon.key.clone(), Some(beacon.seal().value));
    region.apply(Batch { items: vec![beacon], ..Batch::default() }, Instant::now());
    feed.advance(region.current());
    follow(&mut feed, &mut intake, &peer);
    let compared = intake.receive(feed.digests(), &peer.current());
    assert!(matches!(compared, Err(IntakeError::DigestMismatch { .. })), "{compared:?}");
}

#[tokio::test(start_paused = true)]
async fn what_went_here_does_not_come_back_from_a_region_that_had_it_from_a_peer() {
    const A: &str = "r/r-a";
    let owner: Owner = A.parse().unwrap();
    let agent = replica_of(state(A, "e", "4.5: kept=1 gone=2"));
    let key = Key::of_namespace(owner, &"gone".parse().unwrap());
    let removed = Removed { removal: Removal::Explained, sequence: 6, epoch: None };
    agent.apply(
        Batch {
            items: vec![(key.clone(), None)],
            removed: [(key, removed)].into(),
            ..state(A, "e", "4.6: ")
        },
        Instant::now(),
    );
    let region = replica_of(Batch::default());
    let (mut feed, mut intake) = subscribed(&region, &agent);
    region.apply(state(A, "e", "4.5: kept=1 gone=2"), Instant::now());
    feed.advance(region.current());
    follow(&mut feed, &mut intake, &agent);
    assert_eq!(agent.current().holding(&A.parse().unwrap()).unwrap().len(), 1);
}

/// The clock of the term is behind, and nobody of the region is left who knows better.
#[tokio::test]
async fn a_term_that_spoke_before_a_peer_knew_better_ends_and_the_next_goes_on_from_there() {
    const OWN: &str = "r/_";
    let speaking = || Mutex::new(Known { newest: None, spoken: true });
    let recovery = restored(state(OWN, "r", "1.4: ")).await;
    let known = speaking();
    for theirs in ["0.9: ", "1.2: ", "1.4: "] {
        recovery.write(state(OWN, "r", theirs), &known).await.unwrap();
    }
    recovery.write(state(OWN, "before", "9.9: "), &speaking()).await.unwrap();
    let ended = recovery.write(state(OWN, "r", "5.3: left=2"), &speaking()).await;
    assert!(matches!(ended, Err(LeaderError::Outdated)), "{ended:?}");
    assert_eq!(stored(&recovery, OWN).await, ["left=2"], "what was decided is taken");

    let begun = founding::begin(&recovery.leader, "id", jiff::Timestamp::UNIX_EPOCH).await.unwrap();
    let (known, _) = founding::last_word(&recovery.leader, &recovery.region).await.unwrap();
    let epoch = begun.epoch(&recovery.region, known.as_ref());
    assert_eq!(epoch, Epoch { id: "r".into(), count: 6 });
    let past = Mutex::new(Known { newest: None, spoken: true });
    let said = Batch {
        newest: vec![(OWN.parse().unwrap(), Newest { epoch, sequence: 1 })],
        ..Batch::default()
    };
    recovery.leader.commit(said, None).await.unwrap();
    recovery.write(state(OWN, "r", "5.3: left=2"), &past).await.expect("once is enough");
}
