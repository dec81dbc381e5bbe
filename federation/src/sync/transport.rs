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
