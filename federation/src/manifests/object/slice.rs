//! discovery.k8s.io/v1 `EndpointSlice`.

use std::net::IpAddr;

use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::fields::{self, unique, word, wrong};
use crate::manifests::problem::FieldError;
use crate::names::{InvalidName, ObjectName, ServiceName, is_dns_label};
use crate::record::{Endpoint, EndpointPort, IpFamily};

/// The API server's limits.
const MAX_ENDPOINTS: usize = 1000;
const MAX_PORTS: usize = 100;

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const SOURCE_CLUSTER: &str = "multicluster.kubernetes.io/source-cluster";

/// Whose endpoints a slice holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::manifests) enum Ownership {
    /// Those of the Service of this name in the slice's namespace.
    Of(ServiceName),
    /// It has no label that says so.
    Nobodys,
    /// Those of another cluster, written here by a Multi-Cluster Services implementation:
    /// to pass them on would be to claim them as ours.
    Imported,
    /// Names, which no consumer reads.
    Fqdn,
}

#[derive(Debug, Clone, PartialEq)]
pub(in crate::manifests) struct Slice {
    pub(in crate::manifests) ownership: Ownership,
    pub(in crate::manifests) family: IpFamily,
    pub(in crate::manifests) ports: Vec<EndpointPort>,
    /// `was_ready` is what this slice alone can say: that it is ready now.
    pub(in crate::manifests) endpoints: Vec<Endpoint>,
}

pub(super) fn read(slice: discovery::EndpointSlice) -> Result<Slice, FieldError> {
    let family = match slice.address_type.as_str() {
        "IPv4" => IpFamily::V4,
        "IPv6" => IpFamily::V6,
        "FQDN" => return Ok(skipped(Ownership::Fqdn)),
        "" => return Err(wrong("addressType", "is missing", "IPv4, IPv6 or FQDN")),
        other => return Err(wrong("addressType", format!("has {other:?}"), "IPv4, IPv6 or FQDN")),
    };
    let ownership = ownership(&slice.metadata)?;
    if ownership == Ownership::Imported {
        return Ok(skipped(ownership));
    }
    let ports = ports(slice.ports.unwrap_or_default())?;
    let count = slice.endpoints.len();
    if count > MAX_ENDPOINTS {
        let expected = format!("at most {MAX_ENDPOINTS}");
        return Err(wrong("endpoints", format!("has {count} endpoints"), expected));
    }
    let numbered = slice.endpoints.into_iter().enumerate();
    let endpoints =
        numbered.map(|(index, read)| endpoint(index, read, family)).collect::<Result<_, _>>()?;
    Ok(Slice { ownership, family, ports, endpoints })
}

fn skipped(ownership: Ownership) -> Slice {
    Slice { ownership, family: IpFamily::V4, ports: Vec::new(), endpoints: Vec::new() }
}

fn ownership(metadata: &ObjectMeta) -> Result<Ownership, FieldError> {
    let labels = metadata.labels.as_ref();
    let label = |name| labels.and_then(|labels| labels.get(name));
    if label(SOURCE_CLUSTER).is_some() {
        return Ok(Ownership::Imported);
    }
    let Some(service) = label(SERVICE_NAME).filter(|name| !name.is_empty()) else {
        return Ok(Ownership::Nobodys);
    };
    let field = format!("metadata.labels[{SERVICE_NAME}]");
    let service =
        service.parse().map_err(|e: InvalidName| FieldError::new(field, e.to_string()))?;
    Ok(Ownership::Of(service))
}

fn ports(ports: Vec<discovery::EndpointPort>) -> Result<Vec<EndpointPort>, FieldError> {
    if ports.len() > MAX_PORTS {
        let found = format!("has {} ports", ports.len());
        return Err(wrong("ports", found, format!("at most {MAX_PORTS}")));
    }
    let numbered = ports.into_iter().enumerate();
    let ports: Vec<_> =
        numbered.map(|(index, read)| port(index, read)).collect::<Result<_, _>>()?;
    unique("ports", ports.iter().map(|port| &port.name), |name| format!("the name {name:?}"))?;
    Ok(ports)
}

fn port(index: usize, port: discovery::EndpointPort) -> Result<EndpointPort, FieldError> {
    let field = |name: &str| format!("ports[{index}].{name}");
    let number = port.port.ok_or_else(|| wrong(field("port"), "is missing", "1 to 65535"))?;
    Ok(EndpointPort {
        name: fields::port_name(&field("name"), port.name)?,
        protocol: fields::protocol(&field("protocol"), port.protocol.as_deref())?,
        port: fields::port(&field("port"), number)?,
        app_protocol: word(&field("appProtocol"), port.app_protocol, 317)?,
    })
}

fn endpoint(
    index: usize,
    endpoint: discovery::Endpoint,
    family: IpFamily,
) -> Result<Endpoint, FieldError> {
    let field = |name: &str| format!("endpoints[{index}].{name}");
    let conditions = endpoint.conditions.unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    Ok(Endpoint {
        address: address(&field("addresses"), &endpoint.addresses, family)?,
        ready,
        // Kubernetes' documentation said "defer to ready" and now says "true": they differ for an
        // endpoint that is not ready, and there the careful reading is the old one.
        serving: conditions.serving.unwrap_or(ready),
        terminating: conditions.terminating.unwrap_or(false),
        was_ready: ready,
        zone: word(&field("zone"), endpoint.zone, 63)?,
        hostname: hostname(&field("hostname"), endpoint.hostname)?,
        node: node(&field("nodeName"), endpoint.node_name)?,
        target: word(&field("targetRef.name"), endpoint.target_ref.and_then(|t| t.name), 253)?,
        service_account: String::new(),
        meshed: false,
    })
}

/// The first address: no semantics are defined for more of them, and kube-proxy ignores them too.
fn address(field: &str, addresses: &[String], family: IpFamily) -> Result<IpAddr, FieldError> {
    let text = addresses.first().ok_or_else(|| wrong(field, "is empty", "an address"))?;
    let usable = |address: &IpAddr| {
        IpFamily::of(*address) == family && IpFamily::of(address.to_canonical()) == family
    };
    let expected = format!("an {} address, as addressType says", family.as_str());
    text.parse()
        .ok()
        .filter(usable)
        .ok_or_else(|| wrong(format!("{field}[0]"), format!("has {text:?}"), expected))
}

fn hostname(field: &str, text: Option<String>) -> Result<String, FieldError> {
    let text = text.unwrap_or_default();
    if text.is_empty() || is_dns_label(&text) {
        return Ok(text);
    }
    Err(wrong(field, format!("has {text:?}"), "a DNS label (1 to 63 of a-z, 0-9 and '-')"))
}

fn node(field: &str, text: Option<String>) -> Result<String, FieldError> {
    let text = text.filter(|text| !text.is_empty());
    let node = text.map(|text| text.parse::<ObjectName>()).transpose();
    let node = node.map_err(|error| FieldError::new(field, error.to_string()))?;
    Ok(node.map_or_else(String::new, |name| name.to_string()))
}
