//! A process's state directory: whose it is, and how often it has started.
//!
//! Promises: one process at a time; never one that belongs to another mesh, region or cluster;
//! `identity.json` is the old one or the new one at any moment of a crash.

use std::fs::{File, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tombolo_federation::record::Epoch;

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateDirError {
    #[error("state directory {} cannot be used", .path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "state directory {} is in use by another process: stop that one, or name another directory",
        .path.display()
    )]
    InUse { path: PathBuf },
    #[error(
        "state directory {} belongs to {found}, this is {wanted}: name another directory, or remove \
         this one if what it holds is not needed any more",
        .path.display()
    )]
    Foreign { path: PathBuf, found: String, wanted: String },
    #[error(
        "{} is not readable as this version wrote it ({problem}): restore it, or remove the state directory to start anew",
        .path.display()
    )]
    Damaged { path: PathBuf, problem: String },
}

/// What a state directory says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Identity {
    /// `<mesh>/<region>` or `<mesh>/<region>/<cluster>`.
    belongs_to: String,
    /// Made once: the id of the owner's epochs.
    id: String,
    /// How often a process started here.
    starts: u64,
    /// What the region recorded as the cluster's join, Unix milliseconds.
    #[serde(default)]
    joined_ms: Option<i64>,
}

/// An open state directory. Locked until it and all that it gave a [`Lock`] are gone.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    identity: Identity,
    lock: Lock,
}

/// As long as it lives nobody else opens the directory: for what writes to it and may outlive the
/// [`StateDir`].
#[derive(Debug, Clone)]
pub(crate) struct Lock {
    _file: Arc<File>,
}

impl StateDir {
    /// Opens `path`, making it if need be, for what `belongs_to` names.
    pub(crate) fn open(path: &Path, belongs_to: &str) -> Result<Self, StateDirError> {
        let io = |source| StateDirError::Io { path: path.to_owned(), source };
        std::fs::create_dir_all(path).map_err(io)?;
        let lock = File::create(path.join("lock")).map_err(io)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => StateDirError::InUse { path: path.to_owned() },
            TryLockError::Error(source) => io(source),
        })?;
        let identity = read_identity(path)?.unwrap_or_else(|| Identity {
            belongs_to: belongs_to.to_owned(),
            id: new_id(),
            starts: 0,
            joined_ms: None,
        });
        if identity.belongs_to != belongs_to {
            return Err(StateDirError::Foreign {
                path: path.to_owned(),
                found: identity.belongs_to,
                wanted: belongs_to.to_owned(),
            });
        }
        let mut dir =
            Self { path: path.to_owned(), identity, lock: Lock { _file: Arc::new(lock) } };
        dir.change(|identity| identity.starts += 1)?;
        Ok(dir)
    }

    /// This start's epoch.
    pub(crate) fn epoch(&self) -> Epoch {
        Epoch { id: self.identity.id.clone(), count: self.identity.starts }
    }

    /// The id that was made with the directory.
    pub(crate) fn id(&self) -> &str {
        &self.identity.id
    }

    /// Keeps others out for longer than this lives.
    pub(crate) fn lock(&self) -> Lock {
        self.lock.clone()
    }

    /// Where a file of it is.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// When the region recorded the cluster's join, if that is known.
    pub(crate) fn joined_ms(&self) -> Option<i64> {
        self.identity.joined_ms
    }

    /// Remembers the join.
    pub(crate) fn remember_join(&mut self, joined_ms: i64) -> Result<(), StateDirError> {
        if self.identity.joined_ms == Some(joined_ms) {
            return Ok(());
        }
        self.change(|identity| identity.joined_ms = Some(joined_ms))
    }

    fn change(&mut self, change: impl FnOnce(&mut Identity)) -> Result<(), StateDirError> {
        change(&mut self.identity);
        let text = serde_json::to_vec_pretty(&self.identity).expect("strings and numbers");
        write_whole(&self.path.join("identity.json"), &text)
            .map_err(|source| StateDirError::Io { path: self.path.clone(), source })
    }
}

/// Tells this directory, or a commit of a store, from any other. It names a history, it is no
/// secret: the standard library's per-map random keys are unlike enough.
pub(crate) fn new_id() -> String {
    use std::hash::{BuildHasher as _, RandomState};
    let half = || RandomState::new().hash_one(std::process::id());
    format!("{:016x}{:016x}", half(), half())
}

fn read_identity(path: &Path) -> Result<Option<Identity>, StateDirError> {
    let file = path.join("identity.json");
    let text = match std::fs::read(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StateDirError::Io { path: file, source }),
    };
    let damaged = |error: serde_json::Error| StateDirError::Damaged {
        path: file.clone(),
        problem: error.to_string(),
    };
    serde_json::from_slice(&text).map(Some).map_err(damaged)
}

/// Writes a file so that a crash leaves the old one or the new one.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = parent.join(format!(".{name}.new"));
    let mut file = File::create(&aside)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&aside, path)?;
    File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_counts_its_starts_and_keeps_its_id() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(dir.path(), "m/r/a").unwrap();
        let epoch = first.epoch();
        assert_eq!((epoch.count, first.joined_ms()), (1, None));
        drop(first);
        let mut second = StateDir::open(dir.path(), "m/r/a").unwrap();
        assert_eq!(second.epoch(), Epoch { count: 2, ..epoch });
        second.remember_join(7).unwrap();
        drop(second);
        assert_eq!(StateDir::open(dir.path(), "m/r/a").unwrap().joined_ms(), Some(7));
    }

    #[test]
    fn another_owner_or_process_is_refused_and_told_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let held = StateDir::open(dir.path(), "m/r/a").unwrap();
        let error = StateDir::open(dir.path(), "m/r/a").unwrap_err().to_string();
        assert!(error.contains("in use by another process"), "{error}");
        // Nor while something may still write to it.
        let lock = held.lock();
        drop(held);
        let error = StateDir::open(dir.path(), "m/r/a").unwrap_err().to_string();
        assert!(error.contains("in use by another process"), "{error}");
        drop(lock);
        let error = StateDir::open(dir.path(), "other/r/a").unwrap_err().to_string();
        assert!(error.contains("belongs to m/r/a, this is other/r/a"), "{error}");
        std::fs::write(dir.path().join("identity.json"), "{").unwrap();
        let error = StateDir::open(dir.path(), "m/r/a").unwrap_err().to_string();
        assert!(error.contains("identity.json is not readable"), "{error}");
    }
}
