//! Wall time, passed in. Certificates need it; nothing else in this crate does.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;
use time::OffsetDateTime;

/// Where wall time comes from. Clones read the same clock.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// The machine's clock.
    #[must_use]
    pub fn system() -> Self {
        Self::new(Timestamp::now)
    }

    /// A clock that reads what `now` returns.
    #[must_use]
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The wall time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clock").field(&self.now()).finish()
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        unix(self.now()).ok()
    }
}

/// A time that no certificate can carry: before 1970 or after 9999.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no time that a certificate can carry: is the clock set?")]
pub struct TimeOutOfRange(Timestamp);

pub(crate) fn unix(at: Timestamp) -> Result<UnixTime, TimeOutOfRange> {
    let seconds = u64::try_from(at.as_second()).map_err(|_| TimeOutOfRange(at))?;
    Ok(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
}

/// As certificates are written with; their encoders accept four-digit years only.
pub(crate) fn date(at: Timestamp) -> Result<OffsetDateTime, TimeOutOfRange> {
    let seconds = at.as_second();
    if seconds < 0 {
        return Err(TimeOutOfRange(at));
    }
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| TimeOutOfRange(at))
}

/// `at` without its fraction of a second, which certificates do not carry.
pub(crate) fn whole(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

pub(crate) fn after(at: Timestamp, by: Duration) -> Result<Timestamp, TimeOutOfRange> {
    let by = SignedDuration::try_from(by).map_err(|_| TimeOutOfRange(at))?;
    at.checked_add(by).map_err(|_| TimeOutOfRange(at))
}

pub(crate) fn before(at: Timestamp, by: Duration) -> Result<Timestamp, TimeOutOfRange> {
    let by = SignedDuration::try_from(by).map_err(|_| TimeOutOfRange(at))?;
    at.checked_sub(by).map_err(|_| TimeOutOfRange(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_outside_of_what_certificates_carry_are_errors() {
        assert!(unix(Timestamp::MIN).is_err() && date(Timestamp::MIN).is_err());
        assert!(after(Timestamp::MAX, Duration::from_secs(1)).is_err());
        assert!(after(Timestamp::UNIX_EPOCH, Duration::MAX).is_err());
        assert!(before(Timestamp::MIN, Duration::from_secs(1)).is_err());
        assert_eq!(date(Timestamp::UNIX_EPOCH).unwrap(), OffsetDateTime::UNIX_EPOCH);
        assert_eq!(date(Timestamp::MAX).unwrap().year(), 9999);
    }
}
