//! `ClusterSetIP` services whose exporters disagree on ports.

use crate::mesh;

fn check(text: &str, region: &str, question: &str, expected: &str) {
    mesh::check(&mesh::mesh(text), region, question, expected);
}

/// us-a is the older, so the service's only port is called `http`; eu-a calls it `web`.
#[test]
fn a_port_is_its_number_whatever_its_cluster_calls_it() {
    let text = "
        ClusterSetIP shop/web http:80
          us-a 10.0.0.1 http=80
          eu-a 10.1.0.1 web=80
          exports eu-a web:80";
    check(text, "eu", "A web.shop.svc", "10.1.0.1");
    check(text, "eu", "SRV _http._tcp.web.shop.svc", "0 100 80 web.shop.svc");
    check(text, "eu", "SRV _web._tcp.web.shop.svc", "NXDOMAIN");
    check(text, "us", "A web.shop.svc", "10.0.0.1");

    let other = text.replace("web=80", "web=8080");
    check(&other, "eu", "A web.shop.svc", "NODATA");
    let real = "0 100 8080 10-1-0-1.eu-a.web.shop.svc";
    check(&other, "eu", "SRV _http._tcp.web.shop.svc", real);
}

#[test]
fn a_port_of_a_younger_cluster_takes_nothing_from_the_others() {
    let text = "
        distance us eu 10
        ClusterSetIP shop/web http:80 admin:9000
          us-a 10.0.0.1 http=80
          us-b 10.0.0.2 http=80
          eu-a 10.1.0.1 http=80 admin=9000
          exports us-a http
          exports us-b http";
    check(text, "us", "A web.shop.svc", "10.0.0.1, 10.0.0.2");
    check(text, "us", "SRV _http._tcp.web.shop.svc", "0 100 80 web.shop.svc");
    check(text, "eu", "A web.shop.svc", "10.1.0.1");
    check(text, "eu", "SRV _admin._tcp.web.shop.svc", "0 100 9000 web.shop.svc");
    // The nearest that serve a port are not always the nearest of the service.
    let far = "0 100 9000 10-1-0-1.eu-a.web.shop.svc";
    check(text, "us", "SRV _admin._tcp.web.shop.svc", far);
    check(text, "us", "SRV web.shop.svc", &format!("0 100 80 web.shop.svc, {far}"));
}

#[test]
fn clusters_of_one_tier_may_expose_different_ports() {
    let text = "
        ClusterSetIP shop/mixed http:80 admin:81
          us-a 10.0.0.1 http=80 admin=81
          us-b 10.0.0.2 http=80 admin=81
          exports us-b http";
    check(text, "us", "A mixed.shop.svc", "10.0.0.1, 10.0.0.2");
    check(text, "us", "SRV _http._tcp.mixed.shop.svc", "0 100 80 mixed.shop.svc");
    let exposing = "0 100 81 10-0-0-1.us-a.mixed.shop.svc";
    check(text, "us", "SRV _admin._tcp.mixed.shop.svc", exposing);
}

#[test]
fn only_endpoints_with_other_numbers_are_left_out_of_addresses() {
    let text = "
        ClusterSetIP shop/web http:80 admin:81
          us-a 10.0.0.1 http=80 admin=81
          us-b 10.0.0.2 http=80 admin=8181
          us-b fd00::2 http=80 admin=8181";
    check(text, "us", "A web.shop.svc", "10.0.0.1");
    check(text, "us", "AAAA web.shop.svc", "NODATA");
    check(
        text,
        "us",
        "SRV _http._tcp.web.shop.svc",
        "0 33 80 10-0-0-1.us-a.web.shop.svc, 0 33 80 10-0-0-2.us-b.web.shop.svc, \
         0 33 80 fd00--2.us-b.web.shop.svc",
    );
    check(
        text,
        "us",
        "SRV _admin._tcp.web.shop.svc",
        "0 33 81 10-0-0-1.us-a.web.shop.svc, 0 33 8181 10-0-0-2.us-b.web.shop.svc, \
         0 33 8181 fd00--2.us-b.web.shop.svc",
    );
}

/// What another region would give is not what SRV names here: there is no data there.
#[test]
fn a_nearest_tier_of_other_numbers_has_srv_and_no_addresses() {
    let text = "
        ClusterSetIP shop/web http:80
          us-a 10.0.0.1 http=80
          eu-a 10.1.0.1 http=8080";
    check(text, "us", "A web.shop.svc", "10.0.0.1");
    check(text, "eu", "A web.shop.svc", "NODATA");
    let real = "0 100 8080 10-1-0-1.eu-a.web.shop.svc";
    check(text, "eu", "SRV _http._tcp.web.shop.svc", real);
}

/// eu-a's only port has lost its name to us-a's of another number: nothing of eu-a serves the
/// service, so eu asks as if eu-a were not there.
#[test]
fn a_cluster_that_lost_all_its_ports_takes_no_traffic() {
    let text = "
        ClusterSetIP shop/web http:80
          us-a 10.0.0.1 http=80
          eu-a 10.1.0.1 http=8080
          exports eu-a http:8080";
    check(text, "eu", "A web.shop.svc", "10.0.0.1");
    check(text, "eu", "SRV _http._tcp.web.shop.svc", "0 100 80 web.shop.svc");
    check(text, "eu", "A 10-1-0-1.eu-a.web.shop.svc", "NXDOMAIN");

    let alone = text.replace("us-a 10.0.0.1 http=80", "us-a 10.0.0.1 http=80 not-ready");
    check(&alone, "eu", "A web.shop.svc", "NODATA");
    check(&alone, "eu", "SRV _http._tcp.web.shop.svc", "NODATA");
    let still_coming = mesh::incomplete(&alone);
    mesh::check(&still_coming, "eu", "A web.shop.svc", "SERVFAIL");
}

/// As while a port is being added, to the Service first and to its pods one by one.
#[test]
fn a_pod_without_a_port_keeps_its_address() {
    let text = "
        ClusterSetIP shop/web http:80 admin:81
          us-a 10.0.0.1 http=80
          us-a 10.0.0.2 http=80 admin=81";
    check(text, "us", "A web.shop.svc", "10.0.0.1, 10.0.0.2");
    check(text, "us", "SRV _admin._tcp.web.shop.svc", "0 100 81 10-0-0-2.us-a.web.shop.svc");
}
