//! Objects to records.
//!
//! A pure function of the objects and the options. What is exported is decided here and nowhere else
//! (MCS R32).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;

use super::contents::Found;
use super::object::{Export, Exposure, Id, Object, Ownership, Service, Slice};
use super::problem::{Problem, Reason};
use super::reader::View;
use super::{Desired, Options};
use crate::key::{Key, Kind};
use crate::names::{NamespaceName, ObjectName, ServiceKey};
use crate::record::{self, Body, Endpoint, Endpoints, IpFamily, ServiceType};

/// Problems beyond this many are counted only: status pages have an end.
const MAX_PROBLEMS: usize = 500;
/// Refused addresses that one problem names.
const MAX_NAMED: usize = 5;

/// What the cluster wants its records to be.
pub(super) fn translate(view: View<'_>, options: &Options) -> Desired {
    let mut translation = Translation {
        options,
        slices: by_service(&view),
        view,
        records: BTreeMap::new(),
        without_endpoints: Vec::new(),
    };
    translation.namespaces();
    translation.exports();
    translation.unlabelled();
    let Translation { view, records, without_endpoints, .. } = translation;
    let mut problems = view.problems;
    problems.sort();
    problems.dedup();
    let more_problems = problems.len().saturating_sub(MAX_PROBLEMS);
    problems.truncate(MAX_PROBLEMS);
    Desired {
        complete: view.complete,
        gaps: view.gaps,
        listing: view.listing,
        records,
        counts: view.counts,
        problems,
        more_problems,
        services_without_endpoints: without_endpoints,
    }
}

type Slices<'a> = BTreeMap<ServiceKey, Vec<(&'a ObjectName, &'a Found, &'a Slice)>>;

struct Translation<'a, 'o> {
    options: &'o Options,
    view: View<'a>,
    slices: Slices<'a>,
    records: BTreeMap<Key, Body>,
    without_endpoints: Vec<ServiceKey>,
}

/// A Service that is to be exported, and what says so.
struct Exported<'a> {
    key: &'a ServiceKey,
    service: &'a Service,
    /// `None` when all Services are exported.
    export: Option<&'a Export>,
}

fn by_service<'a>(view: &View<'a>) -> Slices<'a> {
    let mut slices = Slices::new();
    for (&id, &found) in &view.objects {
        let (Id::Slice(namespace, name), Object::Slice(slice)) = (id, &found.object) else {
            continue;
        };
        if let Ownership::Of(service) = &slice.ownership {
            let key = ServiceKey { namespace: namespace.clone(), name: service.clone() };
            slices.entry(key).or_default().push((name, found, slice));
        }
    }
    slices
}

impl<'a> Translation<'a, '_> {
    fn namespaces(&mut self) {
        for (&id, &found) in &self.view.objects {
            let (Id::Namespace(name), Object::Namespace(namespace)) = (id, &found.object) else {
                continue;
            };
            let may_leave = &self.options.namespace_labels;
            let allowed = namespace.labels.iter().filter(|(key, _)| may_leave.contains(*key));
            let labels = allowed.map(|(key, value)| (key.clone(), value.clone())).collect();
            let record = record::Namespace { labels, annotations: BTreeMap::new() };
            let key = Key::of_namespace(self.options.owner.clone(), name);
            self.records.insert(key, Body::Namespace(record));
        }
    }

    /// Namespaces need no object of their own: where something stands in one, it exists.
    fn imply_namespace(&mut self, name: &NamespaceName) {
        let key = Key::of_namespace(self.options.owner.clone(), name);
        let implied = || Body::Namespace(record::Namespace::default());
        self.records.entry(key).or_insert_with(implied);
    }

    fn exports(&mut self) {
        for exported in self.wanted() {
            self.imply_namespace(&exported.key.namespace);
            let slices = self.slices.get(exported.key).cloned().unwrap_or_default();
            let families: Vec<_> = slices.iter().map(|(_, _, slice)| slice.family).collect();
            let record = export(&exported, &families, self.options.joined);
            let key = self.key(Kind::Export, exported.key, None);
            self.records.insert(key, Body::Export(record));
            let mut endpoints = 0;
            for (name, found, slice) in slices {
                endpoints += self.slice(&exported, name, found, slice);
            }
            if endpoints == 0 {
                self.without_endpoints.push(exported.key.clone());
            }
        }
    }

    fn key(&self, kind: Kind, service: &ServiceKey, part: Option<ObjectName>) -> Key {
        Key::of_service(self.options.owner.clone(), kind, service, part)
    }

    fn wanted(&mut self) -> Vec<Exported<'a>> {
        let mut wanted = BTreeMap::new();
        if self.options.export_all {
            wanted.extend(self.view.objects.values().filter_map(|found| by_default(found)));
        }
        let objects = self.view.objects.clone();
        for (&id, &found) in &objects {
            let (Id::Export(key), Object::Export(export)) = (id, &found.object) else { continue };
            match self.service(key) {
                Some(service) if service.exposure == Exposure::ExternalName => {
                    let message = "is of type ExternalName, which cannot be exported";
                    self.report(found, Reason::InvalidServiceType, &service_of(key), message);
                }
                Some(service) => {
                    wanted.insert(key, Exported { key, service, export: Some(export) });
                }
                None if self.view.unreadable.contains(&Id::Service(key.clone())) => {}
                None => {
                    let message = "does not exist, expected one of the same namespace and name";
                    self.report(found, Reason::NoService, &service_of(key), message);
                }
            }
        }
        wanted.into_values().collect()
    }

    fn service(&self, key: &ServiceKey) -> Option<&'a Service> {
        match &self.view.objects.get(&Id::Service(key.clone()))?.object {
            Object::Service(service) => Some(service),
            _ => None,
        }
    }

    /// Adds a slice's record; returns how many endpoints it has.
    fn slice(
        &mut self,
        exported: &Exported<'a>,
        name: &ObjectName,
        found: &Found,
        slice: &Slice,
    ) -> usize {
        self.check_ports(exported, found, slice);
        let cidrs = &self.options.pod_cidrs;
        let (accepted, refused): (Vec<_>, Vec<_>) =
            slice.endpoints.iter().partition(|endpoint| refusal(endpoint.address, cidrs).is_none());
        self.report_refused(found, &refused);
        let endpoints: Vec<Endpoint> = accepted.into_iter().cloned().collect();
        let count = endpoints.len();
        let key = self.key(Kind::Endpoints, exported.key, Some(name.clone()));
        let record = Endpoints { ports: slice.ports.clone(), endpoints };
        self.records.insert(key, Body::Endpoints(record));
        count
    }

    fn report_refused(&mut self, found: &Found, refused: &[&Endpoint]) {
        let mut by_reason = BTreeMap::<_, Vec<_>>::new();
        for endpoint in refused {
            if let Some(why) = refusal(endpoint.address, &self.options.pod_cidrs) {
                by_reason.entry(why).or_default().push(endpoint.address.to_string());
            }
        }
        for (why, addresses) in by_reason {
            let named = addresses[..addresses.len().min(MAX_NAMED)].join(", ");
            let more = match addresses.len().saturating_sub(MAX_NAMED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let message = format!("{named}{more} refused: {why}");
            self.report(found, Reason::AddressRefused, "endpoints", &message);
        }
    }

    /// Ports pair by name: a slice whose ports the Service does not have takes no traffic.
    fn check_ports(&mut self, exported: &Exported<'a>, found: &Found, slice: &Slice) {
        let service = &exported.service.ports;
        let pairs = |port: &record::EndpointPort| {
            service.iter().any(|p| p.name == port.name && p.protocol == port.protocol)
        };
        if service.is_empty() || slice.endpoints.is_empty() || slice.ports.iter().any(pairs) {
            return;
        }
        let names = |ports: Vec<(&String, record::Protocol)>| {
            let named =
                ports.iter().take(10).map(|(name, protocol)| format!("{name:?} {protocol}"));
            Some(named.collect::<Vec<_>>().join(", ")).filter(|names| !names.is_empty())
        };
        let has = names(slice.ports.iter().map(|port| (&port.name, port.protocol)).collect());
        let expected = names(service.iter().map(|port| (&port.name, port.protocol)).collect());
        let message = format!(
            "has {}, expected one of Service {}: {} (ports pair by name)",
            has.as_deref().unwrap_or("none"),
            exported.key,
            expected.unwrap_or_default()
        );
        self.report(found, Reason::PortMismatch, "ports", &message);
    }

    fn unlabelled(&mut self) {
        let objects = self.view.objects.clone();
        for found in objects.into_values() {
            let Object::Slice(slice) = &found.object else { continue };
            if slice.ownership == Ownership::Nobodys {
                let message = "has no kubernetes.io/service-name, expected the name of the Service \
                               whose endpoints these are";
                self.report(found, Reason::NoServiceLabel, "metadata.labels", message);
            }
        }
    }

    fn report(&mut self, found: &Found, reason: Reason, field: &str, message: &str) {
        self.view.problems.push(Problem {
            place: found.place.clone(),
            object: Some(found.id.object_ref()),
            field: field.to_owned(),
            message: message.to_owned(),
            reason,
            kept: false,
        });
    }
}

fn service_of(key: &ServiceKey) -> String {
    format!("Service {key}")
}

/// Which Services `export_all` means. The API server's own is in every cluster and leads, by the
/// same name, to another thing in each.
fn by_default(found: &Found) -> Option<(&ServiceKey, Exported<'_>)> {
    let (Id::Service(key), Object::Service(service)) = (&found.id, &found.object) else {
        return None;
    };
    let api_server = key.namespace.as_str() == "default" && key.name.as_str() == "kubernetes";
    let exported = Exported { key, service, export: None };
    (service.exposure != Exposure::ExternalName && !api_server).then_some((key, exported))
}

fn export(
    exported: &Exported<'_>,
    slices: &[IpFamily],
    joined: Option<Timestamp>,
) -> record::Export {
    let Exported { service, export, .. } = exported;
    let created = export.map_or(service.created, |export| export.created);
    let maps = export.map(|export| (export.labels.clone(), export.annotations.clone()));
    let (exported_labels, exported_annotations) = maps.unwrap_or_default();
    record::Export {
        service_type: match service.exposure {
            Exposure::Headless => ServiceType::Headless,
            Exposure::ClusterIP | Exposure::ExternalName => ServiceType::ClusterSetIP,
        },
        ports: service.ports.clone(),
        session_affinity: service.session_affinity.clone(),
        session_affinity_timeout: service.session_affinity_timeout,
        internal_traffic_policy: service.internal_traffic_policy.clone(),
        traffic_distribution: service.traffic_distribution.clone(),
        ip_families: families(&service.ip_families, slices),
        created,
        precedence: created.max(joined).unwrap_or(Timestamp::UNIX_EPOCH),
        exported_labels,
        exported_annotations,
    }
}

/// As the Service says; otherwise as its slices show; otherwise IPv4 (never empty: MCS R38).
fn families(declared: &[IpFamily], slices: &[IpFamily]) -> Vec<IpFamily> {
    if !declared.is_empty() {
        return declared.to_vec();
    }
    let shown: BTreeSet<_> = slices.iter().copied().collect();
    if shown.is_empty() { vec![IpFamily::V4] } else { shown.into_iter().collect() }
}

/// Why an address may not be an endpoint here.
fn refusal(address: IpAddr, cidrs: &[IpNet]) -> Option<String> {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if address.is_unspecified() || address.is_multicast() || link_local {
        return Some(
            "unspecified, link-local and multicast addresses are never endpoints".to_owned(),
        );
    }
    if cidrs.is_empty() || cidrs.iter().any(|cidr| cidr.contains(&address)) {
        return None;
    }
    let cidrs = cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Some(format!("the cluster declares {cidrs}"))
}

#[cfg(test)]
mod tests;
