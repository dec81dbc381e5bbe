//! From the bytes of a query to the bytes of its reply.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use hickory_proto::ProtoError;
use hickory_proto::op::{Edns, Message, Metadata, OpCode, ResponseCode};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};
use tombolo_federation::catalog::Snapshots;
use tracing::{debug, error};

use super::Config;
use super::metrics::{Dropped, Metrics, Transport, TypeClass};
use crate::answer::{Answer, Question, answer};
use crate::{View, Zone};

/// The largest datagram sent, whatever the client would take: what passes everywhere without
/// fragments (DNS flag day 2020).
const MAX_UDP: u16 = 1232;
/// The largest datagram that may be sent to a client that says nothing about it (RFC 1035).
const MIN_UDP: u16 = 512;
const HEADER: usize = 12;

/// Answers messages out of the newest catalog.
#[derive(Debug)]
pub(super) struct Responder {
    zone: Zone,
    view: View,
    metrics: Metrics,
    snapshots: Snapshots,
    turn: AtomicU64,
}

/// A reply, and what to count it as.
struct Reply {
    bytes: Vec<u8>,
    r#type: TypeClass,
    rcode: ResponseCode,
}

impl Responder {
    pub(super) fn new(snapshots: Snapshots, config: Config) -> Self {
        let Config { zone, view, metrics, .. } = config;
        Self { zone, view, metrics, snapshots, turn: AtomicU64::new(0) }
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The reply to `query`, or `None` where none is due.
    pub(super) fn respond(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let started = Instant::now();
        // Reading what anybody may send is others' code. A bug there may cost one reply, never the
        // server; nothing is shared with it that could be left half done.
        let reply = match catch_unwind(AssertUnwindSafe(|| self.reply(query, transport))) {
            Ok(Ok(reply)) => reply,
            Ok(Err(reason)) => {
                self.metrics.dropped(transport, reason);
                return None;
            }
            Err(_) => {
                error!(%transport, length = query.len(), "answering a query panicked");
                self.metrics.dropped(transport, Dropped::Panic);
                return None;
            }
        };
        self.metrics.answered(transport, reply.r#type, reply.rcode, started.elapsed());
        Some(reply.bytes)
    }

    fn reply(&self, query: &[u8], transport: Transport) -> Result<Reply, Dropped> {
        let Some((header, _)) = query.split_first_chunk::<HEADER>() else {
            return Err(Dropped::Runt);
        };
        if header[2] & 0x80 != 0 {
            return Err(Dropped::Response);
        }
        // Before the rest is read: other operations have other rules for what follows.
        if OpCode::from_u8((header[2] >> 3) & 0x0f) != OpCode::Query {
            return Ok(Reply::header_only(header, ResponseCode::NotImp));
        }
        // RFC 9619: a query has one question. Not read further, since the reader would make room
        // for as many questions as the header claims.
        if header[4..6] != [0, 1] {
            return Ok(Reply::header_only(header, ResponseCode::FormErr));
        }
        let message = match Message::from_vec(query) {
            Ok(message) => message,
            Err(error) => {
                debug!(%transport, %error, "malformed query");
                return Ok(Reply::header_only(header, ResponseCode::FormErr));
            }
        };
        self.answer(&message, transport).map_err(|error| {
            error!(%transport, %error, "an answer could not be written");
            Dropped::Unsent
        })
    }

    fn answer(&self, query: &Message, transport: Transport) -> Result<Reply, ProtoError> {
        let mut reply = Message::new(query.metadata.id, query.metadata.message_type, OpCode::Query);
        reply.metadata = Metadata::response_from_request(&query.metadata);
        reply.queries.clone_from(&query.queries);
        reply.edns = query.edns.as_ref().map(own_edns);
        let mut r#type = TypeClass::None;
        if query.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            reply.metadata.response_code = ResponseCode::BADVERS;
        } else if let Some(question) = query.queries.first() {
            r#type = question.query_type().into();
            let question = Question {
                name: question.name(),
                qtype: question.query_type(),
                class: question.query_class(),
                turn: self.turn.fetch_add(1, Ordering::Relaxed),
            };
            let catalog = self.snapshots.current();
            fill(&mut reply, answer(&self.zone, &self.view, catalog.as_deref(), &question));
        }
        let rcode = reply.metadata.response_code;
        Ok(Reply { bytes: encode(reply, limit(query, transport))?, r#type, rcode })
    }
}

fn fill(reply: &mut Message, answer: Answer) {
    reply.metadata.response_code = answer.rcode;
    reply.metadata.authoritative = answer.authoritative;
    reply.answers = answer.answers;
    reply.authorities = answer.authority;
    reply.additionals = answer.additionals;
}

/// OPT of a reply: version 0, our size, DO as it came (RFC 3225), no options.
fn own_edns(theirs: &Edns) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(MAX_UDP);
    edns.set_dnssec_ok(theirs.flags().dnssec_ok);
    edns
}

fn limit(query: &Message, transport: Transport) -> u16 {
    match (transport, &query.edns) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, Some(edns)) => edns.max_payload().clamp(MIN_UDP, MAX_UDP),
        (Transport::Udp, None) => MIN_UDP,
    }
}

/// Within `limit` bytes: all of it; else without additional records, which is not truncation
/// (RFC 2181, section 9); else no records at all and TC. So OPT always fits, and no client takes a
/// part for the whole.
fn encode(mut reply: Message, limit: u16) -> Result<Vec<u8>, ProtoError> {
    if let Some(bytes) = encode_whole(&reply, limit)? {
        return Ok(bytes);
    }
    reply.additionals.clear();
    if let Some(bytes) = encode_whole(&reply, limit)? {
        return Ok(bytes);
    }
    reply.answers.clear();
    reply.authorities.clear();
    reply.metadata.truncation = true;
    encode_within(&reply, limit)
}

fn encode_whole(reply: &Message, limit: u16) -> Result<Option<Vec<u8>>, ProtoError> {
    let bytes = encode_within(reply, limit)?;
    let truncated = bytes.get(2).is_some_and(|flags| flags & 0x02 != 0);
    Ok((!truncated).then_some(bytes))
}

/// Sets TC when not everything fits.
fn encode_within(reply: &Message, limit: u16) -> Result<Vec<u8>, ProtoError> {
    let mut bytes = Vec::with_capacity(usize::from(MIN_UDP));
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(limit);
    reply.emit(&mut encoder)?;
    Ok(bytes)
}

impl Reply {
    /// To what is not understood: the header of the query as a response with `rcode`, and nothing
    /// else (RFC 8906, section 8.1.3). Id, opcode and RD stay; all other flags and counts go.
    fn header_only(query: &[u8; HEADER], rcode: ResponseCode) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[..2].copy_from_slice(&query[..2]);
        bytes[2] = 0x80 | (query[2] & 0x79);
        bytes[3] = rcode.low();
        Self { bytes, r#type: TypeClass::None, rcode }
    }
}
