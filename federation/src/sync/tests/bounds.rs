//! What a peer may make a mirror hold, and what a mirror that left something out vouches for.

use super::quotas::mirror_of;
use super::subscribing::take;
use super::*;
use crate::replica::Holding;
use crate::sync::quota::{OWNERS, Quota};

fn batch(position: u64, items: Vec<wire::Item>, more: bool) -> wire::SubscribeResponse {
    let batch = wire::Batch { position, items, more };
    wire::SubscribeResponse { message: Some(wire::subscribe_response::Message::Batch(batch)) }
}

fn item(key: String, bytes: usize) -> wire::Item {
    let value = Some(vec![b'v'; bytes].into());
    wire::Item { key, value, ..wire::Item::default() }
}

fn with_a_cluster() -> Agent {
    let mut agent = Agent::new(epoch("e", 1));
    agent.says(&[cluster()], &crate::sync::CLUSTER_KINDS);
    agent
}

/// Each takes the place of the one before, and all of them wait for the rest.
#[tokio::test]
async fn a_change_of_which_more_is_always_to_come_does_not_fill_the_memory() {
    let (mirror, _) = replica::channel();
    let agent = with_a_cluster();
    let (_, mut intake, messages) = mirror_of(&agent.writer, 100);
    intake.quota = Some(Quota { of: "region", records: 100, bytes: 10_000 });
    take(&mut intake, &mirror, messages).unwrap();
    for key in [namespace("a").0, cluster().0, Key::of_owner(owner(), Kind::Beacon)] {
        let mut sent = 0;
        let ended = loop {
            sent += 1;
            let part = batch(1, vec![item(key.to_string(), 900)], true);
            if let Err(ended) = intake.receive(part, &mirror.current()) {
                break ended;
            }
            assert!(sent < 12, "{key}");
        };
        let why = IntakeError::Unexpected("a change of more than 10000 bytes".to_owned());
        assert_eq!(ended, why);
        let (_, anew, messages) = mirror_of(&agent.writer, 100);
        intake = anew;
        intake.quota = Some(Quota { of: "region", records: 100, bytes: 10_000 });
        take(&mut intake, &mirror, messages).unwrap();
    }
    // What is whole in between is given out, and counts no more.
    for position in 2..40 {
        let whole = batch(position, vec![item(namespace("a").0.to_string(), 900)], false);
        let step = intake.receive(whole, &mirror.current()).unwrap();
        mirror.apply(step.batch, Instant::now());
    }
}

#[tokio::test]
async fn a_peer_cannot_invent_owners_without_end_on_a_stream_that_is_up() {
    let (mirror, _) = replica::channel();
    let agent = with_a_cluster();
    let (_, mut intake, messages) = mirror_of(&agent.writer, 10_000);
    intake.quota = Some(Quota { of: "region", records: 10_000, bytes: 1 << 30 });
    take(&mut intake, &mirror, messages).unwrap();
    for n in 0..OWNERS + 50 {
        let name = format!("r-x{n}");
        let key = format!("/tombolo/v1/r/{name}/cluster/_/{name}");
        let step = intake.receive(batch(2, vec![item(key, 1)], false), &mirror.current()).unwrap();
        mirror.apply(step.batch, Instant::now());
    }
    assert_eq!(mirror.current().owners().count(), OWNERS);
    let last = intake.last_left_out().unwrap();
    assert!(last.contains("would be one of more than"), "{last}");
}

/// A region that recovers from this one would take what is left out for gone.
#[tokio::test]
async fn who_left_something_out_does_not_vouch_for_its_kind() {
    let (mirror, _) = replica::channel();
    let mut agent = Agent::new(epoch("e", 1));
    let all = [cluster(), namespace("a"), namespace("b")];
    agent.says(&all, &crate::sync::CLUSTER_KINDS);
    let vouches = |mirror: &ReplicaWriter| {
        let held = mirror.current();
        let complete = held.holding(&owner()).map(Holding::complete).cloned().unwrap_or_default();
        (complete.contains_key(&Kind::Cluster), complete.contains_key(&Kind::Namespace))
    };
    let (_, mut intake, messages) = mirror_of(&agent.writer, 1);
    take(&mut intake, &mirror, messages).unwrap();
    assert_eq!(vouches(&mirror), (true, false));

    let (_, mut intake, messages) = mirror_of(&agent.writer, 9);
    take(&mut intake, &mirror, messages).unwrap();
    assert_eq!(vouches(&mirror), (true, true));
}
