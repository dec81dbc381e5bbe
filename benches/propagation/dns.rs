//! Asking for addresses, as cheaply as a socket allows.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

/// Loopback loses nothing, but a server that is busy may be late.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// A client of one server, for one name's A records.
pub(crate) struct Prober {
    socket: UdpSocket,
    query: Vec<u8>,
    id: u16,
}

impl Prober {
    pub(crate) fn new(server: SocketAddr, name: &str) -> anyhow::Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(ANSWER_WITHIN))?;
        Ok(Self { socket, query: query(name)?, id: 0 })
    }

    /// The addresses that the server has now.
    pub(crate) fn ask(&mut self) -> anyhow::Result<BTreeSet<Ipv4Addr>> {
        self.id = self.id.wrapping_add(1);
        self.query[..2].copy_from_slice(&self.id.to_be_bytes());
        self.socket.send(&self.query)?;
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).context("no answer from DNS")?;
        let answer = &buffer[..length];
        ensure!(
            answer.get(..2) == Some(&self.id.to_be_bytes()[..]),
            "an answer to another question"
        );
        addresses(answer).context("a malformed answer")?
    }
}

/// Asks each server, once in `every`, until each has exactly `wanted`; how long after `since` each
/// was first seen to.
pub(crate) fn until_visible(
    servers: &mut [Prober],
    wanted: &BTreeSet<Ipv4Addr>,
    since: Instant,
    (every, deadline): (Duration, Duration),
) -> anyhow::Result<Vec<Duration>> {
    let mut seen = vec![None; servers.len()];
    let mut tick = Instant::now();
    while seen.contains(&None) {
        for (server, seen) in servers.iter_mut().zip(&mut seen) {
            if seen.is_none() && server.ask()? == *wanted {
                *seen = Some(since.elapsed());
            }
        }
        if since.elapsed() > deadline {
            bail!("{wanted:?} is not in all answers after {deadline:?}: {seen:?}");
        }
        tick += every;
        crate::pause(tick.saturating_duration_since(Instant::now()));
    }
    Ok(seen.into_iter().flatten().collect())
}

/// One question, RFC 1035 section 4: header, name, type A, class IN.
fn query(name: &str) -> anyhow::Result<Vec<u8>> {
    let mut query = vec![0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..64).contains(length));
        query.push(length.with_context(|| format!("{label:?} is no label"))?);
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    Ok(query)
}

/// The A records of an answer; `None` if it ends too early.
fn addresses(answer: &[u8]) -> Option<anyhow::Result<BTreeSet<Ipv4Addr>>> {
    let number = |at: usize| Some(u16::from_be_bytes([*answer.get(at)?, *answer.get(at + 1)?]));
    let code = number(2)? & 0x000f;
    if code != 0 {
        return Some(Err(anyhow::anyhow!("response code {code}")));
    }
    let mut at = skip_name(answer, 12)? + 4;
    let mut found = BTreeSet::new();
    for _ in 0..number(6)? {
        at = skip_name(answer, at)?;
        let (kind, length) = (number(at)?, usize::from(number(at + 8)?));
        let data = answer.get(at + 10..at + 10 + length)?;
        if let (1, Ok(octets)) = (kind, <[u8; 4]>::try_from(data)) {
            found.insert(Ipv4Addr::from(octets));
        }
        at += 10 + length;
    }
    Some(Ok(found))
}

/// Where the name at `at` ends; one that ends in a pointer ends with it.
fn skip_name(answer: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *answer.get(at)? {
            0 => return Some(at + 1),
            length if length >= 0xc0 => return Some(at + 2),
            length => at += usize::from(length) + 1,
        }
    }
}
