//! The real Envoy, the pinned one; without it these tests are skipped, and the skips counted.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tombolo_testbed::{Tool, skip};

use super::*;
use crate::bootstrap::{Bootstrap, Server as XdsServer, Tls, TrustDomain};

const HOST: &str = "checkout.shop.svc.clusterset.local";

/// A cluster that stalls warms until the 5 s of its fetch timeout are over.
const NO_STALL: Duration = Duration::from_secs(4);

fn envoy_binary(test: &str) -> Option<PathBuf> {
    let test = format!("proxy::streams::envoy::{test}");
    Tool::Envoy.path().map_err(|missing| skip(&test, missing)).ok()
}

fn bootstrap(servers: Vec<XdsServer>, tls: Option<Tls>) -> Bootstrap {
    Bootstrap {
        node_id: "us-c/test".into(),
        locality: home(),
        listener: ([127, 0, 0, 1], 0).into(),
        admin: ([127, 0, 0, 1], 0).into(),
        servers,
        tls,
    }
}

/// Files that Envoy reads when it validates; who signed what is not looked at then.
fn tls_files(dir: &Path) -> Tls {
    let made = rcgen::generate_simple_self_signed(vec!["test".to_owned()]).unwrap();
    let write = |name: &str, text: String| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let certificate = write("cert.pem", made.cert.pem());
    let key = write("key.pem", made.signing_key.serialize_pem());
    let domain = |name: &str| TrustDomain { name: name.into(), bundle: certificate.clone() };
    Tls {
        bundles: vec![domain("us.mesh"), domain("eu.mesh")],
        servers: vec!["spiffe://us.mesh/tombolo/region".into()],
        certificate: certificate.clone(),
        key,
    }
}

#[tokio::test]
async fn envoy_accepts_the_bootstrap() {
    let Some(envoy) = envoy_binary("envoy_accepts_the_bootstrap") else { return };
    let dir = TempDir::new().unwrap();
    let address = XdsServer::Address(([127, 0, 0, 1], 7443).into());
    let name = XdsServer::Name { host: "localhost".into(), port: 7443 };
    let cases = [
        bootstrap(vec![address.clone()], None),
        bootstrap(vec![address, name], Some(tls_files(dir.path()))),
    ];
    for case in cases {
        let file = dir.path().join("bootstrap.json");
        std::fs::write(&file, case.to_json()).unwrap();
        let run = Command::new(&envoy).args(["--mode", "validate", "-c"]).arg(&file).output();
        let output = run.await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    }
}

/// An Envoy of cluster `us-c`, with what it logs in its directory.
struct Envoy {
    _child: Child,
    dir: TempDir,
    admin: SocketAddr,
}

impl Envoy {
    async fn start(binary: &Path, xds: SocketAddr) -> Self {
        Self::speaking("DELTA_GRPC", binary, xds).await
    }

    async fn speaking(protocol: &str, binary: &Path, xds: SocketAddr) -> Self {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("bootstrap.json");
        let text = bootstrap(vec![XdsServer::Address(xds)], None).to_json();
        std::fs::write(&file, text.replace("DELTA_GRPC", protocol)).unwrap();
        let admin_file = dir.path().join("admin");
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let child = Command::new(binary)
            .args(["--use-dynamic-base-id", "--concurrency", "1", "-l", "info", "-c"])
            .arg(&file)
            .arg("--admin-address-path")
            .arg(&admin_file)
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let admin = eventually("the admin address is written", async || {
            std::fs::read_to_string(&admin_file).ok()?.trim().parse().ok()
        });
        Self { admin: admin.await, _child: child, dir }
    }

    /// The value of a counter or gauge.
    async fn stat(&self, name: &str) -> u64 {
        let (_, text) = get(self.admin, "/stats?usedonly", "admin").await.unwrap();
        let found = text.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
        found.map_or(0, |value| value.trim().parse().unwrap())
    }

    /// Where it listens for requests, once it does.
    async fn listener(&self) -> SocketAddr {
        let find = async || {
            let (_, text) = get(self.admin, "/listeners", "admin").await.ok()?;
            text.lines().find_map(|line| line.strip_prefix("outbound::")?.parse().ok())
        };
        eventually("Envoy listens", find).await
    }

    /// No update was refused, and none had to wait for what did not come.
    async fn assert_clean(&self) {
        let (_, text) = get(self.admin, "/stats?usedonly", "admin").await.unwrap();
        let bad = |line: &&str| {
            let (name, value) = line.split_once(": ").unwrap_or_default();
            (name.ends_with("update_rejected") || name.ends_with("init_fetch_timeout"))
                && value.trim() != "0"
        };
        let bad: Vec<&str> = text.lines().filter(bad).collect();
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        assert!(bad.is_empty(), "{bad:?}\n{log}");
        assert_eq!(self.stat("cluster_manager.warming_clusters").await, 0, "{log}");
    }
}

/// Answers every request with its name, until it is dropped.
struct Backend {
    _tasks: JoinSet<()>,
}

impl Backend {
    async fn start(at: SocketAddr, name: &'static str) -> std::io::Result<Self> {
        let listener = TcpListener::bind(at).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(answer(stream, name));
            }
        });
        Ok(Self { _tasks: tasks })
    }
}

async fn answer(mut stream: TcpStream, name: &'static str) {
    let mut request = Vec::new();
    while let Ok(1..) = stream.read_buf(&mut request).await {
        if request.ends_with(b"\r\n\r\n") {
            request.clear();
            let length = name.len();
            let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{name}");
            if stream.write_all(text.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

/// Two backends, on 127.0.0.1 and 127.0.0.2, at one free port.
async fn backends() -> (u16, Backend, Backend) {
    loop {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let us = Backend::start(([127, 0, 0, 1], free).into(), "us").await;
        let eu = Backend::start(([127, 0, 0, 2], free).into(), "eu").await;
        if let (Ok(us), Ok(eu)) = (us, eu) {
            return (free, us, eu);
        }
    }
}

async fn get(at: SocketAddr, path: &str, host: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(at).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    timeout(LONG, stream.read_to_string(&mut text)).await.expect("an answer in time")?;
    let status = text.get(9..12).and_then(|code| code.parse().ok()).unwrap_or(0);
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, body.to_owned()))
}

async fn eventually<T>(what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = attempt().await {
                return found;
            }
            // Between two looks at another process, which tells nobody of its changes.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(3 * LONG, found).await.unwrap_or_else(|_| panic!("in vain: {what}"))
}

fn services(port: u16, app: &str) -> Vec<Service> {
    let text = format!("http=80@{app}");
    let checkout = service("shop/checkout").ports(&[&text]).endpoints("us/a/1 eu/a/2");
    vec![checkout.on_loopback(port).build(), cart()]
}

fn answers(name: &str, got: &std::io::Result<(u16, String)>) -> bool {
    got.as_ref().is_ok_and(|(status, body)| (*status, body.as_str()) == (200, name))
}

/// Waits until the only client has acknowledged all that it was sent.
async fn settled(server: &Running) -> ProxyStatus {
    let settled = |t: &TypeStatus| t.pending == 0 && !t.sent.is_empty() && t.sent == t.acked;
    server.status(|s| s.types.len() == 4 && s.types.values().all(settled)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_fails_over_and_comes_back() {
    let Some(envoy) = envoy_binary("envoy_fails_over_and_comes_back") else { return };
    let (port, us, _eu) = backends().await;
    let server = Running::serving(services(port, "http")).await;
    let envoy = Envoy::start(&envoy, server.addr).await;
    let proxy = envoy.listener().await;
    let ask = async || get(proxy, "/", HOST).await;
    eventually("local is served", async || answers("us", &ask().await).then_some(())).await;
    for _ in 0..50 {
        assert!(answers("us", &ask().await), "traffic stays local while local is healthy");
    }
    let (status, text) = get(proxy, "/", "nowhere.shop.svc.clusterset.local").await.unwrap();
    assert!(status == 404 && text.contains("no such service"), "{status} {text}");

    drop(us);
    for n in 0..50 {
        let got = ask().await;
        assert!(answers("eu", &got), "request {n} after local was lost: {got:?}");
    }
    let _us = Backend::start(([127, 0, 0, 1], port).into(), "us").await.unwrap();
    eventually("local is back", async || answers("us", &ask().await).then_some(())).await;
    envoy.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_follows_endpoints_that_are_said_to_be_unready() {
    let Some(envoy) = envoy_binary("envoy_follows_endpoints_that_are_said_to_be_unready") else {
        return;
    };
    let (port, _us, _eu) = backends().await;
    let mut server = Running::serving(services(port, "http")).await;
    let envoy = Envoy::start(&envoy, server.addr).await;
    let proxy = envoy.listener().await;
    let ask = async || get(proxy, "/", HOST).await;
    eventually("local is served", async || answers("us", &ask().await).then_some(())).await;
    let unready = |texts: &str| {
        let checkout = service("shop/checkout").ports(&["http=80@http"]).endpoints(texts);
        vec![checkout.on_loopback(port).build(), cart()]
    };
    server.serve(unready("us/a/1! eu/a/2"));
    eventually("the other region", async || answers("eu", &ask().await).then_some(())).await;
    server.serve(unready(""));
    let gone = |got: &std::io::Result<(u16, String)>| got.as_ref().is_ok_and(|(s, _)| *s == 503);
    eventually("x33: nothing is left", async || gone(&ask().await).then_some(())).await;
    server.serve(unready("us/a/1 eu/a/2"));
    eventually("all is back", async || answers("us", &ask().await).then_some(())).await;
    envoy.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x38_x39_envoy_never_stalls_on_changed_clusters_nor_after_a_reconnect() {
    let test = "x38_x39_envoy_never_stalls_on_changed_clusters_nor_after_a_reconnect";
    let Some(envoy) = envoy_binary(test) else { return };
    never_stalls("DELTA_GRPC", &envoy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x42_envoy_in_state_of_the_world_never_stalls_either() {
    let test = "x42_envoy_in_state_of_the_world_never_stalls_either";
    let Some(envoy) = envoy_binary(test) else { return };
    never_stalls("GRPC", &envoy).await;
}

async fn never_stalls(protocol: &str, envoy: &Path) {
    let (port, _us, _eu) = backends().await;
    let mut server = Running::serving(services(port, "http")).await;
    let addr = server.addr;
    let envoy = Envoy::speaking(protocol, envoy, addr).await;
    let proxy = envoy.listener().await;
    let mut held = settled(&server).await.types["cluster"].acked.clone();
    for app in ["grpc", "http", "grpc", "http", "grpc"] {
        let start = Instant::now();
        server.serve(services(port, app));
        let changed = server.status(|s| s.types["cluster"].acked != held).await;
        held.clone_from(&changed.types["cluster"].acked);
        assert!(start.elapsed() < NO_STALL, "{app}: acknowledged after {:?}", start.elapsed());
    }
    settled(&server).await;
    server.end().await;

    let config = AdsConfig { allow_anonymous: true, ..AdsConfig::new(home()) };
    let mut server = Running::at(addr, config).await;
    server.serve(services(port, "http"));
    server.status(|s| s.types.contains_key("cluster")).await;
    let start = Instant::now();
    settled_after_reconnect(&server).await;
    assert!(start.elapsed() < NO_STALL, "acknowledged after {:?}", start.elapsed());
    let ask = async || answers("us", &get(proxy, "/", HOST).await).then_some(());
    eventually("local is served", ask).await;
    envoy.assert_clean().await;
}

/// After a reconnect only what changed is sent.
async fn settled_after_reconnect(server: &Running) {
    let settled = |t: &TypeStatus| t.pending == 0 && t.sent == t.acked;
    let done = |s: &ProxyStatus| {
        s.types.len() == 4
            && ["cluster", "endpoints"].iter().all(|of| !s.types[of].sent.is_empty())
            && s.types.values().all(settled)
    };
    server.status(done).await;
}
