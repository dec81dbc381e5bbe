//! How much of the federation API one caller, and all together, may use.
//!
//! All of it is there so that a caller that is broken, or was broken into, costs others nothing.
//! What is beyond a limit waits where waiting helps (a publisher
//! that is too fast, a transfer when many are under way) and is refused with words where it does
//! not; callers back off with jitter and come again.

use std::time::Duration;

use tokio::time::Instant;

use crate::sync::session::REVOKE_AFTER;

/// What the server allows. The size of a message is bounded apart from these, by
/// [`MAX_MESSAGE`](crate::sync::MAX_MESSAGE); compressed messages are not taken at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Streams of all callers together.
    pub streams: usize,
    /// Publish streams of one agent, those that are not accepted yet among them: one more ends the
    /// oldest of these, so that a stream that hangs never keeps its successor out. At least 2.
    pub publish_streams_per_caller: usize,
    /// Subscriptions and recoveries of one caller.
    pub read_streams_per_caller: usize,
    /// New streams of one caller.
    pub new_streams: Rate,
    /// A subscription that begins with more bytes than this is a full transfer.
    pub full_transfer_bytes: usize,
    /// So many full transfers are under way at a time; others wait.
    pub full_transfers: usize,
    /// So long one waits for its turn, then it is refused.
    pub full_transfer_wait: Duration,
    /// A turn ends after so long, whether or not the transfer is over: that goes on beside others.
    pub full_transfer_within: Duration,
    /// A turn ends, too, when the reader takes nothing for so long.
    pub full_transfer_pause: Duration,
    /// Messages of one publish stream; one that is faster is read more slowly.
    pub publish_messages: Rate,
    /// Bytes of one publish stream, likewise.
    pub publish_bytes: Rate,
    /// Bytes that one agent changes, over all its streams: the store keeps each version for an hour,
    /// and whoever rewrites its records without end would fill it within its quota.
    pub publish_changes: Rate,
    /// A stream of which nothing is taken for so long is ended.
    pub silence: Duration,
    /// What a cluster is not entitled to any more and is held of it goes after so long on one stream.
    pub revoke_after: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams: 4096,
            publish_streams_per_caller: 4,
            read_streams_per_caller: 16,
            // An agent whose streams break at once tries both of them about ten times in the first
            // ten seconds, then every 5 s.
            new_streams: Rate { per_second: 1, burst: 20 },
            full_transfer_bytes: 1 << 20,
            full_transfers: 8,
            full_transfer_wait: Duration::from_secs(30),
            full_transfer_within: Duration::from_mins(1),
            full_transfer_pause: Duration::from_secs(10),
            publish_messages: Rate { per_second: 200, burst: 2000 },
            publish_bytes: Rate { per_second: 8 << 20, burst: 32 << 20 },
            // Twice all that a cluster may have, and then a hundred slices of 25 endpoints a second.
            publish_changes: Rate { per_second: 256 << 10, burst: 512 << 20 },
            silence: Duration::from_mins(5),
            revoke_after: REVOKE_AFTER,
        }
    }
}

/// So much at once, and so much per second in the long run. Zero counts as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// In the long run.
    pub per_second: u32,
    /// At once.
    pub burst: u32,
}

/// What is left of a [`Rate`].
#[derive(Debug, Clone)]
pub(in crate::sync) struct Bucket {
    rate: Rate,
    /// Below zero: owed.
    left: f64,
    at: Instant,
}

impl Bucket {
    pub(in crate::sync) fn full(rate: Rate, now: Instant) -> Self {
        let rate = Rate { per_second: rate.per_second.max(1), burst: rate.burst.max(1) };
        Self { rate, left: f64::from(rate.burst), at: now }
    }

    /// Takes one, or says how long until there is one.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Duration> {
        self.refill(now);
        if self.left < 1.0 {
            return Err(self.until(1.0));
        }
        self.left -= 1.0;
        Ok(())
    }

    /// Takes `amount` whether or not it is there, and says how long to wait before going on.
    pub(in crate::sync) fn charge(&mut self, amount: usize, now: Instant) -> Duration {
        self.refill(now);
        self.left -= f64::from(u32::try_from(amount).unwrap_or(u32::MAX));
        self.until(0.0)
    }

    pub(super) fn is_full(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.left >= f64::from(self.rate.burst)
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        let left = self.left + passed * f64::from(self.rate.per_second);
        self.left = left.min(f64::from(self.rate.burst));
        self.at = now;
    }

    fn until(&self, wanted: f64) -> Duration {
        let lacking = (wanted - self.left).max(0.0);
        Duration::from_secs_f64(lacking / f64::from(self.rate.per_second))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_at_once_and_its_rate_in_the_long_run() {
        let start = Instant::now();
        let mut bucket = Bucket::full(Rate { per_second: 2, burst: 3 }, start);
        assert!((0..3).all(|_| bucket.take(start).is_ok()));
        assert_eq!(bucket.take(start), Err(Duration::from_millis(500)));
        let later = start + Duration::from_secs(10);
        assert!((0..3).all(|_| bucket.take(later).is_ok()));
        assert!(bucket.take(later).is_err());
        assert!(bucket.is_full(later + Duration::from_secs(2)));
    }

    #[test]
    fn what_is_charged_beyond_the_rate_is_waited_for() {
        let start = Instant::now();
        let mut bucket = Bucket::full(Rate { per_second: 10, burst: 20 }, start);
        assert_eq!(bucket.charge(20, start), Duration::ZERO);
        assert_eq!(bucket.charge(5, start), Duration::from_millis(500));
        assert_eq!(bucket.charge(0, start + Duration::from_millis(500)), Duration::ZERO);
    }

    #[test]
    fn a_rate_of_nothing_still_lets_something_through() {
        let start = Instant::now();
        let mut bucket = Bucket::full(Rate { per_second: 0, burst: 0 }, start);
        assert!(bucket.take(start).is_ok());
        assert_eq!(bucket.take(start), Err(Duration::from_secs(1)));
    }
}
