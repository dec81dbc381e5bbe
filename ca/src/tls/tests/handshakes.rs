//! Real handshakes over loopback.

use super::*;

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

/// A stolen region key is contained, over sockets and in both directions.
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

#[tokio::test]
async fn of_several_addresses_each_attempt_takes_the_next() {
    let mesh = Mesh::new();
    let server = mesh.holder(&mesh.west, control_plane("west"), DAY);
    let server = Server::start(&server.held(), Limits::default()).await;
    let client = mesh.holder(&mesh.east, agent("east", "east-a"), DAY);
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let gone: Uri = format!("http://{gone}").parse().unwrap();
    let connector = Connector::new(&client.held(), control_plane("west"), &clock()).unwrap();
    let connector = connector.among(vec![gone.clone(), server.uri()]);
    for reached in [false, true, false, true] {
        // Each clone is one of a channel's attempts: they take turns together.
        let connected = tower::Service::call(&mut connector.clone(), gone.clone()).await;
        assert_eq!(connected.is_ok(), reached, "{:?}", connected.err());
    }
    let alone = connector.among(Vec::new());
    assert!(tower::Service::call(&mut alone.clone(), server.uri()).await.is_ok());
}
