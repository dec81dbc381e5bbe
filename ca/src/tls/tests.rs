use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use rcgen::KeyPair;
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::codegen::http::Uri;

use super::*;
use crate::bundle::Bundles;
use crate::clock::{Clock, unix};
use crate::material::{Held, Holder};
use crate::region::{Grant, RegionCa};
use crate::testing::{Mesh, NOW, agent, at, control_plane, workload};
use crate::x509::{self, Validity};

const DAY: Duration = Duration::from_hours(24);
/// Ten times what any of this may take.
const LONG: Duration = Duration::from_secs(50);

// What a chain proves, without sockets.

fn leaf(ca: &RegionCa, identity: Identity) -> CertificateDer<'static> {
    let key = KeyPair::generate().unwrap();
    ca.issue_over(&Grant::new(identity), &key, NOW).unwrap().chain.remove(0)
}

fn verified(
    bundles: &Bundles,
    chain: &[CertificateDer<'static>],
    now: jiff::Timestamp,
) -> Result<Identity, PeerRefused> {
    let of = |role| verify(bundles, &chain[0], &chain[1..], unix(now).unwrap(), role);
    let (server, client) = (of(Role::Server), of(Role::Client));
    assert_eq!(server.is_ok(), client.is_ok(), "both verifiers agree");
    Ok(server.and(client)?.identity)
}

/// A leaf as `change` wants it, signed by `ca`'s key.
fn forged(
    ca: &RegionCa,
    change: impl FnOnce(&mut rcgen::CertificateParams),
) -> CertificateDer<'static> {
    let validity = Validity { not_before: at(-60), not_after: at(3600) };
    let mut params = x509::params(&[], validity, [7; 16]).unwrap();
    params.is_ca = rcgen::IsCa::ExplicitNoCa;
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    params.subject_alt_names = vec![name("spiffe://west.mesh.example/ns/shop/sa/checkout")];
    change(&mut params);
    params.signed_by(&KeyPair::generate().unwrap(), &ca.issuer().unwrap()).unwrap().into()
}

fn name(uri: &str) -> rcgen::SanType {
    rcgen::SanType::URI(uri.to_owned().try_into().unwrap())
}

#[test]
fn a_leaf_proves_what_its_regions_bundle_says() {
    let mesh = Mesh::new();
    for (ca, identity) in [
        (&mesh.west, workload("west")),
        (&mesh.west, agent("west", "west-a")),
        (&mesh.east, control_plane("east")),
    ] {
        let chain = [leaf(ca, identity.clone())];
        assert_eq!(verified(&mesh.bundles(), &chain, NOW).unwrap(), identity);
    }
    verified(&mesh.bundles(), &[forged(&mesh.west, |_| {})], NOW).unwrap();
}

/// RELIABILITY P34, B29: what a stolen region key can do, and what it cannot.
#[test]
fn a_region_cannot_mint_another_regions_names() {
    let mesh = Mesh::new();
    for stolen in [
        "spiffe://west.mesh.example/ns/shop/sa/checkout",
        "spiffe://west.mesh.example/tombolo/region",
        "spiffe://west.mesh.example/tombolo/agent/west-a",
    ] {
        let leaf = forged(&mesh.east, |params| params.subject_alt_names = vec![name(stolen)]);
        // Alone, and with everything that could build a path to something.
        let helpers = [
            mesh.east.bundle().certificate(),
            mesh.east.bundle().proof(),
            mesh.root.certificate().der(),
        ];
        let with_helpers: Vec<_> = std::iter::once(&leaf).chain(helpers).cloned().collect();
        for chain in [&[leaf.clone()][..], &with_helpers] {
            let refused = verified(&mesh.bundles(), chain, NOW).unwrap_err();
            assert!(matches!(refused, PeerRefused::Unproven { .. }), "{stolen}: {refused}");
        }
    }
}

#[test]
fn the_mesh_root_is_no_anchor() {
    let mesh = Mesh::new();
    let key = KeyPair::generate().unwrap();
    let mut params =
        x509::params(&[], Validity { not_before: at(-60), not_after: at(3600) }, [7; 16]).unwrap();
    params.is_ca = rcgen::IsCa::ExplicitNoCa;
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    params.subject_alt_names = vec![name("spiffe://west.mesh.example/tombolo/region")];
    let by_root = params.signed_by(&key, &mesh.root.issuer().unwrap()).unwrap().into();
    let chain = [by_root, mesh.root.certificate().der().clone()];
    let refused = verified(&mesh.bundles(), &chain, NOW).unwrap_err();
    assert!(matches!(refused, PeerRefused::Unproven { .. }), "{refused}");
}

/// B26, and the rest of what X.509-SVID forbids in a leaf.
#[test]
fn certificates_that_are_no_leaf_of_the_mesh() {
    use rcgen::{BasicConstraints, IsCa, KeyUsagePurpose};
    let mesh = Mesh::new();
    let not_leaf: [fn(&mut rcgen::CertificateParams); 4] = [
        |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
        |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign),
        |p| p.key_usages.push(KeyUsagePurpose::CrlSign),
        |p| p.key_usages = vec![KeyUsagePurpose::KeyAgreement],
    ];
    for change in not_leaf {
        let refused = verified(&mesh.bundles(), &[forged(&mesh.west, change)], NOW).unwrap_err();
        assert!(matches!(refused, PeerRefused::NotLeaf(_)), "{refused}");
    }
    for own in [mesh.west.bundle().certificate(), mesh.west.bundle().proof()] {
        let refused = verified(&mesh.bundles(), std::slice::from_ref(own), NOW).unwrap_err();
        assert!(matches!(refused, PeerRefused::NotLeaf(_)), "{refused}");
    }
    // keyUsage with digitalSignature, as an issuer that marks nothing would write it.
    let lax = |params: &mut rcgen::CertificateParams| {
        params.key_usages.clear();
        let usage = rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 15], vec![3, 2, 7, 0x80]);
        params.custom_extensions.push(usage);
    };
    let refused = verified(&mesh.bundles(), &[forged(&mesh.west, lax)], NOW).unwrap_err();
    assert!(matches!(refused, PeerRefused::UsageNotCritical(_)), "{refused}");
    let malformed: [fn(&mut rcgen::CertificateParams); 4] = [
        |p| p.subject_alt_names.push(name("spiffe://west.mesh.example/tombolo/region")),
        |p| p.subject_alt_names.clear(),
        |p| p.subject_alt_names = vec![name("https://west.mesh.example/x")],
        |p| p.subject_alt_names = vec![name("spiffe://west.mesh.example/ns/a\0/sa/b")],
    ];
    for change in malformed {
        let refused = verified(&mesh.bundles(), &[forged(&mesh.west, change)], NOW).unwrap_err();
        assert!(matches!(refused, PeerRefused::Malformed(_)), "{refused}");
    }
    let strangers: [fn(&mut rcgen::CertificateParams); 3] = [
        |p| p.subject_alt_names = vec![name("spiffe://west.mesh.example")],
        |p| p.subject_alt_names = vec![name("spiffe://west.mesh.example/somebody")],
        |p| p.subject_alt_names = vec![name("spiffe://west.other.example/tombolo/region")],
    ];
    for change in strangers {
        let refused = verified(&mesh.bundles(), &[forged(&mesh.west, change)], NOW).unwrap_err();
        assert!(matches!(refused, PeerRefused::Stranger(_)), "{refused}");
    }
}

/// A leaf signs another leaf, and is sent along as its issuer.
#[test]
fn a_leaf_is_no_ca() {
    let mesh = Mesh::new();
    let key = KeyPair::generate().unwrap();
    let leaf =
        mesh.west.issue_over(&Grant::new(workload("west")), &key, NOW).unwrap().chain.remove(0);
    let issuer = rcgen::Issuer::from_ca_cert_der(&leaf, &key).unwrap();
    let mut params =
        x509::params(&[], Validity { not_before: at(-60), not_after: at(3600) }, [7; 16]).unwrap();
    params.is_ca = rcgen::IsCa::ExplicitNoCa;
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    params.subject_alt_names = vec![name("spiffe://west.mesh.example/tombolo/region")];
    let minted: CertificateDer<'static> =
        params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap().into();
    let refused = verified(&mesh.bundles(), &[minted, leaf], NOW).unwrap_err();
    assert!(matches!(refused, PeerRefused::Unproven { .. }), "{refused}");
}

#[test]
fn an_intermediate_of_the_region_may_lead_to_its_anchor() {
    let mesh = Mesh::new();
    let key = KeyPair::generate().unwrap();
    let validity = Validity { not_before: at(-60), not_after: at(3600) };
    let mut params =
        x509::params(&[(rcgen::DnType::CommonName, "replica")], validity, [8; 16]).unwrap();
    x509::make_ca(&mut params, 0);
    let intermediate: CertificateDer<'static> =
        params.signed_by(&key, &mesh.west.issuer().unwrap()).unwrap().into();
    let issuer = rcgen::Issuer::from_ca_cert_der(&intermediate, &key).unwrap();
    let mut params = x509::params(&[], validity, [9; 16]).unwrap();
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    params.subject_alt_names = vec![name("spiffe://west.mesh.example/tombolo/region")];
    let minted: CertificateDer<'static> =
        params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap().into();
    let chain = [minted.clone(), intermediate.clone()];
    assert_eq!(verified(&mesh.bundles(), &chain, NOW).unwrap(), control_plane("west"));
    let mut long = vec![minted];
    long.extend(std::iter::repeat_n(intermediate, 4));
    let refused = verified(&mesh.bundles(), &long, NOW).unwrap_err();
    assert!(matches!(refused, PeerRefused::TooMany(_, 4)), "{refused}");
}

/// RELIABILITY P24: clocks 10 minutes apart refuse nothing fresh; beyond that, and after the end,
/// they do.
#[test]
fn dates_count_and_leave_room_for_clocks() {
    let mesh = Mesh::new();
    // Regions that are older than their leaves, so that only the leaves' dates count.
    let late = 7 * 24 * 3600;
    let key = KeyPair::generate().unwrap();
    let chain = mesh.west.issue_over(&Grant::new(workload("west")), &key, at(late)).unwrap().chain;
    for (offset, good) in [(-600, true), (-601, false), (86_400, true), (86_401, false)] {
        let outcome = verified(&mesh.bundles(), &chain, at(late + offset));
        assert_eq!(outcome.is_ok(), good, "{offset}: {outcome:?}");
    }
    let far = unix(jiff::Timestamp::MAX).unwrap();
    assert!(verify(&mesh.bundles(), &chain[0], &[], far, Role::Client).is_err());
}

#[test]
fn without_a_bundle_nothing_is_proven() {
    let mesh = Mesh::new();
    let chain = [leaf(&mesh.west, workload("west"))];
    let mut bundles = mesh.empty_bundles();
    bundles.accept(mesh.east.bundle().clone(), NOW).unwrap();
    let refused = verified(&bundles, &chain, NOW).unwrap_err();
    assert!(matches!(refused, PeerRefused::NoBundle { .. }), "{refused}");
    let end = mesh.west.bundle().not_after();
    let late = end.checked_add(jiff::SignedDuration::from_secs(1)).unwrap();
    let refused = verified(&mesh.bundles(), &chain, late).unwrap_err();
    assert!(matches!(refused, PeerRefused::BundleNotValid { .. }), "{refused}");
}

#[test]
fn no_bent_certificate_is_accepted_and_none_panics() {
    let mesh = Mesh::new();
    let bundles = mesh.bundles();
    let good = leaf(&mesh.west, agent("west", "west-a"));
    for index in 0..good.len() {
        let mut bent = good.to_vec();
        bent[index] ^= 0x01;
        let chain = [CertificateDer::from(bent)];
        assert!(verified(&bundles, &chain, NOW).is_err(), "byte {index}");
        let cut = [CertificateDer::from(good[..index].to_vec())];
        assert!(verified(&bundles, &cut, NOW).is_err(), "cut at {index}");
    }
    assert!(verified(&bundles, &[good], NOW).is_ok());
}

// Real handshakes.

fn clock() -> Clock {
    Clock::new(|| NOW)
}

/// Greets everybody whom it accepts with one byte, and reports who they were.
struct Server {
    address: SocketAddr,
    peers_rx: mpsc::UnboundedReceiver<PeerInfo>,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start(held: &Held, limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming =
            Box::pin(Incoming::new(listener, held, &clock(), limits).unwrap().stream());
        let (peers, peers_rx) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut greeted = JoinSet::new();
            while let Some(Ok(mut connection)) = incoming.next().await {
                peers.send(connection.peer().clone()).unwrap();
                greeted.spawn(async move {
                    connection.write_all(b"!").await.unwrap();
                    connection.flush().await.unwrap();
                    // Until the client goes.
                    let _ = connection.read(&mut [0]).await;
                });
            }
        });
        Self { address, peers_rx, _tasks: tasks }
    }

    async fn accepted(&mut self) -> Option<Identity> {
        let peer = timeout(LONG, self.peers_rx.recv()).await.expect("a peer").unwrap();
        peer.identity.map(|peer| peer.identity.clone())
    }

    fn uri(&self) -> Uri {
        format!("http://{}", self.address).parse().unwrap()
    }
}

type Talk = tokio_rustls::client::TlsStream<TcpStream>;

/// Connects and waits for the greeting: with TLS 1.3 a client learns only from the first read
/// that the server does not accept it.
async fn talk(server: &Server, client: &Holder, expected: Identity) -> Result<Talk, String> {
    let connector = Connector::new(&client.held(), expected, &clock()).unwrap();
    let mut stream = connector.connect(&server.uri()).await.map_err(|e| causes(&e))?;
    greeting(&mut stream).await?;
    Ok(stream)
}

async fn greeting(stream: &mut Talk) -> Result<(), String> {
    let mut byte = [0];
    let read = timeout(LONG, stream.read_exact(&mut byte)).await.expect("a greeting or an end");
    read.map(drop).map_err(|error| causes(&error))
}

/// A client with nothing to present.
fn anonymous(held: &Held) -> TlsConnector {
    #[derive(Debug)]
    struct Nothing;
    impl rustls::client::ResolvesClientCert for Nothing {
        fn resolve(
            &self,
            _: &[&[u8]],
            _: &[rustls::SignatureScheme],
        ) -> Option<Arc<rustls::sign::CertifiedKey>> {
            None
        }
        fn has_certs(&self) -> bool {
            false
        }
    }
    let with = client_config(held, control_plane("west"), &clock()).unwrap();
    let mut config = ClientConfig::clone(&with);
    config.client_auth_cert_resolver = Arc::new(Nothing);
    TlsConnector::from(Arc::new(config))
}

#[tokio::test]
async fn both_sides_know_each_other() {
    let mesh = Mesh::new();
    let server = mesh.holder(&mesh.west, control_plane("west"), DAY);
    let client = mesh.holder(&mesh.east, agent("east", "east-a"), DAY);
    let mut server = Server::start(&server.held(), Limits::default()).await;
    let stream = talk(&server, &client, control_plane("west")).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(stream.get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    let peer = timeout(LONG, server.peers_rx.recv()).await.unwrap().unwrap();
    assert_eq!(peer.remote, stream.get_ref().0.local_addr().unwrap());
    let peer = peer.identity.unwrap();
    assert_eq!(peer.identity, agent("east", "east-a"));
    assert_eq!(peer.origin.as_ref().unwrap().to_string(), "east-a");
    assert_eq!(peer.expires, at(24 * 3600));
}

#[tokio::test]
async fn a_server_that_is_somebody_else_is_refused() {
    let mesh = Mesh::new();
    let client = mesh.holder(&mesh.east, agent("east", "east-a"), DAY);
    for (ca, identity) in [
        (&mesh.west, agent("west", "west-a")),
        (&mesh.west, workload("west")),
        (&mesh.east, control_plane("east")),
    ] {
        let holder = mesh.holder(ca, identity, DAY);
        let server = Server::start(&holder.held(), Limits::default()).await;
        let error = talk(&server, &client, control_plane("west")).await.unwrap_err();
        assert!(error.contains("expected was the control plane of west"), "{error}");
    }
}

#[tokio::test]
async fn a_client_without_a_certificate_is_nobody() {
    let mesh = Mesh::new();
    let holder = mesh.holder(&mesh.west, control_plane("west"), DAY);
    let mut server = Server::start(&holder.held(), Limits::default()).await;
    let tcp = TcpStream::connect(server.address).await.unwrap();
    let name = rustls_pki_types::ServerName::IpAddress(server.address.ip().into());
    let mut stream = anonymous(&holder.held()).connect(name, tcp).await.unwrap();
    greeting(&mut stream).await.unwrap();
    assert_eq!(server.accepted().await, None);
}

/// The containment of RELIABILITY P34, over sockets and in both directions.
#[tokio::test]
async fn a_forged_peer_is_refused_by_clients_and_by_servers() {
    let mesh = Mesh::new();
    // Somebody with a root and a west of their own, who trusts us.
    let stranger = Mesh::new();
    let theirs = stranger.holder(&stranger.west, control_plane("west"), DAY);
    let ours = mesh.holder(&mesh.west, control_plane("west"), DAY);

    let server = Server::start(&theirs.held(), Limits::default()).await;
    let error = talk(&server, &ours, control_plane("west")).await.unwrap_err();
    assert!(error.contains("not proven by the bundle of west.mesh.example"), "{error}");

    let mut server = Server::start(&ours.held(), Limits::default()).await;
    let tcp = TcpStream::connect(server.address).await.unwrap();
    let name = rustls_pki_types::ServerName::IpAddress(server.address.ip().into());
    let mut config =
        ClientConfig::clone(&client_config(&ours.held(), control_plane("west"), &clock()).unwrap());
    let forged = client_config(&theirs.held(), control_plane("west"), &clock()).unwrap();
    config.client_auth_cert_resolver = Arc::clone(&forged.client_auth_cert_resolver);
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
    greeting(&mut stream).await.unwrap_err();
    // And the next, honest one is the first that the server ever hands out.
    let _honest = talk(&server, &ours, control_plane("west")).await.unwrap();
    assert_eq!(server.accepted().await, Some(control_plane("west")));
}

#[tokio::test]
async fn bundles_and_certificates_change_under_an_open_server() {
    let mesh = Mesh::new();
    let holder = mesh.holder(&mesh.west, control_plane("west"), DAY);
    let client = mesh.holder(&mesh.east, agent("east", "east-a"), DAY);
    let mut server = Server::start(&holder.held(), Limits::default()).await;
    let first = talk(&server, &client, control_plane("west")).await.unwrap();
    server.accepted().await.unwrap();

    // The server's trust in east goes: the next handshake fails, the server stays.
    let known = holder.current();
    let credential =
        |grant: &Grant| crate::material::Credential::issue(&mesh.west, grant, NOW).unwrap();
    let grant = Grant::new(control_plane("west"));
    let mut only_west = mesh.empty_bundles();
    only_west.accept(mesh.west.bundle().clone(), NOW).unwrap();
    holder.replace(credential(&grant), only_west, NOW).unwrap();
    talk(&server, &client, control_plane("west")).await.unwrap_err();

    // It comes back, and our own certificate is another one.
    holder.accept(mesh.east.bundle().clone(), NOW).unwrap();
    let second = talk(&server, &client, control_plane("west")).await.unwrap();
    assert_eq!(server.accepted().await, Some(agent("east", "east-a")));
    let presented = |stream: &Talk| stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    assert_ne!(presented(&first), presented(&second));

    holder.renew(credential(&grant), NOW).unwrap();
    let third = talk(&server, &client, control_plane("west")).await.unwrap();
    assert_ne!(presented(&second), presented(&third));
    assert_ne!(known.credential().subject().serial, holder.current().credential().subject().serial);
}

#[tokio::test]
async fn garbage_costs_its_own_connections_only() {
    let mesh = Mesh::new();
    let holder = mesh.holder(&mesh.west, control_plane("west"), DAY);
    let limits = Limits { handshakes: 8, ..Limits::default() };
    let mut server = Server::start(&holder.held(), limits).await;
    for round in 0..200_u32 {
        let mut tcp = TcpStream::connect(server.address).await.unwrap();
        let garbage: &[u8] = match round % 4 {
            0 => b"GET / HTTP/1.1\r\n\r\n",
            1 => &[0x16, 3, 1, 0xff, 0xff],
            2 => &[0xff; 1024],
            _ => b"",
        };
        // The server may have hung up already, which is fine.
        let _ = tcp.write_all(garbage).await;
        if round % 3 == 0 {
            let _ = tcp.shutdown().await;
        }
    }
    let _kept = talk(&server, &holder, control_plane("west")).await.unwrap();
    assert_eq!(server.accepted().await, Some(control_plane("west")));
}

#[tokio::test]
async fn silence_ends_with_the_deadline_and_frees_its_place() {
    let mesh = Mesh::new();
    let holder = mesh.holder(&mesh.west, control_plane("west"), DAY);
    let limits = Limits {
        handshake: Duration::from_millis(200),
        handshakes: 4,
        connections: 16,
        ..Limits::default()
    };
    let mut server = Server::start(&holder.held(), limits).await;
    let mut silent = Vec::new();
    for _ in 0..4 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    // Waits in the kernel's queue for one of the four places.
    let _kept = talk(&server, &holder, control_plane("west")).await.unwrap();
    assert_eq!(server.accepted().await, Some(control_plane("west")));
    for mut tcp in silent {
        let read = timeout(LONG, tcp.read(&mut [0])).await.expect("the server hangs up");
        assert!(matches!(read, Ok(0) | Err(_)));
    }
}

#[tokio::test]
async fn connections_are_bounded_and_given_back() {
    let mesh = Mesh::new();
    let holder = mesh.holder(&mesh.west, control_plane("west"), DAY);
    let limits = Limits { connections: 2, preface: LONG, ..Limits::default() };
    let server = Server::start(&holder.held(), limits).await;
    let one = talk(&server, &holder, control_plane("west")).await.unwrap();
    let _two = talk(&server, &holder, control_plane("west")).await.unwrap();
    let connector = Connector::new(&holder.held(), control_plane("west"), &clock()).unwrap();
    let hasty = connector.clone().timeout(Duration::from_millis(300));
    let refused = hasty.connect(&server.uri()).await.unwrap_err();
    assert!(matches!(refused, ConnectError::TimedOut { .. }), "{refused}");
    drop(one);
    talk(&server, &holder, control_plane("west")).await.unwrap();
}

#[tokio::test]
async fn silence_after_the_handshake_ends_with_the_deadline() {
    let mesh = Mesh::new();
    let holder = mesh.holder(&mesh.west, control_plane("west"), DAY);
    let limits = Limits { preface: Duration::from_secs(1), ..Limits::default() };
    // A whole tonic server, as only that shows what hyper does with the error.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = Incoming::new(listener, &holder.held(), &clock(), limits).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let routes = tonic::service::Routes::default();
        let server = tonic::transport::Server::builder().add_routes(routes);
        server.serve_with_incoming(incoming.stream()).await.unwrap();
    });
    let name = rustls_pki_types::ServerName::IpAddress(address.ip().into());
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let open = async |said: &'static [u8]| {
        let tcp = TcpStream::connect(address).await.unwrap();
        let mut tls = anonymous(&holder.held()).connect(name.clone(), tcp).await.unwrap();
        tls.write_all(said).await.unwrap();
        tls.flush().await.unwrap();
        tls
    };
    // A preface and SETTINGS: never cut off for the preface, whatever it does afterwards.
    let mut spoken = open(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    let mut silent = Vec::new();
    for said in [&b""[..], &preface[..1], &preface[..23]] {
        silent.push((said.len(), open(said).await));
    }
    for (bytes, mut silent) in silent {
        // The server's SETTINGS, and then its end.
        let ended = timeout(LONG, silent.read_to_end(&mut Vec::new())).await;
        assert!(ended.is_ok(), "{bytes} bytes of the preface hold a place for ever");
    }
    // Its deadline came before theirs.
    let mut seen = [0; 4096];
    while let Ok(read) = timeout(Duration::from_millis(100), spoken.read(&mut seen)).await {
        assert!(read.unwrap() > 0, "who has sent the preface was cut off");
    }
}

/// A client that takes nothing in keeps the server from reading: the deadline counts all the same.
#[tokio::test]
async fn the_deadline_for_the_preface_holds_for_writing_too() {
    let mesh = Mesh::new();
    let holder = mesh.holder(&mesh.west, control_plane("west"), DAY);
    let limits = Limits { preface: Duration::from_millis(200), ..Limits::default() };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut incoming =
        Box::pin(Incoming::new(listener, &holder.held(), &clock(), limits).unwrap().stream());
    let connector = Connector::new(&holder.held(), control_plane("west"), &clock()).unwrap();
    let uri = format!("http://{address}").parse().unwrap();
    let (client, server) = tokio::join!(connector.connect(&uri), incoming.next());
    let (_client, Ok(mut server)) = (client.unwrap(), server.unwrap());
    let mut write = async || loop {
        if let Err(error) = server.write_all(&[0; 8192]).await {
            return error;
        }
    };
    let error = timeout(LONG, write()).await.expect("writing ends");
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
}

/// One address, and all that have no certificate, take no more than their share.
#[tokio::test]
async fn a_share_that_is_full_refuses_and_is_given_back() {
    let mesh = Mesh::new();
    let holder = mesh.holder(&mesh.west, control_plane("west"), DAY);
    let limits =
        Limits { connections_per_address: 3, anonymous: 1, preface: LONG, ..Limits::default() };
    let server = Server::start(&holder.held(), limits).await;
    let name = rustls_pki_types::ServerName::IpAddress(server.address.ip().into());
    let nobody = async |from: [u8; 4]| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        let tcp = socket.connect(server.address).await.unwrap();
        let tls = anonymous(&holder.held()).connect(name.clone(), tcp).await;
        let mut tls = tls.map_err(|error| causes(&error))?;
        greeting(&mut tls).await.map(|()| tls)
    };
    let first = nobody([127, 0, 0, 2]).await.unwrap();
    // Another address is no help, a certificate is.
    nobody([127, 0, 0, 3]).await.unwrap_err();
    let mut ours = Vec::new();
    for _ in 0..3 {
        ours.push(talk(&server, &holder, control_plane("west")).await.unwrap());
    }
    talk(&server, &holder, control_plane("west")).await.unwrap_err();
    drop(first);
    drop(ours);
    // The server sees the ends in its own time.
    let again = async {
        while nobody([127, 0, 0, 2]).await.is_err() {}
        while talk(&server, &holder, control_plane("west")).await.is_err() {}
    };
    timeout(LONG, again).await.expect("places are given back");
}

#[tokio::test]
async fn handshakes_of_one_address_leave_room_for_others() {
    let mesh = Mesh::new();
    let holder = mesh.holder(&mesh.west, control_plane("west"), DAY);
    let limits = Limits {
        handshake: 10 * LONG,
        handshakes: 4,
        handshakes_per_address: 2,
        ..Limits::default()
    };
    let mut server = Server::start(&holder.held(), limits).await;
    let mut silent = Vec::new();
    for _ in 0..8 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 2], 0).into()).unwrap();
        silent.push(socket.connect(server.address).await.unwrap());
    }
    let _kept = talk(&server, &holder, control_plane("west")).await.unwrap();
    assert_eq!(server.accepted().await, Some(control_plane("west")));
}

#[tokio::test]
async fn nobody_there_is_said_so() {
    let mesh = Mesh::new();
    let holder = mesh.holder(&mesh.west, control_plane("west"), DAY);
    let connector = Connector::new(&holder.held(), control_plane("west"), &clock()).unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let refused = connector.connect(&format!("http://{gone}").parse().unwrap()).await.unwrap_err();
    assert!(matches!(refused, ConnectError::Dial { .. }), "{refused}");
    let refused = connector.connect(&Uri::from_static("http://127.0.0.1")).await.unwrap_err();
    assert!(matches!(refused, ConnectError::NoAddress(_)), "{refused}");
}
