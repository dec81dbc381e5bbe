use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// `INCARNATION or - or ? | heard N or never N | held or gone [forgotten INCARNATION]`
fn there(text: &str) -> There {
    let mut parts = text.split('|').map(str::trim);
    let incarnation = match parts.next().unwrap() {
        "?" => None,
        "-" => Some(String::new()),
        said => Some(said.to_owned()),
    };
    let heard = match parts.next().unwrap().split_once(' ').unwrap() {
        ("heard", seconds) => Heard::Ago(SECOND * seconds.parse().unwrap()),
        ("never", seconds) => Heard::Never(SECOND * seconds.parse().unwrap()),
        other => panic!("{other:?}"),
    };
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
    check("us", "us/us-a", "? | never 1 | held", "apply");
    check("us", "us/us-a", "? | never 1 | gone", "done");
    check("us", "eu/_", "1 | heard 3 | held", "apply");
    check("us", "eu/_", "? | never 300 | gone", "done");
}

#[test]
fn another_regions_word_counts_once_who_left_is_silent_here_too() {
    check("asia", "eu/_", "1 | heard 30 | held", "may be alive: heard 30 s ago");
    check("asia", "eu/_", "1 | heard 31 | held", "apply");
    check("asia", "eu/_", "1 | never 30 | held", "listens for 30 s only");
    check("asia", "eu/_", "1 | never 31 | held", "apply");
    check("asia", "eu/_", "? | never 31 | gone", "done");
    check("eu", "eu/eu-a", "1 | heard 3 | held", "may be alive");
    check("eu", "eu/eu-a", "1 | heard 31 | held", "apply");
}

#[test]
fn what_was_forgotten_here_stays_so_whatever_is_heard() {
    check("asia", "eu/_", "1 | heard 1 | held forgotten 1", "apply");
    check("asia", "eu/_", "? | never 1 | gone forgotten 1", "done");
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
