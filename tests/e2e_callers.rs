//! Who may call the federation API, by real certificates at a real control plane.

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use common::manifests::Manifests;
use common::processes::{Apart, MESH};
use common::{EU, SOON, US, ask};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, SignatureScheme};
use rustls_pki_types::ServerName;
use tokio_rustls::TlsConnector;
use tombolo_ca::Clock;
use tombolo_ca::identity::Identity;
use tombolo_ca::material::Holder;
use tombolo_ca::material::directory::Directory;
use tombolo_ca::tls::client_config;
use tombolo_federation::proto::federation as wire;
use tombolo_federation::proto::records::Epoch;
use tombolo_testbed::{Scratch, wait_for};
use tonic::Code::{self, FailedPrecondition, Ok as Taken, PermissionDenied, Unauthenticated};
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};
use wire::federation_client::FederationClient;

/// The UID of the cluster in whose name all publish.
const ALPHA: &str = "uid-of-alpha";

/// Shows no certificate, whatever the server would take.
#[derive(Debug)]
struct Nobody;

impl ResolvesClientCert for Nobody {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// What a process with the identity directory `of` shows to the control plane of the US.
fn certificate(apart: &Apart<'_>, of: &str) -> anyhow::Result<ClientConfig> {
    let path = PathBuf::from(apart.path(of));
    let loaded = Directory::new(&path, MESH.parse()?).load(Timestamp::now())?;
    let held = Holder::new(loaded.material).held();
    let expected = Identity::ControlPlane { region: US.parse()? };
    Ok(ClientConfig::clone(&*client_config(&held, expected, &Clock::system())?))
}

async fn channel(apart: &Apart<'_>, config: ClientConfig) -> anyhow::Result<Channel> {
    let address = apart.listens(US).grpc;
    let tls = TlsConnector::from(Arc::new(config));
    let connect = tower::service_fn(move |_: Uri| {
        let tls = tls.clone();
        async move {
            let tcp = tokio::net::TcpStream::connect(address).await?;
            let name = ServerName::IpAddress(address.ip().into());
            std::io::Result::Ok(TokioIo::new(tls.connect(name, tcp).await?))
        }
    });
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    endpoint.connect_with_connector(connect).await.context("a connection")
}

/// What becomes of each method, called as this agent or control plane would.
async fn outcomes(channel: &Channel, scope: wire::Scope) -> [Result<(), Status>; 3] {
    let mut client = FederationClient::new(channel.clone());
    let hello = wire::PublishHello {
        cluster: "us-west1-alpha".to_owned(),
        uid: ALPHA.to_owned(),
        epoch: Some(Epoch { id: "another".to_owned(), count: 1 }),
        ..Default::default()
    };
    let message = Some(wire::publish_request::Message::Hello(hello));
    let publish = futures::stream::iter([wire::PublishRequest { message }]);
    let published = match client.publish(publish).await {
        Ok(answers) => verdict(answers.into_inner().message().await),
        Err(status) => Err(status),
    };
    let request =
        wire::SubscribeRequest { scope: scope.into(), reads_level: 1, ..Default::default() };
    let subscribed = client.subscribe(request).await.map(drop);
    let recovered = client.recover(wire::RecoverRequest { reads_level: 1 }).await.map(drop);
    [published, subscribed, recovered]
}

/// A region refuses a session in the stream, where the agent can read why.
fn verdict(answer: Result<Option<wire::PublishResponse>, Status>) -> Result<(), Status> {
    match answer?.and_then(|answer| answer.message) {
        Some(wire::publish_response::Message::Refused(refused)) => {
            Err(Status::failed_precondition(refused.reason))
        }
        _ => Ok(()),
    }
}

fn codes(outcomes: [Result<(), Status>; 3]) -> [Code; 3] {
    outcomes.map(|outcome| outcome.map_or_else(|status| status.code(), |()| Code::Ok))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_federation_api_takes_agents_of_the_region_and_peers_and_nobody_else()
-> anyhow::Result<()> {
    let scratch = Scratch::new("callers")?;
    let manifests = Manifests::copy(scratch.path())?;
    let apart = Apart::write(scratch.path(), &manifests)?;
    // What an Envoy shows.
    apart.issue(US, &["workload", "alpha", "demo", "client"], "envoy")?;
    let mut alpha = apart.agent_config(US, "alpha");
    alpha["clusterUid"] = ALPHA.into();
    apart.write_config("us-west1-alpha", &alpha)?;
    let names = [US, EU, "us-west1-alpha", "us-west1-beta"];
    let mut processes =
        names.map(|name| apart.start(name)).into_iter().collect::<Result<Vec<_>, _>>()?;
    wait_for("the region knows its own", 2 * SOON, || {
        ask::same(&ask::exporters(apart.listens(US).admin, "cart")?.len(), &2)
    })?;

    let (mesh, region) = (wire::Scope::Mesh, wire::Scope::Region);
    let (nobody, foreign) = ("wants a certificate", "belongs to region europe-west4");
    let (other, peer) = ("claims to publish for", "is no agent");
    for (who, scope, why, expected) in [
        ("envoy", mesh, nobody, [Unauthenticated; 3]),
        ("envoy", region, nobody, [Unauthenticated; 3]),
        // An agent of another region, and one of this region in the name of another cluster.
        (
            "europe-west4-alpha",
            mesh,
            foreign,
            [FailedPrecondition, PermissionDenied, PermissionDenied],
        ),
        ("us-west1-beta", mesh, other, [FailedPrecondition, Taken, PermissionDenied]),
        ("us-west1-beta", region, other, [FailedPrecondition, PermissionDenied, PermissionDenied]),
        (EU, mesh, peer, [FailedPrecondition, PermissionDenied, Taken]),
        (EU, region, peer, [FailedPrecondition, Taken, Taken]),
        // The cluster itself may, if its agent were not there.
        (
            "us-west1-alpha",
            mesh,
            "has another id than",
            [FailedPrecondition, Taken, PermissionDenied],
        ),
    ] {
        let channel = channel(&apart, certificate(&apart, who)?).await?;
        let outcomes = outcomes(&channel, scope).await;
        let refused = outcomes[0].as_ref().unwrap_err().message().to_owned();
        assert!(refused.contains(why), "{who}, {scope:?}: {refused}");
        assert_eq!(codes(outcomes), expected, "{who}, {scope:?}");
    }
    let mut nobody = certificate(&apart, EU)?;
    nobody.client_auth_cert_resolver = Arc::new(Nobody);
    let channel = channel(&apart, nobody).await?;
    for scope in [mesh, region] {
        assert_eq!(codes(outcomes(&channel, scope).await), [Unauthenticated; 3], "{scope:?}");
    }
    // Nobody was harmed.
    assert_eq!(ask::exporters(apart.listens(US).admin, "cart")?.len(), 2);
    for process in &mut processes {
        assert!(process.terminate(2 * SOON)?.success());
        assert!(!process.stderr()?.contains("panicked"));
    }
    Ok(())
}
