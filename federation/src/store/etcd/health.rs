//! What the members say about themselves.

use etcd_client::{Client, StatusResponse};
use futures::future::join_all;
use tokio::time::Instant;

use super::failure::{Failure, Refusal};
use super::members::{Members, One};
use super::unsigned;
use crate::store::{Alarm, Member, MemberState, StoreError};

/// Asks all of them at once, each for as long as a request may take.
pub(super) async fn members(members: &Members, quota: u64) -> Vec<Member> {
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

fn state(status: &StatusResponse, quota: u64) -> MemberState {
    let told = unsigned(status.db_size_quota());
    MemberState {
        version: status.version().to_owned(),
        leader: status
            .header()
            .is_some_and(|header| header.member_id() == status.leader() && status.leader() != 0),
        db_size: unsigned(status.db_size()),
        db_in_use: unsigned(status.0.db_size_in_use),
        quota: if told == 0 { quota } else { told },
        alarms: status.errors().iter().map(|words| alarm(words)).collect(),
    }
}

/// From `memberID:10276657743932975437 alarm:NOSPACE `.
fn alarm(words: &str) -> Alarm {
    match words.trim().rsplit_once("alarm:").map(|(_, kind)| kind) {
        Some("NOSPACE") => Alarm::NoSpace,
        Some("CORRUPT") => Alarm::Corrupt,
        _ => Alarm::Other(words.trim().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_are_read_from_their_words() {
        assert_eq!(alarm("memberID:10276657743932975437 alarm:NOSPACE "), Alarm::NoSpace);
        assert_eq!(alarm("memberID:1 alarm:CORRUPT"), Alarm::Corrupt);
        let other = "etcdserver: no leader";
        assert_eq!(alarm(other), Alarm::Other(other.to_owned()));
    }
}
