//! As which class of client a stream is served.

use std::net::SocketAddr;
use std::sync::Arc;

use tombolo_federation::names::{ClusterId, RegionName};
use tonic::Status;

use super::AdsConfig;
use crate::cache::Places;
use crate::class::{ClientClass, ClientKind, ClientLocality, ProxyIdentity};
use crate::wire::Node;

/// Metadata of a node: where its Envoy listens for its workload, as `address:port`.
pub(crate) const LISTENER: &str = "tombolo.listener";

/// A zone is part of the key of what is kept for a class; Kubernetes bounds label values likewise.
const MAX_ZONE: usize = 63;

/// What is shown of a node by its id is kept as long as the stream.
const MAX_NODE_ID: usize = 1024;

/// Why a stream is not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("the first request of a stream must have a node")]
    NoNode,
    #[error("node id has {0} bytes: {MAX_NODE_ID} are the most")]
    NodeId(usize),
    #[error("a request must have a type_url")]
    NoType,
    #[error("node metadata {LISTENER:?} is {0:?}: expected an address and a port")]
    Listener(String),
    #[error("node locality says {what} {said:?}: the certificate says {proven:?}")]
    Contradiction { what: &'static str, said: String, proven: String },
    #[error("node locality says {what} {said:?}: expected a DNS label")]
    Name { what: &'static str, said: String },
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        let text = refused.to_string();
        match refused {
            Refused::NoNode
            | Refused::NodeId(_)
            | Refused::NoType
            | Refused::Listener(_)
            | Refused::Name { .. } => Self::invalid_argument(text),
            Refused::Contradiction { .. } => Self::permission_denied(text),
        }
    }
}

/// A client, and what has to be known to find out later that it is of another class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Admitted {
    pub(super) class: ClientClass,
    /// In its own word, which counts if its cluster has that zone.
    zone: Option<Arc<str>>,
}

impl Admitted {
    /// Follows what the client's cluster says now. Returns whether the client is of another class
    /// since. A cluster that says nothing, or nothing any more, is still where it was.
    pub(super) fn follow(&mut self, places: &Places) -> bool {
        let locality = &mut self.class.locality;
        let Some(place) = locality.cluster.as_ref().and_then(|id| places.get(id)) else {
            return false;
        };
        let has_it = |zone: &&Arc<str>| place.zones.is_empty() || place.zones.contains(&***zone);
        let zone = self.zone.as_ref().filter(has_it);
        if locality.network == place.network && locality.zone.as_ref() == zone {
            return false;
        }
        locality.network = Arc::clone(&place.network);
        locality.zone = zone.cloned();
        true
    }
}

/// A node whose id is short enough to be shown and kept.
pub(super) fn check_id(node: &Node) -> Result<(), Refused> {
    if node.id.len() > MAX_NODE_ID { Err(Refused::NodeId(node.id.len())) } else { Ok(()) }
}

/// The class of a client: place by its identity, or by its word where that is allowed; zone by its
/// word if its cluster has that zone; the rest by its word.
pub(super) fn admit(
    config: &AdsConfig,
    places: &Places,
    identity: Option<&ProxyIdentity>,
    node: &Node,
) -> Result<Admitted, Refused> {
    let (region, cluster) = match identity {
        Some(identity) => proven(identity, node)?,
        None => claimed(config, node)?,
    };
    let says = node.locality.as_ref().map_or("", |locality| locality.zone.as_str());
    let zone = Some(says).filter(|zone| !zone.is_empty() && zone.len() <= MAX_ZONE);
    let zone: Option<Arc<str>> = zone.map(Arc::from);
    // Until its cluster is known; a known one's network counts, also one without a name.
    let network = Arc::clone(&config.home.network);
    let locality = ClientLocality { region, zone: zone.clone(), cluster, network };
    let kind = ClientKind::of_user_agent(&node.user_agent_name);
    let class = ClientClass { kind, locality, listener: listener(config, node)? };
    let mut admitted = Admitted { class, zone };
    admitted.follow(places);
    Ok(admitted)
}

fn proven(
    identity: &ProxyIdentity,
    node: &Node,
) -> Result<(RegionName, Option<ClusterId>), Refused> {
    if let Some(said) = &node.locality {
        agree("region", &said.region, identity.region.as_str())?;
        agree("sub-zone", &said.sub_zone, identity.cluster.as_str())?;
    }
    Ok((identity.region.clone(), Some(identity.cluster.clone())))
}

fn agree(what: &'static str, said: &str, proven: &str) -> Result<(), Refused> {
    if said.is_empty() || said == proven {
        return Ok(());
    }
    Err(Refused::Contradiction { what, said: short(said), proven: proven.to_owned() })
}

fn claimed(config: &AdsConfig, node: &Node) -> Result<(RegionName, Option<ClusterId>), Refused> {
    let said = node.locality.clone().unwrap_or_default();
    let name = |what, said: &str| Refused::Name { what, said: short(said) };
    let region = match said.region.as_str() {
        "" => config.home.region.clone(),
        text => text.parse().map_err(|_| name("region", text))?,
    };
    let cluster = match said.sub_zone.as_str() {
        "" => config.home.cluster.clone().filter(|_| region == config.home.region),
        text => Some(text.parse().map_err(|_| name("sub-zone", text))?),
    };
    Ok((region, cluster))
}

fn listener(config: &AdsConfig, node: &Node) -> Result<SocketAddr, Refused> {
    let Some(text) = node.metadata(LISTENER) else { return Ok(config.listener) };
    text.parse().map_err(|_| Refused::Listener(short(text)))
}

/// Errors quote what they refuse, but never a megabyte of it.
fn short(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::Locality;
    use prometheus_client::metrics::counter::Counter;
    use prost_types::value::Kind;
    use tombolo_federation::catalog::{Catalog, Cluster};
    use tombolo_federation::record;

    use super::*;
    use crate::cache::Cache;
    use crate::testkit::{at, catalog, cluster};

    fn places(catalog: Catalog) -> Places {
        let cache = Cache::new("z".into(), Counter::default());
        cache.apply(&Arc::new(catalog), None);
        cache.places().borrow().clone()
    }

    /// `eu-c` on this network, with these zones.
    fn with_eu(network: &str, zones: &[&str]) -> Places {
        let mut catalog = catalog(1, Vec::new());
        let record = record::Cluster {
            network: network.into(),
            zones: zones.iter().map(|zone| (*zone).to_owned()).collect(),
            ..record::Cluster::default()
        };
        let entry = Cluster { region: "eu".parse().unwrap(), record };
        catalog.clusters.insert_mut(cluster("eu-c"), Arc::new(entry));
        places(catalog)
    }

    fn config() -> AdsConfig {
        AdsConfig::new(ClientLocality {
            region: "us".parse().unwrap(),
            zone: None,
            cluster: Some(cluster("us-c")),
            network: "home".into(),
        })
    }

    fn node(region: &str, zone: &str, sub_zone: &str) -> Node {
        let locality =
            Locality { region: region.into(), zone: zone.into(), sub_zone: sub_zone.into() };
        Node { locality: Some(locality), user_agent_name: "envoy".into(), ..Node::default() }
    }

    fn identity() -> ProxyIdentity {
        ProxyIdentity {
            cluster: cluster("eu-c"),
            region: "eu".parse().unwrap(),
            namespace: "shop".parse().unwrap(),
        }
    }

    #[test]
    fn t6_place_by_identity_and_zone_by_word() {
        let places = with_eu("vpc", &["a"]);
        let class = |zone| {
            admit(&config(), &places, Some(&identity()), &node("", zone, "")).map(|a| a.class)
        };
        let place = class("a").unwrap().locality;
        assert_eq!((place.region.as_str(), &*place.network), ("eu", "vpc"));
        assert_eq!((place.zone.as_deref(), place.cluster), (Some("a"), Some(cluster("eu-c"))));
        assert_eq!(class("elsewhere").unwrap().locality.zone, None);
        assert_eq!(class("").unwrap().locality.zone, None);
    }

    #[test]
    fn an_empty_network_of_a_known_cluster_is_its_network() {
        let place = |places: &Places| {
            let admitted = admit(&config(), places, Some(&identity()), &node("", "", ""));
            admitted.unwrap().class.locality.network
        };
        assert_eq!(&*place(&with_eu("", &[])), "");
        assert_eq!(&*place(&Places::default()), "home", "of a cluster that nobody knows");
    }

    #[test]
    fn a_client_follows_its_clusters_record() {
        let unknown = Places::default();
        let admitted = admit(&config(), &unknown, Some(&identity()), &node("", "a", ""));
        let mut client = admitted.unwrap();
        let mut check = |places: &Places, moved: bool, network: &str, zone: Option<&str>| {
            assert_eq!(client.follow(places), moved, "{network} {zone:?}");
            let place = &client.class.locality;
            assert_eq!((&*place.network, place.zone.as_deref()), (network, zone));
        };
        check(&unknown, false, "home", Some("a"));
        check(&with_eu("vpc", &["b"]), true, "vpc", None);
        check(&with_eu("vpc", &["b"]), false, "vpc", None);
        check(&with_eu("vpc", &["a"]), true, "vpc", Some("a"));
        check(&with_eu("", &[]), true, "", Some("a"));
        check(&unknown, false, "", Some("a"));
    }

    #[test]
    fn t6_a_contradiction_is_refused() {
        let places = places(catalog(1, Vec::new()));
        for node in [node("us", "", ""), node("eu", "", "us-c")] {
            let refused = admit(&config(), &places, Some(&identity()), &node).unwrap_err();
            assert_eq!(Status::from(refused).code(), tonic::Code::PermissionDenied);
        }
    }

    #[test]
    fn without_identity_a_client_is_what_it_says() {
        let places = places(catalog(1, Vec::new()));
        let place = |node| admit(&config(), &places, None, &node).map(|a| a.class.locality);
        let said = place(node("eu", "b", "eu-c")).unwrap();
        assert_eq!((said.region.as_str(), said.zone.as_deref()), ("eu", Some("b")));
        assert_eq!(&*said.network, "net", "of its cluster");
        let silent = place(Node::default()).unwrap();
        assert_eq!((silent.region.as_str(), silent.cluster), ("us", Some(cluster("us-c"))));
        assert!(place(node("EU!", "", "")).is_err());
    }

    #[test]
    fn listeners_by_metadata() {
        let places = places(catalog(1, Vec::new()));
        let with = |text: &str| {
            let value = prost_types::Value { kind: Some(Kind::StringValue(text.into())) };
            let fields = [(LISTENER.to_owned(), value)].into();
            let metadata = Some(prost_types::Struct { fields });
            let node = Node { metadata, ..Node::default() };
            admit(&config(), &places, None, &node).map(|a| a.class.listener)
        };
        assert_eq!(with("127.0.0.9:80").unwrap(), at("127.0.0.9:80"));
        assert_eq!(with("[::1]:80").unwrap(), at("[::1]:80"));
        assert!(with("localhost:80").unwrap_err().to_string().contains("localhost:80"));
    }
}
