//! Keys and values of a region's local facts.

use bytes::Bytes;
use prost::Message;

use crate::key::{Kind, LOCAL_PREFIX};
use crate::names::{Owner, RegionName};
use crate::proto::{local as wire, records};
use crate::record::Epoch;
use crate::store::Op;

/// A local fact, read from its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// An owner completed a kind in this epoch.
    Complete(Owner, Kind, Epoch),
}

/// Where the publisher of `owner` is recorded.
#[must_use]
pub fn session_key(owner: &Owner) -> String {
    format!("{LOCAL_PREFIX}session/{owner}")
}

/// Where the leader of the region is elected.
#[must_use]
pub fn election_key() -> String {
    format!("{LOCAL_PREFIX}election/leader")
}

/// The operation that records up to where a peer was mirrored.
#[must_use]
pub fn resume_op(peer: &RegionName, position: u64) -> Op {
    let value = wire::Resume { position }.encode_to_vec();
    Op::put(format!("{LOCAL_PREFIX}resume/{peer}"), value)
}

/// The operation that records that `owner` completed `kind`.
#[must_use]
pub fn complete_op(owner: &Owner, kind: Kind, epoch: &Epoch) -> Op {
    let epoch = Some(records::Epoch { id: epoch.id.clone(), count: epoch.count });
    let value = wire::Complete { epoch }.encode_to_vec();
    Op::put(format!("{LOCAL_PREFIX}complete/{owner}/{kind}"), value)
}

/// Reads a fact that a replica holds; `None` for other facts, and for what does not parse, which
/// then counts as never said.
#[must_use]
pub fn read(key: &str, value: &Bytes) -> Option<Fact> {
    let (owner, kind) =
        key.strip_prefix(LOCAL_PREFIX)?.strip_prefix("complete/")?.rsplit_once('/')?;
    let complete = wire::Complete::decode(value.clone()).ok()?;
    let epoch = crate::record::epoch(complete.epoch).ok()?;
    Some(Fact::Complete(owner.parse().ok()?, kind.parse().ok()?, epoch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let owner: Owner = "r/r-a".parse().unwrap();
        let epoch = Epoch { id: "e".into(), count: 4 };
        let Op::Put { key, value, .. } = complete_op(&owner, Kind::Export, &epoch) else {
            panic!("not a put")
        };
        assert_eq!(key, "/tombolo/local/v1/complete/r/r-a/export");
        assert_eq!(read(&key, &value), Some(Fact::Complete(owner, Kind::Export, epoch)));
        assert_eq!(read(&key, &Bytes::from_static(b"\xff")), None);
        assert_eq!(read("/tombolo/local/v1/complete/r", &value), None);
    }
}
