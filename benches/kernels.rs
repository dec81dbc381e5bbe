//! What a change and a question cost without network, disk or threads:
//! `cargo bench -p tombolo --bench kernels`.
//!
//! A catalog of 10,000 services, each exported by two clusters with three endpoints each, beside
//! the least that such a program could do: find an entry and copy it. Each sample is the mean of a
//! batch, since one call is shorter than what a clock resolves well.
#![expect(clippy::print_stdout, reason = "a measurement, run by a person")]

use std::collections::HashMap;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use hickory_proto::rr::{DNSClass, Name, RecordType};
use tombolo_dns::answer::{Question, answer};
use tombolo_dns::{View, Zone};
use tombolo_federation::catalog::Catalog;
use tombolo_federation::catalog::builder::Builder;
use tombolo_federation::key::{Key, Kind};
use tombolo_federation::names::{ClusterId, Owner, ServiceKey};
use tombolo_federation::record::{
    Body, Cluster, Endpoint, EndpointPort, Endpoints, Export, IpFamily, Origin, Protocol, Record,
    ServicePort, ServiceType,
};

const SERVICES: u32 = 10_000;
const ENDPOINTS: u32 = 3;
const CLUSTERS: [&str; 2] = ["us-a", "eu-a"];
const BATCHES: u32 = 200;
const BATCH: u32 = 50;

fn main() -> anyhow::Result<()> {
    // Cargo passes `--bench` when it measures; `cargo test --benches` does not.
    let measures = std::env::args().any(|argument| argument == "--bench");
    let (services, batches) = if measures { (SERVICES, BATCHES) } else { (10, 1) };
    println!("{services} services; microseconds: count, p50, p99, max");
    let mut mesh = Mesh::new(services)?;
    let started = Instant::now();
    let catalog = mesh.builder.snapshot().context("a catalog")?;
    println!("  the first catalog, {services} services merged: {:?} in all", started.elapsed());
    change(&mut mesh, batches)?;
    question(&mesh, &catalog, batches)
}

/// One slice of one service is another: taken in, merged, a new snapshot.
fn change(mesh: &mut Mesh, batches: u32) -> anyhow::Result<()> {
    let mut turn = 0;
    let mut changes = || {
        turn += 1;
        (turn * 7919 % mesh.services, turn)
    };
    let mut prepared = Vec::new();
    for _ in 0..batches * BATCH {
        let (service, stamp) = changes();
        prepared.push(slice(CLUSTERS[0], service, stamp)?);
    }
    let mut prepared = prepared.into_iter();
    let ours = sample(batches, || {
        mesh.builder.apply(prepared.next());
        black_box(mesh.builder.snapshot());
    });
    let mut entries: HashMap<ServiceKey, Arc<[Endpoint]>> = HashMap::new();
    for service in 0..mesh.services {
        let all = [endpoints(CLUSTERS[0], service, 0), endpoints(CLUSTERS[1], service, 0)].concat();
        entries.insert(named(service)?, all.into());
    }
    let keys: Vec<_> = (0..mesh.services).map(named).collect::<anyhow::Result<_>>()?;
    let mut next = keys.iter().cycle();
    let limit = sample(batches, || {
        if let Some(held) = next.next().and_then(|key| entries.get_mut(key)) {
            *held = held.iter().cloned().collect();
        }
    });
    report(
        "one slice changed: merged, new snapshot",
        &ours,
        "one entry found, its endpoints copied",
        &limit,
    );
    Ok(())
}

/// The A records of one name.
fn question(mesh: &Mesh, catalog: &Catalog, batches: u32) -> anyhow::Result<()> {
    let zone = Zone::default();
    let view = View::Endpoints {
        region: "us".parse()?,
        cluster: Some(CLUSTERS[0].parse()?),
        zone: None,
        network: "vpc".to_owned(),
    };
    let texts: Vec<String> = (0..mesh.services)
        .map(|service| format!("s{service}.shop.svc.clusterset.local."))
        .collect();
    let names: Vec<Name> = texts.iter().map(Name::from_ascii).collect::<Result<_, _>>()?;
    let first = Question { name: &names[0], qtype: RecordType::A, class: DNSClass::IN, turn: 0 };
    let found = answer(&zone, &view, Some(catalog), &first).answers.len();
    anyhow::ensure!(
        found == usize::try_from(ENDPOINTS)?,
        "{found} addresses instead of {ENDPOINTS}"
    );
    let mut turn = 0;
    let mut next = names.iter().cycle();
    let ours = sample(batches, || {
        turn += 1;
        if let Some(name) = next.next() {
            let question = Question { name, qtype: RecordType::A, class: DNSClass::IN, turn };
            black_box(answer(&zone, &view, Some(catalog), black_box(&question)));
        }
    });
    // A ready answer: header, question, and 16 bytes for each address behind a pointer.
    let ready: HashMap<Vec<u8>, Vec<u8>> = texts
        .iter()
        .map(|text| (text.clone().into_bytes(), vec![7; text.len() + 18 + 16 * 3]))
        .collect();
    let (mut next, mut out) = (texts.iter().cycle(), Vec::with_capacity(512));
    let limit = sample(batches, || {
        out.clear();
        if let Some(ready) = next.next().and_then(|text| ready.get(black_box(text.as_bytes()))) {
            out.extend_from_slice(ready);
        }
        black_box(&out);
    });
    report(
        "one question answered, not encoded",
        &ours,
        "one ready answer found and copied",
        &limit,
    );
    Ok(())
}

/// Mean durations of one call, sorted.
fn sample(batches: u32, mut call: impl FnMut()) -> Vec<Duration> {
    let mut samples: Vec<Duration> = (0..batches)
        .map(|_| {
            let started = Instant::now();
            (0..BATCH).for_each(|_| call());
            started.elapsed() / BATCH
        })
        .collect();
    samples.sort_unstable();
    samples
}

fn report(what: &str, ours: &[Duration], least: &str, limit: &[Duration]) {
    let at = |samples: &[Duration], percent: usize| {
        let rank = (samples.len() * percent).div_ceil(100).max(1);
        samples.get(rank - 1).copied().unwrap_or_default().as_secs_f64() * 1e6
    };
    for (what, samples) in [(what, ours), (least, limit)] {
        let [p50, p99, max] = [50, 99, 100].map(|percent| at(samples, percent));
        println!("  {what:<40} {:>5} {p50:>8.3} {p99:>8.3} {max:>8.3}", samples.len());
    }
    println!("  times that limit: {:.1} (p50)", at(ours, 50) / at(limit, 50).max(1e-3));
}

/// Records of a mesh, taken in and not merged yet.
struct Mesh {
    builder: Builder,
    services: u32,
}

impl Mesh {
    fn new(services: u32) -> anyhow::Result<Self> {
        let mut builder = Builder::new();
        builder.set_complete(true);
        for cluster in CLUSTERS {
            let body = Cluster { uid: cluster.into(), network: "vpc".into(), ..Cluster::default() };
            let key = Key::of_owner(owner(cluster)?, Kind::Cluster);
            builder.apply([record(key, Body::Cluster(body))]);
            for service in 0..services {
                let key = Key::of_service(owner(cluster)?, Kind::Export, &named(service)?, None);
                builder.apply([record(key, Body::Export(export())), slice(cluster, service, 0)?]);
            }
        }
        Ok(Self { builder, services })
    }
}

type Change = (Key, Option<Arc<Record>>);

fn record(key: Key, body: Body) -> Change {
    (key.clone(), Some(Arc::new(Record { key, origin: Origin::default(), body })))
}

fn owner(cluster: &str) -> anyhow::Result<Owner> {
    let region = cluster.split('-').next().unwrap_or(cluster);
    Ok(Owner::cluster(region.parse()?, cluster.parse::<ClusterId>()?))
}

fn named(service: u32) -> anyhow::Result<ServiceKey> {
    Ok(ServiceKey { namespace: "shop".parse()?, name: format!("s{service}").parse()? })
}

fn slice(cluster: &str, service: u32, stamp: u32) -> anyhow::Result<Change> {
    let name = Some("slice-1".parse()?);
    let key = Key::of_service(owner(cluster)?, Kind::Endpoints, &named(service)?, name);
    let port = EndpointPort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: 80,
        app_protocol: String::new(),
    };
    let endpoints = endpoints(cluster, service, stamp);
    Ok(record(key, Body::Endpoints(Endpoints { ports: vec![port], endpoints })))
}

/// The first one's address carries the stamp.
fn endpoints(cluster: &str, service: u32, stamp: u32) -> Vec<Endpoint> {
    let of_cluster = if cluster == CLUSTERS[0] { 0x0a00_0000 } else { 0x0b00_0000 };
    let address = |index: u32| {
        let stamped = if index == 0 && stamp > 0 { 0x0080_0000 + stamp } else { 0 };
        let plain = service * ENDPOINTS + index;
        IpAddr::V4(Ipv4Addr::from(of_cluster + if stamped > 0 { stamped } else { plain }))
    };
    let endpoint = |index| Endpoint {
        address: address(index),
        ready: true,
        serving: true,
        terminating: false,
        was_ready: true,
        zone: format!("{cluster}-z"),
        hostname: String::new(),
        node: format!("node-{index}"),
        target: format!("s{service}-{index}"),
        service_account: "default".into(),
        meshed: false,
    };
    (0..ENDPOINTS).map(endpoint).collect()
}

fn export() -> Export {
    let port = ServicePort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: 80,
        app_protocol: String::new(),
    };
    Export {
        service_type: ServiceType::ClusterSetIP,
        ports: vec![port],
        session_affinity: String::new(),
        session_affinity_timeout: None,
        internal_traffic_policy: String::new(),
        traffic_distribution: String::new(),
        ip_families: vec![IpFamily::V4],
        created: None,
        precedence: jiff::Timestamp::UNIX_EPOCH,
        exported_labels: std::collections::BTreeMap::new(),
        exported_annotations: std::collections::BTreeMap::new(),
    }
}
