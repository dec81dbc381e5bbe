//! Verbs that ask a running process.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use serde::Deserialize;
use tombolo_federation::sync::peers::Disagreement;

use super::table::table;
use super::{AskArgs, DnsArgs, Output, ServicesArgs, http, status};
use crate::config::{CLUSTERSET_ZONE, admin_from_environment, socket_from_environment};
use crate::role::mesh::DecisionStatus;
use crate::role::status::{CacheStatus, LinkStatus, ServiceStatus, Services, SourceStatus, Status};

/// The demo's first region.
const DEFAULT_ADMIN: &str = "127.0.0.1:7102";

/// A verdict for scripts.
enum Verdict {
    Good,
    Bad,
}

impl From<Verdict> for ExitCode {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Good => Self::SUCCESS,
            Verdict::Bad => Self::from(1),
        }
    }
}

/// `tombolo status`
pub(crate) async fn status(args: &AskArgs) -> anyhow::Result<ExitCode> {
    let text = ask(args, "/api/v1/status").await?;
    let status: Status = parse(&text)?;
    let verdict = if status::is_well(&status) { Verdict::Good } else { Verdict::Bad };
    show(args.output, &text, || status_table(&status))?;
    Ok(verdict.into())
}

/// `tombolo services`
pub(crate) async fn services(args: &ServicesArgs) -> anyhow::Result<ExitCode> {
    let text = ask(&args.ask, "/api/v1/services").await?;
    let mut services: Services = parse(&text)?;
    if let Some(namespace) = &args.namespace {
        services.services.retain(|service| service.namespace == *namespace);
    }
    let text = serde_json::to_string(&services)?;
    show(args.ask.output, &text, || services_table(&services))?;
    Ok(Verdict::Good.into())
}

/// `tombolo decisions`
pub(crate) async fn decisions(args: &AskArgs) -> anyhow::Result<ExitCode> {
    let status: Status = parse(&ask(args, "/api/v1/status").await?)?;
    let decisions = decided(&status)?;
    let waiting = decisions.iter().any(|decision| decision.state == "waiting");
    let text = serde_json::to_string(decisions)?;
    show(args.output, &text, || decisions_table(decisions))?;
    Ok(if waiting { Verdict::Bad } else { Verdict::Good }.into())
}

/// What is not known is not nothing.
fn decided(status: &Status) -> anyhow::Result<&[DecisionStatus]> {
    let waiting = match &status.pending[..] {
        [] => "what its region says of itself".to_owned(),
        pending => pending.join(", "),
    };
    let unknown =
        || format!("the process does not know yet what was decided: it waits for {waiting}");
    status.decisions.as_deref().with_context(unknown)
}

/// The parts of a DNS answer that the table shows; `-o json` has all of it.
#[derive(Deserialize)]
struct Explained {
    name: String,
    #[serde(rename = "type")]
    record_type: String,
    rcode: String,
    answers: Vec<Line>,
    why: String,
}

#[derive(Deserialize)]
struct Line {
    name: String,
    ttl: u32,
    #[serde(rename = "type")]
    record_type: String,
    data: String,
}

/// `tombolo dns NAME`
pub(crate) async fn dns(args: &DnsArgs) -> anyhow::Result<ExitCode> {
    let name = full_name(&args.name);
    let path = format!("/api/v1/dns?name={}&type={}", escape(&name), escape(&args.record_type));
    let text = ask(&args.ask, &path).await?;
    let explained: Explained = parse(&text)?;
    show(args.ask.output, &text, || dns_table(&explained))?;
    let verdict = if explained.answers.is_empty() { Verdict::Bad } else { Verdict::Good };
    Ok(verdict.into())
}

async fn ask(args: &AskArgs, path: &str) -> anyhow::Result<String> {
    if let Some(socket) = args.socket.named()? {
        return http::get_over(&socket, path).await;
    }
    if let Some(admin) = args.admin.clone().or_else(admin_from_environment) {
        return http::get(&admin, path).await;
    }
    match socket_from_environment() {
        Some(socket) => http::get_over(&socket, path).await,
        None => http::get(DEFAULT_ADMIN, path).await,
    }
}

fn parse<T: for<'a> Deserialize<'a>>(text: &str) -> anyhow::Result<T> {
    serde_json::from_str(text).context("the answer is not what this version understands")
}

pub(super) fn show(
    output: Output,
    json: &str,
    table: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    let text = match output {
        Output::Table => table(),
        Output::Json => {
            let value: serde_json::Value = serde_json::from_str(json)?;
            serde_json::to_string_pretty(&value)?
        }
    };
    // A reader that has seen enough (`| head`) is no error.
    match writeln!(std::io::stdout(), "{}", text.trim_end()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// `checkout.shop` means the service; whatever has more labels is taken as it is.
fn full_name(name: &str) -> String {
    let plain = name.trim_end_matches('.');
    if plain.ends_with(&format!(".{CLUSTERSET_ZONE}")) || plain == CLUSTERSET_ZONE {
        return plain.to_owned();
    }
    let labels: Vec<&str> = plain.split('.').collect();
    let service = labels.iter().filter(|label| !label.starts_with('_')).count();
    if service == 2 { format!("{plain}.svc.{CLUSTERSET_ZONE}") } else { plain.to_owned() }
}

fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._*".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

fn status_table(status: &Status) -> String {
    let mut text = status::head(status);
    for what in &status.pending {
        let _ = writeln!(text, "waiting for {what}");
    }
    if let Some(catalog) = &status.catalog {
        let _ = writeln!(
            text,
            "catalog: {} services, {} endpoints, generation {}, digest {}",
            catalog.services,
            catalog.endpoints,
            catalog.generation,
            catalog.digest.get(..12).unwrap_or(&catalog.digest)
        );
    }
    text.push_str(&status::certificate_lines(status));
    text.push_str(&status::store_lines(status.store.as_ref()));
    text.push_str(&cache_lines(&status.cache));
    let _ = writeln!(text, "\n{}", sources_table(&status.sources));
    text.push_str(&held(&status.sources));
    if let Some(members) = status::members_table(status.store.as_ref()) {
        let _ = writeln!(text, "\n{members}");
    }
    let _ = writeln!(text, "\n{}", links_table(&status.links));
    if !status.disagreements.is_empty() {
        let _ = writeln!(text, "\n{}", disagreements_table(&status.disagreements));
    }
    if let Some(decisions) = status.decisions.as_ref().filter(|all| !all.is_empty()) {
        let _ = writeln!(text, "\n{}", decisions_table(decisions));
    }
    for problem in &status.problems {
        let _ = writeln!(text, "\nproblem: {}", printable(problem));
    }
    quarantine_lines(&status.sources).chain(link_lines(status)).for_each(|line| {
        let _ = writeln!(text, "\n{line}");
    });
    text
}

fn cache_lines(cache: &CacheStatus) -> String {
    let mut text = String::new();
    if let Some(image) = &cache.restored {
        let (generation, saved_at) = (image.generation, image.saved_at);
        let _ = writeln!(text, "restored from disk, generation {generation} of {saved_at:.0}");
    }
    let saved_at = cache.saved_at.map(|at| format!(" of {at:.0}")).unwrap_or_default();
    let newest = cache.generation.map_or("nothing yet".to_owned(), |generation| {
        format!("generation {generation}{saved_at}")
    });
    let _ = writeln!(text, "on disk: {newest}");
    for problem in &cache.problems {
        let _ = writeln!(text, "disk cache: {problem}");
    }
    text
}

/// What the guards of clusters hold back, and what to do about it.
fn held(sources: &[SourceStatus]) -> String {
    let mut text = String::new();
    for source in sources {
        let cluster = source.owner.rsplit('/').next().unwrap_or(&source.owner);
        for hold in &source.holds {
            let services = match hold.services.as_slice() {
                [] => String::new(),
                named => format!(" of {}", named.join(", ")),
            };
            let _ = writeln!(
                text,
                "\n{cluster} holds back the removal of {} records with {} endpoints{services}, since \
                 {}\n  {}\n  if they are gone for good: tombolo approve {cluster} {}",
                hold.records, hold.endpoints, hold.since, hold.why, hold.id
            );
        }
        if let Some(suspect) = &source.suspect {
            let _ = writeln!(
                text,
                "\n{cluster} is suspect: {} of {} endpoints are ready, since {}\n  endpoints that \
                 were ready are used where nothing better is\n  if they are down indeed: tombolo \
                 approve {cluster} {}",
                suspect.ready, suspect.of, suspect.since, suspect.id
            );
        }
    }
    text
}

/// Why records of a source are not in use, each with its key.
fn quarantine_lines(sources: &[SourceStatus]) -> impl Iterator<Item = String> {
    sources.iter().flat_map(|source| {
        let kept = source.quarantine.iter();
        let named = kept.map(|(key, why)| printable(&format!("quarantined: {key}: {why}")));
        let others = source.quarantined.saturating_sub(source.quarantine.len());
        let more = (others > 0).then(|| format!("quarantined: {others} more of {}", source.owner));
        named.chain(more)
    })
}

/// What a region did not take, and what it sent that it may not.
fn link_lines(status: &Status) -> impl Iterator<Item = String> {
    status.links.iter().flat_map(|link| {
        let refused = link.refused.iter().take(20);
        let refused = refused.map(|(key, why)| format!("refused by {}: {key} {why}", link.name));
        let left_out = link.last_left_out.as_ref().map(|last| {
            format!(
                "left out of what {} sent: {} in all, the last {last}",
                link.name, link.left_out
            )
        });
        refused.chain(left_out).map(|line| printable(&line))
    })
}

/// Agents, peers and whoever writes to a store name keys and give reasons: what would be a line of its
/// own on a terminal, or move its cursor, is shown as what it is.
fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.into() };
    text.chars().map(shown).collect()
}

fn sources_table(sources: &[SourceStatus]) -> String {
    let rows = sources.iter().map(|source| {
        let age = source.age_seconds.map_or("-".to_owned(), |age| format!("{age:.1}s"));
        let state = source_state(source).to_owned();
        let quarantined = source.quarantined.to_string();
        [source.owner.clone(), state, age, source.records.to_string(), quarantined]
    });
    table(["SOURCE", "STATE", "AGE", "RECORDS", "QUARANTINED"], rows)
}

fn source_state(source: &SourceStatus) -> &'static str {
    match (source.stale, source.restored, source.complete) {
        (true, true, _) => "stale, restored from disk",
        (true, false, _) => "stale, still served",
        (false, true, _) => "restored from disk",
        (false, false, false) => "incomplete",
        // Read from the store, or given back by a peer: whether it lives is not known yet.
        (false, false, true) if source.age_seconds.is_none() => "not heard yet",
        (false, false, true) => "current",
    }
}

fn links_table(links: &[LinkStatus]) -> String {
    let rows = links.iter().map(|link| {
        let state = match (link.left_to_leader, link.synced) {
            (true, _) => "kept by the leader",
            (false, true) => "in step",
            (false, false) => "down",
        };
        let problem = link.problem.clone().unwrap_or_default();
        let refused = link.refused.len().to_string();
        [link.name.clone(), state.to_owned(), refused, problem]
    });
    table(["LINK", "STATE", "REFUSED", "PROBLEM"], rows)
}

fn disagreements_table(disagreements: &[Disagreement]) -> String {
    let rows = disagreements.iter().map(|found| {
        let [one, other] = &found.regions;
        let pair = if one == other {
            format!("{one}: this replica's file and the region's record")
        } else {
            format!("{one} and {other}")
        };
        [pair, found.field.clone(), found.ours.clone(), found.theirs.clone()]
    });
    table(["DISAGREE", "ON", "FIRST SAYS", "SECOND SAYS"], rows)
}

pub(super) fn decisions_table(decisions: &[DecisionStatus]) -> String {
    let rows = decisions.iter().map(|told| {
        let state = match told.reason.as_str() {
            "" => told.state.clone(),
            reason => format!("{}: {reason}", told.state),
        };
        let what = format!("{} {} {}", told.verb, told.about, told.id);
        [what, told.region.clone(), told.by.clone(), told.at.to_string(), state, told.note.clone()]
    });
    table(["DECISION", "IN", "BY", "AT", "STATE", "NOTE"], rows)
}

fn services_table(services: &Services) -> String {
    let rows = services.services.iter().flat_map(|service| {
        let first = std::iter::once(true).chain(std::iter::repeat(false));
        service.clusters.iter().zip(first).map(|(cluster, first)| {
            let ready = format!("{}/{}", cluster.ready, cluster.endpoints.len());
            let head = if first { service_cells(service) } else { Default::default() };
            let [name, kind, ports, conflicts] = head;
            [name, kind, ports, cluster.cluster.clone(), ready, conflicts]
        })
    });
    table(["SERVICE", "TYPE", "PORTS", "CLUSTER", "READY", "CONFLICTS"], rows)
}

fn service_cells(service: &ServiceStatus) -> [String; 4] {
    [
        format!("{}/{}", service.namespace, service.name),
        service.service_type.clone(),
        service.ports.join(", "),
        service.conflicts.join("; "),
    ]
}

fn dns_table(explained: &Explained) -> String {
    let mut text = format!(
        "{} {}: {}\n{}\n",
        explained.name, explained.record_type, explained.rcode, explained.why
    );
    if !explained.answers.is_empty() {
        let rows = explained.answers.iter().map(|line| {
            [line.name.clone(), line.ttl.to_string(), line.record_type.clone(), line.data.clone()]
        });
        let _ = writeln!(text, "\n{}", table(["NAME", "TTL", "TYPE", "DATA"], rows));
    }
    text
}

#[cfg(test)]
mod tests {
    use tombolo_federation::sync::client::Link;

    use super::*;
    use crate::role::status::{HoldStatus, SuspectStatus};

    fn complete_source() -> SourceStatus {
        SourceStatus {
            owner: "us/us-alpha".to_owned(),
            records: 9,
            complete_kinds: Vec::new(),
            complete: true,
            restored: false,
            stale: false,
            age_seconds: None,
            quarantined: 0,
            quarantine: std::collections::BTreeMap::new(),
            holds: Vec::new(),
            suspect: None,
        }
    }

    #[test]
    fn an_owner_that_was_never_heard_is_not_called_current() {
        let state = |source: SourceStatus| source_state(&source);
        assert_eq!(state(complete_source()), "not heard yet");
        let heard = SourceStatus { age_seconds: Some(0.1), ..complete_source() };
        assert_eq!(state(heard), "current");
        assert_eq!(state(SourceStatus { complete: false, ..complete_source() }), "incomplete");
        let silent = SourceStatus { stale: true, ..complete_source() };
        assert_eq!(state(silent), "stale, still served");
    }

    #[test]
    fn a_hold_says_what_it_keeps_and_what_to_do() {
        let since = "2026-01-02T03:04:05Z".parse().unwrap();
        let source = SourceStatus {
            holds: vec![HoldStatus {
                id: "0a1b2c3d4e5f".to_owned(),
                since,
                records: 4,
                endpoints: 21,
                why: "the directory of manifests is missing".to_owned(),
                services: vec!["shop/cart".to_owned()],
            }],
            suspect: Some(SuspectStatus { id: "ff".to_owned(), since, ready: 1, of: 9 }),
            ..complete_source()
        };
        assert_eq!(
            held(&[source]),
            "\nus-alpha holds back the removal of 4 records with 21 endpoints of shop/cart, since \
             2026-01-02T03:04:05Z\n  the directory of manifests is missing\n  if they are gone for \
             good: tombolo approve us-alpha 0a1b2c3d4e5f\n\nus-alpha is suspect: 1 of 9 endpoints \
             are ready, since 2026-01-02T03:04:05Z\n  endpoints that were ready are used where \
             nothing better is\n  if they are down indeed: tombolo approve us-alpha ff\n"
        );
    }

    #[test]
    fn decisions_that_are_not_known_are_not_none() {
        let status = |decisions: &str| -> Status {
            let rest = r#""role": "agent", "mesh": "m", "region": "us", "version": "1",
                "ready": false, "pending": ["the feed of region us"], "sources": [], "links": []"#;
            parse(&format!("{{{rest}{decisions}}}")).unwrap()
        };
        let error = decided(&status("")).unwrap_err().to_string();
        assert!(error.contains("does not know yet") && error.contains("the feed of"), "{error}");
        assert_eq!(decided(&status(r#", "decisions": []"#)).unwrap(), []);
    }

    #[test]
    fn a_link_that_another_replica_keeps_is_neither_down_nor_in_step() {
        let synced = Link { synced: true, ..Link::default() };
        let named = |name: &str| format!("peer {name}");
        let links = [
            LinkStatus::of(named("eu"), &synced),
            LinkStatus::of(named("us"), &Link::default()),
            LinkStatus::left_to_leader(named("asia"), &synced),
        ];
        let table = links_table(&links);
        let states = table.lines().skip(1).map(|line| line.split_once("  ").unwrap().1.trim());
        let states: Vec<_> = states.map(|rest| rest.trim_end_matches([' ', '0'])).collect();
        assert_eq!(states, ["in step", "down", "kept by the leader"]);
    }

    #[test]
    fn a_service_and_its_namespace_are_enough() {
        let check = |name: &str, full: &str| assert_eq!(full_name(name), full);
        check("checkout.shop", "checkout.shop.svc.clusterset.local");
        check("_http._tcp.checkout.shop", "_http._tcp.checkout.shop.svc.clusterset.local");
        check("checkout.shop.svc.clusterset.local.", "checkout.shop.svc.clusterset.local");
        check("a.b.c", "a.b.c");
    }

    #[test]
    fn what_is_asked_for_cannot_leave_its_parameter() {
        assert_eq!(escape("a b&type=X/ä"), "a%20b%26type%3DX%2F%C3%A4");
    }
}
