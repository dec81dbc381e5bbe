//! The keys of stored records, a wire format.
//!
//! `/tombolo/v1/<region>/<cluster or _>/<kind>/<namespace or _>/<name>[/<part>]`. Owns: the one
//! place that writes and reads them. Promises: [`Key`]s print to distinct texts and read back to
//! themselves, so that no two objects can meet in one key (joining by '-' collides).

use std::fmt;
use std::str::FromStr;

use crate::names::{ClusterId, NamespaceName, ObjectName, Owner, RegionName, ServiceKey};

/// Where all records live.
pub const PREFIX: &str = "/tombolo/v1/";
/// Facts of one region's own store that nobody else reads and no mirror copies: sessions, resume
/// points, election, joins, completeness.
pub const LOCAL_PREFIX: &str = "/tombolo/local/v1/";

/// What a record is about; also the order in which kinds are sent, so that a service's name and
/// ports are there before its endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Addresses, distances and levels of a region.
    Region,
    /// Identity, network and address ranges of a cluster.
    Cluster,
    /// A namespace exists in a cluster.
    Namespace,
    /// A service is exported by a cluster.
    Export,
    /// One `EndpointSlice` of an exported service.
    Endpoints,
    /// Clusterset IPs of an imported service.
    Import,
    /// A failover policy.
    Policy,
    /// A nonce that shows how old everything behind it is.
    Beacon,
    /// An operator's approval, leave or activation.
    Decision,
}

impl Kind {
    /// All kinds, in their order.
    pub const ALL: [Self; 9] = [
        Self::Region,
        Self::Cluster,
        Self::Namespace,
        Self::Export,
        Self::Endpoints,
        Self::Import,
        Self::Policy,
        Self::Beacon,
        Self::Decision,
    ];

    /// The kind's segment in a key.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Region => "region",
            Self::Cluster => "cluster",
            Self::Namespace => "namespace",
            Self::Export => "export",
            Self::Endpoints => "endpoints",
            Self::Import => "import",
            Self::Policy => "policy",
            Self::Beacon => "beacon",
            Self::Decision => "decision",
        }
    }

    /// The schema level that brought the kind: readers of a lower one do not know it, so it is
    /// neither sent to them nor counted in the digests that they compare.
    #[must_use]
    pub fn since_level(self) -> u32 {
        match self {
            Self::Region
            | Self::Cluster
            | Self::Namespace
            | Self::Export
            | Self::Endpoints
            | Self::Import
            | Self::Policy
            | Self::Beacon => 1,
            Self::Decision => 2,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A text that names no kind of record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no kind of record that this version knows")]
pub struct UnknownKind(String);

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        let known = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        known.ok_or_else(|| UnknownKind(text.chars().take(64).collect()))
    }
}

/// The key of one record.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The only writer of the record.
    pub owner: Owner,
    /// What the record is about.
    pub kind: Kind,
    /// The namespace of the object, if it has one.
    pub namespace: Option<NamespaceName>,
    /// The name of the object.
    pub name: ObjectName,
    /// Tells several records of one object apart: an `EndpointSlice` of a service.
    pub part: Option<ObjectName>,
}

/// Why a text is no record key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a record key: {why}")]
pub struct InvalidKey {
    text: String,
    why: String,
}

impl Key {
    /// The key of a record about the owner itself: `region`, `cluster` and `beacon` records.
    #[must_use]
    pub fn of_owner(owner: Owner, kind: Kind) -> Self {
        let name = match &owner.cluster {
            Some(cluster) => cluster.into(),
            None => (&owner.region).into(),
        };
        Self { owner, kind, namespace: None, name, part: None }
    }

    /// The key of an object within a namespace, `part` of it.
    #[must_use]
    pub fn of_service(
        owner: Owner,
        kind: Kind,
        service: &ServiceKey,
        part: Option<ObjectName>,
    ) -> Self {
        let namespace = Some(service.namespace.clone());
        Self { owner, kind, namespace, name: (&service.name).into(), part }
    }

    /// The key of a namespace's record.
    #[must_use]
    pub fn of_namespace(owner: Owner, namespace: &NamespaceName) -> Self {
        let name = namespace.into();
        Self { owner, kind: Kind::Namespace, namespace: None, name, part: None }
    }

    /// The namespace that the record is about: its object's, or the one that it describes.
    #[must_use]
    pub fn about(&self) -> Option<NamespaceName> {
        match self.kind {
            Kind::Namespace => self.name.as_str().parse().ok(),
            _ => self.namespace.clone(),
        }
    }

    /// The service that the record is about, for `export`, `endpoints` and `import` records.
    #[must_use]
    pub fn service(&self) -> Option<ServiceKey> {
        match self.kind {
            Kind::Export | Kind::Endpoints | Kind::Import => Some(ServiceKey {
                namespace: self.namespace.clone()?,
                name: self.name.as_str().parse().ok()?,
            }),
            _ => None,
        }
    }

    /// What all keys of `owner` begin with, the closing '/' included.
    #[must_use]
    pub fn owner_prefix(owner: &Owner) -> String {
        format!("{PREFIX}{owner}/")
    }

    /// What all keys of the clusters and of the leader of `region` begin with.
    #[must_use]
    pub fn region_prefix(region: &RegionName) -> String {
        format!("{PREFIX}{region}/")
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let namespace = self.namespace.as_ref().map_or("_", NamespaceName::as_str);
        write!(f, "{PREFIX}{}/{}/{namespace}/{}", self.owner, self.kind, self.name)?;
        match &self.part {
            Some(part) => write!(f, "/{part}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Key {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        parse(text).map_err(|why| InvalidKey { text: text.chars().take(300).collect(), why })
    }
}

fn parse(text: &str) -> Result<Key, String> {
    let rest = text.strip_prefix(PREFIX).ok_or_else(|| format!("does not begin with {PREFIX}"))?;
    let segments: Vec<&str> = rest.split('/').collect();
    let (region, cluster, kind, namespace, name, part) = match segments[..] {
        [region, cluster, kind, namespace, name] => (region, cluster, kind, namespace, name, None),
        [region, cluster, kind, namespace, name, part] => {
            (region, cluster, kind, namespace, name, Some(part))
        }
        _ => return Err(format!("has {} segments, expected 5 or 6", segments.len())),
    };
    let owner = parse_owner(region, cluster)?;
    let namespace = match namespace {
        "_" => None,
        text => Some(text.parse::<NamespaceName>().map_err(|e| e.to_string())?),
    };
    let key = Key {
        owner,
        kind: kind.parse().map_err(|e: UnknownKind| e.to_string())?,
        namespace,
        name: name.parse().map_err(|e: crate::names::InvalidName| e.to_string())?,
        part: part
            .map(str::parse)
            .transpose()
            .map_err(|e: crate::names::InvalidName| e.to_string())?,
    };
    check_shape(&key)?;
    Ok(key)
}

fn parse_owner(region: &str, cluster: &str) -> Result<Owner, String> {
    let region: RegionName =
        region.parse().map_err(|e: crate::names::InvalidName| e.to_string())?;
    if cluster == "_" {
        return Ok(Owner::region(region));
    }
    let cluster: ClusterId =
        cluster.parse().map_err(|e: crate::names::InvalidName| e.to_string())?;
    if !cluster.fits(&region) {
        return Err(format!("cluster {cluster} is not one of region {region}"));
    }
    Ok(Owner::cluster(region, cluster))
}

/// Each kind has one shape of key, so that one fact cannot stand under two keys.
fn check_shape(key: &Key) -> Result<(), String> {
    let by_region = matches!(key.kind, Kind::Region | Kind::Decision);
    let by_either = key.kind == Kind::Beacon;
    if !by_either && by_region != key.owner.cluster.is_none() {
        return Err(format!("a {} record does not belong to {}", key.kind, key.owner));
    }
    let of_owner = matches!(key.kind, Kind::Region | Kind::Cluster | Kind::Beacon);
    if of_owner && *key != Key::of_owner(key.owner.clone(), key.kind) {
        return Err(format!("a {} record is named after its owner {}", key.kind, key.owner));
    }
    let of_service = matches!(key.kind, Kind::Export | Kind::Endpoints | Kind::Import);
    if of_service && key.service().is_none() {
        return Err(format!("a {} record names a namespace and a service", key.kind));
    }
    if (key.kind == Kind::Endpoints) != key.part.is_some() {
        return Err("endpoints records, and no others, have a part".to_owned());
    }
    if key.kind == Kind::Namespace
        && (key.namespace.is_some() || key.name.as_str().parse::<NamespaceName>().is_err())
    {
        return Err("a namespace record is named after a namespace".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, why: &str) {
        match text.parse::<Key>() {
            Ok(key) => {
                assert_eq!(why, "", "{text} was read");
                assert_eq!(key.to_string(), text);
            }
            Err(error) => {
                assert!(!why.is_empty() && error.to_string().contains(why), "{text}: {error}");
            }
        }
    }

    #[test]
    fn keys_read_back_or_say_why_not() {
        check("/tombolo/v1/us-west1/_/region/_/us-west1", "");
        check("/tombolo/v1/us-west1/us-west1-a/cluster/_/us-west1-a", "");
        check("/tombolo/v1/us-west1/us-west1-a/namespace/_/shop", "");
        check("/tombolo/v1/us-west1/us-west1-a/export/shop/checkout", "");
        check("/tombolo/v1/us-west1/us-west1-a/endpoints/shop/checkout/checkout-x.y", "");
        check("/tombolo/v1/us-west1/us-west1-a/beacon/_/us-west1-a", "");
        check("/tombolo/v2/us-west1/_/region/_/us-west1", "does not begin with");
        check("/tombolo/v1/us-west1/eu-a/export/shop/checkout", "not one of region");
        check("/tombolo/v1/us-west1/us-west1-a/gizmo/shop/checkout", "no kind");
        check("/tombolo/v1/us-west1/us-west1-a/export/shop/..", "object name");
        check("/tombolo/v1/us-west1/us-west1-a/export/shop", "segments");
        check("/tombolo/v1/us-west1/us-west1-a/export/_/checkout", "names a namespace");
        check("/tombolo/v1/us-west1/_/export/shop/checkout", "does not belong");
        check("/tombolo/v1/us-west1/us-west1-a/endpoints/shop/checkout", "have a part");
        check("/tombolo/v1/us-west1/us-west1-a/export/shop/checkout/x", "have a part");
        check("/tombolo/v1/us-west1/us-west1-a/beacon/_/us-west1-b", "named after its owner");
        check("/tombolo/v1/us-west1/us-west1-a/namespace/shop/shop", "named after a namespace");
    }
}
