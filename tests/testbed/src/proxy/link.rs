//! One connection: a reader and a writer for each direction, with a bounded queue between them, so
//! that what is delayed does not hold up what comes after it.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use super::way::{Direction, Way, reset_on_close};

/// Bytes per read, and reads under way per direction: 512 KiB.
const CHUNK: usize = 4096;
const QUEUE: usize = 128;

/// How soon a thread that reads or writes sees that its connection is over.
pub(super) const TICK: Duration = Duration::from_millis(20);

const CONNECT: Duration = Duration::from_secs(5);

/// What was read, and when. Empty is the end.
type Chunk = (Instant, Vec<u8>);

/// What the threads of a connection share.
struct Link<'a> {
    way: &'a Way,
    epoch: u64,
    broken: AtomicBool,
}

/// Carries a client's connection until it is over.
pub(super) fn carry(client: TcpStream, way: &Way, epoch: u64) {
    let link = Link { way, epoch, broken: AtomicBool::new(false) };
    // A black hole also holds up the connection on the other side.
    if way.pass(Direction::ToTarget, Instant::now(), 0, epoch) {
        match TcpStream::connect_timeout(&way.target, CONNECT) {
            Ok(target) => both_ways(&client, &target, &link),
            Err(_) => link.broken.store(true, Ordering::Relaxed),
        }
    }
    if link.resets() {
        reset_on_close(&client);
    }
    // Closed before it counts as gone: whoever ended it relies on that.
    drop(client);
    way.left();
}

fn both_ways(client: &TcpStream, target: &TcpStream, link: &Link<'_>) {
    for stream in [client, target] {
        let set = [stream.set_read_timeout(Some(TICK)), stream.set_write_timeout(Some(TICK))];
        if set.iter().any(Result::is_err) || stream.set_nodelay(true).is_err() {
            return link.broken.store(true, Ordering::Relaxed);
        }
    }
    thread::scope(|scope| {
        let ways = [(client, target, Direction::ToTarget), (target, client, Direction::ToClient)];
        for (from, to, direction) in ways {
            let (queue_tx, queue_rx) = sync_channel(QUEUE);
            scope.spawn(move || link.ended(&link.read(from, &queue_tx)));
            scope.spawn(move || link.ended(&link.write(to, &queue_rx, direction)));
        }
    });
    if link.resets() {
        reset_on_close(target);
    }
}

impl Link<'_> {
    fn over(&self) -> bool {
        self.broken.load(Ordering::Relaxed) || self.way.over(self.epoch)
    }

    /// A side that was reset, and a proxy that resets, are passed on as a reset.
    fn resets(&self) -> bool {
        self.broken.load(Ordering::Relaxed) || self.way.resets()
    }

    /// One of the threads is through: well, or because a side broke, which breaks the other.
    fn ended(&self, how: &io::Result<()>) {
        if how.is_err() {
            self.broken.store(true, Ordering::Relaxed);
        }
    }

    fn read(&self, mut from: &TcpStream, queue_tx: &SyncSender<Chunk>) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK];
        while !self.over() {
            let read = match from.read(&mut buffer) {
                Err(error) if is_tick(&error) => continue,
                read => read?,
            };
            if !self.queue(queue_tx, (Instant::now(), buffer[..read].to_vec())) || read == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Puts a chunk into the queue when there is room; false when nobody takes it any more.
    fn queue(&self, queue_tx: &SyncSender<Chunk>, chunk: Chunk) -> bool {
        let mut chunk = chunk;
        loop {
            match queue_tx.try_send(chunk) {
                Ok(()) => return true,
                Err(TrySendError::Disconnected(_)) => return false,
                Err(TrySendError::Full(_)) if self.over() => return false,
                Err(TrySendError::Full(full)) => chunk = full,
            }
            thread::park_timeout(TICK);
        }
    }

    fn write(
        &self,
        mut to: &TcpStream,
        queue_rx: &Receiver<Chunk>,
        direction: Direction,
    ) -> io::Result<()> {
        while let Ok((came, bytes)) = queue_rx.recv() {
            if !self.way.pass(direction, came, bytes.len(), self.epoch) {
                break;
            }
            if bytes.is_empty() {
                return to.shutdown(Shutdown::Write);
            }
            let mut rest = &bytes[..];
            while !rest.is_empty() && !self.over() {
                match to.write(rest) {
                    Err(error) if is_tick(&error) => {}
                    written => rest = &rest[written?..],
                }
            }
            self.way.carried(direction, bytes.len() - rest.len());
        }
        Ok(())
    }
}

fn is_tick(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
