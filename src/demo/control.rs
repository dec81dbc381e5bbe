//! The demo's verbs, as lines on stdin and on a loopback socket.
//!
//! `stop|start backend|agent|control-plane|region NAME`, answered by one line that begins with
//! `ok` or `error`. A line that is no verb ends its connection: a web page that is made to talk to
//! the port speaks HTTP, and its first line is none.

use std::str::FromStr;

use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// Longest line taken, in bytes.
const MAX_LINE: usize = 1024;
/// Connections at a time.
const MAX_CONNECTIONS: usize = 16;

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Stop,
    Start,
}

/// To what kind of thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Backend,
    Agent,
    ControlPlane,
    /// All of these, and its Envoys.
    Region,
}

/// One order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verb {
    pub(crate) action: Action,
    pub(crate) target: Target,
    pub(crate) name: String,
}

/// How to say it right.
pub(crate) const USAGE: &str = "stop|start backend|agent|control-plane|region NAME";

impl FromStr for Verb {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [action, target, name] = words[..] else {
            return Err(format!("expected {USAGE}"));
        };
        let action = match action {
            "stop" => Action::Stop,
            "start" => Action::Start,
            _ => return Err(format!("{action:?} is neither stop nor start: expected {USAGE}")),
        };
        let target = match target {
            "backend" => Target::Backend,
            "agent" => Target::Agent,
            "control-plane" => Target::ControlPlane,
            "region" => Target::Region,
            _ => return Err(format!("{target:?} cannot be stopped or started: expected {USAGE}")),
        };
        Ok(Self { action, target, name: name.to_owned() })
    }
}

/// An order with the place for its answer.
pub(crate) struct Order {
    pub(crate) verb: Verb,
    pub(crate) answer: oneshot::Sender<Result<String, String>>,
}

/// Takes orders from connections, for ever.
pub(crate) async fn serve(
    listener: TcpListener,
    orders: mpsc::Sender<Order>,
) -> anyhow::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        while connections.len() >= MAX_CONNECTIONS {
            connections.join_next().await;
        }
        let orders = orders.clone();
        connections.spawn(async move {
            let (read, write) = stream.into_split();
            converse(BufReader::new(read), write, &orders).await
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Takes orders from stdin until it ends; a demo whose stdin is closed goes on.
pub(crate) async fn read_stdin(orders: mpsc::Sender<Order>) -> anyhow::Result<()> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut output = tokio::io::stdout();
    while let Some(line) = lines.next_line().await? {
        if line.trim().is_empty() {
            continue;
        }
        let answer = obey(&line, &orders).await;
        output.write_all(render(&answer).as_bytes()).await?;
        output.flush().await?;
    }
    std::future::pending().await
}

async fn converse(
    mut read: impl AsyncBufRead + Unpin,
    mut write: impl AsyncWrite + Unpin,
    orders: &mpsc::Sender<Order>,
) -> std::io::Result<()> {
    loop {
        let mut line = Vec::new();
        let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
        let length =
            tokio::io::AsyncReadExt::take(&mut read, limit).read_until(b'\n', &mut line).await?;
        if length == 0 {
            return Ok(());
        }
        let line = String::from_utf8_lossy(&line).into_owned();
        let understood = line.parse::<Verb>().is_ok();
        let answer = obey(&line, orders).await;
        write.write_all(render(&answer).as_bytes()).await?;
        if !understood {
            return Ok(());
        }
    }
}

async fn obey(line: &str, orders: &mpsc::Sender<Order>) -> Result<String, String> {
    let verb = line.parse()?;
    let (answer, answered) = oneshot::channel();
    let stopping = |()| "the demo is stopping".to_owned();
    orders.send(Order { verb, answer }).await.map_err(|_| stopping(()))?;
    answered.await.map_err(|_| stopping(()))?
}

fn render(answer: &Result<String, String>) -> String {
    match answer {
        Ok(done) => format!("ok {done}\n"),
        Err(problem) => format!("error {}\n", problem.replace('\n', " ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_are_read_or_refused_with_the_way_to_say_it() {
        let verb: Verb = "  stop control-plane us-west1 \n".parse().unwrap();
        assert_eq!((verb.action, verb.target), (Action::Stop, Target::ControlPlane));
        for bad in ["", "stop", "stop backend", "halt region x", "stop pod x", "stop region x y"] {
            assert!(bad.parse::<Verb>().unwrap_err().contains(USAGE), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_speaks_http_is_ended_after_one_line() {
        let (orders, mut taken) = mpsc::channel(1);
        let mut output = Vec::new();
        let input: &[u8] = b"POST / HTTP/1.1\r\nstop region us-west1\r\n";
        converse(input, &mut output, &orders).await.unwrap();
        assert!(String::from_utf8(output).unwrap().starts_with("error "));
        assert!(taken.try_recv().is_err(), "no order came through");
    }
}
