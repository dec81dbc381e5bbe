//! The two protocols, as far as they differ on the wire.

use envoy_types::pb::envoy::config::core::v3::ControlPlane;

use super::session::{Request, Response, Variant};
use crate::wire::{
    self, Any, DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    Node, ResourceError,
};

/// A pair of request and response messages.
pub(super) trait Dialect: Send + 'static {
    type Response: Send + 'static;
    const VARIANT: Variant;

    /// The node, which is not used again after a stream's first message.
    fn take_node(&mut self) -> Option<Node>;
    fn into_request(self) -> Request;
    fn response(of: Response, from: &str) -> Self::Response;
}

impl Dialect for DiscoveryRequest {
    type Response = DiscoveryResponse;
    const VARIANT: Variant = Variant::StateOfTheWorld;

    fn take_node(&mut self) -> Option<Node> {
        self.node.take()
    }

    fn into_request(self) -> Request {
        Request {
            type_url: self.type_url,
            nonce: self.response_nonce,
            error: self.error_detail,
            names: self.resource_names,
            version: self.version_info,
            ..Request::default()
        }
    }

    fn response(of: Response, from: &str) -> DiscoveryResponse {
        let url = of.kind.url();
        let body = |resource: &std::sync::Arc<crate::resources::Resource>| Any {
            type_url: url.to_owned(),
            value: resource.body.clone(),
        };
        DiscoveryResponse {
            version_info: of.version.to_string(),
            resources: of.resources.iter().map(body).collect(),
            type_url: url.to_owned(),
            nonce: of.nonce.to_string(),
            control_plane: control_plane(from),
            resource_errors: of.removed.iter().map(|n| ResourceError::not_found(n)).collect(),
        }
    }
}

impl Dialect for DeltaDiscoveryRequest {
    type Response = DeltaDiscoveryResponse;
    const VARIANT: Variant = Variant::Delta;

    fn take_node(&mut self) -> Option<Node> {
        self.node.take()
    }

    fn into_request(self) -> Request {
        Request {
            type_url: self.type_url,
            nonce: self.response_nonce,
            error: self.error_detail,
            subscribe: self.resource_names_subscribe,
            unsubscribe: self.resource_names_unsubscribe,
            held: self.initial_resource_versions,
            ..Request::default()
        }
    }

    fn response(of: Response, from: &str) -> DeltaDiscoveryResponse {
        let url = of.kind.url();
        let resource = |resource: &std::sync::Arc<crate::resources::Resource>| wire::Resource {
            version: resource.version.to_string(),
            body: Some(Any { type_url: url.to_owned(), value: resource.body.clone() }),
            name: resource.name.to_string(),
        };
        DeltaDiscoveryResponse {
            system_version_info: of.version.to_string(),
            resources: of.resources.iter().map(resource).collect(),
            type_url: url.to_owned(),
            nonce: of.nonce.to_string(),
            removed_resources: of.removed.iter().map(ToString::to_string).collect(),
            control_plane: control_plane(from),
            resource_errors: of.removed.iter().map(|n| ResourceError::not_found(n)).collect(),
        }
    }
}

#[expect(clippy::unnecessary_wraps, reason = "the field is optional")]
fn control_plane(identifier: &str) -> Option<ControlPlane> {
    Some(ControlPlane { identifier: identifier.to_owned() })
}
