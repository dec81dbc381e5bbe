//! TLS with client certificates.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use tombolo_federation::store::etcd::{Etcd, EtcdConfig, EtcdTls};
use tombolo_federation::store::{StoreError, WatchEvent};
use tombolo_testbed::etcd::{Options, Tls};

use crate::{config, connected, next, on_each, put, range, start};

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

#[tokio::test(flavor = "multi_thread")]
async fn with_client_certificates_only_ours_get_in() {
    on_each("tls", async |release, dir| {
        let (authority, stranger) = (Authority::new(), Authority::new());
        let (cert, key) = authority.issue(SanType::IpAddress([127, 0, 0, 1].into()));
        let client = authority.client(&authority, None);
        let tls = Tls {
            ca: file(dir, "ca.pem", &client.ca_pem),
            cert: file(dir, "server.pem", &cert),
            key: file(dir, "server.key", &key),
            client_cert: file(dir, "client.pem", &client.cert_pem),
            client_key: file(dir, "client.key", &client.key_pem),
        };
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
