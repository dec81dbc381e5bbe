use super::*;

/// What a client holds after it opened like Envoy: (name, version) of clusters and of endpoints.
async fn held(server: &Running) -> [Vec<(String, String)>; 2] {
    let mut client = server.delta().await;
    client.subscribe(CDS, &[]).await;
    let clusters = client.next(CDS).await;
    let pairs = |response: &DeltaDiscoveryResponse| -> Vec<(String, String)> {
        response.resources.iter().map(|r| (r.name.clone(), r.version.clone())).collect()
    };
    let names: Vec<&str> = clusters.resources.iter().map(|r| r.name.as_str()).collect();
    client.subscribe(EDS, &names).await;
    let endpoints = client.next(EDS).await;
    [pairs(&clusters), pairs(&endpoints)]
}

fn names_of(held: &[(String, String)]) -> Vec<&str> {
    held.iter().map(|(name, _)| name.as_str()).collect()
}

#[tokio::test]
async fn x31_s9_unchanged_state_is_not_sent_again() {
    let services: Vec<Service> = (0..500)
        .map(|n| service(&format!("shop/s{n}")).endpoints("us/a/1 eu/b/2").build())
        .collect();
    let server = Running::serving(services).await;
    let [clusters, endpoints] = held(&server).await;
    let mut client = server.delta().await;
    client.resume(CDS, &[], &clusters).await;
    client.resume(EDS, &names_of(&endpoints), &endpoints).await;
    client.quiet().await;
}

#[tokio::test]
async fn x31_another_server_gives_the_same_bytes_the_same_versions() {
    let [clusters, endpoints] = held(&Running::serving(both()).await).await;
    let other = Running::serving(both()).await;
    let mut client = other.delta().await;
    client.resume(CDS, &[], &clusters).await;
    client.resume(EDS, &names_of(&endpoints), &endpoints).await;
    client.quiet().await;
}

#[tokio::test]
async fn x31_what_is_gone_or_other_is_said() {
    let mut server = Running::serving(both()).await;
    let [clusters, endpoints] = held(&server).await;
    server.serve(vec![cart(), service("shop/new").build()]);
    let mut client = server.delta().await;
    client.resume(CDS, &[], &clusters).await;
    let new = "outbound|80||new.shop.svc.clusterset.local";
    assert_eq!(client.names(CDS).await, [new]);
    assert_eq!(client.names(CDS).await, [format!("-{CHECKOUT}")]);
    client.resume(EDS, &names_of(&endpoints), &endpoints).await;
    assert_eq!(client.names(EDS).await, [format!("-{CHECKOUT}")]);
}

#[tokio::test]
async fn x38_x39_endpoints_of_a_cluster_that_changed_meanwhile_follow_it() {
    let mut server = Running::serving(both()).await;
    let [clusters, endpoints] = held(&server).await;
    server.serve(vec![checkout("http=80@grpc", "us/a/1"), cart()]);
    let mut client = server.delta().await;
    // Both at once, as Envoy does.
    client.resume(CDS, &[], &clusters).await;
    client.resume(EDS, &names_of(&endpoints), &endpoints).await;
    let changed = client.next(CDS).await;
    assert_eq!(names(&changed), [CHECKOUT]);
    let follows = client.next(EDS).await;
    assert_eq!(names(&follows), [CHECKOUT], "although the client holds these very bytes");
    client.ack(&follows).await;
    client.ack(&changed).await;
    client.quiet().await;
}

#[tokio::test]
async fn x38_x39_in_the_other_order_too() {
    let mut server = Running::serving(both()).await;
    let [clusters, endpoints] = held(&server).await;
    server.serve(vec![checkout("http=80@grpc", "us/a/1"), cart()]);
    let mut client = server.delta().await;
    client.resume(EDS, &names_of(&endpoints), &endpoints).await;
    client.quiet().await;
    client.resume(CDS, &[], &clusters).await;
    assert_eq!(client.names(CDS).await, [CHECKOUT]);
    assert_eq!(client.names(EDS).await, [CHECKOUT]);
}

#[tokio::test]
async fn x13_what_a_refusing_client_does_not_list_is_sent_again() {
    let server = Running::serving(both()).await;
    let mut client = server.delta().await;
    let mut some = held(&server).await[0].clone();
    some.retain(|(name, _)| name == CART);
    client.resume(CDS, &[], &some).await;
    assert_eq!(client.names(CDS).await, [CHECKOUT]);
}
