//! SPIFFE IDs, trust domains, and what they mean in this mesh.
//!
//! Owns: the strict reading of SPIFFE IDs ([SPIFFE-ID] section 2) and their mapping to the three
//! kinds of identity there are. A [`SpiffeId`] is any ID that the specification allows; an
//! [`Identity`] is one that this mesh gives out. Left to others: whether the bearer proved it.
//! Turned down: percent-decoding or normalising of any kind; what is not in its one form is not
//! an ID (and so two IDs are the same when their bytes are).
//!
//! [SPIFFE-ID]: https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use jiff::Timestamp;
use tombolo_federation::names::{ClusterId, MeshDomain, NamespaceName, ObjectName, RegionName};

const SCHEME: &str = "spiffe://";

/// Why a text is not a SPIFFE ID, or not one of this mesh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {wanted}: {reason}")]
pub struct InvalidId {
    wanted: &'static str,
    reason: &'static str,
    text: String,
}

impl InvalidId {
    fn spiffe(reason: &'static str, text: &str) -> Self {
        Self { wanted: "a SPIFFE ID", reason, text: shorten(text) }
    }

    fn mesh(reason: &'static str, text: &str) -> Self {
        Self { wanted: "an identity of this mesh", reason, text: shorten(text) }
    }
}

/// A SPIFFE trust domain. Ours are `<region>.<mesh domain>`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The trust domain of `region` in `mesh`.
    ///
    /// # Errors
    /// When both together are longer than the 255 bytes that SPIFFE allows.
    pub fn of(region: &RegionName, mesh: &MeshDomain) -> Result<Self, InvalidId> {
        format!("{region}.{mesh}").parse()
    }

    /// The region whose trust domain this is in `mesh`; `None` in any other mesh.
    #[must_use]
    pub fn region(&self, mesh: &MeshDomain) -> Option<RegionName> {
        self.0.strip_suffix(mesh.as_str())?.strip_suffix('.')?.parse().ok()
    }

    /// The trust domain as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The ID of the trust domain itself, which signing certificates carry.
    #[must_use]
    pub fn spiffe_id(&self) -> SpiffeId {
        SpiffeId { trust_domain: self.clone(), path: "".into() }
    }
}

impl FromStr for TrustDomain {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let allowed =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if text.is_empty() {
            return Err(InvalidId::spiffe("the trust domain is empty", text));
        }
        if text.len() > 255 {
            return Err(InvalidId::spiffe("the trust domain is longer than 255 bytes", text));
        }
        if !text.bytes().all(allowed) {
            let reason = "a trust domain is made of a-z, 0-9, '.', '-' and '_'";
            return Err(InvalidId::spiffe(reason, text));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// A SPIFFE ID, in the only form the specification allows.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    path: Arc<str>,
}

impl SpiffeId {
    /// The trust domain: whose bundle decides about this ID.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The path with its leading `/`, or nothing for the trust domain itself.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl FromStr for SpiffeId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        if text.len() > 2048 {
            return Err(InvalidId::spiffe("longer than 2048 bytes", text));
        }
        let rest = text
            .strip_prefix(SCHEME)
            .ok_or_else(|| InvalidId::spiffe("does not begin with spiffe://", text))?;
        let end = rest.find('/').unwrap_or(rest.len());
        let (domain, path) = rest.split_at(end);
        check_path(path).map_err(|reason| InvalidId::spiffe(reason, text))?;
        let trust_domain =
            domain.parse().map_err(|e: InvalidId| InvalidId::spiffe(e.reason, text))?;
        Ok(Self { trust_domain, path: path.into() })
    }
}

fn check_path(path: &str) -> Result<(), &'static str> {
    let Some(segments) = path.strip_prefix('/') else {
        return Ok(());
    };
    for segment in segments.split('/') {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        match segment {
            "" => return Err("the path has an empty segment"),
            "." | ".." => return Err("the path has a relative segment"),
            _ if !segment.bytes().all(allowed) => {
                return Err("a path is made of letters, digits, '.', '-' and '_'");
            }
            _ => {}
        }
    }
    Ok(())
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}{}", self.trust_domain, self.path)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Who somebody is in this mesh. The mesh itself is the context: nothing of another mesh is
/// ever verified.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Identity {
    /// A workload: `/ns/<namespace>/sa/<service account>`.
    Workload {
        /// The region whose CA vouches for it.
        region: RegionName,
        /// Its namespace.
        namespace: NamespaceName,
        /// Its service account.
        service_account: ObjectName,
    },
    /// A region's control plane: `/tombolo/region`.
    ControlPlane {
        /// Its region.
        region: RegionName,
    },
    /// A cluster's agent: `/tombolo/agent/<cluster>`.
    Agent {
        /// The cluster's region.
        region: RegionName,
        /// The cluster.
        cluster: ClusterId,
    },
}

impl Identity {
    /// The region whose CA vouches for this identity.
    #[must_use]
    pub fn region(&self) -> &RegionName {
        match self {
            Self::Workload { region, .. }
            | Self::ControlPlane { region }
            | Self::Agent { region, .. } => region,
        }
    }

    /// The SPIFFE ID of this identity in `mesh`.
    ///
    /// # Errors
    /// When region and mesh domain are together too long for a trust domain.
    pub fn spiffe_id(&self, mesh: &MeshDomain) -> Result<SpiffeId, InvalidId> {
        let path = match self {
            Self::Workload { namespace, service_account, .. } => {
                format!("/ns/{namespace}/sa/{service_account}")
            }
            Self::ControlPlane { .. } => "/tombolo/region".to_owned(),
            Self::Agent { cluster, .. } => format!("/tombolo/agent/{cluster}"),
        };
        let trust_domain = TrustDomain::of(self.region(), mesh)?;
        Ok(SpiffeId { trust_domain, path: path.into() })
    }

    /// What `id` means in `mesh`.
    ///
    /// # Errors
    /// When its trust domain is not of `mesh`, or its path is none that the mesh gives out.
    pub fn of(id: &SpiffeId, mesh: &MeshDomain) -> Result<Self, InvalidId> {
        let invalid = |reason| InvalidId::mesh(reason, &id.to_string());
        let region = id
            .trust_domain
            .region(mesh)
            .ok_or_else(|| invalid("its trust domain is not <region>.<mesh domain>"))?;
        let segments: Vec<&str> = id.path.split('/').skip(1).collect();
        match segments[..] {
            ["ns", namespace, "sa", service_account] => Ok(Self::Workload {
                region,
                namespace: namespace.parse().map_err(|_| invalid("no namespace name"))?,
                service_account: service_account
                    .parse()
                    .map_err(|_| invalid("no service account name"))?,
            }),
            ["tombolo", "region"] => Ok(Self::ControlPlane { region }),
            ["tombolo", "agent", cluster] => {
                let cluster: ClusterId = cluster.parse().map_err(|_| invalid("no cluster id"))?;
                if cluster.fits(&region) {
                    Ok(Self::Agent { region, cluster })
                } else {
                    Err(invalid("the cluster is not of that region"))
                }
            }
            _ => Err(invalid(
                "the path is none of /ns/<namespace>/sa/<account>, /tombolo/region, \
                 /tombolo/agent/<cluster>",
            )),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload { region, namespace, service_account } => {
                write!(f, "workload {namespace}/{service_account} of {region}")
            }
            Self::ControlPlane { region } => write!(f, "control plane of {region}"),
            Self::Agent { region, cluster } => write!(f, "agent of {cluster} in {region}"),
        }
    }
}

/// Where a leaf's holder runs, as the issuer saw it. Written `<cluster>` or `<cluster>/<pod UID>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The cluster. Not necessarily of the issuing region: a stand-in issues for others.
    pub cluster: ClusterId,
    /// The pod's UID.
    pub pod: Option<PodUid>,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.pod {
            Some(pod) => write!(f, "{}/{pod}", self.cluster),
            None => write!(f, "{}", self.cluster),
        }
    }
}

impl FromStr for Origin {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = || InvalidId {
            wanted: "an origin",
            reason: "expected <cluster id> or <cluster id>/<pod UID>",
            text: shorten(text),
        };
        let (cluster, pod) = match text.split_once('/') {
            Some((cluster, pod)) => (cluster, Some(pod.parse()?)),
            None => (text, None),
        };
        Ok(Self { cluster: cluster.parse().map_err(|_| invalid())?, pod })
    }
}

/// A pod's UID: 1 to 63 letters, digits and `-` (Kubernetes writes UUIDs, static pods hashes).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodUid(Arc<str>);

impl PodUid {
    /// The UID as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PodUid {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if (1..=63).contains(&text.len()) && text.bytes().all(allowed) {
            return Ok(Self(text.into()));
        }
        let reason = "expected 1 to 63 letters, digits and '-'";
        Err(InvalidId { wanted: "a pod UID", reason, text: shorten(text) })
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What a verified certificate says about a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Who it is.
    pub identity: Identity,
    /// The same as the certificate has it.
    pub id: SpiffeId,
    /// Where it runs, if its certificate says so.
    pub origin: Option<Origin>,
    /// The certificate's serial number, in hexadecimal, as the issuer's audit log has it.
    pub serial: String,
    /// When the certificate begins.
    pub not_before: Timestamp,
    /// When the certificate ends. A connection outlives it unless somebody looks.
    pub expires: Timestamp,
}

/// Errors quote what they refuse, but never a megabyte of it.
fn shorten(text: &str) -> String {
    if text.chars().count() <= 100 {
        return text.to_owned();
    }
    text.chars().take(100).chain(['…']).collect()
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
