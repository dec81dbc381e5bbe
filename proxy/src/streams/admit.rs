//! As which class of client a stream is served.

use std::net::SocketAddr;
use std::sync::Arc;

use tombolo_federation::catalog::Catalog;
use tombolo_federation::names::{ClusterId, RegionName};
use tonic::Status;

use super::AdsConfig;
use crate::class::{ClientClass, ClientKind, ClientLocality, ProxyIdentity};
use crate::wire::Node;

/// Metadata of a node: where its Envoy listens for its workload, as `address:port`.
pub(crate) const LISTENER: &str = "tombolo.listener";

/// A zone is part of the key of what is kept for a class; Kubernetes bounds label values likewise.
const MAX_ZONE: usize = 63;

/// Why a stream is not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("the first request of a stream must have a node")]
    NoNode,
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
            Refused::NoNode | Refused::NoType | Refused::Listener(_) | Refused::Name { .. } => {
                Self::invalid_argument(text)
            }
            Refused::Contradiction { .. } => Self::permission_denied(text),
        }
    }
}

/// The class of a client: place by its identity, or by its word where that is allowed; zone by its
/// word if its cluster has that zone; the rest by its word.
pub(super) fn admit(
    config: &AdsConfig,
    catalog: &Catalog,
    identity: Option<&ProxyIdentity>,
    node: &Node,
) -> Result<ClientClass, Refused> {
    let (region, cluster) = match identity {
        Some(identity) => proven(identity, node)?,
        None => claimed(config, node)?,
    };
    let record = cluster.as_ref().and_then(|id| catalog.clusters.get(id)).map(|c| &c.record);
    let network = record.map(|record| record.network.as_str()).filter(|name| !name.is_empty());
    let says = node.locality.as_ref().map_or("", |locality| locality.zone.as_str());
    let has_it = |zone: &&str| {
        !zone.is_empty()
            && zone.len() <= MAX_ZONE
            && record.is_none_or(|r| r.zones.is_empty() || r.zones.contains(*zone))
    };
    let locality = ClientLocality {
        region,
        zone: Some(says).filter(has_it).map(Arc::from),
        cluster,
        network: network.map_or_else(|| Arc::clone(&config.home.network), Arc::from),
    };
    let kind = ClientKind::of_user_agent(&node.user_agent_name);
    Ok(ClientClass { kind, locality, listener: listener(config, node)? })
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
    use prost_types::value::Kind;
    use tombolo_federation::catalog::Cluster;
    use tombolo_federation::record;

    use super::*;
    use crate::testkit::{at, catalog, cluster};

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
        let mut catalog = catalog(1, Vec::new());
        let record = record::Cluster {
            network: "vpc".into(),
            zones: ["a".to_owned()].into(),
            ..record::Cluster::default()
        };
        let entry = Cluster { region: "eu".parse().unwrap(), record };
        catalog.clusters.insert_mut(cluster("eu-c"), Arc::new(entry));
        let class = |zone| admit(&config(), &catalog, Some(&identity()), &node("", zone, ""));
        let place = class("a").unwrap().locality;
        assert_eq!((place.region.as_str(), &*place.network), ("eu", "vpc"));
        assert_eq!((place.zone.as_deref(), place.cluster), (Some("a"), Some(cluster("eu-c"))));
        assert_eq!(class("elsewhere").unwrap().locality.zone, None);
        assert_eq!(class("").unwrap().locality.zone, None);
    }

    #[test]
    fn t6_a_contradiction_is_refused() {
        let catalog = catalog(1, Vec::new());
        for node in [node("us", "", ""), node("eu", "", "us-c")] {
            let refused = admit(&config(), &catalog, Some(&identity()), &node).unwrap_err();
            assert_eq!(Status::from(refused).code(), tonic::Code::PermissionDenied);
        }
    }

    #[test]
    fn without_identity_a_client_is_what_it_says() {
        let catalog = catalog(1, Vec::new());
        let place = |node| admit(&config(), &catalog, None, &node).map(|class| class.locality);
        let said = place(node("eu", "b", "eu-c")).unwrap();
        assert_eq!((said.region.as_str(), said.zone.as_deref()), ("eu", Some("b")));
        assert_eq!(&*said.network, "net", "of its cluster");
        let silent = place(Node::default()).unwrap();
        assert_eq!((silent.region.as_str(), silent.cluster), ("us", Some(cluster("us-c"))));
        assert!(place(node("EU!", "", "")).is_err());
    }

    #[test]
    fn listeners_by_metadata() {
        let catalog = catalog(1, Vec::new());
        let with = |text: &str| {
            let value = prost_types::Value { kind: Some(Kind::StringValue(text.into())) };
            let fields = [(LISTENER.to_owned(), value)].into();
            let metadata = Some(prost_types::Struct { fields });
            let node = Node { metadata, ..Node::default() };
            admit(&config(), &catalog, None, &node).map(|class| class.listener)
        };
        assert_eq!(with("127.0.0.9:80").unwrap(), at("127.0.0.9:80"));
        assert_eq!(with("[::1]:80").unwrap(), at("[::1]:80"));
        assert!(with("localhost:80").unwrap_err().to_string().contains("localhost:80"));
    }
}
