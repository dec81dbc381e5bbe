//! `/metrics`: what the crates count, and what status knows, as gauges made at each scrape.

use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::admin::Visible;
use super::status::{LinkStatus, SourceStatus, Status};
use super::wall_clock;

/// All metrics in the `OpenMetrics` text format.
pub(crate) fn encode(visible: &dyn Visible) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    let mut of_status = prometheus_client::registry::Registry::with_prefix("tombolo");
    of_status.register_collector(Box::new(OfStatus(visible.status())));
    prometheus_client::encoding::text::encode_registry(&mut text, &of_status)?;
    prometheus_client::encoding::text::encode(&mut text, &visible.serving().registry)?;
    Ok(text)
}

#[derive(Debug)]
struct OfStatus(Status);

impl Collector for OfStatus {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let status = &self.0;
        gauge(
            &mut encoder,
            "ready",
            "1 once everything that readiness waits for is there",
            f64::from(u8::from(status.ready)),
        )?;
        if let Some(leader) = status.leader {
            gauge(
                &mut encoder,
                "leader",
                "1 while this process leads its region",
                f64::from(u8::from(leader)),
            )?;
        }
        if let Some(catalog) = &status.catalog {
            gauge(
                &mut encoder,
                "catalog_generation",
                "Counts the catalogs built by this process",
                to_f64(catalog.generation),
            )?;
            gauge(&mut encoder, "catalog_services", "Merged services", to_f64(catalog.services))?;
            gauge(
                &mut encoder,
                "catalog_endpoints",
                "Endpoints of merged services",
                to_f64(catalog.endpoints),
            )?;
        }
        gauge(
            &mut encoder,
            "proxies",
            "Proxies connected to this process",
            to_f64(status.proxies),
        )?;
        gauge(
            &mut encoder,
            "peer_disagreements",
            "Settings that regions do not say the same of, or that this replica's file has otherwise than \
             its region's record; status names them",
            to_f64(status.disagreements.len()),
        )?;
        self.of_certificate(&mut encoder)?;
        self.of_cache(&mut encoder)?;
        self.of_store(&mut encoder)?;
        self.by_source(&mut encoder)?;
        self.by_decision(&mut encoder)?;
        self.by_link(&mut encoder)
    }
}

impl OfStatus {
    fn of_certificate(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(expires) = self.0.certificate_expires else { return Ok(()) };
        let help = "When the certificate in use ends, in seconds since 1970";
        gauge(encoder, "certificate_expires_timestamp_seconds", help, seconds(expires))?;
        let help =
            "1 while the certificate should have been renewed long ago; status says why it was not";
        let overdue = u8::from(self.0.certificate_problem.is_some());
        gauge(encoder, "certificate_overdue", help, overdue.into())
    }

    fn of_cache(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let cache = &self.0.cache;
        let mut saves = encoder.encode_descriptor(
            "cache_saves",
            "Attempts to save what is held, by how they ended",
            None,
            ConstCounter::new(0_u64).metric_type(),
        )?;
        for (outcome, count) in [("saved", cache.saved), ("failed", cache.failed)] {
            ConstCounter::new(count).encode(saves.encode_family(&[("outcome", outcome)])?)?;
        }
        if let (Some(generation), Some(saved_at)) = (cache.generation, cache.saved_at) {
            let help = "The newest good image on disk";
            gauge(encoder, "cache_generation", help, to_f64(generation))?;
            let age = wall_clock()().duration_since(saved_at).as_secs_f64().max(0.0);
            gauge(encoder, "cache_age_seconds", "Since the newest good image was saved", age)?;
        }
        Ok(())
    }

    fn of_store(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(store) = &self.0.store else { return Ok(()) };
        let help = "The newest revision of the region's store that this process holds all of";
        gauge(encoder, "store_position", help, to_f64(store.position))?;
        let help = "Times that the store turned out to be another: restored, or lost";
        gauge(encoder, "store_other_histories", help, to_f64(store.other_histories))?;
        let help = "Records that the store has lost and that are not written back yet";
        gauge(encoder, "store_lost_records", help, to_f64(store.lost))?;
        let help =
            "Keys of the store that are no records and left alone, up to 20; status names them";
        gauge(encoder, "store_strays", help, to_f64(store.strays))?;
        if let Some(age) = store.compacted_age_seconds {
            let help = "Since this leader let history of the store go the last time";
            gauge(encoder, "store_compacted_age_seconds", help, age)?;
        }
        let help = "What an operator has to do something about; `tombolo status` names it";
        gauge(encoder, "store_alarms", help, to_f64(store.alarms.len()))
    }

    fn by_source(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        type Value = fn(&SourceStatus) -> Option<f64>;
        let metrics: [(&str, &str, Value); 7] = [
            ("source_records", "Records held of an owner", |s| Some(to_f64(s.records))),
            (
                "source_quarantined",
                "Records of an owner that cannot be read; their last good version is in use",
                |s| Some(to_f64(s.quarantined)),
            ),
            (
                "source_stale",
                "1 while nothing new is heard of an owner; what it said is still served",
                |s| Some(f64::from(u8::from(s.stale))),
            ),
            ("source_age_seconds", "Time since an owner's last beacon", |s| s.age_seconds),
            ("holds", "Removals that an owner holds back because nothing explains them", |s| {
                Some(to_f64(s.holds.len()))
            }),
            ("held_endpoints", "Endpoints that stay because of an owner's holds", |s| {
                Some(s.holds.iter().map(|hold| f64::from(hold.endpoints)).sum())
            }),
            (
                "suspect",
                "1 while an owner's readiness is not believed: unready endpoints are degraded",
                |s| Some(f64::from(u8::from(s.suspect.is_some()))),
            ),
        ];
        for (name, help, value) in metrics {
            let values = self
                .0
                .sources
                .iter()
                .filter_map(|s| Some(([("owner", s.owner.as_str())], value(s)?)));
            family(encoder, name, help, values)?;
        }
        Ok(())
    }

    fn by_decision(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        // None is not said to stand before it is known.
        let values = self.0.decisions.iter().flat_map(|decisions| {
            ["applied", "waiting", "over"].map(|state| {
                let of_it = decisions.iter().filter(|decision| decision.state == state);
                ([("state", state)], to_f64(of_it.count()))
            })
        });
        let help = "Operators' decisions that stand; status says what the waiting ones wait for";
        family(encoder, "decisions", help, values)
    }

    fn by_link(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        // Nobody is to be called for a link that another replica keeps.
        let links = self.0.links.iter().filter(|link| !link.left_to_leader);
        let synced =
            links.map(|link| ([("link", link.name.as_str())], f64::from(u8::from(link.synced))));
        family(
            encoder,
            "link_synced",
            "1 while a stream to a region is up and in step; those to peers at the leader alone",
            synced,
        )?;
        self.strays_by_link(encoder)
    }

    /// Counted since this process started, whoever keeps the link now.
    fn strays_by_link(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let links = &self.0.links;
        let left_out = links.iter().flat_map(|link| {
            let reasons = link.left_out_for.iter();
            reasons.map(|(why, n)| ([("link", &*link.name), ("reason", why)], *n))
        });
        let help = "Items that the other side sent and that were not taken";
        counters(encoder, "link_left_out", help, left_out)?;
        let by_link = |count: fn(&LinkStatus) -> u64| {
            links.iter().map(move |link| ([("link", &*link.name)], count(link)))
        };
        let help = "Records that the other side sent in an older version than the one that is held";
        counters(encoder, "link_went_back", help, by_link(|link| link.went_back))?;
        let help = "Times that what is held was not what the other side said that it should be";
        counters(encoder, "link_mismatches", help, by_link(|link| link.mismatches))
    }
}

fn counters<'a, const N: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl Iterator<Item = ([(&'static str, &'a str); N], u64)>,
) -> Result<(), std::fmt::Error> {
    let metric_type = ConstCounter::new(0_u64).metric_type();
    let mut metric = encoder.encode_descriptor(name, help, None, metric_type)?;
    for (labels, value) in values {
        ConstCounter::new(value).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: f64,
) -> Result<(), std::fmt::Error> {
    let gauge = ConstGauge::new(value);
    let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
    gauge.encode(metric)
}

fn family<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl Iterator<Item = ([(&'static str, &'a str); 1], f64)>,
) -> Result<(), std::fmt::Error> {
    let mut metric =
        encoder.encode_descriptor(name, help, None, ConstGauge::new(0.0).metric_type())?;
    for (labels, value) in values {
        ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

fn seconds(at: Timestamp) -> f64 {
    to_f64(at.as_second().max(0))
}

/// Counts are exact up to 2^53, which none of them reaches.
#[expect(clippy::cast_precision_loss, reason = "see above")]
fn to_f64(count: impl TryInto<u64>) -> f64 {
    count.try_into().map_or(f64::NAN, |count| count as f64)
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode_registry;
    use prometheus_client::registry::Registry;
    use tombolo_federation::sync::client::Link;
    use tombolo_federation::sync::intake::{Reason, Strays};

    use super::*;

    fn encoded(status: Status) -> String {
        let (mut text, mut registry) = (String::new(), Registry::with_prefix("tombolo"));
        registry.register_collector(Box::new(OfStatus(status)));
        encode_registry(&mut text, &registry).unwrap();
        text
    }

    #[track_caller]
    fn check(status: Status, has: &[&str], has_not: &[&str]) {
        let text = encoded(status);
        let has_line = |line: &&&str| text.lines().any(|known| known == **line);
        assert_eq!(has.iter().find(|line| !has_line(line)), None, "{text}");
        assert_eq!(has_not.iter().find(|part| text.contains(**part)), None, "{text}");
    }

    #[test]
    fn a_certificate_says_when_it_ends_and_whether_that_is_overdue() {
        let expires = Some(Timestamp::from_second(1_800_000_000).unwrap());
        let status = Status { certificate_expires: expires, ..Status::default() };
        let until = "tombolo_certificate_expires_timestamp_seconds 1800000000.0";
        check(status.clone(), &[until, "tombolo_certificate_overdue 0.0"], &[]);
        let status = Status { certificate_problem: Some("not renewed".to_owned()), ..status };
        check(status, &[until, "tombolo_certificate_overdue 1.0"], &[]);
    }

    #[test]
    fn only_who_keeps_a_link_says_how_it_is() {
        let of = |name: &str| LinkStatus::of(name.to_owned(), &Link::default());
        let kept = LinkStatus::left_to_leader("peer asia".to_owned(), &Link::default());
        let status = Status { links: vec![of("peer eu"), kept], ..Status::default() };
        check(
            status,
            &["tombolo_link_synced{link=\"peer eu\"} 0.0"],
            &["link_synced{link=\"peer asia"],
        );
    }

    #[test]
    fn what_a_peer_sent_and_should_not_have_is_counted_by_reason() {
        let left_out = [(Reason::Owner, 2), (Reason::Quota, 7)].into();
        let strays = Strays { left_out, went_back: 3, ..Strays::default() };
        let link = LinkStatus::of(
            "peer eu".to_owned(),
            &Link { strays, mismatches: 4, ..Link::default() },
        );
        let expected = [
            "tombolo_link_left_out_total{link=\"peer eu\",reason=\"owner\"} 2",
            "tombolo_link_left_out_total{link=\"peer eu\",reason=\"quota\"} 7",
            "tombolo_link_went_back_total{link=\"peer eu\"} 3",
            "tombolo_link_mismatches_total{link=\"peer eu\"} 4",
        ];
        check(Status { links: vec![link], ..Status::default() }, &expected, &["reason=\"size"]);
    }
}
