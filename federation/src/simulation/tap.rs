//! Reads along with a call: what is acknowledged must be in the store. A bug that is planted on the
//! way sits here too.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use super::network::Server;
use super::store::SimStore;
use super::{Planted, Property, Shared};
use crate::proto::federation as wire;
use crate::proto::federation::publish_request::Message as Request;
use crate::proto::federation::publish_response::Message as Response;
use crate::proto::federation::subscribe_response::Message as Subscribed;
use crate::store::conformance::random::Random;

/// Before each message of gRPC: whether it is compressed, and its length.
const HEADER: usize = 5;

/// One call's.
#[derive(Debug, Clone)]
pub(super) struct Tap {
    shared: Arc<Shared>,
    client: String,
    store: Option<Arc<SimStore>>,
    call: Call,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Publish,
    Subscribe,
    Other,
}

#[derive(Debug)]
struct Inner {
    /// Batches that are not acknowledged.
    sent: BTreeMap<u64, wire::Changes>,
    random: Random,
}

impl Tap {
    pub(super) fn new(
        shared: &Arc<Shared>,
        client: &str,
        server: &Server,
        path: &str,
        seed: u64,
    ) -> Self {
        let call = match path.rsplit('/').next() {
            Some("Publish") => Call::Publish,
            Some("Subscribe") => Call::Subscribe,
            _ => Call::Other,
        };
        let store = shared.store(&server.region);
        let inner = Inner { sent: BTreeMap::new(), random: Random(seed) };
        let (shared, client) = (Arc::clone(shared), client.to_owned());
        Self { shared, client, store, call, inner: Arc::new(Mutex::new(inner)) }
    }

    /// What the client says.
    pub(super) fn request(&self, data: Bytes) -> Bytes {
        if self.call == Call::Publish {
            for message in messages(&data) {
                let request = wire::PublishRequest::decode(message);
                if let Ok(wire::PublishRequest { message: Some(Request::Changes(changes)) }) =
                    request
                {
                    let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
                    inner.sent.insert(changes.batch, changes);
                }
            }
        }
        data
    }

    /// What the server answers.
    pub(super) fn response(&self, data: Bytes) -> Bytes {
        match self.call {
            Call::Publish => {
                for message in messages(&data) {
                    let response = wire::PublishResponse::decode(message);
                    if let Ok(wire::PublishResponse { message: Some(Response::Ack(ack)) }) =
                        response
                    {
                        self.acknowledged(&ack);
                    }
                }
                data
            }
            Call::Subscribe if self.shared.planted == Some(Planted::MissedDelete) => {
                self.without_some_removals(&data)
            }
            Call::Subscribe | Call::Other => data,
        }
    }

    fn acknowledged(&self, ack: &wire::Ack) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = inner.sent.remove(&ack.batch).unwrap_or_default();
        let Some(store) = &self.store else { return };
        let refused = |key: &String| ack.refused.iter().any(|refused| refused.key == *key);
        for refused in &ack.refused {
            self.shared.journal.note(&format!("{} refused: {}", refused.key, refused.reason));
        }
        let lacks = |put: &&wire::Put| !refused(&put.key) && !store.had(&put.key, &put.value);
        if let Some(put) = changes.puts.iter().find(lacks) {
            let what =
                format!("{} was told that {} is committed, it never was", self.client, put.key);
            self.shared.journal.violated(Property::AcknowledgedIsStored, &what);
        }
    }

    /// As an intake would see them that drops one removal in three.
    fn without_some_removals(&self, data: &Bytes) -> Bytes {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = BytesMut::new();
        for message in messages(data) {
            let mut bytes = message.clone();
            if let Ok(mut response) = wire::SubscribeResponse::decode(message)
                && let Some(Subscribed::Batch(batch)) = &mut response.message
            {
                batch.items.retain(|item| item.value.is_some() || !inner.random.chance(33));
                bytes = response.encode_to_vec().into();
            }
            left.put_u8(0);
            left.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
            left.put(bytes);
        }
        left.freeze()
    }
}

/// The messages of a frame: each is whole, since nothing between the two ends cuts frames.
fn messages(data: &Bytes) -> Vec<Bytes> {
    let mut rest = data.clone();
    let mut messages = Vec::new();
    while rest.len() >= HEADER {
        let length = u32::from_be_bytes([rest[1], rest[2], rest[3], rest[4]]);
        let end = HEADER + usize::try_from(length).unwrap_or(usize::MAX);
        if rest.len() < end {
            break;
        }
        messages.push(rest.slice(HEADER..end));
        rest = rest.slice(end..);
    }
    messages
}
