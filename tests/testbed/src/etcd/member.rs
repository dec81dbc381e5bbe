//! One member: its addresses, its data and, while it runs, its process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use rustix::process::Signal;

use super::release::command;
use crate::Process;
use crate::netns::Namespace;

#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) client: SocketAddr,
    pub(super) peer: SocketAddr,
    pub(super) data: PathBuf,
    pub(super) namespace: Option<Namespace>,
    pub(super) process: Option<Process>,
}

impl Member {
    pub(super) fn peer_url(&self) -> String {
        format!("http://{}", self.peer)
    }

    /// What makes it this member of this cluster, for the server and for a restore.
    pub(super) fn identity(&self, token: &str, cluster: &str) -> Vec<String> {
        vec![
            format!("--name={}", self.name),
            format!("--data-dir={}", self.data.display()),
            format!("--initial-cluster={cluster}"),
            format!("--initial-cluster-token={token}"),
            format!("--initial-advertise-peer-urls={}", self.peer_url()),
        ]
    }

    /// The server with its addresses; what is the same for all members comes after.
    pub(super) fn server(&self, program: &Path, scheme: &str) -> Command {
        let mut server = command(program);
        // Before 3.5 the default logger is another, whose lines tell less.
        server.args(["--logger=zap", "--log-outputs=stderr"]);
        server.arg(format!("--listen-client-urls={scheme}://{}", self.client));
        server.arg(format!("--advertise-client-urls={scheme}://{}", self.client));
        server.arg(format!("--listen-peer-urls={}", self.peer_url()));
        server
    }

    /// Does `work` where the member is.
    pub(super) fn inside<T: Send>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        match &self.namespace {
            Some(namespace) => namespace.inside(work)?,
            None => work(),
        }
    }

    pub(super) fn running(&mut self) -> anyhow::Result<&mut Process> {
        let name = &self.name;
        self.process.as_mut().with_context(|| format!("{name} was not started, or was stopped"))
    }

    pub(super) fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        self.running()?.signal(signal)
    }

    /// Fails if it has ended by itself, with the end of what it said.
    pub(super) fn still_runs(&mut self) -> anyhow::Result<()> {
        let process = self.running()?;
        let Some(status) = process.exited()? else { return Ok(()) };
        let said = process.stderr()?;
        let last = said.lines().next_back().unwrap_or("nothing").to_owned();
        bail!("{} has ended: {status}; its last line: {last}", self.name)
    }
}
