//! Cases are written as `cluster word word | cluster word`, a word being `@precedence`, a
//! `field=value` or `-export`; expectations as `field=value` words, and the conflicts by name.

use proptest::prelude::*;

use super::super::Endpoint;
use super::super::arbitrary::{self, plain_export, ready_endpoint};
use super::*;
use crate::record::{self, EndpointPort, IpFamily, Protocol, ServicePort, ServiceType};

/// What one cluster says, owned.
#[derive(Debug, Clone)]
struct Said {
    cluster: ClusterId,
    region: RegionName,
    network: Option<Arc<str>>,
    suspect: bool,
    export: Option<Export>,
    slices: Vec<Endpoints>,
}

impl Said {
    fn source(&self) -> Source<'_> {
        Source {
            cluster: &self.cluster,
            region: &self.region,
            network: self.network.as_ref(),
            suspect: self.suspect,
            export: self.export.as_ref(),
            slices: self.slices.iter().collect(),
        }
    }
}

fn merged(said: &[Said]) -> Option<Service> {
    let key = ServiceKey { namespace: "shop".parse().unwrap(), name: "checkout".parse().unwrap() };
    merge(&key, &said.iter().map(Said::source).collect::<Vec<_>>())
}

fn check(case: &str, expected: &str) {
    let said: Vec<Said> = case.split('|').map(read).collect();
    let service = merged(&said).unwrap_or_else(|| panic!("{case}: nothing merged"));
    let (fields, conflicts): (Vec<&str>, Vec<&str>) =
        expected.split_whitespace().partition(|word| word.contains('='));
    for field in fields {
        let (name, value) = field.split_once('=').unwrap();
        assert_eq!(shown(&service, name), value, "{name} of {case}");
    }
    let raised: Vec<_> = service.conflicts.iter().map(|conflict| conflict.reason).collect();
    assert_eq!(raised, conflicts, "{case}");
}

fn read(cluster: &str) -> Said {
    let mut words = cluster.split_whitespace();
    let mut said = Said {
        cluster: words.next().unwrap().parse().unwrap(),
        region: "r".parse().unwrap(),
        network: Some("one".into()),
        suspect: false,
        export: Some(plain_export()),
        slices: Vec::new(),
    };
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("-export", _) => said.export = None,
            ("region", name) => said.region = name.parse().unwrap(),
            ("net", "-") => said.network = None,
            ("net", name) => said.network = Some(name.into()),
            ("suspect", _) => said.suspect = true,
            ("slice", text) => said.slices.push(slice(text)),
            (field, value) => set(said.export.as_mut().unwrap(), field, value),
        }
    }
    said
}

fn set(export: &mut Export, field: &str, value: &str) {
    match field {
        "type" if value == "Headless" => export.service_type = ServiceType::Headless,
        "ports" => export.ports = value.split(',').map(service_port).collect(),
        "affinity" => export.session_affinity = value.to_owned(),
        "timeout" => export.session_affinity_timeout = Some(value.parse().unwrap()),
        "policy" => export.internal_traffic_policy = value.to_owned(),
        "distribution" => export.traffic_distribution = value.to_owned(),
        "families" => export.ip_families = value.split_terminator(',').map(family).collect(),
        "labels" => export.exported_labels = pairs(value),
        "annotations" => export.exported_annotations = pairs(value),
        at => export.precedence = seconds(at.strip_prefix('@').unwrap()),
    }
}

fn seconds(text: &str) -> jiff::Timestamp {
    jiff::Timestamp::from_second(text.parse().unwrap()).unwrap()
}

fn family(text: &str) -> IpFamily {
    if text == "4" { IpFamily::V4 } else { IpFamily::V6 }
}

fn pairs(text: &str) -> BTreeMap<String, String> {
    let pair = |text: &str| text.split_once(':').map(|(k, v)| (k.to_owned(), v.to_owned()));
    text.split_terminator(',').filter_map(pair).collect()
}

/// `name:number[/protocol[/application protocol]]`
fn service_port(text: &str) -> ServicePort {
    let (name, rest) = text.split_once(':').unwrap();
    let mut rest = rest.split('/');
    ServicePort {
        name: name.to_owned(),
        port: rest.next().unwrap().parse().unwrap(),
        protocol: Protocol::parse(rest.next().unwrap_or("TCP")).unwrap(),
        app_protocol: rest.next().unwrap_or_default().to_owned(),
    }
}

/// `name:number,..;address/conditions/target,..`, conditions being letters of `rstw`.
fn slice(text: &str) -> Endpoints {
    let (ports, endpoints) = text.split_once(';').unwrap();
    let port = |text: &str| {
        let ServicePort { name, protocol, port, app_protocol } = service_port(text);
        EndpointPort { name, protocol, port, app_protocol }
    };
    let endpoint = |text: &str| {
        let words: Vec<&str> = text.split('/').collect();
        let conditions = words.get(1).copied().unwrap_or("rsw");
        record::Endpoint {
            ready: conditions.contains('r'),
            serving: conditions.contains('s'),
            terminating: conditions.contains('t'),
            was_ready: conditions.contains('w'),
            target: words.get(2).copied().unwrap_or_default().to_owned(),
            ..ready_endpoint(words[0])
        }
    };
    Endpoints {
        ports: ports.split_terminator(',').map(port).collect(),
        endpoints: endpoints.split(',').map(endpoint).collect(),
    }
}

fn shown(service: &Service, field: &str) -> String {
    let joined = |parts: Vec<String>| parts.join(",");
    match field {
        "type" => service.service_type.to_string(),
        "ports" => joined(service.ports.iter().map(shown_port).collect()),
        "affinity" => service.session_affinity.clone(),
        "timeout" => service.session_affinity_timeout.map_or("-".into(), |t| t.to_string()),
        "policy" => service.internal_traffic_policy.clone(),
        "distribution" => service.traffic_distribution.clone(),
        "families" => joined(service.ip_families.iter().map(|f| f.as_str().to_owned()).collect()),
        "labels" => joined(service.labels.iter().map(|(k, v)| format!("{k}:{v}")).collect()),
        "annotations" => {
            joined(service.annotations.iter().map(|(k, v)| format!("{k}:{v}")).collect())
        }
        "exports" => joined(service.exports.iter().map(|e| e.cluster.to_string()).collect()),
        "endpoints" => joined(service.endpoints.iter().map(shown_endpoint).collect()),
        _ => panic!("no field {field}"),
    }
}

fn shown_port(port: &ServicePort) -> String {
    match port.protocol {
        Protocol::Tcp => format!("{}:{}", port.name, port.port),
        other => format!("{}:{}/{other}", port.name, port.port),
    }
}

/// `cluster/address/conditions[/target]:ports`
fn shown_endpoint(endpoint: &Endpoint) -> String {
    let record::Endpoint { address, ready, serving, terminating, was_ready, target, .. } =
        &endpoint.endpoint;
    let flags = [(ready, 'r'), (serving, 's'), (terminating, 't'), (was_ready, 'w')];
    let flags = flags.into_iter().chain([(&endpoint.degraded, 'd')]);
    let conditions: String = flags.filter(|(set, _)| **set).map(|(_, c)| c).collect();
    let target = if target.is_empty() { String::new() } else { format!("/{target}") };
    let ports: Vec<_> = endpoint.ports.iter().map(|p| format!("{}.{}", p.name, p.port)).collect();
    format!("{}/{address}/{conditions}{target}:{}", endpoint.cluster, ports.join("+"))
}

#[test]
fn without_exports_there_is_no_service() {
    assert_eq!(merged(&[]), None);
    assert_eq!(merged(&[read("a -export slice=http:80;10.0.0.1")]), None);
}

#[test]
fn older_exports_come_first_and_ties_go_by_cluster_id() {
    check("a @2 | b @1", "exports=b,a");
    check("b @1 | a @1", "exports=a,b");
    check("a @1 | b -export | c @2", "exports=a,c");
}

#[test]
fn one_id_in_two_regions_counts_for_the_first_region() {
    check(
        "us-west1-a @1 region=us-west1 type=Headless | us-west1-a @2 region=us",
        "type=ClusterSetIP exports=us-west1-a",
    );
}

#[test]
fn ports_are_united_by_name_then_by_number() {
    check("a ports=http:80,dns:53/UDP | b ports=dns:53/UDP,http:80", "ports=http:80,dns:53/UDP");
    check("a @1 ports=t:42 | b @2 ports=t:42,s:142/SCTP", "ports=t:42,s:142/SCTP PortConflict");
    check("a @2 ports=http:80 | b @1 ports=http:8080", "ports=http:8080 PortConflict");
    check("a @1 ports=web:80 | b @2 ports=http:80", "ports=web:80 PortConflict");
    check("a @1 ports=dns:53 | b @2 ports=udp:53/UDP", "ports=dns:53,udp:53/UDP PortConflict");
    check("a @1 ports=:80 | b @2 ports=:81", "ports=:80 PortConflict");
    check("a @1 ports=:80 | b @2 ports=http:81", "ports=:80,http:81 PortConflict");
    check("a ports=http:80 | b ports=http:80/TCP/h2c", "ports=http:80 PortConflict");
}

#[test]
fn a_port_that_loses_by_number_has_taken_its_name() {
    check("a @1 ports=x:80 | b @2 ports=y:80 | c @3 ports=y:81", "ports=x:80 PortConflict");
}

#[test]
fn the_oldest_export_wins_each_field_whole() {
    check("a @1 | b @2 type=Headless", "type=ClusterSetIP TypeConflict");
    check("a @2 | b @1 type=Headless", "type=Headless TypeConflict");
    check(
        "a @1 distribution=PreferClose | b @2",
        "distribution=PreferClose TrafficDistributionConflict",
    );
    check("a @1 | b @2 distribution=PreferClose", "distribution= TrafficDistributionConflict");
    check("a @1 policy=Local | b @2", "policy=Local InternalTrafficPolicyConflict");
    check("a @1 policy=Cluster | b @2", "policy=");
}

#[test]
fn affinity_and_its_timeout_come_from_one_export() {
    check(
        "a @1 affinity=ClientIP timeout=10 | b @2",
        "affinity=ClientIP timeout=10 SessionAffinityConfigConflict SessionAffinityConflict",
    );
    check(
        "a @1 | b @2 affinity=ClientIP timeout=10",
        "affinity= timeout=- SessionAffinityConfigConflict SessionAffinityConflict",
    );
    check(
        "a @1 affinity=ClientIP timeout=9 | b @2 affinity=ClientIP timeout=10",
        "affinity=ClientIP timeout=9 SessionAffinityConfigConflict",
    );
    check("a @1 affinity=ClientIP | b @2 affinity=ClientIP timeout=10800", "timeout=-");
    check("a @1 affinity=None timeout=5 | b @2", "affinity= timeout=-");
}

#[test]
fn maps_are_never_mixed() {
    check("a @1 labels=x:1 | b @2 labels=x:1,y:2", "labels=x:1 LabelsConflict");
    check("a @2 labels=x:1 | b @1", "labels= LabelsConflict");
    check("a @1 annotations=x:1 | b @2 annotations=y:1", "annotations=x:1 AnnotationsConflict");
}

#[test]
fn families_are_those_that_all_have() {
    check("a @1 families=6,4 | b @2 families=4,6", "families=IPv6,IPv4");
    check("a @1 families=6,4 | b @2 families=4", "families=IPv4 IPFamilyConflict");
    check("a @1 families=6 | b @2 families=4", "families=IPv6 IPFamilyConflict");
    check("a @1 families=6,6 | b @2 families=6", "families=IPv6");
    check("a @1 families= | b @2 families=6,4", "families=IPv6,IPv4");
    check("a @1 families=", "families=");
}

#[test]
fn only_exporters_have_endpoints() {
    check(
        "a slice=http:80;10.0.0.1 | b -export slice=http:80;10.0.0.2",
        "endpoints=a/10.0.0.1/rsw:http.80",
    );
    check("a net=- slice=http:80;10.0.0.1", "endpoints= exports=a");
}

#[test]
fn one_address_is_one_endpoint() {
    check(
        "a slice=http:80;10.0.0.1/tw slice=http:80;10.0.0.1/rs",
        "endpoints=a/10.0.0.1/rsw:http.80",
    );
    check("a slice=;10.0.0.1/st slice=;10.0.0.1/t", "endpoints=a/10.0.0.1/st:");
    check(
        "a slice=x:2,http:80;10.0.0.1,10.0.0.2 slice=dns:53;10.0.0.1/",
        "endpoints=a/10.0.0.1/rsw:dns.53+http.80+x.2,a/10.0.0.2/rsw:http.80+x.2",
    );
}

#[test]
fn an_endpoint_is_what_its_liveliest_mention_says() {
    check("a slice=;10.0.0.1/t/a-old slice=;10.0.0.1/rs/b-new", "endpoints=a/10.0.0.1/rs/b-new:");
    check("a slice=;10.0.0.1/r/b slice=;10.0.0.1/r/a", "endpoints=a/10.0.0.1/r/a:");
}

#[test]
fn of_a_suspect_cluster_what_has_been_ready_and_is_not_is_degraded() {
    let slice = "slice=http:80;10.0.0.1/rsw,10.0.0.2/w,10.0.0.3/s,10.0.0.4/tw";
    check(
        &format!("a suspect {slice}"),
        "endpoints=a/10.0.0.1/rsw:http.80,a/10.0.0.2/wd:http.80,a/10.0.0.3/s:http.80,\
         a/10.0.0.4/tw:http.80",
    );
    check("a slice=http:80;10.0.0.2/w", "endpoints=a/10.0.0.2/w:http.80");
    check(
        "a suspect slice=http:80;10.0.0.1/w slice=http:80;10.0.0.1/rsw",
        "endpoints=a/10.0.0.1/rsw:http.80",
    );
}

#[test]
fn an_address_belongs_to_the_older_exporter_of_its_network() {
    check(
        "a @2 slice=;10.0.0.1,10.0.0.2 | b @1 slice=;10.0.0.1/",
        "endpoints=a/10.0.0.2/rsw:,b/10.0.0.1/:",
    );
    check(
        "a @2 slice=;10.0.0.1 | b @1 net=two slice=;10.0.0.1",
        "endpoints=a/10.0.0.1/rsw:,b/10.0.0.1/rsw:",
    );
}

fn message(case: &str) -> String {
    let said: Vec<Said> = case.split('|').map(read).collect();
    let conflicts = merged(&said).unwrap().conflicts;
    assert_eq!(conflicts.len(), 1, "{conflicts:?}");
    assert_eq!(conflicts[0].winner.as_str(), "b");
    conflicts[0].message.clone()
}

#[test]
fn a_message_names_field_winner_value_and_numbers() {
    assert_eq!(
        message("a @2 type=Headless | b @1 | c @3 type=Headless | d @4"),
        "Conflicting type. Using \"ClusterSetIP\" from oldest service export in \"b\". \
         2/4 clusters disagree."
    );
    assert_eq!(
        message("a @2 ports=http:80 | b @1 ports=:53/UDP"),
        "Conflicting ports. Using \"53/UDP,http 80/TCP\", the union, older exports first, \
         from oldest service export in \"b\". 1/2 clusters disagree."
    );
    assert_eq!(
        message("a @1 families= | b @2 families=4,6 | c @3 families=4"),
        "Conflicting ipFamilies. Using \"IPv4\", what all have in common, \
         from oldest service export in \"b\". 1/3 clusters disagree."
    );
    assert_eq!(
        message("a @2 policy=Local | b @1"),
        "Conflicting internalTrafficPolicy. Using \"Cluster\" from oldest service export in \
         \"b\". 1/2 clusters disagree."
    );
}

#[test]
fn a_message_stays_short() {
    let long = "ü".repeat(100_000);
    let message = message(&format!("a @2 | b @1 labels=x:{long}"));
    assert!(message.len() < 1000 && message.contains("üü…\""), "{message}");
}

#[test]
fn ports_are_served_by_clusters_that_expose_them() {
    let case = "a @1 ports=web:80,only:81 slice=web:8080,only:8081;10.0.0.1 \
                | b @2 ports=http:80,web:90 slice=http:8180,web:8190;10.0.0.2 \
                | c @3 ports=web:80 slice=other:1;10.0.0.3";
    let serving = |case: &str, port: usize| -> Vec<(String, u16)> {
        let said: Vec<Said> = case.split('|').map(read).collect();
        let service = merged(&said).unwrap();
        let served = service.serving(&service.ports[port]);
        served.map(|(endpoint, number)| (endpoint.cluster.to_string(), number)).collect()
    };
    let (a, b) = ("a".to_owned(), "b".to_owned());
    assert_eq!(serving(case, 0), [(a.clone(), 8080), (b.clone(), 8180)]);
    assert_eq!(serving(case, 1), [(a.clone(), 8081)]);
    let headless = case.replace("@1", "@1 type=Headless");
    assert_eq!(serving(&headless, 0), [(a, 8080), (b, 8190)]);
}

fn said() -> impl Strategy<Value = Vec<Said>> {
    let of_cluster = (
        prop::option::weighted(0.9, arbitrary::network()),
        prop::option::weighted(0.9, arbitrary::export()),
        prop::collection::vec(arbitrary::slice(), 0..3),
        any::<bool>(),
    );
    prop::collection::vec(of_cluster, 0..4).prop_map(|clusters| {
        let named = |(index, (network, export, slices, suspect))| Said {
            cluster: format!("c{index}").parse().unwrap(),
            region: format!("r{}", index % 2).parse().unwrap(),
            network,
            suspect,
            export,
            slices,
        };
        clusters.into_iter().enumerate().map(named).collect()
    })
}

/// All there is to order: clusters, slices, ports of slices, endpoints of slices.
fn reordered() -> impl Strategy<Value = (Vec<Said>, Vec<Said>)> {
    (said(), any::<bool>()).prop_flat_map(|(said, turn)| {
        let mut other = said.clone();
        for said in other.iter_mut().filter(|_| turn) {
            said.slices.reverse();
            said.slices.iter_mut().for_each(|slice| slice.ports.reverse());
            said.slices.iter_mut().for_each(|slice| slice.endpoints.reverse());
        }
        (Just(said), Just(other).prop_shuffle())
    })
}

proptest! {
    #[test]
    fn order_leaves_no_trace((one, other) in reordered()) {
        prop_assert_eq!(merged(&one), merged(&other));
    }

    #[test]
    fn what_is_promised_of_a_service_holds(said in said()) {
        let exporters = said.iter().filter(|said| said.export.is_some()).count();
        let Some(service) = merged(&said) else {
            prop_assert_eq!(exporters, 0);
            return Ok(());
        };
        prop_assert_eq!(service.exports.len(), exporters);
        let distinct = |mut list: Vec<String>| {
            let all = list.len();
            list.sort();
            list.dedup();
            list.len() == all
        };
        let ports = &service.ports;
        prop_assert!(distinct(ports.iter().map(|p| p.name.clone()).collect()));
        let number = |p: &ServicePort| format!("{} {}", p.protocol, p.port);
        prop_assert!(distinct(ports.iter().map(number).collect()));
        let endpoints = &service.endpoints;
        prop_assert!(endpoints.is_sorted());
        let address = |e: &Endpoint| format!("{} {}", e.network, e.address());
        prop_assert!(distinct(endpoints.iter().map(address).collect()));
        let exports = |e: &Endpoint| service.exports.iter().any(|x| x.cluster == e.cluster);
        prop_assert!(endpoints.iter().all(exports));
        prop_assert!(service.conflicts.is_sorted());
        prop_assert!(exporters > 1 || service.conflicts.is_empty());
    }
}
