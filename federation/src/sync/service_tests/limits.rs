//! What one caller can take up, over real connections.

use prometheus_client::registry::Registry;
use tokio_stream::wrappers::ReceiverStream;

use super::*;
use crate::proto::federation::publish_request::Message as Say;
use crate::proto::federation::publish_response::Message as Answer;
use crate::proto::records;
use crate::record::{Origin, Record};
use crate::sync::service::Rate;

type Messages = tonic::Streaming<wire::SubscribeResponse>;

/// More than any transport has room for on the way.
async fn large_region(caller: Caller, limits: Limits) -> (Region, ReplicaWriter) {
    let (writer, replicas) = replica::channel();
    let items = (0..64).map(|n| {
        let key: Key = format!("/tombolo/v1/r/r-z/namespace/_/n{n}").parse().unwrap();
        let labels = [("l".to_owned(), "v".repeat(64 << 10))].into();
        let body = Body::Namespace(Namespace { labels, annotations: BTreeMap::new() });
        let epoch = Epoch { id: "e".into(), count: 1 };
        let origin = Origin { epoch, sequence: n, ..Origin::default() };
        (key.clone(), Some(Record { key, origin, body }.seal().value))
    });
    let batch = Batch { items: items.collect(), ..Batch::default() };
    writer.apply(batch, Instant::now());
    heard(&writer, 1);
    let region = Region::start_limited(&store().await, &replicas, caller, limits).await;
    (region, writer)
}

async fn try_subscribe(region: &Region) -> Result<Messages, tonic::Status> {
    subscribe_over(region.channel()).await
}

/// With small windows: what is under way to a reader that takes nothing is soon all that fits.
async fn stall(region: &Region) -> Messages {
    let uri = format!("http://127.0.0.1:{}", region.port);
    let endpoint = Endpoint::try_from(uri)
        .unwrap()
        .initial_stream_window_size(Some(65_535))
        .initial_connection_window_size(Some(65_535));
    subscribe_over(endpoint.connect_lazy()).await.unwrap()
}

async fn subscribe_over(channel: Channel) -> Result<Messages, tonic::Status> {
    let request = wire::SubscribeRequest {
        scope: wire::Scope::Mesh.into(),
        reads_level: 2,
        ..wire::SubscribeRequest::default()
    };
    let mut client = FederationClient::new(channel);
    let answered = timeout(LONG, client.subscribe(request)).await.expect("in time");
    Ok(answered?.into_inner())
}

async fn until_synced(messages: &mut Messages) -> usize {
    let mut batches = 0;
    loop {
        let message = timeout(LONG, messages.message()).await.expect("in time").unwrap();
        match message.expect("not ended").message {
            Some(Message::Synced(_)) => return batches,
            Some(Message::Batch(_)) => batches += 1,
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_subscriber_too_many_is_refused_with_words_and_let_in_when_one_has_gone() {
    let limits = Limits { read_streams_per_caller: 2, ..Limits::default() };
    let (region, _writer) = large_region(agent_of("r-a"), limits).await;
    let first = try_subscribe(&region).await.unwrap();
    let second = try_subscribe(&region).await.unwrap();
    let refused = try_subscribe(&region).await.map(drop).unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("agent r-a has 2 streams open"), "{refused}");
    drop(first);
    let gone = async {
        while try_subscribe(&region).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(LONG, gone).await.expect("the slot comes back");
    drop(second);
    region.stop().await;
}

#[tokio::test]
async fn a_caller_that_reconnects_without_pause_is_told_how_long_to_wait() {
    let new_streams = Rate { per_second: 1, burst: 3 };
    let limits = Limits { new_streams, ..Limits::default() };
    let (region, _writer) = large_region(agent_of("r-a"), limits).await;
    let mut refused = None;
    for _ in 0..20 {
        if let Err(status) = try_subscribe(&region).await {
            refused = Some(status);
            break;
        }
    }
    let refused = refused.expect("20 streams at once are too many");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("too fast: try again in "), "{refused}");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    drop(try_subscribe(&region).await.expect("after the time that it was told"));
    region.stop().await;
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_ended_and_one_that_waits_for_news_is_not() {
    let limits = Limits { silence: Duration::from_secs(1), ..Limits::default() };
    let (region, writer) = large_region(agent_of("r-a"), limits).await;
    let mut stalled = stall(&region).await;
    let mut reading = try_subscribe(&region).await.unwrap();
    until_synced(&mut reading).await;
    let digests = async {
        // Twice the time after which the other one is ended.
        for _ in 0..4 {
            let message = reading.message().await.unwrap().expect("not ended");
            assert!(matches!(message.message, Some(Message::Digests(_))), "{message:?}");
        }
    };
    timeout(LONG, digests).await.expect("in time");
    let ended = async {
        loop {
            match stalled.message().await {
                Ok(Some(message)) => {
                    assert!(!matches!(message.message, Some(Message::Synced(_))), "it had time");
                }
                Ok(None) => panic!("ended without a word"),
                Err(status) => return status,
            }
        }
    };
    let ended = timeout(LONG, ended).await.expect("in time");
    assert!(ended.message().contains("nothing was taken of this stream for 1 s"), "{ended}");
    writer.apply(Batch { position: Some(2), ..Batch::default() }, Instant::now());
    drop(reading);
    region.stop().await;
}

#[tokio::test]
async fn full_transfers_go_one_after_another_and_one_that_stands_still_holds_up_nobody() {
    let limits = Limits {
        full_transfers: 1,
        full_transfer_pause: Duration::from_secs(2),
        ..Limits::default()
    };
    let (region, _writer) = large_region(agent_of("r-a"), limits).await;
    let stalled = stall(&region).await;
    let since = Instant::now();
    let mut second = try_subscribe(&region).await.unwrap();
    assert!(since.elapsed() >= Duration::from_secs(1), "did not wait: {:?}", since.elapsed());
    assert!(until_synced(&mut second).await > 10);
    // That one is through: the next need not wait for anything.
    let since = Instant::now();
    let mut third = try_subscribe(&region).await.unwrap();
    until_synced(&mut third).await;
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    drop((stalled, second, third));
    region.stop().await;
}

#[tokio::test]
async fn a_full_transfer_that_finds_no_turn_in_time_is_refused() {
    let limits = Limits {
        full_transfers: 1,
        full_transfer_wait: Duration::from_millis(300),
        ..Limits::default()
    };
    let (region, _writer) = large_region(agent_of("r-a"), limits).await;
    let stalled = stall(&region).await;
    let refused = try_subscribe(&region).await.map(drop).unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("1 full transfers are under way"), "{refused}");
    drop(stalled);
    region.stop().await;
}

struct Stream {
    say: mpsc::Sender<wire::PublishRequest>,
    answers: tonic::Streaming<wire::PublishResponse>,
}

impl Stream {
    async fn open(region: &Region) -> Self {
        let (say, rx) = mpsc::channel(16);
        let epoch = Some(records::Epoch { id: "e".into(), count: 1 });
        let (cluster, uid) = ("r-a".to_owned(), "u".to_owned());
        let hello = wire::PublishHello { cluster, uid, epoch, reads_level: 2 };
        say.send(wire::PublishRequest { message: Some(Say::Hello(hello)) }).await.unwrap();
        let mut client = FederationClient::new(region.channel());
        let answers = client.publish(ReceiverStream::new(rx));
        let mut answers = timeout(LONG, answers).await.unwrap().unwrap().into_inner();
        let first = timeout(LONG, answers.message()).await.unwrap().unwrap().unwrap();
        assert!(matches!(first.message, Some(Answer::Accepted(_))), "{first:?}");
        Self { say, answers }
    }

    async fn answer(&mut self) -> Result<Option<Answer>, tonic::Status> {
        let answer = timeout(LONG, self.answers.message()).await.expect("in time")?;
        Ok(answer.and_then(|answer| answer.message))
    }
}

#[tokio::test]
async fn a_new_publish_stream_takes_the_place_of_one_that_hangs_whatever_else_is_open() {
    let (region, _writer) = large_region(agent_of("r-a"), Limits::default()).await;
    let mut hangs = Stream::open(&region).await;
    // Streams that say nothing, more than one agent may have.
    let mut silent = JoinSet::new();
    let mut held = Vec::new();
    for _ in 0..8 {
        let (say, rx) = mpsc::channel::<wire::PublishRequest>(1);
        held.push(say);
        let mut client = FederationClient::new(region.channel());
        silent.spawn(async move { client.publish(ReceiverStream::new(rx)).await.map(drop) });
    }
    let replaced = timeout(LONG, silent.join_next()).await.expect("in time").unwrap().unwrap();
    assert_eq!(replaced.unwrap_err().code(), Code::Aborted);
    let mut fresh = Stream::open(&region).await;
    let ended = hangs.answer().await.unwrap_err();
    assert_eq!(ended.code(), Code::Aborted);
    assert!(ended.message().contains("a later publish stream of r/r-a was accepted"), "{ended}");
    let state = wire::State { entries: Vec::new(), last: true };
    fresh.say.send(wire::PublishRequest { message: Some(Say::State(state)) }).await.unwrap();
    assert!(matches!(fresh.answer().await, Ok(Some(Answer::Want(_)))));
    drop((fresh, held, silent));
    region.stop().await;
}

#[tokio::test]
async fn a_publisher_that_is_too_fast_is_slowed_down_and_loses_nothing() {
    let publish_bytes = Rate { per_second: 200 << 10, burst: 100 << 10 };
    let limits = Limits { publish_bytes, ..Limits::default() };
    let (region, _writer) = large_region(agent_of("r-a"), limits).await;
    let mut stream = Stream::open(&region).await;
    // 500 KiB, of which 100 at once and the rest at 200 a second.
    let took = stream.changes_500_kib().await;
    assert!(took > Duration::from_millis(1900), "{took:?}");
    drop(stream);
    region.stop().await;
}

/// Else a new stream would be a new burst, for which the store has to keep every version.
#[tokio::test]
async fn what_a_publisher_changes_is_counted_over_all_its_streams() {
    let publish_changes = Rate { per_second: 200 << 10, burst: 600 << 10 };
    let limits = Limits { publish_changes, ..Limits::default() };
    let (region, _writer) = large_region(agent_of("r-a"), limits).await;
    let mut stream = Stream::open(&region).await;
    let took = stream.changes_500_kib().await;
    assert!(took < Duration::from_millis(1900), "{took:?}");
    drop(stream);
    let mut stream = Stream::open(&region).await;
    let since = Instant::now();
    stream.changes_500_kib().await;
    // Less what came back since.
    assert!(since.elapsed() > Duration::from_secs(1), "{:?}", since.elapsed());
    drop(stream);
    region.stop().await;
}

impl Stream {
    /// How long it took to say five records that it had not said before.
    async fn changes_500_kib(&mut self) -> Duration {
        let state = wire::State { entries: Vec::new(), last: true };
        self.say.send(wire::PublishRequest { message: Some(Say::State(state)) }).await.unwrap();
        while !matches!(self.answer().await, Ok(Some(Answer::Want(want))) if want.last) {}
        let since = Instant::now();
        for n in 1..=5 {
            let key: Key = format!("/tombolo/v1/r/r-a/namespace/_/n{n}").parse().unwrap();
            let labels = [("l".to_owned(), "v".repeat(100 << 10))].into();
            let body = Body::Namespace(Namespace { labels, annotations: BTreeMap::new() });
            let epoch = Epoch { id: "e".into(), count: 1 };
            let origin = Origin { epoch, sequence: n, ..Origin::default() };
            let value = Record { key: key.clone(), origin, body }.seal().value;
            let puts = vec![wire::Put { key: key.to_string(), value }];
            let changes = wire::Changes { batch: n, puts, ..wire::Changes::default() };
            let changes = wire::PublishRequest { message: Some(Say::Changes(changes)) };
            self.say.send(changes).await.unwrap();
        }
        for n in 1..=5 {
            let Ok(Some(Answer::Ack(ack))) = self.answer().await else { panic!("no ack of {n}") };
            assert_eq!((ack.batch, ack.refused), (n, Vec::new()));
        }
        since.elapsed()
    }
}

#[tokio::test]
async fn streams_refusals_and_records_are_counted_by_name() {
    let (writer, replicas) = replica::channel();
    heard(&writer, 1);
    let (api, stop) = Region::api(&store().await, &replicas, watch::channel(true).1);
    let mut registry = Registry::with_prefix("tombolo");
    api.register(&mut registry);
    let limits = Limits { read_streams_per_caller: 1, ..Limits::default() };
    let region = Region::serve(0, (api.with_limits(limits), stop), Some(agent_of("r-a"))).await;
    let subscribed = try_subscribe(&region).await.unwrap();
    try_subscribe(&region).await.map(drop).unwrap_err();
    let mut stream = Stream::open(&region).await;
    let state = wire::State { entries: Vec::new(), last: true };
    stream.say.send(wire::PublishRequest { message: Some(Say::State(state)) }).await.unwrap();
    stream.answer().await.unwrap();
    let put = wire::Put { key: "/tombolo/v1/r/r-b/namespace/_/x".into(), value: vec![1].into() };
    let key = "/tombolo/v1/r/r-a/namespace/_/x".to_owned();
    let gone = wire::Tombstone { key, removal: wire::Removal::Approved.into(), sequence: 1 };
    let changes = wire::Changes {
        batch: 1,
        puts: vec![put],
        tombstones: vec![gone],
        ..wire::Changes::default()
    };
    stream.say.send(wire::PublishRequest { message: Some(Say::Changes(changes)) }).await.unwrap();
    stream.answer().await.unwrap();
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in [
        r#"tombolo_federation_streams{call="publish"} 1"#,
        r#"tombolo_federation_streams{call="subscribe"} 1"#,
        r#"tombolo_federation_refused_streams_total{call="subscribe",reason="caller_streams"} 1"#,
        r#"tombolo_federation_refused_records_total{reason="owner"} 1"#,
        r#"tombolo_federation_tombstones_total{reason="approved"} 1"#,
    ] {
        assert!(text.lines().any(|of| of == line), "{line} is not in\n{text}");
    }
    drop((subscribed, stream));
    region.stop().await;
}
