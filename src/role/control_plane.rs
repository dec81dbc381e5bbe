//! `tombolo control-plane`: a region's store, its federation API, CA, DNS and xDS.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tombolo_ca::Clock;
use tombolo_ca::identity::Identity;
use tombolo_ca::material::Held;
use tombolo_ca::region::RegionCa;
use tombolo_ca::renew::Issuer;
use tombolo_ca::service::Authority;
use tombolo_federation::catalog::{self, Publisher};
use tombolo_federation::names::{Owner, RegionName};
use tombolo_federation::record::{Epoch, READS_LEVEL, Region};
use tombolo_federation::replica::{self, Replica, Replicas};
use tombolo_federation::store::election;
use tombolo_federation::store::embedded::Embedded;
use tombolo_federation::store::{Guard, Store, StoreError};
use tombolo_federation::sync::client::Link;
use tombolo_federation::sync::follower::Following;
use tombolo_federation::sync::leader::{Leader, LeaderError};
use tombolo_federation::sync::own::OwnRecords;
use tombolo_federation::sync::service::FederationApi;
use tombolo_federation::sync::{compactor, facts, follower, mirror, reseed, spokesman};
use tombolo_proxy::ClientLocality;
use tonic::service::Routes;
use tracing::{info, warn};

use super::admin::{self, Visible};
use super::catalog::{Gate, build};
use super::common::{OwnIdentity, Serving, Sockets};
use super::status::{self, LinkStatus, Status};
use super::tasks::Tasks;
use super::{grpc, wall_clock};
use crate::config::{ControlPlaneConfig, Peer};
use crate::state_dir::StateDir;

/// A leader that gives no sign of life for so long is succeeded.
const LEADER_TTL: Duration = Duration::from_secs(3);
/// How long a control plane waits for its agents before what it has is taken for all.
const AGENTS_COME_WITHIN: Duration = Duration::from_secs(10);

/// A control plane whose sockets are bound; nothing runs yet.
pub(crate) struct ControlPlane {
    config: ControlPlaneConfig,
    state: StateDir,
    identity: OwnIdentity,
    ca: Option<Arc<RegionCa>>,
    sockets: Sockets,
    serving: Serving,
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
        let (sockets, serving) = bound.await?;
        Ok(Self { config, state, identity, ca, sockets, serving, publisher, stop })
    }

    /// Runs until stopped or until the first task fails.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        self.sockets.announce()?;
        let embedded = Arc::new(Embedded::open(self.state.file("store.redb")).await?);
        let store: Arc<dyn Store> = Arc::<Embedded>::clone(&embedded);
        let outcome = self.run_on(store).await;
        embedded.close().await;
        outcome
    }

    async fn run_on(self, store: Arc<dyn Store>) -> anyhow::Result<()> {
        let Self { config, state, identity, ca, sockets, serving, publisher, stop } = self;
        let (writer, replicas) = replica::channel();
        let held = identity.held();
        let view = Arc::new(View::new(config, replicas.clone(), held.clone(), serving));

        let mut tasks = Tasks::new(stop.clone());
        let (whole, whole_rx) = watch::channel(false);
        let following = watch::Sender::new(Following::default());
        let api = FederationApi::new(
            view.config.region.clone(),
            Arc::clone(&store),
            replicas.clone(),
            whole_rx,
            wall_clock(),
            stop.clone(),
        );
        let mut routes =
            Routes::new(api.into_service()).add_service(view.serving.ads.into_service());
        if let Some(ca) = &ca {
            let authority = Authority::new(Arc::clone(ca), Clock::system());
            routes = routes.add_service(authority.into_service());
        }
        tasks.start("grpc", grpc::serve(sockets.grpc, held.clone(), routes, stop.clone()));
        view.serving.start(&mut tasks, sockets.dns, &stop);
        admin::start(&mut tasks, sockets.admin, Arc::<View>::clone(&view), &stop);
        let region = view.config.region.clone();
        let follower =
            follower::follow(Arc::clone(&store), Arc::new(writer), None, following.clone());
        tasks.start_fallible("store follower", async move { follower.await.map_err(Into::into) });
        start_catalog(&mut tasks, &replicas, publisher, region, whole);
        let own = OwnRecords::new(Owner::region(view.config.region.clone()), state.epoch());
        let own = Arc::new(Mutex::new(own));
        let following = following.subscribe();
        let region =
            Spokesman { epoch: state.epoch(), own, store, replicas, following, held, view };
        tasks.start("leader", region.run(stop.clone()));
        if let Some(ca) = ca {
            identity.renew(&mut tasks, Issuer::Local(ca), &stop);
        }
        identity.watch(&mut tasks, stop);
        let outcome = tasks.run().await;
        drop(state);
        outcome
    }
}

/// Opens the catalog once what was read of the store is whole, and says so; see [`gate`].
fn start_catalog(
    tasks: &mut Tasks,
    replicas: &Replicas,
    publisher: Publisher,
    region: RegionName,
    whole: watch::Sender<bool>,
) {
    let (gate_tx, gate_rx) = watch::channel(Gate::Closed);
    tasks.start_endless("gate", gate(region, replicas.clone(), gate_tx, whole));
    tasks.start_fallible("catalog", build(replicas.clone(), gate_rx, publisher));
}

/// Opens the catalog once the store was read, a cluster of this region is complete, and so is every
/// owner that is held: what was complete when it was committed is complete when it is read back. A
/// store that is new, or was lost, has nothing to vouch for until its agents have come, which they
/// are given 10 s for; until then what is not found is not known (RELIABILITY promise 4).
///
/// The same word goes to agents that subscribe: they open their own catalogs by it.
async fn gate(
    region: RegionName,
    mut replicas: Replicas,
    gate: watch::Sender<Gate>,
    told: watch::Sender<bool>,
) {
    if replicas.wait_for(|replica| replica.position > 0).await.is_some() {
        gate.send_replace(Gate::Partial);
        let whole = replicas.wait_for(|replica| is_whole(&region, replica));
        if tokio::time::timeout(AGENTS_COME_WITHIN, whole).await.is_err() {
            info!("not all owners are complete, serving what there is");
        }
        gate.send_replace(Gate::Open);
        told.send_replace(true);
    }
    // The catalog follows the gate for as long as it stands.
    std::future::pending::<()>().await;
}

fn is_whole(region: &RegionName, replica: &Replica) -> bool {
    let own = |owner: &Owner| owner.region == *region && owner.cluster.is_some();
    replica.owners().any(|(owner, holding)| own(owner) && status::has_spoken(holding))
        && replica.owners().all(|(_, holding)| status::has_spoken(holding))
}

/// Speaks for the region and mirrors its peers, whenever this process leads.
struct Spokesman {
    epoch: Epoch,
    /// One for all terms: a new one would begin its sequence anew in the same epoch.
    own: Arc<Mutex<OwnRecords>>,
    store: Arc<dyn Store>,
    replicas: Replicas,
    following: watch::Receiver<Following>,
    held: Held,
    view: Arc<View>,
}

impl Spokesman {
    async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        loop {
            let id = format!("{}@{}", self.view.config.region, self.epoch);
            let key = facts::election_key();
            let campaign = election::campaign(Arc::clone(&self.store), &key, &id, LEADER_TTL);
            let leadership = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                leadership = campaign => leadership?,
            };
            info!(region = %self.view.config.region, "leading");
            self.view.leading.send_replace(true);
            let ended = tokio::select! {
                () = stop.cancelled() => None,
                () = leadership.lost() => Some(Ok(LeaderError::NotLeader)),
                ended = self.lead(leadership.fence()) => Some(ended),
            };
            self.view.leading.send_replace(false);
            leadership.resign().await;
            match ended {
                None => return Ok(()),
                Some(Ok(LeaderError::NotLeader)) => warn!("leadership lost, campaigning anew"),
                Some(Ok(error)) => return Err(error.into()),
                Some(Err(error)) => return Err(error),
            }
        }
    }

    /// Ends with the first part that ends.
    async fn lead(&self, fence: Guard) -> anyhow::Result<LeaderError> {
        let mut leader =
            Leader { store: Arc::clone(&self.store), fence, replicas: self.replicas.clone() };
        // Before anybody is compared with the store: what it has lost would look like their word.
        let written = reseed::reseed(&mut leader, &self.following).await;
        match written {
            Ok(0) => {}
            Ok(records) => warn!(records, "what the store had lost was written back"),
            Err(LeaderError::Store(error)) if !matches!(error, StoreError::Damaged(_)) => {
                warn!(%error, "what the store has lost cannot be written back yet");
                tokio::time::sleep(LEADER_TTL).await;
                return Ok(LeaderError::NotLeader);
            }
            Err(error) => return Ok(error),
        }
        let config = &self.view.config;
        let own = Arc::clone(&self.own);
        let mut parts = JoinSet::new();
        parts.spawn(spokesman::speak_for_region(leader.clone(), own, self.view.region()));
        parts.spawn(reseed::keep_seeded(
            leader.clone(),
            config.region.clone(),
            self.following.clone(),
        ));
        let compacting = compactor::compact(Arc::clone(&self.store), self.replicas.clone());
        parts.spawn(async move {
            compacting.await;
            LeaderError::Stopping
        });
        for peer in &config.peers {
            let expected = Identity::ControlPlane { region: peer.region.clone() };
            let channel = grpc::dial(&peer.address, expected, &self.held)?;
            let link = self.view.links[&peer.region].clone();
            parts.spawn(mirror::mirror(leader.clone(), peer.region.clone(), channel, link));
        }
        let ended = parts.join_next().await.context("a leader has at least its own region")?;
        Ok(ended?)
    }
}

/// What the admin server sees.
struct View {
    config: ControlPlaneConfig,
    replicas: Replicas,
    held: Held,
    leading: watch::Sender<bool>,
    links: BTreeMap<RegionName, watch::Sender<Link>>,
    serving: Serving,
}

impl View {
    fn new(config: ControlPlaneConfig, replicas: Replicas, held: Held, serving: Serving) -> Self {
        let link = |peer: &Peer| (peer.region.clone(), watch::Sender::default());
        let links = config.peers.iter().map(link).collect();
        Self { config, replicas, held, leading: watch::Sender::new(false), links, serving }
    }

    /// What the region says of itself.
    fn region(&self) -> Region {
        let addresses = match &self.config.addresses[..] {
            [] => vec![self.config.listen.grpc.to_string()],
            addresses => addresses.iter().map(ToString::to_string).collect(),
        };
        Region {
            addresses,
            distances: self.config.distances.clone(),
            reads_level: READS_LEVEL,
            software_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Region::default()
        }
    }
}

impl Visible for View {
    fn status(&self) -> Status {
        let catalog = self.serving.catalog();
        let pending = match &catalog {
            None => vec!["the first reading of the store".to_owned()],
            Some(catalog) if !catalog.complete => vec!["this region's agents".to_owned()],
            Some(_) => Vec::new(),
        };
        let links = self.links.iter();
        let links =
            links.map(|(peer, link)| LinkStatus::of(format!("peer {peer}"), &link.borrow()));
        Status {
            role: "control-plane".to_owned(),
            mesh: self.config.mesh.to_string(),
            region: self.config.region.to_string(),
            cluster: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: pending.is_empty(),
            pending,
            leader: Some(*self.leading.borrow()),
            catalog,
            sources: status::sources(&self.replicas.clone().current(), None, self.serving.started),
            links: links.collect(),
            problems: Vec::new(),
            source: None,
            certificate_expires: Some(self.held.current().credential().expires()),
            proxies: self.serving.ads.proxies().len(),
        }
    }

    fn serving(&self) -> &Serving {
        &self.serving
    }
}
