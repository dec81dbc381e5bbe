//! Which records are given, and which comes first.

/// Turns `items` by an amount that depends on `turn` as if at random.
///
/// Not simply by `turn`: clients ask A and AAAA in pairs, so with a plain counter every A of a
/// service with two endpoints would find the same one first.
pub(super) fn rotate<T>(items: &mut [T], turn: u64) {
    let Ok(count) = u64::try_from(items.len()) else { return };
    if count > 1 {
        let first = usize::try_from(mix(turn) % count).unwrap_or(0);
        items.rotate_left(first);
    }
}

/// `SplitMix64`'s finaliser: neighbouring numbers become unrelated ones.
fn mix(turn: u64) -> u64 {
    let mut x = turn.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// At most `limit` of `items`, at even distances: endpoints are sorted by cluster, and the first
/// `limit` would leave whole clusters out. Always the same ones for the same items.
pub(super) fn spread<T>(items: Vec<T>, limit: usize) -> Vec<T> {
    let count = items.len();
    if count <= limit {
        return items;
    }
    // Keeps item i when the multiples of limit/count pass a whole number at i + 1.
    let keeps = |i: &usize| (i + 1) * limit / count > i * limit / count;
    items.into_iter().enumerate().filter(|(i, _)| keeps(i)).map(|(_, item)| item).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_turns_alone_bring_each_to_the_front() {
        let mut fronts = [[0; 2], [0; 2]];
        for turn in (0..600).step_by(2) {
            let (mut two, mut four) = ([0, 1], [0, 1, 0, 1]);
            rotate(&mut two, turn);
            rotate(&mut four, turn);
            fronts[0][two[0]] += 1;
            fronts[1][four[0]] += 1;
        }
        assert!(fronts.iter().flatten().all(|count| *count > 100), "{fronts:?}");
        rotate::<u8>(&mut [], 7);
    }

    #[test]
    fn a_spread_is_even_and_exact() {
        for (count, limit) in [(0, 3), (3, 3), (4, 3), (1000, 200), (201, 200), (7, 1)] {
            let kept = spread((0..count).collect(), limit);
            assert_eq!(kept.len(), count.min(limit), "{count} to {limit}");
            assert!(kept.windows(2).all(|pair| pair[1] - pair[0] <= count.div_ceil(limit)));
        }
    }
}
