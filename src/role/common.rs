//! What both roles have: an identity on disk, DNS and xDS over one catalog, what the admin server
//! shows.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tombolo_ca::Clock;
use tombolo_ca::identity::Identity;
use tombolo_ca::material::directory::{Directory, report};
use tombolo_ca::material::{Held, Holder};
use tombolo_ca::renew::{Issuer, Renewer};
use tombolo_dns::server::{Bound as BoundDns, Config as DnsConfig, Metrics as DnsMetrics, Server};
use tombolo_dns::{View, Zone};
use tombolo_federation::catalog::Snapshots;
use tombolo_federation::names::MeshDomain;
use tombolo_proxy::{AdsConfig, AdsServer, ClientLocality};
use tracing::info;

use super::admin;
use super::status::CatalogStatus;
use super::tasks::Tasks;
use crate::config::{CLUSTERSET_ZONE, Listen};

/// How often files with keys and bundles are looked at.
const LOOK_AT_FILES: Duration = Duration::from_secs(5);

/// A process's own identity and whom it trusts, kept fresh from its files.
pub(crate) struct OwnIdentity {
    pub(crate) holder: Arc<Holder>,
    directory: Directory,
    path: PathBuf,
}

impl OwnIdentity {
    pub(crate) fn load(path: &Path, mesh: &MeshDomain) -> anyhow::Result<Self> {
        let mut directory = Directory::new(path, mesh.clone());
        let loaded = directory.load(Timestamp::now())?;
        report(&loaded.refused);
        let holder = Arc::new(Holder::new(loaded.material));
        Ok(Self { holder, directory, path: path.to_owned() })
    }

    pub(crate) fn held(&self) -> Held {
        self.holder.held()
    }

    /// A process with another's certificate would be refused by everybody: better told here.
    pub(crate) fn expect(&self, wanted: &Identity) -> anyhow::Result<()> {
        let held = self.holder.current();
        let found = held.credential().identity();
        anyhow::ensure!(
            found == wanted,
            "the certificate in {} is that of the {found}, this process is the {wanted}",
            self.path.display()
        );
        Ok(())
    }

    /// Renews the certificate at half its life, also on disk for the next start. Returns whether all
    /// who are asked for that say that they have no CA.
    pub(crate) fn renew(
        &self,
        tasks: &mut Tasks,
        issuer: Issuer,
        stop: &CancellationToken,
    ) -> watch::Receiver<bool> {
        let renewer = Renewer::new(Arc::clone(&self.holder), issuer, Clock::system())
            .saving_to(self.path.clone());
        let (nobody, stop) = (renewer.nobody(), stop.clone());
        tasks.start("certificate renewal", async move {
            renewer.run(stop).await;
            Ok(())
        });
        nobody
    }

    /// Follows the files.
    pub(crate) fn watch(self, tasks: &mut Tasks, stop: CancellationToken) {
        let Self { holder, directory, .. } = self;
        tasks.start("identity files", async move {
            directory.watch(&holder, Clock::system(), LOOK_AT_FILES, stop).await;
            Ok(())
        });
    }
}

/// What somebody has to do about the certificate in use. Renewals begin at half its life; from the last
/// quarter on it is told that none got through. `renewed`: somebody is asked for them.
pub(crate) fn certificate_problem(held: &Held, renewed: bool) -> Option<String> {
    let current = held.current();
    let credential = current.credential();
    overdue(credential.renewal_due(), credential.expires(), renewed, Timestamp::now())
}

fn overdue(due: Timestamp, expires: Timestamp, renewed: bool, now: Timestamp) -> Option<String> {
    let half = expires.duration_since(due) / 2;
    if now.duration_since(due) < half {
        return None;
    }
    let why = if renewed {
        "its renewals fail, the log says why"
    } else {
        "nobody renews it: issue another one, give this replica the region's CA, or name in its \
         addresses the replicas that have it"
    };
    Some(format!("it ends at {expires} and should have been renewed at {due}: {why}"))
}

/// A role's sockets.
pub(crate) struct Sockets {
    pub(crate) grpc: TcpListener,
    pub(crate) dns: BoundDns,
    pub(crate) admin: TcpListener,
}

impl Sockets {
    /// Binds all, so that a port in use is told before anything runs.
    pub(crate) async fn bind(
        listen: &Listen,
        snapshots: Snapshots,
        locality: ClientLocality,
        server: String,
        stop: CancellationToken,
    ) -> anyhow::Result<(Self, Serving)> {
        let grpc = admin::bind("gRPC", listen.grpc).await?;
        let admin = admin::bind("the admin API", listen.admin).await?;
        let (serving, dns) = Serving::bind(snapshots, locality, server, listen.dns, stop).await?;
        Ok((Self { grpc, dns, admin }, serving))
    }

    /// Logs where they really are.
    pub(crate) fn announce(&self) -> anyhow::Result<()> {
        let (grpc, admin) = (self.grpc.local_addr()?, self.admin.local_addr()?);
        info!(%grpc, dns = %self.dns.local_addr(), %admin, "listening");
        Ok(())
    }
}

/// What a role serves from its catalog.
pub(crate) struct Serving {
    pub(crate) snapshots: Snapshots,
    pub(crate) zone: Zone,
    pub(crate) view: View,
    pub(crate) ads: AdsServer,
    pub(crate) registry: Registry,
    pub(crate) started: Instant,
}

impl Serving {
    /// Binds DNS; proxies are served on the role's gRPC port.
    async fn bind(
        snapshots: Snapshots,
        locality: ClientLocality,
        server: String,
        dns: std::net::SocketAddr,
        stop: CancellationToken,
    ) -> anyhow::Result<(Self, BoundDns)> {
        let zone: Zone = CLUSTERSET_ZONE.parse()?;
        let view = View::Endpoints {
            region: locality.region.clone(),
            cluster: locality.cluster.clone(),
            zone: locality.zone.as_deref().map(str::to_owned),
            network: locality.network.to_string(),
        };
        let mut registry = Registry::default();
        let metrics = DnsMetrics::register(registry.sub_registry_with_prefix("tombolo"));
        let config = DnsConfig::new(zone.clone(), view.clone(), metrics);
        let dns = Server::bind(dns, snapshots.clone(), config).await?;
        let config = AdsConfig { identifier: server, ..AdsConfig::new(locality) };
        let ads = AdsServer::new(snapshots.clone(), config, stop);
        ads.register(&mut registry);
        let started = Instant::now();
        Ok((Self { snapshots, zone, view, ads, registry, started }, dns))
    }

    /// Starts DNS, and the following of the catalog for xDS.
    pub(crate) fn start(&self, tasks: &mut Tasks, dns: BoundDns, stop: &CancellationToken) {
        let dns_stop = stop.clone();
        tasks.start("dns", async move { Ok(dns.run(dns_stop).await?) });
        let (ads, stop) = (self.ads.clone(), stop.clone());
        tasks.start("xds", async move {
            ads.run().await;
            // It also ends with the catalog, whose task then says why.
            stop.cancelled().await;
            Ok(())
        });
    }

    /// What DNS would answer, and why.
    pub(crate) fn explain(
        &self,
        name: &str,
        record_type: &str,
    ) -> Result<serde_json::Value, String> {
        let catalog = self.snapshots.current();
        let explained = tombolo_dns::explain::resolve(
            &self.zone,
            &self.view,
            catalog.as_deref(),
            name,
            record_type,
        )
        .map_err(|error| error.to_string())?;
        serde_json::to_value(explained).map_err(|error| error.to_string())
    }

    pub(crate) fn catalog(&self) -> Option<CatalogStatus> {
        self.snapshots.current().map(|catalog| CatalogStatus::of(&catalog))
    }

    pub(crate) fn proxies(&self) -> serde_json::Value {
        serde_json::to_value(self.ads.proxies()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_that_is_not_renewed_is_told_of_in_its_last_quarter() {
        let at = |hour: i64| Timestamp::from_second(hour * 3600).unwrap();
        let (due, expires) = (at(12), at(24));
        assert_eq!(overdue(due, expires, true, at(0)), None);
        assert_eq!(overdue(due, expires, true, at(17)), None);
        let why = overdue(due, expires, true, at(18)).unwrap();
        assert!(why.contains("its renewals fail"), "{why}");
        assert!(overdue(due, expires, false, at(30)).unwrap().contains("nobody renews it"));
    }
}
