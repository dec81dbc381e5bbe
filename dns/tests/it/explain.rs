//! Reasons in words.

use tombolo_dns::Zone;
use tombolo_dns::explain::{Explained, resolve};
use tombolo_federation::catalog::Catalog;

use crate::mesh::{incomplete, mesh, view};

const MESH: &str = "
    distance us eu 10
    ClusterSetIP shop/web http:80
      us-a 10.0.0.1 http=80 not-ready
      us-b 10.0.0.2 http=80 net=island
      eu-a 10.1.0.1 http=80
      ap-a 10.2.0.1 http=80
    ClusterSetIP shop/api http:80
      us-a 10.0.0.2 http=8080
    Headless shop/db pg:1
      us-a 10.0.0.4 pg=1 not-ready";

fn explain(catalog: Option<&Catalog>, question: &str) -> Explained {
    let (qtype, name) = question.split_once(' ').unwrap();
    let name = format!("{name}.svc.clusterset.local");
    resolve(&Zone::default(), &view("us"), catalog, &name, qtype).unwrap()
}

fn check(catalog: &Catalog, question: &str, expected: &str) {
    let explained = explain(Some(catalog), question);
    assert!(explained.why.contains(expected), "{question}: {}", explained.why);
}

#[test]
fn every_reason_names_what_it_is_about() {
    let held = mesh(MESH);
    check(&held, "A web.shop", "eu is the nearest region");
    check(&held, "A web.shop", "nearer ones have none: us");
    check(&held, "A api.shop", "port 80/TCP (\"http\")");
    check(&held, "A api.shop", "10.0.0.2 in us-a serves it on 8080");
    check(&held, "A db.shop", "none of the service's 1 endpoints is ready");
    check(&held, "SRV _x._tcp.web.shop", "it has: _http._tcp");
    check(&held, "A other.shop", "no cluster exports this service");
    check(&held, "A web.other", "no cluster has this namespace");
    check(&held, "MX web.shop", "no records of type MX");
    check(&held, "TYPE65280 web.shop", "no records of type");
    check(&held, "IXFR web.shop", "transfers are refused");
    check(&held, "A shop", "names below it");
    check(&incomplete(MESH), "A other.shop", "not everything has been received");
    assert!(explain(None, "A web.shop").why.contains("no catalog"));
}

#[test]
fn ports_that_clusters_do_not_share() {
    let held = mesh(
        "distance us eu 10
        ClusterSetIP shop/web http:80 admin:81 debug:82
          us-a 10.0.0.1 http=80
          us-b 10.0.0.2 http=8080
          eu-a 10.1.0.1 http=80 admin=81
          ap-a 10.2.0.1 http=8080
          exports us-a http
          exports us-b http
          exports eu-a http admin
          exports ap-a http:8080
        ClusterSetIP shop/api http:80
          us-a 10.0.0.3 http=8080
          exports us-a http:8080",
    );
    check(&held, "A web.shop", "(2 of 2); 1 with other ports than the service's only in SRV");
    let admin = explain(Some(&held), "SRV _admin._tcp.web.shop");
    assert_eq!(admin.tier.map(|region| region.to_string()).as_deref(), Some("eu"));
    assert!(admin.why.contains("eu is the nearest region with"), "{}", admin.why);
    assert!(admin.why.contains("within reach that serve the port (1 of 1)"), "{}", admin.why);
    check(&held, "SRV _debug._tcp.web.shop", "none serves port 82/TCP (\"debug\")");
    check(&held, "A api.shop", "none serves any port of the service");
    let usable: Vec<_> =
        admin.regions.iter().map(|region| (region.region.to_string(), region.usable)).collect();
    let expected =
        [("us", 2), ("eu", 1), ("ap", 0)].map(|(name, usable)| (name.to_owned(), usable));
    assert_eq!(usable, expected);
}

#[test]
fn a_tier_is_named_only_where_one_was_chosen() {
    let held = mesh(MESH);
    let tier = |question| explain(Some(&held), question).tier.map(|region| region.to_string());
    assert_eq!(tier("A web.shop").as_deref(), Some("eu"));
    assert_eq!(tier("SRV _http._tcp.web.shop").as_deref(), Some("eu"));
    assert_eq!(tier("A api.shop").as_deref(), Some("us"));
    assert_eq!(tier("A 10-2-0-1.ap-a.web.shop"), None);
    assert_eq!(tier("A db.shop"), None);
    assert_eq!(tier("A other.shop"), None);
    check(&held, "A 10-2-0-1.ap-a.web.shop", "one endpoint");
}

#[test]
fn json_for_programs() {
    let json = serde_json::to_value(explain(Some(&mesh(MESH)), "a Web.shop")).unwrap();
    let expected = serde_json::json!({
        "name": "Web.shop.svc.clusterset.local.",
        "type": "A",
        "rcode": "NOERROR",
        "answers": [{
            "name": "Web.shop.svc.clusterset.local.", "ttl": 5, "type": "A", "data": "10.1.0.1",
        }],
        "additionals": [],
        "reason": "found",
        "why": "eu is the nearest region with ready endpoints within reach (1 of 1); \
                nearer ones have none: us",
        "tier": "eu",
        "regions": [
            {"region": "us", "distance": 0, "usable": 0, "ready": 1, "total": 2},
            {"region": "eu", "distance": 10, "usable": 1, "ready": 1, "total": 1},
            {"region": "ap", "distance": null, "usable": 1, "ready": 1, "total": 1},
        ],
        "view": {"endpoints": {
            "region": "us", "cluster": "us-a", "zone": null, "network": "vpc",
        }},
        "generation": 7,
        "complete": true,
    });
    assert_eq!(json, expected);
}

#[test]
fn what_cannot_be_asked_says_what_was_expected() {
    let resolve = |name: &str, qtype: &str| {
        resolve(&Zone::default(), &view("us"), None, name, qtype).unwrap_err().to_string()
    };
    assert!(resolve("", "A").contains("not a domain name"));
    assert!(resolve("a..b", "A").contains("not a domain name"));
    assert!(resolve(&"x".repeat(64), "A").contains("63 bytes"));
    assert!(resolve("a.b", "BOGUS").contains("not a record type"));
}
