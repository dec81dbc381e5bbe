//! What happens to a mesh: owners change what they hold, and things break and are mended, as the
//! seed says; then everything is mended, and must come right.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::Property;
use super::world::World;
use crate::store::Store as _;

/// How long things break.
const CHAOS: Duration = Duration::from_secs(90);
/// After the last thing was mended, everybody holds what the owners hold within so long: a
/// connection that was broken without a word is noticed within 8 s, a client tries again within
/// 5 s, an election takes at most 6 s, and a digest is sent every minute.
const CONVERGES_WITHIN: Duration = Duration::from_mins(2);
/// And it stays so for longer than it takes to exchange digests.
const STAYS: Duration = Duration::from_secs(70);

/// Something to be mended later.
enum Mend {
    Restart(String),
    Free(String, String),
}

/// Plays it. How long it took to come right, if it did.
pub(super) async fn play(world: &mut World) -> Option<Duration> {
    let over = world.shared.journal.over.clone();
    tokio::select! {
        biased;
        () = over.cancelled() => None,
        converged = acts(world) => converged,
    }
}

async fn acts(world: &mut World) -> Option<Duration> {
    chaos(world).await;
    let healed = Instant::now();
    while let Some(why) = world.differs() {
        if healed.elapsed() > CONVERGES_WITHIN {
            world.shared.journal.violated(Property::Converges, &why);
            return None;
        }
        sleep(Duration::from_millis(100)).await;
    }
    let took = healed.elapsed();
    let records = world.records();
    world.shared.journal.note(&format!("converged on {records} records after {took:?}"));
    world.shared.checker.settled.store(true, Ordering::SeqCst);
    sleep(STAYS).await;
    if let Some(why) = world.differs() {
        world.shared.journal.violated(Property::StaysConverged, &why);
    }
    Some(took)
}

async fn chaos(world: &mut World) {
    let end = Instant::now() + CHAOS;
    let mut mends: Vec<(Instant, Mend)> = Vec::new();
    sleep(Duration::from_secs(3)).await;
    while Instant::now() < end {
        let next = Instant::now() + Duration::from_millis(50 + world.random.below(1200));
        while let Some(index) = due(&mends, next) {
            let (at, what) = mends.swap_remove(index);
            sleep_until(at).await;
            mend(world, what);
        }
        sleep_until(next).await;
        step(world, &mut mends).await;
    }
    world.shared.journal.note("everything is mended");
    world.shared.network.free_all();
    for (_, what) in mends {
        mend(world, what);
    }
    for up in world.control.values().filter_map(|process| process.up.as_ref()) {
        let mut faults = up.access.faults();
        faults.away_until = Instant::now();
        faults.lags_until = Instant::now();
        faults.lose_answers = 0;
        faults.late.0 = 0;
    }
}

fn due(mends: &[(Instant, Mend)], before: Instant) -> Option<usize> {
    let due = mends.iter().enumerate().filter(|(_, (at, _))| *at <= before);
    due.min_by_key(|(_, (at, _))| *at).map(|(index, _)| index)
}

fn mend(world: &mut World, what: Mend) {
    match what {
        Mend::Restart(name) => {
            world.shared.journal.note(&format!("{name} starts"));
            world.restart(&name);
        }
        Mend::Free(from, to) => {
            world.shared.journal.note(&format!("{from} reaches {to} again"));
            world.shared.network.free(&from, &to);
        }
    }
}

async fn step(world: &mut World, mends: &mut Vec<(Instant, Mend)>) {
    match world.random.below(100) {
        0..50 => change(world),
        50..60 => block(world, mends),
        60..68 => cut(world),
        68..76 => crash(world, mends),
        76..88 => store_fault(world),
        88..92 => away(world),
        92..95 => compact(world).await,
        95..97 => end_watches(world),
        _ => history(world, mends),
    }
}

fn change(world: &mut World) {
    let index = pick(world, world.truths.len());
    let what = world.truths[index].change(&mut world.random);
    world.shared.journal.inject("change", &what);
}

fn pick(world: &mut World, of: usize) -> usize {
    usize::try_from(world.random.below(of.max(1) as u64)).unwrap_or(0)
}

/// Two processes that may have something to say to each other.
fn pair(world: &mut World) -> (String, String) {
    let servers: Vec<String> = world.control.keys().cloned().collect();
    let server = servers[pick(world, servers.len())].clone();
    let names = world.names();
    let others: Vec<String> = names.into_iter().filter(|name| *name != server).collect();
    let other = others[pick(world, others.len())].clone();
    (other, server)
}

fn block(world: &mut World, mends: &mut Vec<(Instant, Mend)>) {
    let (a, b) = pair(world);
    let until = Instant::now() + Duration::from_millis(200 + world.random.below(15_000));
    let both = world.random.chance(60);
    let mut ways = vec![(a.clone(), b.clone())];
    if both {
        ways.push((b.clone(), a.clone()));
    } else if world.random.chance(50) {
        ways = vec![(b.clone(), a.clone())];
    }
    let what = format!("{a} {} {b}", if both { "<->" } else { "->" });
    world.shared.journal.inject("partition", &what);
    for (from, to) in ways {
        world.shared.network.block(&from, &to);
        mends.push((until, Mend::Free(from, to)));
    }
}

fn cut(world: &mut World) {
    let (a, b) = pair(world);
    let cut = world.shared.network.cut(&a, &b);
    world.shared.journal.inject("cut", &format!("{cut} connections of {a} and {b}"));
}

fn crash(world: &mut World, mends: &mut Vec<(Instant, Mend)>) {
    let names = world.names();
    let name = names[pick(world, names.len())].clone();
    let down = Duration::from_millis(50 + world.random.below(8000));
    world.shared.journal.inject("crash", &format!("{name} for {down:?}"));
    world.crash(&name);
    mends.push((Instant::now() + down, Mend::Restart(name)));
}

/// Of one process's way to its store.
fn store_fault(world: &mut World) {
    let names: Vec<String> = world.control.keys().cloned().collect();
    let name = names[pick(world, names.len())].clone();
    let (kind, millis) = (world.random.below(4), 100 + world.random.below(7000));
    let (now, span) = (Instant::now(), Duration::from_millis(millis));
    let Some(up) = world.control.get(&name).and_then(|process| process.up.as_ref()) else {
        return;
    };
    let mut faults = up.access.faults();
    let what = match kind {
        0 => {
            faults.away_until = now + span;
            "store away"
        }
        1 => {
            faults.lags_until = now + span;
            "watch lags"
        }
        2 => {
            faults.lose_answers = 1;
            "answer lost"
        }
        _ => {
            faults.late = (2, span + Duration::from_secs(2));
            "late commit"
        }
    };
    drop(faults);
    world.shared.journal.inject(what, &format!("{name} {span:?}"));
}

/// A whole region's store.
fn away(world: &mut World) {
    let index = pick(world, world.regions.len());
    let region = world.regions[index].clone();
    let until = Instant::now() + Duration::from_millis(500 + world.random.below(8000));
    world.shared.journal.inject("store away", &format!("{region}, for all"));
    let up = world.control.values().filter_map(|process| process.up.as_ref());
    for up in up.filter(|up| up.region == region) {
        up.access.faults().away_until = until;
    }
}

async fn compact(world: &mut World) {
    let index = pick(world, world.regions.len());
    let region = world.regions[index].clone();
    let Some(store) = world.shared.store(&region) else { return };
    let kept = world.random.below(40);
    let oldest = store.revision().saturating_sub(kept);
    world.shared.journal.inject("compaction", &format!("{region} to {oldest}"));
    let _ = store.compact(oldest).await;
}

fn end_watches(world: &mut World) {
    let index = pick(world, world.regions.len());
    let region = world.regions[index].clone();
    world.shared.journal.inject("watches end", &region.to_string());
    if let Some(store) = world.shared.store(&region) {
        store.end_watches();
    }
}

/// Backups, and where the run has other histories, what they are for.
fn history(world: &mut World, mends: &mut Vec<(Instant, Mend)>) {
    let index = pick(world, world.regions.len());
    let region = world.regions[index].clone();
    let Some(store) = world.shared.store(&region) else { return };
    let choice = world.random.below(10);
    match choice {
        0..5 => {
            world.shared.journal.inject("backup", &format!("{region} at {}", store.revision()));
            world.backups.insert(region, store.backup());
        }
        5..9 if world.shared.histories => {
            let from = store.revision();
            store.restore(&world.backups[&region]);
            let to = store.revision();
            world.shared.journal.inject("restore", &format!("{region} from {from} to {to}"));
        }
        9 if world.shared.histories => {
            store.lose();
            world.shared.journal.inject("loss", &region.to_string());
            if world.random.chance(50) {
                // With everybody who remembers.
                let names: Vec<String> = world.control.keys().cloned().collect();
                let prefix = format!("{region}/");
                for name in names.into_iter().filter(|name| name.starts_with(&prefix)) {
                    world.crash(&name);
                    let up = Instant::now() + Duration::from_secs(1);
                    mends.push((up, Mend::Restart(name)));
                }
            }
        }
        _ => {}
    }
}
