//! What a client's own words cost, and how much of them a stream keeps.
//!
//! Names that a client puts in are the only memory of a stream that the catalog does not bound.
//! Promises: all names of one stream, of whatever types, share one budget; names that exist are
//! shared with the cache, and yet they count, since what exists can go. Turned down: a limit per
//! type, which a client multiplies by as many types as it can think of.

use std::iter::Sum;
use std::ops::Add;
use std::sync::Arc;

use crate::cache::Names;

/// Names on one stream. Envoy asks for what it was sent; only a broken or hostile client asks for
/// more.
const MAX_NAMES: usize = 100_000;
/// Of all names on one stream together, in bytes; Envoy's come to 2 MiB for 40,000 services.
const MAX_BYTES: usize = 4 << 20;
/// Of a name or of a type's URL, in bytes; ours are below 320.
const MAX_NAME: usize = 1024;

/// A subscription that is not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum TooMuch {
    #[error("the stream has more than {MAX_NAMES} resource names")]
    Names,
    #[error("the stream's resource names have more than {MAX_BYTES} bytes together")]
    Bytes,
    #[error("a resource name or type URL is longer than {MAX_NAME} bytes")]
    Length,
}

/// How much of a stream's budget names take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Weight {
    names: usize,
    bytes: usize,
}

impl Weight {
    /// Of names that were not taken in yet.
    pub(super) fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, TooMuch> {
        let mut weight = Self::default();
        for name in names {
            if name.len() > MAX_NAME {
                return Err(TooMuch::Length);
            }
            weight = weight + Self { names: 1, bytes: name.len() };
        }
        Ok(weight)
    }

    /// Whether a stream may have so much.
    pub(super) fn check(self) -> Result<(), TooMuch> {
        if self.names > MAX_NAMES {
            return Err(TooMuch::Names);
        }
        if self.bytes > MAX_BYTES { Err(TooMuch::Bytes) } else { Ok(()) }
    }
}

impl Add for Weight {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { names: self.names + other.names, bytes: self.bytes + other.bytes }
    }
}

impl Sum for Weight {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Add::add)
    }
}

/// A set of names that knows its weight.
#[derive(Debug, Default)]
pub(super) struct NameSet {
    names: Names,
    bytes: usize,
}

impl NameSet {
    pub(super) fn insert(&mut self, name: Arc<str>) {
        let bytes = name.len();
        if self.names.insert(name) {
            self.bytes += bytes;
        }
    }

    pub(super) fn take(&mut self, name: &str) -> Option<Arc<str>> {
        let name = self.names.take(name)?;
        self.bytes -= name.len();
        Some(name)
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<str>> {
        self.names.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    pub(super) fn weight(&self) -> Weight {
        Weight { names: self.names.len(), bytes: self.bytes }
    }
}

impl FromIterator<Arc<str>> for NameSet {
    fn from_iter<I: IntoIterator<Item = Arc<str>>>(all: I) -> Self {
        let mut set = Self::default();
        all.into_iter().for_each(|name| set.insert(name));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_weighs_what_is_in_it() {
        let mut set: NameSet = ["a", "bc", "a"].into_iter().map(Arc::from).collect();
        assert_eq!(set.weight(), Weight { names: 2, bytes: 3 });
        assert_eq!(set.take("bc").as_deref(), Some("bc"));
        assert_eq!(set.take("bc"), None);
        assert_eq!(set.weight(), Weight::of(["a"]).unwrap());
    }

    #[test]
    fn limits_are_of_all_names_together() {
        let long = "x".repeat(MAX_NAME);
        let all = Weight::of(vec![long.as_str(); MAX_BYTES / MAX_NAME]).unwrap();
        assert_eq!(all.check(), Ok(()));
        assert_eq!((all + Weight::of(["x"]).unwrap()).check(), Err(TooMuch::Bytes));
        assert_eq!(Weight::of(vec!["x"; MAX_NAMES + 1]).unwrap().check(), Err(TooMuch::Names));
        assert_eq!(Weight::of([&*(long + "x")]), Err(TooMuch::Length));
    }
}
