//! Two independent DNS clients, dig and dnspython, with one shape of answer.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};
use serde::Deserialize;

use crate::Tool;

/// What a server said.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Answer {
    /// The response code as text: `NOERROR`, `NXDOMAIN`, `SERVFAIL`.
    pub status: String,
    /// The header's flags in lower case: `qr`, `aa`, `tc`.
    pub flags: Vec<String>,
    /// The answer section, in the order sent.
    pub answer: Vec<Record>,
    /// The authority section.
    pub authority: Vec<Record>,
    /// The additional section, without the OPT record.
    pub additional: Vec<Record>,
}

/// One resource record in presentation form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Record {
    /// The owner name, with its final dot.
    pub name: String,
    /// Seconds to live.
    pub ttl: u32,
    /// The type: `A`, `SRV`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The data: `127.0.0.1`, `0 50 80 web.shop.svc.clusterset.local.`
    pub data: String,
}

impl Answer {
    /// The data of the answers of type `kind`, sorted: servers may rotate them.
    #[must_use]
    pub fn data(&self, kind: &str) -> Vec<&str> {
        let of_kind = self.answer.iter().filter(|record| record.kind == kind);
        let mut data: Vec<_> = of_kind.map(|record| record.data.as_str()).collect();
        data.sort_unstable();
        data
    }

    /// Whether the name exists and has nothing of the asked type.
    #[must_use]
    pub fn is_nodata(&self) -> bool {
        self.status == "NOERROR" && self.answer.is_empty()
    }
}

/// How a question travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// UDP, and no second try over TCP: a truncated answer is seen as such.
    Udp,
    /// TCP from the start.
    Tcp,
}

/// One question to one server.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The server; nothing else is asked.
    pub server: SocketAddr,
    /// The name, complete as it is.
    pub name: &'a str,
    /// The type: `A`, `SRV`.
    pub kind: &'a str,
    /// How it travels.
    pub transport: Transport,
}

impl<'a> Question<'a> {
    /// A question over UDP.
    #[must_use]
    pub const fn udp(server: SocketAddr, name: &'a str, kind: &'a str) -> Self {
        Self { server, name, kind, transport: Transport::Udp }
    }

    /// A question over TCP.
    #[must_use]
    pub const fn tcp(server: SocketAddr, name: &'a str, kind: &'a str) -> Self {
        Self { server, name, kind, transport: Transport::Tcp }
    }

    /// Asks with dig; `options` are dig's own (`+noedns`, `+bufsize=512`).
    ///
    /// # Errors
    ///
    /// When there is no dig, nothing answers, or its output cannot be read.
    pub fn dig(&self, options: &[&str]) -> anyhow::Result<Answer> {
        let mut command = Command::new(Tool::Dig.path()?);
        // -r: a ~/.digrc must not change what the tests see.
        command.args([
            "-r",
            "+tries=1",
            "+timeout=5",
            "+ignore",
            "+nosearch",
            "+nocmd",
            "+nostats",
        ]);
        command.arg(if self.transport == Transport::Tcp { "+tcp" } else { "+notcp" });
        command.args(options);
        command.arg(format!("@{}", self.server.ip())).arg("-p").arg(self.server.port().to_string());
        command.args(["-q", self.name, "-t", self.kind]);
        parse_dig(&self.run(command)?)
    }

    /// Asks with dnspython.
    ///
    /// # Errors
    ///
    /// When there is no Python, nothing answers, or the answer is malformed.
    pub fn dnspython(&self) -> anyhow::Result<Answer> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../clients/resolve.py");
        let mut command = Command::new(Tool::Python.path()?);
        command.arg(script);
        if self.transport == Transport::Tcp {
            command.arg("--tcp");
        }
        command.arg(self.server.ip().to_string()).arg(self.server.port().to_string());
        command.args([self.name, self.kind]);
        let json = self.run(command)?;
        serde_json::from_str(&json).with_context(|| format!("output of resolve.py: {json}"))
    }

    fn run(&self, mut command: Command) -> anyhow::Result<String> {
        let output = command.output().with_context(|| format!("running {command:?}"))?;
        let stdout = String::from_utf8(output.stdout).context("output that is not UTF-8")?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("{self:?}: {}: {} {}", output.status, stdout.trim(), stderr.trim());
        }
        Ok(stdout)
    }
}

/// Reads the default output of dig 9.x.
fn parse_dig(output: &str) -> anyhow::Result<Answer> {
    let mut answer = Answer {
        status: after(output, "status: ", ',').context("no status in dig's output")?,
        flags: after(output, ";; flags: ", ';')
            .context("no flags in dig's output")?
            .split(' ')
            .map(str::to_owned)
            .collect(),
        answer: Vec::new(),
        authority: Vec::new(),
        additional: Vec::new(),
    };
    let mut skipped = Vec::new();
    let mut section = &mut skipped;
    for line in output.lines() {
        match line {
            ";; ANSWER SECTION:" => section = &mut answer.answer,
            ";; AUTHORITY SECTION:" => section = &mut answer.authority,
            ";; ADDITIONAL SECTION:" => section = &mut answer.additional,
            _ if line.is_empty() || line.starts_with(';') => {}
            _ => section.push(record(line).with_context(|| format!("dig's line {line:?}"))?),
        }
    }
    Ok(answer)
}

fn after(text: &str, mark: &str, end: char) -> Option<String> {
    let (_, rest) = text.split_once(mark)?;
    Some(rest.split_once(end)?.0.to_owned())
}

/// `name ttl class type data`, the columns filled up with blanks and the data full of its own.
fn record(line: &str) -> Option<Record> {
    let mut rest = line;
    let mut next = || {
        let (word, after) = rest.trim_start().split_once(char::is_whitespace)?;
        rest = after;
        Some(word)
    };
    let name = next()?.to_owned();
    let ttl = next()?.parse().ok()?;
    let _class = next()?;
    let kind = next()?.to_owned();
    Some(Record { name, ttl, kind, data: rest.trim().to_owned() })
}

#[cfg(test)]
mod tests;
