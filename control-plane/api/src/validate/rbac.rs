//! Roles and bindings.

use serde_json::Value;

use super::{
    check::{Errors, at, at_index, label_selector, required_name},
    names,
};
use crate::{
    Document,
    meta::same,
    status::FieldError,
    value::{list, text},
};

const GROUP: &str = "rbac.authorization.k8s.io";

pub fn role(doc: &Document, errors: &mut Errors) {
    rules(&doc["rules"], true, errors);
}

pub fn cluster_role(doc: &Document, errors: &mut Errors) {
    rules(&doc["rules"], false, errors);
    let selectors = &doc["aggregationRule"]["clusterRoleSelectors"];
    if !doc["aggregationRule"].is_null() && list(selectors).is_empty() {
        let detail = "at least one clusterRoleSelector required if aggregationRule is non-nil";
        errors.push(FieldError::required("aggregationRule.clusterRoleSelectors", detail));
    }
    for (i, selector) in list(selectors).iter().enumerate() {
        label_selector(selector, &at_index("aggregationRule", "clusterRoleSelectors", i), errors);
    }
}

fn rules(rules: &Value, namespaced: bool, errors: &mut Errors) {
    for (i, rule) in list(rules).iter().enumerate() {
        let path = format!("rules[{i}]");
        let empty = |key: &str| list(&rule[key]).is_empty();
        if empty("verbs") {
            errors.push(FieldError::required(at(&path, "verbs"), "verbs must contain at least one value"));
        }
        if !empty("nonResourceURLs") {
            if namespaced {
                let detail = "namespaced rules cannot apply to non-resource URLs";
                errors.push(FieldError::invalid(at(&path, "nonResourceURLs"), rule["nonResourceURLs"].clone(), detail));
            }
            if !empty("apiGroups") || !empty("resources") || !empty("resourceNames") {
                let detail = "rules cannot apply to both regular resources and non-resource URLs";
                errors.push(FieldError::invalid(at(&path, "nonResourceURLs"), rule["nonResourceURLs"].clone(), detail));
            }
            continue;
        }
        if empty("apiGroups") {
            errors.push(FieldError::required(at(&path, "apiGroups"), "resource rules must supply at least one api group"));
        }
        if empty("resources") {
            errors.push(FieldError::required(at(&path, "resources"), "resource rules must supply at least one resource"));
        }
    }
}

pub fn role_binding(doc: &Document, errors: &mut Errors) {
    binding(doc, &["ClusterRole", "Role"], true, errors);
}

pub fn cluster_role_binding(doc: &Document, errors: &mut Errors) {
    binding(doc, &["ClusterRole"], false, errors);
}

fn binding(doc: &Document, kinds: &[&str], namespaced: bool, errors: &mut Errors) {
    let role = &doc["roleRef"];
    if text(&role["apiGroup"]) != GROUP {
        errors.push(FieldError::not_supported("roleRef.apiGroup", text(&role["apiGroup"]), &[GROUP]));
    }
    if !kinds.contains(&text(&role["kind"])) {
        errors.push(FieldError::not_supported("roleRef.kind", text(&role["kind"]), kinds));
    }
    required_name(&role["name"], "roleRef.name", names::path_segment, errors);
    for (i, subject) in list(&doc["subjects"]).iter().enumerate() {
        let path = format!("subjects[{i}]");
        if text(&subject["name"]).is_empty() {
            errors.push(FieldError::required(at(&path, "name"), ""));
        }
        let group = text(&subject["apiGroup"]);
        match text(&subject["kind"]) {
            "ServiceAccount" => {
                if !text(&subject["name"]).is_empty() {
                    required_name(&subject["name"], &at(&path, "name"), names::dns1123_subdomain, errors);
                }
                if !group.is_empty() {
                    errors.push(FieldError::not_supported(at(&path, "apiGroup"), group, &[""]));
                }
                if text(&subject["namespace"]).is_empty() && !namespaced {
                    errors.push(FieldError::required(at(&path, "namespace"), ""));
                }
            }
            "User" | "Group" => {
                if group != GROUP {
                    errors.push(FieldError::not_supported(at(&path, "apiGroup"), group, &[GROUP]));
                }
            }
            other => errors.push(FieldError::not_supported(at(&path, "kind"), other, &["Group", "ServiceAccount", "User"])),
        }
    }
}

pub fn binding_update(new: &Document, old: &Document, _sub: &str, errors: &mut Errors) {
    if !same(&new["roleRef"], &old["roleRef"]) {
        errors.push(FieldError::invalid("roleRef", new["roleRef"].clone(), "cannot change roleRef"));
    }
}

#[cfg(test)]
mod tests {
    use crate::builtin::by_kind;
    use serde_json::json;

    #[test]
    fn bindings_keep_their_role() {
        let hooks = &by_kind("rbac.authorization.k8s.io/v1", "RoleBinding").unwrap().hooks;
        let doc = |role: &str| json!({"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role}});
        assert!(hooks.validate_create(&doc("a")).is_empty());
        let error = hooks.validate_update(&doc("b"), &doc("a"), "")[0].to_string();
        assert!(error.starts_with("roleRef: Invalid value: {") && error.ends_with("}: cannot change roleRef"), "{error}");
    }
}
