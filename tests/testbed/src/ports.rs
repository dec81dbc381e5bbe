//! Ports for servers that cannot take port 0.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

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
}
