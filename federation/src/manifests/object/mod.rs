//! Kubernetes objects that are read, checked once and kept as domain types.
//!
//! Owns: the rules by which the API server would refuse an object, as far as they concern what
//! leaves the cluster; nobody has asked an API server about a manifest in a directory. Turned
//! down: refusing unknown fields. kubectl does, but it knows its server's version, and a manifest
//! for a newer Kubernetes is not broken.

mod fields;
mod service;
mod slice;

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::Value;

use self::fields::{typed, wrong};
pub(super) use self::service::{Exposure, Service};
pub(super) use self::slice::{Ownership, Slice};
use super::problem::{FieldError, ObjectRef, shorten};
use crate::names::{NamespaceName, ObjectName, ServiceKey, ServiceName};

/// Kubernetes' limit for all annotations of an object, in bytes.
const MAX_ANNOTATIONS: usize = 256 << 10;

/// Kinds that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ReadKind {
    Namespace,
    Service,
    ServiceExport,
    EndpointSlice,
}

impl ReadKind {
    pub(super) fn of(api_version: &str, kind: &str) -> Option<Self> {
        match (api_version, kind) {
            ("v1", "Namespace") => Some(Self::Namespace),
            ("v1", "Service") => Some(Self::Service),
            ("discovery.k8s.io/v1", "EndpointSlice") => Some(Self::EndpointSlice),
            (
                "multicluster.x-k8s.io/v1beta1" | "multicluster.x-k8s.io/v1alpha1",
                "ServiceExport",
            ) => Some(Self::ServiceExport),
            _ => None,
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Service => "Service",
            Self::ServiceExport => "ServiceExport",
            Self::EndpointSlice => "EndpointSlice",
        }
    }
}

/// What an object is, in the whole directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Id {
    Namespace(NamespaceName),
    Service(ServiceKey),
    Export(ServiceKey),
    Slice(NamespaceName, ObjectName),
}

impl Id {
    pub(super) fn kind(&self) -> ReadKind {
        match self {
            Self::Namespace(_) => ReadKind::Namespace,
            Self::Service(_) => ReadKind::Service,
            Self::Export(_) => ReadKind::ServiceExport,
            Self::Slice(..) => ReadKind::EndpointSlice,
        }
    }

    pub(super) fn object_ref(&self) -> ObjectRef {
        let (namespace, name) = match self {
            Self::Namespace(name) => (None, name.to_string()),
            Self::Service(key) | Self::Export(key) => (Some(&key.namespace), key.name.to_string()),
            Self::Slice(namespace, name) => (Some(namespace), name.to_string()),
        };
        let namespace = namespace.map(ToString::to_string);
        ObjectRef { kind: self.kind().as_str().to_owned(), namespace, name }
    }
}

/// An object that is read.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Object {
    Namespace(Namespace),
    Service(Service),
    Export(Export),
    Slice(Slice),
}

/// v1 Namespace.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Namespace {
    pub(super) labels: BTreeMap<String, String>,
}

/// multicluster.x-k8s.io `ServiceExport`; both versions have one schema.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Export {
    pub(super) created: Option<Timestamp>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct ServiceExport {
    #[serde(default)]
    metadata: ObjectMeta,
    spec: Option<ServiceExportSpec>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct ServiceExportSpec {
    exported_labels: Option<BTreeMap<String, String>>,
    exported_annotations: Option<BTreeMap<String, String>>,
}

/// Reads an object of `kind`.
pub(super) fn read(kind: ReadKind, value: &Value) -> Result<(Id, Object), FieldError> {
    match kind {
        ReadKind::Namespace => {
            let namespace: core::Namespace = typed(value)?;
            let name = name(&namespace.metadata)?;
            let labels = namespace.metadata.labels.unwrap_or_default();
            Ok((Id::Namespace(name), Object::Namespace(Namespace { labels })))
        }
        ReadKind::Service => {
            let service: core::Service = typed(value)?;
            let key = service_key(&service.metadata)?;
            Ok((Id::Service(key), Object::Service(service::read(service)?)))
        }
        ReadKind::ServiceExport => {
            let export: ServiceExport = typed(value)?;
            let key = service_key(&export.metadata)?;
            Ok((Id::Export(key), Object::Export(self::export(export)?)))
        }
        ReadKind::EndpointSlice => {
            let slice: k8s_openapi::api::discovery::v1::EndpointSlice = typed(value)?;
            let (namespace, name) = (namespace(&slice.metadata)?, name(&slice.metadata)?);
            Ok((Id::Slice(namespace, name), Object::Slice(slice::read(slice)?)))
        }
    }
}

/// What a value of `kind` says it is, whatever else is wrong with it.
pub(super) fn id(kind: ReadKind, value: &Value) -> Option<Id> {
    let metadata = value.get("metadata")?;
    let text = |field| metadata.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
    let name = text("name")?;
    let namespace = || text("namespace").unwrap_or("default").parse().ok();
    let service = || Some(ServiceKey { namespace: namespace()?, name: name.parse().ok()? });
    Some(match kind {
        ReadKind::Namespace => Id::Namespace(name.parse().ok()?),
        ReadKind::Service => Id::Service(service()?),
        ReadKind::ServiceExport => Id::Export(service()?),
        ReadKind::EndpointSlice => Id::Slice(namespace()?, name.parse().ok()?),
    })
}

/// As [`id`], for a message: the names need not be legal.
pub(super) fn object_ref(kind: ReadKind, value: &Value) -> ObjectRef {
    let text = |field| {
        let text = value.get("metadata").and_then(|metadata| metadata.get(field)?.as_str());
        shorten(text.unwrap_or_default(), 100)
    };
    let namespace = Some(text("namespace")).filter(|namespace| !namespace.is_empty());
    let namespace = namespace.unwrap_or_else(|| "default".to_owned());
    ObjectRef {
        kind: kind.as_str().to_owned(),
        namespace: (kind != ReadKind::Namespace).then_some(namespace),
        name: text("name"),
    }
}

fn export(export: ServiceExport) -> Result<Export, FieldError> {
    let spec = export.spec.unwrap_or_default();
    let labels = spec.exported_labels.unwrap_or_default();
    let annotations = spec.exported_annotations.unwrap_or_default();
    bounded("spec.exportedLabels", &labels)?;
    bounded("spec.exportedAnnotations", &annotations)?;
    let created = export.metadata.creation_timestamp.map(|time| time.0);
    Ok(Export { created, labels, annotations })
}

fn bounded(field: &str, map: &BTreeMap<String, String>) -> Result<(), FieldError> {
    let size: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > MAX_ANNOTATIONS {
        return Err(wrong(
            field,
            format!("has {size} bytes"),
            format!("at most {MAX_ANNOTATIONS}"),
        ));
    }
    Ok(())
}

fn name<T>(metadata: &ObjectMeta) -> Result<T, FieldError>
where
    T: std::str::FromStr<Err = crate::names::InvalidName>,
{
    let name = metadata.name.as_deref().unwrap_or_default();
    if name.is_empty() {
        return Err(FieldError::new("metadata.name", "is missing, expected the object's name"));
    }
    name.parse().map_err(|e: T::Err| FieldError::new("metadata.name", e.to_string()))
}

fn namespace(metadata: &ObjectMeta) -> Result<NamespaceName, FieldError> {
    let namespace = metadata.namespace.as_deref().filter(|text| !text.is_empty());
    let parsed = namespace.unwrap_or("default").parse();
    parsed.map_err(|e: crate::names::InvalidName| {
        FieldError::new("metadata.namespace", e.to_string())
    })
}

fn service_key(metadata: &ObjectMeta) -> Result<ServiceKey, FieldError> {
    let name: ServiceName = name(metadata)?;
    Ok(ServiceKey { namespace: namespace(metadata)?, name })
}
