//! Autoscalers (v1 is stored as v2), disruption budgets, priority classes.

use serde_json::{Map, Value, json};

use super::{PLAIN, Rules, age};
use crate::{
    Document, table,
    validate::{core, policy},
    value::{child, copy, default, entries, has, is_zero, list, set, text, unset},
};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";

pub(super) fn rules(version: &str) -> Option<Rules> {
    let v2 = Rules {
        default: default_autoscaler,
        validate: policy::autoscaler,
        columns: &[
            ("Reference", "string", 0),
            ("Targets", "string", 0),
            ("MinPods", "string", 0),
            ("MaxPods", "string", 0),
            ("Replicas", "string", 0),
            ("Age", "string", 0),
        ],
        cells: autoscaler_cells,
        ..PLAIN
    };
    Some(match version {
        "v2" => v2,
        _ => Rules {
            default: |doc| {
                let annotated = has(&doc["metadata"]["annotations"], METRICS);
                if let Some(spec) = child(doc, "spec") {
                    default(spec, "minReplicas", 1);
                    if !annotated {
                        default(spec, "targetCPUUtilizationPercentage", 80);
                    }
                }
            },
            validate: |doc, errors| policy::autoscaler(&to_v2(doc.clone()), errors),
            cells: |doc, now| autoscaler_cells(&to_v2(doc.clone()), now),
            from_storage: to_v1,
            to_storage: to_v2,
            ..v2
        },
    })
}

pub(super) fn policy_rules(kind: &str) -> Option<Rules> {
    Some(match kind {
        "PodDisruptionBudget" => Rules {
            validate: policy::disruption_budget,
            columns: &[
                ("Min Available", "string", 0),
                ("Max Unavailable", "string", 0),
                ("Allowed Disruptions", "integer", 0),
                ("Age", "string", 0),
            ],
            cells: |doc, now| {
                vec![
                    table::scalar(&doc["spec"]["minAvailable"], "N/A"),
                    table::scalar(&doc["spec"]["maxUnavailable"], "N/A"),
                    table::count(&doc["status"]["disruptionsAllowed"]),
                    age(doc, now),
                ]
            },
            ..PLAIN
        },
        "PriorityClass" => Rules {
            default: |doc| {
                default(doc, "preemptionPolicy", "PreemptLowerPriority");
                default(doc, "value", 0);
            },
            validate: core::priority_class,
            validate_update: core::priority_class_update,
            columns: &[("Value", "integer", 0), ("Global-Default", "boolean", 0), ("Age", "string", 0), ("PreemptionPolicy", "string", 0)],
            cells: |doc, now| {
                vec![table::count(&doc["value"]), (doc["globalDefault"] == true).into(), age(doc, now), doc["preemptionPolicy"].clone()]
            },
            ..PLAIN
        },
        _ => return None,
    })
}

fn default_autoscaler(doc: &mut Document) {
    let Some(spec) = child(doc, "spec") else { return };
    default(spec, "minReplicas", 1);
    if is_zero(&spec["metrics"]) {
        set(spec, "metrics", json!([cpu_metric(80)]));
    }
    let Some(behavior) = spec.get_mut("behavior").filter(|b| b.is_object()) else { return };
    for (direction, fallback) in [
        (
            "scaleUp",
            json!({"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [
                {"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]}),
        ),
        ("scaleDown", json!({"selectPolicy": "Max", "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]})),
    ] {
        if let Some(rules) = child(behavior, direction) {
            for (key, value) in entries(&fallback) {
                default(rules, key, value.clone());
            }
        }
    }
}

fn cpu_metric(percent: i64) -> Value {
    json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}})
}

fn is_cpu_utilization(metric: &Value) -> bool {
    metric["type"] == "Resource" && metric["resource"]["name"] == "cpu" && metric["resource"]["target"]["type"] == "Utilization"
}

fn annotate(doc: &mut Document, key: &str, value: &Value) {
    if !is_zero(value)
        && let Some(annotations) = child(doc, "metadata").and_then(|m| child(m, "annotations"))
    {
        set(annotations, key, value.to_string());
    }
}

fn take_annotation(doc: &mut Document, key: &str) -> Option<Value> {
    let annotations = doc.pointer_mut("/metadata/annotations")?.as_object_mut()?;
    let value = serde_json::from_str(annotations.remove(key)?.as_str()?).ok();
    if annotations.is_empty()
        && let Some(metadata) = doc.get_mut("metadata")
    {
        unset(metadata, "annotations");
    }
    value
}

/// What v1 has no fields for travels in annotations.
fn to_v1(doc: Document) -> Document {
    let mut out = doc.clone();
    set(&mut out, "apiVersion", "autoscaling/v1");
    let metrics = list(&doc["spec"]["metrics"]);
    let cpu = metrics.iter().position(is_cpu_utilization);
    let others: Vec<Value> = metrics.iter().enumerate().filter(|(i, _)| Some(*i) != cpu).map(|(_, m)| m.clone()).collect();
    if let Some(spec) = out.get_mut("spec") {
        unset(spec, "metrics");
        unset(spec, "behavior");
        if let Some(at) = cpu {
            let percent = metrics[at]["resource"]["target"]["averageUtilization"].clone();
            set(spec, "targetCPUUtilizationPercentage", percent);
        }
    }
    annotate(&mut out, METRICS, &Value::Array(others));
    annotate(&mut out, BEHAVIOR, &doc["spec"]["behavior"]);
    annotate(&mut out, CONDITIONS, &doc["status"]["conditions"]);
    annotate(&mut out, CURRENT, &doc["status"]["currentMetrics"]);
    if let Some(status) = out.get_mut("status") {
        unset(status, "conditions");
        unset(status, "currentMetrics");
        let current = list(&doc["status"]["currentMetrics"]).iter().find(|m| m["resource"]["name"] == "cpu");
        if let Some(percent) = current.map(|m| m["resource"]["current"]["averageUtilization"].clone()).filter(|p| !p.is_null()) {
            set(status, "currentCPUUtilizationPercentage", percent);
        }
    }
    out
}

fn to_v2(mut doc: Document) -> Document {
    set(&mut doc, "apiVersion", "autoscaling/v2");
    let mut metrics = match take_annotation(&mut doc, METRICS) {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    };
    let (behavior, conditions) = (take_annotation(&mut doc, BEHAVIOR), take_annotation(&mut doc, CONDITIONS));
    let current = take_annotation(&mut doc, CURRENT);
    if let Some(spec) = doc.get_mut("spec") {
        if let Some(percent) = spec["targetCPUUtilizationPercentage"].as_i64() {
            metrics.insert(0, cpu_metric(percent));
        }
        unset(spec, "targetCPUUtilizationPercentage");
        if !metrics.is_empty() {
            set(spec, "metrics", metrics);
        }
        if let Some(behavior) = behavior {
            set(spec, "behavior", behavior);
        }
    }
    let mut carried = Map::new();
    for (key, value) in [("conditions", conditions), ("currentMetrics", current)] {
        if let Some(value) = value {
            carried.insert(key.into(), value);
        }
    }
    if let Some(status) = doc.get_mut("status").filter(|s| s.is_object()) {
        unset(status, "currentCPUUtilizationPercentage");
        let carried = Value::Object(carried);
        for key in ["conditions", "currentMetrics"] {
            copy(status, &carried, key);
        }
    }
    doc
}

fn autoscaler_cells(doc: &Document, now: i64) -> Vec<Value> {
    let (spec, status) = (&doc["spec"], &doc["status"]);
    let reference = format!("{}/{}", text(&spec["scaleTargetRef"]["kind"]), text(&spec["scaleTargetRef"]["name"]));
    let shown: Vec<String> = list(&spec["metrics"])
        .iter()
        .enumerate()
        .map(|(i, metric)| metric_text(metric, list(&status["currentMetrics"]).get(i).unwrap_or(&Value::Null)))
        .collect();
    let targets = match shown.len() {
        0 => table::NONE.to_owned(),
        n if n > 2 => format!("{} + {} more...", shown[..2].join(", "), n - 2),
        _ => shown.join(", "),
    };
    vec![
        reference.into(),
        targets.into(),
        table::scalar(&spec["minReplicas"], "<unset>"),
        table::scalar(&spec["maxReplicas"], ""),
        table::count(&status["currentReplicas"]),
        age(doc, now),
    ]
}

/// `cpu: 12%/80%`
fn metric_text(metric: &Value, current: &Value) -> String {
    let (source, prefix) = match text(&metric["type"]) {
        "Resource" => ("resource", format!("{}: ", text(&metric["resource"]["name"]))),
        "ContainerResource" => ("containerResource", format!("{}: ", text(&metric["containerResource"]["name"]))),
        "Pods" => ("pods", String::new()),
        "Object" => ("object", String::new()),
        "External" => ("external", String::new()),
        _ => return "<unknown type>".into(),
    };
    let (target, now) = (&metric[source]["target"], &current[source]["current"]);
    let unknown = "<unknown>".to_owned();
    if let Some(percent) = target["averageUtilization"].as_i64() {
        let now = now["averageUtilization"].as_i64().map_or(unknown, |p| format!("{p}%"));
        return format!("{prefix}{now}/{percent}%");
    }
    let key = if has(target, "averageValue") { "averageValue" } else { "value" };
    let now = if text(&now[key]).is_empty() { unknown } else { text(&now[key]).into() };
    let suffix = if key == "averageValue" && source != "resource" && source != "pods" { " (avg)" } else { "" };
    format!("{prefix}{now}/{}{suffix}", text(&target[key]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v1_and_v2_tell_the_same() {
        let mut v2 = json!({"apiVersion": "autoscaling/v2", "metadata": {"name": "a"}, "spec": {"maxReplicas": 3,
            "scaleTargetRef": {"kind": "Deployment", "name": "d"},
            "metrics": [cpu_metric(50), {"type": "Pods", "pods": {"metric": {"name": "q"}, "target": {"type": "AverageValue", "averageValue": "5"}}}]}});
        default_autoscaler(&mut v2);
        let v1 = to_v1(v2.clone());
        assert_eq!((&v1["apiVersion"], &v1["spec"]["targetCPUUtilizationPercentage"]), (&json!("autoscaling/v1"), &json!(50)));
        assert!(v1["spec"].get("metrics").is_none());
        assert_eq!(to_v2(v1), v2);
        assert_eq!(autoscaler_cells(&v2, 0)[1], "cpu: <unknown>/50%, <unknown>/5");
    }
}
