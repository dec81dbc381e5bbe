//! Text to values: YAML and JSON, with bounds.
//!
//! A bound that is hit is an error like any other: anybody may point the program at a file that
//! was made to exhaust it.

use serde_json::Value;
use serde_saphyr::options::DuplicateKeyPolicy;

use super::problem::shorten;

/// Nodes of a document: some 16 MiB of ordinary YAML.
const MAX_NODES: usize = 2_000_000;
/// Nodes that aliases add. Manifests use few; a bomb is made of nothing else.
const MAX_REPLAYED: usize = 50_000;
/// Bytes that aliases add. Each node that they repeat may be as long as the document.
const MAX_REPLAYED_BYTES: usize = 256 << 20;
/// Nesting: a level costs 21 KiB of stack where nothing is optimised, and threads have 2 MiB. CRD
/// schemas, the deepest manifests there are, stay below 50.
const MAX_DEPTH: usize = 60;

/// Why a text is no value.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    /// From 1, in the text given; 0 when unknown.
    pub(super) line: usize,
    pub(super) message: String,
}

/// Reads one YAML document as kubectl does: YAML 1.1 booleans and octals, merge keys.
pub(super) fn yaml(text: &str) -> Result<Value, SyntaxError> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: MAX_NODES,
            max_events: 2 * MAX_NODES,
            max_depth: MAX_DEPTH,
            max_documents: 1,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_REPLAYED.min(MAX_REPLAYED_BYTES / text.len().max(1)),
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let line = error.location().map_or(0, |at| usize::try_from(at.line()).unwrap_or(0));
        let message = without_place(&error.to_string());
        let message = message.replace("budget breached", "goes beyond what is read");
        // Advice to programmers.
        let message = message.split(", set DuplicateKeyPolicy").next().unwrap_or_default();
        SyntaxError { line, message: shorten(&format!("is not YAML: {message}"), 400) }
    })
}

/// A stream of JSON values.
#[derive(Debug, Default)]
pub(super) struct Json {
    /// Each with the line that it begins on.
    pub(super) values: Vec<(usize, Value)>,
    /// Why the next cannot be read, and where in the text it begins.
    pub(super) error: Option<(SyntaxError, usize)>,
}

/// Reads a stream of JSON values up to its end or its first error.
pub(super) fn json(text: &str) -> Json {
    let mut json = Json::default();
    let mut stream = serde_json::Deserializer::from_str(text).into_iter();
    let mut at = 0;
    let mut line = 1;
    loop {
        let blank = text[at..].len() - text[at..].trim_start().len();
        line += newlines(&text[at..at + blank]);
        let start = at + blank;
        match stream.next() {
            None => return json,
            Some(Ok(value)) => json.values.push((line, value)),
            Some(Err(error)) => {
                let message = without_place(&error.to_string());
                let message = shorten(&format!("is not JSON: {message}"), 400);
                json.error = Some((SyntaxError { line: error.line(), message }, start));
                return json;
            }
        }
        at = stream.byte_offset();
        line += newlines(&text[start..at]);
    }
}

fn newlines(text: &str) -> usize {
    text.bytes().filter(|b| *b == b'\n').count()
}

/// The place is said in our own words, counted in the file instead of the document.
fn without_place(message: &str) -> String {
    let message = message.trim();
    let Some((head, rest)) = message.split_once("line ") else { return message.to_owned() };
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let after = rest.get(digits(rest)..).and_then(|rest| rest.strip_prefix(", column "));
    let after = after.or_else(|| rest.get(digits(rest)..)?.strip_prefix(" column "));
    match after {
        Some(after) => {
            let after = &after[digits(after)..];
            let head = head.trim_end().trim_end_matches("at").trim_end_matches([' ', ',']);
            format!("{head}{after}").trim_start_matches([':', ' ']).to_owned()
        }
        None => message.to_owned(),
    }
}
