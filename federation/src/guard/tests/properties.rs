//! What holds for any history.

use std::fmt::Write as _;

use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;

use super::*;

/// Services, each with slices of endpoints; a service may have lost its export.
type World = BTreeMap<u8, (bool, BTreeMap<u8, BTreeSet<u8>>)>;

fn world() -> impl Strategy<Value = World> {
    let slices = btree_map(0..2_u8, btree_set(0..40_u8, 0..30), 0..3);
    btree_map(0..4_u8, (prop::bool::weighted(0.9), slices), 0..4)
}

#[derive(Debug, Clone)]
struct Step {
    world: World,
    /// Endpoints whose number leaves this remainder are explained; exports too, if it is even.
    explained: Option<u8>,
    listed: bool,
    blank: bool,
    approve: bool,
    seconds: u64,
}

fn step() -> impl Strategy<Value = Step> {
    let flags = any::<[bool; 2]>();
    let rare = (prop::bool::weighted(0.1), prop::bool::weighted(0.2));
    (world(), prop::option::of(0..3_u8), flags, rare, 0..900_u64).prop_map(
        |(world, explained, [listed, _], (blank, approve), seconds)| Step {
            world,
            explained,
            listed,
            blank,
            approve,
            seconds,
        },
    )
}

fn to_records(world: &World, rename: impl Fn(u8) -> u8) -> Records {
    let mut text = String::new();
    for (service, (exported, slices)) in world {
        let service = rename(*service);
        for (slice, numbers) in slices {
            let numbers: Vec<String> =
                numbers.iter().map(|n| (u32::from(*n) + 1).to_string()).collect();
            let _ = write!(text, "s{service}/{slice}={} ", numbers.join(","));
        }
        if !exported && !slices.is_empty() {
            let _ = write!(text, "!s{service} ");
        }
    }
    records(&text)
}

fn explained_by(remainder: Option<u8>) -> impl Fn(&Loss) -> Option<Explanation> {
    move |loss| {
        let known = match (loss, remainder) {
            (Loss::Endpoint(_, std::net::IpAddr::V4(address)), Some(remainder)) => {
                address.octets()[3] % 3 == remainder
            }
            (Loss::Record(_), Some(remainder)) => remainder % 2 == 0,
            _ => false,
        };
        known.then_some(Explanation::Deleted)
    }
}

/// Everything that can be lost, one by one.
fn items(records: &Records) -> BTreeSet<Loss> {
    let mut items = BTreeSet::new();
    for (key, body) in records {
        match &**body {
            Body::Endpoints(slice) if !slice.endpoints.is_empty() => {
                let addresses = slice.endpoints.iter().map(|endpoint| endpoint.address);
                items.extend(addresses.map(|address| Loss::Endpoint(key.clone(), address)));
            }
            _ => _ = items.insert(Loss::Record(key.clone())),
        }
    }
    items
}

fn by_address(records: &Records) -> BTreeSet<(ServiceKey, std::net::IpAddr)> {
    let each = |item: Loss| match item {
        Loss::Endpoint(key, address) => Some((key.service()?, address)),
        Loss::Record(_) => None,
    };
    items(records).into_iter().filter_map(each).collect()
}

fn take(bench: &mut Bench, step: &Step, rename: impl Fn(u8) -> u8) -> (Records, Records, Verdict) {
    bench.later(Duration::from_secs(step.seconds)).connection += 1;
    if step.approve {
        let ids = bench.guard.holds.list().into_iter().map(|hold| hold.id);
        bench.approved.extend(ids);
    }
    let before = bench.published.clone();
    let wanted = if step.blank { Records::new() } else { to_records(&step.world, rename) };
    let blank = step.blank.then_some("gone");
    let explains = explained_by(step.explained.filter(|_| !step.blank));
    let verdict = bench.decide(&wanted, blank, step.listed && !step.blank, &explains);
    (before, wanted, verdict)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn all_that_is_wanted_is_published_and_nothing_is_made_up(
        steps in vec(step(), 1..12),
    ) {
        let mut bench = Bench::new("");
        for step in &steps {
            let (before, wanted, verdict) = take(&mut bench, step, |s| s);
            let publish = items(&verdict.publish);
            for (key, body) in &wanted {
                let said = verdict.publish.get(key);
                prop_assert!(said.is_some(), "{key} is wanted");
                if let (Body::Endpoints(wanted), Some(Body::Endpoints(said))) =
                    (&**body, said.map(|body| &**body))
                {
                    prop_assert!(said.endpoints.starts_with(&wanted.endpoints));
                }
            }
            let known: BTreeSet<Loss> = items(&before).union(&items(&wanted)).cloned().collect();
            prop_assert!(publish.is_subset(&known), "{:?}", publish.difference(&known));
        }
    }

    #[test]
    fn held_and_gone_and_kept_are_what_was_there(steps in vec(step(), 1..12)) {
        let mut bench = Bench::new("");
        for step in &steps {
            let (before, wanted, verdict) = take(&mut bench, step, |s| s);
            let (kept, publish) = (by_address(&wanted), by_address(&verdict.publish));
            for item in items(&before) {
                let moved = matches!(&item, Loss::Endpoint(key, address)
                    if kept.contains(&(key.service().unwrap(), *address)));
                let held = bench.guard.holds.covers(&item);
                let gone = verdict.gone.contains_key(&item);
                let stays = items(&wanted).contains(&item)
                    || wanted.contains_key(item.key()) && matches!(item, Loss::Record(_));
                let ways = [moved || stays, held, gone].into_iter().filter(|way| *way).count();
                prop_assert_eq!(ways, 1, "{} is kept, held or gone", item);
                if let (true, Loss::Endpoint(key, address)) = (held, &item) {
                    prop_assert!(publish.contains(&(key.service().unwrap(), *address)));
                }
            }
            for key in before.keys().filter(|key| !verdict.publish.contains_key(*key)) {
                prop_assert!(verdict.removals.contains_key(key), "{key} goes for a reason");
            }
            prop_assert!(verdict.removals.keys().all(|key| !verdict.publish.contains_key(key)));
        }
    }

    #[test]
    fn no_window_loses_more_than_may_go_and_no_service_its_last(steps in vec(step(), 1..16)) {
        let mut bench = Bench::new("");
        // An endpoint that comes back and goes again is one endpoint.
        let mut lost: Vec<(Instant, BTreeSet<_>)> = Vec::new();
        let mut largest = 0;
        for step in &steps {
            let (before, wanted, verdict) = take(&mut bench, step, |s| s);
            largest = largest.max(by_address(&before).len());
            let unexplained: BTreeSet<_> = verdict
                .gone
                .iter()
                .filter(|(_, removal)| **removal == Removal::Unexplained)
                .filter_map(|(loss, _)| match loss {
                    Loss::Endpoint(key, address) => Some((key.service()?, *address)),
                    Loss::Record(_) => None,
                })
                .collect();
            lost.push((bench.now, unexplained.clone()));
            let start = bench.now.checked_sub(10 * MINUTE).unwrap();
            let recent = lost.iter().filter(|(at, _)| *at > start).flat_map(|(_, lost)| lost);
            let limit = 20.max(largest * 15 / 100);
            prop_assert!(recent.collect::<BTreeSet<_>>().len() <= limit);
            for (service, _) in unexplained {
                let exported =
                    |records: &Records| records.contains_key(&Key::of_service(
                        owner(), Kind::Export, &service, None));
                if exported(&before) {
                    let left = by_address(&wanted).iter().any(|(of, _)| *of == service);
                    prop_assert!(left && exported(&wanted), "{service} lost its last endpoint");
                }
            }
        }
    }

    #[test]
    fn asked_twice_it_says_the_same(steps in vec(step(), 1..10)) {
        let mut bench = Bench::new("");
        for step in &steps {
            let (_, wanted, first) = take(&mut bench, step, |s| s);
            let explains = explained_by(step.explained.filter(|_| !step.blank));
            let blank = step.blank.then_some("gone");
            let again = bench.decide(&wanted, blank, false, &explains);
            prop_assert_eq!(&again.publish, &first.publish);
            prop_assert_eq!(&again.holds, &first.holds);
            prop_assert!(again.removals.is_empty() && again.gone.is_empty());
            prop_assert!(again.began.is_empty() && again.ended.is_empty());
        }
    }

    #[test]
    fn what_is_explained_holds_nothing_back_that_was_not_held_without(
        first in world(), second in world(), remainder in 0..3_u8,
    ) {
        let decide = |remainder: Option<u8>| {
            let mut bench = Bench::new("");
            bench.published = to_records(&first, |s| s);
            let wanted = to_records(&second, |s| s);
            bench.decide(&wanted, None, false, &explained_by(remainder));
            bench.guard.holds.losses().cloned().collect::<BTreeSet<_>>()
        };
        let (without, with) = (decide(None), decide(Some(remainder)));
        prop_assert!(with.is_subset(&without), "{:?}", with.difference(&without));
    }

    #[test]
    fn the_order_of_names_decides_nothing(steps in vec(step(), 1..10)) {
        let (mut straight, mut turned) = (Bench::new(""), Bench::new(""));
        turned.now = straight.now;
        for step in &steps {
            let (_, _, one) = take(&mut straight, step, |s| s);
            let (_, _, other) = take(&mut turned, step, |s| 9 - s);
            let counts = |verdict: &Verdict| {
                let holds = verdict.holds.iter().map(|h| (h.records, h.endpoints, h.why.clone()));
                let gone = verdict.gone.values().copied().fold([0; 4], |mut counts, removal| {
                    counts[removal as usize] += 1;
                    counts
                });
                (holds.collect::<Vec<_>>(), gone, items(&verdict.publish).len())
            };
            prop_assert_eq!(counts(&one), counts(&other));
        }
    }
}
