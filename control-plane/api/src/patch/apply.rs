//! Server-side apply (KEP-555): a manager states the fields it cares for; what it stated before and no longer states
//! is removed, and fields that others manage are not taken without force.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};

use super::fieldset::FieldSet;
use crate::{
    Document, meta,
    resource::Resource,
    schema::{Merge, StructId, Type, is_atomic_struct, schemas},
    status::{ApiError, apply_conflict, bad_request},
    value::{list, text},
};

/// Who applies, and how.
#[derive(Debug, Clone)]
pub struct Manager<'a> {
    /// `fieldManager`
    pub name: &'a str,
    /// Take fields that others manage.
    pub force: bool,
    /// The subresource applied to, or empty.
    pub subresource: &'a str,
    pub now: DateTime<Utc>,
}

/// The object after `manager` applied `config` to `live` (`None`: there is none yet). `config` was decoded, not defaulted.
/// Errors: 400 for a config that carries managed fields, 409 naming each field of another manager.
pub fn apply(resource: &Resource, live: Option<&Document>, config: &Document, manager: &Manager) -> Result<Document, ApiError> {
    if !list(&config["metadata"]["managedFields"]).is_empty() {
        return Err(bad_request("metadata.managedFields must be nil"));
    }
    let shape = schemas().of(resource).map_or(Shape::Untyped, Shape::Struct);
    let stated = strip(set_of(shape, config));
    let own = Entry { manager: manager.name.into(), operation: "Apply".into(), subresource: manager.subresource.into() };
    let Some(live) = live else {
        let mut doc = config.clone();
        write_entries(&mut doc, vec![(own.clone(), entry(resource, &own, &stated, manager.now))])?;
        return Ok(doc);
    };
    let mut entries = read_entries(live);
    if entries.is_empty() {
        // Who wrote the object before anybody applied is not known, but that somebody did.
        let before = Entry { manager: "before-first-apply".into(), operation: "Update".into(), subresource: String::new() };
        let all = strip(set_of(shape, live));
        let value = entry(resource, &before, &all, manager.now);
        entries.push((before, value));
    }
    let mut merged = merge(shape, live, config);
    let set = |value: &Value| FieldSet::from_json(&value["fieldsV1"]);
    let others: Vec<FieldSet> = entries.iter().filter(|(e, _)| *e != own).map(|(_, v)| set(v)).collect();
    if let Some((_, last)) = entries.iter().find(|(e, _)| *e == own) {
        let doomed = unowned(&set(last).difference(&stated), &others.iter().collect::<Vec<_>>());
        remove(shape, &mut merged, &doomed);
    }
    let changed = compare(shape, live, &merged);
    settle(&mut entries, &own, &changed, manager.force)?;
    let fresh = entry(resource, &own, &stated, manager.now);
    match entries.iter_mut().find(|(e, _)| *e == own) {
        // An apply that states the same again leaves no trace.
        Some((_, value)) if value["fieldsV1"] == fresh["fieldsV1"] && changed.is_nothing() => {}
        Some((_, value)) => *value = fresh,
        None => entries.push((own, fresh)),
    }
    meta::metadata_mut(&mut merged)?.remove("managedFields");
    write_entries(&mut merged, entries)?;
    Ok(merged)
}

/// Keeps `managedFields` of an applied object true when `manager` writes it by other means: it gets what it changed,
/// others lose that. Objects nobody ever applied are left alone.
pub fn track_update(resource: &Resource, new: &mut Document, old: &Document, manager: &Manager) -> Result<(), ApiError> {
    let mut entries = read_entries(old);
    if entries.is_empty() {
        return Ok(());
    }
    let shape = schemas().of(resource).map_or(Shape::Untyped, Shape::Struct);
    let changed = compare(shape, old, new);
    if changed.is_nothing() {
        return Ok(());
    }
    let own = Entry { manager: manager.name.into(), operation: "Update".into(), subresource: manager.subresource.into() };
    settle(&mut entries, &own, &changed, true)?;
    let found = entries.iter().position(|(e, _)| *e == own);
    let mut fields = found.map_or_else(FieldSet::default, |at| FieldSet::from_json(&entries[at].1["fieldsV1"]));
    fields.union(&strip(changed.set.clone()));
    let fields = fields.difference(&changed.removed);
    let value = entry(resource, &own, &fields, manager.now);
    match found {
        Some(at) => entries[at].1 = value,
        None if !fields.is_empty() => entries.push((own, value)),
        None => {}
    }
    write_entries(new, entries)
}

/// Takes changed fields from the other managers, or says whose they are.
fn settle(entries: &mut Vec<(Entry, Value)>, own: &Entry, changed: &Changed, force: bool) -> Result<(), ApiError> {
    let mut conflicts = Vec::new();
    for (other, value) in entries.iter_mut().filter(|(e, _)| e != own) {
        let fields = FieldSet::from_json(&value["fieldsV1"]);
        let taken = fields.intersection(&changed.set);
        if !taken.is_empty() && !force {
            let who = other.describe(value);
            conflicts.extend(taken.paths().into_iter().map(|path| (who.clone(), path)));
        }
        let left = fields.difference(&taken).difference(&changed.removed);
        value["fieldsV1"] = left.to_json();
        value["left"] = left.is_empty().into();
    }
    if !conflicts.is_empty() {
        return Err(apply_conflict(&conflicts));
    }
    entries.retain(|(_, value)| value["left"] != true);
    for (_, value) in entries {
        crate::value::unset(value, "left");
    }
    Ok(())
}

/// What identifies an entry of `managedFields`.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    manager: String,
    operation: String,
    subresource: String,
}

impl Entry {
    fn describe(&self, value: &Value) -> String {
        let name = format!("{:?}", self.manager);
        let via = if self.subresource.is_empty() { String::new() } else { format!(" with subresource {:?}", self.subresource) };
        match self.operation.as_str() {
            "Apply" => format!("{name}{via}"),
            _ => format!("{name}{via} using {}", text(&value["apiVersion"])),
        }
    }
}

fn read_entries(doc: &Document) -> Vec<(Entry, Value)> {
    let read = |value: &Value| {
        let own = |key: &str| text(&value[key]).to_owned();
        let entry = Entry { manager: own("manager"), operation: own("operation"), subresource: own("subresource") };
        (entry, value.clone())
    };
    list(&doc["metadata"]["managedFields"]).iter().map(read).collect()
}

fn entry(resource: &Resource, own: &Entry, fields: &FieldSet, now: DateTime<Utc>) -> Value {
    let mut value = json!({
        "manager": own.manager, "operation": own.operation, "apiVersion": resource.api_version(),
        "time": meta::timestamp(now), "fieldsType": "FieldsV1", "fieldsV1": fields.to_json(),
    });
    if !own.subresource.is_empty() {
        value["subresource"] = own.subresource.as_str().into();
    }
    value
}

fn write_entries(doc: &mut Document, entries: Vec<(Entry, Value)>) -> Result<(), ApiError> {
    let values: Vec<Value> = entries.into_iter().map(|(_, v)| v).collect();
    meta::metadata_mut(doc)?.insert("managedFields".into(), values.into());
    Ok(())
}

/// Fields that identify the object or that the server sets are nobody's.
fn strip(mut set: FieldSet) -> FieldSet {
    for key in ["f:apiVersion", "f:kind"] {
        set.children.remove(key);
    }
    if let Some(metadata) = set.children.get_mut("f:metadata") {
        metadata.member = false;
        for key in ["name", "namespace", "creationTimestamp", "selfLink", "uid", "generation", "managedFields", "resourceVersion"] {
            metadata.children.remove(&format!("f:{key}"));
        }
    }
    set
}

/// How a value divides into fields.
#[derive(Clone, Copy)]
enum Shape {
    Struct(StructId),
    Map(&'static Type),
    /// Items by the values of these keys.
    Items(&'static Type, &'static [&'static str]),
    /// Unique scalars.
    Scalars,
    /// One field, whatever is in it.
    Whole,
    /// No schema: maps divide, lists do not.
    Untyped,
}

fn shape(ty: &'static Type, merge: &Merge) -> Shape {
    match ty {
        _ if merge.atomic_map => Shape::Whole,
        Type::Struct(id) if is_atomic_struct(&schemas().get(*id).name) || schemas().get(*id).fields.is_empty() => Shape::Whole,
        Type::Struct(id) => Shape::Struct(*id),
        Type::Map(item) => Shape::Map(item),
        Type::List(_) if merge.set => Shape::Scalars,
        Type::List(item) if !merge.list_keys.is_empty() => Shape::Items(item, merge.list_keys),
        _ => Shape::Whole,
    }
}

impl Shape {
    /// The shape of a field or item below.
    fn below(self, key: &str) -> Shape {
        match self {
            Shape::Struct(id) => schemas().get(id).fields.get(key).map_or(Shape::Whole, |f| shape(&f.ty, &f.merge)),
            Shape::Map(item) | Shape::Items(item, _) => shape(item, &Merge::default()),
            Shape::Untyped => Shape::Untyped,
            Shape::Scalars | Shape::Whole => Shape::Whole,
        }
    }

    fn divides_maps(self) -> bool {
        matches!(self, Shape::Struct(_) | Shape::Map(_) | Shape::Untyped)
    }
}

/// `k:{"containerPort":80,"protocol":"TCP"}`
fn item_key(item: &Value, keys: &[&str]) -> String {
    let id: Map<String, Value> = keys
        .iter()
        .filter_map(|key| match &item[*key] {
            // The one key that types give a default.
            Value::Null if *key == "protocol" => Some(((*key).to_owned(), "TCP".into())),
            Value::Null => None,
            value => Some(((*key).to_owned(), value.clone())),
        })
        .collect();
    format!("k:{}", Value::Object(id))
}

/// The fields a value has.
fn set_of(shape: Shape, value: &Value) -> FieldSet {
    let mut set = FieldSet::default();
    match (shape, value) {
        (_, Value::Object(map)) if shape.divides_maps() && !map.is_empty() => {
            for (key, value) in map {
                set.insert(format!("f:{key}"), set_of(shape.below(key), value));
            }
        }
        (Shape::Items(_, keys), Value::Array(items)) if !items.is_empty() => {
            for item in items {
                let mut below = set_of(shape.below(""), item);
                below.member = true;
                set.insert(item_key(item, keys), below);
            }
        }
        (Shape::Scalars, Value::Array(items)) if !items.is_empty() => {
            for item in items {
                set.insert(format!("v:{item}"), FieldSet::leaf());
            }
        }
        _ => set.member = true,
    }
    set
}

/// `config` over `live`.
fn merge(shape: Shape, live: &Value, config: &Value) -> Value {
    match (shape, live, config) {
        (_, Value::Object(old), Value::Object(new)) if shape.divides_maps() => {
            let mut out = old.clone();
            for (key, value) in new {
                let merged = old.get(key).map_or_else(|| value.clone(), |o| merge(shape.below(key), o, value));
                out.insert(key.clone(), merged);
            }
            Value::Object(out)
        }
        (Shape::Items(_, keys), Value::Array(old), Value::Array(new)) => {
            let mut out = old.clone();
            for item in new {
                let key = item_key(item, keys);
                match out.iter_mut().find(|o| item_key(o, keys) == key) {
                    Some(slot) => *slot = merge(shape.below(""), slot, item),
                    None => out.push(item.clone()),
                }
            }
            Value::Array(out)
        }
        (Shape::Scalars, Value::Array(old), Value::Array(new)) => {
            let fresh = new.iter().filter(|n| !old.contains(n));
            Value::Array(old.iter().chain(fresh).cloned().collect())
        }
        _ => config.clone(),
    }
}

/// Fields set (added or changed) and removed between two states.
struct Changed {
    set: FieldSet,
    removed: FieldSet,
}

impl Changed {
    fn is_nothing(&self) -> bool {
        self.set.is_empty() && self.removed.is_empty()
    }
}

fn compare(shape: Shape, old: &Value, new: &Value) -> Changed {
    let (mut set, mut removed) = (FieldSet::default(), FieldSet::default());
    let mut both = |key: String, below: Shape, old: Option<&Value>, new: Option<&Value>, is_item: bool| match (old, new) {
        (Some(old), Some(new)) => {
            let inner = compare(below, old, new);
            set.insert(key.clone(), inner.set);
            removed.insert(key, inner.removed);
        }
        (None, Some(new)) => {
            let mut fields = set_of(below, new);
            fields.member |= is_item;
            set.insert(key, fields);
        }
        (Some(old), None) => {
            let mut fields = set_of(below, old);
            fields.member = true;
            removed.insert(key, fields);
        }
        (None, None) => {}
    };
    match (shape, old, new) {
        (_, Value::Object(a), Value::Object(b)) if shape.divides_maps() => {
            for key in a.keys().chain(b.keys().filter(|k| !a.contains_key(*k))) {
                if key == "managedFields" {
                    continue;
                }
                both(format!("f:{key}"), shape.below(key), a.get(key), b.get(key), false);
            }
        }
        (Shape::Items(_, keys), Value::Array(a), Value::Array(b)) => {
            let find = |items: &'_ [Value], key: &str| items.iter().position(|i| item_key(i, keys) == key);
            for item in a {
                let key = item_key(item, keys);
                let other = find(b, &key).map(|at| &b[at]);
                both(key, shape.below(""), Some(item), other, true);
            }
            for item in b {
                let key = item_key(item, keys);
                if find(a, &key).is_none() {
                    both(key, shape.below(""), None, Some(item), true);
                }
            }
        }
        (Shape::Scalars, Value::Array(a), Value::Array(b)) => {
            for item in a.iter().filter(|i| !b.contains(i)) {
                both(format!("v:{item}"), Shape::Whole, Some(item), None, true);
            }
            for item in b.iter().filter(|i| !a.contains(i)) {
                both(format!("v:{item}"), Shape::Whole, None, Some(item), true);
            }
        }
        _ if old != new => set.member = true,
        _ => {}
    }
    Changed { set, removed }
}

/// What of `doomed` no other manager has, nor anything below it.
fn unowned(doomed: &FieldSet, others: &[&FieldSet]) -> FieldSet {
    let held = others.iter().any(|o| !o.is_empty());
    let mut out = FieldSet { member: doomed.member && !held, ..FieldSet::default() };
    for (key, child) in &doomed.children {
        let below: Vec<&FieldSet> = others.iter().filter_map(|o| o.children.get(key)).collect();
        out.insert(key.clone(), unowned(child, &below));
    }
    out
}

/// Removes the members of `doomed`; what is left empty by that goes too.
fn remove(shape: Shape, value: &mut Value, doomed: &FieldSet) {
    match (shape, value) {
        (_, Value::Object(map)) if shape.divides_maps() => {
            for (key, child) in &doomed.children {
                let Some(name) = key.strip_prefix("f:") else { continue };
                if child.member {
                    map.remove(name);
                } else if let Some(below) = map.get_mut(name) {
                    remove(shape.below(name), below, child);
                    if matches!(below, Value::Object(m) if m.is_empty()) || matches!(below, Value::Array(l) if l.is_empty()) {
                        map.remove(name);
                    }
                }
            }
        }
        (Shape::Items(_, keys), Value::Array(items)) => {
            items.retain(|item| !doomed.children.get(&item_key(item, keys)).is_some_and(|c| c.member));
            for item in items {
                if let Some(child) = doomed.children.get(&item_key(item, keys)) {
                    remove(shape.below(""), item, child);
                }
            }
        }
        (Shape::Scalars, Value::Array(items)) => {
            items.retain(|item| !doomed.children.contains_key(&format!("v:{item}")));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::by_kind;
    use proptest::prelude::*;

    fn manager(name: &str, force: bool) -> Manager<'_> {
        Manager { name, force, subresource: "", now: DateTime::from_timestamp(0, 0).unwrap() }
    }

    fn deployment(spec: Value) -> Value {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec})
    }

    fn run(live: Option<&Value>, spec: Value, who: &str, force: bool) -> Result<Value, ApiError> {
        apply(by_kind("apps/v1", "Deployment").unwrap(), live, &deployment(spec), &manager(who, force))
    }

    #[test]
    fn what_is_no_longer_stated_is_removed() {
        let first = run(
            None,
            json!({"replicas": 3, "paused": true, "template": {"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}}),
            "m",
            false,
        )
        .unwrap();
        let fields = &first["metadata"]["managedFields"][0];
        assert_eq!((&fields["manager"], &fields["operation"]), (&json!("m"), &json!("Apply")));
        assert!(fields["fieldsV1"]["f:spec"]["f:template"]["f:spec"]["f:containers"].get("k:{\"name\":\"a\"}").is_some());
        assert!(fields["fieldsV1"].get("f:metadata").is_none());
        let mut live = first.clone();
        live["spec"]["minReadySeconds"] = 5.into();
        let second = run(Some(&live), json!({"replicas": 3, "template": {"spec": {"containers": [{"name": "b"}]}}}), "m", false).unwrap();
        assert_eq!(second["spec"], json!({"replicas": 3, "minReadySeconds": 5, "template": {"spec": {"containers": [{"name": "b"}]}}}));
    }

    #[test]
    fn others_fields_conflict_unless_forced() {
        let live = run(None, json!({"replicas": 3}), "a", false).unwrap();
        let error = run(Some(&live), json!({"replicas": 5}), "b", false).unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (409, "Apply failed with 1 conflict: conflict with \"a\": .spec.replicas"));
        let forced = run(Some(&live), json!({"replicas": 5}), "b", true).unwrap();
        assert_eq!(forced["spec"]["replicas"], 5);
        assert_eq!(list(&forced["metadata"]["managedFields"]).len(), 1);
        let shared = run(Some(&live), json!({"replicas": 3}), "b", false).unwrap();
        assert_eq!(list(&shared["metadata"]["managedFields"]).len(), 2);
        // What two managers state stays when one lets go.
        assert_eq!(run(Some(&shared), json!({"paused": true}), "a", false).unwrap()["spec"], json!({"replicas": 3, "paused": true}));
    }

    #[test]
    fn objects_made_otherwise_have_an_owner_too() {
        let live = deployment(json!({"replicas": 1}));
        let error = run(Some(&live), json!({"replicas": 2}), "m", false).unwrap_err();
        assert_eq!(error.message, "Apply failed with 1 conflict: conflict with \"before-first-apply\" using apps/v1: .spec.replicas");
        assert_eq!(run(Some(&live), json!({"paused": true}), "m", false).unwrap()["spec"], json!({"replicas": 1, "paused": true}));
    }

    #[test]
    fn updates_take_ownership() {
        let resource = by_kind("apps/v1", "Deployment").unwrap();
        let live = run(None, json!({"replicas": 3}), "a", false).unwrap();
        let mut new = live.clone();
        new["spec"]["replicas"] = 4.into();
        track_update(resource, &mut new, &live, &manager("scaler", false)).unwrap();
        assert_eq!(list(&new["metadata"]["managedFields"]).len(), 1);
        assert_eq!(new["metadata"]["managedFields"][0]["manager"], "scaler");
        assert_eq!(run(Some(&new), json!({"replicas": 3}), "a", false).unwrap_err().code, 409);
    }

    proptest! {
        #[test]
        fn applying_again_changes_nothing(spec in crate::patch::merge_tests::documents()) {
            let Ok(once) = run(None, json!({"template": {"metadata": {"labels": spec}}, "replicas": 1}), "m", false) else { return Ok(()) };
            let again = run(Some(&once), once["spec"].clone(), "m", false).unwrap();
            prop_assert_eq!(again, once);
        }
    }
}
