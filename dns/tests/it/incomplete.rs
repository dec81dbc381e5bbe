//! A catalog that does not hold everything yet denies nothing.

use crate::mesh::{ask, check, incomplete};

const MESH: &str = "
    namespace empty
    ClusterSetIP shop/web http:80
      us-a 10.0.0.1 http=80
    ClusterSetIP shop/api http:80
      us-a 10.0.0.2 http=8080
    ClusterSetIP shop/down http:80
      us-a 10.0.0.3 http=80 not-ready
    Headless shop/db pg:1
      us-a 10.0.0.4 pg=1 not-ready";

#[test]
fn what_is_found_is_answered() {
    let catalog = incomplete(MESH);
    check(&catalog, "us", "A web.shop.svc", "10.0.0.1");
    check(&catalog, "us", "SRV _http._tcp.web.shop.svc", "0 100 80 web.shop.svc");
    check(&catalog, "us", "A 10-0-0-1.us-a.web.shop.svc", "10.0.0.1");
    check(&catalog, "us", "TXT dns-version", "1.0.0");
}

/// An AAAA that fails would fail the A beside it in resolvers that ask for both.
#[test]
fn what_is_known_of_a_found_name_is_said() {
    let catalog = incomplete(MESH);
    check(&catalog, "us", "AAAA web.shop.svc", "NODATA");
    check(&catalog, "us", "MX web.shop.svc", "NODATA");
    check(&catalog, "us", "A api.shop.svc", "NODATA");
    check(&catalog, "us", "A shop.svc", "NODATA");
    check(&catalog, "us", "A empty.svc", "NODATA");
}

#[test]
fn what_is_not_found_may_exist() {
    let catalog = incomplete(MESH);
    for name in [
        "other.shop.svc",
        "web.other.svc",
        "other.svc",
        "down.shop.svc",
        "db.shop.svc",
        "_x._tcp.web.shop.svc",
        "us-b.web.shop.svc",
        "10-0-0-9.us-a.web.shop.svc",
    ] {
        check(&catalog, "us", &format!("A {name}"), "SERVFAIL");
    }
    check(&catalog, "us", "SRV down.shop.svc", "SERVFAIL");
    check(&catalog, "us", "A example.com.", "REFUSED");
}

#[test]
fn without_a_catalog_only_what_needs_none_is_said() {
    assert_eq!(ask(None, "us", "TXT dns-version"), "1.0.0");
    assert!(ask(None, "us", "SOA clusterset.local.").starts_with("ns.dns hostmaster 0"));
    for question in [
        "A web.shop.svc",
        "A shop.svc",
        "A svc",
        "A nothing",
        "A dns-version",
        "A clusterset.local.",
        "SRV _http._tcp.web.shop.svc",
    ] {
        assert_eq!(ask(None, "us", question), "SERVFAIL", "{question}");
    }
    assert_eq!(ask(None, "us", "A example.com."), "REFUSED");
}
