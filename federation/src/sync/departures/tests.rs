use super::*;
use crate::record::{Beacon, Body, Epoch, Origin, Record};
use crate::replica::Batch;

const SECOND: Duration = Duration::from_secs(1);

/// `INCARNATION or - or ? | heard N [of M] or never of M | held or gone [forgotten INCARNATION]`,
/// where M is for how long it would have been heard.
fn there(text: &str) -> There {
    let mut parts = text.split('|').map(str::trim);
    let incarnation = match parts.next().unwrap() {
        "?" => None,
        "-" => Some(String::new()),
        said => Some(said.to_owned()),
    };
    let heard: Vec<&str> = parts.next().unwrap().split_whitespace().collect();
    let seconds = |text: &str| SECOND * text.parse().unwrap();
    let (silence, listening) = match heard[..] {
        ["heard", silence] => (Some(seconds(silence)), seconds("999")),
        ["heard", silence, "of", listening] => (Some(seconds(silence)), seconds(listening)),
        ["never", "of", listening] => (None, seconds(listening)),
        _ => panic!("{heard:?}"),
    };
    let heard = Heard { silence, listening, by: vec!["us".parse().unwrap()] };
    let mut held = parts.next().unwrap().split_whitespace();
    let is_held = held.next() == Some("held");
    let forgotten = held.nth(1).map(str::to_owned);
    There { held: is_held, incarnation, heard, forgotten }
}

/// In region us: `said_by` says that incarnation 1 of `owner` left.
#[track_caller]
fn check(said_by: &str, owner: &str, text: &str, expected: &str) {
    let (us, said_by) = ("us".parse().unwrap(), said_by.parse().unwrap());
    let verdict = verdict(&us, &said_by, &owner.parse().unwrap(), "1", &there(text));
    let found = match &verdict {
        Verdict::Apply => "apply",
        Verdict::Done => "done",
        Verdict::Superseded => "superseded",
        Verdict::Wait(why) => why,
    };
    assert!(found.contains(expected), "{said_by} on {owner} ({text}): {verdict:?}");
}

#[test]
fn our_own_word_is_carried_out_at_once() {
    check("us", "us/us-a", "1 | heard 3 | held", "apply");
    check("us", "us/us-a", "1 | heard 300 | held", "apply");
    check("us", "us/us-a", "? | never of 1 | held", "apply");
    check("us", "us/us-a", "? | never of 1 | gone", "done");
    check("us", "eu/_", "1 | heard 3 | held", "apply");
    check("us", "eu/_", "? | never of 300 | gone", "done");
}

#[test]
fn another_regions_word_counts_once_who_left_is_silent_here_too() {
    check("asia", "eu/_", "1 | heard 30 | held", "may be alive: heard 30 s ago");
    check("asia", "eu/_", "1 | heard 31 | held", "apply");
    check(
        "asia",
        "eu/_",
        "1 | never of 30 | held",
        "not heard, but this process hears us for 30 s only",
    );
    check("asia", "eu/_", "1 | never of 31 | held", "apply");
    check("asia", "eu/_", "1 | heard 90 of 30 | held", "heard 90 s ago, but this process hears us");
    check("asia", "eu/_", "1 | heard 90 of 31 | held", "apply");
    check("asia", "eu/_", "? | never of 31 | gone", "done");
    check("eu", "eu/eu-a", "1 | heard 3 | held", "may be alive");
    check("eu", "eu/eu-a", "1 | heard 31 | held", "apply");
}

#[test]
fn what_was_forgotten_here_stays_so_whatever_is_heard() {
    check("asia", "eu/_", "1 | heard 1 | held forgotten 1", "apply");
    check("asia", "eu/_", "? | never of 1 | gone forgotten 1", "done");
    check("asia", "eu/_", "1 | heard 1 | held forgotten 0", "may be alive");
}

#[test]
fn another_incarnation_has_not_left() {
    check("us", "us/us-a", "2 | heard 300 | held", "superseded");
    check("us", "eu/_", "2 | heard 300 | held forgotten 1", "superseded");
    check("asia", "eu/_", "- | heard 300 | held", "superseded");
}

#[test]
fn nobody_speaks_for_a_cluster_but_its_region_nor_a_region_for_itself() {
    check("eu", "us/us-a", "1 | heard 300 | held", "only us says that");
    check("us", "eu/eu-a", "1 | heard 300 | held", "only eu says that");
    check("eu", "us/_", "1 | heard 300 | held", "us does not forget itself");
    check("us", "us/_", "1 | heard 300 | held", "us does not forget itself");
    check("eu", "eu/_", "1 | heard 300 | held", "eu does not forget itself");
}

/// Beacons as a process in region us hears them, second by second.
struct Ears {
    writer: crate::replica::ReplicaWriter,
    begun: Instant,
    now: Duration,
    nonce: u64,
}

impl Ears {
    fn new() -> Self {
        let (writer, _) = crate::replica::channel();
        Self { writer, begun: Instant::now(), now: Duration::ZERO, nonce: 0 }
    }

    /// So many seconds in which each of these is heard every 5 s.
    fn hear(&mut self, regions: &str, seconds: u32) -> &mut Self {
        for _ in 0..seconds / 5 {
            self.now += 5 * SECOND;
            self.nonce += 1;
            let beacon = |region: &str| {
                let owner = Owner::region(region.parse().unwrap());
                let key = Key::of_owner(owner, Kind::Beacon);
                let body = Body::Beacon(Beacon { nonce: self.nonce });
                let origin = Origin {
                    epoch: Epoch { id: "e".into(), count: 1 },
                    sequence: self.nonce,
                    ..Origin::default()
                };
                let sealed = Record { key: key.clone(), origin, body }.seal();
                (key, Some(sealed.value))
            };
            let items = regions.split_whitespace().map(beacon).collect();
            self.writer.apply(Batch { items, ..Batch::default() }, self.begun + self.now);
        }
        self
    }

    /// What comes of it that asia says that eu left.
    #[track_caller]
    fn check(&self, expected: &str) {
        let (replica, us, asia) =
            (self.writer.current(), "us".parse().unwrap(), "asia".parse().unwrap());
        let now = self.begun + self.now;
        let view = View { replica: &replica, region: &us, sessions: &None, left: &None, now };
        let verdict = view.verdict(&asia, &"eu/_".parse().unwrap(), "");
        assert!(format!("{verdict:?}").contains(expected), "{verdict:?}");
    }
}

#[test]
fn an_outage_here_silences_everybody_and_removes_nobody() {
    for outage in ["", "us"] {
        let mut ears = Ears::new();
        ears.hear("us asia eu", 60).check("heard 0 s ago");
        // The own store was away, or the network: others are dialled again one after the other.
        ears.hear(outage, 120).check("heard 120 s ago, but this process hears us and asia for 0 s");
        ears.hear("us asia", 20)
            .check("heard 140 s ago, but this process hears us and asia for 15 s");
        ears.hear("us asia eu", 30).check("heard 0 s ago");
    }
}

#[test]
fn one_that_is_dead_is_removed_once_it_could_have_been_heard() {
    let mut ears = Ears::new();
    ears.hear("us asia eu", 60).hear("us asia", 30).check("may be alive: heard 30 s ago");
    ears.hear("us asia", 5).check("Apply");
    // Also if it died during an outage here.
    let mut ears = Ears::new();
    ears.hear("us asia eu", 60).hear("", 60).hear("us asia", 35).check("for 30 s");
    ears.hear("us asia", 5).check("Apply");
    // Or before this process began.
    let mut ears = Ears::new();
    ears.hear("us asia", 40).check("for 30 s");
    ears.hear("us asia", 5).check("Done");
}

/// What this process knows of a session may be old: what the store has counts.
#[tokio::test]
async fn a_session_that_has_become_anothers_is_left_alone_with_its_records() {
    use std::sync::Arc;

    use crate::store::Store;
    use crate::store::embedded::Embedded;

    let store: Arc<dyn Store> = Arc::new(Embedded::in_memory().await.unwrap());
    let owner: Owner = "us/us-a".parse().unwrap();
    let session = facts::session_key(&owner);
    let record = Key::of_owner(owner.clone(), Kind::Cluster).to_string();
    let (_, replicas) = crate::replica::channel();
    // A leader whose election key was never made: it does not exist, so the fence holds.
    let fence = Guard::CreateRevision("/never".into(), 0);
    let leader = Leader::new(Arc::clone(&store), fence, replicas);
    let says = async |uid: &str| {
        let value = wire::Session { uid: uid.into(), ..wire::Session::default() }.encode_to_vec();
        let ops = vec![Op::put(&session, value), Op::put(&record, "v")];
        assert!(store.commit(Txn { guards: Vec::new(), ops }).await.unwrap().is_done());
    };
    let left = async || store::list(&*store, "/tombolo/").await.unwrap().0.len();

    says("2").await;
    assert!(forget_cluster(&leader, &owner, "1").await.unwrap().is_none());
    assert_eq!(left().await, 2);
    says("1").await;
    assert!(forget_cluster(&leader, &owner, "1").await.unwrap().is_some());
    assert_eq!(left().await, 0);
}
