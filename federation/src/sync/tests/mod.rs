//! The four state machines against each other, without a network: messages are carried by hand,
//! so that a test can lose them, stop half-way, and look at each.

mod behind;
mod bounds;
mod confirmed;
mod kept;
mod levels;
mod publishing;
mod quotas;
mod rubbish;
mod subscribing;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::Instant;

use crate::key::{Key, Kind};
use crate::names::{Owner, RegionName};
use crate::proto::federation as wire;
use crate::record::{
    Body, Cluster, Endpoint, Endpoints, Epoch, Export, Namespace, Newest, READS_LEVEL, Removal,
    ServiceType,
};
use crate::replica::{self, Batch, Removed, Replica, ReplicaWriter};
use crate::store::embedded::Embedded;
use crate::store::{self, Store};
use crate::sync::Caller;
use crate::sync::feed::{Feed, Has, Interest, Owners};
use crate::sync::intake::{Accept, Intake, IntakeError};
use crate::sync::own::{OwnRecords, with_join};
use crate::sync::publisher::{Publisher, Said};
use crate::sync::session::{Heard, Session, SessionError};

const OWNER: &str = "r/r-a";

fn owner() -> Owner {
    OWNER.parse().unwrap()
}

fn epoch(id: &str, count: u64) -> Epoch {
    Epoch { id: id.into(), count }
}

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn namespace(name: &str) -> (Key, Arc<Body>) {
    let key = Key::of_namespace(owner(), &name.parse().unwrap());
    (key, Arc::new(Body::Namespace(Namespace::default())))
}

fn cluster() -> (Key, Arc<Body>) {
    let body = Cluster { uid: "uid".into(), directory: true, ..Cluster::default() };
    (Key::of_owner(owner(), Kind::Cluster), Arc::new(Body::Cluster(body)))
}

fn export(precedence: Timestamp) -> (Key, Arc<Body>) {
    let body = Export {
        service_type: ServiceType::ClusterSetIP,
        ports: Vec::new(),
        session_affinity: String::new(),
        session_affinity_timeout: None,
        internal_traffic_policy: String::new(),
        traffic_distribution: String::new(),
        ip_families: Vec::new(),
        created: Some(precedence),
        precedence,
        exported_labels: BTreeMap::new(),
        exported_annotations: BTreeMap::new(),
    };
    ("/tombolo/v1/r/r-a/export/shop/checkout".parse().unwrap(), Arc::new(Body::Export(body)))
}

fn slice(address: &str) -> (Key, Arc<Body>) {
    let endpoint = Endpoint {
        address: address.parse().unwrap(),
        ready: true,
        serving: true,
        terminating: false,
        was_ready: true,
        zone: String::new(),
        hostname: String::new(),
        node: String::new(),
        target: String::new(),
        service_account: String::new(),
        meshed: false,
    };
    let body = Endpoints { ports: Vec::new(), endpoints: vec![endpoint] };
    let key = "/tombolo/v1/r/r-a/endpoints/shop/checkout/s1".parse().unwrap();
    (key, Arc::new(Body::Endpoints(body)))
}

/// An agent's side: its replica, and what it says into it.
struct Agent {
    own: OwnRecords,
    epoch: Epoch,
    writer: ReplicaWriter,
    joined: Option<Timestamp>,
    said: Said,
}

impl Agent {
    fn new(epoch: Epoch) -> Self {
        let (writer, _readers) = replica::channel();
        let own = OwnRecords::new(owner(), epoch.clone());
        Self { own, epoch, writer, joined: None, said: Said::default() }
    }

    fn says(&mut self, bodies: &[(Key, Arc<Body>)], kinds: &[Kind]) {
        let desired = with_join(&bodies.iter().cloned().collect(), self.joined);
        let mut batch = self.own.reconcile(&desired, &BTreeMap::new());
        batch.complete = self.own.complete(kinds);
        self.writer.apply(batch, Instant::now());
    }

    /// What it knows all of and does not want is gone; of the rest it says nothing.
    fn judge(&mut self, surplus: &[(Key, Bytes)]) -> BTreeMap<Key, Removed> {
        let replica = self.writer.current();
        let known = replica.holding(&owner()).map(|held| held.complete().clone());
        let known = known.unwrap_or_default();
        let gone = surplus.iter().filter(|(key, _)| known.contains_key(&key.kind));
        gone.map(|(key, _)| (key.clone(), self.own.remove(Removal::Explained))).collect()
    }

    fn publisher(&self) -> Publisher {
        Publisher::new(owner(), "uid".into(), self.epoch.clone()).after(self.said.clone())
    }
}

async fn open(
    store: &Arc<dyn Store>,
    uid: &str,
    epoch: Epoch,
    silent_for: Duration,
) -> Result<Session, SessionError> {
    open_knowing(store, uid, epoch, Heard { silent_for, region: None }).await
}

async fn open_knowing(
    store: &Arc<dyn Store>,
    uid: &str,
    epoch: Epoch,
    heard: Heard,
) -> Result<Session, SessionError> {
    let region: RegionName = "r".parse().unwrap();
    let caller = Caller::Agent { region: region.clone(), cluster: "r-a".parse().unwrap() };
    let epoch = crate::proto::records::Epoch { id: epoch.id, count: epoch.count };
    let hello = wire::PublishHello {
        cluster: "r-a".into(),
        uid: uid.into(),
        epoch: Some(epoch),
        reads_level: 1,
    };
    Session::open(Arc::clone(store), &region, &caller, hello, &heard, now()).await
}

/// Carries messages both ways until neither side has any. Returns what the region refused.
async fn settle(
    publisher: &mut Publisher,
    session: &mut Session,
    agent: &mut Agent,
    mut to_region: Vec<wire::PublishRequest>,
) -> Result<Vec<wire::RefusedRecord>, SessionError> {
    let mut refused = Vec::new();
    while !to_region.is_empty() {
        let request = to_region.remove(0);
        for answer in session.receive(request, now()).await? {
            let step = publisher.receive(answer, &agent.writer.current()).unwrap();
            refused.extend(step.refused);
            to_region.extend(step.send);
            if let Some(surplus) = step.surplus {
                to_region.extend(publisher.judged(&agent.judge(&surplus)));
            }
        }
    }
    Ok(refused)
}

/// How many items it has left out.
fn left_out(intake: &Intake) -> u64 {
    intake.left_out().values().sum()
}

/// Connects and publishes all; the stream then flows.
async fn publish(store: &Arc<dyn Store>, agent: &mut Agent) -> (Publisher, Session, usize) {
    let mut publisher = agent.publisher();
    let mut session = open(store, "uid", agent.epoch.clone(), Duration::ZERO).await.unwrap();
    let step = publisher.receive(session.accepted(), &agent.writer.current()).unwrap();
    agent.joined = step.joined;
    let declared = publisher.declare(&agent.writer.current());
    let mut values = 0;
    let mut to_region = declared;
    while !to_region.is_empty() {
        let request = to_region.remove(0);
        if let Some(wire::publish_request::Message::Changes(changes)) = &request.message {
            values += changes.puts.len();
        }
        for answer in session.receive(request, now()).await.unwrap() {
            let step = publisher.receive(answer, &agent.writer.current()).unwrap();
            to_region.extend(step.send);
            if let Some(surplus) = step.surplus {
                to_region.extend(publisher.judged(&agent.judge(&surplus)));
            }
        }
    }
    (publisher, session, values)
}

async fn stored(store: &Arc<dyn Store>) -> Vec<String> {
    let (entries, _) = store::list(&**store, &Key::owner_prefix(&owner())).await.unwrap();
    entries.into_iter().map(|entry| entry.key).collect()
}

/// What region r says of itself first; without it nobody is known to be entitled to anything.
pub(super) fn region_word() -> (Key, Bytes) {
    let region = crate::record::Region { reads_level: READS_LEVEL, ..Default::default() };
    let owner: Owner = "r/_".parse().unwrap();
    let key = Key::of_owner(owner.clone(), Kind::Region);
    let mut own = OwnRecords::new(owner, epoch("r", 1));
    let (key, value) = own.say(&key, &Arc::new(Body::Region(region)));
    (key, value.unwrap())
}

/// One in which the region has said that.
pub(super) async fn store() -> Arc<dyn Store> {
    let store: Arc<dyn Store> = Arc::new(Embedded::in_memory().await.unwrap());
    let (key, value) = region_word();
    let ops = vec![store::Op::put(key.to_string(), value)];
    store.commit(store::Txn { guards: Vec::new(), ops }).await.unwrap();
    store
}
