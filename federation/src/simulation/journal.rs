//! What happened in a run: hashed, so that two runs can be compared, and the end of it kept.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Property, Violation};

/// Events that a failed run shows.
const KEPT: usize = 120;

/// One run's.
#[derive(Debug)]
pub(super) struct Journal {
    started: Instant,
    inner: Mutex<Inner>,
    /// Something was found: the run need not go on.
    pub(super) over: CancellationToken,
}

#[derive(Debug, Default)]
struct Inner {
    hash: Sha256,
    steps: u64,
    recent: VecDeque<String>,
    injected: BTreeMap<&'static str, u64>,
    violation: Option<Violation>,
}

impl Journal {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), inner: Mutex::default(), over: CancellationToken::new() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One step of the run.
    pub(super) fn note(&self, what: &str) {
        let at = self.started.elapsed();
        let mut inner = self.inner();
        inner.steps += 1;
        let mut line = format!("{:>8.3} #{} ", at.as_secs_f64(), inner.steps);
        line.push_str(what);
        inner.hash.update(line.as_bytes());
        if inner.recent.len() == KEPT {
            inner.recent.pop_front();
        }
        inner.recent.push_back(line);
    }

    /// A step of which there are many: it counts, and is not kept.
    pub(super) fn trace(&self, what: &str) {
        let at = self.started.elapsed().as_micros();
        let mut inner = self.inner();
        inner.steps += 1;
        inner.hash.update(at.to_be_bytes());
        inner.hash.update(what.as_bytes());
    }

    /// A step that the script made on purpose.
    pub(super) fn inject(&self, kind: &'static str, what: &str) {
        *self.inner().injected.entry(kind).or_default() += 1;
        self.note(&format!("-- {kind}: {what}"));
    }

    /// Something that must not happen has happened. Only the first counts.
    pub(super) fn violated(&self, property: Property, what: &str) {
        let first = self.inner().violation.is_none();
        if first {
            self.note(&format!("!! {property}: {what}"));
        } else {
            self.trace(what);
        }
        let at = self.started.elapsed();
        let mut inner = self.inner();
        if first {
            inner.violation =
                Some(Violation { property, what: what.to_owned(), step: inner.steps, at });
        }
        drop(inner);
        self.over.cancel();
    }

    pub(super) fn violation(&self) -> Option<Violation> {
        self.inner().violation.clone()
    }

    pub(super) fn steps(&self) -> u64 {
        self.inner().steps
    }

    pub(super) fn injected(&self) -> BTreeMap<&'static str, u64> {
        self.inner().injected.clone()
    }

    pub(super) fn recent(&self) -> Vec<String> {
        self.inner().recent.iter().cloned().collect()
    }

    /// Of all steps.
    pub(super) fn hash(&self) -> String {
        let hash = self.inner().hash.clone().finalize();
        hash.iter().take(8).fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}
