//! Waiting for a state, with a deadline that fails.

use std::fmt::Display;
use std::panic::Location;
use std::time::{Duration, Instant};

use anyhow::bail;

/// Short beside every promise that tests wait for, long enough to leave the CPU to the servers.
const PAUSE: Duration = Duration::from_millis(20);

/// Asks `check` again and again until it gives a value, for at most `deadline`.
///
/// `check` says why it is not there yet; the last reason is part of the error. The deadline of
/// a promise is ten times the promise: a slow machine does not fail it, a broken server does.
///
/// # Errors
///
/// When `deadline` has passed, with `what`, the place of the call and the last reason.
#[track_caller]
pub fn wait_for<T, R: Display>(
    what: impl Display,
    deadline: Duration,
    mut check: impl FnMut() -> Result<T, R>,
) -> anyhow::Result<T> {
    let caller = Location::caller();
    let end = Instant::now() + deadline;
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(reason) if Instant::now() >= end => {
                // `{:#}` shows the whole chain where the reason is an anyhow error.
                bail!("{caller}: {what}: not within {deadline:?}, last seen: {reason:#}")
            }
            Err(_) => pause(),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place that polls")]
fn pause() {
    std::thread::sleep(PAUSE);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_the_value_as_soon_as_it_is_there() {
        let mut asked = 0;
        let got = wait_for("three", Duration::from_secs(10), || {
            asked += 1;
            if asked == 3 { Ok(asked) } else { Err(format!("only {asked}")) }
        });
        assert_eq!(got.unwrap(), 3);
    }

    #[test]
    fn fails_with_the_last_reason() {
        let mut asked = 0;
        let error = wait_for("never", Duration::from_millis(50), || {
            asked += 1;
            Err::<(), _>(format!("asked {asked}"))
        })
        .unwrap_err()
        .to_string();
        assert!(error.contains("never: not within 50ms"), "{error}");
        assert!(error.contains(&format!("last seen: asked {asked}")), "{error}");
        assert!(error.contains("wait.rs"), "{error}");
    }

    #[test]
    fn asks_once_even_with_no_time_left() {
        assert_eq!(wait_for("now", Duration::ZERO, || Ok::<_, String>(1)).unwrap(), 1);
    }
}
