//! Which region's endpoints are answered.

use crate::mesh::{check, mesh};

const FAR: &str = "
    distance us eu 10
    distance us ap 5
    distance eu us 10
    ClusterSetIP shop/web http:80
      us-a 10.0.0.1 http=80
      us-b 10.0.0.2 http=80
      eu-a 10.1.0.1 http=80
      ap-a 10.2.0.1 http=80
      zz-a 10.3.0.1 http=80
      sa-a 10.4.0.1 http=80";

/// `FAR` with the endpoints in `down` not ready.
fn without(down: &[&str]) -> tombolo_federation::catalog::Catalog {
    let lines = FAR.lines().map(|line| {
        let hit = down.iter().any(|cluster| line.trim().starts_with(cluster));
        if hit { format!("{line} not-ready\n") } else { format!("{line}\n") }
    });
    mesh(&lines.collect::<String>())
}

#[test]
fn the_own_region_first_with_all_its_clusters() {
    check(&without(&[]), "us", "A web.shop.svc", "10.0.0.1, 10.0.0.2");
    check(&without(&["us-a"]), "us", "A web.shop.svc", "10.0.0.2");
    check(&without(&[]), "ap", "A web.shop.svc", "10.2.0.1");
}

#[test]
fn then_by_declared_distance_then_by_name() {
    check(&without(&["us"]), "us", "A web.shop.svc", "10.2.0.1");
    check(&without(&["us", "ap"]), "us", "A web.shop.svc", "10.1.0.1");
    check(&without(&["us", "ap", "eu"]), "us", "A web.shop.svc", "10.4.0.1");
    check(&without(&["us", "ap", "eu", "sa"]), "us", "A web.shop.svc", "10.3.0.1");
    check(&without(&["us", "ap", "eu", "sa", "zz"]), "us", "A web.shop.svc", "NODATA");
}

#[test]
fn a_region_that_declares_nothing_goes_by_name() {
    check(&without(&["zz"]), "zz", "A web.shop.svc", "10.2.0.1");
    check(&without(&[]), "mars", "A web.shop.svc", "10.2.0.1");
}

#[test]
fn other_networks_are_out_of_reach() {
    let text = "
        distance us eu 1
        ClusterSetIP shop/web http:80
          us-a 10.0.0.1 http=80 net=island
          eu-a 10.1.0.1 http=80 net=island
          ap-a 10.2.0.1 http=80";
    check(&mesh(text), "us", "A web.shop.svc", "10.2.0.1");
    check(&mesh(text), "us", "A 10-0-0-1.us-a.web.shop.svc", "NXDOMAIN");
}

#[test]
fn ports_are_compared_in_the_region_that_is_answered_only() {
    let text = "
        ClusterSetIP shop/web http:80
          us-a 10.0.0.1 http=80
          eu-a 10.1.0.1 http=8080";
    check(&mesh(text), "us", "A web.shop.svc", "10.0.0.1");
    check(&mesh(text), "eu", "A web.shop.svc", "NODATA");
    check(
        &mesh(text),
        "eu",
        "SRV _http._tcp.web.shop.svc",
        "0 100 8080 10-1-0-1.eu-a.web.shop.svc",
    );
}
