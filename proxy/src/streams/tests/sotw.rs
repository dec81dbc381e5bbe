use super::*;

#[tokio::test]
async fn x9_a_stale_nonce_is_ignored() {
    let mut server = Running::serving(both()).await;
    let mut client = server.sotw("envoy").await;
    client.ask(EDS, &[CART], None).await;
    let first = client.next(EDS).await;
    client.ask(EDS, &[CART, CHECKOUT], Some(&first)).await;
    let second = client.next(EDS).await;
    assert_eq!(cluster_names(&second), [CHECKOUT]);
    client.ask(EDS, &[CART], Some(&first)).await;
    server.serve(vec![checkout("http=80", "us/a/1 us/a/2"), cart()]);
    assert_eq!(cluster_names(&client.next(EDS).await), [CHECKOUT], "still subscribed");
}

#[tokio::test]
async fn x18_clusters_come_whole_and_endpoints_in_part() {
    let mut server = Running::serving(both()).await;
    let mut client = server.sotw("envoy").await;
    client.ask(CDS, &[], None).await;
    let clusters = client.next(CDS).await;
    assert_eq!(cluster_names(&clusters), [CART, CHECKOUT]);
    client.ask(CDS, &[], Some(&clusters)).await;
    client.ask(EDS, &[CART, CHECKOUT], None).await;
    let endpoints = client.next(EDS).await;
    client.ask(EDS, &[CART, CHECKOUT], Some(&endpoints)).await;
    server.serve(vec![checkout("http=80", "us/a/1 us/a/2"), cart()]);
    let changed = client.next(EDS).await;
    assert_eq!(cluster_names(&changed), [CHECKOUT]);
    client.ask(EDS, &[CART, CHECKOUT], Some(&changed)).await;
    server.serve(vec![cart()]);
    assert_eq!(cluster_names(&client.next(CDS).await), [CART]);
}

#[tokio::test]
async fn x20_wildcards_come_and_go() {
    let mut server = Running::serving(both()).await;
    let mut client = server.sotw("envoy").await;
    client.ask(CDS, &["*", CART], None).await;
    let all = client.next(CDS).await;
    assert_eq!(cluster_names(&all), [CART, CHECKOUT]);
    client.ask(CDS, &[CART], Some(&all)).await;
    client.quiet().await;
    let change = |app: &str| {
        let cart = service("shop/cart").ports(&[&format!("http=80@{app}")]).build();
        vec![checkout(&format!("http=80@{app}"), "us/a/1"), cart]
    };
    server.serve(change("grpc"));
    let one = client.next(CDS).await;
    assert_eq!(cluster_names(&one), [CART]);
    client.ask(CDS, &[], Some(&one)).await;
    // Had this been taken for a wildcard, all clusters would come before these.
    client.ask(EDS, &[CART], None).await;
    assert_eq!(cluster_names(&client.next(EDS).await), [CART]);
    server.serve(change("http"));
    client.ask(LDS, &[], None).await;
    client.next(LDS).await;
}

#[tokio::test]
async fn x38_x42_endpoints_follow_every_changed_cluster() {
    let mut server = Running::serving(both()).await;
    let mut client = server.sotw("envoy").await;
    client.ask(CDS, &[], None).await;
    let clusters = client.next(CDS).await;
    client.ask(EDS, &[CART, CHECKOUT], None).await;
    let endpoints = client.next(EDS).await;
    client.ask(EDS, &[CART, CHECKOUT], Some(&endpoints)).await;
    client.ask(CDS, &[], Some(&clusters)).await;
    server.serve(vec![checkout("http=80@grpc", "us/a/1"), cart()]);
    assert_eq!(cluster_names(&client.next(CDS).await), [CART, CHECKOUT]);
    let again = client.next(EDS).await;
    assert_eq!(cluster_names(&again), [CHECKOUT]);
    // What Envoy sends then looks like an ACK, and is one.
    client.ask(EDS, &[CART, CHECKOUT], Some(&again)).await;
    client.quiet().await;
}

#[tokio::test]
async fn x37_clusters_that_go_stay_until_no_route_names_them() {
    let mut server = Running::serving(both()).await;
    let mut client = server.sotw("envoy").await;
    client.ask(CDS, &[], None).await;
    let clusters = client.next(CDS).await;
    client.ask(CDS, &[], Some(&clusters)).await;
    client.ask(EDS, &[CART, CHECKOUT], None).await;
    let endpoints = client.next(EDS).await;
    client.ask(EDS, &[CART, CHECKOUT], Some(&endpoints)).await;
    client.ask(RDS, &["outbound"], None).await;
    let routes = client.next(RDS).await;
    client.ask(RDS, &["outbound"], Some(&routes)).await;
    let new = "outbound|80||new.shop.svc.clusterset.local";
    server.serve(vec![cart(), service("shop/new").build()]);
    let grown = client.next(CDS).await;
    assert_eq!(cluster_names(&grown), [CART, new, CHECKOUT]);
    let held = |response: &DiscoveryResponse, name| {
        let at = cluster_names(response).iter().position(|held| held == name);
        response.resources[at.unwrap()].value.clone()
    };
    assert_eq!(held(&grown, CHECKOUT), held(&clusters, CHECKOUT), "it changes nothing");
    client.next(RDS).await;
    assert_eq!(cluster_names(&client.next(CDS).await), [CART, new]);
}

#[tokio::test]
async fn x39_endpoints_of_a_cluster_that_is_gone_are_not_answered_for_ever() {
    let mut server = Running::serving(both()).await;
    let mut client = server.sotw("gRPC Go").await;
    client.ask(CDS, &[CART, CHECKOUT], None).await;
    let clusters = client.next(CDS).await;
    client.ask(CDS, &[CART, CHECKOUT], Some(&clusters)).await;
    server.serve(vec![cart()]);
    let left = client.next(CDS).await;
    assert_eq!(cluster_names(&left), [CART]);
    client.ask(CDS, &[CART, CHECKOUT], Some(&left)).await;
    client.ask(EDS, &[CHECKOUT], None).await;
    let missing = client.next(EDS).await;
    assert_eq!(missing.resource_errors.len(), 1);
    client.ask(EDS, &[CHECKOUT], Some(&missing)).await;
    // Were there another answer, it would be made before this one is asked for.
    client.ask(LDS, &["nowhere"], None).await;
    client.next(LDS).await;
}

#[tokio::test]
async fn x32_a_wildcard_that_has_it_all_is_sent_nothing() {
    let mut server = Running::serving(both()).await;
    let mut client = server.sotw("envoy").await;
    client.ask(CDS, &[], None).await;
    let clusters = client.next(CDS).await;
    let held = DiscoveryResponse { nonce: String::new(), ..clusters };
    let mut client = server.sotw("envoy").await;
    client.ask(CDS, &[], Some(&held)).await;
    client.quiet().await;
    server.serve(vec![cart()]);
    let routes = client.next(RDS).await;
    client.ask(RDS, &["outbound"], Some(&routes)).await;
    assert_eq!(cluster_names(&client.next(CDS).await), [CART]);
    // With names, the version says nothing of what is behind it.
    let mut client = server.sotw("envoy").await;
    client.ask(EDS, &[CART], Some(&held)).await;
    assert_eq!(cluster_names(&client.next(EDS).await), [CART]);
}

#[tokio::test]
async fn x28_envoy_hears_nothing_of_what_is_missing_until_it_comes() {
    let mut server = Running::serving(vec![cart()]).await;
    let mut client = server.sotw("envoy").await;
    client.ask(EDS, &[CHECKOUT], None).await;
    client.quiet().await;
    server.serve(both());
    let routes = client.read_either().await;
    let endpoints = client.read_either().await;
    let types = [routes.type_url.as_str(), endpoints.type_url.as_str()];
    assert!(types.contains(&EDS) && types.contains(&RDS), "{types:?}");
}

impl Sotw {
    async fn read_either(&mut self) -> DiscoveryResponse {
        let read = timeout(LONG, self.responses.message()).await.expect("an answer in time");
        read.unwrap().expect("the stream goes on")
    }
}
