//! An agent: the real publisher and subscriber, around records that come from a [`Truth`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, interval, sleep};

use super::checker::first_answer;
use super::network::{Spawner, Wire};
use super::truth::Truth;
use super::{Planted, Property, Shared};
use crate::key::{Key, Kind};
use crate::names::Owner;
use crate::record::{Beacon, Body, Epoch, Removal};
use crate::replica::{self, Batch, ReplicaWriter, Replicas};
use crate::sync::client::{self, Link, Publication, Surplus};
use crate::sync::own::{OwnRecords, with_join};
use crate::sync::{BEACON_INTERVAL, CLUSTER_KINDS, Caller};

/// One incarnation of a cluster's agent.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) name: String,
    pub(super) replicas: Replicas,
    pub(super) joined: watch::Receiver<Option<Timestamp>>,
    /// How its publishing goes.
    pub(super) published: watch::Receiver<Link>,
    tasks: Spawner,
}

impl Agent {
    /// `count` is the number of its starts.
    pub(super) fn start(shared: &Arc<Shared>, truth: &Arc<Truth>, count: u64) -> Option<Self> {
        let cluster = truth.owner.cluster.clone()?;
        let region = truth.owner.region.clone();
        let name = format!("agent/{cluster}");
        let tasks = Spawner::new();
        let (writer, replicas) = replica::channel();
        let writer = Arc::new(writer);
        let epoch = Epoch { id: format!("lease-of-{cluster}"), count };
        shared.checker.began(&truth.owner, &epoch);
        let (joined, joined_rx) = watch::channel(None);
        let (respected, respected_rx) = watch::channel(None);
        let (judge, surplus) = mpsc::channel(1);
        let own = Own {
            shared: Arc::clone(shared),
            truth: Arc::clone(truth),
            records: OwnRecords::new(truth.owner.clone(), epoch.clone()),
            writer: Arc::clone(&writer),
            joined: joined_rx.clone(),
            respected,
            surplus,
            read: false,
        };
        tasks.spawn(own.run());
        let publication = Publication {
            owner: truth.owner.clone(),
            uid: truth.uid.clone(),
            epoch,
            joined,
            respected: respected_rx,
            judge,
        };
        let wire = Wire {
            shared: Arc::clone(shared),
            client: name.clone(),
            region: region.clone(),
            caller: Caller::Agent { region, cluster },
            tasks: tasks.clone(),
            reached: Arc::default(),
        };
        let (publishing, subscribed) = (watch::Sender::default(), watch::Sender::default());
        let published = publishing.subscribe();
        tasks.spawn(client::publish(wire.clone(), publication, replicas.clone(), publishing));
        let link = subscribed.subscribe();
        let owner = truth.owner.clone();
        tasks.spawn(client::subscribe(wire.clone(), owner, BTreeSet::new(), writer, subscribed));
        let (observer, own) = (name.clone(), Some(truth.owner.clone()));
        let checked = Arc::clone(shared);
        let seen = replicas.clone();
        tasks.spawn(async move { checked.checker.observe(&checked, &observer, own, seen).await });
        tasks.spawn(answers(Arc::clone(shared), wire, truth.owner.clone(), link, replicas.clone()));
        Some(Self { name, replicas, joined: joined_rx, published, tasks })
    }

    pub(super) fn kill(&self) {
        self.tasks.kill();
    }
}

/// Holds an agent to its word that it has everything.
async fn answers(
    shared: Arc<Shared>,
    wire: Wire,
    own: Owner,
    mut link: watch::Receiver<Link>,
    replicas: Replicas,
) {
    let mut was = Link::default();
    while link.changed().await.is_ok() {
        let now = link.borrow_and_update().clone();
        if now.synced && !was.synced {
            shared.journal.note(&format!("{} says that it holds everything", wire.client));
            let reached = wire.reached.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(reached) = reached {
                first_answer(&shared, (&wire.client, &own), &reached, &replicas.peek());
            }
        }
        troubled(&shared, &wire.client, &now, &was);
        mismatched(&shared, &wire.client, &now, &was);
        was = now;
    }
}

pub(super) fn troubled(shared: &Shared, who: &str, now: &Link, was: &Link) {
    if let Some(problem) =
        now.problem.as_ref().filter(|problem| was.problem.as_ref() != Some(problem))
    {
        shared.journal.note(&format!("{who}: {problem}"));
    }
}

/// A digest that differs is a bug, unless a store went back in this run.
pub(super) fn mismatched(shared: &Shared, who: &str, now: &Link, was: &Link) {
    if now.mismatches <= was.mismatches {
        return;
    }
    let what = format!("{who}: {}", now.problem.clone().unwrap_or_default());
    if shared.histories {
        shared.journal.note(&format!("a digest differs: {what}"));
    } else {
        shared.journal.violated(Property::AntiEntropyFindsNothing, &what);
    }
}

/// What the binary's `role::own` does.
struct Own {
    shared: Arc<Shared>,
    truth: Arc<Truth>,
    records: OwnRecords,
    writer: Arc<ReplicaWriter>,
    joined: watch::Receiver<Option<Timestamp>>,
    respected: watch::Sender<Option<Timestamp>>,
    surplus: mpsc::Receiver<Surplus>,
    /// The source was read: before, nothing is known.
    read: bool,
}

impl Own {
    async fn run(mut self) {
        let mut changed = self.truth.changed.subscribe();
        let mut random = self.shared.fork();
        let mut reading = Box::pin(sleep(Duration::from_millis(random.below(800))));
        self.reconcile();
        let mut beat = interval(BEACON_INTERVAL);
        let beacon_key = Key::of_owner(self.truth.owner.clone(), Kind::Beacon);
        let mut nonce = 0;
        loop {
            tokio::select! {
                biased;
                () = &mut reading, if !self.read => {
                    self.read = true;
                    self.reconcile();
                }
                changed = changed.changed() => match changed {
                    Ok(()) => self.reconcile(),
                    Err(_) => return,
                },
                changed = self.joined.changed() => match changed {
                    Ok(()) => self.reconcile(),
                    Err(_) => return,
                },
                surplus = self.surplus.recv() => match surplus {
                    Some(surplus) => self.judge(surplus),
                    None => return,
                },
                _ = beat.tick() => {
                    nonce += 1;
                    let body = Arc::new(Body::Beacon(Beacon { nonce }));
                    let items = vec![self.records.say(&beacon_key, &body)];
                    self.say(Batch { items, ..Batch::default() });
                }
            }
        }
    }

    /// All that the owner holds, once that is known.
    fn wanted(&self) -> Option<BTreeMap<Key, Arc<Body>>> {
        let mut bodies = self.truth.bodies();
        if !self.read {
            bodies.retain(|key, _| key.kind == Kind::Cluster);
        }
        (self.read || self.shared.planted == Some(Planted::EmptyAsTruth)).then_some(bodies)
    }

    fn reconcile(&mut self) {
        let joined = *self.joined.borrow_and_update();
        if let Some(wanted) = self.wanted() {
            let mut batch = self.records.reconcile(&with_join(&wanted, joined), &BTreeMap::new());
            batch.complete = self.records.complete(&CLUSTER_KINDS);
            self.say(batch);
        }
        self.respected.send_if_modified(|respected| {
            let news = *respected != joined;
            *respected = joined;
            news
        });
    }

    fn say(&self, batch: Batch) {
        for (key, value) in &batch.items {
            if let Some(value) = value {
                self.shared.checker.said(key, value);
            }
        }
        self.writer.apply(batch, Instant::now());
    }

    fn judge(&mut self, surplus: Surplus) {
        let wanted = self.wanted();
        let unwanted =
            |key: &&Key| wanted.as_ref().is_some_and(|wanted| !wanted.contains_key(*key));
        let gone = surplus.records.iter().map(|(key, _)| key);
        let gone: Vec<Key> = gone.filter(unwanted).cloned().collect();
        let what = format!(
            "{} is asked about {} records, {} are gone",
            self.truth.owner,
            surplus.records.len(),
            gone.len()
        );
        self.shared.journal.note(&what);
        let gone = gone.into_iter().map(|key| (key, self.records.remove(Removal::Explained)));
        let _ = surplus.gone.send(gone.collect());
    }
}
