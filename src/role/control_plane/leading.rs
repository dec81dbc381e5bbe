//! What a replica does while it leads: begins a term, writes back what the store lost, asks the peers
//! what else it may have lost, speaks for the region, forgets who left, and mirrors the peers.

use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tombolo_ca::identity::Identity;
use tombolo_ca::material::Held;
use tombolo_federation::names::RegionName;
use tombolo_federation::replica::Replicas;
use tombolo_federation::store::{Guard, Store, election};
use tombolo_federation::sync::client::Link;
use tombolo_federation::sync::departures::{Departures, forget_those_who_left, forgotten};
use tombolo_federation::sync::follower::Following;
use tombolo_federation::sync::founding::{self, Past, Term};
use tombolo_federation::sync::leader::{Leader, LeaderError, persist};
use tombolo_federation::sync::local::Facts;
use tombolo_federation::sync::recover::{self, Asked, Recovery};
use tombolo_federation::sync::spokesman::{self, Sources};
use tombolo_federation::sync::{chain, facts, mirror, reseed};
use tracing::{info, warn};

use crate::config::Peer;
use crate::role::grpc::Way;
use crate::role::leader::LeaderStatus;
use crate::role::wall_clock;
use crate::state_dir::new_id;

use super::view::View;

/// Speaks for the region and mirrors its peers, whenever this process leads.
pub(super) struct Candidate {
    pub(super) store: Arc<dyn Store>,
    pub(super) replicas: Replicas,
    pub(super) following: watch::Receiver<Following>,
    pub(super) held: Held,
    pub(super) asks: watch::Receiver<Facts>,
    pub(super) view: Arc<View>,
}

impl Candidate {
    pub(super) async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        loop {
            let (key, ttl) = (facts::election_key(), self.view.config.leader_ttl.0);
            let admin = self.view.config.listen.admin;
            let says = move || LeaderStatus::ourselves(admin).to_string();
            let campaign = election::campaign_saying(Arc::clone(&self.store), &key, says, ttl);
            let leadership = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                leadership = campaign => leadership?,
            };
            info!(region = %self.view.config.region, "leading");
            self.view.leads(true);
            let ended = tokio::select! {
                () = stop.cancelled() => None,
                () = leadership.lost() => Some(Ok(LeaderError::NotLeader)),
                ended = self.lead(leadership.fence()) => Some(ended),
            };
            self.view.leads(false);
            self.view.asked.send_replace(Asked::default());
            leadership.resign().await;
            match ended {
                None => return Ok(()),
                Some(Ok(LeaderError::NotLeader)) => warn!("leadership lost, campaigning anew"),
                // Nothing that a store may get over ends a process that serves others meanwhile.
                Some(Ok(error)) if error.ends_the_term_only() => {
                    warn!(error = chain(&error), "cannot go on leading, campaigning anew");
                    tokio::select! {
                        () = stop.cancelled() => return Ok(()),
                        () = tokio::time::sleep(ttl) => {}
                    }
                }
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
        if let Err(error) = reseed::follows(&self.following, &term).await {
            return Ok(error);
        }
        let past =
            || async { founding::past(&leader, &self.view.config.region, &self.following).await };
        let past = match persist("looking whether the store may have been restored", past).await {
            Ok(past) => past,
            Err(error) => return Ok(error),
        };
        // Before anybody is compared with the store: what it has lost would look like their word.
        match reseed::reseed(&mut leader, &self.following).await {
            Ok(0) => {}
            Ok(records) => warn!(records, "what the store had lost was written back"),
            Err(error) => return Ok(error),
        }
        let config = &self.view.config;
        // What was said in earlier terms is here before anything is decided by it.
        if let Err(error) = leader.caught_up(term.began).await {
            return Ok(error);
        }
        let mut parts = JoinSet::new();
        let asked = self.view.asked.clone();
        asked.send_replace(Asked::default());
        parts.spawn(self.recovery(leader.clone(), past, asked.clone())?.run());
        let view = Arc::clone(&self.view);
        let sources = Sources {
            settings: Arc::new(move || view.region()),
            sessions: self.view.asking.sessions.clone(),
            asks: self.asks.clone(),
            asked: asked.subscribe(),
            clock: wall_clock(),
            draw: Arc::new(new_id),
        };
        parts.spawn(spokesman::speak(leader.clone(), config.region.clone(), term, sources));
        parts.spawn(reseed::keep_seeded(
            leader.clone(),
            config.region.clone(),
            self.following.clone(),
        ));
        let departures = Departures {
            leader: leader.clone(),
            region: config.region.clone(),
            sessions: self.view.asking.sessions.clone(),
            left: self.view.asking.left.clone(),
        };
        parts.spawn(let_leave(departures, asked.subscribe()));
        for peer in &config.peers {
            let expected = Identity::ControlPlane { region: peer.region.clone() };
            let way = Way::new(&peer.address, expected, &self.held)?;
            let link = self.view.links[&peer.region].clone();
            let left = self.view.asking.left.clone();
            parts.spawn(follow_peer(leader.clone(), peer.region.clone(), way, link, left));
        }
        let ended = parts.join_next().await.context("a leader has at least its own region")?;
        Ok(ended?)
    }
}

impl Candidate {
    /// What the store may have lost, the peers know.
    fn recovery(
        &self,
        leader: Leader,
        past: Option<Past>,
        asked: watch::Sender<Asked>,
    ) -> anyhow::Result<Recovery<Way>> {
        let way = |peer: &Peer| {
            let expected = Identity::ControlPlane { region: peer.region.clone() };
            Ok((peer.region.clone(), Way::new(&peer.address, expected, &self.held)?))
        };
        Ok(Recovery {
            leader,
            region: self.view.config.region.clone(),
            past,
            peers: self.view.config.peers.iter().map(way).collect::<anyhow::Result<_>>()?,
            left: self.view.asking.left.clone(),
            asked,
        })
    }
}

/// Carries out who left, once it is known, or was waited for, whether that still stands.
async fn let_leave(departures: Departures, asked: watch::Receiver<Asked>) -> LeaderError {
    match recover::may_speak(&mut departures.leader.clone(), asked).await {
        Ok(()) => forget_those_who_left(departures).await,
        Err(error) => error,
    }
}

/// Mirrors a peer, from the start whenever it is forgotten, or no longer: what was held of it then is
/// not what the stream goes on from.
pub(super) async fn follow_peer(
    leader: Leader,
    peer: RegionName,
    way: Way,
    link: watch::Sender<Link>,
    mut left: watch::Receiver<Facts>,
) -> LeaderError {
    loop {
        let known = forgotten(&left.borrow_and_update(), &peer);
        let mirror =
            mirror::mirror(leader.clone(), peer.clone(), way.clone(), link.clone(), known.clone());
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
pub(super) async fn begin_term(leader: &Leader) -> Result<Term, LeaderError> {
    let begin = || async move { founding::begin(leader, &new_id(), wall_clock()()).await };
    persist("beginning a term", begin).await
}
