//! What else the machine did while something was measured: with a third of a core gone to other
//! work, latencies on a small machine say more about that work than about ours.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

/// CPU time so far, in the kernel's ticks.
#[derive(Debug, Clone, Copy)]
struct Ticks {
    all: u64,
    ours: u64,
}

/// From here to [`Watch::others`].
#[derive(Debug)]
pub(crate) struct Watch {
    started: Instant,
    before: Option<Ticks>,
}

impl Watch {
    pub(crate) fn start() -> Self {
        Self { started: Instant::now(), before: ticks() }
    }

    /// Cores' worth of time that went to processes that are neither this one nor below it. `None`
    /// where /proc does not say.
    #[expect(clippy::cast_precision_loss, reason = "ticks of a few minutes")]
    pub(crate) fn others(&self) -> Option<f64> {
        let (before, after) = (self.before?, ticks()?);
        let all = after.all.saturating_sub(before.all);
        let ours = after.ours.saturating_sub(before.ours);
        let a_second = rustix::param::clock_ticks_per_second() as f64;
        let others = all.saturating_sub(ours) as f64 / a_second;
        Some(others / self.started.elapsed().as_secs_f64())
    }
}

fn ticks() -> Option<Ticks> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let all = stat.lines().next()?.split_ascii_whitespace().skip(1);
    let all: Vec<u64> = all.map_while(|field| field.parse().ok()).collect();
    // user nice system - - irq softirq steal
    let all = [0, 1, 2, 5, 6, 7].iter().filter_map(|field| all.get(*field)).sum();
    Some(Ticks { all, ours: ours()? })
}

/// Of this process and all below it, ended ones included as far as they were waited for.
fn ours() -> Option<u64> {
    let mut processes = BTreeMap::new();
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let id = entry.file_name().to_string_lossy().parse::<u32>();
        // One that ends between the two reads is left out.
        if let (Ok(id), Ok(stat)) = (id, fs::read_to_string(entry.path().join("stat"))) {
            processes.extend(process(&stat).map(|process| (id, process)));
        }
    }
    let is_ours = |mut id: u32| {
        while id != std::process::id() {
            match processes.get(&id) {
                Some((parent, _)) if *parent != 0 => id = *parent,
                _ => return false,
            }
        }
        true
    };
    Some(processes.iter().filter(|(id, _)| is_ours(**id)).map(|(_, (_, ticks))| ticks).sum())
}

/// Parent and CPU time. The name before them is in parentheses and may hold anything.
fn process(stat: &str) -> Option<(u32, u64)> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let ticks = fields.get(11..15)?.iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    Some((fields.get(1)?.parse().ok()?, ticks))
}
