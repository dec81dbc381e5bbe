//! What readers that take nothing cost the region that serves them (RELIABILITY promise 25).
//!
//! A process of its own, since it is memory that is measured.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tombolo_federation::key::Key;
use tombolo_federation::proto::federation as wire;
use tombolo_federation::proto::federation::federation_client::FederationClient;
use tombolo_federation::record::{Body, Epoch, Namespace, Origin, Record};
use tombolo_federation::replica::{self, Batch};
use tombolo_federation::store::embedded::Embedded;
use tombolo_federation::sync::Caller;
use tombolo_federation::sync::service::{FederationApi, Limits};
use tonic::Request;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Endpoint, Server};

const RECORDS: u64 = 20_000;
const READERS: usize = 64;
/// A message that was not taken, what the transport buffers both ways (client and server are one
/// process here), and the keys of one round of changes.
const PER_READER: usize = 2 << 20;
const LONG: Duration = Duration::from_mins(1);

fn record(n: u64, sequence: u64) -> (Key, Option<bytes::Bytes>) {
    let key: Key =
        format!("/tombolo/v1/r/r-z/namespace/_/namespace-{n}").parse().expect("a record key");
    let labels = [("l".to_owned(), format!("{sequence:0>1000}"))].into();
    let body = Body::Namespace(Namespace { labels, ..Namespace::default() });
    let epoch = Epoch { id: "e".into(), count: 1 };
    let origin = Origin { epoch, sequence, ..Origin::default() };
    (key.clone(), Some(Record { key, origin, body }.seal().value))
}

/// Bytes that are this process's own now.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
    let resident = pages.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok());
    resident.expect("the second number") * 4096
}

#[tokio::test]
async fn readers_that_take_nothing_pin_a_message_each_and_no_copy_of_what_there_is() {
    let (writer, replicas) = replica::channel();
    let items = (0..RECORDS).map(|n| record(n, n + 1)).collect();
    let batch = Batch { position: Some(1), items, ..Batch::default() };
    writer.apply(batch, Instant::now());
    let stop = CancellationToken::new();
    let store = Arc::new(Embedded::in_memory().await.unwrap());
    let clock = Arc::new(|| Timestamp::from_second(1_800_000_000).unwrap());
    let whole = watch::channel(true).1;
    let region = "r".parse().unwrap();
    let limits = Limits {
        full_transfers: READERS,
        read_streams_per_caller: READERS,
        new_streams: tombolo_federation::sync::service::Rate { per_second: 1000, burst: 1000 },
        ..Limits::default()
    };
    let api = FederationApi::new(region, store, replicas, whole, clock, stop.clone());
    let service = InterceptedService::new(
        api.with_limits(limits).into_service(),
        |mut request: Request<()>| {
            let caller =
                Caller::Agent { region: "r".parse().unwrap(), cluster: "r-a".parse().unwrap() };
            request.extensions_mut().insert(caller);
            Ok(request)
        },
    );
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (incoming, ended) = (TcpListenerStream::new(listener), stop.clone().cancelled_owned());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let server = Server::builder().add_service(service);
        server.serve_with_incoming_shutdown(incoming, ended).await.unwrap();
    });

    let before = resident();
    let mut stalled = Vec::new();
    for _ in 0..READERS {
        let endpoint = Endpoint::try_from(format!("http://127.0.0.1:{port}")).unwrap();
        let endpoint = endpoint
            .initial_stream_window_size(Some(65_535))
            .initial_connection_window_size(Some(65_535));
        let mut client = FederationClient::new(endpoint.connect_lazy());
        let request = wire::SubscribeRequest {
            scope: wire::Scope::Mesh.into(),
            reads_level: 2,
            ..wire::SubscribeRequest::default()
        };
        let answered = timeout(LONG, client.subscribe(request)).await.unwrap();
        stalled.push((client, answered.unwrap().into_inner()));
    }
    // Time for the server to fill what there is to fill.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let opened = resident().saturating_sub(before);
    // While they stand still all of it changes, a few times over.
    for round in 1..=3 {
        let items = (0..RECORDS).map(|n| record(n, round * RECORDS + n + 1)).collect();
        writer
            .apply(Batch { position: Some(1 + round), items, ..Batch::default() }, Instant::now());
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let changed = resident().saturating_sub(before);
    eprintln!(
        "{READERS} stalled readers of {RECORDS} records: {} KiB each when opened; {} KiB each after \
         all was changed, the replica's own new versions among it",
        (opened / READERS) >> 10,
        (changed / READERS) >> 10,
    );
    assert!(opened < READERS * PER_READER, "{opened} bytes for {READERS} readers");
    assert!(changed < READERS * PER_READER + (64 << 20), "{changed} bytes for {READERS} readers");

    // One that goes on all the same ends up with what there is.
    let (_, messages) = &mut stalled[0];
    let synced = async {
        loop {
            let message = messages.message().await.unwrap().expect("not ended");
            if let Some(wire::subscribe_response::Message::Synced(_)) = message.message {
                return;
            }
        }
    };
    timeout(LONG, synced).await.expect("in time");
    drop(stalled);
    stop.cancel();
    while tasks.join_next().await.is_some() {}
}
