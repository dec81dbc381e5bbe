//! Why single records and removals are refused, and how often.

use std::collections::BTreeMap;

use prost::Message as _;

use super::response;
use crate::proto::federation as wire;
use crate::proto::federation::publish_response::Message as Response;
use crate::record::Removal;
use crate::sync::TARGET_MESSAGE;

/// The kind of reason, for counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The key is no record key.
    Key,
    /// It belongs to another owner.
    Owner,
    /// Agents do not publish this kind.
    Kind,
    /// More bytes than a store takes.
    Size,
    /// More than is taken of one cluster.
    Quota,
    /// About a namespace that the cluster is not entitled to.
    Namespace,
    /// The value cannot be used.
    Unreadable,
    /// Of another epoch than the stream's, or from before what is held.
    Sequence,
    /// A claim of age that cannot be true.
    Precedence,
    /// An endpoint where the cluster has none.
    Address,
    /// A removal that does not say why, or when.
    Removal,
    /// A removal that nothing explains, beyond the limits for such.
    Held,
    /// The same key twice in one batch.
    Twice,
    /// Neither declared nor removed.
    Silent,
}

impl Reason {
    /// A word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Owner => "owner",
            Self::Kind => "kind",
            Self::Size => "size",
            Self::Quota => "quota",
            Self::Namespace => "namespace",
            Self::Unreadable => "unreadable",
            Self::Sequence => "sequence",
            Self::Precedence => "precedence",
            Self::Address => "address",
            Self::Removal => "removal",
            Self::Held => "held",
            Self::Twice => "twice",
            Self::Silent => "silent",
        }
    }
}

/// Why one record is refused, for its owner to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) reason: Reason,
    pub(super) text: String,
}

impl Refusal {
    pub(super) fn new(reason: Reason, text: impl Into<String>) -> Self {
        Self { reason, text: text.into() }
    }
}

/// Leaves `reason` to be said by the caller.
pub(super) fn because(reason: Reason) -> impl Fn(String) -> Refusal {
    move |text| Refusal { reason, text }
}

/// What a session has refused and removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Records and removals that were refused.
    pub refused: BTreeMap<Reason, u64>,
    /// Removals that were taken.
    pub removed: BTreeMap<Removal, u64>,
}

impl Tally {
    pub(super) fn refused(&mut self, reason: Reason) {
        *self.refused.entry(reason).or_default() += 1;
    }

    pub(super) fn removed(&mut self, removal: Removal) {
        *self.removed.entry(removal).or_default() += 1;
    }
}

/// One, or as many as it takes to name what was refused.
pub(super) fn acks(batch: u64, refused: Vec<wire::RefusedRecord>) -> Vec<wire::PublishResponse> {
    let mut acks = vec![wire::Ack { batch, refused: Vec::new() }];
    let mut size = 0;
    for refused in refused {
        size += refused.encoded_len();
        if size > TARGET_MESSAGE {
            acks.push(wire::Ack { batch, refused: Vec::new() });
            size = refused.encoded_len();
        }
        acks.last_mut().expect("there is one from the start").refused.push(refused);
    }
    acks.into_iter().map(|ack| response(Response::Ack(ack))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_is_named_in_messages_that_can_be_sent() {
        let (key, reason) = ("k".repeat(100), "r".repeat(200));
        let refused = wire::RefusedRecord { key, reason, for_room: true };
        for count in [0, 1, 100_000] {
            let acks = acks(7, vec![refused.clone(); count]);
            assert!(acks.iter().all(|ack| ack.encoded_len() < 2 * TARGET_MESSAGE));
            let named = acks.into_iter().map(|ack| match ack.message {
                Some(Response::Ack(ack)) if ack.batch == 7 => ack.refused.len(),
                other => panic!("{other:?}"),
            });
            assert_eq!(named.sum::<usize>(), count);
        }
    }
}
