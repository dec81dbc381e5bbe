//! TLS with client certificates.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use tombolo_federation::store::etcd::{Etcd, EtcdConfig, EtcdSecrets, EtcdTls, Reload};
use tombolo_federation::store::{StoreError, WatchEvent};
use tombolo_testbed::etcd::{Options, Tls};

use crate::{config, connected, eventually, next, on_each, put, range, start};

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("an authority"))
    }

    /// A certificate and its key.
    fn issue(&self, name: SanType) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![name];
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }

    fn client(&self, of: &Self, domain: Option<&str>) -> EtcdTls {
        let (cert_pem, key_pem) = of.issue(dns("tombolo"));
        let domain = domain.map(ToOwned::to_owned);
        EtcdTls { ca_pem: self.0.pem(), cert_pem, key_pem, domain }
    }
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().expect("a name"))
}

fn file(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).expect("writes");
    path
}

/// What etcd and its own client are given, with a new certificate for the server.
fn files(dir: &Path, authority: &Authority, client: &EtcdTls) -> Tls {
    let (cert, key) = authority.issue(SanType::IpAddress([127, 0, 0, 1].into()));
    Tls {
        ca: file(dir, "ca.pem", &client.ca_pem),
        cert: file(dir, "server.pem", &cert),
        key: file(dir, "server.key", &key),
        client_cert: file(dir, "client.pem", &client.cert_pem),
        client_key: file(dir, "client.key", &client.key_pem),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_are_replaced_are_taken_up_without_a_restart() {
    on_each("rotated-tls", async |release, dir| {
        let (first, second) = (Authority::new(), Authority::new());
        let client = first.client(&first, None);
        let tls = files(dir, &first, &client);
        let mut etcd = start(release, dir, Options { tls: Some(tls), ..Options::default() });
        let source = Arc::new(Mutex::new(Ok(client.clone())));
        let read = Arc::clone(&source);
        let mut settings = EtcdConfig { tls: Some(client), ..config(&etcd) };
        settings.reload = Some(Reload::new(move || {
            let tls: Result<EtcdTls, String> = read.lock().expect("sane").clone();
            Ok(EtcdSecrets { tls: Some(tls?), credentials: None })
        }));
        let store = connected(settings).await;
        put(&*store, "/a", "0").await;
        let set = |tls| *source.lock().expect("sane") = tls;

        // While files are being replaced, what was good is.
        set(Err("it is not there just now".to_owned()));
        etcd.kill(0).expect("kills");
        etcd.restart(0).expect("comes back");
        eventually("a read", async || store.range(range("/a", 1, None)).await).await;

        // A new authority of everything, which etcd takes only when it starts.
        let client = second.client(&second, None);
        files(dir, &second, &client);
        etcd.kill(0).expect("kills");
        etcd.restart(0).expect("comes back");
        let refused = store.range(range("/a", 1, None)).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
        set(Ok(client));
        eventually("a read", async || store.range(range("/a", 1, None)).await).await;
        put(&*store, "/a", "1").await;
        assert!(store.members().await[0].state.is_ok());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_client_certificates_only_ours_get_in() {
    on_each("tls", async |release, dir| {
        let (authority, stranger) = (Authority::new(), Authority::new());
        let client = authority.client(&authority, None);
        let tls = files(dir, &authority, &client);
        let etcd = start(release, dir, Options { tls: Some(tls), ..Options::default() });
        let with = |tls: EtcdTls| EtcdConfig { tls: Some(tls), ..config(&etcd) };

        let store = connected(with(client)).await;
        let written = put(&*store, "/a", "1").await;
        let mut watch = store.watch("/", written).await.expect("watches");
        assert!(matches!(next(&mut watch).await, Some(WatchEvent::Commit { .. })));

        for (what, tls) in [
            ("a client of another authority", authority.client(&stranger, None)),
            ("a server of another authority", stranger.client(&authority, None)),
            ("a server of another name", authority.client(&authority, Some("elsewhere"))),
        ] {
            let store = connected(with(tls)).await;
            let refused = store.range(range("/", 1, None)).await;
            let Err(StoreError::Unavailable(why)) = &refused else { unreachable!("{refused:?}") };
            assert!(why.contains(&etcd.endpoints()[0]), "{what}: {why}");
            eprintln!("{what}: {why}");
        }
        let mut broken = authority.client(&authority, None);
        broken.key_pem = "no key".to_owned();
        let refused = Etcd::connect(with(broken)).await.map(drop);
        assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    })
    .await;
}
