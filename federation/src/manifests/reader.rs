//! A directory's objects, and what stays of them while something cannot be read.
//!
//! Owns: the rule by which a removal is told from damage. A document or a file that is gone while
//! the rest is readable was removed by somebody, once the directory is at rest. A document that
//! cannot be read, a file that cannot be opened, a directory that is missing or holds no manifest at
//! all say nothing about what they held before: that stays, and where it is
//! all that is left it is called lost, for the guard to decide. Where nothing was ever readable there
//! is a gap: what an earlier process read may stand there. Left to others: when to look (`source`),
//! what it means for the mesh (`translate`).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use super::contents::{Contents, Found};
use super::object::{Id, Ownership};
use super::problem::{Place, Problem, Reason};
use super::scan::{self, RootId, Stamp};
use super::{Counts, Listing, Lost};

/// The largest file that is read.
pub(super) const MAX_FILE: u64 = 16 << 20;
/// A directory in which nothing changed for so long is at rest. Longer than the steps of an editor,
/// `cp` or `git checkout` are apart.
pub(super) const REST: Duration = Duration::from_millis(100);
/// One that is never at rest, since something keeps writing, is taken as it is after so long:
/// otherwise nothing could ever be removed from it.
const RESTLESS: Duration = Duration::from_secs(10);

/// Names of files that may have changed although their size and time do not show it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Touched {
    pub(super) names: BTreeSet<OsString>,
    pub(super) all: bool,
}

impl Touched {
    fn contains(&self, path: &Path) -> bool {
        self.all || path.file_name().is_some_and(|name| self.names.contains(name))
    }
}

/// The state of a directory.
#[derive(Debug)]
pub(super) struct Reader {
    root: PathBuf,
    files: BTreeMap<PathBuf, File>,
    directories: Vec<Problem>,
    /// The directory was read at least once.
    complete: bool,
    /// A part of it was never readable.
    unlisted: bool,
    rest: Rest,
    listing: Listing,
    /// Which directory was looked at last.
    looked_at: Option<RootId>,
}

/// Whether a directory is at rest.
#[derive(Debug, Default)]
struct Rest {
    /// What the looks found of late that all found the same, and when the first of them was.
    same: Option<(u64, Instant)>,
    /// Since when it was not at rest.
    restless: Option<Instant>,
}

impl Rest {
    fn look(&mut self, digest: u64, now: Instant) -> bool {
        let since = match self.same {
            Some((same, since)) if same == digest => since,
            _ => now,
        };
        self.same = Some((digest, since));
        let restless = *self.restless.get_or_insert(now);
        let settled = now.saturating_duration_since(since) >= REST
            || now.saturating_duration_since(restless) >= RESTLESS;
        if settled {
            self.restless = None;
        }
        settled
    }
}

/// The objects of the directory, each defined once.
#[derive(Debug)]
pub(super) struct View<'a> {
    pub(super) objects: BTreeMap<&'a Id, &'a Found>,
    /// Objects that are there and of which nothing good was ever read.
    pub(super) unreadable: BTreeSet<&'a Id>,
    pub(super) problems: Vec<Problem>,
    pub(super) counts: Counts,
    pub(super) complete: bool,
    pub(super) gaps: bool,
    pub(super) listing: Listing,
}

impl Reader {
    pub(super) fn new(root: PathBuf, now: Instant) -> Self {
        let (files, directories) = (BTreeMap::new(), Vec::new());
        let lost = Some(Lost::Missing);
        let listing = Listing { id: 0, at: now, since: 1, settled: false, lost };
        let rest = Rest::default();
        Self {
            root,
            files,
            directories,
            complete: false,
            unlisted: false,
            rest,
            listing,
            looked_at: None,
        }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Looks again at everything that changed.
    pub(super) fn refresh(&mut self, touched: &Touched, now: Instant) {
        let found = scan::list(&self.root);
        self.listing.settled = self.rest.look(scan::digest(&found), now);
        if found.as_ref().is_ok_and(|found| self.is_another(found.root)) {
            self.showed_nothing();
        }
        match found {
            Err(error) => {
                let missing = error.kind() == io::ErrorKind::NotFound;
                self.listing.lost = Some(if missing { Lost::Missing } else { Lost::Unreadable });
                self.say(&format!("cannot be read: {error}"));
            }
            Ok(listing) if listing.files.is_empty() && listing.unreadable.is_empty() => {
                self.listed(now, Some(Lost::Empty));
                self.say("holds no manifest (*.yaml, *.yml or *.json)");
            }
            Ok(listing) => self.adopt(listing, touched, now),
        }
        // Also while it is not at rest: who fills it again may be slower than that takes.
        if self.listing.lost.is_some() {
            self.showed_nothing();
        }
    }

    /// Another directory stands under the name: in between there was none, seen or not.
    fn is_another(&mut self, root: Option<RootId>) -> bool {
        let before = std::mem::replace(&mut self.looked_at, root);
        before.is_some() && before != root
    }

    fn showed_nothing(&mut self) {
        self.listing.since = self.listing.id + 1;
    }

    fn listed(&mut self, now: Instant, lost: Option<Lost>) {
        self.listing = Listing { id: self.listing.id + 1, at: now, lost, ..self.listing };
    }

    fn say(&mut self, message: &str) {
        self.directories = vec![directory(String::new(), message, !self.files.is_empty())];
    }

    fn adopt(&mut self, listing: scan::Listing, touched: &Touched, now: Instant) {
        let scan::Listing { files, unreadable, .. } = listing;
        let below = |path: &Path| unreadable.keys().any(|directory| path.starts_with(directory));
        if files.is_empty() {
            // Nothing that is readable vouches for what is gone, be it that this process saw it or
            // an earlier one.
            self.listing.lost = Some(Lost::Unreadable);
        } else {
            self.files.retain(|path, _| files.contains_key(path) || below(path));
            self.listed(now, None);
        }
        self.directories.clear();
        self.unlisted = false;
        for (path, error) in &unreadable {
            let kept = self.files.keys().any(|file| file.starts_with(path));
            let message = match error.kind() {
                io::ErrorKind::NotFound => "is a link that leads nowhere".to_owned(),
                _ => format!("the directory cannot be read: {error}"),
            };
            self.directories.push(directory(path.display().to_string(), &message, kept));
            self.unlisted |= !kept;
        }
        for (path, stamp) in files {
            let name = path.display().to_string();
            let file = self.files.entry(path.clone()).or_default();
            match stamp {
                Ok(stamp) if file.stamp == Some(stamp) && !touched.contains(&path) => {}
                Ok(stamp) => file.update(&name, stamp, read(&self.root.join(path), stamp)),
                Err(error) => file.unreadable(&name, &format!("cannot be read: {error}")),
            }
        }
        self.complete |= !self.files.is_empty();
    }

    /// What the directory says now, with what stays of what it said before.
    pub(super) fn view(&self) -> View<'_> {
        let mut view = View {
            objects: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            problems: self.directories.clone(),
            counts: Counts { files: self.files.len(), ..Counts::default() },
            complete: self.complete,
            gaps: self.unlisted || self.files.values().any(|file| file.gap),
            listing: self.listing,
        };
        for file in self.files.values() {
            view.add(file);
        }
        for kept in self.files.values().flat_map(|file| file.kept.values()) {
            if !kept.certain {
                view.objects.entry(&kept.found.id).or_insert(&kept.found);
            }
        }
        view.count();
        view
    }
}

impl<'a> View<'a> {
    fn add(&mut self, file: &'a File) {
        let contents = &file.contents;
        let certain = file.kept.values().filter(|kept| kept.certain).map(|kept| &kept.found);
        for found in contents.objects.iter().chain(certain) {
            match self.objects.get(&found.id) {
                None => drop(self.objects.insert(&found.id, found)),
                Some(first) => self.problems.push(duplicate(found, &first.place)),
            }
        }
        self.problems.extend(file.problem.clone());
        self.problems.extend(contents.broken.iter().map(|broken| broken.problem.clone()));
        let lost = contents.broken.iter().filter(|broken| !broken.problem.kept);
        self.unreadable.extend(lost.filter_map(|broken| broken.id.as_ref()));
        for (kind, count) in &contents.other_kinds {
            *self.counts.other_kinds.entry(kind.clone()).or_default() += count;
        }
        self.counts.templates += contents.templates;
        self.counts.not_kubernetes += contents.not_kubernetes;
    }

    fn count(&mut self) {
        for found in self.objects.values() {
            *self.counts.read.entry(found.id.kind().as_str()).or_default() += 1;
            if let super::object::Object::Slice(slice) = &found.object {
                match slice.ownership {
                    Ownership::Fqdn => self.counts.fqdn_slices += 1,
                    Ownership::Imported => self.counts.imported_slices += 1,
                    Ownership::Of(_) | Ownership::Nobodys => {}
                }
            }
        }
    }
}

/// The state of a file.
#[derive(Debug, Default)]
struct File {
    /// When it was last read; `None` to read it at the next look.
    stamp: Option<Stamp>,
    contents: Contents,
    /// What it defined when it was last readable, and what now cannot be read.
    kept: BTreeMap<Id, Kept>,
    problem: Option<Problem>,
    /// Documents in it that are no objects, when nothing was damaged.
    odd: usize,
    read_once: bool,
    gap: bool,
}

#[derive(Debug)]
struct Kept {
    found: Found,
    /// The file still defines it; otherwise it may as well be gone, or elsewhere by now.
    certain: bool,
}

impl File {
    fn update(&mut self, name: &str, stamp: Stamp, text: Result<String, String>) {
        let defined = !self.contents.objects.is_empty() || !self.kept.is_empty();
        match text {
            Err(message) => self.unreadable(name, &message),
            // Editors and `>` truncate before they write: at that moment the file says nothing.
            Ok(text) if defined && text.trim().is_empty() => {
                self.unreadable(name, "is empty; to remove its objects, remove the file");
            }
            Ok(text) => {
                self.read(name, &text);
                self.stamp = Some(stamp);
            }
        }
    }

    /// What makes it readable again (a permission) need not show in its stamp: it is tried again.
    fn unreadable(&mut self, name: &str, message: &str) {
        for (id, found) in self.known() {
            self.kept.insert(id, Kept { found, certain: true });
        }
        self.contents = Contents::default();
        self.stamp = None;
        self.gap = !self.read_once;
        self.problem = Some(Problem {
            place: Place { file: name.to_owned(), ..Place::default() },
            object: None,
            field: String::new(),
            message: message.to_owned(),
            reason: Reason::File,
            kept: !self.kept.is_empty(),
        });
    }

    fn read(&mut self, name: &str, text: &str) {
        let mut missing = self.known();
        let mut contents = Contents::of(name, text, false);
        contents.objects.iter().for_each(|found| drop(missing.remove(&found.id)));
        let odd = contents.templates + contents.not_kubernetes;
        // An object is gone and something that is none has come: that may be its remains.
        if !missing.is_empty() && odd > self.odd {
            contents = Contents::of(name, text, true);
        } else {
            self.odd = odd;
        }
        self.kept = keep(&mut contents, missing);
        self.gap = contents.broken.iter().any(|broken| !broken.problem.kept);
        self.contents = contents;
        self.problem = None;
        self.read_once = true;
    }

    fn known(&self) -> BTreeMap<Id, Found> {
        let kept = self.kept.values().map(|kept| &kept.found);
        // The first definition wins, so it goes in last.
        let all = kept.chain(self.contents.objects.iter().rev());
        all.map(|found| (found.id.clone(), found.clone())).collect()
    }
}

/// Which of the `missing` objects stay, because what is broken is or may be theirs.
fn keep(contents: &mut Contents, mut missing: BTreeMap<Id, Found>) -> BTreeMap<Id, Kept> {
    let mut kept = BTreeMap::new();
    for broken in &mut contents.broken {
        if let Some((id, found)) = broken.id.as_ref().and_then(|id| missing.remove_entry(id)) {
            kept.insert(id, Kept { found, certain: true });
            broken.problem.kept = true;
        }
    }
    for broken in contents.broken.iter_mut().filter(|broken| broken.id.is_none()) {
        broken.problem.kept = !missing.is_empty();
    }
    if contents.broken.iter().any(|broken| broken.id.is_none()) {
        let unsure = |(id, found)| (id, Kept { found, certain: false });
        kept.extend(missing.into_iter().map(unsure));
    }
    kept
}

fn read(path: &Path, stamp: Stamp) -> Result<String, String> {
    let too_large = || format!("is larger than {} MiB, the most that is read", MAX_FILE >> 20);
    if stamp.length > MAX_FILE {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| format!("cannot be opened: {error}"))?;
    // It may have grown since.
    let length = file.take(MAX_FILE + 1).read_to_end(&mut bytes);
    let length = length.map_err(|error| format!("cannot be read: {error}"))?;
    if length as u64 > MAX_FILE {
        return Err(too_large());
    }
    String::from_utf8(bytes).map_err(|error| {
        format!("is not UTF-8 text: byte {} is wrong", error.utf8_error().valid_up_to() + 1)
    })
}

fn directory(file: String, message: &str, kept: bool) -> Problem {
    Problem {
        place: Place { file, ..Place::default() },
        object: None,
        field: String::new(),
        message: message.to_owned(),
        reason: Reason::Directory,
        kept,
    }
}

fn duplicate(found: &Found, first: &Place) -> Problem {
    Problem {
        place: found.place.clone(),
        object: Some(found.id.object_ref()),
        field: String::new(),
        message: format!("is already defined in {first}, and that definition counts"),
        reason: Reason::Duplicate,
        kept: false,
    }
}

#[cfg(test)]
mod tests;
