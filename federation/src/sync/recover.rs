//! Asking the peers what this region once said.
//!
//! A store may be new, or restored from a backup, and nobody of this region may be left who knows
//! more. Its peers still hold what it said: unless it is [known](founding::past) that nothing can be
//! missing, a leader asks each until it has answered ([`Recover`](wire::RecoverRequest)), and writes
//! what an owner has said beyond what the store has, as it was, stale until its owner speaks.
//! Promises: the newest change of an owner wins, whoever answers first; an owner that has spoken
//! meanwhile wins over all of them; what was withdrawn does not come back with a late answer. The
//! answers come through the same intake as a subscription: a peer can give
//! nothing but this region's own records.
//!
//! The first words of the region wait a little, since what peers return of its own (who joined when,
//! what was decided) is not to be said anew. Of what comes later only decisions are taken; a term whose
//! words peers would not take, because the region had said newer ones, ends, and the next goes on from those.

mod answer;
mod merge;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use self::answer::Answer;
use super::departures::forgotten;
use super::founding::{self, Past};
use super::intake::IntakeError;
use super::leader::{Leader, LeaderError, persist};
use super::local::Facts;
use super::quota::Quota;
use super::reseed::say_again;
use super::transactions::{Changes, by_owner};
use super::transport::{Dial, Transport};
use super::{chain, client, decisions, facts, follower};
use crate::key::{Key, Kind};
use crate::names::{Owner, RegionName};
use crate::proto::federation as wire;
use crate::record::{Newest, READS_LEVEL};
use crate::replica::{self, Batch, Holding, Replica};
use crate::store::{self, Guard, Op, Revision, Txn};

/// A peer lets a caller wait for its turn for 30 s, and for its own store for 15 s before that.
const BEGINS_WITHIN: Duration = Duration::from_mins(1);
/// One that has begun does not pause for longer.
const GOES_ON_WITHIN: Duration = Duration::from_secs(15);
/// All that is taken of a region, at less than two megabytes a second.
const ANSWERS_WITHIN: Duration = Duration::from_mins(15);
/// How long the region's first words in a term wait for what its peers know of it. They are asked
/// further.
const PEERS_ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Why a peer could not be asked.
#[derive(Debug, thiserror::Error)]
enum RecoverError {
    #[error("the peer cannot be asked: {}", .0.message())]
    Peer(Box<tonic::Status>),
    #[error("the peer says nothing for {} s", .0.as_secs())]
    Silent(Duration),
    #[error("the peer has not said all after {} min", ANSWERS_WITHIN.as_secs() / 60)]
    Slow,
    #[error("the peer says more than the {} records or {} bytes that are taken of a {}", .0.records, .0.bytes, .0.of)]
    TooMuch(Quota),
    #[error("the peer ended before it had said all")]
    Cut,
    #[error(transparent)]
    Intake(#[from] IntakeError),
}

impl From<tonic::Status> for RecoverError {
    fn from(status: tonic::Status) -> Self {
        Self::Peer(Box::new(status))
    }
}

/// How asking the peers stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Asked {
    /// The region may speak: what it said before is known, or was waited for.
    pub may_speak: bool,
    /// All have answered, or need not be asked.
    pub all: bool,
    /// Who has not answered, and why, as far as that is known.
    pub waiting: BTreeMap<RegionName, String>,
}

/// A leader's recovery of what its store may have lost.
pub struct Recovery<D> {
    /// Writes. What its own process knew is written back already.
    pub leader: Leader,
    /// The region.
    pub region: RegionName,
    /// What [`founding::past`] said.
    pub past: Option<Past>,
    /// Whom to ask.
    pub peers: BTreeMap<RegionName, D>,
    /// The local facts of who has left: nobody waits for those.
    pub left: watch::Receiver<Facts>,
    /// Told how it stands.
    pub asked: watch::Sender<Asked>,
}

/// What is known of the region's own words from before this term.
struct Known {
    newest: Option<Newest>,
    /// The region may have said something in this term: its own words are its own.
    spoken: bool,
}

/// Waits until the region may speak, with all that is known of what it said before.
///
/// # Errors
/// See [`Leader::catch_up`].
pub async fn may_speak(
    leader: &mut Leader,
    mut asked: watch::Receiver<Asked>,
) -> Result<(), LeaderError> {
    let told = asked.wait_for(|asked| asked.may_speak).await.map(drop);
    told.map_err(|_| LeaderError::Stopping)?;
    let caught_up = || {
        let mut leader = leader.clone();
        async move { leader.catch_up().await }
    };
    persist("reading what the region said before", caught_up).await
}

impl<D: Dial> Recovery<D> {
    /// Goes on until all have answered, and then for as long as it is let.
    ///
    /// # Errors
    /// Those of writing as the leader that do not pass: a peer that cannot be reached is asked again,
    /// and a store that cannot be written is tried again with what the peer has said.
    pub async fn run(self) -> LeaderError {
        match self.recover().await {
            Ok(()) => std::future::pending().await,
            Err(error) => error,
        }
    }

    async fn recover(&self) -> Result<(), LeaderError> {
        let Some(past) = &self.past else {
            self.asked.send_replace(Asked { may_speak: true, all: true, ..Asked::default() });
            return Ok(());
        };
        let newest = if past.begun {
            past.known.clone()
        } else {
            // With what was written back.
            let read = || async { founding::last_word(&self.leader, &self.region).await };
            persist("reading what the region said last", read).await?.0
        };
        let known = Mutex::new(Known { newest, spoken: false });
        let waiting = self.peers.keys().map(|peer| (peer.clone(), "not asked yet".to_owned()));
        self.asked.send_replace(Asked { waiting: waiting.collect(), ..Asked::default() });
        let (answers, ()) = tokio::join!(self.ask_all(&known), self.let_speak(&known));
        answers
    }

    async fn ask_all(&self, known: &Mutex<Known>) -> Result<(), LeaderError> {
        let asking = self.peers.iter().map(|(peer, way)| self.ask_one(peer, way, known));
        let mut asking: FuturesUnordered<_> = asking.collect();
        while let Some(asked) = asking.next().await {
            asked?;
        }
        let record = || async { founding::answered(&self.leader).await };
        persist("recording that all peers were asked", record).await?;
        self.asked.send_modify(|asked| (asked.may_speak, asked.all) = (true, true));
        Ok(())
    }

    async fn let_speak(&self, known: &Mutex<Known>) {
        let mut asked = self.asked.subscribe();
        let all = asked.wait_for(|asked| asked.all);
        if timeout(PEERS_ANSWER_WITHIN, all).await.is_err() {
            info!("not all peers have said what they know of this region, going on without");
            // Not while the region's own words are being written.
            known.lock().await.spoken = true;
            self.asked.send_modify(|asked| asked.may_speak = true);
        }
    }

    async fn ask_one(
        &self,
        peer: &RegionName,
        way: &D,
        known: &Mutex<Known>,
    ) -> Result<(), LeaderError> {
        let mut left = self.left.clone();
        let gone = async {
            match left.wait_for(|left| forgotten(left, peer).is_some()).await.map(drop) {
                Ok(()) => {}
                Err(_) => std::future::pending().await,
            }
        };
        let answer = tokio::select! {
            biased;
            answer = self.answer(peer, way) => answer,
            () = gone => {
                info!(%peer, "a peer that has left is not asked what this region had said");
                Batch::default()
            }
        };
        let write = || self.write(answer.clone(), known);
        let written = persist("writing what a peer gave back", write).await?;
        if written > 0 {
            warn!(%peer, records = written, "this region's store had lost something: a peer gave it back");
        } else {
            info!(%peer, "the peer had nothing of this region that its store lacks");
        }
        self.asked.send_modify(|asked| drop(asked.waiting.remove(peer)));
        Ok(())
    }

    /// Asks until the peer has answered.
    async fn answer(&self, peer: &RegionName, way: &D) -> Batch {
        let mut backoff = client::backoff();
        loop {
            let asked = timeout(ANSWERS_WITHIN, ask(&self.region, way.dial())).await;
            match asked.unwrap_or(Err(RecoverError::Slow)) {
                Ok(batch) => return batch,
                Err(error) => self.not_yet(peer, &error),
            }
            sleep(backoff.next().unwrap_or(client::MAX_BACKOFF)).await;
        }
    }

    fn not_yet(&self, peer: &RegionName, error: &RecoverError) {
        let why = chain(error);
        self.asked.send_modify(|asked| {
            let news = asked.waiting.get(peer) != Some(&why);
            if news {
                warn!(%peer, error = why, "a peer does not say what it knows of this region, it is asked again");
            } else {
                debug!(%peer, error = why, "a peer does not say what it knows of this region");
            }
            asked.waiting.insert(peer.clone(), why);
        });
    }

    /// Writes what the store lacks of an answer. Returns how many records that was.
    async fn write(&self, answer: Batch, known: &Mutex<Known>) -> Result<usize, LeaderError> {
        let mut theirs = by_owner(answer, |_| None);
        let mut written = 0;
        if let Some(own) = theirs.remove(&Owner::region(self.region.clone())) {
            written += self.write_own(own, &mut *known.lock().await).await?;
        }
        let held = Held::read(&self.leader, &self.region).await?;
        for (owner, changes) in theirs {
            if held.has_left(&changes, &owner) {
                info!(%owner, "what a peer has of one who has left is not taken");
                continue;
            }
            if let Some(changes) = merge::newer(held.replica.holding(&owner), changes) {
                written += self.commit(&held, &owner, changes).await?;
            }
        }
        Ok(written)
    }

    /// The region's own words: all of them before it has spoken in this term, decisions afterwards.
    async fn write_own(&self, theirs: Changes, known: &mut Known) -> Result<usize, LeaderError> {
        let owner = Owner::region(self.region.clone());
        let held = Held::read(&self.leader, &self.region).await?;
        let ours = held.replica.holding(&owner);
        let newest = theirs.newest.clone();
        let more = if known.spoken { None } else { merge::newer(ours, theirs.clone()) };
        let written = if let Some(changes) = more {
            self.commit(&held, &owner, changes).await?
        } else {
            self.decide(&held, merge::decided(ours, &theirs, known.newest.as_ref())).await?
        };
        let news =
            |newest: &Newest| known.newest.as_ref().is_none_or(|known| known.is_older_than(newest));
        if let Some(newest) = newest.filter(news) {
            founding::record_past(&self.leader, Some(&newest)).await?;
            known.newest = Some(newest.clone());
            if known.spoken && self.is_outdated(ours, &newest).await? {
                return Err(LeaderError::Outdated);
            }
        }
        Ok(written)
    }

    /// Whether peers take what the region says in this term for older than `newest`, which one of
    /// them has of it: it has spoken, or is about to, in an epoch that goes on from less.
    async fn is_outdated(
        &self,
        ours: Option<&Holding>,
        newest: &Newest,
    ) -> Result<bool, LeaderError> {
        let ours = ours.and_then(Holding::newest);
        let older = ours.is_none_or(|ours| ours.epoch.is_older_than(&newest.epoch));
        let own = newest.epoch.id == *self.region.to_string();
        Ok(own && older && founding::is_beyond_the_term(&self.leader, newest).await?)
    }

    async fn commit(
        &self,
        held: &Held,
        owner: &Owner,
        changes: Changes,
    ) -> Result<usize, LeaderError> {
        let count = changes.items.len();
        let said = held.said.get(owner).copied().unwrap_or_default();
        let done = say_again(&self.leader, owner, changes, said).await?;
        Ok(if done { count } else { 0 })
    }

    async fn decide(
        &self,
        held: &Held,
        decided: Vec<(Key, Option<bytes::Bytes>)>,
    ) -> Result<usize, LeaderError> {
        let mut written = 0;
        let now = self.leader.replicas.peek();
        for (key, value) in decided {
            // Withdrawn in this term, or a moment ago.
            if value.is_some() && now.get(&key).is_none() && now.removed(&key).is_some() {
                continue;
            }
            let there = held.decided.get(&key).copied().unwrap_or_default();
            let guards = vec![Guard::ModRevision(key.to_string(), there)];
            let op = match value {
                Some(value) => Op::put(key.to_string(), value),
                None => Op::delete(key.to_string()),
            };
            let done = self.leader.commit_guarded(Txn { guards, ops: vec![op] }).await?;
            written += usize::from(done.is_done());
        }
        Ok(written)
    }
}

/// What the store has of the region.
struct Held {
    replica: Arc<Replica>,
    /// When each owner's last word was written.
    said: BTreeMap<Owner, Revision>,
    /// When each decision was.
    decided: BTreeMap<Key, Revision>,
}

impl Held {
    async fn read(leader: &Leader, region: &RegionName) -> Result<Self, LeaderError> {
        let (writer, _) = replica::channel();
        let (mut said, mut decided) = (BTreeMap::new(), BTreeMap::new());
        // Last words before records: what is written in between is found when this is committed.
        for prefix in facts::prefixes_of(region).iter().rev() {
            let (listed, _) = store::list(&*leader.store, prefix).await?;
            for entry in &listed {
                said.extend(facts::owner_of_said(&entry.key).map(|o| (o, entry.mod_revision)));
                let key = entry.key.parse::<Key>().ok();
                let key = key.filter(|key| key.kind == Kind::Decision);
                decided.extend(key.map(|key| (key, entry.mod_revision)));
            }
            writer.apply(follower::read(listed), Instant::now());
        }
        Ok(Self { replica: writer.current(), said, decided })
    }

    /// Whether the peer speaks of an incarnation of a cluster that has left.
    fn has_left(&self, theirs: &Changes, owner: &Owner) -> bool {
        let batch = Batch { items: theirs.items.clone(), ..Batch::default() };
        decisions::is_gone(&self.replica.with(batch, Instant::now()), owner)
    }
}

/// All that the peer holds of this region.
async fn ask(region: &RegionName, channel: impl Transport) -> Result<Batch, RecoverError> {
    let request = wire::RecoverRequest { reads_level: READS_LEVEL };
    let mut client = client::client(channel);
    let opened = within(BEGINS_WITHIN, client.recover(request)).await??;
    let mut responses = opened.into_inner();
    let mut answer = Answer::about(region);
    while let Some(response) = within(GOES_ON_WITHIN, responses.message()).await?? {
        if let Some(all) = answer.receive(response)? {
            return Ok(all);
        }
    }
    Err(RecoverError::Cut)
}

async fn within<T>(limit: Duration, message: impl Future<Output = T>) -> Result<T, RecoverError> {
    timeout(limit, message).await.map_err(|_| RecoverError::Silent(limit))
}

#[cfg(test)]
mod tests;
