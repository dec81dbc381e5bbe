//! What one file says.
//!
//! Owns: telling apart objects that are read, kinds that are not, templates, YAML that has nothing
//! to do with Kubernetes, and what is broken. Promises: one broken document, or one broken item of
//! a list, takes nothing else with it; no text panics.

use std::collections::BTreeMap;

use serde_json::Value;

use super::object::{self, Id, Object, ReadKind};
use super::parse::{self, SyntaxError};
use super::problem::{Place, Problem, Reason, shorten};
use super::sniff::Sniffed;
use super::split;

/// How deep lists may stand in lists.
const MAX_LISTS: usize = 8;

/// Everything that a file says.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Contents {
    pub(super) objects: Vec<Found>,
    pub(super) broken: Vec<Broken>,
    pub(super) other_kinds: BTreeMap<String, usize>,
    pub(super) templates: usize,
    pub(super) not_kubernetes: usize,
}

/// An object and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Found {
    pub(super) id: Id,
    pub(super) object: Object,
    pub(super) place: Place,
}

/// A document, or an item of a list, that cannot be used.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Broken {
    /// What it defines, if that can be relied upon.
    pub(super) id: Option<Id>,
    pub(super) problem: Problem,
}

impl Contents {
    /// Reads `text`. In a file that `defined` objects before, what cannot be read is taken for
    /// damage, where it otherwise may be a template or something that was never meant for us.
    pub(super) fn of(file: &str, text: &str, defined: bool) -> Self {
        let mut reading = Reading { file, defined, contents: Self::default() };
        let extension = std::path::Path::new(file).extension();
        if extension.is_some_and(|extension| extension == "json") {
            reading.json(text);
        } else {
            for document in split::documents(text) {
                let place = reading.place(document.number, document.line());
                let parsed = parse::yaml(document.text);
                reading.parsed(parsed, document.text, &place, document.first_line);
            }
        }
        reading.contents
    }
}

struct Reading<'a> {
    file: &'a str,
    defined: bool,
    contents: Contents,
}

impl Reading<'_> {
    fn place(&self, document: usize, line: usize) -> Place {
        Place { file: self.file.to_owned(), document: Some(document), line: Some(line) }
    }

    fn json(&mut self, text: &str) {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let parse::Json { values, error } = parse::json(text);
        let count = values.len();
        for (index, (line, value)) in values.iter().enumerate() {
            let place = self.place(index + 1, *line);
            self.value(value, &Context { place: &place, text, path: String::new(), lists: 0 });
        }
        if let Some((error, at)) = error {
            let place = self.place(count + 1, error.line);
            self.unparsable(error, &text[at..], &place, 1);
        }
    }

    fn parsed(
        &mut self,
        parsed: Result<Value, SyntaxError>,
        text: &str,
        place: &Place,
        first_line: usize,
    ) {
        match parsed {
            Ok(value) => {
                self.value(&value, &Context { place, text, path: String::new(), lists: 0 });
            }
            Err(error) => self.unparsable(error, text, place, first_line),
        }
    }

    fn unparsable(&mut self, error: SyntaxError, text: &str, place: &Place, first_line: usize) {
        let sniffed = if text.trim_start().starts_with('{') {
            Sniffed::of(&unbraced(text))
        } else {
            Sniffed::of(text)
        };
        let ours = match (&sniffed.api_version, &sniffed.kind) {
            (Some(version), Some(kind)) => {
                ReadKind::of(version, kind).is_some() || kind.ends_with("List")
            }
            _ => false,
        };
        if !self.defined {
            if is_template(text) {
                self.contents.templates += 1;
                return;
            }
            if !sniffed.is_kubernetes() {
                self.contents.not_kubernetes += 1;
                return;
            }
        }
        if let (false, Some(version), Some(kind)) = (ours, &sniffed.api_version, &sniffed.kind) {
            self.other(version, kind);
            return;
        }
        let line = if error.line == 0 { place.line } else { Some(first_line + error.line - 1) };
        let problem = Problem {
            place: Place { line, ..place.clone() },
            object: sniffed.object(),
            field: String::new(),
            message: error.message,
            reason: Reason::Syntax,
            kept: false,
        };
        self.contents.broken.push(Broken { id: None, problem });
    }

    fn value(&mut self, value: &Value, at: &Context<'_>) {
        let text = |field| value.get(field).and_then(Value::as_str).unwrap_or_default();
        let (version, kind) = (text("apiVersion"), text("kind"));
        if let Some(items) = list_items(version, kind, value) {
            self.list(version, kind, items, at);
        } else if version.is_empty() || kind.is_empty() {
            self.no_object(value, version, kind, at);
        } else if let Some(read) = ReadKind::of(version, kind) {
            self.object(read, value, at);
        } else {
            self.other(version, kind);
        }
    }

    fn object(&mut self, kind: ReadKind, value: &Value, at: &Context<'_>) {
        match object::read(kind, value) {
            Ok((id, object)) => {
                self.contents.objects.push(Found { id, object, place: at.place.clone() });
            }
            Err(_) if !self.defined && is_template(at.text) => self.contents.templates += 1,
            Err(error) => {
                let problem = Problem {
                    place: at.place.clone(),
                    object: Some(object::object_ref(kind, value)),
                    field: at.field(&error.field),
                    message: error.message,
                    reason: Reason::Object,
                    kept: false,
                };
                let id = object::id(kind, value);
                self.contents.broken.push(Broken { id, problem });
            }
        }
    }

    /// `ServiceList` and the like leave version and kind out of their items.
    fn list(&mut self, version: &str, kind: &str, items: &[Value], at: &Context<'_>) {
        let item_kind = kind.strip_suffix("List").unwrap_or_default();
        for (index, item) in items.iter().enumerate() {
            let path = at.field(&format!("items[{index}]"));
            let at = Context { place: at.place, text: at.text, path, lists: at.lists + 1 };
            if at.lists > MAX_LISTS {
                self.broken_value("is a list in a list in a list, too deep to be read", &at);
            } else if item_kind.is_empty() || item.get("kind").is_some() || !item.is_object() {
                self.value(item, &at);
            } else {
                let mut item = item.clone();
                item["kind"] = item_kind.into();
                item["apiVersion"] = version.into();
                self.value(&item, &at);
            }
        }
    }

    /// A mapping with `metadata` and one of `apiVersion` and `kind` lost the other; everything
    /// else (values of a chart, a kustomization, a compose file) never had them.
    fn no_object(&mut self, value: &Value, version: &str, kind: &str, at: &Context<'_>) {
        let missing = match (version, kind) {
            ("", "") => None,
            ("", _) => Some("apiVersion"),
            _ => Some("kind"),
        };
        let meant = value.get("metadata").is_some_and(Value::is_object) || self.defined;
        match missing {
            Some(field) if meant => {
                let at = Context { path: at.field(field), ..at.clone() };
                self.broken_value("is missing, expected that of a Kubernetes object", &at);
            }
            None if self.defined && at.lists == 0 => {
                let message = "is no Kubernetes object, as apiVersion and kind are missing";
                self.broken_value(message, at);
            }
            _ if is_template(at.text) => self.contents.templates += 1,
            _ => self.contents.not_kubernetes += 1,
        }
    }

    fn broken_value(&mut self, message: &str, at: &Context<'_>) {
        let problem = Problem {
            place: at.place.clone(),
            object: None,
            field: at.path.clone(),
            message: message.to_owned(),
            reason: Reason::Object,
            kept: false,
        };
        self.contents.broken.push(Broken { id: None, problem });
    }

    fn other(&mut self, version: &str, kind: &str) {
        *self.contents.other_kinds.entry(qualified(version, kind)).or_default() += 1;
    }
}

/// Where a value stands.
#[derive(Clone)]
struct Context<'a> {
    place: &'a Place,
    /// Of its whole document.
    text: &'a str,
    /// Within the document, when it is an item of a list.
    path: String,
    lists: usize,
}

impl Context<'_> {
    fn field(&self, field: &str) -> String {
        match (self.path.as_str(), field) {
            ("", field) => field.to_owned(),
            (path, "") => path.to_owned(),
            (path, field) => format!("{path}.{field}"),
        }
    }
}

/// A kind as kubectl qualifies it: `Service`, `Deployment.apps`. A version is named only where
/// another version of the kind is read.
fn qualified(version: &str, kind: &str) -> String {
    let name = match version.rsplit_once('/') {
        None => kind.to_owned(),
        Some((group @ ("discovery.k8s.io" | "multicluster.x-k8s.io"), version)) => {
            format!("{kind}.{version}.{group}")
        }
        Some((group, _)) => format!("{kind}.{group}"),
    };
    shorten(&name, 100)
}

fn list_items<'a>(version: &str, kind: &str, value: &'a Value) -> Option<&'a Vec<Value>> {
    if version.is_empty() || !kind.ends_with("List") {
        return None;
    }
    value.get("items").and_then(Value::as_array)
}

/// Helm, Jinja, Go templates: all of them write `{{`.
fn is_template(text: &str) -> bool {
    text.contains("{{")
}

/// JSON laid out as one key a line, for sniffing.
fn unbraced(text: &str) -> String {
    text.split([',', '{', '\n']).map(str::trim).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests;
