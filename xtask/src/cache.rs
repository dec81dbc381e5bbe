//! Directories that are made once and shared by all checkouts and runs of this user.
//!
//! A run that uses one holds a shared lock until it ends; making one takes the lock alone. So
//! nothing is replaced under the running tests of another checkout, not even if it seems not to
//! work for a moment (no memory to start Envoy, say).

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

/// A directory in use: while this lives, no run replaces it.
#[derive(Debug)]
pub(crate) struct Held {
    _shared_lock: File,
}

/// Makes sure that `dir` holds what `make` makes and `works` accepts, and holds it.
///
/// It is made beside its place and renamed, so an interrupted run leaves nothing half done; a
/// lock keeps a second run waiting. What no longer works (its system Python went, say) is made
/// anew once nobody uses it. Both get `context`, which is a log outside tests.
///
/// Whoever holds several takes them in the same order as every other run.
pub(crate) fn ensure_made<C>(
    dir: &Path,
    context: &mut C,
    works: impl Fn(&Path, &mut C) -> anyhow::Result<()>,
    make: impl Fn(&Path, &mut C) -> anyhow::Result<()>,
) -> anyhow::Result<Held> {
    let parent = dir.parent().context("a cache directory has a parent")?;
    fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    let lock = beside(dir, "lock")?;
    let held = shared(&lock)?;
    if dir.is_dir() && works(dir, context).is_ok() {
        return Ok(held);
    }
    drop(held);
    let alone = alone(&lock)?;
    // Another run may have made it meanwhile, or what was wrong for a moment has passed.
    if !(dir.is_dir() && works(dir, context).is_ok()) {
        replace(dir, context, make)?;
    }
    drop(alone);
    // A lock cannot be loosened without a gap, so what is held now is what counts.
    let held = shared(&lock)?;
    works(dir, context).with_context(|| format!("{} was made and does not work", dir.display()))?;
    Ok(held)
}

fn replace<C>(
    dir: &Path,
    context: &mut C,
    make: impl Fn(&Path, &mut C) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let partial = beside(dir, "partial")?;
    clear(&partial)?;
    make(&partial, context)?;
    clear(dir)?;
    fs::rename(&partial, dir).with_context(|| format!("renaming {}", partial.display()))
}

fn shared(path: &Path) -> anyhow::Result<Held> {
    let file = open(path)?;
    waited(path, file.try_lock_shared(), || file.lock_shared())?;
    Ok(Held { _shared_lock: file })
}

fn alone(path: &Path) -> anyhow::Result<File> {
    let file = open(path)?;
    waited(path, file.try_lock(), || file.lock())?;
    Ok(file)
}

fn open(path: &Path) -> anyhow::Result<File> {
    File::create(path).with_context(|| path.display().to_string())
}

fn waited(
    path: &Path,
    tried: Result<(), TryLockError>,
    wait: impl FnOnce() -> io::Result<()>,
) -> anyhow::Result<()> {
    match tried {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            println!("waiting for another run that holds {}", path.display());
            wait().with_context(|| path.display().to_string())
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| path.display().to_string()),
    }
}

fn beside(dir: &Path, suffix: &str) -> anyhow::Result<PathBuf> {
    let name = dir.file_name().context("a cache directory has a name")?;
    ensure!(!name.is_empty(), "a cache directory has a name");
    Ok(dir.with_file_name(format!("{}.{suffix}", name.display())))
}

fn clear(dir: &Path) -> anyhow::Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    /// Makes something good and counts how often.
    fn make_file(dir: &Path, made: &mut usize) -> anyhow::Result<()> {
        *made += 1;
        fs::create_dir(dir)?;
        Ok(fs::write(dir.join("file"), "good")?)
    }

    fn is_good(dir: &Path, _: &mut usize) -> anyhow::Result<()> {
        ensure!(fs::read(dir.join("file"))? == b"good", "spoilt");
        Ok(())
    }

    #[test]
    fn made_once_and_again_when_spoilt() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("a/tool-1.2.3-abc");
        let mut made = 0;
        for _ in 0..2 {
            ensure_made(&dir, &mut made, is_good, make_file).unwrap();
            assert_eq!(made, 1);
        }
        fs::write(dir.join("file"), "bad").unwrap();
        ensure_made(&dir, &mut made, is_good, make_file).unwrap();
        assert_eq!(made, 2);
    }

    #[test]
    fn an_interrupted_make_leaves_nothing_that_looks_made() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("tool");
        let interrupted = ensure_made(&dir, &mut 0, is_good, |dir, made| {
            make_file(dir, made)?;
            bail!("no network")
        });
        assert_eq!(interrupted.unwrap_err().to_string(), "no network");
        assert!(!dir.exists());
        ensure_made(&dir, &mut 0, is_good, make_file).unwrap();
    }

    #[test]
    fn what_was_made_must_work() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("tool");
        let useless = ensure_made(&dir, &mut 0, is_good, |dir, _| Ok(fs::create_dir(dir)?));
        assert!(useless.unwrap_err().to_string().contains("does not work"));
    }

    #[test]
    fn what_is_in_use_is_shared_and_not_replaced() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("tool");
        let first = ensure_made(&dir, &mut 0, is_good, make_file).unwrap();
        let second = ensure_made(&dir, &mut 0, is_good, make_file).unwrap();
        fs::write(dir.join("file"), "bad").unwrap();
        let (seen, waits) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let third = scope.spawn(|| {
                let looked = move |dir: &Path, made: &mut usize| {
                    seen.send(()).unwrap();
                    is_good(dir, made)
                };
                let mut made = 0;
                ensure_made(&dir, &mut made, looked, make_file).unwrap();
                made
            });
            waits.recv().unwrap();
            // It has seen that the file is bad, and must not touch it before both have ended.
            drop(first);
            let lock = beside(&dir, "lock").unwrap();
            assert!(open(&lock).unwrap().try_lock().is_err(), "the second still holds it");
            assert_eq!(fs::read(dir.join("file")).unwrap(), b"bad");
            drop(second);
            assert_eq!(third.join().unwrap(), 1);
        });
    }

    #[test]
    fn a_second_run_waits_for_the_first() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("tool");
        let run = || {
            let mut made = 0;
            ensure_made(&dir, &mut made, is_good, make_file).unwrap();
            made
        };
        let made: usize = std::thread::scope(|scope| {
            let runs = [(); 4].map(|()| scope.spawn(run));
            runs.into_iter().map(|run| run.join().unwrap()).sum()
        });
        assert_eq!(made, 1);
    }
}
