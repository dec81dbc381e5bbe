//! Bytes that are no queries: nothing that is sent ends the server, and a response is never
//! replied to.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::mesh::mesh;
use crate::wire::{self, MESH, Served, addresses, over_tcp, over_udp, parse, query};

/// Garbage of every length, and queries with some bytes changed.
fn garbage(count: usize) -> Vec<Vec<u8>> {
    let good = query(0xabcd, RecordType::A, "web.shop.svc");
    let good = wire::with_edns(good, 1232).to_vec().unwrap();
    let length = good.len();
    let changed = proptest::collection::vec((0..length, any::<u8>()), 1..6);
    let changed = changed.prop_map(move |changes| {
        let mut bytes = good.clone();
        for (at, to) in changes {
            bytes[at] = to;
        }
        bytes
    });
    let random = proptest::collection::vec(any::<u8>(), 0..600);
    let either = prop_oneof![changed, random];
    let mut runner = TestRunner::deterministic();
    (0..count).map(|_| either.new_tree(&mut runner).unwrap().current()).collect()
}

/// Whether a reply is due: a whole header that is not a response's.
fn is_due(bytes: &[u8]) -> bool {
    bytes.len() >= 12 && bytes[2] & 0x80 == 0
}

async fn still_answers(served: &Served) {
    let asked = query(9, RecordType::A, "web.shop.svc").to_vec().unwrap();
    let reply = parse(&over_udp(&served.udp().await, &asked).await);
    assert_eq!(addresses(&reply), ["10.0.0.1", "10.0.0.2"]);
    let reply = parse(&over_tcp(&mut served.tcp().await, &asked).await);
    assert_eq!(addresses(&reply), ["10.0.0.1", "10.0.0.2"]);
}

#[tokio::test]
async fn garbage_over_udp_gets_one_reply_or_none() {
    let served = Served::start(Some(mesh(MESH))).await;
    let socket = served.udp().await;
    for bytes in garbage(2000) {
        if is_due(&bytes) {
            let reply = over_udp(&socket, &bytes).await;
            assert_eq!((&reply[..2], reply[2] & 0x80), (&bytes[..2], 0x80), "{bytes:?}");
        } else {
            socket.send(&bytes).await.unwrap();
        }
    }
    still_answers(&served).await;
    served.stop().await;
}

#[tokio::test]
async fn garbage_over_tcp_gets_one_reply_or_the_end() {
    let served = Served::start(Some(mesh(MESH))).await;
    for bytes in garbage(300) {
        let mut stream = served.tcp().await;
        if is_due(&bytes) {
            let reply = over_tcp(&mut stream, &bytes).await;
            assert_eq!((&reply[..2], reply[2] & 0x80), (&bytes[..2], 0x80), "{bytes:?}");
        } else {
            wire::send_tcp(&mut stream, &bytes).await;
            expect_end(&mut stream).await;
        }
    }
    still_answers(&served).await;
    served.stop().await;
}

/// End of stream or a reset, and not a byte before.
async fn expect_end(stream: &mut tokio::net::TcpStream) {
    use tokio::io::AsyncReadExt;
    let end = tokio::time::timeout(wire::LONG, stream.read(&mut [0])).await.expect("an end");
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
}

#[tokio::test]
async fn unframed_garbage_over_tcp() {
    use tokio::io::AsyncWriteExt;
    let served = Served::start(Some(mesh(MESH))).await;
    for bytes in garbage(200) {
        let mut stream = served.tcp().await;
        // The server may have hung up already.
        let _ = stream.write_all(&bytes).await;
    }
    let mut stream = served.tcp().await;
    stream.write_all(&[0xff, 0xff]).await.unwrap();
    expect_end(&mut stream).await;
    still_answers(&served).await;
    served.stop().await;
}

/// On one socket replies come in order, so the next reply shows that there was none before.
#[tokio::test]
async fn responses_are_not_replied_to() {
    let served = Served::start(Some(mesh(MESH))).await;
    let socket = served.udp().await;
    let good = query(1, RecordType::A, "web.shop.svc").to_vec().unwrap();
    let mut response = good.clone();
    response[..2].copy_from_slice(&[0xde, 0xad]);
    response[2] |= 0x80;
    let malformed = [&response[..], &[0xff; 9]].concat();
    let cut = &response[..14];
    for bytes in [&response[..], &malformed, cut, &response[..12], &response[..11], &[]] {
        socket.send(bytes).await.unwrap();
        assert_eq!(over_udp(&socket, &good).await[..2], [0, 1]);
    }
    served.stop().await;
}

#[tokio::test]
async fn pointers_that_loop_and_counts_that_lie_are_malformed() {
    let served = Served::start(Some(mesh(MESH))).await;
    let socket = served.udp().await;
    let head = |counts: [u8; 8]| [&[0, 7, 1, 0][..], &counts].concat();
    let one = [0, 1, 0, 0, 0, 0, 0, 0];
    let cases: [(&str, Vec<u8>); 7] = [
        ("a pointer to itself", [&head(one)[..], &[0xc0, 12, 0, 1, 0, 1]].concat()),
        ("a pointer ahead", [&head(one)[..], &[0xc0, 40, 0, 1, 0, 1]].concat()),
        ("an endless label", [&head(one)[..], &[63, b'a']].concat()),
        (
            "a name of 130 labels",
            [&head(one)[..], &[1, b'a'].repeat(130), &[0, 0, 1, 0, 1]].concat(),
        ),
        ("no question", head([0; 8])),
        ("65535 questions", head([0xff, 0xff, 0, 0, 0, 0, 0, 0])),
        (
            "65535 records",
            [&head([0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff])[..], &[0, 0, 1, 0, 1]].concat(),
        ),
    ];
    for (what, bytes) in cases {
        let reply = parse(&over_udp(&socket, &bytes).await);
        assert_eq!(reply.metadata.response_code, ResponseCode::FormErr, "{what}");
        assert_eq!(reply.metadata.id, 7, "{what}");
    }
    still_answers(&served).await;
    served.stop().await;
}
