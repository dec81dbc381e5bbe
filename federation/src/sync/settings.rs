//! What a region says of itself: its settings, and the clusters that joined it.
//!
//! Pure. Settings come from configuration; incarnation and members are the store's to tell.

use std::collections::BTreeMap;

use super::decisions;
use super::facts;
use super::local::Facts;
use crate::key::{Key, Kind};
use crate::names::{ClusterId, Owner, RegionName};
use crate::record::{Body, Member, Region, WRITES_LEVEL};
use crate::replica::Replica;

/// The region's own record as `replica` has it.
#[must_use]
pub fn held<'a>(replica: &'a Replica, region: &RegionName) -> Option<&'a Region> {
    let key = Key::of_owner(Owner::region(region.clone()), Kind::Region);
    match &replica.get(&key)?.record.as_ref()?.body {
        Body::Region(region) => Some(region),
        _ => None,
    }
}

/// Which one of all that ever had its name `owner` is, as it says itself: a cluster's UID, a
/// region's incarnation.
#[must_use]
pub fn incarnation<'a>(replica: &'a Replica, owner: &Owner) -> Option<&'a str> {
    if owner.cluster.is_none() {
        return held(replica, &owner.region).map(|region| region.incarnation.as_str());
    }
    let key = Key::of_owner(owner.clone(), Kind::Cluster);
    match &replica.get(&key)?.record.as_ref()?.body {
        Body::Cluster(cluster) => Some(&cluster.uid),
        _ => None,
    }
}

/// The records of all regions.
pub fn regions(replica: &Replica) -> impl Iterator<Item = (&RegionName, &Region)> {
    let owners = replica.owners().map(|(owner, _)| owner).filter(|owner| owner.cluster.is_none());
    owners.filter_map(|owner| Some((&owner.region, held(replica, &owner.region)?)))
}

/// What all readers of the mesh understand: writers never exceed it. Regions that say nothing of
/// it read the first level; while no region is known, nobody is known to need less than this
/// version writes.
#[must_use]
pub fn mesh_level(replica: &Replica) -> u32 {
    let lowest = regions(replica).map(|(_, region)| region.reads_level.max(1)).min();
    lowest.unwrap_or(WRITES_LEVEL)
}

/// The clusters that joined `region`: by what its record held and what sessions recorded, which
/// knows better, less those that left. Sessions that are lost with a store are so not forgotten.
#[must_use]
pub fn members(
    replica: &Replica,
    region: &RegionName,
    sessions: &Facts,
) -> BTreeMap<ClusterId, Member> {
    let mut members = held(replica, region).map(|held| held.members.clone()).unwrap_or_default();
    let recorded = sessions.iter().flat_map(|facts| facts.iter());
    for (owner, member) in recorded.filter_map(|(key, value)| facts::member(key, value)) {
        if let (true, Some(cluster)) = (owner.region == *region, owner.cluster) {
            members.insert(cluster, member);
        }
    }
    members.retain(|cluster, member| {
        let owner = Owner::cluster(region.clone(), cluster.clone());
        decisions::has_left(replica, &owner, &member.uid).is_none()
    });
    members
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::record::{Decided, Decision, Epoch};
    use crate::replica::{self, Batch, ReplicaWriter};
    use crate::sync::own::OwnRecords;
    use prost::Message as _;

    fn says(writer: &ReplicaWriter, region: &str, records: Vec<(Key, Body)>) {
        let epoch = Epoch { id: region.into(), count: 1 };
        let owner = Owner::region(region.parse().unwrap());
        let mut own = OwnRecords::new(owner, epoch);
        let items = records.into_iter().map(|(key, body)| own.say(&key, &Arc::new(body)));
        let batch = Batch { items: items.collect(), ..Batch::default() };
        writer.apply(batch, tokio::time::Instant::now());
    }

    fn record(region: &str, reads_level: u32, members: &[(&str, &str)]) -> (Key, Body) {
        let member = |(cluster, uid): &(&str, &str)| {
            let joined = jiff::Timestamp::UNIX_EPOCH;
            (cluster.parse().unwrap(), Member { uid: (*uid).to_owned(), joined })
        };
        let members = members.iter().map(member).collect();
        let body = Body::Region(Region { reads_level, members, ..Region::default() });
        (Key::of_owner(Owner::region(region.parse().unwrap()), Kind::Region), body)
    }

    #[test]
    fn nothing_is_written_that_a_region_of_the_mesh_cannot_read() {
        let (writer, _readers) = replica::channel();
        assert_eq!(mesh_level(&writer.current()), WRITES_LEVEL);
        says(&writer, "us", vec![record("us", 2, &[])]);
        assert_eq!(mesh_level(&writer.current()), 2);
        says(&writer, "eu", vec![record("eu", 1, &[])]);
        assert_eq!(mesh_level(&writer.current()), 1);
        says(&writer, "asia", vec![record("asia", 0, &[])]);
        assert_eq!(mesh_level(&writer.current()), 1);
    }

    #[test]
    fn members_survive_lost_sessions_and_go_when_they_leave() {
        let (writer, _readers) = replica::channel();
        let region: RegionName = "us".parse().unwrap();
        let members_of = |sessions: &Facts| -> Vec<String> {
            let members = members(&writer.current(), &region, sessions);
            members.iter().map(|(id, member)| format!("{id}={}", member.uid)).collect()
        };
        let session = |cluster: &str, uid: &str| {
            let session = crate::proto::local::Session { uid: uid.into(), ..Default::default() };
            let owner: Owner = format!("us/{cluster}").parse().unwrap();
            (facts::session_key(&owner), session.encode_to_vec().into())
        };
        let sessions = |list: Vec<_>| Some(Arc::new(list.into_iter().collect()));

        assert_eq!(members_of(&None), [""; 0]);
        says(&writer, "us", vec![record("us", 2, &[("us-a", "1"), ("us-b", "1")])]);
        assert_eq!(members_of(&None), ["us-a=1", "us-b=1"]);
        let both = sessions(vec![session("us-b", "2"), session("us-c", "1")]);
        assert_eq!(members_of(&both), ["us-a=1", "us-b=2", "us-c=1"], "sessions know better");

        let what = Decided::Leave { owner: "us/us-b".parse().unwrap(), incarnation: "2".into() };
        let key = decisions::key(&region, &what);
        let (by, note) = (String::new(), String::new());
        let left = Decision { by, at: jiff::Timestamp::UNIX_EPOCH, note, what };
        says(&writer, "us", vec![(key, Body::Decision(left))]);
        assert_eq!(members_of(&both), ["us-a=1", "us-c=1"]);
        // The same name, another cluster.
        let again = sessions(vec![session("us-b", "3")]);
        assert_eq!(members_of(&again), ["us-a=1", "us-b=3"]);
    }
}
