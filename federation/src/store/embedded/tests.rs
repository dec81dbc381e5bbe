use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::store::conformance;

#[tokio::test]
async fn in_memory_conforms() {
    conformance::all(|| async {
        let store: Arc<dyn Store> = Arc::new(Embedded::in_memory().await.expect("memory"));
        store
    })
    .await;
}

#[tokio::test]
async fn durable_conforms() {
    let directory = tempfile::tempdir().expect("a directory");
    let made = AtomicU32::new(0);
    conformance::all(|| async {
        let name = format!("{}.redb", made.fetch_add(1, Ordering::Relaxed));
        let store = Embedded::open(directory.path().join(name)).await.expect("opens");
        let store: Arc<dyn Store> = Arc::new(store);
        store
    })
    .await;
}
