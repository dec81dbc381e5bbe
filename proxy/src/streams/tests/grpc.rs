use envoy_types::pb::envoy::config::listener::v3::Listener;

use super::*;

const TARGET: &str = "checkout.shop.svc.clusterset.local";

#[tokio::test]
async fn g1_g2_a_grpc_client_finds_its_target_by_name() {
    let server = Running::serving(both()).await;
    let mut client = server.sotw("gRPC Go").await;
    client.ask(LDS, &[TARGET], None).await;
    let listeners = client.next(LDS).await;
    assert_eq!(listeners.resources.len(), 1);
    let listener = Listener::decode(&*listeners.resources[0].value).unwrap();
    assert_eq!(listener.name, TARGET);
    assert!(listener.api_listener.is_some());
    client.ask(CDS, &[CHECKOUT], None).await;
    assert_eq!(cluster_names(&client.next(CDS).await), [CHECKOUT]);
    client.ask(EDS, &[CHECKOUT], None).await;
    assert_eq!(cluster_names(&client.next(EDS).await), [CHECKOUT]);
}

#[tokio::test]
async fn x23_no_names_from_grpc_are_no_wildcard() {
    let server = Running::serving(both()).await;
    let mut client = server.sotw("gRPC C-core Linux").await;
    client.ask(CDS, &[], None).await;
    client.ask(EDS, &[CHECKOUT], None).await;
    assert_eq!(cluster_names(&client.next(EDS).await), [CHECKOUT], "and no clusters before");
}

#[tokio::test]
async fn x29_a_missing_target_is_an_error_for_grpc() {
    let server = Running::serving(vec![cart()]).await;
    let mut client = server.sotw("gRPC Go").await;
    client.ask(LDS, &[TARGET], None).await;
    let answer = client.next(LDS).await;
    assert_eq!(answer.resources.len(), 0);
    let error = &answer.resource_errors[0];
    assert_eq!(error.resource_name.as_ref().unwrap().name, TARGET);
    client.ask(EDS, &[CHECKOUT], None).await;
    assert_eq!(client.next(EDS).await.resource_errors.len(), 1);
}
