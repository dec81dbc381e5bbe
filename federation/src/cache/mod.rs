//! What a process held, on its own disk, so that it serves when it starts with everybody away.
//!
//! Owns: the last two good images of a replica, and the count of starts that ended too soon after
//! one was loaded. Promises: the newer image is never touched, a new one is written aside, synced
//! and renamed over the older, so that a full disk, a torn write or a kill at any moment leaves at
//! least one good image; a damaged one falls back to the other, never to a
//! part of it; the third start that did not prove its image falls back as well, since its bytes may
//! be what ended the process, and where all have ended three starts, the newest is
//! tried again: a process that is killed for something else never serves nothing; an image of a newer version or of another owner is
//! refused and set aside, not removed. Nothing in a file makes it panic, or allocate by what the
//! file claims.
//!
//! Leaves to others: when to save ([`keeper`]), whether what is held is whole, and what of an image
//! may be served or said (roles).
//!
//! Turned down: a database. What is saved is one value that is read once, and redb would keep one
//! state where two independent ones are wanted. CRC32C instead of SHA-256: it is weaker against
//! damage in more than one place, and the hash costs less than the disk. Beacons are not saved:
//! they are new every 5 s, and an old one says nothing but that it is old; when an owner was heard
//! last is saved beside its records.

mod files;
mod format;
mod image;
pub mod keeper;
mod loads;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

pub use self::format::{FORMAT_VERSION, Problem};
use self::format::{Verified, verify};
pub use self::image::{Image, OwnerImage, RecordImage, Snapshot};
use self::loads::Loads;
use crate::names::Owner;

/// Beyond this an image is neither saved nor loaded: forty times what 100,000 records take.
pub const MAX_BYTES: u64 = 1 << 30;
/// So many starts with one image may end unproven before another is tried.
pub const MAX_UNPROVEN: u32 = 3;

/// The images of one process. Nobody else may use the directory meanwhile.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    belongs_to: String,
    max_bytes: u64,
    /// The image that the next save must leave alone.
    keep: Option<Slot>,
    /// Files that cannot be read by us, but by somebody else.
    not_ours: Vec<Slot>,
    generation: u64,
    loads: Loads,
    /// When owners that were not heard since were heard last.
    heard: BTreeMap<Owner, Timestamp>,
}

/// What a start found.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The newest good image, if there is one.
    pub image: Option<Image>,
    /// What was wrong with those that were not used, and with the bookkeeping.
    pub problems: Vec<Found>,
}

/// Something wrong in a cache's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where.
    pub path: PathBuf,
    /// Which image, where that is known for sure.
    pub generation: Option<u64>,
    /// What.
    pub problem: Problem,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(generation) = self.generation {
            write!(f, " (generation {generation})")?;
        }
        write!(f, ": {}", self.problem)
    }
}

/// A saved image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Saved {
    /// Its generation.
    pub generation: u64,
    /// What it takes on disk.
    pub bytes: u64,
}

/// Why an image could not be saved. What was saved before is as it was.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The disk's word.
    #[error("the disk cache cannot be written: {} {}", .doing, .path.display())]
    Io {
        /// `writing`, `syncing`, ...
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It could not be loaded again.
    #[error("the disk cache would take more than {max} bytes in {}", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What it may take.
        max: u64,
    },
}

/// One of the two files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    A,
    B,
}

impl Slot {
    const BOTH: [Self; 2] = [Self::A, Self::B];

    fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::A => "image-a",
            Self::B => "image-b",
        }
    }
}

impl Cache {
    /// Reads what is in `dir`, of what `belongs_to` names. A directory that is missing, or cannot
    /// be read, is no failure: the report says so, and saving will try again.
    #[must_use]
    pub fn open(dir: &Path, belongs_to: &str) -> (Self, Loaded) {
        Self::open_limited(dir, belongs_to, MAX_BYTES)
    }

    /// The same with another limit than [`MAX_BYTES`].
    #[must_use]
    pub fn open_limited(dir: &Path, belongs_to: &str, max_bytes: u64) -> (Self, Loaded) {
        let loads = Loads::read(dir);
        let mut cache = Self {
            dir: dir.to_owned(),
            belongs_to: belongs_to.to_owned(),
            max_bytes,
            keep: None,
            not_ours: Vec::new(),
            generation: 0,
            loads,
            heard: BTreeMap::new(),
        };
        let mut loaded = Loaded::default();
        let good = cache.examine(&mut loaded);
        cache.choose(good, &mut loaded);
        if let Some(image) = &loaded.image {
            let owners = image.owners.iter();
            let heard = owners.filter_map(|(owner, held)| Some((owner.clone(), held.heard?)));
            cache.heard = heard.collect();
        }
        (cache, loaded)
    }

    /// The images that are whole and ours, newest first. Both are read to their ends: a flipped bit
    /// in the newer one's generation must not make the older one look newer without a word.
    fn examine(&mut self, loaded: &mut Loaded) -> Vec<(Slot, Verified)> {
        let mut good = Vec::new();
        for slot in Slot::BOTH {
            match verify(&self.path(slot), &self.belongs_to, self.max_bytes) {
                Ok(Some(verified)) => good.push((slot, verified)),
                Ok(None) => {}
                Err(problem) => {
                    if problem.is_somebody_elses() {
                        self.not_ours.push(slot);
                    }
                    loaded.problems.push(self.found(slot, None, problem));
                }
            }
        }
        good.sort_by_key(|(_, verified)| std::cmp::Reverse(verified.generation()));
        self.keep = good.first().map(|(slot, _)| *slot);
        self.generation = good.first().map_or(0, |(_, verified)| verified.generation());
        good
    }

    /// The newest that has not ended starts. If all have, what ends them is most likely not in any
    /// image, and one is worth more than none: all count anew, the newest first.
    fn choose(&mut self, good: Vec<(Slot, Verified)>, loaded: &mut Loaded) {
        let (tired, fresh): (Vec<_>, Vec<_>) = good
            .into_iter()
            .partition(|(_, verified)| self.loads.of(verified.generation()) >= MAX_UNPROVEN);
        for (slot, verified) in &tired {
            let generation = verified.generation();
            let problem = Problem::Unproven { starts: self.loads.of(generation) };
            loaded.problems.push(self.found(*slot, Some(generation), problem));
        }
        if self.choose_of(fresh, loaded) || tired.is_empty() {
            return;
        }
        let forgotten = self.loads.forget(&self.dir);
        self.report(forgotten, loaded);
        loaded.problems.push(Found {
            path: self.dir.clone(),
            generation: None,
            problem: Problem::AllUnproven,
        });
        self.choose_of(tired, loaded);
    }

    fn choose_of(&mut self, good: Vec<(Slot, Verified)>, loaded: &mut Loaded) -> bool {
        for (slot, verified) in good {
            let generation = verified.generation();
            // Before its content is looked at: that may be what ends the process.
            let noted = self.loads.note(&self.dir, generation);
            self.report(noted, loaded);
            match verified.read() {
                Ok(image) => {
                    self.keep = Some(slot);
                    loaded.image = Some(image);
                    return true;
                }
                Err(problem) => {
                    loaded.problems.push(self.found(slot, Some(generation), problem));
                }
            }
        }
        false
    }

    fn report(&self, outcome: std::io::Result<()>, loaded: &mut Loaded) {
        if let Err(error) = outcome {
            let problem = Problem::NotCounted(error.to_string());
            let path = self.dir.join(loads::NAME);
            loaded.problems.push(Found { path, generation: None, problem });
        }
    }

    fn found(&self, slot: Slot, generation: Option<u64>, problem: Problem) -> Found {
        Found { path: self.path(slot), generation, problem }
    }

    fn path(&self, slot: Slot) -> PathBuf {
        self.dir.join(slot.name())
    }

    /// The image that was loaded did not end the process: it stood for long enough, or was told to
    /// stop.
    ///
    /// # Errors
    /// When the disk does not take it: then a later start may take it for unproven.
    pub fn proven(&mut self) -> std::io::Result<()> {
        self.loads.forget(&self.dir)
    }

    /// Saves what is held in the place of the older image. Blocks.
    ///
    /// # Errors
    /// See [`SaveError`].
    pub fn save(&mut self, snapshot: &Snapshot, now: Timestamp) -> Result<Saved, SaveError> {
        let slot = self.keep.map_or(Slot::A, Slot::other);
        let path = self.path(slot);
        let generation = self.generation + 1;
        files::make(&self.dir)?;
        if let Some(index) = self.not_ours.iter().position(|not_ours| *not_ours == slot) {
            files::set_aside(&path)?;
            self.not_ours.remove(index);
        }
        let header = format::header(generation, now, &self.belongs_to, snapshot);
        let bytes = files::replace(&path, self.max_bytes, |out| {
            format::write(out, &header, snapshot, &self.heard, now)
        })?;
        self.keep = Some(slot);
        self.generation = generation;
        Ok(Saved { generation, bytes })
    }

    /// The newest good image's generation; 0 if there is none.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }
}
