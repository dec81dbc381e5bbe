//! Which etcd versions answer a progress request in order and always.

/// Since 3.4.25 and 3.5.8 the answer goes the way of the events (etcd pull request 15237); since
/// 3.4.31 and 3.5.13 it also comes for a watch without events (17557). A version that cannot be
/// read is not trusted.
pub(super) fn orders_progress(version: &str) -> bool {
    let release = version.split(['-', '+']).next().unwrap_or_default();
    let mut numbers = release.split('.').map(str::parse::<u64>);
    let (Some(Ok(major)), Some(Ok(minor)), Some(Ok(patch))) =
        (numbers.next(), numbers.next(), numbers.next())
    else {
        return false;
    };
    match (major, minor) {
        (3, 4) => patch >= 31,
        (3, 5) => patch >= 13,
        (3, minor) => minor > 5,
        (major, _) => major > 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_versions_with_both_corrections_are_trusted() {
        for good in ["3.4.31", "3.4.40", "3.5.13", "3.5.33", "3.6.0", "3.6.16", "3.7.1", "4.0.0"] {
            assert!(orders_progress(good), "{good}");
        }
        for bad in ["3.4.23", "3.4.30", "3.5.0", "3.5.12", "3.3.99", "2.9.9", "", "3.6", "x.y.z"] {
            assert!(!orders_progress(bad), "{bad}");
        }
        assert!(orders_progress("3.6.0-rc.1"));
        assert!(!orders_progress("3.5.12+vendor"));
    }
}
