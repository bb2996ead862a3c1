//! Workloads: what makes a template's owner consistent.

use serde_json::Value;

use super::{
    check::{Errors, at, at_most_all, count_or_percent, is_empty_selector, is_none_at_all, label_selector, non_negative, one_of},
    pod,
};
use crate::{
    Document,
    kinds::immutable,
    meta::same,
    selector::LabelSelector,
    status::FieldError,
    value::{entries, has, list, text},
};

fn selector(spec: &Value, owner: &str, errors: &mut Errors) {
    let selector = &spec["selector"];
    if !has(spec, "selector") {
        errors.push(FieldError::required("spec.selector", ""));
        return;
    }
    label_selector(selector, "spec.selector", errors);
    if is_empty_selector(selector) {
        let detail = format!("empty selector is invalid for {owner}");
        errors.push(FieldError::invalid("spec.selector", selector.clone(), detail));
    }
}

fn template(spec: &Value, errors: &mut Errors) {
    let path = "spec.template";
    let labels = &spec["template"]["metadata"]["labels"];
    let chosen = LabelSelector::from_document(&spec["selector"]);
    if !chosen.is_empty() && has(spec, "selector") && !chosen.matches_map(labels) {
        let detail = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid("spec.template.metadata.labels", labels.clone(), detail));
    }
    pod::validate_template(&spec["template"], path, errors);
    long_running(spec, errors);
}

/// Pods of these owners restart forever.
fn long_running(spec: &Value, errors: &mut Errors) {
    let pod = &spec["template"]["spec"];
    let policy = text(&pod["restartPolicy"]);
    if policy != "Always" {
        errors.push(FieldError::not_supported("spec.template.spec.restartPolicy", policy, &["Always"]));
    }
    if has(pod, "activeDeadlineSeconds") {
        let detail = "activeDeadlineSeconds in ReplicaSet is not Supported";
        errors.push(FieldError::forbidden("spec.template.spec.activeDeadlineSeconds", detail));
    }
}

fn counts(spec: &Value, keys: &[&str], errors: &mut Errors) {
    for key in keys {
        non_negative(&spec[*key], &at("spec", key), errors);
    }
}

pub fn validate_deployment(doc: &Document, errors: &mut Errors) {
    let spec = &doc["spec"];
    counts(spec, &["replicas"], errors);
    selector(spec, "deployment", errors);
    template(spec, errors);
    strategy(&spec["strategy"], "spec.strategy", &["Recreate", "RollingUpdate"], errors);
    counts(spec, &["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"], errors);
    let (deadline, ready) = (&spec["progressDeadlineSeconds"], spec["minReadySeconds"].as_i64().unwrap_or(0));
    if deadline.as_i64().is_some_and(|d| d <= ready) {
        errors.push(FieldError::invalid("spec.progressDeadlineSeconds", deadline.clone(), "must be greater than minReadySeconds"));
    }
}

fn strategy(s: &Value, path: &str, types: &[&str], errors: &mut Errors) {
    one_of(&s["type"], &at(path, "type"), types, errors);
    let rolling = &s["rollingUpdate"];
    let path = at(path, "rollingUpdate");
    if s["type"] == "Recreate" {
        if has(s, "rollingUpdate") {
            errors.push(FieldError::forbidden(path, "may not be specified when strategy `type` is 'Recreate'"));
        }
        return;
    }
    if s["type"] != "RollingUpdate" || rolling.is_null() {
        return;
    }
    for key in ["maxUnavailable", "maxSurge"] {
        count_or_percent(&rolling[key], &at(&path, key), errors);
    }
    if is_none_at_all(&rolling["maxUnavailable"]) && is_none_at_all(&rolling["maxSurge"]) {
        let detail = "may not be 0 when `maxSurge` is 0";
        errors.push(FieldError::invalid(at(&path, "maxUnavailable"), rolling["maxUnavailable"].clone(), detail));
    }
    at_most_all(&rolling["maxUnavailable"], &at(&path, "maxUnavailable"), errors);
}

pub fn validate_replica_set(doc: &Document, errors: &mut Errors) {
    let spec = &doc["spec"];
    counts(spec, &["replicas", "minReadySeconds"], errors);
    selector(spec, "deployment", errors);
    if !has(spec, "template") {
        errors.push(FieldError::required("spec.template", ""));
    } else {
        template(spec, errors);
    }
}

pub fn validate_replication_controller(doc: &Document, errors: &mut Errors) {
    let spec = &doc["spec"];
    counts(spec, &["replicas", "minReadySeconds"], errors);
    if entries(&spec["selector"]).next().is_none() {
        errors.push(FieldError::required("spec.selector", ""));
    }
    let labels = &spec["template"]["metadata"]["labels"];
    if !has(spec, "template") {
        errors.push(FieldError::required("spec.template", ""));
        return;
    }
    if entries(&spec["selector"]).any(|(k, v)| labels[k] != *v) {
        let detail = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid("spec.template.metadata.labels", labels.clone(), detail));
    }
    pod::validate_template(&spec["template"], "spec.template", errors);
    long_running(spec, errors);
}

pub fn validate_daemon_set(doc: &Document, errors: &mut Errors) {
    let spec = &doc["spec"];
    selector(spec, "daemonset", errors);
    template(spec, errors);
    counts(spec, &["minReadySeconds", "revisionHistoryLimit"], errors);
    let update = &spec["updateStrategy"];
    one_of(&update["type"], "spec.updateStrategy.type", &["RollingUpdate", "OnDelete"], errors);
    if update["type"] == "RollingUpdate" {
        let (path, rolling) = ("spec.updateStrategy.rollingUpdate", &update["rollingUpdate"]);
        for key in ["maxUnavailable", "maxSurge"] {
            count_or_percent(&rolling[key], &at(path, key), errors);
            at_most_all(&rolling[key], &at(path, key), errors);
        }
        match (is_none_at_all(&rolling["maxUnavailable"]), is_none_at_all(&rolling["maxSurge"])) {
            (true, true) => errors.push(FieldError::required(at(path, "maxUnavailable"), "cannot be 0 when maxSurge is 0")),
            (false, false) => errors.push(FieldError::invalid(
                at(path, "maxSurge"),
                rolling["maxSurge"].clone(),
                "may not be set when maxUnavailable is non-zero",
            )),
            _ => {}
        }
    }
}

pub fn validate_stateful_set(doc: &Document, errors: &mut Errors) {
    let spec = &doc["spec"];
    let policy = at("spec", "podManagementPolicy");
    if text(&spec["podManagementPolicy"]).is_empty() {
        errors.push(FieldError::required(policy, ""));
    } else if !matches!(text(&spec["podManagementPolicy"]), "OrderedReady" | "Parallel") {
        let detail = "must be 'OrderedReady' or 'Parallel'";
        errors.push(FieldError::invalid(policy, text(&spec["podManagementPolicy"]), detail));
    }
    let update = &spec["updateStrategy"];
    match text(&update["type"]) {
        "RollingUpdate" => {
            let path = "spec.updateStrategy.rollingUpdate";
            non_negative(&update["rollingUpdate"]["partition"], &at(path, "partition"), errors);
            let most = &update["rollingUpdate"]["maxUnavailable"];
            if !most.is_null() {
                count_or_percent(most, &at(path, "maxUnavailable"), errors);
                if is_none_at_all(most) {
                    errors.push(FieldError::invalid(at(path, "maxUnavailable"), most.clone(), "cannot be 0"));
                }
            }
        }
        "OnDelete" if has(update, "rollingUpdate") => errors.push(FieldError::invalid(
            "spec.updateStrategy.rollingUpdate",
            update["rollingUpdate"].clone(),
            "only allowed for updateStrategy 'RollingUpdate'",
        )),
        "OnDelete" => {}
        "" => errors.push(FieldError::required("spec.updateStrategy", "")),
        _ => errors.push(FieldError::invalid("spec.updateStrategy", update.clone(), "must be 'RollingUpdate' or 'OnDelete'")),
    }
    for key in ["whenDeleted", "whenScaled"] {
        let path = at("spec.persistentVolumeClaimRetentionPolicy", key);
        one_of(&spec["persistentVolumeClaimRetentionPolicy"][key], &path, &["Retain", "Delete"], errors);
    }
    counts(spec, &["replicas", "minReadySeconds"], errors);
    non_negative(&spec["ordinals"]["start"], "spec.ordinals.start", errors);
    selector(spec, "statefulset", errors);
    // Volumes that claim templates make are there for mounts.
    let mut with_claims = spec.clone();
    if let Some(volumes) = with_claims
        .pointer_mut("/template/spec")
        .and_then(|s| s.as_object_mut().map(|m| m.entry("volumes").or_insert_with(|| Value::Array(Vec::new()))))
        && let Some(volumes) = volumes.as_array_mut()
    {
        for claim in list(&spec["volumeClaimTemplates"]) {
            volumes.retain(|v| v["name"] != claim["metadata"]["name"]);
            volumes.push(serde_json::json!({"name": claim["metadata"]["name"], "emptyDir": {}}));
        }
    }
    template(&with_claims, errors);
}

/// Selectors of workloads never change.
pub fn validate_selector_update(new: &Document, old: &Document, sub: &str, errors: &mut Errors) {
    if sub.is_empty() {
        immutable(new, old, "/spec/selector", errors);
    }
}

pub fn validate_stateful_set_update(new: &Document, old: &Document, sub: &str, errors: &mut Errors) {
    if !sub.is_empty() {
        return;
    }
    const MUTABLE: [&str; 8] = [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
        "status",
    ];
    let (after, before) = (&new["spec"], &old["spec"]);
    let keys = entries(after).map(|(k, _)| k).chain(entries(before).map(|(k, _)| k));
    if keys.filter(|k| !MUTABLE.contains(k)).any(|k| !same(&after[k], &before[k])) {
        errors.push(FieldError::forbidden(
            "spec",
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
             'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::by_kind;
    use serde_json::json;

    fn messages(kind: &str, change: impl FnOnce(&mut Value)) -> Vec<String> {
        let mut doc = json!({"metadata": {"name": "d", "namespace": "n"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
        change(&mut doc["spec"]);
        let hooks = &by_kind("apps/v1", kind).unwrap().hooks;
        hooks.default(&mut doc);
        hooks.validate_create(&doc).iter().map(|e| e.to_string()).collect()
    }

    #[test]
    fn defaulted_workloads_are_valid() {
        for kind in ["Deployment", "ReplicaSet", "StatefulSet", "DaemonSet"] {
            assert_eq!(messages(kind, |_| {}), Vec::<String>::new(), "{kind}");
        }
        assert_eq!(
            messages("StatefulSet", |s| {
                s["volumeClaimTemplates"] = json!([{"metadata": {"name": "v"}}]);
                s["template"]["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
            }),
            Vec::<String>::new()
        );
    }

    #[test]
    fn messages_are_upstreams() {
        let case = |change: fn(&mut Value), want: &str| assert_eq!(messages("Deployment", change), [want]);
        case(|s| s["replicas"] = (-1).into(), "spec.replicas: Invalid value: -1: must be greater than or equal to 0");
        case(
            |s| s["template"]["metadata"]["labels"] = json!({"x": "y"}),
            "spec.template.metadata.labels: Invalid value: {\"x\":\"y\"}: `selector` does not match template `labels`",
        );
        case(|s| s["selector"] = json!({}), "spec.selector: Invalid value: {}: empty selector is invalid for deployment");
        case(
            |s| s["template"]["spec"]["restartPolicy"] = "Never".into(),
            "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
        );
        case(
            |s| s["strategy"] = json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}),
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0",
        );
        case(
            |s| s["strategy"] = json!({"rollingUpdate": {"maxSurge": "x"}}),
            "spec.strategy.rollingUpdate.maxSurge: Invalid value: \"x\": a valid percent string must be a numeric string \
             followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
        );
    }

    #[test]
    fn selectors_stay() {
        let hooks = &by_kind("apps/v1", "Deployment").unwrap().hooks;
        let (old, new) =
            (json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}}), json!({"spec": {"selector": {"matchLabels": {"a": "c"}}}}));
        assert!(
            hooks
                .validate_update(&new, &old, "")
                .iter()
                .any(|e| e.to_string() == "spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"c\"}}: field is immutable")
        );
    }
}
