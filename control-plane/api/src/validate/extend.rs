//! Webhooks, admission policies, custom resources, aggregated APIs.

use serde_json::Value;

use super::{
    check::{Errors, at, at_index, in_range, label_selector, one_of, required, required_name, unique},
    names,
};
use crate::{
    Document,
    kinds::immutable,
    status::FieldError,
    value::{has, list, strings, text},
};

pub fn webhooks(doc: &Document, errors: &mut Errors) {
    let hooks = list(&doc["webhooks"]);
    unique(hooks, "", "webhooks", "name", errors);
    for (i, hook) in hooks.iter().enumerate() {
        let path = format!("webhooks[{i}]");
        qualified_domain(&hook["name"], &at(&path, "name"), errors);
        let versions = list(&hook["admissionReviewVersions"]);
        let at_versions = at(&path, "admissionReviewVersions");
        if versions.is_empty() {
            let detail = "must specify one of v1, v1beta1";
            errors.push(FieldError::required(at_versions, detail));
        } else if !versions.iter().any(|v| v == "v1" || v == "v1beta1") {
            let detail = "must include at least one of v1, v1beta1";
            errors.push(FieldError::invalid(at_versions, hook["admissionReviewVersions"].clone(), detail));
        }
        match text(&hook["sideEffects"]) {
            "" => errors.push(FieldError::required(at(&path, "sideEffects"), "must specify one of None, NoneOnDryRun")),
            "None" | "NoneOnDryRun" => {}
            other => errors.push(FieldError::not_supported(at(&path, "sideEffects"), other, &["None", "NoneOnDryRun"])),
        }
        one_of(&hook["failurePolicy"], &at(&path, "failurePolicy"), &["Fail", "Ignore"], errors);
        one_of(&hook["matchPolicy"], &at(&path, "matchPolicy"), &["Equivalent", "Exact"], errors);
        if let Some(seconds) = hook["timeoutSeconds"].as_i64().filter(|s| !(1..=30).contains(s)) {
            let detail = "the timeout value must be between 1 and 30 seconds";
            errors.push(FieldError::invalid(at(&path, "timeoutSeconds"), seconds, detail));
        }
        for key in ["namespaceSelector", "objectSelector"] {
            label_selector(&hook[key], &at(&path, key), errors);
        }
        for (j, rule) in list(&hook["rules"]).iter().enumerate() {
            match_rule(rule, &at_index(&path, "rules", j), errors);
        }
        client_config(&hook["clientConfig"], &at(&path, "clientConfig"), errors);
    }
}

fn qualified_domain(name: &Value, path: &str, errors: &mut Errors) {
    required_name(name, path, names::dns1123_subdomain, errors);
    if !text(name).is_empty() && text(name).split('.').count() < 3 {
        errors.push(FieldError::invalid(path, text(name), "should be a domain with at least three segments separated by dots"));
    }
}

fn match_rule(rule: &Value, path: &str, errors: &mut Errors) {
    for key in ["apiGroups", "apiVersions", "resources", "operations"] {
        let values = list(&rule[key]);
        if values.is_empty() {
            errors.push(FieldError::required(at(path, key), ""));
        }
        if key != "resources" && values.len() > 1 && values.iter().any(|v| v == "*") {
            errors.push(FieldError::invalid(at(path, key), rule[key].clone(), "if '*' is present, must not specify other values"));
        }
    }
    for (i, operation) in list(&rule["operations"]).iter().enumerate() {
        one_of(operation, &at_index(path, "operations", i), &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"], errors);
    }
    one_of(&rule["scope"], &at(path, "scope"), &["*", "Cluster", "Namespaced"], errors);
}

fn client_config(config: &Value, path: &str, errors: &mut Errors) {
    match (has(config, "url"), has(config, "service")) {
        (true, false) => {
            let url = text(&config["url"]);
            if !url.starts_with("https://") {
                let scheme = url.split_once("://").map_or("", |(s, _)| s);
                let detail = "'https' is the only allowed URL scheme; desired format: https://host[/path]";
                errors.push(FieldError::invalid(at(path, "url"), scheme, detail));
            }
        }
        (false, true) => {
            let path = at(path, "service");
            for key in ["name", "namespace"] {
                required(&config["service"][key], &at(&path, key), errors);
            }
            in_range(&config["service"]["port"], &at(&path, "port"), 1, 65_535, errors);
        }
        _ => errors.push(FieldError::required(path, "exactly one of url or service is required")),
    }
}

pub fn policy(doc: &Document, errors: &mut Errors) {
    let spec = &doc["spec"];
    one_of(&spec["failurePolicy"], "spec.failurePolicy", &["Fail", "Ignore"], errors);
    if !has(spec, "matchConstraints") {
        errors.push(FieldError::required("spec.matchConstraints", ""));
    } else {
        let rules = list(&spec["matchConstraints"]["resourceRules"]);
        if rules.is_empty() {
            errors.push(FieldError::required("spec.matchConstraints.resourceRules", ""));
        }
        for (i, rule) in rules.iter().enumerate() {
            match_rule(rule, &at_index("spec.matchConstraints", "resourceRules", i), errors);
        }
    }
    let mutating = doc["kind"] == "MutatingAdmissionPolicy";
    if mutating && list(&spec["mutations"]).is_empty() {
        errors.push(FieldError::required("spec.mutations", "mutations must contain at least one item"));
    }
    if !mutating && list(&spec["validations"]).is_empty() && list(&spec["auditAnnotations"]).is_empty() {
        let detail = "validations or auditAnnotations must contain at least one item";
        errors.push(FieldError::required("spec.validations", detail));
        errors.push(FieldError::required("spec.auditAnnotations", detail));
    }
    for (i, validation) in list(&spec["validations"]).iter().enumerate() {
        let path = at(&at_index("spec", "validations", i), "expression");
        if text(&validation["expression"]).trim().is_empty() {
            errors.push(FieldError::required(path, "expression is not specified"));
        }
    }
}

pub fn policy_binding(doc: &Document, errors: &mut Errors) {
    let spec = &doc["spec"];
    required_name(&spec["policyName"], "spec.policyName", names::dns1123_subdomain, errors);
    if doc["kind"] != "ValidatingAdmissionPolicyBinding" {
        return;
    }
    let actions = list(&spec["validationActions"]);
    if actions.is_empty() {
        errors.push(FieldError::required("spec.validationActions", "at least one validation action is required"));
    }
    for (i, action) in actions.iter().enumerate() {
        one_of(action, &at_index("spec", "validationActions", i), &["Audit", "Deny", "Warn"], errors);
    }
    let chosen = |a: &str| actions.iter().any(|x| x == a);
    if chosen("Deny") && chosen("Warn") {
        let detail = "must not contain both Deny and Warn (repeating the same validation failure information in the API \
                      response and headers serves no purpose)";
        errors.push(FieldError::invalid("spec.validationActions", spec["validationActions"].clone(), detail));
    }
}

pub fn custom_resource(doc: &Document, errors: &mut Errors) {
    let (spec, names_of) = (&doc["spec"], &doc["spec"]["names"]);
    let (group, plural) = (text(&spec["group"]), text(&names_of["plural"]));
    if required(&spec["group"], "spec.group", errors) {
        super::check::syntax(group, "spec.group", names::dns1123_subdomain, errors);
        if !group.contains('.') {
            errors.push(FieldError::invalid("spec.group", group, "should be a domain with at least one dot"));
        }
    }
    let name = text(&doc["metadata"]["name"]);
    if name != format!("{plural}.{group}") {
        errors.push(FieldError::invalid("metadata.name", name, "must be spec.names.plural+\".\"+spec.group"));
    }
    one_of(&spec["scope"], "spec.scope", &["Cluster", "Namespaced"], errors);
    for key in ["plural", "singular", "kind", "listKind"] {
        let path = at("spec.names", key);
        match text(&names_of[key]) {
            "" => errors.push(FieldError::required(path, "")),
            value if key.to_lowercase().ends_with("kind") => {
                // Kinds are labels but for their capitals.
                let lower = value.to_lowercase();
                let messages = names::dns1035_label(&lower).into_iter();
                errors.extend(messages.map(|m| {
                    let detail = format!("may have mixed case, but should otherwise match: {m}");
                    FieldError::invalid(path.clone(), value, detail)
                }));
            }
            value => super::check::syntax(value, &path, names::dns1035_label, errors),
        }
    }
    for (key, list_key) in [("shortNames", "shortNames"), ("categories", "categories")] {
        for (i, value) in strings(&names_of[key]).enumerate() {
            super::check::syntax(value, &at_index("spec.names", list_key, i), names::dns1035_label, errors);
        }
    }
    if !text(&names_of["kind"]).is_empty() && names_of["kind"] == names_of["listKind"] {
        errors.push(FieldError::invalid("spec.names.listKind", text(&names_of["listKind"]), "kind and listKind may not be the same"));
    }
    versions(spec, errors);
}

fn versions(spec: &Value, errors: &mut Errors) {
    let versions = list(&spec["versions"]);
    if versions.is_empty() {
        errors.push(FieldError::required("spec.versions", "must have at least one version"));
    }
    unique(versions, "spec", "versions", "name", errors);
    for (i, version) in versions.iter().enumerate() {
        let path = at_index("spec", "versions", i);
        required_name(&version["name"], &at(&path, "name"), names::dns1035_label, errors);
        let schema = &version["schema"]["openAPIV3Schema"];
        let at_schema = at(&path, "schema.openAPIV3Schema");
        if schema.is_null() {
            errors.push(FieldError::required(at_schema, "schemas are required"));
        } else if schema["type"] != "object" {
            if text(&schema["type"]).is_empty() {
                errors.push(FieldError::required(at(&at_schema, "type"), "must not be empty at the root"));
            } else {
                errors.push(FieldError::invalid(at(&at_schema, "type"), text(&schema["type"]), "must be object at the root"));
            }
        }
    }
    if versions.iter().filter(|v| v["storage"] == true).count() != 1 && !versions.is_empty() {
        errors.push(FieldError::invalid(
            "spec.versions",
            spec["versions"].clone(),
            "must have exactly one version marked as storage version",
        ));
    }
    one_of(&spec["conversion"]["strategy"], "spec.conversion.strategy", &["None", "Webhook"], errors);
    if spec["conversion"]["strategy"] == "Webhook" && !has(&spec["conversion"], "webhook") {
        errors.push(FieldError::required("spec.conversion.webhook", "required when strategy is set to Webhook"));
    }
}

pub fn custom_resource_update(new: &Document, old: &Document, sub: &str, errors: &mut Errors) {
    if sub.is_empty() {
        for pointer in ["/spec/group", "/spec/scope", "/spec/names/plural", "/spec/names/kind"] {
            immutable(new, old, pointer, errors);
        }
        for stored in strings(&old["status"]["storedVersions"]) {
            if !list(&new["spec"]["versions"]).iter().any(|v| v["name"] == stored) {
                let detail = "missing from spec.versions; ".to_owned()
                    + stored
                    + " was previously a storage version, and must remain in spec.versions until a storage migration ensures \
                       no data remains persisted in "
                    + stored
                    + " and removes "
                    + stored
                    + " from status.storedVersions";
                errors.push(FieldError::invalid("status.storedVersions[0]", stored, detail));
            }
        }
    }
}

pub fn api_service(doc: &Document, errors: &mut Errors) {
    let spec = &doc["spec"];
    let (group, version) = (text(&spec["group"]), text(&spec["version"]));
    let wanted = format!("{version}.{group}");
    let name = text(&doc["metadata"]["name"]);
    if name != wanted {
        errors.push(FieldError::invalid("metadata.name", name, format!("must be `spec.version+\".\"+spec.group`: {wanted:?}")));
    }
    required_name(&spec["version"], "spec.version", names::dns1035_label, errors);
    for (key, low, high) in [("groupPriorityMinimum", 1, 20_000), ("versionPriority", 1, 1000)] {
        let value = spec[key].as_i64().unwrap_or(0);
        if !(low..=high).contains(&value) {
            errors.push(FieldError::invalid(at("spec", key), value, format!("must be positive and less than or equal to {high}")));
        }
    }
    if has(spec, "service") {
        for key in ["name", "namespace"] {
            required(&spec["service"][key], &at("spec.service", key), errors);
        }
        if spec["insecureSkipTLSVerify"] == true && !text(&spec["caBundle"]).is_empty() {
            let detail = "may not be true if caBundle is present";
            errors.push(FieldError::invalid("spec.insecureSkipTLSVerify", true, detail));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::builtin::by_kind;
    use serde_json::json;

    #[test]
    fn custom_resources() {
        let hooks = &by_kind("apiextensions.k8s.io/v1", "CustomResourceDefinition").unwrap().hooks;
        let mut doc = json!({"metadata": {"name": "foos.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "foos", "kind": "Foo"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]}});
        hooks.default(&mut doc);
        assert!(hooks.validate_create(&doc).is_empty(), "{:?}", hooks.validate_create(&doc));
        hooks.prepare_for_create(&mut doc);
        assert_eq!(doc["status"]["storedVersions"], json!(["v1"]));
        doc["metadata"]["name"] = "x".into();
        assert_eq!(
            hooks.validate_create(&doc)[0].to_string(),
            "metadata.name: Invalid value: \"x\": must be spec.names.plural+\".\"+spec.group"
        );
    }
}
