//! The demo's applications: one small HTTP server per loopback endpoint that the manifests name.
//!
//! They follow the manifests as pods would follow a Deployment: an endpoint that is added gets a
//! server, one that is removed loses it. What a verb stopped stays stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io::ErrorKind;
use std::net::SocketAddr;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tombolo_federation::key::Key;
use tombolo_federation::names::{ClusterId, RegionName, ServiceKey};
use tombolo_federation::record::{Body, Protocol};
use tracing::warn;

/// What a backend is, and answers with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    pub(crate) service: ServiceKey,
    pub(crate) name: String,
    pub(crate) region: RegionName,
    pub(crate) cluster: ClusterId,
    pub(crate) zone: String,
}

impl Backend {
    /// `<cluster>/<pod>`
    fn full_name(&self) -> String {
        format!("{}/{}", self.cluster, self.name)
    }

    /// Whether a verb's NAME means it: `<cluster>/<pod>`, `<cluster>/<service>`, `<cluster>` or
    /// its address.
    fn is_called(&self, name: &str) -> bool {
        let by_service = || format!("{}/{}", self.cluster, self.service.name);
        name == self.full_name()
            || name == self.cluster.as_str()
            || name == self.address.to_string()
            || name == self.address.ip().to_string()
            || name == by_service()
    }

    fn answer(&self) -> String {
        let answer = serde_json::json!({
            "service": self.service.to_string(),
            "backend": self.name,
            "cluster": self.cluster,
            "region": self.region,
            "zone": self.zone,
        });
        format!("{answer}\n")
    }
}

/// All backends of a demo.
#[derive(Default)]
pub(crate) struct Backends {
    wanted: BTreeMap<ClusterId, BTreeSet<Backend>>,
    stopped: BTreeSet<String>,
    running: BTreeMap<SocketAddr, (Backend, AbortHandle)>,
    failed: BTreeMap<SocketAddr, (Backend, ErrorKind)>,
    servers: JoinSet<()>,
}

impl Backends {
    /// Takes what a cluster's manifests say now.
    pub(crate) async fn follow(
        &mut self,
        region: &RegionName,
        cluster: &ClusterId,
        records: &BTreeMap<Key, Body>,
    ) {
        let backends =
            records.iter().flat_map(|(key, body)| backends_of(region, cluster, key, body));
        self.wanted.insert(cluster.clone(), backends.collect());
        self.reconcile().await;
    }

    /// Stops all that are called `name`; says how many.
    pub(crate) async fn stop(&mut self, name: &str) -> Result<usize, String> {
        let called = self.called(name)?;
        self.stopped.extend(called.iter().map(Backend::full_name));
        self.reconcile().await;
        Ok(called.len())
    }

    /// Starts all that are called `name`; says how many.
    pub(crate) async fn start(&mut self, name: &str) -> Result<usize, String> {
        let called = self.called(name)?;
        for backend in &called {
            self.stopped.remove(&backend.full_name());
            self.failed.remove(&backend.address);
        }
        self.reconcile().await;
        Ok(called.len())
    }

    /// How many are up.
    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    fn called(&self, name: &str) -> Result<Vec<Backend>, String> {
        let all = || self.wanted.values().flatten();
        let called: Vec<Backend> =
            all().filter(|backend| backend.is_called(name)).cloned().collect();
        if called.is_empty() {
            let names: BTreeSet<String> = all().map(Backend::full_name).collect();
            let names = names.into_iter().take(40).collect::<Vec<_>>().join(", ");
            return Err(format!(
                "no backend is called {name}; there are {names} (also <cluster>/<service>, <cluster>, an address)"
            ));
        }
        Ok(called)
    }

    /// Addresses that are taken: as a rule by another demo, whose backends would answer for these.
    pub(crate) fn taken(&self) -> Vec<SocketAddr> {
        let taken = self.failed.iter().filter(|(_, (_, kind))| *kind == ErrorKind::AddrInUse);
        taken.map(|(address, _)| *address).collect()
    }

    async fn reconcile(&mut self) {
        let mut wanted: BTreeMap<SocketAddr, Backend> = BTreeMap::new();
        for backend in self.wanted.values().flatten() {
            if !self.stopped.contains(&backend.full_name()) {
                // Several services may name one address, as several Services may select one pod.
                wanted.entry(backend.address).or_insert_with(|| backend.clone());
            }
        }
        self.end_unwanted(&wanted).await;
        self.failed.retain(|address, (backend, _)| wanted.get(address) == Some(backend));
        for (address, backend) in wanted {
            // One that failed is tried again only when somebody says start.
            if self.running.contains_key(&address) || self.failed.contains_key(&address) {
                continue;
            }
            match TcpListener::bind(address).await {
                Ok(listener) => {
                    let server = self.servers.spawn(serve(listener, backend.answer().into()));
                    self.running.insert(address, (backend, server));
                }
                Err(error) => {
                    warn!(%address, backend = backend.full_name(), %error, "a backend cannot listen");
                    self.failed.insert(address, (backend, error.kind()));
                }
            }
        }
    }

    /// Ends servers, and waits until their addresses are free.
    async fn end_unwanted(&mut self, wanted: &BTreeMap<SocketAddr, Backend>) {
        let before = self.running.len();
        self.running.retain(|address, (backend, server)| {
            let keep = wanted.get(address) == Some(backend);
            if !keep {
                server.abort();
            }
            keep
        });
        for _ in self.running.len()..before {
            // Servers end by being aborted only.
            self.servers.join_next().await;
        }
    }
}

/// Loopback endpoints other than 127.0.0.1, which is everybody's.
fn backends_of(region: &RegionName, cluster: &ClusterId, key: &Key, body: &Body) -> Vec<Backend> {
    let (Body::Endpoints(slice), Some(service)) = (body, key.service()) else { return Vec::new() };
    let ports: Vec<u16> =
        slice.ports.iter().filter(|p| p.protocol == Protocol::Tcp).map(|p| p.port).collect();
    let local = slice.endpoints.iter().filter(|endpoint| {
        endpoint.address.is_loopback() && endpoint.address != std::net::Ipv4Addr::LOCALHOST
    });
    local
        .flat_map(|endpoint| ports.iter().map(move |port| (endpoint, *port)))
        .map(|(endpoint, port)| {
            let address = SocketAddr::new(endpoint.address, port);
            let named = [&endpoint.target, &endpoint.hostname].into_iter().find(|n| !n.is_empty());
            Backend {
                address,
                service: service.clone(),
                name: named.cloned().unwrap_or_else(|| address.ip().to_string()),
                region: region.clone(),
                cluster: cluster.clone(),
                zone: endpoint.zone.clone(),
            }
        })
        .collect()
}

/// Serves until aborted, which cuts all its connections too, as a killed pod would.
async fn serve(listener: TcpListener, answer: Bytes) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        let answer = answer.clone();
        connections.spawn(async move {
            let respond = service_fn(move |_: Request<hyper::body::Incoming>| {
                let answer = answer.clone();
                async move { Ok::<_, Infallible>(respond(answer)) }
            });
            let connection = hyper::server::conn::http1::Builder::new();
            // A client that hangs up is none of the backend's business.
            let _ = connection.serve_connection(TokioIo::new(stream), respond).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

fn respond(answer: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(answer));
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}
