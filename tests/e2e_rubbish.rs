//! Nothing that a client sends ends the demo, or keeps it from answering others.

mod common;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use common::mesh::Mesh;
use common::{SOON, US, ask};
use tombolo_testbed::{http, wait_for};

/// What programs that meant something else would send, and some that mean harm.
fn rubbish() -> Vec<Vec<u8>> {
    let long_name = [vec![63_u8; 64], vec![0_u8; 4000]].concat();
    // A DNS header that promises records which are not there, and a name that points at itself.
    let counts = b"\x12\x34\x01\x00\xff\xff\xff\xff\xff\xff\xff\xff".to_vec();
    let looping =
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01".to_vec();
    vec![
        Vec::new(),
        vec![0],
        vec![0xff; 5000],
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"POST /stop HTTP/1.1\r\nContent-Length: 99999999\r\n\r\nstop region us-west1\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"stop\nstart region\n\xff\xfe\n".to_vec(),
        b"GET /api/v1/dns?name=%ff%00&type=%zz HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        vec![b'a'; 100_000],
        counts.clone(),
        looping.clone(),
        // The same over TCP, with lengths that are right and wrong.
        [&[0, 12], &counts[..]].concat(),
        [&[0, 18], &looping[..]].concat(),
        [&[0xff, 0xff], &looping[..]].concat(),
        [&[0, 3], &long_name[..]].concat(),
    ]
}

/// Sends it all and takes what comes; servers may hang up in the middle.
fn pour(server: SocketAddr, bytes: &[u8]) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.read(&mut [0; 4096]);
    Ok(())
}

#[test]
fn rubbish_on_every_port_ends_nothing() -> anyhow::Result<()> {
    let mesh = Mesh::start("rubbish")?;
    let digest = mesh.agreed_digest()?;
    let region = mesh.demo.region(US)?;
    let (agent, control) = (mesh.us(), mesh.demo.layout().control);
    let servers =
        [region.grpc, region.admin, region.dns, agent.grpc, agent.admin, agent.dns, control];
    let udp = UdpSocket::bind("127.0.0.1:0")?;
    for bytes in rubbish() {
        for server in servers {
            pour(server, &bytes)?;
        }
        for dns in [region.dns, agent.dns] {
            let _ = udp.send_to(&bytes[..bytes.len().min(60_000)], dns);
        }
    }
    assert_eq!(mesh.agreed_digest()?, digest);
    for (_, dns, admin) in mesh.processes() {
        assert_eq!(ask::addresses(dns, "checkout")?.len(), 4);
        assert_eq!(http::get(admin, "/livez")?.status, 200);
        assert_eq!(http::get(admin, "/readyz")?.status, 200);
    }
    mesh.demo.control("stop backend us-west1-alpha/cart")?;
    mesh.demo.control("start backend us-west1-alpha/cart")?;
    mesh.end()
}

#[test]
fn connections_that_say_nothing_keep_no_one_out() -> anyhow::Result<()> {
    let mesh = Mesh::start("silent")?;
    let (region, agent) = (mesh.demo.region(US)?.clone(), mesh.us().clone());
    let mut held = Vec::new();
    let control = mesh.demo.layout().control;
    for server in [region.grpc, region.admin, region.dns, agent.grpc, agent.dns, control] {
        for _ in 0..40 {
            held.push(TcpStream::connect(server)?);
        }
    }
    wait_for("everything answers beside them", SOON, || {
        anyhow::ensure!(http::get(region.admin, "/readyz")?.status == 200);
        ask::same(&ask::addresses(agent.dns, "checkout")?.len(), &4)?;
        let name = ask::full("checkout");
        let tcp = tombolo_testbed::dns::Question::tcp(agent.dns, &name, "A").dig(&[])?;
        ask::same(&tcp.data("A").len(), &4)
    })?;
    // gRPC: an agent that starts needs it.
    mesh.demo.control("stop agent us-west1-beta")?;
    mesh.demo.control("start agent us-west1-beta")?;
    mesh.agreed_digest()?;
    drop(held);
    mesh.end()
}

#[test]
fn the_admin_api_answers_in_the_forms_it_promises() -> anyhow::Result<()> {
    let mesh = Mesh::start("admin")?;
    for (process, _, admin) in mesh.processes() {
        assert_eq!(http::get(admin, "/livez")?.text(), "ok\n", "{process}");
        assert_eq!(http::get(admin, "/readyz")?.text(), "ok\n", "{process}");
        let metrics = http::get(admin, "/metrics")?;
        assert!(metrics.header("content-type").is_some_and(|t| t.contains("openmetrics")));
        let text = metrics.text();
        for line in ["tombolo_ready 1", "tombolo_catalog_services 6", "# EOF"] {
            assert!(text.lines().any(|l| l.starts_with(line)), "{process}: no {line:?} in {text}");
        }
        assert_eq!(http::get(admin, "/api/v1/status")?.status, 200);
        assert_eq!(http::get(admin, "/api/v1/services")?.status, 200);
        assert_eq!(http::get(admin, "/nothing")?.status, 404);
    }
    mesh.end()
}

#[test]
fn readiness_names_what_is_pending() -> anyhow::Result<()> {
    let mesh = Mesh::start("pending")?;
    // With nothing on disk an agent waits for its region: a part is not taken for the whole.
    mesh.demo.control("stop control-plane us-west1")?;
    mesh.demo.control("stop agent us-west1-alpha")?;
    std::fs::remove_dir_all(mesh.state_dir().join("state/agent-us-west1-alpha/cache"))?;
    mesh.demo.control("start agent us-west1-alpha")?;
    let admin = mesh.us().admin;
    wait_for("it says what it waits for", SOON, || {
        let ready = http::get(admin, "/readyz")?;
        anyhow::ensure!(ready.status == 503, "{ready:?}");
        anyhow::ensure!(ready.text().contains("the feed of region us-west1"), "{ready:?}");
        ask::same(&ask::code(mesh.us().dns, "catalog")?.as_str(), &"SERVFAIL")
    })?;
    assert_eq!(http::get(admin, "/livez")?.status, 200);
    mesh.demo.control("start control-plane us-west1")?;
    wait_for("it is ready", SOON * 2, || {
        ask::same(&http::get(admin, "/readyz")?.status, &200)?;
        ask::same(&ask::addresses(mesh.us().dns, "catalog")?.len(), &4)
    })?;
    mesh.end()
}
