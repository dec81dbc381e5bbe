//! Directories that are made once and shared by all checkouts and runs of this user.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

/// Makes sure that `dir` holds what `make` makes and `works` accepts.
///
/// It is made beside its place and renamed, so an interrupted run leaves nothing half done; a
/// lock keeps a second run waiting. What no longer works (its system Python went, say) is made
/// anew. Both get `context`, which is a log outside tests.
pub(crate) fn ensure_made<C>(
    dir: &Path,
    context: &mut C,
    works: impl Fn(&Path, &mut C) -> anyhow::Result<()>,
    make: impl Fn(&Path, &mut C) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let parent = dir.parent().context("a cache directory has a parent")?;
    fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    let _held_to_the_end = lock(&beside(dir, "lock")?)?;
    if dir.is_dir() && works(dir, context).is_ok() {
        return Ok(());
    }
    let partial = beside(dir, "partial")?;
    clear(&partial)?;
    make(&partial, context)?;
    clear(dir)?;
    fs::rename(&partial, dir).with_context(|| format!("renaming {}", partial.display()))?;
    works(dir, context).with_context(|| format!("{} was made and does not work", dir.display()))
}

fn lock(path: &Path) -> anyhow::Result<File> {
    let file = File::create(path).with_context(|| path.display().to_string())?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            println!("waiting for another run that holds {}", path.display());
            file.lock()?;
        }
        Err(TryLockError::Error(error)) => return Err(error.into()),
    }
    Ok(file)
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
