//! Disks that are full, read-only or broken: what was saved stays, and is used again when they are
//! mended.

mod common;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{OURS, replica_of, says};
use jiff::Timestamp;
use tombolo_federation::cache::{Cache, SaveError, Saved, Snapshot};
use tombolo_testbed::skip;

fn save(cache: &mut Cache, records: usize, label: &str) -> Result<Saved, SaveError> {
    cache.save(&Snapshot::of(replica_of(records, label)), Timestamp::UNIX_EPOCH)
}

/// Both of an empty directory's images, the newer of which says `new`.
fn filled(dir: &Path) -> Cache {
    let (mut cache, _) = Cache::open(dir, OURS);
    save(&mut cache, 10, "old").expect("saves");
    save(&mut cache, 10, "new").expect("saves");
    cache
}

/// A start finds generation 2 whole, and nothing wrong.
fn assert_untouched(dir: &Path) {
    let (mut cache, loaded) = Cache::open(dir, OURS);
    // On a disk that is read-only it cannot be noted, nor needs to be: no start was.
    let _ = cache.proven();
    assert_eq!(loaded.problems.iter().filter(|found| found.generation.is_some()).count(), 0);
    let image = loaded.image.expect("an image");
    assert_eq!((image.generation, image.len()), (2, 10));
    assert_eq!(says(image), "new");
}

/// The error of a save and what is behind it.
fn reason(outcome: Result<Saved, SaveError>) -> String {
    let error = outcome.expect_err("the disk is broken");
    let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    format!("{error}: {cause}")
}

/// What is written aside goes to `device` instead, and the disk's own word comes back.
fn a_device_that_fails(device: &str, word: &str) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut cache = filled(dir.path());
    symlink(device, dir.path().join("image-a.new")).expect("a link");
    let why = reason(save(&mut cache, 2000, "newest"));
    assert!(why.contains(word) && why.contains("image-a.new"), "{why}");
    assert_untouched(dir.path());
    // The device is gone, and the next save is as if nothing had been.
    assert_eq!(save(&mut cache, 10, "newest").expect("saves").generation, 3);
    assert_eq!(says(Cache::open(dir.path(), OURS).1.image.expect("an image")), "newest");
}

#[test]
fn no_space_leaves_the_last_images() {
    a_device_that_fails("/dev/full", "No space left on device");
}

#[test]
fn an_input_output_error_leaves_the_last_images() {
    // Nothing is mapped at its beginning, and the kernel says EIO.
    a_device_that_fails("/proc/self/mem", "Input/output error");
}

/// A file system of its own, unmounted in the end.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(at: &Path, options: &str) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tombolo"]).arg(at);
        let done = run(&mut mount);
        done.then(|| Self(at.to_owned()))
    }

    fn remount(&self, options: &str) {
        assert!(run(Command::new("mount")
            .args(["-o", &format!("remount,{options}")])
            .arg(&self.0)));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run(Command::new("umount").arg(&self.0));
    }
}

fn run(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

#[test]
fn a_full_disk_keeps_the_last_images_and_is_used_again_when_there_is_room() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some(disk) = Mounted::tmpfs(dir.path(), "size=256k") else {
        return skip("cache_faults::a_full_disk", "a file system cannot be mounted here");
    };
    let cache_dir = disk.0.join("cache");
    let mut cache = filled(&cache_dir);
    for _ in 0..3 {
        let why = reason(save(&mut cache, 5000, "newest"));
        assert!(why.contains("No space left on device"), "{why}");
        assert_untouched(&cache_dir);
    }
    let left = std::fs::read_dir(&cache_dir).expect("is there");
    let left = left.filter(|entry| {
        let name = entry.as_ref().expect("an entry").file_name();
        name.to_string_lossy().ends_with(".new")
    });
    assert_eq!(left.count(), 0, "what was written of it takes no space");
    // Another program fills what is left, so that not even a count of starts can be written.
    let _ = std::fs::write(disk.0.join("other"), vec![0; 1 << 20]);
    assert_untouched(&cache_dir);
    disk.remount("size=8m");
    assert_eq!(save(&mut cache, 5000, "newest").expect("saves").generation, 3);
    let image = Cache::open(&cache_dir, OURS).1.image.expect("an image");
    assert_eq!((image.generation, image.len()), (3, 5000));
}

#[test]
fn a_disk_that_turns_read_only_is_started_from_and_says_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some(disk) = Mounted::tmpfs(dir.path(), "size=1m") else {
        return skip("cache_faults::a_read_only_disk", "a file system cannot be mounted here");
    };
    let cache_dir = disk.0.join("cache");
    let mut cache = filled(&cache_dir);
    disk.remount("ro");
    let why = reason(save(&mut cache, 10, "newest"));
    assert!(why.contains("Read-only file system"), "{why}");
    assert_untouched(&cache_dir);
    let (_, loaded) = Cache::open(&cache_dir, OURS);
    let said = loaded.problems.iter().map(ToString::to_string).collect::<String>();
    assert!(said.contains("starts cannot be counted: Read-only file system"), "{said}");
    disk.remount("rw");
    assert_eq!(save(&mut cache, 10, "newest").expect("saves").generation, 3);
}
