//! Ports for servers that cannot take port 0.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use anyhow::Context as _;

/// Where [`KeptPorts`] are taken from. The kernel gives nobody one of these by itself: Linux's
/// ephemeral ports begin at 32768.
const KEPT: std::ops::Range<u16> = 16_000..32_000;

/// Different loopback ports, each free for TCP and UDP a moment ago.
///
/// Prefer port 0 and asking the server: between this call and the server's own bind another
/// process can take a port. All of them are held until the last is found, so one call never
/// gives a port twice.
///
/// # Errors
///
/// When the machine has no free port, or refuses sockets.
pub fn free_ports(count: usize) -> io::Result<Vec<SocketAddr>> {
    let mut held = Vec::with_capacity(count);
    while held.len() < count {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = tcp.local_addr()?;
        match UdpSocket::bind(address) {
            Ok(udp) => held.push((address, tcp, udp)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    Ok(held.into_iter().map(|(address, ..)| address).collect())
}

/// Ports for a server that ends and comes back on the same ones.
///
/// While it is down, the kernel gives them to nobody who asks for any port, and no other test of
/// this user takes them: each is a lock on a file, which ends with this or its process.
#[derive(Debug)]
pub struct KeptPorts {
    ports: Vec<u16>,
    _locks: Vec<File>,
}

impl KeptPorts {
    /// Takes `count` of them.
    ///
    /// # Errors
    ///
    /// When all are taken, or the locks cannot be kept in the system's temporary directory.
    pub fn take(count: usize) -> anyhow::Result<Self> {
        let user = rustix::process::geteuid().as_raw();
        let dir = std::env::temp_dir().join(format!("tombolo-ports-{user}"));
        std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        let mut taken = Vec::with_capacity(count);
        // Tests that start together begin at different places, and mostly find the first free.
        let width = u32::from(KEPT.end - KEPT.start);
        let first = std::process::id().wrapping_mul(61) % width;
        for step in 0..width {
            if taken.len() == count {
                break;
            }
            let port = KEPT.start + u16::try_from((first + step) % width)?;
            let lock = File::create(dir.join(port.to_string())).context("the lock of a port")?;
            if lock.try_lock().is_ok() && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                taken.push((port, lock));
            }
        }
        anyhow::ensure!(taken.len() == count, "no {count} ports are free in {KEPT:?}");
        let (ports, locks) = taken.into_iter().unzip();
        Ok(Self { ports, _locks: locks })
    }

    /// Which they are.
    #[must_use]
    pub fn ports(&self) -> &[u16] {
        &self.ports
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ports_differ_and_can_be_bound() {
        let ports = free_ports(16).unwrap();
        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), 16);
        assert!(ports.iter().all(|port| port.ip().is_loopback() && port.port() != 0));
    }

    #[test]
    fn kept_ports_are_nobody_elses_until_they_are_given_back() {
        let held: Vec<_> = (0..4).map(|_| KeptPorts::take(3).unwrap()).collect();
        let ports: BTreeSet<_> = held.iter().flat_map(|kept| kept.ports().to_vec()).collect();
        assert_eq!(ports.len(), 12, "{held:?}");
        assert!(ports.iter().all(|port| KEPT.contains(port)));
        let one = *ports.first().unwrap();
        drop(held);
        drop(TcpListener::bind((Ipv4Addr::LOCALHOST, one)).unwrap());
    }
}
