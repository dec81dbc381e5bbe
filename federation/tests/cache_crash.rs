//! A process that is killed in the midst of saving leaves a good image, and never an older one than
//! it had reported.
//!
//! The test starts itself as a child, which saves in a loop and prints every generation that is on
//! disk, kills it at a random moment, many times on one directory, and then starts from it.

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{OURS, replica_of, says};
use jiff::Timestamp;
use tombolo_federation::cache::{Cache, Snapshot};

const NAME: &str = "a_kill_in_the_midst_of_saving_leaves_the_last_reported_image_or_a_newer_one";
/// How the child is told its directory; to the test harness it is one more filter.
const CHILD: &str = "child-of-cache-crash=";
const KILLS: u64 = 40;
/// Ten times what a start and the first saves may take.
const DEADLINE: Duration = Duration::from_mins(1);
/// Enough that a kill hits the writing as well as the syncing and renaming.
const RECORDS: usize = 300;

#[test]
fn a_kill_in_the_midst_of_saving_leaves_the_last_reported_image_or_a_newer_one() {
    if let Some(path) = std::env::args().find_map(|arg| Some(arg.strip_prefix(CHILD)?.to_owned())) {
        return save_until_killed(Path::new(&path));
    }
    let directory = tempfile::tempdir().expect("a directory");
    let mut torn = 0;
    for seed in 0..KILLS {
        let reported = killed_child(directory.path(), seed);
        torn += usize::from(has_aside(directory.path()));
        let (mut cache, loaded) = Cache::open(directory.path(), OURS);
        cache.proven().expect("the disk works");
        assert_eq!(loaded.problems, [], "run {seed}");
        let image = loaded.image.expect("an image");
        assert!(image.generation >= reported, "run {seed}: {} < {reported}", image.generation);
        assert_eq!(image.len(), RECORDS, "run {seed}: the whole of it");
        assert_eq!(says(image.clone()), image.generation.to_string(), "run {seed}: of one moment");
    }
    assert!(torn > 0, "no kill hit a save: the test proves nothing");
}

/// Whether a save was cut off.
fn has_aside(dir: &Path) -> bool {
    ["image-a.new", "image-b.new"].iter().any(|name| dir.join(name).exists())
}

/// Starts a child, lets it save for a while, kills it. The last generation that it reported.
fn killed_child(dir: &Path, seed: u64) -> u64 {
    let mut child = Command::new(std::env::current_exe().expect("is running"))
        .args(["--exact", NAME, "--nocapture", &format!("{CHILD}{}", dir.display())])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let lines = BufReader::new(child.stderr.take().expect("is piped")).lines();
    let until = 1 + seed % 4;
    let delay = Duration::from_micros(seed * 397 % 9000);
    let started = Instant::now();
    let (mut reports, mut newest) = (0, 0);
    for line in lines {
        let line = line.expect("text");
        assert!(started.elapsed() < DEADLINE, "the child is too slow");
        match line.strip_prefix("saved ").and_then(|generation| generation.parse().ok()) {
            Some(generation) => {
                reports += 1;
                newest = generation;
            }
            None => assert!(!line.contains("panicked"), "the child failed: {line}"),
        }
        if reports == until {
            kill_after(&mut child, delay);
        }
    }
    assert!(reports >= until, "run {seed}: the child ended early");
    child.wait().expect("ends");
    newest
}

/// The child goes on saving meanwhile, so that the kill hits anywhere in a save.
fn kill_after(child: &mut Child, delay: Duration) {
    let since = Instant::now();
    while since.elapsed() < delay {
        std::thread::yield_now();
    }
    child.kill().expect("is running");
}

fn save_until_killed(dir: &Path) {
    let (mut cache, _) = Cache::open(dir, OURS);
    loop {
        let next = cache.generation() + 1;
        let held = replica_of(RECORDS, &next.to_string());
        let saved = cache.save(&Snapshot::of(held), Timestamp::UNIX_EPOCH).expect("saves");
        // Standard error is not buffered.
        eprintln!("saved {}", saved.generation);
    }
}
