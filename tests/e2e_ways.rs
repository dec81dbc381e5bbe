//! Two of three replicas hear nothing of their store: whoever was with them goes on with the third.

mod common;

use std::time::Duration;

use anyhow::{Context as _, ensure};
use common::US;
use common::manifests::service;
use common::regions::{self, Regions, Setup, replicas};
use serde_json::json;
use tombolo_testbed::proxy::Proxy;
use tombolo_testbed::wait_for;

/// A subscription that says nothing for 20 s is given up, and dialled again after at most 5 s.
const MOVED: Duration = Duration::from_mins(4);
/// A leader whose store is away says so once its lease is over.
const DEPOSED: Duration = Duration::from_mins(1);

#[test]
fn replicas_whose_store_is_away_are_left_for_one_that_has_it() -> anyhow::Result<()> {
    if regions::etcd_or_skip("e2e_ways::replicas_whose_store_is_away").is_none() {
        return Ok(());
    }
    let mut regions = Regions::prepare("replicas_whose_store_is_away", Setup::default())?;
    let (bad, good) = (&replicas(US)[..2], &replicas(US)[2]);
    let etcd = *regions.etcd(US)?.addresses().first().context("a member")?;
    let on = (etcd.ip(), 0).into();
    let way = regions.inside(US, || Proxy::listen(on, etcd))?;
    for name in bad {
        let mut config = regions.control_plane_config(US, name)?;
        config["store"]["etcd"]["endpoints"] = json!([format!("http://{}", way.address())]);
        regions.write_config(name, &config)?;
    }
    // Before the others: an agent's two calls go to two of them then, one at least to a bad one.
    for name in replicas(US) {
        regions.run(&name)?;
        wait_for(format!("{name} answers"), MOVED, || regions.status(&name))?;
    }
    for name in Regions::names().iter().filter(|name| !replicas(US).contains(name)) {
        regions.run(name)?;
    }
    for name in Regions::names() {
        regions.knows_all(&name)?;
    }

    way.black_hole();
    wait_for("another one leads", DEPOSED, || {
        let leaders = regions.leaders(US);
        ensure!(leaders == [good.as_str()], "{leaders:?}");
        Ok(())
    })?;
    let m = &regions.manifests;
    let (alpha, beta, mail) = (m.us(1, 95), m.us(2, 95), m.eu(1, 95));
    m.write("us-west1/alpha/search.yaml", &service("search", &alpha))?;
    m.write("us-west1/beta/basket.yaml", &service("basket", &beta))?;
    m.write("europe-west4/alpha/mail.yaml", &service("mail", &mail))?;
    for (name, addresses) in [("search", alpha), ("basket", beta), ("mail", mail)] {
        for seen_by in Regions::names().iter().filter(|name| !bad.contains(name)) {
            wait_for(format!("{seen_by} serves {name}"), MOVED, || {
                common::ask::same(&regions.addresses(seen_by, name)?, &vec![addresses.clone()])
            })?;
        }
    }
    for cluster in ["alpha", "beta"] {
        let name = format!("{US}-{cluster}");
        wait_for(format!("{name} is not stale"), MOVED, || {
            let status = regions.status(&name)?;
            let sources = status["sources"].as_array().context("sources")?;
            let stale: Vec<_> = sources.iter().filter(|s| s["stale"] == true).collect();
            ensure!(stale.is_empty(), "{stale:?}");
            Ok(())
        })?;
    }
    for name in Regions::names().iter().filter(|name| !bad.contains(name)) {
        let log = regions.process(name)?.stderr()?;
        eprintln!("{name} moved a subscription: {}", log.contains("not even a beacon"));
    }
    way.heal();
    eprintln!("agreed {:?} after the store was back", regions.converge(MOVED)?);
    regions.end()
}
