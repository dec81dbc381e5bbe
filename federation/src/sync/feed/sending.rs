//! A row of records that is sent batch by batch, each made when it is its turn.

use std::collections::VecDeque;

use super::{Interest, message};
use crate::key::Key;
use crate::names::Owner;
use crate::proto::federation as wire;
use crate::proto::federation::subscribe_response::Message;
use crate::replica::Replica;
use crate::sync::{TARGET_MESSAGE, facts};

/// What is still to be sent of one replica: records, then end markers.
#[derive(Debug)]
pub(super) struct Sending {
    keys: Keys,
    ends: VecDeque<wire::SubscribeResponse>,
}

#[derive(Debug)]
enum Keys {
    /// These, in this order. Names are shared with the replica, so that a key is a few words.
    Listed(VecDeque<Key>),
    /// All of an owner's that are of interest, beyond this one.
    Of { owner: Owner, interest: Box<Interest>, after: Option<Key> },
}

impl Sending {
    pub(super) fn keys(keys: VecDeque<Key>) -> Self {
        Self { keys: Keys::Listed(keys), ends: VecDeque::new() }
    }

    pub(super) fn whole(owner: Owner, interest: Interest) -> Self {
        let keys = Keys::Of { owner, interest: Box::new(interest), after: None };
        Self { keys, ends: VecDeque::new() }
    }

    pub(super) fn then(self, ends: VecDeque<wire::SubscribeResponse>) -> Self {
        Self { ends, ..self }
    }

    /// The next message; `replica` is the same each time.
    pub(super) fn next_of(&mut self, replica: &Replica) -> Option<wire::SubscribeResponse> {
        let mut items = Vec::new();
        let mut size = 0;
        while size < TARGET_MESSAGE {
            let Some(key) = self.keys.peek(replica) else { break };
            let item = item(replica, &key);
            size += item.key.len() + item.value.as_ref().map_or(0, bytes::Bytes::len);
            items.push(item);
            self.keys.taken(key);
        }
        if items.is_empty() {
            return self.ends.pop_front();
        }
        let more = self.keys.peek(replica).is_some();
        Some(message(Message::Batch(wire::Batch { position: replica.position, items, more })))
    }
}

impl Keys {
    fn peek(&self, replica: &Replica) -> Option<Key> {
        match self {
            Self::Listed(keys) => keys.front().cloned(),
            Self::Of { owner, interest, after } => {
                let mut rest = replica.holding(owner)?.records_after(after.as_ref());
                rest.find(|(key, _)| interest.includes(key)).map(|(key, _)| key.clone())
            }
        }
    }

    fn taken(&mut self, key: Key) {
        match self {
            Self::Listed(keys) => drop(keys.pop_front()),
            Self::Of { after, .. } => *after = Some(key),
        }
    }
}

fn item(replica: &Replica, key: &Key) -> wire::Item {
    let value = replica.get(key).map(|entry| entry.value.clone());
    let removed = if value.is_none() { replica.removed(key) } else { None };
    wire::Item {
        key: key.to_string(),
        value,
        removal: removed.as_ref().map_or(0, |removed| removed.removal.to_wire()),
        sequence: removed.as_ref().map_or(0, |removed| removed.sequence),
        epoch: removed.and_then(|removed| Some(facts::epoch_to_wire(removed.epoch.as_ref()?))),
    }
}
