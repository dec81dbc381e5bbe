//! Endpoints of a suspect cluster: better than nothing, and no better.

use crate::mesh::{ask, check, mesh, view};

const TEXT: &str = "
    distance us eu 10
    namespace shop
    ClusterSetIP shop/web http:80
      us-a 10.0.0.1 http=80 degraded
      us-a 10.0.0.2 http=80 not-ready
      eu-a 10.1.0.1 http=80";

#[test]
fn a_healthy_endpoint_anywhere_is_preferred() {
    check(&mesh(TEXT), "us", "A web.shop.svc", "10.1.0.1");
}

#[test]
fn without_any_healthy_endpoint_the_nearest_degraded_ones_are_answered() {
    let text = TEXT.replace("10.1.0.1 http=80", "10.1.0.1 http=80 degraded");
    check(&mesh(&text), "us", "A web.shop.svc", "10.0.0.1");
    check(&mesh(&text), "eu", "A web.shop.svc", "10.1.0.1");
    check(&mesh(&text), "us", "SRV _http._tcp.web.shop.svc", "0 100 80 web.shop.svc");
    let why = tombolo_dns::explain::resolve(
        &tombolo_dns::Zone::default(),
        &view("us"),
        Some(&mesh(&text)),
        "web.shop.svc.clusterset.local",
        "A",
    );
    let why = why.unwrap().why;
    assert!(why.contains("degraded endpoints") && why.contains("suspect"), "{why}");
}

#[test]
fn another_network_is_no_more_reachable_for_being_degraded() {
    let text = TEXT.replace("eu-a 10.1.0.1 http=80", "eu-a 10.1.0.1 http=80 not-ready");
    let text = text.replace("10.0.0.1 http=80", "10.0.0.1 http=80 net=other");
    check(&mesh(&text), "us", "A web.shop.svc", "NODATA");
}

#[test]
fn a_port_that_nothing_healthy_serves_is_found_at_degraded_ones() {
    let text = "
        namespace shop
        ClusterSetIP shop/web http:80 admin:81
          us-a 10.0.0.1 http=80 admin=81 degraded
          us-a 10.0.0.2 http=80";
    let answer = ask(Some(&mesh(text)), "us", "SRV _admin._tcp.web.shop.svc");
    assert!(answer.starts_with("0 100 81 "), "{answer}");
    check(&mesh(text), "us", "A web.shop.svc", "10.0.0.2");
}

#[test]
fn who_asks_for_one_endpoint_of_a_headless_service_gets_that_one() {
    let text = "
        namespace shop
        Headless shop/db pg:5432
          us-a 10.0.0.1 pg=5432 degraded host=db-0
          us-a 10.0.0.2 pg=5432 host=db-1";
    check(&mesh(text), "us", "A db-0.us-a.db.shop.svc", "10.0.0.1");
    check(&mesh(text), "us", "A db.shop.svc", "10.0.0.2");
}
