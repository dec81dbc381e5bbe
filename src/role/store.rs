//! The store of a control plane, whichever it is.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use tombolo_federation::store::Store;
use tombolo_federation::store::embedded::Embedded;
use tombolo_federation::store::etcd::{
    Etcd, EtcdConfig, EtcdCredentials, EtcdSecrets, EtcdTls, Reload,
};
use tracing::info;

use crate::config::{ControlPlaneConfig, EtcdStore};
use crate::state_dir::StateDir;

/// An open store, to be closed when nobody uses it any more.
pub(crate) enum Opened {
    Embedded(Arc<Embedded>),
    Etcd(Arc<Etcd>),
}

/// Opens the store that the configuration names: the embedded one, in the state directory, by
/// default. etcd need not be there: what was restored from disk is served until it is.
pub(crate) async fn open(config: &ControlPlaneConfig, state: &StateDir) -> anyhow::Result<Opened> {
    let etcd = config.store.as_ref().and_then(|store| store.etcd.as_ref());
    let Some(etcd) = etcd else {
        return Ok(Opened::Embedded(Arc::new(Embedded::open(state.file("store.redb")).await?)));
    };
    let config = etcd_config(etcd)?;
    let endpoints = config.endpoints.join(" ");
    let connected = Etcd::connect(config).await.context("store.etcd cannot be used")?;
    info!(endpoints, "the region's store is etcd");
    Ok(Opened::Etcd(Arc::new(connected)))
}

fn etcd_config(etcd: &EtcdStore) -> anyhow::Result<EtcdConfig> {
    let endpoints: Vec<String> = etcd.endpoints.iter().map(ToString::to_string).collect();
    let mut config = EtcdConfig::new(&endpoints);
    config.request_timeout = etcd.request_timeout.0;
    config.quota = etcd.quota;
    let files = etcd.clone();
    let reread = move || secrets(&files).map_err(|error| format!("{error:#}"));
    config.reload = Some(Reload::new(reread));
    let EtcdSecrets { tls, credentials } = secrets(etcd)?;
    Ok(EtcdConfig { tls, credentials, ..config })
}

/// As the files have them now.
fn secrets(etcd: &EtcdStore) -> anyhow::Result<EtcdSecrets> {
    let mut secrets = EtcdSecrets::default();
    if let (Some(ca), Some(cert), Some(key)) = (&etcd.ca, &etcd.cert, &etcd.key) {
        secrets.tls = Some(EtcdTls {
            ca_pem: read("store.etcd.ca", ca)?,
            cert_pem: read("store.etcd.cert", cert)?,
            key_pem: read("store.etcd.key", key)?,
            domain: None,
        });
    }
    if let (Some(user), Some(file)) = (&etcd.user, &etcd.password_file) {
        let password = read("store.etcd.passwordFile", file)?;
        let password = password.trim_end_matches(['\r', '\n']).to_owned();
        secrets.credentials = Some(EtcdCredentials { user: user.clone(), password });
    }
    Ok(secrets)
}

fn read(field: &str, path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path);
    text.with_context(|| format!("{field}: {} cannot be read", path.display()))
}

impl Opened {
    /// What the region is kept in.
    pub(crate) fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Embedded(embedded) => Arc::<Embedded>::clone(embedded),
            Self::Etcd(etcd) => Arc::<Etcd>::clone(etcd),
        }
    }

    /// Lets go of it.
    pub(crate) async fn close(self) {
        match self {
            Self::Embedded(embedded) => embedded.close().await,
            // Its connections end with it.
            Self::Etcd(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_file_that_was_replaced_is_read_anew() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        std::fs::write(&file, "first\n").unwrap();
        let text = format!(
            "endpoints: ['http://etcd:2379']\nuser: tombolo\npasswordFile: {}\n",
            file.display()
        );
        let config = etcd_config(&serde_saphyr::from_str(&text).unwrap()).unwrap();
        let password = |secrets: EtcdSecrets| secrets.credentials.unwrap().password;
        assert_eq!(config.credentials.unwrap().password, "first");
        let reload = config.reload.unwrap();
        std::fs::write(&file, "second\n").unwrap();
        assert_eq!(reload.read().map(password), Ok("second".to_owned()));
        std::fs::remove_file(&file).unwrap();
        assert!(reload.read().unwrap_err().contains("store.etcd.passwordFile"));
    }
}
