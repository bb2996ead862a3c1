//! OpenAPI documents: what clients explain, validate and merge by.
//!
//! They are large and asked for rarely, so they are computed when asked for; callers may cache the bytes.

mod definitions;
mod paths;
pub mod protobuf;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::resource::Resource;
use definitions::Version;

const RELEASE: &str = "v1.36.0";

fn info() -> Value {
    json!({"title": "Kubernetes", "version": RELEASE})
}

/// `api/v1`, `apis/apps/v1`: the path of a group version below the root.
fn root_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// `/openapi/v3`: where the document of each group version is.
pub fn v3_index(resources: &[&Resource]) -> Value {
    let mut rows: BTreeMap<String, Vec<&Resource>> = BTreeMap::new();
    for r in resources {
        rows.entry(root_path(&r.group, &r.version)).or_default().push(r);
    }
    let entry = |(path, rows): (String, Vec<&Resource>)| {
        let url = json!({ "serverRelativeURL": format!("/openapi/v3/{path}?hash={}", hash(&rows)) });
        (path, url)
    };
    json!({ "paths": rows.into_iter().map(entry).collect::<Map<String, Value>>() })
}

/// Changes whenever the document of these rows does.
fn hash(rows: &[&Resource]) -> String {
    let mut text = format!("{RELEASE} {}", env!("CARGO_PKG_VERSION"));
    for r in rows {
        text.push_str(&format!(" {} {:?} {:?}", r.plural, r.verbs, r.short_names));
    }
    let seed = |basis: u64| text.bytes().fold(basis, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    format!("{:016X}{:016X}", seed(0xcbf2_9ce4_8422_2325), seed(0x8422_2325_cbf2_9ce4))
}

/// `/openapi/v3/{path}`: the document of one group version, if it is served.
pub fn v3_group(resources: &[&Resource], group: &str, version: &str) -> Option<Value> {
    let rows: Vec<&Resource> = resources.iter().filter(|r| r.group == group && r.version == version).copied().collect();
    if rows.is_empty() {
        return None;
    }
    let schemas = definitions::of(&rows, Version::V3);
    let paths: Map<String, Value> = rows.iter().flat_map(|r| paths::of(r, Version::V3)).collect();
    Some(json!({
        "openapi": "3.0.0", "info": info(), "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {
            "BearerToken": {"type": "apiKey", "description": "Bearer Token authentication", "name": "authorization", "in": "header"}}},
    }))
}

/// `/openapi/v2`, as JSON.
pub fn v2(resources: &[&Resource]) -> Value {
    let paths: Map<String, Value> = resources.iter().flat_map(|r| paths::of(r, Version::V2)).collect();
    json!({
        "swagger": "2.0", "info": info(), "paths": paths, "definitions": definitions::of(resources, Version::V2),
        "securityDefinitions": {"BearerToken": {
            "type": "apiKey", "description": "Bearer Token authentication", "name": "authorization", "in": "header"}},
        "security": [{"BearerToken": []}],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<&'static Resource> {
        crate::builtin::resources().iter().collect()
    }

    /// Every `$ref` in the document.
    fn references<'a>(value: &'a Value, out: &mut Vec<&'a str>) {
        match value {
            Value::Object(map) => {
                if let Some(r) = map.get("$ref").and_then(Value::as_str) {
                    out.push(r);
                }
                map.values().for_each(|v| references(v, out));
            }
            Value::Array(list) => list.iter().for_each(|v| references(v, out)),
            _ => {}
        }
    }

    #[test]
    fn references_resolve() {
        let mut documents: Vec<Value> = vec![v2(&rows())];
        for r in rows() {
            documents.push(v3_group(&rows(), &r.group, &r.version).unwrap());
        }
        for doc in &documents {
            let mut all = Vec::new();
            references(doc, &mut all);
            assert!(all.len() > 10);
            for r in all {
                assert!(doc.pointer(r.strip_prefix('#').unwrap()).is_some(), "{r}");
            }
        }
    }

    #[test]
    fn kubectl_finds_what_it_looks_for() {
        let doc = v3_group(&rows(), "apps", "v1").unwrap();
        let patch = &doc["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(patch["x-kubernetes-group-version-kind"], json!({"group": "apps", "version": "v1", "kind": "Deployment"}));
        assert!(patch["parameters"].as_array().unwrap().iter().any(|p| p["name"] == "fieldValidation"));
        assert!(patch["requestBody"]["content"].get("application/strategic-merge-patch+json").is_some());
        let deployment = &doc["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"];
        assert_eq!(deployment["x-kubernetes-group-version-kind"][0]["kind"], "Deployment");
        let pod_spec = &doc["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"];
        assert_eq!(pod_spec["containers"]["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(pod_spec["containers"]["x-kubernetes-list-map-keys"], json!(["name"]));
        assert_eq!(pod_spec["volumes"]["x-kubernetes-patch-strategy"], "merge,retainKeys");
        assert_eq!(pod_spec["tolerations"]["x-kubernetes-list-type"], "atomic");
        assert!(
            v3_index(&rows())["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap().starts_with("/openapi/v3/apis/apps/v1?hash=")
        );
    }
}
