//! What a failed request means: whether it may have happened, and whom to ask next.
//!
//! etcd tells its errors apart by gRPC code and by text. The texts have been the same since 3.0, and
//! the codes alone do not do. None of them means [`StoreError::Damaged`], on which a process ends:
//! whatever has become of an etcd, it is mended without us, and until then we serve what we hold.

use std::error::Error as _;

use etcd_client::Error;
use tonic::{Code, ConnectError, Status};

use crate::store::StoreError;

/// How a request ended that did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// The answer, from any member: nothing happened.
    Refused(Refusal),
    /// The token, or what it was issued under, is no longer good: nothing happened.
    Stale(String),
    /// The user or the password is wrong: nothing happened. They may have been replaced.
    Credentials(String),
    /// The cluster cannot do it now: nothing happened.
    NotNow(String),
    /// It was not sent.
    NotSent(String),
    /// Nobody knows.
    Unknown(String),
}

/// A definite no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The revision is compacted.
    Compacted,
    /// The revision has not happened.
    Future,
    /// A lease does not exist.
    NoLease,
    /// The answer is beyond [`super::MAX_MESSAGE`]. (A read: those that change something have small
    /// answers.)
    TooLarge,
    /// The caller is told as it is.
    Store(StoreError),
}

impl From<Refusal> for StoreError {
    /// For requests that name no revision and no lease.
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Store(error) => error,
            other => Self::Unavailable(format!("etcd gave an answer that does not fit: {other:?}")),
        }
    }
}

pub(super) fn classify(error: &Error) -> Failure {
    match error {
        Error::GRpcStatus(status) => of_status(status),
        Error::LeaseKeepAliveError(why) if why.contains("not found") => {
            Failure::Refused(Refusal::NoLease)
        }
        Error::InvalidArgs(_) | Error::InvalidUri(_) | Error::InvalidMetadataValue(_) => {
            Failure::Refused(Refusal::Store(StoreError::Refused(error.to_string())))
        }
        other => Failure::Unknown(other.to_string()),
    }
}

fn of_status(status: &Status) -> Failure {
    let text = status.message();
    let has = |part: &str| text.contains(part);
    let store = |error| Failure::Refused(Refusal::Store(error));
    let unavailable = |hint: &str| store(StoreError::Unavailable(format!("{text}: {hint}")));
    match status.code() {
        Code::OutOfRange if has("has been compacted") => Failure::Refused(Refusal::Compacted),
        Code::OutOfRange if has("future revision") => Failure::Refused(Refusal::Future),
        Code::OutOfRange if has("message length too large") => Failure::Refused(Refusal::TooLarge),
        Code::NotFound if has("lease not found") => Failure::Refused(Refusal::NoLease),
        Code::Unauthenticated => Failure::Stale(text.to_owned()),
        Code::Unknown if has("invalid auth token") => Failure::Stale(text.to_owned()),
        Code::InvalidArgument if has("auth store is old") || has("user name is empty") => {
            Failure::Stale(text.to_owned())
        }
        Code::InvalidArgument if has("authentication failed") => {
            Failure::Credentials(format!("{text}: correct the user or the password"))
        }
        Code::FailedPrecondition if has("authentication is not enabled") => {
            unavailable("enable it, or configure no credentials")
        }
        Code::PermissionDenied => unavailable("grant the user a role that may do this"),
        Code::ResourceExhausted if has("database space exceeded") => unavailable(
            "alarm NOSPACE: raise --quota-backend-bytes, or compact and defragment; then `etcdctl alarm disarm`",
        ),
        Code::ResourceExhausted if has("too many requests") => Failure::NotNow(text.to_owned()),
        Code::InvalidArgument | Code::OutOfRange => store(StoreError::Refused(text.to_owned())),
        // Other exhaustion is that of a connection, like a server's "enhance your calm": it passes.
        Code::ResourceExhausted if has("larger than max") => {
            store(StoreError::Refused(text.to_owned()))
        }
        // Not `Damaged`: it is mended over there, and is to be followed again when it is.
        Code::DataLoss => unavailable(
            "alarm CORRUPT: members hold different data; replace the one that differs, then `etcdctl alarm disarm`",
        ),
        Code::Unimplemented => unavailable("is this an etcd of version 3.4 or later?"),
        Code::Unavailable if has("no leader") || has("not leader") => {
            Failure::NotNow(text.to_owned())
        }
        _ if never_connected(status) => Failure::NotSent(chain(status)),
        _ => Failure::Unknown(chain(status)),
    }
}

fn never_connected(status: &Status) -> bool {
    let mut next = status.source();
    while let Some(error) = next {
        if error.is::<ConnectError>() {
            return true;
        }
        next = error.source();
    }
    false
}

/// The words of an error and of what caused it; tonic's outermost are always the same.
fn chain(status: &Status) -> String {
    let mut words = vec![status.message().to_owned()];
    let mut next = status.source();
    while let Some(error) = next {
        let text = error.to_string();
        if !words.iter().any(|said| said.contains(&text)) {
            words.push(text);
        }
        next = error.source();
    }
    words.retain(|text| !text.is_empty());
    if words.is_empty() {
        return status.code().to_string();
    }
    let words = words.join(": ");
    match hint(&words) {
        Some(hint) => format!("{words}: {hint}"),
        None => words,
    }
}

/// A server that refuses a client's certificate does so after the client has taken the connection for
/// good (TLS 1.3): its alert may come in time, or only the end be seen.
fn hint(words: &str) -> Option<&'static str> {
    if words.contains("received fatal alert") {
        Some("etcd does not accept our certificate: check cert and key, and its client authority")
    } else if words.ends_with("connection closed") || words.ends_with("broken pipe") {
        Some(
            "etcd closed the connection at once; if it wants client certificates, it may not accept our certificate",
        )
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: Code, text: &str) -> Failure {
        classify(&Error::GRpcStatus(Status::new(code, text)))
    }

    #[test]
    fn a_refused_certificate_is_told_of_however_it_shows() {
        for text in ["received fatal alert: UnknownCA", "transport error: connection closed"] {
            let said = chain(&Status::new(Code::Unknown, text));
            assert!(said.starts_with(text) && said.contains("accept our certificate"), "{said}");
        }
        assert_eq!(chain(&Status::new(Code::Unknown, "reset")), "reset");
    }

    #[test]
    fn what_did_not_happen_is_told_from_what_may_have() {
        for (code, text) in [
            (Code::Unavailable, "etcdserver: request timed out"),
            (Code::Unavailable, "etcdserver: leader changed"),
            (Code::Unavailable, "etcdserver: server stopped"),
            (Code::Unavailable, "connection reset"),
            (Code::Cancelled, "Timeout expired"),
            (Code::Internal, "h2 protocol error"),
            (Code::Unknown, "anything"),
            (Code::ResourceExhausted, "h2 protocol error: error reading a body from connection"),
        ] {
            assert!(matches!(of(code, text), Failure::Unknown(_)), "{text}");
        }
        for (code, text) in [
            (Code::Unavailable, "etcdserver: no leader"),
            (Code::ResourceExhausted, "etcdserver: too many requests"),
        ] {
            assert!(matches!(of(code, text), Failure::NotNow(_)), "{text}");
        }
        for (code, text) in [
            (Code::Unauthenticated, "etcdserver: invalid auth token"),
            (Code::Unknown, "etcdserver: invalid auth token"),
            (Code::InvalidArgument, "etcdserver: revision of auth store is old"),
            (Code::InvalidArgument, "etcdserver: user name is empty"),
        ] {
            assert!(matches!(of(code, text), Failure::Stale(_)), "{text}");
        }
        let wrong = of(Code::InvalidArgument, "etcdserver: authentication failed, invalid user");
        assert!(
            matches!(&wrong, Failure::Credentials(why) if why.contains("password")),
            "{wrong:?}"
        );
    }

    #[test]
    fn refusals_are_the_callers_or_the_operators() {
        let store = |code, text| match of(code, text) {
            Failure::Refused(Refusal::Store(error)) => error,
            other => unreachable!("{text}: {other:?}"),
        };
        for (code, text, hint) in [
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", "NOSPACE"),
            (Code::PermissionDenied, "etcdserver: permission denied", "role"),
            (Code::FailedPrecondition, "etcdserver: authentication is not enabled", "credentials"),
            (Code::DataLoss, "etcdserver: corrupt cluster", "CORRUPT"),
        ] {
            let error = store(code, text);
            assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
            assert!(error.to_string().contains(hint), "{error}");
        }
        for (code, text) in [
            (Code::InvalidArgument, "etcdserver: request is too large"),
            (Code::InvalidArgument, "etcdserver: duplicate key given in txn request"),
            (Code::OutOfRange, "etcdserver: too large lease TTL"),
            (Code::ResourceExhausted, "grpc: received message larger than max (9 vs. 8)"),
        ] {
            assert!(matches!(store(code, text), StoreError::Refused(_)), "{text}");
        }
    }
}
