//! Which files a directory holds.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// More entries than this are no directory of manifests but, say, `/`.
const MAX_ENTRIES: usize = 200_000;
const MAX_DEPTH: usize = 64;

/// Tells whether a file changed without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Stamp {
    modified: Option<SystemTime>,
    pub(super) length: u64,
    file: FileId,
}

/// One and the same file or directory, whatever it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FileId(u64, u64);

impl FileId {
    #[cfg(unix)]
    pub(super) fn of(metadata: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self(metadata.dev(), metadata.ino())
    }

    #[cfg(not(unix))]
    pub(super) fn of(_: &Metadata) -> Self {
        Self(0, 0)
    }
}

/// Which directory stands under a name. The number of one that was removed is given to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RootId {
    file: FileId,
    created: Option<SystemTime>,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            modified: metadata.modified().ok(),
            length: metadata.len(),
            file: FileId::of(metadata),
        }
    }
}

/// What a directory holds, by path below it.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Manifests; an error is a file that is there and cannot be looked at, such as a link to
    /// nowhere.
    pub(super) files: BTreeMap<PathBuf, Result<Stamp, io::Error>>,
    /// Directories that could not be listed: nothing is known about what is below them.
    pub(super) unreadable: BTreeMap<PathBuf, io::Error>,
    /// The directory itself.
    pub(super) root: Option<RootId>,
    entries: usize,
}

/// Lists `root` and everything below it. Hidden names are skipped, links are followed, and a link
/// to a directory that it stands in is skipped.
pub(super) fn list(root: &Path) -> io::Result<Listing> {
    let metadata = fs::metadata(root)?;
    let id = FileId::of(&metadata);
    let root_id = RootId { file: id, created: metadata.created().ok() };
    let mut listing = Listing { root: Some(root_id), ..Listing::default() };
    listing.directory(root, &PathBuf::new(), &mut vec![id])?;
    Ok(listing)
}

impl Listing {
    fn directory(
        &mut self,
        root: &Path,
        below: &Path,
        parents: &mut Vec<FileId>,
    ) -> io::Result<()> {
        for entry in fs::read_dir(root.join(below))? {
            let entry = entry?;
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                let message = format!("more than {MAX_ENTRIES} files and directories");
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
            }
            let name = entry.file_name();
            if !name.as_encoded_bytes().starts_with(b".") {
                self.entry(root, below.join(name), parents)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, root: &Path, path: PathBuf, parents: &mut Vec<FileId>) -> io::Result<()> {
        match fs::metadata(root.join(&path)) {
            Ok(metadata) if metadata.is_dir() => {
                let id = FileId::of(&metadata);
                if parents.contains(&id) || parents.len() >= MAX_DEPTH {
                    return Ok(());
                }
                parents.push(id);
                let listed = self.directory(root, &path, parents);
                parents.pop();
                match listed {
                    Err(error) if error.kind() == io::ErrorKind::FileTooLarge => return Err(error),
                    // Removed since its parent was read: gone like a removed file.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => drop(self.unreadable.insert(path, error)),
                    Ok(()) => {}
                }
            }
            Ok(metadata) if metadata.is_file() && is_manifest(&path) => {
                self.files.insert(path, Ok(Stamp::of(&metadata)));
            }
            // Neither file nor directory, or another extension.
            Ok(_) => {}
            Err(error) if is_gone(&error, fs::symlink_metadata(root.join(&path))) => {}
            Err(error) if is_manifest(&path) => drop(self.files.insert(path, Err(error))),
            Err(error) => drop(self.unreadable.insert(path, error)),
        }
        Ok(())
    }
}

/// Two looks of equal digest found the same.
pub(super) fn digest(found: &io::Result<Listing>) -> u64 {
    let mut hash = DefaultHasher::new();
    match found {
        Ok(listing) => {
            for (path, stamp) in &listing.files {
                (path, stamp.as_ref().map_err(io::Error::kind)).hash(&mut hash);
            }
            for (path, error) in &listing.unreadable {
                (path, error.kind()).hash(&mut hash);
            }
        }
        Err(error) => error.kind().hash(&mut hash),
    }
    hash.finish()
}

/// Whether a name that was listed and cannot be followed is none any more. A link to nowhere still
/// is one, and so is what a file system does not want to speak of.
fn is_gone(error: &io::Error, itself: io::Result<Metadata>) -> bool {
    let missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    missing(error) && itself.is_err_and(|error| missing(&error))
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|extension| {
        ["yaml", "yml", "json"].iter().any(|manifest| extension == *manifest)
    })
}
