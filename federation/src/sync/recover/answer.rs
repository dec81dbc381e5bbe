//! What a peer has of this region, as it comes: bounded, whatever it sends.

use std::sync::Arc;

use super::RecoverError;
use crate::names::RegionName;
use crate::proto::federation as wire;
use crate::replica::{self, Batch, Replica};
use crate::sync::intake::{Accept, Intake, Reason};
use crate::sync::quota::{OWNERS, Quota, REGION, Usage};

/// What a mirror holds at most: a little more than its quota, since it takes what tells of an owner
/// itself beside that.
const MOST: Quota =
    Quota { of: REGION.of, records: REGION.records + 3 * OWNERS, bytes: REGION.bytes / 4 * 5 };

#[derive(Debug)]
pub(super) struct Answer {
    intake: Intake,
    /// Compared with nothing: what is there already is found out when it is written.
    nothing: Arc<Replica>,
    most: Quota,
    usage: Usage,
    all: Batch,
}

impl Answer {
    pub(super) fn about(region: &RegionName) -> Self {
        let intake = Intake::new(Accept::Region(region.clone()));
        let nothing = replica::channel().0.current();
        Self { intake, nothing, most: MOST, usage: Usage::default(), all: Batch::default() }
    }

    /// All of it, once the peer has said all.
    ///
    /// # Errors
    /// What the intake does not take, and more than may be. To go on without the rest is no way:
    /// what the peer vouches for and is not there counts as gone.
    pub(super) fn receive(
        &mut self,
        response: wire::SubscribeResponse,
    ) -> Result<Option<Batch>, RecoverError> {
        // Each owner by itself is compared with nothing: they share what is left.
        self.intake.quota = Some(Quota {
            records: self.most.records.saturating_sub(self.usage.records),
            bytes: self.most.bytes.saturating_sub(self.usage.bytes),
            ..self.most
        });
        let step = self.intake.receive(response, &self.nothing)?;
        for (_, value) in &step.batch.items {
            self.usage.add(None, value.as_ref().map_or(0, bytes::Bytes::len));
        }
        let within = self.usage.records <= self.most.records && self.usage.bytes <= self.most.bytes;
        if !within || self.intake.left_out().contains_key(&Reason::Quota) {
            return Err(RecoverError::TooMuch(self.most));
        }
        self.all.items.extend(step.batch.items);
        self.all.complete.extend(step.batch.complete);
        self.all.newest.extend(step.batch.newest);
        Ok(step.synced.then(|| std::mem::take(&mut self.all)))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::key::{Key, Kind};
    use crate::names::Owner;
    use crate::proto::federation::subscribe_response::Message;
    use crate::record::{Body, Epoch, Namespace};
    use crate::sync::feed::{Feed, Has, Interest, Owners};
    use crate::sync::own::OwnRecords;

    /// What a peer holds of region r: three namespaces of each of these clusters.
    fn messages(clusters: usize) -> Vec<wire::SubscribeResponse> {
        let (peer, _) = replica::channel();
        for cluster in 0..clusters {
            let owner: Owner = format!("r/r-{cluster}").parse().unwrap();
            let mut own = OwnRecords::new(owner.clone(), Epoch { id: "e".into(), count: 1 });
            let body = Arc::new(Body::Namespace(Namespace::default()));
            let key = |name: &str| Key::of_namespace(owner.clone(), &name.parse().unwrap());
            let items = ["a", "b", "c"].map(|name| own.say(&key(name), &body));
            let complete = own.complete(&[Kind::Namespace]);
            let batch = Batch { items: items.into(), complete, ..Batch::default() };
            peer.apply(batch, Instant::now());
        }
        let interest = Interest::all(Owners::Region("r".parse().unwrap()));
        let mut feed = Feed::open(interest, Has::default(), peer.current());
        std::iter::from_fn(|| feed.next_message()).collect()
    }

    fn answered(most: Quota, clusters: usize) -> Result<Option<Batch>, RecoverError> {
        let mut answer = Answer { most, ..Answer::about(&"r".parse().unwrap()) };
        let mut all = None;
        for message in messages(clusters) {
            all = answer.receive(message)?;
        }
        Ok(all)
    }

    #[test]
    fn what_a_peer_gives_back_is_bounded_over_all_owners() {
        let most = Quota { of: "region", records: 9, bytes: 1 << 20 };
        let all = answered(most, 3).unwrap().expect("all was said");
        assert_eq!((all.items.len(), all.complete.len()), (9, 3));
        let error = answered(most, 4).unwrap_err();
        let why =
            "the peer says more than the 9 records or 1048576 bytes that are taken of a region";
        assert_eq!(error.to_string(), why);
        let most = Quota { of: "region", records: 100, bytes: all_bytes(&all) };
        assert!(answered(most, 3).is_ok());
        assert!(matches!(answered(most, 4), Err(RecoverError::TooMuch(_))));
    }

    fn all_bytes(batch: &Batch) -> usize {
        batch.items.iter().filter_map(|(_, value)| Some(value.as_ref()?.len())).sum()
    }

    /// Removals cost memory, too, and there is nothing that they could remove.
    #[test]
    fn removals_without_end_are_no_answer() {
        let most = Quota { of: "region", records: 9, bytes: 1 << 20 };
        let mut answer = Answer { most, ..Answer::about(&"r".parse().unwrap()) };
        let message = |message| wire::SubscribeResponse { message: Some(message) };
        let mut ended = None;
        for cluster in 0..20 {
            let owner = format!("r/r-{cluster}");
            let key = format!("/tombolo/v1/{owner}/namespace/_/x");
            let items = vec![wire::Item { key, ..wire::Item::default() }];
            let start = Message::Start(wire::Start { owner, ..wire::Start::default() });
            let batch = Message::Batch(wire::Batch { position: 1, items, more: false });
            ended = ended.or(answer.receive(message(start)).err());
            ended = ended.or(answer.receive(message(batch)).err());
        }
        assert!(ended.is_some());
    }
}
