//! Files that are the old one or the new one at any moment of a crash.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::SaveError;

fn failed<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> SaveError + 'a {
    move |source| SaveError::Io { doing, path: path.to_owned(), source }
}

/// Makes the directory, unless it is there.
pub(super) fn make(dir: &Path) -> Result<(), SaveError> {
    fs::create_dir_all(dir).map_err(failed("making", dir))
}

/// Writes a file aside, syncs it and puts it in the place of `path`, which is untouched by any
/// failure before that. Gives its size.
pub(super) fn replace(
    path: &Path,
    max: u64,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<u64, SaveError> {
    let aside = path.with_extension("new");
    let outcome = written(&aside, path, max, write);
    if outcome.is_err() {
        // On a full disk its space is needed; if it cannot go, the next attempt overwrites it.
        let _ = fs::remove_file(&aside);
    }
    outcome
}

fn written(
    aside: &Path,
    path: &Path,
    max: u64,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<u64, SaveError> {
    let file = File::create(aside).map_err(failed("making", aside))?;
    let mut limited = Limited { file, written: 0, max };
    let outcome = write(&mut limited);
    if limited.written > max {
        return Err(SaveError::TooLarge { path: path.to_owned(), max });
    }
    outcome.map_err(failed("writing", aside))?;
    limited.file.sync_all().map_err(failed("syncing", aside))?;
    fs::rename(aside, path).map_err(failed("renaming", aside))?;
    let dir = path.parent().unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("syncing", dir))?;
    Ok(limited.written)
}

/// Gives another program's file a name that nothing here uses: `image-a.not-ours`. One that was set
/// aside before goes.
pub(super) fn set_aside(path: &Path) -> Result<(), SaveError> {
    let other: PathBuf = path.with_extension("not-ours");
    match fs::rename(path, &other) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("setting aside", path)(error))
        }
        _ => Ok(()),
    }
}

/// Stops at a size, so that a file never fills the disk to the last byte for nothing.
struct Limited {
    file: File,
    written: u64,
    max: u64,
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let next = self.written + bytes.len() as u64;
        if next > self.max {
            self.written = next;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let written = self.file.write(bytes)?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
