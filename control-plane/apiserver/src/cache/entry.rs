//! One object as it is kept in memory and sent: its bytes plus what selectors look at.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use xebec_api::{Document, resource::Resource};
use xebec_store::Revision;

/// A live (or last) version of an object.
#[derive(Debug)]
pub struct Entry {
    /// `NAMESPACE/NAME`, or `NAME` for cluster-scoped objects: the store key behind the kind's prefix.
    pub key: Box<str>,
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// Selectable fields besides name and namespace.
    pub fields: Box<[(&'static str, String)]>,
    pub revision: Revision,
    /// JSON with `metadata.resourceVersion` spliced in.
    pub bytes: Bytes,
    /// Where the digits of `resourceVersion` lie in `bytes`.
    digits: std::ops::Range<u32>,
}

/// What of a stored object cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("stored object {key} is no Kubernetes object in JSON: {reason}")]
pub struct Unreadable {
    pub key: String,
    pub reason: String,
}

#[derive(Deserialize)]
struct Outer<'a> {
    #[serde(borrow)]
    metadata: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    #[serde(default)]
    labels: Option<BTreeMap<Box<str>, Box<str>>>,
    #[serde(default)]
    resource_version: Option<String>,
}

impl Entry {
    /// From the stored bytes, which carry no resource version.
    pub fn new(key: &str, stored: &[u8], revision: Revision, resource: &Resource) -> Result<Entry, Unreadable> {
        let unreadable = |e: serde_json::Error| Unreadable { key: key.to_string(), reason: e.to_string() };
        let outer: Outer<'_> = serde_json::from_slice(stored).map_err(unreadable)?;
        let meta: Meta = serde_json::from_str(outer.metadata.get()).map_err(unreadable)?;
        let (bytes, digits) = match meta.resource_version {
            None => splice(stored, outer.metadata, revision),
            // Another server's writer may have left one in; take it out first.
            Some(_) => {
                let mut doc: Document = serde_json::from_slice(stored).map_err(unreadable)?;
                let clean = to_stored(&mut doc);
                let outer: Outer<'_> = serde_json::from_slice(&clean).map_err(unreadable)?;
                splice(&clean, outer.metadata, revision)
            }
        };
        let fields = if resource.hooks.selectable_fields(&Document::Null).is_empty() {
            Box::default()
        } else {
            let doc: Document = serde_json::from_slice(stored).map_err(unreadable)?;
            resource.hooks.selectable_fields(&doc).into_boxed_slice()
        };
        let labels = meta.labels.unwrap_or_default().into_iter().collect();
        Ok(Entry { key: key.into(), labels, fields, revision, bytes, digits })
    }

    pub fn name(&self) -> &str {
        self.key.rsplit_once('/').map_or(&self.key, |(_, name)| name)
    }

    /// Empty for cluster-scoped objects.
    pub fn namespace(&self) -> &str {
        self.key.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(k, _)| **k == *key).map(|(_, value)| &**value)
    }

    /// The value of a selectable field.
    pub fn field(&self, name: &str) -> Option<&str> {
        match name {
            "metadata.name" => Some(self.name()),
            "metadata.namespace" => Some(self.namespace()),
            _ => self.fields.iter().find(|(field, _)| *field == name).map(|(_, value)| value.as_str()),
        }
    }

    /// The bytes with another resource version: that of the event which took the object away.
    pub fn bytes_at(&self, revision: Revision) -> Bytes {
        if revision == self.revision {
            return self.bytes.clone();
        }
        let (start, end) = (self.digits.start as usize, self.digits.end as usize);
        let mut out = Vec::with_capacity(self.bytes.len() + 8);
        out.extend_from_slice(&self.bytes[..start]);
        out.extend_from_slice(revision.to_string().as_bytes());
        out.extend_from_slice(&self.bytes[end..]);
        out.into()
    }

    /// The decoded object, resource version included.
    pub fn document(&self) -> Document {
        // The bytes were parsed when the entry was made.
        serde_json::from_slice(&self.bytes).unwrap_or_default()
    }

    /// Decodes into a typed object.
    pub fn decode<T: serde::de::DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(&self.bytes).ok()
    }
}

/// The bytes to store: compact JSON without the resource version, which is the store's to know.
pub fn to_stored(doc: &mut Document) -> Vec<u8> {
    if let Some(meta) = doc.get_mut("metadata").and_then(Document::as_object_mut) {
        meta.remove("resourceVersion");
        meta.remove("selfLink");
    }
    serde_json::to_vec(doc).unwrap_or_default()
}

/// Stored bytes as a document with its resource version.
pub fn from_stored(stored: &[u8], revision: Revision) -> Result<Document, serde_json::Error> {
    let mut doc: Document = serde_json::from_slice(stored)?;
    doc["metadata"]["resourceVersion"] = Document::String(revision.to_string());
    Ok(doc)
}

/// An event of the cache: at least one of the two is there.
#[derive(Debug)]
pub struct CacheEvent {
    pub revision: Revision,
    pub previous: Option<Arc<Entry>>,
    pub current: Option<Arc<Entry>>,
}

impl CacheEvent {
    pub fn key(&self) -> &str {
        self.current.as_ref().or(self.previous.as_ref()).map_or("", |entry| &entry.key)
    }
}

fn splice(stored: &[u8], metadata: &RawValue, revision: Revision) -> (Bytes, std::ops::Range<u32>) {
    const FIELD: &str = "\"resourceVersion\":\"";
    let metadata = metadata.get();
    // `metadata` borrows from `stored`: the distance is where it lies. Behind its brace the field goes in.
    let at = metadata.as_ptr() as usize - stored.as_ptr() as usize + 1;
    let is_empty = metadata[1..].trim_start().starts_with('}');
    let digits = revision.to_string();
    let mut out = Vec::with_capacity(stored.len() + FIELD.len() + digits.len() + 2);
    out.extend_from_slice(&stored[..at]);
    out.extend_from_slice(FIELD.as_bytes());
    let start = out.len() as u32;
    out.extend_from_slice(digits.as_bytes());
    let end = out.len() as u32;
    out.extend_from_slice(if is_empty { b"\"" } else { b"\"," });
    out.extend_from_slice(&stored[at..]);
    (out.into(), start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource() -> &'static Resource {
        xebec_api::builtin::by_plural("", "v1", "configmaps").unwrap()
    }

    #[test]
    fn the_revision_is_spliced_wherever_metadata_stands() {
        for stored in [
            r#"{"metadata":{"name":"a","labels":{"x":"y"}},"data":{"metadata":"{"}}"#,
            r#"{"apiVersion":"v1","data":{"metadata":"{\"name\":1}"},"kind":"ConfigMap","metadata":{"name":"a"}}"#,
            r#"{"nested":{"metadata":{"name":"b"}},"metadata" : { "name":"a"}}"#,
            r#"{"metadata":{}}"#,
            r#"{"metadata":{"resourceVersion":"3","name":"a"}}"#,
        ] {
            let entry = Entry::new("ns/a", stored.as_bytes(), 42, resource()).unwrap();
            let mut expected: Document = serde_json::from_str(stored).unwrap();
            expected["metadata"]["resourceVersion"] = "42".into();
            assert_eq!(entry.document(), expected, "{stored}");
            let later: Document = serde_json::from_slice(&entry.bytes_at(1042)).unwrap();
            expected["metadata"]["resourceVersion"] = "1042".into();
            assert_eq!(later, expected, "{stored}");
        }
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for stored in ["", "[]", "{}", r#"{"metadata":3}"#, "k8s\0\n"] {
            assert!(Entry::new("ns/a", stored.as_bytes(), 1, resource()).is_err(), "{stored}");
        }
    }

    #[test]
    fn labels_and_fields_are_found() {
        let entry = Entry::new("ns/a", br#"{"metadata":{"name":"a","labels":{"x":"y"}}}"#, 1, resource()).unwrap();
        assert_eq!((entry.namespace(), entry.name(), entry.label("x"), entry.label("z")), ("ns", "a", Some("y"), None));
        assert_eq!(entry.field("metadata.name"), Some("a"));
        assert_eq!(entry.field("spec.x"), None);
    }
}
