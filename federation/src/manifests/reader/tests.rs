use std::fs;

use tempfile::TempDir;

use super::*;

/// A directory, and what is read of it after each edit.
struct Bench {
    directory: TempDir,
    reader: Reader,
}

fn service(name: &str, port: u32) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: \
         {port}}}]}}\n---\n"
    )
}

impl Bench {
    fn new(files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let reader = Reader::new(directory.path().to_owned(), Instant::now());
        let mut bench = Self { directory, reader };
        for (name, text) in files {
            bench.write(name, text);
        }
        bench.look();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&mut self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    fn look(&mut self) {
        self.reader.refresh(&Touched { all: true, ..Touched::default() }, Instant::now());
    }

    /// Looks again; `expected` are the names and ports of all Services, and a part of each
    /// problem in order.
    #[track_caller]
    fn check(&mut self, services: &str, problems: &[&str]) {
        self.look();
        let view = self.reader.view();
        let found = view.objects.values().filter_map(|found| match &found.object {
            super::super::object::Object::Service(service) => {
                let name = found.id.object_ref().name;
                Some(format!("{name}:{}", service.ports[0].port))
            }
            _ => None,
        });
        assert_eq!(found.collect::<Vec<_>>().join(" "), services);
        let found: Vec<_> = view.problems.iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), problems.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(problems) {
            assert!(found.contains(expected), "{found}");
        }
    }
}

#[test]
fn a_broken_object_keeps_its_last_good_state_until_it_is_mended() {
    let mut bench = Bench::new(&[("a.yaml", &(service("a", 1) + &service("b", 2)))]);
    bench.check("a:1 b:2", &[]);
    bench.write("a.yaml", &(service("a", 3) + &service("b", 99_999)));
    let kept = "Service default/b: spec.ports[0].port: has 99999, expected 1 to 65535 (the last \
                good state stays in use)";
    bench.check("a:3 b:2", &[kept]);
    assert!(!bench.reader.view().gaps);
    bench.write("a.yaml", &(service("a", 4) + &service("b", 99_999)));
    bench.check("a:4 b:2", &[kept]);
    bench.write("a.yaml", &(service("a", 4) + &service("b", 5)));
    bench.check("a:4 b:5", &[]);
}

#[test]
fn a_document_that_is_no_yaml_keeps_what_the_file_lacks_now() {
    let mut bench = Bench::new(&[("a.yaml", &(service("a", 1) + &service("b", 2)))]);
    for damage in [
        "kind: Service\nmetadata: {name: [\n",
        "apiVersion: v1\nkind: Service\nspec: [\n",
        "apiVersion: v1\n",
        "just text",
        "name: {{ x }}\n",
    ] {
        bench.write("a.yaml", &(service("a", 1) + damage));
        bench.look();
        let view = bench.reader.view();
        assert_eq!(view.objects.len(), 2, "{damage}");
        assert!(view.problems.len() == 1 && view.problems[0].kept, "{damage}: {view:?}");
    }
    // Where nothing is missing it is what it seems.
    bench.write("a.yaml", &(service("a", 1) + &service("b", 2) + "name: {{ x }}\n"));
    bench.check("a:1 b:2", &[]);
    // And then it does not stand in the way of a removal.
    bench.write("a.yaml", &(service("a", 1) + "name: {{ x }}\n"));
    bench.check("a:1", &[]);
}

#[test]
fn a_removed_document_or_file_is_a_removal() {
    let mut bench = Bench::new(&[
        ("a.yaml", &(service("a", 1) + &service("b", 2))),
        ("below/c.yml", &service("c", 3)),
    ]);
    bench.check("a:1 b:2 c:3", &[]);
    bench.write("a.yaml", &service("a", 1));
    bench.check("a:1 c:3", &[]);
    fs::remove_file(bench.path("a.yaml")).unwrap();
    bench.check("c:3", &[]);
    bench.write("d.yaml", &service("d", 4));
    fs::remove_dir_all(bench.path("below")).unwrap();
    bench.check("d:4", &[]);
}

#[test]
fn a_directory_that_is_gone_or_empty_removes_nothing() {
    let mut bench = Bench::new(&[("a.yaml", &service("a", 1))]);
    fs::remove_file(bench.path("a.yaml")).unwrap();
    bench.check("a:1", &["the directory: holds no manifest"]);
    fs::remove_dir(bench.directory.path()).unwrap();
    bench.check("a:1", &["the directory: cannot be read: No such file"]);
    bench.write("b.yaml", &service("b", 2));
    bench.check("b:2", &[]);
}

#[test]
fn a_listing_says_whether_it_vouches_for_what_is_gone() {
    let mut bench = Bench::new(&[("a.yaml", &service("a", 1)), ("b/b.yaml", &service("b", 2))]);
    let look = |bench: &mut Bench| {
        bench.look();
        (bench.reader.listing.id, bench.reader.listing.lost)
    };
    assert_eq!(look(&mut bench), (2, None));
    fs::remove_file(bench.path("a.yaml")).unwrap();
    assert_eq!(look(&mut bench), (3, None));
    fs::remove_file(bench.path("b/b.yaml")).unwrap();
    assert_eq!(look(&mut bench), (4, Some(Lost::Empty)));
    assert_eq!(look(&mut bench), (5, Some(Lost::Empty)), "each reading is a listing");
    let aside = bench.directory.path().with_extension("aside");
    fs::rename(bench.directory.path(), &aside).unwrap();
    assert_eq!(look(&mut bench), (5, Some(Lost::Missing)), "no listing");
    fs::write(bench.directory.path(), "").unwrap();
    assert_eq!(look(&mut bench), (5, Some(Lost::Unreadable)));
    bench.check("b:2", &["the directory: cannot be read"]);
    fs::remove_file(bench.directory.path()).unwrap();
    fs::rename(&aside, bench.directory.path()).unwrap();
    bench.write("c.yaml", &service("c", 3));
    assert_eq!(look(&mut bench), (6, None));
}

#[cfg(unix)]
#[test]
fn what_is_left_in_a_place_that_cannot_be_read_vouches_for_nothing() {
    use std::os::unix::fs::symlink;
    let mut bench = Bench::new(&[("a.yaml", &service("a", 1)), ("b/b.yaml", &service("b", 2))]);
    fs::remove_file(bench.path("a.yaml")).unwrap();
    fs::rename(bench.path("b"), bench.path(".b")).unwrap();
    symlink("b", bench.path("b")).unwrap();
    bench.look();
    assert_eq!(bench.reader.listing.lost, Some(Lost::Unreadable));
    assert_eq!(bench.reader.view().objects.len(), 2);
    // Nor does a link of which this process never knew where it led.
    fs::rename(bench.path("b"), bench.path("old")).unwrap();
    bench.check("a:1 b:2", &["old: is a link that leads nowhere"]);
    assert_eq!(bench.reader.listing.lost, Some(Lost::Unreadable));
    assert!(bench.reader.view().gaps);
}

#[cfg(unix)]
#[test]
fn what_a_later_process_cannot_read_is_a_gap_and_no_empty_listing() {
    use std::os::unix::fs::symlink;
    // No rights stop root, but a link in a circle.
    for target in ["nowhere", "below"] {
        let mut bench = Bench::new(&[]);
        symlink(target, bench.path("below")).unwrap();
        bench.look();
        let view = bench.reader.view();
        assert_eq!((view.listing.lost, view.gaps), (Some(Lost::Unreadable), true), "{target}");
        bench.write("a.yaml", &service("a", 1));
        bench.look();
        let view = bench.reader.view();
        assert_eq!((view.listing.lost, view.gaps), (None, true), "{target}");
        assert_eq!(view.problems.len(), 1, "{target}");
        fs::remove_file(bench.path("below")).unwrap();
        bench.check("a:1", &[]);
        assert!(!bench.reader.view().gaps);
    }
}

#[test]
fn a_directory_is_at_rest_when_two_looks_found_the_same() {
    let mut bench = Bench::new(&[("a.yaml", &service("a", 1))]);
    let mut now = Instant::now();
    let mut later = |bench: &mut Bench, time: Duration| {
        now += time;
        bench.reader.refresh(&Touched::default(), now);
        bench.reader.listing.settled
    };
    assert!(!later(&mut bench, Duration::ZERO));
    assert!(later(&mut bench, REST));
    assert!(later(&mut bench, Duration::ZERO), "it stays so");
    bench.write("a.yaml", &service("a", 22));
    assert!(!later(&mut bench, REST));
    bench.write("b.yaml", &service("b", 1));
    assert!(!later(&mut bench, REST));
    assert!(!later(&mut bench, REST / 2));
    assert!(later(&mut bench, REST / 2));
    // Something that writes all the time does not keep it from being judged for ever.
    let judged = (0..2000).filter(|port| {
        bench.write("a.yaml", &service("a", 1000 + port));
        bench.write("c.yaml", &"#".repeat(*port as usize));
        later(&mut bench, REST / 2)
    });
    let judged = judged.count();
    assert!((8..=10).contains(&judged), "{judged}");
}

#[test]
fn what_was_listed_before_the_directory_showed_nothing_is_told_apart() {
    let mut bench = Bench::new(&[("a.yaml", &service("a", 1))]);
    let mut now = Instant::now();
    let mut look = |bench: &mut Bench| {
        now += REST;
        bench.reader.refresh(&Touched::default(), now);
        let listing = bench.reader.listing;
        listing.since <= listing.id
    };
    assert!(look(&mut bench));
    let since = bench.reader.listing.since;
    let aside = bench.directory.path().with_extension("aside");
    fs::rename(bench.directory.path(), &aside).unwrap();
    assert!(!look(&mut bench), "if only for a moment");
    fs::rename(&aside, bench.directory.path()).unwrap();
    assert!(look(&mut bench));
    assert!(bench.reader.listing.since > since);
}

#[test]
fn nothing_is_known_before_the_first_manifest() {
    let mut bench = Bench::new(&[]);
    bench.check("", &["holds no manifest"]);
    assert!(!bench.reader.view().complete);
    bench.write("a.yaml", "# nothing yet\n");
    bench.check("", &[]);
    assert!(bench.reader.view().complete);
}

#[test]
fn files_that_cannot_be_read_keep_what_they_defined() {
    let mut bench =
        Bench::new(&[("a.yaml", &service("a", 1)), ("b.yaml", &service("b", 2)), ("c.yaml", "")]);
    fs::write(bench.path("a.yaml"), b"\xff\xfe").unwrap();
    bench.write("b.yaml", " \n");
    bench.check("a:1 b:2", &["a.yaml: is not UTF-8 text: byte 1 is wrong", "b.yaml: is empty"]);
    assert!(!bench.reader.view().gaps);
    let file = fs::File::create(bench.path("c.yaml")).unwrap();
    file.set_len(MAX_FILE + 1).unwrap();
    bench.write("a.yaml", &service("a", 3));
    bench.write("b.yaml", "# on purpose\n");
    bench.check("a:3", &["c.yaml: is larger than 16 MiB"]);
    // A file that was never readable may say anything.
    fs::write(bench.path("d.yaml"), b"\xff").unwrap();
    bench.look();
    assert!(bench.reader.view().gaps);
}

#[cfg(unix)]
#[test]
fn links_are_followed_but_not_in_circles() {
    use std::os::unix::fs::symlink;
    let mut bench = Bench::new(&[("..data/a.yaml", &service("a", 1)), (".git/x.yaml", "[")]);
    symlink("..data/a.yaml", bench.path("a.yaml")).unwrap();
    fs::create_dir(bench.path("below")).unwrap();
    symlink("..", bench.path("below/up")).unwrap();
    symlink("nowhere", bench.path("old")).unwrap();
    bench.check("a:1", &["old: is a link that leads nowhere"]);
    fs::remove_file(bench.path("old")).unwrap();
    fs::remove_file(bench.path("..data/a.yaml")).unwrap();
    bench.check("a:1", &["a.yaml: cannot be read: No such file"]);
}

#[test]
fn the_first_definition_wins_and_the_second_is_reported() {
    let mut bench = Bench::new(&[("a.yaml", &service("a", 1)), ("b.yaml", &service("a", 2))]);
    let second = "b.yaml, document 1 (line 1): Service default/a: is already defined in a.yaml, \
                  document 1 (line 1)";
    bench.check("a:1", &[second]);
    // Broken, but there: it is still the one that counts.
    bench.write("a.yaml", &service("a", 99_999));
    bench.check("a:1", &["a.yaml", second]);
    // Perhaps there, perhaps moved to the other file.
    bench.write("a.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: [\n");
    bench.check("a:2", &["a.yaml"]);
    fs::remove_file(bench.path("a.yaml")).unwrap();
    bench.check("a:2", &[]);
}

#[test]
fn only_what_changed_is_read_again() {
    let mut bench = Bench::new(&[("a.yaml", &service("a", 1)), ("b.yaml", &service("b", 2))]);
    let (path, touched) = (bench.path("a.yaml"), Touched::default());
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    bench.write("a.yaml", &service("a", 7));
    fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    bench.reader.refresh(&touched, Instant::now());
    assert_eq!(bench.reader.view().objects.len(), 2);
    let text = |bench: &Bench| format!("{:?}", bench.reader.view().objects);
    assert!(!text(&bench).contains("port: 7"), "same size and time: it was not read");
    // But the kernel said that something happened to it.
    let touched = Touched { names: [OsString::from("a.yaml")].into(), all: false };
    bench.reader.refresh(&touched, Instant::now());
    assert!(text(&bench).contains("port: 7"));
}
