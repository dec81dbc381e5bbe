use prometheus_client::encoding::text::encode;
use tonic::Code;
use tonic::service::interceptor::InterceptedService;

use super::session::{SILENCE, Session};
use super::*;
use crate::class::ClientKind;

#[tokio::test]
async fn t6_without_identity_a_client_is_refused() {
    let server = Running::with(AdsConfig::new(home())).await;
    let (_requests, sent) = mpsc::channel(1);
    let mut client = server.client().await;
    let refused = client.delta_aggregated_resources(ReceiverStream::new(sent)).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn x3_a_stream_needs_a_node_and_a_type() {
    let server = Running::serving(both()).await;
    let mut client = server.delta().await;
    client.greeted = true;
    client.subscribe(CDS, &[]).await;
    assert_eq!(client.read().await.unwrap_err().code(), Code::InvalidArgument);
    let mut client = server.delta().await;
    client.subscribe("", &[]).await;
    assert_eq!(client.read().await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn x5_requests_above_4_mib_are_read() {
    let server = Running::serving(both()).await;
    let held: Vec<(String, String)> =
        (0..60_000).map(|n| (format!("{n}-{}", "x".repeat(64)), "y".repeat(32))).collect();
    let mut client = server.delta().await;
    client.resume(CDS, &[], &held).await;
    let response = client.next(CDS).await;
    assert_eq!(names(&response), [CART, CHECKOUT]);
    assert!(client.next(CDS).await.removed_resources.len() == 60_000);
}

#[tokio::test]
async fn x6_an_unknown_type_fails_nothing() {
    let server = Running::serving(both()).await;
    let mut client = server.delta().await;
    for n in 0..40 {
        client.subscribe(&format!("type.googleapis.com/unknown.{n}"), &["a"]).await;
    }
    for _ in 0..40 {
        assert_eq!(names(&client.read().await.unwrap()), ["-a"]);
    }
    client.subscribe(CDS, &[]).await;
    assert_eq!(client.names(CDS).await, [CART, CHECKOUT]);
}

#[tokio::test]
async fn more_names_than_a_client_can_mean_end_its_stream() {
    let server = Running::serving(both()).await;
    let mut client = server.delta().await;
    let names: Vec<String> = (0..=100_000).map(|n| n.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    client.subscribe(EDS, &names).await;
    assert_eq!(client.read().await.unwrap_err().code(), Code::ResourceExhausted);
    let mut client = server.delta().await;
    client.subscribe(EDS, &[&"x".repeat(5000)]).await;
    assert_eq!(client.read().await.unwrap_err().code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn all_types_share_one_budget_of_names() {
    let server = Running::serving(both()).await;
    let names: Vec<String> = (0..3000).map(|n| format!("{n:0>1024}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut client = server.delta().await;
    client.subscribe(EDS, &names).await;
    assert_eq!(client.names(EDS).await.len(), names.len());
    client.subscribe(RDS, &names).await;
    assert_eq!(client.read().await.unwrap_err().code(), Code::ResourceExhausted);
    // What is unsubscribed is free again.
    let mut client = server.delta().await;
    client.subscribe(EDS, &names).await;
    client.names(EDS).await;
    client.unsubscribe(EDS, &names).await;
    client.subscribe(RDS, &names).await;
    assert_eq!(client.names(RDS).await.len(), names.len());
}

#[tokio::test]
async fn x6_nothing_is_kept_of_types_that_are_not_served() {
    let server = Running::serving(both()).await;
    let names: Vec<String> = (0..2000).map(|n| format!("{n:0>1024}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut client = server.delta().await;
    for n in 0..5 {
        let of = format!("type.googleapis.com/unknown.{n}");
        client.subscribe(&of, &names).await;
        assert_eq!(client.names(&of).await.len(), names.len());
    }
    client.quiet().await;
    client.subscribe(&"t".repeat(2000), &["a"]).await;
    assert_eq!(client.read().await.unwrap_err().code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn a_node_id_is_as_long_as_can_be_shown() {
    let server = Running::serving(both()).await;
    for (length, accepted) in [(1024, true), (1025, false)] {
        let mut client = server.delta().await;
        client.greeted = true;
        let node = Node { id: "x".repeat(length), ..node("envoy") };
        let type_url = CDS.to_owned();
        let node = Some(node);
        client.send(DeltaDiscoveryRequest { node, type_url, ..Default::default() }).await;
        let code = client.read().await.map_err(|status| status.code()).err();
        assert_eq!(code, (!accepted).then_some(Code::InvalidArgument), "{length}");
    }
}

#[tokio::test]
async fn an_identity_has_so_many_streams_at_a_time() {
    let config =
        AdsConfig { allow_anonymous: true, streams_per_identity: 2, ..AdsConfig::new(home()) };
    let server = Running::with(config).await;
    let (_first, second) = (server.delta().await, server.delta().await);
    let mut grpc = server.client().await;
    let mut open = async || {
        let (requests, sent) = mpsc::channel(1);
        let opened = grpc.delta_aggregated_resources(ReceiverStream::new(sent)).await;
        opened.map(|_| requests).map_err(|status| status.code())
    };
    assert_eq!(open().await.unwrap_err(), Code::ResourceExhausted);
    drop(second);
    let free = async {
        while open().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, free).await.expect("a stream that ended makes room");
}

#[tokio::test]
async fn a_client_moves_with_the_record_of_its_cluster() {
    let mut server = Running::serving(both()).await;
    let mut client = server.delta().await;
    client.like_envoy().await;
    let known = server.ads.inner.cache.catalog().borrow().clone().unwrap();
    let mut next = (*known).clone();
    next.generation += 1;
    let mut moved = (*next.clusters[&cluster("us-c")]).clone();
    moved.record.network = "vpc".into();
    next.clusters.insert_mut(cluster("us-c"), Arc::new(moved));
    server.generation = next.generation;
    server.ads.inner.cache.apply(&Arc::new(next), Some(BTreeSet::new()));
    let endpoints = client.next(EDS).await;
    client.ack(&endpoints).await;
    assert_eq!(names(&endpoints), [CART, CHECKOUT]);
    for resource in &endpoints.resources {
        let body = &resource.resource.as_ref().unwrap().value;
        let of = ClusterLoadAssignment::decode(&**body).unwrap();
        assert!(of.endpoints.is_empty(), "of the network that it is no longer in: {of:?}");
    }
    // Clusters, listeners and routes are the same there.
    client.quiet().await;
    server.serve(both());
    assert_eq!(client.names(EDS).await, [CART, CHECKOUT], "back, and still followed");
    client.quiet().await;
}

#[tokio::test]
async fn clients_are_listed_while_they_are_connected() {
    let server = Running::serving(both()).await;
    let mut client = server.delta().await;
    client.like_envoy().await;
    let status = server.status(|s| s.types.values().all(|t| t.sent == t.acked)).await;
    assert_eq!((status.node.as_str(), status.types.len()), ("test", 4));
    assert_eq!((status.types["endpoints"].resources, status.types["endpoints"].pending), (2, 0));
    assert!(serde_json::to_string(&status).unwrap().contains("\"protocol\":\"delta\""));
    drop(client);
    let empty = async {
        while !server.ads.proxies().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, empty).await.expect("a client that hung up leaves the list");
}

#[tokio::test]
async fn metrics_are_registered_and_counted() {
    let server = Running::serving(both()).await;
    let mut client = server.delta().await;
    client.like_envoy().await;
    client.quiet().await;
    let mut registry = Registry::default();
    server.ads.register(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    for line in [
        "tombolo_xds_streams{kind=\"envoy\",protocol=\"delta\"} 1",
        "tombolo_xds_pushes_total{type=\"cluster\"} 1",
        "tombolo_xds_resources_sent_total{type=\"endpoints\"} 2",
        "tombolo_xds_unknown_type_requests_total",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
}

#[tokio::test]
async fn streams_end_when_the_server_stops() {
    let mut server = Running::serving(both()).await;
    let mut client = server.delta().await;
    client.like_envoy().await;
    server.stop.cancel();
    assert_eq!(client.read().await.unwrap_err().code(), Code::Unavailable);
    let all = async { while server.tasks.join_next().await.is_some() {} };
    timeout(LONG, all).await.expect("the server and its streams end");
}

#[tokio::test]
async fn catalogs_come_by_snapshots() {
    let server = Running::start().await;
    let mut client = server.delta().await;
    client.subscribe(CDS, &[]).await;
    assert!(server.publisher.publish(Arc::new(catalog(7, both()))));
    assert_eq!(client.names(CDS).await, [CART, CHECKOUT]);
    assert_eq!(server.ads.generation(), 7);
}

#[tokio::test]
async fn x49_a_client_that_never_answers_is_noticed() {
    let server = Running::serving(both()).await;
    let inner = &server.ads.inner;
    let places = inner.cache.places().borrow().clone();
    let client = admit::admit(&inner.config, &places, None, &crate::wire::Node::default());
    let view = inner.cache.subscribe(&client.unwrap().class).unwrap().borrow().clone();
    let mut session = Session::new(Variant::Delta, ClientKind::Envoy, view);
    assert_eq!(session.silent_at(), None);
    let start = tokio::time::Instant::now();
    let request = || session::Request { type_url: CDS.into(), ..session::Request::default() };
    session.on_request(request(), start).unwrap();
    let sent = session.next(start).unwrap();
    assert_eq!(session.silent_at(), Some(start + SILENCE));
    let answer = session::Request { nonce: sent.nonce.to_string(), ..request() };
    session.on_request(answer, start).unwrap();
    assert_eq!(session.silent_at(), None);
    assert!(session.next(start).is_none());
    assert_eq!(session.counts(Type::Cluster), Some((2, 0)));
}

#[tokio::test]
async fn t6_an_identity_put_on_the_request_decides_the_place() {
    let stop = CancellationToken::new();
    let (publisher, snapshots) = channel();
    let ads = AdsServer::new(snapshots, AdsConfig::new(home()), stop.clone());
    let identity = ProxyIdentity {
        cluster: cluster("eu-c"),
        region: "eu".parse().unwrap(),
        namespace: "shop".parse().unwrap(),
    };
    let insert = move |mut request: Request<()>| {
        request.extensions_mut().insert(identity.clone());
        Ok(request)
    };
    let service = InterceptedService::new(ads.into_service(), insert);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = Server::builder().add_service(service);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
    });
    tasks.spawn(ads.clone().run());
    assert!(publisher.publish(Arc::new(catalog(1, both()))));
    let running = Running { ads, addr, stop, publisher, generation: 1, tasks };
    // The test's node says region `us`.
    let mut client = running.delta().await;
    client.subscribe(CDS, &[]).await;
    assert_eq!(client.read().await.unwrap_err().code(), Code::PermissionDenied);
    let mut client = running.delta().await;
    client.greeted = true;
    let silent = Node { id: "silent".into(), ..Node::default() };
    client
        .send(DeltaDiscoveryRequest {
            node: Some(silent),
            type_url: CDS.into(),
            ..Default::default()
        })
        .await;
    client.next(CDS).await;
    let status = running.status(|_| true).await;
    assert_eq!((status.region.as_str(), status.cluster), ("eu", Some(cluster("eu-c"))));
}
