//! The disk cache of a role: opened before anything else, kept while the role runs.
//!
//! Leaves to others: files and when they are written (`federation::cache`), what may be served of
//! an image (roles), and what it means beside a store (`catalog`).

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tombolo_federation::cache::keeper::{Extra, Keeper, Settings, Standings};
use tombolo_federation::cache::{Cache, Image};
use tombolo_federation::names::Owner;
use tombolo_federation::replica::Replicas;
use tombolo_federation::sync::follower::Following;
use tombolo_federation::sync::history::ResumePoint;
use tracing::{info, warn};

use super::tasks::Tasks;
use super::wall_clock;
use crate::state_dir::StateDir;

/// Below the state directory.
const DIRECTORY: &str = "cache";

/// A cache that was read; nothing is written to it yet.
pub(crate) struct Opened {
    cache: Cache,
    /// What was found, to be restored.
    pub(crate) image: Option<Image>,
    pub(crate) restored: Restored,
    standings: watch::Sender<Standings>,
}

/// What a process was restored from, for status.
#[derive(Debug, Clone)]
pub(crate) struct Restored {
    /// The owners of the image, and when each was heard last.
    pub(crate) heard: BTreeMap<Owner, Option<Timestamp>>,
    pub(crate) standings: watch::Receiver<Standings>,
}

/// Reads the cache of what `belongs_to` names.
pub(crate) async fn open(state: &StateDir, belongs_to: String) -> anyhow::Result<Opened> {
    let dir = state.file(DIRECTORY);
    let began = Instant::now();
    let opened = spawn_blocking(move || Cache::open(&dir, &belongs_to)).await;
    let (cache, loaded) = opened.context("reading the disk cache ended unexpectedly")?;
    for problem in &loaded.problems {
        warn!(%problem, "a file of the disk cache is not used");
    }
    let standings = watch::Sender::new(Standings::of(&loaded));
    let mut heard = BTreeMap::new();
    if let Some(image) = &loaded.image {
        let (generation, records, saved_at) = (image.generation, image.len(), image.saved_at);
        let took = began.elapsed();
        info!(generation, records, %saved_at, left_out = image.left_out, ?took, "restored from disk");
        heard.extend(image.owners.iter().map(|(owner, held)| (owner.clone(), held.heard)));
    }
    let restored = Restored { heard, standings: standings.subscribe() };
    Ok(Opened { cache, image: loaded.image, restored, standings })
}

/// The section that has the resume point of what follows a store.
const RESUME: &str = "resume";

/// Up to where the store was followed when the image was saved.
pub(crate) fn resume_point(image: &Image) -> Option<ResumePoint> {
    ResumePoint::from_bytes(image.extra.get(RESUME)?)
}

/// Saves the resume point of what follows a store beside what it holds.
pub(crate) fn with_resume_point(following: watch::Receiver<Following>) -> Extra {
    Arc::new(move || {
        let point = following.borrow().resume_point().map(ResumePoint::to_bytes);
        point.into_iter().map(|point| (RESUME.to_owned(), point.into())).collect()
    })
}

/// Starts to keep what `replicas` hold, while that is whole, with sections of `extra`.
pub(crate) fn keep(
    tasks: &mut Tasks,
    (cache, standings): (Cache, watch::Sender<Standings>),
    replicas: Replicas,
    whole: watch::Receiver<bool>,
    extra: Extra,
    stop: &CancellationToken,
) {
    let keeper = Keeper {
        cache,
        replicas,
        whole,
        extra,
        clock: wall_clock(),
        settings: Settings::default(),
        standings,
    };
    let stop = stop.clone();
    tasks.start("disk cache", async move {
        keeper.run(stop).await;
        Ok(())
    });
}

impl Opened {
    /// What to restore, what status shows, and what [`keep`] needs.
    pub(crate) fn into_parts(self) -> (Option<Image>, Restored, (Cache, watch::Sender<Standings>)) {
        (self.image, self.restored, (self.cache, self.standings))
    }
}
