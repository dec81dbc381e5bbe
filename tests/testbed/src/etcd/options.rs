//! What a cluster is started with.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use crate::netns::Namespace;

/// What a cluster is started with; the default is one member on loopback without TLS.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many members: 1 or 3, say.
    pub members: usize,
    /// Where they listen, unless they are in namespaces.
    pub listen: IpAddr,
    /// The network namespaces they run in, one after the other and round again. Each listens on
    /// its namespace's address. Empty: none of them does.
    pub namespaces: Vec<Namespace>,
    /// Certificates for clients. Members talk to each other in plain text.
    pub tls: Option<Tls>,
    /// The size of the database, in bytes, at which writes are refused.
    pub quota: Option<u64>,
    /// Further flags, to each member.
    pub flags: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            members: 1,
            listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
            namespaces: Vec::new(),
            tls: None,
            quota: None,
            flags: Vec::new(),
        }
    }
}

impl Options {
    /// `members` of them on loopback.
    #[must_use]
    pub fn members(members: usize) -> Self {
        Self { members, ..Self::default() }
    }

    /// The namespace of a member.
    pub(super) fn namespace(&self, member: usize) -> Option<&Namespace> {
        self.namespaces.get(member.checked_rem(self.namespaces.len())?)
    }
}

/// PEM files. Clients without a certificate of `ca` are refused.
#[derive(Debug, Clone)]
pub struct Tls {
    /// Who signed both certificates.
    pub ca: PathBuf,
    /// The servers' certificate; it names the address they listen on.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// A client's certificate, which [`ctl`](super::Etcd::ctl) uses.
    pub client_cert: PathBuf,
    /// Its key.
    pub client_key: PathBuf,
}

impl Tls {
    pub(super) fn server_flags(&self) -> Vec<String> {
        vec![
            "--client-cert-auth".to_owned(),
            format!("--trusted-ca-file={}", self.ca.display()),
            format!("--cert-file={}", self.cert.display()),
            format!("--key-file={}", self.key.display()),
        ]
    }

    pub(super) fn client_flags(&self) -> Vec<String> {
        vec![
            format!("--cacert={}", self.ca.display()),
            format!("--cert={}", self.client_cert.display()),
            format!("--key={}", self.client_key.display()),
        ]
    }
}
