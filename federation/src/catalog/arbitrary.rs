//! What clusters might say, drawn from pools so small that they keep contradicting each other.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use crate::record::{
    Endpoint, EndpointPort, Endpoints, Export, IpFamily, Protocol, ServicePort, ServiceType,
};

/// An export that says nothing in particular.
pub(super) fn plain_export() -> Export {
    Export {
        service_type: ServiceType::ClusterSetIP,
        ports: Vec::new(),
        session_affinity: String::new(),
        session_affinity_timeout: None,
        internal_traffic_policy: String::new(),
        traffic_distribution: String::new(),
        ip_families: vec![IpFamily::V4],
        created: None,
        precedence: Timestamp::UNIX_EPOCH,
        exported_labels: BTreeMap::new(),
        exported_annotations: BTreeMap::new(),
    }
}

/// An endpoint that takes traffic.
pub(super) fn ready_endpoint(address: &str) -> Endpoint {
    Endpoint {
        address: address.parse().unwrap(),
        ready: true,
        serving: true,
        terminating: false,
        was_ready: true,
        zone: String::new(),
        hostname: String::new(),
        node: String::new(),
        target: String::new(),
        service_account: String::new(),
        meshed: false,
    }
}

fn protocol() -> impl Strategy<Value = Protocol> {
    select(vec![Protocol::Tcp, Protocol::Udp])
}

fn text(pool: &'static [&'static str]) -> impl Strategy<Value = String> {
    select(pool).prop_map(str::to_owned)
}

fn map() -> impl Strategy<Value = BTreeMap<String, String>> {
    proptest::collection::btree_map(text(&["a", "b"]), text(&["", "x"]), 0..2)
}

fn service_port() -> impl Strategy<Value = ServicePort> {
    (text(&["", "http", "dns"]), protocol(), 80_u16..83, text(&["", "h2c"])).prop_map(
        |(name, protocol, port, app_protocol)| ServicePort { name, protocol, port, app_protocol },
    )
}

fn families() -> impl Strategy<Value = Vec<IpFamily>> {
    subsequence(vec![IpFamily::V4, IpFamily::V6], 0..=2).prop_shuffle()
}

pub(super) fn export() -> impl Strategy<Value = Export> {
    let types = select(vec![ServiceType::ClusterSetIP, ServiceType::Headless]);
    let affinity = (text(&["", "None", "ClientIP"]), select(vec![None, Some(10), Some(10_800)]));
    let policies = (text(&["", "Cluster", "Local"]), text(&["", "PreferClose"]));
    let fields = (types, vec(service_port(), 0..3), affinity, policies, families());
    (fields, 1_i64..4, map(), map()).prop_map(|(fields, precedence, labels, annotations)| {
        let (service_type, ports, affinity, policies, ip_families) = fields;
        Export {
            service_type,
            ports,
            session_affinity: affinity.0,
            session_affinity_timeout: affinity.1,
            internal_traffic_policy: policies.0,
            traffic_distribution: policies.1,
            ip_families,
            created: None,
            precedence: Timestamp::from_second(precedence).unwrap(),
            exported_labels: labels,
            exported_annotations: annotations,
        }
    })
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let address = select(&["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1"][..]);
    (address, any::<[bool; 5]>(), text(&["", "a", "b"])).prop_map(|(address, flags, target)| {
        let [ready, serving, terminating, was_ready, meshed] = flags;
        let plain = ready_endpoint(address);
        Endpoint { ready, serving, terminating, was_ready, target, meshed, ..plain }
    })
}

fn endpoint_port() -> impl Strategy<Value = EndpointPort> {
    (text(&["", "http", "dns"]), protocol(), 8080_u16..8082).prop_map(|(name, protocol, port)| {
        EndpointPort { name, protocol, port, app_protocol: String::new() }
    })
}

pub(super) fn slice() -> impl Strategy<Value = Endpoints> {
    (vec(endpoint_port(), 0..3), vec(endpoint(), 0..4))
        .prop_map(|(ports, endpoints)| Endpoints { ports, endpoints })
}

pub(super) fn network() -> impl Strategy<Value = Arc<str>> {
    select(&["one", "two"][..]).prop_map(Arc::from)
}
