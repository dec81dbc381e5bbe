use super::*;

fn approval(cluster: &str, hold: &str) -> Decided {
    Decided::Approve { cluster: cluster.parse().unwrap(), hold: hold.into() }
}

fn leaves(owner: &str, incarnation: &str) -> Decided {
    Decided::Leave { owner: owner.parse().unwrap(), incarnation: incarnation.into() }
}

#[test]
fn saying_it_twice_is_saying_it_once_and_nothing_else_is_the_same() {
    let us = "us".parse().unwrap();
    let long = "x".repeat(5000);
    let decisions = [
        approval("us-a", "1"),
        approval("us-a", "2"),
        approval("us-a", &long),
        approval("us-b", "1"),
        leaves("us/us-a", "1"),
        leaves("us/us-a", ""),
        leaves("us/_", "1"),
        leaves("eu/_", "1"),
    ];
    let keys: std::collections::BTreeSet<String> =
        decisions.iter().map(|what| key(&us, what).to_string()).collect();
    assert_eq!(keys.len(), decisions.len());
    for what in &decisions {
        let key = key(&us, what);
        assert_eq!(key.to_string().parse::<Key>().unwrap(), key);
        assert_eq!(key, super::key(&us, what));
    }
    // A wire format: another version has to find it.
    let text = key(&us, &leaves("us/us-a", "1")).to_string();
    assert_eq!(text, "/tombolo/v1/us/_/decision/_/leave-us-a.438235031cb11495");
}

#[test]
fn an_approval_is_applied_only_if_its_cluster_says_so() {
    let hold = |id: &str| crate::record::Hold {
        id: id.into(),
        since: Timestamp::UNIX_EPOCH,
        records: 1,
        endpoints: 1,
        why: String::new(),
        services: Vec::new(),
    };
    let holding = Cluster { holds: vec![hold("h")], ..Cluster::default() };
    let anew = Cluster { holds: vec![hold("i"), hold("j")], ..Cluster::default() };
    let let_go = Cluster { approved: vec!["g".into(), "h".into()], ..Cluster::default() };
    let other = Cluster { approved: vec!["g".into()], ..Cluster::default() };
    let check = |says: Option<&Cluster>, expected: &str| {
        let state = approval_state(says, &"us-a".parse().unwrap(), &"h".to_owned());
        assert!(format!("{state:?}").contains(expected), "{state:?}");
    };
    check(Some(&holding), "Waiting(\"us-a still holds it back");
    check(Some(&let_go), "Applied");
    check(Some(&other), "Over(\"us-a holds it back no more");
    check(Some(&anew), "Over(\"us-a has no such hold any more; its agent now holds i, j under");
    check(None, "Over(\"nothing is known of us-a");
}

#[test]
fn a_hold_is_named_by_its_id_or_by_the_beginning_of_one_alone() {
    let present = || ["3f9a01", "3f9a02", "77aa", "77aabb"].map(str::to_owned).to_vec();
    let check = |named: &str, expected: Result<&str, &str>| {
        let found = hold_named(&"us-a".parse().unwrap(), present(), named);
        match (&found, expected) {
            (Ok(hold), Ok(expected)) => assert_eq!(hold, expected),
            (Err(why), Err(expected)) => assert!(why.to_string().contains(expected), "{why}"),
            _ => panic!("{named:?}: {found:?}"),
        }
    };
    check("3f9a01", Ok("3f9a01"));
    check("3f9a0", Err("more than one hold \"3f9a0\": it holds 3f9a01, 3f9a02"));
    check("77aab", Ok("77aabb"));
    check("77aa", Ok("77aa"));
    check("88aa", Err("us-a has no hold \"88aa\": it holds 3f9a01"));
    for short in ["", "3", "77a"] {
        check(short, Err("has no hold"));
    }
}

#[test]
fn approvals_are_forgotten_after_a_day_and_leaves_are_not() {
    let at = Timestamp::from_second(1_800_000_000).unwrap();
    let decision = |what| Decision { by: String::new(), at, note: String::new(), what };
    let (approval, leave) = (decision(approval("us-a", "1")), decision(leaves("us/us-a", "1")));
    let hours = |hours| at + SignedDuration::from_hours(hours);
    assert!(!is_over(&approval, hours(24)) && is_over(&approval, hours(25)));
    assert!(!is_over(&leave, hours(100_000)));
    assert!(!is_over(&approval, hours(-1)), "clocks differ");
}
