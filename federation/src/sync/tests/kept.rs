//! A removal that was missed, of an owner that does not vouch for all of it.

use super::subscribing::{keys, rest, subscribe, take};
use super::*;

fn has(replica: &ReplicaWriter, name: &str) -> bool {
    keys(&replica.current()).iter().any(|key| key.ends_with(&format!("/{name}")))
}

/// An agent that vouches for its cluster only, and a subscriber that has missed that one went.
fn missed() -> (Agent, ReplicaWriter) {
    let mut agent = Agent::new(epoch("e", 1));
    agent.says(&[cluster(), namespace("one"), namespace("two")], &[Kind::Cluster]);
    let (subscriber, _) = replica::channel();
    let (_, mut intake, messages) = subscribe(&agent.writer, &subscriber);
    take(&mut intake, &subscriber, messages).unwrap();
    agent.says(&[cluster(), namespace("two")], &[Kind::Cluster]);
    (agent, subscriber)
}

#[tokio::test]
async fn what_nobody_vouches_for_stays_and_is_not_sent_again_and_again() {
    let (mut agent, subscriber) = missed();
    let (mut feed, mut intake, messages) = subscribe(&agent.writer, &subscriber);
    take(&mut intake, &subscriber, messages).unwrap();
    for minute in 0..10 {
        take(&mut intake, &subscriber, vec![feed.digests()]).unwrap();
        agent.says(&[cluster(), namespace("two"), namespace(&format!("n{minute}"))], &[]);
        feed.advance(agent.writer.current());
        take(&mut intake, &subscriber, rest(&mut feed)).unwrap();
        assert!(has(&subscriber, "one") && has(&subscriber, &format!("n{minute}")));
    }
    // All else that differs is found as before.
    let missed = vec![(namespace("two").0, None)];
    subscriber.apply(Batch { items: missed, ..Batch::default() }, Instant::now());
    let error = take(&mut intake, &subscriber, vec![feed.digests()]).unwrap_err();
    assert_eq!(error, IntakeError::DigestMismatch { owner: owner() });
}

#[tokio::test]
async fn it_goes_when_its_owner_vouches_and_stays_when_it_is_said_again() {
    let check = |says: &[(Key, Arc<Body>)], stays: bool| {
        let (mut agent, subscriber) = missed();
        let (mut feed, mut intake, messages) = subscribe(&agent.writer, &subscriber);
        take(&mut intake, &subscriber, messages).unwrap();
        agent.says(says, &[Kind::Cluster]);
        feed.advance(agent.writer.current());
        take(&mut intake, &subscriber, rest(&mut feed)).unwrap();
        assert!(has(&subscriber, "one"));
        take(&mut intake, &subscriber, vec![feed.digests()]).unwrap();
        agent.says(says, &crate::sync::CLUSTER_KINDS);
        feed.advance(agent.writer.current());
        take(&mut intake, &subscriber, rest(&mut feed)).unwrap();
        assert_eq!(has(&subscriber, "one"), stays);
        take(&mut intake, &subscriber, vec![feed.digests()]).unwrap();
        assert_eq!(keys(&subscriber.current()), keys(&agent.writer.current()));
    };
    check(&[cluster(), namespace("two")], false);
    check(&[cluster(), namespace("two"), namespace("one")], true);
}

/// A server that knows only an older word of the owner on the kind does not take it away either.
#[tokio::test]
async fn an_older_word_takes_nothing_away() {
    let (agent, subscriber) = missed();
    let held = vec![(owner(), Kind::Namespace, epoch("e", 2))];
    subscriber.apply(Batch { complete: held, ..Batch::default() }, Instant::now());
    let (mut feed, mut intake, messages) = subscribe(&agent.writer, &subscriber);
    take(&mut intake, &subscriber, messages).unwrap();
    let older = vec![(owner(), Kind::Namespace, epoch("e", 1))];
    agent.writer.apply(Batch { complete: older, ..Batch::default() }, Instant::now());
    feed.advance(agent.writer.current());
    take(&mut intake, &subscriber, rest(&mut feed)).unwrap();
    assert!(has(&subscriber, "one"));
}
