//! What is wrong with a directory of manifests, and where.

use std::fmt;

use serde::Serialize;

/// Something in the directory that is not used as it stands there. It never stops the rest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// The file and the document in it, as far as it concerns one.
    pub place: Place,
    /// The object, as far as it could be told.
    pub object: Option<ObjectRef>,
    /// Path of the field, `spec.ports[0].port`; empty when it concerns the whole.
    pub field: String,
    /// What is there and what was expected.
    pub message: String,
    /// Which kind of problem.
    pub reason: Reason,
    /// What was good before stays in use until this is mended.
    pub kept: bool,
}

/// Kinds of problems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Reason {
    /// The directory, or one below it, cannot be read or holds nothing.
    Directory,
    /// A file cannot be read.
    File,
    /// A document is not YAML or JSON.
    Syntax,
    /// A field of an object is missing or is not what it has to be.
    Object,
    /// An object is defined more than once; the first definition counts.
    Duplicate,
    /// A `ServiceExport` without a Service of its name.
    NoService,
    /// A `ServiceExport` of a Service that cannot be exported.
    InvalidServiceType,
    /// An address outside what the cluster may use.
    AddressRefused,
    /// An `EndpointSlice` without a port that its Service has.
    PortMismatch,
    /// An `EndpointSlice` that names no Service.
    NoServiceLabel,
}

/// Where in the directory something stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize)]
pub struct Place {
    /// Path below the directory; empty for the directory itself.
    pub file: String,
    /// Which of the file's documents, counted from 1 without empty ones.
    pub document: Option<usize>,
    /// The line of the problem, or that on which the document begins.
    pub line: Option<usize>,
}

/// An object as its manifest names it, whether or not that is a legal name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ObjectRef {
    /// For example `Service`.
    pub kind: String,
    /// `None` for kinds without one.
    pub namespace: Option<String>,
    /// Empty when there is none.
    pub name: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.place)?;
        if let Some(object) = &self.object {
            write!(f, ": {object}")?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.message)?;
        if self.kept {
            f.write_str(" (the last good state stays in use)")?;
        }
        Ok(())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.file.is_empty() { "the directory" } else { &self.file })?;
        match (self.document, self.line) {
            (Some(document), Some(line)) => write!(f, ", document {document} (line {line})"),
            (Some(document), None) => write!(f, ", document {document}"),
            (None, Some(line)) => write!(f, ", line {line}"),
            (None, None) => Ok(()),
        }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.name.is_empty() { "(no name)" } else { &self.name };
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{name}", self.kind),
            None => write!(f, "{} {name}", self.kind),
        }
    }
}

/// A field of an object that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FieldError {
    pub(super) field: String,
    pub(super) message: String,
}

impl FieldError {
    pub(super) fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// Messages quote what they refuse, but never a megabyte of it.
pub(super) fn shorten(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.to_owned();
    }
    text.chars().take(max).chain(['…']).collect()
}
