//! Objects as the client wants to see them: whole, as metadata only, or as a table.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use xebec_api::{
    Document,
    resource::Resource,
    status::{self, ApiError},
    table::{self, IncludeObject},
};

use crate::{
    cache::Entry,
    http::{
        Response,
        negotiate::{Format, Shape, Wanted},
        respond,
    },
    request_info::Query,
};

/// How entries of one resource are turned into what goes over the wire.
pub(crate) struct Presenter {
    pub resource: Arc<Resource>,
    pub wanted: Wanted,
    include: IncludeObject,
    converts: bool,
    now: i64,
}

impl Presenter {
    pub fn new(resource: Arc<Resource>, wanted: Wanted, query: &Query) -> Result<Presenter, ApiError> {
        let include = include_object(query)?;
        let converts = resource.api_version() != resource.storage_api_version;
        Ok(Presenter { resource, wanted, include, converts, now: chrono::Utc::now().timestamp() })
    }

    /// Whether the stored bytes are what is sent.
    pub fn is_verbatim(&self) -> bool {
        !self.converts && self.wanted.shape == Shape::Object && self.wanted.format == Format::Json
    }

    /// An entry as a document in the version asked for.
    pub fn document(&self, entry: &Entry) -> Document {
        to_row_version(&self.resource, entry.document())
    }

    /// JSON of one watched object; a table's columns come with the first event only.
    pub fn watched(&self, entry: &Entry, revision: u64, first: bool) -> Bytes {
        let bytes = entry.bytes_at(revision);
        if !self.converts && self.wanted.shape == Shape::Object {
            return bytes;
        }
        let doc: Document = to_row_version(&self.resource, serde_json::from_slice(&bytes).unwrap_or_default());
        let value = match self.wanted.shape {
            Shape::Object => doc,
            Shape::Metadata { v1beta1 } => partial_metadata(&doc, v1beta1),
            Shape::Table { v1beta1 } => {
                let now = chrono::Utc::now().timestamp();
                let metadata = json!({"resourceVersion": doc["metadata"]["resourceVersion"]});
                with_version(table::table(&self.resource, [&doc], metadata, self.include, first, now), v1beta1)
            }
        };
        serde_json::to_vec(&value).unwrap_or_default().into()
    }

    /// The whole list that is not sent verbatim.
    pub fn list(&self, docs: &[Document], metadata: Value) -> Value {
        match self.wanted.shape {
            Shape::Object => json!({
                "kind": self.resource.list_kind, "apiVersion": self.resource.api_version(), "metadata": metadata, "items": docs,
            }),
            Shape::Metadata { v1beta1 } => {
                let items: Vec<Value> = docs.iter().map(|doc| partial_metadata(doc, v1beta1)).collect();
                with_version(
                    json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "items": items}),
                    v1beta1,
                )
            }
            Shape::Table { v1beta1 } => with_version(table::table(&self.resource, docs, metadata, self.include, true, self.now), v1beta1),
        }
    }
}

/// A stored document in the version of `resource`.
pub(crate) fn to_row_version(resource: &Resource, doc: Document) -> Document {
    if resource.api_version() == resource.storage_api_version {
        return doc;
    }
    let mut doc = resource.hooks.from_storage(doc);
    doc["apiVersion"] = resource.api_version().into();
    doc
}

/// The answer that is one document.
pub(crate) fn single(
    resource: &Arc<Resource>,
    wanted: Wanted,
    query: &Query,
    code: StatusCode,
    doc: &Document,
) -> Result<Response, ApiError> {
    Ok(match wanted.shape {
        Shape::Object => respond::document(code, wanted.format, doc),
        // A Status is never a row.
        _ if doc["kind"] == "Status" && resource.kind != "Status" => respond::document(code, wanted.format, doc),
        Shape::Metadata { v1beta1 } => respond::document(code, wanted.format, &partial_metadata(doc, v1beta1)),
        Shape::Table { v1beta1 } => {
            let metadata = json!({"resourceVersion": doc["metadata"]["resourceVersion"]});
            let table = table::table(resource, [doc], metadata, include_object(query)?, true, chrono::Utc::now().timestamp());
            respond::document(code, wanted.format, &with_version(table, v1beta1))
        }
    })
}

fn include_object(query: &Query) -> Result<IncludeObject, ApiError> {
    IncludeObject::parse(query.get("includeObject")).ok_or_else(|| {
        let given = query.get("includeObject");
        status::bad_request(format!("unrecognized includeObject value: {given:?}"))
    })
}

fn partial_metadata(doc: &Document, v1beta1: bool) -> Value {
    with_version(json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": doc["metadata"]}), v1beta1)
}

fn with_version(mut doc: Value, v1beta1: bool) -> Value {
    if v1beta1 {
        doc["apiVersion"] = "meta.k8s.io/v1beta1".into();
    }
    doc
}
