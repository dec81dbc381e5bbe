//! Puts a watch's answers together to commits: events in, whole commits out.

use etcd_client::proto::{PbEvent, PbWatchResponse};

use super::super::range::entry;
use super::super::unsigned;
use super::Wanted;
use crate::store::{Event, Revision};

/// What one commit may be; etcd's own limit for a request is 1.5 MiB unless it was raised.
const MAX_COMMIT: usize = 64 << 20;
const PUT: i32 = 0;
const DELETE: i32 = 1;

/// Events of a commit that may go on in the next fragment.
#[derive(Debug)]
struct Open {
    revision: Revision,
    events: Vec<Event>,
    bytes: usize,
}

/// What an answer completed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Joined {
    pub(super) commits: Vec<(Revision, Vec<Event>)>,
    /// The newest revision that was seen whole, of all that is watched.
    pub(super) seen: Revision,
    /// It brought news as they happened: one commit, the newest. Everything else is from history.
    pub(super) live: bool,
}

/// What cannot be made sense of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Nonsense {
    #[error("the commit at revision {0} has more than {MAX_COMMIT} bytes")]
    TooLarge(Revision),
    #[error("an event is of the unknown kind {0}")]
    Kind(i32),
    #[error("an event has no key")]
    NoKey,
    #[error("an event of revision {at} comes after one of {after}")]
    Order { at: Revision, after: Revision },
}

#[derive(Debug)]
pub(super) struct Joiner {
    wanted: Wanted,
    open: Option<Open>,
    seen: Revision,
}

impl Joiner {
    pub(super) fn new(wanted: Wanted) -> Self {
        Self { wanted, open: None, seen: 0 }
    }

    pub(super) fn take(&mut self, response: PbWatchResponse) -> Result<Joined, Nonsense> {
        let newest = response.header.map_or(0, |header| unsigned(header.revision));
        let mut commits = Vec::new();
        let (mut from_here, fragment) = (0, response.fragment);
        for event in response.events {
            let kv = event.kv.as_ref().ok_or(Nonsense::NoKey)?;
            let (revision, bytes) = (unsigned(kv.mod_revision), kv.key.len() + kv.value.len());
            if self.open.as_ref().is_some_and(|open| open.revision < revision) {
                self.close(&mut commits);
            }
            if revision <= self.seen {
                return Err(Nonsense::Order { at: revision, after: self.seen });
            }
            let new = || Open { revision, events: Vec::new(), bytes: 0 };
            let open = self.open.get_or_insert_with(new);
            if revision < open.revision {
                return Err(Nonsense::Order { at: revision, after: open.revision });
            }
            from_here += usize::from(open.bytes == 0);
            open.bytes += bytes.max(1);
            if open.bytes > MAX_COMMIT {
                return Err(Nonsense::TooLarge(revision));
            }
            open.events.extend(ours(&self.wanted, revision, event)?);
        }
        if !fragment {
            self.close(&mut commits);
        }
        let live = from_here <= 1 && !fragment && self.seen == newest;
        Ok(Joined { commits, seen: self.seen, live })
    }

    fn close(&mut self, commits: &mut Vec<(Revision, Vec<Event>)>) {
        let Some(Open { revision, mut events, .. }) = self.open.take() else { return };
        self.seen = revision;
        if !events.is_empty() {
            events.sort_by(|a, b| a.key().cmp(b.key()));
            commits.push((revision, events));
        }
    }
}

/// `None` for what was not asked for, and for foreign keys.
fn ours(wanted: &Wanted, revision: Revision, event: PbEvent) -> Result<Option<Event>, Nonsense> {
    let kv = event.kv.ok_or(Nonsense::NoKey)?;
    if !matches!(event.r#type, PUT | DELETE) {
        return Err(Nonsense::Kind(event.r#type));
    }
    if revision < wanted.from || !kv.key.starts_with(wanted.prefix.as_bytes()) {
        return Ok(None);
    }
    Ok(entry(kv).map(|entry| match event.r#type {
        DELETE => Event::Delete { key: entry.key, revision },
        _ => Event::Put(entry),
    }))
}

#[cfg(test)]
mod tests {
    use etcd_client::proto::{PbKeyValue, PbResponseHeader};

    use super::*;

    fn joiner(prefix: &str, from: Revision) -> Joiner {
        Joiner::new(Wanted { prefix: prefix.to_owned(), from })
    }

    /// `+key@revision` puts, `-key@revision` deletes; a last `...` is a fragment.
    fn response(newest: i64, text: &str) -> PbWatchResponse {
        let event = |word: &str| {
            let (key, revision) = word[1..].split_once('@').unwrap();
            let mod_revision = revision.parse().unwrap();
            let key = key.replace('?', "\u{0}").into_bytes();
            let key = key.into_iter().map(|byte| if byte == 0 { 0xff } else { byte }).collect();
            let kv = PbKeyValue { key, mod_revision, ..PbKeyValue::default() };
            let r#type = i32::from(word.starts_with('-'));
            PbEvent { r#type, kv: Some(kv), prev_kv: None }
        };
        let words = text.split_whitespace();
        PbWatchResponse {
            header: Some(PbResponseHeader { revision: newest, ..PbResponseHeader::default() }),
            fragment: text.ends_with("..."),
            events: words.filter(|word| *word != "...").map(event).collect(),
            ..PbWatchResponse::default()
        }
    }

    fn shown(joined: &Joined) -> String {
        let event = |event: &Event| match event {
            Event::Put(entry) => format!("+{}", entry.key),
            Event::Delete { key, .. } => format!("-{key}"),
        };
        let commit = |(revision, events): &(Revision, Vec<Event>)| {
            let events: Vec<_> = events.iter().map(event).collect();
            format!("{revision}:{}", events.join(","))
        };
        let commits: Vec<_> = joined.commits.iter().map(commit).collect();
        commits.join(" ")
    }

    #[test]
    fn fragments_of_a_commit_are_joined() {
        let mut joiner = joiner("/", 1);
        let mut take = |text| joiner.take(response(9, text)).unwrap();
        let first = take("+/a@2 +/c@3 ...");
        assert_eq!((shown(&first).as_str(), first.seen), ("2:+/a", 2));
        let second = take("-/b@3 ...");
        assert_eq!((shown(&second).as_str(), second.seen), ("", 2), "it may go on");
        let third = take("+/a@3 +/a@5 ...");
        assert_eq!(shown(&third), "3:+/a,-/b,+/c");
        let last = take("+/b@5");
        assert_eq!((shown(&last).as_str(), last.seen), ("5:+/a,+/b", 5));
    }

    #[test]
    fn only_what_was_asked_for_is_passed_on_and_all_is_seen() {
        let mut joiner = joiner("/a/", 3);
        let all = joiner.take(response(5, "+/a/1@2 +/a/1@3 +/b@3 +/b@4 +/a@5")).unwrap();
        assert_eq!((shown(&all).as_str(), all.seen), ("3:+/a/1", 5));
    }

    #[test]
    fn foreign_keys_hide_nothing() {
        let mut joiner = joiner("/", 1);
        let all = joiner.take(response(3, "+/?@2 +/a@2 -/?@3")).unwrap();
        assert_eq!((shown(&all).as_str(), all.seen), ("2:+/a", 3));
    }

    #[test]
    fn news_are_told_from_history() {
        let mut joiner = joiner("/", 1);
        let mut live = |newest, text| joiner.take(response(newest, text)).unwrap().live;
        assert!(!live(9, "+/a@2"), "there is more");
        assert!(!live(4, "+/a@3 +/a@4"), "two commits");
        assert!(live(5, "+/a@5 +/b@5"));
        assert!(!live(6, "+/a@6 ..."));
        assert!(live(6, "+/b@6"));
    }

    #[test]
    fn nonsense_is_refused() {
        let refused = |texts: &[&str]| {
            let mut joiner = joiner("/", 1);
            texts.iter().find_map(|text| joiner.take(response(9, text)).err())
        };
        assert_eq!(refused(&["+/a@3", "+/a@3"]), Some(Nonsense::Order { at: 3, after: 3 }));
        assert_eq!(refused(&["+/a@3 +/a@2"]), Some(Nonsense::Order { at: 2, after: 3 }));
        let mut strange = response(2, "+/a@2");
        strange.events[0].r#type = 7;
        assert_eq!(joiner("/", 1).take(strange), Err(Nonsense::Kind(7)));
        let mut empty = response(2, "+/a@2");
        empty.events[0].kv = None;
        assert_eq!(joiner("/", 1).take(empty), Err(Nonsense::NoKey));
        let mut large = joiner("/", 1);
        let mut refused = None;
        for _ in 0..5 {
            let mut part = response(2, "+/a@2 ...");
            part.events[0].kv.as_mut().unwrap().value = vec![0; MAX_COMMIT / 4];
            refused = refused.or(large.take(part).err());
        }
        assert_eq!(refused, Some(Nonsense::TooLarge(2)), "memory is bounded");
    }
}
