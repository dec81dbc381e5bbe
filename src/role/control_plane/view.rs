//! What a control plane shows and takes: its status, what its region says of itself, and operators'
//! calls.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::Instant;
use tombolo_ca::material::Held;
use tombolo_ca::root::RootCertificate;
use tombolo_federation::names::RegionName;
use tombolo_federation::record::{Decided, Region};
use tombolo_federation::replica::Replica;
use tombolo_federation::store::Member;
use tombolo_federation::sync::ask::{AskError, Asking, Word};
use tombolo_federation::sync::chain;
use tombolo_federation::sync::client::Link;
use tombolo_federation::sync::compactor::Compaction;
use tombolo_federation::sync::decisions::{self, Leaver};
use tombolo_federation::sync::follower::Following;
use tombolo_federation::sync::local::Facts;
use tombolo_federation::sync::peers::{self, Disagreement};
use tombolo_federation::sync::recover::Asked;
use tombolo_federation::sync::service::Claims;
use tombolo_federation::sync::settings;

use super::region;
use crate::config::{ControlPlaneConfig, Peer};
use crate::role::admin::Visible;
use crate::role::cache::Restored;
use crate::role::common::{Serving, certificate_problem};
use crate::role::leader::LeaderStatus;
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
    pub(super) compaction: watch::Sender<Compaction>,
    /// What the store says under the key of the election.
    election: watch::Receiver<Facts>,
    /// Neither this region's CA here nor one at another replica renews the certificate.
    nobody_renews: watch::Receiver<bool>,
    /// Of ids that other clusters hold.
    claims: Claims,
}

impl View {
    pub(super) fn new(
        config: ControlPlaneConfig,
        asking: Asking,
        held: Held,
        (serving, restored): (Serving, Restored),
        election: watch::Receiver<Facts>,
        nobody_renews: watch::Receiver<bool>,
        claims: Claims,
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
            compaction: watch::Sender::default(),
            election,
            nobody_renews,
            claims,
        }
    }

    /// The addresses by which this region reaches its peers.
    fn dialled(&self) -> BTreeMap<RegionName, Vec<String>> {
        let texts = |peer: &Peer| peer.address.as_slice().iter().map(ToString::to_string).collect();
        self.config.peers.iter().map(|peer| (peer.region.clone(), texts(peer))).collect()
    }

    /// What stands, and what became of it; `None` before the store was read.
    fn decisions(&self) -> Option<Vec<DecisionStatus>> {
        self.asking.decide(|view| Ok(DecisionStatus::all(view))).ok()
    }

    /// What the region says of itself.
    pub(super) fn region(&self) -> Region {
        let held = self.held.current();
        let roots = held.bundles().roots().iter().map(RootCertificate::fingerprint);
        region::of(&self.config, roots.collect())
    }

    /// Where this replica's file differs from what its region says.
    fn drift(&self, replica: &Replica) -> Vec<Disagreement> {
        let region = &self.config.region;
        let published = settings::held(replica, region);
        published.map_or_else(Vec::new, |published| peers::drift(region, &self.region(), published))
    }

    /// The leader alone follows the peers; what it last knew is not the next one's.
    fn links(&self, leads: bool) -> Vec<LinkStatus> {
        let of = if leads { LinkStatus::of } else { LinkStatus::left_to_leader };
        self.links.iter().map(|(peer, link)| of(format!("peer {peer}"), &link.borrow())).collect()
    }

    /// Leads from now on, or no more. What was known of the peers in an earlier term is none of this
    /// one.
    pub(super) fn leads(&self, leads: bool) {
        for link in self.links.values() {
            link.send_modify(|link| *link = link.given_up());
        }
        self.leading.send_replace(leads);
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
        if call.dry_run {
            return self.would_leave(&leaver, &who, call.live, call.withdraw).map_err(call_error);
        }
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

    fn would_leave(
        &self,
        leaver: &Leaver,
        who: &str,
        live: bool,
        withdraw: bool,
    ) -> Result<Answer, AskError> {
        if withdraw {
            let answers = self.asking.withdrawable(leaver)?;
            let message = format!("{who} could come back: this would be withdrawn");
            return Ok(Answer { message, decisions: self.shown(&answers) });
        }
        let message = self.asking.preview(leaver, live)?.to_string();
        Ok(Answer { message, decisions: Vec::new() })
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
        error @ (AskError::NotReady
        | AskError::Store { .. }
        | AskError::Stopping { .. }
        | AskError::Unanswered { .. }) => CallError::Failed(chain(&error)),
    }
}

impl Operated for View {
    fn approve(
        self: Arc<Self>,
        call: Approve,
        by: String,
    ) -> BoxFuture<'static, Result<Answer, CallError>> {
        Box::pin(async move {
            let Approve { cluster, hold, note } = call;
            let word = Self::word(by, note);
            let answer = self.asking.approve(&cluster, &hold, word).await.map_err(call_error)?;
            let hold = match &answer.decision.what {
                Decided::Approve { hold, .. } => hold,
                Decided::Leave { .. } => &hold,
            };
            let message = if answer.already {
                format!("{hold} of {cluster} is approved already")
            } else {
                format!("{hold} of {cluster} is approved: its agent lets go what it holds back")
            };
            Ok(Answer { message, decisions: self.shown(&[answer]) })
        })
    }

    fn leave(
        self: Arc<Self>,
        call: Leave,
        by: String,
    ) -> BoxFuture<'static, Result<Answer, CallError>> {
        Box::pin(async move { self.let_leave(call, by).await })
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
        let leads = *self.leading.borrow();
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
            let (members, compaction) = (self.members.borrow(), self.compaction.borrow());
            let store = StoreStatus::of(replica.position, &following, &members, &compaction);
            (store, strays(&following))
        };
        let mesh = MeshStatus::of(&replica, &self.config.region, &self.dialled());
        let drift = self.drift(&replica);
        Status {
            role: "control-plane".to_owned(),
            mesh: self.config.mesh.to_string(),
            region: self.config.region.to_string(),
            cluster: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: pending.is_empty(),
            pending,
            leader: Some(leads),
            // Whoever leads knows it by its lease, and gives up before that ends.
            led_by: LeaderStatus::of(&self.election.borrow(), !leads && store.problem.is_some()),
            catalog,
            store: Some(StoreStatus { asked: self.asked.borrow().waiting.clone(), ..store }),
            sources: sources.status(),
            links: self.links(leads),
            problems: problems.into_iter().chain(self.claims.problems(Instant::now())).collect(),
            source: None,
            certificate_expires: Some(self.held.current().credential().expires()),
            certificate_problem: certificate_problem(&self.held, !*self.nobody_renews.borrow()),
            proxies: self.serving.ads.proxies().len(),
            cache: CacheStatus::of(&self.restored.standings.borrow()),
            settings: mesh.settings,
            peers: mesh.peers,
            disagreements: mesh.disagreements.into_iter().chain(drift).collect(),
            decisions: self.decisions(),
        }
    }

    fn serving(&self) -> &Serving {
        &self.serving
    }
}
