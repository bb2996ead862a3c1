//! Sets of field paths as `metadata.managedFields` writes them (`FieldsV1`).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// Paths below one place. Keys are `FieldsV1` path elements: `f:name`, `k:{"key":"value"}`, `v:"scalar"`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FieldSet {
    /// The place itself is in the set.
    pub member: bool,
    pub children: BTreeMap<String, FieldSet>,
}

impl FieldSet {
    /// Only the place itself.
    pub fn leaf() -> FieldSet {
        FieldSet { member: true, children: BTreeMap::new() }
    }

    pub fn is_empty(&self) -> bool {
        !self.member && self.children.values().all(FieldSet::is_empty)
    }

    pub fn from_json(fields: &Value) -> FieldSet {
        let mut set = FieldSet::default();
        let map = fields.as_object();
        if map.is_none_or(Map::is_empty) {
            set.member = true;
        }
        for (key, value) in map.into_iter().flatten() {
            if key == "." {
                set.member = true;
            } else {
                set.children.insert(key.clone(), FieldSet::from_json(value));
            }
        }
        set
    }

    pub fn to_json(&self) -> Value {
        let children = self.children.iter().filter(|(_, c)| !c.is_empty());
        let mut map: Map<String, Value> = children.map(|(k, c)| (k.clone(), c.to_json())).collect();
        if self.member && !map.is_empty() {
            map.insert(".".into(), json!({}));
        }
        Value::Object(map)
    }

    pub fn insert(&mut self, key: String, set: FieldSet) {
        if !set.is_empty() {
            self.children.insert(key, set);
        }
    }

    pub fn union(&mut self, other: &FieldSet) {
        self.member |= other.member;
        for (key, child) in &other.children {
            self.children.entry(key.clone()).or_default().union(child);
        }
    }

    /// What is in this set but not in `other`.
    pub fn difference(&self, other: &FieldSet) -> FieldSet {
        let mut out = FieldSet { member: self.member && !other.member, children: BTreeMap::new() };
        for (key, child) in &self.children {
            let rest = other.children.get(key).map_or_else(|| child.clone(), |o| child.difference(o));
            out.insert(key.clone(), rest);
        }
        out
    }

    /// What is in both.
    pub fn intersection(&self, other: &FieldSet) -> FieldSet {
        let mut out = FieldSet { member: self.member && other.member, children: BTreeMap::new() };
        for (key, child) in &self.children {
            if let Some(o) = other.children.get(key) {
                out.insert(key.clone(), child.intersection(o));
            }
        }
        out
    }

    /// Every member as text: `.spec.containers[name="a"].image`.
    pub fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect(String::new(), &mut out);
        out
    }

    fn collect(&self, path: String, out: &mut Vec<String>) {
        if self.member && !path.is_empty() {
            out.push(path.clone());
        }
        for (key, child) in &self.children {
            child.collect(format!("{path}{}", element_text(key)), out);
        }
    }
}

fn element_text(key: &str) -> String {
    match key.split_at(key.len().min(2)) {
        ("f:", name) => format!(".{name}"),
        ("v:", value) => format!("[={value}]"),
        ("k:", keys) => {
            let map: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
            format!("[{}]", map.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(","))
        }
        _ => format!(".{key}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_form_and_text() {
        let doc = json!({"f:spec": {"f:replicas": {}, "f:containers": {"k:{\"name\":\"a\"}": {".": {}, "f:image": {}}}}});
        let set = FieldSet::from_json(&doc);
        assert_eq!(set.to_json(), doc);
        assert_eq!(set.paths(), [".spec.containers[name=\"a\"]", ".spec.containers[name=\"a\"].image", ".spec.replicas"]);
        let image = FieldSet::from_json(&json!({"f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {"f:image": {}}}}}));
        assert_eq!(set.intersection(&image), image);
        assert_eq!(set.difference(&image).paths(), [".spec.containers[name=\"a\"]", ".spec.replicas"]);
        let mut both = image.clone();
        both.union(&set);
        assert_eq!(both, set);
    }
}
