use std::sync::Arc;

use super::store::SimStore;
use super::{Choice, Planted, Property, Report, run};
use crate::store::{Store, conformance};

/// Each planted bug is found within so many seeds.
const FOUND_WITHIN: u64 = 12;

fn seeds() -> u64 {
    if tombolo_testbed::long() { 1000 } else { 16 }
}

fn seed(seed: u64) -> Choice {
    Choice { seed, ..Choice::default() }
}

fn played(choice: Choice) -> Report {
    run(choice).expect("a runtime can be made")
}

/// The first of a few seeds in which the bug is found.
fn found(planted: Planted) -> Report {
    let choices =
        (0..FOUND_WITHIN).map(|seed| Choice { seed, planted: Some(planted), ..Choice::default() });
    let report = choices.map(played).find(|report| report.violation.is_some());
    let report = report.unwrap_or_else(|| panic!("{planted} is not found in {FOUND_WITHIN} seeds"));
    println!("{planted}, seed {}: {}", report.seed, report.violation.as_ref().unwrap());
    report
}

fn property(planted: Planted) -> Property {
    found(planted).violation.unwrap().property
}

#[tokio::test(start_paused = true)]
async fn the_simulated_store_does_what_every_store_does() {
    conformance::all(|| async { SimStore::start() as Arc<dyn Store> }).await;
}

#[test]
fn the_same_seed_is_the_same_run() {
    let once = played(seed(1));
    let again = played(seed(1));
    assert_eq!((&once.hash, once.steps), (&again.hash, again.steps));
    assert_ne!(once.hash, played(seed(2)).hash);
}

#[test]
fn meshes_come_right_and_nothing_that_must_not_happen_happens() {
    for seed in (0..seeds()).map(seed) {
        let report = played(seed);
        if let Some(violation) = &report.violation {
            panic!("seed {}: {violation}\n{}", report.seed, report.recent.join("\n"));
        }
        assert!(report.converged_in.is_some() && report.injected.len() > 5, "{report:?}");
    }
}

/// Each of these once lost records of everybody, or brought some back, after a restore: a session or
/// a mirror had gone on in a store that was not the one it had written to, a part of what was written
/// back was taken for all, or what one process knew to be gone came from a peer that did not. Or it
/// left readers with what a cluster that started anew had confirmed otherwise.
#[test]
fn stores_that_go_back_take_nothing_from_anybody() {
    for seed in [4, 5, 7, 8, 14, 20, 35, 41, 61, 64, 97, 146, 169, 281, 422, 544] {
        let report = played(Choice { seed, histories: true, ..Choice::default() });
        let restored =
            report.injected.contains_key("restore") || report.injected.contains_key("loss");
        assert!(restored, "seed {seed} does not go back any more: {:?}", report.injected);
        assert_eq!(report.violation, None, "seed {seed}\n{}", report.recent.join("\n"));
    }
}

#[test]
fn a_planted_missed_delete_is_found() {
    assert_eq!(property(Planted::MissedDelete), Property::AntiEntropyFindsNothing);
}

#[test]
fn a_planted_resume_point_apart_from_its_data_is_found() {
    assert_eq!(property(Planted::ResumeApart), Property::AntiEntropyFindsNothing);
}

#[test]
fn planted_second_sessions_are_found() {
    assert_eq!(property(Planted::TwoSessions), Property::OneSessionCommits);
}

#[test]
fn a_planted_unfenced_leader_is_found() {
    assert_eq!(property(Planted::UnfencedLeader), Property::OneLeaderCommits);
}

#[test]
fn a_planted_agent_that_takes_unknown_for_empty_is_found() {
    assert_eq!(property(Planted::EmptyAsTruth), Property::NoUnexplainedDelete);
}
