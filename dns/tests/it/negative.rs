//! What does not exist, what exists without data, and what is not ours.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{DNSClass, RData, RecordType};
use tombolo_dns::Zone;
use tombolo_dns::answer::{Question, Reason, answer};

use crate::mesh::{self, full, mesh, view};

const MESH: &str = "
    namespace empty
    ClusterSetIP shop/web http:80
      us-a 10.0.0.1 http=80";

fn check(question: &str, expected: &str) {
    mesh::check(&mesh(MESH), "us", question, expected);
}

#[test]
fn the_zone_itself() {
    let soa = "ns.dns hostmaster 7 7200 1800 86400 5";
    check("SOA clusterset.local.", soa);
    check("SOA ClusterSet.LOCAL.", soa);
    check("NS clusterset.local.", "ns.dns");
    check("A clusterset.local.", "NODATA");
    check("TXT dns-version", "1.0.0");
    check("A dns-version", "NODATA");
    check("A x.dns-version", "NXDOMAIN");
}

#[test]
fn the_name_server_has_the_addresses_that_it_is_given() {
    check("A ns.dns", "NODATA");
    check("A dns", "NODATA");
    let zone = Zone::default().with_name_servers(["10.0.0.53".parse().unwrap()]);
    let ask = |name, qtype| {
        let question = Question { name: &full(name), qtype, class: DNSClass::IN, turn: 0 };
        answer(&zone, &view("us"), None, &question)
    };
    assert_eq!(mesh::data(&ask("ns.dns", RecordType::A).answers[0]), "10.0.0.53");
    let ns = ask("clusterset.local.", RecordType::NS);
    assert_eq!(mesh::data(&ns.additionals[0]), "10.0.0.53");
}

#[test]
fn names_with_names_below_them() {
    for name in ["svc", "shop.svc", "empty.svc", "SHOP.svc"] {
        for qtype in ["A", "NS", "SOA", "ANY"] {
            check(&format!("{qtype} {name}"), "NODATA");
        }
    }
}

#[test]
fn names_that_do_not_exist() {
    for name in [
        "nothing",
        "other.svc",
        "web.other.svc",
        "other.shop.svc",
        "web.empty.svc",
        "*.shop.svc",
        "web.shop",
        "x.y.z.web.shop.svc",
        "_x._tcp.web.shop.svc",
    ] {
        for qtype in ["A", "SRV", "TXT", "ANY", "SOA"] {
            check(&format!("{qtype} {name}"), "NXDOMAIN");
        }
    }
}

#[test]
fn types_that_are_not_served_are_empty() {
    for qtype in ["MX", "CNAME", "NS", "SOA", "PTR", "HTTPS", "CAA", "DS", "TYPE65400"] {
        check(&format!("{qtype} web.shop.svc"), "NODATA");
    }
}

#[test]
fn any_is_one_small_record() {
    for name in ["web.shop.svc", "_http._tcp.web.shop.svc", "clusterset.local.", "dns-version"] {
        let given = mesh::given(Some(&mesh(MESH)), "us", &full(name), RecordType::ANY, 0);
        let [record] = &given.answers[..] else { panic!("{given:?}") };
        assert!(matches!(&record.data, RData::HINFO(hinfo) if &*hinfo.cpu == b"RFC8482"));
    }
}

#[test]
fn what_is_not_ours_is_refused() {
    for name in [
        "web.shop.svc.cluster.local.",
        "example.com.",
        ".",
        "local.",
        "xclusterset.local.",
        "1.0.0.10.in-addr.arpa.",
    ] {
        check(&format!("A {name}"), "REFUSED");
    }
    check("AXFR clusterset.local.", "REFUSED");
    check("IXFR clusterset.local.", "REFUSED");
    check("AXFR web.shop.svc", "REFUSED");
}

#[test]
fn other_classes_are_refused() {
    let (name, catalog) = (full("web.shop.svc"), mesh(MESH));
    for class in [DNSClass::CH, DNSClass::HS, DNSClass::ANY, DNSClass::NONE] {
        let question = Question { name: &name, qtype: RecordType::A, class, turn: 0 };
        let given = answer(&Zone::default(), &view("us"), Some(&catalog), &question);
        assert_eq!((given.rcode, given.reason), (ResponseCode::Refused, Reason::OtherClass));
    }
}

#[test]
fn another_zone() {
    let zone: Zone = "Mesh.Example".parse().unwrap();
    let ask = |text: &str| {
        let question =
            Question { name: &full(text), qtype: RecordType::A, class: DNSClass::IN, turn: 0 };
        answer(&zone, &view("us"), Some(&mesh(MESH)), &question)
    };
    assert_eq!(mesh::data(&ask("web.shop.svc.mesh.example.").answers[0]), "10.0.0.1");
    assert_eq!(ask("web.shop.svc").rcode, ResponseCode::Refused);
}
