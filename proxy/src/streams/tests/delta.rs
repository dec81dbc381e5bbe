use super::*;

#[tokio::test]
async fn x7_nothing_is_answered_before_the_first_complete_catalog() {
    let mut server = Running::start().await;
    let mut client = server.delta().await;
    client.subscribe(CDS, &[]).await;
    client.subscribe(LDS, &[]).await;
    let mut early = catalog(1, Vec::new());
    early.complete = false;
    server.ads.inner.cache.apply(&Arc::new(early), None);
    server.serve(both());
    assert_eq!(client.names(CDS).await, [CART, CHECKOUT]);
    assert_eq!(client.names(LDS).await, ["outbound"]);
}

#[tokio::test]
async fn x8_nonces_differ_and_x15_an_ack_is_silent() {
    let server = Running::serving(both()).await;
    let mut client = server.delta().await;
    client.subscribe(CDS, &[]).await;
    let first = client.next(CDS).await;
    client.subscribe(LDS, &[]).await;
    let second = client.next(LDS).await;
    assert!(!first.nonce.is_empty() && first.nonce != second.nonce);
    client.ack(&first).await;
    client.ack(&second).await;
    client.quiet().await;
}

#[tokio::test]
async fn x10_subscriptions_count_whatever_the_nonce() {
    let server = Running::serving(both()).await;
    let mut client = server.delta().await;
    client.subscribe(EDS, &[CART]).await;
    assert_eq!(client.names(EDS).await, [CART]);
    client
        .send(DeltaDiscoveryRequest {
            type_url: EDS.into(),
            response_nonce: "of another stream".into(),
            resource_names_subscribe: owned(&[CHECKOUT]),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    assert_eq!(client.names(EDS).await, [CHECKOUT]);
}

#[tokio::test]
async fn x11_x12_a_nack_is_kept_and_not_answered_with_the_same() {
    let mut server = Running::serving(both()).await;
    let mut client = server.delta().await;
    client.subscribe(CDS, &[]).await;
    let refused = client.next(CDS).await;
    client.nack(&refused, "no such thing").await;
    client.quiet().await;
    let status = server.status(|s| s.types["cluster"].nack.is_some()).await;
    let cluster = &status.types["cluster"];
    assert_eq!(cluster.nack.as_ref().unwrap().text, "no such thing");
    assert_eq!((cluster.pending, cluster.acked.as_str()), (0, ""));
    server.serve(vec![checkout("http=80@grpc", "us/a/1"), cart()]);
    assert_eq!(client.names(CDS).await, [CHECKOUT]);
    server.status(|s| s.types["cluster"].nack.is_none()).await;
}

#[tokio::test]
async fn x11_of_a_nack_no_more_is_kept_than_people_read() {
    let server = Running::serving(both()).await;
    let mut client = server.delta().await;
    client.subscribe(CDS, &[]).await;
    let refused = client.next(CDS).await;
    client.nack(&refused, &"x".repeat(5 << 20)).await;
    let status = server.status(|s| s.types["cluster"].nack.is_some()).await;
    assert_eq!(status.types["cluster"].nack.as_ref().unwrap().text.len(), 500);
}

#[tokio::test]
async fn x19_a_name_is_answered_each_time_it_is_subscribed() {
    let server = Running::serving(both()).await;
    let mut client = server.delta().await;
    for _ in 0..2 {
        client.subscribe(EDS, &[CART]).await;
        assert_eq!(client.names(EDS).await, [CART]);
    }
}

#[tokio::test]
async fn x21_wildcards_come_and_go() {
    let mut server = Running::serving(both()).await;
    let mut client = server.delta().await;
    client.subscribe(CDS, &[]).await;
    assert_eq!(client.names(CDS).await, [CART, CHECKOUT]);
    client.subscribe(CDS, &[CART]).await;
    assert_eq!(client.names(CDS).await, [CART]);
    client.unsubscribe(CDS, &["*"]).await;
    client.quiet().await;
    // Only `CART` is left.
    let changed = |app: &str| {
        let cart = service("shop/cart").ports(&[&format!("http=80@{app}")]).build();
        vec![checkout(&format!("http=80@{app}"), "us/a/1"), cart]
    };
    server.serve(changed("grpc"));
    assert_eq!(client.names(CDS).await, [CART]);
    client.unsubscribe(CDS, &[CART]).await;
    client.quiet().await;
    server.serve(changed("http"));
    client.quiet().await;
    client.subscribe(CDS, &["*"]).await;
    assert_eq!(client.names(CDS).await, [CART, CHECKOUT]);
}

#[tokio::test]
async fn x21_a_first_request_with_names_is_no_wildcard() {
    let server = Running::serving(both()).await;
    let mut client = server.delta().await;
    client.subscribe(CDS, &[CART]).await;
    assert_eq!(client.names(CDS).await, [CART]);
    client.quiet().await;
}

#[tokio::test]
async fn x22_no_names_of_endpoints_or_routes_is_nothing() {
    let server = Running::serving(both()).await;
    let mut client = server.delta().await;
    client.subscribe(EDS, &[]).await;
    client.subscribe(RDS, &[]).await;
    client.quiet().await;
}

#[tokio::test]
async fn x24_a_name_dropped_under_a_wildcard_is_answered() {
    let server = Running::serving(both()).await;
    let mut client = server.delta().await;
    client.subscribe(CDS, &["*", CART, "nowhere"]).await;
    assert_eq!(client.names(CDS).await, [CART, CHECKOUT]);
    assert_eq!(client.names(CDS).await, ["-nowhere"]);
    client.unsubscribe(CDS, &[CART]).await;
    assert_eq!(client.names(CDS).await, [CART]);
    client.unsubscribe(CDS, &["nowhere"]).await;
    assert_eq!(client.names(CDS).await, ["-nowhere"]);
    client.unsubscribe(CDS, &["never named"]).await;
    client.unsubscribe(EDS, &[CART]).await;
    client.quiet().await;
}

#[tokio::test]
async fn x26_only_what_is_subscribed_is_sent() {
    let mut server = Running::serving(both()).await;
    let mut client = server.delta().await;
    client.subscribe(EDS, &[CART]).await;
    assert_eq!(client.names(EDS).await, [CART]);
    server.serve(vec![checkout("http=80", "us/a/1 us/a/2"), cart()]);
    client.quiet().await;
    server.serve(vec![cart()]);
    client.quiet().await;
}

#[tokio::test]
async fn x28_x29_what_is_missing_is_said_at_once_and_sent_when_it_comes() {
    let mut server = Running::serving(vec![cart()]).await;
    let mut client = server.delta().await;
    client.subscribe(CDS, &[CHECKOUT]).await;
    let missing = client.next(CDS).await;
    client.ack(&missing).await;
    assert_eq!(missing.removed_resources, [CHECKOUT]);
    assert_eq!(missing.resource_errors[0].error_detail.as_ref().unwrap().code, 5);
    server.serve(both());
    assert_eq!(client.names(CDS).await, [CHECKOUT]);
    server.serve(vec![cart()]);
    assert_eq!(client.names(CDS).await, [format!("-{CHECKOUT}")]);
}

#[tokio::test]
async fn x30_an_empty_mesh_is_an_answer() {
    let server = Running::serving(Vec::new()).await;
    let mut client = server.delta().await;
    client.subscribe(CDS, &[]).await;
    assert_eq!(client.names(CDS).await, Vec::<String>::new());
    client.quiet().await;
}

#[tokio::test]
async fn x33_the_last_endpoint_goes_by_an_empty_assignment() {
    let mut server = Running::serving(both()).await;
    let mut client = server.delta().await;
    client.like_envoy().await;
    server.serve(vec![checkout("http=80", ""), cart()]);
    let emptied = client.next(EDS).await;
    assert_eq!(names(&emptied), [CHECKOUT]);
    let body = &emptied.resources[0].resource.as_ref().unwrap().value;
    assert_eq!(ClusterLoadAssignment::decode(&**body).unwrap().endpoints, []);
}

#[tokio::test]
async fn x37_what_is_new_comes_bottom_up_and_what_is_gone_top_down() {
    let mut server = Running::serving(vec![cart()]).await;
    let mut client = server.delta().await;
    client.like_envoy().await;
    server.serve(both());
    assert_eq!(client.names(CDS).await, [CHECKOUT]);
    assert_eq!(client.names(RDS).await, ["outbound"]);
    client.subscribe(EDS, &[CHECKOUT]).await;
    assert_eq!(client.names(EDS).await, [CHECKOUT]);
    server.serve(vec![cart()]);
    assert_eq!(client.names(RDS).await, ["outbound"]);
    assert_eq!(client.names(CDS).await, [format!("-{CHECKOUT}")]);
    assert_eq!(client.names(EDS).await, [format!("-{CHECKOUT}")]);
}

#[tokio::test]
async fn x37_routes_wait_for_clusters_that_the_window_holds_up() {
    let mut server = Running::serving(both()).await;
    let mut client = server.delta().await;
    client.like_envoy().await;
    let mut waiting = Vec::new();
    for app in ["grpc", "http"] {
        server.serve(vec![checkout(&format!("http=80@{app}"), "us/a/1"), cart()]);
        waiting.push(client.next(CDS).await);
        client.names(EDS).await;
    }
    let new = service("shop/new").build();
    server.serve(vec![checkout("http=80@http", "us/a/1"), cart(), new]);
    client.quiet().await;
    client.ack(&waiting[1]).await;
    assert_eq!(client.names(CDS).await, ["outbound|80||new.shop.svc.clusterset.local"]);
    assert_eq!(client.names(RDS).await, ["outbound"]);
}

#[tokio::test]
async fn x37_listeners_and_routes_wait_for_all_parts_of_the_clusters() {
    const ALL: usize = 15_000;
    let services: Vec<Service> =
        (0..ALL).map(|n| service(&format!("shop/s{n}")).ports(&["p=80@grpc"]).build()).collect();
    let server = Running::serving(services).await;
    let mut client = server.delta().await;
    client.subscribe(CDS, &[]).await;
    let mut parts = vec![client.next(CDS).await, client.next(CDS).await];
    client.subscribe(LDS, &[]).await;
    client.subscribe(RDS, &["outbound"]).await;
    client.quiet().await;
    let seen = |parts: &[DeltaDiscoveryResponse]| -> usize {
        parts.iter().map(|part| part.resources.len()).sum()
    };
    assert!(seen(&parts) < ALL, "the clusters are more than a window holds");
    let mut read = 0;
    while seen(&parts) < ALL {
        client.ack(&parts[read]).await;
        read += 1;
        parts.push(client.next(CDS).await);
    }
    assert_eq!(client.names(LDS).await, ["outbound"]);
    assert_eq!(client.names(RDS).await, ["outbound"]);
}

#[tokio::test]
async fn x38_eds_follows_every_changed_cluster_and_x40_waits_for_no_ack() {
    let mut server = Running::serving(both()).await;
    let mut client = server.delta().await;
    client.like_envoy().await;
    for app in ["grpc", "http", "grpc"] {
        server.serve(vec![checkout(&format!("http=80@{app}"), "us/a/1"), cart()]);
        let clusters = client.next(CDS).await;
        assert_eq!(names(&clusters), [CHECKOUT]);
        let endpoints = client.next(EDS).await;
        assert_eq!(names(&endpoints), [CHECKOUT], "its bytes are the same, and yet");
        client.ack(&endpoints).await;
        client.ack(&clusters).await;
    }
    client.quiet().await;
}

#[tokio::test]
async fn x41_x47_endpoints_are_answered_when_their_cluster_returns() {
    let mut server = Running::serving(both()).await;
    let mut client = server.delta().await;
    client.like_envoy().await;
    server.serve(vec![cart()]);
    client.names(RDS).await;
    assert_eq!(client.names(CDS).await, [format!("-{CHECKOUT}")]);
    client.names(EDS).await;
    client.unsubscribe(EDS, &[CHECKOUT]).await;
    client.quiet().await;
    server.serve(both());
    assert_eq!(client.names(CDS).await, [CHECKOUT]);
    client.names(RDS).await;
    client.subscribe(EDS, &[CHECKOUT]).await;
    assert_eq!(client.names(EDS).await, [CHECKOUT]);
    // A client that kept its subscription does not ask again.
    server.serve(vec![cart()]);
    client.names(RDS).await;
    client.names(CDS).await;
    client.names(EDS).await;
    server.serve(both());
    assert_eq!(client.names(CDS).await, [CHECKOUT]);
    assert_eq!(client.names(EDS).await, [CHECKOUT]);
}

#[tokio::test]
async fn x48_x49_a_slow_client_gets_the_newest_and_no_more_than_two_at_a_time() {
    let mut server = Running::serving(both()).await;
    let mut client = server.delta().await;
    client.subscribe(EDS, &[CHECKOUT]).await;
    let mut waiting = vec![client.next(EDS).await];
    let serve = |server: &mut Running, n: usize| {
        let all: Vec<String> = (1..=n).map(|n| format!("us/a/{n}")).collect();
        server.serve(vec![checkout("http=80", &all.join(" ")), cart()]);
    };
    serve(&mut server, 2);
    waiting.push(client.next(EDS).await);
    for n in 3..=20 {
        serve(&mut server, n);
    }
    client.quiet().await;
    client.ack(&waiting[0]).await;
    let newest = client.next(EDS).await;
    let body = &newest.resources[0].resource.as_ref().unwrap().value;
    let message = ClusterLoadAssignment::decode(&**body).unwrap();
    assert_eq!(message.endpoints.iter().map(|e| e.lb_endpoints.len()).sum::<usize>(), 20);
    client.ack(&waiting[1]).await;
    client.ack(&newest).await;
    client.quiet().await;
}

#[tokio::test]
async fn x49_endpoints_owed_to_a_changed_cluster_pass_a_full_window() {
    let mut server = Running::serving(both()).await;
    let mut client = server.delta().await;
    client.like_envoy().await;
    for endpoints in ["us/a/1 us/a/2", "us/a/1 us/a/2 us/a/3"] {
        server.serve(vec![checkout("http=80", endpoints), cart()]);
        client.next(EDS).await;
    }
    server.serve(vec![checkout("http=80@grpc", "us/a/1 us/a/2 us/a/3"), cart()]);
    client.next(CDS).await;
    assert_eq!(names(&client.next(EDS).await), [CHECKOUT]);
}

#[tokio::test]
async fn x51_a_large_first_answer_is_split_and_complete() {
    let services: Vec<Service> =
        (0..6000).map(|n| service(&format!("shop/s{n}")).ports(&["p=80@grpc"]).build()).collect();
    let server = Running::serving(services).await;
    let mut client = server.delta().await;
    client.subscribe(CDS, &[]).await;
    let mut all = BTreeSet::new();
    let mut parts = 0;
    while all.len() < 6000 {
        let part = client.next(CDS).await;
        client.ack(&part).await;
        assert!(part.encoded_len() < 2 << 20, "{}", part.encoded_len());
        parts += 1;
        all.extend(names(&part));
    }
    assert!(parts > 1);
    client.quiet().await;
}

#[tokio::test]
async fn s7_a_change_without_other_bytes_is_not_sent() {
    let mut server = Running::serving(both()).await;
    let mut client = server.delta().await;
    client.like_envoy().await;
    let mut same = both();
    same[0].annotations.insert("touched-by".into(), "an autoscaler".into());
    server.serve(same);
    client.quiet().await;
}
