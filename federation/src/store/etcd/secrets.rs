//! Certificates and passwords, and what replaced them since.
//!
//! They are read anew for each client that is made, and while requests fail. What cannot be read or
//! makes no sense (a file that is half written) is told of, and what was good stays in use.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error};
use tokio::task::spawn_blocking;
use tokio::time::Instant;
use tracing::{info, warn};

use super::config::{EtcdConfig, EtcdSecrets, Reload};
use crate::store::StoreError;

pub(super) struct Secrets {
    config: EtcdConfig,
    newest: Mutex<Newest>,
}

struct Newest {
    secrets: EtcdSecrets,
    /// Counts those that were used.
    version: u64,
    read: Option<Instant>,
    /// Why what was read last is not used.
    problem: Option<String>,
}

impl Secrets {
    pub(super) fn new(config: &EtcdConfig) -> Self {
        let newest = Newest { secrets: config.secrets(), version: 0, read: None, problem: None };
        Self { config: config.clone(), newest: Mutex::new(newest) }
    }

    /// For a new client, and which of them it then has.
    pub(super) fn newest(&self) -> (ConnectOptions, u64) {
        let newest = self.lock();
        (self.config.with(newest.secrets.clone()).options(), newest.version)
    }

    /// Reads them, unless that was done within `age`.
    pub(super) async fn refresh(&self, age: Duration) {
        let Some(reload) = self.config.reload.clone() else { return };
        if self.lock().read.is_some_and(|read| read.elapsed() < age) {
            return;
        }
        let read = self.read(reload).await;
        let mut newest = self.lock();
        newest.read = Some(Instant::now());
        match read {
            Ok(secrets) if secrets == newest.secrets => newest.problem = None,
            Ok(secrets) => {
                info!("the certificate or the password for etcd was replaced");
                newest.secrets = secrets;
                newest.version += 1;
                newest.problem = None;
            }
            Err(problem) if newest.problem.as_ref() == Some(&problem) => {}
            Err(problem) => {
                warn!(
                    problem,
                    "the secrets for etcd cannot be read anew, those of before stay in use"
                );
                newest.problem = Some(problem);
            }
        }
    }

    async fn read(&self, reload: Reload) -> Result<EtcdSecrets, String> {
        let read = spawn_blocking(move || reload.read()).await;
        let secrets = read.map_err(|failed| failed.to_string())??;
        let config = self.config.with(secrets.clone());
        if let Some(endpoint) = config.endpoints.first() {
            check(&config, endpoint).await.map_err(|error| error.to_string())?;
        }
        Ok(secrets)
    }

    fn lock(&self) -> MutexGuard<'_, Newest> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Finds out whether a client can be made at all. With credentials, making one asks etcd.
pub(super) async fn check(config: &EtcdConfig, endpoint: &str) -> Result<(), StoreError> {
    let refused = |why: &str| StoreError::Refused(format!("etcd endpoint {endpoint:?}: {why}"));
    match (endpoint.starts_with("https://"), endpoint.starts_with("http://"), &config.tls) {
        (false, false, _) => return Err(refused("begins with neither https:// nor http://")),
        (true, _, None) => return Err(refused("needs TLS material")),
        (_, true, Some(_)) => return Err(refused("has TLS material, but is not https://")),
        _ => {}
    }
    let anonymous = EtcdConfig { credentials: None, ..config.clone() };
    let made = Client::connect([endpoint], Some(anonymous.options())).await;
    made.map(drop).map_err(|error| refused(&words(&error)))
}

/// tonic keeps what matters in the source.
fn words(error: &Error) -> String {
    match error {
        Error::TransportError(transport) => {
            let source = std::error::Error::source(transport).map(ToString::to_string);
            source.map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::EtcdCredentials;
    use super::*;

    type Source = Arc<Mutex<Result<EtcdSecrets, String>>>;

    fn password(password: &str) -> EtcdSecrets {
        let (user, password) = ("tombolo".to_owned(), password.to_owned());
        EtcdSecrets { tls: None, credentials: Some(EtcdCredentials { user, password }) }
    }

    fn secrets(first: EtcdSecrets) -> (Source, Secrets) {
        let source: Source = Arc::new(Mutex::new(Ok(first.clone())));
        let read = Arc::clone(&source);
        let mut config = EtcdConfig::new(["http://127.0.0.1:1"]).with(first);
        config.reload = Some(Reload::new(move || read.lock().unwrap().clone()));
        (source, Secrets::new(&config))
    }

    #[tokio::test]
    async fn what_was_replaced_is_used_and_what_is_broken_is_not() {
        let (source, secrets) = secrets(password("a"));
        let version = async || {
            secrets.refresh(Duration::ZERO).await;
            secrets.newest().1
        };
        assert_eq!(version().await, 0, "the same");
        *source.lock().unwrap() = Ok(password("b"));
        secrets.refresh(Duration::from_hours(1)).await;
        assert_eq!(secrets.newest().1, 0, "read already");
        assert_eq!(version().await, 1);
        *source.lock().unwrap() = Err("no such file".to_owned());
        assert_eq!(version().await, 1);
        let [ca_pem, cert_pem, key_pem] = ["", "cut", "off"].map(ToOwned::to_owned);
        let tls = super::super::EtcdTls { ca_pem, cert_pem, key_pem, domain: None };
        *source.lock().unwrap() = Ok(EtcdSecrets { tls: Some(tls), ..password("c") });
        assert_eq!(version().await, 1);
        assert!(secrets.lock().problem.is_some());
        assert_eq!(secrets.lock().secrets, password("b"), "stays in use");
        *source.lock().unwrap() = Ok(password("d"));
        assert_eq!(version().await, 2);
        assert_eq!(secrets.lock().problem, None);
    }
}
