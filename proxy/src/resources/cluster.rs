//! Clusters: how to talk to a port of a service, and when to stop trying a host. Nothing here may
//! depend on endpoints: a changed Cluster drains its pools and clears its ejections.

use std::collections::HashMap;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::thresholds::RetryBudget;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbPolicy,
};
use envoy_types::pb::envoy::config::cluster::v3::{
    CircuitBreakers, Cluster, OutlierDetection, UpstreamConnectionOptions,
};
use envoy_types::pb::envoy::config::core::v3::{
    Http2ProtocolOptions, KeepaliveSettings, TcpKeepalive,
};
use envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
};
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::Any;

use super::parts::{ads, any, duration, number};
use super::{Resource, Type};
use crate::class::ClientKind;
use crate::failover::PANIC_THRESHOLD;
use crate::intent::{Speaks, Target};

/// A circuit breaker that opens at Envoy's default of 1024 requests turns a busy service into an
/// outage; memory is what really bounds a proxy.
const CIRCUIT_LIMIT: u32 = 1 << 20;

/// The cluster of one port of a service.
pub(crate) fn cluster(kind: ClientKind, target: &Target<'_>) -> Resource {
    let name = target.cluster_name();
    let message = match kind {
        ClientKind::Envoy => for_envoy(name.clone(), target.speaks),
        ClientKind::Grpc => common(name.clone(), LbPolicy::RoundRobin),
    };
    Resource::new(Type::Cluster, name, &message)
}

/// What gRPC understands as well: it refuses clusters with most of what Envoy takes.
fn common(name: String, policy: LbPolicy) -> Cluster {
    Cluster {
        name,
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig { eds_config: ads(), ..Default::default() }),
        lb_policy: policy.into(),
        ..Cluster::default()
    }
}

fn for_envoy(name: String, speaks: Speaks) -> Cluster {
    Cluster {
        connect_timeout: duration(Duration::from_secs(1)),
        outlier_detection: Some(outlier_detection()),
        common_lb_config: Some(CommonLbConfig {
            healthy_panic_threshold: Some(Percent { value: PANIC_THRESHOLD.into() }),
            // The default delays a lost host by up to a second of failed requests.
            update_merge_window: duration(Duration::ZERO),
            ..CommonLbConfig::default()
        }),
        circuit_breakers: Some(circuit_breakers()),
        typed_extension_protocol_options: protocol_options(speaks),
        upstream_connection_options: Some(UpstreamConnectionOptions {
            tcp_keepalive: Some(tcp_keepalive()),
            ..UpstreamConnectionOptions::default()
        }),
        ignore_health_on_host_removal: true,
        ..common(name, LbPolicy::LeastRequest)
    }
}

/// Ejects on what says that a host or the way to it is broken: 502, 503, 504, and connections that
/// fail, time out or reset. Not on 500, which says that the application ran: a request that every
/// host answers with 500 would eject them all. Not on statistics, which depend on the traffic.
fn outlier_detection() -> OutlierDetection {
    OutlierDetection {
        consecutive_gateway_failure: number(3),
        enforcing_consecutive_gateway_failure: number(100),
        split_external_local_origin_errors: true,
        consecutive_local_origin_failure: number(3),
        enforcing_consecutive_local_origin_failure: number(100),
        enforcing_consecutive_5xx: number(0),
        enforcing_success_rate: number(0),
        enforcing_local_origin_success_rate: number(0),
        // Ejections end at these steps, so they are finer than the ejection time.
        interval: duration(Duration::from_secs(1)),
        base_ejection_time: duration(Duration::from_secs(5)),
        max_ejection_time: duration(Duration::from_secs(30)),
        // Of all hosts of all priorities; the default of 10 leaves a dead region in use.
        max_ejection_percent: number(100),
        ..OutlierDetection::default()
    }
}

fn circuit_breakers() -> CircuitBreakers {
    let thresholds = Thresholds {
        max_connections: number(CIRCUIT_LIMIT),
        max_pending_requests: number(CIRCUIT_LIMIT),
        max_requests: number(CIRCUIT_LIMIT),
        // Bounds what retries add to the survivors of a failover.
        retry_budget: Some(RetryBudget {
            budget_percent: Some(Percent { value: 20.0 }),
            min_retry_concurrency: number(10),
            ..RetryBudget::default()
        }),
        ..Thresholds::default()
    };
    CircuitBreakers { thresholds: vec![thresholds], ..CircuitBreakers::default() }
}

/// Notices a host that vanished without a word before requests pile up on it.
fn tcp_keepalive() -> TcpKeepalive {
    TcpKeepalive {
        keepalive_probes: number(3),
        keepalive_time: number(10),
        keepalive_interval: number(5),
    }
}

/// At most one entry: a map of more would be encoded in random order.
fn protocol_options(speaks: Speaks) -> HashMap<String, Any> {
    if speaks != Speaks::Http2 {
        return HashMap::new();
    }
    let http2 = Http2ProtocolOptions {
        connection_keepalive: Some(KeepaliveSettings {
            interval: duration(Duration::from_secs(30)),
            timeout: duration(Duration::from_secs(5)),
            ..KeepaliveSettings::default()
        }),
        ..Http2ProtocolOptions::default()
    };
    let explicit =
        ExplicitHttpConfig { protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(http2)) };
    let options = HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)),
        ..HttpProtocolOptions::default()
    };
    let name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned();
    HashMap::from([(name, any(&options))])
}
