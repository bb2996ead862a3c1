//! Where pods may go: node selectors, affinity, tolerations, topology spread.

use serde_json::Value;

use super::{
    check::{Errors, at, at_index, label_selector, maybe_one_of, required, syntax},
    names,
};
use crate::{
    status::FieldError,
    value::{has, list, strings, text},
};

/// `spec.affinity`
pub fn affinity(a: &Value, path: &str, errors: &mut Errors) {
    if has(a, "nodeAffinity") {
        let (node, path) = (&a["nodeAffinity"], at(path, "nodeAffinity"));
        let required = "requiredDuringSchedulingIgnoredDuringExecution";
        if has(node, required) {
            node_selector(&node[required], &at(&path, required), errors);
        }
        let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
        for (i, term) in list(&node[preferred]).iter().enumerate() {
            let path = at_index(&path, preferred, i);
            weight(term, &path, errors);
            node_term(&term["preference"], &at(&path, "preference"), errors);
        }
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let (pods, path) = (&a[kind], at(path, kind));
        let required = "requiredDuringSchedulingIgnoredDuringExecution";
        for (i, term) in list(&pods[required]).iter().enumerate() {
            pod_term(term, &at_index(&path, required, i), errors);
        }
        let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
        for (i, term) in list(&pods[preferred]).iter().enumerate() {
            let path = at_index(&path, preferred, i);
            weight(term, &path, errors);
            pod_term(&term["podAffinityTerm"], &at(&path, "podAffinityTerm"), errors);
        }
    }
}

fn weight(term: &Value, path: &str, errors: &mut Errors) {
    let weight = term["weight"].as_i64().unwrap_or(0);
    if !(1..=100).contains(&weight) {
        errors.push(FieldError::invalid(at(path, "weight"), weight, "must be in the range 1-100"));
    }
}

/// A `NodeSelector`.
pub fn node_selector(selector: &Value, path: &str, errors: &mut Errors) {
    let terms = list(&selector["nodeSelectorTerms"]);
    if terms.is_empty() {
        errors.push(FieldError::required(at(path, "nodeSelectorTerms"), "must have at least one node selector term"));
    }
    for (i, term) in terms.iter().enumerate() {
        node_term(term, &at_index(path, "nodeSelectorTerms", i), errors);
    }
}

fn node_term(term: &Value, path: &str, errors: &mut Errors) {
    for (i, e) in list(&term["matchExpressions"]).iter().enumerate() {
        let path = at_index(path, "matchExpressions", i);
        let values = list(&e["values"]);
        match text(&e["operator"]) {
            "In" | "NotIn" if values.is_empty() => {
                errors.push(FieldError::required(at(&path, "values"), "must be specified when `operator` is 'In' or 'NotIn'"))
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => errors
                .push(FieldError::forbidden(at(&path, "values"), "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")),
            "Gt" | "Lt" if values.len() != 1 => {
                errors.push(FieldError::required(at(&path, "values"), "must be specified single value when `operator` is 'Lt' or 'Gt'"))
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => errors.push(FieldError::invalid(at(&path, "operator"), other, "not a valid selector operator")),
        }
        syntax(text(&e["key"]), &at(&path, "key"), names::qualified_name, errors);
    }
    for (i, e) in list(&term["matchFields"]).iter().enumerate() {
        let path = at_index(path, "matchFields", i);
        if !matches!(text(&e["operator"]), "In" | "NotIn") {
            errors.push(FieldError::invalid(at(&path, "operator"), text(&e["operator"]), "not a valid selector operator"));
        } else if list(&e["values"]).len() != 1 {
            errors.push(FieldError::required(
                at(&path, "values"),
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
            ));
        }
        if e["key"] != "metadata.name" {
            errors.push(FieldError::invalid(at(&path, "key"), text(&e["key"]), "not a valid field selector key"));
        }
    }
}

fn pod_term(term: &Value, path: &str, errors: &mut Errors) {
    label_selector(&term["labelSelector"], &at(path, "labelSelector"), errors);
    label_selector(&term["namespaceSelector"], &at(path, "namespaceSelector"), errors);
    for (i, namespace) in strings(&term["namespaces"]).enumerate() {
        syntax(namespace, &at_index(path, "namespaces", i), names::dns1123_label, errors);
    }
    match text(&term["topologyKey"]) {
        "" => errors.push(FieldError::required(at(path, "topologyKey"), "can not be empty")),
        key => syntax(key, &at(path, "topologyKey"), names::qualified_name, errors),
    }
}

/// `spec.tolerations`
pub fn tolerations(items: &Value, path: &str, errors: &mut Errors) {
    for (i, t) in list(items).iter().enumerate() {
        let path = format!("{path}[{i}]");
        let (key, operator) = (text(&t["key"]), text(&t["operator"]));
        if !key.is_empty() {
            syntax(key, &at(&path, "key"), names::qualified_name, errors);
        } else if operator != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(at(&path, "operator"), operator, detail));
        }
        if has(t, "tolerationSeconds") && t["effect"] != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(at(&path, "effect"), text(&t["effect"]), detail));
        }
        match operator {
            "" | "Equal" => syntax(text(&t["value"]), &at(&path, "operator"), names::label_value, errors),
            "Exists" if !text(&t["value"]).is_empty() => {
                let detail = "value must be empty when `operator` is 'Exists'";
                errors.push(FieldError::invalid(at(&path, "operator"), t.clone(), detail));
            }
            "Exists" => {}
            other => errors.push(FieldError::not_supported(at(&path, "operator"), other, &["Equal", "Exists"])),
        }
        maybe_one_of(&t["effect"], &at(&path, "effect"), &["NoSchedule", "PreferNoSchedule", "NoExecute"], errors);
    }
}

/// `spec.topologySpreadConstraints`
pub fn topology_spread(items: &Value, path: &str, errors: &mut Errors) {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (i, c) in list(items).iter().enumerate() {
        let path = format!("{path}[{i}]");
        let skew = c["maxSkew"].as_i64().unwrap_or(0);
        if skew <= 0 {
            errors.push(FieldError::invalid(at(&path, "maxSkew"), skew, "must be greater than zero"));
        }
        let key = text(&c["topologyKey"]);
        if key.is_empty() {
            errors.push(FieldError::required(at(&path, "topologyKey"), "can not be empty"));
        }
        let when = text(&c["whenUnsatisfiable"]);
        if !["DoNotSchedule", "ScheduleAnyway"].contains(&when) {
            errors.push(FieldError::not_supported(at(&path, "whenUnsatisfiable"), when, &["DoNotSchedule", "ScheduleAnyway"]));
        }
        if seen.contains(&(key, when)) {
            errors.push(FieldError::duplicate(at(&path, "{topologyKey, whenUnsatisfiable}"), format!("{{{key}, {when}}}")));
        }
        seen.push((key, when));
        if let Some(domains) = c["minDomains"].as_i64() {
            if domains <= 0 {
                errors.push(FieldError::invalid(at(&path, "minDomains"), domains, "must be greater than 0"));
            }
            if when != "DoNotSchedule" {
                let detail = format!("can only use minDomains if whenUnsatisfiable={}, not {when}", "DoNotSchedule");
                errors.push(FieldError::invalid(at(&path, "minDomains"), domains, detail));
            }
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            maybe_one_of(&c[policy], &at(&path, policy), &["Honor", "Ignore"], errors);
        }
        label_selector(&c["labelSelector"], &at(&path, "labelSelector"), errors);
    }
}

/// Taints of a node.
pub fn taints(items: &Value, path: &str, errors: &mut Errors) {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (i, t) in list(items).iter().enumerate() {
        let path = format!("{path}[{i}]");
        syntax(text(&t["key"]), &at(&path, "key"), names::qualified_name, errors);
        syntax(text(&t["value"]), &at(&path, "value"), names::label_value, errors);
        if required(&t["effect"], &at(&path, "effect"), errors) {
            maybe_one_of(&t["effect"], &at(&path, "effect"), &["NoSchedule", "PreferNoSchedule", "NoExecute"], errors);
        }
        let id = (text(&t["key"]), text(&t["effect"]));
        if seen.contains(&id) {
            errors.push(FieldError::duplicate(path, t.clone()));
        }
        seen.push(id);
    }
}
