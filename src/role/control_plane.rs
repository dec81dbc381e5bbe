//! `tombolo control-plane`: a region's store, its federation API, CA, DNS and xDS.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
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
use tombolo_federation::names::{Owner, RegionName};
use tombolo_federation::record::{Epoch, READS_LEVEL, Region};
use tombolo_federation::replica::{self, Batch, Replica, ReplicaWriter, Replicas};
use tombolo_federation::store::election;
use tombolo_federation::store::embedded::Embedded;
use tombolo_federation::store::{Guard, Member, Store, StoreError};
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
use super::cache::{self, Opened, Restored};
use super::catalog::{Gate, build};
use super::common::{OwnIdentity, Serving, Sockets};
use super::status::{self, CacheStatus, LinkStatus, Sources, Status};
use super::store_health::{self, StoreStatus};
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
        // Before the store, which may be away.
        let belongs_to = format!("control plane of {}/{}", self.config.mesh, self.config.region);
        let opened = cache::open(&self.state, belongs_to).await?;
        let embedded = Arc::new(Embedded::open(self.state.file("store.redb")).await?);
        let store: Arc<dyn Store> = Arc::<Embedded>::clone(&embedded);
        let outcome = self.run_on(store, opened).await;
        embedded.close().await;
        outcome
    }

    async fn run_on(self, store: Arc<dyn Store>, opened: Opened) -> anyhow::Result<()> {
        let Self { config, state, identity, ca, sockets, serving, publisher, stop } = self;
        let (writer, replicas) = replica::channel();
        let held = identity.held();
        let (image, restored, kept) = opened.into_parts();
        let resume = image.as_ref().and_then(cache::resume_point);
        let from_disk = image.is_some();
        if let Some(image) = image {
            restore(&writer, image);
        }
        let view = View::new(config, replicas.clone(), held.clone(), (serving, restored));
        let view = Arc::new(view);

        let mut tasks = Tasks::new(stop.clone());
        let (whole, whole_rx) = watch::channel(false);
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
            follower::follow(Arc::clone(&store), Arc::new(writer), resume, view.following.clone());
        tasks.start_fallible("store follower", async move { follower.await.map_err(Into::into) });
        let kept_whole = watch::Sender::new(from_disk);
        let resume_point = cache::with_resume_point(view.following.subscribe());
        let keep = kept_whole.subscribe();
        cache::keep(&mut tasks, kept, replicas.clone(), keep, resume_point, &stop);
        let told = Told { agents: whole, cache: kept_whole };
        start_catalog(&mut tasks, &replicas, publisher, region, told);
        let own = OwnRecords::new(Owner::region(view.config.region.clone()), state.epoch());
        let own = Arc::new(Mutex::new(own));
        let following = view.following.subscribe();
        let health = store_health::watch(Arc::clone(&store), view.members.clone());
        tasks.start_endless("store health", health);
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

/// Holds what was restored from disk. At no position: what agents and peers are sent is the store's
/// word, which comes when the store was read. What the store has lost of it then is written back.
fn restore(writer: &ReplicaWriter, image: Image) {
    let batch = Batch { position: None, ..image.into_batch(None) };
    writer.apply(batch, Instant::now());
}

/// Who is told that all is there.
struct Told {
    /// Agents that subscribe: they open their own catalogs by it.
    agents: watch::Sender<bool>,
    /// The disk cache, which keeps nothing less. From the start if an image was restored: what is held
    /// is never less than that was.
    cache: watch::Sender<bool>,
}

/// Opens the catalog at once for what was restored from disk, else once what was read of the store
/// is whole, and says so; see [`gate`].
fn start_catalog(
    tasks: &mut Tasks,
    replicas: &Replicas,
    publisher: Publisher,
    region: RegionName,
    told: Told,
) {
    let restored = *told.cache.borrow();
    let first = if restored { Gate::Open } else { Gate::Closed };
    let (gate_tx, gate_rx) = watch::channel(first);
    tasks.start_endless("gate", gate(region, replicas.clone(), gate_tx, told));
    tasks.start_fallible("catalog", build(replicas.clone(), gate_rx, publisher));
}

/// Opens the catalog once the store was read, a cluster of this region is complete, and so is every
/// owner that is held: what was complete when it was committed is complete when it is read back. A
/// store that is new, or was lost, has nothing to vouch for until its agents have come, which they
/// are given 10 s for; until then what is not found is not known (RELIABILITY promise 4), unless it
/// was restored from disk: then the catalog is open already.
///
/// The same word goes to agents that subscribe. What is only taken for all is not kept on disk.
async fn gate(region: RegionName, mut replicas: Replicas, gate: watch::Sender<Gate>, told: Told) {
    if replicas.wait_for(|replica| replica.position > 0).await.is_some() {
        if *gate.borrow() == Gate::Closed {
            gate.send_replace(Gate::Partial);
        }
        let whole = replicas.wait_for(|replica| is_whole(&region, replica));
        if tokio::time::timeout(AGENTS_COME_WITHIN, whole).await.is_err() {
            info!("not all owners are complete, serving what there is");
        }
        gate.send_replace(Gate::Open);
        told.agents.send_replace(true);
        if replicas.wait_for(|replica| is_whole(&region, replica)).await.is_some() {
            told.cache.send_replace(true);
        }
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
    restored: Restored,
    following: watch::Sender<Following>,
    members: watch::Sender<Vec<Member>>,
}

impl View {
    fn new(
        config: ControlPlaneConfig,
        replicas: Replicas,
        held: Held,
        (serving, restored): (Serving, Restored),
    ) -> Self {
        let link = |peer: &Peer| (peer.region.clone(), watch::Sender::default());
        let links = config.peers.iter().map(link).collect();
        let leading = watch::Sender::new(false);
        Self {
            config,
            replicas,
            held,
            leading,
            links,
            serving,
            restored,
            following: watch::Sender::default(),
            members: watch::Sender::default(),
        }
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
        let sources = Sources {
            replica: &self.replicas.clone().current(),
            own: None,
            started: self.serving.started,
            heard: &self.restored.heard,
            now: wall_clock()(),
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
            store: Some(StoreStatus::of(
                sources.replica.position,
                &self.following.borrow(),
                &self.members.borrow(),
            )),
            sources: sources.status(),
            links: links.collect(),
            problems: Vec::new(),
            source: None,
            certificate_expires: Some(self.held.current().credential().expires()),
            proxies: self.serving.ads.proxies().len(),
            cache: CacheStatus::of(&self.restored.standings.borrow()),
        }
    }

    fn serving(&self) -> &Serving {
        &self.serving
    }
}
