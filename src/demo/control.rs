//! The demo's verbs, as lines on stdin and on a loopback socket.
//!
//! `stop|start backend|agent|control-plane|region NAME`, answered by one line that begins with
//! `ok` or `error`. A line that is no verb ends its connection: a web page that is made to talk to
//! the port speaks HTTP, and its first line is none.

use std::str::FromStr;
use std::time::Duration;

use tokio::io::{
    AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
    BufReader,
};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// Longest line taken, in bytes.
const LINE_LIMIT: u64 = 1024;
/// Before accepting is tried again after it failed, as it does without free descriptors.
const PAUSE: Duration = Duration::from_millis(50);
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
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
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
    let mut lines = stdin_lines()?;
    let mut output = tokio::io::stdout();
    while let Some(line) = lines.recv().await {
        if line.trim().is_empty() {
            continue;
        }
        let answer = render(&obey(&line, &orders).await);
        // Nobody may be reading the answers, which is no reason to end.
        let _ = output.write_all(answer.as_bytes()).await;
        let _ = output.flush().await;
    }
    std::future::pending().await
}

/// The lines of stdin, by a thread of its own: a read that waits for the terminal cannot be
/// called off, and the runtime's own threads are waited for when the demo ends.
fn stdin_lines() -> std::io::Result<mpsc::Receiver<String>> {
    let (lines_tx, lines) = mpsc::channel(1);
    let read = move || {
        let mut input = std::io::stdin().lock();
        while let Ok(Some(line)) = read_line(&mut input) {
            if lines_tx.blocking_send(line).is_err() {
                break;
            }
        }
    };
    std::thread::Builder::new().name("stdin".to_owned()).spawn(read)?;
    Ok(lines)
}

/// The next line, or as much of it as is taken at once; `None` at the end.
fn read_line(input: &mut impl std::io::BufRead) -> std::io::Result<Option<String>> {
    use std::io::{BufRead as _, Read as _};
    let mut line = Vec::new();
    let length = input.take(LINE_LIMIT).read_until(b'\n', &mut line)?;
    Ok((length > 0).then(|| String::from_utf8_lossy(&line).into_owned()))
}

async fn converse(
    mut read: impl AsyncBufRead + Unpin,
    mut write: impl AsyncWrite + Unpin,
    orders: &mpsc::Sender<Order>,
) -> std::io::Result<()> {
    loop {
        let mut line = Vec::new();
        let length = (&mut read).take(LINE_LIMIT).read_until(b'\n', &mut line).await?;
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

    #[test]
    fn stdin_is_read_line_by_line_whatever_it_holds() {
        let long = [b'x'; 1500];
        let input = [b"stop\n\xff\xfe\n", &long[..], b"\nlast"].concat();
        let mut input = &input[..];
        let lines: Vec<String> = std::iter::from_fn(|| read_line(&mut input).unwrap()).collect();
        let lengths: Vec<usize> = lines.iter().map(|line| line.chars().count()).collect();
        assert_eq!(lengths, [5, 3, 1024, 477, 4]);
        assert_eq!(lines[4], "last");
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
