//! Checks that several kinds share, and errors that name the field and what was expected.

use std::fmt::Display;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::manifests::problem::{FieldError, shorten};
use crate::names::is_dns_label;
use crate::record::Protocol;

/// `found` says what is there ("has 0", "is missing").
pub(super) fn wrong(
    field: impl Into<String>,
    found: impl Display,
    expected: impl Display,
) -> FieldError {
    FieldError::new(field, shorten(&format!("{found}, expected {expected}"), 400))
}

/// Reads `value` as a Kubernetes type.
pub(super) fn typed<T: DeserializeOwned>(value: &Value) -> Result<T, FieldError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { String::new() } else { path };
        FieldError::new(field, plain(&error.into_inner().to_string()))
    })
}

/// serde's words are for programmers: "invalid type: string \"http\", expected i32".
fn plain(message: &str) -> String {
    let found = ["invalid type: ", "invalid value: "]
        .iter()
        .find_map(|prefix| message.strip_prefix(prefix).map(|rest| format!("has {rest}")));
    let message = found.unwrap_or_else(|| message.to_owned());
    let Some((found, expected)) = message.rsplit_once(", expected ") else {
        return shorten(&message, 400);
    };
    let expected = match expected {
        "i32" | "i64" => "a whole number".to_owned(),
        "a map" => "a mapping".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "IntOrString" => "a whole number or a string".to_owned(),
        kind if kind.starts_with(|c: char| c.is_ascii_uppercase()) => {
            format!("a mapping ({kind})")
        }
        other => other.trim_start_matches("struct ").to_owned(),
    };
    shorten(&format!("{found}, expected {expected}"), 400)
}

pub(super) fn port(field: &str, number: i32) -> Result<u16, FieldError> {
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(wrong(field, format!("has {number}"), "1 to 65535")),
    }
}

pub(super) fn protocol(field: &str, text: Option<&str>) -> Result<Protocol, FieldError> {
    let text = text.unwrap_or_default();
    Protocol::parse(text).ok_or_else(|| wrong(field, format!("has {text:?}"), "TCP, UDP or SCTP"))
}

/// A port's name; empty for none.
pub(super) fn port_name(field: &str, text: Option<String>) -> Result<String, FieldError> {
    let text = text.unwrap_or_default();
    if text.is_empty() || is_dns_label(&text) {
        return Ok(text);
    }
    let expected = "a DNS label (1 to 63 of a-z, 0-9 and '-')";
    Err(wrong(field, format!("has {text:?}"), expected))
}

/// Free text that Kubernetes bounds: printable, without blanks, of at most `max` bytes.
pub(super) fn word(field: &str, text: Option<String>, max: usize) -> Result<String, FieldError> {
    let text = text.unwrap_or_default();
    if text.len() <= max && text.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(text);
    }
    Err(wrong(field, format!("has {text:?}"), format!("at most {max} printable characters")))
}

/// Refuses what occurs twice in a list; `what` names the element, an empty one does not count.
pub(super) fn unique<K: PartialEq>(
    field: &str,
    keys: impl IntoIterator<Item = K>,
    describe: impl Fn(&K) -> String,
) -> Result<(), FieldError> {
    let mut seen: Vec<K> = Vec::new();
    for (index, key) in keys.into_iter().enumerate() {
        if seen.contains(&key) {
            return Err(wrong(
                format!("{field}[{index}]"),
                format!("has {} again", describe(&key)),
                "each only once",
            ));
        }
        seen.push(key);
    }
    Ok(())
}
