//! The fields on which exporters can disagree: which value is used, and what is said about it.

use std::collections::{BTreeMap, BTreeSet};

use super::super::Conflict;
use super::{Exporter, ports};
use crate::record::{Export, IpFamily, ServicePort, ServiceType};

/// What Kubernetes fills in for `ClientIP` affinity without a timeout, in seconds.
const DEFAULT_AFFINITY_TIMEOUT: u32 = 10_800;
/// A value is shown up to here, in characters: nine messages must fit a condition's 32768 bytes.
const SHOWN: usize = 200;

/// A field's name in the MCS API and the reason of a conflict over it.
#[derive(Clone, Copy)]
struct Field(&'static str, &'static str);

const PORTS: Field = Field("ports", "PortConflict");
const IP_FAMILIES: Field = Field("ipFamilies", "IPFamilyConflict");
const TYPE: Field = Field("type", "TypeConflict");
const AFFINITY: Field = Field("sessionAffinity", "SessionAffinityConflict");
const AFFINITY_CONFIG: Field = Field("sessionAffinityConfig", "SessionAffinityConfigConflict");
const INTERNAL_POLICY: Field = Field("internalTrafficPolicy", "InternalTrafficPolicyConflict");
const DISTRIBUTION: Field = Field("trafficDistribution", "TrafficDistributionConflict");
const LABELS: Field = Field("exportedLabels", "LabelsConflict");
const ANNOTATIONS: Field = Field("exportedAnnotations", "AnnotationsConflict");

/// Settles field after field and keeps what was contended.
pub(super) struct Contest<'a> {
    exporters: &'a [Exporter<'a>],
    oldest: Exporter<'a>,
    conflicts: Vec<Conflict>,
}

impl<'a> Contest<'a> {
    /// Among `exporters`, oldest first; `None` if there are none.
    pub(super) fn among(exporters: &'a [Exporter<'a>]) -> Option<Self> {
        let oldest = *exporters.first()?;
        Some(Self { exporters, oldest, conflicts: Vec::new() })
    }

    /// What was contended, sorted by reason.
    pub(super) fn into_conflicts(mut self) -> Vec<Conflict> {
        self.conflicts.sort();
        self.conflicts
    }

    /// The union of all. Any difference between the sets is a conflict, another order is none.
    pub(super) fn ports(&mut self) -> Vec<ServicePort> {
        let used = ports::union(self.exporters.iter().map(|exporter| exporter.export));
        let disagree = self.disagree(|export| export.ports.iter().collect::<BTreeSet<_>>());
        self.raise(PORTS, self.oldest, disagree, || {
            let union = quote(&joined(used.iter().map(ports::shown)));
            format!("Using {union}, the union, older exports first, from oldest service export")
        });
        used
    }

    /// What all have in common, in the oldest's order. An export that names no family says
    /// nothing about them.
    pub(super) fn ip_families(&mut self) -> Vec<IpFamily> {
        let says = |exporter: &&Exporter<'a>| !exporter.export.ip_families.is_empty();
        let saying: Vec<Exporter<'a>> = self.exporters.iter().filter(says).copied().collect();
        let Some(oldest) = saying.first() else { return Vec::new() };
        let own = distinct(&oldest.export.ip_families);
        let common = |family: &IpFamily| saying.iter().all(|e| has_family(e.export, *family));
        let shared: Vec<_> = own.iter().copied().filter(common).collect();
        let (used, how) = if shared.is_empty() {
            (own, " from oldest service export")
        } else {
            (shared, ", what all have in common, from oldest service export")
        };
        let set = |exporter: &Exporter<'a>| families(exporter.export);
        let disagree = saying.iter().filter(|exporter| set(exporter) != set(oldest)).count();
        self.raise(IP_FAMILIES, *oldest, disagree, || {
            format!("Using {}{how}", quote(&joined(used.iter().map(|f| f.as_str().to_owned()))))
        });
        used
    }

    pub(super) fn service_type(&mut self) -> ServiceType {
        self.oldest_wins(TYPE, |export| export.service_type, ToString::to_string)
    }

    pub(super) fn session_affinity(&mut self) -> String {
        let used = self.oldest_wins(AFFINITY, affinity, |value| or(value, "None"));
        used.to_owned()
    }

    /// The oldest's, as it says it; `ClientIP` without a timeout and with Kubernetes' default one
    /// mean the same.
    pub(super) fn session_affinity_timeout(&mut self) -> Option<u32> {
        let effective = |export: &Export| match affinity(export) {
            "" => None,
            _ => Some(export.session_affinity_timeout.unwrap_or(DEFAULT_AFFINITY_TIMEOUT)),
        };
        self.oldest_wins(AFFINITY_CONFIG, effective, |timeout| match timeout {
            Some(seconds) => format!("timeoutSeconds={seconds}"),
            None => "none".to_owned(),
        })?;
        self.oldest.export.session_affinity_timeout
    }

    /// Unset means `Cluster`.
    pub(super) fn internal_traffic_policy(&mut self) -> String {
        let policy = |export: &'a Export| match export.internal_traffic_policy.as_str() {
            "Cluster" => "",
            policy => policy,
        };
        self.oldest_wins(INTERNAL_POLICY, policy, |value| or(value, "Cluster")).to_owned()
    }

    pub(super) fn traffic_distribution(&mut self) -> String {
        let distribution = |export: &'a Export| export.traffic_distribution.as_str();
        self.oldest_wins(DISTRIBUTION, distribution, |value| or(value, "none")).to_owned()
    }

    /// The oldest map whole, no key-wise merge.
    pub(super) fn labels(&mut self) -> BTreeMap<String, String> {
        self.oldest_wins(LABELS, |export| &export.exported_labels, |map| pairs(map)).clone()
    }

    /// As for labels.
    pub(super) fn annotations(&mut self) -> BTreeMap<String, String> {
        self.oldest_wins(ANNOTATIONS, |export| &export.exported_annotations, |map| pairs(map))
            .clone()
    }

    /// The whole value of the oldest export, and a conflict where others differ.
    fn oldest_wins<T: PartialEq>(
        &mut self,
        field: Field,
        value: impl Fn(&'a Export) -> T,
        shown: impl Fn(&T) -> String,
    ) -> T {
        let used = value(self.oldest.export);
        let disagree = self.disagree(value);
        self.raise(field, self.oldest, disagree, || {
            format!("Using {} from oldest service export", quote(&shown(&used)))
        });
        used
    }

    /// How many exporters say something else than the oldest.
    fn disagree<T: PartialEq>(&self, value: impl Fn(&'a Export) -> T) -> usize {
        let used = value(self.oldest.export);
        self.exporters.iter().filter(|exporter| value(exporter.export) != used).count()
    }

    /// Names the field, the winner, the value used and how many disagree, in the words of
    /// KEP-1645's example.
    fn raise(
        &mut self,
        Field(name, reason): Field,
        winner: Exporter<'a>,
        disagree: usize,
        used: impl Fn() -> String,
    ) {
        if disagree == 0 {
            return;
        }
        let winner = winner.source.cluster.clone();
        let used = used();
        let all = self.exporters.len();
        let message = format!(
            "Conflicting {name}. {used} in \"{winner}\". {disagree}/{all} clusters disagree."
        );
        self.conflicts.push(Conflict { reason, winner, message });
    }
}

/// Empty for none, however it is written.
fn affinity(export: &Export) -> &str {
    match export.session_affinity.as_str() {
        "None" => "",
        affinity => affinity,
    }
}

fn families(export: &Export) -> BTreeSet<IpFamily> {
    export.ip_families.iter().copied().collect()
}

fn has_family(export: &Export, family: IpFamily) -> bool {
    export.ip_families.contains(&family)
}

/// No duplicates.
fn distinct(families: &[IpFamily]) -> Vec<IpFamily> {
    let mut seen = BTreeSet::new();
    families.iter().copied().filter(|family| seen.insert(*family)).collect()
}

fn or(value: &str, unset: &str) -> String {
    if value.is_empty() { unset.to_owned() } else { value.to_owned() }
}

fn pairs(map: &BTreeMap<String, String>) -> String {
    or(&joined(map.iter().map(|(key, value)| format!("{key}={value}"))), "none")
}

fn joined(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(",")
}

fn quote(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}", format!("{}…", &text[..end])),
        None => format!("{text:?}"),
    }
}
