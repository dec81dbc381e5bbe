//! The server on its sockets, asked by hand.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::RecordType;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tombolo_dns::Zone;
use tombolo_dns::server::{Config, Metrics, Server, TcpLimits};
use tombolo_federation::catalog::{Catalog, Publisher, channel};

use crate::mesh::{data, full, mesh, view};

/// Ten times what anything here may take.
pub(crate) const LONG: Duration = Duration::from_secs(10);

pub(crate) const MESH: &str = "
    ClusterSetIP shop/web http:80
      us-a 10.0.0.1 http=80
      us-a 10.0.0.2 http=80";

/// A running server; ends with the value.
pub(crate) struct Served {
    pub(crate) address: SocketAddr,
    pub(crate) publisher: Publisher,
    pub(crate) registry: Registry,
    stop: CancellationToken,
    tasks: JoinSet<Result<(), tombolo_dns::server::ServeError>>,
}

impl Served {
    pub(crate) async fn start(catalog: Option<Catalog>) -> Self {
        Self::with_limits(catalog, TcpLimits::default()).await
    }

    pub(crate) async fn with_limits(catalog: Option<Catalog>, limits: TcpLimits) -> Self {
        let (publisher, snapshots) = channel();
        if let Some(catalog) = catalog {
            assert!(publisher.publish(Arc::new(catalog)));
        }
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let mut config = Config::new(Zone::default(), view("us"), metrics);
        config.tcp = limits;
        let local = "127.0.0.1:0".parse().unwrap();
        let bound = Server::bind(local, snapshots, config).await.unwrap();
        let (address, stop, mut tasks) =
            (bound.local_addr(), CancellationToken::new(), JoinSet::new());
        tasks.spawn(bound.run(stop.clone()));
        Self { address, publisher, registry, stop, tasks }
    }

    pub(crate) async fn udp(&self) -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(self.address).await.unwrap();
        socket
    }

    pub(crate) async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Stops it, and holds it to ending well.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        let ended = timeout(LONG, self.tasks.join_next()).await.expect("it ends");
        ended.expect("it ran").expect("without a panic").expect("and without an error");
    }
}

pub(crate) fn query(id: u16, qtype: RecordType, name: &str) -> Message {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(full(name), qtype));
    message
}

pub(crate) fn with_edns(mut message: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    message.set_edns(edns);
    message
}

/// Sends bytes in a datagram and gives the next reply, whatever it replies to.
pub(crate) async fn over_udp(socket: &UdpSocket, bytes: &[u8]) -> Vec<u8> {
    socket.send(bytes).await.unwrap();
    let mut buffer = vec![0; 65_535];
    let length = timeout(LONG, socket.recv(&mut buffer)).await.expect("a reply").unwrap();
    buffer.truncate(length);
    buffer
}

pub(crate) async fn over_tcp(stream: &mut TcpStream, bytes: &[u8]) -> Vec<u8> {
    send_tcp(stream, bytes).await;
    let length = timeout(LONG, stream.read_u16()).await.expect("a reply").unwrap();
    let mut reply = vec![0; usize::from(length)];
    timeout(LONG, stream.read_exact(&mut reply)).await.expect("all of it").unwrap();
    reply
}

pub(crate) async fn send_tcp(stream: &mut TcpStream, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).unwrap();
    stream.write_all(&[&length.to_be_bytes()[..], bytes].concat()).await.unwrap();
}

pub(crate) fn parse(bytes: &[u8]) -> Message {
    Message::from_vec(bytes).expect("a well-formed reply")
}

pub(crate) fn addresses(message: &Message) -> Vec<String> {
    let mut all: Vec<_> = message.answers.iter().map(data).collect();
    all.sort();
    all
}

async fn ask_udp(served: &Served, message: &Message) -> Message {
    parse(&over_udp(&served.udp().await, &message.to_vec().unwrap()).await)
}

async fn ask_tcp(served: &Served, message: &Message) -> Message {
    parse(&over_tcp(&mut served.tcp().await, &message.to_vec().unwrap()).await)
}

#[tokio::test]
async fn both_transports_on_one_port_give_one_answer() {
    let served = Served::start(Some(mesh(MESH))).await;
    let asked = query(77, RecordType::A, "web.shop.svc");
    for reply in [ask_udp(&served, &asked).await, ask_tcp(&served, &asked).await] {
        assert_eq!(addresses(&reply), ["10.0.0.1", "10.0.0.2"]);
        let head = reply.metadata;
        assert_eq!((head.id, head.response_code), (77, ResponseCode::NoError));
        assert!(head.authoritative && !head.recursion_available && !head.truncation);
        assert!(reply.edns.is_none(), "OPT only to who sent one");
    }
    served.stop().await;
}

#[tokio::test]
async fn the_question_comes_back_as_it_was_written() {
    let served = Served::start(Some(mesh(MESH))).await;
    let asked = query(1, RecordType::A, "wEb.SHOP.sVc");
    for reply in [ask_udp(&served, &asked).await, ask_tcp(&served, &asked).await] {
        let name = full("wEb.SHOP.sVc");
        assert!(reply.queries[0].name().eq_case(&name));
        assert_eq!(reply.answers.len(), 2);
        assert!(reply.answers.iter().all(|record| record.name.eq_case(&name)));
    }
    served.stop().await;
}

#[tokio::test]
async fn unknown_until_published_then_known_at_once() {
    let served = Served::start(None).await;
    let asked = query(1, RecordType::A, "web.shop.svc");
    let before = ask_udp(&served, &asked).await;
    assert_eq!(before.metadata.response_code, ResponseCode::ServFail);
    assert!(!before.metadata.authoritative && before.authorities.is_empty());
    let version = ask_udp(&served, &query(2, RecordType::TXT, "dns-version")).await;
    assert_eq!(addresses(&version), ["1.0.0"]);

    assert!(served.publisher.publish(Arc::new(mesh(MESH))));
    assert_eq!(addresses(&ask_udp(&served, &asked).await), ["10.0.0.1", "10.0.0.2"]);
    served.stop().await;
}

fn crowd(count: u32) -> Catalog {
    use std::fmt::Write as _;
    let mut text = "Headless shop/crowd p:1\n".to_owned();
    for i in 0..count {
        let ip = std::net::Ipv4Addr::from(0x0a00_0000 + i);
        writeln!(text, "us-a {ip} p=1").unwrap();
    }
    mesh(&text)
}

#[tokio::test]
async fn twenty_addresses_fit_into_a_plain_datagram() {
    let served = Served::start(Some(crowd(20))).await;
    let reply = ask_udp(&served, &query(1, RecordType::A, "crowd.shop.svc")).await;
    assert_eq!((reply.answers.len(), reply.metadata.truncation), (20, false));
    served.stop().await;
}

#[tokio::test]
async fn what_does_not_fit_says_so_and_comes_whole_over_tcp() {
    let served = Served::start(Some(crowd(60))).await;
    let plain = query(1, RecordType::A, "crowd.shop.svc");
    let short = ask_udp(&served, &plain).await;
    assert!(short.metadata.truncation && short.answers.is_empty() && short.queries.len() == 1);
    assert_eq!(ask_tcp(&served, &plain).await.answers.len(), 60);
    // With EDNS a datagram has room for them.
    let reply = ask_udp(&served, &with_edns(plain.clone(), 1232)).await;
    assert_eq!((reply.answers.len(), reply.metadata.truncation), (60, false));
    assert_eq!(reply.edns.as_ref().map(Edns::max_payload), Some(1232));
    served.stop().await;
}

#[tokio::test]
async fn a_datagram_stays_below_what_passes_everywhere_and_keeps_opt() {
    let served = Served::start(Some(crowd(200))).await;
    let asked = with_edns(query(1, RecordType::A, "crowd.shop.svc"), 65_535);
    let bytes = over_udp(&served.udp().await, &asked.to_vec().unwrap()).await;
    let reply = parse(&bytes);
    assert!(bytes.len() <= 1232 && reply.metadata.truncation && reply.edns.is_some());
    let whole = ask_tcp(&served, &asked).await;
    assert_eq!((whole.answers.len(), whole.metadata.truncation), (200, false));
    assert!(whole.edns.is_some());
    served.stop().await;
}

#[tokio::test]
async fn additional_records_are_left_out_before_anything_is_called_truncated() {
    let served = Served::start(Some(crowd(6))).await;
    let reply = ask_udp(&served, &query(1, RecordType::SRV, "_p._tcp.crowd.shop.svc")).await;
    assert_eq!((reply.answers.len(), reply.metadata.truncation), (6, false));
    assert!(reply.additionals.is_empty());
    let whole = ask_tcp(&served, &query(1, RecordType::SRV, "_p._tcp.crowd.shop.svc")).await;
    assert_eq!((whole.answers.len(), whole.additionals.len()), (6, 6));
    served.stop().await;
}

/// The bound of [`tombolo_dns::answer::MAX_RECORDS`] is chosen for this.
#[tokio::test]
async fn the_largest_answer_fits_into_tcp() {
    use std::fmt::Write as _;
    let (name, namespace) = ("s".repeat(58), "n".repeat(58));
    let mut text = format!("Headless {namespace}/{name} p:1\n");
    for i in 0..300 {
        let cluster = format!("us-{}", "c".repeat(37));
        writeln!(text, "{cluster} 10.0.{}.{} p=1 host=h{i:059}", i / 250, i % 250).unwrap();
    }
    let served = Served::start(Some(mesh(&text))).await;
    let asked = query(1, RecordType::SRV, &format!("{name}.{namespace}.svc"));
    let bytes = over_tcp(&mut served.tcp().await, &asked.to_vec().unwrap()).await;
    assert!(bytes.len() > 50_000, "{} bytes", bytes.len());
    let reply = parse(&bytes);
    assert_eq!((reply.answers.len(), reply.metadata.truncation), (200, false));
    served.stop().await;
}

#[tokio::test]
async fn many_queries_on_one_connection_and_in_one_segment() {
    let served = Served::start(Some(mesh(MESH))).await;
    let mut stream = served.tcp().await;
    let one = |id| {
        let bytes = query(id, RecordType::A, "web.shop.svc").to_vec().unwrap();
        [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], &bytes].concat()
    };
    let all: Vec<u8> = (0..50).flat_map(one).collect();
    stream.write_all(&all).await.unwrap();
    for id in 0..50 {
        let length = timeout(LONG, stream.read_u16()).await.expect("a reply").unwrap();
        let mut bytes = vec![0; usize::from(length)];
        stream.read_exact(&mut bytes).await.unwrap();
        assert_eq!(parse(&bytes).metadata.id, id);
    }
    served.stop().await;
}

#[tokio::test]
async fn slow_connections_end_and_make_room() {
    let limits = TcpLimits {
        connections: 1,
        idle: Duration::from_millis(100),
        lifetime: Duration::from_mins(1),
        ..TcpLimits::default()
    };
    let served = Served::with_limits(Some(mesh(MESH)), limits).await;
    // One drips the beginning of a query and takes the only place; the next is served after it.
    let started = Instant::now();
    let mut drip = served.tcp().await;
    drip.write_all(&[0, 40, 1]).await.unwrap();
    let asked = query(1, RecordType::A, "web.shop.svc").to_vec().unwrap();
    let reply = over_tcp(&mut served.tcp().await, &asked).await;
    assert_eq!(parse(&reply).answers.len(), 2);
    assert!(started.elapsed() >= limits.idle, "there was one place only");
    let end = timeout(LONG, drip.read(&mut [0])).await.expect("hung up on");
    assert!(matches!(end, Ok(0) | Err(_)));
    served.stop().await;
}

#[tokio::test]
async fn one_client_cannot_hold_all_connections() {
    let patient = Duration::from_mins(1);
    let limits =
        TcpLimits { connections: 80, idle: patient, lifetime: patient, ..TcpLimits::default() };
    let served = Served::with_limits(Some(mesh(MESH)), limits).await;
    let mut idle = Vec::new();
    for _ in 0..limits.connections {
        idle.push(served.tcp().await);
    }
    let asked = query(1, RecordType::A, "web.shop.svc").to_vec().unwrap();
    let mut other = from(&served, "127.0.0.2").await;
    assert_eq!(parse(&over_tcp(&mut other, &asked).await).answers.len(), 2);
    served.stop().await;
}

#[tokio::test]
async fn what_is_above_a_clients_share_is_hung_up_on_and_counted() {
    let limits = TcpLimits { per_client: 2, ..TcpLimits::default() };
    let served = Served::with_limits(Some(mesh(MESH)), limits).await;
    let asked = query(1, RecordType::A, "web.shop.svc").to_vec().unwrap();
    let (mut one, mut two) = (served.tcp().await, served.tcp().await);
    over_tcp(&mut one, &asked).await;
    over_tcp(&mut two, &asked).await;
    let end = timeout(LONG, served.tcp().await.read(&mut [0])).await.expect("hung up on");
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &served.registry).unwrap();
    assert!(text.contains("dns_refused_connections_total 1\n"), "{text}");
    over_tcp(&mut one, &asked).await; // what it has stays

    // Its end is noticed a moment after this; until then the next ones are refused, too.
    drop(two);
    let again = async {
        loop {
            let mut next = served.tcp().await;
            send_tcp(&mut next, &asked).await;
            if next.read_u16().await.is_ok() {
                break;
            }
        }
    };
    timeout(LONG, again).await.expect("there is room again");
    served.stop().await;
}

async fn from(served: &Served, client: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(client.parse().unwrap(), 0)).unwrap();
    socket.connect(served.address).await.unwrap()
}

#[tokio::test]
async fn a_busy_connection_ends_too() {
    let limits = TcpLimits { lifetime: Duration::from_millis(200), ..TcpLimits::default() };
    let served = Served::with_limits(Some(mesh(MESH)), limits).await;
    let asked = query(1, RecordType::A, "web.shop.svc").to_vec().unwrap();
    let mut stream = served.tcp().await;
    let busy = async {
        let framed = [&u16::try_from(asked.len()).unwrap().to_be_bytes()[..], &asked].concat();
        let mut sink = [0; 4096];
        while stream.write_all(&framed).await.is_ok() {
            if !matches!(stream.read(&mut sink).await, Ok(1..)) {
                break;
            }
        }
    };
    timeout(LONG, busy).await.expect("the server ends the connection");
    served.stop().await;
}

#[tokio::test]
async fn a_stop_frees_the_port_though_clients_hang_on() {
    let served = Served::start(Some(mesh(MESH))).await;
    let address = served.address;
    let mut idle = served.tcp().await;
    let asked = query(1, RecordType::A, "web.shop.svc").to_vec().unwrap();
    over_tcp(&mut idle, &asked).await;
    served.stop().await;
    UdpSocket::bind(address).await.expect("the port is free again");
}

#[tokio::test]
async fn a_taken_port_is_refused_with_what_to_do() {
    let served = Served::start(None).await;
    let (_publisher, snapshots) = channel();
    let metrics = Metrics::register(&mut Registry::default());
    let config = Config::new(Zone::default(), view("us"), metrics);
    let error = Server::bind(served.address, snapshots.clone(), config.clone()).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&served.address.to_string()), "{text}");
    assert!(text.contains("is taken") && text.contains("another port"), "{text}");

    let nowhere = "192.0.2.1:0".parse().unwrap();
    let text = Server::bind(nowhere, snapshots, config).await.unwrap_err().to_string();
    assert!(text.contains("192.0.2.1:0") && text.contains("no interface"), "{text}");
    served.stop().await;
}

#[tokio::test]
async fn what_happens_is_counted() {
    let served = Served::start(Some(mesh(MESH))).await;
    ask_udp(&served, &query(1, RecordType::A, "web.shop.svc")).await;
    ask_udp(&served, &query(1, RecordType::MX, "nothing")).await;
    ask_tcp(&served, &query(1, RecordType::SRV, "web.shop.svc")).await;
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &served.registry).unwrap();
    for line in [
        r#"dns_queries_total{transport="udp",type="A",rcode="NOERROR"} 1"#,
        r#"dns_queries_total{transport="udp",type="other",rcode="NXDOMAIN"} 1"#,
        r#"dns_queries_total{transport="tcp",type="SRV",rcode="NOERROR"} 1"#,
        r#"dns_answer_seconds_count{transport="udp"} 2"#,
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
    served.stop().await;
}
