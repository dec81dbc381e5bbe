use super::*;

#[test]
fn up_to_twenty_endpoints_of_few_may_go_without_explanation() {
    check("web=1..60", "web=1..40", &[], "web=1..40");
    check("web=1..60", "web=1..39", &[], "web=1..60");
}

#[test]
fn up_to_fifteen_percent_of_many_may_go_without_explanation() {
    check("web=1..400", "web=1..340", &[], "web=1..340");
    check("web=1..400", "web=1..339", &[], "web=1..400");
}

#[test]
fn above_the_limit_the_whole_of_a_loss_is_held_and_the_rest_is_not() {
    let mut bench = Bench::new("web=1..60 cart=100,101");
    let verdict = bench.sees("web=1..30,70 cart=100,102 new=200");
    bench.shows("web=1..60,70 cart=100,101,102 new=200");
    let [hold] = &verdict.holds[..] else { panic!("{:?}", verdict.holds) };
    assert_eq!((hold.endpoints, hold.records), (31, 2));
    assert_eq!(hold.services, [service_key("cart"), service_key("web")]);
    assert_eq!(
        hold.why,
        "31 endpoints went within 10 min without explanation, more than 20, the larger of 20 and \
         15 % of 62"
    );
    assert_eq!(verdict.began, verdict.holds);
}

#[test]
fn held_records_stay_as_they_were() {
    let mut bench = Bench::new("web=3,1,2 cart=9");
    let before = bench.published.clone();
    bench.sees("cart=9");
    assert_eq!(bench.published, before, "also in their order");
    let slice = key_of(Kind::Endpoints, "cart", Some("a"));
    bench.sees("cart=8");
    assert_eq!(bench.published[&slice], records("cart=8")[&slice], "what may go is not kept");
}

#[test]
fn a_trickle_counts_like_a_flood_within_ten_minutes() {
    let mut bench = Bench::new("web=1..60");
    for last in (40..60).rev() {
        let verdict = bench.later(Duration::from_secs(25)).sees(&format!("web=1..{last}"));
        assert!(verdict.holds.is_empty(), "{last}: {:?}", verdict.holds);
    }
    assert_eq!(bench.later(MINUTE / 6).sees("web=1..39").holds.len(), 1);
    bench.shows("web=1..40");
}

#[test]
fn what_is_held_counts_like_what_went_while_it_is_recent() {
    let services: Vec<String> = (1..=18).map(|n| format!("s{n}={}", 100 + n)).collect();
    let all = format!("web=1..60 {}", services.join(" "));
    let mut bench = Bench::new(&all);
    assert_eq!(bench.sees("web=1..60").holds[0].endpoints, 18);
    assert_eq!(bench.later(MINUTE).sees("web=1..57").holds.len(), 2, "21 within a minute");
    // And no longer: these may go, which they could not if the 21 still counted.
    let left = bench.later(11 * MINUTE).sees("web=1..40").holds;
    assert_eq!(left.iter().map(|hold| hold.endpoints).collect::<Vec<_>>(), [18, 3]);
    bench.shows(&format!("web=1..40,58..60 {}", services.join(" ")));
}

#[test]
fn after_ten_minutes_what_went_counts_no_more() {
    let mut bench = Bench::new("web=1..60");
    bench.sees("web=1..40");
    bench.later(9 * MINUTE).sees("web=1..39");
    bench.shows("web=1..40");
    bench.sees("web=1..40");
    bench.later(2 * MINUTE).sees("web=1..20");
    bench.shows("web=1..20");
}

#[test]
fn the_share_is_of_what_was_published_at_the_start_of_the_window() {
    // 600 a minute ago allow for 90, the 100 of ten minutes before that only for 20.
    let mut bench = Bench::new("web=1..100");
    bench.later(9 * MINUTE).sees("web=1..600");
    bench.later(MINUTE / 2).sees("web=1..550");
    bench.shows("web=1..600");
    let mut bench = Bench::new("web=1..100");
    bench.later(MINUTE).sees("web=1..600");
    bench.later(11 * MINUTE).sees("web=1..550");
    bench.shows("web=1..550");
}

#[test]
fn what_was_scaled_away_does_not_raise_the_limit() {
    let mut bench = Bench::new("web=1..1000");
    bench.later(MINUTE).knows("web=1..100");
    bench.later(MINUTE).sees("web=1..79");
    bench.shows("web=1..100");
}

#[test]
fn a_services_last_endpoint_is_held_however_few_there_are() {
    check("web=1,2 cart=3", "web=1 cart=", &[], "web=1 cart=3");
    check("web=1,2", "web=", &[], "web=1,2");
    let mut bench = Bench::new("web=1,2 cart=3");
    let verdict = bench.sees("web=1,2");
    assert_eq!(verdict.holds[0].why, "1 service would lose the last endpoint without explanation");
    assert_eq!(verdict.holds[0].services, [service_key("cart")]);
    bench.shows("web=1,2 cart=3");
}

#[test]
fn one_endpoint_after_the_other_the_last_is_held() {
    let mut bench = Bench::new("web=1,2,3");
    bench.sees("web=2,3");
    bench.sees("web=3");
    bench.shows("web=3");
    bench.sees("web=");
    bench.shows("web=3");
}

#[test]
fn what_only_terminates_is_no_endpoint_left() {
    check("web=1,2", "web=2~", &[], "web=1,2");
}

#[test]
fn an_export_takes_its_services_endpoints_away() {
    let mut bench = Bench::new("web=1,2 cart=3");
    let verdict = bench.sees("web=1,2 cart=3 !cart");
    assert!(bench.published.contains_key(&key_of(Kind::Export, "cart", None)));
    assert_eq!(verdict.holds.len(), 1);
    // Its removal explained, so is all that goes with it.
    let gone = key_of(Kind::Export, "cart", None);
    let explains = |loss: &Loss| (*loss.key() == gone).then_some(Explanation::Deleted);
    let verdict = bench.decide(&records("web=1,2"), None, false, &explains);
    assert!(verdict.holds.is_empty());
    assert_eq!(verdict.removals.len(), 2);
    assert!(verdict.removals.values().all(|removal| *removal == Removal::Explained));
    bench.shows("web=1,2");
}

#[test]
fn a_namespace_that_is_gone_for_good_reason_takes_all_in_it_along() {
    let mut bench = Bench::new("web=1..60");
    let mut wanted = records("web=1..60");
    wanted.retain(|key, _| *key != namespace() && key.kind == Kind::Namespace);
    let other = Key::of_namespace(owner(), &"other".parse().unwrap());
    wanted.insert(other, Arc::clone(&bench.published[&namespace()]));
    let ends =
        |loss: &Loss| (*loss.key() == namespace()).then_some(Explanation::NamespaceTerminating);
    let verdict = bench.decide(&wanted, None, false, &ends);
    assert!(verdict.holds.is_empty() && verdict.publish == wanted, "{:?}", verdict.holds);
}

#[test]
fn a_record_without_endpoints_counts_as_one() {
    let names: Vec<String> = (0..21).map(|n| format!("s{n}=")).collect();
    let (all, web) = (format!("{} web=1", names.join(" ")), "web=1");
    check(&all, web, &[], &all);
    check(&format!("{} web=1", names[1..].join(" ")), web, &[], web);
}

#[test]
fn an_address_in_two_slices_counts_once_and_moving_is_no_loss() {
    check("web=1..30 web/b=1..30", "web=1..30", &[], "web=1..30");
    let mut bench = Bench::new("web=1..50 web/b=51,52");
    let verdict = bench.sees("web=51,52 web/b=1..50");
    assert!(verdict.holds.is_empty() && verdict.removals.is_empty());
    let verdict = bench.sees("web=1..52");
    let slice = key_of(Kind::Endpoints, "web", Some("b"));
    assert_eq!(verdict.removals, BTreeMap::from([(slice, Removal::Explained)]));
}

#[test]
fn scale_to_zero_passes_untouched() {
    let mut bench = Bench::new("web=1..100 cart=200");
    let scaled = |_: &Loss| Some(Explanation::ScaledToZero);
    let verdict = bench.decide(&records("web= cart=200"), None, false, &scaled);
    assert!(verdict.holds.is_empty());
    bench.shows("web= cart=200");
}

#[test]
fn draining_half_of_the_nodes_passes_untouched() {
    let mut bench = Bench::new("web=1..200 cart=300..320");
    let drained = |loss: &Loss| {
        let Loss::Endpoint(_, address) = loss else { return None };
        Some(Explanation::Pod { uid: format!("uid-{address}"), end: PodEnd::Deleted })
    };
    for (web, cart) in [(150, 315), (100, 310)] {
        let wanted = records(&format!("web=1..{web} cart=300..{cart}"));
        let verdict = bench.later(MINUTE).decide(&wanted, None, false, &drained);
        assert!(verdict.holds.is_empty(), "{:?}", verdict.holds);
        assert_eq!(verdict.publish, wanted);
    }
}

#[test]
fn a_rollout_passes_untouched_wave_by_wave() {
    let mut bench = Bench::new("web=1..100");
    let replaced = |loss: &Loss| {
        let Loss::Endpoint(..) = loss else { return None };
        Some(Explanation::Pod { uid: "old".into(), end: PodEnd::Terminating })
    };
    for wave in 1..=10_u32 {
        let (old, new) = (wave * 10 + 1, 1000 + wave * 10);
        let old = if wave == 10 { String::new() } else { format!("{old}..100,") };
        let wanted = records(&format!("web={old}1001..{new}"));
        let verdict = bench.later(MINUTE / 4).decide(&wanted, None, false, &replaced);
        assert!(verdict.holds.is_empty() && verdict.publish == wanted, "wave {wave}");
    }
}

#[test]
fn explained_losses_never_count() {
    let mut bench = Bench::new("web=1..300");
    bench.knows("web=1..200");
    bench.sees("web=1..180");
    bench.shows("web=1..180");
}

#[test]
fn an_explanation_that_comes_later_lets_go_of_what_is_held() {
    let mut bench = Bench::new("web=1,2 cart=3");
    bench.sees("web=1,2 cart=");
    bench.shows("web=1,2 cart=3");
    let verdict = bench.knows("web=1,2 cart=");
    assert_eq!(verdict.ended[0].1, Ending::Resolved);
    bench.shows("web=1,2 cart=");
}

#[test]
fn what_comes_back_leaves_the_hold() {
    let mut bench = Bench::new("web=1..60");
    let id = bench.sees("web=1..30").holds[0].id.clone();
    let verdict = bench.sees("web=1..50");
    assert_eq!((&verdict.holds[0].id, verdict.holds[0].endpoints), (&id, 10));
    let verdict = bench.sees("web=1..60");
    assert!(verdict.holds.is_empty());
    assert_eq!(verdict.ended[0].1, Ending::Resolved);
    let again = bench.sees("web=1..30").holds[0].id.clone();
    assert_ne!(id, again, "who approved the first had not seen this one");
}

#[test]
fn an_approval_lets_go_of_the_hold_that_it_names_and_of_no_later_one() {
    let mut bench = Bench::new("web=1..60 cart=100");
    let first = bench.sees("web=1..30 cart=100").holds[0].id.clone();
    let later = bench.sees("web=1..30 cart=").holds;
    let [_, second] = &later[..] else { panic!("{later:?}") };
    assert_ne!(first, second.id);
    let verdict = bench.approve(&first).sees("web=1..30 cart=");
    bench.shows("web=1..30 cart=100");
    assert_eq!(verdict.holds, std::slice::from_ref(second));
    assert_eq!(verdict.ended[0].1, Ending::Approved);
    bench.approve("no such id").sees("web=1..30 cart=");
    bench.shows("web=1..30 cart=100");
}

#[test]
fn the_tombstone_says_that_it_was_approved() {
    let mut bench = Bench::new("web=1..60 cart=100");
    let id = bench.sees("cart=100").holds[0].id.clone();
    let removed = bench.approve(&id).sees("cart=100").removals;
    assert_eq!(removed.len(), 2);
    assert!(removed.values().all(|removal| *removal == Removal::Approved), "{removed:?}");
}

#[test]
fn two_listings_five_minutes_apart_release() {
    let mut bench = Bench::new("web=1..60 cart=100");
    let verdict = bench.lists("cart=100");
    assert_eq!(verdict.ask_again, Some(bench.now + 5 * MINUTE));
    bench.later(Duration::from_secs(299)).lists("cart=100");
    bench.shows("web=1..60 cart=100");
    let verdict = bench.later(Duration::from_secs(1)).lists("cart=100");
    bench.shows("cart=100");
    assert_eq!(verdict.ended[0].1, Ending::Released);
    assert!(verdict.removals.values().all(|removal| *removal == Removal::Released));
}

#[test]
fn one_connection_does_not_confirm_itself() {
    let mut bench = Bench::new("web=1..60 cart=100");
    bench.lists("cart=100");
    bench.later(6 * MINUTE).connection -= 1;
    let same = bench.connection + 1;
    bench.connection = same - 1;
    bench.lists("cart=100");
    assert_eq!(bench.connection, same);
    bench.shows("web=1..60 cart=100");
    bench.lists("cart=100");
    bench.shows("cart=100");
}

#[test]
fn the_same_listing_looked_at_twice_is_one() {
    let mut bench = Bench::new("web=1..60 cart=100");
    let listing = Listing { id: 7, connection: 7, at: bench.now };
    let wanted = records("cart=100");
    for _ in 0..3 {
        bench.later(6 * MINUTE);
        let (published, approved, now) = (&bench.published, &bench.approved, bench.now);
        let sight = Sight {
            wanted: &wanted,
            listing: Some(listing),
            blank: None,
            settled: true,
            explains: &nothing,
        };
        let wall = Timestamp::UNIX_EPOCH;
        assert_eq!(bench.guard.decide(published, &sight, approved, now, wall).holds.len(), 1);
    }
}

#[test]
fn a_listing_from_before_the_loss_does_not_lack_it() {
    let mut bench = Bench::new("web=1..60 cart=100");
    bench.lists("web=1..60 cart=100");
    let old = Listing { id: bench.listings, connection: bench.connection, at: bench.now };
    let wanted = records("cart=100");
    let sight = Sight {
        wanted: &wanted,
        listing: Some(old),
        blank: None,
        settled: true,
        explains: &nothing,
    };
    let (now, wall) = (bench.now + MINUTE, Timestamp::UNIX_EPOCH);
    bench.guard.decide(&bench.published, &sight, &BTreeSet::new(), now, wall);
    bench.later(6 * MINUTE).lists("cart=100");
    bench.shows("web=1..60 cart=100");
    bench.later(5 * MINUTE).lists("cart=100");
    bench.shows("cart=100");
}

#[test]
fn changes_that_are_no_listing_confirm_nothing() {
    let mut bench = Bench::new("web=1..60 cart=100");
    for _ in 0..20 {
        let verdict = bench.later(MINUTE).sees("cart=100");
        assert_eq!((verdict.holds.len(), verdict.ask_again), (1, None));
    }
}

#[test]
fn an_empty_listing_is_held_whole_until_another_agrees() {
    let mut bench = Bench::new("web=1,2 cart=");
    let before = bench.published.clone();
    let verdict = bench.lists("");
    assert_eq!(bench.published, before, "not even the namespace goes");
    assert_eq!(verdict.holds[0].why, "the source lists nothing: nothing explains that all is gone");
    bench.later(5 * MINUTE).lists("");
    assert!(bench.published.is_empty());
}

#[test]
fn what_cannot_be_seen_is_held_until_an_operator_approves() {
    let mut bench = Bench::new("web=1,2 cart=");
    let before = bench.published.clone();
    let mut id = String::new();
    for _ in 0..10 {
        let verdict = bench.later(5 * MINUTE).loses_sight("the directory is missing");
        assert_eq!(bench.published, before);
        assert!(verdict.holds[0].why.starts_with("the directory is missing: "));
        id.clone_from(&verdict.holds[0].id);
    }
    bench.approve(&id).loses_sight("the directory is missing");
    assert!(bench.published.is_empty());
    bench.sees("web=1,2 cart=");
    assert_eq!(bench.published, before, "what is wanted again is published again");
}

#[test]
fn ids_name_owner_incarnation_and_content() {
    let id = |epoch: u64, wanted: &str| {
        let mut bench = Bench::new("web=1..60 cart=100");
        bench.guard = Guard::new(Settings::default(), Epoch { id: "e".into(), count: epoch });
        bench.sees(wanted).holds[0].id.clone()
    };
    let first = id(1, "web=1..60 cart=");
    assert!(first.len() == 12 && first.bytes().all(|b| b.is_ascii_hexdigit()), "{first}");
    assert_eq!(first, id(1, "web=1..60 cart="));
    assert_ne!(first, id(2, "web=1..60 cart="));
    assert_ne!(first, id(1, "web=1 cart=100"));
}

#[test]
fn holds_are_bounded_and_what_joins_one_renames_it() {
    let all: Vec<String> = (0..40).map(|n| format!("s{n}={n}")).collect();
    let mut bench = Bench::new(&all.join(" "));
    let (mut ids, mut most) = (BTreeSet::new(), 0);
    for lost in 1..=40 {
        let kept = format!("keep=999 {}", all[lost..].join(" "));
        let verdict = bench.sees(&kept);
        most = most.max(verdict.holds.len());
        assert!(verdict.holds.len() <= 32, "{}", verdict.holds.len());
        let newest = verdict.holds.last().unwrap();
        assert!(ids.insert(newest.id.clone()), "{lost}: an id that was there before");
        let endpoints: u32 = verdict.holds.iter().map(|hold| hold.endpoints).sum();
        assert_eq!(endpoints as usize, lost);
        let joined = verdict.ended.iter().all(|(_, ending)| *ending == Ending::Joined);
        assert!(joined && verdict.ended.len() == usize::from(lost > 32));
    }
    assert_eq!(most, 32);
}

#[test]
fn after_a_restart_what_was_published_is_what_may_not_go() {
    // A new process that was handed what its disk held.
    let mut bench = Bench::new("");
    bench.published = records("web=1..100 cart=200");
    bench.lists("");
    bench.shows("web=1..100 cart=200");
}

#[test]
fn in_the_middle_of_a_change_nothing_is_judged() {
    let mut bench = Bench::new("web=1..30 cart=40");
    let verdict = bench.glances("web=1,31 mail=50");
    assert!(verdict.removals.is_empty() && verdict.gone.is_empty() && verdict.holds.is_empty());
    bench.shows("web=1..31 cart=40 mail=50");
    // One slice for another of the same service is no loss.
    bench.glances("web/b=1,31 mail=50");
    bench.shows("web=2..30 web/b=1,31 cart=40 mail=50");
    // What is held goes on to be.
    let id = bench.sees("web=1..31 mail=50").holds[0].id.clone();
    let verdict = bench.approve(&id).glances("");
    assert_eq!((verdict.holds.len(), verdict.ended.len()), (1, 0));
    bench.shows("web=1..31 cart=40 mail=50");
    bench.sees("web=1..31 mail=50");
    bench.shows("web=1..31 mail=50");
}

#[test]
fn a_listing_from_before_a_blank_confirms_nothing() {
    let mut bench = Bench::new("web=1..30 cart=40");
    bench.lists("web=1..30");
    bench.shows("web=1..30 cart=40");
    bench.loses_sight("the directory is missing");
    bench.later(5 * MINUTE).lists("web=1..30");
    bench.shows("web=1..30 cart=40");
    bench.later(5 * MINUTE).lists("web=1..30");
    bench.shows("web=1..30");
}
