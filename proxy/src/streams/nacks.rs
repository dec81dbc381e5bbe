//! Which refusals are worth a line in the log.
//!
//! A client repeats itself: every response that holds what it refuses is refused in the same words,
//! and a hostile one can make words up. Promises: a stream logs equal words about a type once until
//! it accepts a response of that type, and never more than so many different ones in between.

use std::collections::BTreeSet;

use super::session::Answer;
use crate::resources::Type;

/// Different refusals of one stream that are logged; the list of proxies has the newest anyway.
const MOST: usize = 16;

/// What a stream has logged.
#[derive(Debug, Default)]
pub(super) struct Nacks {
    logged: BTreeSet<(Type, String)>,
}

impl Nacks {
    /// What is to be logged of `answer`.
    pub(super) fn news<'a>(&mut self, answer: &'a Answer) -> Option<(Type, &'a str)> {
        match answer {
            Answer::Refused { of, text, .. } => {
                let new = self.logged.len() < MOST && self.logged.insert((*of, text.clone()));
                new.then_some((*of, text))
            }
            Answer::Acknowledged { of, .. } => {
                self.logged.retain(|(logged, _)| logged != of);
                None
            }
            Answer::Other | Answer::UnknownType => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::resources::Version;

    fn refused(of: Type, text: &str) -> Answer {
        Answer::Refused { of, version: Version::default(), text: text.into() }
    }

    #[test]
    fn equal_words_are_logged_once_until_something_is_accepted() {
        let mut nacks = Nacks::default();
        let answer = refused(Type::Cluster, "bad");
        assert_eq!(nacks.news(&answer), Some((Type::Cluster, "bad")));
        assert_eq!(nacks.news(&answer), None);
        assert!(nacks.news(&refused(Type::Route, "bad")).is_some());
        assert!(nacks.news(&refused(Type::Cluster, "worse")).is_some());
        let of = Type::Cluster;
        let accepted =
            Answer::Acknowledged { of, version: Version::default(), after: Duration::ZERO };
        assert_eq!(nacks.news(&accepted), None);
        assert!(nacks.news(&answer).is_some());
        assert_eq!(nacks.news(&refused(Type::Route, "bad")), None);
    }

    #[test]
    fn words_that_are_made_up_come_to_an_end() {
        let mut nacks = Nacks::default();
        let all = (0..1000).map(|n| refused(Type::Cluster, &n.to_string()));
        assert_eq!(all.filter(|answer| nacks.news(answer).is_some()).count(), MOST);
    }
}
