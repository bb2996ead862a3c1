//! JSON merge patch, RFC 7386.

use serde_json::{Map, Value};

use crate::{
    Document,
    status::{ApiError, bad_request},
};

/// The patched document. Errors (400) when the patch is no object.
pub fn merge_patch(doc: &Document, patch: &Value) -> Result<Document, ApiError> {
    if !patch.is_object() {
        return Err(bad_request("json: cannot unmarshal patch into Go value of type map[string]interface {}"));
    }
    let mut out = doc.clone();
    merge(&mut out, patch);
    Ok(out)
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(map) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            map.remove(key);
        } else {
            merge(map.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// Any small JSON document without nulls.
    pub(crate) fn documents() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![any::<bool>().prop_map(Value::from), any::<i8>().prop_map(Value::from), "[a-c]{0,2}".prop_map(Value::from)];
        leaf.prop_recursive(3, 16, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[a-d]", inner, 0..3).prop_map(|m| m.into_iter().collect())
            ]
        })
    }

    #[test]
    fn rfc_examples() {
        let doc = json!({"title": "Goodbye!", "author": {"givenName": "John", "familyName": "Doe"}, "tags": ["a"]});
        let patch = json!({"title": "Hello!", "author": {"familyName": null}, "tags": ["b"], "n": {"x": null, "y": 1}});
        let want = json!({"title": "Hello!", "author": {"givenName": "John"}, "tags": ["b"], "n": {"y": 1}});
        assert_eq!(merge_patch(&doc, &patch).unwrap(), want);
        assert_eq!(merge_patch(&doc, &json!([])).unwrap_err().code, 400);
    }

    proptest! {
        #[test]
        fn applying_twice_is_applying_once(doc in documents(), patch in documents()) {
            prop_assume!(patch.is_object());
            let once = merge_patch(&doc, &patch).unwrap();
            prop_assert_eq!(merge_patch(&once, &patch).unwrap(), once);
        }

        #[test]
        fn empty_patch_changes_nothing(doc in documents()) {
            prop_assume!(doc.is_object());
            prop_assert_eq!(merge_patch(&doc, &json!({})).unwrap(), doc);
        }
    }
}
