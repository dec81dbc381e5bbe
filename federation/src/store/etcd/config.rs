//! What there is to say about an etcd.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};

/// How often an idle connection with a watch on it is probed. etcd hangs up on who probes more often
/// than every 5 s.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How long such a probe may take.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long connecting may take, TLS included.
const CONNECT: Duration = Duration::from_secs(2);

/// Where an etcd is and how to talk to it.
#[derive(Debug, Clone)]
pub struct EtcdConfig {
    /// Every member: `https://host:port`, or `http://` without TLS.
    pub endpoints: Vec<String>,
    /// For `https`.
    pub tls: Option<EtcdTls>,
    /// If etcd's authentication is enabled.
    pub credentials: Option<EtcdCredentials>,
    /// From where `tls` and `credentials` are, to be read anew when they are no good any more.
    pub reload: Option<Reload>,
    /// What a request may take, all attempts together.
    pub request_timeout: Duration,
    /// How often a watch asks how far it is: so old its progress may be, and the same says that the
    /// member lives.
    pub watch_progress: Duration,
    /// How long a watch may hear nothing at all before it is ended.
    pub watch_stall: Duration,
    /// How long a watch waits for a reader that does not read before it is ended.
    pub slow_reader: Duration,
    /// Bytes that the database may have, if the members do not say (they do from 3.6 on): what
    /// `--quota-backend-bytes` was given. Else it is not known how full they are.
    pub quota: Option<u64>,
}

impl EtcdConfig {
    /// The defaults, for etcd at `endpoints`: no TLS, no credentials, 5 s per request, progress
    /// every 2 s, watches ended after 10 s of silence or 30 s of not reading.
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            tls: None,
            credentials: None,
            reload: None,
            request_timeout: Duration::from_secs(5),
            watch_progress: Duration::from_secs(2),
            watch_stall: Duration::from_secs(10),
            slow_reader: Duration::from_secs(30),
            quota: None,
        }
    }

    /// The same with these.
    pub(super) fn with(&self, secrets: EtcdSecrets) -> Self {
        let EtcdSecrets { tls, credentials } = secrets;
        Self { tls, credentials, ..self.clone() }
    }

    pub(super) fn secrets(&self) -> EtcdSecrets {
        EtcdSecrets { tls: self.tls.clone(), credentials: self.credentials.clone() }
    }

    pub(super) fn options(&self) -> ConnectOptions {
        let mut options = ConnectOptions::new()
            .with_keep_alive(KEEP_ALIVE, KEEP_ALIVE_TIMEOUT)
            // etcd takes probes without a stream for an attack.
            .with_keep_alive_while_idle(false)
            .with_connect_timeout(CONNECT.min(self.request_timeout))
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some(tls) = &self.tls {
            options = options.with_tls(tls.options());
        }
        if let Some(EtcdCredentials { user, password }) = &self.credentials {
            options = options.with_user(user, password);
        }
        options
    }
}

/// What shows who we are, and whom to trust.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EtcdSecrets {
    /// See [`EtcdConfig::tls`].
    pub tls: Option<EtcdTls>,
    /// See [`EtcdConfig::credentials`].
    pub credentials: Option<EtcdCredentials>,
}

/// Reads secrets anew, from files for example; on a thread that may wait.
#[derive(Clone)]
pub struct Reload(Arc<dyn Fn() -> Result<EtcdSecrets, String> + Send + Sync>);

impl Reload {
    /// `read` says why it cannot: what was read last then stays in use.
    pub fn new(read: impl Fn() -> Result<EtcdSecrets, String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    /// What there is now.
    ///
    /// # Errors
    /// In the reader's words.
    pub fn read(&self) -> Result<EtcdSecrets, String> {
        (self.0)()
    }
}

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reload").finish_non_exhaustive()
    }
}

/// Whom to trust and who we are. All PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdTls {
    /// The authority of etcd's own certificates; never the mesh's.
    pub ca_pem: String,
    /// Our certificate, with intermediates.
    pub cert_pem: String,
    /// Its key.
    pub key_pem: String,
    /// The name that etcd's certificates are for, if it is not the endpoints' own.
    pub domain: Option<String>,
}

impl EtcdTls {
    fn options(&self) -> TlsOptions {
        let options = TlsOptions::new()
            .ca_certificate(Certificate::from_pem(&self.ca_pem))
            .identity(Identity::from_pem(&self.cert_pem, &self.key_pem));
        match &self.domain {
            Some(domain) => options.domain_name(domain),
            None => options,
        }
    }
}

impl fmt::Debug for EtcdTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdTls").field("domain", &self.domain).finish_non_exhaustive()
    }
}

/// A user of etcd: one that may read and write `/tombolo/`. To compact, it needs the role root on
/// releases that have closed that hole (3.6.16 has); so it does to watch on ones that are too old
/// for production.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdCredentials {
    /// Its name.
    pub user: String,
    /// Not shown anywhere.
    pub password: String,
}

impl fmt::Debug for EtcdCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdCredentials").field("user", &self.user).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let mut config = EtcdConfig::new(["https://etcd:2379"]);
        let (user, password) = ("tombolo".to_owned(), "hunter2".to_owned());
        config.credentials = Some(EtcdCredentials { user, password });
        let [ca_pem, cert_pem] = ["CA", "CERT"].map(ToOwned::to_owned);
        let key_pem = "SECRET".to_owned();
        config.tls = Some(EtcdTls { ca_pem, cert_pem, key_pem, domain: None });
        let shown = format!("{config:?}");
        assert!(shown.contains("tombolo") && shown.contains("https://etcd:2379"), "{shown}");
        assert!(!shown.contains("hunter2") && !shown.contains("SECRET"), "{shown}");
    }
}
