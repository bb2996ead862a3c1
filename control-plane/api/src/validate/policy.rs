//! Autoscalers and disruption budgets.

use serde_json::Value;

use super::check::{Errors, at, at_index, at_most_all, count_or_percent, given, label_selector, one_of, required};
use crate::{
    Document,
    status::FieldError,
    value::{has, list, text},
};

pub fn disruption_budget(doc: &Document, errors: &mut Errors) {
    let spec = &doc["spec"];
    if has(spec, "minAvailable") && has(spec, "maxUnavailable") {
        errors.push(FieldError::invalid("spec", spec.clone(), "minAvailable and maxUnavailable cannot be both set"));
    }
    for key in ["minAvailable", "maxUnavailable"] {
        if has(spec, key) {
            count_or_percent(&spec[key], &at("spec", key), errors);
            at_most_all(&spec[key], &at("spec", key), errors);
        }
    }
    label_selector(&spec["selector"], "spec.selector", errors);
    let policy = &spec["unhealthyPodEvictionPolicy"];
    if has(spec, "unhealthyPodEvictionPolicy") {
        one_of(policy, "spec.unhealthyPodEvictionPolicy", &["AlwaysAllow", "IfHealthyBudget"], errors);
    }
}

/// An autoscaler in its v2 form.
pub fn autoscaler(doc: &Document, errors: &mut Errors) {
    let spec = &doc["spec"];
    let (min, max) = (spec["minReplicas"].as_i64().unwrap_or(1), spec["maxReplicas"].as_i64().unwrap_or(0));
    if min < 1 {
        errors.push(FieldError::invalid("spec.minReplicas", min, "must be greater than or equal to 1"));
    }
    if max < 1 {
        errors.push(FieldError::invalid("spec.maxReplicas", max, "must be greater than 0"));
    }
    if max < min {
        errors.push(FieldError::invalid("spec.maxReplicas", max, "must be greater than or equal to `minReplicas`"));
    }
    for key in ["kind", "name"] {
        required(&spec["scaleTargetRef"][key], &at("spec.scaleTargetRef", key), errors);
    }
    for (i, metric) in list(&spec["metrics"]).iter().enumerate() {
        let path = at_index("spec", "metrics", i);
        let kinds = [
            ("Object", "object"),
            ("Pods", "pods"),
            ("Resource", "resource"),
            ("ContainerResource", "containerResource"),
            ("External", "external"),
        ];
        let type_ = text(&metric["type"]);
        let Some((_, source)) = kinds.iter().find(|(name, _)| *name == type_) else {
            let names = ["ContainerResource", "External", "Object", "Pods", "Resource"];
            one_of(&metric["type"], &at(&path, "type"), &names, errors);
            continue;
        };
        if !has(metric, source) {
            errors.push(FieldError::required(at(&path, source), "must populate information for the given metric source"));
            continue;
        }
        for other in given(metric, &["object", "pods", "resource", "containerResource", "external"]) {
            if other != *source {
                let detail = "must populate the given metric source only";
                errors.push(FieldError::forbidden(at(&path, other), detail));
            }
        }
        target(&metric[*source]["target"], &at(&at(&path, source), "target"), errors);
    }
}

fn target(target: &Value, path: &str, errors: &mut Errors) {
    one_of(&target["type"], &at(path, "type"), &["AverageValue", "Utilization", "Value"], errors);
    if target["averageUtilization"].as_i64().is_some_and(|n| n < 1) {
        let value = target["averageUtilization"].clone();
        errors.push(FieldError::invalid(at(path, "averageUtilization"), value, "must be greater than 0"));
    }
    if given(target, &["averageUtilization", "averageValue", "value"]).is_empty() {
        let detail = "must set either a target raw value or a target utilization";
        errors.push(FieldError::required(at(path, "averageUtilization"), detail));
    }
}

#[cfg(test)]
mod tests {
    use crate::builtin::by_kind;
    use serde_json::json;

    #[test]
    fn budgets_and_autoscalers() {
        let budget = &by_kind("policy/v1", "PodDisruptionBudget").unwrap().hooks;
        let both = json!({"spec": {"minAvailable": 1, "maxUnavailable": 1}});
        assert!(budget.validate_create(&both)[0].to_string().ends_with("minAvailable and maxUnavailable cannot be both set"));
        for version in ["autoscaling/v1", "autoscaling/v2"] {
            let hooks = &by_kind(version, "HorizontalPodAutoscaler").unwrap().hooks;
            let mut doc = json!({"metadata": {}, "spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d"}}});
            hooks.default(&mut doc);
            assert!(hooks.validate_create(&doc).is_empty(), "{version}");
            doc["spec"]["maxReplicas"] = 0.into();
            assert_eq!(hooks.validate_create(&doc)[0].to_string(), "spec.maxReplicas: Invalid value: 0: must be greater than 0");
        }
    }
}
