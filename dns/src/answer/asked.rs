//! What a name in the zone asks about, by its shape alone.

use hickory_proto::rr::Name;
use tombolo_federation::names::{ClusterId, NamespaceName, ServiceKey};
use tombolo_federation::record::Protocol;

use crate::Zone;

/// A place in the zone's tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    /// Not in the zone.
    Elsewhere,
    /// The zone itself.
    Apex,
    /// `dns-version`.
    Version,
    /// `dns`, above the name server.
    Dns,
    /// `ns.dns`.
    NameServer,
    /// `svc`.
    Services,
    /// `<ns>.svc`.
    Namespace(NamespaceName),
    /// `<svc>.<ns>.svc`.
    Service(ServiceKey),
    /// A name below a service's.
    Below(ServiceKey, Below),
    /// A name that nothing can ever have.
    Nowhere,
}

/// A place below a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Below {
    /// `_<proto>`.
    Protocol(Protocol),
    /// `_<port>._<proto>`.
    Port { name: String, protocol: Protocol },
    /// `<clusterid>`.
    Cluster(ClusterId),
    /// `<hostname>.<clusterid>`.
    Host { host: String, cluster: ClusterId },
}

impl Asked {
    /// Names compare case-insensitively. Labels that are not text, wildcards, and ids of
    /// two labels (never given out here) are `Nowhere`.
    pub(super) fn parse(zone: &Zone, name: &Name) -> Self {
        if !zone.origin().zone_of(name) {
            return Self::Elsewhere;
        }
        let name = name.to_lowercase();
        let depth = name.iter().count().saturating_sub(zone.origin().iter().count());
        let labels: Result<Vec<&str>, _> = name.iter().take(depth).map(str::from_utf8).collect();
        labels.ok().and_then(|labels| Self::of(&labels)).unwrap_or(Self::Nowhere)
    }

    /// `labels` are those left of the zone, lower case, the leaf first.
    fn of(labels: &[&str]) -> Option<Self> {
        Some(match labels {
            [] => Self::Apex,
            ["dns-version"] => Self::Version,
            ["dns"] => Self::Dns,
            ["ns", "dns"] => Self::NameServer,
            ["svc"] => Self::Services,
            [namespace, "svc"] => Self::Namespace(namespace.parse().ok()?),
            [name, namespace, "svc"] => Self::Service(service(name, namespace)?),
            [below @ .., name, namespace, "svc"] => {
                Self::Below(service(name, namespace)?, Below::of(below)?)
            }
            _ => return None,
        })
    }
}

impl Below {
    fn of(labels: &[&str]) -> Option<Self> {
        Some(match labels {
            [label] => match label.strip_prefix('_') {
                Some(text) => Self::Protocol(protocol(text)?),
                None => Self::Cluster(label.parse().ok()?),
            },
            [leaf, above] => match (leaf.strip_prefix('_'), above.strip_prefix('_')) {
                (Some(name), Some(text)) => {
                    Self::Port { name: name.to_owned(), protocol: protocol(text)? }
                }
                (None, None) => {
                    Self::Host { host: (*leaf).to_owned(), cluster: above.parse().ok()? }
                }
                _ => return None,
            },
            _ => return None,
        })
    }
}

fn service(name: &str, namespace: &str) -> Option<ServiceKey> {
    Some(ServiceKey { namespace: namespace.parse().ok()?, name: name.parse().ok()? })
}

fn protocol(text: &str) -> Option<Protocol> {
    match text {
        "tcp" => Some(Protocol::Tcp),
        "udp" => Some(Protocol::Udp),
        "sctp" => Some(Protocol::Sctp),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, expected: &str) {
        let name = Name::from_ascii(format!("{name}.")).unwrap();
        let asked = format!("{:?}", Asked::parse(&Zone::default(), &name));
        assert!(asked.starts_with(expected), "{name}: {asked}, expected {expected}");
    }

    #[test]
    fn every_shape() {
        check("clusterset.local", "Apex");
        check("local", "Elsewhere");
        check("xclusterset.local", "Elsewhere");
        check("web.shop.svc.cluster.local", "Elsewhere");
        check("DNS-version.ClusterSet.local", "Version");
        check("dns.clusterset.local", "Dns");
        check("ns.dns.clusterset.local", "NameServer");
        check("svc.clusterset.local", "Services");
        check("shop.svc.clusterset.local", "Namespace(\"shop\")");
        check("Web.SHOP.svc.clusterset.local", "Service(shop/web)");
        check("_tcp.web.shop.svc.clusterset.local", "Below(shop/web, Protocol(Tcp))");
        check("_http._udp.web.shop.svc.clusterset.local", "Below(shop/web, Port {");
        check("us-a.web.shop.svc.clusterset.local", "Below(shop/web, Cluster(\"us-a\"))");
        check("db-0.us-a.web.shop.svc.clusterset.local", "Below(shop/web, Host {");
    }

    #[test]
    fn names_that_nothing_has() {
        for name in [
            "foo",
            "web.shop",
            "*.shop.svc",
            "_web.shop.svc",
            "web._shop.svc",
            "_icmp.web.shop.svc",
            "_http.us-a.web.shop.svc",
            "db-0._tcp.web.shop.svc",
            "a.db-0.us-a.web.shop.svc",
            "x.dns-version",
        ] {
            check(&format!("{name}.clusterset.local"), "Nowhere");
        }
    }

    #[test]
    fn labels_that_are_not_text() {
        for label in [&b"w\0b"[..], b"w.b", "wäb".as_bytes(), b"\xff", b" ", b"*"] {
            let labels = [label, b"shop", b"svc", b"clusterset", b"local"];
            let name = Name::from_labels(labels).unwrap();
            assert_eq!(Asked::parse(&Zone::default(), &name), Asked::Nowhere, "{name}");
        }
    }
}
