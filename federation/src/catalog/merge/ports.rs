//! The union of what exporters expose.

use std::collections::BTreeSet;

use crate::record::{Export, ServicePort};

/// First by name, the empty one counting as a name, then by (protocol, port); in either the
/// first wins, so `exports` come oldest first. A port that loses by its number has still taken its
/// name: a younger port of that name has lost to it before.
pub(super) fn union<'a>(exports: impl Iterator<Item = &'a Export>) -> Vec<ServicePort> {
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    let ports = exports.flat_map(|export| &export.ports);
    let by_name = ports.filter(|port| names.insert(port.name.as_str()));
    by_name.filter(|port| numbers.insert((port.protocol, port.port))).cloned().collect()
}

/// `http 80/TCP`, and what its application protocol is.
pub(super) fn shown(port: &ServicePort) -> String {
    let mut shown = format!("{} {}/{}", port.name, port.port, port.protocol);
    if !port.app_protocol.is_empty() {
        shown.push(' ');
        shown.push_str(&port.app_protocol);
    }
    shown.trim_start().to_owned()
}
