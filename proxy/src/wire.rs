//! The discovery messages as this server reads and writes them.
//!
//! Owns: wire-compatible subsets of the messages of `envoy.service.discovery.v3`. They exist beside
//! `envoy-types` for two measured reasons. Bodies are [`Bytes`], so that one encoding is shared by
//! all streams; and fields that are never used are skipped while decoding, above all the
//! 516 extensions that Envoy's first request lists. The tests speak to the server with
//! `envoy-types`' messages, which holds the two to each other.

use std::collections::HashMap;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::{BuildVersion, ControlPlane, Locality};
use prost::Message;

/// What a client says of itself.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Node {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(string, tag = "2")]
    pub(crate) cluster: String,
    #[prost(message, optional, tag = "3")]
    pub(crate) metadata: Option<prost_types::Struct>,
    #[prost(message, optional, tag = "4")]
    pub(crate) locality: Option<Locality>,
    #[prost(string, tag = "6")]
    pub(crate) user_agent_name: String,
    #[prost(message, optional, tag = "8")]
    pub(crate) build: Option<BuildVersion>,
}

impl Node {
    /// A string of the node's metadata.
    pub(crate) fn metadata(&self, key: &str) -> Option<&str> {
        match self.metadata.as_ref()?.fields.get(key)?.kind.as_ref()? {
            prost_types::value::Kind::StringValue(text) => Some(text),
            _ => None,
        }
    }

    /// The client's version, as `major.minor.patch`; empty when it does not say.
    pub(crate) fn version(&self) -> String {
        let version = self.build.as_ref().and_then(|build| build.version.as_ref());
        version.map_or_else(String::new, |v| {
            format!("{}.{}.{}", v.major_number, v.minor_number, v.patch)
        })
    }
}

/// Why a client refused a response, or why a resource is not in one.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Status {
    #[prost(int32, tag = "1")]
    pub(crate) code: i32,
    #[prost(string, tag = "2")]
    pub(crate) message: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct DiscoveryRequest {
    #[prost(string, tag = "1")]
    pub(crate) version_info: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) node: Option<Node>,
    #[prost(string, repeated, tag = "3")]
    pub(crate) resource_names: Vec<String>,
    #[prost(string, tag = "4")]
    pub(crate) type_url: String,
    #[prost(string, tag = "5")]
    pub(crate) response_nonce: String,
    #[prost(message, optional, tag = "6")]
    pub(crate) error_detail: Option<Status>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct DeltaDiscoveryRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) node: Option<Node>,
    #[prost(string, tag = "2")]
    pub(crate) type_url: String,
    #[prost(string, repeated, tag = "3")]
    pub(crate) resource_names_subscribe: Vec<String>,
    #[prost(string, repeated, tag = "4")]
    pub(crate) resource_names_unsubscribe: Vec<String>,
    #[prost(map = "string, string", tag = "5")]
    pub(crate) initial_resource_versions: HashMap<String, String>,
    #[prost(string, tag = "6")]
    pub(crate) response_nonce: String,
    #[prost(message, optional, tag = "7")]
    pub(crate) error_detail: Option<Status>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Any {
    #[prost(string, tag = "1")]
    pub(crate) type_url: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) value: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Resource {
    #[prost(string, tag = "1")]
    pub(crate) version: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) body: Option<Any>,
    #[prost(string, tag = "3")]
    pub(crate) name: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ResourceName {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ResourceError {
    #[prost(message, optional, tag = "1")]
    pub(crate) resource_name: Option<ResourceName>,
    #[prost(message, optional, tag = "2")]
    pub(crate) error_detail: Option<Status>,
}

impl ResourceError {
    /// There is no resource of this name.
    pub(crate) fn not_found(name: &str) -> Self {
        Self {
            resource_name: Some(ResourceName { name: name.to_owned() }),
            error_detail: Some(Status {
                code: tonic::Code::NotFound.into(),
                message: format!("no resource {name:?} in the mesh"),
            }),
        }
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct DiscoveryResponse {
    #[prost(string, tag = "1")]
    pub(crate) version_info: String,
    #[prost(message, repeated, tag = "2")]
    pub(crate) resources: Vec<Any>,
    #[prost(string, tag = "4")]
    pub(crate) type_url: String,
    #[prost(string, tag = "5")]
    pub(crate) nonce: String,
    #[prost(message, optional, tag = "6")]
    pub(crate) control_plane: Option<ControlPlane>,
    #[prost(message, repeated, tag = "7")]
    pub(crate) resource_errors: Vec<ResourceError>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct DeltaDiscoveryResponse {
    #[prost(string, tag = "1")]
    pub(crate) system_version_info: String,
    #[prost(message, repeated, tag = "2")]
    pub(crate) resources: Vec<Resource>,
    #[prost(string, tag = "4")]
    pub(crate) type_url: String,
    #[prost(string, tag = "5")]
    pub(crate) nonce: String,
    #[prost(string, repeated, tag = "6")]
    pub(crate) removed_resources: Vec<String>,
    #[prost(message, optional, tag = "7")]
    pub(crate) control_plane: Option<ControlPlane>,
    #[prost(message, repeated, tag = "9")]
    pub(crate) resource_errors: Vec<ResourceError>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::config::core::v3::{self as core, Extension};
    use envoy_types::pb::envoy::service::discovery::v3 as envoy;

    #[test]
    fn x4_extensions_are_skipped_and_the_rest_is_read() {
        let extension =
            Extension { name: "envoy.filters.http.router".into(), ..Extension::default() };
        let node = core::Node {
            id: "n".into(),
            cluster: "c".into(),
            extensions: vec![extension; 516],
            user_agent_name: "envoy".into(),
            ..core::Node::default()
        };
        let request = envoy::DeltaDiscoveryRequest {
            node: Some(node),
            type_url: "t".into(),
            resource_names_subscribe: vec!["a".into()],
            ..envoy::DeltaDiscoveryRequest::default()
        };
        let read = DeltaDiscoveryRequest::decode(&*request.encode_to_vec()).unwrap();
        let node = read.node.clone().unwrap();
        assert_eq!((node.id.as_str(), node.cluster.as_str()), ("n", "c"));
        assert_eq!(read.resource_names_subscribe, ["a"]);
        assert!(read.encode_to_vec().len() < 64);
    }

    #[test]
    fn responses_are_read_by_the_real_messages() {
        let ours = DeltaDiscoveryResponse {
            system_version_info: "v".into(),
            resources: vec![Resource {
                version: "1".into(),
                body: Some(Any { type_url: "t".into(), value: Bytes::from_static(b"x") }),
                name: "a".into(),
            }],
            type_url: "t".into(),
            nonce: "7".into(),
            removed_resources: vec!["b".into()],
            control_plane: Some(ControlPlane { identifier: "me".into() }),
            resource_errors: vec![ResourceError::not_found("b")],
        };
        let read = envoy::DeltaDiscoveryResponse::decode(&*ours.encode_to_vec()).unwrap();
        assert_eq!(read.encode_to_vec(), ours.encode_to_vec());
    }
}
