//! The probes of RFC 8906, section 8: what a name server must not fail at.

use hickory_proto::op::{Edns, Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{DNSClass, RecordType};

use crate::mesh::mesh;
use crate::wire::{MESH, Served, over_tcp, over_udp, parse, query, with_edns};

/// Sends `message` with the header's flag bytes changed by `change`, over both transports, and
/// gives the reply after holding both to be the same.
async fn probe(served: &Served, message: &Message, change: impl Fn(&mut [u8])) -> Message {
    let mut bytes = message.to_vec().unwrap();
    change(&mut bytes);
    let udp = over_udp(&served.udp().await, &bytes).await;
    let tcp = over_tcp(&mut served.tcp().await, &bytes).await;
    let (udp, tcp) = (parse(&udp), parse(&tcp));
    assert_eq!(udp.metadata, tcp.metadata);
    assert_eq!(udp.edns, tcp.edns);
    udp
}

/// By number: BADSIG has the same, and is what hickory-proto reads it as.
const BADVERS: u16 = 16;

fn unchanged(_: &mut [u8]) {}

#[tokio::test]
async fn known_and_unknown_types() {
    let served = Served::start(Some(mesh(MESH))).await;
    for qtype in [1_u16, 2, 6, 15, 16, 28, 33, 43, 46, 48, 52, 64, 99, 255, 257, 1000, 65_280] {
        let asked = query(1, RecordType::from(qtype), "web.shop.svc");
        let reply = probe(&served, &asked, unchanged).await;
        let code = reply.metadata.response_code;
        assert_eq!((code, reply.metadata.authoritative), (ResponseCode::NoError, true), "{qtype}");
    }
    served.stop().await;
}

#[tokio::test]
async fn transfers_are_refused() {
    let served = Served::start(Some(mesh(MESH))).await;
    for qtype in [RecordType::AXFR, RecordType::IXFR] {
        let reply = probe(&served, &query(1, qtype, "clusterset.local."), unchanged).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
    }
    served.stop().await;
}

#[tokio::test]
async fn header_bits() {
    let served = Served::start(Some(mesh(MESH))).await;
    let asked = query(1, RecordType::A, "web.shop.svc");
    for (bits, what) in [(0x10, "CD"), (0x20, "AD"), (0x40, "Z"), (0x80, "RA")] {
        let reply = probe(&served, &asked, |bytes| bytes[3] |= bits).await;
        let head = reply.metadata;
        assert_eq!(head.response_code, ResponseCode::NoError, "{what}");
        assert!(!head.authentic_data && !head.recursion_available, "{what}");
    }
    for (bits, what) in [(0x01, "RD"), (0x02, "TC"), (0x04, "AA")] {
        let reply = probe(&served, &asked, |bytes| bytes[2] |= bits).await;
        let head = reply.metadata;
        assert_eq!((head.response_code, head.truncation), (ResponseCode::NoError, false), "{what}");
        assert_eq!(head.recursion_desired, bits == 0x01, "{what}");
    }
    served.stop().await;
}

#[tokio::test]
async fn operations_that_are_not_served() {
    let served = Served::start(Some(mesh(MESH))).await;
    let asked = query(5, RecordType::SOA, "clusterset.local.");
    for opcode in 1..16_u8 {
        for only_header in [false, true] {
            let mut bytes = asked.to_vec().unwrap();
            bytes[2] = opcode << 3;
            if only_header {
                bytes.truncate(12);
                bytes[4..].fill(0);
            }
            let reply = parse(&over_udp(&served.udp().await, &bytes).await);
            let head = reply.metadata;
            assert_eq!((head.id, head.response_code), (5, ResponseCode::NotImp), "{opcode}");
            assert_eq!(head.op_code, OpCode::from_u8(opcode));
            assert!(reply.queries.is_empty() && reply.answers.is_empty());
        }
    }
    served.stop().await;
}

#[tokio::test]
async fn other_classes() {
    let served = Served::start(Some(mesh(MESH))).await;
    for (name, class) in
        [("version.bind.", DNSClass::CH), ("web.shop.svc", DNSClass::ANY), ("svc", DNSClass::HS)]
    {
        let mut asked = query(1, RecordType::TXT, name);
        asked.queries[0].set_query_class(class);
        let reply = probe(&served, &asked, unchanged).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::Refused, "{name}");
        assert!(!reply.metadata.authoritative);
    }
    served.stop().await;
}

/// A query with an OPT record that `change` has been at.
fn edns(change: impl Fn(&mut Edns)) -> Message {
    let mut message = with_edns(query(1, RecordType::A, "web.shop.svc"), 4096);
    change(message.edns.as_mut().unwrap());
    message
}

fn own_opt(reply: &Message) -> &Edns {
    let opt = reply.edns.as_ref().expect("OPT is answered with OPT");
    assert_eq!((opt.version(), opt.flags().z, opt.max_payload()), (0, 0, 1232));
    assert!(opt.options().as_ref().is_empty(), "options are not echoed");
    opt
}

#[tokio::test]
async fn edns_versions() {
    let served = Served::start(Some(mesh(MESH))).await;
    let reply = probe(&served, &edns(|_| {}), unchanged).await;
    assert_eq!((own_opt(&reply).rcode_high(), reply.answers.len()), (0, 2));
    for version in [1, 100, 255] {
        let reply = probe(
            &served,
            &edns(|opt| {
                opt.set_version(version);
            }),
            unchanged,
        )
        .await;
        assert_eq!(own_opt(&reply).rcode_high(), 1);
        assert_eq!(u16::from(reply.metadata.response_code), BADVERS);
        assert!(reply.answers.is_empty());
    }
    served.stop().await;
}

#[tokio::test]
async fn edns_options_and_flags_that_are_unknown_are_ignored() {
    let served = Served::start(Some(mesh(MESH))).await;
    let option = EdnsOption::Unknown(100, vec![1, 2, 3]);
    let unknown = edns(|opt| opt.options_mut().insert(option.clone()));
    let reply = probe(&served, &unknown, unchanged).await;
    own_opt(&reply);
    assert_eq!(reply.answers.len(), 2);
    let flags = edns(|opt| opt.flags_mut().z = 0x0040);
    assert!(!own_opt(&probe(&served, &flags, unchanged).await).flags().dnssec_ok);
    let dnssec = edns(|opt| {
        opt.set_dnssec_ok(true);
    });
    assert!(own_opt(&probe(&served, &dnssec, unchanged).await).flags().dnssec_ok);
    // Both at once, with a version that is not known.
    let all = edns(|opt| {
        opt.set_version(1).options_mut().insert(option.clone());
    });
    let reply = probe(&served, &all, unchanged).await;
    assert_eq!(u16::from(reply.metadata.response_code), BADVERS);
    served.stop().await;
}

#[tokio::test]
async fn a_payload_below_512_is_taken_as_512() {
    let served = Served::start(Some(mesh(MESH))).await;
    let mut bytes = edns(|_| {}).to_vec().unwrap();
    let size = bytes.len() - 8; // OPT ends the message: root, type, then size, 4 + 2 bytes more
    bytes[size..size + 2].copy_from_slice(&[0, 1]);
    let reply = parse(&over_udp(&served.udp().await, &bytes).await);
    assert_eq!((reply.answers.len(), reply.metadata.truncation), (2, false));
    served.stop().await;
}

#[tokio::test]
async fn two_opt_records_are_malformed() {
    let served = Served::start(Some(mesh(MESH))).await;
    let mut bytes = edns(|_| {}).to_vec().unwrap();
    let opt = bytes[bytes.len() - 11..].to_vec();
    bytes.extend(opt);
    bytes[11] = 2;
    let reply = parse(&over_udp(&served.udp().await, &bytes).await);
    assert_eq!(reply.metadata.response_code, ResponseCode::FormErr);
    served.stop().await;
}
