//! Names of the mesh, asked of the running demo by dig and dnspython.

mod common;

use common::mesh::Mesh;
use common::{EU, ask};
use tombolo_testbed::dns::Question;
use tombolo_testbed::{Tool, skip};

#[test]
fn a_remote_service_resolves_at_every_process_over_udp_and_tcp_by_both_clients()
-> anyhow::Result<()> {
    for tool in [Tool::Dig, Tool::Python] {
        if let Err(missing) = tool.path() {
            skip("e2e_dns::a_remote_service_resolves_at_every_process", missing);
            return Ok(());
        }
    }
    let mesh = Mesh::start("dns-remote")?;
    let pods = [(1, 31), (1, 32), (2, 31), (2, 32)];
    let catalog = pods.map(|(cluster, pod)| mesh.manifests.eu(cluster, pod));
    let name = ask::full("catalog");
    for (process, dns, _) in mesh.processes() {
        for question in [Question::udp(dns, &name, "A"), Question::tcp(dns, &name, "A")] {
            for answer in [question.dig(&[])?, question.dnspython()?] {
                assert_eq!(answer.status, "NOERROR", "{process}: {answer:?}");
                assert_eq!(answer.data("A"), catalog, "{process}: {answer:?}");
                assert!(answer.flags.contains(&"aa".to_owned()), "{process}: {answer:?}");
                assert!(answer.answer.iter().all(|record| record.ttl == 5), "{answer:?}");
            }
        }
    }
    mesh.end()
}

#[test]
fn the_nearest_region_answers_for_a_service_that_all_have() -> anyhow::Result<()> {
    let mesh = Mesh::start("dns-nearest")?;
    let pods = [(1, 11), (1, 12), (2, 11), (2, 12)];
    let us = pods.map(|(cluster, pod)| mesh.manifests.us(cluster, pod));
    let eu = pods.map(|(cluster, pod)| mesh.manifests.eu(cluster, pod));
    for region in &mesh.demo.layout().regions {
        let own = if region.name == EU { &eu } else { &us };
        for dns in region.clusters.iter().map(|cluster| cluster.dns).chain([region.dns]) {
            assert_eq!(ask::addresses(dns, "checkout")?, own, "in {}", region.name);
        }
    }
    mesh.end()
}

#[test]
fn no_data_no_name_and_not_ours_are_told_apart() -> anyhow::Result<()> {
    let mesh = Mesh::start("dns-negative")?;
    let cases = [
        // Another port than the pods': an address alone would mislead.
        ("inventory.shop.svc.clusterset.local", "A", "NOERROR"),
        ("checkout.shop.svc.clusterset.local", "AAAA", "NOERROR"),
        ("shop.svc.clusterset.local", "A", "NOERROR"),
        ("nothing.shop.svc.clusterset.local", "A", "NXDOMAIN"),
        ("checkout.elsewhere.svc.clusterset.local", "A", "NXDOMAIN"),
        // Both regions have it, none exports it.
        ("frontend.shop.svc.clusterset.local", "A", "NXDOMAIN"),
        ("_nothing._tcp.checkout.shop.svc.clusterset.local", "SRV", "NXDOMAIN"),
    ];
    for (_, dns, _) in mesh.processes() {
        for (name, kind, status) in cases {
            let answer = Question::udp(dns, name, kind).dig(&[])?;
            assert_eq!((answer.status.as_str(), answer.answer.len()), (status, 0), "{name} {kind}");
            // RFC 2308: without the SOA nobody may keep the answer.
            let authority: Vec<&str> =
                answer.authority.iter().map(|record| record.kind.as_str()).collect();
            assert_eq!(authority, ["SOA"], "{name} {kind}");
        }
        let foreign = Question::udp(dns, "checkout.shop.svc.cluster.local", "A").dig(&[])?;
        assert_eq!(foreign.status, "REFUSED");
    }
    mesh.end()
}

#[test]
fn srv_shows_the_port_that_is_really_served_and_its_targets_resolve() -> anyhow::Result<()> {
    let mesh = Mesh::start("dns-srv")?;
    let dns = mesh.us().dns;
    let name = "_http._tcp.inventory.shop.svc.clusterset.local";
    let answer = Question::udp(dns, name, "SRV").dig(&[])?;
    let mut served = Vec::new();
    for data in answer.data("SRV") {
        let [priority, weight, port, target] = data.split(' ').collect::<Vec<_>>()[..] else {
            anyhow::bail!("no SRV: {data}");
        };
        assert_eq!((priority, weight, port), ("0", "50", "8080"));
        let answer = Question::udp(dns, target, "A").dig(&[])?;
        served.extend(answer.data("A").into_iter().map(str::to_owned));
    }
    served.sort();
    assert_eq!(served, [mesh.manifests.us(1, 51), mesh.manifests.us(1, 52)]);
    mesh.end()
}

#[test]
fn pods_of_a_headless_service_have_names_by_cluster() -> anyhow::Result<()> {
    let mesh = Mesh::start("dns-headless")?;
    let manifests = &mesh.manifests;
    for (_, dns, _) in mesh.processes() {
        for (pod, address) in [("redis-0", manifests.us(2, 61)), ("redis-1", manifests.us(2, 62))] {
            let name = format!("{pod}.us-west1-beta.redis.shop.svc.clusterset.local");
            assert_eq!(Question::udp(dns, &name, "A").dig(&[])?.data("A"), [address], "{name}");
        }
        let remote = "redis-0.europe-west4-beta.redis.shop.svc.clusterset.local";
        let answer = Question::udp(dns, remote, "A").dig(&[])?;
        assert_eq!(answer.data("A"), [manifests.eu(2, 61)]);
    }
    let own = [mesh.manifests.us(2, 61), mesh.manifests.us(2, 62)];
    assert_eq!(ask::addresses(mesh.us().dns, "redis")?, own);
    mesh.end()
}

#[test]
fn the_version_of_the_specification_is_a_txt_record() -> anyhow::Result<()> {
    let mesh = Mesh::start("dns-version")?;
    for (_, dns, _) in mesh.processes() {
        let answer = Question::tcp(dns, "dns-version.clusterset.local", "TXT").dig(&[])?;
        assert_eq!(answer.data("TXT"), ["\"1.0.0\""]);
    }
    mesh.end()
}
