//! What the tests of this crate share: a mesh with two regions, at a fixed time.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tombolo_federation::names::{MeshDomain, RegionName};

use crate::bundle::Bundles;
use crate::identity::Identity;
use crate::material::{Credential, Holder, Material};
use crate::region::{Grant, RegionCa};
use crate::root::MeshRoot;

pub(crate) const NOW: Timestamp = Timestamp::constant(1_790_000_000, 0);

pub(crate) fn at(seconds: i64) -> Timestamp {
    NOW.checked_add(SignedDuration::from_secs(seconds)).unwrap()
}

pub(crate) fn mesh() -> MeshDomain {
    "mesh.example".parse().unwrap()
}

pub(crate) fn region(name: &str) -> RegionName {
    name.parse().unwrap()
}

pub(crate) fn control_plane(of: &str) -> Identity {
    Identity::ControlPlane { region: region(of) }
}

pub(crate) fn agent(of: &str, cluster: &str) -> Identity {
    Identity::Agent { region: region(of), cluster: cluster.parse().unwrap() }
}

pub(crate) fn workload(of: &str) -> Identity {
    Identity::Workload {
        region: region(of),
        namespace: "shop".parse().unwrap(),
        service_account: "checkout".parse().unwrap(),
    }
}

/// A root and the regions `west` and `east`.
pub(crate) struct Mesh {
    pub(crate) root: MeshRoot,
    pub(crate) west: RegionCa,
    pub(crate) east: RegionCa,
}

impl Mesh {
    pub(crate) fn new() -> Self {
        let root = MeshRoot::create(&mesh(), NOW).unwrap();
        let west = RegionCa::create(&root, &region("west"), 1, NOW).unwrap();
        let east = RegionCa::create(&root, &region("east"), 1, NOW).unwrap();
        Self { root, west, east }
    }

    pub(crate) fn empty_bundles(&self) -> Bundles {
        Bundles::pinned(mesh(), vec![self.root.certificate().clone()]).unwrap()
    }

    pub(crate) fn bundles(&self) -> Bundles {
        let mut bundles = self.empty_bundles();
        bundles.accept(self.west.bundle().clone(), NOW).unwrap();
        bundles.accept(self.east.bundle().clone(), NOW).unwrap();
        bundles
    }

    /// A holder of a certificate by `ca`, who knows both regions.
    pub(crate) fn holder(&self, ca: &RegionCa, identity: Identity, lifetime: Duration) -> Holder {
        let grant = Grant { lifetime, ..Grant::new(identity) };
        let credential = Credential::issue(ca, &grant, NOW).unwrap();
        Holder::new(Material::new(credential, self.bundles(), NOW).unwrap())
    }
}
