//! Why an answer is what it is.

use serde::Serialize;

/// Why an answer is what it is; `explain` says it in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// There are records.
    Found,
    /// The class is not IN.
    OtherClass,
    /// The name is not in the zone.
    OtherZone,
    /// A zone transfer.
    Transfer,
    /// There has been no catalog yet.
    NotReady,
    /// Not found, in a catalog that does not hold everything yet.
    Incomplete,
    /// A name of a shape that nothing in the zone has.
    NoSuchShape,
    /// No cluster has the namespace.
    NoSuchNamespace,
    /// No cluster exports the service.
    NoSuchService,
    /// The service has no named port like this.
    NoSuchPort,
    /// No ready endpoint within reach has this name.
    NoSuchHost,
    /// The service has no ready endpoint within reach.
    NoReadyEndpoint,
    /// Endpoints are ready within reach, but none serves the port, or any port of the service.
    PortNotServed,
    /// The endpoints' ports are not the service's: only SRV tells them.
    PortsDiffer,
    /// The name exists, with records of other types.
    NoSuchType,
    /// The name exists, only names below it have records.
    EmptyName,
}

impl Reason {
    /// Whether what a catalog does not hold yet may lift this: then an incomplete catalog must not
    /// say it. The type of the records that there are, and ports that differ, are known.
    pub(super) fn may_pass(self) -> bool {
        matches!(self, Self::NoReadyEndpoint | Self::PortNotServed)
    }
}
