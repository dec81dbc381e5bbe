//! A region's leader on a real store: what it says, and what operators let it do.

mod asks;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use prost::Message as _;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ask::{AskError, Asking, Word};
use super::decisions::{self, Leaver, Refusal, State};
use super::departures::{Departures, forget_those_who_left, is_forgotten};
use super::facts;
use super::founding::{self, Term};
use super::leader::{Leader, LeaderError};
use super::local::{self, Facts};
use super::own::OwnRecords;
use super::recover::Asked;
use super::spokesman::{Sources, Spokesman};
use super::{BEACON_INTERVAL, settings};
use super::{follower, transactions};
use crate::key::{Key, Kind};
use crate::names::{ClusterId, Owner, RegionName};
use crate::proto::{local as wire, records};
use crate::record::{
    Beacon, Body, Cluster, Decided, Decision, Entitlement, Epoch, Hold, Namespace, READS_LEVEL,
    Record, Region,
};
use crate::replica::{self, Batch, Replica, ReplicaWriter, Replicas};
use crate::store::election::{Leadership, campaign};
use crate::store::embedded::Embedded;
use crate::store::{self, Op, Store, Txn};

/// Everything here takes a fraction of a second.
const LONG: Duration = Duration::from_secs(20);
const US: &str = "us";

fn us() -> RegionName {
    US.parse().unwrap()
}

fn owner(text: &str) -> Owner {
    text.parse().unwrap()
}

fn cluster(text: &str) -> ClusterId {
    text.parse().unwrap()
}

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

/// One replica of region us, which leads when told to.
struct Bench {
    store: Arc<dyn Store>,
    replicas: Replicas,
    asking: Asking,
    asks: watch::Receiver<Facts>,
    clock: watch::Sender<Timestamp>,
    settings: watch::Sender<Region>,
    _following: JoinSet<()>,
    leading: Option<(Leadership, JoinSet<()>)>,
}

impl Bench {
    /// A replica that has heard its region for so long.
    fn on(store: &Arc<dyn Store>, heard: Duration) -> Self {
        let (writer, replicas) = replica::channel();
        beaten(&writer, heard);
        let mut following = JoinSet::new();
        let follow =
            follower::follow(Arc::clone(store), Arc::new(writer), None, watch::Sender::default());
        following.spawn(async move { drop(follow.await) });
        let mut facts = |prefix: String| {
            let (tx, rx) = watch::channel(None);
            let follow = local::follow(Arc::clone(store), prefix, tx);
            following.spawn(async move { drop(follow.await) });
            rx
        };
        let (sessions, left) = (facts(facts::sessions_prefix()), facts(facts::left_prefix()));
        let asks = facts(facts::asks_prefix());
        let asking = Asking {
            store: Arc::clone(store),
            replicas: replicas.clone(),
            region: us(),
            sessions,
            left,
            stop: CancellationToken::new(),
        };
        let region = Region { reads_level: READS_LEVEL, ..Region::default() };
        Self {
            store: Arc::clone(store),
            replicas,
            asking,
            asks,
            clock: watch::Sender::new(now()),
            settings: watch::Sender::new(region),
            _following: following,
            leading: None,
        }
    }

    async fn lead(&mut self) -> Term {
        let now = *self.clock.borrow();
        let key = facts::election_key();
        let won = campaign(Arc::clone(&self.store), &key, "test", Duration::from_secs(5));
        let won = won.await.unwrap();
        let mut leader = Leader::new(Arc::clone(&self.store), won.fence(), self.replicas.clone());
        let term = founding::begin(&leader, "id", now).await.unwrap();
        leader.caught_up(term.began).await.unwrap();
        let (clock, region) = (self.clock.subscribe(), self.settings.subscribe());
        let spokesman = Spokesman::new(
            leader.clone(),
            us(),
            &term,
            Sources {
                settings: Arc::new(move || region.borrow().clone()),
                sessions: self.asking.sessions.clone(),
                asks: self.asks.clone(),
                asked: watch::channel(Asked { all: true, ..Asked::default() }).1,
                clock: Arc::new(move || *clock.borrow()),
                draw: Arc::new(|| "drawn for this test".to_owned()),
            },
        );
        let departures = Departures {
            leader,
            region: us(),
            sessions: self.asking.sessions.clone(),
            left: self.asking.left.clone(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { drop(spokesman.speak().await) });
        tasks.spawn(async move { drop(forget_those_who_left(departures).await) });
        self.leading = Some((won, tasks));
        term
    }

    async fn resign(&mut self) {
        let (won, mut tasks) = self.leading.take().unwrap();
        tasks.shutdown().await;
        won.resign().await;
    }

    /// The replica, once it is as wanted and the facts beside it are known.
    async fn sees(&self, what: &str, wanted: impl Fn(&Replica) -> bool) -> Arc<Replica> {
        for facts in [&self.asking.sessions, &self.asking.left] {
            let mut facts = facts.clone();
            let read = tokio::time::timeout(LONG, facts.wait_for(Option::is_some)).await;
            assert!(read.is_ok_and(|read| read.is_ok()), "{what}");
        }
        let mut replicas = self.replicas.clone();
        let seen = tokio::time::timeout(LONG, replicas.wait_for(wanted)).await;
        seen.unwrap_or_else(|_| panic!("not seen: {what}")).unwrap()
    }

    /// Writes, as others of the region do.
    async fn commit(&self, ops: Vec<Op>) {
        let txn = Txn { guards: Vec::new(), ops };
        assert!(self.store.commit(txn).await.unwrap().is_done());
    }

    /// An owner with a description and a namespace, complete; a cluster also with its session.
    async fn joins(&self, of: &str, incarnation: &str, holds: &[&str]) {
        let of = owner(of);
        let epoch = Epoch { id: incarnation.into(), count: 1 };
        let mut own = OwnRecords::new(of.clone(), epoch.clone());
        let (kind, body) = described(&of, incarnation, holds);
        let described = Key::of_owner(of.clone(), kind);
        let beacon = Key::of_owner(of.clone(), Kind::Beacon);
        let mut items = vec![own.say(&described, &Arc::new(body))];
        items.push(own.say(&beacon, &Arc::new(Body::Beacon(Beacon { nonce: 1 }))));
        if of.cluster.is_some() {
            let key = Key::of_namespace(of.clone(), &"shop".parse().unwrap());
            items.push(own.say(&key, &Arc::new(Body::Namespace(Namespace::default()))));
        }
        let changes = transactions::Changes {
            items,
            newest: Some(own.newest()),
            complete: vec![(kind, epoch)],
            ..transactions::Changes::default()
        };
        for txn in transactions::transactions([(of.clone(), changes)].into(), None).unwrap() {
            self.commit(txn.ops).await;
        }
        if of.region == us() && of.cluster.is_some() {
            let session = wire::Session { uid: incarnation.into(), ..wire::Session::default() };
            self.commit(vec![Op::put(facts::session_key(&of), session.encode_to_vec())]).await;
            self.knows(&of, incarnation).await;
        }
        self.sees("the owner", |replica| replica.get(&described).is_some()).await;
    }

    async fn knows(&self, of: &Owner, uid: &str) {
        let has = |facts: &Facts| {
            let key = facts::session_key(of);
            let value = facts.as_ref().and_then(|facts| facts.get(&key));
            value.and_then(|value| facts::member(&key, value)).is_some_and(|(_, m)| m.uid == uid)
        };
        let mut sessions = self.asking.sessions.clone();
        assert!(tokio::time::timeout(LONG, sessions.wait_for(has)).await.is_ok(), "{of}");
    }

    /// A new beacon: it is alive.
    async fn beats(&self, of: &str, nonce: u64) {
        let of = owner(of);
        let epoch = Epoch { id: "beats".into(), count: nonce };
        let mut own = OwnRecords::new(of.clone(), epoch);
        let body = Arc::new(Body::Beacon(Beacon { nonce }));
        let (key, value) = own.say(&Key::of_owner(of.clone(), Kind::Beacon), &body);
        self.commit(vec![Op::put(key.to_string(), value.unwrap())]).await;
        self.sees("the beacon", |replica| {
            replica.holding(&of).is_some_and(|holding| holding.beacon_changed().is_some())
        })
        .await;
    }

    fn word(&self, id: &str) -> Word {
        Word { id: id.into(), by: "uid 0".into(), at: *self.clock.borrow(), note: "why".into() }
    }

    async fn leaves(&self, of: Leaver) -> Result<bool, AskError> {
        let answer = self.asking.leave(&of, false, self.word("leave")).await;
        answer.map(|answer| answer.already)
    }

    /// Keys of the store that name `what`.
    async fn stored(&self, what: &str) -> Vec<String> {
        let (entries, _) = store::list(&*self.store, "/tombolo/").await.unwrap();
        let keys = entries.into_iter().map(|entry| entry.key);
        keys.filter(|key| key.contains(what) && !key.contains("/decision/")).collect()
    }

    async fn is_gone(&self, what: &str) {
        let gone = async {
            while !self.stored(what).await.is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(LONG, gone).await;
        assert!(waited.is_ok(), "{:?}", self.stored(what).await);
    }

    fn states(&self) -> Vec<State> {
        let states = self.asking.decide(|view| {
            Ok(decisions::held(view.replica).map(|told| decisions::state(view, told)).collect())
        });
        states.unwrap()
    }
}

/// Beacons of this region every 5 s up to now, of which the store knows nothing any more.
fn beaten(writer: &ReplicaWriter, heard: Duration) {
    let mut own = OwnRecords::new(Owner::region(us()), Epoch { id: "before".into(), count: 1 });
    let key = Key::of_owner(Owner::region(us()), Kind::Beacon);
    let beats = (heard.as_secs() / 5).try_into().unwrap();
    for ago in (0..beats).rev().map(|beats: u32| beats * BEACON_INTERVAL) {
        let body = Body::Beacon(Beacon { nonce: ago.as_secs() });
        let items = vec![own.say(&key, &Arc::new(body))];
        writer.apply(Batch { items, ..Batch::default() }, Instant::now() - ago);
    }
    let gone = Batch { items: vec![(key, None)], ..Batch::default() };
    writer.apply(gone, Instant::now());
}

fn described(of: &Owner, incarnation: &str, holds: &[&str]) -> (Kind, Body) {
    if of.cluster.is_none() {
        let region =
            Region { incarnation: incarnation.into(), reads_level: 2, ..Region::default() };
        return (Kind::Region, Body::Region(region));
    }
    let hold = |id: &&str| Hold {
        id: (*id).to_owned(),
        since: now(),
        records: 1,
        endpoints: 1,
        why: String::new(),
        services: Vec::new(),
    };
    let holds = holds.iter().map(hold).collect();
    let body = Cluster { uid: incarnation.into(), holds, ..Cluster::default() };
    (Kind::Cluster, Body::Cluster(body))
}

async fn store() -> Arc<dyn Store> {
    Arc::new(Embedded::in_memory().await.unwrap())
}

/// One that leads, and listens for long enough to know who is silent.
async fn leading() -> Bench {
    let mut bench = Bench::on(&store().await, Duration::from_mins(2));
    bench.lead().await;
    bench.sees("the region", |replica| settings::held(replica, &us()).is_some()).await;
    bench
}

fn of_us(replica: &Replica) -> Option<(&Region, Epoch)> {
    let key = Key::of_owner(Owner::region(us()), Kind::Region);
    let entry = replica.get(&key)?;
    Some((settings::held(replica, &us())?, entry.origin()?.epoch.clone()))
}

#[tokio::test]
async fn a_new_leader_says_all_again_as_the_same_incarnation_in_a_later_epoch() {
    let store = store().await;
    let mut first = Bench::on(&store, Duration::ZERO);
    let term = first.lead().await;
    first.joins("us/us-a", "uid-a", &[]).await;
    let said = |count: u64| {
        move |replica: &Replica| {
            of_us(replica).is_some_and(|(region, epoch)| {
                epoch.count == count
                    && region.incarnation == "id"
                    && region.members.contains_key(&cluster("us-a"))
            })
        }
    };
    first.sees("the region with its member", said(term.epoch(&us(), None).count)).await;
    first.resign().await;

    // The session is lost, and the clock of the second is behind.
    first.commit(vec![Op::delete(facts::session_key(&owner("us/us-a")))]).await;
    let mut second = Bench::on(&store, Duration::ZERO);
    second.clock.send_replace(now() - jiff::SignedDuration::from_mins(10));
    let next = second.lead().await;
    assert!(term.epoch(&us(), None).is_older_than(&next.epoch(&us(), None)));
    let seen = first.sees("what the second says", said(next.epoch(&us(), None).count)).await;
    let complete = seen.holding(&Owner::region(us())).unwrap().complete();
    assert_eq!(complete.get(&Kind::Decision), Some(&next.epoch(&us(), None)));
}

/// By hand, past everything: without it nobody publishes.
#[tokio::test]
async fn what_the_region_is_is_said_again_when_it_is_spoilt() {
    let bench = leading().await;
    let key = Key::of_owner(Owner::region(us()), Kind::Region);
    for spoilt in [Op::delete(key.to_string()), Op::put(key.to_string(), "rubbish")] {
        bench.commit(vec![spoilt]).await;
        let mended = async {
            loop {
                let entry = store::read(&*bench.store, &key.to_string()).await.unwrap();
                if entry.is_some_and(|entry| Record::open(&key, &entry.value).is_ok()) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        assert!(tokio::time::timeout(LONG, mended).await.is_ok(), "it stays spoilt");
    }
    let seen = |replica: &Replica| replica.get(&key).is_some_and(|held| held.problem.is_none());
    let replica = bench.sees("what is mended", seen).await;
    let said = replica.get(&key).unwrap().origin().unwrap().sequence;
    bench
        .sees("two beacons", |replica| {
            let beacon = replica.get(&Key::of_owner(Owner::region(us()), Kind::Beacon));
            beacon.is_some_and(|beacon| beacon.origin().is_some_and(|o| o.sequence > said + 1))
        })
        .await;
    let replica = bench.replicas.peek();
    assert_eq!(replica.get(&key).unwrap().origin().unwrap().sequence, said, "once is enough");
}

#[tokio::test]
async fn the_region_follows_its_settings_and_the_lowest_level_of_the_mesh() {
    let bench = leading().await;
    let shop = Entitlement::Namespaces(["shop".parse().unwrap()].into());
    let entitled = [(cluster("us-x"), shop)].into();
    let settings = Region { entitlements: entitled, ..bench.settings.borrow().clone() };
    let set = |address: &str| {
        let addresses = vec![address.to_owned()];
        bench.settings.send_replace(Region { addresses, ..settings.clone() });
    };
    let says_at = async |address: &str, level: u32| {
        let new = |r: &Replica| of_us(r).is_some_and(|(us, _)| us.addresses == [address]);
        let replica = bench.sees(address, new).await;
        let (us, _) = of_us(&replica).unwrap();
        assert_eq!(us.entitlements, settings.entitlements, "an older peer lifts no restriction");
        assert_eq!(us.incarnation, "id");
        let key = Key::of_owner(Owner::region(self::us()), Kind::Region);
        let envelope = replica.get(&key).unwrap().value.clone();
        assert_eq!(records::Envelope::decode(envelope).unwrap().schema_level, level);
    };
    set("h:1");
    bench.joins("us/us-x", "uid", &[]).await;
    says_at("h:1", 2).await;

    // A peer of the first level: what it does not know it leaves out by itself.
    let says = async |level: u32, count: u64| {
        let eu = Owner::region("eu".parse().unwrap());
        let mut own = OwnRecords::new(eu.clone(), Epoch { id: "eu".into(), count });
        let body = Arc::new(Body::Region(Region { reads_level: level, ..Region::default() }));
        let (key, value) = own.say(&Key::of_owner(eu, Kind::Region), &body);
        bench.commit(vec![Op::put(key.to_string(), value.unwrap())]).await;
    };
    let level = async |level: u32, count: u64| {
        says(level, count).await;
        bench.sees("the level", |replica| settings::mesh_level(replica) == level).await;
    };
    level(1, 1).await;
    set("h:2");
    says_at("h:2", 1).await;
    level(2, 2).await;
    set("h:3");
    says_at("h:3", 2).await;
}

#[tokio::test]
async fn an_approval_is_said_once_for_a_hold_that_is_there_and_forgotten_after_a_day() {
    let bench = leading().await;
    bench.joins("us/us-a", "uid", &["h1", "h2"]).await;
    bench.joins("eu/eu-a", "uid", &["h1"]).await;
    let approve = async |of: &str, hold: &str| {
        bench.asking.approve(&cluster(of), hold, bench.word(&format!("{of}{hold}"))).await
    };
    let refused = async |of: &str, hold: &str, why: &str| {
        let error = approve(of, hold).await.unwrap_err();
        assert!(matches!(error, AskError::Refused(_)), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    };
    refused("us-a", "h3", "us-a has no hold \"h3\": it holds h1, h2").await;
    refused("us-b", "h1", "no cluster us-b is known here: known are us-a").await;
    refused("eu-a", "h1", "ask a control plane of eu").await;

    let answer = approve("us-a", "h1").await.unwrap();
    assert!(!answer.already && answer.decision.by == "uid 0" && answer.decision.note == "why");
    assert!(approve("us-a", "h1").await.unwrap().already);
    assert_eq!(bench.stored("/ask/").await, [""; 0], "the ask goes as the decision comes");
    let replica = bench.replicas.peek();
    assert!(decisions::approved(&replica, &owner("us/us-a")).eq(["h1"]));
    assert!(matches!(&bench.states()[..], [State::Waiting(why)] if why.contains("still holds")));

    bench.clock.send_modify(|now| *now += jiff::SignedDuration::from_hours(25));
    bench.beats("us/us-a", 2).await;
    bench.sees("it is forgotten", |replica| decisions::held(replica).next().is_none()).await;
}

#[tokio::test]
async fn a_dead_cluster_that_leaves_is_gone_with_all_that_names_it() {
    let bench = leading().await;
    bench.joins("us/us-a", "uid", &[]).await;
    bench.joins("us/us-b", "uid", &[]).await;
    let others = bench.stored("/us-b").await.len();
    assert!(bench.stored("/us-a").await.len() > 3);
    assert!(!bench.leaves(Leaver::Cluster(cluster("us-a"))).await.unwrap());
    bench.is_gone("/us-a").await;
    assert_eq!(bench.stored("/us-b").await.len(), others);
    let replica = bench
        .sees("it is no member", |replica| {
            of_us(replica).is_some_and(|(us, _)| us.members.keys().eq([&cluster("us-b")]))
        })
        .await;
    let left = |incarnation| decisions::has_left(&replica, &owner("us/us-a"), incarnation);
    assert!(left("uid").is_some_and(|decision| decision.by == "uid 0"));
    assert!(left("another").is_none());
    assert_eq!(bench.states(), [State::Applied]);

    // Another cluster of that name is welcome, and the one that left once it is taken back.
    bench.joins("us/us-a", "another", &[]).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!bench.stored("/us-a").await.is_empty());
    let leaver = Leaver::Cluster(cluster("us-a"));
    let withdrawn = bench.asking.withdraw(&leaver, bench.word("back")).await.unwrap();
    assert_eq!(withdrawn.len(), 1);
    let replica = bench.replicas.peek();
    assert!(decisions::has_left(&replica, &owner("us/us-a"), "uid").is_none());
    let again = bench.asking.withdraw(&leaver, bench.word("again")).await;
    assert!(matches!(again, Err(AskError::Refused(Refusal::NotSaid { .. }))));
}

#[tokio::test]
async fn one_that_publishes_again_after_it_left_is_removed_again() {
    let bench = leading().await;
    bench.joins("us/us-a", "uid", &[]).await;
    bench.leaves(Leaver::Cluster(cluster("us-a"))).await.unwrap();
    bench.is_gone("/us-a").await;
    // A replica that had not seen the decision yet let it in.
    bench.joins_again("us/us-a", "uid").await;
    bench.is_gone("/us-a").await;
}

impl Bench {
    /// As [`Bench::joins`], where it may be gone before it is seen.
    async fn joins_again(&self, of: &str, uid: &str) {
        let of = owner(of);
        let session = wire::Session { uid: uid.into(), ..wire::Session::default() };
        let mut own = OwnRecords::new(of.clone(), Epoch { id: "again".into(), count: 1 });
        let (kind, body) = described(&of, uid, &[]);
        let (key, value) = own.say(&Key::of_owner(of.clone(), kind), &Arc::new(body));
        self.commit(vec![
            Op::put(facts::session_key(&of), session.encode_to_vec()),
            Op::put(key.to_string(), value.unwrap()),
        ])
        .await;
    }
}

#[tokio::test]
async fn a_live_cluster_is_refused_unless_that_is_said() {
    let bench = leading().await;
    bench.joins("us/us-a", "uid", &[]).await;
    bench.beats("us/us-a", 2).await;
    let leaver = Leaver::Cluster(cluster("us-a"));
    let error = bench.leaves(leaver.clone()).await.unwrap_err().to_string();
    assert!(
        error.contains("us/us-a may be alive (heard 0 s ago)") && error.contains("--live"),
        "{error}"
    );
    assert!(!bench.stored("/us-a").await.is_empty());
    bench.asking.leave(&leaver, true, bench.word("live")).await.unwrap();
    bench.is_gone("/us-a").await;

    // Who has just begun to listen does not know who is silent.
    let fresh = Bench::on(&bench.store, Duration::ZERO);
    fresh.joins("us/us-b", "uid", &[]).await;
    let error = fresh.leaves(Leaver::Cluster(cluster("us-b"))).await.unwrap_err().to_string();
    assert!(error.contains("not heard, but this process hears us for 0 s only"), "{error}");
}

#[tokio::test]
async fn a_dead_region_that_leaves_is_gone_with_its_clusters_and_its_resume_point() {
    let bench = leading().await;
    for (of, incarnation) in [("eu/_", "i1"), ("eu/eu-a", "uid"), ("us/us-a", "uid")] {
        bench.joins(of, incarnation, &[]).await;
    }
    let eu: RegionName = "eu".parse().unwrap();
    bench.commit(vec![facts::resume_op(&eu, 7)]).await;
    let refused = bench.leaves(Leaver::Region(us())).await.unwrap_err();
    assert!(matches!(refused, AskError::Refused(Refusal::OwnRegion(_))), "{refused}");
    let refused = bench.leaves(Leaver::Region("asia".parse().unwrap())).await.unwrap_err();
    assert!(
        refused.to_string().contains("no region asia is known here: known are eu"),
        "{refused}"
    );

    let preview = bench.asking.preview(&Leaver::Region(eu.clone()), false).unwrap().to_string();
    let first = "eu/_ (not heard) would leave as incarnation \"i1\". These would go:\n";
    let rest = "  eu/_: 2 records, 0 exported services\n  eu/eu-a: 3 records, 0 exported services";
    assert_eq!(preview, format!("{first}{rest}"));
    assert!(!bench.stored("/v1/eu/").await.is_empty() && bench.states().is_empty());

    bench.leaves(Leaver::Region(eu.clone())).await.unwrap();
    for what in ["/v1/eu/", "/resume/eu", "/complete/eu", "/said/eu"] {
        bench.is_gone(what).await;
    }
    assert!(!bench.stored("/us-a").await.is_empty());
    let mut left = bench.asking.left.clone();
    let forgotten = tokio::time::timeout(LONG, left.wait_for(|left| is_forgotten(left, &eu, "i1")));
    assert!(forgotten.await.is_ok_and(|seen| seen.is_ok()));
    assert!(!is_forgotten(&left.borrow(), &eu, "i2"), "another incarnation is welcome");
    assert_eq!(bench.states(), [State::Applied]);

    bench.asking.withdraw(&Leaver::Region(eu.clone()), bench.word("back")).await.unwrap();
    let taken_back = left.wait_for(|left| !is_forgotten(left, &eu, "i1"));
    assert!(tokio::time::timeout(LONG, taken_back).await.is_ok());
}

#[tokio::test]
async fn what_another_region_says_left_stays_while_it_is_heard_here() {
    let bench = leading().await;
    for (of, incarnation) in [("eu/_", "i1"), ("eu/eu-a", "uid"), ("asia/_", "i1")] {
        bench.joins(of, incarnation, &[]).await;
    }
    bench.beats("eu/_", 2).await;
    let asia: RegionName = "asia".parse().unwrap();
    let what = Decided::Leave { owner: owner("eu/_"), incarnation: "i1".into() };
    let key = decisions::key(&asia, &what);
    let decision = Decision { by: "uid 0".into(), at: now(), note: String::new(), what };
    let mut own = OwnRecords::new(Owner::region(asia), Epoch { id: "asia".into(), count: 9 });
    let (key, value) = own.say(&key, &Arc::new(Body::Decision(decision)));
    bench.commit(vec![Op::put(key.to_string(), value.unwrap())]).await;
    bench.sees("the decision", |replica| replica.get(&key).is_some()).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!bench.stored("/v1/eu/").await.is_empty());
    assert!(
        matches!(&bench.states()[..], [State::Waiting(why)] if why.contains("eu/_ may be alive"))
    );
    let leaver = Leaver::Region("eu".parse().unwrap());
    let refused = bench.asking.withdraw(&leaver, bench.word("no")).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("it was said in asia, withdraw it there"), "{refused}");
}

#[tokio::test]
async fn a_leader_of_before_forgets_nobody_and_says_nothing() {
    let bench = leading().await;
    bench.joins("us/us-a", "uid", &[]).await;
    // Another one leads, and this one has not noticed.
    bench.commit(vec![Op::delete(facts::election_key())]).await;
    bench.commit(vec![Op::put(facts::election_key(), "another")]).await;
    let what = Decided::Leave { owner: owner("us/us-a"), incarnation: "uid".into() };
    let key = decisions::key(&us(), &what);
    let decision = Decision { by: "uid 0".into(), at: now(), note: String::new(), what };
    let ask = facts::Ask { decision: decision.clone(), withdraw: false };
    bench.commit(vec![facts::ask_op("one", &ask)]).await;
    let mut own = OwnRecords::new(Owner::region(us()), Epoch { id: "another".into(), count: 1 });
    let (_, value) = own.say(&key, &Arc::new(Body::Decision(decision)));
    bench.commit(vec![Op::put(key.to_string(), value.unwrap())]).await;
    bench.sees("the decision", |replica| replica.get(&key).is_some()).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.stored("/ask/").await.len(), 1);
    assert!(bench.stored("/us-a").await.len() > 3);
}
