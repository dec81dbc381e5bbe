//! Records that the region had no room for, to be said again when others have gone.

use std::collections::{BTreeSet, VecDeque};

use crate::key::Key;
use crate::proto::federation as wire;

#[derive(Debug, Default)]
pub(super) struct WithoutRoom {
    /// Who has waited longest comes first: one that is too large for what went is not the only one
    /// that is ever tried.
    waiting: VecDeque<Key>,
    all: BTreeSet<Key>,
    /// How many records have gone since something was said again.
    gone: usize,
}

impl WithoutRoom {
    /// Takes the region's word on a batch of these keys, `gone` of them removals.
    pub(super) fn settled(
        &mut self,
        keys: &[String],
        gone: usize,
        refused: &[wire::RefusedRecord],
    ) {
        if !self.all.is_empty() {
            for key in keys.iter().filter_map(|key| key.parse().ok()) {
                self.all.remove(&key);
            }
            self.waiting.retain(|key| self.all.contains(key));
        }
        for key in refused.iter().filter(|of| of.for_room).filter_map(|of| of.key.parse().ok()) {
            if self.all.insert(Key::clone(&key)) {
                self.waiting.push_back(key);
            }
        }
        // What went before anything was refused was room that this was refused in spite of.
        self.gone = if self.all.is_empty() { 0 } else { self.gone.saturating_add(gone) };
    }

    /// As many as have gone, of those that are `there`.
    pub(super) fn next(&mut self, there: impl Fn(&Key) -> bool) -> Vec<Key> {
        if self.gone == 0 {
            return Vec::new();
        }
        let (waiting, all) = (&mut self.waiting, &mut self.all);
        let next = std::iter::from_fn(|| waiting.pop_front());
        let next = next.filter(|key| all.remove(key) && there(key));
        let next: Vec<Key> = next.take(self.gone).collect();
        self.gone = 0;
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(name: &str) -> String {
        format!("/tombolo/v1/r/r-a/namespace/_/{name}")
    }

    fn refused(name: &str, for_room: bool) -> wire::RefusedRecord {
        wire::RefusedRecord { key: text(name), reason: "because".into(), for_room }
    }

    fn next(of: &mut WithoutRoom, gone: &str) -> Vec<String> {
        let next = of.next(|key| key.name.to_string() != gone);
        next.into_iter().map(|key| key.name.to_string()).collect()
    }

    #[test]
    fn as_many_are_said_again_as_have_gone_and_who_waited_longest_first() {
        let mut of = WithoutRoom::default();
        let all = ["a", "b", "c", "d"].map(|name| refused(name, true));
        of.settled(&[], 0, &all);
        of.settled(&[], 0, &[refused("other", false)]);
        assert_eq!(next(&mut of, ""), [""; 0], "nothing has gone");
        of.settled(&[text("x")], 1, &[]);
        assert_eq!(next(&mut of, ""), ["a"]);
        of.settled(&[text("a")], 0, &[refused("a", true)]);
        assert_eq!(next(&mut of, ""), [""; 0], "it was tried with what there is");
        of.settled(&[text("y"), text("b")], 2, &[]);
        assert_eq!(next(&mut of, "c"), ["d", "a"], "b was settled, c is not there any more");
        assert_eq!((of.waiting.len(), of.all.len()), (0, 0));
    }
}
