//! The unavoidable part of carrying an edit to another region, done by the smallest program.
//!
//! An edit has to be noticed (the kernel wakes one thread), committed durably in its own region
//! and in the other (two times 4 KiB, synced), and carried over three connections: agent to
//! region, region to region, region to agent.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::fs::inotify;

const COMMITS: u64 = 2;
const PAGE: usize = 4096;
const HOPS: usize = 3;
/// About what a changed `EndpointSlice` takes on the wire.
const MESSAGE: usize = 512;

/// One pass through it all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts {
    pub(crate) noticed: Duration,
    pub(crate) committed: Duration,
    pub(crate) carried: Duration,
}

impl Parts {
    pub(crate) fn sum(self) -> Duration {
        self.noticed + self.committed + self.carried
    }
}

/// A watched directory, a file to sync and a connection to an echo, all opened beforehand.
pub(crate) struct Limit {
    watched: PathBuf,
    noticed: Receiver<Instant>,
    file: File,
    connection: TcpStream,
}

impl Limit {
    /// `dir` is on the file system that the measured program uses.
    pub(crate) fn new(dir: &Path) -> anyhow::Result<Self> {
        let watched = dir.join("watched");
        fs::create_dir_all(&watched)?;
        let noticed = watch(&watched)?;
        let file = File::create(dir.join("commits"))?;
        // Written once, so that the measured commits are of data and not of the file's length.
        file.write_all_at(&[0; PAGE], 0)?;
        file.sync_all()?;
        Ok(Self { watched, noticed, file, connection: echo()? })
    }

    pub(crate) fn pass(&mut self) -> anyhow::Result<Parts> {
        Ok(Parts { noticed: self.notice()?, committed: self.commit()?, carried: self.carry()? })
    }

    fn notice(&self) -> anyhow::Result<Duration> {
        let new = self.watched.with_extension("new");
        fs::write(&new, [0; PAGE])?;
        let started = Instant::now();
        fs::rename(&new, self.watched.join("file"))?;
        let noticed = self.noticed.recv().context("the watching thread ended")?;
        Ok(noticed.saturating_duration_since(started))
    }

    fn commit(&self) -> anyhow::Result<Duration> {
        let started = Instant::now();
        for commit in 0..COMMITS {
            self.file.write_all_at(&[u8::try_from(commit)?; PAGE], 0)?;
            self.file.sync_data()?;
        }
        Ok(started.elapsed())
    }

    fn carry(&mut self) -> anyhow::Result<Duration> {
        let mut message = [0; MESSAGE];
        let started = Instant::now();
        for _ in 0..HOPS {
            self.connection.write_all(&message)?;
            self.connection.read_exact(&mut message)?;
        }
        Ok(started.elapsed())
    }
}

/// Says when a file was renamed into `dir`. The thread ends with the process.
fn watch(dir: &Path) -> anyhow::Result<Receiver<Instant>> {
    let events = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    inotify::add_watch(&events, dir, inotify::WatchFlags::MOVED_TO)?;
    let (seen, noticed) = channel();
    thread::spawn(move || {
        let mut buffer = [MaybeUninit::uninit(); 1024];
        let mut reader = inotify::Reader::new(events, &mut buffer);
        while reader.next().is_ok() && seen.send(Instant::now()).is_ok() {}
    });
    Ok(noticed)
}

/// A connection whose other end sends back what it gets. The thread ends with the connection.
fn echo() -> anyhow::Result<TcpStream> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let connection = TcpStream::connect(listener.local_addr()?)?;
    let (mut other, _) = listener.accept()?;
    connection.set_nodelay(true)?;
    other.set_nodelay(true)?;
    thread::spawn(move || {
        let mut message = [0; MESSAGE];
        while other.read_exact(&mut message).and_then(|()| other.write_all(&message)).is_ok() {}
    });
    Ok(connection)
}
