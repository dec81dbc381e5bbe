//! Whole meshes in one thread, at virtual time, from a seed.
//!
//! Owns: a store in memory ([`Store`](crate::store::Store) as the conformance suite wants it, with
//! faults), the ways between processes, the processes (each made of the code that the binary runs:
//! `follower`, `service`, `client`, `mirror`, `reseed`, `recover`, `spokesman`, `election`), a
//! script that changes what owners hold and breaks things, and a checker that holds what every
//! process sees against what the owners held. Only what the binary wires (an agent's own records,
//! a leader's term) is wired here again.
//!
//! Promises: one seed is one run, to the microsecond: everything happens on one thread of a runtime
//! whose time is paused, and every choice comes from the seed, also the jitter of backoffs (tokio's own dice, which it cannot give
//! it, are not thrown: `biased` choices, and readers that wait for a `Notify`). Found
//! bugs name a [`Property`], the step and the time. A bug that is planted ([`Planted`]) sits on the
//! way of a message, below a check, or in how a process is wired, never in the code under test.
//!
//! What it holds processes to is in [`Property`]. Leaves to others: what records mean together,
//! real sockets and real stores (the end-to-end tests), speed.
//!
//! Turned down: turmoil and madsim (they replace the network below tonic; here calls go to the
//! server's own service, without sockets to simulate); messages carried by hand between the state
//! machines (the loops around them, where half of the faults live, would be written twice).

mod access;
mod agent;
mod checker;
mod control;
mod journal;
mod network;
mod script;
mod store;
mod tap;
mod truth;
mod world;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use self::checker::Checker;
use self::journal::Journal;
use self::network::Network;
use self::store::SimStore;
use self::world::World;
use crate::names::RegionName;
use crate::store::conformance::random::Random;

/// A bug put into a run, to see that it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    /// A subscriber drops one removal in three.
    MissedDelete,
    /// A mirror's resume point is committed before the data, not with it.
    ResumeApart,
    /// Publish transactions do not compare the session: two streams may both commit.
    TwoSessions,
    /// A leader's transactions do not compare the election key.
    UnfencedLeader,
    /// An agent takes a source that it has not read for an empty one.
    EmptyAsTruth,
}

impl Planted {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::MissedDelete,
        Self::ResumeApart,
        Self::TwoSessions,
        Self::UnfencedLeader,
        Self::EmptyAsTruth,
    ];
}

impl fmt::Display for Planted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MissedDelete => "missed-delete",
            Self::ResumeApart => "resume-apart",
            Self::TwoSessions => "two-sessions",
            Self::UnfencedLeader => "unfenced-leader",
            Self::EmptyAsTruth => "empty-as-truth",
        })
    }
}

/// Not a bug that can be planted.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} is none of missed-delete, resume-apart, two-sessions, unfenced-leader, empty-as-truth"
)]
pub struct UnknownBug(String);

impl FromStr for Planted {
    type Err = UnknownBug;

    fn from_str(text: &str) -> Result<Self, UnknownBug> {
        let found = Self::ALL.into_iter().find(|planted| planted.to_string() == text);
        found.ok_or_else(|| UnknownBug(text.to_owned()))
    }
}

/// What every run is held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Property {
    /// A process loses a record only if its owner removed it after it said what was held.
    NoUnexplainedDelete,
    /// No record goes back to an older change of its owner, in no process.
    NoRewind,
    /// Nobody holds of an owner what it never said.
    OnlyWhatWasSaid,
    /// Who says that it holds all holds all that its server held throughout.
    NoPartialFirstAnswer,
    /// What was acknowledged was committed.
    AcknowledgedIsStored,
    /// A publish stream commits nothing once a later one was accepted.
    OneSessionCommits,
    /// A leader commits nothing once another one leads.
    OneLeaderCommits,
    /// Nobody's digest differs where nothing was restored or lost.
    AntiEntropyFindsNothing,
    /// Once all is well, everybody holds what the owners hold, in time.
    Converges,
    /// And it stays so.
    StaysConverged,
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoUnexplainedDelete => "no unexplained delete",
            Self::NoRewind => "no rewind",
            Self::OnlyWhatWasSaid => "only what was said",
            Self::NoPartialFirstAnswer => "no partial first answer",
            Self::AcknowledgedIsStored => "acknowledged is stored",
            Self::OneSessionCommits => "one session commits",
            Self::OneLeaderCommits => "one leader commits",
            Self::AntiEntropyFindsNothing => "anti-entropy finds nothing",
            Self::Converges => "converges",
            Self::StaysConverged => "stays converged",
        })
    }
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// What does not hold.
    pub property: Property,
    /// Where, and of what.
    pub what: String,
    /// The step of the run.
    pub step: u64,
    /// The virtual time of the run.
    pub at: Duration,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at.as_secs_f64();
        write!(f, "{}, at step {} ({at:.3} s): {}", self.property, self.step, self.what)
    }
}

/// Which run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Choice {
    /// All that is left to chance.
    pub seed: u64,
    /// With this bug.
    pub planted: Option<Planted>,
    /// Stores are restored from backups, and lost.
    pub histories: bool,
}

/// One run.
#[derive(Debug, Clone)]
pub struct Report {
    /// Runs it again.
    pub seed: u64,
    /// The first thing that was found.
    pub violation: Option<Violation>,
    /// Over every step: equal for equal runs.
    pub hash: String,
    /// How many steps it had.
    pub steps: u64,
    /// How long it would have taken.
    pub simulated: Duration,
    /// From the last fault to where everybody held what the owners held.
    pub converged_in: Option<Duration>,
    /// What the script did, and how often.
    pub injected: BTreeMap<&'static str, u64>,
    /// The last steps.
    pub recent: Vec<String>,
}

/// What all parts of a run share.
#[derive(Debug)]
struct Shared {
    journal: Journal,
    network: Network,
    checker: Checker,
    planted: Option<Planted>,
    /// Stores are restored or lost in this run.
    histories: bool,
    random: Mutex<Random>,
    stores: Mutex<BTreeMap<RegionName, Arc<SimStore>>>,
}

impl Shared {
    /// A source of choices for a part of the run.
    fn fork(&self) -> Random {
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        Random(random.next())
    }

    fn store(&self, region: &RegionName) -> Option<Arc<SimStore>> {
        self.stores.lock().unwrap_or_else(PoisonError::into_inner).get(region).cloned()
    }
}

/// Runs one seed.
///
/// # Errors
/// Only if the runtime cannot be made.
pub fn run(choice: Choice) -> std::io::Result<Report> {
    let Choice { seed, planted, histories } = choice;
    // Backoffs take their jitter from this thread's generator.
    fastrand::seed(seed);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    Ok(runtime.block_on(async {
        let random = Random(seed);
        let shared = Arc::new(Shared {
            journal: Journal::new(),
            network: Network::default(),
            checker: Checker::default(),
            planted,
            histories,
            random: Mutex::new(random),
            stores: Mutex::default(),
        });
        let started = tokio::time::Instant::now();
        let mut world = World::start(&shared);
        let converged_in = script::play(&mut world).await;
        let journal = &shared.journal;
        Report {
            seed,
            violation: journal.violation(),
            hash: journal.hash(),
            steps: journal.steps(),
            simulated: started.elapsed(),
            converged_in,
            injected: journal.injected(),
            recent: journal.recent(),
        }
    }))
}
