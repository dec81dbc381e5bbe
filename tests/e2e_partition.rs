//! The way between two regions is cut, both ways and one way, while both go on.

mod common;

use std::time::Duration;

use anyhow::ensure;
use common::manifests::service;
use common::regions::{self, Regions, Setup, replicas};
use common::{EU, SOON, US, ask};
use serde_json::Value;
use tombolo_testbed::netns::Fault;
use tombolo_testbed::wait_for;

/// An owner that is silent for 30 s is stale; ten times that would be 5 minutes of nothing.
const STALE: Duration = Duration::from_secs(90);
/// A connection that hangs is given up after 10 s + 5 s, and dialled again after at most 5 s.
const HEALED: Duration = Duration::from_mins(1);

fn source<'a>(status: &'a Value, owner: &str) -> &'a Value {
    let sources = status["sources"].as_array().into_iter().flatten();
    sources.into_iter().find(|source| source["owner"] == owner).unwrap_or(&Value::Null)
}

fn start(test: &str) -> Option<anyhow::Result<Regions>> {
    let full = format!("e2e_partition::{test}");
    regions::etcd_or_skip(&full)?;
    regions::links_or_skip(&full)?;
    Some(Regions::start(test, Setup::default()))
}

/// Edits on both sides: an addition and a removal each.
struct Edits {
    added: [(&'static str, String); 2],
}

impl Edits {
    fn make(regions: &Regions, sampler: &regions::sampler::Sampler) -> anyhow::Result<Self> {
        let m = &regions.manifests;
        let (us, eu) = (m.us(1, 95), m.eu(1, 95));
        sampler.may_go("shop/checkout us-west1-beta");
        sampler.may_go("shop/catalog europe-west4-beta");
        m.write("us-west1/alpha/search.yaml", &service("search", &us))?;
        m.write("europe-west4/alpha/mail.yaml", &service("mail", &eu))?;
        m.drop_last_document("us-west1/beta/checkout.yaml", "ServiceExport")?;
        m.drop_last_document("europe-west4/beta/catalog.yaml", "ServiceExport")?;
        Ok(Self { added: [("search", us), ("mail", eu)] })
    }

    /// One region has its own edits.
    fn seen_at_home(&self, regions: &Regions, region: &str) -> anyhow::Result<()> {
        let (service, address) = &self.added[usize::from(region == EU)];
        for name in replicas(region) {
            wait_for(format!("{name} has its region's edit"), SOON, || {
                ask::same(&regions.addresses(&name, service)?, &vec![address.clone()])
            })?;
        }
        Ok(())
    }

    /// What one region did while cut off has not come to the other.
    fn not_seen_abroad(&self, regions: &Regions, region: &str) -> anyhow::Result<()> {
        let (service, _) = &self.added[usize::from(region == EU)];
        for name in replicas(regions::other(region)) {
            ask::same(&regions.at(&name, |at| ask::code(at.dns, service))?.as_str(), &"NXDOMAIN")?;
        }
        Ok(())
    }
}

#[test]
fn a_cut_between_regions_withdraws_nothing_shows_its_age_and_heals() -> anyhow::Result<()> {
    let Some(regions) = start("a_cut_between_regions") else { return Ok(()) };
    let regions = regions?;
    let sampler = regions.sample()?;
    wait_for("all have heard all", SOON, || {
        for name in Regions::names() {
            let status = regions.status(&name)?;
            let sources = status["sources"].as_array().into_iter().flatten();
            let unheard = |source: &&Value| {
                source["ageSeconds"].is_null()
                    && !source["owner"].as_str().is_some_and(|o| o.ends_with(&name))
            };
            let unheard: Vec<_> = sources.filter(unheard).collect();
            ensure!(unheard.is_empty(), "{name}: {unheard:?}");
        }
        Ok(())
    })?;
    regions.link()?.part(US, EU, Fault::Drop)?;
    let edits = Edits::make(&regions, &sampler)?;
    for region in [US, EU] {
        edits.seen_at_home(&regions, region)?;
        edits.not_seen_abroad(&regions, region)?;
    }
    for (name, silent) in [
        (regions.leader(US)?, "europe-west4/europe-west4-alpha"),
        (regions.leader(EU)?, "us-west1/us-west1-beta"),
        ("us-west1-alpha".to_owned(), "europe-west4/europe-west4-beta"),
    ] {
        wait_for(format!("{name} says that {silent} is stale"), STALE, || {
            let status = regions.status(&name)?;
            let source = source(&status, silent);
            ensure!(source["stale"] == true, "{source}");
            ensure!(source["ageSeconds"].as_f64() > Some(30.0), "{source}");
            Ok(())
        })?;
    }
    for name in replicas(US) {
        assert_eq!(regions.addresses(&name, "catalog")?.len(), 4, "{name} serves what it knew");
    }
    regions.link()?.heal(US, EU)?;
    eprintln!("agreed {:?} after the link was back", regions.converge(HEALED)?);
    wait_for("nobody is stale any more", SOON, || {
        for name in Regions::names() {
            let status = regions.status(&name)?;
            let sources = status["sources"].as_array().into_iter().flatten();
            let stale: Vec<_> = sources.filter(|source| source["stale"] == true).collect();
            ensure!(stale.is_empty(), "{name}: {stale:?}");
        }
        Ok(())
    })?;
    eprintln!("{} samples, no false delete", sampler.end()?);
    regions.end()
}

#[test]
fn a_link_that_is_cut_one_way_withdraws_nothing_and_heals() -> anyhow::Result<()> {
    let Some(regions) = start("a_link_that_is_cut_one_way") else { return Ok(()) };
    let regions = regions?;
    let sampler = regions.sample()?;
    // What the US says is lost, requests and acknowledgements alike; what Europe says arrives.
    regions.link()?.cut(US, EU, Fault::Drop)?;
    let edits = Edits::make(&regions, &sampler)?;
    for region in [US, EU] {
        edits.seen_at_home(&regions, region)?;
    }
    edits.not_seen_abroad(&regions, US)?;
    for region in [US, EU] {
        let leader = regions.leader(region)?;
        wait_for(format!("{leader} sees that the link is down"), HEALED, || {
            ask::same(&regions.status(&leader)?["links"][0]["synced"], &false.into())
        })?;
    }
    regions.link()?.heal(US, EU)?;
    eprintln!("agreed {:?} after the link was back", regions.converge(HEALED)?);
    eprintln!("{} samples, no false delete", sampler.end()?);
    regions.end()
}
