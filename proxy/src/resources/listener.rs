//! Listeners: where an Envoy takes its workload's requests, and what a gRPC target means.

use std::net::SocketAddr;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::TrafficDirection;
use envoy_types::pb::envoy::config::listener::v3::{
    ApiListener, Filter, FilterChain, Listener, filter,
};
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, VirtualHost,
};
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    RouteSpecifier, ServerHeaderTransformation, UpgradeConfig,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_filter,
};
use envoy_types::pb::google::protobuf::BoolValue;

use super::parts::{address, ads, any, duration};
use super::route::everything;
use super::{OUTBOUND, Resource, Type};
use crate::intent::Target;

/// A request on which no byte moves for so long is over. Envoy's default of 5 minutes cuts quiet
/// watches and streams; none at all leaks those whose peer is gone.
const STREAM_IDLE: Duration = Duration::from_hours(1);

/// The one listener of an Envoy. Its routes come by RDS: one that named an unknown cluster inline
/// would be refused.
pub(crate) fn outbound_listener(at: SocketAddr) -> Resource {
    let rds = Rds { config_source: ads(), route_config_name: OUTBOUND.to_owned() };
    let manager = HttpConnectionManager {
        stat_prefix: OUTBOUND.to_owned(),
        // A caller's own proxy is no edge: forwarding headers are the application's to set, so it
        // neither adds to them nor trusts them.
        use_remote_address: Some(BoolValue { value: false }),
        skip_xff_append: true,
        // The answer's own `server` header tells more than "envoy".
        server_header_transformation: ServerHeaderTransformation::PassThrough.into(),
        stream_idle_timeout: duration(STREAM_IDLE),
        upgrade_configs: vec![UpgradeConfig {
            upgrade_type: "websocket".to_owned(),
            ..UpgradeConfig::default()
        }],
        ..manager(RouteSpecifier::Rds(rds))
    };
    let filter = Filter {
        name: "envoy.filters.network.http_connection_manager".to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(any(&manager))),
    };
    let message = Listener {
        name: OUTBOUND.to_owned(),
        address: Some(address(at)),
        filter_chains: vec![FilterChain { filters: vec![filter], ..FilterChain::default() }],
        traffic_direction: TrafficDirection::Outbound.into(),
        ..Listener::default()
    };
    Resource::new(Type::Listener, OUTBOUND.to_owned(), &message)
}

/// The API listeners by which gRPC clients find a port: one for each name that a client may dial,
/// with its route inline.
pub(crate) fn grpc_listeners(target: &Target<'_>) -> Vec<Resource> {
    let cluster = target.cluster_name();
    target.hosts().into_iter().map(|host| grpc_listener(host, &cluster)).collect()
}

fn grpc_listener(host: String, cluster: &str) -> Resource {
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        ..RouteAction::default()
    };
    // An empty prefix is how gRPC's own documents spell "everything"; "/" is understood as well.
    let route = Route {
        r#match: Some(everything()),
        action: Some(Action::Route(action)),
        ..Route::default()
    };
    let all = VirtualHost {
        name: host.clone(),
        domains: vec!["*".to_owned()],
        routes: vec![route],
        ..VirtualHost::default()
    };
    let routes = RouteConfiguration {
        name: host.clone(),
        virtual_hosts: vec![all],
        ..RouteConfiguration::default()
    };
    let manager = manager(RouteSpecifier::RouteConfig(routes));
    let message = Listener {
        name: host.clone(),
        api_listener: Some(ApiListener { api_listener: Some(any(&manager)) }),
        ..Listener::default()
    };
    Resource::new(Type::Listener, host, &message)
}

fn manager(routes: RouteSpecifier) -> HttpConnectionManager {
    let last = HttpFilter {
        name: "envoy.filters.http.router".to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(any(&Router::default()))),
        ..HttpFilter::default()
    };
    HttpConnectionManager {
        http_filters: vec![last],
        route_specifier: Some(routes),
        ..HttpConnectionManager::default()
    }
}
