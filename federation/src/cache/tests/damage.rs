//! Files that are not what was written.

use super::*;

/// Where the newest of [`two_generations`] is.
const NEWEST: &str = "image-b";
const OLDER: &str = "image-a";

fn edit(dir: &Path, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(dir.join(name)).unwrap();
    change(&mut bytes);
    fs::write(dir.join(name), bytes).unwrap();
}

#[test]
fn damage_falls_back_to_the_other_image_and_says_what_is_wrong() {
    type Change = fn(&mut Vec<u8>);
    let cases: [(Change, &str); 6] = [
        (|b| *b = vec![], "is not as long as it was written (0 bytes"),
        (|b| b.truncate(b.len() - 1), "is not as long as it was written"),
        (|b| b.push(0), "is not as long as it was written"),
        (|b| b[0] ^= 1, "is not an image of the disk cache"),
        (|b| b[60] ^= 1, "its checksum does not match"),
        (|b| *b.last_mut().unwrap() ^= 0x80, "its checksum does not match"),
    ];
    for (change, why) in cases {
        for (damaged, left) in [(NEWEST, says(1, "old")), (OLDER, says(2, "new"))] {
            let dir = tempfile::tempdir().unwrap();
            two_generations(dir.path());
            edit(dir.path(), damaged, change);
            let (image, problems) = start(dir.path());
            assert_eq!(image, left, "{why}");
            assert_eq!(problems.len(), 1);
            assert!(problems[0].contains(why) && problems[0].contains(damaged), "{problems:?}");
        }
    }
}

#[test]
fn with_both_damaged_there_is_none_and_the_next_save_starts_anew() {
    let dir = tempfile::tempdir().unwrap();
    two_generations(dir.path());
    edit(dir.path(), NEWEST, |bytes| bytes[70] ^= 4);
    edit(dir.path(), OLDER, |bytes| bytes.truncate(80));
    let (mut cache, loaded) = Cache::open(dir.path(), OURS);
    assert!(loaded.image.is_none());
    assert_eq!(loaded.problems.len(), 2);
    save(&mut cache, "a", 1);
    save(&mut cache, "b", 2);
    assert_eq!(start(dir.path()), (says(2, "b"), vec![]));
}

#[test]
fn a_newer_layout_is_refused_by_its_number_and_set_aside_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    two_generations(dir.path());
    edit(dir.path(), OLDER, |bytes| bytes[8] = 9);
    let theirs = fs::read(dir.path().join(OLDER)).unwrap();
    let (mut cache, loaded) = Cache::open(dir.path(), OURS);
    assert_eq!(loaded.problems[0].problem, Problem::Newer { version: 9 });
    save(&mut cache, "newest", 300);
    assert_eq!(fs::read(dir.path().join("image-a.not-ours")).unwrap(), theirs);
    assert_eq!(start(dir.path()), (says(3, "newest"), vec![]));
}

#[test]
fn an_image_of_another_process_is_refused_and_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    two_generations(dir.path());
    let other = "agent of m/r/r-b";
    let (mut cache, loaded) = Cache::open(dir.path(), other);
    assert!(loaded.image.is_none());
    let said = loaded.problems[0].to_string();
    assert!(said.contains("belongs to agent of m/r/r-a, this is agent of m/r/r-b"), "{said}");
    save(&mut cache, "theirs", 1);
    assert!(dir.path().join("image-a.not-ours").exists());
    assert!(Cache::open(dir.path(), other).1.image.is_some());
    assert_eq!(start(dir.path()).0, says(2, "new"), "the first owner's newest is still there");
}

#[test]
fn what_is_no_file_or_too_large_is_refused_without_reading_it() {
    let dir = tempfile::tempdir().unwrap();
    two_generations(dir.path());
    fs::remove_file(dir.path().join(NEWEST)).unwrap();
    fs::create_dir(dir.path().join(NEWEST)).unwrap();
    let (image, problems) = start(dir.path());
    assert_eq!(image, says(1, "old"));
    assert!(problems[0].contains("is not an image"), "{problems:?}");
    let (mut cache, loaded) = Cache::open_limited(dir.path(), OURS, 100);
    assert!(loaded.image.is_none());
    assert!(matches!(loaded.problems[0].problem, Problem::TooLarge { max: 100, .. }));
    let error = cache.save(&Snapshot::of(replica("a")), at(1)).unwrap_err();
    assert!(matches!(error, SaveError::TooLarge { max: 100, .. }), "{error}");
    assert!(!dir.path().join("image-a.new").exists(), "what was written of it is gone");
    assert_eq!(start(dir.path()).0, says(1, "old"));
}

/// A file that is whole by its checksum, with any content.
fn sealed(content: &[u8]) -> Vec<u8> {
    use sha2::Digest as _;
    let mut bytes = content.to_vec();
    bytes.extend((content.len() as u64).to_le_bytes());
    let sum = sha2::Sha256::digest(&bytes);
    bytes.extend(sum);
    bytes
}

#[test]
fn a_claimed_length_takes_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    two_generations(dir.path());
    let newest = fs::read(dir.path().join(NEWEST)).unwrap();
    for claimed in [u32::MAX, 16 << 20] {
        let mut content = newest[..newest.len() - 40].to_vec();
        content.extend(claimed.to_le_bytes());
        fs::write(dir.path().join(NEWEST), sealed(&content)).unwrap();
        let (image, problems) = start(dir.path());
        assert_eq!(image, says(1, "old"), "all of it or nothing of it");
        assert!(problems[0].contains("does not make sense: a part"), "{problems:?}");
    }
}

#[test]
fn a_record_among_those_of_another_owner_spoils_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let (mut cache, _) = Cache::open(dir.path(), OURS);
    save(&mut cache, "a", 1);
    edit(dir.path(), OLDER, |bytes| {
        let (from, to) = (b"/r-a/namespace/_/other", b"/r-b/namespace/_/other");
        let found = bytes.windows(from.len()).position(|window| window == from).unwrap();
        bytes[found..found + to.len()].copy_from_slice(to);
        *bytes = sealed(&bytes[..bytes.len() - 40]);
    });
    let (image, problems) = start(dir.path());
    assert_eq!(image, None);
    assert!(problems[0].contains("among the records of r/r-a"), "{problems:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_truncation_falls_back(cut in 0.0..1.0f64) {
        let dir = tempfile::tempdir().unwrap();
        two_generations(dir.path());
        edit(dir.path(), NEWEST, |bytes| bytes.truncate(scaled(cut, bytes.len())));
        let (image, problems) = start(dir.path());
        prop_assert_eq!(image, says(1, "old"));
        prop_assert!(problems[0].contains("is not as long as it was written"), "{:?}", problems);
    }

    #[test]
    fn any_flipped_bit_falls_back(place in 0.0..1.0f64, bit in 0..8u32) {
        let dir = tempfile::tempdir().unwrap();
        two_generations(dir.path());
        edit(dir.path(), NEWEST, |bytes| {
            let place = scaled(place, bytes.len());
            bytes[place] ^= 1 << bit;
        });
        let (image, problems) = start(dir.path());
        prop_assert_eq!(image, says(1, "old"));
        prop_assert_eq!(problems.len(), 1);
    }

    #[test]
    fn rubbish_in_both_leaves_none(
        rubbish in proptest::collection::vec(any::<u8>(), 0..600),
        keep in 0..200usize,
    ) {
        let dir = tempfile::tempdir().unwrap();
        two_generations(dir.path());
        for name in [NEWEST, OLDER] {
            edit(dir.path(), name, |bytes| {
                // Equal bytes would be no rubbish.
                bytes.truncate(keep);
                bytes.extend(&rubbish);
            });
        }
        let (image, problems) = start(dir.path());
        prop_assert_eq!(image, None);
        prop_assert_eq!(problems.len(), 2);
    }

    /// Bytes whose checksum is right: another version's, or somebody's who means harm.
    #[test]
    fn sealed_rubbish_never_panics_and_is_never_used_in_part(
        rubbish in proptest::collection::vec(any::<u8>(), 1..600),
        keep in 0.0..1.0f64,
    ) {
        let dir = tempfile::tempdir().unwrap();
        two_generations(dir.path());
        edit(dir.path(), NEWEST, |bytes| {
            bytes.truncate(scaled(keep, bytes.len() - 40));
            bytes.extend(&rubbish);
            *bytes = sealed(bytes);
        });
        let (_cache, loaded) = Cache::open(dir.path(), OURS);
        let image = loaded.image.expect("the older one at least");
        prop_assert!(image.generation == 1 || loaded.problems.is_empty());
        restored(image, None);
    }
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a place in a small file"
)]
fn scaled(share: f64, length: usize) -> usize {
    (share * length as f64) as usize
}
