//! `tombolo control-plane`: a region's store, its federation API, CA, DNS and xDS.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tombolo_ca::Clock;
use tombolo_ca::identity::Identity;
use tombolo_ca::material::Held;
use tombolo_ca::region::RegionCa;
use tombolo_ca::renew::Issuer;
use tombolo_ca::root::RootCertificate;
use tombolo_ca::service::Authority;
use tombolo_federation::catalog::{self, Publisher};
use tombolo_federation::names::{Owner, RegionName};
use tombolo_federation::record::{READS_LEVEL, Region};
use tombolo_federation::replica::{self, Replica, Replicas};
use tombolo_federation::store::{Guard, Store, StoreError, election};
use tombolo_federation::sync::ask::{AskError, Asking, Word};
use tombolo_federation::sync::client::Link;
use tombolo_federation::sync::decisions::{self, Leaver};
use tombolo_federation::sync::departures::{Departures, forget_those_who_left, forgotten};
use tombolo_federation::sync::founding::{self, Term};
use tombolo_federation::sync::leader::{Leader, LeaderError};
use tombolo_federation::sync::local::{self, Facts};
use tombolo_federation::sync::service::FederationApi;
use tombolo_federation::sync::spokesman::Spokesman;
use tombolo_federation::sync::{chain, client, compactor, facts, follower, mirror};
use tombolo_proxy::ClientLocality;
use tonic::service::Routes;
use tonic::transport::Channel;
use tracing::{info, warn};

use super::admin::{self, Visible};
use super::catalog::{Gate, build};
use super::common::{OwnIdentity, Serving, Sockets};
use super::mesh::{DecisionStatus, MeshStatus};
use super::operator::{self, Answer, Approve, CallError, Leave, Leaving, Operated};
use super::status::{self, LinkStatus, Status};
use super::tasks::Tasks;
use super::{grpc, store, wall_clock};
use crate::config::{ControlPlaneConfig, Peer};
use crate::state_dir::{StateDir, new_id};

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
        let opened = store::open(&self.config, &self.state).await?;
        let outcome = self.run_on(opened.store()).await;
        opened.close().await;
        outcome
    }

    async fn run_on(self, store: Arc<dyn Store>) -> anyhow::Result<()> {
        let Self { config, state, identity, ca, sockets, serving, operator, calls, .. } = self;
        let (publisher, stop) = (self.publisher, self.stop);
        let (writer, replicas) = replica::channel();
        let held = identity.held();
        let mut tasks = Tasks::new(stop.clone());
        let asking = Asking {
            store: Arc::clone(&store),
            replicas: replicas.clone(),
            region: config.region.clone(),
            sessions: follow(&mut tasks, "sessions", &store, facts::sessions_prefix()),
            left: follow(&mut tasks, "departures", &store, facts::left_prefix()),
            started: Instant::now(),
        };
        let asks = follow(&mut tasks, "asks", &store, facts::asks_prefix());
        let view = Arc::new(View::new(config, asking, held.clone(), serving));
        operator::start(&mut tasks, operator, Arc::<View>::clone(&view), calls, &stop);
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
        let follower = follower::follow(Arc::clone(&store), Arc::new(writer));
        tasks.start_fallible("store follower", async move { follower.await.map_err(Into::into) });
        start_catalog(&mut tasks, &replicas, publisher, region, whole);
        let id = format!("{}@{}", view.config.region, state.epoch());
        let candidate = Candidate { id, store, replicas, held, asks, view };
        tasks.start("leader", candidate.run(stop.clone()));
        if let Some(ca) = ca {
            identity.renew(&mut tasks, Issuer::Local(ca), &stop);
        }
        identity.watch(&mut tasks, stop);
        let outcome = tasks.run().await;
        drop(state);
        outcome
    }
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
struct Candidate {
    /// Says to people who leads.
    id: String,
    store: Arc<dyn Store>,
    replicas: Replicas,
    held: Held,
    asks: watch::Receiver<Facts>,
    view: Arc<View>,
}

impl Candidate {
    async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        loop {
            let (key, ttl) = (facts::election_key(), self.view.config.leader_ttl.0);
            let campaign = election::campaign(Arc::clone(&self.store), &key, &self.id, ttl);
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
        let config = &self.view.config;
        let term = match begin_term(&leader).await {
            Ok(term) => term,
            Err(error) => return Ok(error),
        };
        // What was said in earlier terms is here before anything is decided by it.
        if let Err(error) = leader.caught_up(term.began).await {
            return Ok(error);
        }
        let mut parts = JoinSet::new();
        let view = Arc::clone(&self.view);
        let spokesman = Spokesman::new(
            leader.clone(),
            config.region.clone(),
            &term,
            Arc::new(move || view.region()),
            self.view.asking.sessions.clone(),
            self.asks.clone(),
            wall_clock(),
        );
        parts.spawn(spokesman.speak());
        parts.spawn(forget_those_who_left(Departures {
            leader: leader.clone(),
            region: config.region.clone(),
            sessions: self.view.asking.sessions.clone(),
            left: self.view.asking.left.clone(),
            started: self.view.asking.started,
        }));
        let compacting = compactor::compact(Arc::clone(&self.store), self.replicas.clone());
        parts.spawn(async move {
            compacting.await;
            LeaderError::Stopping
        });
        for peer in &config.peers {
            let expected = Identity::ControlPlane { region: peer.region.clone() };
            let channel = grpc::dial(&peer.address, expected, &self.held)?;
            let link = self.view.links[&peer.region].clone();
            let left = self.view.asking.left.clone();
            parts.spawn(follow_peer(leader.clone(), peer.region.clone(), channel, link, left));
        }
        let ended = parts.join_next().await.context("a leader has at least its own region")?;
        Ok(ended?)
    }
}

/// Mirrors a peer, from the start whenever it is forgotten, or no longer: what was held of it then is
/// not what the stream goes on from.
async fn follow_peer(
    leader: Leader,
    peer: RegionName,
    channel: Channel,
    link: watch::Sender<Link>,
    mut left: watch::Receiver<Facts>,
) -> LeaderError {
    loop {
        let known = forgotten(&left.borrow_and_update(), &peer);
        let mirror = mirror::mirror(leader.clone(), peer.clone(), channel.clone(), link.clone());
        tokio::select! {
            // Safe to drop: what was not committed is asked for again.
            ended = mirror => return ended,
            changed = left.wait_for(|left| forgotten(left, &peer) != known) => {
                if changed.is_err() {
                    return LeaderError::Stopping;
                }
            }
        }
    }
}

/// The first thing that a leader writes, tried until it is known to be there.
async fn begin_term(leader: &Leader) -> Result<Term, LeaderError> {
    let mut backoff = client::backoff();
    loop {
        match founding::begin(leader, &new_id(), wall_clock()()).await {
            Err(LeaderError::Store(error)) if !matches!(error, StoreError::Damaged(_)) => {
                warn!(%error, "the term cannot begin yet");
                tokio::time::sleep(backoff.next().unwrap_or(client::MAX_BACKOFF)).await;
            }
            begun => return begun,
        }
    }
}

/// What the admin server sees.
struct View {
    config: ControlPlaneConfig,
    asking: Asking,
    held: Held,
    leading: watch::Sender<bool>,
    links: BTreeMap<RegionName, watch::Sender<Link>>,
    serving: Serving,
}

impl View {
    fn new(config: ControlPlaneConfig, asking: Asking, held: Held, serving: Serving) -> Self {
        let link = |peer: &Peer| (peer.region.clone(), watch::Sender::default());
        let links = config.peers.iter().map(link).collect();
        Self { config, asking, held, leading: watch::Sender::new(false), links, serving }
    }

    /// The addresses by which this region reaches its peers.
    fn dialled(&self) -> BTreeMap<RegionName, Vec<String>> {
        let texts = |peer: &Peer| peer.address.as_slice().iter().map(ToString::to_string).collect();
        self.config.peers.iter().map(|peer| (peer.region.clone(), texts(peer))).collect()
    }

    /// What stands, and what became of it.
    fn decisions(&self) -> Vec<DecisionStatus> {
        self.asking.decide(|view| Ok(DecisionStatus::all(view))).unwrap_or_default()
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
            peers: self.config.peers.iter().map(|peer| peer.region.clone()).collect(),
            pinned_roots: self
                .held
                .current()
                .bundles()
                .roots()
                .iter()
                .map(RootCertificate::fingerprint)
                .collect(),
            entitlements: self
                .config
                .entitlements
                .iter()
                .map(|(cluster, namespaces)| (cluster.clone(), namespaces.0.clone()))
                .collect(),
            stand_ins: self.config.stand_ins.clone(),
            rollout_order: self.config.rollout_order.clone(),
            ..Region::default()
        }
    }

    fn word(by: String, note: String) -> Word {
        Word { id: new_id(), by, at: wall_clock()(), note }
    }

    async fn let_leave(&self, call: Leave, by: String) -> Result<Answer, CallError> {
        let (leaver, who) = match call.who {
            Leaving::Cluster(cluster) => {
                (Leaver::Cluster(cluster.clone()), format!("cluster {cluster}"))
            }
            Leaving::Region(region) => (Leaver::Region(region.clone()), format!("region {region}")),
        };
        let word = Self::word(by, call.note);
        let (answers, message) = if call.withdraw {
            let answers = self.asking.withdraw(&leaver, word).await.map_err(call_error)?;
            (answers, format!("{who} may come back"))
        } else {
            let answer = self.asking.leave(&leaver, call.live, word).await.map_err(call_error)?;
            let message = if answer.already {
                format!("{who} left already, by a decision of {}", answer.decision.at)
            } else {
                format!("{who} leaves: what it published is being removed")
            };
            (vec![answer], message)
        };
        Ok(Answer { message, decisions: self.shown(&answers) })
    }

    /// As they stand now.
    fn shown(&self, answers: &[tombolo_federation::sync::ask::Answer]) -> Vec<DecisionStatus> {
        let shown = self.asking.decide(|view| {
            let of = |answer: &tombolo_federation::sync::ask::Answer| {
                let told = decisions::Told { key: &answer.key, decision: &answer.decision };
                DecisionStatus::of(view, told)
            };
            Ok(answers.iter().map(of).collect())
        });
        shown.unwrap_or_default()
    }
}

fn call_error(error: AskError) -> CallError {
    match error {
        AskError::Refused(why) => CallError::Refused(why.to_string()),
        error @ (AskError::NotReady | AskError::Store(_) | AskError::Unanswered { .. }) => {
            CallError::Failed(chain(&error))
        }
    }
}

impl Operated for View {
    fn approve(&self, call: Approve, by: String) -> BoxFuture<'_, Result<Answer, CallError>> {
        Box::pin(async move {
            let Approve { cluster, hold, note } = call;
            let word = Self::word(by, note);
            let answer = self.asking.approve(&cluster, &hold, word).await.map_err(call_error)?;
            let message = if answer.already {
                format!("{hold} of {cluster} is approved already")
            } else {
                format!("{hold} of {cluster} is approved: its agent lets go what it holds back")
            };
            Ok(Answer { message, decisions: self.shown(&[answer]) })
        })
    }

    fn leave(&self, call: Leave, by: String) -> BoxFuture<'_, Result<Answer, CallError>> {
        Box::pin(self.let_leave(call, by))
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
        let replica = self.asking.replicas.peek();
        let mesh = MeshStatus::of(&replica, &self.config.region, &self.dialled());
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
            sources: status::sources(&replica, None, self.serving.started),
            links: links.collect(),
            problems: Vec::new(),
            source: None,
            certificate_expires: Some(self.held.current().credential().expires()),
            proxies: self.serving.ads.proxies().len(),
            settings: mesh.settings,
            peers: mesh.peers,
            disagreements: mesh.disagreements,
            decisions: self.decisions(),
        }
    }

    fn serving(&self) -> &Serving {
        &self.serving
    }
}
