use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use rcgen::KeyPair;
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::codegen::http::Uri;

use super::*;
use crate::bundle::Bundles;
use crate::clock::{Clock, unix};
use crate::material::{Held, Holder};
use crate::region::{Grant, RegionCa};
use crate::testing::{Mesh, NOW, agent, at, control_plane, workload};
use crate::x509::{self, Validity};

const DAY: Duration = Duration::from_hours(24);
/// Ten times what any of this may take.
const LONG: Duration = Duration::from_secs(50);

mod chains;
mod handshakes;

fn leaf(ca: &RegionCa, identity: Identity) -> CertificateDer<'static> {
    let key = KeyPair::generate().unwrap();
    ca.issue_over(&Grant::new(identity), &key, NOW).unwrap().chain.remove(0)
}

fn verified(
    bundles: &Bundles,
    chain: &[CertificateDer<'static>],
    now: jiff::Timestamp,
) -> Result<Identity, PeerRefused> {
    let of = |role| verify(bundles, &chain[0], &chain[1..], unix(now).unwrap(), role);
    let (server, client) = (of(Role::Server), of(Role::Client));
    assert_eq!(server.is_ok(), client.is_ok(), "both verifiers agree");
    Ok(server.and(client)?.identity)
}

/// A leaf as `change` wants it, signed by `ca`'s key.
fn forged(
    ca: &RegionCa,
    change: impl FnOnce(&mut rcgen::CertificateParams),
) -> CertificateDer<'static> {
    let validity = Validity { not_before: at(-60), not_after: at(3600) };
    let mut params = x509::params(&[], validity, [7; 16]).unwrap();
    params.is_ca = rcgen::IsCa::ExplicitNoCa;
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    params.subject_alt_names = vec![name("spiffe://west.mesh.example/ns/shop/sa/checkout")];
    change(&mut params);
    params.signed_by(&KeyPair::generate().unwrap(), &ca.issuer().unwrap()).unwrap().into()
}

fn name(uri: &str) -> rcgen::SanType {
    rcgen::SanType::URI(uri.to_owned().try_into().unwrap())
}
