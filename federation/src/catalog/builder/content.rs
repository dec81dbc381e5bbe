//! What the digest of a catalog covers, as canonical bytes.
//!
//! Compared between processes, which must not differ by how they came to know: no generation, and
//! no precedence, since a region that was set up anew recorded other join times. Exports and ports
//! therefore go in sorted. Everything is taken apart field by field, so that a field that is added
//! later has to be decided upon here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::Serialize;

use super::super::{Conflict, Endpoint, Service, ServiceExport};
use crate::names::{ClusterId, NamespaceName, RegionName, ServiceKey};
use crate::record::{self, EndpointPort, IpFamily, ServicePort, ServiceType};

pub(super) fn service_name(key: &ServiceKey) -> Vec<u8> {
    format!("service/{key}").into()
}

pub(super) fn namespace_name(name: &NamespaceName) -> Vec<u8> {
    format!("namespace/{name}").into()
}

pub(super) fn service(service: &Service) -> Vec<u8> {
    bytes(&ServiceContent::of(service))
}

pub(super) fn namespace(clusters: &BTreeSet<ClusterId>) -> Vec<u8> {
    bytes(clusters)
}

fn bytes(content: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(content).expect("JSON holds any text, and all maps here have text keys")
}

#[derive(Serialize)]
struct ServiceContent<'a> {
    service_type: ServiceType,
    ports: Vec<&'a ServicePort>,
    session_affinity: &'a str,
    session_affinity_timeout: Option<u32>,
    internal_traffic_policy: &'a str,
    traffic_distribution: &'a str,
    ip_families: &'a [IpFamily],
    labels: &'a BTreeMap<String, String>,
    annotations: &'a BTreeMap<String, String>,
    conflicts: &'a [Conflict],
    exports: BTreeMap<&'a ClusterId, ExportContent<'a>>,
    endpoints: Vec<EndpointContent<'a>>,
}

#[derive(Serialize)]
struct ExportContent<'a> {
    region: &'a RegionName,
    ports: Vec<&'a ServicePort>,
}

#[derive(Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "mirrors record::Endpoint")]
struct EndpointContent<'a> {
    cluster: &'a ClusterId,
    region: &'a RegionName,
    network: &'a str,
    address: IpAddr,
    ready: bool,
    serving: bool,
    terminating: bool,
    was_ready: bool,
    zone: &'a str,
    hostname: &'a str,
    node: &'a str,
    target: &'a str,
    service_account: &'a str,
    meshed: bool,
    /// Left out where it is not so: versions that do not know of it have equal digests otherwise.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    degraded: bool,
    ports: &'a [EndpointPort],
}

impl<'a> ServiceContent<'a> {
    fn of(service: &'a Service) -> Self {
        // The key is the name of the entry.
        let Service {
            key: _,
            service_type,
            ports,
            session_affinity,
            session_affinity_timeout,
            internal_traffic_policy,
            traffic_distribution,
            ip_families,
            labels,
            annotations,
            conflicts,
            exports,
            endpoints,
        } = service;
        Self {
            service_type: *service_type,
            ports: sorted(ports),
            session_affinity,
            session_affinity_timeout: *session_affinity_timeout,
            internal_traffic_policy,
            traffic_distribution,
            ip_families,
            labels,
            annotations,
            conflicts,
            exports: exports.iter().map(export).collect(),
            endpoints: endpoints.iter().map(endpoint).collect(),
        }
    }
}

fn export(export: &ServiceExport) -> (&ClusterId, ExportContent<'_>) {
    let ServiceExport { cluster, region, precedence: _, ports } = export;
    (cluster, ExportContent { region, ports: sorted(ports) })
}

fn endpoint(endpoint: &Endpoint) -> EndpointContent<'_> {
    let Endpoint { cluster, region, network, endpoint, degraded, ports } = endpoint;
    let record::Endpoint {
        address,
        ready,
        serving,
        terminating,
        was_ready,
        zone,
        hostname,
        node,
        target,
        service_account,
        meshed,
    } = endpoint;
    EndpointContent {
        cluster,
        region,
        network,
        address: *address,
        ready: *ready,
        serving: *serving,
        terminating: *terminating,
        was_ready: *was_ready,
        zone,
        hostname,
        node,
        target,
        service_account,
        meshed: *meshed,
        degraded: *degraded,
        ports,
    }
}

fn sorted(ports: &[ServicePort]) -> Vec<&ServicePort> {
    let mut ports: Vec<_> = ports.iter().collect();
    ports.sort();
    ports
}
