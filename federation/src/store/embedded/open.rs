//! Opening the file: made whole or not at all, refused with what to do.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use redb::backends::InMemoryBackend;
use redb::{Builder, Database, DatabaseError, ReadableDatabase, StorageBackend, StorageError};

use super::disk::{FORMAT, Failure, META, OPENED, number};
use super::write::Tables;
use crate::store::StoreError;

/// The layout of the tables that this code writes and reads.
const LAYOUT: u64 = 1;
/// redb would take a gibibyte; a region that fits this store fits this.
const CACHE_BYTES: usize = 64 << 20;

/// Why the file was not opened. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Somebody has it open.
    #[error(
        "{} is in use, by another process or twice by this one: stop the other, or use another \
         state directory",
        path.display()
    )]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// It is no database any more, or never was one.
    #[error(
        "{} is damaged or not a database ({reason}): put a backup in its place, or move it away \
         to start empty; agents and peers then send their records again",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// A database, but of something else.
    #[error("{} holds another program's data: use another state directory", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Written by a later version.
    #[error(
        "{} was written by a newer version (layout {found}, this one reads {LAYOUT}): run that \
         version, or restore a backup made before it",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its layout.
        found: u64,
    },
    /// The disk, or its permissions.
    #[error("cannot open {}", path.display())]
    Io {
        /// The file, or the directory it should be in.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// An open database, and how often it was opened before.
pub(super) struct Opened {
    pub(super) database: Database,
    pub(super) times: u64,
}

pub(super) fn file(path: &Path) -> Result<Opened, OpenError> {
    let exists = path.try_exists().map_err(|source| io_error(path, source))?;
    if !exists {
        create(path)?;
    }
    let mut database = builder().open(path).map_err(|error| explain(path, error))?;
    // redb trusts its pages when it reads them, so damage is found here or served.
    if !database.check_integrity().map_err(|error| explain(path, error))? {
        let path = path.display();
        tracing::error!(%path, "the store was damaged and is repaired; commits may be lost");
    }
    enter(path, database)
}

pub(super) fn memory() -> Result<Opened, OpenError> {
    backend(InMemoryBackend::new())
}

pub(super) fn backend(storage: impl StorageBackend) -> Result<Opened, OpenError> {
    let path = Path::new("memory");
    enter(path, builder().create_with_backend(storage).map_err(|error| explain(path, error))?)
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// Makes the file under another name and links it when it is complete: one that was cut short by
/// a kill would be taken for a damaged one for ever. A link, unlike a rename, never replaces a
/// file that another process has just made.
fn create(path: &Path) -> Result<(), OpenError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(directory).map_err(|source| io_error(directory, source))?;
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let new = PathBuf::from(name);
    remove(&new)?;
    let database = builder().create(&new).map_err(|error| explain(&new, error))?;
    drop(enter(&new, database)?);
    match fs::hard_link(&new, path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(io_error(path, error)),
        _ => Ok(()),
    }?;
    remove(&new)?;
    // The name is durable only when the directory is.
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| io_error(directory, source))
}

fn remove(path: &Path) -> Result<(), OpenError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io_error(path, error)),
        _ => Ok(()),
    }
}

/// Checks whose file it is, ends the leases of the process that had it before, counts the opening.
fn enter(path: &Path, database: Database) -> Result<Opened, OpenError> {
    let failed = |failure: Failure| match failure.0 {
        StoreError::Unavailable(text) => io_error(path, io::Error::other(text)),
        other => OpenError::Damaged { path: path.to_owned(), reason: other.to_string() },
    };
    match layout(&database).map_err(failed)? {
        Layout::Empty | Layout::Ours(LAYOUT) => {}
        Layout::Ours(found) => return Err(OpenError::Newer { path: path.to_owned(), found }),
        Layout::Foreign => return Err(OpenError::Foreign { path: path.to_owned() }),
    }
    let times = count(&database).map_err(failed)?;
    Ok(Opened { database, times })
}

enum Layout {
    Empty,
    Foreign,
    Ours(u64),
}

fn layout(database: &Database) -> Result<Layout, Failure> {
    let txn = database.begin_read()?;
    if txn.list_tables()?.next().is_none() && txn.list_multimap_tables()?.next().is_none() {
        return Ok(Layout::Empty);
    }
    let found = match txn.open_table(META) {
        Ok(meta) => number(&meta, FORMAT)?,
        Err(redb::TableError::Storage(error)) => return Err(error.into()),
        Err(_) => 0,
    };
    Ok(if found == 0 { Layout::Foreign } else { Layout::Ours(found) })
}

fn count(database: &Database) -> Result<u64, Failure> {
    let txn = database.begin_write()?;
    let mut tables = Tables::open(&txn)?;
    let times = number(&tables.meta, OPENED)? + 1;
    tables.meta.insert(FORMAT, LAYOUT)?;
    tables.meta.insert(OPENED, times)?;
    tables.end_all_leases()?;
    tables.finish()?;
    txn.commit()?;
    Ok(times)
}

fn explain(path: &Path, error: DatabaseError) -> OpenError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::Locked { path },
        DatabaseError::Storage(StorageError::Io(source)) if !is_content(source.kind()) => {
            OpenError::Io { path, source }
        }
        other => OpenError::Damaged { path, reason: other.to_string() },
    }
}

/// Whether the bytes are wrong and not the disk.
fn is_content(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::InvalidData | ErrorKind::UnexpectedEof)
}

fn io_error(path: &Path, source: io::Error) -> OpenError {
    OpenError::Io { path: path.to_owned(), source }
}
