//! A peer that answers with bytes that no server of this project sends.

use std::convert::Infallible;
use std::task::{Context, Poll};

use bytes::{BufMut, BytesMut};
use http_body_util::Full;
use tonic::body::Body as HttpBody;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

use super::mirroring::mirroring;
use super::wire_limits::bomb;
use super::*;
use crate::sync::MAX_MESSAGE;
use crate::sync::service::Rate;

/// One message, as it goes over the wire.
#[derive(Clone)]
struct Raw {
    encoding: Option<&'static str>,
    flag: u8,
    length: u32,
    message: Bytes,
}

impl NamedService for Raw {
    const NAME: &'static str = "tombolo.federation.v1.Federation";
}

impl Service<http::Request<HttpBody>> for Raw {
    type Response = http::Response<HttpBody>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Request<HttpBody>) -> Self::Future {
        let mut frame = BytesMut::new();
        frame.put_u8(self.flag);
        frame.put_u32(self.length);
        frame.put_slice(&self.message);
        let mut response = http::Response::builder().header("content-type", "application/grpc");
        if let Some(encoding) = self.encoding {
            response = response.header("grpc-encoding", encoding);
        }
        let body = HttpBody::new(Full::new(frame.freeze()));
        std::future::ready(Ok(response.body(body).unwrap()))
    }
}

impl Raw {
    async fn serve(self) -> Region {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = CancellationToken::new();
        let ended = stop.clone().cancelled_owned();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            let server = Server::builder().add_service(self);
            server.serve_with_incoming_shutdown(incoming, ended).await.unwrap();
        });
        Region { tasks, stop, port }
    }
}

#[tokio::test]
async fn what_a_peer_answers_is_refused_by_its_length_and_not_unpacked() {
    let length = |message: &Bytes| u32::try_from(message.len()).unwrap();
    // 250 MiB, from 1.6 MiB.
    let packed = Bytes::from(bomb(1 << 20));
    assert!(packed.len() < MAX_MESSAGE);
    let too_large = u32::try_from(MAX_MESSAGE).unwrap() + 1;
    let nothing = Bytes::new();
    let rubbish = Bytes::from_static(b"\xff\xff\xff");
    let cases = [
        (None, 0, too_large, &nothing, "decoded message length too large"),
        (None, 0, u32::MAX, &nothing, "decoded message length too large"),
        (Some("gzip"), 1, length(&packed), &packed, "gzip"),
        (None, 1, length(&packed), &packed, "compress"),
        (None, 0, 3, &rubbish, "failed to decode"),
    ];
    for (encoding, flag, length, message, why) in cases {
        let raw = Raw { encoding, flag, length, message: message.clone() };
        let peer = raw.serve().await;
        let ours = store().await;
        let rate = Rate { per_second: 1 << 20, burst: 1 << 20 };
        let (tasks, mut linked) = mirroring(&ours, rate, &peer).await;
        let told = linked.wait_for(|link| link.problem.is_some());
        let link = timeout(LONG, told).await.expect("in time").unwrap().clone();
        let problem = link.problem.unwrap();
        assert!(problem.contains(why), "{why}: {problem}");
        assert!(!link.synced);
        drop(tasks);
        peer.stop().await;
    }
}
