//! Where a region keeps what it knows.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use super::values::Span;

/// The store of a control plane; the embedded one, in its state directory, unless this says else.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct StoreConfig {
    /// The region's etcd, which several replicas share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) etcd: Option<EtcdStore>,
}

/// How to reach etcd.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct EtcdStore {
    /// Every member: `https://host:port`, or `http://` without TLS.
    pub(crate) endpoints: Vec<Endpoint>,
    /// PEM of the authority of the members' certificates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ca: Option<PathBuf>,
    /// PEM of our certificate chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cert: Option<PathBuf>,
    /// PEM of its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<PathBuf>,
    /// Our name, if etcd's authentication is enabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
    /// Holds the password, which is in no configuration that is logged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) password_file: Option<PathBuf>,
    /// What a request may take, all attempts together.
    #[serde(default = "request_timeout")]
    pub(crate) request_timeout: Span,
    /// Bytes that each member's database may have, for an etcd that does not say: before 3.6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) quota: Option<u64>,
}

/// `https://HOST:PORT` or `http://HOST:PORT` of a member. It holds no password, since configuration
/// is logged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct Endpoint(String);

impl Endpoint {
    fn is_tls(&self) -> bool {
        self.0.starts_with("https:")
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Before anything that would repeat it.
        if text.contains('@') {
            return Err("name user and passwordFile beside the endpoints, not in them".to_owned());
        }
        let form = || format!("{text:?} is not https://HOST:PORT or http://HOST:PORT");
        let uri: http::Uri = text.parse().map_err(|_| form())?;
        let authority = uri.authority().filter(|at| !at.host().is_empty());
        let authority = authority.filter(|at| at.port_u16().is_some_and(|port| port > 0));
        match (uri.scheme_str(), authority, uri.path_and_query().map_or("/", |path| path.as_str()))
        {
            (Some(scheme @ ("http" | "https")), Some(authority), "/") => {
                Ok(Self(format!("{scheme}://{authority}")))
            }
            _ => Err(form()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

fn request_timeout() -> Span {
    Span(Duration::from_secs(5))
}

impl StoreConfig {
    /// What no single field can show to be wrong, for leaders of this `leader_ttl`.
    pub(crate) fn check(&self, leader_ttl: Duration) -> anyhow::Result<()> {
        self.etcd.as_ref().map_or(Ok(()), |etcd| etcd.check(leader_ttl))
    }
}

impl EtcdStore {
    fn check(&self, leader_ttl: Duration) -> anyhow::Result<()> {
        anyhow::ensure!(!self.endpoints.is_empty(), "store.etcd.endpoints: no endpoint");
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            anyhow::ensure!(
                !self.endpoints[..index].contains(endpoint),
                "store.etcd.endpoints[{index}]: {endpoint} stands twice"
            );
        }
        let tls = self.endpoints.iter().filter(|endpoint| endpoint.is_tls()).count();
        anyhow::ensure!(
            tls == 0 || tls == self.endpoints.len(),
            "store.etcd.endpoints: some are https and some are http"
        );
        for (field, file) in [("ca", &self.ca), ("cert", &self.cert), ("key", &self.key)] {
            anyhow::ensure!(
                file.is_none() || tls > 0,
                "store.etcd.{field}: the endpoints are http, without TLS"
            );
        }
        let complete = self.ca.is_some() && self.cert.is_some() && self.key.is_some();
        anyhow::ensure!(tls == 0 || complete, "store.etcd: https needs ca, cert and key");
        anyhow::ensure!(
            self.user.is_some() == self.password_file.is_some(),
            "store.etcd: user and passwordFile go together"
        );
        anyhow::ensure!(
            self.request_timeout.0 >= Duration::from_millis(100),
            "store.etcd.requestTimeout: less than 100 ms"
        );
        anyhow::ensure!(self.quota != Some(0), "store.etcd.quota: nothing fits into 0 bytes");
        self.check_share(leader_ttl)
    }

    /// Each of several members is asked for its share of the time, and a candidate's term counts from
    /// before it asks for it: one that is frozen must leave some of that. One member alone has nobody
    /// to be left for.
    fn check_share(&self, leader_ttl: Duration) -> anyhow::Result<()> {
        let members = u32::try_from(self.endpoints.len()).unwrap_or(u32::MAX);
        let whole = self.request_timeout.0;
        let share = whole / members;
        anyhow::ensure!(
            members < 2 || share < leader_ttl,
            "store.etcd.requestTimeout: {whole:?} over {members} endpoints is {share:?} for each, not less than leaderTtl {leader_ttl:?}"
        );
        Ok(())
    }
}
