use std::io::{Read as _, Write as _};
use std::net::{TcpListener, UdpSocket};
use std::thread;

use super::*;
use crate::netns::{self, Namespaces};
use crate::skip;

// Printed by dig 9.18.
const DIG: &str = "\
;; Got answer:
;; ->>HEADER<<- opcode: QUERY, status: NOERROR, id: 61703
;; flags: qr aa rd; QUERY: 1, ANSWER: 2, AUTHORITY: 1, ADDITIONAL: 2
;; WARNING: recursion requested but not available

;; OPT PSEUDOSECTION:
; EDNS: version: 0, flags:; udp: 1232
;; QUESTION SECTION:
;_http._tcp.web.shop.svc.clusterset.local. IN SRV

;; ANSWER SECTION:
_http._tcp.web.shop.svc.clusterset.local. 5 IN SRV 0 50 8080 b.web.shop.svc.clusterset.local.
_http._tcp.web.shop.svc.clusterset.local. 5\tIN\tSRV\t0 50 8080 a.web.shop.svc.clusterset.local.

;; AUTHORITY SECTION:
clusterset.local.\t5\tIN\tTXT\t\"a b\" \"c\"

;; ADDITIONAL SECTION:
a.web.shop.svc.clusterset.local. 5 IN\tA\t127.0.1.1
";

#[test]
fn the_output_of_dig_is_read_section_by_section() {
    let answer = parse_dig(DIG).unwrap();
    assert_eq!((answer.status.as_str(), answer.flags.join(" ").as_str()), ("NOERROR", "qr aa rd"));
    let srv = |host| format!("0 50 8080 {host}.web.shop.svc.clusterset.local.");
    assert_eq!(answer.data("SRV"), [srv("a"), srv("b")]);
    assert_eq!(answer.data("A"), Vec::<&str>::new());
    assert_eq!(answer.authority[0].data, "\"a b\" \"c\"");
    let additional = &answer.additional[0];
    assert_eq!((additional.ttl, additional.data.as_str()), (5, "127.0.1.1"));
    assert!(!answer.is_nodata());
}

#[test]
fn output_that_is_no_answer_is_refused() {
    for output in
        ["", ";; communications error", &DIG.replace("\t127.0.1.1", ""), &DIG.replace(" 5 ", " x ")]
    {
        assert!(parse_dig(output).is_err(), "{output}");
    }
}

#[test]
fn both_clients_print_the_same_shape() {
    let json = r#"{"status": "NOERROR", "flags": ["qr"], "answer": [], "authority": [],
            "additional": [{"name": "a.", "ttl": 1, "type": "A", "data": "127.0.0.1"}]}"#;
    let answer: Answer = serde_json::from_str(json).unwrap();
    assert!(answer.is_nodata());
    assert_eq!(answer.additional[0].kind, "A");
}

/// Answers any question with one A record, aa set.
fn canned(query: &[u8]) -> Vec<u8> {
    let name_end = 12 + query[12..].iter().position(|byte| *byte == 0).unwrap();
    let mut answer = query[..2].to_vec();
    answer.extend([0x85, 0, 0, 1, 0, 1, 0, 0, 0, 0]);
    answer.extend(&query[12..name_end + 5]);
    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 127, 0, 1, 1]);
    answer
}

fn udp_server() -> (SocketAddr, thread::JoinHandle<()>) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let served = thread::spawn(move || {
        let mut query = [0; 512];
        let (length, client) = socket.recv_from(&mut query).unwrap();
        socket.send_to(&canned(&query[..length]), client).unwrap();
    });
    (address, served)
}

fn tcp_server() -> (SocketAddr, thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let served = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut query = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut query).unwrap();
        let answer = canned(&query);
        stream.write_all(&u16::try_from(answer.len()).unwrap().to_be_bytes()).unwrap();
        stream.write_all(&answer).unwrap();
    });
    (address, served)
}

fn check_client(ask: impl Fn(Question<'_>) -> anyhow::Result<Answer>) {
    let name = "web.shop.svc.clusterset.local.";
    let record = Record { name: name.into(), ttl: 5, kind: "A".into(), data: "127.0.1.1".into() };
    let expected = Answer {
        status: "NOERROR".into(),
        flags: ["qr", "aa", "rd"].map(str::to_owned).into(),
        answer: vec![record],
        authority: vec![],
        additional: vec![],
    };
    let (udp, served) = udp_server();
    assert_eq!(ask(Question::udp(udp, name, "A")).unwrap(), expected);
    served.join().unwrap();

    let (tcp, served) = tcp_server();
    assert_eq!(ask(Question::tcp(tcp, name, "A")).unwrap(), expected);
    served.join().unwrap();
    let error = ask(Question::tcp(tcp, name, "A")).expect_err("nothing listens any more");
    assert!(error.to_string().contains("refused"), "{error:#}");
}

#[test]
fn dig_asks_over_both_transports() {
    match Tool::Dig.path() {
        Ok(_) => check_client(|question| question.dig(&["+noedns"])),
        Err(missing) => skip("dns::dig_asks_over_both_transports", missing),
    }
}

#[test]
fn dig_asks_inside_a_network_namespace() {
    if let Err(missing) = Tool::Dig.path().map(|_| ()).and_then(|()| netns::available()) {
        return skip("dns::dig_asks_inside_a_network_namespace", missing);
    }
    let net = Namespaces::make(&["us"]).unwrap();
    // The servers are on the namespace's loopback, where dig from outside finds nobody.
    net.all()[0].inside(|| check_client(|question| question.dig(&["+noedns"]))).unwrap();
    let (udp, served) = net.all()[0].inside(udp_server).unwrap();
    let name = "web.shop.svc.clusterset.local.";
    assert!(Question::udp(udp, name, "A").dig(&["+time=1", "+tries=1"]).is_err());
    net.all()[0].inside(|| Question::udp(udp, name, "A").dig(&["+noedns"])).unwrap().unwrap();
    served.join().unwrap();
}

#[test]
fn dnspython_asks_over_both_transports() {
    match Tool::Python.path() {
        Ok(_) => check_client(|question| question.dnspython()),
        Err(missing) => skip("dns::dnspython_asks_over_both_transports", missing),
    }
}
