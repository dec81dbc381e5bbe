//! Whether a name exists, and what is there.

use tombolo_federation::catalog::{Catalog, Endpoint, Service};
use tombolo_federation::names::{ClusterId, NamespaceName, ServiceKey};
use tombolo_federation::record::{Protocol, ServicePort, ServiceType};

use super::asked::{Asked, Below};
use super::host;
use super::reach::Reach;
use super::reason::Reason;
use crate::{View, Zone};

/// A name that exists.
#[derive(Debug)]
pub(super) enum Node<'a> {
    Apex,
    Version,
    NameServer,
    /// Only names below it have records.
    Empty,
    Service(Reach<'a>),
    Port(Reach<'a>, &'a ServicePort),
    Host(Vec<&'a Endpoint>),
}

/// Finds the node at `asked`, or the reason why the name does not exist.
pub(super) fn locate<'a>(
    zone: &Zone,
    view: &'a View,
    catalog: Option<&'a Catalog>,
    asked: &Asked,
) -> Result<Node<'a>, Reason> {
    if let Some(node) = fixed(zone, asked) {
        return Ok(node);
    }
    let catalog = catalog.ok_or(Reason::NotReady)?;
    match asked {
        Asked::Namespace(namespace) if has_namespace(catalog, namespace) => Ok(Node::Empty),
        Asked::Namespace(_) => Err(Reason::NoSuchNamespace),
        Asked::Service(key) => Ok(Node::Service(reach(catalog, view, key)?)),
        Asked::Below(key, below) => descend(zone, reach(catalog, view, key)?, below),
        _ => Err(Reason::NoSuchShape),
    }
}

/// Names that exist whatever the catalog holds.
fn fixed(zone: &Zone, asked: &Asked) -> Option<Node<'static>> {
    match asked {
        Asked::Apex => Some(Node::Apex),
        Asked::Version => Some(Node::Version),
        Asked::NameServer if zone.addresses().is_empty() => Some(Node::Empty),
        Asked::NameServer => Some(Node::NameServer),
        Asked::Dns | Asked::Services => Some(Node::Empty),
        _ => None,
    }
}

/// A namespace exists here if any cluster has it: this view belongs to no cluster whose own
/// namespaces could be meant.
fn has_namespace(catalog: &Catalog, namespace: &NamespaceName) -> bool {
    let known = catalog.namespaces.get(namespace).is_some_and(|clusters| !clusters.is_empty());
    known || has_service_in(catalog, namespace)
}

/// A service may be known before its namespace's record is. Looks at one key, not at all: names
/// that do not exist are what a flood asks for.
fn has_service_in(catalog: &Catalog, namespace: &NamespaceName) -> bool {
    let Ok(name) = "0".parse() else { return false }; // no service name is less
    let least = ServiceKey { namespace: namespace.clone(), name };
    let next = catalog.services.range(least..).next();
    next.is_some_and(|(key, _)| key.namespace == *namespace)
}

fn reach<'a>(catalog: &'a Catalog, view: &'a View, key: &ServiceKey) -> Result<Reach<'a>, Reason> {
    let Some(service) = catalog.services.get(key) else {
        let known = has_namespace(catalog, &key.namespace);
        return Err(if known { Reason::NoSuchService } else { Reason::NoSuchNamespace });
    };
    let reach = Reach::of(catalog, view, service);
    if service.service_type == ServiceType::Headless && reach.chosen().is_none() {
        return Err(Reason::NoReadyEndpoint);
    }
    Ok(reach)
}

fn descend<'a>(zone: &Zone, reach: Reach<'a>, below: &Below) -> Result<Node<'a>, Reason> {
    let service = reach.service;
    match below {
        Below::Protocol(protocol) if has_srv(service, *protocol) => Ok(Node::Empty),
        Below::Protocol(_) => Err(Reason::NoSuchPort),
        Below::Port { name, protocol } => match port(service, name, *protocol) {
            Some(port) => Ok(Node::Port(reach, port)),
            None => Err(Reason::NoSuchPort),
        },
        Below::Cluster(cluster) => match hosts(zone, &reach, cluster).next() {
            Some(_) => Ok(Node::Empty), // never a record here, but hosts below
            None => Err(Reason::NoSuchHost),
        },
        Below::Host { host, cluster } => {
            let named = |endpoint: &&Endpoint| host::label(service, endpoint) == *host;
            let endpoints: Vec<_> = hosts(zone, &reach, cluster).filter(named).collect();
            if endpoints.is_empty() { Err(Reason::NoSuchHost) } else { Ok(Node::Host(endpoints)) }
        }
    }
}

/// Usable endpoints in `cluster` that have a name of their own.
fn hosts<'a>(
    zone: &Zone,
    reach: &Reach<'a>,
    cluster: &ClusterId,
) -> impl Iterator<Item = &'a Endpoint> {
    let service = reach.service;
    reach.all_usable().filter(move |endpoint| {
        endpoint.cluster == *cluster && host::endpoint_name(zone, service, endpoint).is_some()
    })
}

/// A port without a name has no SRV name of its own.
pub(super) fn port<'a>(
    service: &'a Service,
    name: &str,
    protocol: Protocol,
) -> Option<&'a ServicePort> {
    let named = |port: &&ServicePort| {
        !name.is_empty() && port.protocol == protocol && port.name.eq_ignore_ascii_case(name)
    };
    service.ports.iter().find(named)
}

/// With its `_`, a name of 63 characters is no label.
fn has_srv(service: &Service, protocol: Protocol) -> bool {
    let fits = |port: &ServicePort| (1..63).contains(&port.name.len());
    service.ports.iter().any(|port| port.protocol == protocol && fits(port))
}
