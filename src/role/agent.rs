//! `tombolo agent`: a region's arm in one cluster.
//!
//! Reads the cluster's own objects, serves them to the cluster at once, publishes them to the
//! region, and serves what the region knows of the others. Never needs the region for its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tombolo_ca::identity::Identity;
use tombolo_ca::material::Held;
use tombolo_ca::renew::Issuer;
use tombolo_federation::cache::Image;
use tombolo_federation::catalog::{self, Publisher};
use tombolo_federation::guard::{Guard, Records};
use tombolo_federation::key::Kind;
use tombolo_federation::manifests::{Desired, GUARDED, Guarded, Options, Source};
use tombolo_federation::names::Owner;
use tombolo_federation::record::{Body, Cluster, Suspect};
use tombolo_federation::replica::{self, ReplicaWriter, Replicas};
use tombolo_federation::sync::client::{self, Link, Publication};
use tombolo_federation::sync::decisions;
use tombolo_federation::sync::departures;
use tombolo_federation::sync::own::OwnRecords;
use tombolo_proxy::ClientLocality;
use tonic::service::Routes;
use tracing::{error, info};

use super::admin::{self, Visible};
use super::cache::{self, Restored};
use super::catalog::{Gate, build};
use super::common::{OwnIdentity, Serving, Sockets, certificate_problem};
use super::grpc::{self, Way};
use super::mesh::{DecisionStatus, MeshStatus};
use super::operator::{self, Answer, Approve, CallError, Leave, Operated};
use super::own::{Own, follow_approvals};
use super::status::{CacheStatus, LinkStatus, Sources, Status};
use super::tasks::Tasks;
use super::wall_clock;
use crate::config::{AgentConfig, ClusterUid};
use crate::state_dir::StateDir;

/// How long an agent waits for its region before it serves its own cluster alone.
const ALONE_AFTER: Duration = Duration::from_secs(5);

/// An agent whose sockets are bound; nothing runs yet.
pub(crate) struct Agent {
    config: AgentConfig,
    owner: Owner,
    state: StateDir,
    identity: OwnIdentity,
    sockets: Sockets,
    serving: Serving,
    operator: operator::Bound,
    calls: operator::Calls,
    publisher: Publisher,
    stop: CancellationToken,
}

impl Agent {
    /// Opens files and binds sockets; everything that a person has to mend fails here.
    pub(crate) async fn bind(config: AgentConfig, stop: CancellationToken) -> anyhow::Result<Self> {
        let cluster = config.cluster_id()?;
        let belongs_to = format!("{}/{}/{cluster}", config.mesh, config.region);
        let state = StateDir::open(&config.state_dir, &belongs_to)?;
        let identity = OwnIdentity::load(&config.identity, &config.mesh)?;
        let region = config.region.clone();
        identity.expect(&Identity::Agent { region: region.clone(), cluster: cluster.clone() })?;
        let (publisher, snapshots) = catalog::channel();
        let locality = ClientLocality {
            region: region.clone(),
            zone: config.zone.as_deref().map(Into::into),
            cluster: Some(cluster.clone()),
            network: config.network.as_str().into(),
        };
        let server = format!("agent/{cluster}");
        let bound = Sockets::bind(&config.listen, snapshots, locality, server, stop.clone());
        let (sockets, mut serving) = bound.await?;
        let operator = operator::bind(&config.operator_socket())?;
        let calls = operator::Calls::register(&mut serving.registry);
        let owner = Owner::cluster(region, cluster);
        Ok(Self {
            config,
            owner,
            state,
            identity,
            sockets,
            serving,
            operator,
            calls,
            publisher,
            stop,
        })
    }

    /// Runs until stopped or until the first task fails.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        self.sockets.announce()?;
        let Self { config, owner, state, identity, sockets, serving, operator, calls, .. } = self;
        let (publisher, stop) = (self.publisher, self.stop);
        let belongs_to = format!("agent of {}/{owner}", config.mesh);
        let (image, restored, kept) = cache::open(&state, belongs_to).await?.into_parts();
        let mut tasks = Tasks::new(stop.clone());
        let desired = follow_source(&config, &mut tasks, stop.clone()).await?;
        let (writer, replicas) = replica::channel();
        let writer = Arc::new(writer);
        let whole = watch::Sender::new(image.is_some());
        let mut cluster = cluster_record(&config, &state);
        let newest = |image: &Image| image.owners.get(&owner)?.newest.clone();
        let restored_up_to = image.as_ref().and_then(newest);
        let (before, suspect) = restore(image, &owner, &mut cluster, &writer);
        let held = identity.held();
        let view = Arc::new(View {
            owner: owner.clone(),
            replicas: replicas.clone(),
            desired: desired.clone(),
            held: held.clone(),
            publishing: watch::Sender::default(),
            subscribed: watch::Sender::default(),
            serving,
            mesh: config.mesh.to_string(),
            restored,
            approvals: watch::Sender::default(),
        });
        operator::start(&mut tasks, operator, &view, calls, &stop);
        let routes = Routes::new(view.serving.ads.into_service());
        tasks.start("grpc", grpc::serve(sockets.grpc, held.clone(), routes, stop.clone()));
        view.serving.start(&mut tasks, sockets.dns, &stop);
        admin::start(&mut tasks, sockets.admin, Arc::<View>::clone(&view), &stop);

        let known = state.joined_ms().and_then(|ms| Timestamp::from_millisecond(ms).ok());
        let (joined, joined_rx) = watch::channel(known);
        let (respected, respected_rx) = watch::channel(None);
        let (judge, surplus) = mpsc::channel(1);
        let (approvals, approvals_rx) = watch::channel(BTreeSet::new());
        let following = follow_approvals(
            owner.clone(),
            replicas.clone(),
            view.approvals.subscribe(),
            approvals,
        );
        tasks.start_endless("approvals", following);
        let mut own = Own {
            records: OwnRecords::new(owner.clone(), state.epoch()),
            cluster,
            guard: Guarded::new(Guard::new(config.guard.into(), state.epoch()), before, suspect),
            ask_again: None,
            approvals: approvals_rx,
            desired,
            joined: joined_rx.clone(),
            respected,
            restored: restored_up_to,
            surplus,
            writer: Arc::clone(&writer),
        };
        // Before the catalog: what was edited while nobody ran here is served from the first answer.
        own.reconcile();
        tasks.start_fallible("own records", own.run());
        let publication = Publication {
            owner: owner.clone(),
            uid: uid(&config, &state).to_owned(),
            epoch: state.epoch(),
            joined,
            respected: respected_rx,
            judge,
        };
        let region = Identity::ControlPlane { region: config.region.clone() };
        let way = Way::new(&config.control_plane, region, &held)?;
        let publish =
            client::publish(way.clone(), publication, replicas.clone(), view.publishing.clone());
        tasks.start_endless("publish", publish);
        let subscribe = client::subscribe(
            way.clone(),
            owner,
            config.uses.clone(),
            writer,
            view.subscribed.clone(),
        );
        tasks.start_endless("subscribe", subscribe);

        let whole_rx = whole.subscribe();
        let nothing_else = Arc::new(BTreeMap::new);
        cache::keep(&mut tasks, kept, replicas.clone(), whole_rx, nothing_else, &stop);
        start_catalog(&mut tasks, &view, replicas, publisher, whole);
        let lock = state.lock();
        tasks.start_endless("join", remember_join(joined_rx, state));
        let Way { endpoint, connector } = way;
        let issuer = Issuer::Remote { endpoint: Box::new(endpoint), connector };
        identity.renew(&mut tasks, issuer, &stop);
        identity.watch(&mut tasks, stop);
        let ended = tasks.run().await;
        // Not sooner: the disk cache is saved once more on the way out.
        drop(lock);
        ended
    }
}

/// Reads the cluster's directory for as long as the tasks run.
async fn follow_source(
    config: &AgentConfig,
    tasks: &mut Tasks,
    stop: CancellationToken,
) -> anyhow::Result<watch::Receiver<Arc<Desired>>> {
    let mut options = Options::new(config.region.clone(), config.cluster_id()?);
    options.pod_cidrs.clone_from(&config.source.pod_cidrs);
    options.export_all = config.source.export_all;
    let (options, options_rx) = watch::channel(options);
    let (source, desired) = Source::open(config.source.directory.clone(), options_rx).await?;
    tasks.start("source", async move {
        // The options do not change, but the source follows them for as long as it runs.
        let _options = options;
        Ok(source.run(stop).await?)
    });
    Ok(desired)
}

/// What the region knows the cluster by. The state directory is lost together with the epoch id: then a
/// cluster that has no other UID is another one to its region.
fn uid<'a>(config: &'a AgentConfig, state: &'a StateDir) -> &'a str {
    config.cluster_uid.as_ref().map_or(state.id(), ClusterUid::as_str)
}

/// What the cluster says of itself. Its zones are those that its endpoints name.
fn cluster_record(config: &AgentConfig, state: &StateDir) -> Cluster {
    Cluster {
        uid: uid(config, state).to_owned(),
        network: config.network.clone(),
        pod_cidrs: config.source.pod_cidrs.clone(),
        software_version: env!("CARGO_PKG_VERSION").to_owned(),
        directory: true,
        ..Cluster::default()
    }
}

/// Makes the replica hold what was kept on disk. Returns what the agent itself had published of its
/// source, and whether that was suspect; of itself it goes on saying what was approved.
fn restore(
    image: Option<Image>,
    owner: &Owner,
    own: &mut Cluster,
    writer: &ReplicaWriter,
) -> (Records, Option<Suspect>) {
    let Some(image) = image else { return (Records::new(), None) };
    let mut suspect = None;
    let mut published = Records::new();
    for (key, record) in image.records_of(owner) {
        match &record.body {
            Body::Cluster(cluster) => {
                suspect.clone_from(&cluster.suspect);
                own.approved.clone_from(&cluster.approved);
            }
            body if GUARDED.contains(&key.kind) => {
                published.insert(key, Arc::new(body.clone()));
            }
            _ => {}
        }
    }
    writer.apply(image.into_batch(Some(owner)), Instant::now());
    (published, suspect)
}

/// Serves at once what was restored from disk; else once the own cluster was read and the region's
/// feed is complete, see [`gate`]. `whole` says, and is told, whether that is so.
fn start_catalog(
    tasks: &mut Tasks,
    view: &Arc<View>,
    replicas: Replicas,
    publisher: Publisher,
    whole: watch::Sender<bool>,
) {
    let restored = *whole.borrow();
    let first = if restored { Gate::Open } else { Gate::Closed };
    let (gate_tx, gate_rx) = watch::channel(first);
    let (owner, subscribed) = (view.owner.clone(), view.subscribed.subscribe());
    let waiting = replicas.clone();
    tasks.start_endless("gate", async move {
        if !restored {
            gate(owner, waiting, subscribed, &gate_tx).await;
            whole.send_replace(true);
        }
        // The catalog follows the gate, and the disk cache this word, for as long as they stand.
        std::future::pending::<()>().await;
    });
    tasks.start_fallible("catalog", build(replicas, gate_rx, publisher));
}

/// Opens the catalog, once the own cluster was read and the region's feed is complete. While the
/// region does not answer, the own cluster is served alone after 5 s, since a cluster must not need
/// its region to see its own pods: then DNS answers what it finds, and SERVFAIL for the rest, and
/// xDS goes on waiting, since proxies that hold more would take a part for the whole.
async fn gate(
    owner: Owner,
    mut replicas: Replicas,
    mut subscribed: watch::Receiver<Link>,
    gate: &watch::Sender<Gate>,
) {
    let own = |replica: &replica::Replica| {
        let held = replica.holding(&owner).map(replica::Holding::complete);
        held.is_some_and(|held| held.contains_key(&Kind::Cluster))
    };
    if replicas.wait_for(own).await.is_none() {
        // Nobody writes any more: the agent is stopping.
        std::future::pending::<()>().await;
    }
    if tokio::time::timeout(ALONE_AFTER, wait_synced(&mut subscribed)).await.is_err() {
        info!("the region does not answer, serving this cluster alone");
        gate.send_replace(Gate::Partial);
        wait_synced(&mut subscribed).await;
    }
    gate.send_replace(Gate::Open);
}

async fn wait_synced(subscribed: &mut watch::Receiver<Link>) {
    if subscribed.wait_for(|link| link.synced).await.is_err() {
        // Nobody subscribes any more: the agent is stopping.
        std::future::pending::<()>().await;
    }
}

/// The join outlives a restart, so that precedence does not flap until the region says it again.
async fn remember_join(mut joined: watch::Receiver<Option<Timestamp>>, mut state: StateDir) {
    while joined.changed().await.is_ok() {
        let known = *joined.borrow_and_update();
        if let Some(known) = known
            && let Err(error) = state.remember_join(known.as_millisecond())
        {
            error!(%error, "the state directory cannot be written");
        }
    }
}

/// What the admin server sees.
struct View {
    owner: Owner,
    mesh: String,
    replicas: Replicas,
    desired: watch::Receiver<Arc<Desired>>,
    held: Held,
    publishing: watch::Sender<Link>,
    subscribed: watch::Sender<Link>,
    serving: Serving,
    restored: Restored,
    /// Holds that were approved here, with the region away or not. No later
    /// hold has the id of an earlier one.
    approvals: watch::Sender<BTreeSet<String>>,
}

impl View {
    fn pending(&self) -> Vec<String> {
        let mut pending = Vec::new();
        if !self.desired.borrow().complete {
            pending.push("the first complete reading of the manifests".to_owned());
        }
        let region = &self.owner.region;
        for (link, what) in [(&self.publishing, "publishing to"), (&self.subscribed, "the feed of")]
        {
            let link = link.borrow();
            if !link.synced {
                let why = link.problem.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
                pending.push(format!("{what} region {region}{why}"));
            }
        }
        pending
    }
}

impl View {
    /// What stands, and what became of it; `None` before the own region has said all of it.
    fn decisions(&self, replica: &replica::Replica) -> Option<Vec<DecisionStatus>> {
        let region = &self.owner.region;
        let said = replica.holding(&Owner::region(region.clone()))?.complete();
        // An agent has no store: it goes by what is left of an owner in the feed.
        let (sessions, left) = (&None, &None);
        let view = departures::View { replica, region, sessions, left, now: Instant::now() };
        said.contains_key(&Kind::Decision).then(|| DecisionStatus::all(&view))
    }

    fn let_go(&self, call: &Approve) -> Result<Answer, CallError> {
        let refused = |why: String| Err(CallError::Refused(why));
        let Approve { cluster, hold, .. } = call;
        if self.owner.cluster.as_ref() != Some(cluster) {
            return refused(format!(
                "this is the agent of {}: ask the one of {cluster}, or a control plane of its region",
                self.owner
            ));
        }
        let replica = self.replicas.peek();
        let present = decisions::holds(&replica, &self.owner);
        let hold = match decisions::hold_named(cluster, present.clone(), hold) {
            Ok(hold) => hold,
            Err(why) => return refused(why.to_string()),
        };
        self.approvals.send_modify(|approvals| {
            approvals.insert(hold.clone());
            // What is over need not be remembered: as many as there are holds at a time.
            approvals.retain(|approval| present.contains(approval));
        });
        let message = format!("{hold} of {cluster} is approved at this agent");
        Ok(Answer { message, decisions: Vec::new() })
    }
}

impl Operated for View {
    fn approve(
        self: Arc<Self>,
        call: Approve,
        _by: String,
    ) -> BoxFuture<'static, Result<Answer, CallError>> {
        Box::pin(async move { self.let_go(&call) })
    }

    fn leave(
        self: Arc<Self>,
        _call: Leave,
        _by: String,
    ) -> BoxFuture<'static, Result<Answer, CallError>> {
        let region = &self.owner.region;
        let why = format!("an agent lets nobody leave: ask a control plane of {region}");
        Box::pin(async move { Err(CallError::Refused(why)) })
    }
}

impl Visible for View {
    fn status(&self) -> Status {
        let catalog = self.serving.catalog();
        let desired = Arc::clone(&self.desired.borrow());
        // Once it serves, it is ready: what the region does is no reason to take the cluster's own
        // agent out of use. What it still waits for is shown all the same.
        let ready = catalog.is_some();
        let mut pending = self.pending();
        if catalog.as_ref().is_some_and(|catalog| catalog.complete) {
            pending.clear();
        }
        let replica = self.replicas.clone().current();
        let sources = Sources {
            replica: &replica,
            own: Some(&self.owner),
            started: self.serving.started,
            heard: &self.restored.heard,
            now: wall_clock()(),
        };
        let mesh = MeshStatus::of(&replica, &self.owner.region, &BTreeMap::new());
        Status {
            role: "agent".to_owned(),
            mesh: self.mesh.clone(),
            region: self.owner.region.to_string(),
            cluster: self.owner.cluster.as_ref().map(ToString::to_string),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready,
            pending,
            leader: None,
            led_by: None,
            catalog,
            store: None,
            sources: sources.status(),
            links: vec![
                LinkStatus::of("publish".to_owned(), &self.publishing.borrow()),
                LinkStatus::of("subscribe".to_owned(), &self.subscribed.borrow()),
            ],
            problems: desired.problems.iter().map(ToString::to_string).collect(),
            source: serde_json::to_value(&desired.counts).ok(),
            certificate_expires: Some(self.held.current().credential().expires()),
            certificate_problem: certificate_problem(&self.held, true),
            proxies: self.serving.ads.proxies().len(),
            cache: CacheStatus::of(&self.restored.standings.borrow()),
            settings: mesh.settings,
            peers: mesh.peers,
            disagreements: mesh.disagreements,
            decisions: self.decisions(&replica),
        }
    }

    fn serving(&self) -> &Serving {
        &self.serving
    }
}
