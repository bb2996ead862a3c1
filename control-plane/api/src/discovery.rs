//! Discovery: which groups, versions and resources the server has, in both forms clients ask for.

use serde_json::{Map, Value, json};

use crate::resource::{Resource, Scope, Verb};

/// `/api`: the versions of the core group.
pub fn legacy(server_address: &str) -> Value {
    json!({
        "kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}],
    })
}

/// (group, its versions best first), in order of first appearance, the core group left out unless `core`.
fn group_versions<'a>(resources: &[&'a Resource], core: bool) -> Vec<(&'a str, Vec<&'a str>)> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for r in resources.iter().filter(|r| r.group.is_empty() == core) {
        match groups.iter_mut().find(|(g, _)| *g == r.group) {
            Some((_, versions)) if versions.contains(&r.version.as_str()) => {}
            Some((_, versions)) => versions.push(&r.version),
            None => groups.push((&r.group, vec![&r.version])),
        }
    }
    for (_, versions) in &mut groups {
        versions.sort_by_key(|v| std::cmp::Reverse(version_rank(v)));
    }
    groups
}

/// Orders versions as clients prefer them: v2 over v1 over v1beta1 over v1alpha1 over anything else.
pub fn version_rank(version: &str) -> (u8, u32, u32) {
    let parse = || {
        let rest = version.strip_prefix('v')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major: u32 = rest[..digits].parse().ok()?;
        match &rest[digits..] {
            "" => Some((3, major, 0)),
            tail if tail.starts_with("beta") => Some((2, major, tail[4..].parse().ok()?)),
            tail if tail.starts_with("alpha") => Some((1, major, tail[5..].parse().ok()?)),
            _ => None,
        }
    };
    parse().unwrap_or((0, 0, 0))
}

fn group_document(group: &str, versions: &[&str]) -> Value {
    let entry = |v: &&str| json!({"groupVersion": format!("{group}/{v}"), "version": v});
    let entries: Vec<Value> = versions.iter().map(entry).collect();
    json!({"name": group, "preferredVersion": entries.first(), "versions": entries})
}

/// `/apis`: `APIGroupList`.
pub fn groups(resources: &[&Resource]) -> Value {
    let list: Vec<Value> = group_versions(resources, false).iter().map(|(g, v)| group_document(g, v)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": list})
}

/// `/apis/{group}`: `APIGroup`, if the group exists.
pub fn group(resources: &[&Resource], name: &str) -> Option<Value> {
    let all = group_versions(resources, false);
    let (group, versions) = all.iter().find(|(g, _)| *g == name)?;
    let mut doc = group_document(group, versions);
    doc["kind"] = "APIGroup".into();
    doc["apiVersion"] = "v1".into();
    Some(doc)
}

fn verbs(verbs: &[Verb]) -> Vec<&'static str> {
    let mut names: Vec<&str> = verbs.iter().map(|v| v.as_str()).collect();
    names.sort_unstable();
    names
}

fn put_lists(entry: &mut Map<String, Value>, r: &Resource) {
    if !r.short_names.is_empty() {
        entry.insert("shortNames".into(), r.short_names.clone().into());
    }
    if !r.categories.is_empty() {
        entry.insert("categories".into(), r.categories.clone().into());
    }
}

/// `/api/v1`, `/apis/{group}/{version}`: `APIResourceList`, if the version exists.
pub fn group_version(resources: &[&Resource], group: &str, version: &str) -> Option<Value> {
    let rows: Vec<&&Resource> = resources.iter().filter(|r| r.group == group && r.version == version).collect();
    let api_version = rows.first()?.api_version();
    let mut list = Vec::new();
    for r in rows {
        let mut entry = Map::new();
        entry.insert("name".into(), r.plural.as_str().into());
        entry.insert("singularName".into(), r.singular.as_str().into());
        entry.insert("namespaced".into(), r.is_namespaced().into());
        entry.insert("kind".into(), r.kind.as_str().into());
        entry.insert("verbs".into(), verbs(&r.verbs).into());
        put_lists(&mut entry, r);
        if r.is_stored() {
            entry.insert("storageVersionHash".into(), storage_hash(r).into());
        }
        list.push(Value::Object(entry));
        for sub in &r.subresources {
            let kind = sub.kind.unwrap_or((&r.group, &r.version, &r.kind));
            let mut entry = json!({
                "name": format!("{}/{}", r.plural, sub.name), "singularName": "", "namespaced": r.is_namespaced(),
                "kind": kind.2, "verbs": verbs(&sub.verbs),
            });
            if (kind.0, kind.1) != (r.group.as_str(), r.version.as_str()) {
                if !kind.0.is_empty() {
                    entry["group"] = kind.0.into();
                }
                entry["version"] = kind.1.into();
            }
            list.push(entry);
        }
    }
    Some(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version, "resources": list}))
}

/// Tells clients when the stored version of a kind changes; opaque, 8 bytes in base64 as upstream's.
fn storage_hash(r: &Resource) -> String {
    use base64::Engine;
    // FNV-1a: stable between builds, which the standard hasher does not promise.
    let text = format!("{}/{}/{}", r.group, r.storage_api_version, r.kind);
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    base64::engine::general_purpose::STANDARD.encode(hash.to_be_bytes())
}

/// `/api` (`core`) and `/apis` as `apidiscovery.k8s.io/v2` `APIGroupDiscoveryList`.
pub fn aggregated(resources: &[&Resource], core: bool) -> Value {
    let items: Vec<Value> = group_versions(resources, core)
        .into_iter()
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .into_iter()
                .map(|version| {
                    let rows = resources.iter().filter(|r| r.group == group && r.version == version);
                    json!({"version": version, "freshness": "Current", "resources": rows.map(|r| aggregated_row(r)).collect::<Vec<_>>()})
                })
                .collect();
            let mut metadata = json!({ "creationTimestamp": null });
            if !group.is_empty() {
                metadata["name"] = group.into();
            }
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items,
    })
}

fn aggregated_row(r: &Resource) -> Value {
    let mut entry = Map::new();
    entry.insert("resource".into(), r.plural.as_str().into());
    entry.insert("responseKind".into(), json!({"group": r.group, "version": r.version, "kind": r.kind}));
    let scope = if r.scope == Scope::Namespaced { "Namespaced" } else { "Cluster" };
    entry.insert("scope".into(), scope.into());
    entry.insert("singularResource".into(), r.singular.as_str().into());
    entry.insert("verbs".into(), verbs(&r.verbs).into());
    put_lists(&mut entry, r);
    if !r.subresources.is_empty() {
        let subs = r.subresources.iter().map(|sub| {
            let (group, version, kind) = sub.kind.unwrap_or((&r.group, &r.version, &r.kind));
            json!({"subresource": sub.name, "verbs": verbs(&sub.verbs),
                   "responseKind": {"group": group, "version": version, "kind": kind}})
        });
        entry.insert("subresources".into(), subs.collect());
    }
    Value::Object(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<&'static Resource> {
        crate::builtin::resources().iter().collect()
    }

    #[test]
    fn groups_prefer_the_newest_version() {
        let doc = group(&rows(), "autoscaling").unwrap();
        assert_eq!(doc["preferredVersion"]["groupVersion"], "autoscaling/v2");
        assert_eq!(doc["versions"][1]["version"], "v1");
        assert!(group(&rows(), "nope").is_none());
        let mut versions = ["v1alpha1", "v1", "foo", "v2beta1", "v2", "v10"];
        versions.sort_by_key(|v| std::cmp::Reverse(version_rank(v)));
        assert_eq!(versions, ["v10", "v2", "v1", "v2beta1", "v1alpha1", "foo"]);
    }

    #[test]
    fn scale_names_its_own_group() {
        let doc = group_version(&rows(), "apps", "v1").unwrap();
        let list = doc["resources"].as_array().unwrap();
        let scale = list.iter().find(|r| r["name"] == "deployments/scale").unwrap();
        assert_eq!((&scale["group"], &scale["version"], &scale["kind"]), (&json!("autoscaling"), &json!("v1"), &json!("Scale")));
        let deployments = list.iter().find(|r| r["name"] == "deployments").unwrap();
        assert_eq!(deployments["verbs"][0], "create");
        assert_eq!(deployments["shortNames"], json!(["deploy"]));
    }

    #[test]
    fn aggregated_has_every_row() {
        let count = |doc: &Value| -> usize {
            let versions = doc["items"].as_array().unwrap().iter().flat_map(|g| g["versions"].as_array().unwrap());
            versions.map(|v| v["resources"].as_array().unwrap().len()).sum()
        };
        assert_eq!(count(&aggregated(&rows(), true)) + count(&aggregated(&rows(), false)), rows().len());
        assert_eq!(aggregated(&rows(), true)["items"].as_array().unwrap().len(), 1);
    }
}
