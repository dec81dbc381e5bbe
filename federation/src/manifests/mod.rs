//! A cluster that is a directory of Kubernetes manifests.
//!
//! Owns: reading every `*.yaml`, `*.yml` and `*.json` below a directory, what of it the cluster
//! wants to publish ([`Desired`]), and following the directory as it is edited ([`Source`]).
//! Promises: what cannot be used is a [`Problem`] that names file, document, object and field, and
//! never stops the rest; an object that was good and cannot be read any more stays as it was; a
//! directory that is missing, unreadable or empty keeps what it said, and says so
//! ([`Listing::lost`]); no input panics. An edit shows within 300 ms; what is missing while the
//! directory is still being written to is told once it keeps still.
//!
//! Which removals somebody made, and which only happened, is [`Guarded`]'s to say. Leaves to others:
//! the cluster's own record and its beacon, publishing, and whether removals that nobody made are
//! plausible (the guard). Turned down: a general YAML schema of all of Kubernetes (kinds that
//! are not read are counted and named, whatever they hold); polling alone (too slow to edit by);
//! one task per file.

mod contents;
mod guarded;
mod object;
mod parse;
mod problem;
mod reader;
mod scan;
mod sniff;
mod source;
mod split;
mod translate;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

pub use self::guarded::{GUARDED, Guarded};
pub use self::problem::{ObjectRef, Place, Problem, Reason};
pub use self::source::{Source, SourceError};
use crate::key::Key;
use crate::names::{ClusterId, Owner, RegionName, ServiceKey};
use crate::record::Body;

/// How a directory becomes a cluster's records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    owner: Owner,
    /// Endpoints have to be in one of these; empty accepts all addresses but unspecified,
    /// link-local and multicast ones, which are refused in any case.
    pub pod_cidrs: Vec<IpNet>,
    /// Export every Service but `default/kubernetes` and those of type `ExternalName`, with or
    /// without a `ServiceExport`.
    pub export_all: bool,
    /// When the region recorded that the cluster joined, once that is known. Precedence is the
    /// later of this and an object's `creationTimestamp` (manifests seldom have one), and the Unix
    /// epoch while neither is known: do not publish exports before it is set.
    pub joined: Option<Timestamp>,
    /// Labels of Namespaces that may leave the cluster; none by default.
    pub namespace_labels: BTreeSet<String>,
}

impl Options {
    /// Only what has a `ServiceExport`, from any usable address.
    #[must_use]
    pub fn new(region: RegionName, cluster: ClusterId) -> Self {
        Self {
            owner: Owner::cluster(region, cluster),
            pod_cidrs: Vec::new(),
            export_all: false,
            joined: None,
            namespace_labels: BTreeSet::new(),
        }
    }
}

/// What a directory says its cluster's records should be.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    /// The directory was read at least once. Until then nothing is known: publish nothing.
    pub complete: bool,
    /// Something could not be read of which nothing good was ever seen in the life of this
    /// source, be it a document, a file or a directory, or a link that leads nowhere. A record that
    /// only an earlier run of the program published may still be wanted there.
    pub gaps: bool,
    /// How the directory itself was found.
    pub listing: Listing,
    /// All `namespace`, `export` and `endpoints` records.
    pub records: BTreeMap<Key, Body>,
    /// What was found.
    pub counts: Counts,
    /// What is not used as it stands, by file.
    pub problems: Vec<Problem>,
    /// How many problems more there are than `problems` lists.
    pub more_problems: usize,
    /// Exported services that have no usable endpoint.
    pub services_without_endpoints: Vec<ServiceKey>,
}

/// A look at a directory. Each opens it anew, so that two of them are as independent as two
/// listings over two connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listing {
    /// Counts the complete ones.
    pub id: u64,
    /// When the last complete one was made.
    pub at: Instant,
    /// The first of those that were made since the directory last showed nothing, if only for a
    /// moment, or became another one. Only what one of
    /// them showed was removed by somebody when it is in a later one no more: what a directory lacks
    /// that has just come back may be still to come.
    pub since: u64,
    /// Two looks in a row found the same, or the directory is never at rest. Otherwise it may be in
    /// the middle of an edit, and what it lacks is not gone yet.
    pub settled: bool,
    /// Set when nothing that is readable vouches for what is gone: then `records` are what was
    /// read before, and whether they may go is for the guard to decide.
    pub lost: Option<Lost>,
}

/// How a directory shows nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// It does not exist: that is no listing.
    Missing,
    /// It exists and cannot be listed, or what there is is in parts that cannot be: that is no
    /// listing either.
    Unreadable,
    /// It is readable and holds no manifest: a complete listing of nothing.
    Empty,
}

impl Lost {
    /// What is said of the directory.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "is missing",
            Self::Unreadable => "cannot be read",
            Self::Empty => "holds no manifest",
        }
    }

    /// Whether it was nevertheless listed.
    #[must_use]
    pub fn is_listing(self) -> bool {
        self == Self::Empty
    }
}

/// What was found in a directory.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Counts {
    /// Files with a manifest's extension.
    pub files: usize,
    /// Objects of the kinds that are read.
    pub read: BTreeMap<&'static str, usize>,
    /// Objects of other kinds, `Deployment.apps`.
    pub other_kinds: BTreeMap<String, usize>,
    /// Documents that are templates of manifests.
    pub templates: usize,
    /// Documents that are no Kubernetes objects.
    pub not_kubernetes: usize,
    /// `EndpointSlice`s that hold names instead of addresses; not used.
    pub fqdn_slices: usize,
    /// `EndpointSlice`s of endpoints in other clusters; not used.
    pub imported_slices: usize,
}
