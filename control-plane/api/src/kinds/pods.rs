//! Pods, pod templates, replication controllers.

use serde_json::{Value, json};

use super::{PLAIN, Rules, field, podspec};
use crate::{
    Document, table,
    validate::{self, pod, workload},
    value::{child, copy, default, has, list, set, text, with},
};

pub(super) fn rules(kind: &str) -> Option<Rules> {
    Some(match kind {
        "Pod" => Rules {
            default: |doc| {
                if let Some(spec) = child(doc, "spec") {
                    podspec::default_pod_spec(spec);
                    podspec::default_pod_only(spec);
                }
            },
            prepare_create: prepare_pod,
            prepare_update: update_pod,
            validate: pod::validate,
            validate_new: pod::validate_new,
            validate_update: pod::validate_update,
            fields: pod_fields,
            columns: &[
                ("Ready", "string", 0),
                ("Status", "string", 0),
                ("Restarts", "string", 0),
                ("Age", "string", 0),
                ("IP", "string", 1),
                ("Node", "string", 1),
                ("Nominated Node", "string", 1),
                ("Readiness Gates", "string", 1),
            ],
            cells: table::pod::cells,
            ..PLAIN
        },
        "PodTemplate" => Rules {
            default: podspec::default_template,
            validate: |doc, errors| pod::validate_template(&doc["template"], "template", errors),
            columns: &[("Containers", "string", 0), ("Images", "string", 0), ("Pod Labels", "string", 0)],
            cells: |doc, _| {
                let spec = &doc["template"]["spec"];
                vec![table::containers(spec), table::images(spec), table::labels(&doc["template"]["metadata"]["labels"])]
            },
            ..PLAIN
        },
        "ReplicationController" => Rules {
            default: default_controller,
            validate: workload::validate_replication_controller,
            fields: |doc| vec![("status.replicas", number(&doc["status"]["replicas"]))],
            columns: super::apps::REPLICA_COLUMNS,
            cells: |doc, now| {
                let mut cells = super::apps::replica_cells(doc, now);
                cells.push(table::labels(&doc["spec"]["selector"]));
                cells
            },
            ..PLAIN
        },
        "Binding" => Rules { validate: validate::core::binding, ..PLAIN },
        _ => return None,
    })
}

fn number(value: &Value) -> String {
    value.as_i64().unwrap_or(0).to_string()
}

fn pod_fields(doc: &Document) -> Vec<(&'static str, String)> {
    let ip = list(&doc["status"]["podIPs"]).first().map_or_else(|| field(doc, "/status/podIP"), |ip| text(&ip["ip"]).into());
    vec![
        ("spec.nodeName", field(doc, "/spec/nodeName")),
        ("spec.restartPolicy", field(doc, "/spec/restartPolicy")),
        ("spec.schedulerName", field(doc, "/spec/schedulerName")),
        ("spec.serviceAccountName", field(doc, "/spec/serviceAccountName")),
        ("spec.hostNetwork", (doc["spec"]["hostNetwork"] == true).to_string()),
        ("status.phase", field(doc, "/status/phase")),
        ("status.podIP", ip.clone()),
        ("status.podIPs", ip),
        ("status.nominatedNodeName", field(doc, "/status/nominatedNodeName")),
    ]
}

fn prepare_pod(doc: &mut Document) {
    with(doc, "spec", podspec::mirror_service_account);
    let mut status = json!({"phase": "Pending", "qosClass": podspec::qos_class(&doc["spec"])});
    if !list(&doc["spec"]["schedulingGates"]).is_empty() {
        status["conditions"] = json!([{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates"}]);
    }
    set(doc, "status", status);
}

fn update_pod(new: &mut Document, old: &Document, sub: &str) {
    match sub {
        "status" => {
            // The class is decided by the spec, whatever a node reports.
            if let (Some(status), false) = (child(new, "status"), old["status"]["qosClass"].is_null()) {
                copy(status, &old["status"], "qosClass");
            }
            if let Some(metadata) = child(new, "metadata") {
                copy(metadata, &old["metadata"], "ownerReferences");
            }
        }
        "ephemeralcontainers" | "resize" => {
            // Only the part this subresource is for is taken from the request.
            let given = new["spec"].take();
            let mut spec = old["spec"].clone();
            if sub == "ephemeralcontainers" {
                copy(&mut spec, &given, "ephemeralContainers");
                podspec::default_pod_spec(&mut spec);
            } else {
                resize(&mut spec, &given);
            }
            set(new, "spec", spec);
            copy(new, old, "status");
        }
        _ => with(new, "spec", podspec::mirror_service_account),
    }
}

fn resize(spec: &mut Value, given: &Value) {
    for key in ["containers", "initContainers"] {
        crate::value::each(spec, key, |container| {
            if let Some(wanted) = list(&given[key]).iter().find(|c| c["name"] == container["name"]) {
                copy(container, wanted, "resources");
                copy(container, wanted, "resizePolicy");
            }
        });
    }
}

fn default_controller(doc: &mut Document) {
    let labels = doc["spec"]["template"]["metadata"]["labels"].clone();
    if let Some(spec) = child(doc, "spec") {
        podspec::default_template(spec);
        default(spec, "replicas", 1);
        if crate::value::is_zero(&spec["selector"]) && labels.is_object() {
            set(spec, "selector", labels.clone());
        }
    }
    if let Some(metadata) = child(doc, "metadata")
        && !has(metadata, "labels")
        && labels.is_object()
    {
        set(metadata, "labels", labels);
    }
}

/// The AGE cell for kinds that print `Created At`.
pub(super) fn created_at(doc: &Document, _now: i64) -> Vec<Value> {
    vec![doc["metadata"]["creationTimestamp"].clone()]
}
