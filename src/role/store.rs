//! The store of a control plane, whichever it is.

use std::sync::Arc;

use tombolo_federation::store::Store;
use tombolo_federation::store::embedded::Embedded;

use crate::config::ControlPlaneConfig;
use crate::state_dir::StateDir;

/// An open store, to be closed when nobody uses it any more.
pub(crate) enum Opened {
    Embedded(Arc<Embedded>),
}

/// Opens the store that the configuration names: the embedded one, in the state directory, by
/// default.
pub(crate) async fn open(config: &ControlPlaneConfig, state: &StateDir) -> anyhow::Result<Opened> {
    let etcd = config.store.as_ref().and_then(|store| store.etcd.as_ref());
    anyhow::ensure!(
        etcd.is_none(),
        "store.etcd: this build has no etcd, leave `store` out to keep the region in {}",
        config.state_dir.display()
    );
    Ok(Opened::Embedded(Arc::new(Embedded::open(state.file("store.redb")).await?)))
}

impl Opened {
    /// What the region is kept in.
    pub(crate) fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Embedded(embedded) => Arc::<Embedded>::clone(embedded),
        }
    }

    /// Lets go of it.
    pub(crate) async fn close(self) {
        match self {
            Self::Embedded(embedded) => embedded.close().await,
        }
    }
}
