//! The Unix socket itself: made whole, replaced when stale, removed when done.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// What fits an address of a Unix socket, its closing zero included.
const MAX_PATH: usize = 108;
/// Calls that wait to be taken.
const BACKLOG: i32 = 16;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    #[error(
        "operator socket {} is in use by another process: stop that one, or give this one another \
         operatorSocket",
        .0.display()
    )]
    InUse(PathBuf),
    #[error("operator socket {} is a file and no socket: remove it, or give another operatorSocket", .0.display())]
    NoSocket(PathBuf),
    #[error("operator socket {} cannot be made", .path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A socket that is listened on, though nobody answers yet.
#[derive(Debug)]
pub(crate) struct Bound {
    path: PathBuf,
    listener: Option<UnixListener>,
}

impl Bound {
    /// Listens at `path`, which only the process's own user may then open.
    pub(crate) fn at(path: &Path) -> Result<Self, SocketError> {
        let io = |source| SocketError::Io { path: path.to_owned(), source };
        refuse_taken(path)?;
        // Nobody can connect before it listens, and it has its mode and its name by then.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let aside = path.with_file_name(format!(".{name}.new"));
        match fs::remove_file(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        let listener = listen(&aside).map_err(io)?;
        fs::rename(&aside, path).map_err(io)?;
        Ok(Self { path: path.to_owned(), listener: Some(listener) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// To accept on, once.
    pub(crate) fn listener(&mut self) -> io::Result<tokio::net::UnixListener> {
        let listener =
            self.listener.take().ok_or_else(|| io::Error::other("accepted on already"))?;
        tokio::net::UnixListener::from_std(listener)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // One that stays is replaced at the next start.
        let _ = fs::remove_file(&self.path);
    }
}

fn refuse_taken(path: &Path) -> Result<(), SocketError> {
    let io = |source| SocketError::Io { path: path.to_owned(), source };
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
    };
    if !found.file_type().is_socket() {
        return Err(SocketError::NoSocket(path.to_owned()));
    }
    let (short, _dir) = reachable(path).map_err(io)?;
    match UnixStream::connect(short) {
        Ok(_) => Err(SocketError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(io(error)),
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let (short, _dir) = reachable(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(&short)?)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// A path that fits an address, for as long as the directory that comes with it is open: state
/// directories may be deeper than addresses of sockets are long.
pub(crate) fn reachable(path: &Path) -> io::Result<(PathBuf, Option<File>)> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok((path.to_owned(), None));
    };
    if path.as_os_str().len() < MAX_PATH {
        return Ok((path.to_owned(), None));
    }
    let dir = File::open(dir)?;
    let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    Ok((short, Some(dir)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("operator.sock");
        let live = Bound::at(&path).unwrap();
        let mode = fs::symlink_metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(UnixStream::connect(&path).is_ok());
        let error = Bound::at(&path).unwrap_err().to_string();
        assert!(error.contains("in use by another process"), "{error}");
        assert!(UnixStream::connect(&path).is_ok(), "the live one is untouched");
        // As after a crash: the file stays and nobody listens.
        fs::hard_link(&path, dir.path().join("kept")).unwrap();
        drop(live);
        assert!(!path.exists());
        fs::rename(dir.path().join("kept"), &path).unwrap();
        drop(Bound::at(&path).unwrap());

        fs::write(&path, "text").unwrap();
        let error = Bound::at(&path).unwrap_err().to_string();
        assert!(error.contains("is a file and no socket"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "text");
    }

    #[test]
    fn a_path_may_be_longer_than_an_address() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(100)).join("e".repeat(100));
        fs::create_dir_all(&deep).unwrap();
        let path = deep.join("operator.sock");
        let bound = Bound::at(&path).unwrap();
        let (short, _dir) = reachable(&path).unwrap();
        assert!(UnixStream::connect(short).is_ok());
        drop(bound);
        assert!(!path.exists());
    }
}
