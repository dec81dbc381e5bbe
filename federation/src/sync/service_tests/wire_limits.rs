//! Bytes that no client of this project sends.

use bytes::{BufMut, BytesMut};
use http_body_util::Full;
use tonic::codegen::{Service, http};

use super::*;
use crate::sync::MAX_MESSAGE;

const SUBSCRIBE: &str = "/tombolo.federation.v1.Federation/Subscribe";
const PUBLISH: &str = "/tombolo.federation.v1.Federation/Publish";

/// Sends one message as it is; what the server says to it.
async fn send_raw(
    channel: &mut Channel,
    path: &str,
    encoding: Option<&str>,
    flag: u8,
    length: u32,
    message: &[u8],
) -> (i32, String) {
    let mut frame = BytesMut::new();
    frame.put_u8(flag);
    frame.put_u32(length);
    frame.put_slice(message);
    let mut request = http::Request::post(path)
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(encoding) = encoding {
        request = request.header("grpc-encoding", encoding);
    }
    let body = tonic::body::Body::new(Full::new(frame.freeze()));
    std::future::poll_fn(|context| channel.poll_ready(context)).await.unwrap();
    let response = channel.call(request.body(body).unwrap());
    let response = timeout(LONG, response).await.expect("at once").unwrap();
    let said = |name: &str| {
        let value = response.headers().get(name);
        value.map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
    };
    (said("grpc-status").parse().unwrap_or(-1), said("grpc-message"))
}

/// As many zeros as `matches` copies of 258 make: fixed Huffman codes, 13 bits for each.
pub(super) fn bomb(matches: usize) -> Vec<u8> {
    let mut bytes = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let mut bits: Vec<bool> = Vec::new();
    let mut put = |code: &str| bits.extend(code.chars().map(|bit| bit == '1'));
    // Last block, fixed codes, a literal zero; then length 258 at distance 1, and the end.
    put("110");
    put("00110000");
    (0..matches).for_each(|_| put("1100010100000"));
    put("0000000");
    let byte = |bits: &[bool]| bits.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit));
    bytes.extend(bits.chunks(8).map(byte));
    bytes.extend([0; 8]);
    bytes
}

async fn empty_region(caller: Caller) -> (Region, ReplicaWriter) {
    let (writer, replicas) = replica::channel();
    heard(&writer, 1);
    let region = Region::start(0, &store().await, &replicas, Some(caller)).await;
    (region, writer)
}

async fn still_serves(channel: &Channel) {
    let request = wire::SubscribeRequest {
        scope: wire::Scope::Mesh.into(),
        reads_level: 1,
        ..wire::SubscribeRequest::default()
    };
    let mut client = FederationClient::new(channel.clone());
    let mut messages =
        timeout(LONG, client.subscribe(request)).await.unwrap().unwrap().into_inner();
    let first = timeout(LONG, messages.message()).await.unwrap().unwrap().unwrap();
    assert!(matches!(first.message, Some(Message::Start(_))), "{first:?}");
}

#[tokio::test]
async fn compressed_messages_are_refused_before_they_are_unpacked() {
    let (region, _writer) = empty_region(agent_of("r-a")).await;
    let mut channel = region.channel();
    // 250 MiB, from 1.6 MiB.
    let bomb = bomb(1 << 20);
    assert!(bomb.len() < MAX_MESSAGE, "{}", bomb.len());
    let length = u32::try_from(bomb.len()).unwrap();
    for path in [SUBSCRIBE, PUBLISH] {
        let said = send_raw(&mut channel, path, Some("gzip"), 1, length, &bomb).await;
        assert_eq!(said.0, Code::Unimplemented as i32, "{said:?}");
        for encoding in ["zstd", "deflate", "x"] {
            let said = send_raw(&mut channel, path, Some(encoding), 1, length, &bomb).await;
            assert_eq!(said.0, Code::Unimplemented as i32, "{said:?}");
        }
        let said = send_raw(&mut channel, path, None, 1, length, &bomb).await;
        assert_eq!(said.0, Code::Internal as i32, "{said:?}");
    }
    still_serves(&channel).await;
    region.stop().await;
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_by_its_length() {
    let (region, _writer) = empty_region(agent_of("r-a")).await;
    let mut channel = region.channel();
    for path in [SUBSCRIBE, PUBLISH] {
        // The length alone: nothing is set aside for what was announced.
        for length in [u32::try_from(MAX_MESSAGE).unwrap() + 1, u32::MAX] {
            let said = send_raw(&mut channel, path, None, 0, length, b"").await;
            assert_eq!(said.0, Code::OutOfRange as i32, "{said:?}");
        }
        let said = send_raw(&mut channel, path, None, 0, 3, b"\xff\xff\xff").await;
        assert_eq!(said.0, Code::Internal as i32, "no message: {said:?}");
    }
    still_serves(&channel).await;
    region.stop().await;
}

#[tokio::test]
async fn a_list_of_headers_without_end_is_refused() {
    let (region, _writer) = empty_region(agent_of("r-a")).await;
    let channel = region.channel();
    let mut request = Request::new(wire::RecoverRequest { reads_level: 1 });
    for n in 0..64 {
        let name = tonic::metadata::MetadataKey::from_bytes(format!("x-{n}").as_bytes()).unwrap();
        request.metadata_mut().insert(name, "v".repeat(1024).parse().unwrap());
    }
    let mut client = FederationClient::new(channel.clone());
    let outcome = timeout(LONG, client.recover(request)).await.expect("at once");
    let refused = outcome.map(drop).unwrap_err();
    assert_ne!(refused.code(), Code::PermissionDenied, "it came as far as the service");
    still_serves(&channel).await;
    region.stop().await;
}
