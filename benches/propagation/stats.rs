//! Samples, percentiles by count, and the table and the file that come of them.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

/// Durations of one thing, each measured once per round.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    pub(crate) fn push(&mut self, took: Duration) {
        self.0.push(took);
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// The smallest sample that `percent` of a hundred are not above (nearest rank: a value that
    /// was measured, and with fewer than a hundred samples the 99th is the largest).
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or_default()
    }

    /// Each without a part that all have.
    pub(crate) fn less(&self, part: Duration) -> Self {
        self.0.iter().map(|took| took.saturating_sub(part)).collect()
    }

    pub(crate) fn max(&self) -> Duration {
        self.percentile(100)
    }

    fn to_json(&self) -> Value {
        json!({
            "count": self.count(),
            "p50_ms": ms(self.percentile(50)),
            "p99_ms": ms(self.percentile(99)),
            "max_ms": ms(self.max()),
            "samples_ms": self.0.iter().copied().map(ms).collect::<Vec<_>>(),
        })
    }
}

impl FromIterator<Duration> for Samples {
    fn from_iter<I: IntoIterator<Item = Duration>>(samples: I) -> Self {
        Self(samples.into_iter().collect())
    }
}

/// One measured thing with what it is held against.
#[derive(Debug, Default)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) samples: Samples,
    pub(crate) promise: Option<Duration>,
    /// The smallest program that does only the unavoidable, measured in the same rounds.
    pub(crate) limit: Option<Samples>,
    /// Waiting on purpose, in the samples and not in the limit.
    pub(crate) deliberate: Duration,
}

impl Row {
    pub(crate) fn new(what: impl Into<String>, samples: Samples) -> Self {
        Self { what: what.into(), samples, ..Self::default() }
    }

    /// Worst sample to promise.
    fn of_promise(&self) -> Option<f64> {
        self.promise.map(|promise| ratio(self.samples.max(), promise))
    }

    /// Median to median and 99th to 99th, `deliberate` added to the limit.
    fn of_limit(&self, deliberate: Duration) -> Option<[f64; 2]> {
        let limit = self.limit.as_ref()?;
        Some([50, 99].map(|percent| {
            ratio(self.samples.percentile(percent), limit.percentile(percent) + deliberate)
        }))
    }

    fn to_json(&self) -> Value {
        json!({
            "what": self.what,
            "measured": self.samples.to_json(),
            "promise_ms": self.promise.map(ms),
            "max_to_promise": self.of_promise(),
            "limit": self.limit.as_ref().map(Samples::to_json),
            "deliberate_ms": ms(self.deliberate),
            "p50_p99_to_limit": self.of_limit(Duration::ZERO),
            "p50_p99_to_limit_and_deliberate": self.of_limit(self.deliberate),
        })
    }

    fn line(&self) -> String {
        let samples = &self.samples;
        let [p50, p99, max] =
            [samples.percentile(50), samples.percentile(99), samples.max()].map(ms);
        let mut line =
            format!("  {:<58} {:>5} {p50:>9.2} {p99:>9.2} {max:>9.2}", self.what, samples.count());
        let cell = |value: Option<String>, width| format!(" {:>width$}", value.unwrap_or_default());
        line += &cell(self.of_promise().map(|ratio| format!("{ratio:.3}")), 8);
        let limit = self.limit.as_ref();
        let limit = |percent| limit.map(|limit| format!("{:.2}", ms(limit.percentile(percent))));
        line += &cell(limit(50), 8);
        line += &cell(limit(99), 8);
        let pair = |[p50, p99]: [f64; 2]| format!("{p50:.1} / {p99:.1}");
        line += &cell(self.of_limit(Duration::ZERO).map(pair), 14);
        let apart = (!self.deliberate.is_zero()).then(|| self.of_limit(self.deliberate)).flatten();
        line += &cell(apart.map(pair), 12);
        line.trim_end().to_owned()
    }
}

/// The rows of one measurement, what was counted beside them, and what else the machine did.
#[derive(Debug, Default)]
pub(crate) struct Section {
    pub(crate) name: &'static str,
    pub(crate) title: String,
    pub(crate) rows: Vec<Row>,
    pub(crate) counts: Vec<(String, u64)>,
    pub(crate) not_measured: Option<String>,
    pub(crate) others: Option<f64>,
}

impl Section {
    pub(crate) fn to_json(&self) -> Value {
        let counts = self.counts.iter().map(|(what, count)| (what.clone(), json!(count)));
        json!({
            "name": self.name,
            "title": self.title,
            "rows": self.rows.iter().map(Row::to_json).collect::<Vec<_>>(),
            "counts": counts.collect::<serde_json::Map<_, _>>(),
            "not_measured": self.not_measured,
            "cores_used_by_others": self.others,
        })
    }

    pub(crate) fn table(&self) -> String {
        let mut text = format!("\n{} ({})\n", self.title, self.name);
        if let Some(why) = &self.not_measured {
            let _ = writeln!(text, "  not measured: {why}");
            return text;
        }
        let _ = writeln!(
            text,
            "  {:<58} {:>5} {:>9} {:>9} {:>9} {:>8} {:>8} {:>8} {:>14} {:>12}",
            "milliseconds",
            "count",
            "p50",
            "p99",
            "max",
            "promised",
            "lim p50",
            "lim p99",
            "times limit",
            "and purpose"
        );
        for row in &self.rows {
            let _ = writeln!(text, "{}", row.line());
        }
        for (what, count) in &self.counts {
            let _ = writeln!(text, "  {what}: {count}");
        }
        if let Some(others) = self.others {
            let verdict = if others > 0.3 { ": too much, measure again" } else { "" };
            let _ = writeln!(text, "  cores used by other work meanwhile: {others:.2}{verdict}");
        }
        text
    }
}

pub(crate) fn ms(took: Duration) -> f64 {
    (took.as_secs_f64() * 1e6).round() / 1e3
}

fn ratio(one: Duration, other: Duration) -> f64 {
    (one.as_secs_f64() / other.as_secs_f64().max(1e-9) * 1e3).round() / 1e3
}
