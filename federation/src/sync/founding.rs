//! Which store this is, and which leader's term: together the epoch of what the region says.
//!
//! Owns: [`begin`], the first fenced transaction of each leader. Promises: the region's epoch only
//! grows, whichever replica leads, and also when the store is restored from a backup or lost: what
//! a new leader says is newer than all that any old one said. A new store has a new id, the region's
//! incarnation, by which peers tell that the old one was lost. Also [`past`]: whether the store may
//! be one that was restored, so that peers know more; nothing in it could say so, a backup has that
//! too. Leaves to others: randomness and wall time, which are passed in; asking peers
//! ([`recover`](super::recover)).
//!
//! Turned down: the epoch of a replica's state directory, of which there is one per replica, so
//! that two leaders' words would have no order.

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::watch;
use tracing::{error, info};

use super::facts::{self, Fact};
use super::follower::Following;
use super::leader::{Leader, LeaderError};
use crate::names::{Owner, RegionName};
use crate::proto::local as wire;
use crate::record::{Epoch, Newest, to_unix_ms};
use crate::store::{self, Commit, Guard, Revision, Txn};

/// The term of one leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    /// What the store says of itself, this term included.
    pub founding: wire::Founding,
    /// The commit that began it: a replica that has it has all that earlier leaders said.
    pub began: Revision,
}

impl Term {
    /// The epoch of all that `region` says in this term; `known` is its newest change that is known.
    /// Its id is the region's name and not the store's, so that a region's words have one order also
    /// over the loss of a store: a peer's store that was restored may still hold those of the one
    /// before.
    #[must_use]
    pub fn epoch(&self, region: &RegionName, known: Option<&Newest>) -> Epoch {
        let id = region.to_string();
        // What peers knew is not in the store, where the region had spoken before they answered.
        let past = self.founding.past.as_ref().and_then(facts::past);
        let known = known.into_iter().chain(&past).filter(|known| known.epoch.id == id);
        let known = known.map(|known| known.epoch.count).max().unwrap_or_default();
        // A clock that went back over such a loss.
        let count = self.founding.term.max(known.saturating_add(1));
        Epoch { id, count }
    }

    /// The region's incarnation: that of its store.
    #[must_use]
    pub fn incarnation(&self) -> &str {
        &self.founding.id
    }
}

/// Begins the term of a leader that has said nothing yet. `new_id` is for a store that has none.
///
/// # Errors
/// See [`LeaderError`]. Whether a term has begun is then not known, and does not matter: the next
/// attempt begins a later one.
pub async fn begin(leader: &Leader, new_id: &str, now: Timestamp) -> Result<Term, LeaderError> {
    let key = facts::founding_key();
    let held = store::read(&*leader.store, &key).await?;
    let written = held.as_ref().map_or(0, |held| held.mod_revision);
    let founding = next(held.map(|held| held.value).as_ref(), new_id, now);
    let guards = vec![Guard::ModRevision(key, written)];
    let ops = vec![facts::founding_op(&founding)];
    match leader.commit_guarded(Txn { guards, ops }).await? {
        Commit::Done(began) => {
            info!(incarnation = founding.id, term = founding.term, "a term begins");
            Ok(Term { founding, began })
        }
        // Only leaders write it.
        Commit::GuardFailed => Err(LeaderError::NotLeader),
    }
}

/// What is known of the region's own words from before its peers were asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Past {
    /// Its newest change.
    pub known: Option<Newest>,
    /// It was asked for in an earlier term already, which may have said something since.
    pub begun: bool,
}

/// Whether peers have to be asked what this store has lost, and if so, beyond what. It may have been
/// restored before anybody followed it who still lives: only where the region's last word was heard
/// as it was said, by a follower that has missed nothing since, is it known that it was not, or was
/// made good. To be asked once the follower [`follows`](super::reseed::follows) the term, and before
/// anything is written back, which would look like such a word.
///
/// # Errors
/// See [`LeaderError`].
pub async fn past(
    leader: &Leader,
    region: &RegionName,
    following: &watch::Receiver<Following>,
) -> Result<Option<Past>, LeaderError> {
    let (_, founding) = held(leader).await?;
    if let Some(past) = &founding.past {
        return Ok(Some(Past { known: facts::past(past), begun: true }));
    }
    let (known, written) = last_word(leader, region).await?;
    if written > following.borrow().without_gap_since {
        return Ok(None);
    }
    record_past(leader, known.as_ref()).await?;
    Ok(Some(Past { known, begun: false }))
}

/// Up to which change the store knows what the region said itself, and when that was written.
pub(super) async fn last_word(
    leader: &Leader,
    region: &RegionName,
) -> Result<(Option<Newest>, Revision), LeaderError> {
    let key = facts::said_key(&Owner::region(region.clone()));
    let Some(entry) = store::read(&*leader.store, &key).await? else { return Ok((None, 0)) };
    let newest = match facts::read(&key, &entry.value) {
        Some(Fact::Said(_, said)) => Some(said.newest),
        _ => None,
    };
    Ok((newest, entry.mod_revision))
}

/// Records up to where the region's past is known, for the leaders that come before all peers have
/// answered.
///
/// # Errors
/// See [`LeaderError`].
pub async fn record_past(leader: &Leader, known: Option<&Newest>) -> Result<(), LeaderError> {
    write(leader, Some(facts::past_to_wire(known))).await
}

/// Whether the region said `newest` in an epoch that this leader's term is not known to come after.
///
/// # Errors
/// See [`LeaderError`].
pub(super) async fn is_beyond_the_term(
    leader: &Leader,
    newest: &Newest,
) -> Result<bool, LeaderError> {
    let (_, founding) = held(leader).await?;
    Ok(newest.epoch.count >= founding.term)
}

/// Records that all peers have said what they knew of the region.
///
/// # Errors
/// See [`LeaderError`].
pub async fn answered(leader: &Leader) -> Result<(), LeaderError> {
    write(leader, None).await
}

async fn write(leader: &Leader, past: Option<wire::Past>) -> Result<(), LeaderError> {
    let (written, founding) = held(leader).await?;
    let guards = vec![Guard::ModRevision(facts::founding_key(), written)];
    let ops = vec![facts::founding_op(&wire::Founding { past, ..founding })];
    match leader.commit_guarded(Txn { guards, ops }).await? {
        Commit::Done(_) => Ok(()),
        Commit::GuardFailed => Err(LeaderError::NotLeader),
    }
}

/// What this leader began its term with, and when that was written.
async fn held(leader: &Leader) -> Result<(Revision, wire::Founding), LeaderError> {
    let held = store::read(&*leader.store, &facts::founding_key()).await?;
    let read = held.and_then(|held| Some((held.mod_revision, facts::founding(&held.value)?)));
    read.ok_or(LeaderError::NotLeader)
}

/// What the next leader writes over what is held.
fn next(held: Option<&Bytes>, new_id: &str, now: Timestamp) -> wire::Founding {
    let now_ms = to_unix_ms(now);
    let read = held.and_then(facts::founding);
    if held.is_some() && read.is_none() {
        error!("what the store says of itself cannot be read: it counts as a new store");
    }
    let founding = read.unwrap_or_else(|| wire::Founding {
        id: new_id.to_owned(),
        founded_ms: now_ms,
        ..wire::Founding::default()
    });
    // The clock makes up for terms that a restored backup does not know of.
    let term = founding.term.saturating_add(1).max(u64::try_from(now_ms).unwrap_or_default());
    wire::Founding { term, ..founding }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::replica;
    use crate::store::election::{Leadership, campaign};
    use crate::store::embedded::Embedded;
    use crate::store::{Op, Store};

    fn epoch(term: &Term) -> Epoch {
        term.epoch(&"us".parse().unwrap(), None)
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    async fn elected(store: &Arc<dyn Store>, name: &str) -> (Leadership, Leader) {
        let key = facts::election_key();
        let won = campaign(Arc::clone(store), &key, name, Duration::from_secs(5)).await.unwrap();
        let (_, replicas) = replica::channel();
        let leader = Leader::new(Arc::clone(store), won.fence(), replicas);
        (won, leader)
    }

    async fn store() -> Arc<dyn Store> {
        Arc::new(Embedded::in_memory().await.unwrap())
    }

    #[tokio::test]
    async fn what_a_new_leader_says_is_newer_whatever_its_clock() {
        let store = store().await;
        let (won, leader) = elected(&store, "a").await;
        let first = begin(&leader, "id-a", at(1_800_000_000)).await.unwrap();
        assert_eq!(epoch(&first), Epoch { id: "us".into(), count: 1_800_000_000_000 });
        assert_eq!(first.founding.founded_ms, 1_800_000_000_000);
        won.resign().await;

        // Its clock is ten minutes behind.
        let (_won, second) = elected(&store, "b").await;
        let term = begin(&second, "id-b", at(1_799_999_400)).await.unwrap();
        assert!(epoch(&first).is_older_than(&epoch(&term)), "{term:?}");
        assert_eq!(term.incarnation(), "id-a", "the store is the same one");
        assert_eq!(term.founding.founded_ms, first.founding.founded_ms);

        let late = begin(&leader, "id-a", at(1_900_000_000)).await;
        assert!(matches!(late, Err(LeaderError::NotLeader)), "a leader of before begins nothing");
        let held = store::read(&*store, &facts::founding_key()).await.unwrap().unwrap();
        assert_eq!(facts::founding(&held.value), Some(term.founding));
    }

    #[tokio::test]
    async fn a_restored_store_goes_on_with_a_later_term() {
        let (live, restored) = (store().await, store().await);
        let (_won, leader) = elected(&live, "a").await;
        let backup = begin(&leader, "id", at(1_800_000_000)).await.unwrap();
        // Terms that the backup knows nothing of.
        let mut lost = backup.clone();
        for second in 1..5 {
            lost = begin(&leader, "id", at(1_800_000_000 + second)).await.unwrap();
        }
        let ops = vec![facts::founding_op(&backup.founding)];
        assert!(restored.commit(Txn { guards: Vec::new(), ops }).await.unwrap().is_done());
        let (_won, leader) = elected(&restored, "a").await;
        let term = begin(&leader, "other", at(1_800_000_060)).await.unwrap();
        assert!(epoch(&lost).is_older_than(&epoch(&term)), "{term:?} after {lost:?}");
        assert_eq!(term.incarnation(), "id");
    }

    #[tokio::test]
    async fn another_store_is_another_incarnation_and_rubbish_is_no_obstacle() {
        let store = store().await;
        let op = Op::put(facts::founding_key(), &b"\xff\xff"[..]);
        assert!(store.commit(Txn { guards: Vec::new(), ops: vec![op] }).await.unwrap().is_done());
        let (_won, leader) = elected(&store, "a").await;
        let term = begin(&leader, "new", at(5)).await.unwrap();
        assert_eq!(epoch(&term), Epoch { id: "us".into(), count: 5000 });
        // Peers know it from before the store was lost, when the clock was later.
        let known = Newest { epoch: Epoch { id: "us".into(), count: 9000 }, sequence: 4 };
        let term = term.epoch(&"us".parse().unwrap(), Some(&known));
        assert!(known.epoch.is_older_than(&term), "{term}");
        // Only peers do, who said so when the term before this one had spoken.
        record_past(&leader, Some(&known)).await.unwrap();
        let next = begin(&leader, "new", at(6)).await.unwrap();
        assert!(known.epoch.is_older_than(&epoch(&next)), "{next:?}");
        answered(&leader).await.unwrap();
    }

    fn newest(count: u64, sequence: u64) -> Newest {
        Newest { epoch: Epoch { id: "us".into(), count }, sequence }
    }

    async fn says(leader: &Leader, newest: Newest) -> Revision {
        let owner: Owner = "us/_".parse().unwrap();
        let said = facts::Said { newest, removed: Vec::new(), more: false };
        let ops = vec![facts::said_op(&owner, &said)];
        match leader.commit_guarded(Txn { guards: Vec::new(), ops }).await.unwrap() {
            Commit::Done(revision) => revision,
            Commit::GuardFailed => panic!("it leads"),
        }
    }

    #[tokio::test]
    async fn peers_are_asked_unless_the_last_word_was_heard_as_it_was_said() {
        let store = store().await;
        let (_won, leader) = elected(&store, "a").await;
        begin(&leader, "id", at(5)).await.unwrap();
        let us = "us".parse().unwrap();
        let following = watch::Sender::<Following>::default();
        let following_rx = following.subscribe();
        let past = || past(&leader, &us, &following_rx);
        let since = |revision| following.send_modify(|f| f.without_gap_since = revision);

        // A store that nobody has said anything to may have lost it.
        assert_eq!(past().await.unwrap(), Some(Past { known: None, begun: false }));
        assert_eq!(past().await.unwrap(), Some(Past { known: None, begun: true }), "nor the next");
        answered(&leader).await.unwrap();

        // Listed with the word in it, as after a restore.
        let said = says(&leader, newest(5, 2)).await;
        since(said);
        let known = Some(newest(5, 2));
        assert_eq!(past().await.unwrap(), Some(Past { known: known.clone(), begun: false }));
        // It said more while they were asked, and was followed by another.
        since(says(&leader, newest(5, 3)).await);
        says(&leader, newest(6, 1)).await;
        assert_eq!(past().await.unwrap(), Some(Past { known, begun: true }), "as it was then");
        let term = begin(&leader, "id", at(7)).await.unwrap();
        assert!(term.founding.past.is_some(), "kept over terms: {term:?}");
        record_past(&leader, Some(&newest(5, 9))).await.unwrap();
        let known = Some(newest(5, 9));
        assert_eq!(past().await.unwrap(), Some(Past { known, begun: true }));
        answered(&leader).await.unwrap();
        assert_eq!(past().await.unwrap(), None, "its word was heard as it was said");
    }
}
