//! Catalogs from text, and the one door to `answer`.
//!
//! ```text
//! distance us eu 10                          the region us declares eu to be 10 away
//! namespace shop
//! ClusterSetIP shop/web http:80 dns:53/UDP   a service and its ports; a lone number is unnamed
//!   us-a 10.0.0.1 http=80 dns=5353/UDP       an endpoint of cluster us-a, region us
//!   us-a 10.0.0.2 =80 not-ready terminating host=db-0 net=other
//!   us-a 10.0.0.3 =80 degraded               unready says a cluster that is suspect
//!   exports us-b http web:80                 us-b exposes http as above, and a port of its own
//! ```

use std::sync::Arc;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{DNSClass, Name, RData, Record as Resource, RecordType};
use tombolo_dns::answer::{Answer, Question, answer};
use tombolo_dns::{View, Zone};
use tombolo_federation::catalog::{Catalog, Endpoint, Service, ServiceExport};
use tombolo_federation::names::{ClusterId, RegionName, ServiceKey};
use tombolo_federation::record::{self, EndpointPort, Protocol, ServicePort, ServiceType};

/// A complete catalog of what `text` says.
pub(crate) fn mesh(text: &str) -> Catalog {
    let mut catalog = Catalog::empty();
    catalog.generation = 7;
    catalog.complete = true;
    let mut service: Option<Service> = None;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[0] {
            "distance" => distance(&mut catalog, words[1], words[2], words[3]),
            "namespace" => {
                let clusters = Arc::new(["us-a".parse().unwrap()].into());
                catalog.namespaces.insert_mut(words[1].parse().unwrap(), clusters);
            }
            "ClusterSetIP" | "Headless" => add(&mut catalog, service.replace(head(&words))),
            "exports" => expose(service.as_mut().unwrap(), words[1], &words[2..]),
            _ => endpoint(service.as_mut().unwrap(), &words),
        }
    }
    add(&mut catalog, service);
    catalog
}

/// Like [`mesh`], of a catalog that does not hold everything yet.
pub(crate) fn incomplete(text: &str) -> Catalog {
    let mut catalog = mesh(text);
    catalog.complete = false;
    catalog
}

/// The view of a client in `region`, network `vpc`.
pub(crate) fn view(region: &str) -> View {
    View::Endpoints {
        region: region.parse().unwrap(),
        cluster: Some(format!("{region}-a").parse().unwrap()),
        zone: None,
        network: "vpc".to_owned(),
    }
}

/// Asks `question` (`TYPE name`, below the zone unless it ends with a dot) and compares.
pub(crate) fn check(catalog: &Catalog, region: &str, question: &str, expected: &str) {
    assert_eq!(ask(Some(catalog), region, question), expected, "{question} from {region}");
}

/// `NODATA`, another code, or the sorted data of all answers; names without the zone.
pub(crate) fn ask(catalog: Option<&Catalog>, region: &str, question: &str) -> String {
    let (qtype, name) = question.split_once(' ').unwrap();
    let name = full(name);
    let given = given(catalog, region, &name, record_type(qtype), 0);
    hold_to_rules(&given, &name);
    match given.rcode {
        ResponseCode::NoError if given.answers.is_empty() => "NODATA".to_owned(),
        ResponseCode::NoError => {
            let mut data: Vec<String> = given.answers.iter().map(data).collect();
            data.sort();
            data.join(", ")
        }
        ResponseCode::NXDomain => "NXDOMAIN".to_owned(),
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        ResponseCode::Refused => "REFUSED".to_owned(),
        other => other.to_string(),
    }
}

fn record_type(text: &str) -> RecordType {
    match text.strip_prefix("TYPE") {
        Some(number) => RecordType::from(number.parse::<u16>().unwrap()),
        None if text == "IXFR" => RecordType::IXFR,
        None => text.parse().unwrap(),
    }
}

/// The answer itself.
pub(crate) fn given(
    catalog: Option<&Catalog>,
    region: &str,
    name: &Name,
    qtype: RecordType,
    turn: u64,
) -> Answer {
    let question = Question { name, qtype, class: DNSClass::IN, turn };
    answer(&Zone::default(), &view(region), catalog, &question)
}

/// The name in full.
pub(crate) fn full(name: &str) -> Name {
    let text = match name.strip_suffix('.') {
        Some(_) => name.to_owned(),
        None => format!("{name}.clusterset.local."),
    };
    Name::from_ascii(text).unwrap()
}

/// A record's data, names without the zone.
pub(crate) fn data(record: &Resource) -> String {
    record.data.to_string().replace(".clusterset.local.", "").trim_matches('"').to_owned()
}

/// What holds for every answer, whatever was asked (RFC 2308).
fn hold_to_rules(given: &Answer, asked: &Name) {
    for record in &given.answers {
        assert!(record.name.eq_case(asked), "{} echoes {asked}", record.name);
    }
    for record in given.answers.iter().chain(&given.authority).chain(&given.additionals) {
        assert_eq!((record.ttl, record.dns_class), (5, DNSClass::IN));
    }
    let decided = matches!(given.rcode, ResponseCode::NoError | ResponseCode::NXDomain);
    assert_eq!(given.authoritative, decided);
    let negative = decided && given.answers.is_empty();
    assert_eq!(given.authority.len(), usize::from(negative));
    for soa in &given.authority {
        let RData::SOA(data) = &soa.data else { panic!("{soa} is no SOA") };
        assert_eq!((soa.name.to_ascii().as_str(), data.minimum), ("clusterset.local.", 5));
    }
}

fn distance(catalog: &mut Catalog, from: &str, to: &str, far: &str) {
    let from: RegionName = from.parse().unwrap();
    let mut region = catalog.regions.get(&from).map(|held| (**held).clone()).unwrap_or_default();
    region.distances.insert(to.parse().unwrap(), far.parse().unwrap());
    catalog.regions.insert_mut(from, Arc::new(region));
}

fn add(catalog: &mut Catalog, service: Option<Service>) {
    let Some(mut service) = service else { return };
    service.endpoints.sort();
    catalog.services.insert_mut(service.key.clone(), Arc::new(service));
}

fn head(words: &[&str]) -> Service {
    let (namespace, name) = words[1].split_once('/').unwrap();
    let key = ServiceKey { namespace: namespace.parse().unwrap(), name: name.parse().unwrap() };
    let service_type = match words[0] {
        "Headless" => ServiceType::Headless,
        _ => ServiceType::ClusterSetIP,
    };
    Service {
        key,
        service_type,
        ports: words[2..].iter().map(|text| service_port(text)).collect(),
        session_affinity: String::new(),
        session_affinity_timeout: None,
        internal_traffic_policy: String::new(),
        traffic_distribution: String::new(),
        ip_families: Vec::new(),
        labels: std::collections::BTreeMap::new(),
        annotations: std::collections::BTreeMap::new(),
        conflicts: Vec::new(),
        exports: Vec::new(),
        endpoints: Vec::new(),
    }
}

fn service_port(text: &str) -> ServicePort {
    let (name, rest) = text.split_once(':').unwrap_or(("", text));
    let (port, protocol) = number(rest);
    ServicePort { name: name.to_owned(), protocol, port, app_protocol: String::new() }
}

fn number(text: &str) -> (u16, Protocol) {
    let (port, protocol) = text.split_once('/').unwrap_or((text, ""));
    (port.parse().unwrap(), Protocol::parse(protocol).unwrap())
}

fn region_of(cluster: &str) -> RegionName {
    cluster.split('-').next().unwrap().parse().unwrap()
}

fn export<'s>(service: &'s mut Service, cluster: &str) -> &'s mut ServiceExport {
    let id: ClusterId = cluster.parse().unwrap();
    if !service.exports.iter().any(|export| export.cluster == id) {
        service.exports.push(ServiceExport {
            cluster: id.clone(),
            region: region_of(cluster),
            precedence: jiff::Timestamp::UNIX_EPOCH,
            ports: service.ports.clone(),
        });
    }
    service.exports.iter_mut().find(|export| export.cluster == id).unwrap()
}

fn expose(service: &mut Service, cluster: &str, ports: &[&str]) {
    let of_service = service.ports.clone();
    let port = |text: &&str| {
        let merged = of_service.iter().find(|port| port.name == **text).cloned();
        merged.unwrap_or_else(|| service_port(text))
    };
    export(service, cluster).ports = ports.iter().map(port).collect();
}

fn endpoint(service: &mut Service, words: &[&str]) {
    let find = |prefix: &str| words.iter().find_map(|word| word.strip_prefix(prefix));
    export(service, words[0]);
    let ports = words[2..].iter().filter_map(|word| {
        let (name, rest) = word.split_once('=')?;
        if ["host", "net"].contains(&name) {
            return None;
        }
        let (port, protocol) = number(rest);
        Some(EndpointPort { name: name.to_owned(), protocol, port, app_protocol: String::new() })
    });
    service.endpoints.push(Endpoint {
        cluster: words[0].parse().unwrap(),
        region: region_of(words[0]),
        network: find("net=").unwrap_or("vpc").into(),
        ports: ports.collect(),
        degraded: words.contains(&"degraded"),
        endpoint: record::Endpoint {
            address: words[1].parse().unwrap(),
            ready: !words.contains(&"not-ready") && !words.contains(&"degraded"),
            serving: true,
            terminating: words.contains(&"terminating"),
            was_ready: true,
            zone: String::new(),
            hostname: find("host=").unwrap_or_default().to_owned(),
            node: String::new(),
            target: String::new(),
            service_account: String::new(),
            meshed: false,
        },
    });
}
