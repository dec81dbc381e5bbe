//! Watching for false deletes: every serving process is asked several times a second.
//!
//! A false delete is a record that a process served and then does not, while its owner has not
//! removed it; a resurrection is one that is served after every process had let it go. A process
//! that does not answer, or says that it does not know all yet (DNS then says SERVFAIL), has
//! deleted nothing; one that starts again goes on from its disk, which may lack the last seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::Value;
use tombolo_testbed::http;

use super::Regions;

/// Several times a second, and little beside what the processes do anyway.
const EVERY: Duration = Duration::from_millis(200);
/// What was served for so long is on disk: an image is written a second after a change, and 5 s
/// after the last one.
const SAVED: Duration = Duration::from_secs(7);
/// One that itself began from an image keeps that for a minute first.
const SAVED_AGAIN: Duration = Duration::from_secs(70);
/// Enough to see what is wrong.
const MOST_FAULTS: usize = 20;

/// Asks until it is ended.
pub(crate) struct Sampler {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Processes that ran when watching began.
    expected: Vec<String>,
    /// By process, since when.
    served: BTreeMap<String, BTreeMap<String, Instant>>,
    /// What names records that their owners have removed.
    may_go: Vec<String>,
    /// What names records that every process has let go.
    gone: Vec<String>,
    faults: Vec<String>,
    /// Processes that have ended, and whether they answer again.
    ended: BTreeMap<String, bool>,
    /// By process, of complete answers.
    samples: BTreeMap<String, usize>,
}

impl Regions {
    /// Begins to watch all processes, those that are started later included. Each of those that run
    /// now has to answer at least once.
    pub(crate) fn sample(&self) -> anyhow::Result<Sampler> {
        let seen = Seen { expected: self.running(), ..Seen::default() };
        let seen = Arc::new(Mutex::new(seen));
        let mut sampler = Sampler { stop: Arc::default(), seen, threads: Vec::new() };
        for name in Self::names() {
            let namespace = self.inside_thread(&name)?;
            let admin = self.listens(&name).admin;
            let (stop, seen) = (Arc::clone(&sampler.stop), Arc::clone(&sampler.seen));
            sampler.threads.push(std::thread::spawn(move || {
                let work = || watch(&name, admin, &stop, &seen);
                match namespace {
                    // Gone only after the sampler, whose owner ends it first.
                    Some(namespace) => namespace.inside(work).expect("the namespace is there"),
                    None => work(),
                }
            }));
        }
        Ok(sampler)
    }

    fn inside_thread(
        &self,
        name: &str,
    ) -> anyhow::Result<Option<tombolo_testbed::netns::Namespace>> {
        Ok(self.namespace(super::region_of(name))?.cloned())
    }
}

impl Sampler {
    /// From now on records that `part` names may go: `shop/cart`, an address, or what begins
    /// records, `shop/cart us-west1-alpha`.
    pub(crate) fn may_go(&self, part: &str) {
        lock(&self.seen).may_go.push(part.to_owned());
    }

    /// From now on they must not come back: all have let them go.
    pub(crate) fn is_gone(&self, part: &str) {
        lock(&self.seen).gone.push(part.to_owned());
    }

    /// Ends, and fails if anything was deleted falsely or came back. Says how many samples were
    /// taken.
    pub(crate) fn end(mut self) -> anyhow::Result<usize> {
        self.join();
        lock(&self.seen).verdict()
    }

    fn join(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                lock(&self.seen).faults.push("a sampler panicked".to_owned());
            }
        }
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.join();
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn watch(name: &str, admin: SocketAddr, stop: &AtomicBool, seen: &Mutex<Seen>) {
    while !stop.load(Ordering::Relaxed) {
        let next = Instant::now() + EVERY;
        let answer = http::get(admin, "/api/v1/services").and_then(|answer| answer.json());
        match answer {
            Ok(services) => lock(seen).sampled(name, &services),
            Err(error) if is_refused(&error) => lock(seen).ended(name),
            Err(_) => {}
        }
        std::thread::park_timeout(next.saturating_duration_since(Instant::now()));
    }
}

/// Nobody listens: the process has ended. One that is paused only says nothing.
fn is_refused(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    causes.any(|cause| cause.kind() == std::io::ErrorKind::ConnectionRefused)
}

impl Seen {
    fn verdict(&self) -> anyhow::Result<usize> {
        let Self { faults, expected, samples, .. } = self;
        ensure!(faults.is_empty(), "{} faults: {faults:#?}", faults.len());
        let silent: Vec<_> = expected.iter().filter(|name| !samples.contains_key(*name)).collect();
        ensure!(silent.is_empty() && !expected.is_empty(), "no samples of {silent:?}");
        Ok(samples.values().sum())
    }

    fn ended(&mut self, name: &str) {
        let saved = match self.ended.get(name) {
            None => SAVED,
            Some(true) => SAVED_AGAIN,
            // Still the same end.
            Some(false) => return,
        };
        if let Some(served) = self.served.get_mut(name) {
            served.retain(|_, since| since.elapsed() > saved);
            self.ended.insert(name.to_owned(), false);
        }
    }

    fn sampled(&mut self, name: &str, answer: &Value) {
        if let Some(answers) = self.ended.get_mut(name) {
            *answers = true;
        }
        if answer["catalog"]["complete"] != true {
            return;
        }
        *self.samples.entry(name.to_owned()).or_default() += 1;
        let now = records(answer);
        let served = self.served.entry(name.to_owned()).or_default();
        let lost = served.keys().filter(|record| !now.contains(*record));
        let lost = lost.filter(|record| !is_one(&self.may_go, record));
        let back = now.iter().filter(|record| is_one(&self.gone, record));
        let generation = &answer["catalog"]["generation"];
        let lost = lost.map(|record| format!("{name} lost {record} in generation {generation}"));
        let back = back.map(|record| format!("{name} serves {record} again in {generation}"));
        let room = MOST_FAULTS.saturating_sub(self.faults.len());
        let faults: Vec<_> = lost.chain(back).take(room).collect();
        self.faults.extend(faults);
        served.retain(|record, _| now.contains(record));
        for record in now {
            served.entry(record).or_insert_with(Instant::now);
        }
    }
}

fn is_one(parts: &[String], record: &str) -> bool {
    parts.iter().any(|part| {
        record.split(' ').any(|word| word == part)
            || record
                .strip_prefix(part.as_str())
                .is_some_and(|rest| rest.starts_with([' ']) || rest.is_empty())
    })
}

/// `shop/cart us-west1-alpha` and one `shop/cart us-west1-alpha 127.1.1.21` per endpoint.
fn records(answer: &Value) -> BTreeSet<String> {
    let mut records = BTreeSet::new();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for service in list(&answer["services"]) {
        let key = format!("{}/{}", text(&service["namespace"]), text(&service["name"]));
        for cluster in list(&service["clusters"]) {
            let export = format!("{key} {}", text(&cluster["cluster"]));
            for endpoint in list(&cluster["endpoints"]) {
                let ready = if endpoint["ready"] == true { "" } else { " (not ready)" };
                records.insert(format!("{export} {}{ready}", text(&endpoint["address"])));
            }
            records.insert(export);
        }
    }
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_was_never_sampled_is_a_failure() {
        let expected = vec!["us-west1-0".to_owned(), "us-west1-1".to_owned()];
        let mut seen = Seen { expected, ..Seen::default() };
        let complete = serde_json::json!({"catalog": {"complete": true}});
        let partial = serde_json::json!({"catalog": {"complete": false}});
        seen.sampled("us-west1-0", &complete);
        seen.sampled("us-west1-1", &partial);
        let silent = seen.verdict().unwrap_err().to_string();
        assert!(silent.contains("us-west1-1") && !silent.contains("us-west1-0"), "{silent}");
        seen.sampled("us-west1-1", &complete);
        assert_eq!(seen.verdict().unwrap(), 2);
        assert!(Seen::default().verdict().is_err(), "nobody was watched");
    }
}
