//! The file that an Envoy starts from.
//!
//! Owns: what an Envoy must know before it can ask: who it is, which servers to ask, how to prove
//! itself to them. Promises: the text depends on nothing but the arguments. Leaves to others: where
//! the file lies, and who starts Envoy.
//!
//! The servers are priorities of one static cluster, nearest first. Measured: by itself Envoy
//! neither leaves a server that is frozen nor returns to a nearer one, so the cluster has outlier
//! detection and keepalive, which is what a plain Envoy can have; `tombolo sidecar` does better.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::class::ClientLocality;
use crate::streams::LISTENER;

/// Name of the cluster of xDS servers; not one that a service's cluster can have.
pub const XDS_CLUSTER: &str = "tombolo-xds";

/// What an Envoy of the mesh starts with.
#[derive(Debug, Clone)]
pub struct Bootstrap {
    /// Names the proxy in status and logs.
    pub node_id: String,
    /// Where it is; what its certificate says of that wins.
    pub locality: ClientLocality,
    /// Where it listens for its workload's requests.
    pub listener: SocketAddr,
    /// Its own admin interface; loopback, since whoever reaches it can stop it.
    pub admin: SocketAddr,
    /// Nearest first: its cluster's agent, its region's control plane, a neighbour's.
    pub servers: Vec<Server>,
    /// `None` for servers without TLS, on loopback.
    pub tls: Option<Tls>,
}

/// An xDS server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// At an address.
    Address(SocketAddr),
    /// At a name that DNS resolves.
    Name {
        /// The name.
        host: String,
        /// The port.
        port: u16,
    },
}

/// How the proxy proves itself, and whom it believes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// File with its certificate chain, PEM.
    pub certificate: String,
    /// File with its key, PEM.
    pub key: String,
    /// For each trust domain that a server may be in, the file with its bundle, PEM.
    pub bundles: Vec<TrustDomain>,
    /// SPIFFE ids that the servers may have.
    pub servers: Vec<String>,
}

/// A trust domain and what its members' certificates are verified against, and nothing else's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustDomain {
    /// Without `spiffe://`.
    pub name: String,
    /// File, PEM.
    pub bundle: String,
}

impl Bootstrap {
    /// The bootstrap as JSON, which `envoy -c FILE.json` reads.
    #[must_use]
    pub fn to_json(&self) -> String {
        let config = json!({
            "node": self.node(),
            "admin": { "address": socket(self.admin) },
            "dynamic_resources": {
                "ads_config": {
                    "api_type": "DELTA_GRPC",
                    "transport_api_version": "V3",
                    "set_node_on_first_message_only": true,
                    "grpc_services": [{ "envoy_grpc": { "cluster_name": XDS_CLUSTER } }],
                },
                "cds_config": ads(),
                "lds_config": ads(),
            },
            "static_resources": { "clusters": [self.servers()] },
        });
        format!("{config:#}\n")
    }

    fn node(&self) -> Value {
        let cluster = self.locality.cluster.as_ref().map_or("", |cluster| cluster.as_str());
        json!({
            "id": self.node_id,
            "cluster": cluster,
            "locality": {
                "region": self.locality.region.as_str(),
                "zone": self.locality.zone.as_deref().unwrap_or_default(),
                "sub_zone": cluster,
            },
            "metadata": { LISTENER: self.listener.to_string() },
        })
    }

    fn servers(&self) -> Value {
        let named = self.servers.iter().any(|server| matches!(server, Server::Name { .. }));
        let priorities: Vec<Value> =
            (0..).zip(&self.servers).map(|(priority, server)| endpoint(priority, server)).collect();
        let mut cluster = json!({
            "name": XDS_CLUSTER,
            "type": if named { "STRICT_DNS" } else { "STATIC" },
            "connect_timeout": "1s",
            "load_assignment": { "cluster_name": XDS_CLUSTER, "endpoints": priorities },
            "common_lb_config": {
                "healthy_panic_threshold": { "value": 1 },
                "update_merge_window": "0s",
            },
            "outlier_detection": {
                "consecutive_local_origin_failure": 1,
                "enforcing_consecutive_local_origin_failure": 100,
                "consecutive_gateway_failure": 1,
                "enforcing_consecutive_gateway_failure": 100,
                "enforcing_success_rate": 0,
                "split_external_local_origin_errors": true,
                "interval": "1s",
                "base_ejection_time": "5s",
                "max_ejection_time": "30s",
                "max_ejection_percent": 100,
            },
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": {
                        "http2_protocol_options": {
                            "connection_keepalive": { "interval": "10s", "timeout": "5s" },
                        },
                    },
                },
            },
        });
        if let Some(tls) = &self.tls {
            cluster["transport_socket"] = tls.transport_socket();
        }
        cluster
    }
}

impl Tls {
    /// Each trust domain's certificates are verified against that domain's bundle alone.
    fn transport_socket(&self) -> Value {
        let domains: Vec<Value> = self
            .bundles
            .iter()
            .map(|domain| {
                json!({ "name": domain.name, "trust_bundle": { "filename": domain.bundle } })
            })
            .collect();
        let ids: Vec<Value> = self
            .servers
            .iter()
            .map(|id| json!({ "san_type": "URI", "matcher": { "exact": id } }))
            .collect();
        json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "common_tls_context": {
                    "alpn_protocols": ["h2"],
                    "tls_params": {
                        "tls_minimum_protocol_version": "TLSv1_3",
                        "tls_maximum_protocol_version": "TLSv1_3",
                    },
                    "tls_certificates": [{
                        "certificate_chain": { "filename": self.certificate },
                        "private_key": { "filename": self.key },
                    }],
                    "validation_context": {
                        "match_typed_subject_alt_names": ids,
                        "custom_validator_config": {
                            "name": "envoy.tls.cert_validator.spiffe",
                            "typed_config": {
                                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig",
                                "trust_domains": domains,
                            },
                        },
                    },
                },
            },
        })
    }
}

/// Without a limit: an Envoy that never heard from a server has nothing to serve with.
fn ads() -> Value {
    json!({ "ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s" })
}

fn endpoint(priority: u32, server: &Server) -> Value {
    let address = match server {
        Server::Address(at) => socket(*at),
        Server::Name { host, port } => {
            json!({ "socket_address": { "address": host, "port_value": port } })
        }
    };
    json!({
        "priority": priority,
        "lb_endpoints": [{ "endpoint": { "address": address } }],
    })
}

fn socket(at: SocketAddr) -> Value {
    json!({ "socket_address": { "address": at.ip().to_string(), "port_value": at.port() } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::at;

    fn bootstrap() -> Bootstrap {
        Bootstrap {
            node_id: "us-c/demo".into(),
            locality: ClientLocality {
                region: "us".parse().unwrap(),
                zone: Some("us-a".into()),
                cluster: Some("us-c".parse().unwrap()),
                network: "net".into(),
            },
            listener: at("127.0.0.1:15001"),
            admin: at("127.0.0.1:15000"),
            servers: vec![Server::Address(at("127.0.0.1:7443"))],
            tls: None,
        }
    }

    #[test]
    fn servers_are_priorities() {
        let mut bootstrap = bootstrap();
        let clusters = |b: &Bootstrap| -> Value {
            let config: Value = serde_json::from_str(&b.to_json()).unwrap();
            config["static_resources"]["clusters"][0].clone()
        };
        assert_eq!(clusters(&bootstrap)["type"], "STATIC");
        bootstrap.servers.push(Server::Name { host: "region.example".into(), port: 7443 });
        let cluster = clusters(&bootstrap);
        assert_eq!(cluster["type"], "STRICT_DNS");
        assert_eq!(cluster["load_assignment"]["endpoints"][1]["priority"], 1);
        assert_eq!(cluster.get("transport_socket"), None);
    }

    #[test]
    fn texts_are_escaped() {
        let odd = Bootstrap { node_id: "a\"b\\c\n".into(), ..bootstrap() };
        let config: Value = serde_json::from_str(&odd.to_json()).unwrap();
        assert_eq!(config["node"]["id"], "a\"b\\c\n");
        assert_eq!(config["node"]["metadata"]["tombolo.listener"], "127.0.0.1:15001");
    }
}
