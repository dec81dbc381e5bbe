//! `tombolo control-plane`: a region's store, its federation API, CA, DNS and xDS.

mod gate;
mod leading;
mod region;
mod view;

use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tombolo_ca::Clock;
use tombolo_ca::identity::Identity;
use tombolo_ca::material::Held;
use tombolo_ca::region::RegionCa;
use tombolo_ca::renew::Issuer;
use tombolo_ca::service::Authority;
use tombolo_federation::cache::Image;
use tombolo_federation::catalog::{self, Publisher};
use tombolo_federation::replica::{self, Batch, ReplicaWriter};
use tombolo_federation::store::Store;
use tombolo_federation::sync::ask::Asking;
use tombolo_federation::sync::local::{self, Facts};
use tombolo_federation::sync::service::FederationApi;
use tombolo_federation::sync::{compactor, facts, follower};
use tombolo_proxy::ClientLocality;
use tonic::service::Routes;
use tracing::{info, warn};

use self::gate::{Told, settle, start_catalog};
use self::leading::Candidate;
use self::view::View;
use super::admin;
use super::cache::{self, Opened};
use super::common::{OwnIdentity, Serving, Sockets};
use super::grpc::{self, Way};
use super::operator::{self};
use super::store_health::{self};
use super::tasks::Tasks;
use super::{store, wall_clock};
use crate::config::ControlPlaneConfig;
use crate::state_dir::StateDir;

/// A control plane whose sockets are bound; nothing runs yet.
pub(crate) struct ControlPlane {
    config: ControlPlaneConfig,
    state: StateDir,
    identity: OwnIdentity,
    ca: Option<Arc<RegionCa>>,
    sockets: Sockets,
    serving: Serving,
    operator: operator::Bound,
    calls: operator::Calls,
    publisher: Publisher,
    stop: CancellationToken,
}

impl ControlPlane {
    /// Opens files and binds sockets; everything that a person has to mend fails here.
    pub(crate) async fn bind(
        config: ControlPlaneConfig,
        stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        config.check()?;
        let belongs_to = format!("{}/{}", config.mesh, config.region);
        let state = StateDir::open(&config.state_dir, &belongs_to)?;
        let identity = OwnIdentity::load(&config.identity, &config.mesh)?;
        identity.expect(&Identity::ControlPlane { region: config.region.clone() })?;
        let ca_dir = config.identity.join("ca");
        let ca = ca_dir.is_dir().then(|| RegionCa::load(&ca_dir, &config.region, &config.mesh));
        let ca = ca.transpose().context("the region's CA cannot be used")?.map(Arc::new);
        let (publisher, snapshots) = catalog::channel();
        let locality = ClientLocality {
            region: config.region.clone(),
            zone: None,
            cluster: None,
            network: config.network.as_str().into(),
        };
        let server = format!("control-plane/{}", config.region);
        let bound = Sockets::bind(&config.listen, snapshots, locality, server, stop.clone());
        let (sockets, mut serving) = bound.await?;
        let operator = operator::bind(&config.operator_socket())?;
        let calls = operator::Calls::register(&mut serving.registry);
        Ok(Self { config, state, identity, ca, sockets, serving, operator, calls, publisher, stop })
    }

    /// Runs until stopped or until the first task fails.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        self.sockets.announce()?;
        // Before the store, which may be away.
        let belongs_to = format!("control plane of {}/{}", self.config.mesh, self.config.region);
        let disk = cache::open(&self.state, belongs_to).await?;
        let opened = store::open(&self.config, &self.state).await?;
        let outcome = self.run_on(opened.store(), disk).await;
        opened.close().await;
        outcome
    }

    async fn run_on(self, store: Arc<dyn Store>, disk: Opened) -> anyhow::Result<()> {
        let Self { config, state, identity, ca, sockets, mut serving, operator, calls, .. } = self;
        let (publisher, stop) = (self.publisher, self.stop);
        let (writer, replicas) = replica::channel();
        let held = identity.held();
        let (image, restored, kept) = disk.into_parts();
        let resume = image.as_ref().and_then(cache::resume_point);
        let from_disk = image.is_some();
        if let Some(image) = image {
            restore(&writer, image);
        }
        let mut tasks = Tasks::new(stop.clone());
        let asking = Asking {
            store: Arc::clone(&store),
            replicas: replicas.clone(),
            region: config.region.clone(),
            sessions: follow(&mut tasks, "sessions", &store, facts::sessions_prefix()),
            left: follow(&mut tasks, "departures", &store, facts::left_prefix()),
            stop: stop.clone(),
        };
        let asks = follow(&mut tasks, "asks", &store, facts::asks_prefix());
        let election = follow(&mut tasks, "election", &store, facts::election_key());
        let nobody_renews = match issuer(&config, ca.as_ref(), &held)? {
            Some(issuer) => identity.renew(&mut tasks, issuer, &stop),
            None => watch::channel(true).1,
        };
        let (whole, whole_rx) = watch::channel(false);
        let api = FederationApi::new(
            config.region.clone(),
            Arc::clone(&store),
            replicas.clone(),
            whole_rx,
            wall_clock(),
            stop.clone(),
        )
        .with_limits(config.limits.into());
        api.register(serving.registry.sub_registry_with_prefix("tombolo"));
        let view = Arc::new(View::new(
            config,
            asking,
            held.clone(),
            (serving, restored),
            election,
            nobody_renews,
            api.claims(),
        ));
        operator::start(&mut tasks, operator, &view, calls, &stop);
        let (settled, settled_rx) = watch::channel(false);
        let settling = settle(view.config.region.clone(), replicas.clone(), settled);
        tasks.start_endless("settling", settling);
        let api = api.once_settled(settled_rx);
        let mut routes =
            Routes::new(api.into_service()).add_service(view.serving.ads.into_service());
        if let Some(ca) = ca {
            let authority = Authority::new(ca, Clock::system());
            routes = routes.add_service(authority.into_service());
        }
        tasks.start("grpc", grpc::serve(sockets.grpc, held.clone(), routes, stop.clone()));
        view.serving.start(&mut tasks, sockets.dns, &stop);
        admin::start(&mut tasks, sockets.admin, Arc::<View>::clone(&view), &stop);
        let region = view.config.region.clone();
        let follower =
            follower::follow(Arc::clone(&store), Arc::new(writer), resume, view.following.clone());
        tasks.start_fallible("store follower", async move { follower.await.map_err(Into::into) });
        let kept_whole = watch::Sender::new(from_disk);
        let resume_point = cache::with_resume_point(view.following.subscribe());
        let keep = kept_whole.subscribe();
        cache::keep(&mut tasks, kept, replicas.clone(), keep, resume_point, &stop);
        let told = Told { agents: whole, cache: kept_whole };
        start_catalog(&mut tasks, &replicas, publisher, region, told);
        let health = store_health::watch(Arc::clone(&store), view.members.clone());
        tasks.start_endless("store health", health);
        let compacting = compactor::compact(
            Arc::clone(&store),
            replicas.clone(),
            view.leading.subscribe(),
            view.compaction.clone(),
        );
        tasks.start_endless("compactor", compacting);
        let following = view.following.subscribe();
        let candidate = Candidate { store, replicas, following, held, asks, view };
        tasks.start("leader", candidate.run(stop.clone()));
        identity.watch(&mut tasks, stop);
        let outcome = tasks.run().await;
        drop(state);
        outcome
    }
}

/// Who renews this replica's certificate: the region's CA, which is here or at another replica.
fn issuer(
    config: &ControlPlaneConfig,
    ca: Option<&Arc<RegionCa>>,
    held: &Held,
) -> anyhow::Result<Option<Issuer>> {
    if let Some(ca) = ca {
        return Ok(Some(Issuer::Local(Arc::clone(ca))));
    }
    let Some(others) = config.other_replicas() else {
        warn!(
            "nobody renews this certificate: there is no ca/ beside it, nor another replica in addresses"
        );
        return Ok(None);
    };
    // Where addresses are names, this replica may be one of them: only asking tells who has the CA.
    let asked: Vec<_> = others.as_slice().iter().map(ToString::to_string).collect();
    info!(
        ?asked,
        "there is no ca/ beside this certificate: others of addresses are asked to renew it"
    );
    let expected = Identity::ControlPlane { region: config.region.clone() };
    let Way { endpoint, connector } = Way::new(&others, expected, held)?;
    Ok(Some(Issuer::Remote { endpoint: Box::new(endpoint), connector }))
}

/// Follows local facts of the store.
fn follow(
    tasks: &mut Tasks,
    name: &'static str,
    store: &Arc<dyn Store>,
    prefix: String,
) -> watch::Receiver<Facts> {
    let (tx, rx) = watch::channel(None);
    let follow = local::follow(Arc::clone(store), prefix, tx);
    tasks.start_fallible(name, async move { Err(follow.await.into()) });
    rx
}

/// Holds what was restored from disk. At no position: what agents and peers are sent is the store's
/// word, which comes when the store was read. What the store has lost of it then is written back.
fn restore(writer: &ReplicaWriter, image: Image) {
    let batch = Batch { position: None, ..image.into_batch(None) };
    writer.apply(batch, Instant::now());
}
