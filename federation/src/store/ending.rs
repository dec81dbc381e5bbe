//! When what is asked of a store is of no use any more.
//!
//! A store of several servers gives each of them a share of the time that a request has, so that one
//! which does not answer leaves enough for the next. That time is the asker's to know: to a leader
//! whose lease ends in a second, an answer after five is none.
//!
//! Turned down: a deadline in each of the trait's methods, which all but one caller would fill with
//! the same "whatever is usual".

use tokio::task_local;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout_at};

task_local! {
    static END: Instant;
}

/// Runs `work` until `end` at the latest; what it asks of a store is arranged to be answered before
/// that. Within another one, the earlier end counts.
///
/// # Errors
/// [`Elapsed`], like [`timeout_at`].
pub async fn ending_by<F: Future>(end: Instant, work: F) -> Result<F::Output, Elapsed> {
    let end = before(end);
    END.scope(end, timeout_at(end, work)).await
}

/// The end of a request that may take until `usual`.
pub(super) fn before(usual: Instant) -> Instant {
    END.try_with(|end| usual.min(*end)).unwrap_or(usual)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_earlier_end_counts() {
        let at = |seconds| Instant::now() + Duration::from_secs(seconds);
        let (soon, late) = (at(1), at(9));
        assert_eq!(before(late), late);
        let seen = ending_by(soon, async { ending_by(late, async { before(late) }).await });
        assert_eq!(seen.await, Ok(Ok(soon)));
        let never = ending_by(soon, std::future::pending::<()>());
        never.await.expect_err("it ends");
        assert_eq!(Instant::now(), soon);
    }
}
