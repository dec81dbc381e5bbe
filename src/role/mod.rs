//! The roles: long-running processes, wired from the crates.
//!
//! A role binds all its sockets first (so that a port in use is told before anything runs and
//! tests learn real ports), then runs its named tasks until it is told to stop or the first one
//! fails. Nothing here decides; what decides is in the crates.

pub(crate) mod admin;
pub(crate) mod agent;
pub(crate) mod cache;
pub(crate) mod catalog;
pub(crate) mod common;
pub(crate) mod control_plane;
pub(crate) mod grpc;
pub(crate) mod leader;
pub(crate) mod mesh;
pub(crate) mod metrics;
pub(crate) mod operator;
pub(crate) mod own;
pub(crate) mod status;
pub(crate) mod store;
pub(crate) mod store_health;
pub(crate) mod tasks;

use std::sync::Arc;

use jiff::Timestamp;

/// The clock of a real process.
pub(crate) fn wall_clock() -> tombolo_federation::sync::service::WallClock {
    Arc::new(Timestamp::now)
}
