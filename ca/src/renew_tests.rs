use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, Ordering};

use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::Code;
use tonic::service::Routes;

use super::*;
use crate::identity::Identity;
use crate::material::Held;
use crate::service::Authority;
use crate::testing::{Mesh, NOW, agent, at, control_plane, workload};
use crate::tls::{Incoming, Limits};

const DAY: Duration = Duration::from_hours(24);
/// Ten times what any of this may take.
const LONG: Duration = Duration::from_secs(50);

/// A clock that the test sets.
#[derive(Clone)]
struct Hands(Arc<AtomicI64>);

impl Hands {
    fn new() -> (Self, Clock) {
        let hands = Self(Arc::new(AtomicI64::new(0)));
        let read = hands.clone();
        (hands, Clock::new(move || at(read.0.load(Ordering::SeqCst))))
    }

    fn set(&self, seconds: i64) {
        self.0.store(seconds, Ordering::SeqCst);
    }
}

/// A region's CA on a real port.
struct Served {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Served {
    async fn start(ca: Arc<RegionCa>, held: &Held, clock: &Clock) -> Self {
        let service = Authority::new(ca, clock.clone()).into_service();
        Self::with(Routes::new(service), held, clock).await
    }

    async fn without_ca(held: &Held, clock: &Clock) -> Self {
        Self::with(Routes::default(), held, clock).await
    }

    async fn with(routes: Routes, held: &Held, clock: &Clock) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = Incoming::new(listener, held, clock, Limits::default()).unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let server = tonic::transport::Server::builder().add_routes(routes);
            server.serve_with_incoming(incoming.stream()).await.unwrap();
        });
        Self { address, _tasks: tasks }
    }

    fn issuer(&self, client: &Holder, expected: Identity, clock: &Clock) -> Issuer {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        Issuer::Remote {
            endpoint: Box::new(endpoint),
            connector: Connector::new(&client.held(), expected, clock).unwrap(),
        }
    }
}

struct Setup {
    ca: Arc<RegionCa>,
    client: Arc<Holder>,
    served: Served,
    clock: Clock,
    hands: Hands,
}

async fn setup(identity: Identity) -> Setup {
    let (hands, clock) = Hands::new();
    let mesh = Mesh::new();
    let own = mesh.holder(&mesh.west, control_plane("west"), 10 * DAY);
    let issued_by = if *identity.region() == *mesh.west.region() { &mesh.west } else { &mesh.east };
    let client = Arc::new(mesh.holder(issued_by, identity, DAY));
    let ca = Arc::new(mesh.west);
    let served = Served::start(Arc::clone(&ca), &own.held(), &clock).await;
    Setup { ca, client, served, clock, hands }
}

impl Setup {
    fn renewer(&self) -> Renewer {
        let issuer = self.served.issuer(&self.client, control_plane("west"), &self.clock);
        Renewer::new(Arc::clone(&self.client), issuer, self.clock.clone())
            .checking_every(Duration::from_millis(10))
    }

    fn serial(&self) -> String {
        self.client.current().credential().subject().serial.clone()
    }
}

#[tokio::test]
async fn a_certificate_is_renewed_for_the_same_identity_with_a_new_key() {
    let setup = setup(agent("west", "west-a")).await;
    let before = setup.client.current();
    let dir = tempfile::tempdir().unwrap();
    setup.hands.set(3600);
    setup.renewer().saving_to(dir.path().to_owned()).renew_now().await.unwrap();
    let after = setup.client.current();
    assert_eq!(after.credential().identity(), before.credential().identity());
    assert_eq!(after.credential().subject().origin, before.credential().subject().origin);
    assert_eq!(after.credential().expires(), at(3600 + 24 * 3600));
    let key =
        |material: &Material| material.credential().certified().key.public_key().unwrap().to_vec();
    assert_ne!(key(&before), key(&after));
    assert!(dir.path().join("key.pem").exists() && dir.path().join("cert.pem").exists());
    // With the new one, on to the next.
    setup.renewer().renew_now().await.unwrap();
    assert_ne!(setup.serial(), after.credential().subject().serial);
}

#[tokio::test]
async fn another_regions_ca_gives_nothing() {
    let setup = setup(workload("east")).await;
    let before = setup.serial();
    let refused = setup.renewer().renew_now().await.unwrap_err();
    let RenewError::Refused(status) = &refused else { panic!("{refused}") };
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(setup.serial(), before);
}

/// An open connection proves a certificate that has ended since.
#[tokio::test]
async fn a_connection_older_than_its_certificate_gives_nothing() {
    let setup = setup(workload("west")).await;
    let Issuer::Remote { endpoint, connector } =
        setup.served.issuer(&setup.client, control_plane("west"), &setup.clock)
    else {
        unreachable!()
    };
    let channel = endpoint.connect_with_connector(connector).await.unwrap();
    let current = setup.client.current();
    renew(channel.clone(), &current, setup.clock.now()).await.unwrap();
    setup.hands.set(24 * 3600 + 1);
    let refused = renew(channel, &current, setup.clock.now()).await.unwrap_err();
    let RenewError::Refused(status) = &refused else { panic!("{refused}") };
    assert_eq!(status.code(), Code::Unauthenticated);
}

/// Two addresses of the region whose servers have no CA.
#[tokio::test]
async fn that_nobody_has_the_ca_is_known_once_all_addresses_have_answered() {
    let (hands, clock) = Hands::new();
    let mesh = Mesh::new();
    let own = mesh.holder(&mesh.west, control_plane("west"), 10 * DAY);
    let client = Arc::new(mesh.holder(&mesh.west, control_plane("west"), DAY));
    let mut servers = Vec::new();
    for _ in 0..2 {
        servers.push(Served::without_ca(&own.held(), &clock).await);
    }
    let uris = servers.iter().map(|s| format!("http://{}", s.address).parse().unwrap());
    let Issuer::Remote { endpoint, connector } =
        servers[0].issuer(&client, control_plane("west"), &clock)
    else {
        unreachable!()
    };
    let issuer = Issuer::Remote { endpoint, connector: connector.among(uris.collect()) };
    let renewer = || Renewer::new(Arc::clone(&client), issuer.clone(), clock.clone());
    hands.set(13 * 3600);
    let error = renewer().renew_now().await.unwrap_err();
    assert!(matches!(error, RenewError::NoCa), "{error}");

    let judged = renewer();
    let nobody = judged.nobody();
    let after = |outcome: Result<&(), &RenewError>| {
        judged.judge(outcome, 0);
        *nobody.borrow()
    };
    let silent = RenewError::TimedOut(TIMEOUT);
    assert_eq!([after(Err(&error)), after(Err(&silent)), after(Err(&error))], [false; 3]);
    assert!(after(Err(&error)), "both, one after the other");
    assert!(!after(Ok(&())));

    let renewer = renewer().checking_every(Duration::from_millis(10));
    let mut nobody = renewer.nobody();
    let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
    tasks.spawn(renewer.run(stop.clone()));
    timeout(LONG, nobody.wait_for(|nobody| *nobody)).await.unwrap().unwrap();
    stop.cancel();
    timeout(LONG, tasks.join_next()).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn the_loop_renews_when_due_and_not_before() {
    let setup = setup(workload("west")).await;
    let due = setup.client.current().credential().renewal_due();
    let mut held = setup.client.held();
    let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
    tasks.spawn(setup.renewer().run(stop.clone()));
    let seconds = due.as_second() - NOW.as_second();
    setup.hands.set(seconds - 1);
    // Some looks at the clock, none of which may renew.
    assert!(timeout(Duration::from_millis(200), held.changed()).await.is_err());
    setup.hands.set(seconds + 1);
    let renewed = timeout(LONG, held.changed()).await.expect("renewed").unwrap();
    assert_eq!(renewed.credential().expires(), at(seconds + 1 + 24 * 3600));
    stop.cancel();
    timeout(LONG, tasks.join_next()).await.expect("it ends").unwrap().unwrap();
}

/// STYLE 10: a failed renewal keeps what is still valid, and is tried again.
#[tokio::test]
async fn a_failed_renewal_keeps_the_certificate_and_a_later_one_works() {
    let Setup { ca, client, served, clock, hands } = setup(workload("west")).await;
    let before = client.current().credential().subject().serial.clone();
    let gone = served.issuer(&client, control_plane("west"), &clock);
    drop(served);
    let cut_off = Renewer::new(Arc::clone(&client), gone, clock.clone());
    let failed = cut_off.renew_now().await.unwrap_err();
    assert!(matches!(failed, RenewError::Connect(_)), "{failed}");
    assert_eq!(client.current().credential().subject().serial, before);
    assert_eq!(cut_off.judge(Err(&failed), 0), 1);
    assert_eq!(cut_off.judge(Err(&failed), u32::MAX), u32::MAX);
    assert_eq!(cut_off.judge(Ok(&()), 7), 0);

    // A process with the CA in it, past due: the loop catches up.
    let mut held = client.held();
    hands.set(20 * 3600);
    let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
    let local = Renewer::new(Arc::clone(&client), Issuer::Local(ca), clock)
        .checking_every(Duration::from_millis(10));
    tasks.spawn(local.run(stop.clone()));
    let renewed = timeout(LONG, held.changed()).await.expect("renewed").unwrap();
    assert_eq!(renewed.credential().expires(), at(44 * 3600));
    stop.cancel();
    timeout(LONG, tasks.join_next()).await.expect("it ends").unwrap().unwrap();
}

#[test]
fn retries_grow_and_are_bounded() {
    for (failures, longest) in [(1, 5), (2, 10), (3, 20), (7, 300), (50, 300), (u32::MAX, 300)] {
        let longest = Duration::from_secs(longest);
        for _ in 0..20 {
            let wait = retry_after(failures, CHECK);
            assert!(longest / 2 <= wait && wait <= longest, "{failures}: {wait:?}");
        }
    }
}

/// A leaf that was cut short by its issuer's end does not pass that on, in this process either.
#[tokio::test]
async fn a_local_renewal_gives_the_policys_life() {
    let (_, clock) = Hands::new();
    let mesh = Mesh::new();
    let client = Arc::new(mesh.holder(&mesh.west, workload("west"), Duration::from_secs(9)));
    let local = Renewer::new(Arc::clone(&client), Issuer::Local(Arc::new(mesh.west)), clock);
    local.renew_now().await.unwrap();
    assert_eq!(client.current().credential().expires(), at(24 * 3600));
}

#[tokio::test]
async fn a_renewal_that_could_not_be_written_is_written_when_it_can_be() {
    let (_, clock) = Hands::new();
    let mesh = Mesh::new();
    let client = Arc::new(mesh.holder(&mesh.west, workload("west"), DAY));
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("later");
    let local = Renewer::new(Arc::clone(&client), Issuer::Local(Arc::new(mesh.west)), clock)
        .saving_to(dir.clone())
        .checking_every(Duration::from_millis(10));
    let before = client.current().credential().subject().serial.clone();
    let failed = local.renew_now().await.unwrap_err();
    assert!(matches!(failed, RenewError::NotSaved(_)), "{failed}");
    assert_eq!(local.judge(Err(&failed), 0), 0, "nothing to renew again");
    let renewed = client.current().credential().certified();
    assert_ne!(client.current().credential().subject().serial, before);

    let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
    tasks.spawn(local.run(stop.clone()));
    std::fs::create_dir(&dir).unwrap();
    let written = async {
        loop {
            // The certificate is written between two writes of the key.
            let key = std::fs::read_to_string(dir.join("key.pem")).unwrap_or_default();
            let certificate = std::fs::read_to_string(dir.join("cert.pem")).unwrap_or_default();
            if key.contains("END") && certificate.contains("END") {
                return certificate;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let certificate = timeout(LONG, written).await.expect("it is written");
    assert_eq!(certificate, crate::x509::to_pem(&renewed.cert));
    stop.cancel();
    timeout(LONG, tasks.join_next()).await.expect("it ends").unwrap().unwrap();
}
