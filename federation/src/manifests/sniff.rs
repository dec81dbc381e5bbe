//! What a text that is not YAML seems to be about: for counting and for messages, never for data.

use super::problem::{ObjectRef, shorten};

/// What could be made out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sniffed {
    pub(super) api_version: Option<String>,
    pub(super) kind: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
}

impl Sniffed {
    /// Looks at top-level keys, and those right below `metadata`.
    pub(super) fn of(text: &str) -> Self {
        let mut sniffed = Self::default();
        let mut in_metadata = false;
        for line in text.lines() {
            let Some((key, value)) = line.split_once(':') else { continue };
            let indent = key.len() - key.trim_start().len();
            let key = key.trim().trim_matches('"');
            if indent == 0 {
                in_metadata = key == "metadata";
            }
            let slot = match (indent, key) {
                (0, "apiVersion") => &mut sniffed.api_version,
                (0, "kind") => &mut sniffed.kind,
                (2, "namespace") if in_metadata => &mut sniffed.namespace,
                (2, "name") if in_metadata => &mut sniffed.name,
                _ => continue,
            };
            slot.get_or_insert_with(|| scalar(value));
        }
        sniffed
    }

    /// Whether this was meant to be a Kubernetes object.
    pub(super) fn is_kubernetes(&self) -> bool {
        self.api_version.is_some() && self.kind.is_some()
    }

    /// For a message.
    pub(super) fn object(&self) -> Option<ObjectRef> {
        let namespaced = self.kind.as_deref() != Some("Namespace");
        let namespace = self.namespace.clone().unwrap_or_else(|| "default".to_owned());
        Some(ObjectRef {
            kind: self.kind.clone()?,
            namespace: namespaced.then_some(namespace),
            name: self.name.clone()?,
        })
    }
}

fn scalar(text: &str) -> String {
    let text = text.split(" #").next().unwrap_or_default();
    shorten(text.trim().trim_matches(['"', '\'']), 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_out_what_a_broken_text_is_about() {
        let text = "apiVersion: v1\nkind: \"Service\" # x\nmetadata:\n  name: checkout\n  \
                    namespace: shop\nspec: [\n  name: other\n";
        let sniffed = Sniffed::of(text);
        assert!(sniffed.is_kubernetes());
        assert_eq!(sniffed.object().unwrap().to_string(), "Service shop/checkout");
        assert_eq!(Sniffed::of("a: [\n"), Sniffed::default());
        assert!(!Sniffed::of("kind: x").is_kubernetes());
    }
}
