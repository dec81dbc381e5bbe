//! Names and ids, parsed once at the edge.
//!
//! Owns: every identifier that crosses a process boundary. A value of one of these types *is* the
//! proof that it was checked; the fields are private and `FromStr` is the only way in. Rules are
//! those of RFC 1123 labels and Kubernetes' object names. Left to others: what a name means.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text is not the name it was meant to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {what}: expected {expected}")]
pub struct InvalidName {
    what: &'static str,
    expected: &'static str,
    text: String,
}

const LABEL: &str =
    "a DNS label: 1 to 63 of a-z, 0-9 and '-', starting and ending with a letter or digit";
const SUBDOMAIN: &str = "DNS labels joined by '.', at most 253 characters";

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $check:expr, $expected:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(Arc<str>);

        impl $type {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                if $check(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(InvalidName { what: $what, expected: $expected, text: shorten(text) })
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

name!(
    /// A failure domain with its own control plane, for example `us-west1`.
    RegionName, "region name", is_dns_label, LABEL
);
name!(
    /// A cluster's id, `<region>-<name>`, one DNS label and unique in the mesh. Its region cannot
    /// be read off it (`us-west1-a` could be cluster `west1-a` of region `us`), so keep it beside.
    ClusterId, "cluster id", is_dns_label, LABEL
);
name!(
    /// A cluster's name within its region.
    ClusterName, "cluster name", is_dns_label, LABEL
);
name!(
    /// The name of a Kubernetes namespace.
    NamespaceName, "namespace name", is_dns_label, LABEL
);
name!(
    /// The name of a Service. RFC 1123: KEP-5311 lets it start with a digit.
    ServiceName, "service name", is_dns_label, LABEL
);
name!(
    /// The name of any other Kubernetes object, such as an `EndpointSlice`. Kubernetes bounds the
    /// whole, not each label of it.
    ObjectName, "object name", is_object_name, SUBDOMAIN
);
name!(
    /// The DNS domain that names a mesh; regions are trust domains below it.
    MeshDomain, "mesh domain", is_dns_subdomain, SUBDOMAIN
);

macro_rules! is_object_name_too {
    ($($type:ident),*) => {$(
        impl From<&$type> for ObjectName {
            /// A label is a subdomain.
            fn from(name: &$type) -> Self {
                Self(Arc::clone(&name.0))
            }
        }
    )*};
}

is_object_name_too!(RegionName, ClusterId, NamespaceName, ServiceName);

impl ClusterId {
    /// The id of the cluster `name` in `region`.
    ///
    /// # Errors
    /// When both together are longer than a DNS label's 63 characters.
    pub fn of(region: &RegionName, name: &ClusterName) -> Result<Self, InvalidName> {
        format!("{region}-{name}").parse()
    }

    /// Whether this id can belong to `region`, that is, begins with `<region>-`.
    #[must_use]
    pub fn fits(&self, region: &RegionName) -> bool {
        self.0
            .strip_prefix(region.as_str())
            .is_some_and(|rest| rest.starts_with('-') && rest.len() > 1)
    }
}

/// A service's namespace and name: the identity of a service in the whole mesh (namespace
/// sameness, KEP-1645).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceKey {
    /// The namespace, one and the same in every cluster.
    pub namespace: NamespaceName,
    /// The Service's name.
    pub name: ServiceName,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.namespace, self.name))
    }
}

impl fmt::Debug for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for ServiceKey {
    type Err = InvalidName;

    /// Reads what `Display` writes: `<namespace>/<name>`.
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid =
            || InvalidName { what: "service", expected: "<namespace>/<name>", text: shorten(text) };
        let (namespace, name) = text.split_once('/').ok_or_else(invalid)?;
        Ok(Self { namespace: namespace.parse()?, name: name.parse()? })
    }
}

/// Who alone may write a record: a cluster's agent, or a region's leader.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// The region that the owner is, or belongs to.
    pub region: RegionName,
    /// The cluster, or `None` for the region itself.
    pub cluster: Option<ClusterId>,
}

impl Owner {
    /// The region's own records.
    #[must_use]
    pub fn region(region: RegionName) -> Self {
        Self { region, cluster: None }
    }

    /// The records of a cluster of `region`.
    #[must_use]
    pub fn cluster(region: RegionName, cluster: ClusterId) -> Self {
        Self { region, cluster: Some(cluster) }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cluster {
            Some(cluster) => write!(f, "{}/{cluster}", self.region),
            None => write!(f, "{}/_", self.region),
        }
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Owner {
    type Err = InvalidName;

    /// Reads what `Display` writes: `<region>/<cluster id or _>`.
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = || InvalidName {
            what: "owner",
            expected: "<region>/<cluster id>, the id beginning with the region, or <region>/_",
            text: shorten(text),
        };
        let (region, cluster) = text.split_once('/').ok_or_else(invalid)?;
        let region: RegionName = region.parse()?;
        if cluster == "_" {
            return Ok(Self::region(region));
        }
        let cluster: ClusterId = cluster.parse()?;
        if cluster.fits(&region) { Ok(Self::cluster(region, cluster)) } else { Err(invalid()) }
    }
}

impl Serialize for Owner {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Owner {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// RFC 1123 label, lower case as Kubernetes wants it.
#[must_use]
pub fn is_dns_label(text: &str) -> bool {
    text.len() <= 63 && is_long_label(text)
}

fn is_long_label(text: &str) -> bool {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.iter().all(|b| alphanumeric(b) || *b == b'-')
        && bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
}

fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

fn is_object_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_long_label)
}

/// Errors quote what they refuse, but never a megabyte of it.
fn shorten(text: &str) -> String {
    if text.chars().count() <= 100 {
        return text.to_owned();
    }
    text.chars().take(100).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        for good in ["a", "a-b", "0a", "us-west1", &"x".repeat(63)] {
            assert!(is_dns_label(good), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", "ä", "a/b", &"x".repeat(64)] {
            assert!(!is_dns_label(bad), "{bad}");
        }
    }

    #[test]
    fn a_cluster_id_fits_its_region_only() {
        let region: RegionName = "us-west1".parse().unwrap();
        let id = ClusterId::of(&region, &"a".parse().unwrap()).unwrap();
        assert_eq!(id.as_str(), "us-west1-a");
        assert!(id.fits(&region));
        assert!(!id.fits(&"us-west".parse().unwrap()));
        assert!(!"us-west1-".parse::<ClusterId>().is_ok_and(|id| id.fits(&region)));
    }

    #[test]
    fn owners_read_back() {
        for text in ["us-west1/_", "us-west1/us-west1-a"] {
            assert_eq!(text.parse::<Owner>().unwrap().to_string(), text);
        }
        for bad in ["us-west1", "us-west1/eu-a", "/_", "us-west1/"] {
            assert!(bad.parse::<Owner>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_error_names_the_text_and_stays_short() {
        let error = "X".repeat(5000).parse::<RegionName>().unwrap_err().to_string();
        assert!(error.contains("region name") && error.len() < 400, "{error}");
    }
}
