//! Small messages that larger ones are made of.

use std::net::SocketAddr;
use std::time::Duration as StdDuration;

use envoy_types::pb::envoy::config::core::v3::address::Address as AddressKind;
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ApiVersion, ConfigSource, SocketAddress,
};
use envoy_types::pb::google::protobuf::{Any, Duration, UInt32Value};
use prost::{Message, Name};

/// How long a proxy waits for a resource that a new one needs. Explicit, since the default of 15 s
/// withholds the ACK that long, and 0 waits for ever.
const FETCH_TIMEOUT: StdDuration = StdDuration::from_secs(5);

pub(super) fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

#[expect(clippy::unnecessary_wraps, reason = "every field that takes one is optional")]
pub(super) fn duration(of: StdDuration) -> Option<Duration> {
    Some(Duration {
        seconds: i64::try_from(of.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(of.subsec_nanos()).unwrap_or_default(),
    })
}

#[expect(clippy::unnecessary_wraps, reason = "every field that takes one is optional")]
pub(super) fn number(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

/// Over the stream that this resource itself came on.
#[expect(clippy::unnecessary_wraps, reason = "every field that takes one is optional")]
pub(super) fn ads() -> Option<ConfigSource> {
    Some(ConfigSource {
        initial_fetch_timeout: duration(FETCH_TIMEOUT),
        resource_api_version: ApiVersion::V3.into(),
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..ConfigSource::default()
    })
}

pub(super) fn address(of: SocketAddr) -> Address {
    let socket = SocketAddress {
        address: of.ip().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(of.port().into())),
        ..SocketAddress::default()
    };
    Address { address: Some(AddressKind::SocketAddress(socket)) }
}
