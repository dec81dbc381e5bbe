//! How Envoy splits load over priorities: integers, percent.

/// Envoy's default, in percent: a tier is full until less than 1/1.4 of it is healthy.
pub const OVERPROVISIONING_FACTOR: u32 = 140;

/// In percent, and never 0: with 0, hosts that were ejected in every priority stay out for the
/// ejection time although they are back.
pub const PANIC_THRESHOLD: u32 = 1;

/// How much of a tier is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TierHealth {
    /// Members that take load.
    pub healthy: u32,
    /// Members that take what healthy ones of any tier do not.
    pub degraded: u32,
    /// Members that the tier should have.
    pub total: u32,
}

/// What a tier gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Of all requests.
    pub percent: u32,
    /// How much of that goes to degraded members.
    pub degraded: u32,
    /// All members are used, healthy or not.
    pub panic: bool,
}

impl TierHealth {
    fn percent(self, members: u32, factor: u32) -> u32 {
        if self.total == 0 {
            return 0;
        }
        let share = u64::from(factor) * u64::from(members) / u64::from(self.total);
        u32::try_from(share.min(100)).unwrap_or(100)
    }
}

/// The share of each tier, in order, by Envoy's arithmetic: healthy members of all tiers first,
/// then degraded ones of all tiers. All are 0 when there are no members.
#[must_use]
pub fn load_split(tiers: &[TierHealth], factor: u32, panic_threshold: u32) -> Vec<Share> {
    let healthy: Vec<u32> = tiers.iter().map(|tier| tier.percent(tier.healthy, factor)).collect();
    let degraded: Vec<u32> = tiers.iter().map(|tier| tier.percent(tier.degraded, factor)).collect();
    let norm = healthy.iter().chain(&degraded).sum::<u32>().min(100);
    let usable =
        |tier: &TierHealth| tier.percent(tier.healthy, 100) + tier.percent(tier.degraded, 100);
    let panics = |tier: &TierHealth| norm < 100 && usable(tier) < panic_threshold;
    let panic: Vec<bool> = tiers.iter().map(panics).collect();
    let share = |((percent, degraded), panic): ((u32, u32), bool)| Share {
        percent: percent + degraded,
        degraded,
        panic,
    };
    let loads = if panic.iter().all(|panic| *panic) {
        by_size(tiers).into_iter().map(|load| (load, 0)).collect()
    } else {
        by_availability(&healthy, &degraded, norm)
    };
    loads.into_iter().zip(panic).map(share).collect()
}

/// Nearest first; what rounding leaves goes to the first healthy tier, or else the first degraded
/// one.
fn by_availability(healthy: &[u32], degraded: &[u32], norm: u32) -> Vec<(u32, u32)> {
    let mut left = 100;
    let mut take = |available: &[u32]| -> Vec<u32> {
        let each = available.iter().map(|health| {
            let load = (health * 100).checked_div(norm).unwrap_or(0).min(left);
            left -= load;
            load
        });
        each.collect()
    };
    let (mut to_healthy, mut to_degraded) = (take(healthy), take(degraded));
    if healthy.iter().any(|available| *available > 0) {
        give_rest(&mut to_healthy, left, |index| healthy[index] > 0);
    } else {
        give_rest(&mut to_degraded, left, |index| degraded[index] > 0);
    }
    to_healthy.into_iter().zip(to_degraded).collect()
}

/// Everything is in panic: load follows the number of members.
fn by_size(tiers: &[TierHealth]) -> Vec<u32> {
    let all: u64 = tiers.iter().map(|tier| u64::from(tier.total)).sum();
    let share = |tier: &TierHealth| (u64::from(tier.total) * 100).checked_div(all).unwrap_or(0);
    let mut loads: Vec<u32> =
        tiers.iter().map(|tier| u32::try_from(share(tier)).unwrap_or(100)).collect();
    let left = 100 - loads.iter().sum::<u32>();
    give_rest(&mut loads, left, |index| tiers[index].total > 0);
    loads
}

fn give_rest(loads: &mut [u32], rest: u32, takes: impl Fn(usize) -> bool) {
    if let Some(first) = (0..loads.len()).find(|index| takes(*index)) {
        loads[first] += rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(healthy: [u32; 2], factor: u32, panic_threshold: u32) -> [u32; 2] {
        let tiers = healthy.map(|healthy| TierHealth { healthy, degraded: 0, total: 4 });
        let shares = load_split(&tiers, factor, panic_threshold);
        [shares[0].percent, shares[1].percent]
    }

    #[test]
    fn p1_table() {
        let table = [
            ([4, 4], [100, 0]),
            ([3, 4], [100, 0]),
            ([2, 4], [70, 30]),
            ([1, 4], [35, 65]),
            ([0, 4], [0, 100]),
            ([2, 2], [70, 30]),
            ([1, 2], [35, 65]),
        ];
        for (healthy, expected) in table {
            let got = split(healthy, OVERPROVISIONING_FACTOR, PANIC_THRESHOLD);
            assert_eq!(got, expected, "{healthy:?}");
        }
    }

    #[test]
    fn p2_panic() {
        assert_eq!(split([1, 1], 140, 50), [50, 50]);
        assert_eq!(split([0, 1], 140, 50), [50, 50], "both in panic: by size");
        assert_eq!(split([0, 1], 140, PANIC_THRESHOLD), [0, 100], "one healthy is enough");
        let none = [4, 2].map(|total| TierHealth { healthy: 0, degraded: 0, total });
        let shares = load_split(&none, 140, PANIC_THRESHOLD);
        assert_eq!(shares.iter().map(|s| s.percent).collect::<Vec<_>>(), [67, 33]);
        assert!(shares.iter().all(|share| share.panic));
    }

    #[test]
    fn p3_other_factors() {
        assert_eq!(split([2, 4], 100, 1), [50, 50]);
        assert_eq!(split([1, 4], 400, 1), [100, 0]);
    }

    #[test]
    fn nothing_in_gives_nothing_out() {
        assert_eq!(load_split(&[], 140, 1), []);
        let empty = load_split(&[TierHealth { healthy: 0, degraded: 0, total: 0 }], 140, 1);
        assert_eq!(empty, [Share { percent: 0, degraded: 0, panic: true }]);
    }

    /// ((healthy, degraded) of two tiers of 4) -> ((load, of it degraded) of both).
    #[test]
    fn degraded_members_take_what_healthy_ones_of_all_tiers_leave() {
        let table = [
            ([(4, 0), (4, 0)], [(100, 0), (0, 0)]),
            // The next tier's healthy ones come before this tier's degraded ones.
            ([(0, 4), (4, 0)], [(0, 0), (100, 0)]),
            ([(2, 2), (4, 0)], [(70, 0), (30, 0)]),
            ([(1, 3), (1, 3)], [(65, 30), (35, 0)]),
            ([(0, 4), (0, 4)], [(100, 100), (0, 0)]),
            ([(0, 0), (0, 1)], [(0, 0), (100, 100)]),
            ([(0, 4), (1, 0)], [(65, 65), (35, 0)]),
        ];
        for (members, expected) in table {
            let tier = |(healthy, degraded)| TierHealth { healthy, degraded, total: 4 };
            let shares = load_split(&members.map(tier), OVERPROVISIONING_FACTOR, PANIC_THRESHOLD);
            let got: Vec<_> = shares.iter().map(|s| (s.percent, s.degraded)).collect();
            assert_eq!(got, expected, "{members:?}");
            assert!(shares.iter().all(|share| !share.panic || share.percent == 0), "{members:?}");
        }
    }
}
