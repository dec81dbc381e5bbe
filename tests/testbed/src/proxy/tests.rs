use std::io::{ErrorKind, Read as _, Write as _};
use std::time::Instant;

use anyhow::ensure;

use super::*;
use crate::wait_for;

const SOON: Duration = Duration::from_mins(1);
/// Longer than an echo takes through a proxy that does nothing.
const SHORT: Duration = Duration::from_millis(500);

/// A server that sends back what it gets, with a thread per connection; for the whole test run.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let mut back = client.try_clone().unwrap();
            thread::spawn(move || {
                drop(io::copy(&mut client, &mut back));
                drop(back.shutdown(std::net::Shutdown::Write));
            });
        }
    });
    address
}

fn proxied() -> (Proxy, TcpStream) {
    let proxy = Proxy::start(echo()).unwrap();
    let client = connect(&proxy);
    (proxy, client)
}

fn connect(proxy: &Proxy) -> TcpStream {
    let client = TcpStream::connect(proxy.address()).unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    client
}

/// Says something and reads the echo.
fn ask(client: &mut TcpStream, what: &str) -> io::Result<String> {
    client.write_all(what.as_bytes())?;
    answer(client, what.len())
}

fn answer(client: &mut TcpStream, length: usize) -> io::Result<String> {
    let mut buffer = vec![0; length];
    client.read_exact(&mut buffer)?;
    Ok(String::from_utf8(buffer).unwrap())
}

#[test]
fn everything_goes_through_in_order_and_is_counted() {
    let (proxy, mut client) = proxied();
    let sent: Vec<u8> =
        (0..3_000_000_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    let mut writer = client.try_clone().unwrap();
    let received = thread::scope(|scope| {
        scope.spawn(|| {
            writer.write_all(&sent).unwrap();
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        client.read_to_end(&mut received).unwrap();
        received
    });
    assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
    wait_for("its end is seen", SOON, || {
        let counts = proxy.counts();
        let bytes = sent.len() as u64;
        let wanted = Counts { accepted: 1, refused: 0, open: 0, sent: bytes, received: bytes };
        ensure!(counts == wanted, "{counts:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_delay_is_added_each_way_and_does_not_add_up() {
    let (proxy, mut client) = proxied();
    let delay = Duration::from_millis(150);
    proxy.delay(delay);
    let started = Instant::now();
    assert_eq!(ask(&mut client, "one").unwrap(), "one");
    assert!(started.elapsed() >= delay * 2, "{:?}", started.elapsed());

    // Many chunks, one after the other: each is late by the delay, not by the sum.
    let started = Instant::now();
    for _ in 0..20 {
        client.write_all(b"chunk").unwrap();
        wait_for("a chunk of its own", Duration::from_millis(1), || Err::<(), _>("")).unwrap_err();
    }
    assert_eq!(answer(&mut client, 100).unwrap(), "chunk".repeat(20));
    assert!(started.elapsed() < delay * 20, "{:?}", started.elapsed());
    proxy.heal();
    assert_eq!(ask(&mut client, "two").unwrap(), "two");
}

#[test]
fn a_limit_holds_over_all_connections() {
    let (proxy, mut one) = proxied();
    let mut other = connect(&proxy);
    proxy.limit(NonZeroU32::new(100_000).unwrap());
    let text = "x".repeat(20_000);
    let started = Instant::now();
    thread::scope(|scope| {
        for client in [&mut one, &mut other] {
            scope.spawn(|| assert_eq!(ask(client, &text).unwrap(), text));
        }
    });
    // 40 kB at 100 kB/s.
    assert!(started.elapsed() >= Duration::from_millis(400), "{:?}", started.elapsed());
}

#[test]
fn a_black_hole_accepts_and_holds_and_healing_delivers() {
    let (proxy, mut client) = proxied();
    assert_eq!(ask(&mut client, "before").unwrap(), "before");
    proxy.black_hole();
    let mut late = connect(&proxy);
    for client in [&mut client, &mut late] {
        client.set_read_timeout(Some(SHORT)).unwrap();
        assert_eq!(ask(client, "held").unwrap_err().kind(), ErrorKind::WouldBlock);
        client.set_read_timeout(Some(SOON)).unwrap();
    }
    assert_eq!(proxy.counts().accepted, 2);
    proxy.heal();
    for client in [&mut client, &mut late] {
        assert_eq!(answer(client, 4).unwrap(), "held");
        assert_eq!(ask(client, "after").unwrap(), "after");
    }
}

#[test]
fn a_reset_resets_what_is_open_and_what_comes_until_healed() {
    let (proxy, mut client) = proxied();
    assert_eq!(ask(&mut client, "before").unwrap(), "before");
    proxy.reset();
    assert_eq!(proxy.counts().open, 0);
    assert_eq!(answer(&mut client, 1).unwrap_err().kind(), ErrorKind::ConnectionReset);
    let mut late = connect(&proxy);
    assert_eq!(answer(&mut late, 1).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(proxy.counts().refused, 1);
    proxy.heal();
    assert_eq!(ask(&mut connect(&proxy), "after").unwrap(), "after");
}

#[test]
fn a_cut_closes_what_is_open_and_what_comes_until_healed() {
    let (proxy, mut client) = proxied();
    assert_eq!(ask(&mut client, "before").unwrap(), "before");
    proxy.cut();
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0, "an orderly end");
    let mut late = connect(&proxy);
    assert_eq!(late.read(&mut [0; 8]).unwrap(), 0);
    proxy.heal();
    assert_eq!(ask(&mut connect(&proxy), "after").unwrap(), "after");
}

#[test]
fn cutting_also_ends_what_a_black_hole_or_a_delay_holds() {
    for hold in [Proxy::black_hole, |proxy: &Proxy| proxy.delay(SOON * 10)] {
        let (proxy, mut client) = proxied();
        assert_eq!(ask(&mut client, "before").unwrap(), "before");
        hold(&proxy);
        client.write_all(b"held").unwrap();
        let late = connect(&proxy);
        proxy.cut();
        assert_eq!(proxy.counts().open, 0);
        drop(late);
    }
}

#[test]
fn connections_and_what_is_under_way_are_bounded() {
    let (proxy, mut first) = proxied();
    assert_eq!(ask(&mut first, "x").unwrap(), "x");
    let mut clients: Vec<_> = (1..MOST).map(|_| connect(&proxy)).collect();
    for client in &mut clients {
        assert_eq!(ask(client, "x").unwrap(), "x");
    }
    let mut one_more = connect(&proxy);
    assert_eq!(one_more.read(&mut [0; 8]).unwrap(), 0, "closed as it comes");
    assert_eq!((proxy.counts().open, proxy.counts().refused), (MOST, 1));

    // Who sends into a black hole is held up by it, rather than filling the test's memory.
    proxy.black_hole();
    first.set_write_timeout(Some(SHORT)).unwrap();
    let much = vec![0; 64 << 20];
    assert_eq!(first.write_all(&much).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn an_end_on_one_side_is_an_end_on_the_other() {
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = nobody.local_addr().unwrap();
    let proxy = Proxy::start(address).unwrap();
    let mut client = connect(&proxy);
    let (server, _) = nobody.accept().unwrap();
    set_linger_zero(&server);
    drop(server);
    assert_eq!(answer(&mut client, 1).unwrap_err().kind(), ErrorKind::ConnectionReset);

    drop(nobody);
    let mut client = connect(&proxy);
    assert!(answer(&mut client, 1).is_err(), "the target is gone");
    let address = proxy.address();
    drop(proxy);
    assert!(TcpStream::connect(address).is_err(), "it ends with its owner");
}

fn set_linger_zero(stream: &TcpStream) {
    way::reset_on_close(stream);
}
