//! The sending side of a subscription.
//!
//! A feed is a cursor into the replica: what it sends next is always the newest value of each key
//! that changed since, so a slow reader gets fewer versions, and holds up nothing but itself. Each
//! message is made when it is asked for: a subscriber that takes nothing costs a reference to one
//! replica, whose parts all share, and not a copy of it. The feed is cut to what the subscriber is
//! entitled to, uses and can read; so are the digests.
//!
//! Turned down: messages of a whole transfer made at once, which a thousand agents that come back
//! together would multiply.

mod sending;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use self::sending::Sending;
use super::facts;
use crate::digest::Digest;
use crate::key::{Key, Kind};
use crate::names::{ClusterId, NamespaceName, Owner, RegionName};
use crate::proto::federation as wire;
use crate::proto::federation::subscribe_response::Message;
use crate::record::{Body, Entitlement, Epoch, READS_LEVEL};
use crate::replica::{Change, Holding, Replica};

/// Whose records a subscriber is to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owners {
    /// All but its own cluster, which its agent knows better.
    MeshBut(Owner),
    /// A region and its clusters.
    Region(RegionName),
}

/// What a subscriber is to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interest {
    /// Of whom.
    pub owners: Owners,
    /// About which namespaces it may be told.
    pub entitlement: Entitlement,
    /// About which of them it wants to be told; `None` is all.
    pub uses: Option<BTreeSet<NamespaceName>>,
    /// The highest schema level that it reads: it does not know the kinds that came later.
    pub level: u32,
}

impl Interest {
    /// Everything of these owners.
    #[must_use]
    pub fn all(owners: Owners) -> Self {
        Self { owners, entitlement: Entitlement::All, uses: None, level: READS_LEVEL }
    }

    fn includes_owner(&self, owner: &Owner) -> bool {
        match &self.owners {
            Owners::MeshBut(own) => owner != own,
            Owners::Region(region) => owner.region == *region,
        }
    }

    fn includes(&self, key: &Key) -> bool {
        self.includes_owner(&key.owner) && self.knows(key.kind) && self.covers(key.about().as_ref())
    }

    fn knows(&self, kind: Kind) -> bool {
        kind.since_level() <= self.level
    }

    fn covers(&self, namespace: Option<&NamespaceName>) -> bool {
        let uses = |namespace| self.uses.as_ref().is_none_or(|uses| uses.contains(namespace));
        self.entitlement.covers(namespace) && namespace.is_none_or(uses)
    }

    fn digest(&self, holding: &Holding) -> Digest {
        match (&self.entitlement, &self.uses) {
            (Entitlement::All, None) => holding.digest_at(self.level),
            _ => holding.digest_within(self.level, |namespace| self.covers(namespace)),
        }
    }
}

/// What the region says that a cluster is entitled to: all, if it names it not. `None` while the
/// region's record is not held, or was never readable here: nobody is known to be entitled to
/// anything then.
#[must_use]
pub fn entitlement(
    replica: &Replica,
    region: &RegionName,
    cluster: &ClusterId,
) -> Option<Entitlement> {
    let key = Key::of_owner(Owner::region(region.clone()), Kind::Region);
    match &replica.get(&key)?.record.as_deref()?.body {
        Body::Region(region) => {
            Some(region.entitlements.get(cluster).cloned().unwrap_or(Entitlement::All))
        }
        _ => None,
    }
}

/// What a subscriber has already.
#[derive(Debug, Clone, Default)]
pub struct Has {
    /// Digests of what it holds, by owner.
    pub digests: BTreeMap<Owner, Vec<u8>>,
    /// Up to where it followed this store before; 0: nowhere.
    pub position: u64,
}

/// One subscription.
#[derive(Debug)]
pub struct Feed {
    interest: Interest,
    sent: Arc<Replica>,
    /// What comes before `synced`, if that has not been given out.
    opening: Option<Opening>,
    /// What is to be given out before anything else.
    sending: Option<Sending>,
    /// A subscriber that was sent changes only has to compare at once.
    compare: bool,
}

#[derive(Debug)]
struct Opening {
    owners: VecDeque<Owner>,
    has: BTreeMap<Owner, Vec<u8>>,
    /// What changed since the subscriber's position, where that is known.
    since: Option<BTreeMap<Owner, BTreeSet<Key>>>,
}

impl Feed {
    /// Starts a feed for a subscriber that has `has`. Where it can go on from its position it is
    /// sent only what changed since, and the digests to check that by at once: positions of another
    /// history mean nothing.
    #[must_use]
    pub fn open(interest: Interest, has: Has, replica: Arc<Replica>) -> Self {
        let since = (has.position > 0 && has.position <= replica.position)
            .then(|| replica.changes_since_position(has.position))
            .flatten();
        let owners = replica.owners().map(|(owner, _)| owner);
        let owners = owners.filter(|owner| interest.includes_owner(owner)).cloned().collect();
        let opening = Opening { owners, has: has.digests, since: since.map(by_owner) };
        Self { interest, sent: replica, opening: Some(opening), sending: None, compare: false }
    }

    /// About how many bytes come before `synced`.
    #[must_use]
    pub fn transfer_bytes(&self) -> usize {
        let Some(opening) = &self.opening else { return 0 };
        let of = |owner: &Owner| {
            let holding = self.sent.holding(owner)?;
            match self.plan(opening, owner, holding) {
                Plan::Whole => Some(holding.bytes()),
                Plan::Same | Plan::Changes => None,
            }
        };
        opening.owners.iter().filter_map(of).sum()
    }

    /// Whether `synced` is still to come.
    #[must_use]
    pub fn is_opening(&self) -> bool {
        self.opening.is_some()
    }

    /// The next message; `None` once the subscriber was given all that `advance` was last called
    /// with.
    pub fn next_message(&mut self) -> Option<wire::SubscribeResponse> {
        if let Some(message) = self.sending.as_mut().and_then(|rest| rest.next_of(&self.sent)) {
            return Some(message);
        }
        self.sending = None;
        if self.compare && self.opening.is_none() {
            self.compare = false;
            return Some(self.digests());
        }
        let opening = self.opening.as_mut()?;
        let Some(owner) = opening.owners.pop_front() else {
            self.opening = None;
            return Some(message(Message::Synced(wire::Synced { position: self.sent.position })));
        };
        Some(self.start(&owner))
    }

    /// Begins with an owner: everything of it, what changed, or only the beacon, which digests do
    /// not cover.
    fn start(&mut self, owner: &Owner) -> wire::SubscribeResponse {
        let mut start = wire::Start { owner: owner.to_string(), ..wire::Start::default() };
        let (Some(opening), Some(holding)) = (&mut self.opening, self.sent.holding(owner)) else {
            return message(Message::Start(start));
        };
        let changed = opening.since.as_mut().and_then(|since| since.remove(owner));
        let plan = self.opening.as_ref().map(|opening| self.plan(opening, owner, holding));
        let rest = match plan {
            Some(Plan::Changes) => self.changed(changed.unwrap_or_default()),
            Some(Plan::Same) => {
                let beacon = Key::of_owner(owner.clone(), Kind::Beacon);
                Sending::keys(holding.get(&beacon).map(|_| beacon).into_iter().collect())
            }
            Some(Plan::Whole) | None => Sending::whole(owner.clone(), self.interest.clone()),
        };
        let ends = holding.complete().iter().filter(|(kind, _)| self.interest.knows(**kind));
        let ends = ends.map(|(kind, epoch)| end(owner, *kind, epoch)).collect();
        start.newest = holding.newest().map(|newest| wire::Newest {
            epoch: Some(facts::epoch_to_wire(&newest.epoch)),
            sequence: newest.sequence,
        });
        start.same = matches!(plan, Some(Plan::Same));
        start.delta = matches!(plan, Some(Plan::Changes));
        self.compare |= start.delta;
        self.sending = Some(rest.then(ends));
        message(Message::Start(start))
    }

    fn plan(&self, opening: &Opening, owner: &Owner, holding: &Holding) -> Plan {
        match opening.has.get(owner) {
            Some(held) if *held == self.interest.digest(holding).to_bytes() => Plan::Same,
            Some(_) if opening.since.is_some() => Plan::Changes,
            _ => Plan::Whole,
        }
    }

    /// The replica may hold something else now: what is different comes next. To be called when
    /// [`Feed::next_message`] has no more; before that it does nothing, and nothing is lost by it.
    pub fn advance(&mut self, replica: Arc<Replica>) {
        if self.opening.is_some() || self.sending.is_some() || self.compare {
            return;
        }
        let changes = replica.changes_since(self.sent.version);
        let changes = changes.unwrap_or_else(|| replica.differences(&self.sent));
        self.sent = replica;
        let mut keys = BTreeSet::new();
        let mut ends = VecDeque::new();
        for change in changes {
            match change {
                Change::Record(key) => drop(keys.insert(key)),
                Change::Complete(owner, kind)
                    if self.interest.includes_owner(&owner) && self.interest.knows(kind) =>
                {
                    let epoch = self.sent.holding(&owner).and_then(|h| h.complete().get(&kind));
                    ends.extend(epoch.map(|epoch| end(&owner, kind, epoch)));
                }
                Change::Complete(..) => {}
            }
        }
        self.sending = Some(self.changed(keys).then(ends));
    }

    /// What the subscriber has to hold once it has taken everything up to here.
    #[must_use]
    pub fn digests(&self) -> wire::SubscribeResponse {
        let owners = self.sent.owners().filter(|(owner, _)| self.interest.includes_owner(owner));
        let owners = owners.map(|(owner, holding)| wire::OwnerDigest {
            owner: owner.to_string(),
            digest: self.interest.digest(holding).to_bytes().into(),
        });
        let (position, level) = (self.sent.position, self.interest.level);
        message(Message::Digests(wire::Digests { position, owners: owners.collect(), level }))
    }

    /// Upserts first, deletes last, so that no reader sees a service without endpoints between the
    /// two halves of a move.
    fn changed(&self, keys: BTreeSet<Key>) -> Sending {
        let keys = keys.into_iter().filter(|key| self.interest.includes(key));
        let (there, gone): (Vec<Key>, Vec<Key>) =
            keys.partition(|key| self.sent.get(key).is_some());
        Sending::keys(there.into_iter().chain(gone).collect())
    }
}

/// How an owner is sent at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plan {
    Same,
    Changes,
    Whole,
}

fn by_owner(changes: BTreeSet<Change>) -> BTreeMap<Owner, BTreeSet<Key>> {
    let mut owners: BTreeMap<Owner, BTreeSet<Key>> = BTreeMap::new();
    for change in changes {
        if let Change::Record(key) = change {
            owners.entry(key.owner.clone()).or_default().insert(key);
        }
    }
    owners
}

fn end(owner: &Owner, kind: Kind, epoch: &Epoch) -> wire::SubscribeResponse {
    message(Message::End(wire::End {
        owner: owner.to_string(),
        kind: kind.to_string(),
        epoch: Some(facts::epoch_to_wire(epoch)),
    }))
}

fn message(message: Message) -> wire::SubscribeResponse {
    wire::SubscribeResponse { message: Some(message) }
}
