//! Users, their tokens, and what makes a token worthless.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tombolo_federation::store::etcd::{EtcdConfig, EtcdCredentials, EtcdSecrets, Reload};
use tombolo_federation::store::{Op, Store, StoreError, WatchEvent};
use tombolo_testbed::etcd::{Etcd, Options, Release};

use crate::{commit, config, connected, last_word, next, on_each, put, range, start};

const PASSWORD: &str = "hunter2";

/// One member whose tokens are JWTs that live for `ttl`, with a user `tombolo` for `/tombolo/`.
fn with_jwt(release: Release, dir: &Path, ttl: &str) -> Etcd {
    let secret = dir.join("jwt.key");
    std::fs::write(&secret, "a shared secret of the members").expect("writes");
    let token =
        format!("--auth-token=jwt,sign-method=HS256,priv-key={},ttl={ttl}", secret.display());
    let mut etcd = start(release, dir, Options { flags: vec![token], ..Options::default() });
    etcd.add_user("tombolo", PASSWORD, "/tombolo/").expect("adds a user");
    etcd.enable_auth("root").expect("turns auth on");
    etcd
}

fn as_user(etcd: &Etcd, user: &str, password: &str) -> EtcdConfig {
    let (user, password) = (user.to_owned(), password.to_owned());
    EtcdConfig { credentials: Some(EtcdCredentials { user, password }), ..config(etcd) }
}

/// Every kind of request, each after `before`; none of them may notice. As root, since old
/// versions want one for watches.
async fn all_requests(store: &dyn Store, before: impl AsyncFn()) {
    before().await;
    put(store, "/tombolo/a", "0").await;
    let written = put(store, "/tombolo/a", "1").await;
    before().await;
    store.range(range("/tombolo/", 10, None)).await.expect("reads");
    before().await;
    store.range(range("/tombolo/", 10, Some(written))).await.expect("reads the past");
    before().await;
    let lease = store.grant_lease(Duration::from_mins(1)).await.expect("grants");
    before().await;
    let op = Op::Put { key: "/tombolo/l".to_owned(), value: "".into(), lease: Some(lease) };
    commit(store, vec![op]).await.expect("commits");
    before().await;
    store.keep_alive(lease).await.expect("keeps");
    before().await;
    store.revoke_lease(lease).await.expect("revokes");
    before().await;
    store.compact(written).await.expect("compacts");
    before().await;
    let mut watch = store.watch("/tombolo/", written).await.expect("watches");
    let first = next(&mut watch).await;
    assert!(matches!(first, Some(WatchEvent::Commit { revision, .. }) if revision == written));
    before().await;
    let gone = store.watch("/tombolo/", 1).await.expect("watches");
    drop(gone);
    before().await;
    let gone = store.range(range("/tombolo/", 10, Some(written - 1))).await;
    assert_eq!(gone, Err(StoreError::Compacted { wanted: written - 1, oldest: written }));
    before().await;
    assert!(store.members().await[0].state.is_ok());
    // It was opened with a token that is worthless by now, and goes on.
    let again = put(store, "/tombolo/a", "2").await;
    loop {
        match next(&mut watch).await {
            Some(WatchEvent::Commit { revision, .. }) if revision == again => break,
            Some(WatchEvent::Commit { .. } | WatchEvent::Progress { .. }) => {}
            other => unreachable!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_heals_in_one_retry() {
    on_each("token-ttl", async |release, dir| {
        let etcd = with_jwt(release, dir, "2s");
        let store = connected(as_user(&etcd, "root", "root")).await;
        let expired = || tokio::time::sleep(Duration::from_millis(3100));
        all_requests(&*store, async || expired().await).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_users_heals_in_one_retry() {
    on_each("auth-revision", async |release, dir| {
        let etcd = with_jwt(release, dir, "10m");
        let store = connected(as_user(&etcd, "root", "root")).await;
        put(&*store, "/tombolo/a", "0").await;
        let count = std::sync::atomic::AtomicUsize::new(0);
        let changed = async || {
            let n = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            etcd.ctl(&["user", "add", &format!("user{n}:secret")]).expect("adds a user");
        };
        all_requests(&*store, changed).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_of_one_prefix_is_enough() {
    on_each("prefix-user", async |release, dir| {
        let etcd = with_jwt(release, dir, "10m");
        let store = connected(as_user(&etcd, "tombolo", PASSWORD)).await;
        let written = put(&*store, "/tombolo/a", "1").await;
        store.range(range("/tombolo/", 10, Some(written))).await.expect("reads");
        let lease = store.grant_lease(Duration::from_mins(1)).await.expect("grants");
        let op = Op::Put { key: "/tombolo/l".to_owned(), value: "".into(), lease: Some(lease) };
        commit(&*store, vec![op]).await.expect("commits");
        store.keep_alive(lease).await.expect("keeps");
        store.revoke_lease(lease).await.expect("revokes");
        assert_eq!(store.keep_alive(lease).await, Err(StoreError::NoLease(lease)));
        let op = Op::Put { key: "/tombolo/l".to_owned(), value: "".into(), lease: Some(lease) };
        let late = commit(&*store, vec![op]).await;
        assert_eq!(late, Err(StoreError::NoLease(lease)));
        assert!(store.members().await[0].state.is_ok());
        match (release, store.compact(written).await) {
            (Release::Debian, compacted) => compacted.expect("compacts"),
            // Only the role root may, since that hole was closed.
            (Release::Pinned, Err(StoreError::Unavailable(why))) => {
                assert!(why.contains("permission denied"), "{why}");
            }
            (Release::Pinned, other) => unreachable!("{other:?}"),
        }
        let outside = commit(&*store, vec![Op::put("/other", "1")]).await;
        let Err(StoreError::Unavailable(why)) = outside else { unreachable!("{outside:?}") };
        assert!(why.contains("permission denied") && why.contains("role"), "{why}");
        match (release, store.watch("/tombolo/", written).await) {
            (Release::Pinned, watch) => {
                let first = next(&mut watch.expect("watches")).await;
                assert!(matches!(first, Some(WatchEvent::Commit { .. })), "{first:?}");
            }
            (Release::Debian, Err(StoreError::Unavailable(why))) => {
                assert!(why.contains("all keys") && why.contains("upgrade"), "{why}");
            }
            (Release::Debian, watch) => unreachable!("{watch:?}"),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_are_told_and_heal_when_corrected() {
    on_each("credentials", async |release, dir| {
        let mut etcd = start(release, dir, Options::default());
        etcd.add_user("tombolo", PASSWORD, "/tombolo/").expect("adds a user");
        let why = async |store: &dyn Store| {
            let refused = store.range(range("/tombolo/", 1, None)).await;
            let Err(StoreError::Unavailable(why)) = refused else { unreachable!("{refused:?}") };
            assert!(!why.contains(PASSWORD) && why.contains(&etcd.endpoints()[0]), "{why}");
            why
        };
        let right = connected(as_user(&etcd, "tombolo", PASSWORD)).await;
        let off = why(&*right).await;
        assert!(off.contains("not enabled"), "{off}");
        let wrong = connected(as_user(&etcd, "tombolo", "wrong")).await;
        let nobody = connected(config(&etcd)).await;
        put(&*nobody, "/tombolo/a", "1").await;
        let mut watch = nobody.watch("/tombolo/", 1).await.expect("watches");
        etcd.enable_auth("root").expect("turns auth on");
        right.range(range("/tombolo/", 1, None)).await.expect("it is on now");
        for (store, word) in [(&wrong, "password"), (&nobody, "user name is empty")] {
            let refused = store.range(range("/tombolo/", 1, None)).await;
            let Err(StoreError::Unavailable(why)) = refused else { unreachable!("{refused:?}") };
            assert!(why.contains(word), "{why}");
            let refused = store.watch("/tombolo/", 1).await;
            assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
        }
        drop((wrong, nobody));
        // Opened when all was allowed; etcd lets it be, dropping the store ends it.
        let last = last_word(&mut watch).await;
        assert!(!matches!(last, Some(WatchEvent::Compacted { .. })), "{last:?}");
    })
    .await;
}

/// With tokens of both kinds: a change of password ends them in different words.
#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_is_replaced_is_taken_up_without_a_restart() {
    on_each("rotated-password", async |release, dir| {
        for jwt in [false, true] {
            let dir = dir.join(format!("jwt-{jwt}"));
            std::fs::create_dir_all(&dir).expect("a directory");
            let etcd = if jwt {
                with_jwt(release, &dir, "10m")
            } else {
                let mut etcd = start(release, &dir, Options::default());
                etcd.add_user("tombolo", PASSWORD, "/tombolo/").expect("adds a user");
                etcd.enable_auth("root").expect("turns auth on");
                etcd
            };
            let file = Arc::new(Mutex::new(PASSWORD.to_owned()));
            let read = Arc::clone(&file);
            let mut settings = as_user(&etcd, "tombolo", PASSWORD);
            settings.reload = Some(Reload::new(move || {
                let (user, password) = ("tombolo".to_owned(), read.lock().expect("sane").clone());
                let credentials = Some(EtcdCredentials { user, password });
                Ok(EtcdSecrets { tls: None, credentials })
            }));
            let store = connected(settings).await;
            put(&*store, "/tombolo/a", "0").await;
            let change = async |password: &str| {
                let root = etcd_client::ConnectOptions::new().with_user("root", "root");
                let root = etcd_client::Client::connect(etcd.endpoints(), Some(root)).await;
                let mut root = root.expect("connects");
                root.user_change_password("tombolo", password).await.expect("changes");
            };
            // The file first, as one should: no request notices.
            "second".clone_into(&mut file.lock().expect("sane"));
            change("second").await;
            put(&*store, "/tombolo/a", "1").await;
            change("third").await;
            let refused = store.range(range("/tombolo/", 1, None)).await;
            let Err(StoreError::Unavailable(why)) = refused else { unreachable!("{refused:?}") };
            assert!(why.contains("password") && !why.contains("second"), "{why}");
            "third".clone_into(&mut file.lock().expect("sane"));
            put(&*store, "/tombolo/a", "2").await;
            assert!(store.members().await[0].state.is_ok());
        }
    })
    .await;
}
