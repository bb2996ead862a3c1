//! From a CustomResourceDefinition to rows. Pure.

use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};
use xebec_api::{
    Document,
    resource::{Resource, Scope, Subresource, Verb},
};

use super::{Custom, CustomHooks, columns, jsonpath::Path, schema::Schema};

const ALL: [Verb; 8] = [Verb::Delete, Verb::DeleteCollection, Verb::Get, Verb::List, Verb::Patch, Verb::Create, Verb::Update, Verb::Watch];
const VIEW: [Verb; 3] = [Verb::Get, Verb::Patch, Verb::Update];

/// A definition as rows.
pub(crate) struct Defined {
    /// The row of the stored version, served or not: its cache holds the objects.
    pub stored: Arc<Resource>,
    /// One row for each served version.
    pub served: Vec<(Arc<Resource>, Arc<Custom>)>,
}

/// Makes the rows of a definition. The error says what of it cannot be used.
pub(crate) fn define(crd: &Document) -> Result<Defined, String> {
    let spec = &crd["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let group = text(&spec["group"]);
    let versions: Vec<&Value> = spec["versions"].as_array().into_iter().flatten().collect();
    let stored = versions.iter().find(|v| v["storage"] == true).ok_or("no version is the stored one")?;
    let storage_api_version = format!("{group}/{}", text(&stored["name"]));
    let mut served = Vec::new();
    let mut stored_row = None;
    for version in &versions {
        let custom = Arc::new(custom(version)?);
        let row = Arc::new(row(crd, &group, version, &storage_api_version, &custom));
        if version["storage"] == true {
            stored_row = Some(row.clone());
        }
        if version["served"] == true {
            served.push((row, custom));
        }
    }
    Ok(Defined { stored: stored_row.ok_or("no version is the stored one")?, served })
}

fn custom(version: &Value) -> Result<Custom, String> {
    let raw = &version["schema"]["openAPIV3Schema"];
    let schema = if raw.is_null() { Schema::anything() } else { Schema::parse(raw)? };
    let selectable = version["selectableFields"].as_array().into_iter().flatten().filter_map(|field| {
        let path = field["jsonPath"].as_str()?;
        Some((intern(path.trim_start_matches('.')), Path::parse(path)?))
    });
    let pointer = |path: &Value| path.as_str().map(|path| path.replace('.', "/"));
    let scale = &version["subresources"]["scale"];
    Ok(Custom {
        schema,
        columns: columns::parse(version),
        selectable: selectable.collect(),
        has_status: !version["subresources"]["status"].is_null(),
        scale: pointer(&scale["specReplicasPath"])
            .zip(pointer(&scale["statusReplicasPath"]))
            .map(|(spec, status)| (spec, status, pointer(&scale["labelSelectorPath"]))),
        openapi: raw.clone(),
    })
}

fn row(crd: &Document, group: &str, version: &Value, storage_api_version: &str, custom: &Arc<Custom>) -> Resource {
    let names = &crd["spec"]["names"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let texts =
        |value: &Value| -> Vec<String> { value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_string).collect() };
    let or = |given: String, other: String| if given.is_empty() { other } else { given };
    let (kind, plural) = (text(&names["kind"]), text(&names["plural"]));
    let mut subresources = Vec::new();
    if custom.has_status {
        subresources.push(Subresource { name: "status", kind: None, verbs: VIEW.to_vec() });
    }
    if custom.scale.is_some() {
        subresources.push(Subresource { name: "scale", kind: Some(("autoscaling", "v1", "Scale")), verbs: VIEW.to_vec() });
    }
    Resource {
        group: group.to_string(),
        version: text(&version["name"]),
        singular: or(text(&names["singular"]), kind.to_lowercase()),
        list_kind: or(text(&names["listKind"]), format!("{kind}List")),
        short_names: texts(&names["shortNames"]),
        categories: texts(&names["categories"]),
        scope: if crd["spec"]["scope"] == "Cluster" { Scope::Cluster } else { Scope::Namespaced },
        verbs: ALL.to_vec(),
        subresources,
        storage_prefix: format!("{group}/{plural}"),
        storage_api_version: storage_api_version.to_string(),
        counts_generation: true,
        creates_on_update: false,
        unconditional_update: false,
        hooks: Arc::new(CustomHooks(custom.clone())),
        kind,
        plural,
    }
}

/// A name for the life of the process; each is kept once.
fn intern(name: &str) -> &'static str {
    static NAMES: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());
    let mut names = NAMES.lock();
    if let Some(known) = names.iter().find(|known| **known == name) {
        return known;
    }
    let kept: &'static str = Box::leak(name.to_string().into_boxed_str());
    names.push(kept);
    kept
}

/// The status a definition should have, given its name conflicts (empty: none). `now` is a timestamp.
pub(super) fn status(crd: &Document, conflicts: &[String], problem: Option<&str>, now: &str) -> Value {
    let mut status = crd["status"].clone();
    if !status.is_object() {
        status = json!({});
    }
    let accepted = conflicts.is_empty();
    let names = &crd["spec"]["names"];
    if accepted {
        let mut accepted_names = names.clone();
        let kind = names["kind"].as_str().unwrap_or_default();
        if names["singular"].as_str().unwrap_or_default().is_empty() {
            accepted_names["singular"] = kind.to_lowercase().into();
        }
        if names["listKind"].as_str().unwrap_or_default().is_empty() {
            accepted_names["listKind"] = format!("{kind}List").into();
        }
        status["acceptedNames"] = accepted_names;
    }
    let stored: Vec<Value> =
        crd["spec"]["versions"].as_array().into_iter().flatten().filter(|v| v["storage"] == true).map(|v| v["name"].clone()).collect();
    let mut all = status["storedVersions"].as_array().cloned().unwrap_or_default();
    for version in stored {
        if !all.contains(&version) {
            all.push(version);
        }
    }
    status["storedVersions"] = all.into();
    if accepted {
        set_condition(&mut status, "NamesAccepted", true, "NoConflicts", "no conflicts found", now);
    } else {
        set_condition(&mut status, "NamesAccepted", false, "Conflict", &conflicts.join(", "), now);
    }
    match (accepted, problem) {
        (_, Some(problem)) => set_condition(&mut status, "NonStructuralSchema", true, "Violations", problem, now),
        (true, None) => {
            set_condition(&mut status, "Established", true, "InitialNamesAccepted", "the initial names have been accepted", now)
        }
        (false, None) => set_condition(&mut status, "Established", false, "NotAccepted", "not all names are accepted", now),
    }
    if !crd["metadata"]["deletionTimestamp"].is_null() {
        set_condition(&mut status, "Terminating", true, "InstanceDeletionInProgress", "CustomResource deletion is in progress", now);
    }
    status
}

fn set_condition(status: &mut Value, type_: &str, holds: bool, reason: &str, message: &str, now: &str) {
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Value::Array(conditions) = &mut status["conditions"] else { return };
    let text = if holds { "True" } else { "False" };
    match conditions.iter_mut().find(|c| c["type"] == type_) {
        Some(condition) => {
            if condition["status"] != text {
                condition["lastTransitionTime"] = now.into();
            }
            condition["status"] = text.into();
            condition["reason"] = reason.into();
            condition["message"] = message.into();
        }
        None => conditions.push(json!({"type": type_, "status": text, "lastTransitionTime": now, "reason": reason, "message": message})),
    }
}

/// Whether clients may use the definition's kinds.
pub(super) fn is_established(status: &Value) -> bool {
    status["conditions"].as_array().into_iter().flatten().any(|c| c["type"] == "Established" && c["status"] == "True")
}

/// Names of `crd` that an older definition of the same group has already.
pub(super) fn conflicts(crd: &Document, others: &[Document]) -> Vec<String> {
    let names = |doc: &Document, accepted: bool| -> Vec<(&'static str, String)> {
        let names = if accepted { &doc["status"]["acceptedNames"] } else { &doc["spec"]["names"] };
        let mut all = Vec::new();
        for field in ["plural", "singular", "kind", "listKind"] {
            if let Some(name) = names[field].as_str().filter(|name| !name.is_empty()) {
                all.push((field, name.to_string()));
            }
        }
        all.extend(
            names["shortNames"].as_array().into_iter().flatten().filter_map(Value::as_str).map(|name| ("shortNames", name.to_string())),
        );
        all
    };
    let own_name = &crd["metadata"]["name"];
    let taken: Vec<(&str, String)> = others
        .iter()
        .filter(|o| o["spec"]["group"] == crd["spec"]["group"] && o["metadata"]["name"] != *own_name)
        .flat_map(|o| names(o, true))
        .collect();
    let kinds = |field: &str| matches!(field, "kind" | "listKind");
    names(crd, false)
        .into_iter()
        .filter(|(field, name)| taken.iter().any(|(other, used)| used == name && kinds(field) == kinds(other)))
        .map(|(_, name)| format!("{name:?} is already in use"))
        .collect()
}
