//! Routes: a virtual host for each HTTP port of each service, and a plain answer for the rest.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source};
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::retry_policy::{
    RetryBackOff, RetryHostPredicate, RetryPriority, retry_host_predicate, retry_priority,
};
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{
    DirectResponseAction, HeaderMatcher, RetryPolicy, Route, RouteAction, RouteMatch, VirtualHost,
};
use envoy_types::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use envoy_types::pb::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher};
use prost::Message;
use tombolo_federation::catalog::Service;
use tombolo_federation::names::ServiceKey;

use super::parts::{any, duration, number};
use super::{OUTBOUND, Resource, Type};
use crate::intent::{Target, targets};

/// What never reached an application can be sent again, whatever it is.
const RETRY_ANY: &str = "connect-failure,refused-stream,reset-before-request";
/// What may have reached one can, if the method promises that twice is as good as once.
const RETRY_IDEMPOTENT: &str = "connect-failure,refused-stream,reset,gateway-error";
/// RFC 9110 section 9.2.2.
const IDEMPOTENT: &str = "GET|HEAD|OPTIONS|PUT|DELETE|TRACE";

const NOWHERE: &str = "tombolo: no such service in the mesh; \
    names are <service>.<namespace>.svc.<clusterset zone>[:<port>]\n";

/// The route configuration of an Envoy, kept as encoded parts, so that a change of one service
/// encodes one service.
#[derive(Debug, Default)]
pub(crate) struct RouteTable {
    hosts: BTreeMap<ServiceKey, Vec<Bytes>>,
}

impl RouteTable {
    /// Takes a service's virtual hosts, or that it is gone. Returns whether anything differs.
    pub(crate) fn set(&mut self, key: &ServiceKey, hosts: Vec<Bytes>) -> bool {
        if hosts.is_empty() {
            return self.hosts.remove(key).is_some();
        }
        let before = self.hosts.insert(key.clone(), hosts);
        before.as_ref() != self.hosts.get(key)
    }

    /// The whole, as one resource.
    pub(crate) fn encode(&self) -> Resource {
        let mut virtual_hosts: Vec<Bytes> = self.hosts.values().flatten().cloned().collect();
        virtual_hosts.push(nowhere().encode_to_vec().into());
        let message = Spliced { name: OUTBOUND.to_owned(), virtual_hosts };
        Resource::new(Type::Route, OUTBOUND.to_owned(), &message)
    }
}

/// `RouteConfiguration` with its virtual hosts already encoded: on the wire, bytes and messages are
/// the same.
#[derive(Clone, PartialEq, Message)]
struct Spliced {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    virtual_hosts: Vec<Bytes>,
}

/// The virtual hosts of a service, encoded, one for each port that takes HTTP.
pub(crate) fn virtual_hosts(service: &Service, zone: &str) -> Vec<Bytes> {
    let targets = targets(service, zone);
    let routable = targets.iter().filter(|target| !target.hosts().is_empty());
    routable.map(|target| virtual_host(target).encode_to_vec().into()).collect()
}

fn virtual_host(target: &Target<'_>) -> VirtualHost {
    let cluster = target.cluster_name();
    let idempotent = RouteMatch { headers: vec![method(IDEMPOTENT)], ..everything() };
    VirtualHost {
        routes: vec![
            route(idempotent, &cluster, RETRY_IDEMPOTENT),
            route(everything(), &cluster, RETRY_ANY),
        ],
        name: cluster,
        domains: target.hosts(),
        ..VirtualHost::default()
    }
}

pub(super) fn everything() -> RouteMatch {
    RouteMatch {
        path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
        ..RouteMatch::default()
    }
}

fn method(regex: &str) -> HeaderMatcher {
    let matcher = RegexMatcher { regex: regex.to_owned(), ..RegexMatcher::default() };
    HeaderMatcher {
        name: ":method".to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(StringMatcher {
            match_pattern: Some(MatchPattern::SafeRegex(matcher)),
            ..StringMatcher::default()
        })),
        ..HeaderMatcher::default()
    }
}

fn route(of: RouteMatch, cluster: &str, retry_on: &str) -> Route {
    let action = RouteAction {
        // None, rather than Envoy's hidden 15 s: how long a request may take is the caller's to
        // say. One on which nothing moves ends with the listener's stream idle timeout.
        timeout: duration(Duration::ZERO),
        retry_policy: Some(retry_policy(retry_on)),
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        ..RouteAction::default()
    };
    Route { r#match: Some(of), action: Some(Action::Route(action)), ..Route::default() }
}

/// Each attempt goes to another host of another tier, so that the first request after a region is
/// lost succeeds; the cluster's budget bounds the sum.
fn retry_policy(retry_on: &str) -> RetryPolicy {
    let hosts = retry_host_predicate::ConfigType::TypedConfig(any(&PreviousHostsPredicate {}));
    let next_tier = PreviousPrioritiesConfig { update_frequency: 1 };
    RetryPolicy {
        retry_on: retry_on.to_owned(),
        num_retries: number(3),
        retry_host_predicate: vec![RetryHostPredicate {
            name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
            config_type: Some(hosts),
        }],
        host_selection_retry_max_attempts: 5,
        retry_priority: Some(RetryPriority {
            name: "envoy.retry_priorities.previous_priorities".to_owned(),
            config_type: Some(retry_priority::ConfigType::TypedConfig(any(&next_tier))),
        }),
        retry_back_off: Some(RetryBackOff {
            base_interval: duration(Duration::from_millis(10)),
            max_interval: duration(Duration::from_millis(250)),
        }),
        ..RetryPolicy::default()
    }
}

fn nowhere() -> VirtualHost {
    let body = data_source::Specifier::InlineString(NOWHERE.to_owned());
    let answer = DirectResponseAction {
        status: 404,
        body: Some(DataSource { specifier: Some(body), ..DataSource::default() }),
        ..DirectResponseAction::default()
    };
    let route = Route {
        r#match: Some(everything()),
        action: Some(Action::DirectResponse(answer)),
        ..Route::default()
    };
    VirtualHost {
        name: "nowhere".to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![route],
        ..VirtualHost::default()
    }
}
