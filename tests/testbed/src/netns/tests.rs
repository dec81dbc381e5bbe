use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use super::*;
use crate::etcd::{Etcd, Options, Release};
use crate::{Process, Scratch, http, skip, wait_for};

/// Longer than anything takes between two namespaces that reach each other.
const SHORT: Duration = Duration::from_millis(500);
const SOON: Duration = Duration::from_mins(1);

/// A set, or the test is skipped.
fn made(test: &str, labels: &[&str]) -> Option<Namespaces> {
    match available() {
        Ok(()) => Some(Namespaces::make(labels).unwrap()),
        Err(missing) => {
            skip(&format!("testbed::netns::{test}"), missing);
            None
        }
    }
}

/// A listener in `at`, and a connection to it from `from` with both its ends.
fn connection(at: &Namespace, from: &Namespace) -> (TcpStream, TcpStream) {
    let listener = at.inside(|| TcpListener::bind((at.address(), 0))).unwrap().unwrap();
    let address = listener.local_addr().unwrap();
    let near = from.inside(|| connect(address)).unwrap().unwrap();
    let (far, _) = listener.accept().unwrap();
    for end in [&near, &far] {
        end.set_read_timeout(Some(SHORT)).unwrap();
    }
    (near, far)
}

fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&to, SHORT)
}

/// What is there within the stream's deadline. Children of other tests end meanwhile, and their
/// signal interrupts a read (signal(7)): that says nothing of the stream.
fn said(from: &mut TcpStream) -> std::io::Result<String> {
    let mut buffer = [0; 64];
    loop {
        match from.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            read => return Ok(String::from_utf8_lossy(&buffer[..read?]).into_owned()),
        }
    }
}

#[test]
fn namespaces_of_a_set_reach_each_other_and_those_of_another_set_do_not() {
    let Some(net) = made("reach", &["us", "eu"]) else { return };
    let (us, eu) = (net.of("us").unwrap(), net.of("eu").unwrap());
    let (mut near, mut far) = connection(us, eu);
    near.write_all(b"hello").unwrap();
    assert_eq!(said(&mut far).unwrap(), "hello");
    assert_eq!(near.local_addr().unwrap().ip(), eu.address());

    let other = Namespaces::make(&["us", "asia"]).unwrap();
    let listener = eu.inside(|| TcpListener::bind((eu.address(), 0))).unwrap().unwrap();
    let address = listener.local_addr().unwrap();
    assert!(us.inside(|| connect(address)).unwrap().is_ok());
    let stranger = other.of("us").unwrap();
    assert!(stranger.inside(|| connect(address)).unwrap().is_err(), "another set");
    assert!(net.of("asia").is_err());
    assert!(Namespaces::make(&["us", "us"]).is_err());
}

#[test]
fn a_partition_holds_what_is_sent_and_healing_delivers_it() {
    let Some(net) = made("partition", &["us", "eu", "asia"]) else { return };
    let (us, eu, asia) = (net.of("us").unwrap(), net.of("eu").unwrap(), net.of("asia").unwrap());
    let (mut near, mut far) = connection(us, eu);
    let (mut near_asia, mut far_asia) = connection(us, asia);
    let listener = us.inside(|| TcpListener::bind((us.address(), 0))).unwrap().unwrap();
    let address = listener.local_addr().unwrap();

    net.part("us", "eu", Fault::Drop).unwrap();
    near.write_all(b"one").unwrap();
    far.write_all(b"two").unwrap();
    for end in [&mut near, &mut far] {
        assert_eq!(said(end).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
    let refused = eu.inside(|| connect(address)).unwrap().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TimedOut);
    near_asia.write_all(b"hello").unwrap();
    assert_eq!(said(&mut far_asia).unwrap(), "hello", "the third is not touched");

    net.heal("eu", "us").unwrap();
    for (end, wanted) in [(&mut near, "two"), (&mut far, "one")] {
        assert_eq!(wait_for(wanted, SOON, || said(end)).unwrap(), wanted);
    }
    assert!(eu.inside(|| connect(address)).unwrap().is_ok());

    net.isolate("eu", Fault::Drop).unwrap();
    assert!(eu.inside(|| connect(address)).unwrap().is_err());
    net.heal_all().unwrap();
    assert!(eu.inside(|| connect(address)).unwrap().is_ok());
}

#[test]
fn a_cut_is_one_way() {
    let Some(net) = made("one_way", &["us", "eu"]) else { return };
    let bound = |at: &Namespace| {
        let socket = at.inside(|| UdpSocket::bind((at.address(), 0))).unwrap().unwrap();
        socket.set_read_timeout(Some(SHORT)).unwrap();
        socket
    };
    let (us, eu) = (bound(net.of("us").unwrap()), bound(net.of("eu").unwrap()));
    let reaches = |from: &UdpSocket, to: &UdpSocket| {
        from.send_to(b"x", to.local_addr().unwrap()).unwrap();
        to.recv_from(&mut [0; 8]).is_ok()
    };
    for fault in [Fault::Drop, Fault::Lose(100)] {
        assert!(reaches(&us, &eu) && reaches(&eu, &us));
        net.cut("us", "eu", fault).unwrap();
        assert!(!reaches(&us, &eu), "{fault:?}");
        assert!(reaches(&eu, &us), "{fault:?}");
        net.heal("us", "eu").unwrap();
    }
}

#[test]
fn a_reset_breaks_connections_and_refuses_new_ones() {
    let Some(net) = made("reset", &["us", "eu"]) else { return };
    let (us, eu) = (net.of("us").unwrap(), net.of("eu").unwrap());
    let (mut near, mut far) = connection(us, eu);
    let listener = us.inside(|| TcpListener::bind((us.address(), 0))).unwrap().unwrap();
    let address = listener.local_addr().unwrap();
    net.part("us", "eu", Fault::Reset).unwrap();
    for end in [&mut near, &mut far] {
        // The first write meets the filter, what follows sees what became of the connection.
        drop(end.write_all(b"x"));
        let broken = said(end).unwrap_err().kind();
        assert!(
            matches!(broken, ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused),
            "{broken:?}"
        );
    }
    let refused = eu.inside(|| connect(address)).unwrap().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    net.heal_all().unwrap();
    assert!(eu.inside(|| connect(address)).unwrap().is_ok());
}

#[test]
fn http_is_asked_from_one_namespace_in_another() {
    let Some(net) = made("http", &["us", "eu"]) else { return };
    let (us, eu) = (net.of("us").unwrap(), net.of("eu").unwrap());
    let listener = us.inside(|| TcpListener::bind((us.address(), 80))).unwrap().unwrap();
    let server = thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        assert!(client.read(&mut [0; 1024]).unwrap() > 0);
        let from = client.peer_addr().unwrap().ip().to_string();
        let response = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{from}", from.len());
        client.write_all(response.as_bytes()).unwrap();
    });
    let response = eu.inside(|| http::get((us.address(), 80).into(), "/")).unwrap().unwrap();
    assert_eq!(response.text(), eu.address().to_string());
    server.join().unwrap();
}

#[test]
fn a_process_started_inside_is_inside_and_gets_its_signals() {
    let Some(net) = made("process", &["us"]) else { return };
    let scratch = Scratch::new("netns").unwrap();
    let us = net.of("us").unwrap();
    let script = "trap 'exit 7' TERM; cat /proc/net/fib_trie; while :; do sleep 0.02; done";
    let mut shell = Command::new("sh");
    let mut process = us
        .inside(|| Process::start("sh", shell.args(["-c", script]), scratch.path()))
        .unwrap()
        .unwrap();
    let address = us.address().to_string();
    wait_for("its own address", SOON, || {
        let text = process.stdout()?;
        text.contains(&address).then_some(()).with_context(|| text)
    })
    .unwrap();
    process.signal(Signal::TERM).unwrap();
    assert_eq!(process.wait(SOON).unwrap().code(), Some(7));
}

fn left(names: &[String]) -> Vec<&String> {
    names.iter().filter(|name| Path::new(NAMES).join(name).exists()).collect()
}

fn names(net: &Namespaces) -> Vec<String> {
    let all = net.all.iter().map(|namespace| namespace.name.clone());
    all.chain([net.switch.clone()]).collect()
}

#[test]
fn nothing_is_left_of_a_set_that_was_dropped_or_whose_test_panicked() {
    let Some(net) = made("left", &["us", "eu"]) else { return };
    let made = names(&net);
    assert_eq!(left(&made).len(), 3);
    // A child that nobody ends: nothing of it may stay either.
    let us = net.of("us").unwrap();
    let mut forgotten = us.inside(|| Command::new("sleep").arg("600").spawn()).unwrap().unwrap();
    drop(net);
    assert_eq!(left(&made), Vec::<&String>::new());
    wait_for("its end", SOON, || forgotten.try_wait()?.context("it runs")).unwrap();

    let failed = thread::spawn(|| {
        let net = Namespaces::make(&["us"]).unwrap();
        let made = names(&net);
        let us = net.of("us").unwrap();
        us.inside(|| std::panic::panic_any(made)).unwrap()
    });
    let made = *failed.join().unwrap_err().downcast::<Vec<String>>().unwrap();
    assert_eq!((made.len(), left(&made)), (2, Vec::new()));
}

#[test]
fn what_a_killed_run_left_is_removed_by_the_next() {
    if let Err(missing) = available() {
        return skip("testbed::netns::leftovers", missing);
    }
    let mut maker = Command::new("sleep").arg("600").spawn().unwrap();
    let name = format!("{PREFIX}-{}-0-us", maker.id());
    ip(&["netns", "add", &name]).unwrap();
    let orphan = Namespace { label: "us".into(), name, address: Ipv4Addr::LOCALHOST };
    let mut child = orphan.inside(|| Command::new("sleep").arg("600").spawn()).unwrap().unwrap();
    drop(Namespaces::make(&["us"]).unwrap());
    assert!(Path::new(NAMES).join(&orphan.name).exists(), "its maker lives");
    maker.kill().and_then(|()| maker.wait()).unwrap();
    drop(Namespaces::make(&["us"]).unwrap());
    assert!(!Path::new(NAMES).join(&orphan.name).exists());
    wait_for("its end", SOON, || child.try_wait()?.context("it runs")).unwrap();

    assert_eq!(commands::maker("tombolo-12-0-us"), Some(12));
    for other in ["tombolo", "tombolo-x-0-us", "tombolo-12", "other-12-0-us"] {
        assert_eq!(commands::maker(other), None, "{other}");
    }
}

#[test]
fn etcd_over_three_regions_elects_another_leader_when_one_is_cut_off() {
    if let Err(missing) = Release::Pinned.available() {
        return skip("testbed::netns::etcd", missing);
    }
    let Some(net) = made("etcd", &["us", "eu", "asia"]) else { return };
    let scratch = Scratch::new("netns-etcd").unwrap();
    let options = Options { members: 3, namespaces: net.all().to_vec(), ..Options::default() };
    let etcd = Etcd::start("mesh", Release::Pinned, scratch.path(), options).unwrap();
    let old = etcd.leader().unwrap();
    etcd.ctl(&["put", "key", "1"]).unwrap();
    net.isolate(net.all()[old].label(), Fault::Drop).unwrap();
    let other = (old + 1) % 3;
    wait_for("a write beside the old leader", SOON, || etcd.ctl_at(other, &["put", "key", "2"]))
        .unwrap();
    assert!(etcd.ctl_at(old, &["get", "key", "--command-timeout=2s"]).is_err(), "it is alone");
    net.heal_all().unwrap();
    let value = wait_for("the old leader follows", SOON, || etcd.ctl_at(old, &["get", "key"]));
    assert_eq!(value.unwrap(), "key\n2\n");
}
