//! Regions in network namespaces: each has an address of its own, and what goes between two of
//! them can be lost.
//!
//! Owns: namespaces joined by one bridge, their addresses, running something inside one, and the
//! packet filters that cut and heal.
//!
//! Promises: nothing outside the namespaces changes. The bridge has a namespace of its own, so no
//! interface, route or filter is ever made in the machine's own network, and every set may use the
//! same addresses. All goes when the set is dropped, also by a panic, with every process that is
//! still inside. What a killed run left behind is removed by the next set that is made: names
//! carry the process id.
//!
//! Leaves to others: delay and bandwidth ([`Proxy`](crate::proxy::Proxy)). Many kernels have no
//! netem.
//!
//! Turned down: `ip netns exec`, which also changes mounts. A thread enters the namespace and a
//! child that it starts is inside from its first instruction, so ids and signals are the child's.
//!
//! ```no_run
//! use std::path::Path;
//! use std::process::Command;
//! use tombolo_testbed::netns::{self, Fault, Namespaces};
//! use tombolo_testbed::{Process, http, skip};
//!
//! # fn main() -> anyhow::Result<()> {
//! if let Err(missing) = netns::available() {
//!     return Ok(skip("e2e_regions::survives_a_partition", missing));
//! }
//! let net = Namespaces::make(&["us", "eu"])?;
//! let (us, eu) = (net.of("us")?, net.of("eu")?);
//! let logs = Path::new("a scratch directory");
//! let _server = us.inside(|| Process::start("us", &mut Command::new("server"), logs))??;
//! net.part("us", "eu", Fault::Drop)?;
//! let cut_off = eu.inside(|| http::get((us.address(), 80).into(), "/"))?;
//! assert!(cut_off.is_err());
//! net.heal("us", "eu")?;
//! # Ok(())
//! # }
//! ```

mod commands;
mod faults;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread;

use anyhow::{Context as _, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub use faults::Fault;

use crate::Missing;
use commands::{clear_leftovers, delete, ip};
use faults::Cut;

/// Where iproute2 keeps the names.
const NAMES: &str = "/var/run/netns";

/// What the names of all sets begin with.
const PREFIX: &str = "tombolo";

/// The most namespaces in one set; they share a /24.
const MOST: usize = 64;

/// Whether namespaces can be made here; what is missing is the reason of a [`skip`](crate::skip).
/// It is tried, once per process.
///
/// # Errors
///
/// When this is not root, or the kernel or a tool does not do it.
pub fn available() -> Result<(), Missing> {
    static TRIED: OnceLock<Result<(), Missing>> = OnceLock::new();
    TRIED.get_or_init(tried).clone()
}

fn tried() -> Result<(), Missing> {
    if !rustix::process::geteuid().is_root() {
        return Err(Missing::because("network namespaces need root"));
    }
    let all = Namespaces::make(&["a", "b"]).and_then(|net| net.part("a", "b", Fault::Reset));
    all.map_err(|error| Missing::because(format!("no network namespaces here: {error:#}")))
}

/// A set of namespaces that reach each other and nothing else.
#[derive(Debug)]
pub struct Namespaces {
    /// The one that holds the bridge.
    switch: String,
    all: Vec<Namespace>,
    cuts: Mutex<Vec<Cut>>,
}

/// One of a set: a region, with an address. A clone is the same namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    label: String,
    name: String,
    address: Ipv4Addr,
}

impl Namespaces {
    /// Makes one per label, all joined and with loopback up.
    ///
    /// # Errors
    ///
    /// When [`available`] says no, or a label is given twice.
    pub fn make(labels: &[&str]) -> anyhow::Result<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        ensure!(!labels.is_empty() && labels.len() <= MOST, "from 1 to {MOST} namespaces");
        clear_leftovers();
        let set = MADE.fetch_add(1, Ordering::Relaxed);
        let named = |label: &str| format!("{PREFIX}-{}-{set}-{label}", std::process::id());
        // Owned from the start, so that what was made goes if the rest fails.
        let mut made = Self { switch: named("switch"), all: Vec::new(), cuts: Mutex::default() };
        ip(&["netns", "add", &made.switch])?;
        ip(&["-n", &made.switch, "link", "add", "bridge", "type", "bridge"])?;
        ip(&["-n", &made.switch, "link", "set", "bridge", "up"])?;
        for (label, number) in labels.iter().zip(1_u8..) {
            ensure!(made.of(label).is_err(), "{label} is there twice");
            made.join(label, &named(&format!("{number}-{label}")), number)?;
        }
        Ok(made)
    }

    /// Makes one and plugs it into the bridge.
    fn join(&mut self, label: &str, name: &str, number: u8) -> anyhow::Result<()> {
        let address = Ipv4Addr::new(10, 77, 0, number);
        let (switch, port) = (&self.switch, &format!("port{number}"));
        ip(&["netns", "add", name])?;
        self.all.push(Namespace { label: label.to_owned(), name: name.to_owned(), address });
        ip(&["-n", switch, "link", "add", port, "type", "veth", "peer", "eth0", "netns", name])?;
        ip(&["-n", switch, "link", "set", port, "master", "bridge", "up"])?;
        ip(&["-n", name, "address", "add", &format!("{address}/24"), "dev", "eth0"])?;
        ip(&["-n", name, "link", "set", "eth0", "up"])?;
        ip(&["-n", name, "link", "set", "lo", "up"])
    }

    /// The one with this label.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn of(&self, label: &str) -> anyhow::Result<&Namespace> {
        let found = self.all.iter().find(|namespace| namespace.label == label);
        found.with_context(|| format!("no namespace {label:?}"))
    }

    /// All of them, in the order of the labels.
    #[must_use]
    pub fn all(&self) -> &[Namespace] {
        &self.all
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        let names = self.all.iter().map(|namespace| &namespace.name).chain([&self.switch]);
        for name in names.filter(|name| Path::new(NAMES).join(name).exists()) {
            if let Err(error) = delete(name) {
                eprintln!("---- the network namespace {name} may be left: {error:#}");
            }
        }
    }
}

impl Namespace {
    /// What it was called.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// What `ip netns` calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address, by which the others of its set reach it.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Runs `work` on a thread inside. Sockets that it makes belong to the namespace for good, and
    /// so do the processes and threads that it starts: also [`Process`](crate::Process)es and
    /// whole runtimes.
    ///
    /// # Errors
    ///
    /// When the namespace is gone.
    ///
    /// # Panics
    ///
    /// As `work` does.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        let handle = File::open(Path::new(NAMES).join(&self.name))
            .with_context(|| format!("the network namespace {}", self.name))?;
        // A thread that has entered does not come back, so it is one that ends here.
        let worked = thread::scope(|scope| {
            let thread = thread::Builder::new().name(format!("inside {}", self.label));
            let entered = thread.spawn_scoped(scope, move || -> anyhow::Result<T> {
                move_into_link_name_space(handle.as_fd(), Some(LinkNameSpaceType::Network))
                    .context("entering it")?;
                Ok(work())
            });
            entered.context("a thread").map(thread::ScopedJoinHandle::join)
        });
        match worked? {
            Ok(result) => result.map_err(|error| anyhow!("{}: {error:#}", self.name)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}
