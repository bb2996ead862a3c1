//! Strategic merge patch: lists merge by the keys their type declares, and directives in the patch steer it.

use serde_json::{Map, Value};

use crate::{
    Document,
    resource::Resource,
    schema::{Merge, StructId, Type, schemas},
    status::{ApiError, FieldError, bad_request, invalid_kind},
};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";
const SET_ORDER: &str = "$setElementOrder/";

/// The patched document. Errors: 400 for a patch that is no object, 415 for kinds without declared types (custom
/// resources), 422 for misused directives.
pub fn strategic_merge_patch(resource: &Resource, doc: &Document, patch: &Value) -> Result<Document, ApiError> {
    let Some(id) = schemas().of(resource) else {
        return Err(crate::status::unsupported_media_type(&[
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/apply-patch+yaml",
        ]));
    };
    let (Some(doc), Some(patch_map)) = (doc.as_object(), patch.as_object()) else {
        return Err(bad_request("json: cannot unmarshal patch into Go value of type map[string]interface {}"));
    };
    let merged = merge_map(doc.clone(), patch_map, Shape::Struct(id), &Merge::default());
    merged.map(Value::Object).map_err(|message| invalid_kind("", "", "", &[FieldError::invalid("patch", patch.to_string(), message)]))
}

/// What is known of the keys of a map.
#[derive(Clone, Copy)]
enum Shape<'a> {
    Struct(StructId),
    /// A map of one type.
    Map(&'a Type),
    Unknown,
}

impl<'a> Shape<'a> {
    fn of(ty: Option<&'a Type>) -> Shape<'a> {
        match ty {
            Some(Type::Struct(id)) => Shape::Struct(*id),
            Some(Type::Map(item)) => Shape::Map(item),
            Some(Type::Either(first, _)) => Shape::of(Some(first)),
            _ => Shape::Unknown,
        }
    }

    fn field(self, key: &str) -> (Option<&'a Type>, Merge) {
        match self {
            Shape::Struct(id) => {
                let field = schemas().get(id).fields.get(key);
                (field.map(|f| &f.ty), field.map(|f| f.merge).unwrap_or_default())
            }
            Shape::Map(item) => (Some(item), Merge::default()),
            Shape::Unknown => (None, Merge::default()),
        }
    }
}

type Object = Map<String, Value>;

fn merge_map(mut original: Object, patch: &Object, shape: Shape, merge: &Merge) -> Result<Object, String> {
    let mut patch = patch.clone();
    match patch.remove(DIRECTIVE) {
        Some(Value::String(d)) if d == "replace" => return Ok(patch),
        Some(Value::String(d)) if d == "delete" => return Ok(Object::new()),
        Some(Value::String(d)) if d == "merge" => {}
        Some(other) => return Err(format!("unknown patch type found: {other}")),
        None if merge.replace => return Ok(without_nulls(patch)),
        None => {}
    }
    if let Some(keys) = patch.remove(RETAIN_KEYS) {
        let keys = keys.as_array().ok_or("invalid patch format of retainKeys")?;
        for key in patch.keys() {
            if !keys.iter().any(|k| k == key.as_str()) && !key.starts_with('$') {
                return Err("patch has keys that are not in the retainKeys list".into());
            }
        }
        original.retain(|key, _| keys.iter().any(|k| k == key.as_str()));
    }
    let orders: Vec<(String, Value)> = take_prefixed(&mut patch, SET_ORDER);
    for (field, doomed) in take_prefixed(&mut patch, DELETE_PRIMITIVES) {
        let doomed = doomed.as_array().ok_or("invalid patch format of primitive list")?.clone();
        if let Some(Value::Array(list)) = original.get_mut(&field) {
            list.retain(|item| !doomed.contains(item));
        }
    }
    for (key, change) in &patch {
        let (ty, field_merge) = shape.field(key);
        if change.is_null() {
            original.remove(key);
            continue;
        }
        let merged = match (original.remove(key), change) {
            (Some(Value::Object(old)), Value::Object(new)) => Value::Object(merge_map(old, new, Shape::of(ty), &field_merge)?),
            (old, Value::Array(new)) => merge_list(old, new, ty, &field_merge)?,
            (_, Value::Object(new)) => {
                // A new object: directives in it still count.
                Value::Object(merge_map(Object::new(), new, Shape::of(ty), &field_merge)?)
            }
            (_, new) => new.clone(),
        };
        original.insert(key.clone(), merged);
    }
    for (field, order) in orders {
        let order = order.as_array().ok_or("invalid patch format of setElementOrder list")?.clone();
        let (ty, merge) = shape.field(&field);
        if let Some(Value::Array(list)) = original.get_mut(&field) {
            sort(list, &order, key_of(ty, &merge));
        }
    }
    Ok(original)
}

fn without_nulls(mut map: Object) -> Object {
    map.retain(|_, v| !v.is_null());
    map
}

fn take_prefixed(map: &mut Object, prefix: &str) -> Vec<(String, Value)> {
    let keys: Vec<String> = map.keys().filter(|k| k.starts_with(prefix)).cloned().collect();
    keys.into_iter().filter_map(|k| Some((k[prefix.len()..].to_owned(), map.remove(&k)?))).collect()
}

/// The merge key of a list; `None` for lists that are replaced.
fn key_of(_ty: Option<&Type>, merge: &Merge) -> Option<&'static str> {
    merge.patch_key
}

fn merge_list(old: Option<Value>, patch: &[Value], ty: Option<&Type>, merge: &Merge) -> Result<Value, String> {
    let Some(key) = key_of(ty, merge) else {
        // Directives have no place in a list that is replaced, except the one that says so.
        let items = patch.iter().filter(|i| i.get(DIRECTIVE).is_none());
        return Ok(Value::Array(items.cloned().collect()));
    };
    let mut list = match old {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    };
    if key.is_empty() {
        for item in patch {
            if !list.contains(item) {
                list.push(item.clone());
            }
        }
        return Ok(Value::Array(list));
    }
    let item_type = match ty {
        Some(Type::List(item)) => Some(&**item),
        _ => None,
    };
    let directive = |item: &Value| item.get(DIRECTIVE).and_then(Value::as_str).map(str::to_owned);
    if patch.iter().any(|item| directive(item).as_deref() == Some("replace")) {
        let items = patch.iter().filter(|i| directive(i).is_none());
        return Ok(Value::Array(items.cloned().collect()));
    }
    for item in patch {
        let Value::Object(change) = item else { return Err("expected map".into()) };
        let id = change.get(key).ok_or_else(|| format!("map: {item} does not contain declared merge key: {key}"))?;
        let position = list.iter().position(|i| i.get(key) == Some(id));
        match (directive(item).as_deref(), position) {
            (Some("delete"), Some(_)) => list.retain(|i| i.get(key) != Some(id)),
            (Some("delete"), None) => {}
            (_, Some(at)) => {
                let Value::Object(old) = list[at].take() else { return Err("expected map".into()) };
                list[at] = Value::Object(merge_map(old, change, Shape::of(item_type), &Merge::default())?);
            }
            (_, None) => {
                let fresh = merge_map(Object::new(), change, Shape::of(item_type), &Merge::default())?;
                list.push(Value::Object(fresh));
            }
        }
    }
    Ok(Value::Array(list))
}

/// Brings items named by `order` into that order; the others keep their place after what preceded them.
fn sort(list: &mut Vec<Value>, order: &[Value], key: Option<&str>) {
    let id = |item: &Value| match key {
        Some(key) if !key.is_empty() => item.get(key).cloned().unwrap_or(Value::Null),
        _ => item.clone(),
    };
    let wanted = |item: &Value| order.iter().position(|o| id(o) == id(item));
    let mut named: Vec<(usize, Value)> = Vec::new();
    // Items the client did not know: kept behind the item they followed.
    let mut followers: Vec<(Option<Value>, Value)> = Vec::new();
    let mut previous = None;
    for item in list.drain(..) {
        match wanted(&item) {
            Some(position) => {
                previous = Some(id(&item));
                named.push((position, item));
            }
            None => followers.push((previous.clone(), item)),
        }
    }
    named.sort_by_key(|(position, _)| *position);
    let take = |after: Option<&Value>, followers: &mut Vec<(Option<Value>, Value)>, out: &mut Vec<Value>| {
        let mut i = 0;
        while i < followers.len() {
            if followers[i].0.as_ref() == after {
                out.push(followers.remove(i).1);
            } else {
                i += 1;
            }
        }
    };
    take(None, &mut followers, list);
    for (_, item) in named {
        let own = id(&item);
        list.push(item);
        take(Some(&own), &mut followers, list);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::by_kind;
    use proptest::prelude::*;
    use serde_json::json;

    fn pod(doc: Value, patch: Value) -> Value {
        strategic_merge_patch(by_kind("v1", "Pod").unwrap(), &json!({ "spec": doc }), &json!({ "spec": patch })).unwrap()["spec"].take()
    }

    #[test]
    fn lists_merge_by_key() {
        let doc = json!({"containers": [{"name": "a", "image": "1", "ports": [{"containerPort": 80}]}, {"name": "b"}]});
        let patch = json!({"containers": [{"name": "a", "image": "2", "ports": [{"containerPort": 81}]}, {"name": "c"}]});
        assert_eq!(
            pod(doc, patch),
            json!({"containers": [{"name": "a", "image": "2", "ports": [{"containerPort": 80}, {"containerPort": 81}]},
                {"name": "b"}, {"name": "c"}]})
        );
        let tolerations = json!({"tolerations": [{"key": "a"}]});
        assert_eq!(pod(tolerations, json!({"tolerations": [{"key": "b"}]})), json!({"tolerations": [{"key": "b"}]}));
    }

    #[test]
    fn directives_steer() {
        let doc = || json!({"containers": [{"name": "a", "image": "1"}, {"name": "b"}], "nodeSelector": {"x": "y"}});
        assert_eq!(pod(doc(), json!({"containers": [{"name": "a", "$patch": "delete"}]}))["containers"], json!([{"name": "b"}]));
        assert_eq!(pod(doc(), json!({"containers": [{"$patch": "replace"}, {"name": "z"}]}))["containers"], json!([{"name": "z"}]));
        assert_eq!(pod(doc(), json!({"nodeSelector": {"$patch": "replace", "z": "1"}}))["nodeSelector"], json!({"z": "1"}));
        assert_eq!(pod(doc(), json!({"nodeSelector": {"x": null}}))["nodeSelector"], json!({}));
        assert_eq!(
            pod(
                doc(),
                json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "c"}, {"name": "a"}],
                              "containers": [{"name": "c"}]})
            )["containers"],
            json!([{"name": "b"}, {"name": "c"}, {"name": "a", "image": "1"}])
        );
    }

    #[test]
    fn retain_keys_drops_the_other_members_of_a_union() {
        let resource = by_kind("apps/v1", "Deployment").unwrap();
        let doc = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
        let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
        assert_eq!(strategic_merge_patch(resource, &doc, &patch).unwrap(), json!({"spec": {"strategy": {"type": "Recreate"}}}));
        let bad = json!({"spec": {"strategy": {"$retainKeys": ["type"], "rollingUpdate": {}}}});
        assert_eq!(strategic_merge_patch(resource, &doc, &bad).unwrap_err().code, 422);
    }

    #[test]
    fn primitive_lists_merge_and_lose() {
        let resource = by_kind("v1", "ConfigMap").unwrap();
        let doc = json!({"metadata": {"finalizers": ["a/a", "b/b"]}});
        let patch = json!({"metadata": {"finalizers": ["c/c"], "$deleteFromPrimitiveList/finalizers": ["a/a"],
                           "$setElementOrder/finalizers": ["c/c", "b/b"]}});
        assert_eq!(strategic_merge_patch(resource, &doc, &patch).unwrap(), json!({"metadata": {"finalizers": ["c/c", "b/b"]}}));
    }

    #[test]
    fn items_without_their_key_are_refused() {
        let resource = by_kind("v1", "Pod").unwrap();
        let patch = json!({"spec": {"containers": [{"image": "a"}]}});
        assert_eq!(strategic_merge_patch(resource, &json!({}), &patch).unwrap_err().code, 422);
    }

    proptest! {
        #[test]
        fn applying_twice_is_applying_once(doc in crate::patch::merge_tests::documents(), patch in crate::patch::merge_tests::documents()) {
            let resource = by_kind("v1", "Pod").unwrap();
            let (doc, patch) = (json!({"spec": doc}), json!({"spec": patch}));
            if let Ok(once) = strategic_merge_patch(resource, &doc, &patch) {
                prop_assert_eq!(strategic_merge_patch(resource, &once, &patch).unwrap(), once);
            }
        }
    }
}
