//! What the mesh is, and what should change.
//!
//! Owns names and ids, records and their wire form, the store, sync between agents, regions and
//! peers, and the catalog that everything serves from. The deciding code (merge, diff, conflict)
//! knows no Kubernetes client, no gRPC, no etcd and no clock; the modules around it do.
//!
//! Leaves to others: answers (`tombolo-dns`), identities (`tombolo-ca`), proxies
//! (`tombolo-proxy`), wiring (`tombolo`).

pub mod cache;
pub mod catalog;
pub mod digest;
pub mod guard;
pub mod key;
pub mod manifests;
pub mod names;
pub mod record;
pub mod replica;
#[cfg(any(test, feature = "simulation"))]
pub mod simulation;
pub mod store;
pub mod sync;

/// Wire messages, generated from `proto/`.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::use_self,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod proto {
    /// Stored records.
    pub mod records {
        /// Version 1.
        pub mod v1 {
            tonic::include_proto!("tombolo.records.v1");
        }
        pub use self::v1::*;
    }
    /// The federation API.
    pub mod federation {
        /// Version 1.
        pub mod v1 {
            tonic::include_proto!("tombolo.federation.v1");
        }
        pub use self::v1::*;
    }
    /// What a process keeps on its own disk.
    pub mod cache {
        /// Version 1.
        pub mod v1 {
            tonic::include_proto!("tombolo.cache.v1");
        }
        pub use self::v1::*;
    }
    /// Facts of one region's own store.
    pub mod local {
        /// Version 1.
        pub mod v1 {
            tonic::include_proto!("tombolo.local.v1");
        }
        pub use self::v1::*;
    }
}
