//! The server over a real connection, asked by the generated client of `envoy-types`, whose
//! messages are not ours. Tests are named by the rule of XDS.md that they hold.

mod delta;
mod envoy;
mod grpc;
mod reconnect;
mod server;
mod sotw;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::{Locality, Node};
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::google::rpc;
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tombolo_federation::catalog::{Publisher, Service, channel};
use tonic::transport::{Channel, Server};
use tonic::{Status, Streaming};

use super::*;
use crate::resources::Type;
use crate::testkit::{catalog, cluster, service};

/// Far more than anything here takes; reached only by what is broken.
const LONG: Duration = Duration::from_secs(20);

const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const LDS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const RDS: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";

const CHECKOUT: &str = "outbound|80||checkout.shop.svc.clusterset.local";
const CART: &str = "outbound|80||cart.shop.svc.clusterset.local";

pub(crate) struct Running {
    pub(crate) ads: AdsServer,
    pub(crate) addr: SocketAddr,
    pub(crate) stop: CancellationToken,
    pub(crate) publisher: Publisher,
    generation: u64,
    tasks: JoinSet<()>,
}

fn home() -> ClientLocality {
    ClientLocality {
        region: "us".parse().unwrap(),
        zone: None,
        cluster: Some(cluster("us-c")),
        network: "net".into(),
    }
}

impl Running {
    /// A server that has no catalog yet.
    pub(crate) async fn start() -> Self {
        let config = AdsConfig { allow_anonymous: true, ..AdsConfig::new(home()) };
        Self::with(config).await
    }

    async fn with(config: AdsConfig) -> Self {
        Self::at(([127, 0, 0, 1], 0).into(), config).await
    }

    async fn at(addr: SocketAddr, config: AdsConfig) -> Self {
        let stop = CancellationToken::new();
        let (publisher, snapshots) = channel();
        let ads = AdsServer::new(snapshots, config, stop.clone());
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        let server = Server::builder().add_service(ads.into_service());
        let ends = stop.clone().cancelled_owned();
        tasks.spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            server.serve_with_incoming_shutdown(incoming, ends).await.unwrap();
        });
        tasks.spawn(ads.clone().run());
        Self { ads, addr, stop, publisher, generation: 0, tasks }
    }

    pub(crate) async fn serving(services: Vec<Service>) -> Self {
        let mut running = Self::start().await;
        running.serve(services);
        running
    }

    /// Replaces the catalog; the changed services are found as a catalog's builder would.
    pub(crate) fn serve(&mut self, services: Vec<Service>) {
        self.generation += 1;
        let next = Arc::new(catalog(self.generation, services));
        let held = self.ads.inner.cache.catalog().borrow().clone();
        let touched = held.map(|held| {
            let keys = held.services.keys().chain(next.services.keys());
            let differs = |key: &&_| held.services.get(*key) != next.services.get(*key);
            keys.filter(differs).cloned().collect::<BTreeSet<_>>()
        });
        self.ads.inner.cache.apply(&next, touched);
    }

    async fn client(&self) -> AggregatedDiscoveryServiceClient<Channel> {
        let channel = Channel::from_shared(format!("http://{}", self.addr)).unwrap();
        let client = AggregatedDiscoveryServiceClient::new(channel.connect().await.unwrap());
        client.max_decoding_message_size(64 << 20)
    }

    async fn delta(&self) -> Delta {
        let (requests, sent) = mpsc::channel(64);
        let mut client = self.client().await;
        let opened = client.delta_aggregated_resources(ReceiverStream::new(sent)).await;
        let responses = opened.unwrap().into_inner();
        Delta { requests, responses, greeted: false, fences: 0 }
    }

    async fn sotw(&self, agent: &str) -> Sotw {
        let (requests, sent) = mpsc::channel(64);
        let mut client = self.client().await;
        let opened = client.stream_aggregated_resources(ReceiverStream::new(sent)).await;
        let responses = opened.unwrap().into_inner();
        Sotw { requests, responses, agent: agent.into(), greeted: false, fences: 0 }
    }

    /// Ends the server; its address can be taken again.
    async fn end(mut self) {
        self.stop.cancel();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        timeout(LONG, all).await.expect("the server and its streams end");
    }

    /// The status of the only client.
    async fn status(&self, wanted: impl Fn(&ProxyStatus) -> bool) -> ProxyStatus {
        let found = async {
            loop {
                if let [only] = &self.ads.proxies()[..]
                    && wanted(only)
                {
                    return only.clone();
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(LONG, found).await.expect("the server lists the client as wanted")
    }
}

fn node(agent: &str) -> Node {
    Node {
        id: "test".into(),
        locality: Some(Locality { region: "us".into(), ..Locality::default() }),
        user_agent_name: agent.into(),
        ..Node::default()
    }
}

fn refusal(text: &str) -> rpc::Status {
    rpc::Status { code: 3, message: text.into(), details: Vec::new() }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// A client of the incremental protocol that answers only when told to.
struct Delta {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    greeted: bool,
    fences: u32,
}

impl Delta {
    async fn send(&mut self, mut request: DeltaDiscoveryRequest) {
        if !std::mem::replace(&mut self.greeted, true) {
            request.node = Some(node("envoy"));
        }
        self.requests.send(request).await.unwrap();
    }

    async fn subscribe(&mut self, of: &str, names: &[&str]) {
        self.send(DeltaDiscoveryRequest {
            type_url: of.into(),
            resource_names_subscribe: owned(names),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    }

    async fn unsubscribe(&mut self, of: &str, names: &[&str]) {
        self.send(DeltaDiscoveryRequest {
            type_url: of.into(),
            resource_names_unsubscribe: owned(names),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    }

    async fn resume(&mut self, of: &str, names: &[&str], held: &[(String, String)]) {
        self.send(DeltaDiscoveryRequest {
            type_url: of.into(),
            resource_names_subscribe: owned(names),
            initial_resource_versions: held.iter().cloned().collect(),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    }

    async fn ack(&mut self, response: &DeltaDiscoveryResponse) {
        self.send(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    }

    async fn nack(&mut self, response: &DeltaDiscoveryResponse, text: &str) {
        self.send(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: Some(refusal(text)),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    }

    async fn read(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let read = timeout(LONG, self.responses.message()).await.expect("an answer in time");
        read.map(|message| message.expect("the stream goes on"))
    }

    /// The next response, which must be of this type.
    async fn next(&mut self, of: &str) -> DeltaDiscoveryResponse {
        let response = self.read().await.unwrap();
        assert_eq!(response.type_url, of, "{response:?}");
        response
    }

    /// The next response, acknowledged, as the names in it and, with a `-`, those removed.
    async fn names(&mut self, of: &str) -> Vec<String> {
        let response = self.next(of).await;
        self.ack(&response).await;
        names(&response)
    }

    /// Proves that nothing else is to come: what is asked last, of a type that is served after all
    /// others, is answered next.
    async fn quiet(&mut self) {
        self.fences += 1;
        let name = format!("fence-{}", self.fences);
        self.subscribe("test/fence", &[&name]).await;
        assert_eq!(self.names("test/fence").await, [format!("-{name}")]);
    }

    /// Opens as Envoy does, and acknowledges all.
    async fn like_envoy(&mut self) {
        self.subscribe(CDS, &[]).await;
        let clusters = self.next(CDS).await;
        let names: Vec<&str> = clusters.resources.iter().map(|r| r.name.as_str()).collect();
        self.subscribe(EDS, &names).await;
        let endpoints = self.next(EDS).await;
        self.ack(&endpoints).await;
        self.ack(&clusters).await;
        self.subscribe(LDS, &[]).await;
        self.names(LDS).await;
        self.subscribe(RDS, &["outbound"]).await;
        self.names(RDS).await;
    }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<String> {
    let put = response.resources.iter().map(|resource| resource.name.clone());
    put.chain(response.removed_resources.iter().map(|name| format!("-{name}"))).collect()
}

/// A client of the state-of-the-world protocol that answers only when told to.
struct Sotw {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
    agent: String,
    greeted: bool,
    fences: u32,
}

impl Sotw {
    async fn send(&mut self, mut request: DiscoveryRequest) {
        if !std::mem::replace(&mut self.greeted, true) {
            request.node = Some(node(&self.agent));
        }
        self.requests.send(request).await.unwrap();
    }

    async fn ask(&mut self, of: &str, names: &[&str], after: Option<&DiscoveryResponse>) {
        let after = after.cloned().unwrap_or_default();
        self.send(DiscoveryRequest {
            type_url: of.into(),
            resource_names: owned(names),
            version_info: after.version_info,
            response_nonce: after.nonce,
            ..DiscoveryRequest::default()
        })
        .await;
    }

    async fn next(&mut self, of: &str) -> DiscoveryResponse {
        let read = timeout(LONG, self.responses.message()).await.expect("an answer in time");
        let response = read.unwrap().expect("the stream goes on");
        assert_eq!(response.type_url, of, "{response:?}");
        response
    }

    /// Proves that nothing else is to come, by asking anew for routes, which are sent last.
    async fn quiet(&mut self) {
        self.fences += 1;
        assert_eq!(self.fences, 1, "routes are asked for once");
        self.ask(RDS, &["outbound"], None).await;
        let routes = self.next(RDS).await;
        self.ask(RDS, &["outbound"], Some(&routes)).await;
    }
}

fn cluster_names(response: &DiscoveryResponse) -> Vec<String> {
    let name = |any: &envoy_types::pb::google::protobuf::Any| {
        if response.type_url == CDS {
            Cluster::decode(&*any.value).unwrap().name
        } else {
            ClusterLoadAssignment::decode(&*any.value).unwrap().cluster_name
        }
    };
    response.resources.iter().map(name).collect()
}

fn checkout(ports: &str, endpoints: &str) -> Service {
    service("shop/checkout").ports(&[ports]).endpoints(endpoints).build()
}

fn cart() -> Service {
    service("shop/cart").endpoints("us/a/9").build()
}

fn both() -> Vec<Service> {
    vec![checkout("http=80", "us/a/1"), cart()]
}
