//! Real etcd: clusters of one or more members as child processes, and what happens to them.
//!
//! Owns: the members' processes, ports and data (below a directory of the test), etcdctl, and the
//! recipes for what operators do to etcd: restarts, snapshots, restores, turning on auth.
//!
//! Promises: a cluster that was started answers; a member that is down keeps its ports; all ends
//! with its owner. What etcd says is passed on as it is.
//!
//! Leaves to others: the project's own client, and what ought to be in the store.
//!
//! Turned down: embedding etcd or faking its API. The tests are about what the real one does when
//! it is killed, stopped or restored.
//!
//! ```no_run
//! use tombolo_testbed::etcd::{Etcd, Options, Release};
//! use tombolo_testbed::{Scratch, skip};
//!
//! # fn main() -> anyhow::Result<()> {
//! for release in Release::ALL {
//!     if let Err(missing) = release.available() {
//!         return Ok(skip("e2e_store::survives_kill_9", missing));
//!     }
//!     let scratch = Scratch::new("survives-kill-9")?;
//!     let mut etcd = Etcd::start("us", release, scratch.path(), Options::members(3))?;
//!     etcd.ctl(&["put", "a", "1"])?;
//!     etcd.kill(etcd.leader()?)?;
//!     etcd.ctl(&["put", "a", "2"])?;
//! }
//! # Ok(())
//! # }
//! ```

mod ctl;
mod member;
mod options;
mod release;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::process::Signal;

pub use ctl::Status;
pub use options::{Options, Tls};
pub use release::Release;

use crate::ports::KeptPorts;
use crate::{Process, wait_for};
use member::Member;
use release::{Programs, command};

/// A member answers within a second or two; a machine that builds something else is slower.
const READY: Duration = Duration::from_mins(1);

/// A cluster of real etcd. Members are numbered from 0.
#[derive(Debug)]
pub struct Etcd {
    programs: Programs,
    name: String,
    dir: PathBuf,
    options: Options,
    members: Vec<Member>,
    /// Root's password, once auth is on.
    root: Option<String>,
    _ports: KeptPorts,
}

impl Etcd {
    /// Starts a new cluster called `name` with its data and logs in `dir/NAME`, and waits until
    /// every member has answered a read by consensus.
    ///
    /// # Errors
    ///
    /// When etcd is not there, refuses an option or is not ready in time.
    pub fn start(
        name: &str,
        release: Release,
        dir: &Path,
        options: Options,
    ) -> anyhow::Result<Self> {
        let mut etcd = Self::new(name, release, dir, options)?;
        etcd.start_all()?;
        Ok(etcd)
    }

    /// Starts a new cluster, with a token, members and addresses of its own, from a snapshot.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start), and when the snapshot is refused.
    pub fn from_snapshot(
        name: &str,
        release: Release,
        dir: &Path,
        options: Options,
        snapshot: &Path,
    ) -> anyhow::Result<Self> {
        let mut etcd = Self::new(name, release, dir, options)?;
        etcd.fill(snapshot, &[])?;
        etcd.start_all()?;
        Ok(etcd)
    }

    fn new(name: &str, release: Release, dir: &Path, options: Options) -> anyhow::Result<Self> {
        ensure!(options.members > 0, "{name}: a cluster has members");
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        let ports = KeptPorts::take(2 * options.members)?;
        let members = ports.ports().chunks_exact(2).enumerate().map(|(index, pair)| {
            let name = format!("{name}-{index}");
            let namespace = options.namespace(index).cloned();
            let listen = namespace.as_ref().map_or(options.listen, |one| one.address().into());
            Member {
                client: (listen, pair[0]).into(),
                peer: (listen, pair[1]).into(),
                data: dir.join(&name),
                namespace,
                process: None,
                name,
            }
        });
        Ok(Self {
            programs: release.programs()?,
            name: name.to_owned(),
            members: members.collect(),
            dir,
            options,
            root: None,
            _ports: ports,
        })
    }

    /// Where clients connect, one per member, as `http://ADDRESS` or with TLS `https://ADDRESS`.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| self.endpoint(member)).collect()
    }

    /// The same as addresses, to put something between.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.members.iter().map(|member| member.client).collect()
    }

    fn endpoint(&self, member: &Member) -> String {
        format!("{}://{}", self.scheme(), member.client)
    }

    fn scheme(&self) -> &'static str {
        if self.options.tls.is_some() { "https" } else { "http" }
    }

    /// The members that have been started and not been stopped or killed.
    #[must_use]
    pub fn running(&self) -> Vec<usize> {
        let members = self.members.iter().enumerate();
        members.filter(|(_, member)| member.process.is_some()).map(|(index, _)| index).collect()
    }

    /// SIGTERM, and its end.
    ///
    /// # Errors
    ///
    /// When it does not run, or does not end.
    pub fn stop(&mut self, member: usize) -> anyhow::Result<()> {
        let member = self.member(member)?;
        member.running()?.terminate(READY)?;
        member.process = None;
        Ok(())
    }

    /// `kill -9`, also of one that is paused.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn kill(&mut self, member: usize) -> anyhow::Result<()> {
        let member = self.member(member)?;
        member.running()?.kill()?;
        member.process = None;
        Ok(())
    }

    /// `kill -9` for every member that runs.
    ///
    /// # Errors
    ///
    /// When one of them has ended by itself.
    pub fn kill_all(&mut self) -> anyhow::Result<()> {
        self.running().into_iter().try_for_each(|member| self.kill(member))
    }

    /// SIGSTOP: it keeps its connections and says nothing.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn pause(&mut self, member: usize) -> anyhow::Result<()> {
        self.member(member)?.signal(Signal::STOP)
    }

    /// SIGCONT: it goes on where it was.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn resume(&mut self, member: usize) -> anyhow::Result<()> {
        self.member(member)?.signal(Signal::CONT)
    }

    /// Starts a member that is down on the data and ports it had, and does not wait: alone, it
    /// answers only when a majority is there.
    ///
    /// # Errors
    ///
    /// When it runs, or cannot be started.
    pub fn launch(&mut self, member: usize) -> anyhow::Result<()> {
        ensure!(self.member(member)?.process.is_none(), "member {member} runs already");
        let (scheme, cluster) = (self.scheme(), self.initial_cluster());
        let down = &mut self.members[member];
        let mut server = down.server(&self.programs.server, scheme);
        server.args(down.identity(&self.name, &cluster));
        server.args(self.options.tls.iter().flat_map(Tls::server_flags));
        server.args(self.options.quota.map(|bytes| format!("--quota-backend-bytes={bytes}")));
        server.args(&self.options.flags);
        let started = down.inside(|| Process::start(&down.name, &mut server, &self.dir))?;
        down.process = Some(started);
        Ok(())
    }

    /// Starts a member that is down and waits until it answers.
    ///
    /// # Errors
    ///
    /// As [`launch`](Self::launch), and when it is not ready in time.
    pub fn restart(&mut self, member: usize) -> anyhow::Result<()> {
        self.launch(member)?;
        self.ready(member)
    }

    /// Starts all members that are down and waits until all answer.
    ///
    /// # Errors
    ///
    /// As [`launch`](Self::launch), and when they are not ready in time.
    pub fn start_all(&mut self) -> anyhow::Result<()> {
        let down = |(index, member): (usize, &Member)| member.process.is_none().then_some(index);
        let down: Vec<_> = self.members.iter().enumerate().filter_map(down).collect();
        down.into_iter().try_for_each(|member| self.launch(member))?;
        (0..self.members.len()).try_for_each(|member| self.ready(member))
    }

    /// Waits until `member` answers a read by consensus.
    ///
    /// # Errors
    ///
    /// When it has ended, or does not answer in time.
    pub fn ready(&mut self, member: usize) -> anyhow::Result<()> {
        let what = format!("{} answers", self.member(member)?.name);
        wait_for(what, READY, || match self.members[member].still_runs() {
            Ok(()) => self.ctl_at(member, &["endpoint", "health"]).map(|_| Ok(())),
            Err(ended) => Ok(Err(ended)),
        })?
    }

    /// Takes every member down and puts the data of `snapshot` in place of its own, with the same
    /// names, token and URLs: what an operator does who restores a backup. The cluster then has its
    /// old ids and goes on from the snapshot's revision. `flags` go to
    /// `snapshot restore`.
    ///
    /// # Errors
    ///
    /// When the snapshot is refused or the cluster does not come back.
    pub fn restore(&mut self, snapshot: &Path, flags: &[&str]) -> anyhow::Result<()> {
        self.kill_all()?;
        for member in &self.members {
            if member.data.exists() {
                std::fs::remove_dir_all(&member.data)
                    .with_context(|| format!("removing {}", member.data.display()))?;
            }
        }
        self.fill(snapshot, flags)?;
        self.start_all()
    }

    /// Makes the data of each member from a snapshot.
    fn fill(&self, snapshot: &Path, flags: &[&str]) -> anyhow::Result<()> {
        let cluster = self.initial_cluster();
        self.members.iter().try_for_each(|member| {
            let mut restore = command(&self.programs.restorer);
            restore.args(["snapshot", "restore"]).arg(snapshot).args(flags);
            ctl::output(restore.args(member.identity(&self.name, &cluster))).map(|_| ())
        })
    }

    fn initial_cluster(&self) -> String {
        let named = |member: &Member| format!("{}={}", member.name, member.peer_url());
        self.members.iter().map(named).collect::<Vec<_>>().join(",")
    }

    fn member(&mut self, member: usize) -> anyhow::Result<&mut Member> {
        let name = &self.name;
        self.members.get_mut(member).with_context(|| format!("{name} has no member {member}"))
    }
}

impl Drop for Etcd {
    /// Nobody reads its data again, and one that is paused would not end by itself.
    fn drop(&mut self) {
        for member in &mut self.members {
            if let Some(process) = &mut member.process {
                drop(process.kill());
            }
        }
    }
}
