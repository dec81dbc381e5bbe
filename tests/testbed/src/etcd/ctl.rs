//! Asking etcd by its own client.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, ensure};
use serde::Deserialize;

use super::release::command;
use super::{Etcd, Member, Tls};

/// What a member says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// The store's revision, as this member has it.
    pub revision: i64,
    /// The cluster's id.
    pub cluster: u64,
    /// The member's own id.
    pub member: u64,
    /// The id of the member that leads, 0 if none.
    pub leader: u64,
    /// The leader's term.
    pub term: u64,
    /// The size of the database file in bytes.
    pub size: i64,
}

/// `endpoint status` as etcdctl prints it. Fields that are 0 are left out.
#[derive(Debug, Deserialize)]
struct Endpoint {
    #[serde(rename = "Status")]
    status: Body,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Body {
    header: Header,
    leader: u64,
    #[serde(rename = "dbSize")]
    size: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Header {
    cluster_id: u64,
    member_id: u64,
    revision: i64,
    raft_term: u64,
}

impl Etcd {
    /// What etcdctl prints for `arguments`, asked of whichever member answers; from the namespace of
    /// the first that runs, if they are in any. As root, if auth is on.
    ///
    /// # Errors
    ///
    /// When etcdctl fails, with what it says.
    pub fn ctl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let members: Vec<_> = self.members.iter().filter(|one| one.process.is_some()).collect();
        self.ask(&members, self.root_user().as_deref(), arguments)
    }

    /// The same, asked of one member.
    ///
    /// # Errors
    ///
    /// When etcdctl fails, with what it says.
    pub fn ctl_at(&self, member: usize, arguments: &[&str]) -> anyhow::Result<String> {
        let asked = self.members.get(member).with_context(|| format!("no member {member}"))?;
        self.ask(&[asked], self.root_user().as_deref(), arguments)
    }

    /// The same as [`ctl`](Self::ctl) as a user, with a password.
    ///
    /// # Errors
    ///
    /// When etcdctl fails, with what it says.
    pub fn ctl_as(&self, user: &str, password: &str, args: &[&str]) -> anyhow::Result<String> {
        let members: Vec<_> = self.members.iter().filter(|one| one.process.is_some()).collect();
        self.ask(&members, Some(&format!("{user}:{password}")), args)
    }

    /// Puts any bytes under a key, by whichever member answers; as root, if auth is on.
    ///
    /// # Errors
    ///
    /// When etcdctl fails, with what it says.
    pub fn put(&self, key: &str, value: &[u8]) -> anyhow::Result<()> {
        let members: Vec<_> = self.members.iter().filter(|one| one.process.is_some()).collect();
        let (mut client, first) =
            self.client(&members, self.root_user().as_deref(), &["put", "--", key])?;
        first.inside(|| output_for(&mut client, value)).map(|_| ())
    }

    fn ask(
        &self,
        members: &[&Member],
        user: Option<&str>,
        arguments: &[&str],
    ) -> anyhow::Result<String> {
        let (mut client, first) = self.client(members, user, arguments)?;
        first.inside(|| output(&mut client))
    }

    /// etcdctl, and whose place it is to run in.
    fn client<'a>(
        &self,
        members: &[&'a Member],
        user: Option<&str>,
        arguments: &[&str],
    ) -> anyhow::Result<(Command, &'a Member)> {
        let endpoints: Vec<_> = members.iter().map(|member| self.endpoint(member)).collect();
        let first = members.first().with_context(|| format!("{}: no member runs", self.name))?;
        let mut client = command(&self.programs.client);
        client.arg(format!("--endpoints={}", endpoints.join(",")));
        client.args(self.options.tls.iter().flat_map(Tls::client_flags));
        client.args(user.map(|user| format!("--user={user}")));
        client.args(arguments);
        Ok((client, first))
    }

    /// What a member says of itself; it need not have a leader.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn status(&self, member: usize) -> anyhow::Result<Status> {
        let said = self.ctl_at(member, &["endpoint", "status", "--write-out=json"])?;
        let [Endpoint { status }] =
            serde_json::from_str(&said).with_context(|| format!("not a status: {said}"))?;
        Ok(Status {
            revision: status.header.revision,
            cluster: status.header.cluster_id,
            member: status.header.member_id,
            leader: status.leader,
            term: status.header.raft_term,
            size: status.size,
        })
    }

    /// Which member leads, as the members that run and answer have it.
    ///
    /// # Errors
    ///
    /// When none of them does.
    pub fn leader(&self) -> anyhow::Result<usize> {
        let leads = |member: &usize| {
            self.status(*member).is_ok_and(|status| status.leader == status.member)
        };
        self.running().into_iter().find(leads).with_context(|| format!("{}: no leader", self.name))
    }

    /// Saves a snapshot of what `member` has.
    ///
    /// # Errors
    ///
    /// When etcdctl fails, with what it says.
    pub fn snapshot(&self, member: usize, to: &Path) -> anyhow::Result<()> {
        let to = to.to_str().context("the path of a snapshot is UTF-8")?;
        self.ctl_at(member, &["snapshot", "save", to]).map(|_| ())
    }

    /// Adds a user who may read and write the keys under `prefix`, by a role of the same name.
    ///
    /// # Errors
    ///
    /// When etcdctl fails, with what it says.
    pub fn add_user(&self, user: &str, password: &str, prefix: &str) -> anyhow::Result<()> {
        self.ctl(&["role", "add", user])?;
        let grant = ["role", "grant-permission", "--prefix=true", user, "readwrite", prefix];
        self.ctl(&grant)?;
        self.ctl(&["user", "add", &format!("{user}:{password}")])?;
        self.ctl(&["user", "grant-role", user, user]).map(|_| ())
    }

    /// Turns auth on, with the user root. From now on [`ctl`](Self::ctl) asks as root.
    ///
    /// # Errors
    ///
    /// When etcdctl fails, with what it says.
    pub fn enable_auth(&mut self, root_password: &str) -> anyhow::Result<()> {
        self.ctl(&["user", "add", &format!("root:{root_password}")])?;
        // etcdctl adds the role root on the way.
        self.ctl(&["auth", "enable"])?;
        self.root = Some(root_password.to_owned());
        Ok(())
    }

    fn root_user(&self) -> Option<String> {
        self.root.as_ref().map(|password| format!("root:{password}"))
    }
}

/// Runs one of etcd's programs to its end.
pub(super) fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| starting(command))?;
    said(command, &output)
}

/// The same, with this to read.
fn output_for(command: &mut Command, input: &[u8]) -> anyhow::Result<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| starting(command))?;
    // It says nothing before it has read all, and what it says fits into a pipe.
    child.stdin.take().context("a pipe")?.write_all(input)?;
    let output = child.wait_with_output()?;
    said(command, &output)
}

fn starting(command: &Command) -> String {
    format!("starting {}", command.get_program().display())
}

fn said(command: &Command, output: &Output) -> anyhow::Result<String> {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{} {}: {}: {said}{}",
        command.get_program().display(),
        command.get_args().map(|argument| argument.to_string_lossy()).collect::<Vec<_>>().join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(said)
}
