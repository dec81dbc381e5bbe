//! What proxies should do with a service, before it takes the form of any Envoy message.
//!
//! Owns: which ports of a service proxies serve, the names of their clusters, the hosts that reach
//! them, and which protocol is spoken on them. Leaves to others: endpoints (`failover`), messages
//! (`resources`).

use tombolo_federation::catalog::Service;
use tombolo_federation::names::ServiceKey;
use tombolo_federation::record::{Protocol, ServicePort};

/// What is spoken on a port, as far as proxies care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaks {
    /// HTTP/1.1, or nothing was said of it.
    Http1,
    /// HTTP/2 without TLS, gRPC included.
    Http2,
    /// Not HTTP, or inside TLS: nothing that can be routed by host.
    Opaque,
}

impl Speaks {
    /// Of a port's `appProtocol`: KEP-3726's names, and the older bare ones that Istio and the
    /// Gateway API made common.
    fn of(app_protocol: &str) -> Self {
        match app_protocol.to_ascii_lowercase().as_str() {
            "" | "http" | "kubernetes.io/ws" | "http/1.1" => Self::Http1,
            "kubernetes.io/h2c" | "h2c" | "http2" | "grpc" | "grpc-web" | "kubernetes.io/grpc" => {
                Self::Http2
            }
            _ => Self::Opaque,
        }
    }
}

/// A TCP port of a merged service.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) service: &'a Service,
    pub(crate) port: &'a ServicePort,
    pub(crate) speaks: Speaks,
    zone: &'a str,
    bare: bool,
}

/// The ports of `service` that proxies serve: those over TCP, each number once. `zone` is the
/// clusterset's DNS zone.
pub(crate) fn targets<'a>(service: &'a Service, zone: &'a str) -> Vec<Target<'a>> {
    let tcp: Vec<_> = service.ports.iter().filter(|p| p.protocol == Protocol::Tcp).collect();
    let http: Vec<_> =
        tcp.iter().filter(|port| Speaks::of(&port.app_protocol) != Speaks::Opaque).collect();
    let bare = match http.as_slice() {
        [only] => Some(only.port),
        several => several.iter().map(|port| port.port).find(|number| *number == 80),
    };
    let target = |port: &'a ServicePort| Target {
        service,
        port,
        speaks: Speaks::of(&port.app_protocol),
        zone,
        bare: bare == Some(port.port),
    };
    tcp.into_iter().map(target).collect()
}

/// `<service>.<namespace>.svc.<zone>`.
pub(crate) fn host(key: &ServiceKey, zone: &str) -> String {
    format!("{}.{}.svc.{zone}", key.name, key.namespace)
}

impl Target<'_> {
    /// The name of the cluster, and of its endpoints: one per cluster, since a new cluster on a
    /// name that is already subscribed produces no request and stalls. Stable for the
    /// life of the service, so that connections and statistics are.
    pub(crate) fn cluster_name(&self) -> String {
        format!("outbound|{}||{}", self.port.port, host(&self.service.key, self.zone))
    }

    /// The hosts by which HTTP requests mean this port. Without a number the host means port 80,
    /// or the only port that takes HTTP.
    pub(crate) fn hosts(&self) -> Vec<String> {
        if self.speaks == Speaks::Opaque {
            return Vec::new();
        }
        let host = host(&self.service.key, self.zone);
        let numbered = format!("{host}:{}", self.port.port);
        if self.bare { vec![host, numbered] } else { vec![numbered] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::service;

    fn check(ports: &[&str], expected: &[(&str, &[&str])]) {
        let service = service("shop/checkout").ports(ports).build();
        let got: Vec<(String, Vec<String>)> = targets(&service, "z")
            .iter()
            .map(|target| (target.cluster_name(), target.hosts()))
            .collect();
        let expected: Vec<(String, Vec<String>)> = expected
            .iter()
            .map(|(name, hosts)| ((*name).into(), hosts.iter().map(|h| (*h).into()).collect()))
            .collect();
        assert_eq!(got, expected, "{ports:?}");
    }

    #[test]
    fn names_and_hosts() {
        let cluster = "outbound|8080||checkout.shop.svc.z";
        let (bare, numbered) = ("checkout.shop.svc.z", "checkout.shop.svc.z:8080");
        check(&["http=8080"], &[(cluster, &[bare, numbered])]);
        check(
            &["web=80", "http=8080"],
            &[
                ("outbound|80||checkout.shop.svc.z", &[bare, "checkout.shop.svc.z:80"]),
                (cluster, &[numbered]),
            ],
        );
        check(
            &["a=8080", "b=8081"],
            &[
                (cluster, &[numbered]),
                ("outbound|8081||checkout.shop.svc.z", &["checkout.shop.svc.z:8081"]),
            ],
        );
    }

    #[test]
    fn ports_that_are_not_http() {
        check(&["dns=53/UDP"], &[]);
        check(
            &["http=8080", "db=5432@kubernetes.io/postgres"],
            &[
                (
                    "outbound|8080||checkout.shop.svc.z",
                    &["checkout.shop.svc.z", "checkout.shop.svc.z:8080"],
                ),
                ("outbound|5432||checkout.shop.svc.z", &[]),
            ],
        );
        check(&["tls=443@https"], &[("outbound|443||checkout.shop.svc.z", &[])]);
    }

    #[test]
    fn app_protocols() {
        for h2 in ["kubernetes.io/h2c", "grpc", "GRPC", "http2"] {
            assert_eq!(Speaks::of(h2), Speaks::Http2, "{h2}");
        }
        for opaque in ["https", "tls", "kubernetes.io/wss", "redis", "mysql", "tcp"] {
            assert_eq!(Speaks::of(opaque), Speaks::Opaque, "{opaque}");
        }
    }
}
