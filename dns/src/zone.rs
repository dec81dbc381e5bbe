//! The zone that is answered for, and the records that it has whatever the catalog holds.

use std::net::IpAddr;
use std::str::FromStr;

use hickory_proto::rr::rdata::{NS, SOA};
use hickory_proto::rr::{Name, RData, Record};
use tombolo_federation::names::MeshDomain;

/// Seconds that any answer may be kept, positive or negative. A resolver's cache is then
/// never further behind the mesh than this.
pub(crate) const TTL: u32 = 5;

/// The zone: its name, and where its name servers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    origin: Name,
    name_server: Name,
    mailbox: Name,
    addresses: Vec<IpAddr>,
}

/// Why a text does not name a zone that can be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidZone {
    /// Not a domain name, or none that leaves room for names below it.
    #[error(
        "{0:?} is not a zone: expected DNS labels joined by '.', short enough for names below it"
    )]
    Malformed(String),
    /// Kubernetes' own zone, in which names are a cluster's own.
    #[error(
        "{0:?} is Kubernetes' own zone and is never served here: expected another, for example clusterset.local"
    )]
    Kubernetes(String),
}

impl Zone {
    /// The zone, with the addresses that its name server, `ns.dns.<zone>`, is reached at. They are
    /// only told to who asks for them; none is fine where a forwarder is configured by address.
    #[must_use]
    pub fn with_name_servers(mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        self.addresses = addresses.into_iter().collect();
        self
    }

    /// The zone's name.
    #[must_use]
    pub fn origin(&self) -> &Name {
        &self.origin
    }

    pub(crate) fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// The start of authority: in negative answers it says how long they may be kept (RFC 2308).
    /// The serial is the generation, which nobody compares: there are no transfers.
    pub(crate) fn soa(&self, generation: u64) -> Record {
        let serial = u32::try_from(generation & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        let (name_server, mailbox) = (self.name_server.clone(), self.mailbox.clone());
        let soa = SOA::new(name_server, mailbox, serial, 7200, 1800, 86_400, TTL);
        Record::from_rdata(self.origin.clone(), TTL, RData::SOA(soa))
    }

    pub(crate) fn ns(&self, owner: &Name) -> Record {
        Record::from_rdata(owner.clone(), TTL, RData::NS(NS(self.name_server.clone())))
    }

    pub(crate) fn name_server(&self) -> &Name {
        &self.name_server
    }

    /// `labels` (leaf first) below the zone, or `None` where that is no valid name: what does not
    /// fit into a name simply does not exist.
    pub(crate) fn below(&self, labels: &[&str]) -> Option<Name> {
        let labels = labels.iter().map(|label| label.as_bytes());
        Name::from_labels(labels.chain(self.origin.iter())).ok()
    }
}

impl Default for Zone {
    /// `clusterset.local`, the zone of the multicluster DNS specification.
    fn default() -> Self {
        let labels = |text: &[&str]| Name::from_labels(text.iter().map(|label| label.as_bytes()));
        let valid = "constant labels form a name";
        Self {
            origin: labels(&["clusterset", "local"]).expect(valid),
            name_server: labels(&["ns", "dns", "clusterset", "local"]).expect(valid),
            mailbox: labels(&["hostmaster", "clusterset", "local"]).expect(valid),
            addresses: Vec::new(),
        }
    }
}

impl FromStr for Zone {
    type Err = InvalidZone;

    fn from_str(text: &str) -> Result<Self, InvalidZone> {
        let malformed = || InvalidZone::Malformed(text.chars().take(100).collect());
        let domain = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let domain: MeshDomain = domain.parse().map_err(|_| malformed())?;
        if domain.as_str() == "cluster.local" || domain.as_str().ends_with(".cluster.local") {
            return Err(InvalidZone::Kubernetes(domain.to_string()));
        }
        let below = |labels: &[&str]| {
            let all = labels.iter().copied().chain(domain.as_str().split('.'));
            Name::from_labels(all.map(str::as_bytes)).map_err(|_| malformed())
        };
        Ok(Self {
            origin: below(&[])?,
            name_server: below(&["ns", "dns"])?,
            mailbox: below(&["hostmaster"])?,
            addresses: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_parsed_once() {
        assert_eq!("clusterset.local".parse(), Ok(Zone::default()));
        assert_eq!("ClusterSet.Local.".parse(), Ok(Zone::default()));
        for bad in ["", ".", "a..b", "-a", "a b", &["a"; 126].join(".")] {
            let error = bad.parse::<Zone>().unwrap_err();
            assert!(matches!(error, InvalidZone::Malformed(_)), "{bad}: {error}");
        }
        for kubernetes in ["cluster.local", "svc.cluster.local."] {
            let error = kubernetes.parse::<Zone>().unwrap_err().to_string();
            assert!(error.contains("never served"), "{error}");
        }
    }
}
