//! A TCP proxy between two parts of a test that makes the way between them slow, narrow or
//! broken, where the kernel has no netem and where nobody is root.
//!
//! Owns: a listener, the connections through it, what is done to them and how much went through.
//!
//! Promises: bytes arrive whole and in order, or the connection ends; a change holds for
//! connections that are open too. Connections and the bytes under way are bounded: what does not
//! fit stays with the sender, as on a real link. All threads end with the proxy.
//!
//! Leaves to others: packets. A black hole here still completes handshakes; the network namespaces
//! ([`netns`](crate::netns)) lose them for real. To proxy inside one, make it there.
//!
//! Turned down: an async runtime. Tests read top down, and a few threads per connection are cheap
//! at this number of connections.
//!
//! ```no_run
//! use std::time::Duration;
//! use tombolo_testbed::proxy::Proxy;
//!
//! # fn main() -> anyhow::Result<()> {
//! let proxy = Proxy::start("127.0.0.1:2379".parse()?)?;
//! println!("clients connect to {}", proxy.address());
//! proxy.delay(Duration::from_millis(80));
//! proxy.reset();
//! proxy.heal();
//! assert_eq!(proxy.counts().open, 0);
//! # Ok(())
//! # }
//! ```

mod link;
#[cfg(test)]
mod tests;
mod way;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context as _;
use rustix::net::{Shutdown, shutdown};

pub use way::Counts;

use way::{Traffic, Way};

/// Connections at a time; more are closed at once and counted as refused.
pub const MOST: usize = 64;

/// A running proxy. It ends with its connections when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    listener: TcpListener,
    way: Arc<Way>,
    accepting: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Passes connections to a free loopback port on to `target`.
    ///
    /// # Errors
    ///
    /// When the machine refuses a socket or a thread.
    pub fn start(target: SocketAddr) -> anyhow::Result<Self> {
        Self::listen((Ipv4Addr::LOCALHOST, 0).into(), target)
    }

    /// The same on an address of one's own, such as a network namespace's; there, both sides are
    /// inside if this is called inside.
    ///
    /// # Errors
    ///
    /// When the address cannot be bound, or there is no thread.
    pub fn listen(on: SocketAddr, target: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(on).with_context(|| format!("a proxy on {on}"))?;
        let address = listener.local_addr().context("its address")?;
        let way = Arc::new(Way::new(target));
        let (accepted, through) = (listener.try_clone()?, Arc::clone(&way));
        let accepting = thread::Builder::new()
            .name(format!("proxy to {target}"))
            .spawn(move || accept(&accepted, &through))
            .context("a thread")?;
        Ok(Self { address, listener, way, accepting: Some(accepting) })
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What goes through takes this long, each way. At most half a MiB is under way at a time.
    pub fn delay(&self, delay: Duration) {
        self.way.change(|now| now.delay = delay);
    }

    /// No more than so many bytes per second go through, each way, over all connections.
    pub fn limit(&self, bytes_per_second: NonZeroU32) {
        self.way.change(|now| now.limit = Some(bytes_per_second));
    }

    /// Connections are accepted and nothing is forwarded, also of open ones and not their end.
    /// What is on its way then arrives after healing, as after a lost link.
    pub fn black_hole(&self) {
        self.way.change(|now| now.traffic = Traffic::Held);
    }

    /// Closes all connections, and new ones as they come.
    pub fn cut(&self) {
        self.way.end_all(Traffic::Closed);
    }

    /// Resets all connections, and new ones as they come.
    pub fn reset(&self) {
        self.way.end_all(Traffic::Reset);
    }

    /// Takes everything back: at full speed, new connections and those that are still open.
    pub fn heal(&self) {
        self.way.heal();
    }

    /// What went through so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.way.counts()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.way.stop();
        // On Linux this wakes the thread that accepts.
        let _ = shutdown(&self.listener, Shutdown::Both);
        if self.accepting.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("---- the proxy on {} panicked", self.address);
        }
    }
}

/// Accepts until the proxy stops, and then waits for the connections' ends.
fn accept(listener: &TcpListener, way: &Arc<Way>) {
    let mut links: Vec<JoinHandle<()>> = Vec::new();
    while let Some(client) = next(listener, way) {
        links.retain(|link| !link.is_finished());
        let Some(epoch) = way.admit(&client, MOST) else { continue };
        let through = Arc::clone(way);
        let link = thread::Builder::new()
            .name("proxied".to_owned())
            .spawn(move || link::carry(client, &through, epoch));
        match link {
            Ok(link) => links.push(link),
            Err(_) => way.left(),
        }
    }
    for link in links {
        drop(link.join());
    }
}

/// The next client. An error that is not the proxy's end is that of one client, gone before it was
/// accepted.
fn next(listener: &TcpListener, way: &Way) -> Option<TcpStream> {
    loop {
        let accepted: io::Result<_> = listener.accept();
        if way.stopped() {
            return None;
        }
        if let Ok((client, _)) = accepted {
            return Some(client);
        }
        thread::park_timeout(link::TICK);
    }
}
