use super::*;

/// Steps of (seconds later, what is seen, whether it is suspect then).
#[track_caller]
fn check(first: &str, steps: &[(u64, &str, bool)]) {
    let mut bench = Bench::new(first);
    for (index, (seconds, text, suspect)) in steps.iter().enumerate() {
        let verdict = bench.later(Duration::from_secs(*seconds)).knows(text);
        assert_eq!(verdict.suspect.is_some(), *suspect, "step {index}: {:?}", verdict.suspect);
    }
}

#[test]
fn a_fast_fall_below_the_limit_is_suspect_until_the_share_is_back() {
    check("web=1..100", &[(1, "web=1..45,46..100-", false)]);
    check(
        "web=1..100",
        &[
            (1, "web=1..44,45..100-", true),
            (3600, "web=1..100-", true),
            (3600, "web=1..44,45..100-", true),
            (1, "web=1..45,46..100-", false),
        ],
    );
}

#[test]
fn the_fall_may_take_two_minutes_and_no_longer() {
    check("web=1..100", &[(1, "web=1..70,71..100-", false), (119, "web=1..40,41..100-", true)]);
    // 30 fell long ago: those that fell lately do not make the difference alone.
    check(
        "web=1..100",
        &[
            (1, "web=1..50,51..100-", false),
            (600, "web=1..46,47..100-", false),
            (600, "web=1..45,46..100-", false),
        ],
    );
}

#[test]
fn a_scale_up_is_no_fall_and_neither_is_removing_the_ready() {
    // What is not ready here counts as having been, so that the share is low from the start.
    check("web=1..10,11..20-", &[(1, "web=1..10,11..40-", false), (1, "web=1..3,11..20-", false)]);
}

#[test]
fn terminating_endpoints_do_not_count() {
    check("web=1..100", &[(1, "web=1..40,41..100~", false), (1, "web=1..40,41..100-~", false)]);
}

#[test]
fn an_address_is_ready_if_any_slice_says_so() {
    check("web=1..10 web/b=1..10", &[(1, "web=1..10- web/b=1..10", false)]);
    check("web=1..10 web/b=1..10", &[(1, "web=1..10- web/b=1..10-", true)]);
}

#[test]
fn once_approved_it_is_believed_until_it_was_better() {
    let mut bench = Bench::new("web=1..100");
    let suspect = bench.knows("web=1..100-").suspect.unwrap();
    assert_eq!((suspect.ready, suspect.of), (0, 100));
    let verdict = bench.approve(&suspect.id).knows("web=1..100-");
    assert_eq!(verdict.cleared.unwrap().1, Ending::Approved);
    assert!(verdict.suspect.is_none());
    assert!(bench.knows("web=1,2..100-").suspect.is_none(), "that is no news");
    assert!(bench.knows("web=1..100").suspect.is_none());
    let again = bench.knows("web=1..100-").suspect.unwrap();
    assert_ne!(again.id, suspect.id);
}

#[test]
fn what_is_not_seen_is_not_unready() {
    let mut bench = Bench::new("web=1..100");
    assert!(bench.loses_sight("the directory is missing").suspect.is_none());
    let suspect = bench.knows("web=1..100-").suspect;
    assert!(suspect.is_some());
    assert_eq!(bench.loses_sight("the directory is missing").suspect, suspect);
}

#[test]
fn a_later_process_goes_on_from_what_was_published() {
    let later = |bench: &mut Bench, suspect: Option<Suspect>| {
        let guard = Guard::new(Settings::default(), Epoch { id: "e".into(), count: 2 });
        bench.guard = guard.continuing(&bench.published, suspect);
    };
    let mut bench = Bench::new("web=1..100");
    let suspect = bench.knows("web=1..100-").suspect;
    assert!(suspect.is_some());
    later(&mut bench, suspect.clone());
    bench.later(Duration::from_hours(1));
    assert_eq!(bench.knows("web=1..100-").suspect, suspect);
    let verdict = bench.knows("web=1..100");
    assert_eq!(verdict.cleared.unwrap().1, Ending::Resolved);
    // What fell meanwhile fell at once.
    later(&mut bench, None);
    assert!(bench.glances("web=1..40,41..100-").suspect.is_some());
    // What an operator had believed is no news.
    later(&mut bench, None);
    assert!(bench.knows("web=1..40,41..100-").suspect.is_none());
}
