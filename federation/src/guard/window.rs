//! How many endpoints went without explanation lately, and of how many.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::loss::{Loss, Losses};

/// Steps in which the number of published endpoints is remembered; bounds the memory.
const STEPS: u32 = 60;

/// Slides with every decision.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// Unexplained losses that went, each counted once, as of the last time. Bounded by the limit
    /// above which none goes.
    passed: BTreeMap<Loss, (Instant, u32)>,
    /// How many endpoints were published from when on; the first is from the start of the window
    /// or before.
    samples: VecDeque<(Instant, u32)>,
    /// `None` while less than a window has passed since the process started.
    start: Option<Instant>,
}

impl Window {
    /// Slides to `now`, where `published` endpoints still are. Nothing published yet is no number
    /// to take a share of.
    pub(super) fn begin(&mut self, published: u32, now: Instant, length: Duration) {
        self.start = now.checked_sub(length);
        if self.samples.is_empty() && published > 0 {
            self.samples.push_back((now, published));
        }
        if let Some(start) = self.start {
            self.passed.retain(|_, (at, _)| *at > start);
            while self.samples.get(1).is_some_and(|(at, _)| *at <= start) {
                self.samples.pop_front();
            }
        }
    }

    /// From when on losses count.
    pub(super) fn start(&self) -> Option<Instant> {
        self.start
    }

    /// Endpoints at the start of the window, less what went since for good reason: what was scaled
    /// away must not raise the limit for what is left.
    pub(super) fn base(&self, published: u32) -> u32 {
        let passed = self.passed.values().map(|(_, weight)| weight).sum();
        let still = published.saturating_add(passed);
        self.samples.front().map_or(still, |(_, count)| (*count).min(still))
    }

    /// What went, the `news` apart.
    pub(super) fn counted(&self, news: &Losses) -> u64 {
        let passed = self.passed.iter().filter(|(loss, _)| !news.contains(loss));
        passed.map(|(_, (_, weight))| u64::from(*weight)).sum()
    }

    pub(super) fn passed(&mut self, loss: &Loss, weight: u32, now: Instant) {
        if weight > 0 {
            self.passed.insert(loss.clone(), (now, weight));
        }
    }

    pub(super) fn published(&mut self, endpoints: u32, now: Instant, length: Duration) {
        if self.samples.is_empty() && endpoints == 0 {
            return;
        }
        let before_last = self.samples.len().checked_sub(2).and_then(|at| self.samples.get(at));
        let step = length / STEPS;
        if before_last.is_some_and(|(at, _)| now.saturating_duration_since(*at) < step)
            && let Some(last) = self.samples.back_mut()
        {
            *last = (now, endpoints);
        } else {
            self.samples.push_back((now, endpoints));
        }
    }
}
