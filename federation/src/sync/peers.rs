//! Where regions disagree about each other.
//!
//! Each region's settings are its own; what they say about one another has to fit. Pure, over the
//! records that the regions publish: every process that holds them finds the same.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::names::{ClusterId, RegionName};
use crate::record::{Entitlement, Region};

/// Two regions that do not say the same, or one whose word does not fit itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Disagreement {
    /// Which, the one whose view this is first. Twice the same one where a replica's file differs
    /// from what its own region says.
    pub regions: [RegionName; 2],
    /// The setting, as configuration names it.
    pub field: String,
    /// What the first says.
    pub ours: String,
    /// What the second says.
    pub theirs: String,
}

/// Everything that the regions disagree on; in each pair `own` comes first, if it is in it.
/// `dialled` are the addresses by which `own` reaches its peers.
#[must_use]
pub fn disagreements(
    own: &RegionName,
    regions: &BTreeMap<RegionName, Region>,
    dialled: &BTreeMap<RegionName, Vec<String>>,
) -> Vec<Disagreement> {
    let mut names: Vec<&RegionName> = regions.keys().collect();
    names.sort_by_key(|name| *name != own);
    let mut found = Vec::new();
    for (index, first) in names.iter().enumerate() {
        let ours = Side { name: first, record: &regions[*first] };
        found.extend(stand_ins(ours));
        for second in &names[index + 1..] {
            let theirs = Side { name: second, record: &regions[*second] };
            found.extend(pair(ours, theirs));
        }
    }
    found.extend(addresses(own, regions, dialled));
    found
}

/// Where the `file` of one replica of `own` differs from what the region says, its leader's file. What
/// is `published` counts for all replicas, also for those whose file says else.
#[must_use]
pub fn drift(own: &RegionName, file: &Region, published: &Region) -> Vec<Disagreement> {
    let ours = Side { name: own, record: file };
    let theirs = Side { name: own, record: published };
    let mut found = Vec::new();
    let mut check = |field: &str, say: fn(&Region) -> String| {
        let (our, their) = (say(file), say(published));
        if our != their {
            found.push(of(ours, theirs, field, our, their));
        }
    };
    check("addresses", |region| listed(region.addresses.iter().collect::<BTreeSet<_>>()));
    check("distances", |region| {
        listed(region.distances.iter().map(|(to, distance)| format!("{to}: {distance}")))
    });
    check("peers", |region| listed(region.peers.iter().collect::<BTreeSet<_>>()));
    // Only where both speak of them: a record of the first level does not.
    if theirs.is_whole() {
        check("roots", roots);
        check("entitlements", |region| {
            listed(region.entitlements.iter().map(|(cluster, to)| entitled(cluster, to)))
        });
        check("standIns", |region| names(&region.stand_ins));
        check("rolloutOrder", |region| names(&region.rollout_order));
    }
    found
}

fn entitled(cluster: &ClusterId, to: &Entitlement) -> String {
    match to {
        Entitlement::All => format!("{cluster}: *"),
        Entitlement::Namespaces(names) => format!("{cluster}: [{}]", listed(names)),
    }
}

fn listed(items: impl IntoIterator<Item = impl ToString>) -> String {
    let texts: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }
}

#[derive(Clone, Copy)]
struct Side<'a> {
    name: &'a RegionName,
    record: &'a Region,
}

impl Side<'_> {
    /// Records of the first level say nothing of most settings: nothing to disagree with.
    fn is_whole(self) -> bool {
        !self.record.incarnation.is_empty()
    }
}

fn pair(ours: Side<'_>, theirs: Side<'_>) -> Vec<Disagreement> {
    let mut found = Vec::new();
    let mut check = |field: &str, our: String, their: String| {
        if our != their {
            found.push(of(ours, theirs, field, our, their));
        }
    };
    let distance = |from: Side<'_>, to: Side<'_>| {
        from.record.distances.get(to.name).map_or("none".to_owned(), ToString::to_string)
    };
    check("distances", distance(ours, theirs), distance(theirs, ours));
    check("readsLevel", ours.record.reads_level.to_string(), theirs.record.reads_level.to_string());
    if ours.is_whole() && theirs.is_whole() {
        let peer = |from: Side<'_>, to: Side<'_>| {
            if from.record.peers.contains(to.name) { "a peer" } else { "no peer" }.to_owned()
        };
        check("peers", peer(ours, theirs), peer(theirs, ours));
        check("roots", roots(ours.record), roots(theirs.record));
        check(
            "rolloutOrder",
            names(&ours.record.rollout_order),
            names(&theirs.record.rollout_order),
        );
    }
    let shared: BTreeSet<_> = ours.record.addresses.iter().collect();
    for address in theirs.record.addresses.iter().filter(|address| shared.contains(address)) {
        let claims = || format!("claims {address}");
        found.push(of(ours, theirs, "addresses", claims(), claims()));
    }
    found
}

/// A stand-in has to have the region's records, which a peer has.
fn stand_ins(ours: Side<'_>) -> Vec<Disagreement> {
    let strangers = ours.record.stand_ins.iter().filter(|name| !ours.record.peers.contains(*name));
    let found = strangers.map(|name| Disagreement {
        regions: [ours.name.clone(), name.clone()],
        field: "standIns".to_owned(),
        ours: "stands in".to_owned(),
        theirs: "no peer".to_owned(),
    });
    found.collect()
}

/// A peer that is reached by none of the addresses that it gives may be reached by chance only.
fn addresses(
    own: &RegionName,
    regions: &BTreeMap<RegionName, Region>,
    dialled: &BTreeMap<RegionName, Vec<String>>,
) -> Vec<Disagreement> {
    let differs = |(name, dialled): (&RegionName, &Vec<String>)| {
        let given = &regions.get(name)?.addresses;
        let agreed = given.is_empty() || dialled.iter().any(|address| given.contains(address));
        (!agreed).then(|| Disagreement {
            regions: [own.clone(), name.clone()],
            field: "addresses".to_owned(),
            ours: dialled.join(", "),
            theirs: given.join(", "),
        })
    };
    dialled.iter().filter_map(differs).collect()
}

fn of(ours: Side<'_>, theirs: Side<'_>, field: &str, our: String, their: String) -> Disagreement {
    Disagreement {
        regions: [ours.name.clone(), theirs.name.clone()],
        field: field.to_owned(),
        ours: our,
        theirs: their,
    }
}

fn names(list: &[RegionName]) -> String {
    match list {
        [] => "none".to_owned(),
        list => list.iter().map(RegionName::as_str).collect::<Vec<_>>().join(", "),
    }
}

/// So much of each as tells them apart.
fn roots(region: &Region) -> String {
    let short = |root: &[u8; 32]| {
        root.iter().take(8).fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
    };
    region.pinned_roots.iter().map(short).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `us peers=eu,asia eu=100 root=1 order=us,eu standins=asia reads=1 at=h:1 may=us-a:shop`
    fn parse(text: &str) -> (RegionName, Region) {
        let mut words = text.split_whitespace();
        let name: RegionName = words.next().unwrap().parse().unwrap();
        let mut region = Region {
            reads_level: 2,
            incarnation: "i".into(),
            pinned_roots: [[1; 32]].into(),
            ..Region::default()
        };
        for word in words {
            let (field, value) = word.split_once('=').unwrap();
            let list = || value.split(',').map(|name| name.parse().unwrap());
            match field {
                "peers" => region.peers = list().collect(),
                "order" => region.rollout_order = list().collect(),
                "standins" => region.stand_ins = list().collect(),
                "root" => region.pinned_roots = [[value.parse().unwrap(); 32]].into(),
                "reads" => region.reads_level = value.parse().unwrap(),
                "incarnation" => region.incarnation = value.trim_matches('-').into(),
                "at" => region.addresses = vec![value.into()],
                "may" => {
                    let (cluster, namespace) = value.split_once(':').unwrap();
                    let namespaces = [namespace.parse().unwrap()].into();
                    let to = Entitlement::Namespaces(namespaces);
                    region.entitlements.insert(cluster.parse().unwrap(), to);
                }
                of => drop(region.distances.insert(of.parse().unwrap(), value.parse().unwrap())),
            }
        }
        (name, region)
    }

    #[track_caller]
    fn check_dialled(regions: &str, dialled: &str, expected: &[&str]) {
        let regions = regions.split('|').map(parse).collect();
        let dialled = dialled.split_whitespace().map(|word| {
            let (name, address) = word.split_once('=').unwrap();
            (name.parse().unwrap(), vec![address.to_owned()])
        });
        let found = disagreements(&"us".parse().unwrap(), &regions, &dialled.collect());
        let found: Vec<String> = found
            .iter()
            .map(|d| {
                let [a, b] = &d.regions;
                format!("{a}-{b} {}: {} / {}", d.field, d.ours, d.theirs)
            })
            .collect();
        assert_eq!(found, expected);
    }

    #[track_caller]
    fn check(regions: &str, expected: &[&str]) {
        check_dialled(regions, "", expected);
    }

    #[test]
    fn regions_that_say_the_same_do_not_disagree() {
        check("us peers=eu eu=100 order=us,eu standins=eu | eu peers=us us=100 order=us,eu", &[]);
        check("us", &[]);
        check("us | eu", &[]);
    }

    #[test]
    fn each_setting_that_has_two_sides_is_compared() {
        check("us eu=100 | eu us=90", &["us-eu distances: 100 / 90"]);
        check("us eu=100 | eu", &["us-eu distances: 100 / none"]);
        check("us | eu peers=us", &["us-eu peers: no peer / a peer"]);
        let (one, two) = ("0101010101010101", "0202020202020202");
        check("us root=1 | eu root=2", &[&format!("us-eu roots: {one} / {two}")]);
        check("us order=us,eu | eu order=eu,us", &["us-eu rolloutOrder: us, eu / eu, us"]);
        check("us order=us,eu | eu", &["us-eu rolloutOrder: us, eu / none"]);
        check("us standins=eu | eu", &["us-eu standIns: stands in / no peer"]);
        check("us | eu reads=1", &["us-eu readsLevel: 2 / 1"]);
        check("us at=h:1 | eu at=h:1", &["us-eu addresses: claims h:1 / claims h:1"]);
    }

    #[test]
    fn our_own_side_comes_first_and_others_are_compared_too() {
        check("asia us=5 | us", &["us-asia distances: none / 5"]);
        check("asia eu=5 | eu | us", &["asia-eu distances: 5 / none"]);
    }

    #[test]
    fn a_record_of_the_first_level_is_asked_for_no_more_than_it_says() {
        check("us peers=eu order=us | eu incarnation=- root=9 reads=2", &[]);
    }

    #[test]
    fn a_peer_is_to_be_dialled_where_it_says() {
        check_dialled("us | eu at=h:1", "eu=h:1", &[]);
        check_dialled("us | eu at=h:1", "eu=h:2", &["us-eu addresses: h:2 / h:1"]);
        check_dialled("us | eu", "eu=h:2 asia=h:3", &[]);
    }

    #[track_caller]
    fn check_drift(file: &str, published: &str, expected: &[&str]) {
        let ((own, file), (_, published)) = (parse(file), parse(published));
        let found = drift(&own, &file, &published);
        assert!(found.iter().all(|d| d.regions == [own.clone(), own.clone()]), "{found:?}");
        let found: Vec<_> =
            found.iter().map(|d| format!("{}: {} / {}", d.field, d.ours, d.theirs)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_replica_whose_file_says_else_than_its_region_is_told_of_each_setting() {
        let same = "us peers=eu,asia eu=100 order=us,eu standins=eu at=h:1 may=us-a:shop";
        check_drift(same, same, &[]);
        check_drift("us peers=eu,asia", "us peers=asia,eu", &[]);
        check_drift("us eu=100", "us eu=90", &["distances: eu: 100 / eu: 90"]);
        check_drift("us peers=eu", "us", &["peers: eu / none"]);
        check_drift("us at=h:1", "us at=h:2", &["addresses: h:1 / h:2"]);
        check_drift("us order=us,eu", "us", &["rolloutOrder: us, eu / none"]);
        check_drift("us", "us standins=eu", &["standIns: none / eu"]);
        check_drift("us", "us may=us-a:shop", &["entitlements: none / us-a: [shop]"]);
        let (one, two) = ("0101010101010101", "0202020202020202");
        check_drift("us root=1", "us root=2", &[&format!("roots: {one} / {two}")]);
        check_drift("us order=us,eu", "us incarnation=-", &[]);
    }
}
