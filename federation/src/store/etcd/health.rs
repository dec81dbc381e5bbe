//! What the members say about themselves.

use etcd_client::{Client, StatusResponse};
use futures::future::join_all;
use tokio::time::Instant;

use super::failure::{Failure, Refusal};
use super::members::{Members, One};
use super::unsigned;
use crate::store::{Alarm, Complaint, Member, MemberState, StoreError};

/// Asks all of them at once, each for as long as a request may take.
pub(super) async fn members(members: &Members, quota: Option<u64>) -> Vec<Member> {
    let asked = members.all().iter().map(|one| async move {
        let state = status(members, one).await.map(|status| state(&status, quota));
        Member { endpoint: one.endpoint.clone(), state }
    });
    join_all(asked).await
}

async fn status(members: &Members, one: &One) -> Result<StatusResponse, StoreError> {
    let until = Instant::now() + members.timeout();
    let request = |mut client: Client| async move { client.status().await };
    let mut answer = one.attempt(until, &request).await;
    if let Err((generation, failure)) = &answer
        && one.mend(*generation, failure, members.timeout() * 2).await
    {
        answer = one.attempt(until, &request).await;
    }
    answer.map_err(|(_, failure)| match failure {
        Failure::Refused(Refusal::Store(error)) => error,
        Failure::Refused(other) => other.into(),
        Failure::Stale(why)
        | Failure::Credentials(why)
        | Failure::NotNow(why)
        | Failure::NotSent(why)
        | Failure::Unknown(why) => {
            StoreError::Unavailable(format!("etcd at {}: {why}", one.endpoint))
        }
    })
}

fn state(status: &StatusResponse, quota: Option<u64>) -> MemberState {
    let id = status.header().map_or(0, etcd_client::ResponseHeader::member_id);
    let told = Some(unsigned(status.db_size_quota())).filter(|told| *told > 0);
    MemberState {
        id,
        version: status.version().to_owned(),
        leader: id == status.leader() && status.leader() != 0,
        db_size: unsigned(status.db_size()),
        db_in_use: unsigned(status.0.db_size_in_use),
        quota: told.or(quota),
        alarms: status.errors().iter().map(|words| complaint(id, words)).collect(),
    }
}

/// From `memberID:10276657743932975437 alarm:NOSPACE `, said by any member. Other words are of the
/// one that says them.
fn complaint(from: u64, words: &str) -> Complaint {
    let known = |words: &str| {
        let (of, kind) = words.strip_prefix("memberID:")?.split_once(" alarm:")?;
        let alarm = match kind {
            "NOSPACE" => Alarm::NoSpace,
            "CORRUPT" => Alarm::Corrupt,
            _ => return None,
        };
        Some(Complaint { of: of.parse().ok()?, alarm })
    };
    let words = words.trim();
    // etcd leaves out a number that is 0.
    let known = known(words).or_else(|| known(&format!("memberID:0 {words}")));
    known.unwrap_or_else(|| Complaint { of: from, alarm: Alarm::Other(words.to_owned()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_read_from_their_words() {
        let of = |of, alarm| Complaint { of, alarm };
        let full = complaint(7, "memberID:10276657743932975437 alarm:NOSPACE ");
        assert_eq!(full, of(10_276_657_743_932_975_437, Alarm::NoSpace));
        assert_eq!(complaint(7, "memberID:1 alarm:CORRUPT"), of(1, Alarm::Corrupt));
        assert_eq!(complaint(7, "alarm:CORRUPT "), of(0, Alarm::Corrupt));
        for other in ["etcdserver: no leader", "memberID:1 alarm:TIRED", "memberID:x alarm:CORRUPT"]
        {
            assert_eq!(complaint(7, other), of(7, Alarm::Other(other.to_owned())));
        }
    }
}
