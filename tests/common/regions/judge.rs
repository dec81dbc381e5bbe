//! What must be true of all regions together: one leader each, and the owners' truth everywhere.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tombolo_testbed::{Demo, wait_for};

use super::{Regions, TOGETHER, replicas};
use crate::common::{ask, mesh, tombolo};

impl Regions {
    /// The replicas of a region that say that they lead.
    pub(crate) fn leaders(&self, region: &str) -> Vec<String> {
        self.awake_leaders(region, "")
    }

    /// The same of those that are not `asleep` and so cannot answer.
    pub(crate) fn awake_leaders(&self, region: &str, asleep: &str) -> Vec<String> {
        let leads = |name: &String| {
            name != asleep
                && self.processes.contains_key(name)
                && self.status(name).is_ok_and(|status| status["leader"] == true)
        };
        replicas(region).into_iter().filter(leads).collect()
    }

    /// Waits until one replica of a region leads, and says which.
    pub(crate) fn leader(&self, region: &str) -> anyhow::Result<String> {
        wait_for(format!("one leads {region}"), TOGETHER, || match &self.leaders(region)[..] {
            [leader] => Ok(leader.clone()),
            other => Err(format!("{other:?} lead")),
        })
    }

    /// A replica of a region that runs and does not lead.
    pub(crate) fn follower(&self, region: &str) -> anyhow::Result<String> {
        let leader = self.leader(region)?;
        let mut others = replicas(region).into_iter().filter(|name| *name != leader);
        others.find(|name| self.processes.contains_key(name)).context("a follower runs")
    }

    /// The digest of what the manifests say now, from a demo that has seen nothing else.
    pub(crate) fn truth(&self) -> anyhow::Result<String> {
        let dir = tempfile::Builder::new().prefix("truth-").tempdir_in(self.dir())?;
        let root = self.manifests.root().display().to_string();
        let demo = Demo::start(tombolo(), dir.path(), None, &["--dir", &root])?;
        let regions = demo.layout().regions.iter();
        let admins = regions.flat_map(|region| {
            std::iter::once(region.admin).chain(region.clusters.iter().map(|c| c.admin))
        });
        let digest = mesh::agreed_digest(&admins.collect::<Vec<_>>())?;
        demo.interrupt()?;
        Ok(digest)
    }

    /// The owners' truth equals every catalog of those that run, within `bound` from now; says how
    /// long it took.
    pub(crate) fn converge(&self, bound: Duration) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let took = |(): ()| begun.elapsed();
        // Equal to each other first: that is what takes time, and what is measured.
        let agreed = self.agreed(bound).map(|_| took(()));
        let truth = self.truth()?;
        wait_for("every catalog equals the owners' truth", bound, || {
            for name in self.running() {
                let digest = self.at(&name, |at| ask::digest(at.admin))?;
                ensure!(digest == truth, "{name} has {digest}, the owners say {truth}");
            }
            anyhow::Ok(())
        })?;
        agreed
    }

    /// Waits until all that run serve the same, and gives its digest.
    pub(crate) fn agreed(&self, bound: Duration) -> anyhow::Result<String> {
        wait_for("all serve the same", bound, || {
            let mut digests = Vec::new();
            for name in self.running() {
                digests.push((self.at(&name, |at| ask::digest(at.admin))?, name));
            }
            digests.sort();
            let first = digests.first().context("somebody runs")?.0.clone();
            ensure!(digests.iter().all(|(digest, _)| *digest == first), "{digests:?}");
            Ok(first)
        })
    }

    /// Waits until all that run give exactly these addresses for a service, or say that it does
    /// not exist if there are none.
    pub(crate) fn all_answer(
        &self,
        service: &str,
        addresses: &[String],
        bound: Duration,
    ) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        for name in self.running() {
            wait_for(format!("{name} answers for {service}"), bound, || {
                if addresses.is_empty() {
                    return ask::same(
                        &self.at(&name, |at| ask::code(at.dns, service))?.as_str(),
                        &"NXDOMAIN",
                    );
                }
                ask::same(&self.addresses(&name, service)?, &addresses.to_vec())
            })?;
        }
        Ok(begun.elapsed())
    }
}
