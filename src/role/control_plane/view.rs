//! What a control plane shows and takes: its status, what its region says of itself, and operators'
//! calls.

use std::collections::BTreeMap;

use futures::future::BoxFuture;
use tokio::sync::watch;
use tombolo_ca::material::Held;
use tombolo_ca::root::RootCertificate;
use tombolo_federation::names::RegionName;
use tombolo_federation::record::{READS_LEVEL, Region};
use tombolo_federation::store::Member;
use tombolo_federation::sync::ask::{AskError, Asking, Word};
use tombolo_federation::sync::chain;
use tombolo_federation::sync::client::Link;
use tombolo_federation::sync::decisions::{self, Leaver};
use tombolo_federation::sync::follower::Following;
use tombolo_federation::sync::recover::Asked;

use crate::config::{ControlPlaneConfig, Peer};
use crate::role::admin::Visible;
use crate::role::cache::Restored;
use crate::role::common::Serving;
use crate::role::mesh::{DecisionStatus, MeshStatus};
use crate::role::operator::{Answer, Approve, CallError, Leave, Leaving, Operated};
use crate::role::status::{CacheStatus, LinkStatus, Sources, Status, strays};
use crate::role::store_health::StoreStatus;
use crate::role::wall_clock;
use crate::state_dir::new_id;

/// What the admin server sees.
pub(super) struct View {
    pub(super) config: ControlPlaneConfig,
    pub(super) asking: Asking,
    held: Held,
    pub(super) leading: watch::Sender<bool>,
    /// While it leads.
    pub(super) asked: watch::Sender<Asked>,
    pub(super) links: BTreeMap<RegionName, watch::Sender<Link>>,
    pub(super) serving: Serving,
    restored: Restored,
    pub(super) following: watch::Sender<Following>,
    pub(super) members: watch::Sender<Vec<Member>>,
}

impl View {
    pub(super) fn new(
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
            asked: watch::Sender::default(),
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
    pub(super) fn region(&self) -> Region {
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

pub(super) fn call_error(error: AskError) -> CallError {
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
        // One look at a time: a second one within the first waits for a writer that waits for it.
        let (store, problems) = {
            let following = self.following.borrow();
            let members = self.members.borrow();
            (StoreStatus::of(replica.position, &following, &members), strays(&following))
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
            store: Some(StoreStatus { asked: self.asked.borrow().waiting.clone(), ..store }),
            sources: sources.status(),
            links: links.collect(),
            problems,
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
