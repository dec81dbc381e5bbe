//! What everybody who serves a merged service asks of it.

use std::collections::BTreeMap;

use super::{Endpoint, Service, ServiceExport};
use crate::names::ClusterId;
use crate::record::{ServicePort, ServiceType};

impl Service {
    /// The endpoints that take traffic, wherever they are.
    pub fn ready_endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.iter().filter(|endpoint| endpoint.endpoint.ready)
    }

    /// The endpoints that serve `port`, one of [`Service::ports`], each with the number on which
    /// it does, also those that are not ready. Traffic for `port` must not go to any other: their
    /// clusters do not expose it.
    pub fn serving<'a>(
        &'a self,
        port: &ServicePort,
    ) -> impl Iterator<Item = (&'a Endpoint, u16)> + use<'a> {
        let protocol = port.protocol;
        let own = |export: &'a ServiceExport| Some((&export.cluster, self.own_name(export, port)?));
        let names: BTreeMap<&ClusterId, &str> = self.exports.iter().filter_map(own).collect();
        self.endpoints.iter().filter_map(move |endpoint| {
            let name = names.get(&endpoint.cluster)?;
            Some((endpoint, endpoint.port(name, protocol)?))
        })
    }

    /// What the cluster itself calls the service's `port`, if it exposes it. Behind an address of
    /// its own a port is its number, and the cluster may have another name for it; without one,
    /// clients look the name up and are told the endpoint's number, so the name is what counts.
    fn own_name<'a>(&self, export: &'a ServiceExport, port: &ServicePort) -> Option<&'a str> {
        let exposes = |own: &&ServicePort| {
            own.protocol == port.protocol
                && match self.service_type {
                    ServiceType::ClusterSetIP => own.port == port.port,
                    ServiceType::Headless => own.name == port.name,
                }
        };
        export.ports.iter().find(exposes).map(|own| own.name.as_str())
    }
}
