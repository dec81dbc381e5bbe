//! Names of single endpoints: `<host>.<clusterid>.<svc>.<ns>.svc.<zone>`.

use std::net::IpAddr;

use hickory_proto::rr::Name;
use tombolo_federation::catalog::{Endpoint, Service};
use tombolo_federation::names::{ServiceKey, is_dns_label};
use tombolo_federation::record::ServiceType;

use crate::Zone;

/// The first label of an endpoint's own name.
///
/// Of a headless service its hostname, else its address. Of a `ClusterSetIP` service
/// always its address: there the name is the target of an SRV record with the port of exactly
/// this endpoint, so it must not be shared, as a hostname may be.
pub(super) fn label(service: &Service, endpoint: &Endpoint) -> String {
    let hostname = endpoint.endpoint.hostname.to_ascii_lowercase();
    if service.service_type == ServiceType::Headless && is_dns_label(&hostname) {
        return hostname;
    }
    address_label(endpoint.address())
}

/// The address with `-` between its parts. A form that would begin or end with `-` gets a `0`
/// there (as `CoreDNS` does at the end), which writes the same address.
fn address_label(address: IpAddr) -> String {
    let mut label = address.to_string().replace(['.', ':'], "-");
    if label.starts_with('-') {
        label.insert(0, '0');
    }
    if label.ends_with('-') {
        label.push('0');
    }
    label
}

/// `<svc>.<ns>.svc.<zone>`.
pub(super) fn service_name(zone: &Zone, key: &ServiceKey) -> Option<Name> {
    zone.below(&[key.name.as_str(), key.namespace.as_str(), "svc"])
}

/// The endpoint's own name, or `None` where it does not fit into 255 bytes.
pub(super) fn endpoint_name(zone: &Zone, service: &Service, endpoint: &Endpoint) -> Option<Name> {
    let ServiceKey { namespace, name } = &service.key;
    let host = label(service, endpoint);
    zone.below(&[&host, endpoint.cluster.as_str(), name.as_str(), namespace.as_str(), "svc"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_become_labels() {
        for (address, label) in [
            ("10.0.0.1", "10-0-0-1"),
            ("fd00::1", "fd00--1"),
            ("fd00::", "fd00--0"),
            ("::1", "0--1"),
            ("::", "0--0"),
            ("::ffff:10.0.0.1", "0--ffff-10-0-0-1"),
        ] {
            assert_eq!(address_label(address.parse().unwrap()), label, "{address}");
            assert!(is_dns_label(label));
        }
    }
}
