use std::collections::BTreeMap;

use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::proto::records as wire;

fn key(text: &str) -> Key {
    text.parse().unwrap()
}

#[expect(clippy::too_many_lines, reason = "a table")]
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
                exported_annotations: BTreeMap::new(),
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
        "namespace" => (
            key("/tombolo/v1/us-west1/us-west1-a/namespace/_/shop"),
            Body::Namespace(Namespace {
                labels: [("l".to_owned(), "v".to_owned())].into(),
                annotations: [("a".to_owned(), "w".to_owned())].into(),
            }),
        ),
        "region" => (
            key("/tombolo/v1/us-west1/_/region/_/us-west1"),
            Body::Region(Region {
                addresses: vec!["host:7443".into()],
                distances: [("eu".parse().unwrap(), 100)].into(),
                reads_level: 1,
                software_version: "0.1.0".into(),
                incarnation: "i".into(),
                peers: ["eu".parse().unwrap()].into(),
                pinned_roots: [[3; 32]].into(),
                entitlements: [("us-west1-a".parse().unwrap(), Entitlement::All)].into(),
                stand_ins: vec!["eu".parse().unwrap()],
                rollout_order: vec!["us-west1".parse().unwrap(), "eu".parse().unwrap()],
                members: [(
                    "us-west1-a".parse().unwrap(),
                    Member { uid: "u".into(), joined: Timestamp::from_millisecond(8).unwrap() },
                )]
                .into(),
            }),
        ),
        "approve" | "leave" => (
            key("/tombolo/v1/us-west1/_/decision/_/one"),
            Body::Decision(Decision {
                by: "uid 0".into(),
                at: Timestamp::from_millisecond(10).unwrap(),
                note: "n".into(),
                what: if kind == "leave" {
                    Decided::Leave { owner: "eu/_".parse().unwrap(), incarnation: "i".into() }
                } else {
                    Decided::Approve { cluster: "us-west1-a".parse().unwrap(), hold: "h".into() }
                },
            }),
        ),
        "beacon" => (
            key("/tombolo/v1/us-west1/us-west1-a/beacon/_/us-west1-a"),
            Body::Beacon(Beacon { nonce: 9 }),
        ),
        _ => (
            key("/tombolo/v1/us-west1/us-west1-a/cluster/_/us-west1-a"),
            Body::Cluster(Cluster {
                uid: "u".into(),
                network: "vpc".into(),
                pod_cidrs: vec!["10.0.0.0/8".parse().unwrap()],
                directory: true,
                holds: vec![Hold {
                    id: "h".into(),
                    since: Timestamp::from_millisecond(9).unwrap(),
                    records: 2,
                    endpoints: 21,
                    why: "w".into(),
                    services: vec!["shop/checkout".parse().unwrap()],
                }],
                suspect: Some(Suspect {
                    id: "s".into(),
                    since: Timestamp::from_millisecond(9).unwrap(),
                    ready: 1,
                    of: 4,
                }),
                approved: vec!["a".into()],
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

const KINDS: [&str; 8] =
    ["approve", "beacon", "cluster", "endpoints", "export", "leave", "namespace", "region"];

#[test]
fn sealed_records_open_to_themselves() {
    for kind in KINDS {
        let record = sample(kind);
        let sealed = record.seal();
        assert_eq!(Record::open(&sealed.key, &sealed.value).unwrap(), record);
        assert_eq!(body_hash_of_value(&sealed.value), Some(body_hash(&record.body)));
    }
}

/// What is not said to the oldest reader of the mesh would not be said to the others either: one
/// region of an older version would lift what this one restricts.
#[test]
fn what_is_said_at_a_lower_level_is_all_that_there_is_to_say() {
    for kind in KINDS {
        let record = sample(kind);
        let sealed = record.seal_at(1);
        assert_eq!(Record::open(&sealed.key, &sealed.value).unwrap(), record);
        assert_eq!(body_hash_of_value(&sealed.value), Some(body_hash(&record.body)));
    }
}

/// Stored values and messages are wire formats: these bytes may only change with a new schema
/// level, or where a field is added.
#[test]
fn the_bytes_of_every_kind_are_golden() {
    let golden: BTreeMap<&str, &str> =
        include_str!("golden.txt").lines().filter_map(|line| line.split_once(' ')).collect();
    let mut made: BTreeMap<String, String> = BTreeMap::new();
    for kind in KINDS {
        let sealed = sample(kind).seal();
        made.insert(format!("{kind}/2"), hex(&sealed.value));
        // Decisions came with level 2.
        if sealed.key.kind != crate::key::Kind::Decision {
            made.insert(format!("{kind}/1"), hex(&sample(kind).seal_at(1).value));
        }
    }
    for (name, bytes) in messages() {
        made.insert(name.to_owned(), hex(&bytes));
    }
    let mut digest = crate::digest::Digest::default();
    digest.add(b"key", b"value");
    made.insert("digest".to_owned(), hex(&digest.to_bytes()));
    let made: BTreeMap<&str, &str> =
        made.iter().map(|(name, hex)| (name.as_str(), hex.as_str())).collect();
    assert_eq!(made, golden);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

#[expect(clippy::too_many_lines, reason = "a table")]
/// One of each message of the federation API and of the local facts, every field set.
fn messages() -> Vec<(&'static str, Vec<u8>)> {
    use crate::proto::federation::{
        self as api, publish_request, publish_response, subscribe_response,
    };
    use crate::proto::local;
    let epoch = || Some(wire::Epoch { id: "e".into(), count: 2 });
    let publish = |message| api::PublishRequest { message: Some(message) }.encode_to_vec();
    let answer = |message| api::PublishResponse { message: Some(message) }.encode_to_vec();
    let feed = |message| api::SubscribeResponse { message: Some(message) }.encode_to_vec();
    let digest = || api::OwnerDigest { owner: "r/_".into(), digest: vec![7; 2].into() };
    let session = local::Session { uid: "u".into(), joined_ms: 9, epoch: epoch(), number: 3 };
    vec![
        (
            "publish-hello",
            publish(publish_request::Message::Hello(api::PublishHello {
                cluster: "r-a".into(),
                uid: "u".into(),
                epoch: epoch(),
                reads_level: 1,
            })),
        ),
        (
            "publish-state",
            publish(publish_request::Message::State(api::State {
                entries: vec![api::KeyHash {
                    key: "k".into(),
                    body_sha256: vec![1; 2].into(),
                    sequence: 3,
                }],
                last: true,
            })),
        ),
        (
            "publish-changes",
            publish(publish_request::Message::Changes(api::Changes {
                batch: 4,
                puts: vec![api::Put { key: "k".into(), value: vec![2].into() }],
                tombstones: vec![api::Tombstone {
                    key: "t".into(),
                    removal: api::Removal::Explained.into(),
                    sequence: 5,
                }],
                more: true,
            })),
        ),
        (
            "publish-complete",
            publish(publish_request::Message::Complete(api::Complete {
                batch: 5,
                kinds: vec!["export".into()],
                sequence: 6,
            })),
        ),
        (
            "publish-accepted",
            answer(publish_response::Message::Accepted(api::Accepted { joined_ms: 6 })),
        ),
        (
            "publish-refused",
            answer(publish_response::Message::Refused(api::Refused { reason: "w".into() })),
        ),
        (
            "publish-want",
            answer(publish_response::Message::Want(api::Want {
                keys: vec!["k".into()],
                last: true,
                ..Default::default()
            })),
        ),
        (
            "publish-want-lacked",
            answer(publish_response::Message::Want(api::Want {
                lacked: vec!["k".into()],
                heard: Some(api::Newest { epoch: epoch(), sequence: 4 }),
                ..Default::default()
            })),
        ),
        (
            "publish-ack",
            answer(publish_response::Message::Ack(api::Ack {
                batch: 7,
                refused: vec![api::RefusedRecord {
                    key: "k".into(),
                    reason: "w".into(),
                    for_room: true,
                }],
            })),
        ),
        (
            "publish-surplus",
            answer(publish_response::Message::Surplus(api::Surplus {
                records: vec![api::Put { key: "k".into(), value: vec![2].into() }],
            })),
        ),
        ("recover", api::RecoverRequest { reads_level: 2 }.encode_to_vec()),
        (
            "subscribe",
            api::SubscribeRequest {
                scope: api::Scope::Region.into(),
                held: vec![digest()],
                reads_level: 1,
                position: 2,
                uses: vec!["shop".into()],
            }
            .encode_to_vec(),
        ),
        (
            "feed-start",
            feed(subscribe_response::Message::Start(api::Start {
                owner: "r/_".into(),
                same: true,
                newest: Some(api::Newest { epoch: epoch(), sequence: 4 }),
                delta: true,
            })),
        ),
        (
            "feed-batch",
            feed(subscribe_response::Message::Batch(api::Batch {
                position: 8,
                items: vec![
                    api::Item {
                        key: "k".into(),
                        value: Some(vec![3].into()),
                        ..api::Item::default()
                    },
                    api::Item {
                        key: "g".into(),
                        value: None,
                        removal: api::Removal::Released.into(),
                        sequence: 6,
                        epoch: epoch(),
                    },
                ],
                more: true,
            })),
        ),
        (
            "feed-end",
            feed(subscribe_response::Message::End(api::End {
                owner: "r/_".into(),
                kind: "region".into(),
                epoch: epoch(),
            })),
        ),
        ("feed-synced", feed(subscribe_response::Message::Synced(api::Synced { position: 9 }))),
        (
            "feed-digests",
            feed(subscribe_response::Message::Digests(api::Digests {
                position: 10,
                owners: vec![digest()],
                level: 2,
            })),
        ),
        (
            "local-said",
            local::Said {
                epoch: epoch(),
                sequence: 4,
                removed: vec![local::Removed {
                    key: "k".into(),
                    removal: api::Removal::Approved.into(),
                    sequence: Some(3),
                    epoch: epoch(),
                }],
                more: true,
            }
            .encode_to_vec(),
        ),
        (
            "local-founding",
            local::Founding {
                id: "i".into(),
                founded_ms: 5,
                term: 6,
                past: Some(local::Past { epoch: epoch(), sequence: 7 }),
            }
            .encode_to_vec(),
        ),
        (
            "local-ask",
            local::Ask {
                decision: Some(wire::Decision { by: "b".into(), ..wire::Decision::default() }),
                withdraw: true,
            }
            .encode_to_vec(),
        ),
        ("local-left", local::Left { incarnation: "i".into() }.encode_to_vec()),
        ("local-session", session.encode_to_vec()),
        ("local-complete", local::Complete { epoch: epoch() }.encode_to_vec()),
        ("local-resume", local::Resume { position: 11 }.encode_to_vec()),
    ]
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

    check(&wire::Envelope { min_reader: 3, ..good.clone() }, EXPORT, "schema level 3");
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

    // Groups in groups, as an unknown field: no stack is deep enough for whoever follows.
    check(&body(vec![0x0b; 100_000]), EXPORT, "not a valid Export");
    let nested = Bytes::from(vec![0x0b; 100_000]);
    assert!(Record::open(&key(EXPORT), &nested).is_err());

    let huge = Bytes::from(vec![0; MAX_VALUE + 1]);
    assert_eq!(Record::open(&key(EXPORT), &huge), Err(RecordError::TooLarge(MAX_VALUE + 1)));
}

#[test]
fn a_region_speaks_for_its_own_clusters_only() {
    const REGION: &str = "/tombolo/v1/us-west1/_/region/_/us-west1";
    const DECISION: &str = "/tombolo/v1/us-west1/_/decision/_/d";
    let good = wire::Envelope::decode(sample("export").seal().value).unwrap();
    let body = |body: Vec<u8>| wire::Envelope { body: body.into(), ..good.clone() };
    let members = vec![wire::Member { cluster: "eu-a".into(), uid: "u".into(), joined_ms: 1 }];
    let region = wire::Region { members, ..Default::default() };
    check(&body(region.encode_to_vec()), REGION, "members names cluster eu-a");
    let entitlements = [("eu-a".to_owned(), wire::Namespaces::default())].into();
    let region = wire::Region { entitlements, ..Default::default() };
    check(&body(region.encode_to_vec()), REGION, "entitlements names cluster eu-a");
    let approve = wire::Approve { cluster: "eu-a".into(), hold: "h".into() };
    let what = Some(wire::decision::What::Approve(approve));
    let decision = wire::Decision { what, ..Default::default() };
    check(&body(decision.encode_to_vec()), DECISION, "approve.cluster names cluster eu-a");
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
