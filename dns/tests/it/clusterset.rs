//! `ClusterSetIP` services in the endpoints view.

use crate::mesh;

const SAME: &str = "
    namespace shop
    ClusterSetIP shop/web http:80 metrics:9090
      us-a 10.0.0.1 http=80 metrics=9090
      us-b 10.0.0.2 http=80 metrics=9090
      us-b fd00::2 http=80 metrics=9090
      us-b 10.0.0.3 http=80 metrics=9090 not-ready";

const DIFFERENT: &str = "
    ClusterSetIP shop/api http:80 admin:8443
      us-a 10.0.0.1 http=8080 admin=8443
      us-a fd00::1 http=8080 admin=8443
      us-b 10.0.0.2 http=8081 admin=8443 host=api-0";

fn check(text: &str, question: &str, expected: &str) {
    mesh::check(&mesh::mesh(text), "us", question, expected);
}

#[test]
fn equal_ports_give_addresses() {
    check(SAME, "A web.shop.svc", "10.0.0.1, 10.0.0.2");
    check(SAME, "AAAA web.shop.svc", "fd00::2");
    check(SAME, "TXT web.shop.svc", "NODATA");
    check(SAME, "A WEB.Shop.svc", "10.0.0.1, 10.0.0.2");
}

#[test]
fn equal_ports_give_srv_to_the_service() {
    check(SAME, "SRV _http._tcp.web.shop.svc", "0 100 80 web.shop.svc");
    check(SAME, "SRV _Metrics._TCP.web.shop.svc", "0 100 9090 web.shop.svc");
    check(SAME, "SRV web.shop.svc", "0 100 80 web.shop.svc, 0 100 9090 web.shop.svc");
    check(SAME, "SRV _http._udp.web.shop.svc", "NXDOMAIN");
    check(SAME, "A _http._tcp.web.shop.svc", "NODATA");
}

#[test]
fn c19_one_number_over_tcp_and_udp_is_one_bare_srv() {
    let text = "
        ClusterSetIP shop/hello tcp:42 udp:42/UDP
          us-a 10.0.0.1 tcp=42 udp=42/UDP";
    check(text, "SRV hello.shop.svc", "0 100 42 hello.shop.svc");
    check(text, "SRV _udp._udp.hello.shop.svc", "0 100 42 hello.shop.svc");
}

#[test]
fn other_ports_give_no_addresses_but_srv_with_the_real_ones() {
    check(DIFFERENT, "A api.shop.svc", "NODATA");
    check(DIFFERENT, "AAAA api.shop.svc", "NODATA");
    check(
        DIFFERENT,
        "SRV _http._tcp.api.shop.svc",
        "0 33 8080 10-0-0-1.us-a.api.shop.svc, 0 33 8080 fd00--1.us-a.api.shop.svc, \
         0 33 8081 10-0-0-2.us-b.api.shop.svc",
    );
    check(
        DIFFERENT,
        "SRV _admin._tcp.api.shop.svc",
        "0 33 8443 10-0-0-1.us-a.api.shop.svc, 0 33 8443 10-0-0-2.us-b.api.shop.svc, \
         0 33 8443 fd00--1.us-a.api.shop.svc",
    );
}

#[test]
fn targets_of_srv_resolve_and_come_along() {
    check(DIFFERENT, "A 10-0-0-1.us-a.api.shop.svc", "10.0.0.1");
    check(DIFFERENT, "AAAA 10-0-0-1.us-a.api.shop.svc", "NODATA");
    check(DIFFERENT, "AAAA fd00--1.us-a.api.shop.svc", "fd00::1");
    check(DIFFERENT, "A api-0.us-b.api.shop.svc", "NXDOMAIN");
    check(DIFFERENT, "A 10-0-0-1.us-b.api.shop.svc", "NXDOMAIN");
    check(SAME, "A 10-0-0-1.us-a.web.shop.svc", "10.0.0.1");

    let catalog = mesh::mesh(DIFFERENT);
    let name = mesh::full("_http._tcp.api.shop.svc");
    let given = mesh::given(Some(&catalog), "us", &name, "SRV".parse().unwrap(), 0);
    let mut along: Vec<_> = given.additionals.iter().map(mesh::data).collect();
    along.sort();
    assert_eq!(along, ["10.0.0.1", "10.0.0.2", "fd00::1"]);
}

#[test]
fn no_record_at_the_cluster_itself() {
    for qtype in ["A", "AAAA", "SRV", "TXT", "ANY"] {
        check(SAME, &format!("{qtype} us-a.web.shop.svc"), "NODATA");
    }
    check(SAME, "A us-z.web.shop.svc", "NXDOMAIN");
}

#[test]
fn without_a_ready_endpoint_the_name_stays() {
    let text = "
        ClusterSetIP shop/web http:80
          us-a 10.0.0.1 http=80 not-ready
          us-a 10.0.0.2 http=80 terminating
          us-a 10.0.0.3 http=80 net=elsewhere";
    check(text, "A web.shop.svc", "NODATA");
    check(text, "SRV web.shop.svc", "NODATA");
    check(text, "SRV _http._tcp.web.shop.svc", "NODATA");
    check(text, "A 10-0-0-1.us-a.web.shop.svc", "NXDOMAIN");
    check("ClusterSetIP shop/web http:80", "A web.shop.svc", "NODATA");
}

#[test]
fn an_unnamed_port_has_srv_at_the_bare_name_only() {
    let text = "
        ClusterSetIP shop/one 80
          us-a 10.0.0.1 =8080";
    check(text, "A one.shop.svc", "NODATA");
    check(text, "SRV one.shop.svc", "0 100 8080 10-0-0-1.us-a.one.shop.svc");
    check(text, "SRV _._tcp.one.shop.svc", "NXDOMAIN");
    check(text, "SRV _tcp.one.shop.svc", "NXDOMAIN");
}

#[test]
fn sctp_ports_do_not_withhold_addresses() {
    let text = "
        ClusterSetIP shop/tel http:80 sig:99/SCTP
          us-a 10.0.0.1 http=80 sig=999/SCTP";
    check(text, "A tel.shop.svc", "10.0.0.1");
    check(text, "SRV _http._tcp.tel.shop.svc", "0 100 80 tel.shop.svc");
    check(text, "SRV _sig._sctp.tel.shop.svc", "0 100 999 10-0-0-1.us-a.tel.shop.svc");
}

#[test]
fn a_port_name_of_63_characters_has_no_srv_name() {
    let port = "p".repeat(63);
    let text = format!("ClusterSetIP shop/long {port}:80\n us-a 10.0.0.1 {port}=80");
    check(&text, "SRV _tcp.long.shop.svc", "NXDOMAIN");
    check(&text, "SRV long.shop.svc", "0 100 80 long.shop.svc");
}
