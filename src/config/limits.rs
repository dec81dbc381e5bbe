//! What a control plane lets its callers use.

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tombolo_federation::sync::service::{Limits, Rate};

use super::values::Span;

/// Limits of the federation API, as far as they are for an operator to choose.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct LimitsConfig {
    /// Streams of all callers together.
    streams: usize,
    /// Subscriptions and recoveries of one caller.
    subscriptions_per_caller: usize,
    /// New streams of one caller, in the long run.
    new_streams_per_second: u32,
    /// And at once.
    new_streams_burst: u32,
    /// Full transfers under way at a time; others wait.
    full_transfers: usize,
    /// Of one publish stream; a faster one is read more slowly.
    publish_bytes_per_second: u32,
    /// A stream of which nothing is taken for so long is ended.
    silence: Span,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            streams: limits.streams,
            subscriptions_per_caller: limits.read_streams_per_caller,
            new_streams_per_second: limits.new_streams.per_second,
            new_streams_burst: limits.new_streams.burst,
            full_transfers: limits.full_transfers,
            publish_bytes_per_second: limits.publish_bytes.per_second,
            silence: Span(limits.silence),
        }
    }
}

impl LimitsConfig {
    /// What no single field can show to be wrong.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        for (field, value) in [
            ("streams", self.streams),
            ("subscriptionsPerCaller", self.subscriptions_per_caller),
            ("fullTransfers", self.full_transfers),
        ] {
            anyhow::ensure!(value > 0, "limits.{field}: nobody could do anything with 0");
        }
        let most = Semaphore::MAX_PERMITS;
        anyhow::ensure!(self.full_transfers <= most, "limits.fullTransfers: more than {most}");
        anyhow::ensure!(self.silence.0.as_secs() >= 2, "limits.silence: less than 2 s");
        Ok(())
    }
}

impl From<LimitsConfig> for Limits {
    fn from(config: LimitsConfig) -> Self {
        let limits = Self::default();
        let new_streams =
            Rate { per_second: config.new_streams_per_second, burst: config.new_streams_burst };
        let per_second = config.publish_bytes_per_second;
        let burst = limits.publish_bytes.burst.max(per_second);
        Self {
            streams: config.streams,
            read_streams_per_caller: config.subscriptions_per_caller,
            new_streams,
            full_transfers: config.full_transfers,
            publish_bytes: Rate { per_second, burst },
            silence: config.silence.0,
            ..limits
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_keys_they_are_the_servers_own() {
        assert_eq!(Limits::from(LimitsConfig::default()), Limits::default());
        let config: LimitsConfig =
            serde_json::from_str(r#"{"streams": 9, "silence": "1m"}"#).unwrap();
        let limits = Limits::from(config);
        assert_eq!((limits.streams, limits.silence.as_secs()), (9, 60));
        config.check().unwrap();
        let none = LimitsConfig { full_transfers: 0, ..config };
        assert!(none.check().unwrap_err().to_string().contains("limits.fullTransfers"));
    }
}
