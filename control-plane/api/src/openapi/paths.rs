//! Operations of a row: which methods its paths have, with which parameters and bodies.

use serde_json::{Map, Value, json};

use super::definitions::{DELETE_OPTIONS, PATCH, STATUS, Version, list_name_of, name_of};
use crate::resource::{Resource, Subresource, Verb};
use crate::schema;

const JSON: &str = "application/json";
const PATCH_TYPES: [&str; 4] = [
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// Paths with their operations.
pub(super) fn of(r: &Resource, version: Version) -> Vec<(String, Value)> {
    let root = format!("/{}", super::root_path(&r.group, &r.version));
    let scoped = if r.is_namespaced() { format!("{root}/namespaces/{{namespace}}/{}", r.plural) } else { format!("{root}/{}", r.plural) };
    let mut paths = Vec::new();
    let mut add = |path: &str, verbs: &[Verb], sub: Option<&Subresource>, wanted: &[Verb]| {
        let mut item = Map::new();
        for verb in wanted.iter().filter(|v| verbs.contains(v)) {
            item.insert(method(*verb).into(), operation(r, sub, *verb, version));
        }
        if !item.is_empty() {
            item.insert("parameters".into(), path_parameters(path, version));
            paths.push((path.to_owned(), Value::Object(item)));
        }
    };
    add(&scoped, &r.verbs, None, &[Verb::List, Verb::Create, Verb::DeleteCollection]);
    if r.is_namespaced() {
        add(&format!("{root}/{}", r.plural), &r.verbs, None, &[Verb::List]);
    }
    let item = format!("{scoped}/{{name}}");
    add(&item, &r.verbs, None, &[Verb::Get, Verb::Update, Verb::Patch, Verb::Delete]);
    for sub in &r.subresources {
        let path = format!("{item}/{}", sub.name);
        add(&path, &sub.verbs, Some(sub), &[Verb::Get, Verb::Create, Verb::Update, Verb::Patch, Verb::Delete]);
    }
    paths
}

fn method(verb: Verb) -> &'static str {
    match verb {
        Verb::Get | Verb::List | Verb::Watch => "get",
        Verb::Create => "post",
        Verb::Update => "put",
        Verb::Patch => "patch",
        Verb::Delete | Verb::DeleteCollection => "delete",
    }
}

/// The name upstream gives a verb in `x-kubernetes-action`.
fn action(verb: Verb) -> &'static str {
    match verb {
        Verb::Get => "get",
        Verb::List => "list",
        Verb::Watch => "watch",
        Verb::Create => "post",
        Verb::Update => "put",
        Verb::Patch => "patch",
        Verb::Delete => "delete",
        Verb::DeleteCollection => "deletecollection",
    }
}

fn parameter(name: &str, place: &str, type_: &str, version: Version) -> Value {
    let required = place == "path";
    let mut out = match version {
        Version::V2 => json!({"name": name, "in": place, "type": type_, "uniqueItems": true}),
        Version::V3 => json!({"name": name, "in": place, "schema": {"type": type_, "uniqueItems": true}}),
    };
    if required {
        out["required"] = true.into();
    }
    out
}

fn path_parameters(path: &str, version: Version) -> Value {
    ["namespace", "name"]
        .iter()
        .filter(|name| path.contains(&format!("{{{name}}}")))
        .map(|name| parameter(name, "path", "string", version))
        .collect()
}

fn query_parameters(verb: Verb, version: Version) -> Vec<Value> {
    let names: &[(&str, &str)] = match verb {
        Verb::List | Verb::Watch | Verb::DeleteCollection => &[
            ("allowWatchBookmarks", "boolean"),
            ("continue", "string"),
            ("fieldSelector", "string"),
            ("labelSelector", "string"),
            ("limit", "integer"),
            ("resourceVersion", "string"),
            ("resourceVersionMatch", "string"),
            ("sendInitialEvents", "boolean"),
            ("timeoutSeconds", "integer"),
            ("watch", "boolean"),
        ],
        Verb::Create | Verb::Update => &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")],
        Verb::Patch => &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string"), ("force", "boolean")],
        Verb::Delete => &[("dryRun", "string"), ("gracePeriodSeconds", "integer"), ("propagationPolicy", "string")],
        Verb::Get => &[],
    };
    names.iter().map(|(name, type_)| parameter(name, "query", type_, version)).collect()
}

/// (group, version, kind) and definition of a body.
fn body_of(r: &Resource, sub: Option<&Subresource>) -> ((String, String, String), Option<String>) {
    match sub.and_then(|s| s.kind) {
        Some((group, version, kind)) => {
            let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
            let definition = schema::schemas().kind(&api_version, kind).map(|id| schema::schemas().get(id).name.to_string());
            ((group.into(), version.into(), kind.into()), definition)
        }
        None => ((r.group.clone(), r.version.clone(), r.kind.clone()), Some(name_of(r))),
    }
}

fn operation(r: &Resource, sub: Option<&Subresource>, verb: Verb, version: Version) -> Value {
    let ((group, api, kind), definition) = body_of(r, sub);
    let id = format!("{}{}{}{}", action(verb), r.group.replace('.', "_"), kind, sub.map_or("", |s| s.name));
    let answer = match verb {
        Verb::List => Some(list_name_of(r)),
        Verb::Delete | Verb::DeleteCollection => Some(STATUS.into()),
        _ => definition.clone(),
    };
    let mut parameters = query_parameters(verb, version);
    let ok = match (answer, version) {
        (None, _) => json!({"description": "OK"}),
        (Some(name), Version::V2) => json!({"description": "OK", "schema": version.reference(&name)}),
        (Some(name), Version::V3) => json!({"description": "OK", "content": {JSON: {"schema": version.reference(&name)}}}),
    };
    let mut out = json!({
        "operationId": id, "tags": [root_tag(r)], "responses": {"200": ok, "401": {"description": "Unauthorized"}},
        "x-kubernetes-action": action(verb),
        "x-kubernetes-group-version-kind": {"group": group, "version": api, "kind": kind},
    });
    let body: Option<(String, &[&str])> = match verb {
        Verb::Create | Verb::Update => definition.map(|d| (d, &[JSON][..])),
        Verb::Patch => Some((PATCH.into(), &PATCH_TYPES[..])),
        Verb::Delete | Verb::DeleteCollection => Some((DELETE_OPTIONS.into(), &[JSON][..])),
        Verb::Get | Verb::List | Verb::Watch => None,
    };
    if let Some((name, types)) = body {
        match version {
            Version::V2 => {
                parameters.push(json!({"name": "body", "in": "body", "required": verb != Verb::Delete && verb != Verb::DeleteCollection, "schema": version.reference(&name)}));
                out["consumes"] = types.into();
                out["produces"] = json!([JSON]);
            }
            Version::V3 => {
                let content: Map<String, Value> =
                    types.iter().map(|t| ((*t).to_owned(), json!({ "schema": version.reference(&name) }))).collect();
                out["requestBody"] = json!({ "content": content });
            }
        }
    }
    if !parameters.is_empty() {
        out["parameters"] = parameters.into();
    }
    out
}

fn root_tag(r: &Resource) -> String {
    let group = r.group.split('.').next().filter(|g| !g.is_empty()).unwrap_or("core");
    format!("{group}_{}", r.version)
}
