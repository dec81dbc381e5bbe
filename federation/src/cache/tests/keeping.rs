//! When what is held is saved. Time is paused: what is promised is counted, not waited for.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::super::keeper::{Keeper, Settings, Standings};
use super::*;
use crate::replica::Replicas;

/// Longer than any wait of a keeper, in paused time.
const LONG: Duration = Duration::from_mins(10);

struct Kept {
    dir: tempfile::TempDir,
    writer: ReplicaWriter,
    whole: watch::Sender<bool>,
    standings: watch::Receiver<Standings>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Keeps in `dir` what is written.
fn keep(dir: tempfile::TempDir, whole: bool) -> Kept {
    let (cache, loaded) = Cache::open(dir.path(), OURS);
    let (writer, replicas): (ReplicaWriter, Replicas) = replica::channel();
    let (standings, standings_rx) = watch::channel(Standings::of(&loaded));
    if let Some(image) = loaded.image {
        writer.apply(image.into_batch(None), Instant::now());
    }
    let (whole, whole_rx) = watch::channel(whole);
    let began = Instant::now();
    let clock = move || at(1000) + began.elapsed();
    let keeper = Keeper {
        cache,
        replicas,
        whole: whole_rx,
        extra: Arc::new(BTreeMap::new),
        clock: Arc::new(clock),
        settings: Settings::default(),
        standings,
    };
    let stop = CancellationToken::new();
    #[expect(clippy::disallowed_methods, reason = "the test awaits it")]
    let task = tokio::spawn(keeper.run(stop.clone()));
    Kept { dir, writer, whole, standings: standings_rx, stop, task }
}

impl Kept {
    fn say(&self, sequence: u64) {
        apply(&self.writer, vec![namespace("shop", sequence, &sequence.to_string())]);
    }

    /// Waits until so many saves were tried, and gives the time since `since`.
    async fn tried(&mut self, saves: u64, since: Instant) -> Duration {
        let tried = self.standings.wait_for(|s| s.saved + s.failed >= saves);
        tokio::time::timeout(LONG, tried).await.expect("in time").expect("it runs");
        since.elapsed()
    }

    async fn end(self) -> tempfile::TempDir {
        self.stop.cancel();
        tokio::time::timeout(LONG, self.task).await.expect("in time").expect("no panic");
        self.dir
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_is_saved_after_a_second_and_steady_change_every_five() {
    let mut kept = keep(tempfile::tempdir().unwrap(), true);
    kept.say(1);
    let began = Instant::now();
    let first = kept.tried(1, began).await;
    assert!((1.0..1.5).contains(&first.as_secs_f64()), "{first:?}");
    for sequence in 2..200 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        kept.say(sequence);
    }
    let saved = kept.standings.borrow().saved;
    assert!((3..=5).contains(&saved), "{saved} saves in 20 s");
    assert_eq!(kept.standings.borrow().newest.unwrap().generation, saved);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_whole_is_never_saved() {
    let kept = keep(tempfile::tempdir().unwrap(), false);
    kept.say(1);
    tokio::time::sleep(LONG).await;
    let dir = kept.end().await;
    assert!(Cache::open(dir.path(), OURS).1.image.is_none());

    let mut kept = keep(dir, false);
    kept.say(1);
    tokio::time::sleep(LONG).await;
    kept.whole.send_replace(true);
    kept.tried(1, Instant::now()).await;
    assert_eq!(start(kept.dir.path()).0, says(1, "1"));
}

#[tokio::test(start_paused = true)]
async fn beacons_alone_are_saved_once_a_minute() {
    let mut kept = keep(tempfile::tempdir().unwrap(), true);
    kept.say(1);
    kept.tried(1, Instant::now()).await;
    for nonce in 1..=60 {
        tokio::time::sleep(Duration::from_secs(5)).await;
        apply(&kept.writer, vec![beacon(nonce)]);
    }
    let saved = kept.standings.borrow().saved;
    assert!((5..=6).contains(&saved), "{saved} saves in five minutes");
}

#[tokio::test(start_paused = true)]
async fn a_clean_stop_saves_the_last_change() {
    let mut kept = keep(tempfile::tempdir().unwrap(), true);
    kept.say(1);
    kept.tried(1, Instant::now()).await;
    kept.say(2);
    let dir = kept.end().await;
    assert_eq!(start(dir.path()), (says(2, "2"), vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_loaded_image_is_replaced_only_once_it_has_proven_itself() {
    let dir = tempfile::tempdir().unwrap();
    two_generations(dir.path());
    let mut kept = keep(dir, true);
    kept.say(3);
    let waited = kept.tried(1, Instant::now()).await;
    assert!((60.0..62.0).contains(&waited.as_secs_f64()), "{waited:?}");
    assert_eq!(start(kept.dir.path()).0, says(3, "3"));
    // A clean stop before that is a proof as well.
    let mut dir = kept.end().await;
    for _ in 0..5 {
        dir = keep(dir, true).end().await;
    }
    assert_eq!(start(dir.path()).1, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_failing_disk_is_tried_ever_less_often_told_of_and_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let blocked = dir.path().join("cache");
    // A file where the directory should be: no rights stop root.
    fs::write(&blocked, "").unwrap();
    let (cache, _) = Cache::open(&blocked, OURS);
    let mut kept = keep_with(dir, cache);
    kept.say(1);
    let waited = kept.tried(8, Instant::now()).await;
    assert!((64.0..160.0).contains(&waited.as_secs_f64()), "{waited:?}");
    let failing = kept.standings.borrow().failing.clone().unwrap();
    assert!(failing.contains("cannot be written") && failing.contains("cache"), "{failing}");
    fs::remove_file(&blocked).unwrap();
    let saved = kept.standings.wait_for(|standings| standings.saved > 0);
    let saved = tokio::time::timeout(LONG, saved).await.unwrap().unwrap().clone();
    assert_eq!((saved.failing, saved.newest.unwrap().generation), (None, 1));
    assert_eq!(start(&blocked).0, says(1, "1"));
}

fn keep_with(dir: tempfile::TempDir, cache: Cache) -> Kept {
    let (writer, replicas) = replica::channel();
    let (standings, standings_rx) = watch::channel(Standings::default());
    let (whole, whole_rx) = watch::channel(true);
    let keeper = Keeper {
        cache,
        replicas,
        whole: whole_rx,
        extra: Arc::new(BTreeMap::new),
        clock: Arc::new(|| at(1000)),
        settings: Settings::default(),
        standings,
    };
    let stop = CancellationToken::new();
    #[expect(clippy::disallowed_methods, reason = "the test awaits it")]
    let task = tokio::spawn(keeper.run(stop.clone()));
    Kept { dir, writer, whole, standings: standings_rx, stop, task }
}
