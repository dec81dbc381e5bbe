//! What carries calls to a federation API.
//!
//! A connection over TLS in every process; in the simulation, queues that a scheduler owns. Nothing
//! above it knows which.

use tonic::body::Body;
use tonic::client::GrpcService;

/// Anything that a generated client can call through. Clones lead to the same place.
pub trait Transport:
    GrpcService<Body, ResponseBody = Body, Error: Send, Future: Send> + Clone + Send + Sync + 'static
{
}

impl<T> Transport for T where
    T: GrpcService<Body, ResponseBody = Body, Error: Send, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// A way to a region, which may have several replicas.
pub trait Dial: Clone + Send + Sync + 'static {
    /// What calls go through.
    type Transport: Transport;

    /// For one attempt. Whoever knows several replicas leads each attempt to the next of them: one
    /// that answers and cannot serve (its store is away) would else be asked for ever, since its
    /// connection is well.
    fn dial(&self) -> Self::Transport;
}

/// Goes where it always goes.
impl<T: Transport> Dial for T {
    type Transport = T;

    fn dial(&self) -> T {
        self.clone()
    }
}
