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
use tombolo_federation::cache::Image;
use tombolo_federation::catalog::{self, Publisher};
use tombolo_federation::key::{Key, Kind};
use tombolo_federation::names::{Owner, RegionName};
use tombolo_federation::record::{READS_LEVEL, Region};
use tombolo_federation::replica::{self, Batch, Replica, ReplicaWriter, Replicas};
use tombolo_federation::store::{Guard, Member, Store, StoreError, election};
use tombolo_federation::sync::ask::{AskError, Asking, Word};
use tombolo_federation::sync::client::Link;
use tombolo_federation::sync::decisions::{self, Leaver};
use tombolo_federation::sync::departures::{Departures, forget_those_who_left, forgotten};
use tombolo_federation::sync::follower::Following;
use tombolo_federation::sync::founding::{self, Term};
use tombolo_federation::sync::leader::{Leader, LeaderError};
use tombolo_federation::sync::local::{self, Facts};
use tombolo_federation::sync::service::FederationApi;
use tombolo_federation::sync::spokesman::Spokesman;
use tombolo_federation::sync::{
    chain, client, compactor, facts, follower, mirror, recover, reseed,
};
use tombolo_proxy::ClientLocality;
use tonic::service::Routes;
use tonic::transport::Channel;
use tracing::{info, warn};

use super::admin::{self, Visible};
use super::cache::{self, Opened, Restored};
use super::catalog::{Gate, build};
use super::common::{OwnIdentity, Serving, Sockets};
use super::mesh::{DecisionStatus, MeshStatus};
use super::operator::{self, Answer, Approve, CallError, Leave, Leaving, Operated};
use super::status::{self, CacheStatus, LinkStatus, Sources, Status};
use super::store_health::{self, StoreStatus};
use super::tasks::Tasks;
use super::{grpc, store, wall_clock};
use crate::config::{ControlPlaneConfig, Peer};
use crate::state_dir::{StateDir, new_id};

/// How long a leader of a new store waits for what its peers know of the region. They are asked
/// further.
const PEERS_ANSWER_WITHIN: Duration = Duration::from_secs(5);
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
        // Before the store, which may be away.
        let belongs_to = format!("control plane of {}/{}", self.config.mesh, self.config.region);
        let disk = cache::open(&self.state, belongs_to).await?;
        let opened = store::open(&self.config, &self.state).await?;
        let outcome = self.run_on(opened.store(), disk).await;
        opened.close().await;
        outcome
    }

    async fn run_on(self, store: Arc<dyn Store>, disk: Opened) -> anyhow::Result<()> {
        let Self { config, state, identity, ca, sockets, serving, operator, calls, .. } = self;
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
            started: Instant::now(),
        };
        let asks = follow(&mut tasks, "asks", &store, facts::asks_prefix());
        let view = Arc::new(View::new(config, asking, held.clone(), (serving, restored)));
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
        let (settled, settled_rx) = watch::channel(false);
        let settling = settle(view.config.region.clone(), replicas.clone(), settled);
        tasks.start_endless("settling", settling);
        let api = api.once_settled(settled_rx);
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
        let health = store_health::watch(Arc::clone(&store), view.members.clone());
        tasks.start_endless("store health", health);
        let id = format!("{}@{}", view.config.region, state.epoch());
        let following = view.following.subscribe();
        let candidate = Candidate { id, store, replicas, following, held, asks, view };
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

/// Says when the region has spoken in its store, its members among what it says. One that cannot
/// (nobody leads) keeps its agents waiting no longer than its catalog does.
async fn settle(region: RegionName, mut replicas: Replicas, settled: watch::Sender<bool>) {
    let key = Key::of_owner(Owner::region(region), Kind::Region);
    if replicas.wait_for(|replica| replica.position > 0).await.is_some() {
        let spoken = replicas.wait_for(|replica| replica.get(&key).is_some());
        if tokio::time::timeout(AGENTS_COME_WITHIN, spoken).await.is_err() {
            warn!("nobody has spoken for this region yet, agents are let in all the same");
        }
        settled.send_replace(true);
    }
    // Sessions ask for as long as this process serves.
    std::future::pending::<()>().await;
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
struct Candidate {
    /// Says to people who leads.
    id: String,
    store: Arc<dyn Store>,
    replicas: Replicas,
    following: watch::Receiver<Following>,
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
        let mut leader = Leader::new(Arc::clone(&self.store), fence, self.replicas.clone());
        let term = match begin_term(&leader).await {
            Ok(term) => term,
            Err(error) => return Ok(error),
        };
        // The store that is followed is the one that is written to, and not what it was before it was
        // restored: only then is known what it has lost.
        let mut following = self.following.clone();
        let histories = {
            let ours = |following: &Following| following.founding.as_ref() == Some(&term.founding);
            let seen = following.wait_for(ours).await;
            seen.context("the store follower lives as long as this process")?.other_histories
        };
        // Before anybody is compared with the store: what it has lost would look like their word.
        let written = reseed::reseed(&mut leader, &self.following).await;
        match written {
            Ok(0) => {}
            Ok(records) => warn!(records, "what the store had lost was written back"),
            Err(LeaderError::Store(error)) if !matches!(error, StoreError::Damaged(_)) => {
                warn!(%error, "what the store has lost cannot be written back yet");
                tokio::time::sleep(self.view.config.leader_ttl.0).await;
                return Ok(LeaderError::NotLeader);
            }
            Err(error) => return Ok(error),
        }
        let config = &self.view.config;
        // What was said in earlier terms is here before anything is decided by it.
        if let Err(error) = leader.caught_up(term.began).await {
            return Ok(error);
        }
        let mut parts = JoinSet::new();
        parts.spawn(restored(following, histories));
        self.recover(&mut parts, &leader, &term).await?;
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

/// The peers' answers to what a new store's region had said.
impl Candidate {
    /// A new store is that of a new region, or of one that lost its store: the peers know. They are
    /// asked until each has answered; the first words of this region wait a little for them, since
    /// what they return of its own (who joined when, what was decided) is not to be said anew.
    async fn recover(
        &self,
        parts: &mut JoinSet<LeaderError>,
        leader: &Leader,
        term: &Term,
    ) -> anyhow::Result<()> {
        if term.founding.recovered {
            return Ok(());
        }
        let mut asking = JoinSet::new();
        for peer in &self.view.config.peers {
            let expected = Identity::ControlPlane { region: peer.region.clone() };
            let channel = grpc::dial(&peer.address, expected, &self.held)?;
            let (leader, region) = (leader.clone(), self.view.config.region.clone());
            let peer = peer.region.clone();
            asking.spawn(async move { recover::recover(&leader, &region, &peer, channel).await });
        }
        let (done, told) = watch::channel(false);
        let leader = leader.clone();
        parts.spawn(async move {
            while let Some(asked) = asking.join_next().await {
                match asked {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => return error,
                    Err(_) => return LeaderError::Stopping,
                }
            }
            let recorded = founding::recovered(&leader).await;
            done.send_replace(true);
            match recorded {
                Ok(()) => std::future::pending().await,
                Err(error) => error,
            }
        });
        let mut told = told;
        let answered = told.wait_for(|done| *done);
        if tokio::time::timeout(PEERS_ANSWER_WITHIN, answered).await.is_err() {
            info!("not all peers have said what they know of this region, going on without");
        }
        Ok(())
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
        let mirror = mirror::mirror(
            leader.clone(),
            peer.clone(),
            channel.clone(),
            link.clone(),
            known.clone(),
        );
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

/// Ends when the store turns out to be another than it was: what it has lost is to be written back
/// first, as after every election.
async fn restored(mut following: watch::Receiver<Following>, known: u64) -> LeaderError {
    match following.wait_for(|following| following.other_histories != known).await {
        Ok(_) => {
            info!("the store was restored or lost: leading begins anew");
            LeaderError::NotLeader
        }
        Err(_) => LeaderError::Stopping,
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
    restored: Restored,
    following: watch::Sender<Following>,
    members: watch::Sender<Vec<Member>>,
}

impl View {
    fn new(
        config: ControlPlaneConfig,
        asking: Asking,
        held: Held,
        (serving, restored): (Serving, Restored),
    ) -> Self {
        let link = |peer: &Peer| (peer.region.clone(), watch::Sender::default());
        let links = config.peers.iter().map(link).collect();
        Self {
            config,
            asking,
            held,
            leading: watch::Sender::new(false),
            links,
            serving,
            restored,
            following: watch::Sender::default(),
            members: watch::Sender::default(),
        }
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
        let replica = self.asking.replicas.peek();
        let sources = Sources {
            replica: &replica,
            own: None,
            started: self.serving.started,
            heard: &self.restored.heard,
            now: wall_clock()(),
        };
        let links = self.links.iter();
        let links =
            links.map(|(peer, link)| LinkStatus::of(format!("peer {peer}"), &link.borrow()));
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
