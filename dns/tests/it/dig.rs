//! The server, asked by an independent client: `dig` of BIND.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;
use tokio::time::timeout;
use tombolo_testbed::{Tool, skip};

use crate::mesh::mesh;
use crate::wire::{LONG, Served};

const MESH: &str = "
    ClusterSetIP shop/web http:80
      us-a 10.0.0.1 http=80
      us-a fd00::1 http=80
    ClusterSetIP shop/api http:80
      us-a 10.0.0.2 http=8080
    Headless shop/db pg:5432
      us-a 10.0.0.3 pg=5432 host=db-0";

/// What `dig` says of every name below `local`.
const MDNS: &str = ";; WARNING: .local is reserved for Multicast DNS\n";

/// Where `dig` is. Without it `test` is skipped: there is no independent client to ask.
fn dig(test: &str) -> Option<PathBuf> {
    let skipped = |missing| skip(&format!("dns::dig::{test}"), missing);
    Tool::Dig.path().map_err(skipped).ok()
}

/// The whole output of `dig`, the program, asked for `arguments`.
async fn output(dig: &Path, served: &Served, arguments: &str) -> String {
    let mut command = Command::new(dig);
    command.arg("@127.0.0.1").args(["-p", &served.address.port().to_string()]);
    command.args(["+tries=1", "+time=5", "+norecurse"]).args(arguments.split_whitespace());
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(LONG, command.output()).await.expect("dig ends");
    let output = output.unwrap_or_else(|error| panic!("{} cannot be run: {error}", dig.display()));
    let text = String::from_utf8_lossy(&output.stdout).replace(MDNS, "");
    assert!(output.status.success(), "dig {arguments}: {text}");
    assert!(!text.contains("WARNING") && !text.contains("malformed"), "dig {arguments}: {text}");
    text
}

async fn check(dig: &Path, arguments: &str, expected: &[&str]) {
    let served = Served::start(Some(mesh(MESH))).await;
    let text = output(dig, &served, arguments).await;
    let squeezed = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in expected {
        assert!(squeezed.contains(part), "dig {arguments}: {part:?} expected in\n{text}");
    }
    served.stop().await;
}

#[tokio::test]
async fn addresses() {
    let Some(dig) = dig("addresses") else { return };
    for transport in ["+notcp", "+tcp"] {
        let arguments = format!("{transport} A WeB.shop.svc.clusterset.local");
        check(
            &dig,
            &arguments,
            &[
                "status: NOERROR",
                "flags: qr aa;",
                "WeB.shop.svc.clusterset.local. 5 IN A 10.0.0.1",
                "EDNS: version: 0, flags:; udp: 1232",
            ],
        )
        .await;
    }
    check(&dig, "AAAA web.shop.svc.clusterset.local", &["IN AAAA fd00::1"]).await;
    check(&dig, "A db-0.us-a.db.shop.svc.clusterset.local", &["IN A 10.0.0.3"]).await;
}

#[tokio::test]
async fn srv_with_its_addresses() {
    let Some(dig) = dig("srv_with_its_addresses") else { return };
    check(
        &dig,
        "SRV _http._tcp.api.shop.svc.clusterset.local",
        &[
            "IN SRV 0 100 8080 10-0-0-2.us-a.api.shop.svc.clusterset.local.",
            "ADDITIONAL SECTION: 10-0-0-2.us-a.api.shop.svc.clusterset.local. 5 IN A 10.0.0.2",
        ],
    )
    .await;
}

#[tokio::test]
async fn negative_answers_with_soa() {
    let Some(dig) = dig("negative_answers_with_soa") else { return };
    let soa = "AUTHORITY SECTION: clusterset.local. 5 IN SOA ns.dns.clusterset.local. \
               hostmaster.clusterset.local. 7 7200 1800 86400 5";
    check(&dig, "A api.shop.svc.clusterset.local", &["status: NOERROR", "ANSWER: 0", soa]).await;
    check(&dig, "A no.shop.svc.clusterset.local", &["status: NXDOMAIN", "flags: qr aa;", soa])
        .await;
    check(&dig, "A example.com", &["status: REFUSED", "flags: qr;"]).await;
}

#[tokio::test]
async fn the_version_and_the_zone() {
    let Some(dig) = dig("the_version_and_the_zone") else { return };
    check(&dig, "TXT dns-version.clusterset.local", &["IN TXT \"1.0.0\""]).await;
    check(&dig, "SOA clusterset.local", &["status: NOERROR", "IN SOA ns.dns.clusterset.local."])
        .await;
    check(&dig, "NS clusterset.local", &["IN NS ns.dns.clusterset.local."]).await;
    check(&dig, "+notcp ANY web.shop.svc.clusterset.local", &["IN HINFO \"RFC8482\" \"\""]).await;
}

#[tokio::test]
async fn oddities() {
    let Some(dig) = dig("oddities") else { return };
    check(&dig, "CH TXT version.bind", &["status: REFUSED"]).await;
    check(&dig, "+edns=1 +noednsneg A web.shop.svc.clusterset.local", &["status: BADVERS"]).await;
    check(&dig, "+ednsopt=100:0102 A web.shop.svc.clusterset.local", &["IN A 10.0.0.1"]).await;
    check(&dig, "+dnssec A web.shop.svc.clusterset.local", &["flags: do;", "IN A 10.0.0.1"]).await;
    check(&dig, "+noedns +opcode=15 +header-only", &["opcode: RESERVED15, status: NOTIMP"]).await;
    check(&dig, "TYPE65280 web.shop.svc.clusterset.local", &["status: NOERROR", "ANSWER: 0"]).await;
}

#[tokio::test]
async fn truncation_is_followed_to_tcp() {
    let Some(dig) = dig("truncation_is_followed_to_tcp") else { return };
    let mut text = "Headless shop/crowd p:1\n".to_owned();
    for i in 0..150 {
        writeln!(text, "us-a 10.0.0.{i} p=1").unwrap();
    }
    let served = Served::start(Some(mesh(&text))).await;
    let name = "crowd.shop.svc.clusterset.local";
    let short = output(&dig, &served, &format!("+ignore +bufsize=512 A {name}")).await;
    assert!(short.contains("flags: qr aa tc;") && short.contains("ANSWER: 0"), "{short}");
    let whole = output(&dig, &served, &format!("+bufsize=512 A {name}")).await;
    assert!(whole.contains("Truncated, retrying in TCP mode") && whole.contains("ANSWER: 150"));
    served.stop().await;
}
