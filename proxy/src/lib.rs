//! xDS for Envoy and gRPC: a catalog in, resources out.
//!
//! Layers, each testable alone: `intent` (what proxies should do with a merged service), with
//! [`failover`] deciding which endpoints are used in which order; `resources` (pure functions to
//! Envoy messages); `cache` (each resource encoded once per variant and shared by all streams);
//! `streams` (subscriptions, nonces, ACK, NACK, newest wins), which [`AdsServer`] serves.
//! [`bootstrap`] writes the file that an Envoy starts from. Leaves to others: building the catalog
//! (`tombolo-federation`), certificates (`tombolo-ca`), listening (`tombolo`).

pub mod bootstrap;
mod cache;
mod class;
pub mod failover;
mod intent;
mod resources;
mod streams;
#[cfg(test)]
mod testkit;
mod wire;

pub use class::{
    ClientClass, ClientKind, ClientLocality, EndpointsView, ListenerView, ProxyIdentity,
};
pub use streams::{AdsConfig, AdsServer, AdsService, Nack, ProxyStatus, TypeStatus, Variant};
