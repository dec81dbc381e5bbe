//! The gRPC service `AggregatedDiscoveryService`, over our own messages.
//!
//! Written by hand because the generated one is bound to `envoy-types`' messages, which copy every
//! body for every client (see `wire`).

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::Inner;
use crate::wire::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};

/// A reconnecting Envoy lists what it holds in one message, and the default of 4 MiB is reached
/// near 35,000 resources. A stream's budget of names, with the versions that go with them,
/// stays below this.
const MAX_REQUEST: usize = 16 << 20;

const STATE_OF_THE_WORLD: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
const DELTA: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// The tonic service of an [`super::AdsServer`], to be added to a router.
#[derive(Debug, Clone)]
pub struct AdsService {
    pub(super) inner: Arc<Inner>,
}

impl NamedService for AdsService {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl Service<http::Request<Body>> for AdsService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let inner = Arc::clone(&self.inner);
        Box::pin(async move {
            Ok(match request.uri().path() {
                STATE_OF_THE_WORLD => {
                    let mut grpc = Grpc::new(ProstCodec::default())
                        .max_decoding_message_size(MAX_REQUEST)
                        .max_encoding_message_size(usize::MAX);
                    grpc.streaming(StateOfTheWorld(inner), request).await
                }
                DELTA => {
                    let mut grpc = Grpc::new(ProstCodec::default())
                        .max_decoding_message_size(MAX_REQUEST)
                        .max_encoding_message_size(usize::MAX);
                    grpc.streaming(Delta(inner), request).await
                }
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

type Answers<T> = ReceiverStream<Result<T, Status>>;
type Opening<T> =
    Pin<Box<dyn Future<Output = Result<Response<Answers<T>>, Status>> + Send + 'static>>;

struct StateOfTheWorld(Arc<Inner>);

impl StreamingService<DiscoveryRequest> for StateOfTheWorld {
    type Response = DiscoveryResponse;
    type ResponseStream = Answers<DiscoveryResponse>;
    type Future = Opening<DiscoveryResponse>;

    fn call(&mut self, request: Request<Streaming<DiscoveryRequest>>) -> Self::Future {
        let inner = Arc::clone(&self.0);
        Box::pin(async move { inner.open(request) })
    }
}

struct Delta(Arc<Inner>);

impl StreamingService<DeltaDiscoveryRequest> for Delta {
    type Response = DeltaDiscoveryResponse;
    type ResponseStream = Answers<DeltaDiscoveryResponse>;
    type Future = Opening<DeltaDiscoveryResponse>;

    fn call(&mut self, request: Request<Streaming<DeltaDiscoveryRequest>>) -> Self::Future {
        let inner = Arc::clone(&self.0);
        Box::pin(async move { inner.open(request) })
    }
}
