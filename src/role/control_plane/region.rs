//! What a region says of itself, from its control plane's file.
//!
//! Leaves to others: its incarnation and members, which the leader knows from the store
//! (`federation::sync::settings`).

use std::collections::BTreeSet;

use tombolo_federation::record::{READS_LEVEL, Region};

use crate::config::ControlPlaneConfig;

/// As the file has it; `pinned_roots` as the identity directory has them.
pub(super) fn of(config: &ControlPlaneConfig, pinned_roots: BTreeSet<[u8; 32]>) -> Region {
    let addresses = match &config.addresses[..] {
        [] => vec![config.listen.grpc.to_string()],
        addresses => addresses.iter().map(ToString::to_string).collect(),
    };
    let entitlements = config.entitlements.iter();
    Region {
        addresses,
        distances: config.distances.clone(),
        reads_level: READS_LEVEL,
        software_version: env!("CARGO_PKG_VERSION").to_owned(),
        peers: config.peers.iter().map(|peer| peer.region.clone()).collect(),
        pinned_roots,
        entitlements: entitlements.map(|(to, names)| (to.clone(), names.0.clone())).collect(),
        stand_ins: config.stand_ins.clone(),
        rollout_order: config.rollout_order.clone(),
        ..Region::default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};
    use tombolo_federation::record::Entitlement;

    use super::*;

    fn config(more: &Value) -> ControlPlaneConfig {
        let mut config = json!({
            "mesh": "demo.example",
            "region": "us",
            "stateDir": "state",
            "identity": "identity",
            "listen": {"grpc": "10.0.0.1:7443", "dns": "10.0.0.1:53", "admin": "127.0.0.1:7080"},
        });
        let all = config.as_object_mut().unwrap();
        all.extend(more.as_object().unwrap().clone());
        serde_json::from_value(config).unwrap()
    }

    #[test]
    fn a_region_says_what_its_file_says_field_by_field() {
        let config = config(&json!({
            "addresses": ["cp-0.us:7443", "cp-1.us:7443"],
            "peers": [{"region": "eu", "address": "h:1"}, {"region": "asia", "address": "h:2"}],
            "distances": {"eu": 90, "asia": 150},
            "entitlements": {"us-a": ["shop", "pay"], "us-b": ["*"], "us-c": []},
            "standIns": ["eu", "asia"],
            "rolloutOrder": ["asia", "us", "eu"],
        }));
        // A new field has to be thought of here.
        let Region {
            addresses,
            distances,
            reads_level,
            software_version,
            incarnation,
            peers,
            pinned_roots,
            entitlements,
            stand_ins,
            rollout_order,
            members,
        } = of(&config, [[7; 32]].into());
        let name = |name: &str| name.parse().unwrap();
        assert_eq!(addresses, ["cp-0.us:7443", "cp-1.us:7443"]);
        assert_eq!(distances, BTreeMap::from([(name("eu"), 90), (name("asia"), 150)]));
        assert_eq!(reads_level, READS_LEVEL);
        assert_eq!(software_version, env!("CARGO_PKG_VERSION"));
        assert_eq!(peers, BTreeSet::from([name("eu"), name("asia")]));
        assert_eq!(pinned_roots, BTreeSet::from([[7; 32]]));
        let names = |names: &[&str]| {
            Entitlement::Namespaces(names.iter().map(|name| name.parse().unwrap()).collect())
        };
        let expected =
            [("us-a", names(&["shop", "pay"])), ("us-b", Entitlement::All), ("us-c", names(&[]))];
        let expected = expected.map(|(cluster, to)| (cluster.parse().unwrap(), to));
        assert_eq!(entitlements, BTreeMap::from(expected));
        assert_eq!(stand_ins, [name("eu"), name("asia")]);
        assert_eq!(rollout_order, [name("asia"), name("us"), name("eu")]);
        assert!(incarnation.is_empty() && members.is_empty(), "the leader's to say");
    }

    #[test]
    fn without_addresses_it_is_dialled_where_it_listens_and_says_no_more_than_it_was_told() {
        let said = of(&config(&json!({})), BTreeSet::new());
        assert_eq!(said.addresses, ["10.0.0.1:7443"]);
        assert!(said.entitlements.is_empty() && said.peers.is_empty() && said.distances.is_empty());
    }
}
