//! Builders of services and catalogs for this crate's tests.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use tombolo_federation::catalog::{Catalog, Cluster, Endpoint, Service, ServiceExport};
use tombolo_federation::names::{ClusterId, ServiceKey};
use tombolo_federation::record::{
    self, EndpointPort, IpFamily, Protocol, ServicePort, ServiceType,
};

pub(crate) fn cluster(id: &str) -> ClusterId {
    id.parse().unwrap()
}

pub(crate) fn key(text: &str) -> ServiceKey {
    let (namespace, name) = text.split_once('/').unwrap();
    ServiceKey { namespace: namespace.parse().unwrap(), name: name.parse().unwrap() }
}

pub(crate) fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A service with port `http=80`, exported by cluster `<region>-c` of each region in use.
pub(crate) struct ServiceBuilder {
    key: ServiceKey,
    ports: Vec<ServicePort>,
    endpoints: String,
    ip: Box<dyn Fn(u32) -> String>,
    target_port: u16,
    only: BTreeMap<ClusterId, Vec<ServicePort>>,
}

pub(crate) fn service(name: &str) -> ServiceBuilder {
    ServiceBuilder {
        key: key(name),
        ports: ports(&["http=80"]),
        endpoints: String::new(),
        ip: Box::new(|n| format!("10.0.{}.{}", n / 256, n % 256)),
        target_port: 8080,
        only: BTreeMap::new(),
    }
}

/// Ports as `name=number[/PROTOCOL][@appProtocol]`.
pub(crate) fn ports(texts: &[&str]) -> Vec<ServicePort> {
    let port = |text: &&str| {
        let (name, rest) = text.split_once('=').unwrap();
        let (rest, app) = rest.split_once('@').unwrap_or((rest, ""));
        let (number, protocol) = rest.split_once('/').unwrap_or((rest, "TCP"));
        ServicePort {
            name: name.into(),
            protocol: Protocol::parse(protocol).unwrap(),
            port: number.parse().unwrap(),
            app_protocol: app.into(),
        }
    };
    texts.iter().map(port).collect()
}

pub(crate) fn endpoint_ports(texts: &[&str]) -> Arc<[EndpointPort]> {
    let port = |p: ServicePort| EndpointPort {
        name: p.name,
        protocol: p.protocol,
        port: p.port,
        app_protocol: String::new(),
    };
    ports(texts).into_iter().map(port).collect()
}

impl ServiceBuilder {
    pub(crate) fn ports(mut self, texts: &[&str]) -> Self {
        self.ports = ports(texts);
        self
    }

    /// As `region/zone/number[!|?]`: `!` was ready, `?` never was. The number becomes 10.0.x.y.
    pub(crate) fn endpoints(mut self, texts: &str) -> Self {
        texts.clone_into(&mut self.endpoints);
        self
    }

    /// Numbers become `127.0.0.<number>`, at this port.
    pub(crate) fn on_loopback(mut self, port: u16) -> Self {
        self.ip = Box::new(|n| format!("127.0.0.{n}"));
        self.target_port = port;
        self
    }

    pub(crate) fn exports_only(mut self, id: &str, texts: &[&str]) -> Self {
        self.only.insert(cluster(id), ports(texts));
        self
    }

    pub(crate) fn build(self) -> Service {
        let mut endpoints: Vec<_> =
            self.endpoints.split_whitespace().map(|text| self.endpoint(text)).collect();
        endpoints.sort();
        let mut clusters: Vec<_> =
            endpoints.iter().map(|e: &Endpoint| (e.cluster.clone(), e.region.clone())).collect();
        clusters.sort();
        clusters.dedup();
        let export = |(cluster, region): (ClusterId, _)| ServiceExport {
            ports: self.only.get(&cluster).unwrap_or(&self.ports).clone(),
            precedence: "2026-01-01T00:00:00Z".parse().unwrap(),
            cluster,
            region,
        };
        Service {
            key: self.key.clone(),
            service_type: ServiceType::ClusterSetIP,
            ports: self.ports.clone(),
            session_affinity: String::new(),
            session_affinity_timeout: None,
            internal_traffic_policy: String::new(),
            traffic_distribution: String::new(),
            ip_families: vec![IpFamily::V4],
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            conflicts: Vec::new(),
            exports: clusters.into_iter().map(export).collect(),
            endpoints,
        }
    }

    fn endpoint(&self, text: &str) -> Endpoint {
        let parts: Vec<&str> = text.split('/').collect();
        let [region, zone, number] = parts[..] else { panic!("{text}: region/zone/number") };
        let (ready, was_ready) = match number.chars().last().unwrap() {
            '!' | '%' => (false, true),
            '?' => (false, false),
            _ => (true, true),
        };
        let number: u32 = number.trim_end_matches(['!', '?', '%']).parse().unwrap();
        let listens = |port: &ServicePort| EndpointPort {
            name: port.name.clone(),
            protocol: port.protocol,
            port: self.target_port,
            app_protocol: String::new(),
        };
        Endpoint {
            cluster: cluster(&format!("{region}-c")),
            region: region.parse().unwrap(),
            network: "net".into(),
            degraded: text.ends_with('%'),
            endpoint: record::Endpoint {
                address: (self.ip)(number).parse().unwrap(),
                ready,
                serving: ready,
                terminating: false,
                was_ready,
                zone: zone.into(),
                hostname: String::new(),
                node: String::new(),
                target: String::new(),
                service_account: String::new(),
                meshed: false,
            },
            ports: self.ports.iter().map(listens).collect(),
        }
    }
}

/// A complete catalog of these services, with clusters `us-c` and `eu-c` on network `net`.
pub(crate) fn catalog(generation: u64, services: Vec<Service>) -> Catalog {
    let mut catalog = Catalog::empty();
    catalog.generation = generation;
    catalog.complete = true;
    for region in ["us", "eu"] {
        let record = record::Cluster { network: "net".into(), ..record::Cluster::default() };
        let entry = Cluster { region: region.parse().unwrap(), record };
        catalog.clusters.insert_mut(cluster(&format!("{region}-c")), Arc::new(entry));
    }
    for service in services {
        catalog.services.insert_mut(service.key.clone(), Arc::new(service));
    }
    catalog
}
