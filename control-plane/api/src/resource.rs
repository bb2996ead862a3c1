//! A kind is a row: names, scope, verbs, subresources, and hooks over documents.

use std::sync::Arc;

use serde_json::Value;

use crate::{
    Document,
    status::FieldError,
    validate::names::{self, NameCheck},
};

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

impl Verb {
    /// The name in discovery and RBAC rules.
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Watch => "watch",
            Verb::Create => "create",
            Verb::Update => "update",
            Verb::Patch => "patch",
            Verb::Delete => "delete",
            Verb::DeleteCollection => "deletecollection",
        }
    }
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
    /// Whether `metadata.generation` is 1 at creation and counts changes outside `metadata` and `status`.
    pub counts_generation: bool,
    /// Whether PUT of a name that does not exist creates it.
    pub creates_on_update: bool,
    /// Whether an update may leave out `metadata.resourceVersion`.
    pub unconditional_update: bool,
    pub hooks: Arc<dyn Hooks>,
}

impl Resource {
    /// `v1` or `group/version`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `pods`, `deployments.apps`: how error messages name the resource.
    pub fn qualified_plural(&self) -> String {
        qualify(&self.plural, &self.group)
    }

    /// `Pod`, `Deployment.apps`: how validation errors name the kind.
    pub fn qualified_kind(&self) -> String {
        qualify(&self.kind, &self.group)
    }

    pub fn is_namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }

    /// Whether instances are kept; reviews and bindings are only answered.
    pub fn is_stored(&self) -> bool {
        !self.storage_prefix.is_empty()
    }

    pub fn allows(&self, verb: Verb) -> bool {
        self.verbs.contains(&verb)
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }
}

fn qualify(name: &str, group: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
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
    /// The syntax of `metadata.name`.
    fn name_check(&self) -> NameCheck {
        names::dns1123_subdomain
    }

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

    /// Printed columns; the first is the name.
    fn columns(&self) -> Vec<Column> {
        crate::table::default_columns()
    }

    /// One cell a column. `now` is a Unix time in seconds, for ages.
    fn cells(&self, doc: &Document, now: i64) -> Vec<Value> {
        crate::table::default_cells(doc, now)
    }

    /// Converts a stored document (in `storage_api_version`) to this row's version, and back.
    #[expect(clippy::wrong_self_convention, reason = "the hooks convert from the stored form, not from themselves")]
    fn from_storage(&self, doc: Document) -> Document {
        doc
    }
    fn to_storage(&self, doc: Document) -> Document {
        doc
    }
}
