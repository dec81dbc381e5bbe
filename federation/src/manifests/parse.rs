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
/// How often one anchor is used. An alias of a long text is one node, so nodes alone bound little.
const MAX_USES: usize = 200;
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
            max_total_replayed_events: MAX_REPLAYED,
            max_alias_expansions_per_anchor: MAX_USES,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let line = error.location().map_or(0, |at| usize::try_from(at.line()).unwrap_or(0));
        SyntaxError { line, message: shorten(&without_place(&error.to_string()), 400) }
    })
}

/// Reads a stream of JSON values, each with the line that it begins on; and if one of them cannot
/// be read, why not and where in `text` it begins.
pub(super) fn json(text: &str) -> (Vec<(usize, Value)>, Option<(SyntaxError, usize)>) {
    let mut values = Vec::new();
    let mut stream = serde_json::Deserializer::from_str(text).into_iter();
    let mut at = 0;
    let mut line = 1;
    loop {
        let blank = text[at..].len() - text[at..].trim_start().len();
        line += newlines(&text[at..at + blank]);
        let start = at + blank;
        match stream.next() {
            None => return (values, None),
            Some(Ok(value)) => values.push((line, value)),
            Some(Err(error)) => {
                let message = shorten(&error.to_string(), 400);
                return (values, Some((SyntaxError { line: error.line(), message }, start)));
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
