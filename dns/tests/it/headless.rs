//! Headless services.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use hickory_proto::rr::{RData, RecordType};
use tombolo_dns::answer::MAX_RECORDS;

use crate::mesh;

const DB: &str = "
    Headless shop/db pg:5432 stats:9187
      us-a 10.0.0.1 pg=15432 stats=9187 host=db-0
      us-a fd00::1 pg=15432 stats=9187 host=db-0
      us-b 10.0.1.1 pg=5432 host=db-0
      us-b 10.0.1.2 pg=5432 stats=9187
      us-b 10.0.1.3 pg=5432 stats=9187 not-ready
      eu-a 10.1.0.1 pg=5432 stats=9187 host=db-0";

fn check(text: &str, question: &str, expected: &str) {
    mesh::check(&mesh::mesh(text), "us", question, expected);
}

#[test]
fn ready_endpoints_of_the_nearest_region_whatever_their_ports() {
    check(DB, "A db.shop.svc", "10.0.0.1, 10.0.1.1, 10.0.1.2");
    check(DB, "AAAA db.shop.svc", "fd00::1");
    check(DB, "MX db.shop.svc", "NODATA");
}

#[test]
fn hosts_by_hostname_or_address_in_any_region() {
    check(DB, "A db-0.us-a.db.shop.svc", "10.0.0.1");
    check(DB, "AAAA DB-0.us-a.db.shop.svc", "fd00::1");
    check(DB, "A db-0.us-b.db.shop.svc", "10.0.1.1");
    check(DB, "AAAA db-0.us-b.db.shop.svc", "NODATA");
    check(DB, "A 10-0-1-2.us-b.db.shop.svc", "10.0.1.2");
    check(DB, "A db-0.eu-a.db.shop.svc", "10.1.0.1");
    check(DB, "A 10-0-0-1.us-a.db.shop.svc", "NXDOMAIN");
    check(DB, "A 10-0-1-3.us-b.db.shop.svc", "NXDOMAIN");
    check(DB, "A db-0.ap-a.db.shop.svc", "NXDOMAIN");
}

#[test]
fn two_addresses_under_one_hostname() {
    let text = "
        Headless shop/db
          us-a 10.0.0.1 host=db-0
          us-a 10.0.0.2 host=db-0";
    check(text, "A db-0.us-a.db.shop.svc", "10.0.0.1, 10.0.0.2");
    check(text, "SRV db.shop.svc", "NODATA");
}

#[test]
fn srv_has_one_record_per_endpoint_and_port() {
    check(
        DB,
        "SRV _stats._tcp.db.shop.svc",
        "0 33 9187 10-0-1-2.us-b.db.shop.svc, 0 33 9187 db-0.us-a.db.shop.svc",
    );
    check(
        DB,
        "SRV db.shop.svc",
        "0 25 15432 db-0.us-a.db.shop.svc, 0 25 5432 10-0-1-2.us-b.db.shop.svc, \
         0 25 5432 db-0.us-b.db.shop.svc, 0 33 9187 10-0-1-2.us-b.db.shop.svc, \
         0 33 9187 db-0.us-a.db.shop.svc",
    );
}

#[test]
fn names_between_are_empty_not_absent() {
    for name in ["us-a.db.shop.svc", "us-b.db.shop.svc", "eu-a.db.shop.svc", "_tcp.db.shop.svc"] {
        for qtype in ["A", "SRV", "ANY"] {
            check(DB, &format!("{qtype} {name}"), "NODATA");
        }
    }
    check(DB, "SRV _udp.db.shop.svc", "NXDOMAIN");
}

#[test]
fn without_a_ready_endpoint_it_does_not_exist() {
    let text = "
        Headless shop/db pg:5432
          us-a 10.0.0.1 pg=5432 not-ready host=db-0
          us-a 10.0.0.2 pg=5432 net=elsewhere host=db-1";
    for question in [
        "A db.shop.svc",
        "SRV db.shop.svc",
        "SRV _pg._tcp.db.shop.svc",
        "A _tcp.db.shop.svc",
        "A us-a.db.shop.svc",
        "A db-0.us-a.db.shop.svc",
    ] {
        check(text, question, "NXDOMAIN");
    }
    check(text, "A shop.svc", "NODATA");
}

#[test]
fn a_hostname_that_is_no_label_falls_back_to_the_address() {
    let text = "
        Headless shop/db
          us-a 10.0.0.1 host=not.a.label
          us-a 10.0.0.2 host=DB-7";
    check(text, "A 10-0-0-1.us-a.db.shop.svc", "10.0.0.1");
    check(text, "A db-7.us-a.db.shop.svc", "10.0.0.2");
}

#[test]
fn a_host_that_does_not_fit_into_a_name_does_not_exist() {
    let long = |c: &str| c.repeat(63);
    let (namespace, name, cluster, host) = (long("n"), long("s"), long("c"), long("h"));
    let text =
        format!("Headless {namespace}/{name} p:1\n us-{} 10.0.0.1 p=1 host={host}", &cluster[..60]);
    check(&text, &format!("A {name}.{namespace}.svc"), "10.0.0.1");
    check(&text, &format!("A us-{}.{name}.{namespace}.svc", &cluster[..60]), "NXDOMAIN");
    check(&text, &format!("SRV {name}.{namespace}.svc"), "NODATA");
}

#[test]
fn a_crowd_is_cut_evenly_and_alike_for_both_families() {
    let mut text = "Headless shop/crowd p:1\n".to_owned();
    for i in 0..600_u32 {
        let (cluster, v4) = (["us-a", "us-b", "us-c"][(i / 200) as usize], 0x0a00_0000 + i);
        let v4 = std::net::Ipv4Addr::from(v4);
        writeln!(text, "{cluster} {v4} p=1 host=h{i}").unwrap();
    }
    let catalog = mesh::mesh(&text);
    let name = mesh::full("crowd.shop.svc");
    let given = |turn| mesh::given(Some(&catalog), "us", &name, RecordType::A, turn);
    let all = |turn| given(turn).answers.iter().map(mesh::data).collect::<BTreeSet<_>>();
    assert_eq!(all(0).len(), MAX_RECORDS);
    assert_eq!(all(0), all(1), "the same subset each time");
    for prefix in ["10.0.0.", "10.0.1.", "10.0.2."] {
        assert!(all(0).iter().filter(|ip| ip.starts_with(prefix)).count() > 20, "{prefix}");
    }
    let srv = mesh::given(Some(&catalog), "us", &name, RecordType::SRV, 0);
    assert_eq!(srv.answers.len(), MAX_RECORDS);
}

#[test]
fn the_order_turns() {
    let catalog = mesh::mesh(DB);
    let name = mesh::full("db.shop.svc");
    let first = |turn| {
        let given = mesh::given(Some(&catalog), "us", &name, RecordType::A, turn);
        let RData::A(first) = given.answers[0].data else { panic!("{given:?}") };
        first
    };
    let firsts: BTreeSet<_> = (0..40).map(|turn| first(turn * 2).0).collect();
    assert_eq!(firsts.len(), 3);
}
