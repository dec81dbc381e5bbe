//! Cases are written as services with the numbers of their endpoints, `web=1..30 cart=1,2 empty=`.
//! A number stands for an address, `-` after it for one that is not ready, `~` for one that
//! terminates; `cart/b=3` is a second slice of `cart`, and `!cart` leaves out its export.

mod properties;
mod rules;
mod suspicion;

use jiff::Timestamp;

use super::*;
use crate::names::Owner;
use crate::record::{self, Endpoint, Endpoints, Export, IpFamily, ServiceType};

const MINUTE: Duration = Duration::from_mins(1);

fn owner() -> Owner {
    "r/r-a".parse().unwrap()
}

fn service_key(name: &str) -> ServiceKey {
    ServiceKey { namespace: "shop".parse().unwrap(), name: name.parse().unwrap() }
}

fn key_of(kind: Kind, service: &str, part: Option<&str>) -> Key {
    let part = part.map(|part| part.parse().unwrap());
    Key::of_service(owner(), kind, &service_key(service), part)
}

fn address(number: u32) -> std::net::IpAddr {
    std::net::Ipv4Addr::from(0x0a00_0000 + number).into()
}

fn export() -> Export {
    Export {
        service_type: ServiceType::ClusterSetIP,
        ports: Vec::new(),
        session_affinity: String::new(),
        session_affinity_timeout: None,
        internal_traffic_policy: String::new(),
        traffic_distribution: String::new(),
        ip_families: vec![IpFamily::V4],
        created: None,
        precedence: Timestamp::UNIX_EPOCH,
        exported_labels: BTreeMap::new(),
        exported_annotations: BTreeMap::new(),
    }
}

fn endpoint(text: &str) -> Endpoint {
    let number = text.trim_end_matches(['-', '~']).parse().unwrap();
    let ready = !text.contains('-');
    Endpoint {
        address: address(number),
        ready,
        serving: ready,
        terminating: text.contains('~'),
        was_ready: true,
        zone: String::new(),
        hostname: String::new(),
        node: String::new(),
        target: String::new(),
        service_account: String::new(),
        meshed: false,
    }
}

fn numbers(text: &str) -> Vec<Endpoint> {
    let each = |word: &str| match word.split_once("..") {
        None => vec![endpoint(word)],
        Some((first, last)) => {
            let mark = last.trim_start_matches(|c: char| c.is_ascii_digit());
            let last: u32 = last.trim_end_matches(['-', '~']).parse().unwrap();
            let first: u32 = first.parse().unwrap();
            (first..=last).map(|number| endpoint(&format!("{number}{mark}"))).collect()
        }
    };
    text.split(',').filter(|word| !word.is_empty()).flat_map(each).collect()
}

fn records(text: &str) -> Records {
    let mut records = Records::new();
    let mut without = Vec::new();
    for word in text.split_whitespace() {
        let Some((name, endpoints)) = word.split_once('=') else {
            without.push(key_of(Kind::Export, word.trim_start_matches('!'), None));
            continue;
        };
        let (service, part) = name.split_once('/').unwrap_or((name, "a"));
        let slice = Endpoints { ports: Vec::new(), endpoints: numbers(endpoints) };
        let key = key_of(Kind::Endpoints, service, Some(part));
        records.insert(key, Arc::new(Body::Endpoints(slice)));
        let key = key_of(Kind::Export, service, None);
        records.insert(key, Arc::new(Body::Export(export())));
    }
    if !records.is_empty() {
        records.insert(namespace(), Arc::new(Body::Namespace(record::Namespace::default())));
    }
    records.retain(|key, _| !without.contains(key));
    records
}

fn namespace() -> Key {
    Key::of_namespace(owner(), &"shop".parse().unwrap())
}

/// What is there, in the language of the cases: services with what their slices hold.
fn shown(records: &Records) -> String {
    let mut services: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, body) in records {
        let Some(service) = key.service() else { continue };
        let numbers = services.entry(service.name.to_string()).or_default();
        if let Body::Endpoints(slice) = &**body {
            numbers.extend(slice.endpoints.iter().map(|endpoint| {
                let std::net::IpAddr::V4(v4) = endpoint.address else { panic!("{endpoint:?}") };
                (u32::from(v4) - 0x0a00_0000).to_string()
            }));
        }
    }
    let mut words = Vec::new();
    for (name, mut numbers) in services {
        numbers.sort_by_key(|number| number.parse::<u32>().unwrap());
        words.push(format!("{name}={}", numbers.join(",")));
    }
    words.join(" ")
}

fn nothing(_: &Loss) -> Option<Explanation> {
    None
}

/// A guard, what it let be published, and a clock.
struct Bench {
    guard: Guard,
    published: Records,
    now: Instant,
    listings: u64,
    connection: u64,
    approved: BTreeSet<String>,
}

impl Bench {
    fn new(text: &str) -> Self {
        let guard = Guard::new(Settings::default(), Epoch { id: "e".into(), count: 1 });
        // Far from the beginning of monotonic time, so that a window fits before it.
        let now = Instant::now() + Duration::from_hours(24);
        let (published, approved) = (records(text), BTreeSet::new());
        let mut bench = Self { guard, published, now, listings: 0, connection: 0, approved };
        let verdict = bench.sees(text);
        assert!(verdict.holds.is_empty() && verdict.removals.is_empty(), "{verdict:?}");
        bench
    }

    fn later(&mut self, time: Duration) -> &mut Self {
        self.now += time;
        self
    }

    fn decide(
        &mut self,
        wanted: &Records,
        blank: Option<&str>,
        listed: bool,
        explains: &dyn Fn(&Loss) -> Option<Explanation>,
    ) -> Verdict {
        self.listings += u64::from(listed);
        let listing = listed.then_some(Listing {
            id: self.listings,
            connection: self.connection,
            at: self.now,
        });
        let sight = Sight { wanted, listing, blank, settled: true, explains };
        let wall = Timestamp::UNIX_EPOCH;
        let verdict = self.guard.decide(&self.published, &sight, &self.approved, self.now, wall);
        self.published = verdict.publish.clone();
        verdict
    }

    /// A change in what a watch shows, without explanation.
    fn sees(&mut self, text: &str) -> Verdict {
        self.decide(&records(text), None, false, &nothing)
    }

    /// The same, all of it explained.
    fn knows(&mut self, text: &str) -> Verdict {
        let document = |_: &Loss| Some(Explanation::DocumentRemoved);
        self.decide(&records(text), None, false, &document)
    }

    /// A new complete listing on a new connection, without explanation.
    fn lists(&mut self, text: &str) -> Verdict {
        self.connection += 1;
        self.decide(&records(text), None, true, &nothing)
    }

    /// A source in the middle of a change.
    fn glances(&mut self, text: &str) -> Verdict {
        let wanted = records(text);
        let document = |_: &Loss| Some(Explanation::DocumentRemoved);
        let sight = Sight {
            wanted: &wanted,
            listing: None,
            blank: None,
            settled: false,
            explains: &document,
        };
        let wall = Timestamp::UNIX_EPOCH;
        let verdict = self.guard.decide(&self.published, &sight, &self.approved, self.now, wall);
        self.published = verdict.publish.clone();
        verdict
    }

    fn loses_sight(&mut self, why: &str) -> Verdict {
        self.decide(&Records::new(), Some(why), false, &nothing)
    }

    fn approve(&mut self, id: &str) -> &mut Self {
        self.approved.insert(id.to_owned());
        self
    }

    #[track_caller]
    fn shows(&self, text: &str) {
        assert_eq!(shown(&self.published), shown(&records(text)));
    }
}

/// One step from what is published to what is seen, `explained` naming the numbers that are.
#[track_caller]
fn check(published: &str, wanted: &str, explained: &[u32], expected: &str) {
    let mut bench = Bench::new(published);
    let explains = |loss: &Loss| match loss {
        Loss::Endpoint(_, lost) if explained.iter().any(|number| address(*number) == *lost) => {
            Some(Explanation::Pod { uid: "p".into(), end: PodEnd::Terminating })
        }
        _ => None,
    };
    let verdict = bench.decide(&records(wanted), None, false, &explains);
    assert_eq!(shown(&verdict.publish), shown(&records(expected)), "{:?}", verdict.holds);
}
