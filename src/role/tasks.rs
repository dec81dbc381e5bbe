//! Named tasks with one owner: the first that ends by itself is reported, the rest are stopped.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, error, info_span, warn};

/// How long tasks have to end once told to.
const GRACE: Duration = Duration::from_secs(5);

/// A role's tasks.
pub(crate) struct Tasks {
    set: JoinSet<(&'static str, anyhow::Result<()>)>,
    stop: CancellationToken,
}

impl Tasks {
    pub(crate) fn new(stop: CancellationToken) -> Self {
        Self { set: JoinSet::new(), stop }
    }

    /// Starts a task. Ending before it is told to is a failure of the role.
    pub(crate) fn start<F>(&mut self, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let task = async move { (name, task.await) };
        self.set.spawn(task.instrument(info_span!("task", name)));
    }

    /// Starts a task that has no end of its own: it is dropped when the role stops.
    pub(crate) fn start_endless<F>(&mut self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = self.stop.clone();
        self.start(name, async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
            Ok(())
        });
    }

    /// Starts a task that only ends when it fails: it is dropped when the role stops.
    pub(crate) fn start_fallible<F>(&mut self, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let stop = self.stop.clone();
        self.start(name, async move {
            tokio::select! {
                () = stop.cancelled() => Ok(()),
                ended = task => ended,
            }
        });
    }

    /// Runs until told to stop, or until the first task ends, which is then the failure.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let first = tokio::select! {
            () = self.stop.cancelled() => Ok(()),
            ended = self.set.join_next() => self.verdict(ended),
        };
        self.stop.cancel();
        let joined = tokio::time::timeout(GRACE, async {
            while let Some(ended) = self.set.join_next().await {
                if let Err(error) = self.verdict(Some(ended)) {
                    warn!(error = format!("{error:#}"), "a task failed while stopping");
                }
            }
        });
        if joined.await.is_err() {
            warn!(late = self.set.len(), "tasks did not end in time and are cut off");
            // Their sockets are free once they are gone.
            self.set.shutdown().await;
        }
        first
    }

    fn verdict(
        &self,
        ended: Option<Result<(&'static str, anyhow::Result<()>), tokio::task::JoinError>>,
    ) -> anyhow::Result<()> {
        match ended {
            None => Ok(()),
            Some(Ok((_, Ok(())))) if self.stop.is_cancelled() => Ok(()),
            Some(Ok((name, Ok(())))) => Err(anyhow::anyhow!("task {name} ended early")),
            Some(Ok((name, Err(error)))) => Err(error.context(format!("task {name} failed"))),
            Some(Err(join)) => {
                error!(%join, "a task panicked");
                Err(anyhow::anyhow!("a task panicked: {join}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_failure_ends_the_role_and_names_the_task() {
        let stop = CancellationToken::new();
        let mut tasks = Tasks::new(stop.clone());
        tasks.start_endless("quiet", std::future::pending());
        tasks.start("broken", async { Err(anyhow::anyhow!("disk on fire")) });
        let error = format!("{:#}", tasks.run().await.unwrap_err());
        assert_eq!(error, "task broken failed: disk on fire");
        assert!(stop.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn an_early_end_is_a_failure_and_a_late_one_is_cut_off() {
        let mut tasks = Tasks::new(CancellationToken::new());
        tasks.start("early", async { Ok(()) });
        tasks.start("stuck", async {
            std::future::pending::<()>().await;
            Ok(())
        });
        assert_eq!(tasks.run().await.unwrap_err().to_string(), "task early ended early");
    }
}
