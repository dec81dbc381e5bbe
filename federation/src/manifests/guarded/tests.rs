//! A real directory, its reader, the translation and the guard, at a time of the test's own. Shown
//! are the published endpoints by service; a number stands for an address, `-` after it for one that
//! is not ready but was, `?` for one that never was, `~` for one that terminates.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use super::super::Options;
use super::super::reader::{REST, Reader, Touched};
use super::super::translate::translate;
use super::*;
use crate::guard::Settings;
use crate::record::{Epoch, Removal};

struct Bench {
    directory: TempDir,
    reader: Reader,
    guarded: Guarded,
    now: Instant,
    approved: BTreeSet<String>,
}

fn options() -> Options {
    Options::new("r".parse().unwrap(), "r-a".parse().unwrap())
}

fn guard(count: u64) -> Guard {
    Guard::new(Settings::default(), Epoch { id: "e".into(), count })
}

/// A Service and its export.
fn export(name: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop}}, spec: \
         {{ports: [{{port: 80}}]}}}}\n---\n{{apiVersion: multicluster.x-k8s.io/v1beta1, kind: \
         ServiceExport, metadata: {{name: {name}, namespace: shop}}}}\n---\n"
    )
}

fn slice(service: &str, slice: &str, endpoints: &str) -> String {
    let endpoint = |word: &str| {
        let number = word.trim_end_matches(['-', '~']);
        let (ready, terminating) = (!word.contains(['-', '~']), word.contains('~'));
        format!(
            "{{addresses: [10.0.0.{number}], conditions: {{ready: {ready}, serving: {ready}, \
             terminating: {terminating}}}}}"
        )
    };
    let words = endpoints.split(',').filter(|word| !word.is_empty());
    let endpoints: Vec<_> = words.map(endpoint).collect();
    format!(
        "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: {slice}, \
         namespace: shop, labels: {{kubernetes.io/service-name: {service}}}}}, addressType: IPv4, \
         ports: [{{port: 8080}}], endpoints: [{}]}}\n---\n",
        endpoints.join(", ")
    )
}

fn service(name: &str, endpoints: &str) -> String {
    export(name) + &slice(name, &format!("{name}-x"), endpoints)
}

impl Bench {
    /// A directory with these services, each in a file of its own, published by this process.
    fn new(services: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // Far from the beginning of monotonic time, so that a window fits before it.
        let now = Instant::now() + Duration::from_hours(24);
        let path = directory.path().join("cluster");
        fs::create_dir(&path).unwrap();
        let reader = Reader::new(path, now);
        let guarded = Guarded::new(guard(1), Records::new(), None);
        let mut bench = Self { directory, reader, guarded, now, approved: BTreeSet::new() };
        for (name, endpoints) in services {
            bench.write(name, endpoints);
        }
        bench.look();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("cluster").join(name)
    }

    fn write(&self, name: &str, endpoints: &str) {
        fs::write(self.path(&format!("{name}.yaml")), service(name, endpoints)).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path(&format!("{name}.yaml"))).unwrap();
    }

    /// The directory goes away, and another is there instead.
    fn away(&self) {
        let path = self.path("");
        fs::rename(&path, self.directory.path().join("away")).unwrap();
        fs::create_dir(path).unwrap();
    }

    fn bring_back(&self, name: &str) {
        let name = format!("{name}.yaml");
        fs::rename(self.directory.path().join("away").join(&name), self.path(&name)).unwrap();
    }

    /// A new process, which knows what was published and nothing else.
    fn restart(&mut self, suspect: Option<Suspect>) {
        let restored = self.guarded.published.clone();
        self.guarded = Guarded::new(guard(2), restored, suspect);
        self.reader = Reader::new(self.path(""), self.now);
    }

    fn glance(&mut self) -> Verdict {
        self.reader.refresh(&Touched { all: true, ..Touched::default() }, self.now);
        let desired = translate(self.reader.view(), &options());
        self.guarded.decide(&desired, &self.approved, self.now, Timestamp::UNIX_EPOCH)
    }

    /// Looks until it is at rest.
    fn look(&mut self) -> Verdict {
        self.glance();
        self.later(REST);
        self.glance()
    }

    fn later(&mut self, time: Duration) -> &mut Self {
        self.now += time;
        self
    }

    fn published(&self) -> String {
        let mut services: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (key, body) in &self.guarded.published {
            let Some(service) = key.service() else { continue };
            let words = services.entry(service.name.to_string()).or_default();
            let Body::Endpoints(slice) = &**body else { continue };
            for e in &slice.endpoints {
                let number = e.address.to_string().rsplit('.').next().unwrap().to_owned();
                words.push(match (e.ready, e.terminating, e.was_ready) {
                    (true, _, _) => number,
                    (false, true, _) => format!("{number}~"),
                    (false, false, true) => format!("{number}-"),
                    (false, false, false) => format!("{number}?"),
                });
            }
        }
        let words = services.into_iter().map(|(name, mut words)| {
            words.sort();
            format!("{name}={}", words.join(","))
        });
        words.collect::<Vec<_>>().join(" ")
    }

    /// Looks; says what is published then, with so many holds.
    #[track_caller]
    fn shows(&mut self, expected: &str, holds: usize) -> Verdict {
        let verdict = self.look();
        assert_eq!(self.published(), expected, "{:?}", verdict.holds);
        assert_eq!(verdict.holds.len(), holds, "{:?}", verdict.holds);
        verdict
    }
}

const THREE: [(&str, &str); 3] = [("a", "1,2"), ("b", "3"), ("c", "4")];

#[test]
fn the_first_file_that_comes_back_explains_nothing_of_the_others() {
    for wait in [Duration::ZERO, Duration::from_mins(4)] {
        let mut bench = Bench::new(&THREE);
        bench.away();
        bench.shows("a=1,2 b=3 c=4", 1);
        bench.later(wait).bring_back("a");
        bench.shows("a=1,2 b=3 c=4", 1);
        bench.later(wait).bring_back("b");
        bench.shows("a=1,2 b=3 c=4", 1);
        // What came back counts again, and what did not does not for that.
        bench.remove("a");
        bench.shows("b=3 c=4", 1);
        bench.bring_back("c");
        bench.shows("b=3 c=4", 0);
        bench.remove("b");
        bench.shows("c=4", 0);
    }
}

#[test]
fn what_does_not_come_back_is_believed_by_two_listings_since() {
    let mut bench = Bench::new(&THREE);
    bench.away();
    bench.shows("a=1,2 b=3 c=4", 1);
    bench.later(Duration::from_secs(299)).bring_back("a");
    bench.shows("a=1,2 b=3 c=4", 1);
    // One is from before: the directory is being filled for a second only.
    bench.later(Duration::from_secs(2)).shows("a=1,2 b=3 c=4", 1);
    let verdict = bench.later(Duration::from_mins(5)).shows("a=1,2", 0);
    assert!(verdict.removals.values().all(|removal| *removal == Removal::Released));
}

#[test]
fn a_namespace_stays_with_what_is_held_in_it() {
    let mut bench = Bench::new(&THREE);
    bench.away();
    bench.look();
    bench.bring_back("a");
    bench.look();
    // With it goes all that was seen in the namespace; only it implied that there is one.
    bench.remove("a");
    fs::write(bench.path("other.yaml"), service("d", "9").replace("shop", "other")).unwrap();
    let verdict = bench.shows("b=3 c=4 d=9", 2);
    assert!(
        verdict
            .publish
            .keys()
            .any(|key| key.kind == Kind::Namespace && key.name.as_str() == "shop")
    );
}

#[test]
fn what_only_an_earlier_process_saw_is_not_explained_by_what_is_there() {
    let mut bench = Bench::new(&THREE);
    bench.restart(None);
    bench.remove("b");
    bench.shows("a=1,2 b=3 c=4", 1);
    // What this one saw is.
    bench.remove("c");
    bench.shows("a=1,2 b=3", 1);
    // A document that is there says itself what is not in it any more.
    bench.restart(None);
    bench.write("a", "1");
    bench.shows("a=1 b=3", 1);
}

#[cfg(unix)]
#[test]
fn what_a_later_process_cannot_read_keeps_what_may_be_there() {
    use std::os::unix::fs::symlink;
    for target in ["nowhere", "below"] {
        let mut bench = Bench::new(&[("a", "1,2")]);
        fs::create_dir(bench.path("below")).unwrap();
        fs::write(bench.path("below/b.yaml"), service("b", "3")).unwrap();
        bench.shows("a=1,2 b=3", 0);
        // All that is left is what cannot be read.
        bench.restart(None);
        fs::remove_dir_all(bench.path("below")).unwrap();
        symlink(target, bench.path("below")).unwrap();
        bench.remove("a");
        bench.shows("a=1,2 b=3", 1);
        bench.later(Duration::from_mins(10)).shows("a=1,2 b=3", 1);
        // Beside something that can.
        bench.write("a", "1,2");
        bench.shows("a=1,2 b=3", 0);
        bench.later(Duration::from_mins(10)).shows("a=1,2 b=3", 0);
    }
}

#[test]
fn in_the_middle_of_an_edit_nothing_goes_and_what_is_new_is_there() {
    let mut bench = Bench::new(&THREE);
    bench.remove("b");
    bench.write("a", "2");
    bench.write("d", "5");
    assert_eq!(bench.glance().holds, []);
    assert_eq!(bench.published(), "a=1,2 b=3 c=4 d=5");
    bench.later(REST / 2).glance();
    bench.write("b", "6");
    bench.later(REST / 2).glance();
    assert_eq!(bench.published(), "a=1,2 b=3,6 c=4 d=5");
    bench.shows("a=2 b=6 c=4 d=5", 0);
}

/// Whoever fills it again may stall for longer than a directory takes to be at rest.
#[test]
fn what_a_directory_lacks_that_was_replaced_may_be_still_to_come() {
    for seen in [true, false] {
        let mut bench = Bench::new(&THREE);
        bench.away();
        if seen {
            assert_eq!(bench.glance().holds, [], "empty for a moment");
        }
        bench.bring_back("a");
        bench.shows("a=1,2 b=3 c=4", 1);
        bench.bring_back("b");
        bench.bring_back("c");
        bench.shows("a=1,2 b=3 c=4", 0);
        bench.remove("c");
        bench.shows("a=1,2 b=3", 0);
    }
}

#[test]
fn an_endpoint_that_was_ready_stays_known_as_such_while_it_is_there() {
    let mut bench = Bench::new(&[("a", "1-"), ("b", "9")]);
    assert_eq!(bench.published(), "a=1? b=9");
    bench.write("a", "1");
    bench.shows("a=1 b=9", 0);
    bench.write("a", "1-");
    bench.shows("a=1- b=9", 0);
    bench.restart(None);
    bench.shows("a=1- b=9", 0);
    // Also while it is not seen.
    bench.restart(None);
    bench.away();
    bench.shows("a=1- b=9", 1);
    bench.bring_back("b");
    bench.shows("a=1- b=9", 1);
    bench.bring_back("a");
    bench.shows("a=1- b=9", 0);
    // What left is forgotten.
    bench.write("a", "");
    bench.shows("a= b=9", 0);
    bench.write("a", "1-");
    bench.shows("a=1? b=9", 0);
}

#[test]
fn a_later_process_goes_on_with_the_suspicion_and_knows_what_was_ready() {
    let mut bench = Bench::new(&[("a", "1,2,3,4")]);
    bench.write("a", "1-,2-,3-,4-");
    let suspect = bench.look().suspect.expect("all fell at once");
    bench.restart(Some(suspect.clone()));
    bench.later(Duration::from_hours(1));
    assert_eq!(bench.look().suspect, Some(suspect.clone()));
    // Its id is the one that an operator saw.
    bench.approved.insert(suspect.id);
    assert_eq!(bench.look().suspect, None);

    // What falls while nobody looks.
    let mut bench = Bench::new(&[("a", "1,2,3,4")]);
    bench.restart(None);
    bench.write("a", "1-,2-,3-,4-");
    assert!(bench.look().suspect.is_some());
    assert_eq!(bench.published(), "a=1-,2-,3-,4-");
}

#[test]
fn scaling_to_zero_a_drain_and_a_rollout_are_no_mass_removal() {
    let pods = |range: std::ops::Range<u32>, mark: &str| {
        range.map(|n| format!("{n}{mark}")).collect::<Vec<_>>().join(",")
    };
    let shown = |name: &str, words: &str| {
        let mut words: Vec<_> = words.split(',').collect();
        words.sort_unstable();
        format!("{name}={}", words.join(","))
    };
    let mut bench = Bench::new(&[("a", &pods(1..101, "")), ("b", "101")]);

    // A rollout: new ones come, old ones terminate and go, in slices of other names in the end.
    bench.write("a", &format!("{},{}", pods(1..101, "~"), pods(110..210, "")));
    let both = shown("a", &format!("{},{}", pods(1..101, "~"), pods(110..210, "")));
    let verdict = bench.shows(&format!("{both} b=101"), 0);
    assert!(verdict.suspect.is_none(), "those that terminate do not count");
    bench.write("a", &pods(110..210, ""));
    bench.shows(&format!("{} b=101", shown("a", &pods(110..210, ""))), 0);
    let renamed = export("a")
        + &slice("a", "a-y", &pods(110..160, ""))
        + &slice("a", "a-z", &pods(160..210, ""));
    fs::write(bench.path("a.yaml"), renamed).unwrap();
    let verdict = bench.shows(&format!("{} b=101", shown("a", &pods(110..210, ""))), 0);
    assert!(verdict.removals.values().all(|removal| *removal == Removal::Explained));

    // A drain of the node that all but one stand on.
    bench.write("a", &format!("{},{}", pods(110..209, "~"), "209"));
    bench.look();
    bench.write("a", "209");
    bench.shows("a=209 b=101", 0);

    // Scaled to zero, to one, and removed.
    bench.write("a", "");
    bench.shows("a= b=101", 0);
    bench.write("a", "1");
    bench.shows("a=1 b=101", 0);
    bench.remove("a");
    let verdict = bench.shows("b=101", 0);
    assert!(verdict.removals.values().all(|removal| *removal == Removal::Explained));
}
