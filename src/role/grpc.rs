//! The one gRPC port of a role: TLS, who is calling, and which services there are.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use http::Uri;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tombolo_ca::Clock;
use tombolo_ca::identity::{Identity, PeerIdentity};
use tombolo_ca::material::Held;
use tombolo_ca::tls::{Connector, Incoming, Limits, PeerInfo};
use tombolo_federation::sync::Caller;
use tombolo_federation::sync::transport::Dial;
use tombolo_proxy::ProxyIdentity;
use tonic::service::{InterceptorLayer, Routes};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Status};

use crate::config::Dials;

/// A connection whose other end does not answer for 10 s + 5 s is given up.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVE_WITHIN: Duration = Duration::from_secs(5);
/// What one connection may have open at a time.
const MAX_STREAMS: u32 = 256;

/// Serves until told to stop. Long streams have to watch the same token: the server ends when
/// they do.
pub(crate) async fn serve(
    listener: TcpListener,
    held: Held,
    routes: Routes,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let incoming = Incoming::new(listener, &held, &Clock::system(), Limits::default())?;
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_WITHIN))
        .max_concurrent_streams(Some(MAX_STREAMS))
        .layer(InterceptorLayer::new(identify))
        .add_routes(routes);
    server.serve_with_incoming_shutdown(incoming.stream(), stop.cancelled_owned()).await?;
    Ok(())
}

/// The way to one of a region's replicas. Each connection takes the next of the addresses,
/// beginning anywhere, so that replicas share the load, and one that is dead, frozen or without its
/// store is left behind.
#[derive(Clone)]
pub(crate) struct Way {
    pub(crate) endpoint: Endpoint,
    pub(crate) connector: Connector,
}

impl Way {
    /// Only the `expected` identity is spoken to.
    pub(crate) fn new(addresses: &Dials, expected: Identity, held: &Held) -> anyhow::Result<Self> {
        // The scheme says nothing about the connection: the connector does the TLS.
        let uris = addresses.as_slice().iter().map(|address| format!("http://{address}").parse());
        let mut uris: Vec<Uri> = uris.collect::<Result<_, _>>()?;
        let order = RandomState::new();
        uris.sort_by_key(|uri| order.hash_one(uri));
        let first = uris.first().cloned().context("a region without an address")?;
        let endpoint = Endpoint::from(first)
            .http2_keep_alive_interval(KEEPALIVE_EVERY)
            .keep_alive_timeout(KEEPALIVE_WITHIN)
            .keep_alive_while_idle(true);
        let connector = Connector::new(held, expected, &Clock::system())?.among(uris);
        Ok(Self { endpoint, connector })
    }
}

impl Dial for Way {
    type Transport = Channel;

    /// Connects when first used, and again whenever the connection is lost.
    fn dial(&self) -> Channel {
        self.endpoint.connect_with_connector_lazy(self.connector.clone())
    }
}

/// Says to the services who is calling, as the certificate proves it.
#[expect(clippy::unnecessary_wraps, reason = "the shape of an interceptor")]
fn identify(mut request: Request<()>) -> Result<Request<()>, Status> {
    let peer = request.extensions().get::<PeerInfo>().and_then(|peer| peer.identity.clone());
    if let Some(peer) = peer {
        if let Some(caller) = caller(&peer.identity) {
            request.extensions_mut().insert(caller);
        }
        if let Some(proxy) = proxy(&peer) {
            request.extensions_mut().insert(proxy);
        }
        request.extensions_mut().insert(Arc::clone(&peer));
    }
    Ok(request)
}

fn caller(identity: &Identity) -> Option<Caller> {
    match identity {
        Identity::Agent { region, cluster } => {
            Some(Caller::Agent { region: region.clone(), cluster: cluster.clone() })
        }
        Identity::ControlPlane { region } => Some(Caller::ControlPlane { region: region.clone() }),
        Identity::Workload { .. } => None,
    }
}

/// A proxy speaks with its workload's identity; where it runs is what its issuer wrote down.
fn proxy(peer: &PeerIdentity) -> Option<ProxyIdentity> {
    let Identity::Workload { region, namespace, .. } = &peer.identity else { return None };
    let origin = peer.origin.as_ref()?;
    Some(ProxyIdentity {
        cluster: origin.cluster.clone(),
        region: region.clone(),
        namespace: namespace.clone(),
    })
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use jiff::Timestamp;
    use tombolo_federation::names::MeshDomain;

    use super::*;

    /// A request as it comes over a connection of `peer`.
    fn from(peer: Option<Identity>) -> Request<()> {
        let mesh: MeshDomain = "mesh.example".parse().unwrap();
        let proven = peer.map(|identity| {
            Arc::new(PeerIdentity {
                id: identity.spiffe_id(&mesh).unwrap(),
                identity,
                origin: Some("us-a/pod".parse().unwrap()),
                serial: "01".to_owned(),
                not_before: Timestamp::UNIX_EPOCH,
                expires: Timestamp::MAX,
            })
        });
        let remote = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let mut request = Request::new(());
        request.extensions_mut().insert(PeerInfo { remote, identity: proven });
        identify(request).unwrap()
    }

    fn workload() -> Identity {
        Identity::Workload {
            region: "us".parse().unwrap(),
            namespace: "tombolo".parse().unwrap(),
            service_account: "region".parse().unwrap(),
        }
    }

    #[test]
    fn a_workload_is_no_caller_of_the_federation_whatever_it_is_called() {
        let request = from(Some(workload()));
        assert!(request.extensions().get::<Caller>().is_none());
        let proxy = request.extensions().get::<ProxyIdentity>().expect("it may be a proxy");
        assert_eq!((proxy.region.as_str(), proxy.cluster.as_str()), ("us", "us-a"));
    }

    #[test]
    fn who_has_no_certificate_is_nobody() {
        let request = from(None);
        assert!(request.extensions().get::<Caller>().is_none());
        assert!(request.extensions().get::<ProxyIdentity>().is_none());
        assert!(request.extensions().get::<Arc<PeerIdentity>>().is_none());
    }

    #[test]
    fn agents_and_control_planes_are_who_their_certificates_say_and_no_proxies() {
        let (region, cluster) = ("eu".parse().unwrap(), "eu-a".parse().unwrap());
        let agent = Identity::Agent { region, cluster };
        let control_plane = Identity::ControlPlane { region: "eu".parse().unwrap() };
        for (identity, expected) in [
            (
                agent,
                Caller::Agent { region: "eu".parse().unwrap(), cluster: "eu-a".parse().unwrap() },
            ),
            (control_plane, Caller::ControlPlane { region: "eu".parse().unwrap() }),
        ] {
            let request = from(Some(identity));
            assert_eq!(request.extensions().get::<Caller>(), Some(&expected));
            assert!(request.extensions().get::<ProxyIdentity>().is_none());
        }
    }
}
