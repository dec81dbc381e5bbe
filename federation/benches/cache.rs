//! What the disk cache costs: `cargo bench -p tombolo-federation --bench cache`.
//!
//! An image of 100,000 records with three endpoints each is saved and loaded, beside the least that
//! such a program could do with the same bytes: hash, write, sync and rename them; read and hash
//! them. Both take turns.
#![expect(clippy::print_stdout, reason = "a measurement, run by a person")]

use std::fs::File;
use std::hint::black_box;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use tombolo_federation::cache::{Cache, Snapshot};
use tombolo_federation::key::{Key, Kind};
use tombolo_federation::names::{Owner, ServiceKey};
use tombolo_federation::record::{
    Body, Endpoint, EndpointPort, Endpoints, Epoch, Origin, Protocol, Record,
};
use tombolo_federation::replica::{self, Batch, Replica};

const RECORDS: u32 = 100_000;
const ROUNDS: u32 = 11;
const CLUSTERS: u32 = 20;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    // Cargo passes `--bench` when it measures; `cargo test --benches` does not.
    let measures = std::env::args().any(|argument| argument == "--bench");
    let (records, rounds) = if measures { (RECORDS, ROUNDS) } else { (100, 1) };
    let held = held(records)?;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let plain = dir.path().join("plain");
    let mut times: [Vec<Duration>; 5] = Default::default();
    let mut bytes = 0;
    for _ in 0..rounds {
        let (mut cache, _) = Cache::open(dir.path(), "bench");
        cache.proven()?;
        let saved = timed(&mut times[0], || {
            cache.save(&Snapshot::of(Arc::clone(&held)), jiff::Timestamp::UNIX_EPOCH)
        })?;
        bytes = saved.bytes;
        let newest = if saved.generation % 2 == 1 { "image-a" } else { "image-b" };
        let content = std::fs::read(dir.path().join(newest))?;
        timed(&mut times[1], || write(&plain, &content))?;
        // A start reads both images to their ends; here it is the one.
        for name in ["image-a", "image-b"].iter().filter(|name| **name != newest) {
            let _ = std::fs::remove_file(dir.path().join(name));
        }
        let image = timed(&mut times[2], || Cache::open(dir.path(), "bench").1.image);
        let image = image.ok_or("nothing was loaded")?;
        timed(&mut times[3], || {
            let (writer, _replicas) = replica::channel();
            writer.apply(image.into_batch(None), tokio::time::Instant::now());
            black_box(writer.current());
        });
        timed(&mut times[4], || read(&plain))?;
    }
    let [save, least_save, load, restore, least_load] = times.map(median);
    println!("{records} records, {bytes} bytes; milliseconds, p50 of {rounds}");
    show("saved", save, least_save);
    show("  the same bytes hashed, written, synced, renamed", least_save, least_save);
    show("loaded and checked", load, least_load);
    show("  then opened and held, ready to be served", restore, least_load);
    show("  the same bytes read and hashed", least_load, least_load);
    Ok(())
}

fn timed<T>(times: &mut Vec<Duration>, work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let outcome = work();
    times.push(began.elapsed());
    outcome
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn show(what: &str, took: Duration, limit: Duration) {
    let (took, limit) = (took.as_secs_f64() * 1e3, limit.as_secs_f64() * 1e3);
    println!("  {what:<50} {took:>8.1}   {:>5.1} times the limit", took / limit.max(1e-3));
}

fn write(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let aside = path.with_extension("new");
    let mut file = File::create(&aside)?;
    file.write_all(content)?;
    file.write_all(&Sha256::digest(content))?;
    file.sync_all()?;
    std::fs::rename(aside, path)?;
    File::open(path.parent().unwrap_or(path))?.sync_all()
}

fn read(path: &Path) -> std::io::Result<()> {
    let content = std::fs::read(path)?;
    black_box(Sha256::digest(&content));
    Ok(())
}

/// Slices of twenty clusters.
fn held(records: u32) -> Result<Arc<Replica>, Failure> {
    let items = (0..records).map(slice).collect::<Result<_, Failure>>()?;
    let (writer, _replicas) = replica::channel();
    writer.apply(Batch { items, ..Batch::default() }, tokio::time::Instant::now());
    Ok(writer.current())
}

fn slice(number: u32) -> Result<(Key, Option<bytes::Bytes>), Failure> {
    let cluster = format!("us-c{}", number % CLUSTERS);
    let owner = Owner::cluster("us".parse()?, cluster.parse()?);
    let service = ServiceKey { namespace: "shop".parse()?, name: format!("s{number}").parse()? };
    let key = Key::of_service(owner, Kind::Endpoints, &service, Some("slice-1".parse()?));
    let port = EndpointPort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: 80,
        app_protocol: String::new(),
    };
    let endpoint = |index: u32| Endpoint {
        address: std::net::Ipv4Addr::from(0x0a00_0000 + number * 3 + index).into(),
        ready: true,
        serving: true,
        terminating: false,
        was_ready: true,
        zone: "us-z".into(),
        hostname: String::new(),
        node: format!("node-{index}"),
        target: format!("s{number}-{index}"),
        service_account: "default".into(),
        meshed: false,
    };
    let endpoints = (0..3).map(endpoint).collect();
    let epoch = Epoch { id: "0123456789abcdef0123456789abcdef".into(), count: 1 };
    let origin = Origin { epoch, sequence: u64::from(number) + 1, ..Origin::default() };
    let body = Body::Endpoints(Endpoints { ports: vec![port], endpoints });
    let record = Record { key: key.clone(), origin, body };
    Ok((key, Some(record.seal().value)))
}
