//! What `tombolo status` shows of a process itself, and when it ends with 1.

use std::fmt::Write as _;

use tombolo_federation::sync::peers::Disagreement;

use super::table::table;
use crate::role::status::{LinkStatus, SourceStatus, Status};
use crate::role::store_health::{MemberStatus, StoreStatus};

/// Of `tombolo status --help`.
pub(super) const HELP: &str =
    "Exit code: 0 when all is well, 2 when the process cannot be asked, 1 when
  - it is not ready,
  - a source is stale, holds removals back, is suspect or has records that cannot be read,
  - a link that this process keeps is down, or records were refused on it,
  - its file entitles clusters to other namespaces than its region's leader says,
  - its certificate should have been renewed by now,
  - what it holds cannot be saved to its disk, or
  - the region's store needs attention: a member, its space, its compaction, what it lost.

Examples:
  tombolo status
  tombolo status --admin 127.0.0.1:7112 -o json
  tombolo status --config control-plane.yaml";

/// Whether nobody has to look.
pub(super) fn is_well(status: &Status) -> bool {
    let odd = |source: &SourceStatus| {
        source.stale
            || !source.holds.is_empty()
            || source.suspect.is_some()
            || source.quarantined > 0
    };
    // The next leader would take away what another has let in.
    let drifts = |found: &Disagreement| {
        found.regions[0] == found.regions[1] && found.field == "entitlements"
    };
    // Ready is who serves, also if nothing that it says reaches anybody.
    let cut = |link: &LinkStatus| {
        let down = !link.synced && !link.left_to_leader;
        down || !link.refused.is_empty()
    };
    let alarmed = |store: &StoreStatus| !store.alarms.is_empty() || store.lost > 0;
    status.ready
        && !status.sources.iter().any(odd)
        && !status.disagreements.iter().any(drifts)
        && !status.links.iter().any(cut)
        && status.certificate_problem.is_none()
        && !status.cache.failing
        && !status.store.as_ref().is_some_and(alarmed)
}

/// The process in a line, and who leads its region in another.
pub(super) fn head(status: &Status) -> String {
    let cluster = status.cluster.as_ref().map(|id| format!(", cluster {id}")).unwrap_or_default();
    let state = if status.ready { "ready" } else { "not ready" };
    let leader = match status.leader {
        Some(true) => ", leads",
        Some(false) => ", follows",
        None => "",
    };
    let mut text = format!(
        "{} of region {}{cluster}: {state}{leader} (mesh {}, version {})\n",
        status.role, status.region, status.mesh, status.version
    );
    text.push_str(&leader_line(status));
    text
}

fn leader_line(status: &Status) -> String {
    match (status.leader, &status.led_by) {
        (None, _) => String::new(),
        (Some(leads), Some(leader)) => {
            let this = if leads { " (this process)" } else { "" };
            let known = if leader.last_known { "last known leader" } else { "leader" };
            format!("{known}: {leader}{this}\n")
        }
        // It has won and does not see itself in the store yet.
        (Some(true), None) => "leader: this process\n".to_owned(),
        (Some(false), None) => "leader: none is known\n".to_owned(),
    }
}

/// When the certificate ends, and what is wrong with that.
pub(super) fn certificate_lines(status: &Status) -> String {
    let mut text = String::new();
    if let Some(expires) = status.certificate_expires {
        let _ = writeln!(text, "certificate until {expires}, {} proxies connected", status.proxies);
    }
    if let Some(problem) = &status.certificate_problem {
        let _ = writeln!(text, "certificate: {problem}");
    }
    text
}

/// The region's store, as far as this process follows it.
pub(super) fn store_lines(store: Option<&StoreStatus>) -> String {
    let Some(store) = store else { return String::new() };
    let mut text = match store.position {
        0 => "store: not read yet".to_owned(),
        position => format!("store: read up to revision {position}"),
    };
    if let Some(age) = store.compacted_age_seconds {
        let _ = write!(text, ", history let go {age:.0} s ago");
    }
    text.push('\n');
    if let Some(problem) = &store.problem {
        let _ = writeln!(text, "store: not followed ({problem}), what was read last is served");
    }
    if let Some(found) = &store.other_history {
        let times = store.other_histories;
        let _ = writeln!(
            text,
            "store: it was restored or lost, {times} time(s), the last time {found}"
        );
    }
    if store.lost > 0 {
        let _ =
            writeln!(text, "store: {} records that it lost are not written back yet", store.lost);
    }
    for (peer, why) in &store.asked {
        let _ = writeln!(text, "store: peer {peer} has not said yet what may be lost here ({why})");
    }
    for alarm in &store.alarms {
        let _ = writeln!(text, "store: {alarm}");
    }
    for unknown in store.members.iter().filter_map(MemberStatus::unknown) {
        let _ = writeln!(text, "store: {unknown}");
    }
    text
}

/// The store's servers; none for the embedded store.
pub(super) fn members_table(store: Option<&StoreStatus>) -> Option<String> {
    let members = store.map(|store| &store.members[..]).filter(|members| !members.is_empty())?;
    let rows = members.iter().map(member_cells);
    Some(table(["STORE MEMBER", "STATE", "VERSION", "QUOTA USED", "PROBLEM"], rows))
}

fn member_cells(member: &MemberStatus) -> [String; 5] {
    let state = match (&member.problem, member.leader) {
        (Some(_), _) => "down",
        (None, true) => "leads",
        (None, false) => "follows",
    };
    [
        member.endpoint.clone(),
        state.to_owned(),
        member.version.clone().unwrap_or_else(|| "-".to_owned()),
        member.full_percent.map_or_else(|| "-".to_owned(), |percent| format!("{percent} %")),
        member.problem.clone().unwrap_or_default(),
    ]
}

#[cfg(test)]
mod tests {
    use tombolo_federation::sync::client::Link;

    use super::*;
    use crate::role::leader::LeaderStatus;
    use crate::role::status::CacheStatus;

    #[test]
    fn whoever_is_asked_says_who_leads() {
        let leader = LeaderStatus {
            host: "cp-1".to_owned(),
            admin: Some("10.0.0.1:7080".parse().unwrap()),
            since: Some("2026-01-02T03:04:05Z".parse().unwrap()),
            last_known: false,
        };
        let check = |leads, led_by: Option<&LeaderStatus>, line: &str| {
            let status = Status { leader: leads, led_by: led_by.cloned(), ..Status::default() };
            assert_eq!(head(&status).lines().nth(1).unwrap_or_default(), line);
        };
        let text = "leader: cp-1, admin 10.0.0.1:7080, since 2026-01-02T03:04:05Z";
        check(Some(false), Some(&leader), text);
        check(Some(true), Some(&leader), &format!("{text} (this process)"));
        check(Some(false), None, "leader: none is known");
        let last_known = LeaderStatus { last_known: true, ..leader };
        check(Some(false), Some(&last_known), &format!("last known {text}"));
        check(None, None, "");
    }

    #[test]
    fn the_stores_members_are_shown_with_what_they_say() {
        let member = |endpoint: &str, leader, problem: Option<&str>| MemberStatus {
            endpoint: endpoint.to_owned(),
            version: problem.is_none().then(|| "3.6.16".to_owned()),
            leader,
            quota: Some(1 << 31),
            full_percent: problem.is_none().then_some(7),
            problem: problem.map(str::to_owned),
        };
        let members =
            vec![member("https://e:1", true, None), member("https://e:2", false, Some("gone"))];
        let store = StoreStatus { position: 812, members, ..StoreStatus::default() };
        assert_eq!(store_lines(Some(&store)), "store: read up to revision 812\n");
        let table = members_table(Some(&store)).unwrap();
        let rows: Vec<Vec<_>> = table
            .lines()
            .skip(1)
            .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
            .collect();
        assert_eq!(
            rows,
            [
                vec!["https://e:1", "leads", "3.6.16", "7 %"],
                vec!["https://e:2", "down", "-", "-", "gone"],
            ]
        );
        assert_eq!(members_table(Some(&StoreStatus::default())), None, "the embedded store");
    }

    #[test]
    fn what_somebody_has_to_look_after_ends_with_1() {
        let well = Status { ready: true, ..Status::default() };
        assert!(is_well(&well));
        assert!(!is_well(&Status { ready: false, ..well.clone() }));
        let problem = Some("not renewed".to_owned());
        assert!(!is_well(&Status { certificate_problem: problem, ..well.clone() }));
        let drift = |field: &str, other: &str| {
            let regions = ["us", other].map(|region| region.parse().unwrap());
            let (field, ours, theirs) = (field.to_owned(), "a".to_owned(), "b".to_owned());
            let disagreements = vec![Disagreement { regions, field, ours, theirs }];
            is_well(&Status { disagreements, ..well.clone() })
        };
        assert!(!drift("entitlements", "us"));
        assert!(drift("distances", "us") && drift("entitlements", "eu"));
        let store = |alarms, lost| Some(StoreStatus { lost, alarms, ..StoreStatus::default() });
        assert!(is_well(&Status { store: store(Vec::new(), 0), ..well.clone() }));
        assert!(!is_well(&Status { store: store(vec!["full".to_owned()], 0), ..well.clone() }));
        assert!(!is_well(&Status { store: store(Vec::new(), 1), ..well.clone() }));
        let cache = |failing, found: &[&str]| CacheStatus {
            failing,
            problems: found.iter().map(ToString::to_string).collect(),
            ..CacheStatus::default()
        };
        let found = ["an image was damaged"];
        assert!(is_well(&Status { cache: cache(false, &found), ..well.clone() }), "it is over");
        assert!(!is_well(&Status { cache: cache(true, &[]), ..well }));
    }

    #[test]
    fn who_serves_and_is_heard_by_nobody_is_not_well() {
        let synced = Link { synced: true, ..Link::default() };
        let refused = std::collections::BTreeMap::from([("key".to_owned(), "why".to_owned())]);
        let of = |link: &Link| LinkStatus::of("publish".to_owned(), link);
        let check = |link: LinkStatus, well| {
            let status = Status { ready: true, links: vec![link], ..Status::default() };
            assert_eq!(is_well(&status), well, "{status:?}");
        };
        check(of(&synced), true);
        check(of(&Link { problem: Some("left the mesh".to_owned()), ..Link::default() }), false);
        check(of(&Link { refused, ..synced }), false);
        check(LinkStatus::left_to_leader("peer eu".to_owned(), &Link::default()), true);
    }
}
