//! One variant of one type: all its resources, and which of them changed lately.

use std::collections::BTreeSet;
use std::sync::Arc;

use rpds::RedBlackTreeMapSync;

use crate::resources::Resource;

/// So many changes are remembered; a stream that is further behind compares everything, which
/// costs as much as that stream's interest, once.
const REMEMBERED: usize = 64;

/// Names of resources.
pub(crate) type Names = BTreeSet<Arc<str>>;

/// Immutable for readers: a copy shares everything with the original.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    resources: RedBlackTreeMapSync<Arc<str>, Arc<Resource>>,
    /// Ascending by revision.
    changes: Arc<Vec<(u64, Arc<Names>)>>,
    /// Changes up to and including this revision are no longer listed.
    forgotten: u64,
}

impl Table {
    /// Holds these resources as of `revision`.
    pub(super) fn new(revision: u64, resources: impl IntoIterator<Item = Resource>) -> Self {
        let mut table = Self {
            resources: RedBlackTreeMapSync::new_sync(),
            changes: Arc::default(),
            forgotten: revision,
        };
        for resource in resources {
            table.resources.insert_mut(Arc::clone(&resource.name), Arc::new(resource));
        }
        table
    }

    /// The resource of this name.
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Resource>> {
        self.resources.get(name)
    }

    /// All resources, by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources.values()
    }

    /// What may differ from how it was at `revision`; `None` when that is too long ago to tell.
    pub(crate) fn changed_since(&self, revision: u64) -> Option<Names> {
        if revision < self.forgotten {
            return None;
        }
        let newer = self.changes.iter().filter(|(at, _)| *at > revision);
        Some(newer.flat_map(|(_, names)| names.iter().cloned()).collect())
    }

    /// Replaces resources; those that are equal to what is held are no change. Returns
    /// whether there was one.
    pub(super) fn apply(&mut self, revision: u64, edits: Vec<Edit>) -> bool {
        let changed: Names = edits.into_iter().filter_map(|edit| self.edit(edit)).collect();
        if changed.is_empty() {
            return false;
        }
        let log = Arc::make_mut(&mut self.changes);
        match log.last_mut() {
            Some((at, names)) if *at == revision => Arc::make_mut(names).extend(changed),
            _ => log.push((revision, Arc::new(changed))),
        }
        if log.len() > REMEMBERED {
            let (oldest, _) = log.remove(0);
            self.forgotten = oldest;
        }
        true
    }

    fn edit(&mut self, edit: Edit) -> Option<Arc<str>> {
        match edit {
            Edit::Put(resource) => {
                let held = self.resources.get(&resource.name);
                if held.is_some_and(|held| held.version == resource.version) {
                    return None;
                }
                let name = Arc::clone(&resource.name);
                self.resources.insert_mut(Arc::clone(&name), Arc::new(resource));
                Some(name)
            }
            Edit::Remove(name) => self.resources.remove_mut(&name).then_some(name),
        }
    }
}

/// What becomes of one resource.
#[derive(Debug)]
pub(super) enum Edit {
    Put(Resource),
    Remove(Arc<str>),
}

/// From what a service made before to what it makes now.
pub(super) fn edits(before: Vec<Arc<str>>, now: Vec<Resource>) -> Vec<Edit> {
    let kept: BTreeSet<Arc<str>> = now.iter().map(|resource| Arc::clone(&resource.name)).collect();
    let gone = before.into_iter().filter(|name| !kept.contains(name)).map(Edit::Remove);
    gone.chain(now.into_iter().map(Edit::Put)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::outbound_listener;
    use crate::testkit::at;

    fn resource(name: &str, port: u16) -> Resource {
        let mut resource = outbound_listener(at(&format!("127.0.0.1:{port}")));
        resource.name = name.into();
        resource
    }

    fn names(of: Option<Names>) -> Option<Vec<String>> {
        of.map(|names| names.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn changes_are_named_and_equal_bytes_are_none() {
        let mut table = Table::new(1, [resource("a", 1), resource("b", 1)]);
        assert!(!table.apply(2, vec![Edit::Put(resource("a", 1))]));
        assert!(table.apply(3, vec![Edit::Put(resource("a", 2)), Edit::Remove("x".into())]));
        assert!(table.apply(4, vec![Edit::Remove("b".into())]));
        assert_eq!(names(table.changed_since(2)).unwrap(), ["a", "b"]);
        assert_eq!(names(table.changed_since(3)).unwrap(), ["b"]);
        assert_eq!(names(table.changed_since(0)), None);
    }

    #[test]
    fn what_is_long_ago_is_forgotten() {
        let mut table = Table::new(0, []);
        for n in 1..=100 {
            table.apply(n, vec![Edit::Put(resource("a", u16::try_from(n).unwrap()))]);
        }
        assert_eq!(names(table.changed_since(10)), None);
        assert_eq!(names(table.changed_since(99)).unwrap(), ["a"]);
        assert_eq!(table.changes.len(), REMEMBERED);
    }
}
