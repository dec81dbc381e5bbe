//! A server that is behind on an owner, and catches up while it is listened to.

use super::subscribing::{keys, rest, subscribe, take};
use super::*;
use crate::record::Beacon;

/// What an owner says, change by change.
struct Owning(OwnRecords);

impl Owning {
    fn in_epoch(count: u64) -> Self {
        Self(OwnRecords::new(owner(), epoch("e", count)))
    }

    fn says(&mut self, (key, body): (Key, Arc<Body>)) -> Batch {
        let complete = self.0.complete(&crate::sync::CLUSTER_KINDS);
        Batch { items: vec![self.0.say(&key, &body)], complete, ..Batch::default() }
    }

    fn beats(&mut self) -> Batch {
        let key = Key::of_owner(owner(), Kind::Beacon);
        self.says((key, Arc::new(Body::Beacon(Beacon { nonce: 1 }))))
    }

    fn removes(&mut self, (key, _): (Key, Arc<Body>)) -> Batch {
        let removed = [(key.clone(), self.0.remove(Removal::Explained))].into();
        let newest = vec![(owner(), self.0.newest())];
        Batch { items: vec![(key, None)], removed, newest, ..Batch::default() }
    }
}

fn apply(writer: &ReplicaWriter, changes: &[Batch]) {
    for change in changes {
        writer.apply(change.clone(), Instant::now());
    }
}

/// A subscriber that has taken all of `changes`, of a server that has the first of them: what it
/// holds while the server takes one after the other.
fn catches_up(changes: Vec<Batch>) -> Vec<Vec<String>> {
    let (subscriber, _) = replica::channel();
    let (server, _) = replica::channel();
    apply(&subscriber, &changes);
    server.apply(changes[0].clone(), Instant::now());
    let (mut feed, mut intake, messages) = subscribe(&server, &subscriber);
    take(&mut intake, &subscriber, messages).unwrap();
    let mut held = Vec::new();
    for change in changes.into_iter().skip(1) {
        server.apply(change, Instant::now());
        feed.advance(server.current());
        take(&mut intake, &subscriber, rest(&mut feed)).unwrap();
        held.push(keys(&subscriber.current()));
    }
    take(&mut intake, &subscriber, vec![feed.digests()]).unwrap();
    assert_eq!(keys(&subscriber.current()), keys(&server.current()));
    held
}

fn is_there(held: &[Vec<String>], name: &str) -> Vec<bool> {
    held.iter().map(|keys| keys.iter().any(|key| key.ends_with(&format!("/{name}")))).collect()
}

#[tokio::test]
async fn what_was_removed_since_does_not_come_back() {
    let mut own = Owning::in_epoch(1);
    let changes = vec![
        own.says(cluster()),
        own.says(namespace("gone")),
        own.says(namespace("kept")),
        own.removes(namespace("gone")),
        own.beats(),
        own.says(namespace("new")),
        own.removes(namespace("kept")),
    ];
    // The last two are news to nobody who knows them.
    let held = catches_up(changes.clone());
    assert_eq!(is_there(&held, "gone"), [false; 6]);
    assert_eq!(is_there(&held, "kept"), [false; 6]);

    // And once it has caught up its word counts like any other's.
    let (subscriber, _) = replica::channel();
    let (server, _) = replica::channel();
    apply(&subscriber, &changes[..5]);
    server.apply(changes[0].clone(), Instant::now());
    let (mut feed, mut intake, messages) = subscribe(&server, &subscriber);
    take(&mut intake, &subscriber, messages).unwrap();
    for change in &changes[1..] {
        server.apply(change.clone(), Instant::now());
        feed.advance(server.current());
        take(&mut intake, &subscriber, rest(&mut feed)).unwrap();
    }
    assert_eq!(keys(&subscriber.current()), keys(&server.current()));
}

#[tokio::test]
async fn what_was_said_again_since_in_a_later_epoch_does_not_go() {
    let mut first = Owning::in_epoch(1);
    let mut changes = vec![first.says(cluster()), first.says(namespace("back"))];
    changes.extend((0..5).map(|_| first.beats()));
    changes.push(first.removes(namespace("back")));
    let mut second = Owning::in_epoch(2);
    changes.extend([second.says(cluster()), second.says(namespace("back")), second.beats()]);
    let (subscriber, _) = replica::channel();
    let (server, _) = replica::channel();
    apply(&subscriber, &changes);
    server.apply(changes[0].clone(), Instant::now());
    let (mut feed, mut intake, messages) = subscribe(&server, &subscriber);
    take(&mut intake, &subscriber, messages).unwrap();
    let mut ended = None;
    for change in changes.into_iter().skip(1) {
        server.apply(change, Instant::now());
        feed.advance(server.current());
        ended = ended.or(take(&mut intake, &subscriber, rest(&mut feed)).err());
        assert!(keys(&subscriber.current()).iter().any(|key| key.ends_with("/back")));
    }
    // By its number alone it may have been of the second epoch: that is compared.
    assert_eq!(ended, Some(IntakeError::CaughtUp { owner: owner() }));
    let (feed, mut intake, messages) = subscribe(&server, &subscriber);
    take(&mut intake, &subscriber, messages).unwrap();
    take(&mut intake, &subscriber, vec![feed.digests()]).unwrap();
}

#[tokio::test]
async fn a_removal_that_may_be_news_is_compared_as_a_whole() {
    let mut first = Owning::in_epoch(1);
    let mut changes = vec![first.says(cluster()), first.says(namespace("one"))];
    changes.extend((0..5).map(|_| first.beats()));
    let (subscriber, _) = replica::channel();
    let (server, _) = replica::channel();
    apply(&subscriber, &changes);
    apply(&server, &changes[..2]);
    let (mut feed, mut intake, messages) = subscribe(&server, &subscriber);
    take(&mut intake, &subscriber, messages).unwrap();
    // The first that is heard of the next epoch has a smaller number than what is held.
    let mut second = Owning::in_epoch(2);
    let mut error = None;
    for change in [second.removes(namespace("one")), second.beats()] {
        server.apply(change, Instant::now());
        feed.advance(server.current());
        error = take(&mut intake, &subscriber, rest(&mut feed)).err();
    }
    let error = error.expect("what is held cannot be told from what was removed");
    assert_eq!(error, IntakeError::CaughtUp { owner: owner() });
    assert!(error.distrusts_positions());
    let (_, mut intake, messages) = subscribe(&server, &subscriber);
    take(&mut intake, &subscriber, messages).unwrap();
    assert_eq!(keys(&subscriber.current()), keys(&server.current()));
}
