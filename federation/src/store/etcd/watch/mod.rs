//! Watches: opened on one member, and bound to it until they end.
//!
//! A watch never moves to another member by itself. When its connection breaks, its member is cut
//! off, or nothing is heard for too long, it says [`WatchEvent::Ended`]: the next one may be in
//! another history, and it is the caller who can tell.
//!
//! **Whole commits.** etcd may cut large answers into fragments; [`joiner`] puts them together, and
//! a commit is passed on when its last event is there.
//!
//! **Progress.** The watch asks for it every few seconds, which also proves that the member lives.
//! etcd's answer says "all before this revision was sent", but not in all versions: until 3.4.25 and
//! 3.5.8 the answer overtakes events that are on their way, and until 3.4.31 and 3.5.13 it may not
//! come. On members that old ([`version`]) the whole key space is watched and filtered here: every
//! commit is then seen, and the last one seen is the progress. That costs bandwidth and takes a
//! user that may read all keys; such an etcd should not be in production anyway.
//!
//! **Compaction** cancels a watch that is behind it, with one exception: a watch whose next revision
//! is the very one that is compacted gets what is left of that. So after each answer out of history
//! (live ones are not) the last revision that was passed on is read: if that is forgotten, this one
//! is too.
//!
//! **Slow readers.** [`QUEUE`] events wait for the reader. When it is full the stream is not read, so
//! that the member keeps the rest; after `slow_reader` the watch ends, and says so if there is room.
//! The caller resumes after what it has got.

mod joiner;
mod pump;
mod version;

use etcd_client::proto::PbWatchResponse;
use etcd_client::{Client, Error, WatchOptions, WatchRequestSender, WatchResponseStream};
use tokio::sync::mpsc;
use tonic::Status;
use tracing::{Instrument, info_span};

use super::members::{Members, Repeat};
use super::range::current_of;
use super::{EtcdConfig, MAX_MESSAGE, end_of, signed, start_of, unsigned};
use crate::store::{Revision, StoreError, Watch, WatchEvent};

/// Events that wait for the reader.
const QUEUE: usize = 64;

/// Opens a watch on some member; the future does the watching.
pub(super) async fn start(
    members: &Members,
    config: &EtcdConfig,
    prefix: &str,
    from: Revision,
) -> Result<(Watch, impl Future<Output = ()> + Send + use<>), StoreError> {
    let wanted = Wanted { prefix: prefix.to_owned(), from: from.max(1) };
    let request = |client: Client| Box::pin(open(client, wanted.clone()));
    let opened = members.call(Repeat::Freely, request).await?;
    let (events, queue) = mpsc::channel(QUEUE);
    let span = info_span!("watch", prefix, from);
    let pump = pump::Pump::new(opened, wanted, config, events);
    Ok((Watch { events: queue }, pump.run().instrument(span)))
}

#[derive(Debug, Clone)]
struct Wanted {
    prefix: String,
    /// At least 1.
    from: Revision,
}

impl Wanted {
    /// One earlier: an etcd that has forgotten that one says so, and otherwise `from` is whole.
    fn start(&self) -> Revision {
        (self.from - 1).max(1)
    }
}

/// What is watched, and so what progress is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// The prefix; the member's word on progress is good.
    Prefix,
    /// All keys: each commit is seen.
    Everything,
}

struct Opened {
    /// The same member, for questions on the side.
    client: Client,
    requests: WatchRequestSender,
    responses: WatchResponseStream,
    scope: Scope,
    /// The member has forgotten too much already.
    compacted: Option<Revision>,
}

async fn open(mut client: Client, wanted: Wanted) -> Result<Opened, Error> {
    // Old versions call every reason against a watch "permission denied"; a read says which.
    current_of(client.clone(), start_of(&wanted.prefix)).await?;
    let status = client.status().await?;
    let ordered = version::orders_progress(status.version());
    let scope = if ordered { Scope::Prefix } else { Scope::Everything };
    let options = WatchOptions::new().with_start_revision(signed(wanted.start())).with_fragment();
    let (key, options) = match scope {
        Scope::Prefix => (start_of(&wanted.prefix), options.with_range(end_of(&wanted.prefix))),
        Scope::Everything => (vec![0], options.with_all_keys()),
    };
    let mut watches = client.watch_client().max_decoding_message_size(MAX_MESSAGE);
    let (requests, mut responses) = watches.watch(key, Some(options)).await?.split();
    let compacted = match responses.message().await? {
        Some(first) => created(&first.0, scope, status.version())?,
        None => return Err(Error::WatchError("etcd ended a watch before it began".to_owned())),
    };
    Ok(Opened { client, requests, responses, scope, compacted })
}

/// Whether the first answer says that the watch is there; or where it is compacted.
fn created(
    first: &PbWatchResponse,
    scope: Scope,
    version: &str,
) -> Result<Option<Revision>, Error> {
    if first.compact_revision > 0 {
        return Ok(Some(unsigned(first.compact_revision)));
    }
    if !first.canceled {
        return Ok(None);
    }
    let why = &first.cancel_reason;
    if why.contains("permission denied") && scope == Scope::Everything {
        let hint = "its progress answers are unordered, so all keys are watched: let the user read \
                    them, or upgrade to 3.5.13 or later";
        let why = format!("{why} (etcd {version}: {hint})");
        return Err(Error::GRpcStatus(Status::permission_denied(why)));
    }
    Err(refused(why))
}

/// Why a watch was canceled, as the error that any other request would have got.
pub(super) fn refused(why: &str) -> Error {
    let is = |words: &[&str]| words.iter().any(|word| why.contains(word));
    Error::GRpcStatus(if is(&["auth token", "auth store", "user name"]) {
        Status::unauthenticated(why)
    } else if is(&["permission denied"]) {
        Status::permission_denied(why)
    } else {
        Status::unavailable(why)
    })
}

fn compacted(at: Revision) -> WatchEvent {
    WatchEvent::Compacted { oldest: at + 1 }
}

#[cfg(test)]
mod tests {
    use super::super::failure::{Failure, classify};
    use super::*;

    #[test]
    fn a_watch_that_is_refused_says_why() {
        let first = |why: &str| PbWatchResponse {
            created: true,
            canceled: true,
            cancel_reason: why.to_owned(),
            ..PbWatchResponse::default()
        };
        let failure = |why, scope| classify(&created(&first(why), scope, "3.4.23").unwrap_err());
        for why in ["etcdserver: invalid auth token", "etcdserver: revision of auth store is old"] {
            assert!(matches!(failure(why, Scope::Prefix), Failure::Stale(_)), "{why}");
        }
        let denied = failure("etcdserver: permission denied", Scope::Everything);
        let Failure::Refused(denied) = denied else { unreachable!("{denied:?}") };
        assert!(StoreError::from(denied).to_string().contains("upgrade"));
        let compacted = PbWatchResponse { compact_revision: 7, ..first("") };
        assert_eq!(created(&compacted, Scope::Prefix, "3.6.0").unwrap(), Some(7));
    }
}
