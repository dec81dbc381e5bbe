//! The decision itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::holds::Holds;
use super::loss::{self, Loss, Losses};
use super::readiness::Readiness;
use super::window::Window;
use super::{Ending, Listing, Records, Settings, Sight, Verdict};
use crate::key::Key;
use crate::record::{Body, Endpoints, Epoch, Hold, Removal, Suspect};

/// What goes, and why.
type Gone = BTreeMap<Loss, Removal>;

/// Decides for one owner; see the module.
#[derive(Debug)]
pub struct Guard {
    settings: Settings,
    window: Window,
    pub(super) holds: Holds,
    readiness: Readiness,
    /// The newest listing that was looked at: one counts once.
    listed: Option<u64>,
    /// Whether the source showed nothing when last looked at.
    was_blank: bool,
}

impl Guard {
    /// Has seen nothing yet. `epoch` is the owner's, so that no other incarnation gives the same
    /// ids.
    #[must_use]
    pub fn new(settings: Settings, epoch: Epoch) -> Self {
        Self {
            settings,
            window: Window::default(),
            holds: Holds::new(epoch.clone()),
            readiness: Readiness::new(epoch),
            listed: None,
            was_blank: false,
        }
    }

    /// Goes on from what an earlier process published, and whether it was suspect: what ceased to be
    /// ready while nobody looked did so at once, as far as anybody knows.
    #[must_use]
    pub fn continuing(mut self, published: &Records, suspect: Option<Suspect>) -> Self {
        self.readiness.resume(published, suspect);
        self
    }

    /// What becomes of `published`, now that the source shows `sight`. Anything in `approved`
    /// that is not the exact id of a hold or suspicion that stands means nothing.
    pub fn decide(
        &mut self,
        published: &Records,
        sight: &Sight<'_>,
        approved: &BTreeSet<String>,
        now: Instant,
        wall: Timestamp,
    ) -> Verdict {
        let mut losses = Losses::between(published, sight.wanted);
        if !sight.settled {
            return self.wait(published, &losses, sight, approved, now, wall);
        }
        if self.was_blank != sight.blank.is_some() {
            self.was_blank = !self.was_blank;
            self.holds.look_anew();
        }
        let before = self.holds.list();
        let mut gone = self.let_go(&mut losses, sight);
        let fresh = self.fresh(sight.listing);
        let mut endings = self.end_holds(approved, fresh, &mut gone);
        let news = losses.without(|loss| self.holds.covers(loss) || gone.contains_key(loss));
        let count = loss::endpoints(published);
        let joined = self.take_in(&news, count, sight, fresh, (now, wall), &mut gone);
        endings.extend(joined.map(|id| (id, Ending::Joined)));
        let publish = keep(published, sight.wanted, self.holds.losses());
        self.window.published(loss::endpoints(&publish), now, self.settings.window);
        let cleared = match sight.blank {
            // What is not seen is not unready.
            Some(_) => None,
            None => self.readiness.look(sight.wanted, approved, &self.settings, now, wall),
        };
        let holds = self.holds.list();
        Verdict {
            removals: removals(published, &publish, &gone),
            began: holds.iter().filter(|hold| !has(&before, hold)).cloned().collect(),
            ended: ended(before, &holds, &endings),
            suspect: self.readiness.suspect().cloned(),
            cleared,
            ask_again: self.holds.ask_again(self.settings.confirm_after, now),
            publish,
            gone,
            holds,
        }
    }

    /// Adds what is new; all that is lost stays, and whatever is held.
    fn wait(
        &mut self,
        published: &Records,
        losses: &Losses,
        sight: &Sight<'_>,
        approved: &BTreeSet<String>,
        now: Instant,
        wall: Timestamp,
    ) -> Verdict {
        let publish = keep(published, sight.wanted, losses.weights().map(|(loss, _)| loss));
        self.window.published(loss::endpoints(&publish), now, self.settings.window);
        let cleared = match sight.blank {
            Some(_) => None,
            None => self.readiness.look(&publish, approved, &self.settings, now, wall),
        };
        Verdict {
            removals: removals(published, &publish, &Gone::new()),
            gone: Gone::new(),
            holds: self.holds.list(),
            began: Vec::new(),
            ended: Vec::new(),
            suspect: self.readiness.suspect().cloned(),
            cleared,
            ask_again: self.holds.ask_again(self.settings.confirm_after, now),
            publish,
        }
    }

    /// What came back is held no more, and what is explained goes.
    fn let_go(&mut self, losses: &mut Losses, sight: &Sight<'_>) -> Gone {
        self.holds.retain(|loss| losses.contains(loss));
        let explained = losses.take_explained(sight.explains);
        for loss in &explained {
            self.holds.remove(loss);
        }
        explained.into_iter().map(|loss| (loss, Removal::Explained)).collect()
    }

    /// The listing, if it was not looked at before.
    fn fresh(&mut self, listing: Option<Listing>) -> Option<Listing> {
        let fresh = listing.filter(|listing| self.listed != Some(listing.id));
        self.listed = listing.map_or(self.listed, |listing| Some(listing.id));
        fresh
    }

    fn end_holds(
        &mut self,
        approved: &BTreeSet<String>,
        fresh: Option<Listing>,
        gone: &mut Gone,
    ) -> BTreeMap<String, Ending> {
        let due = self.holds.due(approved, fresh, self.settings.confirm_after);
        let end = |(id, ending, removal): (String, Ending, Removal)| {
            gone.extend(self.holds.end(&id).into_iter().map(|loss| (loss, removal)));
            (id, ending)
        };
        due.into_iter().map(end).collect()
    }

    /// Holds the `news` back, or counts them and lets them go. Gives the id of a hold that others
    /// joined.
    fn take_in(
        &mut self,
        news: &Losses,
        published: u32,
        sight: &Sight<'_>,
        fresh: Option<Listing>,
        (now, wall): (Instant, Timestamp),
        gone: &mut Gone,
    ) -> Option<String> {
        self.window.begin(published, now, self.settings.window);
        let joined = self
            .judge(news, published, sight)
            .and_then(|(held, why)| self.holds.begin(&held, &why, fresh, now, wall));
        for (loss, weight) in news.weights() {
            if !self.holds.covers(loss) {
                self.window.passed(loss, weight, now);
                gone.insert(loss.clone(), Removal::Unexplained);
            }
        }
        joined
    }

    /// Which of the `news` are held, and why.
    fn judge(&self, news: &Losses, published: u32, sight: &Sight<'_>) -> Option<(Losses, String)> {
        if news.is_empty() {
            return None;
        }
        let blank = sight.blank.or(sight.wanted.is_empty().then_some("the source lists nothing"));
        if let Some(blank) = blank {
            let why = format!("{blank}: nothing explains that all is gone");
            return Some((news.clone(), why));
        }
        if let Some(why) = self.above_limit(news, published) {
            return Some((news.clone(), why));
        }
        let held = news.taking_the_last(sight.wanted, |namespace| self.holds.speaks_of(namespace));
        let why = match held.services().len() {
            // Its service is held already.
            0 => "a namespace would go while what is in it is held".to_owned(),
            1 => "1 service would lose the last endpoint without explanation".to_owned(),
            more => format!("{more} services would lose the last endpoint without explanation"),
        };
        (!held.is_empty()).then_some((held, why))
    }

    fn above_limit(&self, news: &Losses, published: u32) -> Option<String> {
        let Settings { window, floor, percent, .. } = self.settings;
        let base = self.window.base(published);
        let limit = (u64::from(base) * u64::from(percent) / 100).max(u64::from(floor));
        let earlier = self.window.counted(news) + self.holds.counted(self.window.start());
        let count = earlier + news.weight();
        let why = || {
            let window = minutes(window);
            format!(
                "{count} endpoints went within {window} without explanation, more than {limit}, \
                 the larger of {floor} and {percent} % of {base}"
            )
        };
        (count > limit).then(why)
    }
}

/// What is wanted, and what is `kept` as it was published: a slice in its own order, one that stays
/// with what it lost behind what it has.
fn keep<'a>(
    published: &Records,
    wanted: &Records,
    kept: impl Iterator<Item = &'a Loss>,
) -> Records {
    let mut publish = wanted.clone();
    let mut slices: BTreeMap<&Key, BTreeSet<IpAddr>> = BTreeMap::new();
    for loss in kept {
        match (loss, published.get(loss.key())) {
            (Loss::Endpoint(key, address), _) => {
                slices.entry(key).or_default().insert(*address);
            }
            (Loss::Record(key), Some(was)) => {
                publish.insert(key.clone(), Arc::clone(was));
            }
            (Loss::Record(_), None) => {}
        }
    }
    for (key, kept) in slices {
        let Some(Body::Endpoints(was)) = published.get(key).map(|body| &**body) else {
            continue;
        };
        let entry = publish.entry(key.clone()).or_insert_with(|| {
            let ports = was.ports.clone();
            Arc::new(Body::Endpoints(Endpoints { ports, endpoints: Vec::new() }))
        });
        if let Body::Endpoints(slice) = Arc::make_mut(entry) {
            let back = was.endpoints.iter().filter(|e| kept.contains(&e.address));
            slice.endpoints.extend(back.cloned());
        }
    }
    publish
}

fn has(holds: &[Hold], hold: &Hold) -> bool {
    holds.iter().any(|other| other.id == hold.id)
}

/// What stood before and stands no more.
fn ended(
    before: Vec<Hold>,
    now: &[Hold],
    endings: &BTreeMap<String, Ending>,
) -> Vec<(Hold, Ending)> {
    let gone = before.into_iter().filter(|hold| !has(now, hold));
    gone.map(|hold| {
        let ending = endings.get(&hold.id).copied().unwrap_or(Ending::Resolved);
        (hold, ending)
    })
    .collect()
}

/// A record goes for the least sure of the reasons for which its parts go. One whose endpoints are
/// all in other slices by now is explained by that.
fn removals(published: &Records, publish: &Records, gone: &Gone) -> BTreeMap<Key, Removal> {
    let records = published.keys().filter(|key| !publish.contains_key(*key));
    let mut removals: BTreeMap<Key, Removal> =
        records.map(|key| (key.clone(), Removal::Explained)).collect();
    for (loss, removal) in gone {
        if let Some(told) = removals.get_mut(loss.key()) {
            *told = (*told).max(*removal);
        }
    }
    removals
}

fn minutes(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds.is_multiple_of(60) {
        format!("{} min", seconds / 60)
    } else {
        format!("{seconds} s")
    }
}
