use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::proto::records as wire;

fn key(text: &str) -> Key {
    text.parse().unwrap()
}

fn sample(kind: &str) -> Record {
    let (key, body) = match kind {
        "export" => (
            key("/tombolo/v1/us-west1/us-west1-a/export/shop/checkout"),
            Body::Export(Export {
                service_type: ServiceType::Headless,
                ports: vec![ServicePort {
                    name: "http".into(),
                    protocol: Protocol::Tcp,
                    port: 80,
                    app_protocol: String::new(),
                }],
                session_affinity: "ClientIP".into(),
                session_affinity_timeout: Some(10),
                internal_traffic_policy: String::new(),
                traffic_distribution: "PreferClose".into(),
                ip_families: vec![IpFamily::V4, IpFamily::V6],
                created: None,
                precedence: Timestamp::from_millisecond(1_700_000_000_123).unwrap(),
                exported_labels: [("a".to_owned(), "b".to_owned())].into(),
                exported_annotations: std::collections::BTreeMap::new(),
            }),
        ),
        "endpoints" => (
            key("/tombolo/v1/us-west1/us-west1-a/endpoints/shop/checkout/checkout-1"),
            Body::Endpoints(Endpoints {
                ports: vec![EndpointPort {
                    name: "http".into(),
                    protocol: Protocol::Sctp,
                    port: 8080,
                    app_protocol: "h2c".into(),
                }],
                endpoints: vec![Endpoint {
                    address: "fd00::1".parse().unwrap(),
                    ready: false,
                    serving: true,
                    terminating: true,
                    was_ready: true,
                    zone: "us-west1-b".into(),
                    hostname: "h".into(),
                    node: "n".into(),
                    target: "pod-1".into(),
                    service_account: "sa".into(),
                    meshed: true,
                }],
            }),
        ),
        _ => (
            key("/tombolo/v1/us-west1/us-west1-a/cluster/_/us-west1-a"),
            Body::Cluster(Cluster {
                uid: "u".into(),
                network: "vpc".into(),
                pod_cidrs: vec!["10.0.0.0/8".parse().unwrap()],
                directory: true,
                ..Cluster::default()
            }),
        ),
    };
    let origin = Origin {
        epoch: Epoch { id: "lease".into(), count: 3 },
        sequence: 7,
        resource_version: "42".into(),
        observed_age_ms: 5,
    };
    Record { key, origin, body }
}

#[test]
fn sealed_records_open_to_themselves() {
    for kind in ["export", "endpoints", "cluster"] {
        let record = sample(kind);
        let sealed = record.seal();
        assert_eq!(Record::open(&sealed.key, &sealed.value).unwrap(), record);
        assert_eq!(body_hash_of_value(&sealed.value), Some(body_hash(&record.body)));
    }
}

/// A stored value is a wire format: these bytes may only change with a new schema level.
#[test]
fn the_bytes_of_an_envelope_are_golden() {
    let value = sample("cluster").seal().value;
    let hex = value.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    assert_eq!(
        hex,
        "080110011a130a090a056c65617365100310071a023432200522160a017512037670631a0a31302e302e302e302f384001"
    );
}

fn check(envelope: &wire::Envelope, key_text: &str, why: &str) {
    let error = Record::open(&key(key_text), &envelope.encode_to_vec().into()).unwrap_err();
    assert!(error.to_string().contains(why), "{error}");
}

#[test]
fn what_cannot_be_used_says_why() {
    const EXPORT: &str = "/tombolo/v1/us-west1/us-west1-a/export/shop/checkout";
    const SLICE: &str = "/tombolo/v1/us-west1/us-west1-a/endpoints/shop/checkout/s";
    let good = wire::Envelope::decode(sample("export").seal().value).unwrap();
    let body = |body: Vec<u8>| wire::Envelope { body: body.into(), ..good.clone() };

    check(&wire::Envelope { min_reader: 2, ..good.clone() }, EXPORT, "schema level 2");
    check(&wire::Envelope { origin: None, ..good.clone() }, EXPORT, "origin is missing");
    check(&body(vec![0xff; 3]), EXPORT, "not a valid Export");
    check(&body(Vec::new()), EXPORT, "type has the unknown value 0");
    check(&body(Vec::new()), "/tombolo/v1/us-west1/us-west1-a/policy/_/x", "not read");
    let slice = wire::Endpoints {
        endpoints: vec![wire::Endpoint { address: "nowhere".into(), ..Default::default() }],
        ..Default::default()
    };
    check(&body(slice.encode_to_vec()), SLICE, "endpoints[0].address has \"nowhere\"");
    let slice = wire::Endpoints {
        ports: vec![wire::EndpointPort { port: 65_536, ..Default::default() }],
        ..Default::default()
    };
    check(&body(slice.encode_to_vec()), SLICE, "ports[0].port has 65536");

    let huge = Bytes::from(vec![0; MAX_VALUE + 1]);
    assert_eq!(Record::open(&key(EXPORT), &huge), Err(RecordError::TooLarge(MAX_VALUE + 1)));
}

#[test]
fn epochs_are_ordered_within_one_id_only() {
    let epoch = |id: &str, count| Epoch { id: id.into(), count };
    assert!(epoch("a", 1).is_older_than(&epoch("a", 2)));
    assert!(!epoch("a", 2).is_older_than(&epoch("a", 2)));
    assert!(!epoch("a", 1).is_older_than(&epoch("b", 2)));
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256), cut in 0_usize..200) {
        let kinds = ["export", "endpoints", "cluster"];
        for kind in kinds {
            let mut value = sample(kind).seal();
            let _ = Record::open(&value.key, &bytes.clone().into());
            value.value.truncate(cut);
            let _ = Record::open(&value.key, &value.value);
        }
    }
}
