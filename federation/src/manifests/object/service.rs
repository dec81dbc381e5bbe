//! v1 Service.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::fields::{self, unique, word, wrong};
use crate::manifests::problem::FieldError;
use crate::record::{IpFamily, ServicePort};

/// How clients of the own cluster reach it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::manifests) enum Exposure {
    /// `ClusterIP`, `NodePort` and `LoadBalancer`.
    ClusterIP,
    /// `clusterIP: None`.
    Headless,
    /// An alias: it has no endpoints and cannot be exported.
    ExternalName,
}

#[derive(Debug, Clone, PartialEq)]
pub(in crate::manifests) struct Service {
    pub(in crate::manifests) exposure: Exposure,
    pub(in crate::manifests) ports: Vec<ServicePort>,
    pub(in crate::manifests) session_affinity: String,
    pub(in crate::manifests) session_affinity_timeout: Option<u32>,
    pub(in crate::manifests) internal_traffic_policy: String,
    pub(in crate::manifests) traffic_distribution: String,
    /// As declared, or as its cluster IPs show; empty when neither says.
    pub(in crate::manifests) ip_families: Vec<IpFamily>,
    pub(in crate::manifests) created: Option<Timestamp>,
}

pub(super) fn read(service: core::Service) -> Result<Service, FieldError> {
    let created = service.metadata.creation_timestamp.map(|time| time.0);
    let spec = service.spec.ok_or_else(|| wrong("spec", "is missing", "the Service's ports"))?;
    let exposure = exposure(&spec)?;
    let (session_affinity, session_affinity_timeout) = affinity(&spec)?;
    Ok(Service {
        exposure,
        ip_families: ip_families(&spec)?,
        internal_traffic_policy: internal_traffic_policy(&spec)?,
        traffic_distribution: word("spec.trafficDistribution", spec.traffic_distribution, 63)?,
        ports: ports(spec.ports.unwrap_or_default(), exposure)?,
        session_affinity,
        session_affinity_timeout,
        created,
    })
}

fn exposure(spec: &core::ServiceSpec) -> Result<Exposure, FieldError> {
    let headless = cluster_ips(spec).any(|(_, ip)| ip == "None");
    match spec.type_.as_deref().unwrap_or_default() {
        "" | "ClusterIP" if headless => Ok(Exposure::Headless),
        "" | "ClusterIP" | "NodePort" | "LoadBalancer" => Ok(Exposure::ClusterIP),
        "ExternalName" => Ok(Exposure::ExternalName),
        other => Err(wrong(
            "spec.type",
            format!("has {other:?}"),
            "ClusterIP, NodePort, LoadBalancer or ExternalName",
        )),
    }
}

/// `clusterIP` and `clusterIPs` with the name of their field.
fn cluster_ips(spec: &core::ServiceSpec) -> impl Iterator<Item = (String, &str)> {
    let many = spec.cluster_ips.iter().flatten().enumerate();
    let many = many.map(|(index, ip)| (format!("spec.clusterIPs[{index}]"), ip.as_str()));
    let one = spec.cluster_ip.iter().map(|ip| ("spec.clusterIP".to_owned(), ip.as_str()));
    many.chain(one).filter(|(_, ip)| !ip.is_empty())
}

fn ip_families(spec: &core::ServiceSpec) -> Result<Vec<IpFamily>, FieldError> {
    let mut families = Vec::new();
    for (index, text) in spec.ip_families.iter().flatten().enumerate() {
        let field = format!("spec.ipFamilies[{index}]");
        families.push(match text.as_str() {
            "IPv4" => IpFamily::V4,
            "IPv6" => IpFamily::V6,
            other => return Err(wrong(field, format!("has {other:?}"), "IPv4 or IPv6")),
        });
    }
    unique("spec.ipFamilies", &families, |family| family.as_str().to_owned())?;
    for (field, text) in cluster_ips(spec).filter(|(_, text)| *text != "None") {
        let ip: IpAddr =
            text.parse().map_err(|_| wrong(field, format!("has {text:?}"), "an IP or None"))?;
        if spec.ip_families.is_none() && !families.contains(&IpFamily::of(ip)) {
            families.push(IpFamily::of(ip));
        }
    }
    Ok(families)
}

fn affinity(spec: &core::ServiceSpec) -> Result<(String, Option<u32>), FieldError> {
    match spec.session_affinity.as_deref().unwrap_or_default() {
        "" | "None" => Ok((String::new(), None)),
        "ClientIP" => {
            let config = spec.session_affinity_config.as_ref();
            let seconds = config.and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
            // What the API server fills in.
            let seconds = seconds.unwrap_or(10_800);
            match u32::try_from(seconds) {
                Ok(timeout @ 1..=86_400) => Ok(("ClientIP".to_owned(), Some(timeout))),
                _ => Err(wrong(
                    "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                    format!("has {seconds}"),
                    "1 to 86400",
                )),
            }
        }
        other => Err(wrong("spec.sessionAffinity", format!("has {other:?}"), "None or ClientIP")),
    }
}

fn internal_traffic_policy(spec: &core::ServiceSpec) -> Result<String, FieldError> {
    match spec.internal_traffic_policy.as_deref().unwrap_or_default() {
        "" | "Cluster" => Ok(String::new()),
        "Local" => Ok("Local".to_owned()),
        other => {
            Err(wrong("spec.internalTrafficPolicy", format!("has {other:?}"), "Cluster or Local"))
        }
    }
}

fn ports(
    ports: Vec<core::ServicePort>,
    exposure: Exposure,
) -> Result<Vec<ServicePort>, FieldError> {
    if ports.is_empty() && exposure == Exposure::ClusterIP {
        return Err(wrong("spec.ports", "is empty", "at least one port"));
    }
    // The protocol list is quadratic to check, and a record is bounded: the API server's objects
    // end at 1.5 MiB, published ones at a handful of ports.
    if ports.len() > 1000 {
        return Err(wrong("spec.ports", format!("has {} ports", ports.len()), "at most 1000"));
    }
    let many = ports.len() > 1;
    let numbered = ports.into_iter().enumerate();
    let ports: Vec<_> =
        numbered.map(|(index, read)| port(index, read, many)).collect::<Result<_, _>>()?;
    unique("spec.ports", ports.iter().map(|port| &port.name), |name| format!("the name {name:?}"))?;
    unique(
        "spec.ports",
        ports.iter().map(|port| (port.protocol, port.port)),
        |(protocol, port)| format!("{protocol} port {port}"),
    )?;
    Ok(ports)
}

fn port(index: usize, port: core::ServicePort, many: bool) -> Result<ServicePort, FieldError> {
    let field = |name: &str| format!("spec.ports[{index}].{name}");
    let name = fields::port_name(&field("name"), port.name)?;
    if many && name.is_empty() {
        return Err(wrong(field("name"), "is missing", "a name, as there are several ports"));
    }
    if let Some(IntOrString::Int(target)) = port.target_port {
        fields::port(&field("targetPort"), target)?;
    }
    Ok(ServicePort {
        name,
        protocol: fields::protocol(&field("protocol"), port.protocol.as_deref())?,
        port: fields::port(&field("port"), port.port)?,
        app_protocol: word(&field("appProtocol"), port.app_protocol, 317)?,
    })
}
