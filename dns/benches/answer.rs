//! How many questions a second one core answers, without reading or writing messages:
//! `cargo bench -p tombolo-dns`. Run as a test it asks each question once.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a measurement, run by hand"
)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use hickory_proto::rr::{DNSClass, Name, RecordType};
use tombolo_dns::answer::{Question, answer};
use tombolo_dns::{View, Zone};
use tombolo_federation::catalog::Catalog;

#[path = "../tests/it/mesh.rs"]
#[expect(dead_code, reason = "the builder of the tests, of which one function is used")]
mod mesh;

fn main() {
    // Cargo passes `--bench` when it measures; `cargo test --benches` does not.
    let measures = std::env::args().any(|argument| argument == "--bench");
    let limit = Duration::from_secs(u64::from(measures));
    let (zone, view, catalog) = (Zone::default(), mesh::view("us"), services(1000));
    for (what, name, qtype) in [
        ("A of 3 endpoints", "s500.shop.svc", RecordType::A),
        ("A of 300 endpoints", "crowd.shop.svc", RecordType::A),
        ("SRV of 3 endpoints", "_http._tcp.s500.shop.svc", RecordType::SRV),
        ("no such service", "none.shop.svc", RecordType::A),
        ("another zone", "example.com.", RecordType::A),
    ] {
        let name = mesh::full(name);
        println!("{what}: {} a second", rate(&zone, &view, &catalog, &name, qtype, limit));
    }
}

fn rate(
    zone: &Zone,
    view: &View,
    catalog: &Catalog,
    name: &Name,
    qtype: RecordType,
    limit: Duration,
) -> u128 {
    let started = Instant::now();
    let mut turn = 0;
    loop {
        let question = Question { name, qtype, class: DNSClass::IN, turn };
        black_box(answer(zone, view, Some(catalog), black_box(&question)));
        turn += 1;
        let took = started.elapsed();
        if took >= limit {
            return u128::from(turn) * 1_000_000 / took.as_micros().max(1);
        }
    }
}

fn services(count: u32) -> Catalog {
    let ip = |n: u32| std::net::Ipv4Addr::from(0x0a00_0000 + n);
    let few = (0..count).map(|i| {
        let [a, b, c] = [ip(i * 3), ip(i * 3 + 1), ip(i * 3 + 2)];
        format!(
            "ClusterSetIP shop/s{i} http:80\n us-a {a} http=80\n us-b {b} http=80\n eu-a {c} http=80\n"
        )
    });
    let many = (0..300).map(|i| format!("us-a {} http=80\n", ip(0x0010_0000 + i)));
    let crowd = std::iter::once("ClusterSetIP shop/crowd http:80\n".to_owned()).chain(many);
    mesh::mesh(&few.chain(crowd).collect::<String>())
}
