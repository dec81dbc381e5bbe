//! Two regions with an ocean between them.

mod common;

use std::time::{Duration, Instant};

use anyhow::ensure;
use common::manifests::{Manifests, service};
use common::mesh::agreed_digest;
use common::processes::Apart;
use common::{EU, SOON, US, ask};
use serde_json::json;
use tombolo_testbed::proxy::Proxy;
use tombolo_testbed::{Scratch, wait_for};

/// Each way.
const DELAY: Duration = Duration::from_millis(80);
/// Dialling again is put off for at most 5 s, and every handshake crosses several times.
const JOINED: Duration = Duration::from_secs(40);

#[test]
fn an_edit_crosses_a_slow_link_and_all_agree() -> anyhow::Result<()> {
    let scratch = Scratch::new("delay")?;
    let manifests = Manifests::copy(scratch.path())?;
    let apart = Apart::write(scratch.path(), &manifests)?;
    let mut ways = Vec::new();
    for (region, peer) in [(US, EU), (EU, US)] {
        let way = Proxy::start(apart.listens(peer).grpc)?;
        way.delay(DELAY);
        let mut config = apart.control_plane_config(region);
        config["peers"] = json!([{"region": peer, "address": way.address()}]);
        apart.write_config(region, &config)?;
        ways.push(way);
    }
    let names = Apart::names();
    let mut processes =
        names.iter().map(|name| apart.start(name)).collect::<anyhow::Result<Vec<_>>>()?;
    wait_for("all know all clusters", JOINED, || {
        for admin in apart.admins() {
            ask::same(&ask::exporters(admin, "cart")?.len(), &4)?;
        }
        anyhow::Ok(())
    })?;
    let before = agreed_digest(&apart.admins())?;

    for (region, address, far) in [(US, manifests.us(1, 95), EU), (EU, manifests.eu(1, 95), US)] {
        let (name, written) = (format!("search-{region}"), Instant::now());
        manifests.write(&format!("{region}/alpha/{name}.yaml"), &service(&name, &address))?;
        let far = apart.listens(&format!("{far}-beta"));
        wait_for(format!("{name} has crossed"), SOON, || {
            ask::same(&ask::addresses(far.dns, &name)?, &vec![address.clone()])
        })?;
        let took = written.elapsed();
        assert!(took >= DELAY, "it went another way: {took:?}");
        eprintln!("{name} was answered on the other side after {took:?}");
    }
    wait_for("all agree", SOON, || {
        let now = agreed_digest(&apart.admins())?;
        ensure!(now != before, "nothing has changed");
        Ok(())
    })?;
    for way in &ways {
        assert_eq!(way.counts().refused, 0);
        assert!(way.counts().received > 0, "all went through it");
    }
    for (name, process) in names.iter().zip(&mut processes) {
        assert!(process.terminate(2 * SOON)?.success(), "{name}");
        assert!(!process.stderr()?.contains("panicked"), "{name}");
    }
    Ok(())
}
