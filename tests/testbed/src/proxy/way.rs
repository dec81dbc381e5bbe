//! What is done to the traffic right now, and how much there was.

use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroU32;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;

/// How much went through a proxy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections that were taken.
    pub accepted: usize,
    /// Connections that were closed or reset as they came.
    pub refused: usize,
    /// Connections that are open now.
    pub open: usize,
    /// Bytes handed to the target.
    pub sent: u64,
    /// Bytes handed to clients.
    pub received: u64,
}

/// One of the two directions of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    ToTarget,
    ToClient,
}

/// What becomes of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Traffic {
    Flows,
    Held,
    Closed,
    Reset,
}

/// What is done to the traffic.
#[derive(Debug)]
pub(super) struct Now {
    pub(super) traffic: Traffic,
    pub(super) delay: Duration,
    pub(super) limit: Option<NonZeroU32>,
    /// Counted up to end all connections there are: each belongs to the epoch it began in.
    epoch: u64,
    /// Counted up by every change, so that who waits reckons anew.
    version: u64,
    /// When the limit lets more through, per direction.
    free_at: [Instant; 2],
    stopped: bool,
    counts: Counts,
}

/// Shared by all threads of a proxy.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) target: SocketAddr,
    now: Mutex<Now>,
    changed: Condvar,
}

impl Way {
    pub(super) fn new(target: SocketAddr) -> Self {
        let now = Now {
            traffic: Traffic::Flows,
            delay: Duration::ZERO,
            limit: None,
            epoch: 0,
            version: 0,
            free_at: [Instant::now(); 2],
            stopped: false,
            counts: Counts::default(),
        };
        Self { target, now: Mutex::new(now), changed: Condvar::new() }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Now)) {
        let mut now = self.now();
        change(&mut now);
        now.version += 1;
        now.free_at = [Instant::now(); 2];
        drop(now);
        self.changed.notify_all();
    }

    pub(super) fn heal(&self) {
        self.change(|now| {
            (now.traffic, now.delay, now.limit) = (Traffic::Flows, Duration::ZERO, None);
        });
    }

    /// Ends all connections, and returns when none is left.
    pub(super) fn end_all(&self, traffic: Traffic) {
        self.change(|now| {
            now.traffic = traffic;
            now.epoch += 1;
        });
        let ended = self.changed.wait_while(self.now(), |now| now.counts.open > 0);
        drop(ended.unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn stop(&self) {
        self.change(|now| {
            now.stopped = true;
            now.epoch += 1;
        });
    }

    pub(super) fn stopped(&self) -> bool {
        self.now().stopped
    }

    pub(super) fn counts(&self) -> Counts {
        self.now().counts
    }

    /// Takes a client in, and says in which epoch; or refuses it.
    pub(super) fn admit(&self, client: &TcpStream, most: usize) -> Option<u64> {
        let mut now = self.now();
        let refuses = matches!(now.traffic, Traffic::Closed | Traffic::Reset);
        if refuses || now.counts.open >= most {
            now.counts.refused += 1;
            if now.traffic == Traffic::Reset {
                reset_on_close(client);
            }
            return None;
        }
        now.counts.accepted += 1;
        now.counts.open += 1;
        Some(now.epoch)
    }

    /// A connection has ended.
    pub(super) fn left(&self) {
        self.now().counts.open -= 1;
        self.changed.notify_all();
    }

    pub(super) fn carried(&self, direction: Direction, bytes: usize) {
        let counts = &mut self.now().counts;
        let count = match direction {
            Direction::ToTarget => &mut counts.sent,
            Direction::ToClient => &mut counts.received,
        };
        *count += bytes as u64;
    }

    /// Whether connections of this epoch are over.
    pub(super) fn over(&self, epoch: u64) -> bool {
        self.now().epoch != epoch
    }

    /// Whether connections that end now end by a reset.
    pub(super) fn resets(&self) -> bool {
        self.now().traffic == Traffic::Reset
    }

    /// Waits until `bytes` that came at `came` may go on; false if the connection is over first.
    pub(super) fn pass(
        &self,
        direction: Direction,
        came: Instant,
        bytes: usize,
        epoch: u64,
    ) -> bool {
        let mut now = self.now();
        let mut reckoned: Option<(u64, Instant)> = None;
        while now.epoch == epoch {
            if now.traffic != Traffic::Flows {
                now = self.changed.wait(now).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let due = match reckoned {
                Some((version, due)) if version == now.version => due,
                _ => now.due(direction, came, bytes),
            };
            reckoned = Some((now.version, due));
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            let waited = self.changed.wait_timeout(now, left);
            now = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        false
    }
}

impl Now {
    /// When these bytes are through, and takes their time from those that come after.
    fn due(&mut self, direction: Direction, came: Instant, bytes: usize) -> Instant {
        let delayed = came + self.delay;
        let Some(limit) = self.limit else { return delayed };
        let free_at = &mut self.free_at[direction as usize];
        let takes = Duration::from_secs(bytes as u64) / limit.get();
        *free_at = (*free_at).max(Instant::now()) + takes;
        delayed.max(*free_at)
    }
}

/// Closing it sends a reset instead of an orderly end.
pub(super) fn reset_on_close(stream: &TcpStream) {
    // One that has gone already needs no reset.
    let _ = set_socket_linger(stream, Some(Duration::ZERO));
}
