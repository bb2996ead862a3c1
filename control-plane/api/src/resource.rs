//! A kind is a row: names, scope, verbs, subresources, and hooks over documents.

use std::sync::Arc;

use serde_json::Value;

use crate::{Document, status::FieldError};

/// The `metadata`-level scope of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Cluster,
    Namespaced,
}

/// What may be done to a resource or subresource, with the names discovery and RBAC use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

/// `pods/log`, `deployments/scale`, ...
#[derive(Debug, Clone)]
pub struct Subresource {
    /// The part after the slash.
    pub name: &'static str,
    /// (group, version, kind) of the body when it differs from the resource's own, e.g. `autoscaling/v1 Scale`.
    pub kind: Option<(&'static str, &'static str, &'static str)>,
    pub verbs: Vec<Verb>,
}

/// A row of the table of kinds.
#[derive(Clone)]
pub struct Resource {
    /// Empty for the core group.
    pub group: String,
    pub version: String,
    pub kind: String,
    pub plural: String,
    pub singular: String,
    pub list_kind: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub scope: Scope,
    pub verbs: Vec<Verb>,
    pub subresources: Vec<Subresource>,
    /// Where instances live: `/registry/{storage_prefix}/[{namespace}/]{name}`, kube-apiserver's layout
    /// (`services/specs`, `minions`, `deployments`, ...). Rows of one storage (autoscaling v1 and v2, both Events) share it.
    /// Empty for virtual kinds (SubjectAccessReview, TokenReview, Binding ...) that are never stored.
    pub storage_prefix: String,
    /// `apiVersion` of the stored form; differs from this row's for rows that convert.
    pub storage_api_version: String,
    pub hooks: Arc<dyn Hooks>,
}

impl Resource {
    /// `v1` or `group/version`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }
}

/// A printed column, `metav1.TableColumnDefinition`.
#[derive(Debug, Clone)]
pub struct Column {
    pub name: String,
    /// `string`, `integer`, `date`, ...
    pub type_: String,
    pub format: String,
    pub description: String,
    /// 0 always shown, 1 only with `-o wide`.
    pub priority: i32,
}

/// What differs between kinds. Every method is pure; `sub` is the subresource written through, empty for the object itself.
///
/// The registry calls, for create: `default`, `prepare_for_create`, `validate_create`; for update: `default`,
/// `prepare_for_update`, `validate_update`. Object metadata common to all kinds (names, labels, uid, generation,
/// timestamps, finalizers, owner references) is handled by the `meta` module for all of them.
pub trait Hooks: Send + Sync {
    /// Fills defaults as `SetDefaults_*` upstream do. Idempotent.
    fn default(&self, _doc: &mut Document) {}

    /// Clears what a client may not set on create (status, deprecated fields).
    fn prepare_for_create(&self, _doc: &mut Document) {}

    /// Keeps what `sub` may not change (spec under `status`, status under the object itself).
    fn prepare_for_update(&self, _new: &mut Document, _old: &Document, _sub: &str) {}

    fn validate_create(&self, _doc: &Document) -> Vec<FieldError> {
        Vec::new()
    }

    fn validate_update(&self, _new: &Document, _old: &Document, _sub: &str) -> Vec<FieldError> {
        Vec::new()
    }

    /// `Warning:` headers for the client.
    fn warnings(&self, _doc: &Document) -> Vec<String> {
        Vec::new()
    }

    /// Fields a field selector may name besides `metadata.name` and `metadata.namespace`, with their values in `doc`.
    /// The set of names is the same for every document.
    fn selectable_fields(&self, _doc: &Document) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn columns(&self) -> Vec<Column>;

    /// One cell a column. `now` is a Unix time in seconds, for ages.
    fn cells(&self, doc: &Document, now: i64) -> Vec<Value>;

    /// Converts a stored document (in `storage_api_version`) to this row's version, and back.
    fn from_storage(&self, doc: Document) -> Document {
        doc
    }
    fn to_storage(&self, doc: Document) -> Document {
        doc
    }
}
