//! Reading and writing of key and certificate files.
//!
//! Promises: a private key is never written readable by others and never read from a file that
//! others may read; a written file is the old one or the new one, also after a power loss.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A PEM file of keys or certificates is a few kilobytes; what is larger is something else.
const LARGEST: u64 = 256 * 1024;

/// A key or certificate file that cannot be used as it is.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Could not be read, or could not be created or replaced.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What failed: `read` or `write`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A private key that others on the machine may read.
    #[error(
        "{} holds a private key and has mode {mode:03o}, which lets others in: chmod 600 it, and \
         replace the key if anybody else uses this machine",
        path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Larger than any key or certificate file.
    #[error("{} is larger than {LARGEST} bytes: not a PEM file of keys or certificates", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Creating would overwrite a key.
    #[error("{} exists already: remove it first, or choose another directory", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
}

impl FileError {
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, path: path.to_owned(), source }
    }

    /// Whether the file is simply not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Reads a public file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let file = File::open(path).map_err(FileError::io("read", path))?;
    read_open(file, path)
}

/// Reads a private key. The mode is that of the opened file, so that nobody can swap the file
/// between check and read. Group read is let through: Kubernetes mounts Secrets so (`fsGroup`).
pub(crate) fn read_secret(path: &Path) -> Result<Vec<u8>, FileError> {
    let file = File::open(path).map_err(FileError::io("read", path))?;
    let mode = file.metadata().map_err(FileError::io("read", path))?.permissions().mode() & 0o777;
    if mode & 0o037 != 0 {
        return Err(FileError::Exposed { path: path.to_owned(), mode });
    }
    read_open(file, path)
}

fn read_open(file: File, path: &Path) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(FileError::io("read", path))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > LARGEST {
        return Err(FileError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

/// Writes a private key, mode 0600.
pub(crate) fn write_secret(path: &Path, contents: &str) -> Result<(), FileError> {
    replace(path, contents, 0o600).map_err(FileError::io("write", path))
}

/// Writes a public file, mode 0644.
pub(crate) fn write(path: &Path, contents: &str) -> Result<(), FileError> {
    replace(path, contents, 0o644).map_err(FileError::io("write", path))
}

/// A directory that only we may enter, as it will hold keys.
pub(crate) fn create_private_dir(path: &Path) -> Result<(), FileError> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o700)))
        .map_err(FileError::io("write", path))
}

/// Refuses to go on where a key already lies.
pub(crate) fn must_not_exist(path: &Path) -> Result<(), FileError> {
    if path.symlink_metadata().is_ok() {
        return Err(FileError::Exists { path: path.to_owned() });
    }
    Ok(())
}

/// The `*.pem` files of a directory, sorted by name.
pub(crate) fn pem_files(dir: &Path) -> Result<Vec<PathBuf>, FileError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(FileError::io("read", dir))? {
        let path = entry.map_err(FileError::io("read", dir))?.path();
        if path.extension().is_some_and(|extension| extension == "pem") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn replace(path: &Path, contents: &str, mode: u32) -> io::Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.write_all(contents.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    // The rename itself lives in the directory, and is lost with the power unless that is synced.
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_others_may_read_is_refused_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        write_secret(&path, "secret").unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        for (mode, good) in [(0o600, true), (0o400, true), (0o640, true), (0o644, false)] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let read = read_secret(&path);
            assert_eq!(read.is_ok(), good, "{mode:o}");
            if let Err(error) = read {
                assert!(error.to_string().contains("chmod 600"), "{error}");
            }
        }
    }

    #[test]
    fn a_replaced_file_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cert.pem");
        write(&path, "one").unwrap();
        write(&path, "two").unwrap();
        assert_eq!(read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_not_there_or_too_large_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = read(&dir.path().join("no.pem")).unwrap_err();
        assert!(missing.is_not_found() && missing.to_string().contains("no.pem"));
        let path = dir.path().join("big.pem");
        fs::write(&path, vec![b'x'; 300_000]).unwrap();
        assert!(matches!(read(&path), Err(FileError::TooLarge { .. })));
    }
}
