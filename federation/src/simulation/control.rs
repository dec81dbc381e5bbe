//! A process of a control plane: follows its region's store, serves agents and peers, campaigns,
//! and when it leads writes back, recovers, mirrors and speaks for its region.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::access::Access;
use super::agent::{mismatched, troubled};
use super::network::{Server, Spawner, Wire};
use crate::key::Kind;
use crate::names::{Owner, RegionName};
use crate::record::{READS_LEVEL, Region};
use crate::replica::{self, Holding, Replica, Replicas};
use crate::store::{Guard, Store, election};
use crate::sync::client::Link;
use crate::sync::follower::{self, Following};
use crate::sync::founding::{self, Past, Term};
use crate::sync::leader::{Leader, LeaderError, persist};
use crate::sync::local::{self, Facts};
use crate::sync::recover::{Asked, Recovery};
use crate::sync::service::{FederationApi, WallClock};
use crate::sync::spokesman::{self, Draw, Sources};
use crate::sync::{Caller, facts, mirror, reseed};

/// As the binary has them.
const LEADER_TTL: Duration = Duration::from_secs(3);
const AGENTS_COME_WITHIN: Duration = Duration::from_secs(10);
/// When runs begin.
const EPOCH_SECONDS: i64 = 1_800_000_000;

/// One start of one process.
#[derive(Debug)]
pub(super) struct ControlPlane {
    pub(super) name: String,
    pub(super) region: RegionName,
    pub(super) replicas: Replicas,
    pub(super) access: Arc<Access>,
    tasks: Spawner,
}

impl ControlPlane {
    pub(super) fn start(
        shared: &Arc<Shared>,
        region: &RegionName,
        name: &str,
        peers: &[RegionName],
        began: Instant,
    ) -> Option<Self> {
        let access = Access::new(name, shared.store(region)?, Arc::clone(shared));
        let store: Arc<dyn Store> = Arc::<Access>::clone(&access);
        let tasks = Spawner::new();
        let (writer, replicas) = replica::channel();
        let (whole, whole_rx) = watch::channel(false);
        let clock: WallClock = Arc::new(move || {
            let millis = i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX);
            Timestamp::from_millisecond(EPOCH_SECONDS * 1000 + millis).unwrap_or_default()
        });
        let api = FederationApi::new(
            region.clone(),
            Arc::clone(&store),
            replicas.clone(),
            whole_rx,
            Arc::clone(&clock),
            CancellationToken::new(),
        );
        let following = watch::Sender::new(Following::default());
        let seen_history = following.subscribe();
        let followed = follower::follow(Arc::clone(&store), Arc::new(writer), None, following);
        tasks.spawn(async move { drop(followed.await) });
        tasks.spawn(gate(region.clone(), replicas.clone(), whole));
        tasks.spawn(histories(Arc::clone(shared), name.to_owned(), seen_history.clone()));
        let (checked, observer, seen) = (Arc::clone(shared), name.to_owned(), replicas.clone());
        tasks.spawn(async move { checked.checker.observe(&checked, &observer, None, seen).await });
        let candidate = Candidate {
            shared: Arc::clone(shared),
            name: name.to_owned(),
            region: region.clone(),
            peers: peers.to_vec(),
            clock,
            sessions: local_facts(&tasks, &store, facts::sessions_prefix()),
            asks: local_facts(&tasks, &store, facts::asks_prefix()),
            store,
            replicas: replicas.clone(),
            following: seen_history,
            tasks: tasks.clone(),
        };
        tasks.spawn(candidate.run());
        let server = Server {
            region: region.clone(),
            service: api.into_service(),
            replicas: replicas.clone(),
            tasks: tasks.clone(),
        };
        shared.network.serve(name, server);
        Some(Self { name: name.to_owned(), region: region.clone(), replicas, access, tasks })
    }

    pub(super) fn kill(&self, shared: &Shared) {
        self.access.kill();
        shared.network.leave(&self.name);
        self.tasks.kill();
    }
}

async fn histories(shared: Arc<Shared>, name: String, mut following: watch::Receiver<Following>) {
    let mut seen = 0;
    while following.changed().await.is_ok() {
        let now = following.borrow_and_update().clone();
        if now.other_histories > seen {
            seen = now.other_histories;
            let lost: usize = now.lost.owners.values().map(|lost| lost.keys.len()).sum();
            let why = now.other_history.unwrap_or_default();
            shared.journal.note(&format!("{name} finds another history: {why}; {lost} are lost"));
        }
    }
}

/// Follows local facts of the store, as the binary does.
fn local_facts(tasks: &Spawner, store: &Arc<dyn Store>, prefix: String) -> watch::Receiver<Facts> {
    let (tx, rx) = watch::channel(None);
    let followed = local::follow(Arc::clone(store), prefix, tx);
    tasks.spawn(async move { drop(followed.await) });
    rx
}

/// The binary's gate of what agents are told.
async fn gate(region: RegionName, mut replicas: Replicas, told: watch::Sender<bool>) {
    if replicas.wait_for(|replica| replica.position > 0).await.is_some() {
        let whole = replicas.wait_for(|replica| is_whole(&region, replica));
        let _ = timeout(AGENTS_COME_WITHIN, whole).await;
        told.send_replace(true);
    }
    std::future::pending::<()>().await;
}

fn is_whole(region: &RegionName, replica: &Replica) -> bool {
    let spoken = |holding: &Holding| {
        holding.complete().contains_key(&Kind::Cluster)
            || holding.complete().contains_key(&Kind::Region)
    };
    let own = |owner: &Owner| owner.region == *region && owner.cluster.is_some();
    replica.owners().any(|(owner, holding)| own(owner) && spoken(holding))
        && replica.owners().all(|(_, holding)| spoken(holding))
}

struct Candidate {
    shared: Arc<Shared>,
    name: String,
    region: RegionName,
    peers: Vec<RegionName>,
    clock: WallClock,
    store: Arc<dyn Store>,
    replicas: Replicas,
    following: watch::Receiver<Following>,
    sessions: watch::Receiver<Facts>,
    asks: watch::Receiver<Facts>,
    tasks: Spawner,
}

impl Candidate {
    async fn run(self) {
        let key = facts::election_key();
        loop {
            let campaign =
                election::campaign(Arc::clone(&self.store), &key, &self.name, LEADER_TTL);
            let Ok(leadership) = campaign.await else { return };
            self.shared.journal.note(&format!("{} leads", self.name));
            let ended = tokio::select! {
                biased;
                () = leadership.lost() => LeaderError::NotLeader,
                ended = self.lead(leadership.fence()) => ended,
            };
            self.shared.journal.note(&format!("{} leads no more", self.name));
            leadership.resign().await;
            if ended.ends_the_term_only() {
                sleep(LEADER_TTL).await;
            }
        }
    }

    async fn lead(&self, fence: Guard) -> LeaderError {
        let mut leader = Leader::new(Arc::clone(&self.store), fence, self.replicas.clone());
        let term = match self.begin(&leader).await {
            Ok(term) => term,
            Err(error) => return error,
        };
        if let Err(error) = reseed::follows(&self.following, &term).await {
            return error;
        }
        let past = || async { founding::past(&leader, &self.region, &self.following).await };
        let past = match persist("looking at the past", past).await {
            Ok(past) => past,
            Err(error) => return error,
        };
        match reseed::reseed(&mut leader, &self.following).await {
            Ok(0) => {}
            Ok(records) => {
                self.shared.journal.note(&format!("{} wrote {records} back", self.name));
            }
            Err(error) => return error,
        }
        if let Err(error) = leader.caught_up(term.began).await {
            return error;
        }
        let mut parts = JoinSet::new();
        let asked = watch::Sender::<Asked>::default();
        let region = Region {
            addresses: vec![self.region.to_string()],
            reads_level: READS_LEVEL,
            software_version: "simulated".to_owned(),
            ..Region::default()
        };
        let sources = Sources {
            settings: Arc::new(move || region.clone()),
            sessions: self.sessions.clone(),
            asks: self.asks.clone(),
            asked: asked.subscribe(),
            clock: Arc::clone(&self.clock),
            draw: self.draw(),
        };
        parts.spawn(spokesman::speak(leader.clone(), self.region.clone(), term, sources));
        parts.spawn(self.recovery(leader.clone(), past, asked).run());
        parts.spawn(reseed::keep_seeded(
            leader.clone(),
            self.region.clone(),
            self.following.clone(),
        ));
        for peer in &self.peers {
            let wire = self.wire(peer);
            let link = watch::Sender::new(Link::default());
            let name = format!("{}'s mirror of {peer}", self.name);
            parts.spawn(watched(Arc::clone(&self.shared), name, link.subscribe()));
            parts.spawn(mirror::mirror(leader.clone(), peer.clone(), wire, link, None));
        }
        match parts.join_next().await {
            Some(Ok(error)) => error,
            _ => LeaderError::Stopping,
        }
    }

    async fn begin(&self, leader: &Leader) -> Result<Term, LeaderError> {
        let new_id = &format!("founding-by-{}-at-{}", self.name, (self.clock)());
        let begin = || async move { founding::begin(leader, new_id, (self.clock)()).await };
        persist("beginning a term", begin).await
    }

    fn recovery(
        &self,
        leader: Leader,
        past: Option<Past>,
        asked: watch::Sender<Asked>,
    ) -> Recovery<Wire> {
        let peers = self.peers.iter().map(|peer| (peer.clone(), self.wire(peer)));
        Recovery {
            leader,
            region: self.region.clone(),
            past,
            peers: peers.collect(),
            left: watch::channel(None).1,
            asked,
        }
    }

    /// Like nothing else in a run, and the same in each run of a seed.
    fn draw(&self) -> Draw {
        let (clock, name, drawn) = (Arc::clone(&self.clock), self.name.clone(), AtomicU64::new(0));
        Arc::new(move || {
            let nth = drawn.fetch_add(1, Ordering::Relaxed);
            format!("drawn-by-{name}-at-{}-{nth}", clock())
        })
    }

    fn wire(&self, peer: &RegionName) -> Wire {
        Wire {
            shared: Arc::clone(&self.shared),
            client: self.name.clone(),
            region: peer.clone(),
            caller: Caller::ControlPlane { region: self.region.clone() },
            tasks: self.tasks.clone(),
            reached: Arc::default(),
        }
    }
}

async fn watched(
    shared: Arc<Shared>,
    name: String,
    mut link: watch::Receiver<Link>,
) -> LeaderError {
    let mut was = Link::default();
    while link.changed().await.is_ok() {
        let now = link.borrow_and_update().clone();
        if now.synced && !was.synced {
            shared.journal.note(&format!("{name} is in step"));
        }
        troubled(&shared, &name, &now, &was);
        mismatched(&shared, &name, &now, &was);
        was = now;
    }
    std::future::pending().await
}
