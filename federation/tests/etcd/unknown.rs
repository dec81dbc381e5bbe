//! Transactions of which nobody knows whether they happened.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tombolo_federation::store::{Op, StoreError};
use tombolo_testbed::etcd::Options;

use crate::{commit, config, connect, connected, on_each, put, range, start};

/// Passes connections on. Once armed, the next thing that etcd says ends its connection unheard:
/// what it was asked has happened.
async fn swallower(to: SocketAddr, armed: Arc<AtomicBool>, tasks: &mut JoinSet<()>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tasks.spawn(async move {
        let mut pipes = JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(to).await.expect("etcd is there");
            pipes.spawn(pipe(client, server, Arc::clone(&armed)));
        }
    });
    format!("http://{address}")
}

async fn pipe(mut client: TcpStream, mut server: TcpStream, armed: Arc<AtomicBool>) {
    let (mut up, mut down) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        tokio::select! {
            read = client.read(&mut up) => match read {
                Ok(read @ 1..) if server.write_all(&up[..read]).await.is_ok() => {}
                _ => return,
            },
            read = server.read(&mut down) => match read {
                // An answer, not only the acknowledgement of a window or a setting.
                Ok(read) if armed.load(Ordering::SeqCst) && answers(&down[..read]) => {
                    armed.store(false, Ordering::SeqCst);
                    return;
                }
                Ok(read @ 1..) if client.write_all(&down[..read]).await.is_ok() => {}
                _ => return,
            },
        }
    }
}

/// Whether one of the HTTP/2 frames has headers or data (RFC 9113, section 4.1): they come together
/// when the machine is busy.
fn answers(mut frames: &[u8]) -> bool {
    while let [a, b, c, kind, rest @ ..] = frames {
        if matches!(kind, 0 | 1) {
            return true;
        }
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        // Flags and the stream's number, then as much as it says.
        frames = rest.get(5 + length..).unwrap_or_default();
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_may_have_happened_is_told_of_and_not_sent_again() {
    on_each("unknown", async |release, dir| {
        let etcd = start(release, dir, Options::default());
        let (armed, mut tasks) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
        let mut settings = config(&etcd);
        // Three ways to the same member: each of them would take it again.
        let mut ways = Vec::new();
        for _ in 0..3 {
            ways.push(swallower(etcd.addresses()[0], Arc::clone(&armed), &mut tasks).await);
        }
        settings.endpoints = ways;
        let (store, straight) = (connected(settings).await, connect(&etcd).await);
        for round in 0..5 {
            // It was heard just now: nothing harmless is asked before the transaction.
            let before = put(&*store, "/a", &format!("before {round}")).await;
            armed.store(true, Ordering::SeqCst);
            let unknown = commit(&*store, vec![Op::put("/a", format!("once {round}"))]).await;
            assert!(!armed.load(Ordering::SeqCst), "its answer was swallowed");
            let Err(StoreError::Unavailable(why)) = unknown else { unreachable!("{unknown:?}") };
            assert!(why.contains("it may have happened"), "{why}");
            let page = straight.range(range("/a", 1, None)).await.expect("reads");
            assert_eq!(page.revision, before + 1, "it happened once");
            assert_eq!(page.entries[0].value, format!("once {round}"));
        }
    })
    .await;
}
