//! What sets each kind apart: a row of functions, shared wherever kinds are alike.

mod apps;
mod batch;
mod config;
mod extend;
mod network;
mod nodes;
mod pods;
pub(crate) mod podspec;
mod rbac;
mod scaling;
mod service_type;
mod storage;

use std::sync::Arc;

use serde_json::Value;

use crate::{
    Document,
    resource::{Column, Hooks},
    status::FieldError,
    table,
    validate::names::{self, NameCheck},
    value,
};

/// A kind's rules. Kinds write `Rules { .., ..PLAIN }`.
#[derive(Clone, Copy)]
pub(crate) struct Rules {
    pub name: NameCheck,
    pub default: fn(&mut Document),
    /// After the status was cleared.
    pub prepare_create: fn(&mut Document),
    /// Clients give the first status themselves (kubelet's Node).
    pub keeps_status: bool,
    /// After spec or status were restored.
    pub prepare_update: fn(&mut Document, &Document, &str),
    /// Of the whole object, at create and at updates of the object itself.
    pub validate: fn(&Document, &mut Vec<FieldError>),
    /// What else a new object must obey.
    pub validate_new: fn(&Document, &mut Vec<FieldError>),
    /// What else an update must obey.
    pub validate_update: fn(&Document, &Document, &str, &mut Vec<FieldError>),
    pub warnings: fn(&Document) -> Vec<String>,
    pub fields: fn(&Document) -> Vec<(&'static str, String)>,
    /// Columns between NAME and the rest: (name, type, priority). Empty: NAME and AGE.
    pub columns: &'static [(&'static str, &'static str, i32)],
    /// No NAME in front of `columns`.
    pub columns_are_all: bool,
    /// Cells of `columns`.
    pub cells: fn(&Document, i64) -> Vec<Value>,
    pub from_storage: fn(Document) -> Document,
    pub to_storage: fn(Document) -> Document,
}

/// A kind without rules.
pub(crate) const PLAIN: Rules = Rules {
    name: names::dns1123_subdomain,
    default: |_| {},
    prepare_create: |_| {},
    keeps_status: false,
    prepare_update: |_, _, _| {},
    validate: |_, _| {},
    validate_new: |_, _| {},
    validate_update: |_, _, _, _| {},
    warnings: |_| Vec::new(),
    fields: |_| Vec::new(),
    columns: &[],
    columns_are_all: false,
    cells: |_, _| Vec::new(),
    from_storage: |doc| doc,
    to_storage: |doc| doc,
};

/// The rules of a kind as hooks of its row.
struct Kind {
    rules: Rules,
    has_status: bool,
}

/// The hooks of a row of the table.
pub(crate) fn hooks(group: &str, version: &str, kind: &str, has_status: bool) -> Arc<dyn Hooks> {
    let found = match group {
        "" => pods::rules(kind)
            .or_else(|| nodes::rules(kind))
            .or_else(|| config::rules(kind))
            .or_else(|| network::core_rules(kind))
            .or_else(|| storage::core_rules(kind)),
        "apps" => apps::rules(kind),
        "batch" => batch::rules(kind),
        "autoscaling" => scaling::rules(version),
        "policy" | "scheduling.k8s.io" => scaling::policy_rules(kind),
        "networking.k8s.io" | "discovery.k8s.io" => network::rules(kind),
        "storage.k8s.io" => storage::rules(kind),
        "rbac.authorization.k8s.io" => rbac::rules(kind),
        "events.k8s.io" => config::events_rules(kind),
        "coordination.k8s.io" | "node.k8s.io" | "certificates.k8s.io" => nodes::rules(kind),
        _ => extend::rules(kind),
    };
    Arc::new(Kind { rules: found.unwrap_or(PLAIN), has_status })
}

impl Hooks for Kind {
    fn name_check(&self) -> NameCheck {
        self.rules.name
    }

    fn default(&self, doc: &mut Document) {
        (self.rules.default)(doc);
    }

    fn prepare_for_create(&self, doc: &mut Document) {
        if self.has_status && !self.rules.keeps_status {
            value::unset(doc, "status");
        }
        (self.rules.prepare_create)(doc);
    }

    fn prepare_for_update(&self, new: &mut Document, old: &Document, sub: &str) {
        match sub {
            "" if self.has_status => value::copy(new, old, "status"),
            "status" => {
                // Of the object only the status (and metadata) is written here.
                let keep = |key: &String| !matches!(key.as_str(), "metadata" | "status" | "apiVersion" | "kind");
                let keys: Vec<String> =
                    [&*new, old].iter().flat_map(|d| d.as_object().into_iter().flatten().map(|(k, _)| k.clone())).filter(keep).collect();
                for key in keys {
                    value::copy(new, old, &key);
                }
            }
            _ => {}
        }
        (self.rules.prepare_update)(new, old, sub);
    }

    fn validate_create(&self, doc: &Document) -> Vec<FieldError> {
        let mut errors = Vec::new();
        (self.rules.validate)(doc, &mut errors);
        (self.rules.validate_new)(doc, &mut errors);
        errors
    }

    fn validate_update(&self, new: &Document, old: &Document, sub: &str) -> Vec<FieldError> {
        let mut errors = Vec::new();
        // An object that was stored under older rules can still lose its finalizers.
        let deleting = !old["metadata"]["deletionTimestamp"].is_null();
        if sub.is_empty() && !(deleting && new["spec"] == old["spec"]) {
            (self.rules.validate)(new, &mut errors);
        }
        (self.rules.validate_update)(new, old, sub, &mut errors);
        errors
    }

    fn warnings(&self, doc: &Document) -> Vec<String> {
        (self.rules.warnings)(doc)
    }

    fn selectable_fields(&self, doc: &Document) -> Vec<(&'static str, String)> {
        (self.rules.fields)(doc)
    }

    fn columns(&self) -> Vec<Column> {
        if self.rules.columns.is_empty() {
            return table::default_columns();
        }
        let first = (!self.rules.columns_are_all).then(|| table::column("Name", table::NAME_DESCRIPTION));
        let rest = self.rules.columns.iter().map(|(name, type_, priority)| table::typed_column(name, type_, *priority, ""));
        first.into_iter().chain(rest).collect()
    }

    fn cells(&self, doc: &Document, now: i64) -> Vec<Value> {
        if self.rules.columns.is_empty() {
            return table::default_cells(doc, now);
        }
        let mut cells = (self.rules.cells)(doc, now);
        if !self.rules.columns_are_all {
            cells.insert(0, doc["metadata"]["name"].clone());
        }
        cells
    }

    fn from_storage(&self, doc: Document) -> Document {
        (self.rules.from_storage)(doc)
    }

    fn to_storage(&self, doc: Document) -> Document {
        (self.rules.to_storage)(doc)
    }
}

/// The AGE cell.
pub(crate) fn age(doc: &Document, now: i64) -> Value {
    table::age(&doc["metadata"]["creationTimestamp"], now)
}

/// The value of a scalar field as a field selector compares it.
pub(crate) fn field(doc: &Document, pointer: &str) -> String {
    match doc.pointer(pointer) {
        Some(Value::String(s)) => s.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    }
}

/// `Invalid value: ...: field is immutable` when the value at `pointer` changed.
pub(crate) fn immutable(new: &Document, old: &Document, pointer: &str, errors: &mut Vec<FieldError>) {
    let at = |doc: &Document| doc.pointer(pointer).cloned().unwrap_or(Value::Null);
    if !crate::meta::same(&at(new), &at(old)) {
        let path = pointer.trim_start_matches('/').replace('/', ".");
        errors.push(FieldError::invalid(path, at(new), "field is immutable"));
    }
}
