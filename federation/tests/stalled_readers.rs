//! What readers that take nothing cost the region that serves them.
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
use tombolo_federation::record::{Body, Epoch, Namespace, Origin, Record, Region};
use tombolo_federation::replica::{self, Batch, ReplicaWriter};
use tombolo_federation::store::embedded::Embedded;
use tombolo_federation::sync::Caller;
use tombolo_federation::sync::service::{FederationApi, Limits, Rate};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Streaming};

const RECORDS: u64 = 10_000;
const READERS: usize = 64;
/// A message that was not taken, and what the transport buffers on both sides: client and server
/// are one process here.
const PER_READER: usize = 3 << 19;
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

/// The region's own: without it nobody is known to be entitled to anything.
fn region() -> (Key, Option<bytes::Bytes>) {
    let key: Key = "/tombolo/v1/r/_/region/_/r".parse().expect("a record key");
    let epoch = Epoch { id: "r".into(), count: 1 };
    let origin = Origin { epoch, sequence: 1, ..Origin::default() };
    let body = Body::Region(Region::default());
    (key.clone(), Some(Record { key, origin, body }.seal().value))
}

/// Bytes that are this process's own now.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
    let resident = pages.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok());
    resident.expect("the second number") * 4096
}

type Reader = (FederationClient<Channel>, Streaming<wire::SubscribeResponse>);

/// Subscribes and takes nothing.
async fn stall(port: u16) -> Reader {
    let endpoint = Endpoint::try_from(format!("http://127.0.0.1:{port}")).expect("a URI");
    let endpoint = endpoint
        .initial_stream_window_size(Some(65_535))
        .initial_connection_window_size(Some(65_535));
    let mut client = FederationClient::new(endpoint.connect_lazy());
    let request = wire::SubscribeRequest {
        scope: wire::Scope::Mesh.into(),
        reads_level: 2,
        ..wire::SubscribeRequest::default()
    };
    let answered = timeout(LONG, client.subscribe(request)).await.expect("in time");
    (client, answered.expect("admitted").into_inner())
}

/// Changes every record; by how much the process has grown then.
async fn change_all(writer: &ReplicaWriter, round: u64) -> usize {
    let before = resident();
    let items = (0..RECORDS).map(|n| record(n, round * RECORDS + n + 1)).collect();
    writer.apply(Batch { position: Some(1 + round), items, ..Batch::default() }, Instant::now());
    tokio::time::sleep(Duration::from_secs(1)).await;
    resident().saturating_sub(before)
}

#[tokio::test]
async fn readers_that_take_nothing_pin_a_message_each_and_no_copy_of_what_there_is() {
    let (writer, replicas) = replica::channel();
    let items = (0..RECORDS).map(|n| record(n, n + 1)).chain([region()]).collect();
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
        new_streams: Rate { per_second: 1000, burst: 1000 },
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

    // What one reader pins is the replica as it was, which all of them share.
    let mut stalled = vec![stall(port).await];
    let first = change_all(&writer, 1).await;

    let before = resident();
    for _ in 1..READERS {
        stalled.push(stall(port).await);
    }
    // Time for the server to fill what there is to fill.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let opened = resident().saturating_sub(before) / (READERS - 1);
    // While they stand still all of it changes.
    let second = change_all(&writer, 2).await;
    let changed = second.saturating_sub(first) / (READERS - 1);
    eprintln!(
        "{} stalled readers of {RECORDS} records: {} KiB each when opened, {} KiB each more after \
         all was changed",
        READERS - 1,
        opened >> 10,
        changed >> 10,
    );
    assert!(opened < PER_READER, "{opened} bytes for each reader");
    assert!(changed < PER_READER / 2, "{changed} bytes more for each reader");

    // One that goes on all the same ends up with what there is.
    let (_, messages) = &mut stalled[1];
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
